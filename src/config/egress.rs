//! What a child may reach: `sandbox.egress` and `sandbox.forward`, as configuration writes them.
//!
//! Pure. `fragment` reads lines with it, `resolve` gives each its door in the
//! child's network; `egress` asks it whether a name that a child has asked for
//! is one of them. A name is compared in one spelling only: lower case, ASCII,
//! no final dot.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use ipnet::IpNet;

use super::value::shown;

/// A child's network.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Network {
    /// Its own loopback, and from there these ways out; none is the default.
    Own(Vec<Way>),
    /// This host's (`network = "host"`): nothing is kept from it.
    Host,
}

impl Default for Network {
    fn default() -> Self {
        Self::Own(Vec::new())
    }
}

/// One way out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Way {
    /// Where the child finds it, in its own network.
    pub door: Door,
    pub to: Destination,
}

/// Where a child finds a way out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Door {
    /// At this address, to which the host's name leads in its hosts file.
    Named(SocketAddr),
    /// At this address, which the configuration names.
    Forward(SocketAddr),
    /// By asking the proxy at [`PROXY`].
    Proxy,
}

/// Where a way out leads.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Destination {
    pub host: Host,
    pub port: u16,
    /// Blocks of addresses that are allowed although they are not public.
    pub blocks: Vec<IpNet>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Host {
    /// A name, in its one spelling.
    Name(String),
    /// Every name below this one, at any depth (`*.NAME`).
    Below(String),
    /// An address; only a `forward` has it.
    Address(IpAddr),
}

impl Destination {
    /// Whether a name in its one spelling, and a port, are meant.
    pub fn is_for(&self, name: &str, port: u16) -> bool {
        self.port == port
            && match &self.host {
                Host::Name(own) => own == name,
                Host::Below(above) => name
                    .strip_suffix(above.as_str())
                    .is_some_and(|below| below.len() > 1 && below.ends_with('.')),
                Host::Address(_) => false,
            }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Name(name) => write!(f, "{name}:{}", self.port),
            Host::Below(above) => write!(f, "*.{above}:{}", self.port),
            Host::Address(address) => SocketAddr::new(*address, self.port).fmt(f),
        }
    }
}

impl Network {
    pub fn ways(&self) -> &[Way] {
        match self {
            Self::Own(ways) => ways,
            Self::Host => &[],
        }
    }

    /// The addresses at which a child's network has to listen, each once.
    pub fn doors(&self) -> Vec<SocketAddr> {
        let mut doors = Vec::new();
        for way in self.ways() {
            let address = match way.door {
                Door::Named(address) | Door::Forward(address) => address,
                Door::Proxy => PROXY,
            };
            if !doors.contains(&address) {
                doors.push(address);
            }
        }
        doors
    }

    /// Which exact names lead to which addresses, each once.
    pub fn names(&self) -> Vec<(IpAddr, &str)> {
        let mut names = Vec::new();
        for way in self.ways() {
            if let (Door::Named(address), Host::Name(name)) = (way.door, &way.to.host)
                && !names.contains(&(address.ip(), name.as_str()))
            {
                names.push((address.ip(), name.as_str()));
            }
        }
        names
    }

    /// Whether some ways lead by the proxy.
    pub fn has_proxy(&self) -> bool {
        self.ways().iter().any(|way| way.door == Door::Proxy)
    }
}

/// Gives each line of `egress` its door.
pub(super) fn open(destinations: Vec<Destination>) -> Vec<Way> {
    let mut names: Vec<String> = Vec::new();
    destinations
        .into_iter()
        .map(|to| {
            let Host::Name(name) = &to.host else {
                return Way {
                    door: Door::Proxy,
                    to,
                };
            };
            let number = names.iter().position(|own| own == name).unwrap_or_else(|| {
                names.push(name.clone());
                names.len() - 1
            });
            let number = u8::try_from(number + 1).expect("there are at most MAX_LINES names");
            let [a, b, c, _] = NAMED.octets();
            let address = IpAddr::V4(Ipv4Addr::new(a, b, c, number));
            Way {
                door: Door::Named(SocketAddr::new(address, to.port)),
                to,
            }
        })
        .collect()
}

/// Reads `HOST:PORT [in BLOCK,…]`, with a name or `*.NAME`.
pub(super) fn destination(text: &str) -> Result<Destination, String> {
    let destination = any_destination(text)?;
    match destination.host {
        Host::Address(address) => Err(format!(
            "a child finds hosts by name; for an address write `forward = [\"127.0.0.1:{0}={1}:{0}\"]`",
            destination.port, address
        )),
        _ => Ok(destination),
    }
}

/// Reads `ADDRESS:PORT=HOST:PORT [in BLOCK,…]`; the address is one of the child's loopback.
pub(super) fn forward(text: &str) -> Result<Way, String> {
    let (from, to) = text
        .split_once('=')
        .ok_or("write \"127.0.0.1:PORT=HOST:PORT\"")?;
    let from: SocketAddr = from.trim().parse().map_err(|_| {
        format!(
            "{} is not an address and port such as \"127.0.0.1:5432\"",
            shown(from)
        )
    })?;
    if !from.ip().is_loopback() || from.port() == 0 {
        return Err(format!(
            "`{from}` is no loopback address with a port, and a child has nothing else"
        ));
    }
    if matches!(from.ip(), IpAddr::V4(address) if address.octets()[..2] == NAMED.octets()[..2]) {
        return Err(format!(
            "`{from}` is where thv puts named hosts; take 127.0.0.1"
        ));
    }
    let to = any_destination(to.trim())?;
    if matches!(to.host, Host::Below(_)) {
        return Err("a forward leads to one host, not to `*`".to_owned());
    }
    Ok(Way {
        door: Door::Forward(from),
        to,
    })
}

fn any_destination(text: &str) -> Result<Destination, String> {
    let (place, blocks) = match text.split_once(" in ") {
        Some((place, blocks)) => (place.trim(), blocks.split(',').map(block).collect()),
        None => (text, Ok(Vec::new())),
    };
    let mut blocks: Vec<IpNet> = blocks?;
    if place.contains('/') {
        return Err(format!(
            "{} is not HOST:PORT such as \"api.example.com:443\": without a scheme and without a path",
            shown(place)
        ));
    }
    let (host, port) = place.rsplit_once(':').ok_or_else(|| {
        format!(
            "{} has no port: write `:443` behind it, or another one",
            shown(place)
        )
    })?;
    let port = match port.parse::<u16>() {
        Ok(number) if number > 0 && number.to_string() == port => number,
        _ => return Err("what stands behind the last `:` is not a port".to_owned()),
    };
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    if let Ok(address) = bare.parse::<IpAddr>() {
        // Written out, it is named.
        let address = address.to_canonical();
        blocks.push(address.into());
        return Ok(Destination {
            host: Host::Address(address),
            port,
            blocks,
        });
    }
    let host = match host.strip_prefix("*.") {
        Some(above) => Host::Below(name(above)?),
        None => Host::Name(name(host)?),
    };
    match &host {
        Host::Name(name) if name == "localhost" => Err(
            "inside, `localhost` is the child's own; use `forward` for a service of this host"
                .to_owned(),
        ),
        Host::Below(above) if !above.contains('.') => Err(format!(
            "`*.{above}` is everybody's; name what is below it, such as \"*.example.{above}\""
        )),
        _ => Ok(Destination { host, port, blocks }),
    }
}

fn block(text: &str) -> Result<IpNet, String> {
    let text = text.trim();
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.into());
    }
    let block: IpNet = text
        .parse()
        .map_err(|_| format!("{text:?} is not an address block such as \"10.0.0.0/8\""))?;
    if block.trunc() == block {
        Ok(block)
    } else {
        Err(format!(
            "{text:?} is within a block; write \"{}\"",
            block.trunc()
        ))
    }
}

/// A host's name in its one spelling, from configuration.
fn name(text: &str) -> Result<String, String> {
    match spelled(text) {
        Some(name) if !text.ends_with('.') => Ok(name),
        _ => Err(format!(
            "{} is not a host's name: ASCII letters, digits, `-` and dots, other scripts as `xn--`",
            shown(text)
        )),
    }
}

/// The one spelling of a name that a child has asked for; `None` where it is no
/// name, or one that somebody would take for an address (probe-55).
pub fn spelled(text: &str) -> Option<String> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    // `127.1`, `0x7f.1` and `2130706433` are addresses to some readers.
    let last = text.rsplit('.').next().unwrap_or_default();
    let numeric = last.starts_with(|first: char| first.is_ascii_digit());
    (text.len() <= MAX_NAME && text.split('.').all(label) && !numeric)
        .then(|| text.to_ascii_lowercase())
}

/// Where a child's proxy is. Below 127.77/16, which is thv's in every child.
pub const PROXY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 77, 1, 1)), 3128);
/// The block from which named hosts get their addresses.
const NAMED: Ipv4Addr = Ipv4Addr::new(127, 77, 0, 0);
/// Lines of `egress` and of `forward`: each may be a descriptor of every child.
pub(super) const MAX_LINES: usize = 100;
/// RFC 1035 §2.3.4.
const MAX_LABEL: usize = 63;
const MAX_NAME: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_a_host_a_port_and_perhaps_blocks() {
        let line = destination("API.GitHub.com:443").unwrap();
        assert_eq!(line.to_string(), "api.github.com:443");
        assert_eq!(line.blocks, []);
        let line = destination("db.corp:5432 in 10.1.0.0/16, fd00::/8").unwrap();
        assert_eq!(line.blocks.len(), 2);
        assert_eq!(
            destination("*.githubusercontent.com:443").unwrap().host,
            Host::Below("githubusercontent.com".to_owned())
        );
        for wrong in [
            "",
            "github.com",
            "github.com:",
            "github.com:0",
            "github.com:0443",
            "github.com:65536",
            ":443",
            "*:443",
            "*.com:443",
            "a.*.com:443",
            "*github.com:443",
            "localhost:80",
            "github.com.:443",
            "127.0.0.1:80",
            "[::1]:80",
            "https://github.com:443",
            "user@github.com:443",
            "gïthub.com:443",
            "github.com:443 in 10.0.0.1/8",
            "github.com:443 in everywhere",
            "github.com:443 in ",
            "127.1:80",
            "0x7f000001:80",
            "a b:1",
            "a\0b:1",
            "-a.b:1",
        ] {
            assert!(destination(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_forward_leads_from_loopback_to_one_host() {
        let way = forward("127.0.0.1:5432=db.corp:5432").unwrap();
        assert_eq!(way.door, Door::Forward("127.0.0.1:5432".parse().unwrap()));
        assert_eq!(way.to.blocks, []);
        let way = forward("[::1]:80=10.0.0.7:8080").unwrap();
        assert_eq!(way.to.blocks, ["10.0.0.7/32".parse().unwrap()]);
        for wrong in [
            "db.corp:5432",
            "10.0.0.1:80=a.b:80",
            "127.0.0.1:0=a.b:80",
            "127.0.0.1=a.b:80",
            "localhost:80=a.b:80",
            "127.0.0.1:80=*.a.b:80",
            "127.77.0.1:80=a.b:80",
            "0.0.0.0:80=a.b:80",
        ] {
            assert!(forward(wrong).is_err(), "{wrong:?}");
        }
    }

    /// probe-55: one spelling, then exact; suffix tricks and everything that is no name are something else.
    #[test]
    fn a_name_is_the_listed_one_or_another() {
        let lines = [
            destination("allowed.com:443").unwrap(),
            destination("*.wild.org:443").unwrap(),
        ];
        let meant = |name: &str, port| {
            spelled(name).is_some_and(|name| lines.iter().any(|line| line.is_for(&name, port)))
        };
        for good in [
            "allowed.com",
            "allowed.com.",
            "ALLOWED.Com",
            "a.wild.org",
            "a.b.wild.org",
            "A.WILD.ORG.",
        ] {
            assert!(meant(good, 443), "{good}");
            assert!(!meant(good, 80), "{good}:80");
        }
        for bad in [
            "allowed.com.evil.example",
            "evilallowed.com",
            "allowed.com..",
            ".allowed.com",
            "allowed.com@evil",
            "user:pw@allowed.com",
            "allowed.com\0",
            "allowed%2ecom",
            "allowed.com/",
            "[::]",
            "::",
            "127.0.0.1",
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "127.1",
            "1",
            "xn--allowed-.com",
            "xn--llowed-8nf.com",
            "аllowed.com",
            "allowed。com",
            "wild.org",
            ".wild.org",
            "evilwild.org",
            "a..wild.org",
            "a.wild.org.evil",
            "-.wild.org",
            "",
            ".",
            " allowed.com",
        ] {
            assert!(!meant(bad, 443), "{bad}");
        }
    }

    #[test]
    fn each_name_has_one_address_and_each_port_of_it_a_door() {
        let lines = ["a.b:443", "c.d:443", "a.b:80", "*.e.f:443", "*.g.h:443"]
            .map(|line| destination(line).unwrap());
        let network = Network::Own(open(lines.to_vec()));
        let doors: Vec<_> = network.doors().iter().map(ToString::to_string).collect();
        assert_eq!(
            doors,
            [
                "127.77.0.1:443",
                "127.77.0.2:443",
                "127.77.0.1:80",
                "127.77.1.1:3128"
            ]
        );
        assert_eq!(network.names().len(), 2);
        assert!(network.has_proxy());
    }
}
