//! The gateway's own subscriptions at a modern child, for a legacy client that knows of none.
//!
//! What such a client wants to hear of is one subscription, made anew when that changes; the tasks
//! that its calls have become are another. One that is made anew is heard when the child has acknowledged it, and the
//! earlier one until then. A server may end one whenever it likes (mcp-T28): it is made again, at once the first
//! time and then less and less often, until one has lasted.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    json::Value,
    mcp::{reverse::ModernServer, subscription::Wanted},
    session::{
        Session, conversation::SessionState, own::OwnMessage, reversed::Reversed,
        subscriptions::subscribing::SubscriptionEnd,
    },
};

/// One such subscription.
#[derive(Default)]
pub(in crate::session) struct Ear {
    /// What the child tells by now.
    heard: Option<Box<OpenSubscription>>,
    /// What it is to tell by instead, and has not acknowledged.
    begun: Option<Box<OpenSubscription>>,
    /// When it is to be made again, if the child has ended it.
    due: Option<Instant>,
    /// How long that waits the next time.
    pause: Duration,
}

/// A subscription that is open at the child.
struct OpenSubscription {
    /// The number that the child knows it by, and since when that is so.
    number: u64,
    since: Instant,
    wanted: Wanted,
}

impl Ear {
    /// Whether anything is to be heard by it, now or when it is made again.
    pub(in crate::session) fn is_wanted(&self) -> bool {
        self.is_open() || self.due.is_some()
    }

    pub(in crate::session) fn is_open(&self) -> bool {
        self.heard.is_some() || self.begun.is_some()
    }

    /// Whether it has a pause before the child is asked for it again.
    pub(in crate::session) fn is_waiting(&self) -> bool {
        self.due.is_some()
    }

    /// Whether the child tells by it now.
    pub(in crate::session) fn is_heard(&self) -> bool {
        self.heard.is_some()
    }

    fn knows(&self, number: u64) -> bool {
        let mut open = self.heard.iter().chain(&self.begun);
        open.any(|open| open.number == number)
    }

    /// Whether what it tells by that one is to be heard: of two that overlap the older is, until the newer is
    /// acknowledged.
    pub(in crate::session) fn is_heard_by(&self, number: u64) -> bool {
        let open = self.heard.as_ref().or(self.begun.as_ref());
        open.is_some_and(|open| open.number == number)
    }

    /// What the child tells by now, if that has this number.
    pub(in crate::session) fn heard_by(&self, number: u64) -> Option<&Wanted> {
        let heard = self.heard.as_ref();
        let heard = heard.filter(|heard| heard.number == number)?;
        Some(&heard.wanted)
    }

    /// The child has acknowledged it: the number of the one that is not needed any more.
    pub(in crate::session) fn acknowledged(&mut self, number: u64) -> Option<u64> {
        let begun = self.begun.take_if(|begun| begun.number == number)?;
        Some(self.heard.replace(begun)?.number)
    }

    /// The child tells nothing of that resource, which it was asked for.
    pub(in crate::session) fn is_not_told(&mut self, uri: &str) {
        if let Some(open) = &mut self.heard {
            open.wanted.uris.retain(|wanted| **wanted != *uri);
        }
    }

    /// The child has ended it: what it was, and whether it was heard.
    fn ended(&mut self, number: u64, now: Instant) -> Option<(Box<OpenSubscription>, bool)> {
        let is_it = |open: &mut Box<OpenSubscription>| open.number == number;
        let begun = self.begun.take_if(is_it).map(|open| (open, false));
        let heard = || Some((self.heard.take_if(is_it)?, true));
        let ended = begun.or_else(heard)?;
        if now.duration_since(ended.0.since) >= LASTING {
            self.pause = Duration::ZERO;
        }
        Some(ended)
    }

    fn wait(&mut self, now: Instant) {
        self.due = Some(now + self.pause);
        self.pause = (self.pause * 2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
    }

    fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now)
    }
}

impl Reversed {
    /// That of which the child knows a subscription by that number.
    pub(in crate::session) fn ear(&mut self, number: u64) -> Option<&mut Ear> {
        let ears = [&mut self.listening, &mut self.watching];
        ears.into_iter().find(|ear| ear.knows(number))
    }
}

impl Session {
    /// A notification of the client's that means something to a modern child: all others do not reach it.
    pub(in crate::session) fn heard_initialized(&self, method: &str) {
        if method == "notifications/initialized"
            && let Some(server) = self.modern_server()
        {
            self.listen_to_child(&mut self.state(), server);
        }
    }

    /// Has the child tell what the client wants to hear, and of what it tells by itself.
    pub(in crate::session) fn listen_to_child(
        &self,
        state: &mut SessionState,
        server: &ModernServer,
    ) {
        let mut wanted = Wanted::all_of(server.capabilities());
        wanted.uris.extend(state.subscribed.uris().cloned());
        if let Some(asked) = state.asked_for().filter(|uri| !wanted.uris.contains(uri)) {
            wanted.uris.push(asked.clone());
        }
        let mut ear = std::mem::take(&mut state.reversed.listening);
        self.listen_at(state, server, wanted, &mut ear);
        state.reversed.listening = ear;
    }

    /// Subscribes at the child to what is `wanted`, in place of an earlier subscription.
    pub(in crate::session) fn listen_at(
        &self,
        state: &mut SessionState,
        server: &ModernServer,
        wanted: Wanted,
        ear: &mut Ear,
    ) {
        ear.due = None;
        // The child's word on it is wanted, whatever it has said before.
        let asks = state
            .asked_for()
            .is_some_and(|uri| wanted.uris.contains(uri));
        let is_it = |open: &Option<Box<OpenSubscription>>| {
            open.as_ref().is_some_and(|it| it.wanted == wanted)
        };
        if is_it(&ear.begun) {
            return;
        }
        let before = if wanted.is_nothing() {
            [ear.heard.take(), ear.begun.take()]
        } else if is_it(&ear.heard) && !asks {
            [None, ear.begun.take()]
        } else {
            let (number, since) = (state.next, Instant::now());
            state.next += 1;
            let (text, meta) = (wanted.notifications().to_string(), server.own_meta());
            let own = OwnMessage::Listen {
                number,
                wanted: &text,
                meta: &meta,
            };
            if !self.say(&own) {
                // It reads nothing now: until it does, what it was asked before stays.
                ear.due = Some(since + SHORTEST_PAUSE);
                return;
            }
            // What is heard stays until this one is acknowledged: between the two nothing is missed.
            let begun = Box::new(OpenSubscription {
                number,
                since,
                wanted,
            });
            [None, ear.begun.replace(begun)]
        };
        for open in before.into_iter().flatten() {
            self.replace(open.number);
        }
    }

    /// Tells the child that what it was asked under that number is not needed any more.
    pub(in crate::session) fn replace(&self, number: u64) {
        self.say(&OwnMessage::Cancelled {
            number,
            reason: "replaced",
        });
    }

    /// Takes what ends request `number`, if that was such a subscription.
    pub(in crate::session) fn listening_ended(
        &self,
        state: &mut SessionState,
        number: u64,
        end: SubscriptionEnd<'_>,
    ) -> bool {
        // No other child was ever asked so.
        if self.modern_server().is_none() {
            return false;
        }
        let now = Instant::now();
        if state.reversed.watching.ended(number, now).is_some() {
            if !state.reversed.watching.is_open() {
                state.reversed.watching.wait(now);
            }
        } else if let Some((open, was_heard)) = state.reversed.listening.ended(number, now) {
            if was_heard {
                state.misses();
            }
            // Who is told of something else already has only this refused.
            let asked = if was_heard {
                None
            } else {
                state.take_asking(&open.wanted)
            };
            let ear = &mut state.reversed.listening;
            if !ear.is_open() || (!was_heard && asked.is_none()) {
                ear.wait(now);
            }
            if let Some((call, _)) = asked {
                self.not_acknowledged(state, call, end);
            }
            self.ask_for_next(state);
        } else {
            return false;
        }
        self.listen_again(state, now);
        true
    }

    /// The same where the child names it, as it may in place of an answer.
    pub(in crate::session) fn listening_cancelled(&self, named: Value<'_>) -> bool {
        let number = named.as_u64();
        number.is_some_and(|number| {
            self.listening_ended(&mut self.state(), number, SubscriptionEnd::Named)
        })
    }

    /// Makes those subscriptions again whose time has come.
    pub(in crate::session) fn listen_again(&self, state: &mut SessionState, now: Instant) {
        let Some(server) = self.modern_server() else {
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
        mcp::Message,
        session::{
            Exchange,
            exchange::Failure,
            outbox::OutboxReader,
            testing::{self, say},
        },
    };

    /// A session of a legacy client at a modern child that tells of tools, and what that is told.
    fn session() -> (Arc<Session>, OutboxReader) {
        testing::reversed(
            r#"{"tools":{"listChanged":true},"resources":{"subscribe":true},"extensions":{"io.modelcontextprotocol/tasks":{}}}"#,
        )
    }

    /// The numbers of the subscriptions that the child was told of.
    fn begun(lines: &mut OutboxReader) -> Vec<u64> {
        ends(lines).0
    }

    /// The same, and the numbers of those that have ended.
    fn ends(lines: &mut OutboxReader) -> (Vec<u64>, Vec<u64>) {
        let (mut began, mut ended) = (Vec::new(), Vec::new());
        while let Some(line) = lines.try_recv() {
            let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
            let (named, ends) = (&line["params"]["requestId"], &line["method"]);
            match ends.as_str() {
                Some("subscriptions/listen") => began.extend(line["id"].as_u64()),
                Some("notifications/cancelled") => ended.extend(named.as_u64()),
                _ => {}
            }
        }
        (began, ended)
    }

    /// A call that the child has made a task, and the subscription to that.
    fn task(session: &Arc<Session>, lines: &mut OutboxReader) -> (Exchange, Vec<u64>) {
        let call = r#"{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":"t"}}"#;
        let waits = testing::asked(session, call);
        let task = r#"{"resultType":"task","taskId":"k","status":"working"}"#;
        say(
            session,
            format!(r#"{{"jsonrpc":"2.0","id":1,"result":{task}}}"#),
        );
        (waits, begun(lines))
    }

    /// The child takes all that it is asked for.
    fn acknowledge(session: &Session, number: u64) {
        let told = r#"{"resourceSubscriptions":["a:b"]}"#;
        say(
            session,
            format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{{"notifications":{told},"_meta":{{"io.modelcontextprotocol/subscriptionId":{number}}}}}}}"#
            ),
        );
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
        let (_waits, open) = task(&session, &mut lines);
        say(
            &session,
            format!(r#"{{"jsonrpc":"2.0","id":{},"result":{{}}}}"#, open[0]),
        );
        let open = begun(&mut lines);
        assert_eq!(open.len(), 1);
        say(
            &session,
            format!(r#"{{"jsonrpc":"2.0","id":{},"result":{{}}}}"#, open[0]),
        );
        testing::cancels(&session, "5");
        tokio::time::advance(LONGEST_PAUSE).await;
        sweep(&session);
        assert_eq!(begun(&mut lines), [0; 0], "nobody waits for it");
    }

    /// The task of a call that ends while the child reads nothing is ended when it reads again.
    #[tokio::test(start_paused = true)]
    async fn a_task_that_a_busy_child_could_not_be_told_to_end_is_ended_later() {
        let (session, mut lines) = session();
        let (_waits, open) = task(&session, &mut lines);
        while session.say(&OwnMessage::Discover { number: 0 }) {}
        session.sweep(Instant::now() + session.call_timeout, Duration::MAX);
        let (mut ended, mut ends) = (Vec::new(), 0);
        while let Some(line) = lines.try_recv() {
            let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
            ended.extend(line["params"]["requestId"].as_u64());
            ends += usize::from(line["method"] == "tasks/cancel");
        }
        assert!(ended.ends_with(&open) && ends == 1, "{ended:?} {ends}");
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
        let _done = testing::asked(&session, subscribe);
        let open = begun(&mut lines);
        assert_eq!(open.len(), 1);
        acknowledge(&session, open[0]);
        tokio::time::advance(LONGEST_PAUSE).await;
        sweep(&session);
        assert_eq!(begun(&mut lines), [0; 0], "it was made already");
    }

    /// What is heard goes on until what replaces it is acknowledged, and what was not acknowledged is not waited for; asked
    /// for what it tells already the child is not asked again.
    #[tokio::test(start_paused = true)]
    async fn what_replaces_another_is_acknowledged_first() {
        let (session, mut lines) = session();
        let subscription = |uri: &str| {
            let call = format!(
                r#"{{"jsonrpc":"2.0","id":"{uri}","method":"resources/subscribe","params":{{"uri":"{uri}"}}}}"#
            );
            testing::asked(&session, &call)
        };
        session.heard_initialized("notifications/initialized");
        let first = begun(&mut lines)[0];
        session.heard_initialized("notifications/initialized");
        assert!(lines.try_recv().is_none(), "it is asked that already");
        let _done = subscription("a:b");
        let second = first + 2;
        assert_eq!(ends(&mut lines), (vec![second], vec![first]));
        acknowledge(&session, second);
        assert_eq!(ends(&mut lines), (vec![], vec![]));
        let _again = subscription("a:c");
        let third = second + 2;
        assert_eq!(ends(&mut lines), (vec![third], vec![]));
        acknowledge(&session, third);
        assert_eq!(ends(&mut lines), (vec![], vec![second]));
        acknowledge(&session, second);
        let _known = subscription("a:b");
        assert_eq!(ends(&mut lines), (vec![], vec![]));
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
        let _done = testing::asked(&session, subscribe);
        assert_eq!(begun(&mut lines), [0; 0]);
        tokio::time::advance(SHORTEST_PAUSE).await;
        sweep(&session);
        let listens = lines.try_recv().expect("it is made later");
        assert!(listens.ends_with(b"}\n") && listens.windows(3).any(|three| three == b"a:b"));
        let replaced = lines.try_recv().expect("and the first one ends");
        let replaced = Message::parse(replaced).unwrap();
        let named = replaced.root().get("params").unwrap().get("requestId");
        assert_eq!(named.and_then(Value::as_number), Some(&*first.to_string()));
    }
}
