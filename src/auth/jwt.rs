//! A compact JWS, read strictly (RFC 7515 §7.1, RFC 8725).
//!
//! Reads only: nothing here says that a token is good. No key is ever taken
//! from a token, and no address in one is ever fetched.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

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
}

/// The payload: a JSON object without doubled members.
pub(super) struct Claims {
    text: Vec<u8>,
    document: Document,
}

impl Claims {
    pub(super) fn get(&self, name: &str) -> Option<Value<'_>> {
        self.document.root(&self.text).get(name)
    }
}

/// Takes a token apart.
pub(super) fn read(token: &str) -> Result<Unverified<'_>, AuthError> {
    let Signed { header, payload, signed, signature } = Signed::read(token)?;
    let claims = object(payload)?;
    if claims.document.root(&claims.text).members().count() > MAX_CLAIMS {
        return Err(AuthError::Rejected(Fault::Form));
    }
    Ok(Unverified { header, claims, signed, signature })
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
        let form = || AuthError::Rejected(Fault::Form);
        let mut parts = token.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(form());
        };
        // Before anything is decoded: only what RFC 8725 (bis, 3.14) allows a JWT to hold.
        if [header, payload, signature].iter().any(|part| !part.bytes().all(is_base64url)) {
            return Err(form());
        }
        let header = self::header(&object(decode(header)?)?)?;
        let payload = decode(payload)?;
        let signed = &token.as_bytes()[..token.len() - signature.len() - 1];
        Ok(Self { header, payload, signed, signature })
    }
}

fn header(header: &Claims) -> Result<Header, AuthError> {
    // Extensions that must be understood, keys that a token brings along, and
    // content that would have to be unpacked: all refused, not ignored.
    for refused in ["crit", "b64", "jwk", "jku", "x5u", "x5c", "zip", "cty", "enc"] {
        if header.get(refused).is_some() {
            return Err(AuthError::Rejected(Fault::Form));
        }
    }
    let algorithm = header.get("alg").and_then(Value::as_str);
    let algorithm = algorithm.and_then(|name| Algorithm::parse(&name)).ok_or(AuthError::Rejected(Fault::Algorithm))?;
    let text = |name, fault| match header.get(name) {
        None => Ok(None),
        Some(value) => match value.as_str() {
            Some(text) if !text.is_empty() && text.len() <= MAX_NAME => Ok(Some(text.into_owned())),
            _ => Err(AuthError::Rejected(fault)),
        },
    };
    let typ = text("typ", Fault::Type)?.map(|typ| {
        let typ = typ.to_ascii_lowercase();
        typ.strip_prefix("application/").map_or(typ.clone(), str::to_owned)
    });
    Ok(Header { algorithm, kid: text("kid", Fault::KeyUnknown)?, typ })
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
    let decoded = URL_SAFE_NO_PAD.decode(part).ok().filter(|decoded| decoded.len() <= MAX_PART);
    decoded.ok_or(AuthError::Rejected(Fault::Form))
}

fn is_base64url(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}

/// What a header or payload may hold (tok-26). 10,000 groups still fit; `claims` caps them.
const LIMITS: json::Limits = json::Limits { depth: 16, nodes: 16_384 };
/// Bytes of a decoded header or payload.
const MAX_PART: usize = 12 << 10;
/// Members of the payload.
const MAX_CLAIMS: usize = 128;
/// Bytes of `kid` and `typ`.
const MAX_NAME: usize = 256;
