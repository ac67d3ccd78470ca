//! What a browser is told of pages that may ask here: those of the origins that the
//! configuration lists (conn-19).
//!
//! Says nothing of anybody else, and allows no cookies: who somebody is, a token says.
//! Called by `pipeline`, for every answer; which origins are refused is for `route` to say.

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts};

use crate::{
    config::Config,
    http::{Response, reply},
};

/// The listed origin that a request comes from.
pub fn listed(headers: &HeaderMap, config: &Config) -> Option<HeaderValue> {
    if config.origins.is_empty() {
        return None;
    }
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let (Some(origin), None) = (origins.next(), origins.next()) else {
        return None;
    };
    let is_listed = |known: &String| origin.as_bytes().eq_ignore_ascii_case(known.as_bytes());
    config.origins.iter().any(is_listed).then(|| origin.clone())
}

/// Whether a browser asks for a page whether that may ask.
pub fn is_preflight(head: &Parts, config: &Config) -> bool {
    head.method == Method::OPTIONS
        && head
            .headers
            .contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
        && listed(&head.headers, config).is_some()
}

/// The answer to that: with these methods, and with the headers that are read of those it names.
pub fn preflight(headers: &HeaderMap, methods: &'static str) -> Response {
    let mut response = reply::empty(StatusCode::NO_CONTENT);
    let told = response.headers_mut();
    let wanted = headers
        .get_all(header::ACCESS_CONTROL_REQUEST_HEADERS)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(is_allowed)
        .take(MAX_NAMES);
    let wanted: Vec<_> = wanted.map(|name| name.as_str().to_owned()).collect();
    if let Ok(wanted) = HeaderValue::from_str(&wanted.join(", ")) {
        told.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted);
    }
    for (name, value) in [
        (header::ACCESS_CONTROL_ALLOW_METHODS, methods),
        (header::ACCESS_CONTROL_MAX_AGE, MAX_AGE),
    ] {
        told.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Lets the pages of this origin read the answer.
pub fn allow(response: &mut Response, origin: HeaderValue) {
    let told = response.headers_mut();
    told.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    told.insert(
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static(EXPOSED),
    );
    told.append(header::VARY, HeaderValue::from_static("origin"));
}

fn is_allowed(name: &HeaderName) -> bool {
    READ.contains(&name.as_str()) || name.as_str().starts_with("mcp-param-")
}

/// What a client of MCP has to say, besides what its browser lets it say unasked.
const READ: &[&str] = &[
    "accept",
    "authorization",
    "content-type",
    "dpop",
    "last-event-id",
    "mcp-method",
    "mcp-name",
    "mcp-protocol-version",
    "mcp-session-id",
];
/// What it has to read.
const EXPOSED: &str = "mcp-session-id, www-authenticate, dpop-nonce, retry-after";
/// Names of headers in one answer.
const MAX_NAMES: usize = 64;
/// Seconds for which a browser need not ask again.
const MAX_AGE: &str = "600";
