//! Parameters of tools that are said in headers, too (`Mcp-Param-*`, mcp-T16).
//!
//! Which ones a server wants so stands in its own lists of tools, which pass by
//! here; what is mirrored is what the body says, and nothing that a client has put
//! into a header. Known for the server as a whole: a list that one session has
//! asked for serves all.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use http::{HeaderName, HeaderValue};

use super::head::encoded;
use crate::json::{Kind, Value};

/// What one server's tools want.
#[derive(Default)]
pub(crate) struct Mirror(Mutex<HashMap<String, Vec<Wanted>>>);

/// One parameter: where it stands in the arguments, and its header.
#[derive(Clone)]
struct Wanted {
    path: Vec<String>,
    header: HeaderName,
}

impl Mirror {
    /// Reads the result of `tools/list`.
    pub(super) fn learn(&self, result: Value<'_>) {
        let Some(tools) = result.get("tools") else {
            return;
        };
        let mut known = self.known();
        for tool in tools.elements() {
            let (Some(name), Some(schema)) = (
                tool.get("name").and_then(Value::as_str),
                tool.get("inputSchema"),
            ) else {
                continue;
            };
            let mut wanted = Vec::new();
            collect(schema, &mut Vec::new(), &mut wanted);
            // Two parameters under one header cannot both be told: neither is.
            let mut names = HashSet::new();
            let unique = wanted.iter().all(|it| names.insert(it.header.clone()));
            if wanted.is_empty() || !unique || wanted.len() > MAX_PARAMETERS {
                known.remove(name.as_ref());
            } else if known.len() < MAX_TOOLS || known.contains_key(name.as_ref()) {
                known.insert(name.into_owned(), wanted);
            }
        }
    }

    /// The headers of a call of `tool` with these arguments.
    pub(super) fn headers(
        &self,
        tool: &str,
        arguments: Option<Value<'_>>,
    ) -> Vec<(HeaderName, HeaderValue)> {
        let known = self.known();
        let wanted = known.get(tool).map(Vec::as_slice).unwrap_or_default();
        let told = |wanted: &Wanted| {
            let parts = wanted.path.iter();
            let value = parts.fold(arguments, |value, part| value?.get(part));
            Some((wanted.header.clone(), text(value?)?))
        };
        wanted.iter().filter_map(told).collect()
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Vec<Wanted>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The annotations that `properties` alone lead to.
fn collect(schema: Value<'_>, path: &mut Vec<String>, wanted: &mut Vec<Wanted>) {
    let Some(properties) = schema.get("properties") else {
        return;
    };
    if properties.kind() != Kind::Object || path.len() >= MAX_DEPTH {
        return;
    }
    for (name, property) in properties.members() {
        if property.kind() != Kind::Object || wanted.len() > MAX_PARAMETERS {
            continue;
        }
        path.push(name.into_owned());
        if let Some(told) = property.get(ANNOTATION).and_then(Value::as_str)
            && let Ok(header) = HeaderName::try_from(format!("mcp-param-{told}"))
        {
            wanted.push(Wanted {
                path: path.clone(),
                header,
            });
        }
        collect(property, path, wanted);
        path.pop();
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

const ANNOTATION: &str = "x-mcp-header";
/// Tools with such parameters, parameters of one, and how deep they may stand.
const MAX_TOOLS: usize = 1024;
const MAX_PARAMETERS: usize = 32;
const MAX_DEPTH: usize = 8;

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
