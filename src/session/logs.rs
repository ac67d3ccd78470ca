//! Which log messages modern clients want, and whose each is.
//!
//! A legacy child is told once what any of them wants; what it writes then is sorted here. Used by `calls` and
//! `listening`.

use std::sync::Arc;

use crate::{
    mcp::{Call, bridge, meta},
    session::{
        SendError, Session, conversation::SessionState, own::OwnMessage, pending::seal::Binding,
        stream::Stream,
    },
};

/// The log messages that a call wants to hear.
pub(super) struct Logs {
    pub(super) from: usize,
    /// Who calls, and through which client.
    pub(super) holder: Binding,
}

impl Logs {
    pub(super) fn of(call: &Call, holder: impl FnOnce() -> Binding) -> Option<Box<Self>> {
        let from = level(call)?;
        let holder = holder();
        Some(Box::new(Self { from, holder }))
    }
}

impl Session {
    /// Has a legacy child write what the call wants to hear, if it does not yet.
    pub(super) fn log_from(&self, state: &mut SessionState, call: &Call) -> Result<(), SendError> {
        let logs = self.legacy_server().is_some_and(|server| server.logs());
        let wanted = logs.then(|| level(call)).flatten();
        let Some(wanted) = wanted.filter(|wanted| state.level.is_none_or(|told| *wanted < told))
        else {
            return Ok(());
        };
        let (number, level) = (state.next, bridge::level_name(wanted));
        self.write(OwnMessage::LogFrom { number, level }.line())?;
        // Its answer is not waited for, and its refusal is no harm.
        state.next += 1;
        state.level = Some(wanted);
        Ok(())
    }
}

/// A log message names no request: it is for the one that asked for any (mcp-T29), and where several did for the
/// latest that wants it; for nobody if those are not all of one client, or it might cross to another.
/// A subscription is about other things (mcp-T28).
pub(super) fn hearer(
    state: &SessionState,
    level: Option<usize>,
    is_chosen: bool,
) -> Option<&Arc<Stream>> {
    let calls = state.in_flight.iter();
    let calls = calls.filter(|(_, call)| !call.is_subscription());
    let calls = calls.filter_map(|(number, call)| Some((number, call, call.logs.as_deref()?)));
    let all: Vec<_> = calls.collect();
    let (_, _, first) = all.first()?;
    if all.iter().any(|(_, _, logs)| logs.holder != first.holder) {
        return None;
    }
    let alone = all.len() == 1 && is_chosen;
    let wanted = all
        .into_iter()
        .filter(|(_, _, logs)| alone || level >= Some(logs.from));
    let (_, call, _) = wanted.max_by_key(|(number, ..)| **number)?;
    Some(&call.stream)
}

/// From which level on the request wants to hear log messages.
fn level(call: &Call) -> Option<usize> {
    let level = call.meta(meta::LOG_LEVEL)?.as_str()?;
    bridge::log_level(&level)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        mcp::Era,
        session::{Event, pump, testing},
    };
    use bytes::Bytes;

    /// mcp-T29: of the calls of one client that want log messages the latest that wants this one has it; where they are
    /// of several clients nobody.
    #[tokio::test]
    async fn a_log_message_is_for_the_latest_call_of_its_client_that_wants_it() {
        const PLAIN: &str =
            r#"{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"x"}}"#;
        let asks = |session: &Arc<Session>, who: &str, level: &str| {
            let meta = format!(r#"{{"io.modelcontextprotocol/logLevel":"{level}"}}"#);
            let text = format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"x","_meta":{meta}}}}}"#
            );
            testing::tried_by(who, session, &text).unwrap()
        };
        let log = |level: &str| {
            let level = format!(r#""level":"{level}","data":1"#);
            let text = format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/message","params":{{{level}}}}}"#
            );
            Bytes::from(text)
        };
        let bridged = || testing::bridged(r#"{"logging":{}}"#);
        let modern = || testing::session(Era::Modern);
        for (session, _lines) in [bridged(), modern()] {
            let mut early = asks(&session, "alice", "debug");
            assert!(pump::take(&session, log("info")));
            let mut late = asks(&session, "alice", "error");
            let _says_nothing = testing::asked(&session, PLAIN);
            for level in ["info", "error"] {
                assert!(pump::take(&session, log(level)));
            }
            for (exchange, levels) in [
                (&mut early, ["info"; 2].as_slice()),
                (&mut late, &["error"]),
            ] {
                for level in levels {
                    let next = testing::now(exchange).await;
                    assert!(
                        matches!(&next, Some(Event::Message(text)) if *text == log(level)),
                        "{next:?}"
                    );
                }
            }
            let _bob = asks(&session, "bob", "debug");
            let before = session.unheard();
            assert!(pump::take(&session, log("error")));
            assert_eq!(session.unheard(), before + 1);
        }
    }
}
