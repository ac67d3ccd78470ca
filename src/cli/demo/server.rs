//! `thv demo-server`: the small MCP server that the demo puts into the sandbox.
//!
//! An ordinary stdio server: it knows nothing of thv, and no secret. Its tool
//! `look_around` tries what a curious server would try and says what came of it.

use std::{
    fmt::Write as _,
    fs,
    io::{self, BufRead, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};

/// Serves MCP on `input` and `output` until the input ends.
pub fn run(input: impl BufRead, mut output: impl Write) -> io::Result<()> {
    for line in input.lines() {
        let Ok(message) = serde_json::from_str::<Value>(&line?) else {
            continue;
        };
        let (Some(id), Some(method)) = (
            message.get("id"),
            message.get("method").and_then(Value::as_str),
        ) else {
            continue;
        };
        let answer = match answer(method, message.get("params").unwrap_or(&Value::Null)) {
            Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
            Err((code, text)) => {
                json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": text } })
            }
        };
        writeln!(output, "{answer}")?;
        output.flush()?;
    }
    Ok(())
}

fn answer(method: &str, params: &Value) -> Result<Value, (i32, String)> {
    match method {
        "initialize" => Ok(json!({
            "protocolVersion": "2025-11-25",
            "capabilities": { "tools": {} },
            "serverInfo": { "name": "thv-demo", "version": env!("CARGO_PKG_VERSION") },
        })),
        "ping" => Ok(json!({})),
        "tools/list" => Ok(json!({ "tools": [
            tool("whoami", "As whom this server runs"),
            tool("clock", "The time"),
            tool("look_around", "What this server can see and do from where it runs"),
        ] })),
        "tools/call" => {
            let text = match params
                .get("name")
                .and_then(Value::as_str)
                .unwrap_or_default()
            {
                "whoami" => whoami(),
                "clock" => clock(),
                "look_around" => look_around(),
                other => return Err((-32602, format!("unknown tool `{other}`"))),
            };
            Ok(json!({ "content": [{ "type": "text", "text": text }] }))
        }
        _ => Err((-32601, "method not found".to_owned())),
    }
}

fn tool(name: &str, description: &str) -> Value {
    json!({ "name": name, "description": description, "inputSchema": { "type": "object" } })
}

fn whoami() -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!(
        "uid {}, process {}, on host `{}`",
        nix::unistd::getuid(),
        std::process::id(),
        host.trim()
    )
}

fn clock() -> String {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}

fn look_around() -> String {
    let mut seen = String::new();
    let mut say = |what: &str, found: String| {
        let _ = writeln!(seen, "{what:<34}{found}");
    };
    say("the root directory holds", names("/"));
    for path in [
        "/etc/shadow",
        "/etc/thv",
        "/root",
        "/home",
        "/run/credentials",
        "/run/dbus/system_bus_socket",
    ] {
        say(path, outcome(fs::metadata(path)));
    }
    say(
        "writing to /usr",
        outcome(fs::write("/usr/thv-was-here", "")),
    );
    say(
        "writing to /tmp",
        outcome(fs::write("/tmp/thv-was-here", "")),
    );
    let processes = names_of("/proc")
        .into_iter()
        .filter(|name| name.bytes().all(|b| b.is_ascii_digit()))
        .count();
    say("processes in sight", processes.to_string());
    say("network interfaces", interfaces());
    for address in [[127, 0, 0, 1], [169, 254, 169, 254], [1, 1, 1, 1]] {
        let address = SocketAddr::from((address, 80));
        say(
            &format!("connecting to {address}"),
            outcome(TcpStream::connect_timeout(&address, Duration::from_secs(1))),
        );
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    for field in ["CapEff", "CapBnd", "NoNewPrivs", "Seccomp"] {
        let value = status
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        say(field, value.map_or("?", str::trim).to_owned());
    }
    // The directory being read is itself a descriptor.
    say(
        "open descriptors",
        names_of("/proc/self/fd")
            .len()
            .saturating_sub(1)
            .to_string(),
    );
    let mut variables: Vec<_> = std::env::vars_os()
        .map(|(name, _)| name.to_string_lossy().into_owned())
        .collect();
    variables.sort();
    say("environment", variables.join(" "));
    seen
}

fn interfaces() -> String {
    let table = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let names: Vec<_> = table
        .lines()
        .skip(2)
        .filter_map(|line| Some(line.split_once(':')?.0.trim()))
        .collect();
    names.join(" ")
}

fn names(path: &str) -> String {
    let mut names = names_of(path);
    names.sort();
    names.join(" ")
}

fn names_of(path: &str) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn outcome<T>(tried: io::Result<T>) -> String {
    match tried {
        Ok(_) => "yes".to_owned(),
        Err(error) => match error.raw_os_error() {
            Some(_) => format!("no ({})", error.kind()),
            None => format!("no ({error})"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_answers_requests_and_is_silent_otherwise() {
        let input = concat!(
            r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}"#,
            "\n",
            r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#,
            "\nnot json\n",
            r#"{"jsonrpc":"2.0","id":"b","method":"tools/call","params":{"name":"whoami"}}"#,
            "\n",
            r#"{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"nothing"}}"#,
            "\n",
        );
        let mut output = Vec::new();
        run(input.as_bytes(), &mut output).unwrap();
        let answers: Vec<Value> = String::from_utf8(output)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(answers.len(), 3);
        assert_eq!(answers[0]["result"]["serverInfo"]["name"], "thv-demo");
        assert!(
            answers[1]["result"]["content"][0]["text"]
                .as_str()
                .unwrap()
                .starts_with("uid ")
        );
        assert_eq!(answers[2]["error"]["code"], -32602);
    }
}
