//! Work that grows with a message, away from the one loop that serves everybody.
//!
//! What is small is done at once: another thread costs more than it. Used by `pump`, `shared`
//! and `pipeline` to read messages, nothing of which depends on what happens meanwhile.

use tokio::task::spawn_blocking;

/// Does the work for a message of `size` bytes; where that is large, others are served meanwhile.
pub async fn aside<T: Send + 'static>(size: usize, work: impl FnOnce() -> T + Send + 'static) -> T {
    if size <= LARGE {
        return work();
    }
    match spawn_blocking(work)
        .await
        .map_err(|error| error.try_into_panic())
    {
        Ok(done) => done,
        // As if it had happened here.
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // The runtime ends, and everybody who waits with it.
        Err(Err(_)) => std::future::pending().await,
    }
}

/// Bytes of a message that are read where everybody waits: a few milliseconds of work.
const LARGE: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use super::*;

    /// What is large is waited for by its own caller alone: here the loop itself says when it may go on.
    #[tokio::test]
    async fn the_loop_goes_on_beside_what_is_large_and_not_beside_what_is_small() {
        let patience = Duration::from_secs(60);
        let (go_on, wait) = mpsc::channel();
        let large = aside(LARGE + 1, move || wait.recv_timeout(patience).is_ok());
        let (told, ()) = tokio::join!(large, async { go_on.send(()).unwrap() });
        assert!(told);
        let here = std::thread::current().id();
        assert_eq!(aside(LARGE, || std::thread::current().id()).await, here);
    }

    #[tokio::test]
    #[should_panic(expected = "as it was said")]
    async fn a_panic_there_is_one_here() {
        aside(LARGE + 1, || panic!("as it was said")).await;
    }
}
