//! RSA keys that nobody should have, and signatures that are nearly right: no library
//! makes them, so they are computed as plain numbers (`servers/rsa.py`).

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use aws_lc_rs::digest;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::{
    house::{House, house},
    identity::{ISSUERS, base64url, claims, is_served},
    refusals::all_are_refused,
};

fn rsa(arguments: &[&str], input: &str) -> Value {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/servers/rsa.py");
    let mut python = Command::new("/usr/bin/python3")
        .arg(script)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = python.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let ran = python.wait_with_output().unwrap();
    assert!(ran.status.success(), "{arguments:?}");
    serde_json::from_slice(&ran.stdout).unwrap()
}

/// A key pair of the Wycheproof files.
fn published() -> Value {
    let text = include_str!("../vectors/json_web_signature_test.json");
    let file: Value = serde_json::from_str(text).unwrap();
    let groups = file["testGroups"].as_array().unwrap();
    let group = groups.iter().find(|group| group["comment"] == "rs256");
    group.unwrap()["private"].clone()
}

/// What an issuer publishes of a pair.
fn public(pair: &Value, kid: &str) -> Value {
    json!({ "kty": "RSA", "n": pair["n"], "e": pair["e"], "kid": kid, "alg": "RS256", "use": "sig" })
}

/// A house whose issuer publishes these beside a good key, `es`.
async fn with_keys(keys: Vec<Value>) -> House {
    let mut good = ISSUERS.jwk();
    good["kid"] = json!("es");
    let keys: Vec<_> = keys.into_iter().chain([good]).collect();
    house()
        .also("keys.json", json!({ "keys": keys }).to_string())
        .issuer("jwks-file = \"/etc/thv/keys.json\"\n")
        .open()
        .await
}

/// What a signature is of: the first two parts of a token whose claims are good.
fn signed(house: &House, kid: &str) -> String {
    let header = json!({ "typ": "at+jwt", "alg": "RS256", "kid": kid });
    let claims = claims(house).to_string();
    format!("{}.{}", base64url(header.to_string()), base64url(claims))
}

/// SHA-256 and its parameters, as one element of DER (RFC 8017 §9.2).
const SHA256: &[u8] =
    b"\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20";

/// `00 01 ff … ff 00` and this, in as many bytes as the key has.
fn padded(info: &[u8], size: usize) -> Vec<u8> {
    let mut block = vec![0xff; size - info.len()];
    (block[0], block[1]) = (0, 1);
    *block.last_mut().unwrap() = 0;
    block.extend(info);
    block
}

fn sha256(text: &str) -> Vec<u8> {
    digest::digest(&digest::SHA256, text.as_bytes())
        .as_ref()
        .to_vec()
}

/// Signatures by the pair, as numbers, of blocks that may be anything.
fn signatures(pair: &Value, blocks: &[Vec<u8>]) -> Vec<String> {
    let blocks: Vec<_> = blocks.iter().map(base64url).collect();
    let order = json!({ "key": pair, "blocks": blocks });
    serde_json::from_value(rsa(&["sign"], &order.to_string())).unwrap()
}

/// tok-38: a padding that is nearly that of PKCS #1, and a digest that is nearly described as SHA-256's.
#[tokio::test]
async fn a_signature_with_another_padding_is_refused() {
    let pair = published();
    let size = URL_SAFE_NO_PAD
        .decode(pair["n"].as_str().unwrap())
        .unwrap()
        .len();
    let house = with_keys(vec![public(&pair, "rsa")]).await;
    let signed = signed(&house, "rsa");
    let hash = sha256(&signed);
    let info = [SHA256, &hash].concat();
    let good = padded(&info, size);
    let described = |head: &[u8]| padded(&[head, &hash].concat(), size);
    let changed = |at: usize, byte: u8| {
        let mut block = good.clone();
        block[at] = byte;
        block
    };
    // The first forgeries of 2006: little padding, the digest, and room for anything after it.
    let mut loose = vec![0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0];
    loose.extend(&info);
    loose.resize(size, 0);
    let separator = size - info.len() - 1;
    let cases = [
        (
            "without NULL",
            described(b"\x30\x2f\x30\x0b\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x04\x20"),
        ),
        (
            "another NULL",
            described(
                b"\x30\x32\x30\x0e\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x01\x00\x04\x20",
            ),
        ),
        (
            "a zero for NULL",
            described(
                b"\x30\x32\x30\x0e\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x02\x01\x00\x04\x20",
            ),
        ),
        (
            "a length in BER",
            described(
                b"\x30\x81\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20",
            ),
        ),
        (
            "no length",
            described(
                b"\x30\x80\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20",
            ),
        ),
        (
            "SHA-384 in name",
            described(
                b"\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\x04\x20",
            ),
        ),
        (
            "SHA-1 in name",
            described(b"\x30\x2d\x30\x09\x06\x05\x2b\x0e\x03\x02\x1a\x05\x00\x04\x20"),
        ),
        ("no description", padded(&hash, size)),
        ("no octets", padded(&[&SHA256[..17], &hash].concat(), size)),
        (
            "more after it",
            padded(&[&info[..], b"\x05\x00"].concat(), size),
        ),
        ("a hash cut short", padded(&info[..info.len() - 1], size)),
        (
            "another hash",
            padded(&[SHA256, &sha256("x")].concat(), size),
        ),
        ("room after it", loose),
        ("block type 0", changed(1, 0)),
        ("block type 2", changed(1, 2)),
        ("a first byte", changed(0, 1)),
        ("padding that is none", changed(2, 0xfe)),
        ("padding that ends early", changed(20, 0)),
        ("padding that goes on", changed(separator, 0xff)),
        ("nothing", vec![0; size]),
        ("one", [vec![0; size - 1], vec![1]].concat()),
    ];
    let mut blocks: Vec<_> = cases.iter().map(|(_, block)| block.clone()).collect();
    blocks.push(good.clone());
    let mut made = signatures(&pair, &blocks);
    let right = made.pop().unwrap();
    let raw = URL_SAFE_NO_PAD.decode(&right).unwrap();
    let named = cases.iter().map(|(name, _)| *name).zip(made);
    let others = [
        ("a byte more", base64url([&[0], &raw[..]].concat())),
        ("a byte less", base64url(&raw[1..])),
        ("a byte after", base64url([&raw[..], &[0]].concat())),
        ("the modulus", pair["n"].as_str().unwrap().to_owned()),
        ("no signature", base64url(&good)),
    ];
    let case = |(name, signature)| (name, "token-signature", format!("{signed}.{signature}"));
    all_are_refused(&house, named.chain(others).map(case).collect()).await;
    // The control: by the same arithmetic, and as it should be.
    is_served(&house, &format!("{signed}.{right}"), "alice").await;
}

/// tok-40, tok-41: a key that is short, or was made by a generator that is known to be bad, or whose exponent
/// hides nothing, is none: what it really signed is of an unknown key.
#[tokio::test]
async fn a_weak_key_of_the_issuer_is_no_key() {
    let kinds = ["short", "roca", "one", "two"];
    let pairs = kinds.map(|kind| rsa(&["make", kind], ""));
    let keys = kinds.iter().zip(&pairs);
    let house = with_keys(keys.map(|(kind, pair)| public(pair, kind)).collect()).await;
    let mut cases = Vec::new();
    for (kind, pair) in kinds.iter().zip(&pairs) {
        let signed = signed(&house, kind);
        let size = if *kind == "short" { 128 } else { 256 };
        let block = padded(&[SHA256, &sha256(&signed)].concat(), size);
        let signature = signatures(pair, &[block]).pop().unwrap();
        let token = format!("{signed}.{signature}");
        cases.push((*kind, "token-key-unknown", token));
    }
    // The good key beside them is as good as ever.
    all_are_refused(&house, cases).await;
}
