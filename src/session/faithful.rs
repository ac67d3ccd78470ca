//! What goes through a session is what comes out: bytes in, bytes out, but for the spans
//! that design and manual name (ids, progress tokens, line breaks between tokens, and
//! what another era must have otherwise).

use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::{Event, Failure, Session, pump, testing};
use crate::{
    audit::RequestId,
    auth::Identity,
    authz::Engine,
    config::{Authz, ServerName},
    mcp::{Call, CallError, Era},
    session::{Exchange, outbox::OutboxReader},
};

/// A session of the era, whose child speaks the same unless it is `bridged`, and what that child is told.
fn session(era: Era, bridged: bool) -> (Arc<Session>, OutboxReader) {
    if bridged {
        testing::bridged("{}")
    } else {
        testing::session(era)
    }
}

fn read(text: &str) -> Result<Call, CallError> {
    Call::read(Bytes::copy_from_slice(text.as_bytes()), false).map_err(|none| none.error)
}

fn ask(session: &Arc<Session>, text: &str) -> Exchange {
    let call = read(text).unwrap();
    let id = call.id().unwrap().clone();
    let alice = Identity::example("https://a", "alice");
    let asked = session.request(
        &call,
        &alice,
        id,
        &mut session.audit.owes(RequestId::random()),
    );
    asked.unwrap()
}

/// What has come for the client, without waiting.
fn next(exchange: &mut Exchange) -> String {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match exchange.poll_next(&mut context) {
        std::task::Poll::Ready(Some(Event::Message(text) | Event::Answer(text))) => {
            String::from_utf8(text.to_vec()).unwrap()
        }
        other => panic!("{other:?}"),
    }
}

/// White space between tokens; lines of a child's have no line feed.
fn space(line: bool) -> impl Strategy<Value = String> + Clone {
    let breaks = if line { "\r" } else { "\n" };
    prop_oneof![
        4 => Just(String::new()),
        1 => Just(" ".to_owned()),
        1 => Just("\t ".to_owned()),
        1 => Just(format!(" {breaks}")),
    ]
}

/// A string's inside, in every spelling that JSON has.
fn inside() -> impl Strategy<Value = String> + Clone {
    let part = prop_oneof![
        Just("a"),
        Just("é"),
        Just("e\u{301}"),
        Just("😀"),
        Just("\u{2028}"),
        Just("\u{feff}"),
        Just(r"\u0041"),
        Just(r"\u00e9"),
        Just(r"\ud83d\ude00"),
        Just(r"\uD83D\uDE00"),
        Just(r"\/"),
        Just("/"),
        Just(r"\u0000"),
        Just(r"\n"),
        Just(r"\r\n"),
        Just(r#"\""#),
        Just(r"\\"),
        Just("data: "),
    ];
    prop::collection::vec(part, 0..4).prop_map(|parts| parts.concat())
}

/// A value as somebody may write it: nobody's serializer would write all of these alike.
fn value(line: bool) -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        prop_oneof![
            Just("1e400"),
            Just("-0"),
            Just("-0.0e-0"),
            Just("1.0"),
            Just("1E+2"),
            Just("0.10e-07"),
            Just("9007199254740993"),
            Just("18446744073709551616"),
            Just("3.141592653589793238462643"),
            Just("true"),
            Just("false"),
            Just("null"),
            Just("{}"),
            Just("[]"),
        ]
        .prop_map(str::to_owned),
        inside().prop_map(|text| format!("\"{text}\"")),
    ];
    leaf.prop_recursive(4, 24, 4, move |inner| {
        let element = (space(line), inner.clone(), space(line));
        let array = prop::collection::vec(element, 0..4).prop_map(|all| {
            let all: Vec<_> = all
                .into_iter()
                .map(|(a, value, b)| a + &value + &b)
                .collect();
            format!("[{}]", all.join(","))
        });
        let member = (
            space(line),
            inside(),
            space(line),
            space(line),
            inner,
            space(line),
        );
        let object = prop::collection::vec(member, 0..4).prop_map(|all| object(&all));
        prop_oneof![array, object]
    })
}

type Member = (String, String, String, String, String, String);

/// Members in no order, whose names differ by their last character alone.
fn object(members: &[Member]) -> String {
    let mut text = "{".to_owned();
    for (at, (a, name, b, c, value, d)) in members.iter().enumerate() {
        if at > 0 {
            text.push(',');
        }
        let last = members.len() - at;
        text.push_str(&format!("{a}\"{name}{last}\"{b}:{c}{value}{d}"));
    }
    text + "}"
}

fn flat(text: &str) -> String {
    text.replace(['\r', '\n'], " ")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    /// json-12, json-19, json-22: what a client says is what its server reads, under another id and token.
    #[test]
    fn a_request_reaches_the_child_byte_for_byte(
        s in space(false), id in prop_oneof![Just("7".to_owned()), inside().prop_map(|text| format!("\"{text}\""))],
        token in prop_oneof![Just("1.50".to_owned()), Just("\"t\"".to_owned())], arguments in value(false), last in any::<bool>(),
    ) {
        let (session, mut lines) = session(Era::Legacy, false);
        let arguments = format!("{{\"v\":{s}{arguments}}}");
        let text = |id: &str, token: &str| {
            let params = format!(r#""params"{s}:{{"arguments":{arguments},"_meta":{{{s}"progressToken":{token},"k":-0}},"name":"t\u0041"}}"#);
            let id = format!("\"id\":{s}{id}{s}");
            let (first, second) = if last { (params, id) } else { (id, params) };
            format!("{s}{{{first},{s}\"jsonrpc\":\"2.0\",\"method\"{s}:\"tools/call\",{second}}}{s}")
        };
        let _exchange = ask(&session, &text(&id, &token));
        let told = lines.try_recv().unwrap();
        prop_assert_eq!(std::str::from_utf8(&told).unwrap(), flat(&text("1", "1")) + "\n");
        // A second one, so that number and position are no accident.
        let _other = ask(&session, &text("8", &token));
        let told = lines.try_recv().unwrap();
        prop_assert_eq!(std::str::from_utf8(&told).unwrap(), flat(&text("2", "2")) + "\n");
        // What says nothing to a request goes as it is.
        let notice = format!(r#"{{"method":"notifications/roots/list_changed","jsonrpc":"2.0",{s}"params":{{"v":{arguments}}}}}"#);
        let alice = Identity::example("https://a", "alice");
        let engine = Engine::build(&Authz::Authenticated, &ServerName::parse("it").unwrap()).unwrap();
        let permit = engine.decide(&alice, read(&notice).unwrap()).unwrap();
        session.send(permit, &alice, &mut session.audit.owes(RequestId::random())).map(drop).unwrap();
        let told = lines.try_recv().unwrap();
        prop_assert_eq!(std::str::from_utf8(&told).unwrap(), flat(&notice) + "\n");
    }

    /// json-12, json-19, json-22, sse-1: what a server says is what its client reads, under its own id and token.
    #[test]
    fn an_answer_reaches_the_client_byte_for_byte(
        s in space(true), id in prop_oneof![Just("7".to_owned()), inside().prop_map(|text| format!("\"{text}\""))],
        token in prop_oneof![Just("1.50".to_owned()), Just("\"t\\/\"".to_owned())], result in value(true),
        modern in any::<bool>(), fails in any::<bool>(),
    ) {
        let era = if modern { Era::Modern } else { Era::Legacy };
        let (session, _lines) = session(era, false);
        let mut exchange = ask(&session, &format!(
            r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"t","_meta":{{"progressToken":{token}}}}}}}"#
        ));
        let progress = |token: &str| format!(
            r#"{s}{{"params":{{"progressToken"{s}:{token}{s},"progress":1.0,"x":{result}}},{s}"jsonrpc":"2.0","method":"notifications/progress"}}"#
        );
        prop_assert!(pump::take(&session, progress("1").into()));
        prop_assert_eq!(next(&mut exchange), flat(&progress(&token)));
        let said = if fails {
            format!(r#""error":{{"code":-32000,{s}"message":"m","data":{result}}}"#)
        } else {
            format!(r#""result"{s}:{{"r":{result}}}"#)
        };
        let answer = |id: &str| format!(r#"{s}{{{said},"id"{s}:{id}{s},"jsonrpc":"2.0"}}{s}"#);
        prop_assert!(pump::take(&session, answer("1").into()));
        prop_assert_eq!(next(&mut exchange), flat(&answer(&id)));
    }

    /// json-22: of an answer from another era only what that era has otherwise is another.
    #[test]
    fn a_bridged_answer_keeps_its_members_byte_for_byte(s in space(true), a in value(true), b in value(true)) {
        let (session, mut lines) = session(Era::Modern, true);
        let mut exchange = ask(&session, &format!(
            r#"{{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{{"name":"t","arguments":{{"a":{},"b":{}}}}}}}"#, flat(&a), flat(&b)
        ));
        let told = lines.try_recv().unwrap();
        let told = std::str::from_utf8(&told).unwrap();
        let arguments = format!(r#""arguments":{{"a":{},"b":{}}}"#, flat(&a), flat(&b));
        prop_assert!(told.contains(&arguments), "{}", told);
        let said = format!(r#"{s}"n\u0061me"{s}:{a},{s}"structuredContent" :{b}{s}"#);
        let answer = format!(r#"{{"jsonrpc":"2.0",{s}"id":1,"result":{{{said}}}{s}}}"#);
        prop_assert!(pump::take(&session, answer.into()));
        let text = next(&mut exchange);
        let expected = format!(
            r#"{{"jsonrpc":"2.0",{s}"id":7,"result":{{"resultType":"complete","_meta":{{"io.modelcontextprotocol/serverInfo":{{"name":"","version":""}}}},{said}}}{s}}}"#
        );
        prop_assert_eq!(text, flat(&expected));
    }

    /// json-6: a name that stands there twice, however it is spelled and wherever, passes in neither direction.
    #[test]
    fn what_is_named_twice_passes_in_neither_direction(s in space(true), at in value(true), again in prop_oneof![Just("k"), Just(r"\u006b")]) {
        let (session, _lines) = session(Era::Legacy, false);
        let twice = format!(r#"[{at},{{"k"{s}:1,"v":{at},"{again}":{at}}}]"#);
        let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"t","arguments":{{"v":{twice}}}}}}}"#);
        prop_assert_eq!(read(&body).unwrap_err(), CallError::Invalid("a member is named twice"));
        let mut exchange = ask(&session, r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t"}}"#);
        let line = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"v":{twice}}}}}"#);
        prop_assert!(!pump::take(&session, line.into()));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let told = exchange.poll_next(&mut context);
        prop_assert!(matches!(told, std::task::Poll::Ready(Some(Event::Failed(Failure::BadAnswer)))));
    }
}
