//! The scopes that a policy names, from its text: for the usual wording alone, and at once.
//!
//! Cedar's own reading of a policy as data takes a second a mebibyte. Where anything here is
//! less than plain there is no answer, and [`super::scopes`] asks Cedar.

use super::scopes::COMPARES;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Token<'a> {
    Word(&'a str),
    Text(&'a str),
    Mark(u8),
}

/// What `principal.scopes` is compared with, in its order; `None` where that takes more than looking.
pub(super) fn named(policy: &str) -> Option<Vec<String>> {
    if !["scopes", r"\u", r"\x"]
        .iter()
        .any(|part| policy.contains(part))
    {
        return Some(Vec::new());
    }
    let tokens = tokens(policy)?;
    let mut found = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        match (tokens[..at].last(), token) {
            (_, Token::Text("scopes")) => return None,
            // Whether there are any is no comparison.
            (Some(Token::Word("has")), Token::Word("scopes")) => {}
            (_, Token::Word("scopes")) => {
                let (before, after) = (&tokens[..at], &tokens[at + 1..]);
                let (Token::Word("principal"), Token::Mark(b'.')) =
                    before.last_chunk().map(|[a, b]| (*a, *b))?
                else {
                    return None;
                };
                if before.iter().nth_back(2) == Some(&Token::Mark(b'.')) {
                    return None;
                }
                found.extend(compared(after)?);
            }
            _ => {}
        }
    }
    Some(found)
}

/// The texts of `.contains("…")` and its like, and nothing else.
fn compared(tokens: &[Token<'_>]) -> Option<Vec<String>> {
    let ([Token::Mark(b'.'), Token::Word(name), Token::Mark(b'(')], with) =
        tokens.split_first_chunk()?
    else {
        return None;
    };
    if !COMPARES.contains(name) {
        return None;
    }
    let mut texts = Vec::new();
    for token in with {
        match token {
            Token::Text(text) => texts.push((*text).to_owned()),
            Token::Mark(b'[' | b']' | b',') => {}
            Token::Mark(b')') => return Some(texts),
            _ => return None,
        }
    }
    None
}

/// The words of a policy, without its comments; `None` with an escape, which may stand for anything.
fn tokens(policy: &str) -> Option<Vec<Token<'_>>> {
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let mut tokens = Vec::new();
    let mut rest = policy.trim_start();
    while let Some(first) = rest.bytes().next() {
        let length = match first {
            b'"' => {
                let length = rest[1..].find('"')?;
                let text = &rest[1..=length];
                if text.contains('\\') {
                    return None;
                }
                tokens.push(Token::Text(text));
                length + 2
            }
            // Either ends a line, as Cedar has it.
            b'/' if rest.starts_with("//") => rest.find(['\n', '\r']).unwrap_or(rest.len()),
            _ if is_word(&first) => {
                let length = rest.bytes().take_while(is_word).count();
                tokens.push(Token::Word(&rest[..length]));
                length
            }
            _ if first.is_ascii() => {
                tokens.push(Token::Mark(first));
                1
            }
            _ => return None,
        };
        rest = rest[length..].trim_start();
    }
    Some(tokens)
}
