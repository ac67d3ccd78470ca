//! The gateway's own subscriptions at a modern child, for a legacy client that knows of none.
//!
//! What such a client wants to hear of is one subscription, made anew when that changes; the tasks
//! that its calls have become are another. A server may end one whenever it likes (mcp-T28): it is
//! made again, at once the first time and then less and less often, until one has lasted.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    json::Value,
    mcp::{reverse::ModernServer, subscription::Wanted},
    session::{Session, conversation::State, own::OwnMessage},
};

/// One such subscription.
#[derive(Default)]
pub(super) struct Ear {
    /// The number that the child knows it by, while it is open, and since when that is so.
    open: Option<(u64, Instant)>,
    /// When it is to be made again, if the child has ended it.
    due: Option<Instant>,
    /// How long that waits the next time.
    pause: Duration,
}

impl Ear {
    /// Whether anything is to be heard by it, now or when it is made again.
    pub(super) fn is_wanted(&self) -> bool {
        self.open.is_some() || self.due.is_some()
    }

    fn is(&self, number: u64) -> bool {
        self.open.is_some_and(|(open, _)| open == number)
    }

    /// The child has ended it.
    fn ended(&mut self, now: Instant) {
        let open = self.open.take();
        if open.is_some_and(|(_, since)| now.duration_since(since) >= LASTING) {
            self.pause = Duration::ZERO;
        }
        self.wait(now);
    }

    fn wait(&mut self, now: Instant) {
        self.due = Some(now + self.pause);
        self.pause = (self.pause * 2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
    }

    fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now)
    }
}

impl Session {
    /// A notification of the client's that means something to a modern child: all others do not reach it.
    pub(super) fn heard_initialized(&self, method: &str) {
        if method == "notifications/initialized"
            && let Some(server) = self.reversed.get()
        {
            self.listen_to_child(&mut self.state(), server);
        }
    }

    /// Has the child tell what the client wants to hear, and of what it tells by itself.
    pub(super) fn listen_to_child(&self, state: &mut State, server: &ModernServer) {
        let mut wanted = Wanted::all_of(server.capabilities());
        wanted.uris.clone_from(&state.reversed.uris);
        let mut ear = std::mem::take(&mut state.reversed.listening);
        self.listen_at(state, server, &wanted, &mut ear);
        state.reversed.listening = ear;
    }

    /// Subscribes at the child to what is `wanted`, in place of an earlier subscription.
    pub(super) fn listen_at(
        &self,
        state: &mut State,
        server: &ModernServer,
        wanted: &Wanted,
        ear: &mut Ear,
    ) {
        let before = ear.open.take();
        ear.due = None;
        if !wanted.is_nothing() {
            let (number, now) = (state.next, Instant::now());
            state.next += 1;
            let (wanted, meta) = (wanted.notifications().to_string(), server.own_meta());
            let own = OwnMessage::Listen {
                number,
                wanted: &wanted,
                meta: &meta,
            };
            if self.say(&own) {
                ear.open = Some((number, now));
            } else {
                // It reads nothing now: until it does, what it was asked before stays.
                ear.open = before;
                ear.wait(now);
                return;
            }
        }
        // Only now: between the two nothing is missed.
        if let Some((number, _)) = before {
            self.say(&OwnMessage::Cancelled {
                number,
                reason: "replaced",
            });
        }
    }

    /// Takes the child's answer to request `number`, if that was such a subscription, which has ended with it.
    pub(super) fn listening_ended(&self, state: &mut State, number: u64) -> bool {
        let reversed = &mut state.reversed;
        let ear = if reversed.listening.is(number) {
            &mut reversed.listening
        } else if reversed.watching.is(number) {
            &mut reversed.watching
        } else {
            return false;
        };
        let now = Instant::now();
        ear.ended(now);
        self.listen_again(state, now);
        true
    }

    /// The same where the child names it, as it may in place of an answer.
    pub(super) fn listening_cancelled(&self, named: Value<'_>) -> bool {
        let number = named.as_number().and_then(|number| number.parse().ok());
        number.is_some_and(|number| self.listening_ended(&mut self.state(), number))
    }

    /// Makes those subscriptions again whose time has come.
    pub(super) fn listen_again(&self, state: &mut State, now: Instant) {
        let Some(server) = self.reversed.get() else {
            return;
        };
        if state.reversed.listening.is_due(now) {
            self.listen_to_child(state, server);
        }
        if state.reversed.watching.is_due(now) {
            self.watch_tasks(state);
        }
    }
}

/// How long it waits at least and at most until it is made again, from the second time on.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// One that was open so long is made again at once.
const LASTING: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        audit::RequestId,
        auth::Identity,
        mcp::{Call, Era, Message},
        session::{Exchange, exchange::Failure, outbox::Lines, pump, testing},
    };

    /// A session of a legacy client at a modern child that tells of tools, and what that is told.
    fn session() -> (Arc<Session>, Lines) {
        let (session, lines) = testing::session(Era::Legacy);
        let said = r#"{"id":1,"result":{"supportedVersions":["2026-07-28"],"capabilities":{"tools":{"listChanged":true},"resources":{"subscribe":true},"extensions":{"io.modelcontextprotocol/tasks":{}}}}}"#;
        let said = Message::parse(said.into()).unwrap();
        let initialize = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{}}}"#;
        let initialize = Call::read(initialize.into(), false).unwrap();
        let server = ModernServer::read(&said, &initialize).unwrap();
        let _ = session.reversed.set(server);
        (session, lines)
    }

    /// The numbers of the subscriptions that the child was told of.
    fn begun(lines: &mut Lines) -> Vec<u64> {
        let mut numbers = Vec::new();
        while let Some(line) = lines.try_recv() {
            let message = Message::parse(line).unwrap();
            let method = message.root().get("method").and_then(Value::as_str);
            if method.as_deref() == Some("subscriptions/listen") {
                let id = message.root().get("id").and_then(Value::as_number);
                numbers.push(id.unwrap().parse().unwrap());
            }
        }
        numbers
    }

    fn request(session: &Arc<Session>, text: &str) -> Exchange {
        let call = Call::read(text.to_owned().into(), false).unwrap();
        let id = call.id().unwrap().clone();
        let alice = Identity::example("https://a", "alice");
        session
            .request(&call, &alice, id, RequestId::random())
            .unwrap()
    }

    fn say(session: &Session, line: String) {
        assert!(pump::take(session, line.into()));
    }

    fn sweep(session: &Session) {
        session.sweep(Instant::now(), Duration::MAX);
    }

    /// mcp-T28: a server that ends what it is asked to tell, in whichever way, is asked again at once, and one that always
    /// does so less and less often.
    #[tokio::test(start_paused = true)]
    async fn what_the_server_ends_is_made_again_and_does_not_spin() {
        let (session, mut lines) = session();
        session.heard_initialized("notifications/initialized");
        let mut open = begun(&mut lines);
        let ends = [
            r#"{"jsonrpc":"2.0","id":@,"result":{"resultType":"complete"}}"#,
            r#"{"jsonrpc":"2.0","id":@,"error":{"code":-32603,"message":"no"}}"#,
            r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":@}}"#,
        ];
        let mut pauses = Vec::new();
        for end in ends.iter().cycle().take(12) {
            assert_eq!(open.len(), 1);
            say(&session, end.replace('@', &open[0].to_string()));
            // Said again it means nothing.
            say(&session, end.replace('@', &open[0].to_string()));
            let since = Instant::now();
            open = begun(&mut lines);
            while open.is_empty() {
                tokio::time::advance(Duration::from_secs(1)).await;
                sweep(&session);
                open = begun(&mut lines);
            }
            pauses.push(since.elapsed().as_secs());
        }
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60]);
        // One that has lasted is made again at once; so is one whose connection to the server was lost.
        tokio::time::advance(LASTING).await;
        session.fail_one(open[0], Failure::ChildEnded);
        assert_eq!(begun(&mut lines).len(), 1);
    }

    /// The same for the tasks that calls have become, as long as there are any.
    #[tokio::test(start_paused = true)]
    async fn what_the_server_ends_of_tasks_is_made_again_while_they_are_followed() {
        let (session, mut lines) = session();
        let call = r#"{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":"t"}}"#;
        let _waits = request(&session, call);
        let task = r#"{"resultType":"task","taskId":"k","status":"working"}"#;
        say(
            &session,
            format!(r#"{{"jsonrpc":"2.0","id":1,"result":{task}}}"#),
        );
        let open = begun(&mut lines);
        say(
            &session,
            format!(r#"{{"jsonrpc":"2.0","id":{},"result":{{}}}}"#, open[0]),
        );
        let open = begun(&mut lines);
        assert_eq!(open.len(), 1);
        let cancel =
            r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":5}}"#;
        let cancel = Call::read(cancel.into(), false).unwrap();
        say(
            &session,
            format!(r#"{{"jsonrpc":"2.0","id":{},"result":{{}}}}"#, open[0]),
        );
        let permit = session.engine.decide(session.owner(), cancel).unwrap();
        assert!(
            session
                .send(permit, session.owner(), RequestId::random())
                .is_ok()
        );
        tokio::time::advance(LONGEST_PAUSE).await;
        sweep(&session);
        assert_eq!(begun(&mut lines), [0; 0], "nobody waits for it");
    }

    /// Who no longer wants to hear anything has nothing made again, and who wants something else has that at once.
    #[tokio::test(start_paused = true)]
    async fn what_is_made_again_is_what_is_wanted_then() {
        let (session, mut lines) = session();
        session.heard_initialized("notifications/initialized");
        for _ in 0..2 {
            let open = begun(&mut lines);
            let end = format!(r#"{{"jsonrpc":"2.0","id":{},"result":{{}}}}"#, open[0]);
            say(&session, end);
        }
        assert_eq!(begun(&mut lines), [0; 0], "it waits");
        let subscribe =
            r#"{"jsonrpc":"2.0","id":5,"method":"resources/subscribe","params":{"uri":"a:b"}}"#;
        let _done = request(&session, subscribe);
        assert_eq!(begun(&mut lines).len(), 1);
        tokio::time::advance(LONGEST_PAUSE).await;
        sweep(&session);
        assert_eq!(begun(&mut lines), [0; 0], "it was made already");
    }

    /// What could not be replaced while the child read nothing is replaced later: nothing is told twice from then on.
    #[tokio::test(start_paused = true)]
    async fn what_a_busy_child_could_not_be_told_is_told_it_later() {
        let (session, mut lines) = session();
        session.heard_initialized("notifications/initialized");
        let first = begun(&mut lines)[0];
        while session.say(&OwnMessage::Discover { number: 0 }) {}
        let subscribe =
            r#"{"jsonrpc":"2.0","id":5,"method":"resources/subscribe","params":{"uri":"a:b"}}"#;
        let _done = request(&session, subscribe);
        assert_eq!(begun(&mut lines), [0; 0]);
        tokio::time::advance(LONGEST_PAUSE).await;
        sweep(&session);
        let listens = lines.try_recv().expect("it is made later");
        assert!(listens.ends_with(b"}\n") && listens.windows(3).any(|three| three == b"a:b"));
        let replaced = lines.try_recv().expect("and the first one ends");
        let replaced = Message::parse(replaced).unwrap();
        let named = replaced.root().get("params").unwrap().get("requestId");
        assert_eq!(named.and_then(Value::as_number), Some(&*first.to_string()));
    }
}
