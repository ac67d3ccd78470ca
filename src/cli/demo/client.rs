//! The demo's MCP client: as little as shows what goes over the wire.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// One caller of one server.
pub(super) struct Client {
    address: SocketAddr,
    path: String,
    token: Option<String>,
    session: Option<String>,
    next: u64,
}

/// What came back.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Value,
}

impl Client {
    pub(super) fn new(address: SocketAddr, path: &str, token: Option<String>) -> Self {
        Self {
            address,
            path: path.to_owned(),
            token,
            session: None,
            next: 1,
        }
    }

    /// Sends `initialize`, and what must follow it.
    pub(super) async fn initialize(&mut self) -> Result<Answer> {
        let params = json!({
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": { "name": "thv-demo", "version": env!("CARGO_PKG_VERSION") },
        });
        let answer = self.request("initialize", params).await?;
        self.session = answer
            .headers
            .get("mcp-session-id")
            .and_then(|id| id.to_str().ok())
            .map(str::to_owned);
        if self.session.is_some() {
            self.send(
                "POST",
                Some(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })),
            )
            .await?;
        }
        Ok(answer)
    }

    /// Sends one request.
    pub(super) async fn request(&mut self, method: &str, params: Value) -> Result<Answer> {
        let id = self.next;
        self.next += 1;
        self.send(
            "POST",
            Some(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })),
        )
        .await
    }

    pub(super) async fn call(&mut self, tool: &str) -> Result<Answer> {
        self.request("tools/call", json!({ "name": tool, "arguments": {} }))
            .await
    }

    /// Ends the session.
    pub(super) async fn end(&mut self) -> Result<Answer> {
        self.send("DELETE", None).await
    }

    async fn send(&self, method: &str, body: Option<&Value>) -> Result<Answer> {
        let stream = TcpStream::connect(self.address)
            .await
            .context("connecting to the gateway")?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let mut request = Request::builder()
            .method(method)
            .uri(&self.path)
            .header(header::HOST, self.address.to_string())
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, text/event-stream")
            .header(header::CONNECTION, "close");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(session) = &self.session {
            request = request.header("mcp-session-id", session);
        }
        let text = body.map(Value::to_string).unwrap_or_default();
        let request = request.body(Full::new(Bytes::from(text)))?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let (head, body) = response.into_parts();
            let body = body.collect().await?.to_bytes();
            anyhow::Ok(Answer {
                status: head.status,
                headers: head.headers,
                body: message(&body),
            })
        };
        let (answer, _) = tokio::join!(exchange, connection);
        answer
    }
}

impl Answer {
    /// The text of a tool's result, or of the error.
    pub(super) fn text(&self) -> String {
        let text = self.body["result"]["content"][0]["text"]
            .as_str()
            .or_else(|| self.body["error"]["message"].as_str());
        text.unwrap_or_default().to_owned()
    }
}

/// The message of a body that is JSON, or one event with JSON in it.
fn message(body: &[u8]) -> Value {
    let text = String::from_utf8_lossy(body);
    let json = text
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("data: "))
        .unwrap_or(&text);
    serde_json::from_str(json).unwrap_or(Value::Null)
}
