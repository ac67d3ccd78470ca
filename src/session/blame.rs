//! Whose answer a line was to be that is no MCP.
//!
//! Such a line is dropped whole: nothing in it is believed but that whoever waits for
//! the request it names would wait in vain (sse-2). A server that writes `NaN` is told
//! from one that is slow. What a server prints of its callers' words beside its answers
//! must name nobody's request: where users share a child it would be another's.

use memchr::memchr2;

use crate::session::{Session, exchange::Failure};

impl Session {
    /// Fails the request that the line seems to answer.
    pub(super) fn blame(&self, line: &[u8]) {
        if let Some(number) = answered(line) {
            self.fail_one(number, Failure::BadAnswer);
        }
    }
}

/// The number at the outermost `id` of what is nearly an answer; none where there are several, or a method.
pub(super) fn answered(line: &[u8]) -> Option<u64> {
    let mut suspect = Suspect::default();
    suspect.read(line);
    suspect.whole()
}

/// What is known of such a line, which may come in parts: none of them is kept.
pub(super) struct Suspect {
    at: SuspectAt,
    depth: usize,
    /// The number at its outermost `id`.
    id: Option<u64>,
    /// It has a result, or an error.
    answers: bool,
    /// It has a method.
    asks: bool,
    /// The text of an outermost string as far as a name of ours is long.
    text: [u8; LONGEST_NAME],
    /// How long that text is, and the rest of it.
    length: usize,
}

#[derive(Clone, Copy)]
enum SuspectAt {
    /// Before anything; behind so much of a byte order mark, which is no part of JSON either.
    Start(usize),
    Between,
    String,
    /// Behind a backslash.
    Escape,
    /// Behind a string, which was a name if a colon comes.
    Behind,
    /// At the number of an outermost `id`, which is so much up to here.
    Number(Option<u64>),
    /// Behind the outermost object.
    End,
    /// It is no answer to anything.
    Refuted,
}

impl Default for Suspect {
    fn default() -> Self {
        Self {
            at: SuspectAt::Start(0),
            depth: 0,
            id: None,
            answers: false,
            asks: false,
            text: [0; LONGEST_NAME],
            length: 0,
        }
    }
}

impl Suspect {
    /// Reads the next part of the line.
    pub(super) fn read(&mut self, mut part: &[u8]) {
        while let Some(byte) = part.first() {
            if let SuspectAt::Refuted = self.at {
                return;
            }
            if let SuspectAt::String = self.at {
                let end = memchr2(b'"', b'\\', part).unwrap_or(part.len());
                self.name(&part[..end]);
                part = &part[end..];
                match part.first() {
                    Some(b'"') => self.at = SuspectAt::Behind,
                    Some(_) => {
                        self.name(b"\\");
                        self.at = SuspectAt::Escape;
                    }
                    None => return,
                }
            } else {
                self.at = self.next(*byte);
            }
            part = &part[1..];
        }
    }

    /// Whose answer a line that goes on was to be, by what has come.
    pub(super) fn begun(&self) -> Option<u64> {
        let answers = self.answers && !self.asks;
        self.id
            .filter(|_| answers && !matches!(self.at, SuspectAt::Refuted))
    }

    /// The number of the question that one was which has come to its end.
    pub(super) fn asked(&self) -> Option<u64> {
        let asks = self.asks && !self.answers;
        self.id
            .filter(|_| asks && matches!(self.at, SuspectAt::End))
    }

    /// The same of one that has come to its end.
    pub(super) fn whole(&self) -> Option<u64> {
        // Inside of a string all that came before may have been another's.
        let inside = matches!(self.at, SuspectAt::String | SuspectAt::Escape);
        self.begun().filter(|_| !inside)
    }

    /// It was told whose it was: the rest says nothing more.
    pub(super) fn was_told(&mut self) {
        self.at = SuspectAt::Refuted;
    }

    fn next(&mut self, byte: u8) -> SuspectAt {
        match self.at {
            SuspectAt::Start(marked) if BYTE_ORDER_MARK.get(marked) == Some(&byte) => {
                SuspectAt::Start(marked + 1)
            }
            SuspectAt::Start(0 | MARKED) if byte.is_ascii_whitespace() => SuspectAt::Start(MARKED),
            SuspectAt::Start(0 | MARKED) if byte == b'{' => {
                self.depth = 1;
                SuspectAt::Between
            }
            SuspectAt::Between => self.between(byte),
            SuspectAt::Escape => {
                self.name(&[byte]);
                SuspectAt::String
            }
            SuspectAt::Behind if byte.is_ascii_whitespace() => SuspectAt::Behind,
            SuspectAt::Behind if byte == b':' && self.depth == 1 => self.named(),
            SuspectAt::Behind => self.between(byte),
            SuspectAt::Number(None) if byte.is_ascii_whitespace() => SuspectAt::Number(None),
            SuspectAt::Number(before) if byte.is_ascii_digit() => {
                let more = before.unwrap_or(0).checked_mul(10);
                let more = more.and_then(|more| more.checked_add(u64::from(byte - b'0')));
                more.map_or(SuspectAt::Refuted, |more| SuspectAt::Number(Some(more)))
            }
            SuspectAt::Number(Some(number))
                if byte.is_ascii_whitespace() || matches!(byte, b',' | b'}') =>
            {
                self.id = Some(number);
                self.between(byte)
            }
            SuspectAt::End if byte.is_ascii_whitespace() => SuspectAt::End,
            _ => SuspectAt::Refuted,
        }
    }

    fn between(&mut self, byte: u8) -> SuspectAt {
        match byte {
            b'"' => {
                self.length = 0;
                return SuspectAt::String;
            }
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth -= 1;
                if self.depth == 0 {
                    return SuspectAt::End;
                }
            }
            byte if is_between(byte) => {}
            // Another language's quotes, say: what they hold is no name of ours.
            _ => return SuspectAt::Refuted,
        }
        SuspectAt::Between
    }

    fn named(&mut self) -> SuspectAt {
        match self.text.get(..self.length) {
            Some(b"method") => {
                self.asks = true;
                SuspectAt::Between
            }
            Some(b"id") if self.id.is_some() => SuspectAt::Refuted,
            Some(b"id") => SuspectAt::Number(None),
            Some(b"result" | b"error") => {
                self.answers = true;
                SuspectAt::Between
            }
            _ => SuspectAt::Between,
        }
    }

    /// More of the text of a string.
    fn name(&mut self, more: &[u8]) {
        for (place, byte) in self.text.iter_mut().skip(self.length).zip(more) {
            *place = *byte;
        }
        self.length = self.length.saturating_add(more.len());
    }
}

/// Whether JSON, or what is nearly that (`NaN`, `True`), has it between strings and brackets.
fn is_between(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte.is_ascii_whitespace() || b"+-._,:".contains(&byte)
}

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
const MARKED: usize = BYTE_ORDER_MARK.len();
/// Bytes of the longest name that says what a line is, `method`.
const LONGEST_NAME: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

    /// sse-2: an outermost id, and no other, says whose answer it was to be.
    #[test]
    fn a_broken_line_names_the_request_it_would_answer() {
        for (line, number) in [
            (r#"{"jsonrpc":"2.0","id":7,"result":{"n":NaN}}"#, Some(7)),
            (
                r#"{"result":{"id":1,"s":"\"id\":2","x":1,"x":2}, "id" : 8}"#,
                Some(8),
            ),
            (r#"{"id":7,"result":{"half"#, None),
            (r#"{"id":7,"result":{"a":[1"#, Some(7)),
            (r#"{"id":7,"id":8,"result":{}}"#, None),
            (r#"{"id":7,"method":"x","params":{"a":NaN}}"#, None),
            (r#"{"id":"7","result":NaN}"#, None),
            (r#"[{"id":7}]"#, None),
            // Printed beside the answers, with a caller's words in it.
            (r#"called with {"id":7,"result":1}"#, None),
            (r#"{'text': '"id":7,"result":1'}"#, None),
            (r#"{ text: `"id":7,"result":1` }"#, None),
            (r#"{"id":7,"arguments":{"a":NaN}}"#, None),
            (r#" {"id":7,"result":[True,-Infinity,1e5]}"#, Some(7)),
            (r#"{"id":7,"error":{"code":NaN}}"#, Some(7)),
            ("\u{feff}{\"id\":7,\"result\":1}", Some(7)),
            ("", None),
            ("\"", None),
            ("\\\\", None),
            ("\"\\", None),
            // Two objects are none, and half a number is another number.
            (r#"{note} {"id":7,"result":1}"#, None),
            (r#"{"id":7,"result":1} {"id":8,"result":1}"#, None),
            (r#"{"result":1,"id":7"#, None),
            (r#"{"result":1,"id":7.5}"#, None),
            (r#"{"result":1,"id":18446744073709551616}"#, None),
            (r#"{"result":1,"ids":7,"xid":7,"methods":1}"#, None),
            (r#"{"result":"\\","\u0069d":8,"id"	:	7	}"#, Some(7)),
            ("\u{feff} {\"id\":7,\"result\":1} \r", Some(7)),
            (" \u{feff}{\"id\":7,\"result\":1}", None),
            ("{\"id\":7,\"result\":1}]", None),
        ] {
            assert_eq!(answered(line.as_bytes()), number, "{line}");
            // The same, in whatever parts it comes.
            for size in 1..4 {
                let mut suspect = Suspect::default();
                for part in line.as_bytes().chunks(size) {
                    suspect.read(part);
                }
                assert_eq!(suspect.whole(), number, "{line}");
            }
        }
        for (line, number) in [
            (r#"{"jsonrpc":"2.0","id":7,"result":{"half"#, Some(7)),
            (
                r#"{"jsonrpc":"2.0","id":7,"result":{"id":8,"a":[1"#,
                Some(7),
            ),
            (r#"{"jsonrpc":"2.0","id":7"#, None),
            (r#"{"result":{"half"#, None),
            (r#"{"result":{},"id":7"#, None),
            (r#"called with {"id":7,"result":{"half"#, None),
        ] {
            let mut suspect = Suspect::default();
            suspect.read(line.as_bytes());
            assert_eq!(suspect.begun(), number, "{line}");
        }
    }

    /// What is left out may be a question, whose server waits for its answer.
    #[test]
    fn a_question_that_is_left_out_is_known_by_its_end() {
        for (line, number) in [
            (r#"{"jsonrpc":"2.0","id":7,"method":"roots/list"}"#, Some(7)),
            (
                r#"{"method":"x","params":{"id":8,"result":1},"id":7} "#,
                Some(7),
            ),
            (r#"{"method":"x","id":7"#, None),
            (r#"{"method":"x","id":7,"id":8}"#, None),
            (r#"{"method":"x","id":7,"result":1}"#, None),
            (r#"{"method":"notifications/progress","params":{}}"#, None),
            (r#"called with {"method":"x","id":7}"#, None),
            (r#"{"id":7,"result":1}"#, None),
        ] {
            let mut suspect = Suspect::default();
            suspect.read(line.as_bytes());
            assert_eq!(suspect.asked(), number, "{line}");
        }
    }
}
