//! `WWW-Authenticate` (RFC 6750 §3, RFC 9728 §5.1), on one line.

use http::HeaderValue;

use super::{AuthError, metadata_url};
use crate::config::Resource;

/// The challenge that goes with an answer; none where the token is not at fault.
/// Nothing of the request is repeated in it.
pub fn challenge(error: &AuthError, resource: &Resource) -> Option<HeaderValue> {
    let error = match error {
        AuthError::Missing => "",
        AuthError::Malformed(_) => {
            "error=\"invalid_request\", error_description=\"The Authorization header is malformed\", "
        }
        AuthError::Rejected(_) => {
            "error=\"invalid_token\", error_description=\"The token is not valid here\", "
        }
        AuthError::IssuerDown { .. } => return None,
    };
    HeaderValue::from_str(&format!(
        "Bearer {error}resource_metadata=\"{}\"",
        metadata_url(resource)
    ))
    .ok()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            AuthError, Fault,
            testing::{bearer, bench, token},
        },
        challenge,
    };
    use crate::config::Resource;

    fn resource() -> Resource {
        Resource {
            url: "https://MCP.example.com/github".to_owned(),
            origin: "https://mcp.example.com".to_owned(),
            authority: "mcp.example.com".to_owned(),
            path: "/github".to_owned(),
        }
    }

    fn text(error: &AuthError) -> Option<String> {
        challenge(error, &resource()).map(|value| value.to_str().unwrap().to_owned())
    }

    const WHERE: &str =
        "resource_metadata=\"https://mcp.example.com/.well-known/oauth-protected-resource/github\"";

    /// tok-1, tok-3, mcp-A2: RFC 6750 §3.1: no error where no token was shown.
    #[test]
    fn a_challenge_says_where_tokens_come_from_and_what_was_wrong() {
        assert_eq!(
            text(&AuthError::Missing).unwrap(),
            format!("Bearer {WHERE}")
        );
        for (error, code) in [
            (AuthError::Malformed(Fault::Form), "invalid_request"),
            (AuthError::Rejected(Fault::Expired), "invalid_token"),
        ] {
            let text = text(&error).unwrap();
            assert!(
                text.starts_with(&format!("Bearer error=\"{code}\", error_description=\"")),
                "{text}"
            );
            assert!(text.ends_with(WHERE), "{text}");
            // Two at most of an outer and an inner quote each, and nothing that breaks the line.
            assert_eq!(text.matches('"').count(), 6);
        }
        assert_eq!(
            text(&AuthError::IssuerDown {
                issuer: "x".to_owned(),
                retry_after: 5
            }),
            None
        );
    }

    /// Whoever probes learns nothing: each fault is answered alike, and nothing of the token comes back.
    #[test]
    fn every_refused_token_gets_the_same_words() {
        let bench = bench();
        let faults = [
            token().claim("aud", "https://other.example").sign(),
            token().claim("sub", "quote\"me\r\n").sign(),
            token().header("kid", "quote\"me").sign(),
            token().claim("exp", 1).sign(),
            "opaque".to_owned(),
        ];
        let answers =
            faults.map(|token| text(&bench.ask(&bearer(&token), None).unwrap_err()).unwrap());
        assert!(
            answers
                .iter()
                .all(|answer| *answer == answers[0] && !answer.contains("quote")),
            "{answers:?}"
        );
    }
}
