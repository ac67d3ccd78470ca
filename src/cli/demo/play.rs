//! What the demo shows, in order, over the wire.

use std::{io::Write, net::SocketAddr};

use anyhow::{Result, ensure};
use http::StatusCode;
use serde_json::{Value, json};

use crate::{
    audit::{Kind, Memory, Record},
    cli::demo::{
        client::{Answer, Client},
        issuer::DemoIssuer,
    },
};

/// Plays it; fails where anything is not as it says.
pub(super) async fn play(address: SocketAddr, issuer: &DemoIssuer, records: &Memory, out: &mut impl Write) -> Result<()> {
    writeln!(out, "An MCP server stands at http://{address}{PATH}, behind the issuer {}.\n", issuer.issuer())?;

    let answer = Client::new(address, PATH, None).initialize().await?;
    writeln!(out, "1. Without a token, nobody gets in, and nothing is started:")?;
    shown(out, &answer)?;
    let challenge = answer.headers.get("www-authenticate").and_then(|value| value.to_str().ok()).unwrap_or_default();
    writeln!(out, "   WWW-Authenticate: {challenge}\n")?;
    ensure!(answer.status == StatusCode::UNAUTHORIZED, "a request without a token was answered {}", answer.status);

    let foreign = issuer.token("alice", "https://elsewhere.example/mcp", &["demo"])?;
    let answer = Client::new(address, PATH, Some(foreign)).initialize().await?;
    writeln!(out, "2. A good token that was made for another server is no better:")?;
    shown(out, &answer)?;
    writeln!(out)?;
    ensure!(answer.status == StatusCode::UNAUTHORIZED, "a token for another audience was answered {}", answer.status);

    let mut alice = Client::new(address, PATH, Some(issuer.token("alice", &audience(address), &["demo"])?));
    let answer = alice.initialize().await?;
    writeln!(out, "3. Alice has a token for this one. Her session gets a server process of its own, in a sandbox:")?;
    shown(out, &answer)?;
    ensure!(answer.status == StatusCode::OK, "initialize: {}", failure(&answer));
    let answer = alice.call("whoami").await?;
    writeln!(out, "   whoami → {}\n", answer.text())?;
    ensure!(answer.status == StatusCode::OK, "whoami: {}", failure(&answer));

    let answer = alice.request("tools/list", json!({})).await?;
    writeln!(out, "4. The policy permits her two of its three tools; those she sees. The third she cannot call:")?;
    let tools: Vec<_> = answer.body["result"]["tools"].as_array().into_iter().flatten().map(|tool| &tool["name"]).collect();
    writeln!(out, "   tools/list → {}", Value::from_iter(tools.iter().copied().cloned()))?;
    ensure!(tools == ["whoami", "look_around"], "tools/list shows {tools:?}");
    let answer = alice.call("clock").await?;
    writeln!(out, "   clock →")?;
    shown(out, &answer)?;
    writeln!(out)?;
    ensure!(answer.status == StatusCode::FORBIDDEN, "clock was answered {}", answer.status);

    let answer = alice.call("look_around").await?;
    writeln!(out, "5. What the server sees when it looks around:")?;
    for line in answer.text().lines() {
        writeln!(out, "   {line}")?;
    }
    writeln!(out)?;
    ensure!(answer.status == StatusCode::OK, "look_around: {}", failure(&answer));
    alice.end().await?;

    writeln!(out, "6. What the journal would hold (here it was kept in memory), a line a record:")?;
    for record in records.records().iter().filter(|record| matches!(record.kind(), Kind::Decision | Kind::Outcome)) {
        writeln!(out, "   {}", line(record))?;
    }
    out.flush()?;
    Ok(())
}

/// A record's own fields, in its order.
fn line(record: &Record) -> String {
    let shown = ["THV_EVENT", "THV_SUBJECT", "THV_METHOD", "THV_TOOL", "THV_DECISION", "THV_POLICY", "THV_REASON", "THV_STATUS"];
    let mut parts: Vec<_> = shown
        .iter()
        .filter_map(|name| record.field(name).map(|value| format!("{}={value}", name.trim_start_matches("THV_"))))
        .collect();
    let id = record.field("THV_REQUEST_ID").unwrap_or_default();
    parts.push(format!("REQUEST_ID={}…", id.chars().take(8).collect::<String>()));
    parts.join(" ")
}

/// What a person can try next.
pub(super) fn how_to_go_on(address: SocketAddr, issuer: &DemoIssuer, out: &mut impl Write) -> Result<()> {
    let token = issuer.token("alice", &audience(address), &["demo"])?;
    let body = json!({
        "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": { "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "curl", "version": "1" } },
    });
    writeln!(out, "\nServing until Ctrl-C. Alice's next token is good for an hour:\n")?;
    writeln!(out, "curl -i http://{address}{PATH} \\\n  -H 'Authorization: Bearer {token}' \\")?;
    writeln!(out, "  -H 'Content-Type: application/json' -H 'Accept: application/json, text/event-stream' \\")?;
    writeln!(out, "  -d '{body}'")?;
    out.flush()?;
    Ok(())
}

fn shown(out: &mut impl Write, answer: &Answer) -> std::io::Result<()> {
    let body = answer.body.to_string();
    let cut: String = body.chars().take(160).collect();
    let dots = if cut.len() < body.len() { " …" } else { "" };
    writeln!(out, "   {} {cut}{dots}", answer.status)
}

fn failure(answer: &Answer) -> String {
    format!("{}: {}", answer.status, answer.body["error"])
}

fn audience(address: SocketAddr) -> String {
    format!("http://{address}{PATH}")
}

/// Where the demo's server is served.
const PATH: &str = "/mcp";
