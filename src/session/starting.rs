//! A session's way to a child: its own, or one that it shares.
//!
//! The other half of `table`, which calls it: what `scope` says decides whose child it is.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::{
    auth::{Identity, Kind, Owner, PrincipalKey},
    child::{Child, StartError},
    config::Scope,
    frames::Caller,
    mcp::{Era, meta},
    session::{
        OpenError, Session, Sessions, ending,
        exchange::Failure,
        load::Slot,
        outbox::{OutboxReader, outbox},
        shared::SharedChild,
        table::{OpeningSession, lock, new_id},
    },
};

impl Sessions {
    /// Starts a child, and the task that tends it and sees it out, whatever becomes of this request.
    pub(super) async fn begin(
        &self,
        identity: &Arc<Identity>,
        era: Era,
    ) -> Result<OpeningSession, OpenError> {
        let slot = self.slots.take(identity.principal_key())?;
        let (stdin, lines) = outbox(MAX_LINES);
        let session = Session::new(
            new_id(),
            identity.clone(),
            self.setup.audit.clone(),
            (self.setup.call_timeout, self.calls.clone(), &self.rooms),
            era,
            stdin,
            (self.setup.seal.clone(), self.setup.engine.clone()),
        );
        if self.setup.any_tool_name {
            session.tools.show_any_name();
        }
        match self.setup.scope {
            Scope::Session => {
                let owner = match era {
                    Era::Legacy => Owner::of(identity),
                    // One serves all clients of its principal.
                    Era::Modern => Owner::of_all_clients(identity),
                };
                let caller = self.caller(identity)?;
                let child = self.start(&owner, caller).await?;
                let tended = ending::tend(
                    session.clone(),
                    child,
                    (lines, self.setup.reading),
                    self.context(),
                );
                Ok(self.enter_in_table(session, slot, tended))
            }
            Scope::User => {
                let owner = Owner::of_all_clients(identity);
                self.join(owner, session, lines, slot).await
            }
            Scope::Server => self.join(Owner::EVERYBODY, session, lines, slot).await,
        }
    }

    /// Has the session share the child of `owner`, which is started if there is none.
    async fn join(
        &self,
        owner: Owner,
        session: Arc<Session>,
        lines: OutboxReader,
        slot: Slot,
    ) -> Result<OpeningSession, OpenError> {
        let whose = owner.principal();
        let everybody = whose == PrincipalKey::EVERYBODY;
        let told = (everybody && self.setup.pass_identity).then(|| {
            let (issuer, subject, kind) = named(session.owner());
            Bytes::from(meta::caller(issuer, subject, kind))
        });
        let backend = lock(&self.backends).entry(whose).or_default().clone();
        let mut backend = backend.lock().await;
        let there = backend.upgrade().and_then(|shared| {
            let member = shared.join(&session, told.clone())?;
            Some((shared, member))
        });
        let (shared, member) = match there {
            Some(there) => there,
            None => {
                let caller = if everybody {
                    None
                } else {
                    self.caller(session.owner())?
                };
                let child = self.start(&owner, caller).await?;
                let (shared, outbox) =
                    SharedChild::new((whose, self.rooms.room(whose)), everybody, MAX_LINES);
                let member = shared.join(&session, told);
                let tended = ending::tend(
                    shared.clone(),
                    child,
                    (outbox, self.setup.reading),
                    self.context(),
                );
                let (children, ended) = (self.children.clone(), self.ended.clone());
                children.fetch_add(1, Ordering::Relaxed);
                self.tasks().spawn(async move {
                    tended.await;
                    children.fetch_sub(1, Ordering::Relaxed);
                    ended.notify_one();
                });
                *backend = Arc::downgrade(&shared);
                (
                    shared,
                    member.ok_or(OpenError::Failed(Failure::ChildEnded))?,
                )
            }
        };
        let served = session.clone();
        let tended = async move { shared.serve(member, served, lines).await };
        Ok(self.enter_in_table(session, slot, tended))
    }

    /// In the table at once, so that it is swept and ended like any other; entered only once it is open.
    fn enter_in_table(
        &self,
        session: Arc<Session>,
        slot: Slot,
        tended: impl Future<Output = ()> + Send + 'static,
    ) -> OpeningSession {
        let (leaves, gone) = oneshot::channel();
        let opening = OpeningSession {
            session: session.clone(),
            kept: false,
            gone,
        };
        let id = session.id().to_owned();
        lock(&self.table).insert(id.clone(), session);
        let (table, ended) = (self.table.clone(), self.ended.clone());
        // Boxed, or the task would have room for it twice.
        let tended = Box::pin(tended);
        self.tasks().spawn(async move {
            tended.await;
            lock(&table).remove(&id);
            drop(slot);
            ended.notify_one();
            drop(leaves);
        });
        opening
    }

    pub(super) fn context(&self) -> ending::ChildContext {
        ending::ChildContext {
            source: self.setup.source.clone(),
            egress: self.setup.egress.clone(),
            audit: self.setup.audit.clone(),
        }
    }

    /// What a child of one user is told of him, where the configuration says so.
    fn caller(&self, identity: &Identity) -> Result<Option<Caller>, StartError> {
        if !self.setup.pass_identity {
            return Ok(None);
        }
        let (issuer, subject, kind) = named(identity);
        let caller = Caller::new(issuer, subject, kind);
        caller.map(Some).map_err(|error| StartError::Failed {
            layer: "identity".to_owned(),
            reason: error.to_string(),
        })
    }

    /// A child for `owner`: one that waits already, or a new one.
    async fn start(&self, owner: &Owner, caller: Option<Caller>) -> Result<Child, StartError> {
        let child = match self.take_warm().await {
            Some(child) => {
                self.record_taken(&child, owner);
                child
            }
            None => ending::start(&self.context(), owner, caller).await?,
        };
        self.fill_warm();
        Ok(child)
    }
}

/// Issuer, subject, and what kind of subject: what is as long as a child the same.
fn named(identity: &Identity) -> (&str, &str, &'static str) {
    let kind = match identity.kind() {
        Kind::User => "user",
        Kind::Client => "client",
    };
    (identity.issuer(), identity.subject(), kind)
}

/// Lines waiting for one child that does not read.
const MAX_LINES: usize = 128;
