//! The one reader of strangers' JSON.
//!
//! Strict RFC 8259 in one pass, refusing what two parsers could read
//! differently (duplicate names at any depth, lone surrogates, a byte order
//! mark, trailing bytes), with caps on depth and nodes. It keeps where every
//! value stands in the input, so that what was checked is what is forwarded.
//! Never allocates for values, only one fixed-size node each.

mod reader;

use std::{borrow::Cow, ops::Range};

/// How deep arrays and objects may nest (json-4).
pub const MAX_DEPTH: usize = 64;

/// How much one document may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Nesting of arrays and objects.
    pub depth: usize,
    /// Values and names together.
    pub nodes: usize,
}

/// The limits for a JSON-RPC message.
pub const MESSAGE: Limits = Limits {
    depth: MAX_DEPTH,
    nodes: 2_000_000,
};

/// Why a text is not acceptable JSON.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum JsonError {
    /// Not RFC 8259 JSON, at this byte.
    #[error("not JSON, at byte {0}")]
    Syntax(usize),
    /// An object names a member twice (RFC 8259 §4, I-JSON §2.3).
    #[error("a member is named twice, at byte {0}")]
    Duplicate(usize),
    #[error("nested too deeply, at byte {0}")]
    Depth(usize),
    #[error("too many values")]
    Nodes,
}

/// A parsed text: what stands where.
#[derive(Clone, Debug)]
pub struct Document {
    nodes: Vec<Node>,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    kind: Kind,
    start: u32,
    end: u32,
    /// Index of the node after this one and all it contains.
    next: u32,
    /// A string with a backslash in it: what it says is not what stands there.
    escaped: bool,
}

impl Node {
    fn range(&self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// What a value is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    Null,
    Bool,
    Number,
    String,
    Array,
    Object,
}

/// Which of a [`Document`]'s values one is: it is found again without a search.
#[derive(Clone, Copy, Debug)]
pub struct Place(usize);

/// One value of a [`Document`], with the text it stands in.
#[derive(Clone, Copy, Debug)]
pub struct Value<'a> {
    document: &'a Document,
    text: &'a [u8],
    index: usize,
}

impl Document {
    /// Reads `text` whole. Texts over 4 GiB are refused as a syntax error at 0.
    pub fn parse(text: &[u8], limits: Limits) -> Result<Self, JsonError> {
        if u32::try_from(text.len()).is_err() || std::str::from_utf8(text).is_err() {
            return Err(JsonError::Syntax(0));
        }
        let nodes = reader::read(text, limits)?;
        Ok(Self { nodes })
    }

    /// The same of the outermost object and what it has under these names, a list for each depth; of what is not named
    /// there is one member of each such object, so that it is not taken for empty. `text` must be what was parsed.
    pub fn outline(&self, text: &[u8], names: &[&[&str]]) -> Self {
        let mut nodes = Vec::new();
        self.root(text).outlined(names, &mut nodes);
        nodes.shrink_to_fit();
        Self { nodes }
    }

    /// Bytes of memory that it takes beside its text.
    pub fn size(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>()
    }

    /// The outermost value. `text` must be what was parsed.
    pub fn root<'a>(&'a self, text: &'a [u8]) -> Value<'a> {
        Value {
            document: self,
            text,
            index: 0,
        }
    }

    /// The value at a place of this document's. `text` must be what was parsed.
    pub fn at<'a>(&'a self, text: &'a [u8], place: Place) -> Value<'a> {
        Value {
            document: self,
            text,
            index: place.0,
        }
    }
}

impl<'a> Value<'a> {
    pub fn kind(self) -> Kind {
        self.node().kind
    }

    /// Which one it is.
    pub fn place(self) -> Place {
        Place(self.index)
    }

    /// Where the value stands in the text, quotes and brackets included.
    pub fn span(self) -> Range<usize> {
        self.node().range()
    }

    /// The value as it was written.
    pub fn raw(self) -> &'a [u8] {
        &self.text[self.span()]
    }

    /// The string, unescaped; `None` if it is none.
    pub fn as_str(self) -> Option<Cow<'a, str>> {
        let node = self.node();
        (node.kind == Kind::String).then(|| {
            if node.escaped {
                unescape(self.raw())
            } else {
                Cow::Borrowed(plain(self.raw()))
            }
        })
    }

    /// The number as it was written; `None` if it is none.
    pub fn as_number(self) -> Option<&'a str> {
        (self.kind() == Kind::Number)
            .then(|| std::str::from_utf8(self.raw()).expect("the text was checked to be UTF-8"))
    }

    /// The number, if it is a whole one that was written as such and is not below zero.
    pub fn as_u64(self) -> Option<u64> {
        self.as_number()?.parse().ok()
    }

    pub fn as_bool(self) -> Option<bool> {
        (self.kind() == Kind::Bool).then(|| self.raw() == b"true")
    }

    pub fn is_null(self) -> bool {
        self.kind() == Kind::Null
    }

    /// The member of that name, if this is an object that has it.
    pub fn get(self, name: &str) -> Option<Self> {
        let object = self.node();
        if object.kind != Kind::Object {
            return None;
        }
        let nodes = &self.document.nodes[..object.next as usize];
        let mut at = self.index + 1;
        while at < nodes.len() {
            let key = nodes[at];
            let found = if key.escaped {
                // Of six bytes at most is one that it says: what is too long or too short need not be read.
                let written = key.range().len() - QUOTES;
                (name.len()..=6 * name.len()).contains(&written)
                    && unescape(&self.text[key.range()]) == name
            } else {
                // Length and first byte tell most names apart, without the call that comparing costs.
                key.range().len() == name.len() + QUOTES && {
                    let key = &self.text[key.start as usize + 1..key.end as usize - 1];
                    key.first() == name.as_bytes().first() && key == name.as_bytes()
                }
            };
            if found {
                return Some(Value {
                    index: at + 1,
                    ..self
                });
            }
            at = nodes[at + 1].next as usize;
        }
        None
    }

    /// The members of an object, in order; none for any other kind.
    pub fn members(self) -> impl Iterator<Item = (Cow<'a, str>, Self)> {
        self.named().map(|(name, value)| {
            let name = match name {
                Cow::Borrowed(name) => std::str::from_utf8(name).map(Cow::Borrowed).ok(),
                Cow::Owned(name) => String::from_utf8(name).map(Cow::Owned).ok(),
            };
            (name.expect("the text was checked to be UTF-8"), value)
        })
    }

    /// The same with names as bytes, for whoever looks for a few that he knows.
    pub fn named(self) -> impl Iterator<Item = (Cow<'a, [u8]>, Self)> {
        let end = if self.kind() == Kind::Object {
            self.node().next as usize
        } else {
            0
        };
        let mut at = self.index + 1;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let name = said(self.text, self.document.nodes[at]);
            let value = Value {
                index: at + 1,
                ..self
            };
            at = value.node().next as usize;
            Some((name, value))
        })
    }

    /// The same, each with where it stands, from its name to its value's end.
    pub fn member_spans(self) -> impl Iterator<Item = (Cow<'a, str>, Range<usize>, Self)> {
        let nodes = &self.document.nodes[..];
        self.members().map(move |(name, value)| {
            let start = nodes[value.index - 1].start as usize;
            (name, start..value.span().end, value)
        })
    }

    /// How many members an object has; none for any other kind.
    pub fn member_count(self) -> usize {
        let nodes = &self.document.nodes[..];
        let (object, mut at, mut count) = (nodes[self.index], self.index + 1, 0);
        while object.kind == Kind::Object && at < object.next as usize {
            at = nodes[at + 1].next as usize;
            count += 1;
        }
        count
    }

    /// The elements of an array, in order; none for any other kind.
    pub fn elements(self) -> impl Iterator<Item = Self> {
        let end = if self.kind() == Kind::Array {
            self.node().next as usize
        } else {
            0
        };
        let mut at = self.index + 1;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let value = Value { index: at, ..self };
            at = value.node().next as usize;
            Some(value)
        })
    }

    fn outlined(self, names: &[&[&str]], nodes: &mut Vec<Node>) {
        let at = nodes.len();
        nodes.push(self.node());
        if let [names, deeper @ ..] = names {
            let first = self.named().next().map(|(_, first)| first);
            let is_first = |value: &Self| first.is_some_and(|first| first.index == value.index);
            let named = names.iter().filter_map(|name| self.get(name));
            for value in first.into_iter().chain(named.filter(|it| !is_first(it))) {
                nodes.push(self.document.nodes[value.index - 1]);
                value.outlined(deeper, nodes);
            }
        }
        // No more of them than before.
        nodes[at].next = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
    }

    fn node(self) -> Node {
        self.document.nodes[self.index]
    }
}

/// What a checked string of a text says.
fn said(text: &[u8], string: Node) -> Cow<'_, [u8]> {
    let raw = &text[string.range()];
    if string.escaped {
        Cow::Owned(unescape(raw).into_owned().into_bytes())
    } else {
        Cow::Borrowed(&raw[1..raw.len() - 1])
    }
}

/// A checked string with its quotes → what it says.
fn unescape(raw: &[u8]) -> Cow<'_, str> {
    if !raw.contains(&b'\\') {
        return Cow::Borrowed(plain(raw));
    }
    #[cfg(test)]
    tests::UNESCAPED.set(tests::UNESCAPED.get() + 1);
    Cow::Owned(serde_json::from_slice(raw).expect("the reader checked every escape"))
}

/// A checked string with its quotes and without a backslash.
fn plain(raw: &[u8]) -> &str {
    std::str::from_utf8(&raw[1..raw.len() - 1]).expect("the text was checked to be UTF-8")
}

/// Around a string.
const QUOTES: usize = 2;

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Document, JsonError> {
        Document::parse(text.as_bytes(), MESSAGE)
    }

    #[test]
    fn values_keep_the_place_and_the_spelling_they_had() {
        let text = r#" {"a": [1.0e+2, "x\u0041", null], "b\n": {"c": true}} "#;
        let document = parse(text).unwrap();
        let root = document.root(text.as_bytes());
        let a: Vec<_> = root.get("a").unwrap().elements().map(|v| v.raw()).collect();
        assert_eq!(a, [&b"1.0e+2"[..], br#""x\u0041""#, b"null"]);
        assert_eq!(
            root.get("a")
                .unwrap()
                .elements()
                .nth(1)
                .unwrap()
                .as_str()
                .unwrap(),
            "xA"
        );
        assert_eq!(
            root.get("b\n").unwrap().get("c").unwrap().as_bool(),
            Some(true)
        );
        assert_eq!(root.member_count(), 2);
        assert!(root.get("c").is_none());
    }

    #[test]
    fn a_member_named_twice_is_refused_at_any_depth_and_in_any_spelling() {
        for text in [
            r#"{"a":1,"a":2}"#,
            r#"{"x":[{"a":1,"\u0061":2}]}"#,
            r#"{"sub":1,"s\u0075b":2}"#,
        ] {
            assert!(
                matches!(parse(text), Err(JsonError::Duplicate(_))),
                "{text}"
            );
        }
        let many: String = (0..100).map(|n| format!("\"k{n}\":0,")).collect();
        assert!(parse(&format!("{{{many}\"z\":0}}")).is_ok());
        assert!(matches!(
            parse(&format!("{{{many}\"k7\":0}}")),
            Err(JsonError::Duplicate(_))
        ));
    }

    /// json-6: among few and among many, after values with the same names inside, and written either way.
    #[test]
    fn a_name_is_found_again_at_any_place_and_in_any_spelling() {
        let spelled = |n: usize, escaped: bool| {
            let name = format!("k{n}");
            let escape = |byte: u8| format!("\\u{byte:04x}");
            let written = if escaped {
                name.bytes().map(escape).collect()
            } else {
                name
            };
            format!("\"{written}\"")
        };
        for many in [2, 23, 24, 25, 26, 40] {
            let last = many - 1;
            for (first, again) in [(0, 1), (0, last), (last / 2, last), (last - 1, last)] {
                for (one, other) in [(false, false), (false, true), (true, false), (true, true)] {
                    let object = |doubled: bool| {
                        let member = |n| {
                            let (name, escaped) = match n {
                                _ if n == first => (first, one),
                                _ if n == again && doubled => (first, other),
                                _ => (n, n == again && other),
                            };
                            let name = spelled(name, escaped);
                            let inner = spelled(n + 1, n % 2 == 0);
                            format!("{name}:{{{inner}:[{{{}:0}}]}}", spelled(first, one))
                        };
                        format!(
                            "{{{}}}",
                            (0..many).map(member).collect::<Vec<_>>().join(",")
                        )
                    };
                    let text = object(false);
                    let document = parse(&text).unwrap();
                    let root = document.root(text.as_bytes());
                    let all = root.members().enumerate();
                    for (n, (name, value)) in all {
                        assert_eq!(name, format!("k{n}"));
                        assert_eq!(root.get(&name).map(Value::span), Some(value.span()));
                    }
                    let twice = object(true);
                    let found = parse(&twice).unwrap_err();
                    assert!(matches!(found, JsonError::Duplicate(_)), "{twice}: {found}");
                }
            }
        }
    }

    /// json-6: it is said where the first of them is named again, however many are and in whichever order they hash.
    #[test]
    fn what_is_named_again_among_many_is_found_where_it_stands() {
        let names: Vec<String> = (0..1_000).map(|n| format!("\"k{n}\":0")).collect();
        for again in [
            &["\"k7\":1"][..],
            &["\"k999\":1", "\"k0\":1", "\"k500\":1"],
            &["\"\\u006b3\":1", "\"k3\":2", "\"k4\":1"],
        ] {
            let text = format!("[{{{},{}}}]", names.join(","), again.join(","));
            let at = text.find(again[0]).filter(|_| again[0].contains('1'));
            let found = parse(&text).unwrap_err();
            assert_eq!(Some(found), at.map(JsonError::Duplicate), "{again:?}");
            let ends = format!("[{{{},\"k\":}}]", names.join(","));
            assert!(matches!(parse(&ends), Err(JsonError::Syntax(_))));
        }
    }

    thread_local! {
        /// Strings that were unescaped on this thread.
        pub(super) static UNESCAPED: Cell<usize> = const { Cell::new(0) };
    }

    /// json-5, json-6: long names with escapes are not read again for each other name.
    #[test]
    fn a_name_is_unescaped_once_to_be_read_and_not_to_find_one_of_another_length() {
        let name = |n| format!("\"{}{n:02}\"", "\\n".repeat(100));
        let object = |count| {
            let members: Vec<String> = (0..count).map(|n| name(n) + ":0").collect();
            format!("{{\"a\":0,\"b\":0,{}}}", members.join(","))
        };
        for count in [1, 22, 60] {
            UNESCAPED.set(0);
            let text = object(count);
            let document = parse(&text).unwrap();
            assert_eq!(UNESCAPED.take(), count);
            let root = document.root(text.as_bytes());
            for other in ["", "b", "c", "arguments", &"n".repeat(1_000)] {
                assert_eq!(root.get(other).is_some(), other == "b");
            }
            assert_eq!(UNESCAPED.take(), 0);
        }
    }

    /// json-3
    #[test]
    fn every_byte_but_controls_quote_and_backslash_stands_for_itself() {
        for byte in 0..=0x7F_u8 {
            let text = format!("[\"ab{0}c\"]", char::from(byte));
            match byte {
                0..0x20 => assert_eq!(parse(&text).unwrap_err(), JsonError::Syntax(4)),
                b'"' | b'\\' => assert!(parse(&text).is_err()),
                _ => {
                    let document = parse(&text).unwrap();
                    let one = document.root(text.as_bytes()).elements().next().unwrap();
                    assert_eq!(one.as_str().unwrap().as_bytes(), [b'a', b'b', byte, b'c']);
                }
            }
        }
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for text in [
            "",
            " ",
            "{",
            "[1,]",
            "{\"a\":1,}",
            "nul",
            "NaN",
            "01",
            "1.",
            ".5",
            "+1",
            "1e",
            "-",
            "\"\\x\"",
            "\"\n\"",
            "\"\\ud800\"",
            "\"\\udc00\"",
            "\"\\ud800\\u0041\"",
            "1 2",
            "{} {}",
            "// x\n1",
            "\u{feff}1",
            "{1:2}",
            "\"abc",
            "[1 2]",
            "{\"a\" 1}",
            "\"\\u12\"",
        ] {
            assert!(matches!(parse(text), Err(JsonError::Syntax(_))), "{text:?}");
        }
        assert!(matches!(
            Document::parse(b"\"\xff\"", MESSAGE),
            Err(JsonError::Syntax(0))
        ));
    }

    /// json-4, json-5
    #[test]
    fn depth_and_nodes_are_capped() {
        let nested = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert!(parse(&nested(MAX_DEPTH)).is_ok());
        assert!(matches!(
            parse(&nested(MAX_DEPTH + 1)),
            Err(JsonError::Depth(_))
        ));
        assert!(matches!(
            parse(&nested(1_000_000)),
            Err(JsonError::Depth(_))
        ));
        let few = Limits { depth: 4, nodes: 4 };
        assert!(Document::parse(b"[1,2,3]", few).is_ok());
        assert_eq!(
            Document::parse(b"[1,2,3,4]", few).unwrap_err(),
            JsonError::Nodes
        );
    }

    proptest! {
        #[test]
        fn accepts_nothing_that_serde_json_refuses(text in r#"[\[\]{}",:0-9eE+.\\u a-f-]{0,24}"#) {
            if parse(&text).is_ok() {
                // A double cannot hold every number that JSON can spell (1e999); that is the one difference.
                let raw = serde_json::from_str::<&serde_json::value::RawValue>(&text);
                prop_assert!(raw.is_ok(), "{text}");
            }
        }

        #[test]
        fn reads_what_serde_json_writes(text in ".*", number in any::<i64>(), flag in any::<bool>()) {
            let written = serde_json::json!({"t": [text.clone(), number], "f": flag}).to_string();
            let document = Document::parse(written.as_bytes(), MESSAGE).unwrap();
            let root = document.root(written.as_bytes());
            let elements: Vec<_> = root.get("t").unwrap().elements().collect();
            prop_assert_eq!(elements[0].as_str().unwrap(), text.as_str());
            prop_assert_eq!(elements[1].as_number().unwrap(), number.to_string());
            prop_assert_eq!(root.get("f").unwrap().as_bool(), Some(flag));
        }
    }
}
