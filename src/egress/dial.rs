//! From a name that is allowed to a connection: resolved once, every address
//! checked, one of those dialled (probe-56).

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use tokio::{
    net::TcpStream,
    sync::Semaphore,
    task::spawn_blocking,
    time::{sleep, timeout},
};

use crate::{
    config::{Destination, Host},
    fetch,
};

type Resolving = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// Who knows the addresses of names. A value, as a clock is, so that tests see what is asked.
#[derive(Clone)]
pub struct Resolver(Arc<dyn Fn(String) -> Resolving + Send + Sync>);

impl Resolver {
    /// The system's: hosts file, DNS, whatever nsswitch.conf(5) says. Each question takes
    /// a thread for as long as it takes, so there are so many at once: children must not
    /// take them away from those who check tokens.
    pub fn system() -> Self {
        let slots = Arc::new(Semaphore::new(MAX_QUESTIONS));
        Self::new(move |name| {
            let slots = Arc::clone(&slots);
            async move {
                let slot = slots.acquire_owned().await.map_err(io::Error::other)?;
                let ask = move || {
                    // Until it has been answered, also where nobody waits any more.
                    let _slot = slot;
                    let found = (name.as_str(), 0).to_socket_addrs()?;
                    Ok(found.map(|address| address.ip()).collect())
                };
                spawn_blocking(ask).await.map_err(io::Error::other)?
            }
        })
    }

    pub fn new<F>(resolve: impl Fn(String) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<Vec<IpAddr>>> + Send + 'static,
    {
        Self(Arc::new(move |name| Box::pin(resolve(name))))
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

/// Why nobody was reached.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error(
        "it leads to {address}, which is no public address; if it is right, write `{to} in {address}` in `egress` or `forward`, or its block"
    )]
    Forbidden { address: IpAddr, to: String },
    #[error("the name has no address: {0}")]
    Unresolved(io::Error),
    #[error("it cannot be reached: {0}")]
    Unreachable(io::Error),
}

/// Resolves `name` and connects to the port of its line.
pub(super) async fn by_name(
    resolver: &Resolver,
    name: &str,
    to: &Destination,
) -> Result<(TcpStream, SocketAddr), DialError> {
    let found = timeout(RESOLVE_DEADLINE, (resolver.0)(name.to_owned()))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(DialError::Unresolved)?;
    if found.is_empty() {
        let none = io::Error::from(io::ErrorKind::NotFound);
        return Err(DialError::Unresolved(none));
    }
    connect(&checked(found, to)?, to.port).await
}

/// Connects to the address that a line names.
pub(super) async fn by_address(to: &Destination) -> Result<(TcpStream, SocketAddr), DialError> {
    match to.host {
        Host::Address(address) => connect(&checked(vec![address], to)?, to.port).await,
        // Only an address is dialled without a name.
        _ => Err(DialError::Unresolved(io::ErrorKind::InvalidInput.into())),
    }
}

/// The addresses, if all of them may be dialled: one that may not makes the others suspect.
fn checked(found: Vec<IpAddr>, to: &Destination) -> Result<Vec<IpAddr>, DialError> {
    let mut checked = Vec::new();
    for address in found {
        // Written in another family it is the same address, and is dialled as what it is.
        let plain = address.to_canonical();
        if !may_be_dialled(address, &to.blocks) {
            return Err(DialError::Forbidden {
                address,
                to: to.to_string(),
            });
        }
        if !checked.contains(&plain) {
            checked.push(plain);
        }
    }
    Ok(checked)
}

fn may_be_dialled(address: IpAddr, blocks: &[IpNet]) -> bool {
    fetch::is_public(address)
        || blocks
            .iter()
            .any(|block| block.contains(&address.to_canonical()))
}

/// The first that answers; each is given a moment before the next is tried beside it.
async fn connect(addresses: &[IpAddr], port: u16) -> Result<(TcpStream, SocketAddr), DialError> {
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    let mut trying = tokio::task::JoinSet::new();
    let mut left = addresses.iter().take(MAX_ADDRESSES);
    let all = async {
        loop {
            if let Some(address) = left.next() {
                let address = SocketAddr::new(*address, port);
                trying.spawn(async move {
                    let stream = TcpStream::connect(address).await?;
                    io::Result::Ok((stream, address))
                });
            } else if trying.is_empty() {
                return None;
            }
            tokio::select! {
                Some(tried) = trying.join_next() => match tried {
                    Ok(Ok(connected)) => return Some(connected),
                    Ok(Err(error)) => last = error,
                    Err(error) => last = io::Error::other(error),
                },
                () = sleep(HEAD_START), if left.len() > 0 => {}
            }
        }
    };
    let reached = timeout(CONNECT_DEADLINE, all).await.unwrap_or_default();
    let (stream, address) = reached.ok_or(DialError::Unreachable(last))?;
    // What the child has written together stays together, and nothing waits for more.
    let _ = stream.set_nodelay(true);
    Ok((stream, address))
}

/// Questions to the system's resolver at once.
const MAX_QUESTIONS: usize = 16;
/// How long a look-up may take, its wait for a place included.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(10);
/// How long it may take until one of the addresses answers.
const CONNECT_DEADLINE: Duration = Duration::from_secs(15);
/// How long an address has before the next is tried, too (RFC 8305 §5).
const HEAD_START: Duration = Duration::from_millis(250);
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::net::TcpListener;

    use super::*;

    fn line(host: Host, port: u16, blocks: &[&str]) -> Destination {
        let read = |block: &&str| match block.parse::<IpAddr>() {
            Ok(address) => address.into(),
            Err(_) => block.parse().unwrap(),
        };
        let blocks = blocks.iter().map(read).collect();
        Destination { host, port, blocks }
    }

    fn named(port: u16, blocks: &[&str]) -> Destination {
        line(Host::Name("a.test".to_owned()), port, blocks)
    }

    /// probe-51, probe-56: what is not public is refused, in every way of writing it.
    #[test]
    fn an_address_that_is_not_public_is_dialled_only_where_it_is_named() {
        let special = [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.77.0.1",
            "169.254.169.254",
            "169.254.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.0.170",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:8.8.8.8",
            "::ffff:169.254.169.254",
            "::ffff:127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b::808:808",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:0:4136:e378:8000:63bf:3fff:fdd2",
            "2001:2::1",
            "2001:10::1",
            "2001:20::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::fb",
        ];
        for address in special {
            let address: IpAddr = address.parse().unwrap();
            let refused = checked(vec![address], &named(443, &[]));
            assert!(
                matches!(refused, Err(DialError::Forbidden { .. })),
                "{address}"
            );
            // One of them spoils the public ones (rebinding by a second answer).
            assert!(
                checked(vec!["1.1.1.1".parse().unwrap(), address], &named(443, &[])).is_err(),
                "{address}"
            );
            // Named it may be dialled, as the address that it is.
            let block = address.to_canonical().to_string();
            assert_eq!(
                checked(vec![address], &named(443, &[&block])).unwrap(),
                [address.to_canonical()]
            );
        }
        for public in [
            "1.1.1.1",
            "9.9.9.9",
            "100.63.255.255",
            "172.32.0.1",
            "192.1.0.1",
            "198.20.0.1",
            "2606:4700::1111",
            "2a00::1",
        ] {
            let address: IpAddr = public.parse().unwrap();
            assert_eq!(checked(vec![address], &named(443, &[])).unwrap(), [address]);
        }
        // A block names what is in it and nothing that only embeds it.
        for embedding in ["64:ff9b::a00:1", "2002:a00:1::", "::10.0.0.1"] {
            assert!(
                checked(
                    vec![embedding.parse().unwrap()],
                    &named(443, &["10.0.0.0/8"])
                )
                .is_err(),
                "{embedding}"
            );
        }
    }

    /// probe-56: resolved once, and what was checked is what is dialled.
    #[tokio::test]
    async fn a_name_is_resolved_once_and_the_checked_address_dialled() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (questions, answers) = (asked.clone(), ["127.0.0.1", "10.0.0.1"]);
        let rebinding = Resolver::new(move |name| {
            let mut asked = questions.lock().unwrap();
            let answer = answers[asked.len()].parse().unwrap();
            asked.push(name);
            async move { Ok(vec![answer]) }
        });
        let to = named(at.port(), &["127.0.0.1"]);
        let (_stream, dialled) = by_name(&rebinding, "a.test", &to).await.unwrap();
        assert_eq!(dialled, at);
        let second = by_name(&rebinding, "a.test", &to).await;
        assert!(matches!(second, Err(DialError::Forbidden { .. })));
        assert_eq!(*asked.lock().unwrap(), ["a.test", "a.test"]);
    }

    #[tokio::test]
    async fn the_next_address_is_tried_where_one_refuses() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let both = Resolver::new(|_| async {
            Ok(vec![
                "127.3.2.1".parse().unwrap(),
                "127.0.0.1".parse().unwrap(),
            ])
        });
        let to = named(at.port(), &["127.0.0.0/8"]);
        assert_eq!(by_name(&both, "a.test", &to).await.unwrap().1, at);
        drop(listener);
        assert!(matches!(
            by_name(&both, "a.test", &to).await,
            Err(DialError::Unreachable(_))
        ));
    }

    #[tokio::test]
    async fn the_system_knows_its_own_name() {
        let found = (Resolver::system().0)("localhost".to_owned())
            .await
            .unwrap();
        assert!(found.iter().all(IpAddr::is_loopback) && !found.is_empty());
    }
}
