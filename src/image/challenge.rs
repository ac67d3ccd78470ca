//! What a registry wants to be shown: `WWW-Authenticate`, and where a token for it is.

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// How it is shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Scheme {
    Basic,
    Bearer,
}

/// One challenge (RFC 9110 §11.6.1).
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Challenge {
    pub(super) scheme: Scheme,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// One whole header; registries send one challenge in each.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "basic" => Scheme::Basic,
            "bearer" => Scheme::Bearer,
            _ => return None,
        };
        let mut parameters = Vec::new();
        loop {
            rest = rest.trim_start_matches([' ', '\t', ',']);
            if rest.is_empty() {
                return Some(Self { scheme, parameters });
            }
            let (name, after) = rest.split_once('=')?;
            let (value, after) = value(after)?;
            parameters.push((name.trim().to_ascii_lowercase(), value));
            if parameters.len() > MAX_PARAMETERS {
                return None;
            }
            rest = after;
        }
    }

    /// Where a token that may pull from `path` is to be had. The scope is ours and not the
    /// registry's: it can ask for no more than it is trusted with.
    pub(super) fn token_url(&self, path: &str) -> Option<String> {
        let get = |wanted: &str| {
            let found = self.parameters.iter().find(|(name, _)| name == wanted);
            found.map(|(_, value)| value.as_str())
        };
        let realm = get("realm").filter(|realm| realm.starts_with("https://"))?;
        let mut url = realm.to_owned();
        url.push(if realm.contains('?') { '&' } else { '?' });
        if let Some(service) = get("service") {
            url.push_str(&format!("service={}&", encoded(service)));
        }
        url.push_str(&format!(
            "scope={}",
            encoded(&format!("repository:{path}:pull"))
        ));
        Some(url)
    }
}

/// The Authorization header of a `USER:PASSWORD` (RFC 7617).
pub(super) fn basic(login: &str) -> String {
    format!("Basic {}", STANDARD.encode(login))
}

/// A token or a quoted string, and what follows.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

/// Percent-encoded, but for what a query may hold as it is (RFC 3986 §3.4).
fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' | b'/' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

const MAX_PARAMETERS: usize = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever a registry says, a token is asked for by TLS and for one repository.
        #[test]
        fn any_challenge_is_read_or_not(
            text in "(Bearer|basic|x)? ?(realm=\"?https://[a-z?&=\"\\\\]{0,9}\"?)?[, ]{0,2}(\\PC{0,20}=\\PC{0,20}){0,3}",
        ) {
            if let Some(url) = Challenge::parse(&text).and_then(|it| it.token_url("a/b")) {
                prop_assert!(url.starts_with("https://") && url.ends_with("scope=repository:a/b:pull"));
            }
        }
    }

    #[test]
    fn a_challenge_says_where_a_token_is_and_not_what_it_may() {
        let challenge = Challenge::parse(
            r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push""#,
        )
        .unwrap();
        assert_eq!(
            challenge.token_url("a/b").unwrap(),
            "https://auth.example/token?service=registry.example&scope=repository:a/b:pull"
        );
        let other = Challenge::parse(r#"bearer realm="https://x/t?a=1", service="a b\"&c=d""#);
        assert_eq!(
            other.unwrap().token_url("x").unwrap(),
            "https://x/t?a=1&service=a%20b%22%26c%3Dd&scope=repository:x:pull"
        );
        assert_eq!(
            Challenge::parse("Basic realm=x").unwrap().scheme,
            Scheme::Basic
        );
    }

    #[test]
    fn what_is_no_challenge_that_can_be_met_is_none() {
        for text in ["", "Negotiate", r#"Bearer realm="https://x"#, "Bearer x"] {
            assert_eq!(Challenge::parse(text), None, "{text}");
        }
        for text in [r#"Bearer realm="http://x/t""#, "Bearer service=x", "Bearer"] {
            assert_eq!(Challenge::parse(text).unwrap().token_url("x"), None);
        }
    }
}
