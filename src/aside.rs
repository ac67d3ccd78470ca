//! Work that grows with a message, away from the one loop that serves everybody.
//!
//! What is small is done at once: another thread costs more than it. Used by `child`, `session`, `pipeline`
//! and `http` to read messages and to cut lists down, nothing of which depends on what happens meanwhile.

use tokio::{sync::Semaphore, task::spawn_blocking};

/// Does the work for a message of `size` bytes; where that is large, others are served meanwhile.
pub async fn aside<T: Send + 'static>(size: usize, work: impl FnOnce() -> T + Send + 'static) -> T {
    if is_large(size) {
        // Boxed: whoever asks has room for it only when it is needed.
        Box::pin(in_turn(&MESSAGES, work)).await
    } else {
        work()
    }
}

/// Whether a message of `size` bytes is nothing for the one loop.
pub fn is_large(size: usize) -> bool {
    size > LARGE
}

/// Cuts a list down, which is much work where it is long, and never waits for messages to be read.
pub async fn cut_down<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    in_turn(&LISTS, work).await
}

async fn in_turn<T: Send + 'static>(
    places: &'static Semaphore,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let place = places.acquire().await.expect("nobody closes it");
    let work = move || {
        // Until it is done, also where nobody waits any more.
        let _place = place;
        work()
    };
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

/// How many are worked on at once: many threads would take the processor from the loop, and memory each.
static MESSAGES: Semaphore = Semaphore::const_new(AT_ONCE);
static LISTS: Semaphore = Semaphore::const_new(AT_ONCE);
const AT_ONCE: usize = 2;
/// Bytes of a message that are read where everybody waits: one or two milliseconds of work where all of its values are
/// small, a fifth of one where they are as usual.
const LARGE: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
            mpsc,
        },
        time::{Duration, Instant},
    };

    use tokio::task::JoinSet;

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

    /// fault-46: many large messages at once are no more threads than a few.
    #[tokio::test]
    async fn few_are_read_at_once_however_many_come() {
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut all = JoinSet::new();
        for _ in 0..64 {
            let (now, most) = (now.clone(), most.clone());
            all.spawn(aside(LARGE + 1, move || {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let began = Instant::now();
                while began.elapsed() < Duration::from_millis(1) {}
                now.fetch_sub(1, Ordering::SeqCst);
            }));
        }
        all.join_all().await;
        let most = most.load(Ordering::SeqCst);
        assert!(most <= AT_ONCE, "{most}");
    }

    /// Whoever has large messages read all the time keeps nobody's list back.
    #[tokio::test]
    async fn a_list_waits_for_no_message() {
        let patience = Duration::from_secs(60);
        let mut senders = Vec::new();
        let mut all = JoinSet::new();
        for _ in 0..AT_ONCE * 2 {
            let (go_on, wait) = mpsc::channel();
            senders.push(go_on);
            all.spawn(aside(LARGE + 1, move || {
                wait.recv_timeout(patience).is_ok()
            }));
        }
        tokio::task::yield_now().await;
        assert_eq!(cut_down(|| 7).await, 7);
        for go_on in senders {
            go_on.send(()).unwrap();
        }
        assert!(all.join_all().await.into_iter().all(|told| told));
    }

    #[tokio::test]
    #[should_panic(expected = "as it was said")]
    async fn a_panic_there_is_one_here() {
        aside(LARGE + 1, || panic!("as it was said")).await;
    }
}
