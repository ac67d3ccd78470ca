//! One child for several sessions.
//!
//! Each session keeps speaking as if the child were its own; a `Switch` stands
//! between. The child ends with the last of its sessions, and all of them with
//! it. Made by `table`; a message reaches it only through a session.

pub(super) mod heard;
pub(super) mod member;
pub(super) mod opening;
pub(super) mod switch;
pub(super) mod words;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore};
use tracing::warn;

use crate::{
    aside::{aside, is_large},
    audit::Reason,
    auth::PrincipalKey,
    child::{Lends, stdio::Reading},
    json::Kind,
    mcp::{Message, version},
    session::{
        Session, blame,
        ending::{ChildOutput, Served},
        exchange::Failure,
        line::Line,
        outbox::{Beyond, MAX_UNWRITTEN, NotQueued, Outbox, OutboxReader, SHORT_QUEUE, outbox},
        own::{OwnLine, OwnMessage},
        probe::Spoken,
        pump::{self, Hears},
        room::{Claim, Room},
        shared::{
            heard::Out,
            switch::{SaidByMember, Switch},
        },
    },
};

/// A child and those that share it.
pub(super) struct SharedChild {
    /// Whose it is, for the record.
    principal: PrincipalKey,
    /// The memory of what is on its way to the child or from it.
    memory: Arc<Room>,
    stdin: Outbox,
    /// Bytes that lines for the child may still take up while they wait.
    room: Semaphore,
    /// Bytes of those that wait beyond that.
    beyond: AtomicUsize,
    /// Said when the child has read something, where a session waits for that.
    read: Notify,
    awaited: AtomicBool,
    state: Mutex<Membership>,
    /// Bytes of large messages that may still be read.
    reads: Semaphore,
    /// Lines of members enter the child in the order in which they were switched.
    order: tokio::sync::Mutex<()>,
    unheard: AtomicU64,
    /// The child has asked what a member's client is still to be asked.
    asking: AtomicBool,
    spoken: Arc<Spoken>,
    end: Notify,
}

struct Membership {
    switch: Switch,
    sessions: HashMap<u64, Arc<Session>>,
    next: u64,
    /// Nobody may join any more; and whether that is because nobody was left.
    closed: bool,
    unwanted: bool,
}

impl SharedChild {
    /// The child's side of it, which must be tended, is the receiver.
    pub(super) fn new(
        (principal, memory): (PrincipalKey, Arc<Room>),
        everybody: bool,
        lines: usize,
    ) -> (Arc<Self>, OutboxReader) {
        let (stdin, outbox) = outbox(lines);
        let state = Membership {
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
            room: Semaphore::new(MAX_UNWRITTEN),
            reads: Semaphore::new(MAX_READ as usize),
            beyond: AtomicUsize::new(0),
            read: Notify::new(),
            awaited: AtomicBool::new(false),
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
        let room = session.room.clone();
        state.switch.join(member, principal, caller, room);
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
    pub(super) async fn serve(&self, member: u64, session: Arc<Session>, mut lines: OutboxReader) {
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
                () = self.say(member, &session, line, bytes) => session.written(bytes),
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

    async fn say(&self, member: u64, session: &Session, mut parts: Vec<Bytes>, bytes: usize) {
        // Others go on while it is read, and what is known of large ones is memory, too, until it is its turn.
        let counted = u32::try_from(bytes).map_or(MAX_READ, |bytes| bytes.min(MAX_READ));
        let place = if is_large(bytes) {
            Some(self.reads.acquire_many(counted).await)
        } else {
            None
        };
        let mut claim = None;
        // A large one stays as it is, and is counted by now.
        if self.is_behind(bytes) && !is_large(bytes) {
            claim = Box::pin(self.room_of(session, bytes)).await;
        }
        let room = (parts.len() > 1).then(|| session.room.clone());
        let read = move || {
            let mut line = match room {
                None => parts.pop().unwrap_or_default(),
                Some(room) => room.hold_anyway(parts.concat().into()),
            };
            // Its end is no part of the message.
            line.truncate(line.len().saturating_sub(1));
            Message::parse(line).map(Message::on_one_line)
        };
        let Ok(message) = aside(bytes, read).await else {
            return;
        };
        let turn = self.order.lock().await;
        let said = self.state().switch.said_by_member(member, &message);
        drop((message, place));
        match said {
            Some(SaidByMember::ToChild(line)) => {
                let taken = self.room.acquire_many(size(line.len())).await;
                let line = match (line, claim) {
                    (Line::Whole(text), Some(claim)) => Line::Whole(claim.of(text)),
                    (line, _) => line,
                };
                // Or it is ending, and so are its sessions. Until the line has its place,
                // its room goes back with whoever leaves.
                if self.stdin.send(line).await
                    && let Ok(taken) = taken
                {
                    taken.forget();
                }
            }
            Some(SaidByMember::Answered(text)) => self.give(member, text),
            None => {}
        }
        drop(turn);
    }

    /// Whether so many bytes more are a queue that counts. The gateway's own, which are short and few, never do.
    fn is_behind(&self, bytes: usize) -> bool {
        self.waiting() + bytes > SHORT_QUEUE
    }

    /// Bytes that wait for the child.
    fn waiting(&self) -> usize {
        MAX_UNWRITTEN.saturating_sub(self.room.available_permits())
    }

    /// The room of a session's for one more line in the queue, which is everybody's. Where it has none its lines wait
    /// with it, and nobody else's, until the child has read more.
    async fn room_of(&self, session: &Session, bytes: usize) -> Option<Claim> {
        loop {
            // Before it is looked: whatever is read from now on is noticed.
            let read = self.read.notified();
            self.awaited.store(true, Ordering::Relaxed);
            let claim = session.room.claim(bytes);
            // One always goes, or nothing would be read.
            if claim.is_some() || !self.is_behind(bytes) || self.waiting() == 0 {
                return claim;
            }
            read.await;
        }
    }

    /// Without waiting. What the child is told here answers what it has said: nobody would say it once more.
    fn pass_now(&self, out: Vec<Out>) {
        for out in out {
            match out {
                Out::ToChild(line) => {
                    let _ = self.pass_beyond(line, Beyond::Answer);
                }
                Out::Ends(line) => self.end_nobodys(line),
                Out::To(member, line) => self.give(member, line),
            }
        }
    }

    fn try_pass(&self, line: OwnLine) -> bool {
        let Ok(taken) = self.room.try_acquire_many(size(line.len())) else {
            return false;
        };
        let is_sent = self.stdin.try_send(line).is_ok();
        if is_sent {
            taken.forget();
        }
        is_sent
    }

    /// What a member leaves behind ends.
    fn take_leave(&self, lines: Vec<OwnLine>) {
        for line in lines {
            let _ = self.pass_beyond(line, Beyond::End);
        }
    }

    /// What has no room waits until the child reads: nobody would end later what this ends, and the child lives on for
    /// the others.
    fn pass_beyond(&self, line: OwnLine, beyond: Beyond) -> Result<(), NotQueued> {
        let bytes = line.len();
        if self.try_pass(line.clone()) {
            return Ok(());
        }
        // Counted then: one that was written meanwhile has given back what the next one will not.
        self.stdin.try_send_beyond(line, beyond)?;
        self.beyond.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn end_nobodys(&self, line: OwnLine) {
        if self.pass_beyond(line, Beyond::End) == Err(NotQueued::Full) {
            warn!("a task that no client can end runs on: the server reads nothing");
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

    fn state(&self) -> MutexGuard<'_, Membership> {
        // No code path leaves the state half changed, so a panic elsewhere does not taint it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hears for SharedChild {
    fn take(&self, line: Bytes) -> bool {
        let said = Message::parse(line.clone()).ok();
        if let Some(batch) = said
            .as_ref()
            .filter(|said| said.root().kind() == Kind::Array)
        {
            let takes = self.state().switch.opening.speaks(version::BATCHES);
            return takes
                && pump::each(batch, |text| text)
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

    fn refuse(&self, number: u64) {
        // Of a child of everybody's it may be what one user has it print, about another's question.
        if !self.bears_all() {
            let id = number.to_string();
            let id = id.as_bytes();
            let _ = self.pass_beyond(OwnMessage::NobodyThere { id }.line(), Beyond::Answer);
        }
    }

    fn lends(&self) -> Option<Arc<dyn Lends>> {
        Some(self.memory.clone())
    }
}

impl Served for SharedChild {
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
        let mut bytes = bytes.min(MAX_UNWRITTEN);
        // What went beyond the room is given back first.
        if self.beyond.load(Ordering::Relaxed) > 0 {
            let less = |beyond: usize| Some(beyond.saturating_sub(bytes));
            let order = Ordering::Relaxed;
            let beyond = self.beyond.fetch_update(order, order, less);
            bytes -= bytes.min(beyond.unwrap_or_default());
        }
        self.room.add_permits(bytes);
        if self.awaited.load(Ordering::Relaxed) && self.awaited.swap(false, Ordering::Relaxed) {
            self.read.notify_waiters();
        }
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

    async fn hear(self: Arc<Self>, stdout: ChildOutput, reading: Reading) -> Option<Reason> {
        pump::run(self, stdout, reading).await
    }
}

/// What a line takes of the room; a single longer one still goes, by itself.
fn size(line: usize) -> u32 {
    line.min(MAX_UNWRITTEN) as u32
}

/// Bytes of large messages that are read at once; a single longer one still is.
const MAX_READ: u32 = 4 << 20;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{task::JoinSet, time::timeout};

    use super::*;
    use crate::{
        auth::Identity,
        mcp::{Era, task},
        session::{room::Rooms, testing},
    };

    fn everybody() -> (PrincipalKey, Arc<Room>) {
        let key = PrincipalKey::EVERYBODY;
        (key, Rooms::new(1).room(key))
    }

    fn session() -> (Arc<Session>, OutboxReader) {
        testing::session(Era::Legacy)
    }

    /// Somebody who has asked two things, and leaves when the child knows of both.
    async fn leaves_two(shared: &Arc<SharedChild>, first: impl FnOnce()) {
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

    /// probe-68: a large message of one member's is read beside what the others say.
    #[tokio::test]
    async fn a_large_message_holds_up_no_other_member() {
        let (shared, mut child) = SharedChild::new(everybody(), true, 8);
        // No other is read meanwhile, wherever it is.
        let mut goes_on = Vec::new();
        let mut all = JoinSet::new();
        for _ in 0..2 {
            let (go_on, wait) = std::sync::mpsc::channel::<()>();
            goes_on.push(go_on);
            all.spawn(aside(1 << 20, move || wait.recv().is_err()));
        }
        let large = format!(
            r#"{{"id":1,"method":"ping","params":{{"v":"{}"}}}}"#,
            "x".repeat(1 << 20)
        );
        let small = r#"{"id":1,"method":"ping"}"#;
        let mut members = Vec::new();
        for text in [&large, small] {
            let (session, lines) = session();
            let member = shared.join(&session, None).unwrap();
            session
                .write(Line::Whole(format!("{text}\n").into()))
                .unwrap();
            members.push(session.clone());
            let shared = shared.clone();
            all.spawn(async move {
                shared.serve(member, session, lines).await;
                true
            });
            tokio::task::yield_now().await;
        }
        let first = timeout(Duration::from_secs(60), child.recv())
            .await
            .unwrap()
            .unwrap();
        assert!(first.len() < 100, "{}", first.len());
        drop(goes_on);
        let mut second = 0;
        while second <= large.len() {
            second += child.recv().await.unwrap().len();
        }
        for session in members {
            session.close();
        }
        assert!(all.join_all().await.into_iter().all(|told| told));
    }

    /// probe-68: what a member leaves behind ends at a child that others share, also where that reads nothing when he
    /// leaves; the room is what it was.
    #[tokio::test]
    async fn what_a_member_leaves_behind_ends_when_a_busy_child_reads_again() {
        let (shared, mut child) = SharedChild::new(everybody(), true, 2);
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
        assert_eq!(shared.room.available_permits(), MAX_UNWRITTEN);
    }

    /// probe-68: a task that no client can end ends at a child that others share, also where that reads nothing now.
    #[tokio::test]
    async fn a_task_that_is_nobodys_ends_when_a_busy_child_reads_again() {
        let (shared, mut child) = SharedChild::new(everybody(), true, 2);
        let (asks, lines) = session();
        let member = shared.join(&asks, None).unwrap();
        let served = shared.serve(member, asks.clone(), lines);
        let all = async {
            for number in 1..=4 {
                let call = format!(
                    r#"{{"jsonrpc":"2.0","id":{number},"method":"tools/call","params":{{"name":"x"}}}}"#
                );
                asks.write(Bytes::from(call + "\n")).unwrap();
            }
            // One waits for its place in the queue, which is full.
            while shared.state().switch.waiting() < 3 {
                tokio::task::yield_now().await;
            }
            let id = "k".repeat(task::MAX_ID);
            let made = format!(
                r#"{{"jsonrpc":"2.0","id":1,"result":{{"task":{{"taskId":"{id}","status":"working"}}}}}}"#
            );
            assert!(shared.take(made.into()));
            let mut heard = Vec::new();
            while heard.len() < 5 {
                let line = child.recv().await.unwrap();
                shared.written(line.len());
                let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
                heard.push(line["method"].as_str().unwrap().to_owned());
            }
            heard.sort_unstable();
            let call = "tools/call";
            assert_eq!(heard, ["tasks/cancel", call, call, call, call]);
            assert_eq!(shared.room.available_permits(), MAX_UNWRITTEN);
            asks.close();
        };
        let both = async { tokio::join!(served, all) };
        timeout(Duration::from_secs(10), both).await.unwrap();
    }

    /// probe-68: a shared server that asks something while it reads nothing hears when it reads again that nobody will
    /// answer.
    #[test]
    fn what_a_busy_child_asks_is_answered_when_it_reads_again() {
        let (shared, mut child) = SharedChild::new(everybody(), false, 2);
        let line = || OwnMessage::Discover { number: 0 }.line();
        while shared.stdin.try_send(line()).is_ok() {}
        let asks = r#"{"jsonrpc":"2.0","id":"q","method":"roots/list"}"#;
        assert!(shared.take(asks.into()));
        shared.refuse(7);
        let mut ids = Vec::new();
        while let Some(line) = child.try_recv() {
            shared.written(line.len());
            let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
            ids.extend(line.get("error").map(|_| line["id"].to_string()));
        }
        assert_eq!(ids, ["\"q\"", "7"]);
        assert_eq!(shared.beyond.load(Ordering::Relaxed), 0);
    }

    /// conn-3, probe-68: what waits for a slow child counts as its whose line it is. Who has no room for more waits with
    /// his own queue, and the others go on; and so does he when the child has read enough.
    #[tokio::test]
    async fn what_waits_for_a_shared_child_counts_as_whose_it_is() {
        let rooms = Rooms::new(1);
        let (shared, mut child) = SharedChild::new(everybody(), true, 128);
        let member = |name: &str| {
            let user = Identity::example("https://a", name);
            let (session, lines) = testing::session_of(user, Era::Legacy, &rooms);
            let member = shared.join(&session, None).unwrap();
            (session.clone(), shared.serve(member, session, lines))
        };
        let ((alice, alices), (bob, bobs)) = (member("alice"), member("bob"));
        let size = 40 << 10;
        let asks = |number: usize| {
            let text = "x".repeat(size);
            let line = format!(
                r#"{{"jsonrpc":"2.0","id":{number},"method":"tools/call","params":{{"name":"{text}"}}}}"#
            );
            Bytes::from(line + "\n")
        };
        let all = async {
            let settles = async || {
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
            };
            let asked = || shared.state().switch.waiting();
            for number in 1..=10 {
                alice.write(asks(number)).unwrap();
                settles().await;
            }
            let taken = rooms.taken();
            assert!((9 * size..9 * size + 1000).contains(&taken), "{taken}");
            let rest = alice.room.claim((16 << 20) - taken - 10).unwrap();
            alice.write(asks(11)).unwrap();
            settles().await;
            assert_eq!(asked(), 10);
            bob.write(asks(1)).unwrap();
            settles().await;
            assert_eq!(asked(), 11);
            let mut reads = async || {
                let line = child.recv().await.unwrap();
                shared.written(line.len());
                drop(line);
                settles().await;
            };
            // The first was not counted, so she has no more room for that.
            reads().await;
            assert_eq!(asked(), 11);
            reads().await;
            assert_eq!(asked(), 12);
            for _ in 2..12 {
                reads().await;
            }
            drop(rest);
            assert_eq!(rooms.taken(), 0);
            // A single one goes also where there is no room at all.
            let rest = alice.room.claim(16 << 20).unwrap();
            for (number, goes) in [(12, true), (13, false)] {
                alice.write(asks(number)).unwrap();
                settles().await;
                assert_eq!(asked() == number + 1, goes);
            }
            reads().await;
            assert_eq!(asked(), 14);
            // Nor does she need any where the queue has become short.
            bob.write(asks(2)).unwrap();
            settles().await;
            assert!(alice.say(&OwnMessage::Discover { number: 14 }));
            settles().await;
            assert_eq!(asked(), 15);
            reads().await;
            assert_eq!(asked(), 16);
            drop(rest);
            alice.close();
            bob.close();
        };
        tokio::join!(alices, bobs, all);
    }

    /// conn-3: a large line is counted once while it waits for a shared child, however it is taken apart.
    #[tokio::test]
    async fn a_large_line_for_a_shared_child_is_counted_once() {
        let rooms = Rooms::new(1);
        let (shared, mut child) = SharedChild::new(everybody(), true, 128);
        let alice = Identity::example("https://a", "alice");
        let (session, lines) = testing::session_of(alice, Era::Legacy, &rooms);
        let member = shared.join(&session, None).unwrap();
        let served = shared.serve(member, session.clone(), lines);
        let size = 3 << 20;
        let all = async {
            let text = "x".repeat(size);
            let line = format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"{text}"}}}}"#
            );
            let message = Message::parse(line.into()).unwrap().on_one_line();
            let line = Line::of(&message, &[]);
            drop(message);
            session.write(line).unwrap();
            let mut read = Vec::new();
            while !read.last().is_some_and(|part: &Bytes| Line::is_end(part)) {
                read.push(child.recv().await.unwrap());
            }
            let taken = rooms.taken();
            assert!((size..size + 1000).contains(&taken), "{taken}");
            drop(read);
            assert_eq!(rooms.taken(), 0);
            session.close();
        };
        tokio::join!(served, all);
    }

    /// probe-68: who leaves while a line of theirs waits for a child that reads slowly takes no room along:
    /// it would be missing to everybody else for as long as the child lives.
    #[tokio::test]
    async fn what_waits_for_a_slow_child_gives_its_room_back_with_its_session() {
        let (shared, mut child) = SharedChild::new(everybody(), true, 1);
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
        assert_eq!(shared.room.available_permits(), MAX_UNWRITTEN);
    }
}
