//! The headers that MCP adds to HTTP (mcp-L7, mcp-L9, mcp-T12), and one that server-sent events have.

use http::{HeaderMap, HeaderName};

use super::Refusal;

pub static SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
pub static VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
pub static METHOD: HeaderName = HeaderName::from_static("mcp-method");
pub static NAME: HeaderName = HeaderName::from_static("mcp-name");
pub static LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// A header that may come at most once, as visible text.
pub fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Refusal> {
    let mut lines = headers.get_all(name).iter();
    match (lines.next(), lines.next()) {
        (None, _) => Ok(None),
        (Some(line), None) => line.to_str().map(Some).map_err(|_| Refusal::Header),
        (Some(_), Some(_)) => Err(Refusal::Header),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    /// mcp-L7, mcp-L9: two programs must not each take another one of two.
    #[test]
    fn a_header_that_comes_twice_or_is_no_text_is_refused() {
        for name in [&SESSION_ID, &VERSION, &METHOD, &NAME, &LAST_EVENT_ID] {
            let with = |values: &[&[u8]]| -> HeaderMap {
                let value = |value: &&[u8]| HeaderValue::from_bytes(value).unwrap();
                let lines = values.iter().map(|one| (name.clone(), value(one)));
                lines.collect()
            };
            assert_eq!(one(&with(&[]), name).unwrap(), None);
            assert_eq!(one(&with(&[b"a b"]), name).unwrap(), Some("a b"));
            for values in [&[&b"a"[..], b"a"][..], &[b"", b"a"], &[b"a\xe9"]] {
                let headers = with(values);
                let told = one(&headers, name);
                assert!(matches!(told, Err(Refusal::Header)), "{values:?}");
            }
        }
    }
}
