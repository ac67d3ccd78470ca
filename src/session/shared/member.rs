//! One of those that share a child, as the child's switch knows it.
//!
//! Its numbers, what it hears of, and what is kept of it. Pure. Used by `switch` and `heard`.

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;
use foldhash::HashMap;

use crate::{
    auth::PrincipalKey,
    json::Value,
    mcp::{input::Abilities, subscription},
    session::{
        room::Room,
        shared::switch::{RequestRoute, RouteKind},
    },
};

/// A session that shares the child.
pub(in crate::session) struct Member {
    pub(in crate::session) principal: PrincipalKey,
    /// What the server is told of who calls, as JSON.
    pub(in crate::session) caller: Option<Bytes>,
    /// For what is kept of it here.
    pub(in crate::session) room: Arc<Room>,
    /// Its own numbers of what is in flight, and the child's.
    pub(in crate::session) numbers: HashMap<u64, u64>,
    pub(in crate::session) subscribed: HashSet<Bytes>,
    pub(in crate::session) level: Option<usize>,
    /// What its client can be asked.
    pub(in crate::session) abilities: Abilities,
}

impl Member {
    pub(in crate::session) fn new(
        principal: PrincipalKey,
        caller: Option<Bytes>,
        room: Arc<Room>,
    ) -> Self {
        Self {
            principal,
            caller,
            room,
            numbers: HashMap::default(),
            subscribed: HashSet::new(),
            level: None,
            abilities: Abilities::default(),
        }
    }

    /// Its request of that number has this one at the child.
    pub(in crate::session) fn is_numbered(
        &mut self,
        own: u64,
        number: u64,
        routes: &mut HashMap<u64, RequestRoute>,
    ) {
        if self.numbers.len() >= MAX_NUMBERS {
            self.forget_elder(routes);
        }
        self.numbers.insert(own, number);
    }

    /// The child does not do what was asked of it so.
    pub(in crate::session) fn take_back(&mut self, asked: RouteKind) {
        match asked {
            RouteKind::Subscribe(uri) => {
                self.subscribed.remove(&uri);
            }
            // Unless it wants another one by now.
            RouteKind::Level { before, wanted } if self.level == Some(wanted) => {
                self.level = before
            }
            _ => {}
        }
    }

    /// It wants to hear of that resource: the one text that is kept of its URI; `None` if there is no room for one more.
    pub(in crate::session) fn subscribe(&mut self, uri: Bytes) -> Option<Bytes> {
        if let Some(known) = self.subscribed.get(&uri) {
            return Some(known.clone());
        }
        if self.subscribed.len() >= MAX_SUBSCRIBED {
            return None;
        }
        let uri = self.room.hold_all(uri)?;
        self.subscribed.insert(uri.clone());
        Some(uri)
    }

    /// Whether it has subscribed to that resource, or to one that it is a part of.
    pub(in crate::session) fn hears_of(&self, uri: Value<'_>) -> bool {
        uri.as_str().is_some_and(|uri| {
            let named = |wanted: &Bytes| {
                str::from_utf8(wanted).is_ok_and(|wanted| subscription::concerns(wanted, &uri))
            };
            self.subscribed.contains(uri.as_bytes()) || self.subscribed.iter().any(named)
        })
    }

    /// Forgets the elder half of what the child has not answered. What its session waits for ends by itself, and
    /// takes its route along; what it says by the way, as that a subscription has ended, it does not wait for, and a
    /// child may never answer that.
    fn forget_elder(&mut self, routes: &mut HashMap<u64, RequestRoute>) {
        let ends = |number: &u64| {
            let route = routes.get(number);
            route.is_none_or(|route| !matches!(route.kind, RouteKind::Listen))
        };
        let mut elder: Vec<(u64, u64)> = self.numbers.iter().map(|(own, it)| (*it, *own)).collect();
        elder.retain(|(number, _)| ends(number));
        elder.sort_unstable();
        elder.truncate(MAX_NUMBERS / 2);
        for (number, own) in elder {
            routes.remove(&number);
            self.numbers.remove(&own);
        }
    }
}

/// Questions of one member's that the child has not answered; its session waits for fewer than half as many at once.
pub(in crate::session) const MAX_NUMBERS: usize = 8192;
/// Resources that one member is told of.
pub(in crate::session) const MAX_SUBSCRIBED: usize = 1024;
