//! What looks like a token or an identity, in other places than a token's own, and bytes
//! that no header may have.

use serde_json::json;

use crate::{
    backends,
    house::{House, initialize},
    identity::{caller, is_served, is_told, last_decision, metadata, recorded},
    refusals::{Forger, many_keys},
    wire::{self, Answer},
};

/// These bytes, with nothing mended on the way.
async fn sent(house: &House, authorization: &[u8]) -> Answer {
    let body = initialize("2025-11-25");
    let head = format!(
        "POST /mcp HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Accept: application/json, text/event-stream\r\nContent-Length: {}\r\nAuthorization: ",
        house.address,
        body.len()
    );
    let request = [head.as_bytes(), authorization, b"\r\n\r\n", body.as_bytes()].concat();
    wire::exchange(house.address, &request).await
}

/// No token was shown: where they come from is all that is said (RFC 6750 §3.1).
fn is_missing(house: &House, answer: &Answer) {
    let challenge = format!("Bearer {}", metadata(house));
    let said = ("a bearer token is required", "token-missing");
    is_told(
        house,
        answer,
        (401, Some(&challenge)),
        said,
        "token-missing",
    );
}

/// The header is no header with a token.
fn is_malformed(house: &House, answer: &Answer) {
    let challenge = format!(
        "Bearer error=\"invalid_request\", error_description=\"The Authorization header is malformed\", {}",
        metadata(house)
    );
    let said = ("the Authorization header is malformed", "token-malformed");
    is_told(
        house,
        answer,
        (400, Some(&challenge)),
        said,
        "token-malformed",
    );
}

/// tok-10: a form is no place for a token (RFC 6750 §2.2), whatever else is wrong with it.
#[tokio::test]
async fn a_token_in_a_form_is_none() {
    let house = many_keys().open().await;
    let good = Forger(&house).good();
    let host = house.address.to_string();
    for (kind, accept) in [
        ("application/x-www-form-urlencoded", "*/*"),
        ("application/x-www-form-urlencoded", "application/json"),
        ("application/json", "application/json, text/event-stream"),
    ] {
        let headers = [("Host", &*host), ("Content-Type", kind), ("Accept", accept)];
        let form = format!("access_token={good}");
        let request = wire::request("POST", "/mcp", &headers, &form);
        let answer = wire::exchange(house.address, &request).await;
        is_missing(&house, &answer);
        assert!(!answer.text().contains(&good));
    }
    // The control: in its own place it is good.
    is_served(&house, &good, "alice").await;
}

/// tok-14: control bytes are the parser's, which has no challenge; all others are no token's.
#[tokio::test]
async fn bytes_that_no_token_has_are_refused() {
    let house = many_keys().open().await;
    let good = Forger(&house).good();
    for control in ["\0", "\r", "\n", "\r\r\n", "\u{7f}", "\u{1}"] {
        for line in [
            format!("Bearer {good}{control}"),
            format!("Bearer {control}{good}"),
            format!("Bearer a{control}b"),
        ] {
            let answer = sent(&house, line.as_bytes()).await;
            assert_eq!(answer.status, 400, "{control:?}: {answer:?}");
            assert_eq!(answer.header("www-authenticate"), None, "{control:?}");
            assert_eq!(
                answer.json(),
                json!({ "jsonrpc": "2.0", "error": {
                    "code": -32603, "message": "a header is malformed or doubled", "data": { "reason": "bad-header" },
                } }),
                "{control:?}"
            );
            recorded(&house, "bad-header");
        }
    }
    for text in [&b"Bearer ab\xe9"[..], b"Bearer \xc3\xa9", b"Bearer \x80"] {
        is_malformed(&house, &sent(&house, text).await);
    }
    let line = format!("Bearer {good}\u{e9}");
    is_malformed(&house, &sent(&house, line.as_bytes()).await);
    let answer = sent(&house, format!("Bearer {good}").as_bytes()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// tok-18: the other ways of writing a signature down (RFC 7515 §7.2) are no header's.
#[tokio::test]
async fn a_token_in_json_is_malformed() {
    let house = many_keys().open().await;
    let good = Forger(&house).good();
    let [header, payload, signature]: [&str; 3] =
        good.split('.').collect::<Vec<_>>().try_into().unwrap();
    for token in [
        json!({ "protected": header, "payload": payload, "signature": signature }),
        json!({ "payload": payload, "signatures": [{ "protected": header, "signature": signature }] }),
        json!({}),
    ] {
        is_malformed(
            &house,
            &sent(&house, format!("Bearer {token}").as_bytes()).await,
        );
    }
}

/// Names in which proxies say who somebody is; none stands before this gateway.
const WHO: [(&str, &str); 12] = [
    ("X-User", "root"),
    ("X_User", "root"),
    ("x-USER", "root"),
    ("X-Remote-User", "root"),
    ("Remote-User", "root"),
    ("X-Forwarded-User", "root"),
    ("X_Forwarded_User", "root"),
    ("X-Forwarded-Email", "root@example.com"),
    ("X-Forwarded-Groups", "wheel"),
    ("X-Auth-Request-User", "root"),
    ("X-Auth-Request-Preferred-Username", "root"),
    ("X-Forwarded-For", "192.0.2.7"),
];

/// tok-16: who somebody is, the token says: what a client says besides makes no difference and goes no further.
#[tokio::test]
async fn a_client_that_says_who_it_is_says_nothing() {
    let house = backends::inside(&[]).open().await;
    let mut nobody = house.caller("alice");
    nobody.token = None;
    let request = nobody.bytes_with("POST", &WHO, &initialize("2025-11-25"));
    is_missing(&house, &wire::exchange(house.address, &request).await);

    let mut alice = caller(&house, house.token("alice"));
    let request = alice.bytes_with("POST", &WHO, &initialize("2025-11-25"));
    let answer = wire::exchange(house.address, &request).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    alice.session = answer.header("mcp-session-id").map(str::to_owned);
    let call = crate::house::call(1, "echo", json!({ "a": 1 }));
    let answer = wire::exchange(house.address, &alice.bytes_with("POST", &WHO, &call)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let last = last_decision(&house);
    assert!(last.contains("THV_SUBJECT=alice "), "{last}");
    assert!(!house.records.all().join("\n").contains("root"), "{last}");
    let seen = backends::seen(&alice).await;
    assert!(seen.len() > 1, "{seen:?}");
    for request in seen {
        let headers = request["headers"].as_object().unwrap();
        for name in headers.keys() {
            let plain = name.replace('_', "-").to_ascii_lowercase();
            let told = WHO
                .iter()
                .any(|(told, _)| told.replace('_', "-").eq_ignore_ascii_case(&plain));
            assert!(!told && plain != "authorization", "{name}: {headers:?}");
        }
    }
}
