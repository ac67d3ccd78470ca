//! The proxy's side of CONNECT (RFC 9110 §9.3.6), read in one way only.
//!
//! Bytes, not a library: whatever could mean two things to two readers ends the
//! connection (probe-58, probe-59).

use std::time::Duration;

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

/// What a child asks for: a host as it spelled it, and a port.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Asked {
    pub(super) host: String,
    pub(super) port: u16,
}

/// Why what it said is no question for a proxy.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Wrong {
    #[error("it is not HTTP")]
    Form,
    #[error("only CONNECT is served; plain HTTP has no way out")]
    Method,
    #[error("its target is not HOST:PORT")]
    Target,
    #[error("Host is another than the target")]
    Host,
    #[error("CONNECT has no body")]
    Body,
    #[error("it did not wait for the answer")]
    Early,
    #[error("the head is too long")]
    Long,
    #[error("the head did not come in time")]
    Late,
}

/// What it is told.
pub(super) enum Answer<'a> {
    Established,
    NotListed,
    NotReached(&'a str),
    Wrong(Wrong),
}

/// Reads one request, and nothing after it.
pub(super) async fn hear(stream: &mut (impl AsyncRead + Unpin)) -> Result<Asked, Wrong> {
    timeout(HEAD_DEADLINE, head(stream))
        .await
        .unwrap_or(Err(Wrong::Late))
        .and_then(|head| read(&head))
}

async fn head(stream: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, Wrong> {
    let mut head = Vec::with_capacity(512);
    loop {
        // Counts the end from where it may begin.
        if let Some(end) = find(&head, b"\r\n\r\n") {
            return if end + 4 == head.len() {
                head.truncate(end);
                Ok(head)
            } else {
                Err(Wrong::Early)
            };
        }
        if head.len() >= MAX_HEAD {
            return Err(Wrong::Long);
        }
        match stream.read_buf(&mut head).await {
            Ok(1..) => {}
            _ => return Err(Wrong::Form),
        }
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}

fn read(head: &[u8]) -> Result<Asked, Wrong> {
    // No other controls, and line ends in pairs alone.
    let text = std::str::from_utf8(head).map_err(|_| Wrong::Form)?;
    let mut lines = text.split("\r\n");
    let plain = |line: &str| {
        line.bytes()
            .all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte))
    };
    if !lines.clone().all(plain) {
        return Err(Wrong::Form);
    }
    let request: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
    let [method, target, version] = request[..] else {
        return Err(Wrong::Form);
    };
    if !matches!(version, "HTTP/1.1" | "HTTP/1.0") {
        return Err(Wrong::Form);
    }
    if method != "CONNECT" {
        return Err(Wrong::Method);
    }
    let (host, port) = target.rsplit_once(':').ok_or(Wrong::Target)?;
    let port = match port.parse::<u16>() {
        Ok(number) if number > 0 && number.to_string() == port => number,
        _ => return Err(Wrong::Target),
    };
    let mut hosts = 0;
    for line in lines {
        let (name, value) = line.split_once(':').ok_or(Wrong::Form)?;
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        // A folded line begins with a space, which is no token either.
        if name.is_empty() || !name.bytes().all(token) {
            return Err(Wrong::Form);
        }
        match name.to_ascii_lowercase().as_str() {
            "content-length" | "transfer-encoding" => return Err(Wrong::Body),
            "host" => {
                hosts += 1;
                let value = value.trim_matches([' ', '\t']);
                // Some say the host alone.
                let same = value.eq_ignore_ascii_case(target) || value.eq_ignore_ascii_case(host);
                if hosts > 1 || !same {
                    return Err(Wrong::Host);
                }
            }
            _ => {}
        }
    }
    Ok(Asked {
        host: host.to_owned(),
        port,
    })
}

/// Answers; says whether that went well.
pub(super) async fn answer(stream: &mut (impl AsyncWrite + Unpin), answer: Answer<'_>) -> bool {
    let (status, why) = match answer {
        Answer::Established => {
            return stream
                .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
                .await
                .is_ok();
        }
        Answer::NotListed => (
            "403 Forbidden",
            "no line of sandbox.egress names this host and port".to_owned(),
        ),
        Answer::NotReached(why) => ("502 Bad Gateway", why.to_owned()),
        Answer::Wrong(Wrong::Method) => ("405 Method Not Allowed", Wrong::Method.to_string()),
        Answer::Wrong(wrong) => ("400 Bad Request", wrong.to_string()),
    };
    let body = format!("thv: {why}\n");
    let text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let said = timeout(HEAD_DEADLINE, stream.write_all(text.as_bytes()))
        .await
        .is_ok_and(|written| written.is_ok());
    let _ = stream.shutdown().await;
    said
}

/// How long the head of a request may take.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of it.
const MAX_HEAD: usize = 8 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    async fn said(request: &str) -> Result<Asked, Wrong> {
        hear(&mut request.as_bytes()).await
    }

    #[tokio::test]
    async fn connect_names_a_host_and_a_port() {
        for request in [
            "CONNECT a.b:443 HTTP/1.1\r\nHost: a.b:443\r\n\r\n",
            "CONNECT a.b:443 HTTP/1.1\r\nhost: A.B\r\nUser-Agent: x\r\nProxy-Connection: keep-alive\r\n\r\n",
            "CONNECT a.b:443 HTTP/1.0\r\n\r\n",
        ] {
            let asked = said(request).await.unwrap();
            assert_eq!((asked.host.as_str(), asked.port), ("a.b", 443), "{request}");
        }
    }

    /// probe-58, probe-59: plain HTTP, another Host, bodies, pipelines and everything that two readers could read in two ways.
    #[tokio::test]
    async fn what_can_be_read_in_two_ways_is_refused() {
        for (request, wrong) in [
            (
                "GET http://a.b/ HTTP/1.1\r\nHost: a.b\r\n\r\n",
                Wrong::Method,
            ),
            ("connect a.b:443 HTTP/1.1\r\n\r\n", Wrong::Method),
            (
                "CONNECT a.b:443 HTTP/1.1\r\nHost: c.d:443\r\n\r\n",
                Wrong::Host,
            ),
            (
                "CONNECT a.b:443 HTTP/1.1\r\nHost: a.b:80\r\n\r\n",
                Wrong::Host,
            ),
            (
                "CONNECT a.b:443 HTTP/1.1\r\nHost: a.b\r\nHost: a.b\r\n\r\n",
                Wrong::Host,
            ),
            (
                "CONNECT a.b:443 HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
                Wrong::Body,
            ),
            (
                "CONNECT a.b:443 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
                Wrong::Body,
            ),
            (
                "CONNECT a.b:443 HTTP/1.1\r\nContent-Length : 0\r\n\r\n",
                Wrong::Form,
            ),
            (
                "CONNECT a.b:443 HTTP/1.1\r\nX: y\r\n folded\r\n\r\n",
                Wrong::Form,
            ),
            ("CONNECT a.b:443 HTTP/1.1\r\nX\r\n\r\n", Wrong::Form),
            ("CONNECT a.b:443 HTTP/1.1\nHost: a.b\r\n\r\n", Wrong::Form),
            ("CONNECT a.b:443 HTTP/1.1\r\nX: a\0b\r\n\r\n", Wrong::Form),
            ("CONNECT  a.b:443 HTTP/1.1\r\n\r\n", Wrong::Form),
            ("CONNECT a.b:443 HTTP/2\r\n\r\n", Wrong::Form),
            ("CONNECT a.b HTTP/1.1\r\n\r\n", Wrong::Target),
            ("CONNECT a.b:0443 HTTP/1.1\r\n\r\n", Wrong::Target),
            ("CONNECT a.b:+443 HTTP/1.1\r\n\r\n", Wrong::Target),
            (
                "CONNECT a.b:443 HTTP/1.1\r\n\r\nCONNECT c.d:443 HTTP/1.1\r\n\r\n",
                Wrong::Early,
            ),
            ("CONNECT a.b:443 HTTP/1.1\r\n\r\n\x16\x03\x01", Wrong::Early),
            ("\x16\x03\x01", Wrong::Form),
            ("", Wrong::Form),
        ] {
            assert_eq!(said(request).await, Err(wrong), "{request:?}");
        }
        let long = format!(
            "CONNECT a.b:443 HTTP/1.1\r\nX: {}\r\n\r\n",
            "x".repeat(MAX_HEAD)
        );
        assert_eq!(said(&long).await, Err(Wrong::Long));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_does_not_come_is_not_waited_for() {
        let (mut near, _far) = tokio::io::duplex(64);
        assert_eq!(hear(&mut near).await, Err(Wrong::Late));
    }
}
