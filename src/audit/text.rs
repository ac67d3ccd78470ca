//! Strangers' text, made fit for a person's terminal or for a field.

use std::{borrow::Cow, fmt::Write};

use crate::scan::any;

/// Text for a message: control characters and what reorders or hides text are
/// written out (`\u{1b}`), and it is cut after [`MAX_SHOWN`] characters.
pub(super) fn shown(text: &str) -> Cow<'_, str> {
    shown_up_to(text, MAX_SHOWN)
}

/// Text of thv's own, which may quote a stranger's: cut later, for its end says what to do.
pub(super) fn told(text: &str) -> String {
    shown_up_to(text, MAX_TOLD).into_owned()
}

/// One line of a child's output for a message.
pub(super) fn line(bytes: &[u8]) -> String {
    // No more is decoded than could be shown.
    let bytes = &bytes[..bytes.len().min(MAX_LINE * 4)];
    shown_up_to(&String::from_utf8_lossy(bytes), MAX_LINE).into_owned()
}

/// Text for a field of its own: as it is, cut after [`MAX_FIELD`] bytes.
pub(super) fn field(text: &str) -> Cow<'_, str> {
    if text.len() <= MAX_FIELD {
        return Cow::Borrowed(text);
    }
    let end = (0..=MAX_FIELD)
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0);
    Cow::Owned(format!("{}… (cut, {} bytes)", &text[..end], text.len()))
}

fn shown_up_to(text: &str, max: usize) -> Cow<'_, str> {
    // What most texts are, and then nothing has to be written out.
    let is_odd = |byte: u8| byte.wrapping_sub(b' ') > b'~' - b' ';
    if text.len() <= max && !any(text.as_bytes(), is_odd) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len().min(max));
    let mut length = 0;
    for char in text.chars() {
        if length >= max {
            out.push('…');
            break;
        }
        if is_hidden(char) {
            // Never fails: it is a String.
            let _ = write!(out, "{}", char.escape_unicode());
            length += 6;
        } else {
            out.push(char);
            length += 1;
        }
    }
    Cow::Owned(out)
}

/// Controls, line and paragraph separators, direction marks, zero-width and tag characters.
fn is_hidden(char: char) -> bool {
    char.is_control()
        || matches!(char,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Characters of one stranger's text within a message.
const MAX_SHOWN: usize = 120;
/// Characters of what thv itself has to say.
const MAX_TOLD: usize = 1024;
/// Characters of a child's line.
const MAX_LINE: usize = 2048;
/// Bytes of one field.
const MAX_FIELD: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_written_out() {
        assert_eq!(
            shown("a\x1b[31mb\nc\u{202e}d\u{9b}\0"),
            r"a\u{1b}[31mb\u{a}c\u{202e}d\u{9b}\u{0}"
        );
        assert_eq!(shown("Grüße, 世界 🙂"), "Grüße, 世界 🙂");
        for byte in 0..=0x7F_u8 {
            let text = format!("a{}b", char::from(byte));
            let obeyed = byte.is_ascii_control();
            assert_eq!(shown(&text) != text, obeyed, "{byte:#x}");
        }
        assert_eq!(line(b"ok \xff\xfe \r"), "ok \u{fffd}\u{fffd} \\u{d}");
    }

    #[test]
    fn text_is_cut_where_it_gets_too_long() {
        assert_eq!(shown(&"ä".repeat(MAX_SHOWN)), "ä".repeat(MAX_SHOWN));
        assert_eq!(
            shown(&"ä".repeat(MAX_SHOWN + 1)),
            "ä".repeat(MAX_SHOWN) + "…"
        );
        assert!(shown(&"\0".repeat(1_000_000)).len() < 2 * MAX_SHOWN);
        assert!(line(&vec![b'x'; 1_000_000]).len() < MAX_LINE + 8);
        assert_eq!(field(&"x".repeat(MAX_FIELD)), "x".repeat(MAX_FIELD));
        let cut = field(&"ä".repeat(MAX_FIELD)).into_owned();
        assert!(
            cut.ends_with(&format!("ä… (cut, {} bytes)", 2 * MAX_FIELD))
                && cut.len() < MAX_FIELD + 64
        );
    }
}
