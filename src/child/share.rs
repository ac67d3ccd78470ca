//! The memory of what is on its way between the gateway and its servers.
//!
//! What a server has begun to say and does not end is memory of the gateway's, and so is what waits for a
//! server: in each of many conversations. From some size on all of it has a share of what whoever owns the
//! conversation may have. Used by `stdio` and `http`; lent by `session`.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{sync::Notify, time::timeout};

/// Who lends memory.
pub trait Lends: Send + Sync {
    /// So many bytes; `false` if there is no room for them.
    fn lend(&self, bytes: usize) -> bool;
    fn take_back(&self, bytes: usize);
    /// Told when there may be more room: its own, and now and then others'.
    fn more(&self) -> &Notify;
}

/// What something has of it, until it is dropped.
pub struct Share {
    of: Arc<dyn Lends>,
    bytes: usize,
}

impl Share {
    /// Nothing yet.
    pub fn of(lends: Arc<dyn Lends>) -> Self {
        Self {
            of: lends,
            bytes: 0,
        }
    }

    /// Exactly so much, however little.
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        let may = bytes <= self.bytes || self.of.lend(bytes - self.bytes);
        if may {
            self.bytes = self.bytes.max(bytes);
        }
        may
    }

    /// Enough for so many bytes that have come; what is small has none.
    pub(super) fn grow_to(&mut self, bytes: usize) -> bool {
        // In few steps: it comes in pieces.
        bytes <= self.bytes.max(SMALL) || self.take(bytes.next_multiple_of(SMALL))
    }

    /// The same; waits a while until there is room.
    pub(super) async fn wait_for(&mut self, bytes: usize) -> bool {
        if self.grow_to(bytes) {
            return true;
        }
        let of = self.of.clone();
        let grown = async {
            loop {
                let more = of.more().notified();
                tokio::pin!(more);
                // From here on: what is given back while this is asked is not missed.
                more.as_mut().enable();
                if self.grow_to(bytes) {
                    return;
                }
                // What others read may be room for this one, too, and is not told to all at once.
                let _ = timeout(LOOKS, more).await;
            }
        };
        // Boxed: whoever asks has room for it only when it is needed.
        Box::pin(timeout(PATIENCE, grown)).await.is_ok()
    }

    /// As much once more, if there is room for that: what has it is there already, and goes on in any case.
    pub(super) fn double(&mut self) {
        let _ = self.take(2 * self.bytes);
    }

    /// Gives back what so many bytes do not need.
    pub(super) fn shrink_to(&mut self, bytes: usize) {
        let needed = if bytes <= SMALL { 0 } else { bytes };
        if needed < self.bytes {
            self.of.take_back(self.bytes - needed);
            self.bytes = needed;
        }
    }

    /// As much of it as so many bytes need, for what goes its own way.
    pub(super) fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self {
            of: self.of.clone(),
            bytes,
        }
    }

    /// All of it, if there is any.
    pub(super) fn take_all(&mut self) -> Option<Box<Self>> {
        (self.bytes > 0).then(|| Box::new(self.split(self.bytes)))
    }

    /// The text, which has this for as long as anybody holds a part of it.
    pub(super) fn with(self, text: Bytes) -> Bytes {
        Bytes::from_owner(Counted { text, _share: self })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.of.take_back(self.bytes);
        }
    }
}

struct Counted {
    text: Bytes,
    _share: Share,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

/// Bytes that are not counted where each message may have them, and those of a step beyond.
pub(super) const SMALL: usize = 64 << 10;
/// How long room is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked at by those who wait.
const LOOKS: Duration = Duration::from_millis(250);

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Mutex;

    use super::*;

    /// So much memory.
    pub(in crate::child) struct Purse {
        left: Mutex<usize>,
        more: Notify,
    }

    impl Purse {
        pub(in crate::child) fn of(bytes: usize) -> Arc<Self> {
            Arc::new(Self {
                left: Mutex::new(bytes),
                more: Notify::new(),
            })
        }

        pub(in crate::child) fn left(&self) -> usize {
            *self.left.lock().unwrap()
        }
    }

    impl Lends for Purse {
        fn lend(&self, bytes: usize) -> bool {
            let mut left = self.left.lock().unwrap();
            let rest = left.checked_sub(bytes);
            *left = rest.unwrap_or(*left);
            rest.is_some()
        }

        fn take_back(&self, bytes: usize) {
            *self.left.lock().unwrap() += bytes;
            self.more.notify_waiters();
        }

        fn more(&self) -> &Notify {
            &self.more
        }
    }

    #[test]
    fn what_is_taken_comes_back_whoever_has_it_last() {
        let purse = Purse::of(5 * SMALL);
        let mut share = Share::of(purse.clone());
        assert!(share.grow_to(SMALL) && share.take_all().is_none());
        assert_eq!(purse.left(), 5 * SMALL);
        assert!(share.grow_to(SMALL + 1) && share.grow_to(2 * SMALL));
        assert_eq!(purse.left(), 3 * SMALL);
        assert!(!share.grow_to(6 * SMALL) && share.grow_to(4 * SMALL));
        let text = share.split(SMALL).with(Bytes::from_static(b"text"));
        share.shrink_to(SMALL + 1);
        assert_eq!(purse.left(), 3 * SMALL - 1);
        let rest = share.take_all();
        drop(share);
        assert_eq!(purse.left(), 3 * SMALL - 1);
        drop((rest, text.slice(..1)));
        assert_eq!(purse.left(), 4 * SMALL);
        drop(text);
        assert_eq!(purse.left(), 5 * SMALL);
    }

    /// Whoever waits for room has it when there is some, and is told so when there is none for long.
    #[tokio::test(start_paused = true)]
    async fn room_is_waited_for_and_not_for_ever() {
        let purse = Purse::of(4 * SMALL);
        let mut other = Share::of(purse.clone());
        assert!(other.grow_to(3 * SMALL));
        let mut share = Share::of(purse.clone());
        let (has_room, ()) = tokio::join!(share.wait_for(2 * SMALL), async {
            tokio::task::yield_now().await;
            other.shrink_to(2 * SMALL);
        });
        assert!(has_room);
        assert!(!share.wait_for(3 * SMALL).await);
        assert!(share.wait_for(2 * SMALL).await);
        drop((share, other));
        assert_eq!(purse.left(), 4 * SMALL);
    }
}
