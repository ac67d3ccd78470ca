//! What a server has said on its way to the session: a line each, one after the other.

use std::io;

use bytes::{Buf, Bytes, BytesMut, buf::Chain};
use memchr::memchr;
use tokio::io::{AsyncWriteExt, DuplexStream};

use crate::child::Share;

/// Where the session reads. Whoever says something has it for himself meanwhile, which takes as long as
/// the session takes to read it.
pub(super) struct Output {
    session: DuplexStream,
    /// What of the last line is not written yet, and its memory.
    rest: Option<(Chain<Bytes, Bytes>, Share)>,
}

impl Output {
    pub(super) fn new(session: DuplexStream) -> Self {
        Self {
            session,
            rest: None,
        }
    }

    /// Says a message; it is checked in the session like any child's.
    pub(super) async fn say(&mut self, text: Bytes, mut share: Share) {
        // Whoever said the last one may have been ended in the middle of it, with the call that it was for:
        // half a line would spoil the next.
        let _ = self.finish().await;
        // Until all of it is said the session has it, too.
        share.double();
        let line = one_line(text).chain(Bytes::from_static(b"\n"));
        self.rest = Some((line, share));
        // Nobody reads any more: the session is ending, and this with it.
        let _ = self.finish().await;
    }

    /// Says the rest of what was begun: nobody keeps it for whoever was ended in the middle of it.
    pub(super) async fn finish(&mut self) -> io::Result<()> {
        if let Some((rest, _)) = &mut self.rest {
            while rest.has_remaining() {
                self.session.write_buf(rest).await?;
            }
        }
        self.rest = None;
        Ok(())
    }
}

/// The message without its line feeds. One kind of line break stands for the other: the session makes those between
/// tokens spaces, and one in a string stays what makes it no JSON (sse-1).
fn one_line(text: Bytes) -> Bytes {
    let Some(first) = memchr(b'\n', &text) else {
        return text;
    };
    let copied = |text: Bytes| BytesMut::from(&text[..]);
    let mut text = text.try_into_mut().unwrap_or_else(copied);
    let rest = text[first..].iter_mut();
    rest.filter(|byte| **byte == b'\n')
        .for_each(|byte| *byte = b'\r');
    text.freeze()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt, duplex},
        time::timeout,
    };

    use super::*;
    use crate::child::share::tests::Purse;

    /// Answers may be large: one that is on several lines is changed where it is, and one that is on one line is not.
    #[test]
    fn a_message_is_made_one_line_where_it_is() {
        for (text, line) in [("{\n\"a\":1\r\n}", "{\r\"a\":1\r\r}"), ("{}", "{}")] {
            let text = Bytes::from(text.as_bytes().to_vec());
            let place = text.as_ptr();
            let one = one_line(text);
            assert_eq!((&one[..], one.as_ptr()), (line.as_bytes(), place));
        }
        let shared = Bytes::from_static(b"1\n2");
        assert_eq!(one_line(shared.clone()), "1\r2");
        assert_eq!(shared, "1\n2");
    }

    /// conn-3: an answer for which there is room once is handed on all the same.
    #[tokio::test]
    async fn what_needs_its_room_twice_needs_no_more_than_there_is() {
        let (session, mut reads) = duplex(64);
        let purse = Purse::of(10);
        let mut share = Share::of(purse.clone());
        assert!(share.take(8));
        Output::new(session)
            .say(Bytes::from_static(b"{\"a\":12}"), share)
            .await;
        assert_eq!(purse.left(), 10);
        let mut heard = String::new();
        reads.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "{\"a\":12}\n");
    }

    /// sse-2: a call that ends in the middle of its answer leaves no half line to the next.
    #[tokio::test]
    async fn what_was_begun_is_said_to_its_end() {
        let (session, mut reads) = duplex(4);
        let purse = Purse::of(1 << 20);
        let share = || {
            let mut share = Share::of(purse.clone());
            assert!(share.take(1 << 10));
            share
        };
        let mut output = Output::new(session);
        let first = Bytes::from_static(b"[1,2,3]");
        tokio::select! {
            biased;
            () = output.say(first, share()) => panic!("nobody reads"),
            () = std::future::ready(()) => {}
        }
        // Its memory is its own until then, and that of what the session has of it by now.
        assert_eq!(purse.left(), (1 << 20) - (2 << 10));
        let mut heard = [0; 12];
        let patience = Duration::from_secs(10);
        let reads = timeout(patience, reads.read_exact(&mut heard));
        let (_, read) = tokio::join!(output.say(Bytes::from_static(b"[4]"), share()), reads);
        read.expect("something is missing").unwrap();
        assert_eq!(&heard, b"[1,2,3]\n[4]\n");
        assert_eq!(purse.left(), 1 << 20);
    }
}
