//! Parameters of tools that are said in headers, too (`Mcp-Param-*`, mcp-T16).
//!
//! Which ones a server wants so stands in its own lists of tools, which pass by
//! here; what is mirrored is what the body says, and nothing that a client has put
//! into a header. Known for the server as a whole: a list that one session has
//! asked for serves all.

use std::sync::{Mutex, MutexGuard, PoisonError};

use http::{HeaderName, HeaderValue};

use crate::{
    json::{Kind, Value},
    mcp::{
        header,
        tools::{Mirrored, Tools},
    },
};

/// What one server's tools want.
#[derive(Default)]
pub(crate) struct Mirror(Mutex<Tools>);

impl Mirror {
    /// Reads the result of `tools/list`.
    pub(super) fn learn(&self, result: Value<'_>) {
        self.known().learn(result);
    }

    /// The headers of a call of `tool` with these arguments.
    pub(super) fn headers(
        &self,
        tool: &str,
        arguments: Option<Value<'_>>,
    ) -> Vec<(HeaderName, HeaderValue)> {
        let known = self.known();
        let wanted = known.get(tool).map(|tool| tool.mirrored.as_slice());
        let told = |wanted: &Mirrored| {
            let value = wanted.value(arguments)?;
            Some((wanted.header.clone(), text(value)?))
        };
        wanted.unwrap_or_default().iter().filter_map(told).collect()
    }

    pub(super) fn known(&self) -> MutexGuard<'_, Tools> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A value as a header has it; none for what is null or has parts.
fn text(value: Value<'_>) -> Option<HeaderValue> {
    match value.kind() {
        Kind::String => encoded(&value.as_str()?),
        Kind::Number => HeaderValue::from_str(value.as_number()?).ok(),
        _ => match value.as_bool()? {
            true => Some(HeaderValue::from_static("true")),
            false => Some(HeaderValue::from_static("false")),
        },
    }
}

/// A name as a header may have it: itself, or encoded where it would not arrive as it is.
pub(super) fn encoded(name: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(&header::encoded(name)).ok()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::mcp::Message;

    fn message(text: &str) -> Message {
        Message::parse(Bytes::copy_from_slice(text.as_bytes())).unwrap()
    }

    #[track_caller]
    fn check(properties: &str, arguments: &str, expected: &[(&str, &str)]) {
        let mirror = Mirror::default();
        let list =
            format!(r#"{{"tools":[{{"name":"t","inputSchema":{{"properties":{properties}}}}}]}}"#);
        mirror.learn(message(&list).root());
        let arguments = message(arguments);
        let told = mirror.headers("t", Some(arguments.root()));
        let told: Vec<_> = told
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        assert_eq!(told, expected);
    }

    /// mcp-T14, mcp-T16: what the schema marks is mirrored from the body, encoded where it must be; null is not.
    #[test]
    fn parameters_that_a_tool_marks_are_mirrored() {
        let marked = r#"{"region":{"type":"string","x-mcp-header":"Region"},"n":{"x-mcp-header":"N"},"b":{"x-mcp-header":"B"},
            "o":{"type":"object","properties":{"deep":{"x-mcp-header":"Deep"}}},"plain":{"type":"string"}}"#;
        check(
            marked,
            r#"{"region":"us-west1","n":42,"b":true,"o":{"deep":"é"},"plain":"x"}"#,
            &[
                ("mcp-param-region", "us-west1"),
                ("mcp-param-n", "42"),
                ("mcp-param-b", "true"),
                ("mcp-param-deep", "=?base64?w6k=?="),
            ],
        );
        check(marked, r#"{"region":null,"o":[],"n":{}}"#, &[]);
        check(
            marked,
            r#"{"region":"a\r\nX-Evil: 1"}"#,
            &[("mcp-param-region", "=?base64?YQ0KWC1FdmlsOiAx?=")],
        );
        // Names that are none, and two parameters under one name.
        check(r#"{"a":{"x-mcp-header":"a b"}}"#, r#"{"a":"1"}"#, &[]);
        let twice = r#"{"a":{"x-mcp-header":"X"},"b":{"x-mcp-header":"x"}}"#;
        check(twice, r#"{"a":"1","b":"2"}"#, &[]);
    }
}
