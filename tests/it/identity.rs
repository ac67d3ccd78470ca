//! Tokens of every kind, through the whole gateway: for each fault the status, the
//! challenge, the body, the record, and that no child was started.

use std::sync::LazyLock;

use aws_lc_rs::{
    digest,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::{
    house::{Caller, House, Plan, house, initialize},
    wire::{self, Answer},
};

/// An ES256 key of our own: tokens and proofs of any shape.
pub(crate) struct Signer(EcdsaKeyPair);

pub(crate) static ISSUERS: LazyLock<Signer> = LazyLock::new(Signer::generate);
pub(crate) static CLIENTS: LazyLock<Signer> = LazyLock::new(Signer::generate);

impl Signer {
    pub(crate) fn generate() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    pub(crate) fn jwk(&self) -> Value {
        let (x, y) = self.0.public_key().as_ref()[1..].split_at(32);
        json!({ "kty": "EC", "crv": "P-256", "x": base64url(x), "y": base64url(y) })
    }

    /// An uncompressed point.
    pub(crate) fn public_key(&self) -> Vec<u8> {
        self.0.public_key().as_ref().to_vec()
    }

    /// As `cnf.jkt` names it (RFC 7638).
    pub(crate) fn thumbprint(&self) -> String {
        let jwk = self.jwk();
        let canonical = format!(
            r#"{{"crv":"P-256","kty":"EC","x":{},"y":{}}}"#,
            jwk["x"], jwk["y"]
        );
        base64url(digest::digest(&digest::SHA256, canonical.as_bytes()))
    }

    pub(crate) fn sign(&self, header: &Value, claims: &Value) -> String {
        self.sign_text(header.to_string(), claims.to_string())
    }

    /// A token of these very texts.
    pub(crate) fn sign_text(&self, header: impl AsRef<[u8]>, claims: impl AsRef<[u8]>) -> String {
        let signed = format!("{}.{}", base64url(header), base64url(claims));
        let signature = self
            .0
            .sign(&SystemRandom::new(), signed.as_bytes())
            .unwrap();
        format!("{signed}.{}", base64url(signature))
    }
}

pub(crate) fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub(crate) fn now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

/// A house whose issuer's keys are ours.
fn ours() -> Plan {
    house()
        .also("keys.json", json!({ "keys": [ISSUERS.jwk()] }).to_string())
        .issuer("jwks-file = \"/etc/thv/keys.json\"\n")
}

pub(crate) fn claims(house: &House) -> Value {
    json!({
        "iss": house.issuer(), "aud": house.resource(), "sub": "alice", "client_id": "editor",
        "iat": now(), "exp": now() + 300, "jti": "1", "scope": "base",
    })
}

fn header() -> Value {
    json!({ "typ": "at+jwt", "alg": "ES256" })
}

fn with(house: &House, change: impl FnOnce(&mut Value, &mut Value)) -> String {
    let (mut header, mut claims) = (header(), claims(house));
    change(&mut header, &mut claims);
    ISSUERS.sign(&header, &claims)
}

pub(crate) fn caller(house: &House, token: String) -> Caller {
    Caller {
        token: Some(token),
        ..house.caller("nobody")
    }
}

/// What clients are told of every token that is not good: nothing that helps them guess.
pub(crate) fn is_refused(house: &House, answer: &Answer, reason: &str) {
    is_refused_beside(house, answer, reason, 0);
}

/// The same where so many children were started before, for others or with another token.
pub(crate) fn is_refused_beside(house: &House, answer: &Answer, reason: &str, children: usize) {
    let challenge = format!(
        "Bearer error=\"invalid_token\", error_description=\"The token is not valid here\", {}",
        metadata(house)
    );
    let said = ("the token is not valid here", "token-invalid");
    is_answered(house, answer, (401, Some(&challenge)), said, reason);
    assert_eq!(house.children_started(), children, "{reason}");
    let last = last_decision(house);
    assert!(last.contains("THV_TOKEN="), "{last}");
}

/// Status, challenge and body are these and no others, the record says why, and nothing was started.
pub(crate) fn is_told(
    house: &House,
    answer: &Answer,
    status: (u16, Option<&str>),
    said: (&str, &str),
    reason: &str,
) {
    is_answered(house, answer, status, said, reason);
    assert_eq!(house.children_started(), 0, "{reason}");
}

fn is_answered(
    house: &House,
    answer: &Answer,
    status: (u16, Option<&str>),
    (message, word): (&str, &str),
    reason: &str,
) {
    let error = json!({ "code": -32603, "message": message, "data": { "reason": word } });
    let body = json!({ "jsonrpc": "2.0", "error": error });
    is_exactly(house, answer, status, &body, reason);
}

/// Status, challenge and body are these and no others, nobody may keep them, and the record says why.
pub(crate) fn is_exactly(
    house: &House,
    answer: &Answer,
    (status, challenge): (u16, Option<&str>),
    body: &Value,
    reason: &str,
) {
    assert_eq!(answer.status, status, "{reason}: {answer:?}");
    assert_eq!(answer.header("www-authenticate"), challenge, "{reason}");
    assert_eq!(answer.header("cache-control"), Some("no-store"), "{reason}");
    assert_eq!(answer.json(), *body, "{reason}");
    let last = last_decision(house);
    assert!(
        last.contains("THV_DECISION=deny ") && last.contains(&format!("THV_REASON={reason} ")),
        "{last}"
    );
}

/// Where a challenge says that tokens come from.
pub(crate) fn metadata(house: &House) -> String {
    format!(
        "resource_metadata=\"http://{}/.well-known/oauth-protected-resource/mcp\"",
        house.address
    )
}

/// The last decision has this reason, and nothing was started for it.
pub(crate) fn recorded(house: &House, reason: &str) {
    let last = last_decision(house);
    assert!(last.contains(&format!("THV_REASON={reason} ")), "{last}");
    assert_eq!(house.children_started(), 0);
}

/// The record of the last decision.
pub(crate) fn last_decision(house: &House) -> String {
    let mut records = house.records.all();
    let last = records
        .iter()
        .rposition(|record| record.contains("THV_EVENT=decision "));
    records.swap_remove(last.expect("nothing was decided"))
}

/// A good token opens a session, a call in it is answered, and the record says whose it was.
pub(crate) async fn is_served(house: &House, token: &str, subject: &str) -> Caller {
    let mut caller = caller(house, token.to_owned());
    let answer = caller.initialize().await;
    assert_eq!(answer.status, 200, "{answer:?}\n{}", last_decision(house));
    let answer = caller.call("echo", json!({ "for": subject })).await;
    assert_eq!(answer.said(), format!("{{\"for\": \"{subject}\"}}"));
    let last = last_decision(house);
    let who = format!("THV_SUBJECT={subject} THV_ISSUER={} ", house.issuer());
    assert!(
        last.contains("THV_DECISION=allow ") && last.contains(&who),
        "{last}"
    );
    caller
}

/// tok-23, tok-35, tok-42, tok-49, tok-60, tok-62, tok-67, tok-71, tok-75, tok-78: every fault of a token is one answer, and a reason of its own.
#[tokio::test]
async fn a_token_that_is_not_good_is_told_no_more_than_that() {
    let house = ours().open().await;
    let old = now() - 100;
    let cases = [
        ("token-malformed", "a.b.c".to_owned()),
        (
            "token-malformed",
            with(&house, |header, _| header["crit"] = json!(["x"])),
        ),
        (
            "token-malformed",
            with(&house, |header, _| header["jwk"] = ISSUERS.jwk()),
        ),
        (
            "token-algorithm",
            with(&house, |header, _| header["alg"] = json!("none")),
        ),
        (
            "token-type",
            with(&house, |header, _| header["typ"] = json!("JWT")),
        ),
        (
            "token-type",
            with(&house, |_, claims| claims["nonce"] = json!("n")),
        ),
        (
            "token-key-unknown",
            with(&house, |header, _| header["kid"] = json!("other")),
        ),
        ("token-signature", CLIENTS.sign(&header(), &claims(&house))),
        (
            "token-issuer",
            with(&house, |_, claims| {
                claims["iss"] = json!("https://evil.example")
            }),
        ),
        (
            "token-audience",
            with(&house, |_, claims| {
                claims["aud"] = json!("https://x.example")
            }),
        ),
        (
            "token-expired",
            with(&house, |_, claims| {
                claims["iat"] = json!(old - 300);
                claims["exp"] = json!(old);
            }),
        ),
        (
            "token-not-yet-valid",
            with(&house, |_, claims| claims["nbf"] = json!(now() + 200)),
        ),
        (
            "token-claim",
            with(&house, |_, claims| claims["exp"] = json!("soon")),
        ),
        (
            "token-claim",
            with(&house, |_, claims| claims["sub"] = json!("")),
        ),
        (
            "token-claim",
            with(&house, |_, claims| claims["cnf"] = json!({ "jkt": "x" })),
        ),
    ];
    for (reason, token) in cases {
        let answer = caller(&house, token).initialize().await;
        is_refused(&house, &answer, reason);
    }
    let good = with(&house, |_, _| {});
    assert_eq!(caller(&house, good).initialize().await.status, 200);
}

/// Whom of an issuer's callers a server lets in, each beside one who is not.
#[tokio::test]
async fn an_issuers_callers_are_let_in_by_client_subject_and_claims() {
    let house = ours()
        .issuer(
            "clients = [\"editor\"]\nsubjects = [\"al*\"]\nrevoked = [\"alistair\"]\n\
             single-audience = true\nmax-lifetime = \"10min\"\nrequired-claims = { tid = \"t1\" }\n",
        )
        .open()
        .await;
    let good = |change: fn(&mut Value)| {
        with(&house, |_, claims| {
            claims["tid"] = json!("t1");
            change(claims);
        })
    };
    type Change = fn(&mut Value);
    let cases: [(&str, Change); 6] = [
        ("token-client", |claims| {
            claims["client_id"] = json!("other")
        }),
        ("token-subject", |claims| claims["sub"] = json!("bob")),
        ("token-revoked", |claims| claims["sub"] = json!("alistair")),
        ("token-required-claim", |claims| claims["tid"] = json!("t2")),
        ("token-audience", |claims| {
            claims["aud"] = json!([claims["aud"], "https://other.example"]);
        }),
        ("token-claim", |claims| claims["exp"] = json!(now() + 700)),
    ];
    for (reason, change) in cases {
        let answer = caller(&house, good(change)).initialize().await;
        is_refused(&house, &answer, reason);
    }
    let answer = caller(&house, good(|_| {})).initialize().await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// tok-82, tok-84, tok-91: a token that was issued for less is told for what it must be, all of it at once.
#[tokio::test]
async fn a_token_that_lacks_a_scope_is_told_which() {
    let house = ours()
        .issuer("scopes = [\"base\"]\nimplied-scopes = { admin = [\"base\", \"tools:call\"] }\n")
        .policy(
            r#"@id("all") permit (principal, action, resource);
               @id("calls") forbid (principal, action == Action::"tools/call", resource == Tool::"echo")
               unless { principal.scopes.contains("tools:call") };
               @id("never") forbid (principal, action, resource == Tool::"crash");"#,
        )
        .open()
        .await;
    let metadata = metadata(&house);
    let scoped = |scope: &str| {
        let scope = scope.to_owned();
        caller(
            &house,
            with(&house, |_, claims| claims["scope"] = json!(scope)),
        )
    };
    // Who shows nothing is told what every call needs.
    let mut nobody = house.caller("alice");
    nobody.token = None;
    let answer = nobody.initialize().await;
    assert_eq!(answer.status, 401);
    assert_eq!(
        answer.header("www-authenticate").unwrap(),
        format!("Bearer {metadata}, scope=\"base\"")
    );
    for scope in ["", "other", "Base"] {
        let answer = scoped(scope).initialize().await;
        let challenge = format!(
            "Bearer error=\"insufficient_scope\", error_description=\"The token was issued for less\", \
             {metadata}, scope=\"base\""
        );
        let said = ("the token lacks a scope", "scope-insufficient");
        is_told(
            &house,
            &answer,
            (403, Some(&challenge)),
            said,
            "scope-insufficient",
        );
    }
    let mut alice = scoped("base");
    assert_eq!(alice.initialize().await.status, 200);
    let answer = alice.call("echo", json!({})).await;
    let challenge = format!(
        "Bearer error=\"insufficient_scope\", error_description=\"The token was issued for less\", \
         {metadata}, scope=\"base tools:call\""
    );
    let body = |message: &str, reason: &str| {
        json!({ "jsonrpc": "2.0", "id": 1, "error": {
            "code": -32603, "message": message, "data": { "reason": reason },
        } })
    };
    let lacks = body("the token lacks a scope", "scope-insufficient");
    is_exactly(
        &house,
        &answer,
        (403, Some(&challenge)),
        &lacks,
        "scope-insufficient",
    );
    // No scope would cure this one: no challenge sends anybody in circles.
    let answer = alice.call("crash", json!({})).await;
    is_exactly(
        &house,
        &answer,
        (403, None),
        &body("not permitted", "denied"),
        "policy",
    );
    assert_eq!(house.children_started(), 1);
    assert!(!alice.seen().await.iter().any(|line| line.contains("crash")));
    for scope in ["base tools:call", "admin"] {
        let mut stepped_up = scoped(scope);
        assert_eq!(stepped_up.initialize().await.status, 200);
        let answer = stepped_up.call("echo", json!({})).await;
        assert_eq!(answer.status, 200, "{scope}: {answer:?}");
    }
    // The metadata names what every call needs, and no catalogue.
    let request = wire::request(
        "GET",
        "/.well-known/oauth-protected-resource/mcp",
        &[("Host", &house.address.to_string())],
        "",
    );
    let document = wire::exchange(house.address, &request).await.json();
    assert_eq!(document["scopes_supported"], json!(["base"]));
}

/// tok-113, tok-114, tok-119: a bound token goes with a proof and a nonce, and is nothing without.
#[tokio::test]
async fn a_bound_token_is_shown_with_a_proof() {
    let house = ours().issuer("dpop = \"accepted\"\n").open().await;
    let token = with(&house, |_, claims| {
        claims["cnf"] = json!({ "jkt": CLIENTS.thumbprint() });
    });
    let proof = |id: &str, nonce: Option<&str>| {
        let mut claims = json!({
            "jti": id, "htm": "POST", "htu": house.resource(), "iat": now(),
            "ath": base64url(digest::digest(&digest::SHA256, token.as_bytes())),
        });
        if let Some(nonce) = nonce {
            claims["nonce"] = json!(nonce);
        }
        let header = json!({ "typ": "dpop+jwt", "alg": "ES256", "jwk": CLIENTS.jwk() });
        CLIENTS.sign(&header, &claims)
    };
    let show = async |proof: Option<&str>| {
        let (host, shown) = (house.address.to_string(), format!("DPoP {token}"));
        let mut headers = vec![
            ("Host", host.as_str()),
            ("Content-Type", "application/json"),
            ("Accept", "application/json, text/event-stream"),
            ("Authorization", shown.as_str()),
        ];
        headers.extend(proof.map(|proof| ("DPoP", proof)));
        let request = wire::request("POST", "/mcp", &headers, &initialize("2025-11-25"));
        wire::exchange(house.address, &request).await
    };
    let refused = |answer: &Answer, code: &str, reason: &str| {
        assert_eq!(answer.status, 401, "{answer:?}");
        let challenge = answer.header("www-authenticate").unwrap();
        assert!(
            challenge.contains(&format!("DPoP error=\"{code}\"")) && challenge.contains("algs="),
            "{challenge}"
        );
        recorded(&house, reason);
    };
    let algorithms = "algs=\"ES256 ES384 EdDSA Ed25519 PS256 PS384 PS512 RS256 RS384 RS512\"";
    let bearer = caller(&house, token.clone()).initialize().await;
    refused(&bearer, "invalid_token", "token-binding");
    refused(&show(None).await, "invalid_dpop_proof", "proof-invalid");
    refused(
        &show(Some("x")).await,
        "invalid_dpop_proof",
        "proof-invalid",
    );
    let told = show(Some(&proof("1", None))).await;
    let challenge = format!(
        "DPoP error=\"use_dpop_nonce\", error_description=\"The proof needs a nonce\", {}, {algorithms}",
        metadata(&house)
    );
    let said = ("the proof of possession needs a nonce", "proof-nonce");
    is_told(&house, &told, (401, Some(&challenge)), said, "proof-nonce");
    let old = show(Some(&proof("1", Some("an-old-one-or-made-up")))).await;
    is_told(&house, &old, (401, Some(&challenge)), said, "proof-nonce");
    assert_eq!(old.header("dpop-nonce"), told.header("dpop-nonce"));
    let nonce = told.header("dpop-nonce").unwrap();
    let good = proof("2", Some(nonce));
    assert_eq!(show(Some(&good)).await.status, 200);
    let again = show(Some(&good)).await;
    assert_eq!(again.status, 401, "a proof is shown once");
    // A token that is bound to nothing is still a bearer token here.
    let plain = with(&house, |_, _| {});
    assert_eq!(caller(&house, plain).initialize().await.status, 200);
}

/// Kubernetes: the service account of the configuration, and none beside it.
#[tokio::test]
async fn a_service_account_comes_in_and_another_does_not() {
    let house = ours()
        .issuer("kubernetes = { namespace = \"tools\", service-account = \"mcp-client\" }\n")
        .open()
        .await;
    let token = |namespace: &str, account: &str| {
        let header = json!({ "alg": "ES256" });
        let claims = json!({
            "iss": house.issuer(), "aud": [house.resource()], "iat": now(), "exp": now() + 600,
            "sub": format!("system:serviceaccount:{namespace}:{account}"),
            "kubernetes.io": {
                "namespace": namespace, "serviceaccount": { "name": account, "uid": "1" },
            },
        });
        ISSUERS.sign(&header, &claims)
    };
    for (namespace, account) in [("tools", "other"), ("other", "mcp-client")] {
        let answer = caller(&house, token(namespace, account)).initialize().await;
        is_refused(&house, &answer, "token-subject");
    }
    let mut good = caller(&house, token("tools", "mcp-client"));
    assert_eq!(good.initialize().await.status, 200);
    assert_eq!(good.call("echo", json!({})).await.status, 200);
}

/// `mode = "peer"`: the kernel says who connects, and a policy knows them by name and group.
#[tokio::test]
async fn a_local_user_needs_no_token_on_a_unix_socket() {
    let peer = |policy: &str| {
        let scripted = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/servers");
        house().policy(policy).file(&format!(
            "command = [\"/usr/bin/python3\", \"-u\", \"{scripted}/scripted.py\"]\n\
                 resource = \"http://{{address}}/mcp\"\nauth.mode = \"peer\"\n\
                 authz.policies = [\"/etc/thv/policies/it.cedar\"]\n\
                 [sandbox]\noptional = [\"cgroup\"]\nread-only = [\"{scripted}\"]\n"
        ))
    };
    let me = nix::unistd::User::from_uid(nix::unistd::geteuid())
        .unwrap()
        .unwrap()
        .name;
    let policy = |who: &str| {
        format!(
            r#"@id("me") permit (principal == User::"unix|{who}", action, resource)
               when {{ principal.groups.contains("{who}") }};"#
        )
    };
    let house = peer(&policy(&me)).on_unix_socket().open().await;
    let bytes = |body: &str| {
        let mut nobody = house.caller("x");
        nobody.token = None;
        nobody.bytes("POST", body)
    };
    let path = house.socket();
    let answer = wire::exchange_unix(&path, &bytes(&initialize("2025-11-25"))).await;
    assert_eq!(answer.status, 200, "{answer:?}\n{:#?}", house.records.all());
    let records = house.records.all().join("\n");
    assert!(
        records.contains(&format!("unix|{me}")) || records.contains(&me),
        "{records}"
    );

    let other = peer(&policy("somebody-else")).on_unix_socket().open().await;
    let mut nobody = other.caller("x");
    nobody.token = None;
    let request = nobody.bytes("POST", &initialize("2025-11-25"));
    let answer = wire::exchange_unix(&other.socket(), &request).await;
    assert_eq!(answer.status, 403, "{answer:?}");
    recorded(&other, "policy");

    // On any other socket nobody says who it is: the gateway serves nobody, and says why.
    let tcp = peer(&policy(&me)).open().await;
    let answer = tcp.caller("x").initialize().await;
    assert_eq!(answer.status, 503);
    let records = tcp.records.all().join("\n");
    assert!(records.contains("needs a Unix socket"), "{records}");
}
