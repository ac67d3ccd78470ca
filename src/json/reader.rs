//! The one pass over a text: every byte is looked at once, in order.

use std::hash::{BuildHasher as _, RandomState};

use super::{JsonError, Kind, Limits, Node, said};

/// The nodes of a text that is UTF-8.
pub(super) fn read(text: &[u8], limits: Limits) -> Result<Vec<Node>, JsonError> {
    let mut reader = Reader {
        text,
        at: 0,
        limits,
        // Of ordinary texts; others grow it.
        nodes: Vec::with_capacity((text.len() / 8).clamp(FEW_NODES, FIRST_NODES)),
    };
    reader.space();
    reader.value(0)?;
    reader.space();
    if reader.at == text.len() {
        Ok(reader.nodes)
    } else {
        Err(JsonError::Syntax(reader.at))
    }
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
    limits: Limits,
    nodes: Vec<Node>,
}

/// The names of an object that has many: what each hashes to, and its node. A million of them are sorted
/// faster than each is looked up among those before it, for which memory is waited for.
#[derive(Default)]
struct Many {
    hash: RandomState,
    names: Vec<(u64, u32)>,
}

impl Many {
    fn add(&mut self, name: &[u8], node: usize) {
        self.names.push((self.hash.hash_one(name), index_of(node)));
    }
}

impl Reader<'_> {
    fn value(&mut self, depth: usize) -> Result<(), JsonError> {
        match self.peek() {
            Some(b'{') => self.object(depth + 1),
            Some(b'[') => self.array(depth + 1),
            Some(b'"') => self.string(),
            Some(b't') => self.word(b"true", Kind::Bool),
            Some(b'f') => self.word(b"false", Kind::Bool),
            Some(b'n') => self.word(b"null", Kind::Null),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => Err(self.syntax()),
        }
    }

    fn object(&mut self, depth: usize) -> Result<(), JsonError> {
        let index = self.open(Kind::Object, depth)?;
        self.space();
        if self.peek() == Some(b'}') {
            return self.close(index);
        }
        let (mut count, mut many) = (0, None);
        loop {
            let name = self.nodes.len();
            if self.peek() != Some(b'"') {
                return Err(self.syntax());
            }
            self.string()?;
            if !self.may_be_new((index, name, count), &mut many) {
                return Err(JsonError::Duplicate(self.nodes[name].start as usize));
            }
            count += 1;
            self.space();
            if self.peek() != Some(b':') {
                return Err(self.syntax());
            }
            self.at += 1;
            self.space();
            self.value(depth)?;
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.differ(many)?;
                    return self.close(index);
                }
                _ => return Err(self.syntax()),
            }
            self.space();
        }
    }

    /// Whether the name at node `name` may be new in the object at node `object`, which has `count` before
    /// it. A few are compared as they are written; beyond that, and from one with an escape on, they
    /// are kept in `many` and compared when all are there, so that none is unescaped again for each that follows.
    fn may_be_new(
        &self,
        (object, name, count): (usize, usize, usize),
        many: &mut Option<Many>,
    ) -> bool {
        let new = self.nodes[name];
        if many.is_none() && count < FEW_NAMES && !new.escaped {
            let written = |name: Node| &self.text[name.range()];
            return self
                .names_between(object, name)
                .all(|(_, old)| written(old) != written(new));
        }
        let many = many.get_or_insert_with(|| {
            let mut many = Many::default();
            for (at, old) in self.names_between(object, name) {
                many.add(&said(self.text, old), at);
            }
            many
        });
        many.add(&said(self.text, new), name);
        true
    }

    /// Whether the names of an object of many are all different: those that hash to the same are compared.
    fn differ(&self, many: Option<Many>) -> Result<(), JsonError> {
        let Some(Many { mut names, .. }) = many else {
            return Ok(());
        };
        names.sort_unstable();
        let read = |at: u32| said(self.text, self.nodes[at as usize]);
        let alike = names.chunk_by(|(one, _), (other, _)| one == other);
        // No stranger can choose what hashes to the same: of those that do, the second is the first again.
        let twice = alike.filter_map(|alike| {
            let is_again = |at: &usize| {
                alike[..*at]
                    .iter()
                    .any(|old| read(old.1) == read(alike[*at].1))
            };
            (1..alike.len()).find(is_again).map(|at| alike[at].1)
        });
        match twice.min() {
            Some(again) => {
                let again = self.nodes[again as usize].start;
                Err(JsonError::Duplicate(again as usize))
            }
            None => Ok(()),
        }
    }

    /// The names of an object that is open, up to one of them, and their nodes' places.
    fn names_between(&self, object: usize, end: usize) -> impl Iterator<Item = (usize, Node)> {
        let mut at = object + 1;
        std::iter::from_fn(move || {
            let name = (at < end).then(|| (at, self.nodes[at]))?;
            at = self.nodes[at + 1].next as usize;
            Some(name)
        })
    }

    fn array(&mut self, depth: usize) -> Result<(), JsonError> {
        let index = self.open(Kind::Array, depth)?;
        self.space();
        if self.peek() == Some(b']') {
            return self.close(index);
        }
        loop {
            self.value(depth)?;
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => return self.close(index),
                _ => return Err(self.syntax()),
            }
            self.space();
        }
    }

    fn open(&mut self, kind: Kind, depth: usize) -> Result<usize, JsonError> {
        if depth > self.limits.depth {
            return Err(JsonError::Depth(self.at));
        }
        let index = self.nodes.len();
        self.push(kind, self.at)?;
        self.at += 1;
        Ok(index)
    }

    fn close(&mut self, index: usize) -> Result<(), JsonError> {
        self.at += 1;
        let next = index_of(self.nodes.len());
        let node = &mut self.nodes[index];
        node.end = index_of(self.at);
        node.next = next;
        Ok(())
    }

    fn string(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        let mut escaped = false;
        self.at += 1;
        loop {
            self.at += plain(&self.text[self.at..]);
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => {
                    escaped = true;
                    self.escape()?;
                }
                _ => return Err(self.syntax()),
            }
        }
        self.at += 1;
        self.push_one(Kind::String, start, escaped)
    }

    fn escape(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        match self.text.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 2,
            Some(b'u') => {
                let first = self.hex(start + 2)?;
                self.at = start + 6;
                match first {
                    // A high surrogate must be followed by a low one (RFC 8259 §8.2).
                    0xD800..=0xDBFF => {
                        if self.text.get(start + 6..start + 8) != Some(b"\\u") {
                            return Err(JsonError::Syntax(start));
                        }
                        if !matches!(self.hex(start + 8)?, 0xDC00..=0xDFFF) {
                            return Err(JsonError::Syntax(start));
                        }
                        self.at = start + 12;
                    }
                    0xDC00..=0xDFFF => return Err(JsonError::Syntax(start)),
                    _ => {}
                }
            }
            _ => return Err(self.syntax()),
        }
        Ok(())
    }

    fn hex(&self, at: usize) -> Result<u32, JsonError> {
        let digits = self.text.get(at..at + 4).ok_or(JsonError::Syntax(at))?;
        digits.iter().try_fold(0, |value, digit| {
            let digit = char::from(*digit)
                .to_digit(16)
                .ok_or(JsonError::Syntax(at))?;
            Ok(value * 16 + digit)
        })
    }

    fn number(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits(),
            _ => return Err(self.syntax()),
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.some_digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.some_digits()?;
        }
        self.push(Kind::Number, start)
    }

    fn some_digits(&mut self) -> Result<(), JsonError> {
        if !matches!(self.peek(), Some(b'0'..=b'9')) {
            return Err(self.syntax());
        }
        self.digits();
        Ok(())
    }

    fn digits(&mut self) {
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
    }

    fn word(&mut self, word: &[u8], kind: Kind) -> Result<(), JsonError> {
        let start = self.at;
        if !self.text[start..].starts_with(word) {
            return Err(self.syntax());
        }
        self.at += word.len();
        self.push(kind, start)
    }

    fn push(&mut self, kind: Kind, start: usize) -> Result<(), JsonError> {
        self.push_one(kind, start, false)
    }

    /// Inlined, as what is done for each byte: to call them costs as much as what they do.
    #[inline(always)]
    fn push_one(&mut self, kind: Kind, start: usize, escaped: bool) -> Result<(), JsonError> {
        if self.nodes.len() >= self.limits.nodes {
            return Err(JsonError::Nodes);
        }
        let next = index_of(self.nodes.len() + 1);
        self.nodes.push(Node {
            kind,
            start: index_of(start),
            end: index_of(self.at),
            next,
            escaped,
        });
        Ok(())
    }

    #[inline(always)]
    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    #[inline(always)]
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn syntax(&self) -> JsonError {
        JsonError::Syntax(self.at)
    }
}

fn index_of(at: usize) -> u32 {
    u32::try_from(at).expect("parse() refuses texts over 4 GiB, and nodes are fewer than bytes")
}

/// How many bytes a text begins with that stand for themselves in a string (RFC 8259 §7): eight are
/// looked at by one step.
fn plain(text: &[u8]) -> usize {
    let (eights, rest) = text.as_chunks::<8>();
    for (number, eight) in eights.iter().enumerate() {
        let others = others(u64::from_le_bytes(*eight));
        if others != 0 {
            return 8 * number + others.trailing_zeros() as usize / 8;
        }
    }
    let is_plain = |byte: &&u8| !matches!(byte, 0..b' ' | b'"' | b'\\');
    8 * eights.len() + rest.iter().take_while(is_plain).count()
}

/// Zero if all eight bytes stand for themselves. If not, the lowest bit that is set is of the first
/// byte that does not; what is set above says nothing, for that one may have borrowed there.
fn others(eight: u64) -> u64 {
    const ALL: u64 = u64::from_ne_bytes([1; 8]);
    let below = |limit: u8, bytes: u64| bytes.wrapping_sub(ALL * u64::from(limit)) & !bytes;
    let equal = |byte: u8| below(1, eight ^ (ALL * u64::from(byte)));
    (below(b' ', eight) | equal(b'"') | equal(b'\\')) & (ALL << 7)
}

/// Nodes that are reserved at once: a long text says nothing about how many it has.
const FIRST_NODES: usize = 256;
const FEW_NODES: usize = 16;
/// So many names are compared one by one: that is faster than hashing them.
const FEW_NAMES: usize = 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_byte_that_does_not_stand_for_itself_is_found_wherever_it_is() {
        let ends = |byte: u8| byte < b' ' || byte == b'"' || byte == b'\\';
        for byte in 0..=u8::MAX {
            for length in 0..24 {
                for at in 0..length {
                    // What borrows most easily stands behind it, and what is highest before.
                    let mut text = vec![0xFF; length];
                    text[at..].fill(0);
                    text[at] = byte;
                    let first = if ends(byte) { at } else { (at + 1).min(length) };
                    assert_eq!(plain(&text), first, "{byte:#x} at {at} of {length}");
                }
            }
            let text = [byte.max(b'0'); 40];
            let all = if ends(text[0]) { 0 } else { 40 };
            assert_eq!(plain(&text), all, "{byte:#x}");
        }
    }
}
