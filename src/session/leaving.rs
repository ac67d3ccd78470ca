//! Sessions whose clients have gone without a word.
//!
//! Many clients end without `DELETE`. Their sessions end when they have been idle for long, and until then take
//! places that their user needs: where all of his are taken, the one that was left first makes room.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use foldhash::HashMap;
use tokio::time::Instant;

use super::{Session, load::LimitReached, table::Sessions};
use crate::auth::PrincipalKey;

/// What is known of sessions that were left.
#[derive(Default)]
pub(super) struct Left {
    /// Since when, by their ids.
    since: HashMap<String, Instant>,
    /// Of each user the one that was ended for a place, which it has until its child is gone.
    going: HashMap<PrincipalKey, Weak<Session>>,
}

/// Whether something goes on in a session that its client may come back for: a task, or a question of its server's.
///
/// Such a session is given up when its user has left no other, and not kept before all: a task may have no end, and a
/// client that has begun one and crashed would keep its user out for as long as a session may be idle.
#[derive(Clone, Copy, Eq, Ord, PartialEq, PartialOrd)]
struct Awaits(bool);

impl Session {
    /// When it was used last, if its client has gone: it had a stream of its own open, and neither that nor a call now.
    fn left(&self) -> Option<(Awaits, Instant)> {
        let state = self.state();
        let awaits = state.progress.goes_on() || state.asked.wait();
        (state.in_flight.is_empty() && state.streams.is_left())
            .then_some((Awaits(awaits), state.last_used))
    }
}

impl Sessions {
    /// Ends a session of each user who may open no more, if one has been left for a while. Looked at once a second,
    /// so that there is room before it is asked for.
    pub(super) fn make_room(&self, sessions: &[Arc<Session>], left: &mut Left, now: Instant) {
        let left_before = std::mem::take(&mut left.since);
        left.going.retain(|_, going| going.strong_count() > 0);
        let mut first: HashMap<_, ((Awaits, Instant), &Arc<Session>)> = HashMap::default();
        for session in sessions {
            let Some((awaits, used)) = session.left() else {
                continue;
            };
            let since = left_before.get(session.id()).copied().unwrap_or(now);
            left.since.insert(session.id().to_owned(), since);
            let since = since.max(used);
            // Nobody makes room for others: of what all may have together, nobody's is to go.
            let whose = session.principal();
            let is_full = || {
                !left.going.contains_key(&whose)
                    && self.slots.look(whose) == Err(LimitReached::User)
            };
            if !is_full() {
                continue;
            }
            let place = (awaits, since);
            let found = first.entry(whose).or_insert((place, session));
            if place < found.0 {
                *found = (place, session);
            }
        }
        for (whose, ((_, since), session)) in first {
            // One in which something goes on is not ended where another will be due in a moment.
            if now.duration_since(since) < PATIENCE {
                continue;
            }
            left.going.insert(whose, Arc::downgrade(session));
            self.close(session);
        }
    }
}

/// How long a client may be away whose place its user needs.
const PATIENCE: Duration = Duration::from_secs(60);
