//! What the headers of a modern request must say: the same as its body.
//!
//! Other programs on the way may decide by the headers alone, so a request that
//! says two things is refused before anybody decides (mcp-T8, T12 … T15).

use std::borrow::Cow;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::HeaderMap;

use crate::{
    http::Refusal,
    json::{Kind, Value},
    mcp::{Call, CallError, Era, Shape, Target, version},
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
    let told = value(headers, "mcp-protocol-version")?
        .ok_or(Refusal::HeaderMismatch("MCP-Protocol-Version is missing"))?;
    let Some(meant) = call.meta("io.modelcontextprotocol/protocolVersion") else {
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
    let capabilities = call.meta("io.modelcontextprotocol/clientCapabilities");
    if capabilities.map(Value::kind) != Some(Kind::Object) {
        return Err(CallError::Params("_meta names no client capabilities").into());
    }
    match value(headers, "mcp-method")? {
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
    match value(headers, "mcp-name")? {
        Some(told) if decoded(told)? == name => Ok(()),
        Some(_) => Err(Refusal::HeaderMismatch("Mcp-Name")),
        None => Err(Refusal::HeaderMismatch("Mcp-Name is missing")),
    }
}

/// The task that the call names, where the header has to name it, too.
fn task(call: &Call) -> Option<Cow<'_, str>> {
    call.method()
        .starts_with("tasks/")
        .then(|| call.params()?.get("taskId")?.as_str())
        .flatten()
}

/// A header that may come at most once, as visible text, without spaces around it.
fn value<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Refusal> {
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

/// The text that a header stands for: itself, or what is encoded in it (mcp-T14).
fn decoded(told: &str) -> Result<Cow<'_, str>, Refusal> {
    const WRONG: Refusal = Refusal::HeaderMismatch("Mcp-Name is not well encoded");
    let encoded = told
        .strip_prefix("=?base64?")
        .and_then(|rest| rest.strip_suffix("?="));
    let Some(encoded) = encoded else {
        return Ok(told.into());
    };
    // The strict engine: padding is canonical, and so are the last bits.
    let text = STANDARD.decode(encoded).map_err(|_| WRONG)?;
    String::from_utf8(text).map(Cow::Owned).map_err(|_| WRONG)
}

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

    /// tok-121, tok-122, tok-123, tok-124, tok-126: mcp-T8, mcp-T12 … T15
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
