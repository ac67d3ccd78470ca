//! What the headers of a modern request must say: the same as its body.
//!
//! Other programs on the way may decide by the headers alone, so a request that
//! says two things is refused before anybody decides (mcp-T8, T12 … T15).

use std::borrow::Cow;

use http::{HeaderMap, header::AsHeaderName};

use crate::{
    http::{
        Refusal,
        names::{METHOD, NAME, VERSION},
    },
    json::{Kind, Value},
    mcp::{Call, CallError, Era, Shape, Target, header, meta, method, tools::Mirrored, version},
};

/// Checks a call of the modern era against the headers that it came with.
pub fn agree(headers: &HeaderMap, call: &Call) -> Result<(), Refusal> {
    match call.shape() {
        Shape::Request(_) => {}
        // No header rules are defined for it, and it has no effect.
        Shape::Notification => return Ok(()),
        Shape::Response(_) => {
            return Err(
                CallError::Invalid("responses are no part of this protocol version").into(),
            );
        }
    }
    let told = value(headers, &VERSION)?
        .ok_or(Refusal::HeaderMismatch("MCP-Protocol-Version is missing"))?;
    let Some(meant) = call.meta(meta::VERSION) else {
        return Err(CallError::Params("_meta names no protocol version").into());
    };
    let meant = meant
        .as_str()
        .ok_or(CallError::Params("the protocol version is not a string"))?;
    if told != meant {
        return Err(Refusal::HeaderMismatch("MCP-Protocol-Version"));
    }
    if told != version::MODERN {
        return Err(Refusal::Version(
            told.chars().take(32).collect(),
            Era::Modern,
        ));
    }
    let capabilities = call.meta(meta::CAPABILITIES);
    if capabilities.map(Value::kind) != Some(Kind::Object) {
        return Err(CallError::Params("_meta names no client capabilities").into());
    }
    match value(headers, &METHOD)? {
        Some(method) if method == call.method() => {}
        Some(_) => return Err(Refusal::HeaderMismatch("Mcp-Method")),
        None => return Err(Refusal::HeaderMismatch("Mcp-Method is missing")),
    }
    let task = task(call);
    let name = match call.target() {
        Target::Tool(name) | Target::Prompt(name) | Target::Resource(name) => name,
        Target::Server => match &task {
            Some(task) => task,
            None => return Ok(()),
        },
    };
    match value(headers, &NAME)? {
        Some(told) if decoded(told, "Mcp-Name is not well encoded")? == name => Ok(()),
        Some(_) => Err(Refusal::HeaderMismatch("Mcp-Name")),
        None => Err(Refusal::HeaderMismatch("Mcp-Name is missing")),
    }
}

/// Checks the parameters that the tool has said in headers, too: each is said there
/// exactly where the body says it, and alike (mcp-T14, mcp-T16).
pub fn parameters_agree(
    headers: &HeaderMap,
    call: &Call,
    mirrored: &[Mirrored],
) -> Result<(), Refusal> {
    let arguments = call.param("arguments");
    for mirrored in mirrored {
        let told = value(headers, mirrored.header.as_str())?;
        match (told, mirrored.value(arguments)) {
            (None, None) => {}
            (Some(told), Some(meant))
                if says(
                    &decoded(told, "a Mcp-Param header is not well encoded")?,
                    meant,
                ) => {}
            (Some(_), Some(_)) => return Err(Refusal::HeaderMismatch("a Mcp-Param header")),
            (None, Some(_)) => {
                return Err(Refusal::HeaderMismatch("a Mcp-Param header is missing"));
            }
            (Some(_), None) => {
                return Err(Refusal::HeaderMismatch(
                    "a Mcp-Param header says what the body does not",
                ));
            }
        }
    }
    Ok(())
}

/// Whether a header's text is that value. What has parts, no header can say.
fn says(told: &str, meant: Value<'_>) -> bool {
    match meant.kind() {
        Kind::String => meant.as_str().is_some_and(|meant| meant == told),
        Kind::Bool => meant.raw() == told.as_bytes(),
        Kind::Number => meant
            .as_number()
            .is_some_and(|meant| meant == told || same_integer(meant, told)),
        Kind::Null | Kind::Array | Kind::Object => false,
    }
}

/// Whether both are one integer, however they are written: `42.0` is 42.
fn same_integer(one: &str, other: &str) -> bool {
    let integer = |text: &str| -> Option<i64> {
        let is_number = |byte| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
        if !text.bytes().all(is_number) {
            return None;
        }
        text.parse().ok().or_else(|| {
            let number: f64 = text.parse().ok()?;
            (number.fract() == 0.0 && number.abs() <= MAX_SAFE).then_some(number as i64)
        })
    };
    integer(one).is_some_and(|one| integer(other) == Some(one))
}

/// The task that the call names, where the header has to name it, too: not where modern MCP has no such
/// method, which is then what is to be said of it.
fn task(call: &Call) -> Option<Cow<'_, str>> {
    let is_named = call.method().starts_with("tasks/") && method::is_of(Era::Modern, call.method());
    is_named.then(|| call.param("taskId")?.as_str()).flatten()
}

/// A header that may come at most once, as visible text, without spaces around it.
fn value(headers: &HeaderMap, name: impl AsHeaderName) -> Result<Option<&str>, Refusal> {
    let mut lines = headers.get_all(name).iter();
    match (lines.next(), lines.next()) {
        (None, _) => Ok(None),
        (Some(line), None) => line
            .to_str()
            .map(|text| Some(text.trim_matches([' ', '\t'])))
            .map_err(|_| Refusal::HeaderMismatch("a header has characters that are not allowed")),
        (Some(_), Some(_)) => Err(Refusal::HeaderMismatch("a header comes twice")),
    }
}

/// The text that a header stands for; `wrong` where it is no text.
fn decoded<'a>(told: &'a str, wrong: &'static str) -> Result<Cow<'a, str>, Refusal> {
    header::decoded(told).ok_or(Refusal::HeaderMismatch(wrong))
}

/// The largest integer up to which a double has every one.
const MAX_SAFE: f64 = 9_007_199_254_740_991.0;

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const META: &str = r#"{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}"#;

    fn judged(headers: &[(&'static str, &str)], method: &str, params: &str) -> Result<(), Refusal> {
        let body =
            format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{{{params}}}}}"#);
        let call = Call::read(Bytes::from(body), true).unwrap();
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        agree(&map, &call)
    }

    #[track_caller]
    fn check(headers: &[(&'static str, &str)], meta: &str, code: Option<&str>) {
        let params = format!(r#""name":"é","_meta":{meta}"#);
        let found = judged(headers, "tools/call", &params).err().map(|refusal| {
            let text = refusal.rpc(None);
            let text = String::from_utf8(text.to_vec()).unwrap();
            let code = text.split("\"code\":").nth(1).unwrap();
            code.split(',').next().unwrap().to_owned()
        });
        assert_eq!(found.as_deref(), code, "{headers:?} {meta}");
    }

    #[track_caller]
    fn parameters(headers: &[(&'static str, &str)], arguments: &str, agree: bool) {
        let tool = r#"{"inputSchema":{"properties":{"region":{"x-mcp-header":"Region"},"n":{"x-mcp-header":"N"},
            "b":{"x-mcp-header":"B"},"o":{"properties":{"deep":{"x-mcp-header":"Deep"}}}}}}"#;
        let tool = crate::mcp::Message::parse(Bytes::from(tool)).unwrap();
        let mirrored = crate::mcp::tools::mirrored(tool.root());
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"t","arguments":{arguments}}}}}"#
        );
        let call = Call::read(Bytes::from(body), true).unwrap();
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(
                *name,
                http::HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            );
        }
        let found = parameters_agree(&map, &call, &mirrored);
        assert_eq!(found.is_ok(), agree, "{headers:?} {arguments}");
    }

    /// tok-127, mcp-T14, mcp-T15, mcp-T16: what a tool has said in headers is said there as it is in the body, and integers are numbers.
    #[test]
    fn parameters_in_headers_are_those_of_the_body() {
        const REGION: &str = "mcp-param-region";
        const N: &str = "mcp-param-n";
        parameters(&[], "{}", true);
        parameters(&[], r#"{"region":null,"n":null,"o":{}}"#, true);
        parameters(&[(REGION, "us")], r#"{"region":"us"}"#, true);
        parameters(&[(REGION, "\t us ")], r#"{"region":"us"}"#, true);
        parameters(
            &[(REGION, "=?base64?w6k=?=")],
            r#"{"region":"\u00e9"}"#,
            true,
        );
        parameters(&[("mcp-param-deep", "x")], r#"{"o":{"deep":"x"}}"#, true);
        parameters(&[("mcp-param-b", "true")], r#"{"b":true}"#, true);
        for (told, meant) in [
            ("42", "42"),
            ("42.0", "42"),
            ("42", "42.0"),
            ("-7", "-7"),
            ("1e2", "100"),
            ("1.5", "1.5"),
        ] {
            parameters(&[(N, told)], &format!(r#"{{"n":{meant}}}"#), true);
        }
        // A header that no tool has asked for is nobody's business here.
        parameters(&[("mcp-param-other", "x")], "{}", true);

        parameters(&[], r#"{"region":"us"}"#, false);
        parameters(&[(REGION, "us")], "{}", false);
        parameters(&[(REGION, "us")], r#"{"region":null}"#, false);
        parameters(&[(REGION, "US")], r#"{"region":"us"}"#, false);
        parameters(
            &[(REGION, "us"), (REGION, "us")],
            r#"{"region":"us"}"#,
            false,
        );
        parameters(&[(REGION, "é")], r#"{"region":"é"}"#, false);
        parameters(&[(REGION, "=?base64?w6k?=")], r#"{"region":"é"}"#, false);
        parameters(&[(REGION, "=?BASE64?w6k=?=")], r#"{"region":"é"}"#, false);
        parameters(
            &[(REGION, "=?base64?x?=")],
            r#"{"region":"=?base64?x?="}"#,
            false,
        );
        parameters(&[("mcp-param-b", "True")], r#"{"b":true}"#, false);
        parameters(&[("mcp-param-b", "true")], r#"{"b":"true "}"#, false);
        for (told, meant) in [
            ("42", "43"),
            ("42", r#""43""#),
            ("inf", "1e400"),
            ("nan", "1"),
            ("0x2a", "42"),
            ("", "0"),
            ("9007199254740993", "9007199254740992"),
            ("9007199254740993.0", "9007199254740992"),
            ("1", "[1]"),
            ("{}", "{}"),
        ] {
            parameters(&[(N, told)], &format!(r#"{{"n":{meant}}}"#), false);
        }
    }

    /// mcp-T12, mcp-T13: what is asked of a task names it in a header, too; other requests need no name.
    #[test]
    fn a_request_about_a_task_names_it_in_its_header() {
        let asked = |method: &'static str, names: &[&str]| {
            let mut headers = vec![
                ("mcp-protocol-version", "2026-07-28"),
                ("mcp-method", method),
            ];
            headers.extend(names.iter().map(|name| ("mcp-name", *name)));
            judged(&headers, method, &format!(r#""taskId":"t","_meta":{META}"#))
        };
        for method in ["tasks/get", "tasks/update", "tasks/cancel"] {
            assert!(asked(method, &["t"]).is_ok(), "{method}");
            for names in [&[][..], &["T"], &["other"], &["t", "t"], &[""]] {
                let refused = asked(method, names);
                assert!(
                    matches!(refused, Err(Refusal::HeaderMismatch(_))),
                    "{method} {names:?}: {refused:?}"
                );
            }
        }
        assert!(asked("tools/list", &[]).is_ok());
    }

    /// tok-121, tok-122, tok-123, tok-124, tok-126: mcp-T8, mcp-T12, mcp-T13, mcp-T14, mcp-T15
    #[test]
    fn header_and_body_must_say_the_same() {
        const VERSION: (&str, &str) = ("mcp-protocol-version", "2026-07-28");
        const METHOD: (&str, &str) = ("mcp-method", "tools/call");
        const NAME: (&str, &str) = ("mcp-name", "=?base64?w6k=?=");
        check(&[VERSION, METHOD, NAME], META, None);
        check(&[METHOD, NAME], META, Some("-32020"));
        check(&[VERSION, NAME], META, Some("-32020"));
        check(&[VERSION, METHOD], META, Some("-32020"));
        check(&[VERSION, METHOD, NAME, NAME], META, Some("-32020"));
        check(
            &[VERSION, ("mcp-method", "Tools/Call"), NAME],
            META,
            Some("-32020"),
        );
        for name in [
            "e",
            "=?base64?w6k?=",
            "=?BASE64?w6k=?=",
            "=?base64?w6l=?=",
            "=?base64?/w==?=",
        ] {
            check(&[VERSION, METHOD, ("mcp-name", name)], META, Some("-32020"));
        }
        check(
            &[("mcp-protocol-version", "2025-11-25"), METHOD, NAME],
            META,
            Some("-32020"),
        );
        let old = META.replace("2026-07-28", "1999-01-01");
        check(
            &[("mcp-protocol-version", "1999-01-01"), METHOD, NAME],
            &old,
            Some("-32022"),
        );
        let bare = r#"{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}"#;
        for meta in ["{}", bare] {
            check(&[VERSION, METHOD, NAME], meta, Some("-32602"));
        }
    }
}
