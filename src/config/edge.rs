//! `[tls]` and `[http]`: how the gateway's own socket speaks, and whom it believes.

use std::{net::IpAddr, path::PathBuf};

use ipnet::IpNet;

use super::{
    load::Loader,
    problem::Place,
    resolve::required,
    table::{Said, Table, Value, plain},
    value,
};

/// A certificate and its key, for the gateway's own socket.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tls {
    /// The chain, the server's own first.
    pub certificate: Pem,
    pub key: Pem,
}

/// Where something in PEM is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Pem {
    File(PathBuf),
    /// A systemd credential of the gateway's unit.
    Credential(String),
}

/// Who may speak for others, and how they do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Proxies {
    /// Addresses of proxies.
    pub networks: Vec<IpNet>,
    /// Whoever connects to a Unix socket is one.
    pub unix: bool,
    pub told: Told,
}

/// How a proxy says who its client is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Told {
    /// The header `Forwarded` (RFC 7239).
    Forwarded,
    /// The header `X-Forwarded-For`.
    XForwardedFor,
    /// Before everything else, in HAProxy's PROXY protocol, version 1 or 2.
    ProxyProtocol,
}

impl Proxies {
    /// Whether that address is a proxy's.
    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks
            .iter()
            .any(|network| network.contains(&address))
    }
}

#[derive(Debug, Default)]
pub(super) struct TlsFragment {
    certificate: Said<Pem>,
    key: Said<Pem>,
}

#[derive(Debug, Default)]
pub(super) struct HttpFragment {
    trusted_proxies: Said<Vec<Trusted>>,
    client_address: Said<Told>,
}

#[derive(Clone, Copy, Debug)]
enum Trusted {
    Network(IpNet),
    Unix,
}

impl TlsFragment {
    pub(super) fn read(mut table: Table<'_>, lower: Self) -> Self {
        let fragment = Self {
            certificate: table.over("certificate", lower.certificate, pem),
            key: table.over("key", lower.key, pem),
        };
        table.finish(&[]);
        fragment
    }

    /// Both or neither. Files are not looked at: the runner must not be able to read the key.
    pub(super) fn resolve(self, loader: &mut Loader, place: &Place) -> Option<Option<Tls>> {
        if !self.certificate.is_said() && !self.key.is_said() {
            return Some(None);
        }
        let help = "it is a path, or `{ credential = \"NAME\" }`";
        let certificate = required(loader, self.certificate, place, "tls.certificate", help);
        let key = required(loader, self.key, place, "tls.key", help);
        let on_host = |pem| match pem {
            Pem::File(path) => Pem::File(loader.on_host(&path)),
            credential @ Pem::Credential(_) => credential,
        };
        Some(Some(Tls {
            certificate: on_host(certificate?),
            key: on_host(key?),
        }))
    }
}

impl HttpFragment {
    pub(super) fn read(mut table: Table<'_>, lower: Self) -> Self {
        let fragment = Self {
            trusted_proxies: table.over("trusted-proxies", lower.trusted_proxies, |value| {
                value.list(1, |element| element.parsed(trusted)).map(plain)
            }),
            client_address: table.over("client-address", lower.client_address, |value| {
                let words = ["forwarded", "x-forwarded-for", "proxy-protocol"];
                let word = value.parsed(|text| value::word(text, &words, &[]))?;
                Some(match word {
                    "forwarded" => Told::Forwarded,
                    "x-forwarded-for" => Told::XForwardedFor,
                    _ => Told::ProxyProtocol,
                })
            }),
        };
        table.finish(&[]);
        fragment
    }

    /// Whom to believe is nothing without what they say, and the reverse.
    pub(super) fn resolve(self, loader: &mut Loader, place: &Place) -> Option<Option<Proxies>> {
        if !self.trusted_proxies.is_said() && !self.client_address.is_said() {
            return Some(None);
        }
        let trusted = required(
            loader,
            self.trusted_proxies,
            place,
            "http.trusted-proxies",
            "name the proxies that say who their client is, such as `[\"10.1.0.7\"]` or `[\"unix\"]`",
        );
        let told = required(
            loader,
            self.client_address,
            place,
            "http.client-address",
            "say where proxies write it: \"forwarded\", \"x-forwarded-for\" or \"proxy-protocol\"",
        );
        let (trusted, told) = (trusted?, told?);
        let networks = trusted.iter().filter_map(|trusted| match trusted {
            Trusted::Network(network) => Some(*network),
            Trusted::Unix => None,
        });
        Some(Some(Proxies {
            networks: networks.collect(),
            unix: trusted
                .iter()
                .any(|trusted| matches!(trusted, Trusted::Unix)),
            told,
        }))
    }
}

/// A path, or `{ credential = "NAME" }`.
fn pem(value: &Value<'_>) -> Option<Pem> {
    if !value.is_table() {
        return value.parsed(value::absolute_path).map(Pem::File);
    }
    let name = value.table(|mut table| {
        let name = table.needed("credential", |value| value.parsed(value::credential));
        table.finish(&[]);
        name
    })?;
    name.map(Pem::Credential)
}

fn trusted(text: &str) -> Result<Trusted, String> {
    if text == "unix" {
        return Ok(Trusted::Unix);
    }
    let network = value::network(text)?;
    // A set that holds everybody protects from nobody (CVE-2026-76835).
    if network.prefix_len() < LEAST_PREFIX {
        return Err("this is everybody; name the proxies".to_owned());
    }
    Ok(Trusted::Network(network))
}

/// Larger blocks are no proxies' any more: `0.0.0.0/1` and `128.0.0.0/1` are everybody, too.
const LEAST_PREFIX: u8 = 7;
