//! HTTP/1.1 heads as they came, before a lenient parser has seen them.
//!
//! The library that parses requests makes sense of more than RFC 9112 means, and
//! what two programs on one way understand differently is how a request hides in
//! another. So each head is held until it is whole and judged as bytes: what is
//! doubtful is taken out, nothing after it is read, and in its place the parser
//! gets a request that the service answers with the refusal. Bodies are only
//! followed, to know where the next head begins.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use memchr::memchr;

use super::{
    chunked::Chunks,
    connection::MAX_HEADERS,
    guarded::{Rest, Watch},
};
use crate::{http::Refusal, scan::any};

/// The watch over what comes on an HTTP/1.1 connection.
pub(super) struct Heads {
    at: At,
    /// What was read of a head that is not whole.
    reading: Reading,
    /// Heads that were passed on.
    heads: u64,
    verdict: Verdict,
}

/// What the next byte belongs to.
enum At {
    Head,
    Body(u64),
    Chunked(Chunks),
}

/// What the watch has seen.
#[derive(Clone, Default)]
pub(super) struct Verdict(Arc<Seen>);

#[derive(Default)]
struct Seen {
    /// The refusal of the head that was taken out, and which it was.
    refused: Mutex<Option<(u64, Refusal)>>,
    /// Something is to be written and has not left.
    unsent: AtomicBool,
    /// A head has begun, and not come to its end.
    begun: AtomicBool,
}

impl Verdict {
    /// The refusal of the request of that number, counted from zero as they are served.
    pub(super) fn on(&self, number: u64) -> Option<Refusal> {
        let mut refused = self.refused();
        match refused.take() {
            Some((at, refusal)) if at == number => Some(refusal),
            other => {
                *refused = other;
                None
            }
        }
    }

    fn set(&self, number: u64, refusal: Refusal) {
        *self.refused() = Some((number, refusal));
    }

    /// Whether a head has begun, and not come to its end.
    pub(super) fn has_begun(&self) -> bool {
        self.0.begun.load(Ordering::Relaxed)
    }

    /// Whether something is to be written that has not left.
    pub(super) fn is_unsent(&self) -> bool {
        self.0.unsent.load(Ordering::Relaxed)
    }

    fn refused(&self) -> MutexGuard<'_, Option<(u64, Refusal)>> {
        self.0
            .refused
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heads {
    /// Of a connection on which so many have come already.
    pub(super) fn new(verdict: Verdict, heads: u64) -> Self {
        Self {
            at: At::Head,
            reading: Reading::default(),
            heads,
            verdict,
        }
    }

    /// The length of the head that these bytes begin with, if it has come whole.
    fn head(&mut self, bytes: &[u8]) -> Result<Option<usize>, Refusal> {
        let (length, at) = match self.reading.on(bytes)? {
            None if bytes.len() <= MAX_HEAD => return Ok(None),
            Some((length, at)) if length <= MAX_HEAD => (length, at),
            None | Some(_) => return Err(Refusal::HeadTooLarge),
        };
        self.reading = Reading::default();
        self.at = at;
        self.heads += 1;
        Ok(Some(length))
    }
}

impl Watch for Heads {
    fn read(&mut self, bytes: &[u8]) -> (usize, Rest) {
        let mut done = 0;
        while done < bytes.len() {
            let left = &bytes[done..];
            match &mut self.at {
                At::Head => match self.head(left) {
                    Ok(Some(length)) => done += length,
                    Ok(None) => break,
                    Err(refusal) => {
                        self.verdict.set(self.heads, refusal);
                        return (done, Rest::Gone(STAND_IN.into()));
                    }
                },
                At::Body(length) => {
                    let part = usize::try_from(*length).unwrap_or(usize::MAX);
                    let part = part.min(left.len());
                    *length -= part as u64;
                    done += part;
                    if *length == 0 {
                        self.at = At::Head;
                    }
                }
                At::Chunked(chunks) => {
                    done += chunks.follow(left);
                    if chunks.is_over() {
                        self.at = At::Head;
                    } else if chunks.is_broken() {
                        return (done, Rest::Broken);
                    }
                }
            }
        }
        let begun = done < bytes.len();
        self.verdict.0.begun.store(begun, Ordering::Relaxed);
        (done, Rest::Waits)
    }

    fn writes(&mut self) {
        self.verdict.0.unsent.store(true, Ordering::Relaxed);
    }

    fn flushed(&mut self) {
        self.verdict.0.unsent.store(false, Ordering::Relaxed);
    }

    fn is_amid(&self) -> bool {
        !matches!(self.at, At::Head)
    }
}

/// A head that is being read: none of its lines is looked at twice, however it drips.
#[derive(Default)]
struct Reading {
    /// Where the current line begins.
    line: usize,
    /// Up to where there is no line feed.
    until: usize,
    /// Whether it is one of HTTP/1.0, when its first line was read.
    old: Option<bool>,
    headers: usize,
    length: Option<u64>,
    chunked: bool,
}

impl Reading {
    /// Goes on with a head of which so much has come. When it is whole, its length, the empty
    /// line included, and what follows it.
    fn on(&mut self, head: &[u8]) -> Result<Option<(usize, At)>, Refusal> {
        loop {
            let Some(feed) = memchr(b'\n', &head[self.until..]) else {
                self.until = head.len();
                return Ok(None);
            };
            let feed = self.until + feed;
            // RFC 9112 §2.2: a bare line feed may be taken for a line's end. By whom?
            let line = head[self.line..feed].strip_suffix(b"\r");
            let line = line.ok_or(Refusal::Header)?;
            let is_first = self.line == 0;
            (self.line, self.until) = (feed + 1, feed + 1);
            match (self.old, line) {
                // Some clients end a body with an empty line that is not part of it.
                (None, []) if is_first => {}
                (None, _) => self.old = Some(request_line(line)?),
                (Some(old), []) => return Ok(Some((feed + 1, self.followed_by(old)?))),
                (Some(_), _) => self.header(line)?,
            }
        }
    }

    fn header(&mut self, line: &[u8]) -> Result<(), Refusal> {
        // The parser behind this allows more, and leaves no record of what it refuses.
        if self.headers == MAX_HEADERS {
            return Err(Refusal::HeadTooLarge);
        }
        self.headers += 1;
        // A line that goes on the one before (obs-fold) has a space here, too.
        let (name, value) = match line.split_at(token_length(line)) {
            (name @ [_, ..], [b':', value @ ..]) => (name, value),
            _ => return Err(Refusal::Header),
        };
        if has_controls(value) {
            return Err(Refusal::Header);
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            if self.length.is_some() {
                return Err(Refusal::Header);
            }
            self.length = Some(number(bare(value)).ok_or(Refusal::Header)?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.chunked || !bare(value).eq_ignore_ascii_case(b"chunked") {
                return Err(Refusal::Header);
            }
            self.chunked = true;
        }
        Ok(())
    }

    /// What follows it, if that can be read in one way only.
    fn followed_by(&self, old: bool) -> Result<At, Refusal> {
        match (self.length, self.chunked) {
            // RFC 9112 §6.3: the two together are how requests are smuggled.
            (Some(_), true) => Err(Refusal::Header),
            (None, true) if old => Err(Refusal::Header),
            (None, true) => Ok(At::Chunked(Chunks::default())),
            (None | Some(0), false) => Ok(At::Head),
            // The library behind this has no such numbers, and leaves no record.
            (Some(length), false) if length > MAX_LENGTH => Err(Refusal::TooLarge),
            (Some(length), false) => Ok(At::Body(length)),
        }
    }
}

/// A value without the tabs and spaces around it: of the rest that this would take away nothing
/// is left.
fn bare(value: &[u8]) -> &[u8] {
    value.trim_ascii()
}

/// Whether the request is one of HTTP/1.0.
fn request_line(line: &[u8]) -> Result<bool, Refusal> {
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Refusal::Header);
    };
    if method.is_empty()
        || !method.iter().all(|byte| is_token(*byte))
        || target.is_empty()
        || !target.iter().all(u8::is_ascii_graphic)
    {
        return Err(Refusal::Header);
    }
    // The library behind this leaves a fragment out, and would serve what is left (conn-20).
    if target.contains(&b'#') {
        return Err(Refusal::NotFound);
    }
    let old = match version {
        b"HTTP/1.1" => false,
        b"HTTP/1.0" => true,
        _ => return Err(Refusal::Header),
    };
    // A tunnel would be bytes that nobody has judged.
    if method == b"CONNECT" {
        return Err(Refusal::MethodNotAllowed(super::route::MCP_METHODS));
    }
    Ok(old)
}

/// Decimal digits as a person would write them.
fn number(digits: &[u8]) -> Option<u64> {
    let plain = digits == b"0" || !digits.starts_with(b"0");
    if !plain || digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// How many bytes of a name a line begins with. By itself: among what is done with the name, a
/// compiler counts in five places at once, for each byte.
#[inline(never)]
fn token_length(line: &[u8]) -> usize {
    line.iter().take_while(|byte| is_token(**byte)).count()
}

fn is_token(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

/// Whether there is a control character other than a tab.
fn has_controls(text: &[u8]) -> bool {
    // Even a tab is rare.
    any(text, |byte| (byte < b' ') | (byte == 0x7F))
        && any(text, |byte| byte.is_ascii_control() && byte != b'\t')
}

/// What names and methods are made of (RFC 9110 §5.6.2).
const TOKEN: [bool; 256] = {
    let mut token = [false; 256];
    let mut byte = 0;
    while byte < token.len() {
        token[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let others = b"!#$%&'*+-.^_`|~";
    let mut at = 0;
    while at < others.len() {
        token[others[at] as usize] = true;
        at += 1;
    }
    token
};
/// Bytes of a request's head (h1-13).
pub(super) const MAX_HEAD: usize = 32 << 10;
/// A body of more bytes is longer than any may be, whatever the configuration says.
const MAX_LENGTH: u64 = i64::MAX as u64;
/// The request that is answered with the refusal of the one that was taken out.
const STAND_IN: &[u8] = b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n";

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;
    use crate::http::guarded::Guarded;

    /// What is passed on of `sent` when it comes in pieces of `size`, and what is refused.
    async fn passed(sent: &[u8], size: usize) -> (Vec<u8>, Option<(u64, Refusal)>, bool) {
        let (mut client, server) = duplex(1 << 20);
        let verdict = Verdict::default();
        let mut heads = Guarded::new(server).watched(Heads::new(verdict.clone(), 0));
        let mut passed = Vec::new();
        let mut failed = false;
        for part in sent.chunks(size) {
            client.write_all(part).await.unwrap();
            let mut some = [0; 4096];
            // Whatever can be had now.
            while let Some(read) = now(heads.read(&mut some)).await {
                match read {
                    Ok(0) => break,
                    Ok(read) => passed.extend_from_slice(&some[..read]),
                    Err(_) => {
                        failed = true;
                        break;
                    }
                }
            }
        }
        let refused = verdict.refused().take();
        (passed, refused, failed)
    }

    async fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            value = future => Some(value),
            () = std::future::ready(()) => None,
        }
    }

    async fn check(sent: &str, good: &str, refused: Option<(u64, &str)>) {
        for size in [1, 2, 3, 7, sent.len()] {
            let (passed, found, _) = passed(sent.as_bytes(), size).await;
            let found = found.map(|(at, refusal)| (at, refusal.status().as_u16().to_string()));
            let refused = refused.map(|(at, status)| (at, status.to_owned()));
            assert_eq!(found, refused, "{sent:?} by {size}");
            let stand_in = std::str::from_utf8(STAND_IN).unwrap();
            let wanted = format!("{good}{}", if refused.is_some() { stand_in } else { "" });
            let passed = String::from_utf8(passed).unwrap();
            assert_eq!(passed, wanted, "{sent:?} by {size}");
        }
    }

    /// What can be read in one way passes as it is, however it comes.
    #[tokio::test]
    async fn good_requests_pass_unchanged() {
        for good in [
            "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "\r\nGET / HTTP/1.0\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\n\r\n\r\nGET /2 HTTP/1.1\r\nX:\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding:\tChunked \r\n\r\n2\r\n\n\n\r\n0\r\nT: t\r\n\r\nGET /2 HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 0\r\nX: \u{e9}\r\n\r\nGET /2 HTTP/1.1\r\n\r\n",
        ] {
            check(good, good, None).await;
        }
        // An unfinished head waits.
        check("GET / HTTP/1.1\r\nHost: x\r\n", "", None).await;
    }

    /// h1-1, h1-2, h1-3, h1-4, h1-5, h1-6, h1-7, h1-16
    #[tokio::test]
    async fn doubtful_heads_are_taken_out() {
        let first = "POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\nx";
        for bad in [
            "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 002\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 2, 2\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length:\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: +2\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 18446744073709551616\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: ,chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: \u{b}chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding : chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\n",
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\nHost: x\n\n",
            "GET / HTTP/1.1\r\nHost: x\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\n\n",
            "\nGET / HTTP/1.1\r\n\r\n",
            "\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nX: a\rb\r\n\r\n",
            "GET / HTTP/1.1\r\nX: a\0b\r\n\r\n",
            "GET / HTTP/1.1\r\nX: a\r\r\n\r\n",
            "GET / HTTP/1.1\r\nX:\rb\r\n\r\n",
            "GET / HTTP/1.1\r\nX: a\u{c}\r\n\r\n",
            "GET / HTTP/1.1\r\nX: a\r\n b\r\n\r\n",
            "GET / HTTP/1.1\r\n X: a\r\n\r\n",
            "GET / HTTP/1.1\r\n: a\r\n\r\n",
            "GET / HTTP/1.1\r\nX\r\n\r\n",
            "GET /\r\n\r\n",
            "GET  / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1 \r\n\r\n",
            "GET / HTTP/0.9\r\n\r\n",
            "GET / HTTP/1.9\r\n\r\n",
            "GET / HTTP/2.0\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "GET / http/1.1\r\n\r\n",
            "GET /\u{e9} HTTP/1.1\r\n\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
        ] {
            if !bad.starts_with("PROXY") {
                check(bad, "", Some((0, "400"))).await;
            }
            let second = format!("{first}{bad}\r\n\r\nGET /third HTTP/1.1\r\n\r\n");
            check(&second, first, Some((1, "400"))).await;
        }
        check("CONNECT x:1 HTTP/1.1\r\n\r\n", "", Some((0, "405"))).await;
        check("GET /mcp#x HTTP/1.1\r\n\r\n", "", Some((0, "404"))).await;
    }

    /// h1-6, h1-16: each byte, at each place of a header.
    #[test]
    fn a_header_has_a_token_a_colon_and_no_controls() {
        let line = b"Xy:z \tz";
        let colon = 2;
        for at in 0..=line.len() {
            for byte in (0..=0xFF_u8).filter(|byte| *byte != b'\n') {
                let (before, after) = line.split_at(at);
                let head = [b"GET / HTTP/1.1\r\n", before, &[byte], after, b"\r\n\r\n"].concat();
                let token = byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
                let fits = match at {
                    0 => token,
                    _ if at <= colon => token || byte == b':',
                    _ => byte == b'\t' || !byte.is_ascii_control(),
                };
                let read = Reading::default().on(&head);
                assert_eq!(matches!(read, Ok(Some(_))), fits, "{byte:#x} at {at}");
            }
        }
    }

    /// h1-13: a head that does not end is not kept.
    #[tokio::test]
    async fn an_endless_head_is_too_large() {
        let head = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(40_000));
        for size in [1000, head.len()] {
            let (passed, refused, _) = passed(head.as_bytes(), size).await;
            assert_eq!(passed, STAND_IN);
            assert_eq!(refused.unwrap().1.status().as_u16(), 431);
        }
    }

    /// h1-12, h1-13: as much as may be, and one more of it.
    #[tokio::test]
    async fn a_head_has_its_size_and_its_lines_and_no_more() {
        let lines = |count| format!("GET / HTTP/1.1\r\n{}\r\n", "a:\r\n".repeat(count));
        let bytes = |count: usize| {
            let (begin, end) = ("GET / HTTP/1.1\r\nX: ", "\r\n\r\n");
            format!(
                "{begin}{}{end}",
                "y".repeat(count - begin.len() - end.len())
            )
        };
        for (fits, over) in [
            (lines(MAX_HEADERS), lines(MAX_HEADERS + 1)),
            (bytes(MAX_HEAD), bytes(MAX_HEAD + 1)),
            // No more is kept of one that is not whole.
            ("y".repeat(MAX_HEAD), "y".repeat(MAX_HEAD + 1)),
        ] {
            for size in [1000, over.len()] {
                let (_, refused, _) = passed(fits.as_bytes(), size).await;
                assert!(refused.is_none(), "{} by {size}", fits.len());
                let (told, refused, _) = passed(over.as_bytes(), size).await;
                let status = refused.map(|(_, refusal)| refusal.status().as_u16());
                assert_eq!(status, Some(431), "{} by {size}", over.len());
                assert_eq!(told, STAND_IN);
            }
        }
    }

    /// h1-3: a length that the library behind this cannot count is too large, and none that goes unanswered.
    #[tokio::test]
    async fn a_length_beyond_all_bodies_is_refused() {
        for (length, refused) in [(i64::MAX as u64, None), (1 << 63, Some(413))] {
            let head = format!("POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
            let (_, found, _) = passed(head.as_bytes(), head.len()).await;
            let found = found.map(|(_, refusal)| refusal.status().as_u16());
            assert_eq!(found, refused, "{length}");
        }
    }

    /// h1-10: where a body's end is not known, nothing is read after it.
    #[tokio::test]
    async fn a_body_that_cannot_be_followed_is_an_error() {
        let head = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        let sent = format!("{head}2\r\nabX0\r\n\r\nGET / HTTP/1.1\r\n\r\n");
        for size in [1, sent.len()] {
            let (passed, refused, failed) = passed(sent.as_bytes(), size).await;
            assert_eq!(passed, format!("{head}2\r\nabX").as_bytes());
            assert!(failed && refused.is_none());
        }
    }

    /// However bytes come, the same of them passes, and nothing ends in a panic.
    #[test]
    fn pieces_make_no_difference() {
        use proptest::prelude::*;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let word = prop::sample::select(vec![
            "GET / HTTP/1.1\r\n",
            "POST /mcp HTTP/1.1\r\n",
            "POST / HTTP/1.0\r\n",
            "Host: x\r\n",
            "Content-Length: 3\r\n",
            "Content-Length: 0\r\n",
            "Transfer-Encoding: chunked\r\n",
            "\r\n",
            "\n",
            "\r",
            " ",
            "abc",
            "0",
            "3",
            ";x",
            "\r\nabc\r\n",
            "0\r\n\r\n",
            "X: y\r\n",
            "\0",
            ":",
        ]);
        let texts = prop::collection::vec(word, 1..20);
        proptest!(ProptestConfig::with_cases(300), |(words in texts, size in 1_usize..9)| {
            let sent = words.concat();
            let whole = runtime.block_on(passed(sent.as_bytes(), sent.len()));
            let pieces = runtime.block_on(passed(sent.as_bytes(), size));
            prop_assert_eq!(String::from_utf8(whole.0), String::from_utf8(pieces.0));
            let told = |refused: Option<(u64, Refusal)>| {
                refused.map(|(at, refusal)| (at, refusal.status()))
            };
            prop_assert_eq!(told(whole.1), told(pieces.1));
        });
    }
}
