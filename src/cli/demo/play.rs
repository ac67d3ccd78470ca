//! What the demo shows, in order, over the wire.

use std::{io::Write, net::SocketAddr, time::Duration};

use anyhow::{Result, bail, ensure};
use http::StatusCode;
use serde_json::{Value, json};

use crate::{
    audit::Audit,
    cli::demo::{
        client::{Answer, Client},
        issuer::DemoIssuer,
        window::Window,
    },
};

/// What the play needs.
pub(super) struct Scene<'a> {
    pub(super) address: SocketAddr,
    pub(super) issuer: &'a DemoIssuer,
    pub(super) audit: Audit,
    pub(super) window: Window,
}

/// Plays it; fails where anything is not as it says.
pub(super) async fn play(scene: &Scene<'_>, out: &mut impl Write) -> Result<()> {
    let Scene {
        address, issuer, ..
    } = *scene;
    writeln!(
        out,
        "An MCP server stands at http://{address}{PATH}, behind the issuer {}.\n",
        issuer.issuer()
    )?;

    let answer = Client::new(address, PATH, None).initialize().await?;
    writeln!(
        out,
        "1. Without a token, nobody gets in, and nothing is started:"
    )?;
    shown(out, &answer)?;
    let challenge = answer
        .headers
        .get("www-authenticate")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    writeln!(out, "   WWW-Authenticate: {challenge}\n")?;
    ensure!(
        answer.status == StatusCode::UNAUTHORIZED,
        "a request without a token was answered {}",
        answer.status
    );

    let foreign = issuer.token("alice", "https://elsewhere.example/mcp", &["demo"])?;
    let answer = Client::new(address, PATH, Some(foreign))
        .initialize()
        .await?;
    writeln!(
        out,
        "2. A good token that was made for another server is no better:"
    )?;
    shown(out, &answer)?;
    writeln!(out)?;
    ensure!(
        answer.status == StatusCode::UNAUTHORIZED,
        "a token for another audience was answered {}",
        answer.status
    );

    let mut alice = Client::new(
        address,
        PATH,
        Some(issuer.token("alice", &audience(address), &["demo"])?),
    );
    let answer = alice.initialize().await?;
    writeln!(
        out,
        "3. Alice has a token for this one. Her session gets a server process of its own, in a sandbox:"
    )?;
    shown(out, &answer)?;
    if answer.status != StatusCode::OK {
        bail!(
            "the server did not start: {}",
            cause(scene).await.unwrap_or_else(|| failure(&answer))
        );
    }
    let answer = alice.call("whoami").await?;
    writeln!(out, "   whoami → {}\n", answer.text())?;
    ensure!(
        answer.status == StatusCode::OK,
        "whoami: {}",
        failure(&answer)
    );

    let answer = alice.request("tools/list", json!({})).await?;
    writeln!(
        out,
        "4. The policy permits her two of its three tools; those she sees. The third she cannot call:"
    )?;
    let tools: Vec<_> = answer.body["result"]["tools"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|tool| &tool["name"])
        .collect();
    writeln!(
        out,
        "   tools/list → {}",
        Value::from_iter(tools.iter().copied().cloned())
    )?;
    ensure!(
        tools == ["whoami", "look_around"],
        "tools/list shows {tools:?}"
    );
    let answer = alice.call("clock").await?;
    writeln!(out, "   clock →")?;
    shown(out, &answer)?;
    writeln!(out)?;
    ensure!(
        answer.status == StatusCode::FORBIDDEN,
        "clock was answered {}",
        answer.status
    );

    let answer = alice.call("look_around").await?;
    writeln!(out, "5. What the server sees when it looks around:")?;
    for line in answer.text().lines() {
        writeln!(out, "   {line}")?;
    }
    writeln!(out)?;
    ensure!(
        answer.status == StatusCode::OK,
        "look_around: {}",
        failure(&answer)
    );
    alice.end().await?;

    writeln!(
        out,
        "6. What the journal would hold, a line a record (the sink for places without a journal has the same as JSON):"
    )?;
    for record in records(scene)
        .await
        .iter()
        .filter(|record| matches!(field(record, "THV_EVENT"), "decision" | "outcome"))
    {
        writeln!(out, "   {}", line(record))?;
    }
    out.flush()?;
    Ok(())
}

/// Why the server did not start, as the record says it: cause and cure.
async fn cause(scene: &Scene<'_>) -> Option<String> {
    let records = records(scene).await;
    let failed = records
        .iter()
        .find(|record| field(record, "THV_EVENT") == "layer-failed")?;
    Some(field(failed, "THV_ERROR").to_owned())
}

/// All records so far, those included that were still on their way.
async fn records(scene: &Scene<'_>) -> Vec<Value> {
    let audit = scene.audit.clone();
    let _ = tokio::task::spawn_blocking(move || audit.flush(Duration::from_secs(2))).await;
    scene.window.records()
}

fn field<'a>(record: &'a Value, name: &str) -> &'a str {
    record[name].as_str().unwrap_or_default()
}

/// A record's own fields, in its order.
fn line(record: &Value) -> String {
    let shown = [
        "EVENT",
        "SUBJECT",
        "METHOD",
        "TOOL",
        "DECISION",
        "POLICY",
        "REASON",
        "STATUS",
        "REQUEST_ID",
    ];
    let parts: Vec<_> = shown
        .iter()
        .map(|name| format!("THV_{name}"))
        .map(|name| (field(record, &name).to_owned(), name))
        .filter(|(value, _)| !value.is_empty())
        .map(|(value, name)| format!("{name}={value}"))
        .collect();
    parts.join(" ")
}

/// What a person can try next.
pub(super) fn how_to_go_on(scene: &Scene<'_>, out: &mut impl Write) -> Result<()> {
    let Scene {
        address, issuer, ..
    } = *scene;
    let token = issuer.token("alice", &audience(address), &["demo"])?;
    let body = json!({
        "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": { "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "curl", "version": "1" } },
    });
    writeln!(
        out,
        "\nServing until Ctrl-C, with audit records on stderr. Alice's next token is good for an hour:\n"
    )?;
    writeln!(
        out,
        "curl -i http://{address}{PATH} \\\n  -H 'Authorization: Bearer {token}' \\"
    )?;
    writeln!(
        out,
        "  -H 'Content-Type: application/json' -H 'Accept: application/json, text/event-stream' \\"
    )?;
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
