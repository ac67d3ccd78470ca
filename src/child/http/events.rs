//! Reads server-sent events (WHATWG HTML §9.2) as they come, within a bound.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};

/// What is read of one stream so far.
pub(super) struct Reader {
    buffer: BytesMut,
    /// How much of the buffer is known to hold no line end.
    scanned: usize,
    /// A line feed now would belong to the line before.
    after_return: bool,
    began: bool,
    /// The data of an event so far; a long line of it stays where it was read until there is another.
    data: Vec<u8>,
    long: Option<Bytes>,
    has_data: bool,
    named: bool,
    /// The id of the last event, and what comes to be it with the next.
    pub(super) last: Option<String>,
    id: Option<String>,
    /// How long to wait before coming back, where the server said so.
    pub(super) retry: Option<Duration>,
    max: usize,
}

/// The event is longer than allowed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct TooLong;

impl Reader {
    pub(super) fn new(max: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            scanned: 0,
            after_return: false,
            began: false,
            data: Vec::new(),
            long: None,
            has_data: false,
            named: false,
            last: None,
            id: None,
            retry: None,
            max,
        }
    }

    pub(super) fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// Bytes of what has not come to its end.
    pub(super) fn unfinished(&self) -> usize {
        self.buffer.len() + self.data_len()
    }

    fn data_len(&self) -> usize {
        self.long.as_ref().map_or(self.data.len(), Bytes::len)
    }

    /// The data of the next event that is whole and has any.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, TooLong> {
        while let Some(line) = self.line()? {
            if !line.is_empty() {
                self.field(&line);
                if self.data_len() > self.max {
                    return Err(TooLong);
                }
                continue;
            }
            if let Some(id) = self.id.take() {
                self.last = Some(id);
            }
            let data = match self.long.take() {
                Some(long) => long,
                None => std::mem::take(&mut self.data).into(),
            };
            // What is not called a message is none (and neither is a priming event, which is empty).
            let wanted = std::mem::take(&mut self.has_data) && !std::mem::take(&mut self.named);
            self.named = false;
            if wanted && !data.is_empty() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    fn line(&mut self) -> Result<Option<Bytes>, TooLong> {
        if self.after_return && !self.buffer.is_empty() {
            self.after_return = false;
            if self.buffer[0] == b'\n' {
                self.buffer.advance(1);
            }
        }
        let ends = |byte: &u8| matches!(byte, b'\n' | b'\r');
        let Some(end) = self.buffer[self.scanned..].iter().position(ends) else {
            self.scanned = self.buffer.len();
            return if self.scanned > self.max {
                Err(TooLong)
            } else {
                Ok(None)
            };
        };
        let end = self.scanned + end;
        self.scanned = 0;
        let mut line = self.buffer.split_to(end + 1).freeze();
        if self.buffer.is_empty() || line.len() > LONG {
            // What comes after a long line keeps nothing of its memory, as long as the stream may be.
            self.buffer = BytesMut::from(&self.buffer[..]);
        }
        self.after_return = line[end] == b'\r';
        line.truncate(end);
        if !std::mem::replace(&mut self.began, true) && line.starts_with(BOM) {
            line.advance(BOM.len());
        }
        Ok(Some(line))
    }

    fn field(&mut self, line: &Bytes) {
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = match colon {
            Some(0) => return,
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (&line[..], &[][..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"data" => {
                if self.has_data {
                    if let Some(long) = self.long.take() {
                        self.data = long.into();
                    }
                    self.data.push(b'\n');
                } else if value.len() > LONG {
                    self.long = Some(line.slice_ref(value));
                }
                self.has_data = true;
                if self.long.is_none() {
                    self.data.extend_from_slice(value);
                }
            }
            b"event" => self.named = !matches!(value, b"" | b"message"),
            b"id" if value.len() <= MAX_ID => {
                self.id = std::str::from_utf8(value).ok().map(str::to_owned);
            }
            b"retry" => {
                let digits = std::str::from_utf8(value).ok();
                self.retry = digits
                    .and_then(|digits| digits.parse().ok())
                    .map(Duration::from_millis)
                    .or(self.retry);
            }
            _ => {}
        }
    }
}

const BOM: &[u8] = b"\xef\xbb\xbf";
/// Bytes of an event's id that are worth coming back with.
const MAX_ID: usize = 1024;
/// Bytes of a line that is a long one.
const LONG: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(reader: &mut Reader, chunks: &[&str]) -> Vec<String> {
        let mut seen = Vec::new();
        for chunk in chunks {
            reader.push(chunk.as_bytes());
            while let Some(data) = reader.next().unwrap() {
                seen.push(String::from_utf8(data.to_vec()).unwrap());
            }
        }
        seen
    }

    /// fault-46: a stream may be as old as its session, and long lines are rare.
    #[test]
    fn a_long_line_leaves_no_memory_behind() {
        let mut reader = Reader::new(2 << 20);
        let long = format!("data: {}\n\n", "x".repeat(1 << 20));
        for rest in ["", "data: {}", "\n\n"] {
            assert!(read(&mut reader, &[&long, rest]).len() <= 2);
            assert!(reader.buffer.capacity() <= LONG, "{rest:?}");
            reader.push(b"\n\n");
            let _ = reader.next().unwrap();
        }
    }

    /// What is large is not copied, unless it comes in several lines.
    #[test]
    fn a_long_line_stays_where_it_was_read() {
        let text = "x".repeat(1 << 20);
        let mut reader = Reader::new(4 << 20);
        reader.push(format!("data: {text}\n\n").as_bytes());
        let place = reader.buffer.as_ptr();
        let data = reader.next().unwrap().unwrap();
        assert!(data == text && data.as_ptr() == place.wrapping_add("data: ".len()));
        assert!(data.is_unique());
        for (lines, whole) in [
            (format!("data:{text}\ndata:1\n\n"), format!("{text}\n1")),
            (format!("data\ndata:{text}\n\n"), format!("\n{text}")),
        ] {
            assert!(read(&mut reader, &[&lines, "data: {}\n\n"]) == [whole, "{}".to_owned()]);
            assert_eq!(reader.unfinished(), 0);
        }
        reader.push(format!("data: {text}\n").as_bytes());
        assert_eq!(reader.next(), Ok(None));
        assert_eq!(reader.unfinished(), text.len());
    }

    /// sse-3: every line end counts as one, however the bytes are cut.
    #[test]
    fn events_are_read_however_their_lines_end_and_their_bytes_are_cut() {
        let text = "\u{feff}id: 1\ndata:\n\n: comment\r\nevent: message\rdata: {\r\ndata:  \"a\":1}\n\nevent: ping\ndata: x\n\nretry: 250\nid: 2\ndata: {}\r\r\n";
        let whole = read(&mut Reader::new(64), &[text]);
        assert_eq!(whole, ["{\n \"a\":1}", "{}"]);
        let mut reader = Reader::new(64);
        let bytes: Vec<String> = text.chars().map(String::from).collect();
        let bytes: Vec<&str> = bytes.iter().map(String::as_str).collect();
        assert_eq!(read(&mut reader, &bytes), whole);
        assert_eq!(reader.last.as_deref(), Some("2"));
        assert_eq!(reader.retry, Some(Duration::from_millis(250)));
    }

    #[test]
    fn an_event_that_does_not_end_is_not_kept_for_ever() {
        let mut reader = Reader::new(16);
        reader.push(&[b'x'; 17]);
        assert_eq!(reader.next(), Err(TooLong));
        let mut reader = Reader::new(16);
        reader.push(b"data: 12345678\ndata: 123456789\n");
        assert_eq!(reader.next(), Err(TooLong));
    }
}
