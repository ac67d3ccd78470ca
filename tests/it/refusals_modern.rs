//! Modern requests whose headers do not say what their body says (mcp-T8, mcp-T12 … T15):
//! others on the way may have decided by one of the two.

use serde_json::{Value, json};

use crate::{
    house::{House, house},
    identity::{is_exactly, last_decision},
    modern::body,
    refusals::Lines,
    wire::{self, Answer},
};

const VERSION: (&str, &str) = ("MCP-Protocol-Version", "2026-07-28");
const METHOD: (&str, &str) = ("Mcp-Method", "tools/call");

async fn sent(house: &House, headers: &[(&str, &str)], body: &str) -> Answer {
    let request = house.caller("alice").bytes_with("POST", headers, body);
    wire::exchange(house.address, &request).await
}

/// Told with its own id what differs, recorded, and nothing started.
fn is_mismatch(house: &House, answer: &Answer, what: &str, case: &str) {
    let error = json!({
        "code": -32020, "message": format!("header and body differ: {what}"),
        "data": { "reason": "header-mismatch" },
    });
    let body = json!({ "jsonrpc": "2.0", "id": 1, "error": error });
    is_exactly(house, answer, (400, None), &body, "header-mismatch");
    let last = last_decision(house);
    assert!(last.contains("THV_SUBJECT=alice "), "{case}: {last}");
    assert_eq!(house.children_started(), 0, "{case}");
}

fn tool(name: &str) -> String {
    body(
        1,
        "tools/call",
        json!({ "name": name, "arguments": {} }),
        json!({}),
    )
}

/// tok-123: version, method and name are told twice and alike; names of headers have no case, and values have.
#[tokio::test]
async fn what_headers_say_is_what_the_body_says() {
    let house = house().argument("--modern").open().await;
    let echo = ("Mcp-Name", "echo");
    let call = tool("echo");
    let old = call.replace("2026-07-28", "2025-11-25");
    let cases: [(&str, Lines<'_>, &str, &str); 11] = [
        (
            "no version",
            &[METHOD, echo],
            &call,
            "MCP-Protocol-Version is missing",
        ),
        (
            "an older body",
            &[VERSION, METHOD, echo],
            &old,
            "MCP-Protocol-Version",
        ),
        (
            "an older header",
            &[("MCP-Protocol-Version", "2025-11-25"), METHOD, echo],
            &call,
            "MCP-Protocol-Version",
        ),
        (
            "no method",
            &[VERSION, echo],
            &call,
            "Mcp-Method is missing",
        ),
        (
            "another method",
            &[VERSION, ("Mcp-Method", "tools/list"), echo],
            &call,
            "Mcp-Method",
        ),
        (
            "its case",
            &[VERSION, ("Mcp-Method", "Tools/Call"), echo],
            &call,
            "Mcp-Method",
        ),
        (
            "an empty method",
            &[VERSION, ("Mcp-Method", ""), echo],
            &call,
            "Mcp-Method",
        ),
        ("no name", &[VERSION, METHOD], &call, "Mcp-Name is missing"),
        (
            "another name",
            &[VERSION, METHOD, ("Mcp-Name", "secret")],
            &call,
            "Mcp-Name",
        ),
        (
            "its case",
            &[VERSION, METHOD, ("Mcp-Name", "Echo")],
            &call,
            "Mcp-Name",
        ),
        (
            "an empty name",
            &[VERSION, METHOD, ("Mcp-Name", "")],
            &call,
            "Mcp-Name",
        ),
    ];
    for (case, headers, body, what) in cases {
        is_mismatch(&house, &sent(&house, headers, body).await, what, case);
    }
    // Encoded (mcp-T14): canonical, in lower case, and whatever looks encoded is read so.
    let not_well = "Mcp-Name is not well encoded";
    for (name, told, what) in [
        ("a", "=?BASE64?YQ==?=", "Mcp-Name"),
        ("a", "=?Base64?YQ==?=", "Mcp-Name"),
        ("a", "=?base64?YQ==", "Mcp-Name"),
        ("a", "?base64?YQ==?=", "Mcp-Name"),
        ("a", "=?base64?YQ?=", not_well),
        ("a", "=?base64?YQ=?=", not_well),
        ("a", "=?base64?YR==?=", not_well),
        ("a", "=?base64?Y Q==?=", not_well),
        ("a", "=?base64??=", "Mcp-Name"),
        ("\u{fb}", "=?base64?w7s?=", not_well),
        ("??>", "=?base64?Pz8-?=", not_well),
        ("a", "=?base64?/w==?=", not_well),
        ("=?base64?YQ==?=", "=?base64?YQ==?=", "Mcp-Name"),
        ("=?base64?x", "=?base64?x?=", not_well),
    ] {
        let answer = sent(&house, &[VERSION, METHOD, ("Mcp-Name", told)], &tool(name)).await;
        is_mismatch(&house, &answer, what, told);
    }

    for headers in [
        [VERSION, METHOD, echo],
        [
            ("mcp-protocol-version", "2026-07-28"),
            ("MCP-METHOD", "tools/call"),
            ("mcp-NAME", "=?base64?ZWNobw==?="),
        ],
    ] {
        let answer = sent(&house, &headers, &call).await;
        assert_eq!(answer.said(), "{}", "{answer:?}");
        let last = last_decision(&house);
        assert!(
            last.contains("THV_DECISION=allow ")
                && last.contains("THV_SUBJECT=alice ")
                && last.contains("THV_TOOL=echo"),
            "{last}"
        );
    }
    // A name that looks encoded goes encoded, and reaches the server as it is, if any name may.
    let house = crate::house::house()
        .argument("--modern")
        .top("any-tool-name = true\n")
        .open()
        .await;
    let looks = "=?base64?PT9iYXNlNjQ/WVE9PT89?=";
    let answer = sent(
        &house,
        &[VERSION, METHOD, ("Mcp-Name", looks)],
        &tool("=?base64?YQ==?="),
    )
    .await;
    assert_eq!(
        answer.json()["error"]["message"],
        "unknown tool",
        "{answer:?}"
    );
}

/// tok-124: a header that comes twice says two things, even if they are one.
#[tokio::test]
async fn a_header_that_comes_twice_is_refused() {
    let house = house().argument("--modern").open().await;
    let call = tool("echo");
    let twice = "a header comes twice";
    for (first, second) in [("echo", "echo"), ("echo", "secret"), ("secret", "echo")] {
        let headers = [VERSION, METHOD, ("Mcp-Name", first), ("mcp-name", second)];
        is_mismatch(&house, &sent(&house, &headers, &call).await, twice, second);
    }
    let headers = [VERSION, METHOD, METHOD, ("Mcp-Name", "echo")];
    is_mismatch(
        &house,
        &sent(&house, &headers, &call).await,
        twice,
        "method",
    );
    // A list on one line is one value, and no such name.
    let headers = [VERSION, METHOD, ("Mcp-Name", "echo, echo")];
    is_mismatch(
        &house,
        &sent(&house, &headers, &call).await,
        "Mcp-Name",
        "a list",
    );
    let answer = sent(&house, &[VERSION, METHOD, ("Mcp-Name", "echo")], &call).await;
    assert_eq!(answer.said(), "{}", "{answer:?}");
}

/// tok-121, tok-122, tok-125, tok-126, tok-132: told by number what is wrong with it, and nothing is started.
#[tokio::test]
async fn what_is_no_modern_request_is_told_what_it_lacks() {
    let house = house().argument("--modern").open().await;
    let echo = ("Mcp-Name", "echo");
    let call = tool("echo");
    let is_wrong = async |headers: Lines<'_>, body: &str, status: u16, error, reason: &str| {
        let answer = sent(&house, headers, body).await;
        let body = json!({ "jsonrpc": "2.0", "id": 1, "error": error });
        is_exactly(&house, &answer, (status, None), &body, reason);
        assert_eq!(house.children_started(), 0, "{reason}");
    };
    let future = call.replace("2026-07-28", "2099-01-01");
    is_wrong(
        &[("MCP-Protocol-Version", "2099-01-01"), METHOD, echo],
        &future,
        400,
        json!({
            "code": -32022, "message": "this protocol version is not supported",
            "data": { "supported": ["2026-07-28"], "requested": "2099-01-01" },
        }),
        "version-unsupported",
    )
    .await;
    let lacks = |message: &str| {
        let message = format!("wrong parameters: {message}");
        json!({ "code": -32602, "message": message, "data": { "reason": "bad-parameters" } })
    };
    let without = |name: &str| {
        let mut call: Value = serde_json::from_str(&call).unwrap();
        let meta = call["params"]["_meta"].as_object_mut().unwrap();
        meta.remove(name).unwrap();
        call.to_string()
    };
    is_wrong(
        &[VERSION, METHOD, echo],
        &without("io.modelcontextprotocol/protocolVersion"),
        400,
        lacks("_meta names no protocol version"),
        "bad-parameters",
    )
    .await;
    is_wrong(
        &[VERSION, METHOD, echo],
        &without("io.modelcontextprotocol/clientCapabilities"),
        400,
        lacks("_meta names no client capabilities"),
        "bad-parameters",
    )
    .await;
    for method in ["tools/destroy", "ping", "initialize", "resources/subscribe"] {
        is_wrong(
            &[VERSION, ("Mcp-Method", method)],
            &body(1, method, json!({}), json!({})),
            404,
            json!({ "code": -32601, "message": "method not found", "data": { "reason": "method-unknown" } }),
            "method-unknown",
        )
        .await;
    }
    // What answers a question has the id of that, and none that could be told.
    let answer = sent(
        &house,
        &[VERSION],
        r#"{"jsonrpc":"2.0","id":1,"result":{}}"#,
    )
    .await;
    let error = json!({
        "code": -32600,
        "message": "not a JSON-RPC message: responses are no part of this protocol version",
        "data": { "reason": "not-json-rpc" },
    });
    let body = json!({ "jsonrpc": "2.0", "error": error });
    is_exactly(&house, &answer, (400, None), &body, "not-json-rpc");
    assert_eq!(house.children_started(), 0);
}
