//! Every numbered case of a body that is no message, through the whole gateway: for each
//! the status, the body, the record, that its server has not heard of it, and that a call
//! of somebody else's goes on beside it all.

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    house::{Caller, call, house},
    identity::is_exactly,
    wire::{self, PATIENCE},
};

const PING: &str = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;

/// What is sent, and how it is refused.
struct Case {
    name: &'static str,
    body: Vec<u8>,
    code: i64,
}

fn case(name: &'static str, body: impl Into<Vec<u8>>, code: i64) -> Case {
    let body = body.into();
    Case { name, body, code }
}

/// A call of `echo` with this in place of a part of it.
fn changed(name: &'static str, part: &str, other: &str, code: i64) -> Case {
    let good = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"a":1}}}"#;
    assert!(good.contains(part), "{part}");
    case(name, good.replace(part, other), code)
}

fn cases() -> Vec<Case> {
    let utf16 = PING.encode_utf16().flat_map(u16::to_le_bytes);
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let mut cases = vec![
        case("json-1", "", -32700),
        case("json-1", "{", -32700),
        case("json-1", "NaN", -32700),
        case("json-1", "// a remark\n{}", -32700),
        changed("json-1", r#""a":1"#, r#""a":1,"#, -32700),
        changed("json-1", r#""a":1"#, r#""a":NaN"#, -32700),
        case("json-2", format!("{PING}{PING}"), -32700),
        case("json-2", format!("{PING} x"), -32700),
        case("json-3", format!("\u{feff}{PING}"), -32700),
        case("json-3", utf16.collect::<Vec<u8>>(), -32700),
        case(
            "json-3",
            &b"{\"jsonrpc\":\"2.0\",\"id\":\"\xff\",\"method\":\"ping\"}"[..],
            -32700,
        ),
        changed("json-3", r#""a":1"#, r#""a":"\ud800""#, -32700),
        changed("json-3", r#""a":1"#, "\"a\":\"\u{1}\"", -32700),
        changed(
            "json-4",
            r#"{"a":1}"#,
            &format!(r#"{{"a":{}}}"#, nested(62)),
            -32600,
        ),
        changed(
            "json-4",
            r#"{"a":1}"#,
            &format!(r#"{{"a":{}}}"#, nested(100_000)),
            -32600,
        ),
        changed(
            "json-5",
            r#"{"a":1}"#,
            &format!(r#"{{"a":[{}0]}}"#, "0,".repeat(2_000_000)),
            -32600,
        ),
        changed(
            "json-6",
            r#""method""#,
            r#""method":"ping","method""#,
            -32600,
        ),
        changed(
            "json-6",
            r#""method""#,
            r#""m\u0065thod":"ping","method""#,
            -32600,
        ),
        changed(
            "json-6",
            r#""name":"echo""#,
            r#""name":"echo","name":"secret""#,
            -32600,
        ),
        changed("json-6", r#""a":1"#, r#""a":1,"\u0061":2"#, -32600),
        changed(
            "json-6",
            r#""name""#,
            r#""_meta":{"x":1,"x":1},"name""#,
            -32600,
        ),
        changed("json-7", r#""method""#, r#""Method""#, -32600),
        changed(
            "json-7",
            r#""method""#,
            r#""Method":"ping","method""#,
            -32600,
        ),
        changed("json-7", r#""params""#, "\"param\u{17f}\"", -32600),
        changed(
            "json-7",
            r#""name":"echo""#,
            r#""name":"echo","Name":"secret""#,
            -32602,
        ),
        changed(
            "json-7",
            r#""name":"echo""#,
            "\"name\":\"echo\",\"_meta\":{},\"_META\":{}",
            -32602,
        ),
        case("json-8", "[]", -32600),
        case("json-8", format!("[{PING}]"), -32600),
        case(
            "json-8",
            r#"["2.0",1,"tools/call",{"name":"echo"}]"#,
            -32600,
        ),
        case("json-8", "7", -32600),
        changed("json-9", r#""jsonrpc":"2.0","#, "", -32600),
        changed("json-9", r#""2.0""#, "2", -32600),
        changed("json-9", r#""2.0""#, r#""2.00""#, -32600),
        changed("json-10", r#""id":1"#, r#""id":null"#, -32600),
        changed("json-15", r#""id":1,"#, "", -32600),
        case(
            "json-15",
            r#"{"jsonrpc":"2.0","id":1,"method":"notifications/initialized"}"#,
            -32600,
        ),
        changed(
            "json-20",
            r#"{"name":"echo","arguments":{"a":1}}"#,
            r#"["echo"]"#,
            -32602,
        ),
        changed("json-20", r#"{"a":1}"#, "[1]", -32602),
        changed("json-20", r#""echo""#, "7", -32602),
    ];
    for id in ["1.5", "1.0", "1e2", "true", "{}", "[]"] {
        cases.push(changed(
            "json-11",
            r#""id":1"#,
            &format!("\"id\":{id}"),
            -32600,
        ));
    }
    let long = format!("\"{}\"", "x".repeat(257));
    for id in ["9223372036854775808", "1e400", "-0", &long] {
        cases.push(changed(
            "json-12",
            r#""id":1"#,
            &format!("\"id\":{id}"),
            -32600,
        ));
    }
    cases
}

/// The request with a body of any bytes.
fn bytes(caller: &Caller, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let head = caller.bytes_with("POST", headers, "");
    let head = String::from_utf8(head).unwrap();
    let length = format!("Content-Length: {}\r\n", body.len());
    let mut bytes = head.replace("Content-Length: 0\r\n", &length).into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// The id of the request that a body may have been (JSON-RPC 2.0, section 5), if all of it could be read.
fn id_of(body: &[u8], told: &str) -> Option<Value> {
    let is_unread = ["named twice", "nested", "too many"];
    if is_unread.iter().any(|words| told.contains(words)) {
        return None;
    }
    let body: Value = serde_json::from_slice(body).ok()?;
    let id = body.get("method").and(body.get("id"))?;
    let short = id.as_str().is_some_and(|id| id.len() <= 256);
    let is_id = id.is_i64() || short;
    is_id.then(|| id.clone())
}

/// json-1, json-2, json-3, json-4, json-5, json-6, json-7, json-8, json-9, json-10, json-11, json-12, json-15, json-20, mcp-T3:
/// what is no message is told so, in either era and before it is decided on, is on record, reaches no server and costs
/// nobody else anything.
#[tokio::test]
async fn what_is_no_message_reaches_no_server() {
    let house = house().with("[limits]\nbody = \"8M\"\n").open().await;
    let (alice, bob) = (house.session("alice").await, house.session("bob").await);
    let (fresh, address) = (house.caller("alice"), house.address);
    let waits = bob.bytes("POST", &call(5, "wait", json!({ "for": "bob" })));
    let mut waiting = TcpStream::connect(address).await.unwrap();
    waiting.write_all(&waits).await.unwrap();
    let modern = [
        ("MCP-Protocol-Version", "2026-07-28"),
        ("Mcp-Method", "tools/call"),
        ("Mcp-Name", "echo"),
    ];
    let before = alice.seen().await.len();
    for case in cases() {
        let (message, reason) = match case.code {
            -32700 => ("the body is not JSON", "not-json"),
            -32600 => ("not a JSON-RPC message: ", "not-json-rpc"),
            _ => ("wrong parameters: ", "bad-parameters"),
        };
        for (caller, headers) in [(&alice, &[][..]), (&fresh, &modern)] {
            let request = bytes(caller, headers, &case.body);
            let answer = wire::exchange(house.address, &request).await;
            let shown = String::from_utf8_lossy(&case.body);
            let told = answer.json()["error"]["message"].take();
            let told = told.as_str().unwrap_or_default();
            assert!(
                told.starts_with(message),
                "{} {shown:.200}: {answer:?}",
                case.name
            );
            let mut body = json!({ "jsonrpc": "2.0", "error": {
                "code": case.code, "message": told, "data": { "reason": reason },
            } });
            if let Some(id) = id_of(&case.body, told) {
                body["id"] = id;
            }
            is_exactly(&house, &answer, (400, None), &body, reason);
        }
    }
    // Each beside its success.
    for id in [r#""\u0041""#, "-7", "9223372036854775807", r#""""#] {
        let answer = alice
            .post(&PING.replace(r#""id":1"#, &format!("\"id\":{id}")))
            .await;
        assert_eq!(answer.status, 200);
        assert!(
            answer.text().contains(&format!("\"id\":{id}"))
                || answer.text().contains(&format!("\"id\": {id}")),
            "{answer:?}"
        );
    }
    let after = alice.seen().await;
    let new: Vec<&String> = after[before..]
        .iter()
        .filter(|line| !line.contains("\"seen\""))
        .collect();
    assert!(
        new.len() == 4 && new.iter().all(|line| line.contains("\"ping\"")),
        "{new:#?}"
    );
    assert_eq!(house.children_started(), 2);
    let failed = house
        .records
        .all()
        .join("\n")
        .contains("THV_OUTCOME=failed");
    assert!(!failed);
    assert_eq!(
        bob.call("release", json!({ "for": "bob" })).await.said(),
        "done"
    );
    let mut answer = Vec::new();
    let read = waiting.read_to_end(&mut answer);
    timeout(PATIENCE, read).await.unwrap().unwrap();
    assert_eq!(wire::parse(&answer).said(), "released");
}

/// json-26: a resource is decided on as it is spelled, by its bytes, and none is fetched here: what is permitted is the server's to read.
#[tokio::test]
async fn a_resource_is_decided_on_as_it_is_spelled() {
    let shadow = "file:///etc/shadow";
    let policy = format!(
        "permit (principal, action, resource) unless {{ resource == Resource::\"{shadow}\" }};"
    );
    let house = house().policy(&policy).open().await;
    let alice = house.session("alice").await;
    let read = async |uri: &str| {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "resources/read", "params": { "uri": uri } });
        alice.post(&body.to_string()).await
    };
    let others = [
        "FILE:///etc/shadow",
        "file:///etc/%73hadow",
        "file:///etc/x/../shadow",
        "http://127.0.0.1:1/shadow",
    ];
    for uri in others {
        assert_eq!(read(uri).await.status, 200, "{uri}");
    }
    let refused = read(shadow).await;
    let body = json!({ "jsonrpc": "2.0", "id": 1, "error": {
        "code": -32603, "message": "not permitted", "data": { "reason": "denied" },
    } });
    is_exactly(&house, &refused, (403, None), &body, "policy");
    let escaped = r#"{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"file:///etc/\u0073hadow"}}"#;
    is_exactly(
        &house,
        &alice.post(escaped).await,
        (403, None),
        &body,
        "policy",
    );
    let seen = alice.seen().await;
    let read: Vec<_> = seen
        .iter()
        .filter(|line| line.contains("resources/read"))
        .collect();
    assert_eq!(read.len(), others.len(), "{read:?}");
    for (line, uri) in read.iter().zip(others) {
        assert!(line.contains(&format!("\"{uri}\"")), "{line}");
    }
}

/// json-27: what is not asked for by a name that a policy permits is asked of nobody: each method is an action of its
/// own, in the spelling that it has, and one that nobody has thought about is none.
#[tokio::test]
async fn each_method_is_permitted_by_its_own_name() {
    let permits = |actions: &str| format!("permit (principal, action in [{actions}], resource);");
    let basic = r#"Action::"initialize", Action::"tools/list", Action::"tools/call""#;
    let decided = [
        ("prompts/list", json!({})),
        ("prompts/get", json!({ "name": "p" })),
        ("resources/list", json!({})),
        ("resources/templates/list", json!({})),
        ("resources/read", json!({ "uri": "a:b" })),
        ("resources/subscribe", json!({ "uri": "a:b" })),
        ("resources/unsubscribe", json!({ "uri": "a:b" })),
        (
            "completion/complete",
            json!({ "ref": { "type": "ref/prompt", "name": "p" }, "argument": { "name": "a", "value": "" } }),
        ),
        ("logging/setLevel", json!({ "level": "info" })),
        ("tasks/list", json!({})),
        ("tasks/get", json!({ "taskId": "t" })),
        ("tasks/result", json!({ "taskId": "t" })),
        ("tasks/cancel", json!({ "taskId": "t" })),
    ];
    let body = |method: &str, params: &Value| {
        json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string()
    };
    let strict = house().policy(&permits(basic)).open().await;
    let alice = strict.session("alice").await;
    let denied = json!({ "jsonrpc": "2.0", "id": 1, "error": {
        "code": -32603, "message": "not permitted", "data": { "reason": "denied" },
    } });
    for (method, params) in &decided {
        let answer = alice.post(&body(method, params)).await;
        is_exactly(&strict, &answer, (403, None), &denied, "policy");
    }
    let unknown = json!({ "jsonrpc": "2.0", "id": 1, "error": {
        "code": -32601, "message": "not permitted", "data": { "reason": "method-unknown" },
    } });
    for method in [
        "tools/destroy",
        "Tools/Call",
        "tools/call ",
        "tools//call",
        "tools",
        "server/discover",
        "subscriptions/listen",
        "sampling/createMessage",
        "elicitation/create",
        "roots/list",
        "vendor/anything",
        "rpc.discover",
    ] {
        let answer = alice.post(&body(method, &json!({ "name": "echo" }))).await;
        is_exactly(&strict, &answer, (200, None), &unknown, "method-unknown");
    }
    for note in [
        "notifications/vendor",
        "notifications/message",
        "notifications/Initialized",
    ] {
        let text = json!({ "jsonrpc": "2.0", "method": note }).to_string();
        let answer = alice.post(&text).await;
        assert_eq!(
            (answer.status, answer.text()),
            (202, String::new()),
            "{note}"
        );
        let refused = ["THV_REASON=method-unknown", "THV_STATUS=202", note];
        assert!(strict.records.have(&refused), "{note}");
    }
    let seen = alice.seen().await;
    let strange = |line: &&String| !line.contains("\"seen\"") && !line.contains("\"initialize\"");
    assert_eq!(seen.iter().filter(strange).count(), 0, "{seen:?}");
    // Each beside its success: its own name, and no other's.
    for (method, params) in &decided {
        let open = house()
            .policy(&permits(&format!("{basic}, Action::\"{method}\"")))
            .open()
            .await;
        let alice = open.session("alice").await;
        let (other, given) = decided.iter().find(|(other, _)| other != method).unwrap();
        let answer = alice.post(&body(other, given)).await;
        assert_eq!(answer.status, 403, "{method} for {other}");
        assert_eq!(
            alice.post(&body(method, params)).await.status,
            200,
            "{method}"
        );
        let seen = alice.seen().await;
        let named = format!("\"{method}\"");
        assert!(
            seen.iter().any(|line| line.contains(&named)),
            "{method}: {seen:?}"
        );
    }
}
