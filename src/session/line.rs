//! A line for a child: one text, or where the message is large the parts of it, uncopied.
//!
//! Of a client's message little is changed. What is large is not copied for that where everybody
//! waits: the parts between go as they came. Made by `rewrite`, `reversed`, `pending`, `conversation`, `own` and
//! `switch`; taken apart by `outbox`.

use std::ops::Range;

use bytes::Bytes;

use crate::{
    aside::is_large,
    child::stdio,
    json::Value,
    mcp::{Message, answer, meta::Change},
};

/// A line with its end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Line {
    Whole(Bytes),
    /// In order; the end of the last is the end of the line, and there is none in the others.
    Parts(Vec<Bytes>),
}

impl Line {
    /// The message with `changes` in place of the given spans, which must be in order and not overlap.
    pub(super) fn of(message: &Message, changes: &[(Range<usize>, &[u8])]) -> Self {
        let bytes = message.bytes();
        let left_out: usize = changes.iter().map(|(span, _)| span.len()).sum();
        // Parts keep all that they are of, and what is left out nobody counts.
        let is_wasted = left_out > bytes.len() / MAX_LEFT_OUT;
        if !is_large(bytes.len()) || is_wasted || !message.is_one_line() {
            return Self::Whole(stdio::line(message.with(changes)));
        }
        let mut parts = Vec::with_capacity(2 * changes.len() + 2);
        let mut at = 0;
        for (span, text) in changes {
            parts.push(bytes.slice(at..span.start));
            parts.push(Bytes::copy_from_slice(text));
            at = span.end;
        }
        parts.push(bytes.slice(at..));
        parts.push(Bytes::from_static(b"\n"));
        parts.retain(|part| !part.is_empty());
        Self::Parts(parts)
    }

    /// The same for changes in texts of their own.
    pub(super) fn changed(message: &Message, changes: &[Change]) -> Self {
        let changes = changes.iter();
        let changes: Vec<_> = changes
            .map(|(span, text)| (span.clone(), text.as_slice()))
            .collect();
        Self::of(message, &changes)
    }

    /// The client's answer to what the child has asked under that id, which is JSON.
    pub(super) fn answering(id: &[u8], given: Value<'_>) -> Self {
        Self::Whole(stdio::line(answer::result(id, given.raw())))
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Whole(text) => text.len(),
            Self::Parts(parts) => parts.iter().map(Bytes::len).sum(),
        }
    }

    /// The same where `keep` gives something for each part of it.
    pub(super) fn kept(self, keep: impl Fn(Bytes) -> Option<Bytes>) -> Option<Self> {
        Some(match self {
            Self::Whole(text) => Self::Whole(keep(text)?),
            Self::Parts(parts) => Self::Parts(parts.into_iter().map(keep).collect::<Option<_>>()?),
        })
    }

    /// Whether these bytes end one.
    pub(super) fn is_end(part: &[u8]) -> bool {
        part.last() == Some(&b'\n')
    }
}

#[cfg(test)]
impl Line {
    fn into_parts(self) -> Vec<Bytes> {
        match self {
            Self::Whole(text) => vec![text],
            Self::Parts(parts) => parts,
        }
    }
}

#[cfg(test)]
impl From<Bytes> for Line {
    fn from(text: Bytes) -> Self {
        Self::Whole(text)
    }
}

/// So much of a message (its bytes divided by this) may be left out of its parts.
const MAX_LEFT_OUT: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> Message {
        let message = Message::parse(Bytes::copy_from_slice(text.as_bytes())).unwrap();
        message.on_one_line()
    }

    /// Whether it is copied or not: the same line.
    #[test]
    fn a_large_line_is_what_a_small_one_would_be() {
        for space in ["", " ", "\n", "\r\n\t"] {
            for end in ["", "\n"] {
                for size in [10, 2 << 20] {
                    let long = "x".repeat(size);
                    let text = format!("{{{space}\"id\":1,\"v\":\"{long}\"{space},\"w\":2}}{end}");
                    let message = message(&text);
                    let spans = ["id", "w"].map(|name| message.root().get(name).unwrap().span());
                    let changes = spans.map(|span| (span, &b"345"[..]));
                    for changes in [&changes[..0], &changes[..1], &changes] {
                        let line = Line::of(&message, changes);
                        assert_eq!(matches!(line, Line::Parts(_)), size > 10);
                        let expected = String::from_utf8(message.with(changes)).unwrap();
                        let expected = expected.replace(['\r', '\n'], " ") + "\n";
                        assert_eq!(line.len(), expected.len());
                        let parts = line.into_parts();
                        let (last, others) = parts.split_last().unwrap();
                        assert!(Line::is_end(last));
                        assert!(!others.iter().any(|part| part.contains(&b'\n')));
                        assert!(parts.concat() == expected.as_bytes(), "{size}");
                    }
                }
            }
        }
    }

    /// probe-68: what is left out of a line is not kept with it, where that is much.
    #[test]
    fn a_line_keeps_little_of_what_is_left_out_of_it() {
        let long = |size| "x".repeat(size);
        for (left_out, stays, is_whole) in [(2 << 20, 10, true), (10, 2 << 20, false)] {
            let text = format!(r#"{{"v":"{}","w":"{}"}}"#, long(left_out), long(stays));
            let message = message(&text);
            let span = message.root().get("v").unwrap().span();
            let line = Line::of(&message, &[(span, b"0")]);
            assert_eq!(matches!(line, Line::Whole(_)), is_whole);
            assert_eq!(
                line.len(),
                format!(r#"{{"v":0,"w":"{}"}}"#, long(stays)).len() + 1
            );
            if let Line::Whole(text) = line {
                let room = Vec::from(text).capacity();
                assert!(room < 1 << 10, "{room}");
            }
        }
    }

    /// What is kept of a large one is the message as it came, and not another of its size.
    #[test]
    fn a_large_line_is_no_copy() {
        let message = message(&format!("{{\"id\":1,\"v\":\"{}\"}}", "x".repeat(2 << 20)));
        let id = message.root().get("id").unwrap().span();
        let parts = Line::of(&message, &[(id, b"2")]).into_parts();
        let whole = message.bytes().as_ptr_range();
        let longest = parts.iter().max_by_key(|part| part.len()).unwrap();
        assert!(whole.contains(&longest.as_ptr()));
    }
}
