//! Bytes both ways, counted, until both sides have ended.

use std::{
    io,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::{
    connection::Ledger,
    hello::{Look, Rule, Why},
    outlet::Outlet,
};

/// Why a tunnel ended before its ends did.
#[derive(Debug)]
pub(super) enum Broken {
    /// The child began with what it may not say.
    Hello(Why),
    /// It has moved too many bytes.
    Limit,
    Idle,
    Io(io::Error),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Moves bytes between the child and its destination. Nothing of the child's
/// leaves before its first bytes have been looked at.
pub(super) async fn run(
    outlet: &Outlet,
    ledger: &Ledger,
    mut child: TcpStream,
    mut remote: TcpStream,
    rule: Rule,
) -> Result<(), Broken> {
    let _ = child.set_nodelay(true);
    let (mut from_child, mut to_child) = child.split();
    let (mut from_remote, mut to_remote) = remote.split();
    let meter = Meter {
        outlet,
        moved: AtomicU64::new(0),
        half: AtomicBool::new(false),
    };
    let up = async {
        begin(&mut from_child, &mut to_remote, &rule, &meter, &ledger.sent).await?;
        carry(&mut from_child, &mut to_remote, &meter, &ledger.sent).await
    };
    let down = carry(&mut from_remote, &mut to_child, &meter, &ledger.received);
    tokio::try_join!(up, down).map(|_| ())
}

struct Meter<'a> {
    outlet: &'a Outlet,
    /// Bytes of this tunnel: whether the other direction is alive.
    moved: AtomicU64,
    /// One of the two has ended.
    half: AtomicBool,
}

impl Meter<'_> {
    fn count(&self, bytes: usize, own: &AtomicU64) -> Result<(), Broken> {
        let bytes = bytes as u64;
        if !self.outlet.count(bytes) {
            return Err(Broken::Limit);
        }
        self.moved.fetch_add(bytes, Ordering::Relaxed);
        own.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Waits for `work`, for as long as something moves in either direction.
    async fn watch<T>(&self, work: impl Future<Output = io::Result<T>>) -> Result<T, Broken> {
        tokio::pin!(work);
        let (mut since, mut before) = (Instant::now(), self.moved.load(Ordering::Relaxed));
        loop {
            if let Ok(done) = timeout(LOOK, &mut work).await {
                return done.map_err(Broken::Io);
            }
            let moved = self.moved.load(Ordering::Relaxed);
            if moved != before {
                (since, before) = (Instant::now(), moved);
            }
            // Who has heard the end and does not end itself has forgotten the connection.
            let half = self.half.load(Ordering::Relaxed);
            if since.elapsed() >= if half { HALF_IDLE } else { IDLE } {
                return Err(Broken::Idle);
            }
        }
    }
}

/// Reads the child's first bytes until it is known what they are, then sends them on.
async fn begin(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    rule: &Rule,
    meter: &Meter<'_>,
    own: &AtomicU64,
) -> Result<(), Broken> {
    if !rule.is_needed() {
        return Ok(());
    }
    let mut first = Vec::new();
    loop {
        let hurry = rule.tls || !first.is_empty();
        let read = from.read_buf(&mut first);
        // Where others speak first, as databases do, there is no hurry; but what
        // has begun as TLS, or has to, goes on.
        let read = if hurry {
            timeout(HELLO_DEADLINE, read)
                .await
                .map_err(|_| Broken::Hello(Why::Late))??
        } else {
            meter.watch(read).await?
        };
        if read == 0 {
            // It ended in the middle: nothing of it has left, and nothing will.
            return match first.is_empty() {
                true => Ok(()),
                false => Err(Broken::Hello(Why::Unreadable)),
            };
        }
        match rule.look(&first) {
            Look::More => {}
            Look::Fine => break,
            Look::Wrong(why) => return Err(Broken::Hello(why)),
        }
    }
    meter.count(first.len(), own)?;
    meter.watch(to.write_all(&first)).await
}

async fn carry(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    meter: &Meter<'_>,
    own: &AtomicU64,
) -> Result<(), Broken> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = meter.watch(from.read(&mut buffer)).await?;
        if read == 0 {
            // This direction has ended; the other may go on.
            let _ = to.shutdown().await;
            meter.half.store(true, Ordering::Relaxed);
            return Ok(());
        }
        meter.count(read, own)?;
        meter.watch(to.write_all(&buffer[..read])).await?;
    }
}

/// How long nothing may move: database pools keep connections for later.
const IDLE: Duration = Duration::from_secs(60 * 60);
/// The same, where one of the two has ended.
const HALF_IDLE: Duration = Duration::from_secs(2 * 60);
/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(30);
/// How long a child may take to begin TLS, and then to go on with it.
const HELLO_DEADLINE: Duration = Duration::from_secs(30);
/// Bytes on their way in one direction.
const BUFFER: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use tokio::io::{duplex, empty, sink};

    use super::{super::hello::Expected, *};

    fn meter(outlet: &Outlet) -> Meter<'_> {
        Meter {
            outlet,
            moved: AtomicU64::new(0),
            half: AtomicBool::new(false),
        }
    }

    /// probe-60: a tunnel over which nothing moves ends; sooner where one side has ended.
    #[tokio::test(start_paused = true)]
    async fn a_tunnel_that_is_forgotten_ends() {
        let outlet = Outlet::of(u64::MAX);
        let own = AtomicU64::new(0);
        for (half, least, most) in [
            (false, IDLE, IDLE + 2 * LOOK),
            (true, HALF_IDLE, HALF_IDLE + 2 * LOOK),
        ] {
            let (mut near, _far) = duplex(64);
            let meter = meter(&outlet);
            let since = Instant::now();
            if half {
                carry(&mut empty(), &mut sink(), &meter, &own)
                    .await
                    .unwrap();
            }
            let ended = carry(&mut near, &mut sink(), &meter, &own).await;
            assert!(matches!(ended, Err(Broken::Idle)), "{ended:?}");
            let took = since.elapsed();
            assert!(least <= took && took <= most, "{took:?}");
        }
        // What goes on slowly, goes on.
        let (mut near, mut far) = duplex(64);
        let slowly = async {
            for _ in 0..5 {
                tokio::time::sleep(IDLE - LOOK).await;
                far.write_all(b"x").await.unwrap();
            }
            drop(far);
        };
        let (meter, mut nowhere) = (meter(&outlet), sink());
        let (ended, ()) = tokio::join!(carry(&mut near, &mut nowhere, &meter, &own), slowly);
        assert!(ended.is_ok(), "{ended:?}");
    }

    /// probe-60: the byte that is one too many moves nowhere.
    #[tokio::test]
    async fn a_tunnel_ends_at_its_bytes() {
        let outlet = Outlet::of(100);
        let (meter, own) = (meter(&outlet), AtomicU64::new(0));
        let mut sent = Vec::new();
        let fine = carry(&mut &[0; 100][..], &mut sent, &meter, &own).await;
        assert!(fine.is_ok() && sent.len() == 100, "{fine:?}");
        let ended = carry(&mut &[0; 1][..], &mut sent, &meter, &own).await;
        assert!(matches!(ended, Err(Broken::Limit)), "{ended:?}");
        assert_eq!((sent.len(), own.load(Ordering::Relaxed)), (100, 100));
    }

    /// probe-57, probe-60: who begins TLS and does not go on, or says nothing where TLS is spoken, is not waited for.
    #[tokio::test(start_paused = true)]
    async fn a_hello_that_does_not_come_is_not_waited_for() {
        let outlet = Outlet::of(u64::MAX);
        let rule = Rule {
            name: Expected::Exactly("a.test".to_owned()),
            tls: true,
        };
        for said in [&b""[..], &[22, 3, 1]] {
            let (mut near, mut far) = duplex(64);
            far.write_all(said).await.unwrap();
            let (meter, own, mut sent) = (meter(&outlet), AtomicU64::new(0), Vec::new());
            let since = Instant::now();
            let ended = begin(&mut near, &mut sent, &rule, &meter, &own).await;
            assert!(
                matches!(ended, Err(Broken::Hello(Why::Late))),
                "{said:?}: {ended:?}"
            );
            assert_eq!(since.elapsed(), HELLO_DEADLINE);
            assert_eq!(sent, b"");
        }
    }
}
