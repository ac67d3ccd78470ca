//! What of one conversation goes on, and what waits for its turn.
//!
//! A server has so many requests at once, and what has no answer one after the other. What waits is
//! counted, and where there is no room it is refused: nobody stops reading for it.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use tokio::task::{AbortHandle, JoinSet};
use tracing::debug;

use super::{
    Talk,
    head::{Kind, Outgoing},
};
use crate::child::{Lends, share::SMALL};

#[derive(Default)]
pub(super) struct Turns {
    requests: JoinSet<()>,
    /// Those of them that can be ended, by their numbers.
    handles: HashMap<u64, AbortHandle>,
    /// Requests that wait, in order.
    waiting: VecDeque<Outgoing>,
    /// At most one at a time.
    telling: JoinSet<()>,
    /// What has no answer keeps its order, and holds up nothing that has one.
    untold: VecDeque<Outgoing>,
    /// The server's own stream.
    listening: JoinSet<()>,
    /// Hands on the rest of what a request that was ended has begun to say; at most one.
    finishing: JoinSet<()>,
    was_ended: bool,
}

impl Turns {
    /// Begins what has its turn.
    pub(super) fn go_on(&mut self, talk: &Arc<Talk>) {
        while self.requests.len() < MAX_REQUESTS
            && let Some(message) = self.waiting.pop_front()
        {
            let Kind::Request(number, asks) = message.kind else {
                continue;
            };
            let talk = talk.clone();
            let asked = async move { talk.request(number, asks, message).await };
            self.handles.insert(number, self.requests.spawn(asked));
        }
        if self.telling.is_empty()
            && let Some(message) = self.untold.pop_front()
        {
            let talk = talk.clone();
            self.telling.spawn(async move { talk.tell(message).await });
        }
        // One that waits for its turn there comes behind whoever is ended meanwhile.
        while self.finishing.try_join_next().is_some() {}
        if self.was_ended && self.finishing.is_empty() {
            self.was_ended = false;
            let talk = talk.clone();
            self.finishing.spawn(async move { talk.finish().await });
        }
    }

    /// Waits until something else may have its turn.
    pub(super) async fn changed(&mut self) {
        tokio::select! {
            Some(done) = self.requests.join_next() => {
                self.was_ended |= done.is_err();
                self.handles.retain(|_, request| !request.is_finished());
            }
            Some(_) = self.telling.join_next() => {}
            Some(_) = self.finishing.join_next() => {}
            else => std::future::pending().await,
        }
    }

    /// A request, unless too much waits already.
    pub(super) fn ask(&mut self, message: Outgoing, lends: &Arc<dyn Lends>) -> bool {
        // Most may wait in any case: at a server for everybody the room is everybody's.
        let waits = self.requests.len() >= MAX_REQUESTS;
        let uncounted = if waits { UNCOUNTED } else { SMALL };
        put(&mut self.waiting, message, uncounted, lends)
    }

    /// What has no answer, likewise.
    pub(super) fn tell(&mut self, message: Outgoing, lends: &Arc<dyn Lends>) -> bool {
        let uncounted = match message.kind {
            _ if self.telling.is_empty() => SMALL,
            // Nobody's calls bound how many there are.
            Kind::Other => 0,
            _ => UNCOUNTED,
        };
        put(&mut self.untold, message, uncounted, lends)
    }

    /// The gateway's own words: short, not counted, and with places that nothing else takes.
    pub(super) fn tell_own(&mut self, message: Outgoing) {
        if self.untold.len() < MAX_WAITING + MAX_OWN {
            self.untold.push_back(message);
        } else {
            debug!("the server takes no messages: one of the gateway's was left out");
        }
    }

    /// Drops the request of that number; `false` if it does not wait here.
    pub(super) fn forget(&mut self, number: u64) -> bool {
        let is_it = |held: &Outgoing| matches!(held.kind, Kind::Request(it, _) if it == number);
        let at = self.waiting.iter().position(is_it);
        at.and_then(|at| self.waiting.remove(at)).is_some()
    }

    /// Ends the request of that number, if it goes on.
    pub(super) fn abort(&mut self, number: u64) {
        if let Some(request) = self.handles.remove(&number) {
            request.abort();
        }
    }

    /// Listens to the server's own stream from now on, if nobody does.
    pub(super) fn listen(&mut self, talk: &Arc<Talk>) {
        while self.listening.try_join_next().is_some() {}
        if !self.listening.is_empty() {
            return;
        }
        let talk = talk.clone();
        self.listening.spawn(async move { talk.listen().await });
    }

    /// Ends all of it.
    pub(super) async fn end(mut self) {
        self.requests.shutdown().await;
        self.telling.shutdown().await;
        self.listening.shutdown().await;
        self.finishing.shutdown().await;
    }
}

/// Puts it last, if there is room for what is more than `uncounted`.
fn put(
    queue: &mut VecDeque<Outgoing>,
    mut message: Outgoing,
    uncounted: usize,
    lends: &Arc<dyn Lends>,
) -> bool {
    let has_room = queue.len() < MAX_WAITING && message.count(uncounted, lends);
    if has_room {
        queue.push_back(message);
    }
    has_room
}

/// Requests at once towards one server. A child in the sandbox has a few connections more:
/// for its own stream, for notifications, and those that wait.
pub(super) const MAX_REQUESTS: usize = 32;
/// Messages that wait for their turn: four times as many as one user may have of calls where nothing else is said.
const MAX_WAITING: usize = 4096;
/// Bytes of a message that waits and is not counted.
const UNCOUNTED: usize = 4 << 10;
/// Messages of the gateway's own that wait besides.
const MAX_OWN: usize = 1024;
