//! Every numbered case of a token that is not good, through the whole gateway: for each
//! the status, the challenge, the body, the record, and that nothing was started for it.
//! What is decided from the claims of one issuer's table is in `identity`; what needs more
//! than a token, keys that can only be made up or an issuer that fails, has a file of its
//! own beside this one (`refusals_…`).

use std::sync::LazyLock;

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::{
    house::{House, Plan, house, initialize},
    identity::{
        CLIENTS, ISSUERS, Signer, base64url, caller, claims, is_refused, is_told, metadata, now,
    },
    signer::{self, compact},
    wire,
};

/// Another of the issuer's own keys.
static OTHERS: LazyLock<Signer> = LazyLock::new(Signer::generate);
static RSA: LazyLock<signer::Signer> = LazyLock::new(|| signer::Signer::new("rsa", "RS256"));

/// A house whose issuer publishes keys of many kinds.
pub(crate) fn many_keys() -> Plan {
    let named = |signer: &Signer, more: Value| {
        let mut jwk = signer.jwk();
        for (name, value) in more.as_object().unwrap() {
            jwk[name] = value.clone();
        }
        jwk
    };
    let keys = json!([
        named(&ISSUERS, json!({ "kid": "es", "alg": "ES256" })),
        named(&OTHERS, json!({ "kid": "other" })),
        named(&OTHERS, json!({ "kid": "enc", "use": "enc" })),
        named(&OTHERS, json!({ "kid": "ops", "key_ops": ["encrypt"] })),
        named(&OTHERS, json!({ "kid": "twice" })),
        named(&ISSUERS, json!({ "kid": "twice" })),
        json!({ "kty": "oct", "kid": "oct", "k": base64url(SECRET), "alg": "HS256" }),
        RSA.jwk(),
    ]);
    house()
        .also("keys.json", json!({ "keys": keys }).to_string())
        .issuer(
            "jwks-file = \"/etc/thv/keys.json\"\nalgorithms = [\"ES256\", \"RS256\", \"PS256\"]\n",
        )
}

/// Header lines.
pub(crate) type Lines<'a> = &'a [(&'a str, &'a str)];

const SECRET: &[u8] = b"a secret of thirty-two bytes, yes";

fn header() -> Value {
    json!({ "typ": "at+jwt", "alg": "ES256", "kid": "es" })
}

/// What makes bad tokens, each one change away from a good one.
pub(crate) struct Forger<'a>(pub(crate) &'a House);

impl Forger<'_> {
    pub(crate) fn good(&self) -> String {
        ISSUERS.sign(&header(), &claims(self.0))
    }

    pub(crate) fn header(&self, name: &str, value: Value) -> String {
        let mut header = header();
        header[name] = value;
        ISSUERS.sign(&header, &claims(self.0))
    }

    pub(crate) fn claim(&self, name: &str, value: Value) -> String {
        self.claims(&[(name, value)])
    }

    pub(crate) fn claims(&self, changes: &[(&str, Value)]) -> String {
        let mut claims = claims(self.0);
        for (name, value) in changes {
            claims[name] = value.clone();
        }
        ISSUERS.sign(&header(), &claims)
    }

    fn without(&self, name: &str) -> String {
        let (mut header, mut claims) = (header(), claims(self.0));
        header.as_object_mut().unwrap().remove(name);
        claims.as_object_mut().unwrap().remove(name);
        ISSUERS.sign(&header, &claims)
    }

    /// The payload as this text.
    fn payload(&self, text: impl AsRef<[u8]>) -> String {
        ISSUERS.sign_text(header().to_string(), text)
    }

    /// The payload with more before its last brace.
    fn with_more(&self, more: &str) -> String {
        let text = claims(self.0).to_string();
        self.payload(format!("{},{more}}}", &text[..text.len() - 1]))
    }

    /// Each of the three parts of a good token.
    fn parts(&self) -> [String; 3] {
        let token = self.good();
        let mut parts = token.split('.').map(str::to_owned);
        std::array::from_fn(|_| parts.next().unwrap())
    }

    /// A good token with this signature in place of its own.
    fn signature(&self, change: impl FnOnce(String) -> String) -> String {
        let [header, payload, signature] = self.parts();
        format!("{header}.{payload}.{}", change(signature))
    }

    fn symmetric(&self, alg: &str, secret: &[u8]) -> String {
        let mut header = header();
        (header["alg"], header["kid"]) = (json!(alg), json!("oct"));
        let signed = format!(
            "{}.{}",
            base64url(header.to_string()),
            base64url(claims(self.0).to_string())
        );
        let algorithm = match alg {
            "HS384" => hmac::HMAC_SHA384,
            "HS512" => hmac::HMAC_SHA512,
            _ => hmac::HMAC_SHA256,
        };
        let tag = hmac::sign(&hmac::Key::new(algorithm, secret), signed.as_bytes());
        format!("{signed}.{}", base64url(tag))
    }

    /// Really signed by the RSA key, under this name of an algorithm.
    fn rsa(&self, alg: &str, pss: bool) -> String {
        let header = json!({ "typ": "at+jwt", "alg": alg, "kid": "rsa" });
        let padding = if pss { "PS256" } else { "RS256" };
        compact(header.to_string(), claims(self.0).to_string(), |signed| {
            RSA.sign(padding, signed)
        })
    }
}

/// An ECDSA signature as two integers in DER (SEC 1 §C.5): right for X.509, wrong in a token.
fn der(signature: &str) -> Vec<u8> {
    let raw = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let integer = |bytes: &[u8]| {
        // A first bit that is set would make it negative.
        let mut body = if bytes[0] < 0x80 { Vec::new() } else { vec![0] };
        body.extend(bytes);
        [vec![2, u8::try_from(body.len()).unwrap()], body].concat()
    };
    let both = [integer(&raw[..32]), integer(&raw[32..])].concat();
    [vec![0x30, u8::try_from(both.len()).unwrap()], both].concat()
}

/// All of them are refused in the same words; then the good token comes in.
pub(crate) async fn all_are_refused(house: &House, cases: Vec<(&str, &str, String)>) {
    for (case, reason, token) in cases {
        let answer = caller(house, token.clone()).initialize().await;
        assert_eq!(answer.status, 401, "{case}: {token}: {answer:?}");
        is_refused(house, &answer, reason);
    }
    let good = caller(house, Forger(house).good()).initialize().await;
    assert_eq!(good.status, 200, "{good:?}");
}

/// tok-17, tok-19, tok-20, tok-21, tok-22, tok-23, tok-24, tok-25, tok-26: what has not the form of a token.
#[tokio::test]
async fn what_is_not_written_as_a_token_is_refused() {
    let house = many_keys().open().await;
    let forger = Forger(&house);
    let [header, payload, signature] = forger.parts();
    let form = "token-malformed";
    let text = claims(&house).to_string();
    let deep = format!("\"a\":{}{}", "[".repeat(17), "]".repeat(17));
    let many: Vec<_> = (0..128).map(|n| format!("\"c{n}\":1")).collect();
    // 64 bytes leave four bits over in the last of 86 characters.
    let spoilt = |mut signature: String| {
        let last = signature.pop().unwrap();
        signature.push(if last == 'A' {
            'B'
        } else {
            char::from(last as u8 + 1)
        });
        signature
    };
    // Good but for its spelling, which is that of plain base64 (RFC 4648 §4).
    let other_alphabet = |text: &str, ours: char, theirs: char| {
        let token = forger.claim("note", json!(text));
        let (rest, signature) = token.rsplit_once('.').unwrap();
        assert!(rest.contains(ours), "{rest}");
        let rest = rest.replace(ours, &theirs.to_string());
        format!("{rest}.{signature}")
    };
    let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let cases = vec![
        (
            "tok-17",
            form,
            format!("{header}.{payload}.{signature}.{signature}.{signature}"),
        ),
        ("tok-19", form, "opaque".to_owned()),
        ("tok-19", form, format!("{header}.{payload}")),
        (
            "tok-19",
            form,
            format!("{header}.{payload}.{signature}.{signature}"),
        ),
        ("tok-19", form, format!("{header}..{signature}")),
        ("tok-19", form, "..".to_owned()),
        ("tok-20", form, format!("{header}.{payload}.{signature}=")),
        ("tok-20", form, format!("{header}.{payload}+.{signature}")),
        ("tok-20", form, format!("{header}/.{payload}.{signature}")),
        ("tok-20", form, other_alphabet("??????", '_', '/')),
        ("tok-20", form, other_alphabet(">>>>>>", '-', '+')),
        ("tok-21", "token-signature", forger.signature(spoilt)),
        ("tok-22", form, forger.payload(format!("[{text}]"))),
        ("tok-22", form, forger.payload("\"a\"")),
        ("tok-22", form, forger.payload("1")),
        ("tok-22", form, forger.payload("")),
        ("tok-22", form, ISSUERS.sign_text("[]", &text)),
        ("tok-23", form, forger.payload(format!("{text}x"))),
        ("tok-23", form, forger.payload(format!("{text}{text}"))),
        ("tok-23", form, forger.payload(format!("\u{feff}{text}"))),
        ("tok-23", form, forger.payload(utf16)),
        ("tok-24", form, forger.with_more(r#""unread":"\ud83d""#)),
        (
            "tok-24",
            form,
            forger.payload([&text.as_bytes()[..text.len() - 1], b",\"a\":\"\xff\"}"].concat()),
        ),
        ("tok-25", form, forger.with_more(r#""sub":"bob""#)),
        ("tok-25", form, forger.with_more(r#""s\u0075b":"bob""#)),
        (
            "tok-25",
            form,
            forger.with_more(r#""deep":[{"a":1,"\u0061":2}]"#),
        ),
        (
            "tok-25",
            form,
            ISSUERS.sign_text(
                r#"{"alg":"ES256","kid":"es","typ":"at+jwt","alg":"ES256"}"#,
                &text,
            ),
        ),
        ("tok-26", form, forger.with_more(&deep)),
        ("tok-26", form, forger.with_more(&many.join(","))),
    ];
    all_are_refused(&house, cases).await;
}

/// tok-27, tok-28, tok-29, tok-30, tok-31, tok-32, tok-33, tok-34, tok-35, tok-36, tok-37, tok-39, tok-42: one algorithm a key, and its own signature.
#[tokio::test]
async fn what_is_not_signed_by_the_named_key_is_refused() {
    let house = many_keys().open().await;
    let forger = Forger(&house);
    let (algorithm, signature) = ("token-algorithm", "token-signature");
    let public = ISSUERS.public_key();
    let jwk_text = ISSUERS.jwk().to_string();
    let named = |kid: &str, signer: &Signer| {
        let mut header = header();
        header["kid"] = json!(kid);
        signer.sign(&header, &claims(&house))
    };
    let unsigned = |alg: &str| {
        let token = forger.header("alg", json!(alg));
        token[..=token.rfind('.').unwrap()].to_owned()
    };
    let pem = format!(
        "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
        base64url(&public)
    );
    let raw = |bytes: &[u8]| base64url(bytes);
    let order = [
        0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc,
        0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
    ];
    let flipped = |text: String| {
        let other = if text.starts_with('A') { "B" } else { "A" };
        format!("{other}{}", &text[1..])
    };
    let mut cases = vec![
        ("tok-32", algorithm, forger.rsa("PS256", true)),
        ("tok-39", signature, forger.rsa("RS256", true)),
        ("tok-35", signature, forger.signature(flipped)),
        (
            "tok-35",
            signature,
            forger.signature(|text| text[..text.len() - 4].to_owned()),
        ),
        (
            "tok-35",
            signature,
            forger.signature(|text| format!("{text}AAAA")),
        ),
        ("tok-35", signature, forger.signature(|_| String::new())),
        ("tok-35", signature, forger.signature(|_| raw(&[0; 64]))),
        (
            "tok-36",
            signature,
            forger.signature(|_| raw(&[order, order].concat())),
        ),
        (
            "tok-36",
            signature,
            forger.signature(|_| raw(&[[0; 32], order].concat())),
        ),
        (
            "tok-37",
            signature,
            forger.signature(|text| raw(&der(&text))),
        ),
        ("tok-42", signature, named("es", &OTHERS)),
        ("tok-42", signature, named("es", &CLIENTS)),
        ("tok-42", signature, named("other", &ISSUERS)),
    ];
    for alg in ["none", "None", "NONE", "nOnE"] {
        cases.push(("tok-27", algorithm, unsigned(alg)));
    }
    for alg in [
        json!(null),
        json!(7),
        json!(["ES256"]),
        json!("es256"),
        json!(" ES256"),
        json!(""),
    ] {
        cases.push(("tok-28", algorithm, forger.header("alg", alg)));
    }
    cases.push(("tok-28", algorithm, forger.without("alg")));
    for (alg, secret) in [
        ("HS256", &public[..]),
        ("HS384", pem.as_bytes()),
        ("HS512", jwk_text.as_bytes()),
    ] {
        cases.push(("tok-29", algorithm, forger.symmetric(alg, secret)));
    }
    for secret in [&b""[..], b"secret", SECRET] {
        cases.push(("tok-30", algorithm, forger.symmetric("HS256", secret)));
    }
    for alg in ["ES384", "RS384", "EdDSA"] {
        cases.push(("tok-31", algorithm, forger.header("alg", json!(alg))));
    }
    for alg in ["ES256K", "ES521", "ES224", "RS256"] {
        cases.push(("tok-33", algorithm, forger.header("alg", json!(alg))));
    }
    for alg in ["Ed25519", "Ed448"] {
        cases.push(("tok-34", algorithm, forger.header("alg", json!(alg))));
    }
    all_are_refused(&house, cases).await;
    let rsa = caller(&house, forger.rsa("RS256", false))
        .initialize()
        .await;
    assert_eq!(rsa.status, 200, "{rsa:?}");
}

/// tok-43, tok-44, tok-45, tok-46, tok-47, tok-48, tok-49, tok-51, tok-52, tok-53, tok-54, tok-55, tok-56, tok-58, tok-59: what a header may not say.
#[tokio::test]
async fn a_header_that_says_more_than_it_may_is_refused() {
    let house = many_keys().open().await;
    let forger = Forger(&house);
    // Nobody is ever asked for what a token points at.
    let trap = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    trap.set_nonblocking(true).unwrap();
    let trapped = format!("http://{}/keys", trap.local_addr().unwrap());
    let (form, kind, unknown) = ("token-malformed", "token-type", "token-key-unknown");
    let mut cases = vec![
        ("tok-44", form, forger.header("b64", json!(false))),
        ("tok-45", form, forger.header("jwk", ISSUERS.jwk())),
        ("tok-47", form, forger.header("x5c", json!(["AAAA"]))),
        ("tok-48", form, forger.header("zip", json!("DEF"))),
        ("tok-49", kind, forger.header("typ", json!("JWT"))),
        ("tok-49", kind, forger.without("typ")),
        ("tok-52", form, forger.header("cty", json!("JWT"))),
        ("tok-55", unknown, forger.without("kid")),
        ("tok-59", unknown, {
            let mut header = header();
            header["kid"] = json!("oct");
            ISSUERS.sign(&header, &claims(&house))
        }),
    ];
    for crit in [
        json!(["exp"]),
        json!(["b64"]),
        json!([]),
        json!("b64"),
        json!(["absent"]),
        json!(["a", "a"]),
    ] {
        cases.push(("tok-43", form, forger.header("crit", crit)));
    }
    for name in ["jku", "x5u"] {
        for address in [
            trapped.as_str(),
            "http://169.254.169.254/latest",
            "file:///etc/passwd",
        ] {
            cases.push(("tok-46", form, forger.header(name, json!(address))));
        }
    }
    for typ in [
        "dpop+jwt",
        "logout+jwt",
        "secevent+jwt",
        "oauth-authz-req+jwt",
        "entity-statement+jwt",
    ] {
        cases.push(("tok-51", kind, forger.header("typ", json!(typ))));
    }
    for kid in [
        "../../dev/null",
        "/dev/null",
        "|sleep 10",
        "' UNION SELECT '1",
        "a\r\nX: y",
        "\0",
        "🔑",
    ] {
        cases.push(("tok-53", unknown, forger.header("kid", json!(kid))));
    }
    for kid in [json!(1), json!(["es"]), json!(null), json!("")] {
        cases.push(("tok-54", unknown, forger.header("kid", kid)));
    }
    for (case, kid) in [("tok-56", "enc"), ("tok-56", "ops"), ("tok-58", "twice")] {
        let mut header = header();
        header["kid"] = json!(kid);
        cases.push((case, unknown, OTHERS.sign(&header, &claims(&house))));
    }
    all_are_refused(&house, cases).await;
    assert!(trap.accept().is_err(), "somebody asked");
    for (name, value) in [
        ("typ", "AT+JWT"),
        ("typ", "application/at+jwt"),
        ("x5t", "AAAA"),
    ] {
        let answer = caller(&house, forger.header(name, json!(value)))
            .initialize()
            .await;
        assert_eq!(answer.status, 200, "tok-46, tok-50: {answer:?}");
    }
}

/// tok-46: an issuer's habit of saying where its keys are may be overlooked; it leads nowhere even then.
#[tokio::test]
async fn a_key_url_that_is_ignored_is_not_followed() {
    let house = many_keys().issuer("key-urls = \"ignored\"\n").open().await;
    let trap = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    trap.set_nonblocking(true).unwrap();
    let trapped = format!("http://{}/keys", trap.local_addr().unwrap());
    let mut header = header();
    (header["jku"], header["x5u"]) = (json!(trapped), json!(trapped));
    let signature = "token-signature";
    let forged = OTHERS.sign(&header, &claims(&house));
    header["kid"] = json!("nobodys");
    let unknown = OTHERS.sign(&header, &claims(&house));
    let forger = Forger(&house);
    let cases = vec![
        ("another's", signature, forged),
        ("unknown", "token-key-unknown", unknown),
        (
            "jwk",
            "token-malformed",
            forger.header("jwk", ISSUERS.jwk()),
        ),
    ];
    all_are_refused(&house, cases).await;
    for name in ["jku", "x5u"] {
        let token = forger.header(name, json!(trapped));
        assert_eq!(
            caller(&house, token).initialize().await.status,
            200,
            "{name}"
        );
    }
    assert!(trap.accept().is_err(), "somebody asked");
}

/// tok-60, tok-61, tok-62, tok-64, tok-65, tok-66, tok-67, tok-68: what is not now.
#[tokio::test]
async fn a_token_of_another_time_is_refused() {
    let house = many_keys().open().await;
    let forger = Forger(&house);
    let (wrong, old, early) = ("token-claim", "token-expired", "token-not-yet-valid");
    let now = now();
    let mut cases = vec![
        (
            "tok-60",
            old,
            forger.claims(&[("exp", json!(now - 31)), ("iat", json!(now - 300))]),
        ),
        ("tok-61", wrong, forger.without("exp")),
        (
            "tok-66",
            wrong,
            forger.claim("exp", json!((now + 300) * 1000)),
        ),
        ("tok-67", early, forger.claim("nbf", json!(now + 60))),
        ("tok-67", wrong, forger.claim("nbf", json!("0"))),
        ("tok-67", wrong, forger.claim("nbf", json!(-1))),
        (
            "tok-67",
            wrong,
            forger.claims(&[("nbf", json!(now + 20)), ("exp", json!(now + 10))]),
        ),
        (
            "tok-68",
            early,
            forger.claims(&[("iat", json!(now + 60)), ("exp", json!(now + 90))]),
        ),
        ("tok-68", wrong, forger.without("iat")),
        (
            "tok-68",
            wrong,
            forger.claims(&[("iat", json!(now + 20)), ("exp", json!(now + 10))]),
        ),
    ];
    for exp in [
        json!("soon"),
        json!((now + 300).to_string()),
        json!(true),
        json!(null),
        json!([now + 300]),
        json!({}),
    ] {
        cases.push(("tok-62", wrong, forger.claim("exp", exp)));
    }
    cases.push(("tok-64", wrong, forger.claim("exp", json!(-1))));
    cases.push((
        "tok-64",
        old,
        forger.claims(&[("exp", json!(0)), ("iat", json!(0))]),
    ));
    let text = claims(&house).to_string();
    for exp in [
        "1e99",
        "9223372036854775808",
        "18446744073709551615",
        "18446744073709551616",
        "1E400",
    ] {
        let text = text.replace(
            &format!("\"exp\":{}", claims(&house)["exp"]),
            &format!("\"exp\":{exp}"),
        );
        assert!(text.contains(exp), "{text}");
        cases.push(("tok-65", wrong, forger.payload(text)));
    }
    all_are_refused(&house, cases).await;
    // tok-60, tok-63: within the leeway, and with a fraction.
    let late = forger.claims(&[("exp", json!(now - 20)), ("iat", json!(now - 300))]);
    let fraction = forger.claim("exp", json!(now as f64 + 300.9));
    for token in [late, fraction] {
        let answer = caller(&house, token).initialize().await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

/// tok-71, tok-72, tok-73, tok-74, tok-75, tok-76, tok-78, tok-83, tok-86, tok-88, tok-90: whose it is, and for whom.
#[tokio::test]
async fn a_token_of_others_or_for_others_is_refused() {
    let house = many_keys().open().await;
    let forger = Forger(&house);
    let (issuer, audience, wrong) = ("token-issuer", "token-audience", "token-claim");
    let (us, resource) = (house.issuer().to_owned(), house.resource());
    let mut cases = vec![
        ("tok-71", issuer, forger.without("iss")),
        ("tok-73", audience, forger.without("aud")),
        ("tok-76", audience, forger.claim("aud", json!("editor"))),
        ("tok-78", wrong, forger.without("sub")),
        (
            "tok-86",
            wrong,
            forger.claim("groups", json!(vec!["g"; 1025])),
        ),
        (
            "tok-86",
            wrong,
            forger.claim(
                "groups",
                json!([{ "__entity": { "type": "User", "id": "root" } }]),
            ),
        ),
        ("tok-88", wrong, forger.claim("jti", json!("j".repeat(256)))),
    ];
    for iss in [
        json!("https://evil.example"),
        json!(7),
        json!([us, "https://evil.example"]),
        json!(null),
    ] {
        cases.push(("tok-71", issuer, forger.claim("iss", iss)));
    }
    for iss in [
        format!("{us}/"),
        us.to_uppercase(),
        us.replace("http:", "https:"),
        us.replace("127", "%3127"),
    ] {
        cases.push(("tok-72", issuer, forger.claim("iss", json!(iss))));
    }
    for aud in [json!(null), json!({}), json!(7), json!([])] {
        cases.push(("tok-73", audience, forger.claim("aud", aud)));
    }
    cases.push((
        "tok-74",
        audience,
        forger.claim("aud", json!([1, resource])),
    ));
    let host = resource.trim_end_matches("/mcp").to_owned();
    for aud in [
        format!("{resource}/x"),
        resource[1..].to_owned(),
        resource.to_uppercase(),
        host,
        format!("{resource}#a"),
    ] {
        cases.push(("tok-75", audience, forger.claim("aud", json!(aud))));
    }
    for sub in [
        json!(""),
        json!(7),
        json!("s".repeat(256)),
        json!("a\nb"),
        json!("a\u{7f}"),
    ] {
        cases.push(("tok-78", wrong, forger.claim("sub", sub)));
    }
    for scope in [
        json!(["base"]),
        json!(7),
        json!("a a"),
        json!("a  b"),
        json!("ä"),
    ] {
        cases.push(("tok-83", wrong, forger.claim("scope", scope)));
    }
    for marker in ["nonce", "at_hash", "c_hash"] {
        cases.push(("tok-90", "token-type", forger.claim(marker, json!("x"))));
    }
    all_are_refused(&house, cases).await;
    // tok-74, tok-75, tok-87, tok-88: among others, with one slash, on somebody's behalf, and again.
    for token in [
        forger.claim("aud", json!([resource, "https://other.example"])),
        forger.claim("aud", json!(format!("{resource}/"))),
        forger.claim("act", json!({ "sub": "root" })),
        forger.good(),
        forger.good(),
    ] {
        let answer = caller(&house, token).initialize().await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

/// tok-1, tok-2, tok-3, tok-4, tok-5, tok-6, tok-7, tok-8, tok-9, tok-11, tok-12, tok-13: how a token is shown.
#[tokio::test]
async fn a_token_that_is_shown_wrongly_is_told_how_or_nothing() {
    let house = many_keys().open().await;
    let good = Forger(&house).good();
    let metadata = metadata(&house);
    let host = house.address.to_string();
    let ask = async |target: &str, shown: &[(&str, &str)]| {
        let mut headers = vec![
            ("Host", host.as_str()),
            ("Content-Type", "application/json"),
            ("Accept", "application/json, text/event-stream"),
        ];
        headers.extend(shown);
        let request = wire::request("POST", target, &headers, &initialize("2025-11-25"));
        wire::exchange(house.address, &request).await
    };
    let bearer = format!("Bearer {good}");
    let long = format!("Bearer {}", "a".repeat((16 << 10) + 1));
    let query = format!("/mcp?access_token={good}");
    let cookie = format!("token={good}");
    fn authorization(value: &str) -> [(&str, &str); 1] {
        [("Authorization", value)]
    }

    // Nothing that is read as a token: nothing is said about one (RFC 6750 §3.1).
    let nothing: [(&str, &str, Lines<'_>); 5] = [
        ("tok-1", "/mcp", &[]),
        ("tok-2", "/mcp", &authorization("Basic YTpi")),
        ("tok-2", "/mcp", &authorization("Token abc")),
        ("tok-8", &query, &[]),
        (
            "tok-11",
            "/mcp",
            &[
                ("Cookie", &cookie),
                ("X-Forwarded-Access-Token", &good),
                ("X-Auth-Request-Access-Token", &good),
            ],
        ),
    ];
    for (case, target, shown) in nothing {
        let answer = ask(target, shown).await;
        assert_eq!(answer.status, 401, "{case}: {answer:?}");
        let challenge = format!("Bearer {metadata}");
        let said = ("a bearer token is required", "token-missing");
        is_told(
            &house,
            &answer,
            (401, Some(&challenge)),
            said,
            "token-missing",
        );
    }
    let twice = format!("{bearer}, {bearer}");
    let malformed: [(&str, &str, Lines<'_>); 10] = [
        ("tok-3", "/mcp", &authorization("Bearer")),
        ("tok-4", "/mcp", &authorization("Bearer a b")),
        ("tok-4", "/mcp", &authorization("Bearer {a}")),
        ("tok-4", "/mcp", &authorization("Bearer \"a\"")),
        ("tok-4", "/mcp", &authorization("Bearer a%20b")),
        (
            "tok-6",
            "/mcp",
            &[("Authorization", &bearer), ("Authorization", &bearer)],
        ),
        ("tok-7", "/mcp", &authorization(&twice)),
        ("tok-9", &query, &authorization(&bearer)),
        ("tok-12", "/mcp", &authorization("Bearer\tabc")),
        ("tok-13", "/mcp", &authorization(&long)),
    ];
    for (case, target, shown) in malformed {
        let answer = ask(target, shown).await;
        assert_eq!(answer.status, 400, "{case}: {answer:?}");
        let challenge = format!(
            "Bearer error=\"invalid_request\", error_description=\"The Authorization header is malformed\", \
             {metadata}"
        );
        let reason = match case {
            "tok-6" | "tok-9" => "token-ambiguous",
            _ => "token-malformed",
        };
        let said = ("the Authorization header is malformed", reason);
        is_told(&house, &answer, (400, Some(&challenge)), said, reason);
    }
    for scheme in ["bearer", "BEARER"] {
        let shown = format!("{scheme} {good}");
        let answer = ask("/mcp", &authorization(&shown)).await;
        assert_eq!(answer.status, 200, "tok-5: {answer:?}");
    }
}
