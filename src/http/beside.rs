//! Work, and what may end it: looked at only when there is something new.
//!
//! A connection is woken twice a request, and each time by its stream. What could end it (that
//! the server stops, that its place is wanted, that it rests) would be asked as well, for nothing.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

/// What came first.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum First<W, S> {
    Work(W),
    Signal(S),
}

/// Does the work until it is done or there is the signal. Work that is done goes first.
/// Both are pinned by whoever asks: what is moved takes its room twice.
pub(super) async fn beside<W, S>(
    mut work: Pin<&mut impl Future<Output = W>>,
    mut signal: Pin<&mut impl Future<Output = S>>,
) -> First<W, S> {
    let bell = Arc::new(Bell {
        rung: AtomicBool::new(true),
        task: Mutex::new(None),
    });
    let rings = Waker::from(bell.clone());
    poll_fn(move |context| {
        if let Poll::Ready(done) = work.as_mut().poll(context) {
            return Poll::Ready(First::Work(done));
        }
        if bell.answered_by(context.waker()) {
            let mut context = Context::from_waker(&rings);
            return signal.as_mut().poll(&mut context).map(First::Signal);
        }
        Poll::Pending
    })
    .await
}

/// What the signal rings for the task that waits for it.
struct Bell {
    rung: AtomicBool,
    task: Mutex<Option<Waker>>,
}

impl Bell {
    /// Whether it was rung since it was asked last; `task` is woken when it is next.
    fn answered_by(&self, task: &Waker) -> bool {
        let mut known = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.as_ref().is_some_and(|known| known.will_wake(task)) {
            *known = Some(task.clone());
        }
        drop(known);
        // After the task is known: what rings now is either seen here or wakes it.
        self.rung.load(Ordering::Acquire) && self.rung.swap(false, Ordering::AcqRel)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = &*task {
            task.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::pending, pin::pin};

    use tokio::sync::{Notify, mpsc};

    use super::*;

    /// Counts how often it is polled.
    async fn counted<T>(count: &Cell<usize>, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        poll_fn(|context| {
            count.set(count.get() + 1);
            future.as_mut().poll(context)
        })
        .await
    }

    #[tokio::test]
    async fn the_signal_is_asked_only_when_it_has_something_to_say() {
        let (count, signal) = (Cell::new(0), Notify::new());
        let (sender, mut receiver) = mpsc::channel(1);
        let work = async {
            while receiver.recv().await.is_some() {}
            pending::<()>().await;
        };
        let told = counted(&count, async {
            signal.notified().await;
            signal.notified().await;
        });
        let outside = async {
            for _ in 0..100 {
                sender.send(()).await.unwrap();
                tokio::task::yield_now().await;
            }
            assert_eq!(count.get(), 1);
            signal.notify_one();
            tokio::task::yield_now().await;
            assert_eq!(count.get(), 2);
            signal.notify_one();
            pending().await
        };
        let (work, told) = (pin!(work), pin!(told));
        let ended = tokio::select! {
            biased;
            ended = beside(work, told) => ended,
            () = outside => unreachable!(),
        };
        assert_eq!((ended, count.get()), (First::Signal(()), 3));
    }

    #[tokio::test]
    async fn work_that_is_done_goes_before_a_signal() {
        let first = beside(pin!(async { 1 }), pin!(async { 2 })).await;
        assert_eq!(first, First::Work(1));
        let first = beside(pin!(pending::<()>()), pin!(async { 2 })).await;
        assert_eq!(first, First::Signal(2));
    }
}
