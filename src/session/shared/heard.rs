//! What a shared child says, and which member each word is for.
//!
//! The other half of `switch`, and as pure. What cannot be told to be one
//! member's is given to none.

use std::collections::HashMap;

use bytes::Bytes;
use tracing::warn;

use crate::{
    auth::PrincipalKey,
    json::{Kind, Value},
    mcp::{Era, Message, bridge, input::Question, meta, spelled, task},
    session::{
        own::{self, OwnLine, OwnMessage},
        pump::MAX_ANSWERED_ID,
        shared::{
            member::Member,
            switch::{QuestionRoute, RequestRoute, RouteKind, Switch},
            words::{made_task, text_of},
        },
    },
};

/// What comes of what a child has said. Nothing of its own comes back to it.
#[derive(Debug, Eq, PartialEq)]
pub(in crate::session) enum Out {
    ToChild(OwnLine),
    /// For the child, and it ends there what nobody would end later.
    Ends(OwnLine),
    /// For that member.
    To(u64, Bytes),
}

/// What is to be done with what a child has said.
pub(in crate::session) enum SaidByChild {
    /// It is a member's answer, under the member's own number.
    Answer {
        to: u64,
        own: u64,
        /// What the child is told first.
        ends: Option<OwnLine>,
    },
    Lines(Vec<Out>),
}

impl SaidByChild {
    /// The lines of it. Apart from the switch, which everybody needs: an answer may be large.
    pub(in crate::session) fn written(self, message: &Message) -> Vec<Out> {
        match self {
            Self::Lines(lines) => lines,
            Self::Answer { to, own, ends } => {
                let own = own.to_string();
                let id = message.root().get("id");
                let id = id.map(|id| (id.span(), own.as_bytes()));
                let answer = Out::To(to, message.with(&Vec::from_iter(id)).into());
                match ends {
                    None => vec![answer],
                    Some(ends) => vec![Out::Ends(ends), answer],
                }
            }
        }
    }
}

impl Switch {
    /// What the child says; `None` for what the protocol does not allow.
    pub(in crate::session) fn said_by_child(&mut self, message: &Message) -> Option<SaidByChild> {
        let root = message.root();
        if root.kind() != Kind::Object {
            return None;
        }
        match (root.get("method").and_then(Value::as_str), root.get("id")) {
            (None, Some(id)) => self.answered(message, id),
            (Some(method), Some(id)) => self.question(message, &method, id).map(SaidByChild::Lines),
            (Some(method), None) => Some(SaidByChild::Lines(self.told(message, &method))),
            (None, None) => None,
        }
    }

    fn answered(&mut self, message: &Message, id: Value<'_>) -> Option<SaidByChild> {
        let number = id.as_u64()?;
        let nobodys = SaidByChild::Lines(Vec::new());
        let result = message.root().get("result");
        self.says_level(number, result.is_some());
        let Some(route) = self.routes.remove(&number) else {
            // Cancelled, or answered already: the child could not know (fault-17).
            let is_late = (1..self.next).contains(&number);
            return is_late.then(|| SaidByChild::Lines(Vec::from_iter(self.made_late(result))));
        };
        if let RouteKind::Initialize = route.kind {
            let mut out = Vec::new();
            if message.root().get("result").is_some() {
                out.push(Out::ToChild(OwnMessage::Initialized.line()));
            }
            // What is kept of it is the first one's, of whose user the others often are, too.
            let first = self.opening.first();
            let first = first.or_else(|| self.members.keys().next().copied());
            let first = first.and_then(|first| self.members.get(&first));
            let keep = |text| match first {
                Some(first) => first.room.hold_anyway(text),
                None => text,
            };
            let waited = self.opening.opened(message, self.everybody, keep);
            out.extend(waited.into_iter().map(|(to, text)| Out::To(to, text)));
            return Some(SaidByChild::Lines(out));
        }
        let Some((to, own)) = route.to else {
            return Some(nobodys);
        };
        let mut ends = None;
        let pages = message.root().get("error").and_then(pages);
        for page in pages.iter().flat_map(|pages| pages.elements()) {
            self.sends_to_page(to, page);
        }
        if let Some(member) = self.members.get_mut(&to) {
            member.numbers.remove(&own);
            if result.is_none() {
                member.take_back(route.kind);
            }
            if result.is_some_and(|result| result.get("task").is_some()) {
                self.made.push_back((number, (to, own)));
                if self.made.len() > MAX_MADE {
                    self.made.pop_front();
                }
            }
            if let Some((result, task)) = result.and_then(|it| Some((it, made_task(it)?))) {
                let principal = member.principal;
                let is_short = task.span().len() <= task::MAX_ID;
                let kept = is_short.then(|| member.room.hold_all(text_of(task)));
                match kept.flatten() {
                    Some(task) => self.remember(task, principal),
                    // Elsewhere its user can.
                    None if self.everybody => ends = self.ends_nobodys(result, task),
                    None => {}
                }
            }
        }
        Some(SaidByChild::Answer { to, own, ends })
    }

    /// What ends the task that a call has become of which nobody waits to hear, unless it is somebody's.
    fn made_late(&mut self, result: Option<Value<'_>>) -> Option<Out> {
        let result = result?;
        let made = task::made(result, Era::Legacy).or_else(|| task::made(result, Era::Modern))?;
        // One that has ended is what some say that they have been told to end.
        let task = made.get("taskId").filter(|_| task::goes_on(made))?;
        if self.tasks.contains_key(&text_of(task)) || !self.strays.ends_one() {
            return None;
        }
        Some(Out::Ends(self.ends_nobodys(result, task)?))
    }

    /// Whose a task is that is not remembered nobody can say: where users meet no client can end it, and nobody hears
    /// of it.
    fn ends_nobodys(&mut self, result: Value<'_>, task: Value<'_>) -> Option<OwnLine> {
        if task.span().len() > MAX_ANSWERED_ID {
            warn!("a task that no client can end runs on: its id is too long");
            return None;
        }
        let is_modern = result.get("resultType").is_some();
        let own = OwnMessage::TaskOf {
            number: self.next_number(),
            what: "cancel",
            task: task.raw(),
            more: is_modern.then(own::meta_member).unwrap_or_default(),
        };
        Some(own.line())
    }

    /// The child agrees to what it was told under that number, or does not: what it was told before does not count.
    fn says_level(&mut self, number: u64, agrees: bool) {
        match &mut self.level {
            Some(told) if told.number == number && agrees => told.agreed = true,
            Some(told) if told.number == number => self.level = None,
            _ => {}
        }
    }

    /// A request of the child's number will have no answer: whose it was, by their own numbers.
    pub(in crate::session) fn failed(&mut self, number: u64) -> Vec<(u64, u64)> {
        self.says_level(number, false);
        let Some(route) = self.routes.remove(&number) else {
            return Vec::new();
        };
        if let RouteKind::Initialize = route.kind {
            return self.opening.failed();
        }
        if let Some((to, own)) = route.to
            && let Some(member) = self.members.get_mut(&to)
        {
            member.numbers.remove(&own);
            member.take_back(route.kind);
        }
        route.to.into_iter().collect()
    }

    fn question(&mut self, message: &Message, method: &str, id: Value<'_>) -> Option<Vec<Out>> {
        let is_long = |value: Value<'_>, most| value.span().len() > most;
        if !matches!(id.kind(), Kind::String | Kind::Number) || is_long(id, MAX_ANSWERED_ID) {
            return None;
        }
        if method == "ping" {
            let pong = OwnMessage::Pong { id: id.raw() };
            return Some(vec![Out::ToChild(pong.line())]);
        }
        // What one client's roots are is no business of the others'.
        let question = Question::asked(method, id, message).filter(|_| method != "roots/list");
        let takes = |member: &Member| {
            let question = question.as_ref();
            question.is_some_and(|question| question.lacking(member.abilities).is_none())
        };
        let params = message.root().get("params");
        let meta = params.and_then(|params| params.get("_meta"));
        let token = meta.and_then(|meta| meta.get("progressToken"));
        // Both are kept until it is answered, and there are many such questions.
        let is_kept = !is_long(id, MAX_ID) && token.is_none_or(|token| !is_long(token, MAX_ID));
        let to = self.sole_worker().filter(|to| {
            let member = self.members.get(to);
            is_kept && self.asked.len() < MAX_ASKED && member.is_some_and(takes)
        });
        let Some(member) = to else {
            let nobody = OwnMessage::NobodyThere { id: id.raw() };
            return Some(vec![Out::ToChild(nobody.line())]);
        };
        let token = token.map(|token| Bytes::copy_from_slice(token.raw()));
        let id = Bytes::copy_from_slice(&spelled(id.raw()));
        self.asked.insert(id, QuestionRoute { member, token });
        if let Some(params) = params {
            self.sends_to_page(member, params);
        }
        Some(vec![Out::To(member, message.bytes().clone())])
    }

    /// The one member that has anything in flight; of a child of everybody's it might be another
    /// user's work all the same that is spoken of.
    fn sole_worker(&self) -> Option<u64> {
        if self.everybody {
            return None;
        }
        self.sole(|kind| !matches!(kind, RouteKind::Listen))
    }

    /// The one member that has anything of such a kind in flight.
    fn sole(&self, is_meant: impl Fn(&RouteKind) -> bool) -> Option<u64> {
        let mut members = self
            .routes
            .values()
            .filter(|route| is_meant(&route.kind))
            .filter_map(|route| Some(route.to?.0));
        let first = members.next()?;
        members.all(|member| member == first).then_some(first)
    }

    fn told(&mut self, message: &Message, method: &str) -> Vec<Out> {
        let params = message.root().get("params");
        let subscription = params
            .and_then(|params| params.get("_meta"))
            .and_then(|meta| meta.get(meta::SUBSCRIPTION));
        let named = match method {
            _ if subscription.is_some() => subscription,
            "notifications/progress" => params.and_then(|params| params.get("progressToken")),
            "notifications/cancelled" => {
                let id = params.and_then(|params| params.get("requestId"));
                let asked = id.and_then(|id| self.asked.remove(&*spelled(id.raw())));
                let to = match (asked, id) {
                    (Some(asked), _) => Some(Out::To(asked.member, message.bytes().clone())),
                    (None, Some(id)) => self.subscription_ended(message, id),
                    (None, None) => None,
                };
                return to.into_iter().collect();
            }
            _ => None,
        };
        if let Some(named) = named {
            let Some((to, own)) = named.as_u64().and_then(|number| self.whose(number)) else {
                return Vec::new();
            };
            let own = own.to_string();
            let line = message.with(&[(named.span(), own.as_bytes())]);
            return vec![Out::To(to, line.into())];
        }
        // Of a child of everybody's it might be another user's word; of one user's it is his in any case.
        let (his, worker) = (!self.everybody, self.sole_worker());
        let only = self.asked_by_url(params, method).or(worker);
        let hears = |to: u64, member: &Member| match method {
            "notifications/resources/updated" => params
                .and_then(|params| params.get("uri"))
                .is_some_and(|uri| member.hears_of(uri)),
            "notifications/message" => {
                let level = params.and_then(|params| params.get("level"));
                let level = level.and_then(Value::as_str);
                let level = level.and_then(|level| bridge::log_level(&level));
                let unsaid = || self.logs_unsaid_to(to, worker);
                his && member.level.map_or_else(unsaid, |from| level >= Some(from))
            }
            "notifications/tasks/status" | "notifications/tasks" => {
                let task = params.and_then(|params| params.get("taskId"));
                let owner = task.and_then(|task| self.tasks.get(&text_of(task)));
                owner == Some(&member.principal)
            }
            _ if method.ends_with("/list_changed") => true,
            // Whoever has nothing to do with it cannot say so.
            _ => his && only.is_none_or(|only| only == to),
        };
        let members = self.members.iter();
        let members = members.filter(|(to, member)| hears(**to, member));
        members
            .map(|(to, _)| Out::To(*to, message.bytes().clone()))
            .collect()
    }

    /// Whose request of that number is in flight, or has become a task.
    fn whose(&self, number: u64) -> Option<(u64, u64)> {
        if let Some(route) = self.routes.get(&number) {
            return route.to;
        }
        let (_, to) = self.made.iter().find(|(made, _)| *made == number)?;
        Some(*to)
    }

    /// Whether a member that has named no level hears what the child logs: whose call it must be about, and where no
    /// call tells, all for whom nobody has had the child say more than it does by itself.
    fn logs_unsaid_to(&self, to: u64, worker: Option<u64>) -> bool {
        let mut logged = self
            .routes
            .values()
            .filter(|route| matches!(route.kind, RouteKind::Logged))
            .filter_map(|route| Some(route.to?.0))
            .peekable();
        // A child that speaks modern MCP says what calls have asked for.
        if logged.peek().is_some() {
            return logged.any(|member| member == to);
        }
        worker.map_or(self.level.is_none(), |worker| worker == to)
    }

    /// The member whose client was sent to a page, if this says what has become of that.
    fn asked_by_url(&self, params: Option<Value<'_>>, method: &str) -> Option<u64> {
        if method != "notifications/elicitation/complete" {
            return None;
        }
        let id = text_of(params?.get(ELICITATION)?);
        let mut all = self.sent_to_pages.iter().rev();
        let (_, member) = all.find(|(sent, _)| *sent == id)?;
        Some(*member)
    }

    /// Remembers whose client was sent to a page, until much later.
    fn sends_to_page(&mut self, member: u64, asks: Value<'_>) {
        let id = asks.get(ELICITATION);
        if let Some(id) = id.filter(|id| id.span().len() <= MAX_ID) {
            self.sent_to_pages.push_back((text_of(id), member));
            if self.sent_to_pages.len() > MAX_PAGES {
                self.sent_to_pages.pop_front();
            }
        }
    }

    /// A server may end a subscription by its number, too (mcp-T28): told to whose it was.
    fn subscription_ended(&mut self, message: &Message, id: Value<'_>) -> Option<Out> {
        let number = id.as_u64()?;
        let is_listen = |route: &RequestRoute| matches!(route.kind, RouteKind::Listen);
        if !self.routes.get(&number).is_some_and(is_listen) {
            return None;
        }
        let (to, own) = self.routes.remove(&number)?.to?;
        if let Some(member) = self.members.get_mut(&to) {
            member.numbers.remove(&own);
        }
        let own = own.to_string();
        let line = message.with(&[(id.span(), own.as_bytes())]);
        Some(Out::To(to, line.into()))
    }

    fn remember(&mut self, task: Bytes, owner: PrincipalKey) {
        // An id that is taken stays with whom it was first.
        if self.tasks.contains_key(&task) {
            return;
        }
        self.eldest.push_back(task.clone());
        self.tasks.insert(task, owner);
        if self.eldest.len() > MAX_TASKS {
            self.forget_eldest();
        }
    }

    /// Of whoever has most: nobody's many tasks make another's unknown.
    fn forget_eldest(&mut self) {
        let mut counts: HashMap<PrincipalKey, usize> = HashMap::new();
        for owner in self.tasks.values() {
            *counts.entry(*owner).or_default() += 1;
        }
        let most = counts.into_iter().max_by_key(|(_, count)| *count);
        let theirs = |task: &Bytes| self.tasks.get(task) == most.map(|(owner, _)| owner).as_ref();
        let eldest = self.eldest.iter().position(theirs);
        if let Some(eldest) = eldest.and_then(|at| self.eldest.remove(at)) {
            self.tasks.remove(&eldest);
        }
    }
}

/// Where a refusal sends the user first.
fn pages(error: Value<'_>) -> Option<Value<'_>> {
    let pages = error.get("data")?.get("elicitations")?;
    (pages.kind() == Kind::Array).then_some(pages)
}

/// Calls of which it is known that they have become tasks.
const MAX_MADE: usize = 256;
/// What a page is called towards which a user is sent.
const ELICITATION: &str = "elicitationId";
/// Pages of which it is known whose client was sent there.
const MAX_PAGES: usize = 64;
/// Bytes of the id of a question of the child's, and of its progress token.
const MAX_ID: usize = 256;
/// Questions of the child's that no client has answered.
const MAX_ASKED: usize = 256;
/// Tasks whose owner is known.
const MAX_TASKS: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Identity;

    #[test]
    fn nobodys_many_tasks_make_anothers_unknown() {
        let mut switch = Switch::new(true);
        let key = |subject: &str| Identity::example("https://i", subject).principal_key();
        switch.remember("hers".into(), key("alice"));
        for number in 0..MAX_TASKS + 8 {
            switch.remember(number.to_string().into(), key("mallory"));
        }
        assert_eq!(switch.tasks.get(&b"hers"[..]), Some(&key("alice")));
        assert_eq!(
            (switch.tasks.len(), switch.eldest.len()),
            (MAX_TASKS, MAX_TASKS)
        );
        // Of her own the eldest goes.
        assert!(!switch.tasks.contains_key(&b"0"[..]) && !switch.tasks.contains_key(&b"8"[..]));
        assert!(switch.tasks.contains_key(&b"9"[..]));
    }
}
