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

impl Session {
    /// When it was used last, if its client has gone: it had a stream of its own open, and neither that nor a call now.
    fn left(&self) -> Option<Instant> {
        let state = self.state();
        (state.in_flight.is_empty() && state.streams.is_left()).then_some(state.last_used)
    }
}

impl Sessions {
    /// Ends a session of each user who may open no more, if one has been left for a while. Looked at once a second,
    /// so that there is room before it is asked for.
    pub(super) fn make_room(&self, sessions: &[Arc<Session>], left: &mut Left, now: Instant) {
        let left_before = std::mem::take(&mut left.since);
        left.going.retain(|_, going| going.strong_count() > 0);
        let mut first: HashMap<_, (Instant, &Arc<Session>)> = HashMap::default();
        for session in sessions {
            let Some(used) = session.left() else { continue };
            let since = left_before.get(session.id()).copied().unwrap_or(now);
            left.since.insert(session.id().to_owned(), since);
            let since = since.max(used);
            // Nobody makes room for others: of what all may have together, nobody's is to go.
            let whose = session.principal();
            let is_full = || {
                !left.going.contains_key(&whose)
                    && self.slots.look(whose) == Err(LimitReached::User)
            };
            if now.duration_since(since) < PATIENCE || !is_full() {
                continue;
            }
            let found = first.entry(whose).or_insert((since, session));
            if since < found.0 {
                *found = (since, session);
            }
        }
        for (whose, (_, session)) in first {
            left.going.insert(whose, Arc::downgrade(session));
            self.close(session);
        }
    }
}

/// How long a client may be away whose place its user needs.
const PATIENCE: Duration = Duration::from_secs(60);
