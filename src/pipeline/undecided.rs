//! The record of a request until there is an answer.
//!
//! Whoever takes back a request before it is decided, as an HTTP/2 client may at any time, has the
//! work on it dropped where it stands: that is on record, too. So is what a gateway that stops cuts short, and what it
//! has read and not begun to work on.

use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
};

use http::Request;

use super::{Gateway, handle};
use crate::{
    audit::{Audit, Decision, RequestId, Verdict},
    http::{Peer, Response, connection::Asked},
};

pub(super) struct Undecided<'a> {
    audit: &'a Audit,
    record: Decision,
    is_settled: bool,
}

impl<'a> Undecided<'a> {
    pub(super) fn new(audit: &'a Audit) -> Self {
        Self {
            audit,
            record: Decision::allowed(RequestId::random(), Arc::default()),
            is_settled: false,
        }
    }

    /// There is an answer. That of a batch, whose messages are recorded each by itself, is made without a pause.
    pub(super) fn settle(&mut self) {
        self.is_settled = true;
    }
}

impl Drop for Undecided<'_> {
    fn drop(&mut self) {
        if !self.is_settled && !self.is_on_record() {
            self.record.verdict = Verdict::Deny(self.audit.why_unanswered());
            self.record.put_on_record(self.audit);
            self.audit.hand_on();
        }
    }
}

/// Answers one request, which is on record also where nobody begins to wait for that.
pub fn take(
    gateway: Arc<Gateway>,
    request: Asked,
    peer: Peer,
) -> impl Future<Output = Response> + Send + 'static {
    let mut taken = Taken {
        gateway,
        peer,
        is_begun: false,
    };
    let mut request = request.map(Request::into_parts);
    async move {
        taken.is_begun = true;
        handle(&taken.gateway, &mut request, &taken.peer).await
    }
}

/// A request that has come. It is on record, or `handle` sees to that once it has begun.
struct Taken {
    gateway: Arc<Gateway>,
    peer: Peer,
    is_begun: bool,
}

impl Drop for Taken {
    fn drop(&mut self) {
        if !self.is_begun {
            let gateway = &self.gateway;
            let mut record = Undecided::new(&gateway.audit);
            record.peer = Some(self.peer.client(gateway.config.proxies.as_ref(), None));
            record.version = Some(gateway.version.clone());
        }
    }
}

impl Deref for Undecided<'_> {
    type Target = Decision;

    fn deref(&self) -> &Decision {
        &self.record
    }
}

impl DerefMut for Undecided<'_> {
    fn deref_mut(&mut self) -> &mut Decision {
        &mut self.record
    }
}
