//! A compact JWS, read strictly (RFC 7515 §7.1, RFC 8725).
//!
//! Reads only: nothing here says that a token is good. No key is ever taken
//! from a token, and no address in one is ever fetched.

use std::borrow::Cow;

use base64::{
    Engine as _, alphabet,
    engine::{
        DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::URL_SAFE_NO_PAD,
    },
};

use super::{AuthError, Fault, jwk::Algorithm};
use crate::json::{self, Document, Kind, Value};

/// A token taken apart; nothing of it has been verified.
pub(super) struct Unverified<'a> {
    pub(super) header: Header,
    pub(super) claims: Claims,
    /// What the signature is over: header and payload as they were sent.
    pub(super) signed: &'a [u8],
    /// Base64url.
    pub(super) signature: &'a str,
}

/// The header parameters that matter.
pub(super) struct Header {
    pub(super) algorithm: Algorithm,
    pub(super) kid: Option<String>,
    /// `typ`, lower case, without `application/` (RFC 7515 §4.1.9).
    pub(super) typ: Option<String>,
    /// Whether it says where a key would be (`jku`, `x5u`). Nobody ever looks there.
    pub(super) points_elsewhere: bool,
}

/// The payload: a JSON object without doubled members.
pub(super) struct Claims {
    text: Vec<u8>,
    document: Document,
}

impl Claims {
    /// One JSON object with the members of a token.
    pub(super) fn read(text: &[u8]) -> Result<Self, AuthError> {
        if text.len() > MAX_PART {
            return Err(AuthError::Rejected(Fault::Form));
        }
        object(text.to_vec())?.bounded()
    }

    fn bounded(self) -> Result<Self, AuthError> {
        if self.document.root(&self.text).member_count() > MAX_CLAIMS {
            Err(AuthError::Rejected(Fault::Form))
        } else {
            Ok(self)
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<Value<'_>> {
        self.document.root(&self.text).get(name)
    }

    /// A claim that is a string of at most `longest` bytes, where it is there at all.
    pub(super) fn text(
        &self,
        name: &str,
        longest: usize,
    ) -> Result<Option<Cow<'_, str>>, AuthError> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => match value.as_str() {
                Some(text) if text.len() <= longest => Ok(Some(text)),
                _ => Err(AuthError::Rejected(Fault::Claim)),
            },
        }
    }

    /// A NumericDate in whole seconds; absent is none, anything but a number from zero on is refused (inc-21).
    pub(super) fn seconds(&self, name: &str) -> Result<Option<u64>, AuthError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let number = value.as_number().and_then(|text| text.parse::<f64>().ok());
        match number {
            // Up to here a double is exact; floor, not round (tok-63). Zero is some providers' "always" in `nbf`.
            Some(seconds) if (0.0..MAX_SECONDS).contains(&seconds) =>
            {
                #[allow(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "bounded just above"
                )]
                Ok(Some(seconds as u64))
            }
            _ => Err(AuthError::Rejected(Fault::Claim)),
        }
    }
}

/// Takes a token apart.
pub(super) fn read(token: &str) -> Result<Unverified<'_>, AuthError> {
    let Signed {
        header,
        payload,
        signed,
        signature,
    } = Signed::read(token)?;
    let claims = object(payload)?.bounded()?;
    Ok(Unverified {
        header,
        claims,
        signed,
        signature,
    })
}

/// Whether a token has the form of a JWT, also to a reader who drops a dot at the end or
/// takes another spelling of base64: what has it is never asked about elsewhere, or the
/// checks of a JWT's type could be gone round.
pub(super) fn is_jwt(token: &str) -> bool {
    let Some((header, _)) = token.split_once('.') else {
        return false;
    };
    let header = header.replace('+', "-").replace('/', "_");
    let header = LENIENT.decode(header).unwrap_or_default();
    header.trim_ascii_start().starts_with(b"{")
}

/// A proof of possession (RFC 9449 §4.2), taken apart.
pub(super) struct Proof<'a> {
    header: Claims,
    pub(super) algorithm: Algorithm,
    pub(super) claims: Claims,
    pub(super) signed: &'a [u8],
    pub(super) signature: &'a str,
}

impl Proof<'_> {
    /// The public key that it brings along.
    pub(super) fn key(&self) -> Value<'_> {
        self.header
            .get("jwk")
            .expect("a proof without a key is not read")
    }
}

/// Takes a proof apart. It alone brings its key along; the token says whose it must be.
pub(super) fn read_proof(text: &str) -> Result<Proof<'_>, AuthError> {
    let form = AuthError::Rejected(Fault::Form);
    let [header, payload, signature] = parts(text)?;
    let header = object(decode(header)?)?;
    let named = self::header(&header, &REFUSED_OF_PROOF)?;
    let has_key = header
        .get("jwk")
        .is_some_and(|key| key.kind() == Kind::Object);
    if named.typ.as_deref() != Some("dpop+jwt") || !has_key {
        return Err(form);
    }
    Ok(Proof {
        header,
        algorithm: named.algorithm,
        claims: object(decode(payload)?)?.bounded()?,
        signed: &text.as_bytes()[..text.len() - signature.len() - 1],
        signature,
    })
}

/// A compact JWS, whatever its payload is.
pub(super) struct Signed<'a> {
    pub(super) header: Header,
    payload: Vec<u8>,
    pub(super) signed: &'a [u8],
    pub(super) signature: &'a str,
}

impl<'a> Signed<'a> {
    pub(super) fn read(token: &'a str) -> Result<Self, AuthError> {
        let [header, payload, signature] = parts(token)?;
        let header = self::header(&object(decode(header)?)?, &REFUSED)?;
        let payload = decode(payload)?;
        let signed = &token.as_bytes()[..token.len() - signature.len() - 1];
        Ok(Self {
            header,
            payload,
            signed,
            signature,
        })
    }
}

/// The three parts, which hold what RFC 8725 (bis, 3.14) lets them.
fn parts(token: &str) -> Result<[&str; 3], AuthError> {
    let mut parts = token.split('.');
    let (Some(header), Some(payload), Some(signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(AuthError::Rejected(Fault::Form));
    };
    // The others say so when they are decoded; this one may be decoded elsewhere.
    // Without a way out in between and without a table, so that many are looked at at once.
    if signature.bytes().fold(true, |all, byte| {
        all & (byte.is_ascii_alphanumeric() | (byte == b'-') | (byte == b'_'))
    }) {
        Ok([header, payload, signature])
    } else {
        Err(AuthError::Rejected(Fault::Form))
    }
}

fn header(header: &Claims, refused: &[&str]) -> Result<Header, AuthError> {
    if refused.iter().any(|name| header.get(name).is_some()) {
        return Err(AuthError::Rejected(Fault::Form));
    }
    let algorithm = header.get("alg").and_then(Value::as_str);
    let algorithm = algorithm
        .and_then(|name| Algorithm::parse(&name))
        .ok_or(AuthError::Rejected(Fault::Algorithm))?;
    let text = |name, fault| match header.get(name) {
        None => Ok(None),
        Some(value) => match value.as_str() {
            Some(text) if !text.is_empty() && text.len() <= MAX_NAME => Ok(Some(text.into_owned())),
            _ => Err(AuthError::Rejected(fault)),
        },
    };
    let typ = text("typ", Fault::Type)?.map(|mut typ| {
        typ.make_ascii_lowercase();
        match typ.strip_prefix("application/") {
            Some(bare) => bare.to_owned(),
            None => typ,
        }
    });
    Ok(Header {
        algorithm,
        kid: text("kid", Fault::KeyUnknown)?,
        typ,
        points_elsewhere: KEY_URLS.iter().any(|name| header.get(name).is_some()),
    })
}

/// One JSON object.
fn object(text: Vec<u8>) -> Result<Claims, AuthError> {
    let document = Document::parse(&text, LIMITS).map_err(|_| AuthError::Rejected(Fault::Form))?;
    if document.root(&text).kind() != Kind::Object {
        return Err(AuthError::Rejected(Fault::Form));
    }
    Ok(Claims { text, document })
}

/// Strict: no padding, no bits left over (tok-20, tok-21), no more than the cap.
fn decode(part: &str) -> Result<Vec<u8>, AuthError> {
    let decoded = URL_SAFE_NO_PAD
        .decode(part)
        .ok()
        .filter(|decoded| decoded.len() <= MAX_PART);
    decoded.ok_or(AuthError::Rejected(Fault::Form))
}

/// Takes what `decode` refuses, to see what it might have been.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// Extensions that must be understood, keys that a token brings along, and content
/// that would have to be unpacked: all refused, not ignored.
const REFUSED: [&str; 7] = ["crit", "b64", "jwk", "x5c", "zip", "cty", "enc"];
/// Refused, too, but for an issuer of which it is said that it writes them.
const KEY_URLS: [&str; 2] = ["jku", "x5u"];
/// A proof is the one thing that does bring its key along.
const REFUSED_OF_PROOF: [&str; 8] = ["crit", "b64", "jku", "x5u", "x5c", "zip", "cty", "enc"];
/// What a header or payload may hold (tok-26). 10,000 groups still fit; `claims` caps them.
const LIMITS: json::Limits = json::Limits {
    depth: 16,
    nodes: 16_384,
};
/// Bytes of a decoded header or payload.
const MAX_PART: usize = 12 << 10;
/// Members of the payload.
const MAX_CLAIMS: usize = 128;
/// Bytes of `kid` and `typ`.
const MAX_NAME: usize = 256;
/// Bytes of a subject, client or token id (OpenID Connect Core §2 says 255).
pub(super) const MAX_ID: usize = 255;
/// Beyond this a double no longer counts seconds one by one: 2^53.
const MAX_SECONDS: f64 = 9_007_199_254_740_992.0;

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE};
    use serde_json::{Value, json};

    use super::{
        super::{
            Fault,
            testing::{AuthError, HEADER, KEYS, base64url, bench, bench_with, spelled, token},
        },
        MAX_CLAIMS, MAX_PART,
    };

    /// A good token's three parts.
    fn parts() -> [String; 3] {
        let token = token().sign();
        let mut parts = token.split('.').map(str::to_owned);
        std::array::from_fn(|_| parts.next().unwrap())
    }

    /// Signed as it stands, so that only the form is wrong.
    fn signed(header: &str, payload: &str) -> String {
        let signed = format!("{header}.{payload}");
        format!(
            "{signed}.{}",
            base64url(KEYS.es256.sign("ES256", signed.as_bytes()))
        )
    }

    /// The claims of a good token, with more text before the last brace.
    fn claims_with(more: &str) -> String {
        let claims = token().claims_text();
        format!("{},{more}}}", &claims[..claims.len() - 1])
    }

    /// tok-17, tok-19: three parts, none of them empty but by accident.
    #[test]
    fn a_token_that_has_not_three_parts_is_refused() {
        let bench = bench();
        let [header, payload, signature] = parts();
        bench.accepts(&format!("{header}.{payload}.{signature}"));
        for text in [
            format!("{header}.{payload}.{signature}.{signature}.{signature}"),
            format!("{header}.{payload}.{signature}.{signature}"),
            format!("{header}.{payload}"),
            header.clone(),
            format!(".{payload}.{signature}"),
            format!("{header}..{signature}"),
            "..".to_owned(),
            ".".to_owned(),
            "opaque".to_owned(),
        ] {
            bench.refuses(&text, Fault::Form);
        }
        let encrypted = base64url(
            r#"{"alg":"PBES2-HS256+A128KW","enc":"A128GCM","p2c":2000000000,"zip":"DEF"}"#,
        );
        bench.refuses(&format!("{encrypted}.AAAA.AAAA.AAAA.AAAA"), Fault::Form);
        bench.refuses(&format!("{encrypted}.{payload}.{signature}"), Fault::Form);
    }

    /// Most of these are no `token68` either, so that `bearer` is the first to refuse them (tok-4).
    #[track_caller]
    fn unreadable(token: &str) {
        assert!(
            matches!(super::read(token), Err(AuthError::Rejected(Fault::Form))),
            "{token:?}"
        );
    }

    /// tok-20: the shapes of Wycheproof's cases 360 to 377, signed with a key that is accepted.
    #[test]
    fn base64url_has_one_spelling() {
        let bench = bench();
        let [header, payload, signature] = parts();
        let padded = |text: &str| URL_SAFE.encode(text);
        let longer = r#"{"alg":"ES256","kid":"es","typ":"at+jwt","a":"b"}"#;
        assert_ne!(longer.len() % 3, 0, "this one is padded");
        bench.accepts(&signed(&base64url(longer), &payload));
        unreadable(&signed(&padded(longer), &payload));
        let claims = claims_with("\"a\":\"\"");
        let claims = if claims.len().is_multiple_of(3) {
            claims_with("\"a\":\"b\"")
        } else {
            claims
        };
        bench.accepts(&signed(&header, &base64url(&claims)));
        unreadable(&signed(&header, &padded(&claims)));
        for wrong in ["+", "/", "=", "~"] {
            unreadable(&signed(&header, &format!("{payload}{wrong}")));
            bench.refuses(
                &format!("{header}.{payload}.{signature}{wrong}"),
                Fault::Form,
            );
        }
        for wrong in ["?", " ", "\n", "\r\n", "\0", "é"] {
            let (start, end) = payload.split_at(8);
            unreadable(&signed(&header, &format!("{start}{wrong}{end}")));
        }
    }

    /// tok-21: bits that are left over must be zero, in the signature too.
    #[test]
    fn bits_left_over_are_refused() {
        let bench = bench();
        let [header, payload, signature] = parts();
        // 64 bytes leave four bits in the last of 86 characters.
        let last = signature.as_bytes()[85];
        let next = |byte: u8| char::from(if byte == b'A' { b'B' } else { byte + 1 });
        let spoilt = format!("{}{}", &signature[..85], next(last));
        bench.accepts(&format!("{header}.{payload}.{signature}"));
        bench.refuses(&format!("{header}.{payload}.{spoilt}"), Fault::Signature);
        let claims = ["\"a\":\"\"", "\"a\":\"b\""]
            .map(claims_with)
            .into_iter()
            .find(|claims| claims.len() % 3 != 0)
            .unwrap();
        let payload = base64url(claims);
        let spoilt = format!(
            "{}{}",
            &payload[..payload.len() - 1],
            next(payload.as_bytes()[payload.len() - 1])
        );
        bench.accepts(&signed(&header, &payload));
        bench.refuses(&signed(&header, &spoilt), Fault::Form);
    }

    /// tok-22: header and payload are objects.
    #[test]
    fn what_is_no_object_is_refused() {
        let bench = bench();
        for text in ["", "[]", "\"a\"", "1", "null", "true", "[{\"iss\":1}]"] {
            bench.refuses(&spelled(HEADER, text), Fault::Form);
            bench.refuses(&spelled(text, token().claims_text()), Fault::Form);
        }
        bench.refuses(
            &spelled(HEADER, format!("[{}]", token().claims_text())),
            Fault::Form,
        );
    }

    /// tok-23: nothing but one JSON text in UTF-8.
    #[test]
    fn bytes_around_the_json_are_refused() {
        let bench = bench();
        let claims = token().claims_text();
        bench.accepts(&spelled(HEADER, format!(" {claims}\n")));
        let utf16: Vec<u8> = claims.encode_utf16().flat_map(u16::to_le_bytes).collect();
        for text in [
            format!("{claims}x"),
            format!("{claims}{claims}"),
            format!("{claims}\0"),
            format!("\u{feff}{claims}"),
        ] {
            bench.refuses(&spelled(HEADER, text), Fault::Form);
        }
        bench.refuses(&spelled(HEADER, utf16), Fault::Form);
        bench.refuses(&spelled(&format!("{HEADER} x"), claims), Fault::Form);
    }

    /// tok-24: also in a claim that nobody reads.
    #[test]
    fn text_that_is_no_unicode_is_refused() {
        let bench = bench();
        bench.accepts(&spelled(HEADER, claims_with(r#""unread":"\ud83d\ude00""#)));
        bench.refuses(
            &spelled(HEADER, claims_with(r#""unread":"\ud83d""#)),
            Fault::Form,
        );
        let mut bytes = claims_with(r#""unread":"@""#).into_bytes();
        let at = bytes.iter().rposition(|byte| *byte == b'@').unwrap();
        bytes[at] = 0xff;
        bench.refuses(&spelled(HEADER, bytes), Fault::Form);
    }

    /// tok-25: at any depth and in any spelling.
    #[test]
    fn a_member_named_twice_is_refused() {
        let bench = bench();
        for more in [
            r#""sub":"bob""#,
            r#""s\u0075b":"bob""#,
            r#""x":{"a":1,"a":2}"#,
            r#""x":[{"a":1,"\u0061":2}]"#,
        ] {
            bench.refuses(&spelled(HEADER, claims_with(more)), Fault::Form);
        }
        let claims = token().claims_text();
        for header in [
            r#"{"alg":"none","alg":"ES256","kid":"es","typ":"at+jwt"}"#,
            r#"{"alg":"ES256","kid":"es","typ":"at+jwt","k\u0069d":"rs"}"#,
            r#"{"alg":"ES256","kid":"es","typ":"at+jwt","x":{"a":1,"a":1}}"#,
        ] {
            bench.refuses(&spelled(header, &claims), Fault::Form);
        }
    }

    /// tok-26: depth, number and length of what a token may say.
    #[test]
    fn claims_are_capped() {
        let bench = bench();
        let nested = |depth: usize| {
            claims_with(&format!("\"x\":{}{}", "[".repeat(depth), "]".repeat(depth)))
        };
        bench.accepts(&spelled(HEADER, nested(15)));
        bench.refuses(&spelled(HEADER, nested(16)), Fault::Form);
        bench.refuses(&spelled(HEADER, nested(2000)), Fault::Form);
        let own = serde_json::from_str::<Value>(&token().claims_text())
            .unwrap()
            .as_object()
            .unwrap()
            .len();
        let many = |count: usize| {
            claims_with(
                &(own..count)
                    .map(|n| format!("\"x{n}\":0"))
                    .collect::<Vec<_>>()
                    .join(","),
            )
        };
        bench.accepts(&spelled(HEADER, many(MAX_CLAIMS)));
        bench.refuses(&spelled(HEADER, many(MAX_CLAIMS + 1)), Fault::Form);
        let bare = claims_with("\"x\":\"\"").len();
        // The longest payload does not fit into the longest token with this signature: asked below the header.
        let long = |length: usize| claims_with(&format!("\"x\":\"{}\"", "y".repeat(length - bare)));
        bench.accepts(&spelled(HEADER, long(MAX_PART - 512)));
        assert!(super::read(&spelled(HEADER, long(MAX_PART))).is_ok());
        assert!(super::read(&spelled(HEADER, long(MAX_PART + 1))).is_err());
    }

    /// tok-27, tok-28, tok-30, tok-33: no algorithm but those of the list, spelled like there.
    #[test]
    fn an_algorithm_is_one_of_the_list_or_refused() {
        let bench = bench();
        let claims = token().claims_text();
        for alg in [
            json!("none"),
            json!("None"),
            json!("NONE"),
            json!("nOnE"),
            json!(""),
            json!(null),
            json!(256),
            json!(["ES256"]),
            json!({"alg": "ES256"}),
            json!("hs256"),
            json!("es256"),
            json!(" RS256"),
            json!("ES256 "),
            json!("HS256"),
            json!("HS384"),
            json!("HS512"),
            json!("ES256K"),
            json!("ES521"),
            json!("ES512"),
            json!("ES224"),
            json!("Ed448"),
            json!("RS1"),
            json!("RSA-OAEP"),
            json!("dir"),
            json!("ES256\u{0}"),
        ] {
            let header = json!({"alg": alg, "kid": "es", "typ": "at+jwt"}).to_string();
            bench.refuses(&spelled(&header, &claims), Fault::Algorithm);
            let [_, payload, _] = parts();
            bench.refuses(
                &format!("{}.{payload}.", base64url(&header)),
                Fault::Algorithm,
            );
        }
        bench.refuses(
            &spelled(r#"{"kid":"es","typ":"at+jwt"}"#, &claims),
            Fault::Algorithm,
        );
    }

    /// tok-43, tok-44, tok-45, tok-46, tok-47, tok-48, tok-52: what a token asks to have understood, fetched,
    /// believed or unpacked. `x5t` and `x5t#S256` ask for nothing.
    #[test]
    fn header_parameters_that_ask_for_something_are_refused() {
        let bench = bench();
        for (name, value) in [
            ("crit", json!(["exp"])),
            ("crit", json!(["b64"])),
            ("crit", json!([])),
            ("crit", json!("exp")),
            ("crit", json!(["typ", "typ"])),
            ("crit", json!(null)),
            ("b64", json!(false)),
            ("jwk", KEYS.es256.jwk()),
            ("jku", json!("https://evil.example/jwks")),
            ("x5u", json!("http://169.254.169.254/latest")),
            ("x5u", json!("file:///etc/passwd")),
            ("x5c", json!(["MIIB"])),
            ("zip", json!("DEF")),
            ("cty", json!("JWT")),
            ("enc", json!("A128GCM")),
        ] {
            bench.refuses(&token().header(name, value).sign(), Fault::Form);
        }
        bench.accepts(
            &token()
                .header("x5t", "abc")
                .header("x5t#S256", "abc")
                .header("unknown", json!({"a": 1}))
                .sign(),
        );
    }

    /// tok-46: of an issuer that always says where its keys are it is no fault, and changes nothing.
    #[test]
    fn a_key_url_may_be_ignored_and_is_never_followed() {
        let habit = bench_with(|issuer| issuer.ignores_key_urls = true);
        for name in ["jku", "x5u"] {
            for value in [
                json!("https://evil.example/jwks"),
                json!("file:///"),
                json!([7]),
                json!(null),
            ] {
                habit.accepts(&token().header(name, value).sign());
            }
            let theirs = token()
                .header(name, "https://evil.example/jwks")
                .signed_by(&KEYS.stranger);
            habit.refuses(&theirs, Fault::Signature);
        }
        // What is brought along is still refused.
        habit.refuses(&token().header("jwk", KEYS.es256.jwk()).sign(), Fault::Form);
        habit.refuses(&token().header("x5c", json!(["MIIB"])).sign(), Fault::Form);
    }

    /// tok-45, tok-47: not even one that verifies its own token.
    #[test]
    fn a_key_in_the_token_is_never_used() {
        let own = token()
            .header("jwk", KEYS.stranger.jwk())
            .signed_by(&KEYS.stranger);
        bench().refuses(&own, Fault::Form);
    }

    /// tok-53, tok-54: a key's name is looked up in a map of names, and is nothing else.
    #[test]
    fn a_strange_key_name_is_just_unknown() {
        let bench = bench();
        for kid in [
            json!("../../dev/null"),
            json!("/dev/null"),
            json!("|sleep 10"),
            json!("' UNION SELECT '1"),
            json!("es\r\nX: y"),
            json!("es\u{0}"),
            json!("🔑"),
            json!("ES"),
            json!(" es"),
            json!(""),
            json!("k".repeat(4096)),
            json!(7),
            json!(["es"]),
            json!(null),
            json!({"kid": "es"}),
        ] {
            bench.refuses(&token().header("kid", kid).sign(), Fault::KeyUnknown);
        }
        let long = format!(
            "Bearer {}",
            token().header("kid", "k".repeat(1 << 20)).sign()
        );
        let mut headers = http::HeaderMap::new();
        headers.insert(http::header::AUTHORIZATION, long.parse().unwrap());
        assert!(matches!(
            bench.ask(&headers, None),
            Err(AuthError::Malformed(Fault::Form))
        ));
    }
}
