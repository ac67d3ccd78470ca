//! What a connection passes before its first request: its place, the word of a proxy,
//! and TLS.
//!
//! Nothing here looks at a request. Who must not come in is answered by the same
//! pipeline as everybody, with a refusal in place of the request.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::timeout,
};
use tracing::debug;

use super::{
    activity::Activity,
    connection::{self, Asked, Version},
    opening::Opened,
    proxied,
    roster::{Roster, Seat},
};
use crate::{
    config::{Proxies, Told},
    http::{Peer, Refusal, Response, peer::Stream, tls::Tls},
};

/// The one way in.
pub struct Entrance {
    pub tls: Option<Arc<Tls>>,
    pub proxies: Option<Proxies>,
    pub roster: Roster,
    /// Connections of one address at once.
    pub share: usize,
}

impl Entrance {
    /// Serves one connection to its end.
    pub async fn serve<F>(
        &self,
        stream: Stream,
        peer: Peer,
        drain: watch::Receiver<bool>,
        answer: impl Fn(Asked, Peer) -> F,
    ) where
        F: Future<Output = Response> + Send + 'static,
    {
        let activity = Activity::new();
        let seat = self.roster.enter(&activity);
        tokio::select! {
            ended = self.admit(stream, peer, &seat, &activity, drain, answer) => {
                if let Err(error) = ended {
                    debug!(%error, "connection ended before its first request");
                }
            }
            // It has no request, and somebody else may have one.
            () = activity.shed_while_idle() => {}
        }
    }

    async fn admit<F>(
        &self,
        stream: Stream,
        peer: Peer,
        seat: &Seat<'_>,
        activity: &Activity,
        drain: watch::Receiver<bool>,
        answer: impl Fn(Asked, Peer) -> F,
    ) -> io::Result<()>
    where
        F: Future<Output = Response> + Send + 'static,
    {
        let mut stream = Opened::new(stream);
        let peer = self.named(&mut stream, peer).await?;
        let over = self
            .counted(peer)
            .is_some_and(|address| seat.belongs_to(address) > self.share);
        let answer = |asked: Asked| {
            let asked = if over {
                Err(Refusal::TooManyConnections)
            } else {
                asked
            };
            answer(asked, peer)
        };
        match &self.tls {
            None => connection::serve(stream, drain, activity.clone(), answer).await,
            Some(tls) => secured(tls, stream, activity, drain, answer).await?,
        }
        Ok(())
    }

    /// Who is at the other end, where a proxy that is trusted says it first of all.
    async fn named(&self, stream: &mut Opened<Stream>, peer: Peer) -> io::Result<Peer> {
        let says = self
            .proxies
            .as_ref()
            .is_some_and(|proxies| proxies.told == Told::ProxyProtocol && peer.is_one_of(proxies));
        if !says {
            return Ok(peer);
        }
        let client = timeout(PROXY_DEADLINE, proxied::preface(stream))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(client.map_or(peer, |client| peer.speaks_for(client)))
    }

    /// The address whose share this connection is of. This host and proxies are many in one.
    fn counted(&self, peer: Peer) -> Option<std::net::IpAddr> {
        match peer {
            Peer::Unix(_) => None,
            Peer::Tcp(address) if address.ip().to_canonical().is_loopback() => None,
            Peer::Tcp(address) => {
                let is_proxy = self
                    .proxies
                    .as_ref()
                    .is_some_and(|proxies| peer.is_one_of(proxies));
                (!is_proxy).then_some(address.ip())
            }
            Peer::Behind { client, .. } => Some(client.ip()),
        }
    }
}

async fn secured<F>(
    tls: &Tls,
    mut stream: Opened<impl AsyncRead + AsyncWrite + Send + Unpin + 'static>,
    activity: &Activity,
    drain: watch::Receiver<bool>,
    answer: impl Fn(Asked) -> F,
) -> io::Result<()>
where
    F: Future<Output = Response> + Send + 'static,
{
    let shaken = async {
        let began = stream.begins_with(&[HANDSHAKE]);
        let began = timeout(FIRST_BYTE, began)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        if began {
            tls.accept(stream).await.map(Ok)
        } else {
            Ok(Err(stream))
        }
    };
    let shaken = tokio::select! {
        shaken = shaken => shaken?,
        () = connection::told(drain.clone(), None) => return Ok(()),
    };
    match shaken {
        Ok((stream, version)) => {
            connection::serve_version(version, stream, drain, activity.clone(), answer).await;
        }
        // Nobody is sent away without a word, and nothing is done for whoever sent a
        // token in the clear.
        Err(stream) if !stream.first().is_empty() => {
            let answer = |asked: Asked| answer(Err(asked.err().unwrap_or(Refusal::Plaintext)));
            connection::serve_version(Version::One, stream, drain, activity.clone(), answer).await;
        }
        Err(_) => {}
    }
    Ok(())
}

/// The first byte of a TLS record that begins a handshake (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;
/// How long a client may take for it.
const FIRST_BYTE: Duration = Duration::from_secs(10);
/// How long a proxy may take to say whom it speaks for.
const PROXY_DEADLINE: Duration = Duration::from_secs(5);
