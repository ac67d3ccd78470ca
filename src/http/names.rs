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
