//! One event as a record: fields with fixed names.

use std::{
    fmt::{Display, Write as _},
    time::Duration,
};

use super::{
    event::{Decision, Egress, Event, Outcome, RequestId, Verdict},
    kind::Kind,
    message::headline,
    text::field,
};
use crate::mcp::Aim;

/// What is sent: names and values in order. A name may stand there more than once.
#[derive(Clone, Debug)]
pub struct Record {
    kind: Kind,
    priority: u8,
    /// Names, and where in `values` the value of each ends, which is where the next begins.
    fields: Vec<(&'static str, usize)>,
    values: String,
}

impl Record {
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// As in syslog(3): 3 error, 4 warning, 5 notice, 6 information.
    pub fn priority(&self) -> u8 {
        self.priority
    }

    pub fn fields(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let mut start = 0;
        self.fields.iter().map(move |(name, end)| {
            let value = &self.values[start..*end];
            start = *end;
            (*name, value)
        })
    }

    /// The first value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields()
            .find(|(field, _)| *field == name)
            .map(|(_, value)| value)
    }

    /// `time` is since the Unix epoch.
    pub(super) fn of(event: &Event, server: &str, time: Duration, number: Option<u64>) -> Self {
        let mut record = Self {
            kind: Kind::Ready,
            priority: 0,
            fields: Vec::with_capacity(24),
            values: String::with_capacity(640),
        };
        (record.kind, record.priority) = describe(event, server, time, number, &mut record);
        record
    }
}

impl Fields for Record {
    fn put(&mut self, name: &'static str, value: impl Display) {
        // Never fails: it is a String.
        let _ = write!(self.values, "{value}");
        self.fields.push((name, self.values.len()));
    }

    fn text(&mut self, name: &'static str, value: &str) {
        self.values.push_str(value);
        self.fields.push((name, self.values.len()));
    }
}

/// Where the fields of an event are put, one after the other.
pub(super) trait Fields {
    /// What has a text of its own.
    fn put(&mut self, name: &'static str, value: impl Display);

    fn text(&mut self, name: &'static str, value: &str);

    fn number(&mut self, name: &'static str, value: u64) {
        self.text(name, itoa::Buffer::new().format(value));
    }

    /// A stranger's text, raw but capped: only ever in a field of its own.
    fn raw(&mut self, name: &'static str, value: &str) {
        self.text(name, &field(value));
    }

    fn raw_if(&mut self, name: &'static str, value: Option<&str>) {
        if let Some(value) = value {
            self.raw(name, value);
        }
    }

    /// What all records of a kind and a priority say of one server.
    fn common(&mut self, of: (Kind, u8), server: &str) {
        put_common(self, of, server);
    }
}

/// See [`Fields::common`].
pub(super) fn put_common(
    out: &mut (impl Fields + ?Sized),
    (kind, priority): (Kind, u8),
    server: &str,
) {
    out.text("MESSAGE_ID", kind.message_id());
    out.number("PRIORITY", priority.into());
    out.text("SYSLOG_IDENTIFIER", "thv");
    out.text("THV_EVENT", kind.name());
    out.text("THV_SERVER", server);
}

/// Puts down all there is to say of an event. `time` is since the Unix epoch, and a record of
/// lost ones has no number.
pub(super) fn describe(
    event: &Event,
    server: &str,
    time: Duration,
    number: Option<u64>,
    out: &mut impl Fields,
) -> (Kind, u8) {
    let (kind, priority, message) = headline(event, server);
    out.text("MESSAGE", &message);
    out.common((kind, priority), server);
    out.number("THV_TIME_USEC", micros(time));
    details(event, out);
    if let Some(number) = number {
        out.number("THV_SEQ", number);
    }
    (kind, priority)
}

fn details(event: &Event, out: &mut impl Fields) {
    match event {
        Event::Ready | Event::Stopping | Event::IdleExit => {}
        Event::Unfinished { pid, since } => {
            if let Some(pid) = pid {
                out.put("THV_LAST_PID", pid.to_string());
            }
            if let Some(since) = since {
                out.put("THV_LAST_TIME_USEC", since.to_string());
            }
        }
        Event::ConfigRefused {
            file,
            line,
            key,
            message,
        } => {
            out.raw("THV_CONFIG_FILE", &file.to_string_lossy());
            out.put("THV_CONFIG_LINE", line);
            out.raw_if("THV_CONFIG_KEY", key.as_deref());
            out.raw("THV_ERROR", message);
        }
        Event::Decision(decision) => decided(decision, out),
        Event::Outcome(outcome) => ended(outcome, out),
        Event::ChildStarted {
            child,
            pid,
            principal,
        } => {
            of_child(*child, *pid, out);
            out.raw_if("THV_PRINCIPAL", principal.as_deref());
        }
        Event::ChildTaken {
            child,
            pid,
            principal,
        } => {
            of_child(*child, *pid, out);
            out.raw("THV_PRINCIPAL", principal);
        }
        Event::ChildExited {
            child,
            pid,
            exit,
            fault,
            ..
        } => {
            of_child(*child, *pid, out);
            out.put("THV_EXIT", exit);
            if let Some(fault) = fault {
                out.put("THV_REASON", fault.as_str());
            }
        }
        Event::ChildStderr { child, pid, .. } => {
            of_child(*child, *pid, out);
            out.put("THV_STREAM", "stderr");
        }
        Event::Egress(egress) => went_out(egress, out),
        Event::LayerFailed { layer, reason } => {
            out.raw("THV_LAYER", layer);
            out.raw("THV_ERROR", reason);
        }
        Event::KeysFetched { issuer, keys } => {
            out.raw("THV_ISSUER", issuer);
            out.put("THV_KEYS", keys);
        }
        Event::KeysUnavailable { issuer, error, .. } => {
            out.raw("THV_ISSUER", issuer);
            out.raw("THV_ERROR", error);
        }
        Event::PolicyError {
            request_id,
            policies,
            errors,
        } => {
            of_request(*request_id, out);
            by_policies(policies, out);
            for error in errors.iter().take(MAX_REPEATED) {
                out.raw("THV_ERROR", error);
            }
        }
        Event::ToolsHidden { tools } => {
            for tool in tools.iter().take(MAX_REPEATED) {
                out.raw("THV_TOOL", tool);
            }
        }
        Event::Dropped { count, first, last } => {
            out.number("THV_DROPPED", *count);
            out.number("THV_DROPPED_FIRST", *first);
            out.number("THV_DROPPED_LAST", *last);
        }
    }
}

fn decided(decision: &Decision, out: &mut impl Fields) {
    of_request(decision.request_id, out);
    match decision.verdict {
        Verdict::Allow => out.text("THV_DECISION", "allow"),
        Verdict::Deny(reason) => {
            out.text("THV_DECISION", "deny");
            out.text("THV_REASON", reason.as_str());
        }
    }
    if let Some(who) = &decision.who {
        out.raw("THV_SUBJECT", who.subject());
        out.raw("THV_ISSUER", who.issuer());
        out.raw_if("THV_CLIENT_ID", who.client());
    }
    out.raw_if("THV_METHOD", decision.method.as_deref());
    match &decision.aim {
        Aim::Server => {}
        Aim::Tool(name) => out.raw("THV_TOOL", name),
        Aim::Prompt(name) => out.raw("THV_PROMPT", name),
        Aim::Resource(uri) => out.raw("THV_RESOURCE_URI", uri),
    }
    by_policies(&decision.policies, out);
    if let Some(status) = decision.status {
        out.number("THV_STATUS", status.into());
    }
    if let Some(requests) = decision.requests {
        out.number("THV_REQUESTS", requests.get().into());
    }
    out.raw_if("THV_PEER_ADDR", decision.peer.as_deref());
    out.raw_if("THV_SESSION", decision.session.as_deref());
    out.raw_if("THV_TOKEN", decision.token.as_deref());
    if let Some(version) = &decision.version {
        out.text("THV_CONFIG", version);
    }
}

fn ended(outcome: &Outcome, out: &mut impl Fields) {
    of_request(outcome.request_id, out);
    out.text(
        "THV_OUTCOME",
        if outcome.reason.is_none() {
            "ok"
        } else {
            "failed"
        },
    );
    if let Some(reason) = outcome.reason {
        out.text("THV_REASON", reason.as_str());
    }
    if let Some(status) = outcome.status {
        out.number("THV_STATUS", status.into());
    }
    out.number("THV_DURATION_USEC", micros(outcome.duration));
    out.number("THV_BYTES_IN", outcome.bytes_in);
    out.number("THV_BYTES_OUT", outcome.bytes_out);
}

fn went_out(egress: &Egress, out: &mut impl Fields) {
    of_child(egress.child, egress.pid, out);
    out.put("THV_PRINCIPAL", egress.principal.as_str());
    let decision = if egress.allowed { "allow" } else { "deny" };
    out.put("THV_DECISION", decision);
    if let Some(reason) = egress.reason {
        out.text("THV_REASON", reason.as_str());
    }
    out.raw("THV_EGRESS", &egress.host);
    if let Some(address) = egress.address {
        out.put("THV_EGRESS_ADDR", address);
    }
    out.raw_if("THV_ERROR", egress.error.as_deref());
    out.number("THV_DURATION_USEC", micros(egress.duration));
    out.number("THV_BYTES_OUT", egress.sent);
    out.number("THV_BYTES_IN", egress.received);
}

fn of_request(id: RequestId, out: &mut impl Fields) {
    out.text("THV_REQUEST_ID", id.text(&mut [0; RequestId::LENGTH]));
}

fn of_child(child: u64, pid: u32, out: &mut impl Fields) {
    out.number("THV_CHILD", child);
    out.number("THV_CHILD_PID", pid.into());
}

/// One field a policy, so that `THV_POLICY=x` finds it whatever else decided.
fn by_policies(policies: &[String], out: &mut impl Fields) {
    for policy in policies.iter().take(MAX_REPEATED) {
        out.raw("THV_POLICY", policy);
    }
}
/// Longer than any clock goes on: what does not fit is cut off.
fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Values of one repeated field.
const MAX_REPEATED: usize = 64;

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, path::PathBuf, sync::Arc};

    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::audit::{
        Exit, Reason, RequestId,
        encode::{json, native},
        fixture::parse,
    };
    use crate::auth::{self, Identity};

    fn record(event: &Event) -> Record {
        Record::of(
            event,
            "github",
            Duration::from_micros(1_700_000_000_000_001),
            None,
        )
    }

    fn who(issuer: &str, subject: &str, client: &str) -> Arc<Identity> {
        let alice = Identity::example(issuer, subject);
        Arc::new(alice.with(auth::Kind::User, Some(client), &[], &[]))
    }

    /// One event of every kind, its texts made of `text`.
    fn one_of_each(text: &str) -> Vec<Event> {
        let text = || text.to_owned();
        let request_id = RequestId::random();
        vec![
            Event::Ready,
            Event::Stopping,
            Event::IdleExit,
            Event::Unfinished {
                pid: Some(7),
                since: Some(1_700_000_000_000_000),
            },
            Event::ConfigRefused {
                file: PathBuf::from(text()),
                line: 7,
                key: Some(text()),
                message: text(),
            },
            Event::Decision(Decision {
                who: Some(who(&text(), &text(), &text())),
                method: Some(text().into()),
                aim: Aim::Tool(text().into()),
                policies: [text(), text()].into(),
                peer: Some(text()),
                session: Some(text().into()),
                token: Some(text()),
                version: Some("0123456789abcdef".into()),
                ..Decision::denied(request_id, Reason::Policy, 403)
            }),
            Event::Outcome(Outcome {
                request_id,
                reason: Some(Reason::ChildGone),
                status: Some(200),
                duration: Duration::from_millis(2),
                bytes_in: 3,
                bytes_out: 4,
            }),
            Event::ChildStarted {
                child: 1,
                pid: 2,
                principal: Some(text()),
            },
            Event::ChildTaken {
                child: 1,
                pid: 2,
                principal: text(),
            },
            Event::ChildExited {
                child: 1,
                pid: 2,
                exit: Exit::Code(0),
                expected: true,
                fault: None,
            },
            Event::ChildExited {
                child: 1,
                pid: 2,
                exit: Exit::Signal(9),
                expected: false,
                fault: Some(Reason::ChildLine),
            },
            Event::ChildStderr {
                child: 1,
                pid: 2,
                line: text().into_bytes(),
            },
            Event::Egress(Egress {
                child: 1,
                pid: 2,
                principal: text(),
                host: text(),
                address: Some("192.0.2.1:443".parse().unwrap()),
                allowed: false,
                reason: Some(Reason::EgressAddress),
                error: Some(text()),
                duration: Duration::from_millis(1),
                sent: 1,
                received: 2,
            }),
            Event::LayerFailed {
                layer: "seccomp".to_owned(),
                reason: text(),
            },
            Event::KeysFetched {
                issuer: text(),
                keys: 2,
            },
            Event::KeysUnavailable {
                issuer: text(),
                cached: true,
                error: text(),
            },
            Event::PolicyError {
                request_id,
                policies: vec![text()],
                errors: vec![text()],
            },
            Event::ToolsHidden {
                tools: vec![text()],
            },
            Event::Dropped {
                count: 1,
                first: 2,
                last: 2,
            },
        ]
    }

    #[test]
    fn every_kind_has_an_id_of_its_own_a_catalog_entry_and_a_place_in_the_manual() {
        let catalog = include_str!("../../systemd/catalog/thv.catalog");
        let manual = include_str!("../../man/thv-journal.7");
        let kinds: HashSet<Kind> = one_of_each("x")
            .iter()
            .map(|event| record(event).kind())
            .collect();
        assert_eq!(kinds, HashSet::from(Kind::ALL));
        let ids: HashSet<&str> = Kind::ALL.iter().map(|kind| kind.message_id()).collect();
        assert_eq!(ids.len(), Kind::ALL.len());
        for kind in Kind::ALL {
            let id = kind.message_id();
            assert!(
                id.len() == 32
                    && id
                        .bytes()
                        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')),
                "{id}"
            );
            assert!(
                catalog.lines().any(|line| line == format!("-- {id}")),
                "{id} ({}) has no catalog entry",
                kind.name()
            );
            assert!(
                manual.contains(id) && manual.contains(kind.name()),
                "{id} ({}) is not in thv-journal(7)",
                kind.name()
            );
        }
        let entries = catalog
            .lines()
            .filter(|line| line.starts_with("-- ") && line.len() == 35)
            .count();
        assert_eq!(
            entries,
            Kind::ALL.len(),
            "the catalog has entries for nothing"
        );
    }

    #[test]
    fn every_field_is_well_named_and_in_the_manual() {
        let manual = include_str!("../../man/thv-journal.7");
        let mut events = one_of_each("x");
        for aim in [Aim::Prompt("x".into()), Aim::Resource("x".into())] {
            events.push(Event::Decision(Decision {
                aim,
                ..Decision::allowed(RequestId::random(), Arc::default())
            }));
        }
        for (name, _) in events.iter().flat_map(|event| record(event).fields) {
            assert!(
                name.len() <= 64 && name.bytes().all(|byte| matches!(byte, b'A'..=b'Z' | b'_')),
                "{name}"
            );
            if name.starts_with("THV_") {
                assert!(
                    manual
                        .lines()
                        .any(|line| line.starts_with(&format!(".It Va {name}"))),
                    "{name} is not in thv-journal(7)"
                );
            }
        }
        assert!(manual.contains(".It Va THV_SEQ"));
    }

    #[test]
    fn no_message_holds_what_a_terminal_would_obey_and_none_is_long() {
        for text in [
            "\x1b[2J\x07\n\u{202e}x",
            &"\n".repeat(100_000),
            &"w".repeat(100_000),
        ] {
            for event in one_of_each(text) {
                let record = record(&event);
                let (name, message) = record.fields().next().unwrap();
                assert_eq!(name, "MESSAGE");
                assert!(
                    !message
                        .chars()
                        .any(|char| char.is_control() || char == '\u{202e}'),
                    "{message:?}"
                );
                assert!(message.len() < 4_096, "{} bytes", message.len());
            }
        }
    }

    #[test]
    fn an_allowed_request_says_who_did_what_by_which_policies() {
        let decision = Decision {
            who: Some(who("https://sso", "alice", "ide")),
            method: Some("tools/call".into()),
            aim: Aim::Tool("rm\n-rf".into()),
            ..Decision::allowed(
                RequestId::random(),
                ["base:a".into(), "base:b".into()].into(),
            )
        };
        let event = Event::Decision(decision);
        let mut line = Vec::new();
        json("github")(&event, Duration::ZERO, Some(1), &mut line);
        let record = record(&event);
        assert_eq!(
            record.field("MESSAGE"),
            Some(r"allowed: tools/call rm\u{a}-rf, for alice of https://sso")
        );
        assert_eq!(record.field("THV_TOOL"), Some("rm\n-rf"));
        assert_eq!(
            (record.field("THV_CLIENT_ID"), record.field("THV_REASON")),
            (Some("ide"), None)
        );
        let json: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(json["THV_POLICY"], serde_json::json!(["base:a", "base:b"]));
        assert_eq!(
            (&json["PRIORITY"], &json["THV_DECISION"]),
            (&"6".into(), &"allow".into())
        );
    }

    #[test]
    fn decision_and_outcome_share_their_request_id() {
        let ids: Vec<_> = one_of_each("x")
            .iter()
            .filter_map(|event| record(event).field("THV_REQUEST_ID").map(str::to_owned))
            .collect();
        assert_eq!(ids.len(), 3);
        assert!(ids.iter().all(|id| *id == ids[0] && id.len() == 32));
        assert_ne!(RequestId::random(), RequestId::random());
    }

    proptest! {
        #[test]
        fn the_native_form_is_read_back_as_it_was_whatever_the_text(text in "[\\PC\n=\x1b]{0,64}") {
            let mut native = native("github");
            // The second of a kind is written with what the first has said of all.
            for event in [one_of_each("x"), one_of_each(&text)].concat() {
                let (time, mut encoded) = (Duration::from_micros(1_700_000_000_000_001), Vec::new());
                native(&event, time, None, &mut encoded);
                let record = record(&event);
                let fields: Vec<_> = record.fields().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
                prop_assert_eq!(parse(&encoded), fields);
            }
        }
    }
}
