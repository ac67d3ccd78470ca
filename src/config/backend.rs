//! How the server is reached: `transport`, `port`, `path`, `url` and `[upstream]`.
//!
//! Pure. `fragment` reads the keys with it, `resolve` makes one [`Transport`] of
//! them. A server that somebody else runs has no program, no sandbox and no
//! environment here: naming both is a contradiction, not a preference.

use std::path::PathBuf;

use super::{
    load::Loader,
    problem::Place,
    table::{At, Said, Table},
    url, value,
};

/// How the server is spoken to.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Transport {
    /// Lines on its standard streams.
    #[default]
    Stdio,
    /// Streamable HTTP on its own loopback.
    Http(Inside),
    /// Streamable HTTP at a URL: somebody else runs it.
    Remote(Upstream),
}

/// Where a server in the sandbox listens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Inside {
    pub door: InsideDoor,
    /// The path of its endpoint.
    pub path: String,
}

/// What it listens at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum InsideDoor {
    /// A port of its own loopback.
    Port(u16),
    /// A Unix socket of this name in [`SOCKETS`].
    Socket(String),
}

/// The directory inside that holds a server's socket, and nothing else.
pub const SOCKETS: &str = "/run/mcp";

/// A server that somebody else runs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Upstream {
    pub url: String,
    /// Authorities besides the system's.
    pub ca_file: Option<PathBuf>,
    pub authorization: UpstreamAuthorization,
}

/// What the upstream is shown. Never the token that a client has shown.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum UpstreamAuthorization {
    Nothing,
    /// The text of this credential of the gateway's.
    Credential(String),
    /// A token of its own for each caller (RFC 8693).
    Exchange(TokenExchange),
}

/// Where a caller's token is exchanged for one that the upstream accepts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TokenExchange {
    pub token_url: String,
    pub client_id: String,
    /// The credential of the gateway's that holds the client's secret.
    pub credential: String,
    pub audience: Option<String>,
    pub resource: Option<String>,
    pub scope: Option<String>,
}

#[derive(Debug, Default)]
pub(super) struct BackendFragment {
    /// Whether it is `http`.
    http: Said<bool>,
    port: Said<u16>,
    /// A name in [`SOCKETS`].
    socket: Said<String>,
    path: Said<String>,
    url: Said<String>,
    ca_file: Said<PathBuf>,
    /// `authorization` and `token-exchange` are two ways to say one thing, so they are one choice.
    authorization: Said<UpstreamAuthorization>,
}

impl BackendFragment {
    /// Takes its keys over those of the lower layers.
    pub(super) fn read(top: &mut Table<'_>, mut lower: Self) -> Self {
        // One replaces the other.
        if top.has("port") || top.has("socket") {
            (lower.port, lower.socket) = (Said::Nothing, Said::Nothing);
        }
        let http = top.over("transport", lower.http, |value| {
            value.own()?;
            let word = value.parsed(|text| match text {
                // What the protocol calls it, and `thv run --transport`.
                "streamable-http" => Err(format!("{text:?} is called \"http\" here")),
                _ => value::word(text, &["stdio", "http"], &[]),
            })?;
            Some(word == "http")
        });
        let port = top.over("port", lower.port, |value| {
            value.own()?;
            match u16::try_from(value.count()?) {
                Ok(port) => Some(port),
                Err(_) => value.wrong("a port is a number from 1 to 65535", ""),
            }
        });
        let socket = top.over("socket", lower.socket, |value| {
            value.own()?;
            value.parsed(socket)
        });
        let path = top.over("path", lower.path, |value| {
            value.own()?;
            value.parsed(url::path)
        });
        let url = top.over("url", lower.url, |value| {
            value.own()?;
            value.parsed(url::fetched)
        });
        let upstream = top.take("upstream", |value| {
            value.own()?;
            value.table(upstream)
        });
        let (ca_file, authorization) = upstream.given().unwrap_or_default();
        Self {
            http,
            port,
            socket,
            path,
            url,
            ca_file: ca_file.or(lower.ca_file),
            authorization: authorization.or(lower.authorization),
        }
    }

    /// Whether somebody else runs the server.
    pub(super) fn is_remote(&self) -> bool {
        self.url.is_said()
    }

    /// The one way that the keys name; `beside` are keys that only a server of our own has.
    pub(super) fn resolve(
        self,
        loader: &mut Loader,
        beside: &[Option<&Place>],
    ) -> Option<Transport> {
        if self.url.is_said() {
            let ours = [
                self.http.place(),
                self.port.place(),
                self.socket.place(),
                self.path.place(),
            ];
            let mut good = true;
            for place in ours.iter().chain(beside).flatten() {
                good = false;
                loader.report(place.problem(
                    "it means nothing beside `url`: somebody else runs that server",
                    "remove one of the two",
                ));
            }
            let ca_file = match self.ca_file {
                Said::Given(at) => Some(loader.vouch(&at.value, &at.place)?),
                Said::Nothing | Said::Wrong => None,
            };
            return self.url.given().filter(|_| good).and_then(|url| {
                Some(Transport::Remote(Upstream {
                    url,
                    ca_file,
                    authorization: match self.authorization {
                        Said::Nothing => UpstreamAuthorization::Nothing,
                        said => said.given()?,
                    },
                }))
            });
        }
        for place in [self.ca_file.place(), self.authorization.place()]
            .into_iter()
            .flatten()
        {
            loader.report(place.problem(
                "it is about a server at a `url`, and there is none",
                "add `url = \"https://…\"`, or remove it",
            ));
        }
        match self.http {
            Said::Given(At { value: true, place }) => {
                let door = match (self.port, self.socket) {
                    (Said::Nothing, Said::Nothing) => {
                        loader.report(place.about("port").problem(
                            "missing",
                            "add `port = NUMBER`, at which the server listens on its own loopback, or `socket`",
                        ));
                        None
                    }
                    (Said::Nothing, socket) => socket.given().map(InsideDoor::Socket),
                    (port, Said::Nothing) => port.given().map(InsideDoor::Port),
                    (_, socket) => {
                        if let Some(place) = socket.place() {
                            loader.report(place.problem(
                                "`port` and `socket` exclude each other",
                                "remove one of the two",
                            ));
                        }
                        None
                    }
                };
                Some(Transport::Http(Inside {
                    door: door?,
                    path: self.path.given().unwrap_or_else(|| PATH.to_owned()),
                }))
            }
            Said::Wrong => None,
            Said::Given(_) | Said::Nothing => {
                let ours = [self.port.place(), self.socket.place(), self.path.place()];
                for place in ours.into_iter().flatten() {
                    loader.report(place.problem(
                        "only a server that speaks HTTP listens",
                        "add `transport = \"http\"`, or remove it",
                    ));
                }
                Some(Transport::Stdio)
            }
        }
    }
}

fn upstream(mut table: Table<'_>) -> (Said<PathBuf>, Said<UpstreamAuthorization>) {
    let ca_file = table.take("ca-file", |value| value.parsed(value::absolute_path));
    let fixed = table.take("authorization", |value| {
        value.table(|mut table| {
            let credential = table.needed("credential", |value| value.parsed(value::credential));
            table.finish(&[]);
            credential.map(UpstreamAuthorization::Credential)
        })?
    });
    let exchange = table.take("token-exchange", |value| {
        value
            .table(token_exchange)?
            .map(UpstreamAuthorization::Exchange)
    });
    if let (true, Some(place)) = (fixed.is_said(), exchange.place()) {
        table.wrong(
            place,
            "`authorization` and `token-exchange` exclude each other",
            "remove one of the two",
        );
    }
    table.finish(&[]);
    (ca_file, exchange.or(fixed))
}

/// A socket directly in the directory that is made for it.
fn socket(text: &str) -> Result<String, String> {
    let name = text
        .strip_prefix(SOCKETS)
        .and_then(|rest| rest.strip_prefix('/'));
    let plain = |name: &&str| {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        !name.is_empty()
            && name.len() <= MAX_NAME
            && !name.starts_with('.')
            && name.bytes().all(good)
    };
    name.filter(plain).map(str::to_owned).ok_or_else(|| {
        format!("{text:?} is not directly in `{SOCKETS}`, such as \"{SOCKETS}/mcp.sock\"")
    })
}

fn token_exchange(mut table: Table<'_>) -> Option<TokenExchange> {
    let token_url = table.needed("token-url", |value| value.parsed(url::fetched));
    let client_id = table.needed("client-id", |value| value.parsed(value::not_empty));
    let credential = table.needed("credential", |value| value.parsed(value::credential));
    let text = |table: &mut Table<'_>, key| {
        table
            .take(key, |value| value.parsed(value::not_empty))
            .given()
    };
    let audience = text(&mut table, "audience");
    let resource = text(&mut table, "resource");
    let scope = text(&mut table, "scope");
    table.finish(&[]);
    Some(TokenExchange {
        token_url: token_url?,
        client_id: client_id?,
        credential: credential?,
        audience,
        resource,
        scope,
    })
}

/// Where MCP servers answer, where nothing else is said.
const PATH: &str = "/mcp";
/// Bytes of a socket's name.
const MAX_NAME: usize = 64;
