//! What must hold for every text that a stranger sends: the readers of JSON,
//! headers, claims and key sets, judged by what serde_json makes of the same text.
//!
//! Compiled for tests alone. Called by this room's property tests and by the
//! fuzz targets (tests/fuzz); each function panics where a property fails, and
//! for nothing else.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::value::RawValue;

use super::{
    claims,
    jwk::{Algorithm, KeySet},
    jwt::{self, Claims, Signed},
};
use crate::{
    config::Issuer,
    json::{Document, Kind, MESSAGE, Value},
};

/// Any text as JSON: what is accepted is JSON to others too, stands where it is said to
/// stand, reads the same when it is read alone, and names nothing twice.
pub fn json(text: &[u8]) {
    let Ok(document) = Document::parse(text, MESSAGE) else {
        return;
    };
    let others = serde_json::from_slice::<&RawValue>(text);
    assert!(others.is_ok(), "no JSON to serde_json: {others:?}");
    let root = document.root(text);
    assert!(root.span().end <= text.len());
    stands_within(root, 0..text.len());
}

fn stands_within(value: Value<'_>, around: std::ops::Range<usize>) {
    let span = value.span();
    assert!(around.start <= span.start && span.start < span.end && span.end <= around.end);
    let alone = Document::parse(value.raw(), MESSAGE).expect("a value is JSON by itself");
    assert_eq!(alone.root(value.raw()).kind(), value.kind());
    if value.kind() == Kind::String {
        let theirs: String = serde_json::from_slice(value.raw()).expect("it is a string to others");
        assert_eq!(value.as_str().as_deref(), Some(theirs.as_str()));
    }
    let mut names = std::collections::BTreeSet::new();
    let mut before = span.start;
    for (name, member) in value.members() {
        assert_eq!(
            value.get(&name).map(Value::span),
            Some(member.span()),
            "found by its name"
        );
        assert!(names.insert(name), "a name came twice");
        assert!(before < member.span().start, "in order");
        before = member.span().end;
        stands_within(member, span.clone());
    }
    for element in value.elements() {
        assert!(before <= element.span().start, "in order");
        before = element.span().end;
        stands_within(element, span.clone());
    }
}

/// Any text as the header of a token.
pub fn header(text: &[u8]) {
    let token = format!("{}.e30.AA", URL_SAFE_NO_PAD.encode(text));
    assert_eq!(
        jwt::is_jwt(&token),
        text.trim_ascii_start().first() == Some(&b'{')
    );
    let Ok(signed) = Signed::read(&token) else {
        return;
    };
    assert_eq!(signed.signed.len() + ".AA".len(), token.len());
    let header = signed.header;
    // Numbers that a double cannot hold are the one thing that we read and it does not.
    if let Ok(theirs) = serde_json::from_slice::<serde_json::Value>(text) {
        let named = |name: &str| theirs[name].as_str().map(str::to_owned);
        assert_eq!(
            named("alg").and_then(|name| Algorithm::parse(&name)),
            Some(header.algorithm)
        );
        assert_eq!(named("kid"), header.kid);
        assert_eq!(named("typ").is_some(), header.typ.is_some());
        let points_elsewhere = ["jku", "x5u"].iter().any(|name| theirs.get(name).is_some());
        assert_eq!(points_elsewhere, header.points_elsewhere);
        for refused in ["crit", "b64", "jwk", "x5c", "zip", "cty", "enc"] {
            assert!(theirs.get(refused).is_none(), "`{refused}` was overlooked");
        }
    }
    assert!(header.typ.is_none_or(|typ| typ == typ.to_ascii_lowercase()));
}

/// Any text as the payload of a token of `issuer`.
pub fn claims(text: &[u8], issuer: &Issuer, now: u64) {
    let Ok(claims) = Claims::read(text) else {
        return;
    };
    json(text);
    let named = claims::issuer(&claims);
    let Ok(claimed) = claims::check_claims(&claims, claims::Source::Token, issuer, now) else {
        return;
    };
    let identity = claimed.identity;
    assert!(!identity.subject().is_empty() && !identity.subject().chars().any(char::is_control));
    assert!(now < identity.expires_at() + issuer.leeway.as_secs());
    assert!(identity.expires_at() <= now + issuer.leeway.as_secs() + issuer.max_lifetime.as_secs());
    if let Ok(theirs) = serde_json::from_slice::<serde_json::Value>(text) {
        assert_eq!(theirs["sub"].as_str(), Some(identity.subject()));
        assert_eq!(theirs["iss"].as_str(), named.ok().as_deref());
    }
}

/// Any text as a key set, and any text as a signature by its keys.
pub fn key_set(text: &[u8]) {
    let Some(set) = KeySet::read(text, &EVERY) else {
        return;
    };
    json(text);
    let theirs = serde_json::from_slice::<serde_json::Value>(text).unwrap_or_default();
    let keys = theirs["keys"].as_array().cloned().unwrap_or_default();
    assert!(theirs.is_null() || set.len() <= keys.len());
    for kid in keys.iter().filter_map(|key| key["kid"].as_str()) {
        let Some(key) = set.find(Some(kid)) else {
            continue;
        };
        let same_name = keys.iter().filter(|key| key["kid"] == kid).count();
        assert_eq!(
            same_name, 1,
            "two keys of one name, and one is used (tok-58)"
        );
        assert!(EVERY.contains(&key.algorithm()));
        for signature in [
            "",
            "AA",
            "!",
            &URL_SAFE_NO_PAD.encode([0; 64]),
            &URL_SAFE_NO_PAD.encode(text),
        ] {
            assert!(!key.verifies(b"e30.e30", signature));
        }
    }
}

const EVERY: [Algorithm; 9] = [
    Algorithm::Rs256,
    Algorithm::Rs384,
    Algorithm::Rs512,
    Algorithm::Ps256,
    Algorithm::Ps384,
    Algorithm::Ps512,
    Algorithm::Es256,
    Algorithm::Es384,
    Algorithm::Ed25519,
];

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::{
        super::testing::{AUDIENCE, ISSUER, KEYS, NOW, issuer, set},
        *,
    };
    use crate::{config::KeySource, json::JsonError};

    /// Texts that are nearly JSON objects: members of these names, some twice, some in other
    /// spellings, with values of all kinds, and sometimes a byte that does not belong.
    fn nearly(
        names: &'static [&'static str],
        values: &'static [&'static str],
    ) -> impl Strategy<Value = Vec<u8>> {
        let name = prop_oneof![
            8 => prop::sample::select(names).prop_map(str::to_owned),
            1 => "[a-z]{0,3}",
            1 => prop::sample::select(names).prop_map(|name| {
                let (first, rest) = name.split_at(1);
                format!("\\u{:04x}{rest}", first.as_bytes()[0])
            }),
        ];
        let value = prop_oneof![
            8 => prop::sample::select(values).prop_map(str::to_owned),
            1 => any::<i64>().prop_map(|number| number.to_string()),
            1 => any::<f64>().prop_map(|number| serde_json::json!(number).to_string()),
            1 => ".{0,8}".prop_map(|text| serde_json::json!(text).to_string()),
        ];
        let space = prop_oneof![8 => Just(""), 1 => Just(" \n\t")];
        let members = vec((name, value), 0..12);
        (
            space,
            members,
            any::<prop::sample::Index>(),
            proptest::option::weighted(0.2, any::<u8>()),
        )
            .prop_map(|(space, members, at, stray)| {
                let members: Vec<_> = members
                    .iter()
                    .map(|(name, value)| format!("\"{name}\":{value}"))
                    .collect();
                let mut text = format!("{space}{{{}}}", members.join(",")).into_bytes();
                if let Some(stray) = stray {
                    let at = at.index(text.len());
                    text[at] = stray;
                }
                text
            })
    }

    const HEADER_NAMES: &[&str] = &["alg", "kid", "typ", "crit", "jwk", "x5t", "b64", "zip"];
    const HEADER_VALUES: &[&str] = &[
        "\"RS256\"",
        "\"ES256\"",
        "\"none\"",
        "\"at+jwt\"",
        "\"application/AT+JWT\"",
        "\"es\"",
        "[]",
        "{\"a\":{\"a\":1}}",
        "null",
        "true",
        "\"\"",
        "\"\\ud800\"",
        "1e999",
    ];
    const CLAIM_NAMES: &[&str] = &[
        "iss",
        "aud",
        "sub",
        "exp",
        "iat",
        "nbf",
        "jti",
        "scope",
        "groups",
        "cnf",
        "client_id",
        "act",
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn json_of_strangers_is_read_as_others_read_it(text in vec(any::<u8>(), 0..64)) {
            json(&text);
        }

        #[test]
        fn json_that_is_nearly_right_is_read_as_others_read_it(text in nearly(HEADER_NAMES, HEADER_VALUES)) {
            json(&text);
        }

        #[test]
        fn a_member_named_twice_in_any_spelling_is_refused(name in "[a-zé\"\\\\]{1,4}", deep in 0..5_usize) {
            let plain = serde_json::json!(name).to_string();
            let spelled: String = name.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
            let object = format!("{{{plain}:1,\"{spelled}\":2}}");
            let text = format!("{}{object}{}", "[".repeat(deep), "]".repeat(deep));
            prop_assert!(matches!(Document::parse(text.as_bytes(), MESSAGE), Err(JsonError::Duplicate(_))), "{text}");
            prop_assert!(Claims::read(object.as_bytes()).is_err());
        }

        #[test]
        fn no_header_is_misread(text in nearly(HEADER_NAMES, HEADER_VALUES)) {
            header(&text);
        }

        #[test]
        fn no_payload_is_misread(text in claims_of_strangers()) {
            claims(&text, &issuer(KeySource::Discovery), NOW);
        }

        #[test]
        fn no_key_set_is_misread(change in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), twice in any::<bool>()) {
            let mut keys = set(KEYS.published());
            if twice {
                let first = keys["keys"][0].clone();
                keys["keys"].as_array_mut().unwrap().push(first);
            }
            let mut text = keys.to_string().into_bytes();
            for (at, byte) in change {
                let at = at.index(text.len());
                text[at] = byte;
            }
            key_set(&text);
        }
    }

    /// Good claims with some of these in their place.
    fn claims_of_strangers() -> impl Strategy<Value = Vec<u8>> {
        let values = prop_oneof![
            Just(serde_json::json!(NOW)),
            Just(serde_json::json!(NOW + 300)),
            Just(serde_json::json!("")),
            Just(serde_json::json!(["a", "b"])),
            Just(serde_json::json!({"a": null})),
            any::<i64>().prop_map(|number| serde_json::json!(number)),
            any::<f64>().prop_map(|number| serde_json::json!(number)),
            ".{0,4}".prop_map(|text| serde_json::json!(text)),
        ];
        let changes = vec((prop::sample::select(CLAIM_NAMES), values), 0..3);
        changes.prop_map(|changes| {
            let mut claims = serde_json::json!({
                "iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "iat": NOW, "exp": NOW + 300, "jti": "1",
            });
            for (name, value) in changes {
                claims[name] = value;
            }
            claims.to_string().into_bytes()
        })
    }
}
