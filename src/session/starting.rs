//! A session's way to a child: its own, or one that it shares.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{
    audit::Event,
    auth::{Identity, Owner, PrincipalKey},
    child::{Child, StartError},
    config::Scope,
    mcp::Era,
    session::{
        OpenError, Session, Sessions, ending,
        exchange::Failure,
        load::Place,
        shared::Shared,
        table::{Opening, lock, new_id},
    },
};

impl Sessions {
    /// Starts a child, and the task that tends it and sees it out, whatever becomes of this request.
    pub(super) async fn begin(&self, identity: &Identity, era: Era) -> Result<Opening, OpenError> {
        let slot = self.slots.take(identity.principal_key())?;
        let (stdin, lines) = mpsc::channel(MAX_LINES);
        let session = Session::new(
            new_id(),
            identity.clone(),
            self.setup.audit.clone(),
            (self.setup.call_timeout, self.calls.clone()),
            era,
            stdin,
            self.setup.seal.clone(),
        );
        match self.setup.scope {
            Scope::Session => {
                let owner = match era {
                    Era::Legacy => Owner::of(identity),
                    // One serves all clients of its principal.
                    Era::Modern => Owner::of_all_clients(identity),
                };
                let child = self.start(&owner).await?;
                let tended = ending::tend(
                    session.clone(),
                    child,
                    (lines, self.setup.output),
                    self.around(),
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
        lines: mpsc::Receiver<Bytes>,
        slot: Place,
    ) -> Result<Opening, OpenError> {
        let whose = owner.principal();
        let backend = lock(&self.backends).entry(whose).or_default().clone();
        let mut backend = backend.lock().await;
        let there = backend.upgrade().and_then(|shared| {
            let member = shared.join(&session)?;
            Some((shared, member))
        });
        let (shared, member) = match there {
            Some(there) => there,
            None => {
                let child = self.start(&owner).await?;
                let everybody = whose == PrincipalKey::EVERYBODY;
                let (shared, outbox) = Shared::new(whose, everybody, MAX_LINES);
                let member = shared.join(&session);
                let tended = ending::tend(
                    shared.clone(),
                    child,
                    (outbox, self.setup.output),
                    self.around(),
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
        slot: Place,
        tended: impl Future<Output = ()> + Send + 'static,
    ) -> Opening {
        let opening = Opening {
            session: session.clone(),
            kept: false,
        };
        let id = session.id().to_owned();
        lock(&self.table).insert(id.clone(), session);
        let (table, ended) = (self.table.clone(), self.ended.clone());
        self.tasks().spawn(async move {
            tended.await;
            lock(&table).remove(&id);
            drop(slot);
            ended.notify_one();
        });
        opening
    }

    fn around(&self) -> ending::Around {
        ending::Around {
            source: self.setup.source.clone(),
            egress: self.setup.egress.clone(),
            audit: self.setup.audit.clone(),
        }
    }

    /// Starts a child for `owner`, and records it.
    async fn start(&self, owner: &Owner) -> Result<Child, StartError> {
        let started = self.setup.source.start(owner).await;
        let child = started.inspect_err(|error| {
            self.setup.audit.record(&Event::LayerFailed {
                layer: error.layer().to_owned(),
                reason: error.in_full(),
            });
        })?;
        let whose = owner.principal();
        self.setup.audit.record(&Event::ChildStarted {
            child: child.number,
            pid: child.pid,
            principal: (whose != PrincipalKey::EVERYBODY).then(|| whose.to_string()),
        });
        Ok(child)
    }
}

/// Lines waiting for one child that does not read.
const MAX_LINES: usize = 128;
