//! The memory that the bodies of requests share while they are read and judged.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use foldhash::HashMap;

use crate::{
    auth::{Identity, PrincipalKey},
    http::Refusal,
    session::{Session, UNCOUNTED},
};

/// The memory for request bodies: one budget for all, so that the product of connections
/// and the size of a body is not what a gateway may take (fault-46); and half of what the others
/// leave for each user, so that nobody's bodies keep out everybody's.
#[derive(Clone, Debug)]
pub struct Budget {
    texts: Shares,
    /// What is known of where values stand in them, which can be many times as much.
    documents: Shares,
}

#[derive(Clone, Debug)]
struct Shares(Arc<Inner>);

#[derive(Debug)]
struct Inner {
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
    of: Shares,
    user: PrincipalKey,
    bytes: usize,
}

impl Budget {
    /// For bodies of at most `max` bytes each.
    pub fn new(max: usize) -> Self {
        // Beside all that one user can have one of another's fits in any case, or the server would be useless.
        Self {
            texts: Shares::of(ALL_BODIES.max(max.saturating_mul(4))),
            documents: Shares::of(ALL_DOCUMENTS),
        }
    }

    /// Nothing of it yet.
    pub(super) fn share(&self, identity: &Identity) -> Share {
        self.texts.share(identity)
    }

    /// Bytes that are taken.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.texts.taken().all + self.documents.taken().all
    }
}

impl Shares {
    fn of(all: usize) -> Self {
        Self(Arc::new(Inner {
            all,
            taken: Mutex::default(),
        }))
    }

    fn share(&self, identity: &Identity) -> Share {
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
        Lent {
            text: Some(Arc::new(Mutex::new(Some(self)))),
            document: None,
        }
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
#[derive(Debug, Default)]
pub struct Lent {
    text: Option<Arc<Mutex<Option<Share>>>>,
    /// What is known of where its values stand: it goes before its text does.
    document: Option<Box<Share>>,
}

impl Lent {
    pub fn nothing() -> Self {
        Self::default()
    }

    /// Counts that it takes so many bytes to know what stands where in it: one of many small values takes sixteen
    /// times its text. Until this is given back.
    pub fn count_document(
        &mut self,
        bytes: usize,
        (budget, user): (&Budget, &Identity),
    ) -> Result<(), Refusal> {
        if bytes > UNCOUNTED {
            let mut share = budget.documents.share(user);
            share.grow_to(bytes)?;
            self.document = Some(Box::new(share));
        }
        Ok(())
    }

    /// The body, or what was made of it in its place: it has its share until nobody holds a part of it any more, or this is
    /// given back before.
    pub fn keep(&self, text: Bytes) -> Bytes {
        match &self.text {
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
        if let Some(share) = self.text {
            drop(share.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
    }
}

/// Bytes of all large bodies at once; a sixth of what the unit may take (`MemoryHigh=`).
const ALL_BODIES: usize = 128 << 20;
/// Bytes of all that is known of them at once: four times as much as of one with as many values as one may have
/// ([`crate::json::MESSAGE`]), whatever its length.
const ALL_DOCUMENTS: usize = 128 << 20;

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
            let taken = budget.texts.taken();
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
        assert_eq!(budget.bytes(), one_line.len());
        drop(call);
        assert_eq!(budget.bytes(), 0);
    }

    /// fault-46: what many small values take beside their text is counted until the call is handed on, also of a body that
    /// has no share itself; where there is no room, it is refused.
    #[test]
    fn what_many_values_take_beside_their_text_is_counted() {
        let budget = Budget::new(4 << 20);
        let alice = Identity::example("https://i", "alice");
        let taken = || budget.bytes();
        let body = |count: usize| {
            let many = "0,".repeat(count);
            format!(r#"{{"jsonrpc":"2.0","id":1,"method":"ping","params":{{"v":[{many}0]}}}}"#)
        };
        let mut all = Vec::new();
        for (count, is_counted) in [(200, false), (1000, true), (1 << 20, true)] {
            let call = Call::read(body(count).into(), false).unwrap();
            for has_share in [false, true] {
                let mut share = budget.share(&alice);
                let mut lent = Lent::nothing();
                if has_share {
                    share.grow_to(1000).unwrap();
                    lent = share.lent();
                }
                let text = lent.keep(call.message().bytes().clone());
                let size = call.message().document_size();
                lent.count_document(size, (&budget, &alice)).unwrap();
                let of_text = if has_share { 1000 } else { 0 };
                assert!(size >= count * 16);
                assert_eq!(taken(), of_text + if is_counted { size } else { 0 });
                // Its session keeps the text alone.
                drop(lent);
                assert_eq!(taken(), of_text);
                drop(text);
                assert_eq!(taken(), 0);
            }
            let refused = |_| {
                let mut lent = Lent::nothing();
                let size = call.message().document_size();
                let counted = lent.count_document(size, (&budget, &alice));
                all.push(lent);
                counted.err()
            };
            let refusal = (0..10_000).find_map(refused);
            assert_eq!(matches!(refusal, Some(Refusal::Overloaded)), is_counted);
            all.clear();
        }
    }

    /// fault-46: beside all that a greedy user's densest messages take there is room for another's, however dense, and for
    /// what is ordinary of others.
    #[test]
    fn the_densest_message_of_one_leaves_room_for_the_densest_of_another() {
        let budget = Budget::new(4 << 20);
        let user = |name: &str| Identity::example("https://i", name);
        let many = "0,".repeat(1_999_980);
        let densest =
            format!(r#"{{"jsonrpc":"2.0","id":1,"method":"ping","params":{{"v":[{many}0]}}}}"#);
        let call = Call::read(densest.into(), false).unwrap();
        let counted = |name: &str, size| {
            let mut lent = Lent::nothing();
            let counted = lent.count_document(size, (&budget, &user(name)));
            counted.map(|()| lent).ok()
        };
        let size = call.message().document_size();
        let greedy: Vec<_> = std::iter::from_fn(|| counted("greedy", size)).collect();
        assert!(!greedy.is_empty() && greedy.len() < 10);
        let other = counted("other", size);
        let third = counted("third", size / 4);
        assert!(other.is_some() && third.is_some());
        drop((greedy, other, third));
        assert_eq!(budget.bytes(), 0);
    }

    /// thv.toml(5), `limits.body`: what all of them may take.
    #[test]
    fn bodies_have_what_the_manual_says() {
        for (max, all) in [(4, 128), (32, 128), (48, 192), (64, 256)] {
            assert_eq!(Budget::new(max << 20).texts.0.all, all << 20, "{max}M");
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
        let taken = || budget.bytes();
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
