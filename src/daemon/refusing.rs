//! The answer of a gateway that serves nobody: the same refusal for each request.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{
    audit::{Audit, Decision, Event, RequestId},
    daemon::Accepted,
    http::{Entrance, Peer, Refusal, connection::Asked},
};

/// Refuses what is asked over one connection, for this reason unless it has a worse one of its own.
pub(super) async fn refuse(
    entrance: Arc<Entrance>,
    accepted: Accepted,
    draining: watch::Receiver<bool>,
    audit: Audit,
    reason: fn() -> Refusal,
) {
    let (stream, peer) = accepted;
    let answer = |asked: Asked, peer: Peer| {
        let refusal = asked.err().unwrap_or_else(reason);
        let mut record = Decision::denied(
            RequestId::random(),
            refusal.reason(),
            refusal.status().as_u16(),
        );
        record.requests = refusal.requests();
        record.peer = Some(peer.to_string());
        audit.record(&Event::Decision(record));
        // Before anybody is told.
        audit.hand_on();
        // Closed after one answer: the next request finds whoever serves then.
        std::future::ready(refusal.response(None, None))
    };
    entrance.serve(stream, peer, draining, answer).await;
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::{config::ServerName, http::peer::Listener};

    /// A refusal has reached journald when its client reads it, whatever becomes of this process then.
    #[tokio::test]
    async fn a_refusal_is_on_record_before_it_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journal = UnixDatagram::bind(&path).unwrap();
        journal.set_nonblocking(true).unwrap();
        let server = ServerName::parse("it").unwrap();
        let audit = Audit::journal_in_turns(&path, &server).unwrap();

        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let listener = Listener::from_fd(socket.into_std().unwrap().into()).unwrap();
        let client = TcpStream::connect(address);
        let (client, accepted) = tokio::join!(client, listener.accept());
        let (mut client, accepted) = (client.unwrap(), accepted.unwrap());
        let (_drain, draining) = watch::channel(false);
        let entrance = Arc::new(Entrance::unknown());
        let reason = || Refusal::Misconfigured;
        tokio::spawn(refuse(entrance, accepted, draining, audit.clone(), reason));
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        let mut record = [0; 4096];
        assert!(journal.recv(&mut record).unwrap() > 0);
    }
}
