//! A bell that does not ring for nothing.
//!
//! Who takes a part of a request's body wakes its connection, for now there is room for the next
//! part; hyper does that after the last one, too. Nearly each request has a body of one part, and
//! its connection would be looked at once more for nothing: when others have had their turn, and
//! nothing of it is in the processor's caches any more.

use std::{
    cell::Cell,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Wake, Waker},
};

thread_local! {
    static HUSH: Cell<Hush> = const { Cell::new(Hush::Rings) };
}

/// What becomes of bells on this thread.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Hush {
    Rings,
    Silent,
    /// It would have rung.
    Missed,
}

/// Does what may ring a [`Hushable`]'s bell for nothing: none rings meanwhile. Says whether one would have, and
/// whoever is told so rings it if it was not for nothing.
pub(super) fn hushed<T>(work: impl FnOnce() -> T) -> (T, bool) {
    // Also where that panics.
    struct Again;
    impl Drop for Again {
        fn drop(&mut self) {
            HUSH.set(Hush::Rings);
        }
    }
    HUSH.set(Hush::Silent);
    let _again = Again;
    let done = work();
    (done, HUSH.get() == Hush::Missed)
}

/// Work whose bell can be hushed.
pub(super) struct Hushable<F> {
    work: F,
    bell: Arc<Bell>,
    rings: Waker,
}

impl<F> Hushable<F> {
    pub(super) fn new(work: F) -> Self {
        let bell = Arc::new(Bell(Mutex::new(None)));
        let rings = Waker::from(bell.clone());
        Self { work, bell, rings }
    }
}

impl<F: Future + Unpin> Future for Hushable<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        this.bell.rings_for(context.waker());
        Pin::new(&mut this.work).poll(&mut Context::from_waker(&this.rings))
    }
}

/// Wakes the task that looked last, unless it is hushed.
struct Bell(Mutex<Option<Waker>>);

impl Bell {
    fn rings_for(&self, task: &Waker) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *known {
            Some(known) => known.clone_from(task),
            None => *known = Some(task.clone()),
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if HUSH.get() != Hush::Rings {
            HUSH.set(Hush::Missed);
            return;
        }
        let task = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = &*task {
            task.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        pin::pin,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    #[derive(Default)]
    struct Counts(AtomicUsize);

    impl Wake for Counts {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_bell_is_silent_only_while_it_is_hushed_and_says_that_it_would_have_rung() {
        let counts = Arc::new(Counts::default());
        let rang = || counts.0.load(Ordering::Relaxed);
        let waker = Waker::from(counts.clone());
        let mut hushable = pin!(Hushable::new(Box::pin(pending::<()>())));
        assert!(
            hushable
                .as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
        );
        let bell = hushable.rings.clone();
        bell.wake_by_ref();
        assert_eq!(rang(), 1);
        assert_eq!(hushed(|| bell.wake_by_ref()), ((), true));
        assert_eq!(hushed(|| 7), (7, false));
        let panics = || hushed(|| panic!("on purpose"));
        assert!(std::panic::catch_unwind(panics).is_err());
        assert_eq!(rang(), 1);
        bell.wake();
        assert_eq!(rang(), 2);
    }
}
