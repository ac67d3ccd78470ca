//! What a server's list of tools says to those between: which parameters are said in
//! headers, too (`Mcp-Param-*`, mcp-T16), which tools run as tasks, and which have names that
//! MCP advises against.
//!
//! Pure. Used by `child` towards servers that speak HTTP, and by `session` for what
//! clients say in headers and for tasks of another era.

use std::collections::{BTreeMap, HashSet};

use http::HeaderName;

use crate::{
    json::{Kind, Value},
    mcp::{Message, edit::cuts},
};

/// Whether a tool's name is of what MCP advises: no other can be taken for it (json-21).
pub fn is_plain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(plain)
}

/// The answer to `tools/list` without the tools of other names, and these names, cut short; `None`
/// if there are none.
pub fn without_odd(answer: &Message) -> Option<(Vec<u8>, Vec<String>)> {
    let tools = answer.root().get("result")?.get("tools")?;
    if tools.kind() != Kind::Array {
        return None;
    }
    let mut odd = Vec::new();
    let cuts = cuts(tools, |_, tool| {
        let name = tool.get("name").and_then(Value::as_str);
        let name = name.filter(|name| !is_plain(name));
        if let Some(name) = &name
            && odd.len() < MAX_TOLD
        {
            odd.push(name.chars().take(MAX_NAME).collect());
        }
        name.is_none()
    });
    let cuts: Vec<_> = cuts.into_iter().map(|span| (span, &b""[..])).collect();
    (!cuts.is_empty()).then(|| (answer.with(&cuts), odd))
}

/// One parameter: where it stands in the arguments, and its header.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mirrored {
    path: Vec<String>,
    pub header: HeaderName,
}

impl Mirrored {
    /// What the arguments say there; null is nothing said.
    pub fn value<'a>(&self, arguments: Option<Value<'a>>) -> Option<Value<'a>> {
        let mut parts = self.path.iter();
        let value = parts.try_fold(arguments?, |value, part| value.get(part))?;
        (!value.is_null()).then_some(value)
    }
}

/// What is to be known of one tool.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Tool {
    pub mirrored: Vec<Mirrored>,
    /// Whether a legacy server runs it as a task.
    pub task: Option<TaskSupport>,
}

/// How a legacy server runs a tool as a task.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TaskSupport {
    /// For whoever asks for one.
    Optional,
    /// So, or not at all.
    Required,
}

/// The tools of one server of which there is anything to be known.
#[derive(Debug, Default)]
pub struct Tools {
    known: BTreeMap<String, Tool>,
    /// What they take, about.
    bytes: usize,
}

impl Tools {
    /// Reads the result of `tools/list`, or one page of it.
    pub fn learn(&mut self, result: Value<'_>) {
        for tool in result
            .get("tools")
            .iter()
            .flat_map(|tools| tools.elements())
        {
            let name = tool.get("name").and_then(Value::as_str);
            let Some(name) = name.filter(|name| name.len() <= MAX_BYTES) else {
                continue;
            };
            let known = Tool {
                mirrored: mirrored(tool),
                task: tool
                    .get("execution")
                    .and_then(|execution| execution.get("taskSupport"))
                    .and_then(Value::as_str)
                    .and_then(|support| match support.as_ref() {
                        "optional" => Some(TaskSupport::Optional),
                        "required" => Some(TaskSupport::Required),
                        _ => None,
                    }),
            };
            if let Some(before) = self.known.remove(name.as_ref()) {
                self.bytes -= before.bytes(&name);
            }
            let bytes = self.bytes + known.bytes(&name);
            if known != Tool::default() && self.known.len() < MAX_TOOLS && bytes <= MAX_ALL_BYTES {
                self.known.insert(name.into_owned(), known);
                self.bytes = bytes;
            }
        }
    }

    /// What is known of the tool, if anything is.
    pub fn get(&self, name: &str) -> Option<&Tool> {
        self.known.get(name)
    }
}

impl Tool {
    /// What it takes under that name, about.
    fn bytes(&self, name: &str) -> usize {
        let parts = self.mirrored.iter().flat_map(|it| &it.path);
        let path: usize = parts.map(|part| part.len() + PART).sum();
        let headers = self
            .mirrored
            .iter()
            .map(|it| it.header.as_str().len() + PART);
        name.len() + PART + path + headers.sum::<usize>()
    }
}

/// The parameters that a tool marks; none where two want one header, which nobody could tell apart, or where they
/// are too much to be remembered.
pub fn mirrored(tool: Value<'_>) -> Vec<Mirrored> {
    let mut found = Vec::new();
    let schema = tool.get("inputSchema");
    let collected = schema.and_then(|schema| {
        let mut room = MAX_BYTES;
        collect(schema, &mut Vec::new(), &mut found, &mut room)
    });
    let mut headers = HashSet::new();
    let unique = found.iter().all(|it| headers.insert(it.header.clone()));
    if !unique || collected.is_none() {
        found.clear();
    }
    found
}

/// The annotations that `properties` alone lead to; `None` if they are too many, or take more than there is room.
fn collect(
    schema: Value<'_>,
    path: &mut Vec<String>,
    found: &mut Vec<Mirrored>,
    room: &mut usize,
) -> Option<()> {
    let properties = schema.get("properties");
    let object = properties.filter(|it| it.kind() == Kind::Object && path.len() < MAX_DEPTH);
    for (name, property) in object.iter().flat_map(|properties| properties.members()) {
        if property.kind() != Kind::Object {
            continue;
        }
        path.push(name.into_owned());
        if let Some(told) = property.get(ANNOTATION).and_then(Value::as_str)
            && let Ok(header) = HeaderName::try_from(format!("mcp-param-{told}"))
        {
            // What several have in common each of them has for itself.
            let bytes = told.len() + path.iter().map(String::len).sum::<usize>();
            *room = room.checked_sub(bytes)?;
            if found.len() == MAX_PARAMETERS {
                return None;
            }
            found.push(Mirrored {
                path: path.clone(),
                header,
            });
        }
        collect(property, path, found, room)?;
        path.pop();
    }
    Some(())
}

const ANNOTATION: &str = "x-mcp-header";
/// Tools of which something is known, parameters of one, and how deep they may stand.
const MAX_TOOLS: usize = 1024;
const MAX_PARAMETERS: usize = 32;
const MAX_DEPTH: usize = 8;
/// Bytes of a tool's name, and of where all its parameters stand and their headers.
const MAX_BYTES: usize = 8 << 10;
/// Bytes of all tools of one server, and what each name, place and header takes beside its own.
const MAX_ALL_BYTES: usize = 1 << 20;
const PART: usize = 64;
/// Characters of a name, and names that are told of one list.
const MAX_NAME: usize = 128;
const MAX_TOLD: usize = 16;

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::mcp::Message;

    fn message(text: &str) -> Message {
        Message::parse(Bytes::copy_from_slice(text.as_bytes())).unwrap()
    }

    /// fault-46: many tools with much to be known of each are not all remembered, and others can take their place.
    #[test]
    fn what_is_remembered_of_all_tools_has_a_bound() {
        let mut tools = Tools::default();
        let told = |number: usize, mark: &str| {
            let name = format!("{number}{}", "n".repeat(8000));
            let schema = format!(r#"{{"properties":{{"a":{{"x-mcp-header":"{mark}"}}}}}}"#);
            let text = format!(r#"{{"tools":[{{"name":"{name}","inputSchema":{schema}}}]}}"#);
            (name, message(&text))
        };
        for number in 0..200 {
            tools.learn(told(number, "A").1.root());
        }
        assert!(tools.known.len() < 140 && tools.bytes <= MAX_ALL_BYTES);
        let (first, others) = told(0, "B");
        tools.learn(others.root());
        let header = tools.get(&first).map(|tool| &tool.mirrored[0].header);
        assert_eq!(header.unwrap(), "mcp-param-b");
        // One of which nothing is to be known any more.
        tools.learn(told(0, "a b").1.root());
        let (last, marked) = told(199, "A");
        assert!(tools.get(&last).is_none());
        tools.learn(marked.root());
        assert!(tools.get(&first).is_none() && tools.get(&last).is_some());
        for number in 0..200 {
            tools.learn(told(number, "a b").1.root());
        }
        assert_eq!((tools.known.len(), tools.bytes), (0, 0));
    }

    /// mcp-T16
    #[test]
    fn marks_are_found_at_any_depth_and_what_is_no_mark_is_none() {
        let mut tools = Tools::default();
        let list = message(
            r#"{"tools":[{"name":"t","inputSchema":{"properties":{"a":{"x-mcp-header":"A"},"n":{"x-mcp-header":"a b"},
                "o":{"properties":{"d\u0065ep":{"x-mcp-header":"Deep"}},"items":{"properties":{"i":{"x-mcp-header":"I"}}}}}}},
              {"name":"twice","inputSchema":{"properties":{"a":{"x-mcp-header":"X"},"b":{"x-mcp-header":"x"}}}},
              {"name":"plain","inputSchema":{}},{"name":"slow","execution":{"taskSupport":"required"}},
              {"name":"either","execution":{"taskSupport":"optional"}},{"name":"never","execution":{"taskSupport":"forbidden"}},7]}"#,
        );
        tools.learn(list.root());
        let headers = |name| -> Vec<_> {
            let tool: &Tool = tools.get(name).unwrap();
            tool.mirrored.iter().map(|it| it.header.as_str()).collect()
        };
        assert_eq!(headers("t"), ["mcp-param-a", "mcp-param-deep"]);
        assert_eq!(tools.get("twice"), None);
        assert_eq!(tools.get("plain"), None);
        let task = |name| tools.get(name).and_then(|tool| tool.task);
        assert_eq!(task("slow"), Some(TaskSupport::Required));
        assert_eq!(task("either"), Some(TaskSupport::Optional));
        assert_eq!(tools.get("never"), None);
        let arguments = message(r#"{"a":null,"o":{"deep":[1]}}"#);
        let said = |at: usize| {
            let mirrored = &tools.get("t").unwrap().mirrored[at];
            mirrored.value(Some(arguments.root())).map(Value::raw)
        };
        assert_eq!((said(0), said(1)), (None, Some(&b"[1]"[..])));
    }

    /// json-21: what looks like another name, like nothing or like a path is none, and all else of the list keeps its bytes.
    #[test]
    fn tools_of_odd_names_are_in_no_list() {
        let long = "x".repeat(128);
        for plain in ["echo", "a", "0", "A.b-c_D", &long] {
            assert!(is_plain(plain), "{plain}");
        }
        let longer = "x".repeat(129);
        for odd in [
            "",
            "a ",
            "a b",
            "é",
            "e\u{301}",
            "ｅcho",
            "\u{435}cho",
            "\u{202e}x",
            "a\u{200b}",
            "../x",
            "a/b",
            "a\0",
            "a\n",
            &longer,
        ] {
            assert!(!is_plain(odd), "{odd:?}");
        }
        let list = |tools: &str| {
            let text = format!(r#"{{"id":1,"result":{{ "tools" :[{tools}],"n":1.0}}}}"#);
            without_odd(&message(&text)).map(|(text, odd)| (String::from_utf8(text).unwrap(), odd))
        };
        assert_eq!(list(r#"{"name":"a"},{"name":"b"},7"#), None);
        let (text, odd) =
            list(r#"{"name":"a b"}, {"name":"ok", "x":1e0}, {"name":"\u00e9"} ,{"name":"z"}"#)
                .unwrap();
        assert_eq!(
            text,
            r#"{"id":1,"result":{ "tools" :[{"name":"ok", "x":1e0} ,{"name":"z"}],"n":1.0}}"#
        );
        assert_eq!(odd, ["a b", "é"]);
        let many = vec![r#"{"name":"?"}"#; 100].join(",");
        let (text, odd) = list(&many).unwrap();
        assert_eq!(
            (text.as_str(), odd.len()),
            (r#"{"id":1,"result":{ "tools" :[],"n":1.0}}"#, 16)
        );
    }

    /// fault-46: a server cannot have more remembered of its tools than what they take.
    #[test]
    fn long_names_and_marks_that_have_them_in_common_are_not_remembered() {
        let learnt = |name: usize, object: usize, marks: usize| {
            let marks: Vec<String> = (0..marks)
                .map(|mark| format!(r#""{mark}":{{"x-mcp-header":"{mark}"}}"#))
                .collect();
            let (name, object, marks) = ("t".repeat(name), "o".repeat(object), marks.join(","));
            let list = format!(
                r#"{{"tools":[{{"name":"{name}","inputSchema":{{"properties":{{"{object}":{{"properties":{{{marks}}}}}}}}}}}]}}"#
            );
            let mut tools = Tools::default();
            tools.learn(message(&list).root());
            tools.get(&name).map_or(0, |tool| tool.mirrored.len())
        };
        assert_eq!(learnt(1, 1, MAX_PARAMETERS), MAX_PARAMETERS);
        assert_eq!(learnt(1, 1, MAX_PARAMETERS + 1), 0);
        let most = MAX_BYTES / MAX_PARAMETERS - 4;
        assert_eq!(learnt(1, most, MAX_PARAMETERS), MAX_PARAMETERS);
        assert_eq!(learnt(1, MAX_BYTES / MAX_PARAMETERS, MAX_PARAMETERS), 0);
        assert_eq!(learnt(MAX_BYTES, 1, 1), 1);
        assert_eq!(learnt(MAX_BYTES + 1, 1, 1), 0);
    }

    #[test]
    fn a_later_list_is_the_one_that_counts() {
        let mut tools = Tools::default();
        let marked =
            r#"{"tools":[{"name":"t","inputSchema":{"properties":{"a":{"x-mcp-header":"A"}}}}]}"#;
        tools.learn(message(marked).root());
        assert!(tools.get("t").is_some());
        tools.learn(
            message(r#"{"tools":[{"name":"t","inputSchema":{"properties":{"a":{}}}}]}"#).root(),
        );
        assert!(tools.get("t").is_none());
    }
}
