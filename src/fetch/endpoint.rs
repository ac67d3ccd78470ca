//! One URL that an administrator named, and connections to it.
//!
//! What is said over them is its user's business. Each connection resolves the
//! name once and dials an address that was checked; nothing is redirected.

use std::{path::Path, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};

use super::{FetchError, Fetcher, target::Target};

/// A connection, with TLS around it or without.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// Where somebody listens.
pub struct Endpoint {
    target: Target,
    fetcher: Fetcher,
}

impl Endpoint {
    /// Trusts the system's authorities, and those of a PEM file besides.
    pub fn new(url: &str, ca_file: Option<&Path>) -> Result<Self, FetchError> {
        Ok(Self {
            target: Target::parse(url)?,
            fetcher: Fetcher::new(ca_file)?,
        })
    }

    /// As the Host header wants it.
    pub fn authority(&self) -> &str {
        &self.target.authority
    }

    /// The path, with a query if there is one.
    pub fn path(&self) -> &str {
        &self.target.path
    }

    /// A new connection.
    pub async fn connect(&self) -> Result<Box<dyn Io>, FetchError> {
        timeout(CONNECT, self.fetcher.dial(&self.target))
            .await
            .unwrap_or(Err(FetchError::Deadline))
    }
}

/// Name resolution, connection and handshake.
const CONNECT: Duration = Duration::from_secs(5);
