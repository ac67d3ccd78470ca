//! The cache hints of modern results.

use crate::mcp::Message;

/// The answer with `private` for `public`: what one caller may see, another
/// perhaps may not (mcp-T30, mcp-T31). `None` if it says nothing else already.
pub fn private(answer: &Message) -> Option<Vec<u8>> {
    let scope = answer.root().get("result")?.get("cacheScope")?;
    (scope.as_str().as_deref() != Some("private"))
        .then(|| answer.with(&[(scope.span(), b"\"private\"")]))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn what_was_public_is_private_and_nothing_else_changes() {
        let answer = |scope: &str| {
            format!(r#"{{"id":1,"result":{{"ttlMs":5, "cacheScope":{scope} ,"tools":[]}}}}"#)
        };
        let made = |text: String| private(&Message::parse(Bytes::from(text)).unwrap());
        assert_eq!(
            made(answer("\"public\"")),
            Some(answer("\"private\"").into_bytes())
        );
        assert_eq!(made(answer("7")), Some(answer("\"private\"").into_bytes()));
        assert_eq!(made(answer("\"private\"")), None);
        assert_eq!(made(r#"{"id":1,"result":{}}"#.to_owned()), None);
    }
}
