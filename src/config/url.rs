//! URLs as configuration may write them: few forms, read strictly, kept verbatim.
//!
//! Pure. Identifiers are compared byte for byte by others (RFC 8707, OpenID
//! Connect Discovery §3), so what could be spelled in two ways is refused
//! rather than normalised.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Resource, value::shown};

/// An absolute URL, taken apart.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Parts<'a> {
    scheme: &'a str,
    host: &'a str,
    port: Option<u16>,
    path: &'a str,
    query: bool,
}

/// Reads the URL that names this server.
pub(super) fn resource(text: &str) -> Result<Resource, String> {
    let parts = web(text)?;
    if parts.query {
        return Err("a resource has no query".to_owned());
    }
    let path = if parts.path.is_empty() {
        "/"
    } else {
        parts.path
    };
    if path == WELL_KNOWN || path.starts_with("/.well-known/") {
        return Err(format!(
            "the path must not be below `{WELL_KNOWN}`, where the metadata is served"
        ));
    }
    let authority = parts.authority();
    Ok(Resource {
        url: text.to_owned(),
        origin: format!("{}://{authority}", parts.scheme.to_ascii_lowercase()),
        authority,
        path: path.to_owned(),
    })
}

/// Reads an issuer identifier: a web URL without query (OpenID Connect Discovery §3).
pub(super) fn issuer(text: &str) -> Result<String, String> {
    if web(text)?.query {
        Err("an issuer has no query".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

/// `scheme://host[:port]` of an issuer that was read.
pub(super) fn origin_of(issuer: &str) -> String {
    let after_scheme = issuer.find("://").map_or(0, |at| at + 3);
    let end = issuer[after_scheme..]
        .find('/')
        .map_or(issuer.len(), |at| after_scheme + at);
    issuer[..end].to_owned()
}

/// Reads a URL that is fetched.
pub(super) fn fetched(text: &str) -> Result<String, String> {
    web(text).map(|_| text.to_owned())
}

/// Reads the path of an endpoint.
pub(super) fn path(text: &str) -> Result<String, String> {
    let parts = text
        .starts_with('/')
        .then(|| format!("http://localhost{text}"))
        .ok_or_else(|| format!("{text:?} is no path such as \"/mcp\""))?;
    web(&parts).map(|_| text.to_owned())
}

/// Reads a `Host` value; gives it in lower case.
pub(super) fn host(text: &str) -> Result<String, String> {
    if text.contains('/') {
        return Err("a host is `HOST` or `HOST:PORT`, without scheme and path".to_owned());
    }
    authority(text)?;
    Ok(text.to_ascii_lowercase())
}

/// Reads an `Origin` value, of any scheme; gives it in lower case.
pub(super) fn origin(text: &str) -> Result<String, String> {
    let parts = split(text)?;
    if !parts.path.is_empty() || parts.query {
        return Err(
            "an origin is `SCHEME://HOST` or `SCHEME://HOST:PORT` and nothing after it".to_owned(),
        );
    }
    Ok(format!(
        "{}://{}",
        parts.scheme.to_ascii_lowercase(),
        parts.authority()
    ))
}

/// An `https` URL; `http` only where the host is this machine.
fn web(text: &str) -> Result<Parts<'_>, String> {
    let parts = split(text)?;
    if parts.scheme.eq_ignore_ascii_case("https")
        || (parts.scheme.eq_ignore_ascii_case("http") && parts.is_loopback())
    {
        Ok(parts)
    } else if parts.scheme.eq_ignore_ascii_case("http") {
        Err("`http` is accepted only for `localhost` and loopback addresses, elsewhere it must be `https`".to_owned())
    } else {
        Err(format!(
            "`{}` is not a scheme for this; it must be `https`",
            parts.scheme
        ))
    }
}

fn split(text: &str) -> Result<Parts<'_>, String> {
    if let Some(bad) = text
        .chars()
        .find(|c| !c.is_ascii_graphic() || "\"<>\\^`{|}".contains(*c))
    {
        return Err(format!("a URL has no {bad:?}"));
    }
    if text.contains('#') {
        return Err("a URL here has no fragment (`#`)".to_owned());
    }
    let (scheme, rest) = text
        .split_once("://")
        .ok_or("this is not an absolute URL such as `https://HOST/PATH`")?;
    let name_like = |c: u8| c.is_ascii_alphanumeric() || b"+-.".contains(&c);
    if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.bytes().all(name_like) {
        return Err(format!("`{scheme}` is not a scheme"));
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (netloc, tail) = rest.split_at(end);
    let (host, port) = authority(netloc)?;
    let (path, query) = tail
        .split_once('?')
        .map_or((tail, false), |(path, _)| (path, true));
    escapes(tail)?;
    if path.split('/').any(|part| {
        matches!(
            part.to_ascii_lowercase().replace("%2e", ".").as_str(),
            "." | ".."
        )
    }) {
        return Err("a path here has no `.` or `..`".to_owned());
    }
    Ok(Parts {
        scheme,
        host,
        port,
        path,
        query,
    })
}

/// `host[:port]`, no user.
fn authority(text: &str) -> Result<(&str, Option<u16>), String> {
    if text.contains('@') {
        return Err("a URL here names no user (`@`)".to_owned());
    }
    let (host, port) = match text.rfind(':') {
        Some(colon) if !text.ends_with(']') => (&text[..colon], Some(&text[colon + 1..])),
        _ => (text, None),
    };
    let port = match port {
        None => None,
        Some(digits) => match digits.parse::<u16>() {
            Ok(port) if port > 0 && port.to_string() == digits => Some(port),
            _ => return Err("what stands behind the `:` of the host is not a port".to_owned()),
        },
    };
    if let Some(literal) = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        return match literal.parse::<Ipv6Addr>() {
            Ok(_) => Ok((host, port)),
            Err(_) => Err(format!("{} is not an IPv6 address", shown(host))),
        };
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= MAX_LABEL
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || b"-_".contains(&c))
    };
    if host.len() > MAX_HOST || !host.split('.').all(label) {
        return Err(format!("{} is not a host", shown(host)));
    }
    // `127.1` or `0x7f.1` would mean different hosts to different readers.
    let last = host.rsplit('.').next().unwrap_or(host);
    if last.starts_with(|c: char| c.is_ascii_digit()) && host.parse::<Ipv4Addr>().is_err() {
        return Err(format!(
            "`{host}` is not an IPv4 address, and no host's last part starts with a digit"
        ));
    }
    Ok((host, port))
}

fn escapes(text: &str) -> Result<(), String> {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let escaped = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_hexdigit());
        if byte == b'%' && !(escaped(bytes.next()) && escaped(bytes.next())) {
            return Err("`%` must be followed by two hexadecimal digits".to_owned());
        }
    }
    Ok(())
}

impl Parts<'_> {
    /// `host[:port]` in lower case, as clients send it: without a default port.
    fn authority(&self) -> String {
        let host = self.host.to_ascii_lowercase();
        let default = match self.scheme.to_ascii_lowercase().as_str() {
            "https" | "wss" => Some(443),
            "http" | "ws" => Some(80),
            _ => None,
        };
        match self.port {
            Some(port) if Some(port) != default => format!("{host}:{port}"),
            _ => host,
        }
    }

    fn is_loopback(&self) -> bool {
        let bare = self.host.trim_start_matches('[').trim_end_matches(']');
        self.host.eq_ignore_ascii_case("localhost")
            || bare
                .parse::<IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    }
}

const WELL_KNOWN: &str = "/.well-known";

/// RFC 1035 §2.3.4.
const MAX_LABEL: usize = 63;
const MAX_HOST: usize = 253;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http::route::is_host;

    proptest! {
        /// What is listed is compared with what requests name, and looked at no further there.
        #[test]
        fn what_is_taken_for_a_host_here_is_one_in_a_request(
            text in r"([a-zA-Z0-9._@:/\[\]%~ é-]{0,12}|[a-z0-9.-]{1,12}(:[0-9]{0,6})?|\[[0-9a-f:.]{1,12}\](:[0-9]{0,6})?)",
        ) {
            if let Ok(host) = host(&text) {
                prop_assert!(is_host(host.as_bytes()), "{text}");
            }
            if let Ok(resource) = resource(&format!("https://{text}/mcp")) {
                prop_assert!(is_host(resource.authority.as_bytes()), "{text}");
            }
        }
    }

    #[test]
    fn a_resource_is_https_or_this_machine_and_is_kept_verbatim() {
        let got = resource("https://MCP.Example.com:443/GitHub/").unwrap();
        assert_eq!(got.url, "https://MCP.Example.com:443/GitHub/");
        assert_eq!(
            (got.origin.as_str(), got.authority.as_str()),
            ("https://mcp.example.com", "mcp.example.com")
        );
        assert_eq!(got.path, "/GitHub/");
        assert_eq!(resource("https://h:8443").unwrap().path, "/");
        assert_eq!(resource("https://h:8443").unwrap().authority, "h:8443");
        for good in [
            "http://127.0.0.1:1/x",
            "http://[::1]/x",
            "http://localhost:8081/mcp",
            "https://10.0.0.1/a%20b",
        ] {
            resource(good).unwrap_or_else(|error| panic!("{good}: {error}"));
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_no_resource() {
        for bad in [
            "",
            "mcp.example.com/x",
            "/x",
            "http://example.com/x",
            "ftp://h/x",
            "https://",
            "https:///x",
            "https://h/x?y",
            "https://h/x#y",
            "https://u@h/x",
            "https://h:0/",
            "https://h:08/",
            "https://h:65536/",
            "https://h:/x",
            "https://h/../x",
            "https://h/%2e%2E/x",
            "https://h/a b",
            "https://h/%zz",
            "https://h/%a",
            "https://-h/",
            "https://a..b/",
            "https://127.1/",
            "https://0x7f.1/",
            "https://[::g]/",
            "https://h\\x/",
            "https://ä/",
            "https://h/.well-known/x",
            "http://127.0.0.1.example.com/",
            "http://localhost.example.com/",
        ] {
            assert!(resource(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_origin_ends_with_its_port() {
        assert_eq!(
            origin("https://App.example.com:443").unwrap(),
            "https://app.example.com"
        );
        assert_eq!(
            origin("vscode-file://vscode-app").unwrap(),
            "vscode-file://vscode-app"
        );
        for bad in ["null", "*", "https://a/", "https://a/b", "app.example.com"] {
            assert!(origin(bad).is_err(), "{bad}");
        }
        assert_eq!(
            host("MCP.example.com:8080").unwrap(),
            "mcp.example.com:8080"
        );
        for bad in ["", "https://a", "a/b", "*.example.com", "a b"] {
            assert!(host(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_accepted_is_kept(text in "(https?|HTTP)?(://)?[-a-z0-9.:@\\[\\]%/?# ]{0,24}") {
            if let Ok(got) = resource(&text) {
                prop_assert_eq!(&got.url, &text);
                prop_assert!(got.path.starts_with('/'));
                prop_assert!(got.origin.ends_with(&got.authority));
                // What thv hands out as its own origin is an origin.
                prop_assert_eq!(origin(&got.origin), Ok(got.origin.clone()));
            }
            let _ = (issuer(&text), fetched(&text), host(&text));
        }
    }
}
