//! HTTP/2 frames that cost the sender nothing, counted.
//!
//! Resets, pings, settings, priorities, window updates and empty frames are each
//! answered or looked at, and no request pays for them (CVE-2019-9511 … 9518,
//! CVE-2023-44487). They are counted below the library, which has limits of its
//! own for some. Who sends too many is given to the library as one that never
//! ends a header block: it says ENHANCE_YOUR_CALM to that, and closes.
//!
//! Requests are counted, too: what the library refuses by itself nobody else would know of.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    activity::Activity,
    guarded::{Rest, Watch},
};

/// The watch over what an HTTP/2 client sends.
pub(super) struct Frames {
    /// Bytes still to come before the next frame's head.
    skip: usize,
    /// The stream whose header block is open.
    open: Option<[u8; 4]>,
    allowance: Allowance,
    /// The last stream that was opened.
    last: u32,
    /// Whether the block that is open is a request's of which no second frame has come.
    begins: bool,
    /// Requests that have come, which is told to `activity`.
    requests: u64,
    activity: Activity,
}

impl Frames {
    /// Of a client whose preface is still to be read.
    pub(super) fn new(activity: Activity) -> Self {
        Self {
            skip: PREFACE.len(),
            open: None,
            allowance: Allowance::new(),
            last: 0,
            begins: false,
            requests: 0,
            activity,
        }
    }

    /// A header block begins, goes on or ends. One that opens a stream is a request, when it
    /// has ended or goes on: the library may never see the end of one that goes on and on.
    fn heads(&mut self, frame: &Frame) {
        let ends = frame.flags & END_HEADERS != 0;
        self.open = (!ends).then_some(frame.stream);
        if frame.kind == HEADERS {
            let stream = u32::from_be_bytes(frame.stream) & STREAM_ID;
            self.begins = stream > self.last;
            self.last = self.last.max(stream);
        }
        if self.begins && (ends || frame.kind == CONTINUATION) {
            self.begins = false;
            self.requests += 1;
            self.activity.came(self.requests);
        }
    }
}

impl Watch for Frames {
    fn read(&mut self, bytes: &[u8]) -> (usize, Rest) {
        let mut done = 0;
        while done < bytes.len() {
            let left = &bytes[done..];
            if self.skip > 0 {
                let part = self.skip.min(left.len());
                self.skip -= part;
                done += part;
                continue;
            }
            let Some(head) = left.first_chunk::<HEAD>() else {
                break;
            };
            let frame = Frame::read(head);
            if !frame.is_free() && !self.allowance.take() {
                return (done, Rest::Gone(too_many(self.open).into()));
            }
            if matches!(frame.kind, HEADERS | CONTINUATION) {
                self.heads(&frame);
            }
            self.skip = frame.length;
            done += HEAD;
        }
        (done, Rest::Waits)
    }

    fn wrote(&mut self, bytes: usize) {
        self.allowance.earn(bytes);
    }
}

/// The head of a frame (RFC 9113 §4.1).
struct Frame {
    length: usize,
    kind: u8,
    flags: u8,
    stream: [u8; 4],
}

impl Frame {
    fn read(head: &[u8; HEAD]) -> Self {
        let [a, b, c, kind, flags, stream @ ..] = *head;
        Self {
            length: usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c),
            kind,
            flags,
            stream,
        }
    }

    /// Whether it is a request, or brings something of one.
    fn is_free(&self) -> bool {
        match self.kind {
            DATA => self.length > 0 || self.flags & END_STREAM != 0,
            HEADERS => true,
            CONTINUATION => self.length > 0,
            _ => false,
        }
    }
}

/// How many frames a client may still send for nothing.
struct Allowance {
    left: u32,
    refilled: Instant,
    /// Bytes written that have earned nothing yet.
    written: usize,
}

impl Allowance {
    fn new() -> Self {
        Self {
            left: BURST,
            refilled: Instant::now(),
            written: 0,
        }
    }

    fn take(&mut self) -> bool {
        if self.left == 0 {
            let now = Instant::now();
            let periods = (now - self.refilled).as_millis() / EACH.as_millis();
            self.left = u32::try_from(periods).unwrap_or(BURST).min(BURST);
            if self.left == 0 {
                return false;
            }
            self.refilled = now;
        }
        self.left -= 1;
        true
    }

    /// What is written is answered by window updates. So much that the answer to a
    /// ping or a reset pays for none.
    fn earn(&mut self, written: usize) {
        self.written += written;
        let earned = u32::try_from(self.written / EARNS).unwrap_or(BURST);
        self.written %= EARNS;
        self.left = self.left.saturating_add(earned).min(BURST);
    }
}

/// A header block that goes on and on.
fn too_many(open: Option<[u8; 4]>) -> Vec<u8> {
    let stream = open.unwrap_or([0x7f, 0xff, 0xff, 0xff]);
    let frame = |kind| {
        let mut frame = vec![0, 0, 0, kind, 0];
        frame.extend_from_slice(&stream);
        frame
    };
    let mut frames = Vec::new();
    if open.is_none() {
        frames.extend(frame(HEADERS));
    }
    for _ in 0..CONTINUATIONS {
        frames.extend(frame(CONTINUATION));
    }
    frames
}

/// What an HTTP/2 client says first (RFC 9113 §3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// Without the bit that means nothing.
const STREAM_ID: u32 = u32::MAX >> 1;
/// Frames that are for nothing, at once.
const BURST: u32 = 256;
/// After which another one may come.
const EACH: Duration = Duration::from_millis(30);
/// Bytes that thv writes, after which one more may come.
const EARNS: usize = 256;
/// More than the library takes of one header block.
const CONTINUATIONS: usize = 64;

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, length, kind, flags, 0, 0, 0, 1];
        frame.resize(HEAD + usize::from(length), 0);
        frame
    }

    /// conn-13: what a peer sends for nothing has its measure, whatever the library counts by itself: what comes in time,
    /// and what thv has written, gives some back. A request, and what carries something of one, is no such frame.
    #[tokio::test(start_paused = true)]
    async fn frames_for_nothing_have_their_measure() {
        for (what, one, is_counted) in [
            ("a reset", frame(3, 0, 4), true),
            ("settings", frame(4, 0, 0), true),
            ("a ping", frame(6, 0, 8), true),
            ("a window update", frame(8, 0, 4), true),
            ("an unknown frame", frame(0x20, 0, 0), true),
            ("empty data", frame(DATA, 0, 0), true),
            ("an empty continuation", frame(CONTINUATION, 0, 0), true),
            ("a head", frame(HEADERS, END_HEADERS, 5), false),
            ("data", frame(DATA, 0, 1), false),
            ("the end of data", frame(DATA, END_STREAM, 0), false),
            ("a continuation", frame(CONTINUATION, 0, 1), false),
        ] {
            let mut frames = Frames::new(Activity::new());
            let (read, _) = frames.read(PREFACE);
            assert_eq!(read, PREFACE.len());
            let burst = one.repeat(BURST as usize);
            let (read, rest) = frames.read(&burst);
            assert!(read == burst.len() && matches!(rest, Rest::Waits), "{what}");
            let mut passes = || matches!(frames.read(&one), (_, Rest::Waits));
            assert_eq!(passes(), !is_counted, "{what}");
            if !is_counted {
                continue;
            }
            advance(EACH - Duration::from_millis(1)).await;
            assert!(!passes(), "{what}");
            advance(Duration::from_millis(1)).await;
            assert!(passes() && !passes(), "{what}");
            frames.wrote(EARNS);
            let mut passes = || matches!(frames.read(&one), (_, Rest::Waits));
            assert!(passes() && !passes(), "{what}");
        }
    }
}
