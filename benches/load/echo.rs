//! The server behind the gateway: answers what it is told, in both eras, one line at a time.
//!
//! A thread, two buffers and no runtime, so that thousands of it fit into one machine.

use std::io::{self, BufRead, Write};

use serde::Deserialize;
use serde_json::value::RawValue;

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    method: Option<&'a str>,
    #[serde(borrow)]
    params: Option<Params<'a>>,
}

#[derive(Deserialize)]
struct Params<'a> {
    #[serde(borrow)]
    arguments: Option<&'a RawValue>,
    #[serde(borrow)]
    _meta: Option<&'a RawValue>,
}

/// Serves until its input ends.
pub fn run() -> io::Result<()> {
    let mut input = io::BufReader::with_capacity(4 << 10, io::stdin().lock());
    let mut output = io::stdout().lock();
    let (mut line, mut answer) = (String::new(), Vec::new());
    while input.read_line(&mut line)? > 0 {
        if let Ok(message) = serde_json::from_str::<Line<'_>>(&line)
            && let (Some(id), Some(method)) = (message.id, message.method)
        {
            answer.clear();
            write!(answer, r#"{{"jsonrpc":"2.0","id":{id},"#)?;
            result(&mut answer, method, message.params.as_ref())?;
            answer.extend_from_slice(b"}\n");
            output.write_all(&answer)?;
            output.flush()?;
        }
        line.clear();
    }
    Ok(())
}

fn result(out: &mut Vec<u8>, method: &str, params: Option<&Params<'_>>) -> io::Result<()> {
    match method {
        "initialize" => out.extend_from_slice(
            br#""result":{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"echo","version":"1"}}"#,
        ),
        "server/discover" => out.extend_from_slice(
            br#""result":{"resultType":"complete","ttlMs":1000,"cacheScope":"public","supportedVersions":["2026-07-28"],"capabilities":{"tools":{}},"serverInfo":{"name":"echo","version":"1"}}"#,
        ),
        "tools/call" => {
            let told = params.and_then(|params| params.arguments).map_or("{}", RawValue::get);
            let text = serde_json::to_string(told)?;
            let modern = params.is_some_and(|params| params._meta.is_some());
            let kind = if modern { r#""resultType":"complete","# } else { "" };
            write!(out, r#""result":{{{kind}"content":[{{"type":"text","text":{text}}}]}}"#)?;
        }
        _ => out.extend_from_slice(br#""error":{"code":-32601,"message":"no such method"}"#),
    }
    Ok(())
}
