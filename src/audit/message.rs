//! What a person reads first: the `MESSAGE` of each event, and how urgent it is.

use super::{
    event::{Aim, Decision, Event, Verdict},
    record::Kind,
    text::{line, shown},
};

/// Kind, priority and what a person reads first. Strangers' text only as `shown`.
pub(super) fn headline(event: &Event) -> (Kind, u8, String) {
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
        Event::ConfigRefused {
            file,
            line,
            key,
            message,
        } => {
            let file = shown(&file.to_string_lossy());
            let key = key.as_deref().map(|key| format!("{}: ", shown(key)));
            (
                Kind::ConfigRefused,
                ERROR,
                format!(
                    "configuration refused: {file}:{line}: {}{}",
                    key.unwrap_or_default(),
                    shown(message)
                ),
            )
        }
        Event::Decision(decision) => {
            let priority = if decision.verdict == Verdict::Allow {
                INFO
            } else {
                NOTICE
            };
            (Kind::Decision, priority, decided(decision))
        }
        Event::Outcome(outcome) => {
            let millis = outcome.duration.as_millis();
            match outcome.reason {
                None => (Kind::Outcome, INFO, format!("answered after {millis} ms")),
                Some(reason) => (
                    Kind::Outcome,
                    NOTICE,
                    format!("failed after {millis} ms: {}", reason.as_str()),
                ),
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
        } => (
            Kind::ChildDied,
            WARNING,
            format!("child {child} (pid {pid}) ended unexpectedly: {exit}"),
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
                .map(|error| format!(": {}", shown(error)));
            let priority = if egress.allowed { INFO } else { NOTICE };
            (Kind::Egress, priority, text + &error.unwrap_or_default())
        }
        Event::LayerFailed { layer, reason } => (
            Kind::LayerFailed,
            ERROR,
            format!(
                "the server did not start: {}: {}",
                shown(layer),
                shown(reason)
            ),
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
                shown(error)
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
                shown(error)
            ),
        ),
        Event::PolicyError {
            policies, errors, ..
        } => {
            let policies = shown(&policies.join(", "));
            let error = errors.first().map(|error| shown(error)).unwrap_or_default();
            (
                Kind::PolicyError,
                ERROR,
                format!("policy failed, the request was denied: {policies}: {error}"),
            )
        }
        Event::LimitHit { reason, limit, .. } => (
            Kind::LimitHit,
            NOTICE,
            format!("limit hit: {} ({limit})", reason.as_str()),
        ),
        Event::Dropped { count, first, last } => (
            Kind::Dropped,
            WARNING,
            format!("{count} records dropped, of those numbered {first} to {last}"),
        ),
    }
}

fn decided(decision: &Decision) -> String {
    let mut text = match decision.verdict {
        Verdict::Allow => "allowed".to_owned(),
        Verdict::Deny(reason) => format!("denied ({})", reason.as_str()),
    };
    if let Some(method) = &decision.method {
        text = format!("{text}: {}", shown(method));
    }
    match &decision.aim {
        Aim::Server => {}
        Aim::Tool(name) | Aim::Prompt(name) | Aim::Resource(name) => {
            text = format!("{text} {}", shown(name))
        }
    }
    if let Some(who) = &decision.who {
        text = format!(
            "{text}, for {} of {}",
            shown(&who.subject),
            shown(&who.issuer)
        );
    }
    text
}

const ERROR: u8 = 3;
const WARNING: u8 = 4;
const NOTICE: u8 = 5;
const INFO: u8 = 6;
