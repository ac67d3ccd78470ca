//! The memory of what waits to be read: a session's, a user's, and all of it.
//!
//! A client may be slow, or away, while its server answers on. What is large is counted from when
//! the server has said it until nobody holds a byte of it any more, the connection that writes it
//! included. Where there is no room for more a message is left out, as for any client that does
//! not keep up, and a call fails. A child may be slow, too: then what waits for it is counted, and
//! more is refused. What one user may have is half of what the others leave: however many are greedy,
//! there is room for one more. What is remembered of tasks, resources and questions counts with it.
//! Counts; decides nothing else. Used by `pump`, `stream`, `calls`, `pending`, `tasks`, `subscriptions`,
//! `member`, `shared` and `conversation`.

use std::{
    hash::BuildHasher,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use foldhash::{HashMap, fast::FixedState};
use tokio::sync::Notify;

use crate::{aside::is_large, auth::PrincipalKey, child::Lends, mcp::Message};

/// The memory of a whole server.
#[derive(Clone)]
pub(super) struct Rooms(Arc<ServerMemory>);

struct ServerMemory {
    all: usize,
    user: usize,
    session: usize,
    taken: Mutex<BytesTaken>,
    /// Told when something was given back, each for some of the users: who waits is not woken by what others read.
    more: [Notify; GROUPS],
}

#[derive(Default)]
struct BytesTaken {
    all: usize,
    users: HashMap<PrincipalKey, usize>,
}

/// The part of it that one session may have.
pub(super) struct Room {
    of: Rooms,
    user: PrincipalKey,
    group: usize,
    taken: AtomicUsize,
}

/// So many bytes of a session's, until this is gone.
pub(super) struct Claim {
    room: Arc<Room>,
    bytes: usize,
}

/// A text, and what it takes for as long as anybody holds a part of it.
struct HeldText {
    text: Bytes,
    _claim: Claim,
}

/// A message that waits for long, with all that is known of it.
pub(super) struct KeptMessage {
    pub(super) message: Message,
    _claim: Claim,
}

impl Rooms {
    /// For messages of at most `longest` bytes each.
    pub(super) fn new(longest: usize) -> Self {
        // A message is held twice while it is written for its client: it and another fit in any case.
        let session = SESSION.max(longest.saturating_mul(3));
        let user = (SERVER / 2).max(session);
        Self(Arc::new(ServerMemory {
            // Where one user has all he may, the half of the rest is a session of another's.
            all: SERVER.max(user + session * 2),
            user,
            session,
            taken: Mutex::default(),
            more: Default::default(),
        }))
    }

    /// The room of a new session of this user, which holds nothing yet.
    pub(super) fn room(&self, user: PrincipalKey) -> Arc<Room> {
        Arc::new(Room {
            of: self.clone(),
            user,
            group: FixedState::default().hash_one(user) as usize % GROUPS,
            taken: AtomicUsize::new(0),
        })
    }

    /// Bytes that are taken.
    pub(super) fn taken(&self) -> usize {
        self.lock().all
    }

    fn lock(&self) -> MutexGuard<'_, BytesTaken> {
        // No code path leaves it half changed.
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    /// The text, counted if it is large; `None` if there is no room for it.
    pub(super) fn hold(self: &Arc<Self>, text: Bytes) -> Option<Bytes> {
        if text.len() <= UNCOUNTED {
            return Some(text);
        }
        self.hold_all(text)
    }

    /// The same of one of many, which are large together.
    pub(super) fn hold_all(self: &Arc<Self>, text: Bytes) -> Option<Bytes> {
        let claim = self.claim(text.len())?;
        Some(claim.of(text))
    }

    /// Room for so many bytes; `None` if there is not as much.
    pub(super) fn claim(self: &Arc<Self>, bytes: usize) -> Option<Claim> {
        self.take(bytes, false).then(|| {
            let room = self.clone();
            Claim { room, bytes }
        })
    }

    /// The message of a child's, counted with what it takes to know what stands where in it: of many small values that is
    /// more than their text. `None` if there is no room for it.
    pub(super) fn keep(self: &Arc<Self>, message: &Message) -> Option<KeptMessage> {
        // What is large is held as it came.
        let text = message.bytes().len();
        let text = if is_large(text) { 0 } else { text };
        let claim = self.claim(text + message.document_size())?;
        Some(KeptMessage {
            message: message.clone(),
            _claim: claim,
        })
    }

    /// The text, counted if it is large, whether or not there is room: it is there already.
    pub(super) fn hold_anyway(self: &Arc<Self>, text: Bytes) -> Bytes {
        if text.len() <= UNCOUNTED {
            return text;
        }
        self.take(text.len(), true);
        let (room, bytes) = (self.clone(), text.len());
        Claim { room, bytes }.of(text)
    }

    /// Whether its user has more than half of what he may: then nothing is kept that was read.
    pub(super) fn is_scarce(&self) -> bool {
        let taken = self.of.lock();
        let user = taken.users.get(&self.user).copied().unwrap_or_default();
        user > self.of.0.may_have(&taken, user) / 2
    }

    fn take(&self, bytes: usize, anyway: bool) -> bool {
        let mut taken = self.of.lock();
        let may = anyway || self.fits(&taken, bytes);
        if may {
            self.count(&mut taken, bytes);
            self.taken.fetch_add(bytes, Ordering::Relaxed);
        }
        may
    }

    fn count(&self, taken: &mut BytesTaken, bytes: usize) {
        taken.all += bytes;
        *taken.users.entry(self.user).or_default() += bytes;
    }

    fn uncount(&self, mut taken: MutexGuard<'_, BytesTaken>, bytes: usize) {
        taken.all -= bytes;
        if let Some(user) = taken.users.get_mut(&self.user) {
            *user -= bytes;
            if *user == 0 {
                taken.users.remove(&self.user);
            }
        }
        drop(taken);
        self.more().notify_waiters();
    }

    fn fits(&self, taken: &BytesTaken, more: usize) -> bool {
        // Changed under the same lock alone.
        let session = self.taken.load(Ordering::Relaxed);
        self.fits_user(taken, more) && session + more <= self.of.0.session
    }

    fn fits_user(&self, taken: &BytesTaken, more: usize) -> bool {
        let user = taken.users.get(&self.user).copied().unwrap_or_default();
        user + more <= self.of.0.may_have(taken, user)
    }
}

impl ServerMemory {
    /// Bytes that one may have in all who has so many now.
    fn may_have(&self, taken: &BytesTaken, user: usize) -> usize {
        // Whoever takes leaves as much as he has to those who come later.
        let left_by_others = self.all.saturating_sub(taken.all - user);
        self.user.min(left_by_others / 2)
    }
}

/// For what is on its way to a child or from it: the user's. A session's own is for what its clients have not read.
impl Lends for Room {
    fn lend(&self, bytes: usize) -> bool {
        let mut taken = self.of.lock();
        let may = self.fits_user(&taken, bytes);
        if may {
            self.count(&mut taken, bytes);
        }
        may
    }

    fn take_back(&self, bytes: usize) {
        self.uncount(self.of.lock(), bytes);
    }

    fn more(&self) -> &Notify {
        &self.of.0.more[self.group]
    }
}

impl Claim {
    /// The text for which it is.
    pub(super) fn of(self, text: Bytes) -> Bytes {
        Bytes::from_owner(HeldText { text, _claim: self })
    }
}

impl AsRef<[u8]> for HeldText {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let bytes = self.bytes;
        let taken = self.room.of.lock();
        self.room.taken.fetch_sub(bytes, Ordering::Relaxed);
        self.room.uncount(taken, bytes);
    }
}

/// Bytes of what waits in one session, and of all; a user's are at most half of those.
/// More where messages are larger.
const SESSION: usize = 16 << 20;
const SERVER: usize = 128 << 20;
/// Groups of users that are told apart when there is more room.
const GROUPS: usize = 16;
/// Bytes of a text that are not counted: there are thousands of calls, and each may have such an answer.
pub const UNCOUNTED: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::auth::Identity;

    fn user(name: &str) -> PrincipalKey {
        Identity::example("https://i", name).principal_key()
    }

    /// thv.toml(5), `limits.body`: what this and the bodies of requests can come to, beside the unit's `MemoryHigh=`.
    #[test]
    fn the_manual_says_what_the_bounds_add_up_to() {
        let manual = include_str!("../../man/thv.toml.5");
        let unit = include_str!("../../systemd/system/thv@.service");
        let high = unit
            .lines()
            .find_map(|line| line.strip_prefix("MemoryHigh="));
        let high: usize = high.unwrap().strip_suffix('M').unwrap().parse().unwrap();
        assert!(manual.contains(&format!("MemoryHigh={high}M")));
        for (longest, fits) in [(4, true), (32, true), (48, true), (64, false)] {
            // Those of `http::budget`, which is above this, and what is known of them.
            let bodies = (128 << 20).max((longest << 20) * 4) + (128 << 20);
            let all = Rooms::new(longest << 20).0.all + bodies;
            assert_eq!(all >> 20 < high, fits, "{longest}M: {} MiB", all >> 20);
            let said = manual.contains(&format!("{} MiB", all >> 20));
            assert!(said || longest == 48, "{longest}M: {} MiB", all >> 20);
        }
    }

    /// conn-3: what waits for one session leaves room for its user's others, what waits for users leaves room for
    /// one more, and what is read comes back, whoever held it last.
    #[test]
    fn what_waits_is_bounded_for_a_session_a_user_and_all() {
        for longest in [1 << 10, 4 << 20, 14 << 20, 64 << 20] {
            let rooms = Rooms::new(longest);
            let text = Bytes::from(vec![b'x'; longest.max(1 << 20)]);
            let fill = |name: &str| {
                let mut held = Vec::new();
                let mut sessions = 0;
                loop {
                    let room = rooms.room(user(name));
                    let before = held.len();
                    while let Some(text) = room.hold(text.clone()) {
                        held.push(text);
                    }
                    if held.len() == before {
                        return (held, sessions);
                    }
                    sessions += 1;
                }
            };
            let (greedy, sessions) = fill("greedy");
            let taken = rooms.taken();
            assert!(taken <= rooms.0.user && sessions <= 4, "{longest}");
            assert!(taken + text.len() > rooms.0.user, "{longest}");
            // As greedy, and has three messages of any size …
            let (other, _) = fill("other");
            assert!(rooms.taken() >= taken + 3 * longest, "{longest}");
            // … a third has one, and others what is ordinary.
            let third = rooms.room(user("third")).hold(text.clone());
            assert!(third.is_some(), "{longest}");
            let ordinary = Bytes::from(vec![b'x'; 1 << 20]);
            let others: Vec<_> = (4..=6)
                .map(|number| rooms.room(user(&number.to_string())).hold(ordinary.clone()))
                .collect();
            assert!(others.iter().all(Option::is_some), "{longest}");
            assert!(rooms.taken() < rooms.0.all, "{longest}");
            // What nobody counts goes on.
            let small = Bytes::from_static(b"small");
            let room = rooms.room(user("greedy"));
            assert!(room.hold(text.clone()).is_none());
            assert_eq!(room.hold(small.clone()), Some(small));
            drop((third, others));
            let otherwise = rooms.taken() - taken;
            let part = greedy[0].slice(..3);
            drop(greedy);
            assert_eq!(rooms.taken(), otherwise + text.len());
            drop((part, other));
            assert_eq!((rooms.taken(), rooms.lock().users.len()), (0, 0));
            // Alone again, he may have what he had.
            let (_again, _) = fill("greedy");
            assert_eq!(rooms.taken(), taken);
        }
    }

    #[test]
    fn what_is_there_already_is_counted_all_the_same() {
        let rooms = Rooms::new(1);
        let room = rooms.room(user("alice"));
        let text = Bytes::from(vec![b'x'; SESSION]);
        let held = [room.hold_anyway(text.clone()), room.hold_anyway(text)];
        assert_eq!(rooms.taken(), 2 * SESSION);
        let one = Bytes::from_static(b"x");
        assert!(room.hold_all(one.clone()).is_none());
        assert!(rooms.room(user("alice")).hold_all(one.clone()).is_some());
        drop(held);
        let one = room.hold_all(one).unwrap();
        assert_eq!((rooms.taken(), &one[..]), (1, &b"x"[..]));
    }

    /// fault-46: what is on its way to servers and from them is a user's as what waits is, in however many sessions;
    /// and nothing of what a session's clients may leave unread.
    #[test]
    fn what_is_on_its_way_is_bounded_for_a_user() {
        let rooms = Rooms::new(1);
        let mut sessions = Vec::new();
        let mut taken = 0;
        loop {
            let room = rooms.room(user("greedy"));
            let lent = room.lend(3 << 20);
            sessions.push((room, lent));
            if !lent {
                break;
            }
            taken += 3 << 20;
        }
        assert!(taken <= rooms.0.user && taken + (3 << 20) > rooms.0.user);
        assert_eq!(rooms.taken(), taken);
        let unread = Bytes::from(vec![b'x'; 1 << 20]);
        assert!(rooms.room(user("other")).hold(unread.clone()).is_some());
        for (room, lent) in sessions {
            if lent {
                room.take_back(3 << 20);
            }
        }
        assert_eq!((rooms.taken(), rooms.lock().users.len()), (0, 0));
        let room = rooms.room(user("greedy"));
        assert!(room.lend(SESSION));
        assert!(room.hold(unread).is_some());
    }

    /// Whoever waits for room hears of it, whatever made it.
    #[tokio::test(start_paused = true)]
    async fn what_is_read_is_told_to_those_who_wait_for_room() {
        let patience = Duration::from_secs(1);
        let room = Rooms::new(1).room(user("alice"));
        let held = room.hold(vec![b'x'; 1 << 20].into());
        let more = Lends::more(&*room).notified();
        drop(held);
        timeout(patience, more).await.unwrap();
        room.lend(1);
        let more = Lends::more(&*room).notified();
        room.take_back(1);
        timeout(patience, more).await.unwrap();
    }
}
