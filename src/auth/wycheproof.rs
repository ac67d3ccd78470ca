//! The Wycheproof vectors (tests/vectors, with their licence and provenance):
//! every file whole, with the deviations that tests/cases/tokens.md 1.4 explains and no others.

use std::{collections::BTreeSet, fs, path::PathBuf};

use serde_json::{Value, json};

use super::{
    jwk::{Algorithm, KeySet},
    jwt::Signed,
    testing::{ALGORITHMS, base64url},
};

fn file(name: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/vectors")
        .join(name);
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn groups(file: &Value) -> &[Value] {
    file["testGroups"].as_array().unwrap()
}

fn tests(group: &Value) -> &[Value] {
    group["tests"].as_array().unwrap()
}

fn number(test: &Value) -> u64 {
    test["tcId"].as_u64().unwrap()
}

fn read(keys: &Value) -> KeySet {
    let every: Vec<Algorithm> = ALGORITHMS
        .iter()
        .filter_map(|name| Algorithm::parse(name))
        .collect();
    KeySet::read(keys.to_string().as_bytes(), &every).unwrap()
}

/// What the authenticator does with a token's header, key and signature.
fn accepts(keys: &KeySet, jws: &str) -> bool {
    let Ok(token) = Signed::read(jws) else {
        return false;
    };
    let key = keys.find(token.header.kid.as_deref());
    let key = key.filter(|_| !token.header.points_elsewhere);
    key.is_some_and(|key| {
        key.algorithm() == token.header.algorithm && key.verifies(token.signed, token.signature)
    })
}

/// The numbers of those cases that are accepted though invalid, or refused though valid.
fn deviations(name: &str) -> BTreeSet<u64> {
    let file = file(name);
    let mut found = BTreeSet::new();
    for group in groups(&file) {
        let keys = if group["public"].is_object() {
            &group["public"]
        } else {
            &group["private"]
        };
        let keys = if keys["keys"].is_array() {
            keys.clone()
        } else {
            json!({"keys": [keys]})
        };
        let keys = read(&keys);
        for test in tests(group) {
            // Some are in the JSON serialization: no bearer token has that form.
            let token = test["jws"]
                .as_str()
                .or(test["jwe"].as_str())
                .unwrap_or_default();
            if accepts(&keys, token) != (test["result"] == "valid") {
                found.insert(number(test));
            }
        }
    }
    found
}

/// tok-29, tok-35, tok-36, tok-38, tok-39, tok-42, tok-45, tok-56: structure, `none`, confusion of HMAC and
/// public keys, embedded keys, paddings, ranges, keys for other uses.
#[test]
fn signed_tokens_are_judged_as_wycheproof_judges_them() {
    let hmac_is_never_accepted = [1, 348, 352, 357, 358, 359, 376, 377];
    // The header says PS384, the key PS256.
    let wrong_in_the_vectors = [346, 350];
    // P-521, which no accepted algorithm uses, under a name that does not exist.
    let es512 = [347, 351];
    // A `?` within base64url, against RFC 7515 §2.
    let wrong_base64 = [372, 373];
    let expected: BTreeSet<u64> = [
        &hmac_is_never_accepted[..],
        &wrong_in_the_vectors,
        &es512,
        &wrong_base64,
    ]
    .concat()
    .into_iter()
    .collect();
    assert_eq!(deviations("json_web_signature_test.json"), expected);
}

/// tok-58, tok-59, tok-41, tok-17: sets with mixed, doubled and weak keys; encrypted tokens are refused unread.
#[test]
fn key_sets_are_judged_as_wycheproof_judges_them() {
    let hmac = [1, 48];
    let encrypted = [50, 67];
    let expected: BTreeSet<u64> = [hmac, encrypted].concat().into_iter().collect();
    assert_eq!(deviations("json_web_crypto_test.json"), expected);
}

/// Every case of a file with raw signatures through one JWK of the group's key.
#[track_caller]
fn raw(name: &str, alg: &str, jwk: impl Fn(&Value) -> Value) {
    let file = file(name);
    let mut judged = 0;
    for group in groups(&file) {
        let mut jwk = jwk(&group["publicKey"]);
        jwk["alg"] = json!(alg);
        let keys = read(&json!({"keys": [jwk]}));
        for test in tests(group) {
            let signature = base64url(hex(&test["sig"]));
            let good = keys
                .find(None)
                .is_some_and(|key| key.verifies(&hex(&test["msg"]), &signature));
            // "Acceptable" is a digest without its NULL: refused (tok-38).
            assert_eq!(good, test["result"] == "valid", "{name} {}", number(test));
            judged += 1;
        }
    }
    assert_eq!(file["numberOfTests"].as_u64(), Some(judged));
}

fn hex(text: &Value) -> Vec<u8> {
    let text = text.as_str().unwrap();
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

fn rsa(key: &Value) -> Value {
    json!({"kty": "RSA", "n": base64url(hex(&key["modulus"])), "e": base64url(hex(&key["publicExponent"]))})
}

fn ec(crv: &'static str) -> impl Fn(&Value) -> Value {
    move |key| {
        let point = hex(&key["uncompressed"]);
        let (x, y) = point[1..].split_at(point.len() / 2);
        json!({"kty": "EC", "crv": crv, "x": base64url(x), "y": base64url(y)})
    }
}

/// tok-38, tok-39: PKCS #1 paddings and PSS salts.
#[test]
fn rsa_signatures_are_judged_as_wycheproof_judges_them() {
    raw("rsa_signature_2048_sha256_test.json", "RS256", rsa);
    raw("rsa_signature_3072_sha256_test.json", "RS256", rsa);
    raw("rsa_signature_2048_sha384_test.json", "RS384", rsa);
    raw("rsa_signature_2048_sha512_test.json", "RS512", rsa);
    raw("rsa_pss_2048_sha256_mgf1_32_test.json", "PS256", rsa);
    raw("rsa_pss_2048_sha384_mgf1_48_test.json", "PS384", rsa);
    raw("rsa_pss_4096_sha512_mgf1_64_test.json", "PS512", rsa);
}

/// tok-36: ranges of r and s, and edge cases of the arithmetic.
#[test]
fn elliptic_curve_signatures_are_judged_as_wycheproof_judges_them() {
    raw(
        "ecdsa_secp256r1_sha256_p1363_test.json",
        "ES256",
        ec("P-256"),
    );
    raw(
        "ecdsa_secp384r1_sha384_p1363_test.json",
        "ES384",
        ec("P-384"),
    );
    raw(
        "ed25519_test.json",
        "EdDSA",
        |key| json!({"kty": "OKP", "crv": "Ed25519", "x": base64url(hex(&key["pk"]))}),
    );
}

/// tok-33: there is no ES512 here, so its keys are none.
#[test]
fn keys_of_other_curves_are_no_keys() {
    for group in groups(&file("ecdsa_secp521r1_sha512_p1363_test.json")) {
        let mut jwk = ec("P-521")(&group["publicKey"]);
        for alg in ["ES512", "ES256", "ES384"] {
            jwk["alg"] = json!(alg);
            assert_eq!(read(&json!({"keys": [jwk]})).len(), 0);
        }
    }
}
