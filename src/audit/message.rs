//! What a person reads first: the `MESSAGE` of each event, and how urgent it is.

use super::{
    event::{Decision, Event, Verdict},
    kind::Kind,
    reason::Reason,
    text::{line, shown, told},
};
use crate::mcp::Aim;

/// Kind, priority and what a person reads first. Strangers' text only as `shown`,
/// or as `told` where thv's own words are around it.
pub(super) fn headline(event: &Event, server: &str) -> (Kind, u8, String) {
    match event {
        Event::Ready => (Kind::Ready, INFO, "ready".to_owned()),
        Event::Stopping => (
            Kind::Stopping,
            INFO,
            "stopping: no new requests, accepted ones are finished".to_owned(),
        ),
        Event::IdleExit => (
            Kind::IdleExit,
            INFO,
            "idle: exiting, the socket stays open".to_owned(),
        ),
        Event::Unfinished { pid, .. } => {
            let who = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
            (
                Kind::Unfinished,
                WARNING,
                format!(
                    "the gateway before this one{who} did not come to its end: what it permitted and has no outcome is unknown"
                ),
            )
        }
        Event::ConfigRefused {
            file,
            line,
            key,
            message,
        } => {
            let file = told(&file.to_string_lossy());
            // A file as a whole has no line.
            let line = match line {
                0 => String::new(),
                line => format!("{line}:"),
            };
            let key = key.as_deref().map(|key| format!("{}: ", shown(key)));
            (
                Kind::ConfigRefused,
                ERROR,
                format!(
                    "configuration refused: {file}:{line} {}{}",
                    key.unwrap_or_default(),
                    told(message)
                ),
            )
        }
        Event::Decision(decision) => {
            let priority = if decision.verdict == Verdict::Allow {
                INFO
            } else {
                NOTICE
            };
            (Kind::Decision, priority, decided(decision, server))
        }
        Event::Outcome(outcome) => {
            let millis = outcome.duration.as_millis();
            match outcome.reason {
                None => {
                    let mut digits = itoa::Buffer::new();
                    let text = ["answered after ", digits.format(millis), " ms"].concat();
                    (Kind::Outcome, INFO, text)
                }
                Some(reason) => {
                    let mut text = format!("failed after {millis} ms: {}", reason.as_str());
                    if let Some(more) = explained(reason, &[], server) {
                        text.extend(["; ", &more]);
                    }
                    (Kind::Outcome, NOTICE, text)
                }
            }
        }
        Event::ChildStarted { child, pid, .. } => (
            Kind::ChildStarted,
            INFO,
            format!("child {child} started, pid {pid}"),
        ),
        Event::ChildTaken { child, pid, .. } => (
            Kind::ChildTaken,
            INFO,
            format!("child {child} (pid {pid}) is somebody's from now on"),
        ),
        Event::ChildExited {
            child,
            pid,
            exit,
            expected: true,
            ..
        } => (
            Kind::ChildExited,
            INFO,
            format!("child {child} (pid {pid}) ended: {exit}"),
        ),
        Event::ChildExited {
            child,
            pid,
            exit,
            expected: false,
            fault: None,
        } => (
            Kind::ChildDied,
            WARNING,
            format!("child {child} (pid {pid}) ended unexpectedly: {exit}"),
        ),
        Event::ChildExited {
            child,
            pid,
            exit,
            expected: false,
            fault: Some(fault),
        } => (
            Kind::ChildDied,
            WARNING,
            format!(
                "child {child} (pid {pid}) was ended, {}: {exit}",
                fault.as_str()
            ),
        ),
        Event::ChildStderr { line: text, .. } => (Kind::ChildStderr, INFO, line(text)),
        Event::Egress(egress) => {
            let host = shown(&egress.host);
            let text = match (egress.allowed, egress.reason) {
                (true, None) => format!(
                    "egress to {host}: {} bytes sent, {} received",
                    egress.sent, egress.received
                ),
                (true, Some(reason)) => format!("egress to {host} failed: {}", reason.as_str()),
                (false, reason) => format!(
                    "egress to {host} denied ({})",
                    reason.map_or("-", |reason| reason.as_str())
                ),
            };
            let error = egress
                .error
                .as_deref()
                .map(|error| format!(": {}", told(error)));
            let priority = if egress.allowed { INFO } else { NOTICE };
            (Kind::Egress, priority, text + &error.unwrap_or_default())
        }
        Event::LayerFailed { layer, reason } => (
            Kind::LayerFailed,
            ERROR,
            match reason.strip_prefix(layer.as_str()) {
                Some(rest) if rest.starts_with(": ") => {
                    format!("the server did not start: {}", told(reason))
                }
                _ => format!(
                    "the server did not start: {}: {}",
                    shown(layer),
                    told(reason)
                ),
            },
        ),
        Event::KeysFetched { issuer, keys } => (
            Kind::KeysFetched,
            INFO,
            format!("{keys} keys fetched from {}", shown(issuer)),
        ),
        Event::KeysUnavailable {
            issuer,
            cached: true,
            error,
        } => (
            Kind::KeysUnavailable,
            WARNING,
            format!(
                "keys of {} unavailable, keeping those from before: {}",
                shown(issuer),
                told(error)
            ),
        ),
        Event::KeysUnavailable {
            issuer,
            cached: false,
            error,
        } => (
            Kind::KeysUnavailable,
            ERROR,
            format!(
                "keys of {} unavailable, no token of it can be checked: {}",
                shown(issuer),
                told(error)
            ),
        ),
        Event::PolicyError {
            policies, errors, ..
        } => {
            let policies = policies.join(", ");
            let policies = shown(&policies);
            let error = errors.first().map(|error| told(error)).unwrap_or_default();
            (
                Kind::PolicyError,
                ERROR,
                format!("policy failed, the request was denied: {policies}: {error}"),
            )
        }
        Event::ToolsHidden { tools } => {
            let tools = tools.join(", ");
            (
                Kind::ToolsHidden,
                WARNING,
                format!("tools are hidden for their names: {}", shown(&tools)),
            )
        }
        Event::Dropped { count, first, last } => (
            Kind::Dropped,
            WARNING,
            format!("{count} records dropped, of those numbered {first} to {last}"),
        ),
    }
}

fn decided(decision: &Decision, server: &str) -> String {
    let mut text = String::with_capacity(USUAL_LENGTH);
    match decision.verdict {
        Verdict::Allow => text.push_str("allowed"),
        Verdict::Deny(reason) => text.extend(["denied (", reason.as_str(), ")"]),
    }
    if let Some(requests) = decision.requests {
        text = format!("{text}: requests of one connection, {requests} in all");
    }
    if let Some(method) = &decision.method {
        text.extend([": ", &shown(method)]);
    }
    match &decision.aim {
        Aim::Server => {}
        Aim::Tool(name) | Aim::Prompt(name) | Aim::Resource(name) => {
            text.extend([" ", &shown(name)]);
        }
    }
    if let Some(who) = &decision.who {
        text.extend([
            ", for ",
            &shown(who.subject()),
            " of ",
            &shown(who.issuer()),
        ]);
    }
    if let Verdict::Deny(reason) = decision.verdict
        && let Some(more) = explained(reason, &decision.policies, server)
    {
        text = format!("{text}; {more}");
    }
    text
}

/// What a word alone does not say: what was compared with what, or where to look.
fn explained(reason: Reason, policies: &[String], server: &str) -> Option<String> {
    Some(match reason {
        Reason::HostNotAccepted => {
            format!(
                "the Host header, port included, is neither the host of `resource` nor one of `hosts` in /etc/thv/servers/{server}.toml; a proxy passes on its client's, or is named there"
            )
        }
        Reason::OriginNotAccepted => {
            format!(
                "the Origin header is neither the origin of `resource` nor one of `origins` in /etc/thv/servers/{server}.toml"
            )
        }
        Reason::PathUnknown => format!(
            "what is served is the path of `resource` in /etc/thv/servers/{server}.toml, exactly"
        ),
        Reason::BadHeader => format!(
            "its head is malformed, or it is TLS where none is spoken or the reverse: [tls] in /etc/thv/servers/{server}.toml says which"
        ),
        Reason::TokenAmbiguous => {
            "its client, or a proxy before this one, is to send one token, in one Authorization header, and none in the URL"
                .to_owned()
        }
        Reason::TokenMalformed
        | Reason::TokenType
        | Reason::TokenAlgorithm
        | Reason::TokenKeyUnknown
        | Reason::TokenSignature
        | Reason::TokenIssuer
        | Reason::TokenAudience
        | Reason::TokenExpired
        | Reason::TokenClaim
        | Reason::TokenClient
        | Reason::TokenSubject
        | Reason::TokenRequiredClaim
        | Reason::TokenInactive
        | Reason::ScopeInsufficient => {
            format!("`thv token explain {server}` shows what it says and what is wanted")
        }
        Reason::TokenNotYetValid => format!(
            "is this host's clock right? `thv token explain {server}` shows the token's times"
        ),
        Reason::Policy if policies.is_empty() => "no policy permits it".to_owned(),
        Reason::Policy => format!("forbidden by {}", told(&policies.join(", "))),
        Reason::Misconfigured => format!("`thv check {server}` says what is wrong"),
        Reason::CallTimeout => format!(
            "`call-timeout` of [limits] in /etc/thv/servers/{server}.toml says how long a call may take"
        ),
        _ => return None,
    })
}

/// Of the message of a decision, so that it is allocated once.
const USUAL_LENGTH: usize = 192;
const ERROR: u8 = 3;
const WARNING: u8 = 4;
const NOTICE: u8 = 5;
const INFO: u8 = 6;

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::audit::{Outcome, RequestId};

    fn said(event: &Event) -> String {
        headline(event, "github").2
    }

    #[test]
    fn a_call_that_took_too_long_says_who_decides_how_long() {
        let outcome =
            |reason| Event::Outcome(Outcome::unanswered(RequestId::random(), Some(reason), None));
        let text = said(&outcome(Reason::CallTimeout));
        assert!(text.ends_with("call-timeout; `call-timeout` of [limits] in /etc/thv/servers/github.toml says how long a call may take"), "{text}");
        assert_eq!(
            said(&outcome(Reason::Cancelled)),
            "failed after 0 ms: cancelled"
        );
    }

    /// What an administrator reads in `journalctl -u` says where to look next.
    #[test]
    fn a_refusal_says_what_was_compared_or_which_command_shows_it() {
        let denied = |reason| Decision::denied(RequestId::random(), reason, 401);
        for (reason, words) in [
            (
                Reason::HostNotAccepted,
                "`hosts` in /etc/thv/servers/github.toml",
            ),
            (Reason::PathUnknown, "/etc/thv/servers/github.toml"),
            (Reason::BadHeader, "[tls]"),
            (Reason::TokenIssuer, "`thv token explain github`"),
            (Reason::TokenNotYetValid, "clock"),
            (Reason::TokenAmbiguous, "one Authorization header"),
            (Reason::Policy, "no policy permits it"),
            (Reason::Misconfigured, "`thv check github`"),
        ] {
            let text = said(&Event::Decision(denied(reason)));
            assert!(text.contains(words), "{text}");
        }
        let policies = ["x:never".to_owned()].into();
        let decision = Decision {
            policies,
            ..denied(Reason::Policy)
        };
        let text = said(&Event::Decision(decision));
        assert!(text.ends_with("forbidden by x:never"), "{text}");
    }

    #[test]
    fn the_cure_at_the_end_of_a_long_message_is_not_cut_off() {
        let file = format!("/etc/thv/{}.toml", "x".repeat(150));
        let message = format!("`{file}`: wrong; run `chmod a+rX {file}`");
        let refused = said(&Event::ConfigRefused {
            file: PathBuf::from(&file),
            line: 0,
            key: None,
            message: message.clone(),
        });
        assert_eq!(refused, format!("configuration refused: {file}: {message}"));
        let failed = said(&Event::LayerFailed {
            layer: "exec".to_owned(),
            reason: format!("exec: {message}"),
        });
        assert_eq!(failed, format!("the server did not start: exec: {message}"));
    }
}
