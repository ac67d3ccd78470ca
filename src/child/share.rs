//! The memory of what is on its way between the gateway and its servers.
//!
//! What waits for a server is memory of the gateway's, in each of many conversations. From some size on it has
//! a share of what whoever owns the conversation may have. Used by `http`; lent by `session`.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Notify;

/// Who lends memory.
pub trait Lends: Send + Sync {
    /// So many bytes; `false` if there is no room for them.
    fn lend(&self, bytes: usize) -> bool;
    fn take_back(&self, bytes: usize);
    /// Told each time that there may be more room.
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

/// Bytes that are not counted where each message may have them.
pub(super) const SMALL: usize = 64 << 10;
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
}
