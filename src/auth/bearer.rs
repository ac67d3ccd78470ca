//! The Authorization header (RFC 6750 §2.1, RFC 9110 §11).

use http::{HeaderMap, header};

use super::{AuthError, Fault};
use crate::scan::any;

/// What stands where a token should, and how it was shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Shown<'a> {
    pub(super) scheme: Scheme,
    pub(super) token: &'a [u8],
}

impl<'a> Shown<'a> {
    /// The token, if it has the form of one.
    pub(super) fn checked(self) -> Result<&'a str, AuthError> {
        let fits = is_token68(self.token) && self.token.len() <= MAX_TOKEN;
        let text = std::str::from_utf8(self.token).ok();
        text.filter(|_| fits)
            .ok_or(AuthError::Malformed(Fault::Form))
    }
}

/// The authentication schemes that carry a token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Scheme {
    Bearer,
    /// RFC 9449 §7.1.
    Dpop,
}

/// The one token of a request, whose form is still to be checked. `schemes` are those that are
/// spoken here; others are unknown.
pub(super) fn credentials<'a>(
    headers: &'a HeaderMap,
    query: Option<&str>,
    schemes: &[Scheme],
) -> Result<Shown<'a>, AuthError> {
    let mut lines = headers.get_all(header::AUTHORIZATION).iter();
    // A token in the query is never read (OAuth 2.1 §5.1) …
    let Some(line) = lines.next() else {
        return Err(AuthError::Missing);
    };
    if lines.next().is_some() {
        return Err(AuthError::Malformed(Fault::Ambiguous));
    }
    let value = line.as_bytes();
    let scheme_end = value
        .iter()
        .position(|byte| !is_tchar(*byte))
        .unwrap_or(value.len());
    let (scheme, rest) = value.split_at(scheme_end);
    // Not asked of a token that may be one: its own form is still to be checked, and says more.
    let otherwise = |error| {
        if value.is_ascii() {
            error
        } else {
            AuthError::Malformed(Fault::Form)
        }
    };
    let spoken = [(&b"bearer"[..], Scheme::Bearer), (b"dpop", Scheme::Dpop)];
    let scheme = spoken
        .into_iter()
        .find(|(name, _)| scheme.eq_ignore_ascii_case(name))
        .map(|(_, scheme)| scheme)
        .filter(|scheme| schemes.contains(scheme))
        .ok_or_else(|| otherwise(AuthError::Missing))?;
    // … and two places for one token are one too many (tok-9).
    if query.is_some_and(names_a_token) {
        return Err(otherwise(AuthError::Malformed(Fault::Ambiguous)));
    }
    let spaces = rest.iter().take_while(|byte| **byte == b' ').count();
    if spaces == 0 {
        return Err(AuthError::Malformed(Fault::Form));
    }
    Ok(Shown {
        scheme,
        token: &rest[spaces..],
    })
}

/// What an only Authorization header holds after its scheme, be it a token or not: for the record.
pub fn shown(headers: &HeaderMap) -> Option<&[u8]> {
    let mut lines = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else {
        return None;
    };
    let value = line.as_bytes();
    let space = value.iter().position(|byte| *byte == b' ')?;
    Some(value[space..].trim_ascii())
}

fn names_a_token(query: &str) -> bool {
    query
        .split('&')
        .any(|pair| pair.split('=').next() == Some("access_token"))
}

/// RFC 9110 §5.6.2.
fn is_tchar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// RFC 9110 §11.2.
fn is_token68(token: &[u8]) -> bool {
    let padding = token.iter().rev().take_while(|byte| **byte == b'=').count();
    let body = &token[..token.len() - padding];
    let is_wrong = |byte: u8| {
        let marks = [b'-', b'.', b'_', b'~', b'+', b'/'];
        !byte.is_ascii_alphanumeric()
            && !marks.iter().fold(false, |any, mark| any | (byte == *mark))
    };
    !body.is_empty() && !any(body, is_wrong)
}

/// Bytes of a token (tok-13).
const MAX_TOKEN: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue, header};

    use super::{super::testing, AuthError, Fault, MAX_TOKEN, Scheme, Shown};

    const FORM: AuthError = AuthError::Malformed(Fault::Form);
    const AMBIGUOUS: AuthError = AuthError::Malformed(Fault::Ambiguous);

    fn lines(lines: &[&[u8]]) -> HeaderMap {
        let value = |line: &&[u8]| {
            (
                header::AUTHORIZATION,
                HeaderValue::from_bytes(line).unwrap(),
            )
        };
        lines.iter().map(value).collect()
    }

    #[track_caller]
    fn refused(line: &[u8], wanted: &AuthError) {
        let shown = String::from_utf8_lossy(&line[..line.len().min(60)]);
        assert_eq!(
            super::credentials(&lines(&[line]), None, &[Scheme::Bearer])
                .and_then(Shown::checked)
                .as_ref(),
            Err(wanted),
            "{shown}"
        );
    }

    /// tok-1, tok-2, tok-10, tok-11: a token anywhere else is none.
    #[test]
    fn a_token_that_is_not_in_the_authorization_header_is_missing() {
        let bench = testing::bench();
        let token = testing::token().sign();
        assert_eq!(bench.ask(&HeaderMap::new(), None), Err(AuthError::Missing));
        for name in [
            "cookie",
            "x-forwarded-access-token",
            "x-auth-request-access-token",
            "proxy-authorization",
            "mcp-session-id",
            "x-authorization",
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(
                HeaderName::from_static(name),
                HeaderValue::try_from(format!("Bearer {token}")).unwrap(),
            );
            assert_eq!(bench.ask(&headers, None), Err(AuthError::Missing), "{name}");
        }
        for line in [
            "Basic YTpi",
            "DPoP abc",
            "Negotiate abc",
            "",
            "Bearers abc",
            "Token abc",
        ] {
            refused(line.as_bytes(), &AuthError::Missing);
        }
    }

    /// tok-3, tok-4, tok-12, tok-14, tok-18: what RFC 9110 does not call a token is malformed.
    #[test]
    fn what_is_not_exactly_one_token_is_malformed() {
        for line in [
            "Bearer",
            "Bearer ",
            "Bearer a b",
            "Bearer {}",
            "Bearer \"a\"",
            "Bearer a%20b",
            "Bearer\tabc",
            "Bearer a\tb",
            "Bearer a=b",
            "Bearer ==",
            "Bearer=abc",
            "Bearer {\"payload\":\"e30\",\"signatures\":[]}",
            "Bearer a;b",
        ] {
            refused(line.as_bytes(), &FORM);
        }
        // Every byte that a header may have, in the middle.
        for byte in (0..=0xFF_u8).filter(|byte| HeaderValue::from_bytes(&[*byte]).is_ok()) {
            let line = [b"Bearer ab", &[byte][..], b"c"].concat();
            if byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte) {
                let headers = lines(&[&line]);
                let shown = super::credentials(&headers, None, &[Scheme::Bearer]);
                assert_eq!(
                    shown.and_then(Shown::checked).unwrap().as_bytes(),
                    &line[7..]
                );
            } else {
                refused(&line, &FORM);
            }
        }
        refused(b"Bearer ab\xe9", &FORM);
        refused(b"Bearer \xc3\xa9", &FORM);
        for byte in [b'\0', b'\r', b'\n'] {
            assert!(
                HeaderValue::from_bytes(&[b'B', byte]).is_err(),
                "the HTTP parser lets no control byte through"
            );
        }
    }

    /// tok-5: a scheme has no case.
    #[test]
    fn the_scheme_may_be_written_in_any_case() {
        let bench = testing::bench();
        let token = testing::token().sign();
        for scheme in ["Bearer", "bearer", "BEARER", "bEaReR", "Bearer  "] {
            let headers = lines(&[format!("{scheme} {token}").as_bytes()]);
            assert_eq!(bench.ask(&headers, None).unwrap().subject(), "alice");
        }
    }

    /// tok-6, tok-7, inc-18: two tokens are never one good one.
    #[test]
    fn two_tokens_are_malformed_even_if_both_are_good() {
        let bench = testing::bench();
        let line = format!("Bearer {}", testing::token().sign());
        assert_eq!(
            bench.ask(&lines(&[line.as_bytes(), line.as_bytes()]), None),
            Err(AMBIGUOUS)
        );
        assert_eq!(
            bench.ask(&lines(&[line.as_bytes(), b"Basic YTpi"]), None),
            Err(AMBIGUOUS)
        );
        assert_eq!(
            bench.ask(&lines(&[format!("{line}, {line}").as_bytes()]), None),
            Err(FORM)
        );
    }

    /// tok-8, tok-9: a token in the query is not read, and beside one in the header it is one too many.
    #[test]
    fn a_token_in_the_query_is_no_token() {
        let bench = testing::bench();
        let token = testing::token().sign();
        let query = format!("access_token={token}");
        assert_eq!(
            bench.ask(&HeaderMap::new(), Some(&query)),
            Err(AuthError::Missing)
        );
        let headers = testing::bearer(&token);
        for query in [
            &*query,
            "a=b&access_token=x",
            "access_token",
            "access_token=",
        ] {
            assert_eq!(bench.ask(&headers, Some(query)), Err(AMBIGUOUS), "{query}");
        }
        assert!(
            bench
                .ask(&headers, Some("token=x&my_access_token=y"))
                .is_ok()
        );
    }

    /// tok-13: too long a token is refused before any of it is decoded.
    #[test]
    fn a_token_has_a_longest_length() {
        let line = |length| format!("Bearer {}", "a".repeat(length));
        assert_eq!(
            super::credentials(
                &lines(&[line(MAX_TOKEN).as_bytes()]),
                None,
                &[Scheme::Bearer]
            )
            .and_then(Shown::checked)
            .map(str::len),
            Ok(MAX_TOKEN)
        );
        refused(line(MAX_TOKEN + 1).as_bytes(), &FORM);
        assert_eq!(
            testing::bench().ask(&lines(&[line(MAX_TOKEN).as_bytes()]), None),
            Err(AuthError::Rejected(Fault::Form))
        );
    }

    /// tok-16: who a caller says to be makes no difference.
    #[test]
    fn headers_that_name_a_user_have_no_effect() {
        let bench = testing::bench();
        let mut headers = testing::bearer(&testing::token().sign());
        for name in [
            "x-user",
            "x_user",
            "x-forwarded-user",
            "x-forwarded-email",
            "x-auth-request-user",
            "x-remote-user",
        ] {
            headers.insert(
                HeaderName::from_static(name),
                HeaderValue::from_static("root"),
            );
        }
        let identity = bench.ask(&headers, None).unwrap();
        assert_eq!(
            (identity.issuer(), identity.subject()),
            (testing::ISSUER, "alice")
        );
        headers.remove(header::AUTHORIZATION);
        assert_eq!(bench.ask(&headers, None), Err(AuthError::Missing));
    }
}
