//! One child for several sessions.
//!
//! Each session keeps speaking as if the child were its own; a `Switch` stands
//! between. The child ends with the last of its sessions, and all of them with
//! it. Made by `table`; a message reaches it only through a session.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore};

use crate::{
    aside::aside,
    audit::Reason,
    auth::PrincipalKey,
    child::{Lends, stdio::Reading},
    json::Kind,
    mcp::{Message, version},
    session::{
        Session, blame,
        ending::{Output, Served},
        exchange::Failure,
        line::Line,
        outbox::{Lines, Outbox, outbox},
        probe::Spoken,
        pump::{self, Hears},
        room::Room,
        switch::{Out, Switch},
    },
};

/// A child and those that share it.
pub(super) struct Shared {
    /// Whose it is, for the record.
    principal: PrincipalKey,
    /// The memory of what is on its way to the child or from it.
    memory: Arc<Room>,
    stdin: Outbox,
    /// Bytes that lines for the child may still take up while they wait.
    room: Semaphore,
    /// Bytes of those that wait beyond that.
    beyond: AtomicUsize,
    state: Mutex<State>,
    /// Lines of members enter the child in the order in which they were switched.
    order: tokio::sync::Mutex<()>,
    unheard: AtomicU64,
    /// The child has asked what a member's client is still to be asked.
    asking: AtomicBool,
    spoken: Arc<Spoken>,
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
        (principal, memory): (PrincipalKey, Arc<Room>),
        everybody: bool,
        lines: usize,
    ) -> (Arc<Self>, Lines) {
        let (stdin, outbox) = outbox(lines);
        let state = State {
            switch: Switch::new(everybody),
            sessions: HashMap::new(),
            next: 1,
            closed: false,
            unwanted: false,
        };
        let shared = Self {
            principal,
            memory,
            stdin,
            room: Semaphore::new(MAX_UNWRITTEN as usize),
            beyond: AtomicUsize::new(0),
            state: Mutex::new(state),
            order: tokio::sync::Mutex::default(),
            unheard: AtomicU64::new(0),
            asking: AtomicBool::new(false),
            spoken: Arc::default(),
            end: Notify::new(),
        };
        (Arc::new(shared), outbox)
    }

    /// One more session, and what the server is told of its caller; `None` when this
    /// child takes none any more.
    pub(super) fn join(&self, session: &Arc<Session>, caller: Option<Bytes>) -> Option<u64> {
        let mut state = self.state();
        if state.closed {
            return None;
        }
        let member = state.next;
        state.next += 1;
        let _ = session.spoken.set(self.spoken.clone());
        let principal = session.principal();
        state.switch.join(member, principal, caller);
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
    pub(super) async fn serve(&self, member: u64, session: Arc<Session>, mut lines: Lines) {
        let mut parts = Vec::new();
        loop {
            let part = tokio::select! {
                // What it has said before its end is said, its cancellations among it.
                biased;
                part = lines.recv() => part,
                () = session.end.notified() => break,
            };
            let Some(part) = part else { break };
            let ends = Line::is_end(&part);
            parts.push(part);
            if !ends {
                continue;
            }
            let line = std::mem::take(&mut parts);
            let bytes = line.iter().map(Bytes::len).sum();
            tokio::select! {
                biased;
                () = self.say(member, line, bytes) => session.written(bytes),
                // Unless the child does not read: that must keep nobody from leaving.
                () = session.end.notified() => break,
            }
        }
        session.fail_all(Failure::ChildEnded);
        let out = {
            let mut state = self.state();
            state.sessions.remove(&member);
            state.switch.leave(member)
        };
        self.take_leave(out);
        self.end_if_alone();
    }

    async fn say(&self, member: u64, mut parts: Vec<Bytes>, bytes: usize) {
        let turn = self.order.lock().await;
        let read = move || {
            let mut line = match parts.len() {
                1 => parts.pop().unwrap_or_default(),
                _ => parts.concat().into(),
            };
            // Its end is no part of the message.
            line.truncate(line.len().saturating_sub(1));
            Message::parse(line).map(Message::on_one_line)
        };
        let Ok(message) = aside(bytes, read).await else {
            return;
        };
        let out = self.state().switch.said_by(member, &message);
        for out in out {
            match out {
                Out::ToChild(line) => {
                    let taken = self.room.acquire_many(size(&line)).await;
                    let line = self.counted(line).await;
                    // Or it is ending, and so are its sessions. Until the line has its place,
                    // its room goes back with whoever leaves.
                    if self.stdin.send(line).await
                        && let Ok(taken) = taken
                    {
                        taken.forget();
                    }
                }
                Out::To(member, line) => self.give(member, line),
            }
        }
        drop(turn);
    }

    /// The line, counted if much waits already: each user may have a child that does not read. What a large one
    /// has as a part of its client's message it keeps.
    async fn counted(&self, line: Line) -> Line {
        let waiting = MAX_UNWRITTEN as usize - self.room.available_permits();
        match line {
            Line::Whole(text) if waiting > UNCOUNTED => {
                Line::Whole(self.memory.hold_in_time(text).await)
            }
            line => line,
        }
    }

    /// Without waiting: a child that does not read goes without these.
    fn pass_now(&self, out: Vec<Out>) {
        for out in out {
            match out {
                Out::ToChild(line) => {
                    self.try_pass(line);
                }
                Out::To(member, line) => self.give(member, line),
            }
        }
    }

    fn try_pass(&self, line: Line) -> bool {
        let Ok(taken) = self.room.try_acquire_many(size(&line)) else {
            return false;
        };
        let is_sent = self.stdin.try_send(line).is_ok();
        if is_sent {
            taken.forget();
        }
        is_sent
    }

    /// The same of what a member leaves behind, and what is short of it waits until the child reads: nobody would end
    /// later what it ends, and the child lives on for the others.
    fn take_leave(&self, out: Vec<Out>) {
        for out in out {
            let Out::ToChild(line) = out else { continue };
            let bytes = line.len();
            if self.try_pass(line.clone()) {
                continue;
            }
            // Counted then: one that was written meanwhile has given back what the next one will not.
            if self.stdin.try_send_end(line).is_ok() {
                self.beyond.fetch_add(bytes, Ordering::Relaxed);
            }
        }
    }

    fn take_one(&self, message: Option<&Message>) -> bool {
        let out = message.and_then(|message| {
            let heard = self.state().switch.said_by_child(message)?;
            Some(heard.written(message))
        });
        let Some(out) = out else {
            return false;
        };
        if out.is_empty() {
            self.unheard.fetch_add(1, Ordering::Relaxed);
        }
        self.pass_now(out);
        true
    }

    fn give(&self, member: u64, line: Bytes) {
        let session = self.state().sessions.get(&member).cloned();
        if let Some(session) = session {
            pump::take(&session, line);
            if session.was_asked() {
                self.asking.store(true, Ordering::Relaxed);
            }
        }
    }

    fn sessions(&self) -> Vec<Arc<Session>> {
        self.state().sessions.values().cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code path leaves the state half changed, so a panic elsewhere does not taint it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hears for Shared {
    fn take(&self, line: Bytes) -> bool {
        let said = Message::parse(line.clone()).ok();
        if let Some(batch) = said
            .as_ref()
            .filter(|said| said.root().kind() == Kind::Array)
        {
            let takes = self.state().switch.opening.speaks(version::BATCHES);
            return takes
                && pump::each(batch)
                    .map(|message| self.take_one(message.as_ref()))
                    .reduce(|all, one| all && one)
                    .unwrap_or(false);
        }
        if self.take_one(said.as_ref()) {
            return true;
        }
        if let Some(number) = blame::answered(&line) {
            Served::fail_one(self, number, Failure::BadAnswer);
        }
        false
    }

    fn was_asked(&self) -> bool {
        self.asking.swap(false, Ordering::Relaxed)
    }

    fn ask_clients(&self) {
        for session in self.sessions() {
            session.ask_clients();
        }
    }

    fn bears_all(&self) -> bool {
        self.state().switch.everybody
    }

    fn fail_one(&self, number: u64, failure: Failure) {
        Served::fail_one(self, number, failure);
    }

    fn lends(&self) -> Option<Arc<dyn Lends>> {
        Some(self.memory.clone())
    }
}

impl Served for Shared {
    fn principal(&self) -> String {
        self.principal.to_string()
    }

    fn lends(&self) -> Arc<dyn Lends> {
        self.memory.clone()
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
        self.state().closed = true;
        for session in self.sessions() {
            session.fail_all(failure);
            session.hang_up();
        }
    }

    fn unheard(&self) -> u64 {
        self.unheard.load(Ordering::Relaxed)
    }

    fn written(&self, bytes: usize) {
        let mut bytes = bytes.min(MAX_UNWRITTEN as usize);
        // What went beyond the room is given back first.
        if self.beyond.load(Ordering::Relaxed) > 0 {
            let less = |beyond: usize| Some(beyond.saturating_sub(bytes));
            let order = Ordering::Relaxed;
            let beyond = self.beyond.fetch_update(order, order, less);
            bytes -= bytes.min(beyond.unwrap_or_default());
        }
        self.room.add_permits(bytes);
    }

    fn fail_one(&self, number: u64, failure: Failure) {
        let failed = self.state().switch.failed(number);
        for (member, own) in failed {
            let session = self.state().sessions.get(&member).cloned();
            if let Some(session) = session {
                session.fail_one(own, failure);
            }
        }
    }

    fn hang_up(&self) {
        self.end.notify_one();
    }

    async fn hear(self: Arc<Self>, stdout: Output, reading: Reading) -> Option<Reason> {
        pump::run(self, stdout, reading).await
    }
}

/// What a line takes of the room; a single longer one still goes, by itself.
fn size(line: &Line) -> u32 {
    u32::try_from(line.len()).map_or(MAX_UNWRITTEN, |size| size.min(MAX_UNWRITTEN))
}

/// Bytes of lines waiting for a child that does not read.
const MAX_UNWRITTEN: u32 = 8 << 20;
/// Bytes of those that are not counted as their user's.
const UNCOUNTED: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        auth::Identity,
        mcp::Era,
        session::{own::OwnMessage, room::Rooms, testing},
    };

    fn everybody() -> (PrincipalKey, Arc<Room>) {
        let key = PrincipalKey::EVERYBODY;
        (key, Rooms::new(1).room(key))
    }

    fn session() -> (Arc<Session>, Lines) {
        testing::session(Era::Legacy)
    }

    /// Somebody who has asked two things, and leaves when the child knows of both.
    async fn leaves_two(shared: &Arc<Shared>, first: impl FnOnce()) {
        let (leaves, lines) = session();
        let member = shared.join(&leaves, None).unwrap();
        for number in 1..=2 {
            assert!(leaves.say(&OwnMessage::Discover { number }));
        }
        let served = shared.serve(member, leaves.clone(), lines);
        let leaving = async {
            while shared.state().switch.waiting() < 2 {
                tokio::task::yield_now().await;
            }
            first();
            leaves.close();
        };
        tokio::join!(served, leaving);
    }

    /// probe-68: what a member leaves behind ends at a child that others share, also where that reads nothing when he
    /// leaves; the room is what it was.
    #[tokio::test]
    async fn what_a_member_leaves_behind_ends_when_a_busy_child_reads_again() {
        let (shared, mut child) = Shared::new(everybody(), true, 2);
        let (other, _others) = session();
        shared.join(&other, None).unwrap();
        // And nothing more has room.
        let mut rest = 0;
        leaves_two(&shared, || {
            rest = shared.room.available_permits();
            let all = u32::try_from(rest).unwrap();
            shared.room.try_acquire_many(all).unwrap().forget();
        })
        .await;
        let mut ended = Vec::new();
        while let Some(line) = child.try_recv() {
            shared.written(line.len());
            let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
            ended.extend(line["params"]["requestId"].as_u64());
        }
        ended.sort_unstable();
        assert_eq!(ended, [1, 2]);
        shared.written(rest);
        assert_eq!(shared.room.available_permits(), MAX_UNWRITTEN as usize);
    }

    /// probe-68: who leaves while a line of theirs waits for a child that reads slowly takes no room along:
    /// it would be missing to everybody else for as long as the child lives.
    #[tokio::test]
    async fn what_waits_for_a_slow_child_gives_its_room_back_with_its_session() {
        let (shared, mut child) = Shared::new(everybody(), true, 1);
        // Somebody else stays.
        let (other, _others) = session();
        shared.join(&other, None).unwrap();
        for _ in 0..4 {
            // One line is in the queue, the other waits for its place there.
            leaves_two(&shared, || {}).await;
            while let Some(line) = child.try_recv() {
                shared.written(line.len());
            }
        }
        assert_eq!(shared.room.available_permits(), MAX_UNWRITTEN as usize);
    }

    /// probe-68: what waits for a shared child that does not read is its user's, as it is for any other; without room
    /// no more is taken from its sessions.
    #[tokio::test]
    async fn what_waits_for_a_shared_child_is_its_users() {
        let rooms = Rooms::new(1);
        let bob = Identity::example("https://a", "bob");
        let memory = rooms.room(bob.principal_key());
        let shared = Shared::new((bob.principal_key(), memory.clone()), false, 64);
        let (shared, mut child) = shared;
        let (session, lines) = testing::session_of(bob, Era::Legacy, &rooms);
        let member = shared.join(&session, None).unwrap();
        let text = "x".repeat(20 << 10);
        let line = |number| {
            let call = r#""method":"tools/call","params":{"name":"#;
            Bytes::from(format!("{{\"id\":{number},{call}\"{text}\"}}}}\n"))
        };
        let settle = async || {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        };
        let acts = async {
            for number in 10..20 {
                session.write(line(number)).unwrap();
                settle().await;
            }
            let taken = rooms.taken();
            assert!(taken >= 9 * text.len() - UNCOUNTED, "{taken}");
            let mut rest = 1 << 20;
            while rest > 0 {
                if !memory.lend(rest) {
                    rest /= 2;
                }
            }
            session.write(line(20)).unwrap();
            settle().await;
            // The last one comes when there is room again.
            for expected in [10, 1] {
                let mut count = 0;
                while let Some(line) = child.try_recv() {
                    count += 1;
                    shared.written(line.len());
                }
                assert_eq!(count, expected);
                settle().await;
            }
            session.close();
        };
        tokio::join!(shared.serve(member, session.clone(), lines), acts);
    }
}
