//! The memory that the bodies of requests share while they are read and judged.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use foldhash::HashMap;

use crate::{
    auth::{Identity, PrincipalKey},
    http::Refusal,
    session::Session,
};

/// The memory for request bodies: one budget for all, so that the product of connections
/// and the size of a body is not what a gateway may take (fault-46); and half of what the others
/// leave for each user, so that nobody's bodies keep out everybody's.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Shares>);

#[derive(Debug)]
struct Shares {
    all: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    each: HashMap<PrincipalKey, usize>,
}

/// What one body has of it, until it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    of: Budget,
    user: PrincipalKey,
    bytes: usize,
}

impl Budget {
    /// For bodies of at most `max` bytes each.
    pub fn new(max: usize) -> Self {
        // Beside all that one user can have one of another's fits in any case, or the server would be useless.
        let all = ALL_BODIES.max(max.saturating_mul(4));
        Self(Arc::new(Shares {
            all,
            taken: Mutex::default(),
        }))
    }

    /// Nothing of it yet.
    pub(super) fn share(&self, identity: &Identity) -> Share {
        Share {
            of: self.clone(),
            user: identity.principal_key(),
            bytes: 0,
        }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // No code path leaves it half changed.
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    pub(super) fn grow_to(&mut self, bytes: usize) -> Result<(), Refusal> {
        let more = bytes.saturating_sub(self.bytes);
        let mut taken = self.of.taken();
        let own = taken.each.get(&self.user).copied().unwrap_or_default();
        let left_by_others = self.of.0.all - (taken.all - own);
        if own + more > left_by_others / 2 {
            return Err(Refusal::Overloaded);
        }
        taken.all += more;
        taken.each.insert(self.user, own + more);
        self.bytes += more;
        Ok(())
    }

    /// What a body that has come has.
    pub(super) fn lent(self) -> Lent {
        Lent(Some(Arc::new(Mutex::new(Some(self)))))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.of.taken();
        taken.all -= self.bytes;
        if let Some(own) = taken.each.get_mut(&self.user) {
            *own -= self.bytes;
            if *own == 0 {
                taken.each.remove(&self.user);
            }
        }
    }
}

/// A large body, and its share of the budget for as long as anybody holds a part of it.
struct Held {
    text: Bytes,
    _share: Arc<Mutex<Option<Share>>>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

/// What a body has of the budget while it is read and judged.
#[derive(Debug)]
pub struct Lent(Option<Arc<Mutex<Option<Share>>>>);

impl Lent {
    pub fn nothing() -> Self {
        Self(None)
    }

    /// The body, or what was made of it in its place: it has its share until nobody holds a part of it any more, or this is
    /// given back before.
    pub fn keep(&self, text: Bytes) -> Bytes {
        match &self.0 {
            Some(share) => Bytes::from_owner(Held {
                text,
                _share: share.clone(),
            }),
            None => text,
        }
    }

    /// Its message is the session's from now on, which counts what waits of it, unless all of it stays.
    pub fn handed_to(self, session: &Session) {
        if !session.keeps_calls() {
            self.give_back();
        }
    }

    fn give_back(self) {
        if let Some(share) = self.0 {
            drop(share.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
    }
}

/// Bytes of all large bodies at once; a sixth of what the unit may take (`MemoryHigh=`).
const ALL_BODIES: usize = 128 << 20;

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::mcp::Call;

    /// fault-46: what one user's bodies take leaves room for others', and comes back.
    #[test]
    fn nobodys_bodies_keep_out_everybodys() {
        for max in [1 << 10, 4 << 20, 40 << 20, 64 << 20, 100 << 20] {
            let budget = Budget::new(max);
            let user = |name: &str| Identity::example("https://i", name);
            let take = |name: &str| {
                let mut share = budget.share(&user(name));
                // As it comes, piece by piece.
                share.grow_to(max / 2)?;
                share.grow_to(max)?;
                Ok::<_, Refusal>(share)
            };
            let mut greedy = Vec::new();
            while let Ok(share) = take("greedy") {
                greedy.push(share);
            }
            assert!(!greedy.is_empty(), "{max}");
            // And as much of a slow one as may be.
            let mut slow = budget.share(&user("greedy"));
            while slow.grow_to(slow.bytes + max / 64).is_ok() {}
            greedy.push(slow);
            let mut other = vec![take("other").unwrap()];
            while let Ok(share) = take("other") {
                other.push(share);
            }
            // A third, where these are not as large as can be.
            let ordinary = max.min(4 << 20);
            for name in ["third", "fourth"] {
                let mut share = budget.share(&user(name));
                assert!(share.grow_to(ordinary).is_ok(), "{max}");
            }
            drop(other);
            greedy.truncate(greedy.len() - 2);
            assert!(take("greedy").is_ok());
            drop(greedy);
            let taken = budget.taken();
            assert_eq!((taken.all, taken.each.len()), (0, 0));
        }
    }

    /// A message with line breaks is made one line where it stands, and counted once for as long as that is held.
    #[test]
    fn a_body_of_several_lines_is_held_and_counted_once() {
        let budget = Budget::new(4 << 20);
        let text = "x".repeat(1 << 20);
        let body = format!(
            "{{\r\n\"jsonrpc\":\"2.0\",\n\"id\":1,\n\"method\":\"tools/call\",\n\"params\":{{\"name\":\"{text}\"}}\n}}\n"
        );
        let mut share = budget.share(&Identity::example("https://i", "alice"));
        share.grow_to(body.len()).unwrap();
        let lent = share.lent();
        let one_line = body.replace(['\r', '\n'], " ");
        let body = BytesMut::from(body.as_bytes());
        let place = body.as_ptr();
        let mut call = Call::read(body.freeze(), false).unwrap();
        call.keep(|text| lent.keep(text));
        assert_eq!(call.message().bytes(), one_line.as_bytes());
        assert_eq!(call.message().bytes().as_ptr(), place, "nothing is copied");
        drop(lent);
        assert_eq!(budget.taken().all, one_line.len());
        drop(call);
        assert_eq!(budget.taken().all, 0);
    }

    /// thv.toml(5), `limits.body`: what all of them may take.
    #[test]
    fn bodies_have_what_the_manual_says() {
        for (max, all) in [(4, 128), (32, 128), (48, 192), (64, 256)] {
            assert_eq!(Budget::new(max << 20).0.all, all << 20, "{max}M");
        }
    }

    /// Without more said, it is counted until the last part has gone; and no longer than it is said.
    #[test]
    fn a_body_has_its_share_until_it_is_handed_on_or_gone() {
        let budget = Budget::new(4 << 20);
        let body = || {
            let mut share = budget.share(&Identity::example("https://i", "alice"));
            share.grow_to(3 << 20).unwrap();
            let lent = share.lent();
            (lent.keep(vec![b'x'; 3 << 20].into()), lent)
        };
        let taken = || budget.taken().all;
        let (text, lent) = body();
        let part = text.slice(1..2);
        drop((text, lent));
        assert_eq!(taken(), 3 << 20);
        drop(part);
        assert_eq!(taken(), 0);
        let (text, lent) = body();
        assert_eq!(taken(), 3 << 20);
        lent.give_back();
        assert_eq!((taken(), text.len()), (0, 3 << 20));
    }
}
