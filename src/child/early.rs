//! What a process writes for people before anybody logs it.
//!
//! A server that speaks HTTP may say much before it listens; until then it is nobody's child. It must not
//! wait in a full pipe for that. Used by `source`.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, ReadBuf},
    net::unix::pipe,
    time::timeout,
};

/// One of its outputs, from the beginning.
pub struct Errors {
    pipe: pipe::Receiver,
    /// What was read ahead.
    early: Option<Box<Early>>,
}

#[derive(Default)]
struct Early {
    text: Vec<u8>,
    /// Bytes before that, which are gone.
    left_out: usize,
}

impl Errors {
    pub(super) fn of(pipe: pipe::Receiver) -> Self {
        Self { pipe, early: None }
    }

    /// Reads what is there, so that its writer goes on; of much the end is kept.
    pub(super) fn read_ahead(&mut self) {
        let mut chunk = [0; CHUNK];
        // Whoever writes faster than this waits a little, and everybody else does not.
        for _ in 0..MAX_KEPT / CHUNK {
            let Ok(read @ 1..) = self.pipe.try_read(&mut chunk) else {
                return;
            };
            let early = self.early.get_or_insert_default();
            early.text.extend_from_slice(&chunk[..read]);
            if early.text.len() > MAX_KEPT {
                let more = early.text.len() - MAX_KEPT / 2;
                early.text.drain(..more);
                early.left_out += more;
            }
        }
    }

    /// What it has written, if it has ended or writes no more; of much the end.
    pub(super) async fn last_words(&mut self) -> Vec<u8> {
        let mut text = vec![0; MAX_WORDS];
        let mut length = 0;
        while let Ok(Ok(read @ 1..)) = timeout(PATIENCE, self.pipe.read(&mut text[length..])).await
        {
            length += read;
        }
        text.truncate(length);
        if let Some(early) = &self.early {
            text = [&early.text[..], &text].concat();
        }
        text
    }
}

/// What a child has written for people before it was anybody's.
#[derive(Clone, Debug)]
pub struct LastWords {
    pub child: u64,
    pub pid: u32,
    /// Of what is long the end.
    pub text: Vec<u8>,
}

impl LastWords {
    /// Its last lines, no more than are recorded of a flood.
    pub fn end(&self) -> &[u8] {
        match memchr::memrchr_iter(b'\n', &self.text).nth(MAX_LINES) {
            Some(before) => &self.text[before + 1..],
            None => &self.text,
        }
    }

    /// The last line that speaks of an error, or else the last: some end with an empty phrase.
    pub(super) fn telling_line(&self) -> Option<String> {
        let text = String::from_utf8_lossy(&self.text);
        let lines = || text.lines().filter(|line| !line.trim().is_empty());
        let line = lines().rfind(|line| line.contains("rror"));
        let shown = line.or_else(|| lines().next_back())?.chars();
        Some(shown.filter(|c| !c.is_control()).take(200).collect())
    }
}

impl AsyncRead for Errors {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(early) = &mut self.early else {
            return Pin::new(&mut self.pipe).poll_read(context, buffer);
        };
        let left_out = std::mem::take(&mut early.left_out);
        if left_out > 0 {
            let said = format!("[{left_out} bytes left out]\n");
            early.text.splice(..0, said.into_bytes());
        }
        let length = early.text.len().min(buffer.remaining());
        buffer.put_slice(&early.text[..length]);
        early.text.drain(..length);
        if early.text.is_empty() {
            self.early = None;
        }
        Poll::Ready(Ok(()))
    }
}

/// Bytes of what is read ahead that are kept, and read at once.
const MAX_KEPT: usize = 64 << 10;
const CHUNK: usize = 8 << 10;
/// Lines of what failed to start that are recorded.
const MAX_LINES: usize = 99;
/// Bytes that are looked at besides after a failed start, and how long each is waited for.
const MAX_WORDS: usize = 16 << 10;
const PATIENCE: Duration = Duration::from_millis(25);

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// probe-70: a flood before a server listens is read, and no more of it kept than its end.
    #[tokio::test]
    async fn what_is_said_early_makes_nobody_wait_and_is_bounded() {
        let (mut writer, reader) = pipe::pipe().unwrap();
        let mut errors = Errors::of(reader);
        let flood = b"early\n".repeat(100_000);
        let writes = tokio::spawn(async move {
            writer.write_all(&flood).await.unwrap();
            writer.write_all(b"last\n").await.unwrap();
            writer
        });
        while !writes.is_finished() {
            errors.read_ahead();
            let kept = errors.early.as_ref().map_or(0, |early| early.text.len());
            assert!(kept <= MAX_KEPT);
            tokio::task::yield_now().await;
        }
        let mut writer = writes.await.unwrap();
        let is_read = |errors: &Errors| {
            let early = errors.early.as_ref();
            early.is_some_and(|early| early.text.ends_with(b"last\n"))
        };
        while !is_read(&errors) {
            errors.read_ahead();
            tokio::task::yield_now().await;
        }
        assert!(errors.last_words().await.ends_with(b"\nlast\n"));
        writer.write_all(b"late\n").await.unwrap();
        drop(writer);
        let mut said = String::new();
        errors.read_to_string(&mut said).await.unwrap();
        let (first, rest) = said.split_once('\n').unwrap();
        assert!(first.ends_with(" bytes left out]"), "{first}");
        assert!(rest.len() >= MAX_KEPT / 2 && rest.len() <= MAX_KEPT + CHUNK);
        assert!(rest.ends_with("early\nlast\nlate\n"), "{first}");
        assert!(errors.early.is_none());
    }

    /// Of what failed to start the end is recorded, which says why.
    #[test]
    fn of_last_words_the_end_counts() {
        let words = |text: String| LastWords {
            child: 1,
            pid: 2,
            text: text.into_bytes(),
        };
        let many: String = (0..500).map(|number| format!("{number}\n")).collect();
        let many = words(many + "Error: no port\n");
        assert!(many.end().starts_with(b"402\n") && many.end().ends_with(b"\nError: no port\n"));
        assert_eq!(many.telling_line().as_deref(), Some("Error: no port"));
        let few = words("one\ntwo".to_owned());
        assert_eq!(
            (few.end(), few.telling_line().as_deref()),
            (&b"one\ntwo"[..], Some("two"))
        );
        assert_eq!(words(String::new()).telling_line(), None);
    }

    /// An ordinary beginning is there in full, in order.
    #[tokio::test]
    async fn what_is_said_early_comes_first() {
        let (mut writer, reader) = pipe::pipe().unwrap();
        let mut errors = Errors::of(reader);
        writer.write_all(b"one\ntwo").await.unwrap();
        while errors.early.is_none() {
            errors.read_ahead();
            tokio::task::yield_now().await;
        }
        writer.write_all(b" and\nthree\n").await.unwrap();
        drop(writer);
        let mut said = String::new();
        errors.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "one\ntwo and\nthree\n");
    }
}
