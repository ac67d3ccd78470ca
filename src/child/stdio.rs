//! MCP over a child's standard streams: one message a line (mcp-T27).

use std::{
    future::poll_fn,
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::Arc,
    task::{Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use memchr::{memchr, memchr2};
use tokio::{
    io::{AsyncRead, ReadBuf},
    time::Instant,
};

use crate::child::{Lends, Share};

/// How a child's output is read (probe-69).
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// Bytes of one line; a longer one is a protocol violation.
    pub longest: usize,
    /// Bytes in any second.
    pub rate: u64,
    /// Whether a line has a share of the memory for such while it comes. One that is said over HTTP has its share
    /// already, which is kept until all of it was handed on: it waits for no room twice.
    pub counts: bool,
}

impl Reading {
    /// The lines of such output, in memory of theirs.
    pub fn lines<R: AsyncRead + Unpin>(self, output: R, lends: Option<Arc<dyn Lends>>) -> Lines<R> {
        let lines = Lines::new(output, self.longest).paced(self.rate);
        match lends.filter(|_| self.counts) {
            Some(lends) => lines.within(lends),
            None => lines,
        }
    }
}

/// Reads lines of at most `max` bytes, in memory that shrinks again after a long one.
pub struct Lines<R> {
    reader: R,
    buffer: BytesMut,
    /// How much of the buffer is known to hold no line end.
    scanned: usize,
    max: usize,
    /// What comes is the rest of a line that is left out, and how much of it has come.
    skips: Option<Why>,
    skipped: usize,
    ended: bool,
    pace: Option<Pace>,
    /// What the line that comes has of the memory for such.
    share: Option<Share>,
}

/// So many bytes a second. Who writes more waits in his pipe, which costs nobody else anything.
struct Pace {
    rate: u64,
    second: Instant,
    read: u64,
}

/// A line, or what came in place of one.
#[derive(Debug, Eq, PartialEq)]
pub enum Line {
    /// Without its line end.
    Text(Bytes),
    /// A part of one that is left out, and whether it is the last. Who reads on has the others.
    Left { part: Bytes, ends: bool, why: Why },
    /// The stream ended; an unfinished last line is not a message.
    End,
}

/// Why a line is left out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Why {
    /// It is longer than allowed.
    TooLong,
    /// There is no room for more of it.
    NoRoom,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub fn new(reader: R, max: usize) -> Self {
        Self {
            reader,
            buffer: BytesMut::new(),
            scanned: 0,
            max,
            skips: None,
            skipped: 0,
            ended: false,
            pace: None,
            share: None,
        }
    }

    /// Counts what is long of a line that has not come to its end, in memory of theirs (probe-69).
    fn within(mut self, lends: Arc<dyn Lends>) -> Self {
        self.share = Some(Share::of(lends));
        self
    }

    /// What the line that has just come has of that memory: to be kept until it is read.
    pub fn share(&mut self) -> Option<Box<Share>> {
        self.share.as_mut()?.take_all()
    }

    /// Reads no more than `rate` bytes in any second (probe-69).
    fn paced(mut self, rate: u64) -> Self {
        self.pace = Some(Pace {
            rate,
            second: Instant::now(),
            read: 0,
        });
        self
    }

    /// The next line. Safe to drop and call again.
    pub async fn next(&mut self) -> io::Result<Line> {
        loop {
            if let Some(end) = memchr(b'\n', &self.buffer[self.scanned..]) {
                let mut line = self.buffer.split_to(self.scanned + end + 1).freeze();
                self.scanned = 0;
                line.truncate(line.len() - 1);
                if self.buffer.is_empty() || line.len() > CHUNK {
                    // What comes after it keeps nothing of a long line's memory, nor holds on to what is left of it.
                    self.buffer = BytesMut::from(&self.buffer[..]);
                }
                return Ok(match self.left_out(line.len()) {
                    Some(why) => {
                        (self.skips, self.skipped) = (None, 0);
                        Line::Left {
                            part: line,
                            ends: true,
                            why,
                        }
                    }
                    None => Line::Text(line),
                });
            }
            self.scanned = self.buffer.len();
            if self.scanned > 0
                && let Some(why) = self.left_out(self.scanned).or_else(|| self.lacks_room())
            {
                self.skips = Some(why);
                self.skipped += self.scanned;
                self.scanned = 0;
                return Ok(Line::Left {
                    part: std::mem::take(&mut self.buffer).freeze(),
                    ends: false,
                    why,
                });
            }
            if self.ended {
                return Ok(Line::End);
            }
            if let Some(pace) = &mut self.pace {
                pace.wait().await;
            }
            let (buffer, max) = (&mut self.buffer, self.max);
            let read = read_some(&mut self.reader, |chunk| {
                if buffer.capacity() - buffer.len() < chunk.len() {
                    // Doubling keeps a long line linear. A very long one has a place for all that it may be, of
                    // which no more is memory than has come: to copy it is long, and everybody waits.
                    let rest = max.saturating_sub(buffer.len()).min(LONGEST) + CHUNK;
                    let more = if buffer.len() < LONG { 0 } else { rest };
                    buffer.reserve(chunk.len().max(buffer.len()).max(more));
                }
                buffer.extend_from_slice(chunk);
                chunk.len()
            })
            .await?;
            self.ended = read == 0;
            if let Some(pace) = &mut self.pace {
                pace.read += read as u64;
            }
        }
    }
}

impl<R> Lines<R> {
    /// Why a line is left out of which so much is there now, if it is.
    fn left_out(&self, bytes: usize) -> Option<Why> {
        let is_too_long = self.skipped + bytes > self.max;
        is_too_long.then_some(Why::TooLong).or(self.skips)
    }

    fn lacks_room(&mut self) -> Option<Why> {
        let share = self.share.as_mut()?;
        (!share.grow_to(self.buffer.len())).then_some(Why::NoRoom)
    }
}

impl Pace {
    async fn wait(&mut self) {
        if self.second.elapsed() < SECOND {
            if self.read < self.rate {
                return;
            }
            // Boxed: hardly anybody writes that much, and each child has this for as long as it lives.
            Box::pin(tokio::time::sleep_until(self.second + SECOND)).await;
        }
        (self.second, self.read) = (Instant::now(), 0);
    }
}

/// Gives what there is to `take`, in memory that is used while something is read and no longer:
/// a child that says nothing costs none.
async fn read_some<T>(
    reader: &mut (impl AsyncRead + Unpin),
    mut take: impl FnMut(&[u8]) -> T,
) -> io::Result<T> {
    poll_fn(|context| {
        let mut space = [MaybeUninit::uninit(); CHUNK];
        let mut chunk = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut *reader).poll_read(context, &mut chunk))?;
        Poll::Ready(Ok(take(chunk.filled())))
    })
    .await
}

/// Gives each line of a child's standard error to `log`, until it ends: long
/// lines cut, and no more than so many a second; what is left out is counted.
pub fn log_lines(
    mut errors: impl AsyncRead + Unpin,
    mut log: impl FnMut(&[u8]),
) -> impl Future<Output = ()> {
    // Here, and not in the future: that would have room for them twice, as long as the child lives.
    let mut line = Vec::new();
    async move {
        let (mut second, mut logged, mut dropped) = (Instant::now(), 0, 0_u64);
        loop {
            let chunk = match read_some(&mut errors, <[u8]>::to_vec).await {
                Ok(chunk) if !chunk.is_empty() => chunk,
                Ok(_) | Err(_) => break,
            };
            for byte in &chunk {
                if *byte != b'\n' {
                    if line.len() < MAX_ERROR_LINE {
                        line.push(*byte);
                    }
                    continue;
                }
                if second.elapsed() >= Duration::from_secs(1) {
                    if dropped > 0 {
                        log(format!("[{dropped} lines left out]").as_bytes());
                    }
                    (second, logged, dropped) = (Instant::now(), 0, 0);
                }
                if logged < MAX_ERROR_LINES {
                    logged += 1;
                    log(&line);
                } else {
                    dropped += 1;
                }
                line.clear();
            }
        }
        if !line.is_empty() {
            log(&line);
        }
        if dropped > 0 {
            log(format!("[{dropped} lines left out]").as_bytes());
        }
    }
}

/// A message as one line: line breaks between its tokens become spaces (inside
/// strings JSON has none), and one ends it.
pub fn line(mut message: Vec<u8>) -> Bytes {
    flatten(&mut message);
    message.push(b'\n');
    message.into()
}

/// Makes the line breaks between a message's tokens spaces.
pub fn flatten(message: &mut [u8]) {
    let mut at = 0;
    while let Some(found) = memchr2(b'\n', b'\r', &message[at..]) {
        message[at + found] = b' ';
        at += found + 1;
    }
}

const SECOND: Duration = Duration::from_secs(1);
/// Bytes of a line of standard error that are kept.
const MAX_ERROR_LINE: usize = 2048;
/// Lines of standard error kept in one second (probe-70).
const MAX_ERROR_LINES: u32 = 100;
/// Bytes from which on a line is a very long one, and those of the longest that is usual (`limits.message`).
const LONG: usize = 1 << 20;
const LONGEST: usize = 64 << 20;
/// Bytes asked of the pipe at once.
const CHUNK: usize = 8 << 10;

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;
    use crate::child::share::tests::Purse;

    async fn lines(input: &'static [u8], max: usize) -> Vec<Line> {
        let mut reader = Lines::new(input, max);
        let mut seen = Vec::new();
        loop {
            let line = reader.next().await.unwrap();
            let last = line != Line::Text(Bytes::new()) && !matches!(line, Line::Text(_));
            seen.push(line);
            if last {
                return seen;
            }
        }
    }

    #[tokio::test]
    async fn lines_come_whole_and_an_unfinished_one_is_none() {
        let seen = lines(b"{\"a\":1}\n\n{}\nhalf", 16).await;
        let text = |t: &'static str| Line::Text(Bytes::from_static(t.as_bytes()));
        assert_eq!(seen, [text("{\"a\":1}"), text(""), text("{}"), Line::End]);
    }

    /// probe-69: a line over the cap is none, finished or not, and who reads on has the next one.
    #[tokio::test]
    async fn a_line_over_the_cap_is_refused_without_holding_it() {
        let long = [b"x".repeat(300_000), b"\n{}\n123456\nend\n".to_vec()].concat();
        let mut reader = Lines::new(&long[..], 5);
        let mut seen = Vec::new();
        let mut overlong = Vec::new();
        loop {
            match reader.next().await.unwrap() {
                Line::Text(text) => seen.push(text.to_vec()),
                Line::Left { part, ends, why } => {
                    assert_eq!(why, Why::TooLong);
                    assert!(part.len() <= 2 * CHUNK);
                    overlong.extend_from_slice(&part);
                    if ends {
                        seen.push(std::mem::take(&mut overlong));
                    }
                }
                Line::End => break,
            }
            assert!(reader.buffer.capacity() <= 4 * CHUNK);
        }
        // All of it comes, in parts that nobody has to keep.
        let all: Vec<&[u8]> = long.split(|byte| *byte == b'\n').collect();
        assert_eq!(seen, all[..4]);

        assert_eq!(
            lines(b"12345\n", 5).await,
            [Line::Text(Bytes::from_static(b"12345")), Line::End]
        );
        let part = Bytes::from_static(b"123456");
        let (ends, why) = (true, Why::TooLong);
        assert_eq!(
            lines(b"123456\n", 5).await,
            [Line::Left { part, ends, why }]
        );
        let mut endless = Lines::new(tokio::io::repeat(b'x'), 1 << 20);
        for longest in [(1 << 20) + CHUNK, CHUNK] {
            match endless.next().await.unwrap() {
                Line::Left {
                    part, ends: false, ..
                } => assert!(part.len() <= longest),
                other => panic!("{other:?}"),
            }
        }
    }

    /// probe-69: half lines of many children are no more memory together than there is for them; one that has no room
    /// is left out, and is too long once it is.
    #[tokio::test]
    async fn half_lines_share_a_bound() {
        const MAX: usize = 300_000;
        let purse = Purse::of(400 << 10);
        let half = async || {
            let (mut child, output) = tokio::io::duplex(2 * MAX);
            let mut reader = Lines::new(output, MAX).within(purse.clone());
            child.write_all(&b"x".repeat(MAX)).await.unwrap();
            let all_is_read = async {
                for _ in 0..1000 {
                    tokio::task::yield_now().await;
                }
            };
            let first = tokio::select! {
                line = reader.next() => Some(line.unwrap()),
                () = all_is_read => None,
            };
            (child, reader, first)
        };
        let (mut whole, mut first, none) = half().await;
        assert!(
            none.is_none() && purse.left() < 100 << 10,
            "{}",
            purse.left()
        );
        let (mut child, mut other, left) = half().await;
        let Some(Line::Left {
            part,
            ends: false,
            why: Why::NoRoom,
        }) = left
        else {
            panic!("{left:?}");
        };
        assert!(part.len() <= (128 << 10) && other.share().is_none());
        // Small lines need none, nor does the rest of what is left out.
        child.write_all(b"\n{}\n").await.unwrap();
        let mut rest = part.len();
        loop {
            match other.next().await.unwrap() {
                Line::Left {
                    part,
                    ends,
                    why: Why::NoRoom,
                } => {
                    assert!(part.len() <= 2 * CHUNK && other.share().is_none());
                    rest += part.len();
                    if ends {
                        break;
                    }
                }
                line => panic!("{line:?}"),
            }
        }
        assert_eq!(rest, MAX);
        assert_eq!(
            other.next().await.unwrap(),
            Line::Text(Bytes::from_static(b"{}"))
        );
        let (mut endless, mut third, left) = half().await;
        assert!(matches!(left, Some(Line::Left { why, .. }) if why == Why::NoRoom));
        endless.write_all(b"x").await.unwrap();
        while let Line::Left { why, .. } = third.next().await.unwrap() {
            if why == Why::TooLong {
                break;
            }
        }
        // What has come to its end has its room until it is read.
        whole.write_all(b"\n").await.unwrap();
        assert!(matches!(first.next().await.unwrap(), Line::Text(text) if text.len() == MAX));
        let share = first.share();
        assert!(purse.left() < 100 << 10);
        drop(share);
        assert_eq!(purse.left(), 400 << 10);
    }

    /// A very long line grows where it is: to copy it is long, and everybody waits.
    #[tokio::test]
    async fn a_very_long_line_has_its_place_at_once() {
        for max in [9 << 20, usize::MAX] {
            let (mut child, output) = tokio::io::duplex(64 << 10);
            let mut reader = Lines::new(output, max);
            let mut places = Vec::new();
            let written = tokio::spawn(async move {
                child.write_all(&vec![b'x'; 8 << 20]).await.unwrap();
                child
            });
            while reader.buffer.len() < 8 << 20 {
                tokio::select! {
                    biased;
                    line = reader.next() => panic!("{line:?}"),
                    () = tokio::task::yield_now() => {}
                }
                if reader.buffer.len() > LONG + CHUNK {
                    places.push(reader.buffer.as_ptr());
                }
            }
            written.await.unwrap();
            places.dedup();
            assert_eq!(places.len(), 1, "{max}");
        }
    }

    /// What is kept of a short line keeps nothing of the long one that came before it.
    #[tokio::test]
    async fn a_short_line_behind_a_long_one_has_memory_of_its_own() {
        let input = [b"x".repeat(1 << 20), b"\n{}\n".to_vec()].concat();
        let mut reader = Lines::new(&input[..], 2 << 20);
        let Line::Text(long) = reader.next().await.unwrap() else {
            panic!("it is not too long");
        };
        assert!(long.is_unique(), "nothing else holds on to it");
        assert_eq!(
            reader.next().await.unwrap(),
            Line::Text(Bytes::from_static(b"{}"))
        );
    }

    /// probe-69: a flood of lines is read at its pace, whole, and what is written slowly at once.
    #[tokio::test(start_paused = true)]
    async fn a_flood_of_lines_is_read_at_its_pace() {
        let flood = b"{\"jsonrpc\":\"2.0\"}\n".repeat(10_000);
        let start = Instant::now();
        let mut lines = Lines::new(&flood[..], 1 << 20).paced(64 << 10);
        let mut count = 0;
        while let Line::Text(_) = lines.next().await.unwrap() {
            count += 1;
        }
        assert_eq!(count, 10_000);
        // 180,000 bytes are three seconds' worth, of which the first begins at once.
        assert_eq!(start.elapsed().as_secs(), 2);
    }

    /// probe-70: a flood of standard error is counted, not kept.
    #[tokio::test(start_paused = true)]
    async fn a_flood_of_errors_is_cut_and_counted() {
        let flood = [
            b"x".repeat(5000),
            b"\n".to_vec(),
            b"y\n".repeat(500),
            b"end".to_vec(),
        ]
        .concat();
        let mut seen = Vec::new();
        log_lines(&flood[..], |line| seen.push(line.to_vec())).await;
        assert_eq!(seen[0].len(), MAX_ERROR_LINE);
        assert_eq!(seen.len(), 102);
        assert_eq!(seen[100], b"end");
        assert_eq!(seen[101], b"[401 lines left out]");
    }

    #[test]
    fn a_message_of_several_lines_becomes_one() {
        assert_eq!(line(b"{\r\n\"a\":1\n}".to_vec()), &b"{  \"a\":1 }\n"[..]);
    }
}
