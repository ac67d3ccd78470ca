//! Text in a header: itself, or encoded where a header would not hold it as it is (mcp-T14).
//!
//! `http` reads what clients say of their bodies in headers, `child` says the same to
//! servers that speak HTTP: one spelling for both.

use std::borrow::Cow;

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// What stands for `text` in a header.
pub fn encoded(text: &str) -> Cow<'_, str> {
    let plain = text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
        && !text.starts_with(' ')
        && !text.ends_with(' ')
        && !text.starts_with(BEGIN);
    if plain {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(format!("{BEGIN}{}{END}", STANDARD.encode(text)))
    }
}

/// The text that a header stands for; `None` where what is encoded is no text.
pub fn decoded(told: &str) -> Option<Cow<'_, str>> {
    let encoded = told
        .strip_prefix(BEGIN)
        .and_then(|rest| rest.strip_suffix(END));
    let Some(encoded) = encoded else {
        return Some(told.into());
    };
    // The strict engine: padding is canonical, and so are the last bits.
    let text = STANDARD.decode(encoded).ok()?;
    String::from_utf8(text).ok().map(Cow::Owned)
}

const BEGIN: &str = "=?base64?";
const END: &str = "?=";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_that_a_header_would_change_is_encoded() {
        for (text, told) in [
            ("plain", "plain"),
            ("with space", "with space"),
            (" edge", "=?base64?IGVkZ2U=?="),
            ("é", "=?base64?w6k=?="),
            ("a\r\nX-Evil: 1", "=?base64?YQ0KWC1FdmlsOiAx?="),
            ("=?base64?eA==?=", "=?base64?PT9iYXNlNjQ/ZUE9PT89?="),
        ] {
            assert_eq!(encoded(text), told);
        }
        for wrong in ["=?base64?w6k?=", "=?base64?w6l=?=", "=?base64?/w==?="] {
            assert_eq!(decoded(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_encoded_is_read_again(text in ".*") {
            let told = encoded(&text);
            prop_assert!(told.bytes().all(|byte| matches!(byte, b' '..=b'~')));
            let read = decoded(&told);
            prop_assert_eq!(read.as_deref(), Some(text.as_str()));
        }
    }
}
