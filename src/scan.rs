//! Looking through bytes for those that do not belong there, many at once.

/// Whether one of the bytes is odd. Where there are a few, all of them are looked at without a way
/// out in between: so a compiler has many looked at by one instruction. What is left at the end
/// is looked at with some of those before it once more: one by one would take longer.
pub(crate) fn any(text: &[u8], is_odd: impl Fn(u8) -> bool) -> bool {
    let look = |bytes: &[u8]| {
        let odd = bytes.iter().map(|byte| u8::from(is_odd(*byte)));
        odd.fold(0, |any, odd| any | odd) != 0
    };
    if let Some(last) = text.last_chunk::<32>() {
        look(last) | look(&text[..text.len() & !31])
    } else if let (Some(first), Some(last)) = (text.first_chunk::<16>(), text.last_chunk::<16>()) {
        look(first) | look(last)
    } else if let (Some(first), Some(last)) = (text.first_chunk::<8>(), text.last_chunk::<8>()) {
        look(first) | look(last)
    } else {
        text.iter().any(|byte| is_odd(*byte))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_odd_byte_is_seen_wherever_it_stands() {
        for length in 0..100 {
            let mut text = vec![b'a'; length];
            assert!(!any(&text, |byte| byte == b'b'), "{length}");
            for at in 0..length {
                text[at] = b'b';
                assert!(any(&text, |byte| byte == b'b'), "{at} of {length}");
                text[at] = b'a';
            }
        }
    }
}
