//! An identity provider on loopback that does as it is told.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinSet,
};

use super::{NOW, Signer, Token, build, issuer, request, set, token, unheard};
use crate::{
    auth::{Authenticator, Notices},
    config::{Auth, Issuer, KeySource},
    time::Clock,
};

/// What a provider does when a path is asked for.
#[derive(Clone)]
pub(in crate::auth) enum Reply {
    Json(Value),
    /// Head and body as they go over the wire.
    Raw(Vec<u8>),
    /// Says nothing, ever.
    Silence,
    /// A body byte a second.
    Drip,
    /// This document, once the test says so.
    Held(Value, Arc<Notify>),
}

/// An identity provider on loopback that does as it is told, and counts.
pub(in crate::auth) struct Provider {
    pub(in crate::auth) address: SocketAddr,
    replies: Arc<Mutex<HashMap<String, Reply>>>,
    asked: Arc<Mutex<HashMap<String, usize>>>,
    connections: Arc<AtomicUsize>,
    heard: Heard,
    _serving: JoinSet<()>,
}

/// Every request as it came, body and all.
type Heard = Arc<Mutex<Vec<String>>>;

pub(in crate::auth) const DISCOVERY: &str = "/.well-known/openid-configuration";
pub(in crate::auth) const JWKS: &str = "/jwks";

impl Provider {
    /// One that works and has these keys.
    pub(in crate::auth) async fn with(keys: &[&Signer]) -> Self {
        let provider = Self::start().await;
        provider.discovers(&provider.issuer(), &provider.url(JWKS));
        provider.set(JWKS, Reply::Json(set(keys.iter().copied())));
        provider
    }

    /// One that answers 404 to everything.
    pub(in crate::auth) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (replies, asked, connections, heard) = (
            Arc::default(),
            Arc::default(),
            Arc::new(AtomicUsize::new(0)),
            Heard::default(),
        );
        let mut serving = JoinSet::new();
        serving.spawn(serve(
            listener,
            Arc::clone(&replies),
            Arc::clone(&asked),
            Arc::clone(&connections),
            Arc::clone(&heard),
        ));
        Self {
            address,
            replies,
            asked,
            connections,
            heard,
            _serving: serving,
        }
    }

    pub(in crate::auth) fn issuer(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(in crate::auth) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(in crate::auth) fn set(&self, path: &str, reply: Reply) {
        self.replies.lock().unwrap().insert(path.to_owned(), reply);
    }

    pub(in crate::auth) fn discovers(&self, issuer: &str, jwks_uri: &str) {
        self.set(
            DISCOVERY,
            Reply::Json(json!({"issuer": issuer, "jwks_uri": jwks_uri})),
        );
    }

    /// How often a path was asked for.
    pub(in crate::auth) fn asked(&self, path: &str) -> usize {
        self.asked.lock().unwrap().get(path).copied().unwrap_or(0)
    }

    /// Every request so far.
    pub(in crate::auth) fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }

    pub(in crate::auth) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    pub(in crate::auth) fn token(&self) -> Token {
        token().claim("iss", self.issuer())
    }

    pub(in crate::auth) fn authenticator(&self) -> Arc<Authenticator> {
        self.authenticator_that_tells(&unheard())
    }

    pub(in crate::auth) fn authenticator_that_tells(
        &self,
        notices: &Notices,
    ) -> Arc<Authenticator> {
        let issuer = Issuer {
            issuer: self.issuer(),
            ..issuer(KeySource::Discovery)
        };
        // The tests' tokens live for minutes, and the tests for simulated hours.
        let clock = Clock::new(|| NOW);
        Arc::new(build(&Auth::Oidc(vec![issuer]), clock, notices).unwrap())
    }
}

pub(in crate::auth) fn raw(status: &str, headers: &str, body: impl AsRef<[u8]>) -> Reply {
    let body = body.as_ref();
    let mut text = format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    text.extend_from_slice(body);
    Reply::Raw(text)
}

async fn serve(
    listener: TcpListener,
    replies: Arc<Mutex<HashMap<String, Reply>>>,
    asked: Arc<Mutex<HashMap<String, usize>>>,
    connections: Arc<AtomicUsize>,
    heard: Heard,
) {
    let mut open = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.fetch_add(1, Ordering::Relaxed);
        open.spawn(answer(
            stream,
            Arc::clone(&replies),
            Arc::clone(&asked),
            Arc::clone(&heard),
        ));
    }
}

async fn answer(
    mut stream: TcpStream,
    replies: Arc<Mutex<HashMap<String, Reply>>>,
    asked: Arc<Mutex<HashMap<String, usize>>>,
    heard: Heard,
) {
    let Some(text) = request::whole(&mut stream).await else {
        return;
    };
    heard.lock().unwrap().push(text.clone());
    let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
    *asked.lock().unwrap().entry(path.clone()).or_default() += 1;
    let reply = replies.lock().unwrap().get(&path).cloned();
    let json = |value: &Value| {
        raw(
            "200 OK",
            "Content-Type: application/json\r\n",
            value.to_string(),
        )
    };
    let reply = match reply {
        Some(Reply::Json(value)) => json(&value),
        Some(Reply::Held(value, released)) => {
            released.notified().await;
            json(&value)
        }
        Some(other) => other,
        None => raw("404 Not Found", "", ""),
    };
    match reply {
        Reply::Raw(text) => drop(stream.write_all(&text).await),
        Reply::Drip => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n").await;
            while stream.write_all(b" ").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        Reply::Silence | Reply::Json(_) | Reply::Held(..) => std::future::pending().await,
    }
}
