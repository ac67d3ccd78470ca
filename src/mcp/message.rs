//! A JSON-RPC message: its bytes, and what stands where in them.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use memchr::memchr2;

use crate::json::{self, Document, JsonError, Place, Value};

/// A JSON-RPC message: its bytes, and what stands where in them.
#[derive(Clone, Debug)]
pub struct Message {
    bytes: Bytes,
    document: Document,
    one_line: bool,
}

impl Message {
    /// Reads one JSON document strictly.
    pub fn parse(bytes: Bytes) -> Result<Self, JsonError> {
        let document = Document::parse(&bytes, json::MESSAGE)?;
        Ok(Self {
            bytes,
            document,
            one_line: false,
        })
    }

    /// The same message with spaces for the line breaks between its tokens (inside strings JSON has
    /// none). Work that grows with it; where it has breaks and somebody else holds its bytes, a copy.
    pub fn on_one_line(mut self) -> Self {
        if memchr2(b'\n', b'\r', &self.bytes).is_some() {
            let text = self.bytes.try_into_mut();
            let mut text = text.unwrap_or_else(|shared| BytesMut::from(&shared[..]));
            for byte in text.iter_mut() {
                if matches!(byte, b'\n' | b'\r') {
                    *byte = b' ';
                }
            }
            self.bytes = text.freeze();
        }
        self.one_line = true;
        self
    }

    /// Has its bytes in what `keep` makes of them: the same ones, counted.
    pub fn keep(&mut self, keep: impl FnOnce(Bytes) -> Bytes) {
        self.bytes = keep(std::mem::take(&mut self.bytes));
    }

    /// The same text, of which it is known only where these members stand, a list of names for each depth.
    pub fn outline(&self, names: &[&[&str]]) -> Self {
        Self {
            bytes: self.bytes.clone(),
            document: self.document.outline(&self.bytes, names),
            one_line: self.one_line,
        }
    }

    /// Bytes of memory that it takes to know what stands where in its text.
    pub fn document_size(&self) -> usize {
        self.document.size()
    }

    /// Whether it is known to have no line breaks.
    pub fn is_one_line(&self) -> bool {
        self.one_line
    }

    pub fn root(&self) -> Value<'_> {
        self.document.root(&self.bytes)
    }

    /// The value at a place of this message's.
    pub fn at(&self, place: Place) -> Value<'_> {
        self.document.at(&self.bytes, place)
    }

    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The message's text with `replacements` in place of the given spans;
    /// they must be in order and must not overlap. All else stays byte for byte.
    pub fn with(&self, replacements: &[(Range<usize>, &[u8])]) -> Vec<u8> {
        let grown: usize = replacements.iter().map(|(_, text)| text.len()).sum();
        let left_out: usize = replacements.iter().map(|(span, _)| span.len()).sum();
        // With room for the end of a line: a long message is not copied once more for it.
        let mut out = Vec::with_capacity(self.bytes.len() - left_out + grown + 1);
        let mut at = 0;
        for (span, text) in replacements {
            out.extend_from_slice(&self.bytes[at..span.start]);
            out.extend_from_slice(text);
            at = span.end;
        }
        out.extend_from_slice(&self.bytes[at..]);
        out
    }
}
