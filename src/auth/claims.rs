//! The claims of an access token against the issuer's configuration
//! (RFC 9068 §4, RFC 7519 §4.1, OpenID Connect Core §2 for what marks an ID token).

use super::{AuthError, Fault, Identity, Kind as Principal, jwt::Claims, jwt::Header};
use crate::{
    config::Issuer,
    json::{Kind, Value},
};

/// The issuer that a token names, if it names one.
pub(super) fn issuer(claims: &Claims) -> Result<String, AuthError> {
    let issuer = claims.get("iss").and_then(Value::as_str).ok_or(AuthError::Rejected(Fault::Issuer))?;
    Ok(issuer.into_owned())
}

/// Checks all that does not need the issuer's keys, and says whose token it is.
/// The result is worth nothing until the signature is verified.
pub(super) fn check(header: &Header, claims: &Claims, issuer: &Issuer, now: u64) -> Result<Identity, AuthError> {
    kind_of_token(header, claims, issuer)?;
    audience(claims, issuer)?;
    let expires_at = times(claims, issuer, now)?;
    // Bound to a key that is not shown here, so whoever shows it may have stolen it (tok-113).
    if claims.get("cnf").is_some() {
        return Err(AuthError::Rejected(Fault::Claim));
    }
    text(claims, "jti", MAX_ID)?;
    let subject = text(claims, "sub", MAX_ID)?.ok_or(AuthError::Rejected(Fault::Claim))?;
    if subject.is_empty() || subject.chars().any(char::is_control) {
        return Err(AuthError::Rejected(Fault::Claim));
    }
    let client = client(claims, issuer)?;
    // A program acting for itself, never the user of that name (RFC 9700 §4.15): whichever
    // claim says so, read here or not.
    let names_a_client = |name: &&str| claims.get(name).and_then(Value::as_str).as_deref() == Some(subject.as_str());
    let kind = if CLIENT_CLAIMS.iter().any(names_a_client) { Principal::Client } else { Principal::User };
    Ok(Identity {
        issuer: issuer.issuer.clone(),
        subject,
        kind,
        client,
        scopes: scopes(claims, issuer)?,
        groups: groups(claims)?,
        expires_at,
    })
}

/// An access token, and no other kind of JWT (RFC 8725 §3.11).
fn kind_of_token(header: &Header, claims: &Claims, issuer: &Issuer) -> Result<(), AuthError> {
    let right = match header.typ.as_deref() {
        Some("at+jwt") => true,
        Some("jwt") | None => issuer.legacy_typ,
        Some(_) => false,
    };
    let of_an_id_token = ["nonce", "at_hash", "c_hash"].iter().any(|marker| claims.get(marker).is_some());
    if right && !of_an_id_token { Ok(()) } else { Err(AuthError::Rejected(Fault::Type)) }
}

fn audience(claims: &Claims, issuer: &Issuer) -> Result<(), AuthError> {
    let wrong = AuthError::Rejected(Fault::Audience);
    let Some(audience) = claims.get("aud") else { return Err(wrong) };
    // With or without one trailing slash; everything else byte for byte (tok-75).
    let bare = |url: &str| url.strip_suffix('/').unwrap_or(url).to_owned();
    let ours = |named: &str| issuer.audience.iter().any(|ours| bare(ours) == bare(named));
    let good = match audience.kind() {
        Kind::String => audience.as_str().is_some_and(|named| ours(&named)),
        Kind::Array => {
            audience.elements().all(|named| named.kind() == Kind::String)
                && audience.elements().filter_map(Value::as_str).any(|named| ours(&named))
        }
        _ => false,
    };
    if good { Ok(()) } else { Err(wrong) }
}

/// `exp`, `nbf` and `iat`; returns `exp`.
fn times(claims: &Claims, issuer: &Issuer, now: u64) -> Result<u64, AuthError> {
    let leeway = issuer.leeway.as_secs();
    let expires = seconds(claims, "exp")?.ok_or(AuthError::Rejected(Fault::Claim))?;
    let from = seconds(claims, "nbf")?;
    let issued = seconds(claims, "iat")?;
    if issued.is_none() && !issuer.legacy_typ {
        return Err(AuthError::Rejected(Fault::Claim));
    }
    if now >= expires.saturating_add(leeway) {
        return Err(AuthError::Rejected(Fault::Expired));
    }
    if from.max(issued).is_some_and(|from| from > now + leeway) {
        return Err(AuthError::Rejected(Fault::NotYetValid));
    }
    // Also catches milliseconds taken for seconds (tok-66).
    let start = issued.or(from).unwrap_or(now);
    if from.max(issued).is_some_and(|from| from > expires) || expires - start.min(expires) > MAX_LIFETIME {
        return Err(AuthError::Rejected(Fault::Claim));
    }
    Ok(expires)
}

/// A NumericDate in whole seconds; absent is none, anything but a number from zero on is refused (inc-21).
fn seconds(claims: &Claims, name: &str) -> Result<Option<u64>, AuthError> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    let number = value.as_number().and_then(|text| text.parse::<f64>().ok());
    match number {
        // Up to here a double is exact; floor, not round (tok-63). Zero is some providers' "always" in `nbf`.
        Some(seconds) if (0.0..MAX_SECONDS).contains(&seconds) => {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded just above")]
            Ok(Some(seconds as u64))
        }
        _ => Err(AuthError::Rejected(Fault::Claim)),
    }
}

fn client(claims: &Claims, issuer: &Issuer) -> Result<Option<String>, AuthError> {
    let names = if issuer.legacy_typ { &CLIENT_CLAIMS } else { &CLIENT_CLAIMS[..2] };
    let mut found = None;
    for name in names {
        if let Some(client) = text(claims, name, MAX_ID)? {
            if !issuer.clients.is_empty() && !issuer.clients.contains(&client) {
                return Err(AuthError::Rejected(Fault::Client));
            }
            found.get_or_insert(client);
        }
    }
    if found.is_none() && !issuer.clients.is_empty() {
        return Err(AuthError::Rejected(Fault::Client));
    }
    Ok(found)
}

fn scopes(claims: &Claims, issuer: &Issuer) -> Result<Vec<String>, AuthError> {
    let wrong = || AuthError::Rejected(Fault::Claim);
    let list = match (claims.get("scope"), claims.get("scp").filter(|_| issuer.legacy_typ)) {
        (None, None) => return Ok(Vec::new()),
        (Some(scope), _) => words(scope).ok_or_else(wrong)?,
        // Okta says a list, Entra ID a string.
        (None, Some(scopes)) if scopes.kind() == Kind::Array => strings(scopes).ok_or_else(wrong)?,
        (None, Some(scope)) => words(scope).ok_or_else(wrong)?,
    };
    let distinct = list.iter().enumerate().all(|(at, scope)| !list[..at].contains(scope));
    // RFC 6749 §3.3.
    let legal = |scope: &String| {
        !scope.is_empty() && scope.bytes().all(|byte| matches!(byte, 0x21 | 0x23..=0x5B | 0x5D..=0x7E))
    };
    if distinct && list.len() <= MAX_SCOPES && list.iter().all(legal) { Ok(list) } else { Err(wrong()) }
}

fn words(value: Value<'_>) -> Option<Vec<String>> {
    let text = value.as_str()?;
    Some(if text.is_empty() { Vec::new() } else { text.split(' ').map(str::to_owned).collect() })
}

fn groups(claims: &Claims) -> Result<Vec<String>, AuthError> {
    let Some(groups) = claims.get("groups") else { return Ok(Vec::new()) };
    let list = if groups.kind() == Kind::Array { strings(groups) } else { None };
    list.filter(|list| list.len() <= MAX_GROUPS).ok_or(AuthError::Rejected(Fault::Claim))
}

fn strings(list: Value<'_>) -> Option<Vec<String>> {
    list.elements().map(|element| element.as_str().map(|text| text.into_owned())).collect()
}

/// A claim that is a string of at most `max` bytes, where it is there at all.
fn text(claims: &Claims, name: &str, max: usize) -> Result<Option<String>, AuthError> {
    match claims.get(name) {
        None => Ok(None),
        Some(value) => match value.as_str() {
            Some(text) if text.len() <= max => Ok(Some(text.into_owned())),
            _ => Err(AuthError::Rejected(Fault::Claim)),
        },
    }
}

/// What names the client: RFC 9068, OpenID Connect Core, then what Okta and Entra ID v1 say instead.
const CLIENT_CLAIMS: [&str; 4] = ["client_id", "azp", "cid", "appid"];
/// Bytes of a subject, client or token id (OpenID Connect Core §2 says 255).
const MAX_ID: usize = 255;
/// How long a token may live, in seconds.
const MAX_LIFETIME: u64 = 24 * 60 * 60;
/// Beyond this a double no longer counts seconds one by one: 2^53.
const MAX_SECONDS: f64 = 9_007_199_254_740_992.0;
const MAX_SCOPES: usize = 256;
const MAX_GROUPS: usize = 1024;
