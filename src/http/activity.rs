//! What a connection is doing: requests in flight, answers that wait for their reader.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::rt::Executor;
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use crate::http::Body;

/// What one connection is doing.
#[derive(Clone)]
pub(super) struct Activity(Arc<Shared>);

struct Shared {
    /// Requests that have begun, ever.
    begun: AtomicU64,
    /// Requests that have come in frames, ever: those among them that the library refuses never begin.
    came: AtomicU64,
    /// Requests whose answer has not left.
    in_flight: AtomicUsize,
    /// Answers that wait for their reader, by number, and since when.
    waiting: Mutex<BTreeMap<u64, Instant>>,
    spoken: Notify,
    /// Something began, or the last has ended.
    changed: Notify,
    closed: Notify,
    /// When the last answer left, or it began.
    idle_since: Mutex<Instant>,
    is_shed: AtomicBool,
    shed: Notify,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self(Arc::new(Shared {
            begun: AtomicU64::new(0),
            came: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
            waiting: Mutex::default(),
            spoken: Notify::new(),
            changed: Notify::new(),
            closed: Notify::new(),
            idle_since: Mutex::new(Instant::now()),
            is_shed: AtomicBool::new(false),
            shed: Notify::new(),
        }))
    }

    /// A request has come: its number from zero, and what ends with its answer.
    pub(super) fn begin(&self) -> (u64, Busy) {
        let shared = &self.0;
        let number = shared.begun.fetch_add(1, Ordering::Relaxed);
        if shared.in_flight.fetch_add(1, Ordering::Relaxed) == 0 {
            shared.changed.notify_waiters();
        }
        shared.spoken.notify_one();
        let busy = Busy {
            number,
            shared: shared.clone(),
        };
        (number, busy)
    }

    /// Waits for the next request, or one that has come.
    pub(super) async fn spoken(&self) {
        self.0.spoken.notified().await;
    }

    /// This connection is to be closed when what runs is answered.
    pub(super) fn close(&self) {
        self.0.closed.notify_one();
    }

    pub(super) async fn closed(&self) {
        self.0.closed.notified().await;
    }

    /// Waits until nothing was in flight for that long.
    pub(super) async fn idle(&self, patience: Duration) {
        loop {
            let changed = self.0.changed.notified();
            if self.0.in_flight.load(Ordering::Relaxed) > 0 {
                changed.await;
            } else if timeout(patience, changed).await.is_err() {
                return;
            }
        }
    }

    /// Waits until nothing is in flight.
    pub(super) async fn quiet(&self) {
        loop {
            // Before looking: what ends in between is not missed.
            let changed = self.0.changed.notified();
            if self.0.in_flight.load(Ordering::Relaxed) == 0 {
                return;
            }
            changed.await;
        }
    }

    /// How many requests have begun, ever.
    pub(super) fn begun(&self) -> u64 {
        self.0.begun.load(Ordering::Relaxed)
    }

    /// So many requests have come in frames.
    pub(super) fn came(&self, requests: u64) {
        self.0.came.store(requests, Ordering::Relaxed);
    }

    /// How many of them have not begun; asked at the end, for until then they may.
    pub(super) fn unseen(&self) -> u64 {
        let came = self.0.came.load(Ordering::Relaxed);
        came.saturating_sub(self.begun())
    }

    /// Since when it has done nothing; `None` if it does something.
    pub(super) fn quiet_since(&self) -> Option<Instant> {
        let is_quiet = self.0.in_flight.load(Ordering::Relaxed) == 0;
        is_quiet.then(|| self.idle_since())
    }

    /// Since when it has done nothing, if nobody would miss it: it asks nothing, and what it was told has left.
    pub(super) fn may_be_shed(&self, now: Instant) -> Option<Instant> {
        let shared = &self.0;
        if shared.in_flight.load(Ordering::Relaxed) > 0 || self.is_shed() {
            return None;
        }
        let since = self.idle_since();
        let has_left = self.begun() == 0 || now.duration_since(since) >= LEAVING;
        has_left.then_some(since)
    }

    /// Since when it has done nothing, if it does nothing.
    pub(super) fn idle_since(&self) -> Instant {
        *self
            .0
            .idle_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells it to make room.
    pub(super) fn shed(&self) {
        self.0.is_shed.store(true, Ordering::Relaxed);
        self.0.shed.notify_one();
    }

    pub(super) fn is_shed(&self) -> bool {
        self.0.is_shed.load(Ordering::Relaxed)
    }

    /// Waits until it is to make room, and can.
    pub(super) async fn shed_while_idle(&self) {
        loop {
            self.0.shed.notified().await;
            if self.0.in_flight.load(Ordering::Relaxed) == 0 {
                return;
            }
            // A request came first.
            self.0.is_shed.store(false, Ordering::Relaxed);
        }
    }

    /// Waits until an answer was not taken for that long.
    pub(super) async fn stalled(&self, patience: Duration) {
        loop {
            let oldest = self.0.waiting().values().min().copied();
            match oldest {
                Some(since) if since.elapsed() >= patience => return,
                // A deadline that moves is looked at when the old one has come.
                Some(since) => sleep_until(since + patience).await,
                None => sleep_until(Instant::now() + patience).await,
            }
        }
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, BTreeMap<u64, Instant>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request whose answer has not left.
pub(super) struct Busy {
    number: u64,
    shared: Arc<Shared>,
}

impl Busy {
    /// The answer, with which it ends.
    pub(super) fn until_sent(self, body: Body) -> Sent {
        Sent {
            body,
            busy: self,
            watched: false,
        }
    }

    /// The same, where a single answer may be left waiting and its connection not.
    pub(super) fn until_taken(self, body: Body) -> Sent {
        self.waits();
        Sent {
            body,
            busy: self,
            watched: true,
        }
    }

    fn waits(&self) {
        self.shared.waiting().insert(self.number, Instant::now());
    }

    fn waits_no_more(&self) {
        self.shared.waiting().remove(&self.number);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let now = Instant::now();
        *self
            .shared
            .idle_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = now;
        if self.shared.in_flight.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.shared.changed.notify_waiters();
        }
    }
}

/// The body of an answer on its way.
pub(super) struct Sent {
    body: Body,
    busy: Busy,
    /// Whether it matters when it is asked for.
    watched: bool,
}

impl Drop for Sent {
    fn drop(&mut self) {
        if self.watched {
            self.busy.waits_no_more();
        }
    }
}

impl HttpBody for Sent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        let frame = Pin::new(&mut this.body).poll_frame(context);
        // The next frame is asked for when there is room for it.
        match &frame {
            _ if !this.watched => {}
            Poll::Ready(_) => this.busy.waits(),
            Poll::Pending => this.busy.waits_no_more(),
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The tasks of one HTTP/2 connection's requests: they end with it.
#[derive(Clone, Default)]
pub(super) struct Streams(Arc<Mutex<JoinSet<()>>>);

impl Streams {
    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends them all when it is dropped: a task holds its own set, which therefore cannot.
    pub(super) fn until_dropped(&self) -> impl Drop + use<> {
        Ends(self.clone())
    }

    /// Waits a while until all have seen that their connection is gone.
    pub(super) async fn all_ended(&self, patience: Duration) {
        let mut tasks = std::mem::take(&mut *self.tasks());
        let _ = timeout(patience, async {
            while tasks.join_next().await.is_some() {}
        })
        .await;
    }
}

struct Ends(Streams);

impl Drop for Ends {
    fn drop(&mut self) {
        drop(std::mem::take(&mut *self.0.tasks()));
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, future: F) {
        let mut tasks = self.tasks();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(future);
    }
}

/// How long an answer may still be on its way when nobody holds it any more.
const LEAVING: Duration = Duration::from_secs(1);
