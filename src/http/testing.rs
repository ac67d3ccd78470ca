//! What the tests of this room share: a connection over real sockets, and time that passes.

use std::time::Duration;

use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time,
};

/// Both ends of a connection: the client's, and ours.
pub(super) async fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let (client, ours) = tokio::join!(client, listener.accept());
    (client.unwrap(), ours.unwrap().0)
}

/// That what serves a connection ends when this much time has passed, and not before.
pub(super) async fn ends_after(patience: Duration, served: JoinHandle<()>) {
    assert!(!served.is_finished(), "it ends before its time");
    // Between calls the clock runs, so that no deadline is jumped over while bytes are on their way.
    time::pause();
    time::advance(patience + Duration::from_secs(1)).await;
    time::resume();
    ends(served).await;
}

/// That it ends by itself.
pub(super) async fn ends(served: JoinHandle<()>) {
    time::timeout(Duration::from_secs(5), served)
        .await
        .expect("the connection ends")
        .unwrap();
}
