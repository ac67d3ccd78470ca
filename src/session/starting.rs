//! A session's way to a child: its own, or one that it shares.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{
    audit::Event,
    auth::{Identity, PrincipalKey},
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
        );
        match self.setup.scope {
            Scope::Session => {
                let child = self.start(identity.principal_key()).await?;
                let tended = ending::tend(
                    session.clone(),
                    child,
                    (lines, self.setup.output),
                    self.around(),
                );
                Ok(self.enter_in_table(session, slot, tended))
            }
            Scope::User => {
                self.join(identity.principal_key(), session, lines, slot)
                    .await
            }
            Scope::Server => {
                self.join(PrincipalKey::EVERYBODY, session, lines, slot)
                    .await
            }
        }
    }

    /// Has the session share the child of `whose`, which is started if there is none.
    async fn join(
        &self,
        whose: PrincipalKey,
        session: Arc<Session>,
        lines: mpsc::Receiver<Bytes>,
        slot: Place,
    ) -> Result<Opening, OpenError> {
        let backend = lock(&self.backends).entry(whose).or_default().clone();
        let mut backend = backend.lock().await;
        let there = backend.upgrade().and_then(|shared| {
            let member = shared.join(&session)?;
            Some((shared, member))
        });
        let (shared, member) = match there {
            Some(there) => there,
            None => {
                let child = self.start(whose).await?;
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
            launcher: self.setup.launcher.clone(),
            egress: self.setup.egress.clone(),
            audit: self.setup.audit.clone(),
        }
    }

    /// Starts a child for `whose`, and records it.
    async fn start(&self, whose: PrincipalKey) -> Result<Child, StartError> {
        let started = self.setup.launcher.start(whose).await;
        let child = started.inspect_err(|error| {
            let layer = match error {
                StartError::Failed { layer, .. } => layer,
                _ => "runner",
            };
            self.setup.audit.record(&Event::LayerFailed {
                layer: layer.to_owned(),
                reason: error.to_string(),
            });
        })?;
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
