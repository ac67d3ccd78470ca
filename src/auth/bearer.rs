//! The Authorization header (RFC 6750 §2.1, RFC 9110 §11).

use http::{HeaderMap, header};

use super::{AuthError, Fault};

/// The one bearer token of a request.
pub(super) fn token<'a>(headers: &'a HeaderMap, query: Option<&str>) -> Result<&'a str, AuthError> {
    let mut lines = headers.get_all(header::AUTHORIZATION).iter();
    // A token in the query is never read (OAuth 2.1 §5.1) …
    let Some(line) = lines.next() else { return Err(AuthError::Missing) };
    if lines.next().is_some() {
        return Err(AuthError::Malformed(Fault::Ambiguous));
    }
    let value = line.as_bytes();
    let scheme_end = value.iter().position(|byte| !is_tchar(*byte)).unwrap_or(value.len());
    let (scheme, rest) = value.split_at(scheme_end);
    if value.iter().any(|byte| *byte >= 0x80) {
        return Err(AuthError::Malformed(Fault::Form));
    }
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return Err(AuthError::Missing);
    }
    // … and two places for one token are one too many (tok-9).
    if query.is_some_and(names_a_token) {
        return Err(AuthError::Malformed(Fault::Ambiguous));
    }
    let spaces = rest.iter().take_while(|byte| **byte == b' ').count();
    let token = &rest[spaces..];
    let text = std::str::from_utf8(token).unwrap_or_default();
    if spaces == 0 || !is_token68(token) || token.len() > MAX_TOKEN {
        return Err(AuthError::Malformed(Fault::Form));
    }
    Ok(text)
}

fn names_a_token(query: &str) -> bool {
    query.split('&').any(|pair| pair.split('=').next() == Some("access_token"))
}

/// RFC 9110 §5.6.2.
fn is_tchar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// RFC 9110 §11.2.
fn is_token68(token: &[u8]) -> bool {
    let padding = token.iter().rev().take_while(|byte| **byte == b'=').count();
    let body = &token[..token.len() - padding];
    !body.is_empty() && body.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/".contains(byte))
}

/// Bytes of a token (tok-13).
const MAX_TOKEN: usize = 16 << 10;
