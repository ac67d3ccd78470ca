//! The answer of a gateway that serves nobody: the same refusal for each request.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{
    audit::{Audit, Decision, Event, RequestId},
    daemon::Accepted,
    http::{Entrance, Peer, Refusal, connection::Asked},
};

/// Refuses what is asked over one connection, for this reason unless it has a worse one of its own.
pub(super) async fn refuse(
    entrance: Arc<Entrance>,
    accepted: Accepted,
    draining: watch::Receiver<bool>,
    audit: Audit,
    reason: fn() -> Refusal,
) {
    let (stream, peer) = accepted;
    let answer = |asked: Asked, peer: Peer| {
        let refusal = asked.err().unwrap_or_else(reason);
        let mut record = Decision::denied(
            RequestId::random(),
            refusal.reason(),
            refusal.status().as_u16(),
        );
        record.peer = Some(peer.to_string());
        audit.record(&Event::Decision(record));
        // Closed after one answer: the next request finds whoever serves then.
        std::future::ready(refusal.response(None, None))
    };
    entrance.serve(stream, peer, draining, answer).await;
}
