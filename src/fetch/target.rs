//! Where a document is: a URL taken apart, and which addresses may be dialled for it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use http::Uri;
use ipnet::IpNet;

use super::FetchError;

/// A URL taken apart, once.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Target {
    pub(super) tls: bool,
    /// Without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// As the Host header wants it.
    pub(super) authority: String,
    pub(super) path: String,
    /// Only public addresses are dialled.
    public_only: bool,
}

impl Target {
    pub(super) fn parse(url: &str) -> Result<Self, FetchError> {
        let wrong = || FetchError::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let authority = uri.authority().ok_or_else(wrong)?;
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") if is_loopback(&host) => false,
            _ => return Err(wrong()),
        };
        if authority.as_str().contains('@') || host.is_empty() {
            return Err(wrong());
        }
        let path = uri
            .path_and_query()
            .map_or("/", |path| path.as_str())
            .to_owned();
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Ok(Self {
            tls,
            host,
            port,
            authority: authority.to_string(),
            path,
            public_only: false,
        })
    }

    /// A URL that was found in a document of `origin`.
    pub(super) fn linked(url: &str, origin: &str) -> Result<Self, FetchError> {
        let mut target = Self::parse(url)?;
        target.public_only = target.host != Self::parse(origin)?.host;
        Ok(target)
    }

    pub(super) fn is_of_origin(&self, origin: &Self) -> bool {
        self.tls == origin.tls && self.host == origin.host && self.port == origin.port
    }

    /// The addresses, if all may be dialled: one that may not makes the others suspect.
    pub(super) fn checked(
        &self,
        addresses: impl Iterator<Item = SocketAddr>,
        allowed: &[IpNet],
    ) -> Result<Vec<SocketAddr>, FetchError> {
        let addresses: Vec<_> = addresses.collect();
        if !self.tls && addresses.iter().any(|address| !address.ip().is_loopback()) {
            return Err(FetchError::Url(format!("http://{}", self.authority)));
        }
        // A provider's document names hosts; an address in it is somebody's own network (tok-101).
        let literal = self.host.parse::<IpAddr>().is_ok();
        let may_be_linked = |address: &SocketAddr| {
            let address = address.ip();
            // Written in another family it is the same address, and listed under its own.
            let plain = address.to_canonical();
            (is_public(address) && !literal) || allowed.iter().any(|block| block.contains(&plain))
        };
        if self.public_only && !addresses.iter().all(may_be_linked) {
            return Err(FetchError::NotPublic(self.host.clone()));
        }
        Ok(addresses)
    }

    /// Where a redirect leads, if that is within the origin.
    pub(super) fn redirected(&self, location: &str) -> Option<Self> {
        if location.starts_with('/') && !location.starts_with("//") {
            return Some(Self {
                path: location.to_owned(),
                authority: self.authority.clone(),
                host: self.host.clone(),
                ..*self
            });
        }
        let other = Self {
            public_only: self.public_only,
            ..Self::parse(location).ok()?
        };
        other.is_of_origin(self).then_some(other)
    }

    /// Where a redirect of a question to `first` leads: anywhere public by TLS, or within
    /// the first host.
    pub(super) fn elsewhere(&self, location: &str, first: &Self) -> Option<Self> {
        if let Some(same) = self.redirected(location) {
            return Some(same);
        }
        let mut other = Self::parse(location).ok()?;
        other.public_only = other.host != first.host || first.public_only;
        other.tls.then_some(other)
    }
}

/// Whether a host names this one only: an address literal, or the name that RFC 6761 §6.3 reserves.
pub fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Whether packets to an address leave for the public internet: everything that is
/// assigned to another purpose (IANA's special-purpose registries) does not, nor what
/// could be translated into such an address.
pub fn is_public(address: IpAddr) -> bool {
    let within = |networks: &[(&str, u32)], bits: u128, width: u32| {
        networks.iter().any(|(network, prefix)| {
            let network: IpAddr = network.parse().expect("the table holds addresses");
            (as_bits(network) ^ bits) >> (width - prefix) == 0
        })
    };
    match address {
        IpAddr::V4(_) => !within(SPECIAL_V4, as_bits(address), 32),
        IpAddr::V6(_) => {
            within(GLOBAL_V6, as_bits(address), 128) && !within(SPECIAL_V6, as_bits(address), 128)
        }
    }
}

fn as_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => Ipv4Addr::to_bits(address).into(),
        IpAddr::V6(address) => Ipv6Addr::to_bits(address),
    }
}

const SPECIAL_V4: &[(&str, u32)] = &[
    ("0.0.0.0", 8),
    ("10.0.0.0", 8),
    // Carriers' address translation.
    ("100.64.0.0", 10),
    ("127.0.0.0", 8),
    ("169.254.0.0", 16),
    ("172.16.0.0", 12),
    ("192.0.0.0", 24),
    ("192.0.2.0", 24),
    ("192.88.99.0", 24),
    ("192.168.0.0", 16),
    ("198.18.0.0", 15),
    ("198.51.100.0", 24),
    ("203.0.113.0", 24),
    // Multicast, reserved, broadcast.
    ("224.0.0.0", 3),
];
/// What is assigned to be global at all; NAT64 and IPv4-mapped addresses are outside.
const GLOBAL_V6: &[(&str, u32)] = &[("2000::", 3)];
const SPECIAL_V6: &[(&str, u32)] = &[
    // Protocol assignments, Teredo among them.
    ("2001::", 23),
    ("2001:db8::", 32),
    // 6to4.
    ("2002::", 16),
    ("3fff::", 20),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_and_loopback_urls_are_fetched() {
        let target = Target::parse("https://sso.example.com/realms/corp?x=1").unwrap();
        assert_eq!(
            (target.port, target.path.as_str()),
            (443, "/realms/corp?x=1")
        );
        assert!(Target::parse("http://127.0.0.1:8080/keys").is_ok());
        assert_eq!(Target::parse("http://[::1]:80/").unwrap().host, "::1");
        for url in [
            "http://sso.example.com/",
            "http://127.0.0.1.evil.example/",
            "file:///etc/passwd",
            "ftp://127.0.0.1/",
            "https://user@sso.example.com/",
            "/keys",
            "",
        ] {
            assert!(Target::parse(url).is_err(), "{url}");
        }
    }

    /// tok-100: a redirect stays within the origin.
    #[test]
    fn a_redirect_leads_nowhere_else() {
        let first = Target::parse("https://sso.example.com/a").unwrap();
        assert_eq!(first.redirected("/b").unwrap().path, "/b");
        assert_eq!(
            first.redirected("https://sso.example.com/b").unwrap().path,
            "/b"
        );
        for elsewhere in [
            "http://sso.example.com/b",
            "https://evil.example/b",
            "//evil.example/b",
            "https://sso.example.com:8443/b",
        ] {
            assert!(first.redirected(elsewhere).is_none(), "{elsewhere}");
        }
    }

    #[test]
    fn a_long_answer_may_lie_elsewhere_by_tls_in_public_or_on_the_same_host() {
        let first = Target::parse("https://registry.corp/v2/a").unwrap();
        let elsewhere = |location: &str| first.elsewhere(location, &first);
        assert!(!elsewhere("/b").unwrap().public_only);
        assert!(
            !elsewhere("https://registry.corp:8443/b")
                .unwrap()
                .public_only
        );
        assert!(elsewhere("https://storage.example/b").unwrap().public_only);
        for location in [
            "http://storage.example/b",
            "http://127.0.0.1/b",
            "//storage.example/b",
            "ftp://x/",
            "b",
        ] {
            assert!(elsewhere(location).is_none(), "{location}");
        }
        // A place that was led to may lead back, and to nothing more private.
        let away = elsewhere("https://storage.example/b").unwrap();
        assert!(
            away.elsewhere("https://10.0.0.1/", &first)
                .unwrap()
                .public_only
        );
        let linked = Target::linked("https://keys.corp/", "https://registry.corp/").unwrap();
        assert!(
            linked
                .elsewhere("https://keys.corp:1/", &linked)
                .unwrap()
                .public_only
        );
    }

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts
            .iter()
            .map(|text| SocketAddr::new(text.parse().unwrap(), 443))
            .collect()
    }

    /// tok-101: by IANA's registries of special-purpose addresses.
    #[test]
    fn an_address_is_public_or_not() {
        for public in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.128.0.0",
            "172.32.0.1",
            "223.255.255.255",
            "2606:4700::1",
            "2a00:1450::1",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for special in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.168.1.1",
            "198.18.0.1",
            "203.0.113.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "::ffff:8.8.8.8",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:a00:1::",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "ff02::1",
            "3fff::1",
        ] {
            assert!(!is_public(special.parse().unwrap()), "{special}");
        }
    }

    /// tok-102: what is dialled is what was checked, all of it.
    #[test]
    fn an_address_that_may_not_be_dialled_spoils_the_others() {
        let plain = Target::parse("http://localhost/").unwrap();
        assert!(
            plain
                .checked(addresses(&["127.0.0.1", "::1"]).into_iter(), &[])
                .is_ok()
        );
        assert!(matches!(
            plain.checked(addresses(&["127.0.0.1", "192.168.1.1"]).into_iter(), &[]),
            Err(FetchError::Url(_))
        ));
        let named = Target::parse("https://sso.example.com/").unwrap();
        assert_eq!(
            named
                .checked(addresses(&["10.0.0.1", "1.1.1.1"]).into_iter(), &[])
                .unwrap(),
            addresses(&["10.0.0.1", "1.1.1.1"])
        );
        let linked = Target {
            public_only: true,
            ..named
        };
        assert_eq!(
            linked
                .checked(addresses(&["1.1.1.1"]).into_iter(), &[])
                .unwrap(),
            addresses(&["1.1.1.1"])
        );
        for mixed in [["1.1.1.1", "127.0.0.1"], ["10.0.0.1", "1.1.1.1"]] {
            assert!(matches!(
                linked.checked(addresses(&mixed).into_iter(), &[]),
                Err(FetchError::NotPublic(_))
            ));
        }
        assert!(
            linked.redirected("/b").unwrap().public_only
                && linked
                    .redirected("https://sso.example.com/b")
                    .unwrap()
                    .public_only
        );
    }

    /// tok-101: what the operator lists may be linked to, and nothing beside it.
    #[test]
    fn a_listed_block_may_be_linked_to() {
        let linked = Target::linked("https://keys.corp/", "https://sso.example.com").unwrap();
        let allowed = ["10.1.0.0/16".parse().unwrap(), "fd00::/8".parse().unwrap()];
        let checked = |texts: &[&str]| linked.checked(addresses(texts).into_iter(), &allowed);
        for good in ["10.1.2.3", "fd12::1", "::ffff:10.1.2.3", "1.1.1.1"] {
            assert!(checked(&[good]).is_ok(), "{good}");
        }
        for bad in [
            "10.2.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "fe80::1",
            "64:ff9b::a01:203",
        ] {
            assert!(checked(&[bad]).is_err(), "{bad}");
            assert!(checked(&["10.1.2.3", bad]).is_err(), "{bad}");
        }
    }

    /// tok-101: an address in place of a name is linked to only where it is listed.
    #[test]
    fn an_address_literal_must_be_listed() {
        let linked = |url: &str| Target::linked(url, "https://sso.example.com").unwrap();
        for (url, address) in [
            ("https://1.1.1.1/", "1.1.1.1"),
            ("https://[2606:4700::1]/", "2606:4700::1"),
        ] {
            let block = address.parse::<IpAddr>().unwrap().into();
            assert!(
                linked(url)
                    .checked(addresses(&[address]).into_iter(), &[])
                    .is_err()
            );
            assert!(
                linked(url)
                    .checked(addresses(&[address]).into_iter(), &[block])
                    .is_ok()
            );
        }
        // The issuer's own host is as its administrator wrote it.
        let own = Target::linked("https://1.1.1.1/keys", "https://1.1.1.1").unwrap();
        assert!(
            own.checked(addresses(&["1.1.1.1"]).into_iter(), &[])
                .is_ok()
        );
    }
}
