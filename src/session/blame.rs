//! Whose answer a line was to be that is no MCP.
//!
//! Such a line is dropped whole: nothing in it is believed but that whoever waits for
//! the request it names would wait in vain (sse-2). A server that writes `NaN` is told
//! from one that is slow. What a server prints of its callers' words beside its answers
//! must name nobody's request: where users share a child it would be another's.

use crate::session::{Session, exchange::Failure};

impl Session {
    /// Fails the request that the line seems to answer.
    pub(super) fn blame(&self, line: &[u8]) {
        if let Some(number) = answered(line) {
            let first = self.state().reversed.first(number);
            self.fail_one(first, Failure::BadAnswer);
        }
    }
}

/// The number at the outermost `id` of what is nearly an answer; none where there are several, or a method.
pub(super) fn answered(line: &[u8]) -> Option<u64> {
    named(line, false)
}

/// The same of a line that is known by its beginning alone.
pub(super) fn begins_to_answer(beginning: &[u8]) -> Option<u64> {
    named(beginning, true)
}

fn named(line: &[u8], is_cut: bool) -> Option<u64> {
    let mut found = None;
    let mut answers = false;
    // A byte order mark is no part of JSON either.
    let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
    if line.trim_ascii_start().first() != Some(&b'{') {
        return None;
    }
    let (mut depth, mut at) = (0_usize, 0);
    while at < line.len() {
        match line[at] {
            b'"' => {
                let start = at + 1;
                let end = match string_end(line, start) {
                    None if is_cut => break,
                    end => end?,
                };
                at = end;
                if depth == 1 && is_name(&line[end + 1..]) {
                    match &line[start..end] {
                        b"method" => return None,
                        b"id" if found.is_some() => return None,
                        b"id" => found = Some(number(&line[end + 1..])?),
                        b"result" | b"error" => answers = true,
                        _ => {}
                    }
                }
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            byte if is_between(byte) => {}
            // Another language's quotes, say: what they hold is no name of ours.
            _ => return None,
        }
        at += 1;
    }
    found.filter(|_| answers)
}

/// Whether JSON, or what is nearly that (`NaN`, `True`), has it between strings and brackets.
fn is_between(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte.is_ascii_whitespace() || b"+-._,:".contains(&byte)
}

/// Where the string ends that begins at `start`.
fn string_end(line: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        match line.get(at)? {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// Whether what comes after a string says that it was a member's name.
fn is_name(rest: &[u8]) -> bool {
    rest.trim_ascii_start().first() == Some(&b':')
}

/// The number after a name.
fn number(rest: &[u8]) -> Option<u64> {
    let rest = rest
        .trim_ascii_start()
        .strip_prefix(b":")?
        .trim_ascii_start();
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()
}

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
        ] {
            assert_eq!(answered(line.as_bytes()), number, "{line}");
        }
        for (line, number) in [
            (r#"{"jsonrpc":"2.0","id":7,"result":{"half"#, Some(7)),
            (
                r#"{"jsonrpc":"2.0","id":7,"result":{"id":8,"a":[1"#,
                Some(7),
            ),
            (r#"{"jsonrpc":"2.0","id":7"#, None),
            (r#"{"result":{"half"#, None),
            (r#"called with {"id":7,"result":{"half"#, None),
        ] {
            assert_eq!(begins_to_answer(line.as_bytes()), number, "{line}");
        }
    }
}
