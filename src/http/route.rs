//! Which request is for whom: exact paths, exact names, nothing normalized.

use http::{HeaderMap, HeaderName, Method, Version, header, request::Parts, uri::Authority};

use crate::{
    config::Config,
    http::{Refusal, cors},
};

/// Where a request goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Route {
    /// The protected-resource metadata (RFC 9728).
    Metadata,
    /// The MCP endpoint.
    Mcp,
    /// The stream of the transport of 2024-11-05, where it is served.
    Sse,
    /// Where its clients send their messages.
    Messages,
    /// A browser asks whether a page may ask, with one of these methods.
    Preflight(&'static str),
}

/// Checks where a request comes from and finds where it goes. `metadata` are
/// the paths that serve the metadata.
pub fn route(head: &Parts, config: &Config, metadata: &[String]) -> Result<Route, Refusal> {
    readable(&head.headers)?;
    expectation(&head.headers)?;
    if head
        .uri
        .path_and_query()
        .is_some_and(|target| target.as_str().len() > MAX_TARGET)
    {
        return Err(Refusal::TargetTooLong);
    }
    host(head, config)?;
    origin(&head.headers, config)?;
    let path = head.uri.path();
    if metadata.iter().any(|known| known == path) {
        return if head.method == Method::GET {
            Ok(Route::Metadata)
        } else {
            other_method(head, config, "GET")
        };
    }
    if path != config.resource.path {
        let below = path
            .strip_prefix(config.resource.path.trim_end_matches('/'))
            .filter(|_| config.legacy_sse);
        return match (below, &head.method) {
            (Some(SSE), &Method::GET) => Ok(Route::Sse),
            (Some(SSE), _) => other_method(head, config, "GET"),
            (Some(MESSAGES), &Method::POST) => Ok(Route::Messages),
            (Some(MESSAGES), _) => other_method(head, config, "POST"),
            _ => Err(Refusal::NotFound),
        };
    }
    match head.method {
        Method::POST | Method::GET | Method::DELETE => Ok(Route::Mcp),
        _ => other_method(head, config, MCP_METHODS),
    }
}

/// A method that is not served there, unless a browser asks for one of those that are.
fn other_method(head: &Parts, config: &Config, methods: &'static str) -> Result<Route, Refusal> {
    if cors::is_preflight(head, config) {
        Ok(Route::Preflight(methods))
    } else {
        Err(Refusal::MethodNotAllowed(methods))
    }
}

/// A POST's own headers: exactly JSON in, JSON and events out (conn-16 … conn-18).
pub fn post_headers(headers: &HeaderMap) -> Result<(), Refusal> {
    message_headers(headers)?;
    let accepted = Accepted::of(headers);
    if accepted.json && accepted.events {
        Ok(())
    } else {
        Err(Refusal::NotAcceptable)
    }
}

/// A message's own headers, where its answer comes elsewhere: exactly JSON in.
pub fn message_headers(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(kind), None) = (types.next(), types.next()) else {
        return Err(Refusal::ContentType);
    };
    if !media_type(kind.as_bytes()).eq_ignore_ascii_case(b"application/json") {
        return Err(Refusal::ContentType);
    }
    if headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"))
    {
        return Err(Refusal::ContentType);
    }
    Ok(())
}

/// A GET's own headers: events out.
pub fn get_headers(headers: &HeaderMap) -> Result<(), Refusal> {
    if Accepted::of(headers).events {
        Ok(())
    } else {
        Err(Refusal::NotAcceptable)
    }
}

/// What the client says that it reads, of what it may be answered with.
#[derive(Default)]
struct Accepted {
    json: bool,
    events: bool,
}

impl Accepted {
    fn of(headers: &HeaderMap) -> Self {
        let mut accepted = Self::default();
        let lines = headers.get_all(header::ACCEPT).iter();
        let kinds = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
        for kind in kinds.map(media_type) {
            let is = |name: &str| kind.eq_ignore_ascii_case(name.as_bytes());
            let all = is("*/*");
            accepted.json |= all || is("application/json") || is("application/*");
            accepted.events |= all || is("text/event-stream") || is("text/*");
        }
        accepted
    }
}

/// Headers that are read are text (h1-19). What others say is nobody's business here.
fn readable(headers: &HeaderMap) -> Result<(), Refusal> {
    let is_read = |name: &HeaderName| {
        READ.contains(name) || OWN.iter().any(|start| name.as_str().starts_with(start))
    };
    // The longest of all is judged by others, see there.
    let wrong = headers.iter().any(|(name, value)| {
        *name != header::AUTHORIZATION && !value.as_bytes().is_ascii() && is_read(name)
    });
    if wrong { Err(Refusal::Header) } else { Ok(()) }
}

/// `Expect` knows one word (RFC 9110 §10.1.1), and that is answered before anybody asks here.
fn expectation(headers: &HeaderMap) -> Result<(), Refusal> {
    let met = |line: &http::HeaderValue| line.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if headers.get_all(header::EXPECT).iter().all(met) {
        Ok(())
    } else {
        Err(Refusal::Expectation)
    }
}

fn host(head: &Parts, config: &Config) -> Result<(), Refusal> {
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let told = (hosts.next().map(http::HeaderValue::as_bytes), hosts.next());
    let authority = head.uri.authority().map(|name| name.as_str().as_bytes());
    let host = match (told, authority) {
        ((Some(host), None), _) => host,
        // HTTP/2 has a field of its own for it (RFC 9113 §8.3.1).
        ((None, None), Some(authority)) if head.version == Version::HTTP_2 => authority,
        _ => return Err(Refusal::BadHost),
    };
    // Two names for one host are two hosts (h1-9, conn-15).
    if authority.is_some_and(|authority| !authority.eq_ignore_ascii_case(host)) {
        return Err(Refusal::BadHost);
    }
    let mut known = config.hosts.iter();
    if known.any(|known| host.eq_ignore_ascii_case(known.as_bytes())) {
        Ok(())
    } else if is_host(host) {
        Err(Refusal::HostNotAllowed)
    } else {
        Err(Refusal::BadHost)
    }
}

/// Whether it is a name or an address, and perhaps a port: no user, no path (RFC 9112 §3.2, h1-8).
pub fn is_host(host: &[u8]) -> bool {
    let Ok(authority) = Authority::try_from(host) else {
        return false;
    };
    let name = authority.host();
    // None where a user stands before it.
    match authority.as_str().strip_prefix(name) {
        Some("") => !name.is_empty(),
        Some(port) => !name.is_empty() && port[1..].bytes().all(|byte| byte.is_ascii_digit()),
        None => false,
    }
}

fn origin(headers: &HeaderMap, config: &Config) -> Result<(), Refusal> {
    let listed = |origin: &[u8]| {
        origin.eq_ignore_ascii_case(config.resource.origin.as_bytes())
            || config
                .origins
                .iter()
                .any(|known| origin.eq_ignore_ascii_case(known.as_bytes()))
    };
    let all = headers.get_all(header::ORIGIN);
    if all.iter().all(|origin| listed(origin.as_bytes())) {
        Ok(())
    } else {
        Err(Refusal::OriginNotAllowed)
    }
}

/// A media type or range without its parameters and spaces.
fn media_type(value: &[u8]) -> &[u8] {
    value
        .split(|byte| *byte == b';')
        .next()
        .unwrap_or_default()
        .trim_ascii()
}

/// The paths of the transport of 2024-11-05, below the resource's own.
const SSE: &str = "/sse";
pub const MESSAGES: &str = "/messages";
/// The methods of the MCP endpoint that are answered.
pub const MCP_METHODS: &str = "POST, GET, DELETE";
/// Those that are answered to a modern client (mcp-T18).
pub const MODERN_METHODS: &str = "POST";
/// Bytes of a request's target (h1-12).
const MAX_TARGET: usize = 8 << 10;
/// What thv reads of any request. Authorization is judged by `auth`, which has a challenge
/// for one that is no text (tok-14).
const READ: &[HeaderName] = &[
    header::ACCEPT,
    header::CONTENT_ENCODING,
    header::CONTENT_TYPE,
    header::EXPECT,
    header::FORWARDED,
    header::HOST,
    header::ORIGIN,
];
/// MCP's own, and those of proofs and proxies.
const OWN: [&str; 4] = ["mcp-", "last-event-id", "dpop", "x-forwarded-for"];
