//! An object with some of its members changed, or an array without some of its elements, and
//! every other byte where it was.

use std::ops::Range;

use crate::json::Value;

/// What becomes of a member.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Fate {
    Stays,
    Goes,
    /// It has this value (JSON) instead.
    Becomes(Vec<u8>),
}

/// The spans to leave out of the array for those elements to go that do not stay, by index and
/// value: each with the separator on that side of it where one must go.
pub fn cuts(
    array: Value<'_>,
    mut stays: impl FnMut(usize, Value<'_>) -> bool,
) -> Vec<Range<usize>> {
    let elements: Vec<(Range<usize>, bool)> = array
        .elements()
        .enumerate()
        .map(|(index, element)| (element.span(), stays(index, element)))
        .collect();
    let mut kept_before = false;
    let mut cuts = Vec::new();
    for (index, (span, stays)) in elements.iter().enumerate() {
        if *stays {
            kept_before = true;
        } else if kept_before {
            cuts.push(elements[index - 1].0.end..span.end);
        } else {
            let end = elements
                .get(index + 1)
                .map_or(span.end, |(next, _)| next.start);
            cuts.push(span.start..end);
        }
    }
    cuts
}

/// The text of `object` with the members `first` (JSON, without a comma at the end) before
/// all others, and with what `fate` says of those. What stays keeps its bytes, and the white
/// space around it.
pub fn edited(
    object: Value<'_>,
    first: &[u8],
    mut fate: impl FnMut(&str, Value<'_>) -> Fate,
) -> Vec<u8> {
    let (raw, start) = (object.raw(), object.span().start);
    let mut out = Vec::with_capacity(raw.len() + first.len() + 1);
    out.push(b'{');
    out.extend_from_slice(first);
    let mut members = object.member_spans().peekable();
    // Where the member's own text begins: behind the bracket, or behind a comma.
    let mut at = 1;
    let mut is_first = first.is_empty();
    if members.peek().is_none() {
        out.extend_from_slice(&raw[1..]);
        return out;
    }
    while let Some((name, span, value)) = members.next() {
        let end = span.end - start;
        // Between a value and the next name there is white space, and one comma.
        let until = match members.peek() {
            Some((_, next, _)) => {
                let between = &raw[end..next.start - start];
                end + between.iter().position(|byte| *byte == b',').unwrap_or(0)
            }
            None => raw.len() - 1,
        };
        let fate = fate(&name, value);
        if fate != Fate::Goes {
            if !is_first {
                out.push(b',');
            }
            is_first = false;
        }
        match fate {
            Fate::Stays => out.extend_from_slice(&raw[at..until]),
            Fate::Goes => {}
            Fate::Becomes(text) => {
                out.extend_from_slice(&raw[at..value.span().start - start]);
                out.extend_from_slice(&text);
                out.extend_from_slice(&raw[end..until]);
            }
        }
        at = until + 1;
    }
    out.push(b'}');
    out
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::mcp::Message;

    #[track_caller]
    fn check(text: &str, first: &str, expected: &str) {
        let message = Message::parse(Bytes::copy_from_slice(text.as_bytes())).unwrap();
        let edited = edited(message.root(), first.as_bytes(), |name, _| match name {
            "gone" => Fate::Goes,
            "other" => Fate::Becomes(b"0".to_vec()),
            _ => Fate::Stays,
        });
        assert_eq!(String::from_utf8(edited).unwrap(), expected);
    }

    #[test]
    fn what_stays_keeps_its_bytes() {
        check(r#"{ "\u0061" : 1.0 }"#, "", r#"{ "\u0061" : 1.0 }"#);
        check(
            r#"{ "a" : "," , "b":[1,2]}"#,
            r#""x":1"#,
            r#"{"x":1, "a" : "," , "b":[1,2]}"#,
        );
        check("{ }", r#""x":1"#, r#"{"x":1 }"#);
        check("{ }", "", "{ }");
    }

    #[test]
    fn what_goes_takes_its_comma_along() {
        check(r#"{"gone":1}"#, "", "{}");
        check(r#"{"gone":1}"#, r#""x":1"#, r#"{"x":1}"#);
        check(r#"{ "gone":1, "a":2 }"#, "", r#"{ "a":2 }"#);
        check(r#"{ "a":2 ,"gone":{"a":[1,2]} }"#, "", r#"{ "a":2 }"#);
        check(
            r#"{"a":1, "g\u006fne":1 ,"b":2}"#,
            r#""x":1"#,
            r#"{"x":1,"a":1,"b":2}"#,
        );
        check(
            r#"{"a":1, "other" : [7] ,"b":2}"#,
            "",
            r#"{"a":1, "other" : 0 ,"b":2}"#,
        );
    }
}
