//! The tasks that clients have made at a server of their own era: which go on, and the progress of a legacy client's.
//!
//! A call that becomes a task is answered at once, and its progress token is good for as long as the task
//! (2025-11-25). What is told under it goes to the request for the task's result, where that is waited for, or else
//! to the session's own stream. Used by `calls` and `listening`.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    json::Value,
    mcp::{Call, Era, Message, task},
    session::{Session, calls::InFlight, conversation::SessionState},
};

/// The tasks of a session that have not ended, as far as anybody has said.
#[derive(Default)]
pub(in crate::session) struct RunningTasks(Vec<TaskProgress>);

/// One of them.
pub(in crate::session) struct TaskProgress {
    /// The number of the call that has become it: the token that the child has.
    number: u64,
    /// The client's own, as JSON, where it wants to hear of progress.
    pub(in crate::session) token: Option<Bytes>,
    task: String,
    /// The task is kept no longer.
    until: Option<Instant>,
    /// The request for its result.
    pub(in crate::session) result: Option<u64>,
}

impl RunningTasks {
    /// The task whose progress is told under that token of the child's.
    pub(in crate::session) fn of(&self, token: Value<'_>) -> Option<&TaskProgress> {
        let number = token.as_u64()?;
        self.0.iter().find(|told| told.number == number)
    }

    /// Whether that is one of them.
    pub(in crate::session) fn has(&self, task: &str) -> bool {
        self.0.iter().any(|told| told.task == task)
    }

    /// Whether any of them may go on.
    pub(in crate::session) fn goes_on(&self) -> bool {
        !self.0.is_empty()
    }

    /// Notes who waits for the result of one of these.
    pub(in crate::session) fn waits(&mut self, call: &Call, number: u64) {
        if self.0.is_empty() || call.method() != "tasks/result" {
            return;
        }
        let task = call.params().and_then(task::id);
        let mut all = self.0.iter_mut();
        if let Some(told) = task.and_then(|task| all.find(|told| told.task == task)) {
            told.result = Some(number);
        }
    }

    /// Forgets the task that this is said of, if it says that the task has ended.
    pub(in crate::session) fn ends(&mut self, standing: Option<Value<'_>>) {
        if self.0.is_empty() {
            return;
        }
        let Some(standing) = standing else {
            return;
        };
        if task::has_ended(standing)
            && let Some(task) = task::id(standing)
        {
            self.0.retain(|told| told.task != task);
        }
    }

    pub(in crate::session) fn sweep(&mut self, now: Instant) {
        self.0
            .retain(|told| told.until.is_none_or(|until| until > now));
    }
}

impl Session {
    /// Notes what the child's answer to that call says of a task.
    pub(in crate::session) fn progresses(
        &self,
        state: &mut SessionState,
        number: u64,
        call: &InFlight,
        message: &Message,
    ) {
        let all = &mut state.progress;
        let result = || message.root().get("result");
        if !all.0.is_empty() {
            // Its result is there, or its error: it has ended.
            all.0.retain(|told| told.result != Some(number));
            all.ends(result());
        }
        // What stands between two eras knows of its tasks by itself.
        if self.bridge().is_some() {
            return;
        }
        let made = result().and_then(|result| task::made(result, self.era));
        let Some(made) = made.filter(|made| task::goes_on(*made)) else {
            return;
        };
        let Some(task) = task::id(made) else {
            return;
        };
        // It may be said again.
        all.0.retain(|told| told.task != task);
        let ttl = made.get("ttl").or_else(|| made.get("ttlMs"));
        let ttl = ttl.and_then(Value::as_u64);
        let until = ttl.and_then(|ttl| Instant::now().checked_add(Duration::from_millis(ttl)));
        if all.0.len() == MAX_TASKS {
            all.0.remove(0);
        }
        // A modern client hears nothing more of it when its call is answered.
        let token = call.progress_token.as_ref();
        let token = token.filter(|_| self.era == Era::Legacy).cloned();
        all.0.push(TaskProgress {
            number,
            token,
            task: task.into_owned(),
            until,
            result: None,
        });
    }
}

/// Tasks of one session that are known to go on; of more the oldest is forgotten, and its progress told no longer.
const MAX_TASKS: usize = 64;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        mcp::Era,
        session::{
            Exchange,
            outbox::OutboxReader,
            testing::{self, say},
        },
    };

    fn make(session: &Arc<Session>, id: u64, ttl: &str) {
        let asks = format!(
            r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"x","task":{{}},"_meta":{{"progressToken":"mine-{id}"}}}}}}"#
        );
        let _made = testing::asked(session, &asks);
        let number = session.state().next - 1;
        say(
            session,
            format!(
                r#"{{"jsonrpc":"2.0","id":{number},"result":{{"task":{{"taskId":"t{number}","status":"working","ttl":{ttl}}}}}}}"#
            ),
        );
    }

    fn step(session: &Session, number: u64) -> bool {
        let before = session.unheard();
        say(
            session,
            format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":{number},"progress":1}}}}"#
            ),
        );
        session.unheard() == before
    }

    async fn heard(exchange: &mut Exchange) -> String {
        testing::text(testing::now(exchange).await)
    }

    fn session() -> (Arc<Session>, Exchange, OutboxReader) {
        let (session, lines) = testing::session(Era::Legacy);
        session.open("2025-11-25");
        let own = session.listen().unwrap();
        own.as_events();
        (session, own, lines)
    }

    /// The progress of a call that has become a task is told until that ends, where its result is waited for or else on
    /// the session's own stream, under the client's own token.
    #[tokio::test]
    async fn a_tasks_progress_is_told_until_it_ends() {
        const WAITS: &str =
            r#"{"jsonrpc":"2.0","id":"r","method":"tasks/result","params":{"taskId":"t1"}}"#;
        let status = |status: &str| format!(r#""taskId":"t1","status":"{status}""#);
        let told = |stands: &str| {
            let params = status(stands);
            format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/tasks/status","params":{{{params}}}}}"#
            )
        };
        for ends in ["result", "error", "told", "looked", "not at all"] {
            let (session, mut own, _lines) = session();
            make(&session, 1, "null");
            assert!(step(&session, 1) && !step(&session, 2));
            assert!(
                heard(&mut own)
                    .await
                    .contains(r#""progressToken":"mine-1""#)
            );
            say(&session, told("working"));
            heard(&mut own).await;
            let mut waits = testing::asked(&session, WAITS);
            assert!(step(&session, 1));
            assert!(
                heard(&mut waits)
                    .await
                    .contains(r#""progressToken":"mine-1""#)
            );
            match ends {
                "result" => say(
                    &session,
                    r#"{"jsonrpc":"2.0","id":2,"result":{"content":[]}}"#,
                ),
                "error" => say(
                    &session,
                    r#"{"jsonrpc":"2.0","id":2,"error":{"code":-32603,"message":"no"}}"#,
                ),
                "told" => say(&session, told("cancelled")),
                "looked" => {
                    let get = WAITS.replace("result", "get").replace("\"r\"", "\"g\"");
                    let _looks = testing::asked(&session, &get);
                    let stands = status("failed");
                    say(
                        &session,
                        format!(r#"{{"jsonrpc":"2.0","id":3,"result":{{{stands}}}}}"#),
                    );
                }
                _ => {}
            }
            assert_eq!(step(&session, 1), ends == "not at all", "{ends}");
        }
    }

    /// fault-46: what is kept for a task is kept no longer than its server keeps that, and of so many.
    #[tokio::test(start_paused = true)]
    async fn of_tasks_that_do_not_end_the_latest_are_told_of_for_as_long_as_they_are_kept() {
        let (session, _own, mut lines) = session();
        for id in 1..=MAX_TASKS as u64 + 1 {
            make(&session, id, if id == 2 { "1500" } else { "null" });
            while lines.try_recv().is_some() {}
        }
        assert!(!step(&session, 1));
        for (seconds, is_told) in [(1, true), (1, false)] {
            tokio::time::advance(Duration::from_secs(seconds)).await;
            session.sweep(Instant::now(), Duration::MAX);
            assert_eq!(step(&session, 2), is_told);
            assert!(step(&session, 3));
        }
        assert_eq!(session.state().progress.0.len(), MAX_TASKS - 1);
    }
}
