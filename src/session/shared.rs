//! One child for several sessions.
//!
//! Each session keeps speaking as if the child were its own; a `Switch` stands
//! between. The child ends with the last of its sessions, and all of them with
//! it. Made by `table`; a message reaches it only through a session.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use tokio::{
    net::unix::pipe,
    sync::{Notify, mpsc},
};

use crate::{
    auth::PrincipalKey,
    session::{
        Session,
        ending::Served,
        exchange::Failure,
        pump,
        switch::{Out, Switch},
    },
};

/// A child and those that share it.
pub(super) struct Shared {
    /// Whose it is, for the record.
    principal: PrincipalKey,
    stdin: mpsc::Sender<Bytes>,
    state: Mutex<State>,
    /// Lines of members enter the child in the order in which they were switched.
    order: tokio::sync::Mutex<()>,
    unheard: AtomicU64,
    end: Notify,
}

struct State {
    switch: Switch,
    sessions: HashMap<u64, Arc<Session>>,
    next: u64,
    /// Nobody may join any more; and whether that is because nobody was left.
    closed: bool,
    unwanted: bool,
}

impl Shared {
    /// The child's side of it, which must be tended, is the receiver.
    pub(super) fn new(
        principal: PrincipalKey,
        everybody: bool,
        lines: usize,
    ) -> (Arc<Self>, mpsc::Receiver<Bytes>) {
        let (stdin, outbox) = mpsc::channel(lines);
        let state = State {
            switch: Switch::new(everybody),
            sessions: HashMap::new(),
            next: 1,
            closed: false,
            unwanted: false,
        };
        let shared = Self {
            principal,
            stdin,
            state: Mutex::new(state),
            order: tokio::sync::Mutex::default(),
            unheard: AtomicU64::new(0),
            end: Notify::new(),
        };
        (Arc::new(shared), outbox)
    }

    /// One more session; `None` when this child takes none any more.
    pub(super) fn join(&self, session: &Arc<Session>) -> Option<u64> {
        let mut state = self.state();
        if state.closed {
            return None;
        }
        let member = state.next;
        state.next += 1;
        let principal = session.owner().principal_key();
        state.switch.join(member, principal);
        state.sessions.insert(member, session.clone());
        Some(member)
    }

    /// Ends the child if nobody is left.
    fn end_if_alone(&self) {
        let mut state = self.state();
        if state.sessions.is_empty() {
            (state.closed, state.unwanted) = (true, true);
            self.end.notify_one();
        }
    }

    /// Carries the session's lines to the child until the session ends.
    pub(super) async fn serve(
        &self,
        member: u64,
        session: Arc<Session>,
        mut lines: mpsc::Receiver<Bytes>,
    ) {
        loop {
            tokio::select! {
                // What it has said before its end is said, its cancellations among it.
                biased;
                line = lines.recv() => match line {
                    Some(line) => {
                        let bytes = line.len();
                        self.say(member, line).await;
                        session.written(bytes);
                    }
                    None => break,
                },
                () = session.end.notified() => break,
            }
        }
        session.fail_all(Failure::ChildEnded);
        let out = {
            let mut state = self.state();
            state.sessions.remove(&member);
            state.switch.leave(member)
        };
        self.pass_now(out);
        self.end_if_alone();
    }

    async fn say(&self, member: u64, line: Bytes) {
        let turn = self.order.lock().await;
        let out = self.state().switch.said_by(member, line);
        for out in out {
            match out {
                // It is ending, and so are its sessions.
                Out::ToChild(line) => drop(self.stdin.send(line).await),
                Out::To(member, line) => self.give(member, line),
            }
        }
        drop(turn);
    }

    /// Without waiting: a child that does not read goes without these.
    fn pass_now(&self, out: Vec<Out>) {
        for out in out {
            match out {
                Out::ToChild(line) => drop(self.stdin.try_send(line)),
                Out::To(member, line) => self.give(member, line),
            }
        }
    }

    fn give(&self, member: u64, line: Bytes) {
        let session = self.state().sessions.get(&member).cloned();
        if let Some(session) = session {
            pump::take(&session, line);
        }
    }

    fn hear_line(&self, line: Bytes) -> bool {
        let Some(out) = self.state().switch.said_by_child(line) else {
            return false;
        };
        if out.is_empty() {
            self.unheard.fetch_add(1, Ordering::Relaxed);
        }
        self.pass_now(out);
        true
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code path leaves the state half changed, so a panic elsewhere does not taint it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Served for Shared {
    fn principal(&self) -> String {
        self.principal.to_string()
    }

    fn end(&self) -> &Notify {
        &self.end
    }

    fn is_unwanted(&self) -> bool {
        self.state().unwanted
    }

    fn in_flight(&self) -> usize {
        self.state().switch.waiting()
    }

    fn fail_all(&self, failure: Failure) {
        let sessions: Vec<_> = {
            let mut state = self.state();
            state.closed = true;
            state.sessions.values().cloned().collect()
        };
        for session in sessions {
            session.fail_all(failure);
            session.hang_up();
        }
    }

    fn unheard(&self) -> u64 {
        self.unheard.load(Ordering::Relaxed)
    }

    fn written(&self, _: usize) {}

    fn hang_up(&self) {
        self.end.notify_one();
    }

    async fn hear(&self, stdout: pipe::Receiver, rate: u64) {
        pump::lines(stdout, rate, |line| self.hear_line(line)).await;
    }
}
