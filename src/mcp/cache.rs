//! The cache hints of modern results.

use crate::{json::Kind, mcp::Message};

/// A list that was cut: `private`, whatever it says, and also where it says nothing.
pub fn cut(list: &Message) -> Vec<u8> {
    if let Some(private) = private(list) {
        return private;
    }
    let result = list.root().get("result");
    let unsaid =
        result.filter(|result| result.kind() == Kind::Object && result.get("cacheScope").is_none());
    let Some(result) = unsaid else {
        return list.bytes().to_vec();
    };
    let begin = result.span().start + 1;
    let more = result.members().next().is_some();
    let said: &[u8] = if more {
        br#""cacheScope":"private","#
    } else {
        br#""cacheScope":"private""#
    };
    list.with(&[(begin..begin, said)])
}

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

    /// mcp-T30: also where its server has not said who may keep it.
    #[test]
    fn a_list_that_was_cut_is_private() {
        for (said, told) in [
            (
                r#"{"result": {"tools":[], "cacheScope":"public"}}"#,
                r#"{"result": {"tools":[], "cacheScope":"private"}}"#,
            ),
            (
                r#"{"result":{ "tools":[1.0]}}"#,
                r#"{"result":{"cacheScope":"private", "tools":[1.0]}}"#,
            ),
            (r#"{"result":{}}"#, r#"{"result":{"cacheScope":"private"}}"#),
            (
                r#"{"result":{"cacheScope":"private"}}"#,
                r#"{"result":{"cacheScope":"private"}}"#,
            ),
            (r#"{"error":{}}"#, r#"{"error":{}}"#),
        ] {
            let list = Message::parse(Bytes::from(said)).unwrap();
            assert_eq!(String::from_utf8(cut(&list)).unwrap(), told);
        }
    }
}
