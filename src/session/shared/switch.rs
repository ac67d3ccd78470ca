//! Who of those that share one child said or is told what: numbers, tokens and names.
//!
//! Pure: lines in, lines out, each with its way. Every member of a shared child
//! speaks as if it had the child to itself, under its own numbers; here they
//! become numbers of the child, and nothing of one member's is ever another's
//! (inc-7). What no member can be told from (log messages of everybody's child,
//! questions that belong to nobody's call) is given to none: what the child says
//! is in `heard`. Used by `shared`.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use foldhash::HashMap;

use crate::{
    auth::PrincipalKey,
    json::{Kind, Value},
    mcp::{Message, bridge, input::Abilities, meta, method, spelled},
    session::{
        line::Line,
        own::{OwnLine, OwnMessage},
        room::Room,
        shared::{
            member::Member,
            opening::SharedOpening,
            words::{DONE, NO_METHOD, NO_TASK, TOO_MANY, answer, text_of},
        },
        tasks::Strays,
    },
};

/// What comes of what a member has said.
#[derive(Debug, Eq, PartialEq)]
pub(in crate::session) enum SaidByMember {
    ToChild(Line),
    /// It is answered here.
    Answered(Bytes),
}

/// All that is between a child and its members.
pub(in crate::session) struct Switch {
    /// Whether different users meet here.
    pub(in crate::session) everybody: bool,
    pub(in crate::session) members: HashMap<u64, Member>,
    /// The number of the next request towards the child; never used twice.
    pub(in crate::session) next: u64,
    pub(in crate::session) routes: HashMap<u64, RequestRoute>,
    /// The child's own questions, by their id as JSON.
    pub(in crate::session) asked: HashMap<Bytes, QuestionRoute>,
    pub(in crate::session) opening: SharedOpening,
    /// From which level on the child was told last to write log messages.
    pub(in crate::session) level: Option<Level>,
    /// By their ids, the pages that members' clients were sent to; the oldest is forgotten first.
    pub(in crate::session) sent_to_pages: VecDeque<(Bytes, u64)>,
    /// Tasks of the child's, and whose they are; the oldest is forgotten first.
    pub(in crate::session) tasks: HashMap<Bytes, PrincipalKey>,
    pub(in crate::session) eldest: VecDeque<Bytes>,
    pub(in crate::session) strays: Strays,
    /// The numbers of calls that have become tasks, and whose they are: their progress tokens are still good.
    pub(in crate::session) made: VecDeque<(u64, (u64, u64))>,
}

/// What a child was told of the log messages that it is to write.
pub(in crate::session) struct Level {
    /// The number under which it was told; whoever asked may be gone by its answer.
    pub(in crate::session) number: u64,
    from: usize,
    pub(in crate::session) agreed: bool,
}

/// Whose a request is that the child has not answered.
pub(in crate::session) struct RequestRoute {
    /// `None` for what is asked on everybody's behalf.
    pub(in crate::session) to: Option<(u64, u64)>,
    pub(in crate::session) kind: RouteKind,
}

/// What is asked in it.
pub(in crate::session) enum RouteKind {
    Call,
    /// One that wants to hear log messages.
    Logged,
    /// That the child log from the level on that its member wants, who has heard from another before.
    Level {
        before: Option<usize>,
        wanted: usize,
    },
    /// Stays open, and so is nobody's being at work.
    Listen,
    Initialize,
    Subscribe(Bytes),
}

/// Whom a question of the child's was given to, and the token under which its progress is told.
pub(in crate::session) struct QuestionRoute {
    pub(in crate::session) member: u64,
    pub(in crate::session) token: Option<Bytes>,
}

/// A request of a member's, and what stands in it.
struct MemberRequest<'a> {
    message: &'a Message,
    id: Value<'a>,
    params: Option<Value<'a>>,
    meta: Option<Value<'a>>,
}

impl Switch {
    pub(in crate::session) fn new(everybody: bool) -> Self {
        Self {
            everybody,
            members: HashMap::default(),
            next: 1,
            routes: HashMap::default(),
            asked: HashMap::default(),
            opening: SharedOpening::default(),
            level: None,
            sent_to_pages: VecDeque::new(),
            tasks: HashMap::default(),
            eldest: VecDeque::new(),
            strays: Strays::default(),
            made: VecDeque::new(),
        }
    }

    pub(in crate::session) fn join(
        &mut self,
        member: u64,
        principal: PrincipalKey,
        caller: Option<Bytes>,
        room: Arc<Room>,
    ) {
        let joins = Member::new(principal, caller, room);
        self.members.insert(member, joins);
    }

    /// What the child is told for what is left of a member's.
    pub(in crate::session) fn leave(&mut self, member: u64) -> Vec<OwnLine> {
        let mut out = Vec::new();
        let Some(gone) = self.members.remove(&member) else {
            return out;
        };
        self.opening.forget(member);
        self.made.retain(|(_, (to, _))| *to != member);
        for number in gone.numbers.into_values() {
            if self.routes.remove(&number).is_some() {
                let own = OwnMessage::Cancelled {
                    number,
                    reason: "the client has gone",
                };
                out.push(own.line());
            }
        }
        for uri in gone.subscribed {
            if !self.is_subscribed(&uri) {
                // Nobody waits for what it says to that.
                let number = self.next_number();
                let uri = &String::from_utf8_lossy(&uri);
                let own = OwnMessage::Unsubscribe { number, uri };
                out.push(own.line());
            }
        }
        let asked = self.asked.extract_if(|_, asked| asked.member == member);
        for (id, _) in asked {
            out.push(OwnMessage::NobodyThere { id: &id }.line());
        }
        out
    }

    /// How many questions of members' wait for the child.
    pub(in crate::session) fn waiting(&self) -> usize {
        let waits = |route: &&RequestRoute| !matches!(route.kind, RouteKind::Listen);
        self.routes.values().filter(waits).count()
    }

    /// What a member says; `None` for what is for nobody.
    pub(in crate::session) fn said_by_member(
        &mut self,
        member: u64,
        message: &Message,
    ) -> Option<SaidByMember> {
        let root = message.root();
        match (root.get("method").and_then(Value::as_str), root.get("id")) {
            (Some(method), Some(id)) => self.request(member, message, &method, id),
            (Some(method), None) => self.notice(member, message, &method),
            (None, Some(id)) => {
                let mine = |asked: &QuestionRoute| asked.member == member;
                let id = spelled(id.raw());
                if !self.asked.get(&*id).is_some_and(mine) {
                    return None;
                }
                self.asked.remove(&*id);
                Some(SaidByMember::ToChild(Line::of(message, &[])))
            }
            (None, None) => None,
        }
    }

    fn request(
        &mut self,
        member: u64,
        message: &Message,
        method: &str,
        id: Value<'_>,
    ) -> Option<SaidByMember> {
        let params = message.root().get("params");
        let (Some(own), true) = (id.as_u64(), self.members.contains_key(&member)) else {
            return None;
        };
        if method == "initialize" {
            return self.initialize(member, own, params);
        }
        let meta = params.and_then(|params| params.get("_meta"));
        let wants_logs = || meta.is_some_and(|meta| meta.get(meta::LOG_LEVEL).is_some());
        let kind = match self.kind_of(member, method, params) {
            Ok(RouteKind::Call) if wants_logs() => RouteKind::Logged,
            Ok(kind) => kind,
            Err(text) => return Some(SaidByMember::Answered(answer(id.raw(), text))),
        };
        self.strays.called(method);
        let request = MemberRequest {
            message,
            id,
            params,
            meta,
        };
        let line = self.told_to_child((member, own), kind, &request);
        Some(SaidByMember::ToChild(line))
    }

    /// What is asked of the child; or what the member is answered, whose request is none of the child's business.
    fn kind_of(
        &mut self,
        member: u64,
        method: &str,
        params: Option<Value<'_>>,
    ) -> Result<RouteKind, &'static [u8]> {
        Ok(match method {
            method::LISTEN if self.everybody && !self.owns_what_it_hears(member, params) => {
                return Err(NO_TASK);
            }
            method::LISTEN => RouteKind::Listen,
            "resources/subscribe" => self.subscribe(member, params)?,
            "resources/unsubscribe" => self.unsubscribe(member, params)?,
            // Of a child of everybody's nobody can say whose work a message tells of.
            "logging/setLevel" | "tasks/list" if self.everybody => return Err(NO_METHOD),
            "logging/setLevel" => self.set_level(member, params)?,
            _ if self.everybody && method.starts_with("tasks/") => {
                let task = params.and_then(|params| params.get("taskId"));
                if !task.is_some_and(|task| self.owns(member, task)) {
                    return Err(NO_TASK);
                }
                RouteKind::Call
            }
            _ => RouteKind::Call,
        })
    }

    fn subscribe(
        &mut self,
        member: u64,
        params: Option<Value<'_>>,
    ) -> Result<RouteKind, &'static [u8]> {
        let Some(uri) = params.and_then(|params| params.get("uri")) else {
            return Ok(RouteKind::Call);
        };
        let member = self.members.get_mut(&member);
        let uri = member.and_then(|it| it.subscribe(text_of(uri)));
        Ok(RouteKind::Subscribe(uri.ok_or(TOO_MANY)?))
    }

    /// The child is told only when no other member hears of the resource.
    fn unsubscribe(
        &mut self,
        member: u64,
        params: Option<Value<'_>>,
    ) -> Result<RouteKind, &'static [u8]> {
        if let Some(uri) = params.and_then(|params| params.get("uri")) {
            let uri = text_of(uri);
            if let Some(member) = self.members.get_mut(&member) {
                member.subscribed.remove(&uri);
            }
            if self.is_subscribed(&uri) {
                return Err(DONE);
            }
        }
        Ok(RouteKind::Call)
    }

    /// The child logs from the lowest level on that any member wants, and is told only what it does not do yet.
    fn set_level(
        &mut self,
        member: u64,
        params: Option<Value<'_>>,
    ) -> Result<RouteKind, &'static [u8]> {
        let wanted = params
            .and_then(|params| params.get("level"))
            .and_then(Value::as_str)
            .and_then(|name| bridge::log_level(&name));
        let Some(wanted) = wanted else {
            return Ok(RouteKind::Call);
        };
        let member = self.members.get_mut(&member);
        let before = member.and_then(|member| member.level.replace(wanted));
        let levels = self.members.values().filter_map(|member| member.level);
        let from = levels.min().unwrap_or(wanted);
        let says = |told: &Level| told.agreed && told.from == from;
        if self.level.as_ref().is_some_and(says) {
            return Err(DONE);
        }
        self.level = Some(Level {
            number: self.next,
            from,
            agreed: false,
        });
        Ok(RouteKind::Level { before, wanted })
    }

    /// The member's request under the child's number, with what the child is told of who calls.
    fn told_to_child(
        &mut self,
        (member, own): (u64, u64),
        kind: RouteKind,
        request: &MemberRequest<'_>,
    ) -> Line {
        let mut changes = Vec::new();
        let level = match (&kind, &self.level) {
            (RouteKind::Level { .. }, Some(told)) => {
                Some(format!("\"{}\"", bridge::level_name(told.from)))
            }
            _ => None,
        };
        if let Some(level) = &level
            && let Some(named) = request.params.and_then(|params| params.get("level"))
        {
            changes.push((named.span(), level.as_bytes()));
        }
        let number = self.number(Some((member, own)), kind);
        let text = number.to_string();
        changes.push((request.id.span(), text.as_bytes()));
        if let Some(token) = request.meta.and_then(|meta| meta.get("progressToken")) {
            changes.push((token.span(), text.as_bytes()));
        }
        let caller = self.members.get(&member).and_then(|it| it.caller.clone());
        let told = caller.map(|caller| meta::added(request.message, &[(meta::CALLER, &caller)]));
        for (span, text) in told.iter().flatten() {
            changes.push((span.clone(), text.as_slice()));
        }
        changes.sort_by_key(|(span, _)| span.start);
        Line::of(request.message, &changes)
    }

    fn initialize(
        &mut self,
        member: u64,
        own: u64,
        params: Option<Value<'_>>,
    ) -> Option<SaidByMember> {
        let can = params.and_then(|params| params.get("capabilities"));
        if let Some(member) = self.members.get_mut(&member) {
            member.abilities = Abilities::read(can);
        }
        let version = params.and_then(|params| params.get("protocolVersion"));
        let version = version.and_then(Value::as_str).unwrap_or_default();
        if let Some(answer) = self.opening.answer(own, &version) {
            return Some(SaidByMember::Answered(answer));
        }
        if self.opening.wait(member, own, &version) {
            return None;
        }
        let number = self.number(None, RouteKind::Initialize);
        let asks = !self.everybody;
        let own = OwnMessage::Open { number, asks };
        Some(SaidByMember::ToChild(own.line().into()))
    }

    fn notice(&mut self, member: u64, message: &Message, method: &str) -> Option<SaidByMember> {
        let params = message.root().get("params");
        match method {
            "notifications/cancelled" => {
                let named = params.and_then(|params| params.get("requestId"));
                let own = named.and_then(Value::as_u64);
                let numbers = self.members.get_mut(&member).map(|it| &mut it.numbers);
                let number = own.zip(numbers).and_then(|(own, all)| all.remove(&own))?;
                self.routes.remove(&number);
                let text = number.to_string();
                let line = Line::of(message, &[(named?.span(), text.as_bytes())]);
                Some(SaidByMember::ToChild(line))
            }
            "notifications/progress" => {
                let token = params.and_then(|params| params.get("progressToken"));
                let mine = |asked: &QuestionRoute| {
                    let same = |token: Value<'_>| asked.token.as_deref() == Some(token.raw());
                    asked.member == member && token.is_some_and(same)
                };
                let is_asked = self.asked.values().any(mine);
                is_asked.then(|| SaidByMember::ToChild(Line::of(message, &[])))
            }
            // The child was told once that the conversation is open; and of the
            // state of one of its clients it must not believe that it is all of theirs.
            _ => None,
        }
    }

    fn number(&mut self, to: Option<(u64, u64)>, kind: RouteKind) -> u64 {
        let number = self.next_number();
        self.routes.insert(number, RequestRoute { to, kind });
        if let Some((member, own)) = to
            && let Some(member) = self.members.get_mut(&member)
        {
            member.is_numbered(own, number, &mut self.routes);
        }
        number
    }

    pub(in crate::session) fn next_number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    /// Whether the task is of this member's user.
    fn owns(&self, member: u64, task: Value<'_>) -> bool {
        let owner = self.tasks.get(&text_of(task));
        let asks = self.members.get(&member).map(|member| &member.principal);
        owner.is_some() && owner == asks
    }

    /// Whether the tasks that a subscription names are of this member's user, each of them.
    fn owns_what_it_hears(&self, member: u64, params: Option<Value<'_>>) -> bool {
        let wanted = params.and_then(|params| params.get("notifications"));
        let tasks = wanted.and_then(|wanted| wanted.get("taskIds"));
        tasks.is_none_or(|tasks| {
            tasks.kind() == Kind::Array && tasks.elements().all(|task| self.owns(member, task))
        })
    }

    fn is_subscribed(&self, uri: &Bytes) -> bool {
        let mut members = self.members.values();
        members.any(|member| member.subscribed.contains(uri))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        auth::Identity,
        mcp::task,
        session::{
            room::Rooms,
            shared::{
                heard::Out,
                member::{MAX_NUMBERS, MAX_SUBSCRIBED},
            },
        },
    };

    /// Lines as they come.
    trait Lines {
        fn says(&mut self, member: u64, line: Bytes) -> Option<SaidByMember>;
        fn answers(&mut self, line: Bytes) -> Option<Vec<Out>>;
    }

    impl Lines for Switch {
        fn says(&mut self, member: u64, line: Bytes) -> Option<SaidByMember> {
            self.said_by_member(member, &Message::parse(line).unwrap())
        }

        fn answers(&mut self, line: Bytes) -> Option<Vec<Out>> {
            let message = Message::parse(line).unwrap();
            Some(self.said_by_child(&message)?.written(&message))
        }
    }

    fn key(subject: &str) -> PrincipalKey {
        Identity::example("https://i", subject).principal_key()
    }

    fn switch(everybody: bool) -> Switch {
        switch_in(everybody, &Rooms::new(1))
    }

    /// The same, with that memory for its members.
    fn switch_in(everybody: bool, rooms: &Rooms) -> Switch {
        let mut switch = Switch::new(everybody);
        for member in 0..4 {
            let user = key(&format!("user-{}", member % 2));
            switch.join(member, user, None, rooms.room(user));
        }
        switch
    }

    fn line(text: String) -> Bytes {
        Bytes::from(text)
    }

    /// What of a member's goes to the child, without its end.
    fn sent(said: Option<SaidByMember>) -> Bytes {
        match said {
            Some(SaidByMember::ToChild(Line::Whole(line))) => line.slice(..line.len() - 1),
            other => panic!("{other:?}"),
        }
    }

    /// The text with which a member is answered here.
    fn answered(said: Option<SaidByMember>) -> Bytes {
        match said {
            Some(SaidByMember::Answered(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    /// What the child is told for what it has said.
    fn told(out: &[Out]) -> Bytes {
        match out {
            [Out::ToChild(line)] => line.text(),
            other => panic!("{other:?}"),
        }
    }

    /// All that the child is told when that member leaves.
    fn left(switch: &mut Switch, member: u64) -> String {
        let lines = switch.leave(member).into_iter();
        lines
            .map(|line| String::from_utf8(line.text().to_vec()).unwrap())
            .collect()
    }

    proptest! {
        /// inc-7: whatever the order of asking and of answering, an answer and the progress before it are
        /// the asker's, and of a message only number and token are ever others.
        #[test]
        fn answers_and_progress_are_the_askers_and_all_else_stays_byte_for_byte(
            asks in prop::collection::vec((0_u64..4, any::<u32>()), 1..60),
            order in any::<u64>(),
        ) {
            let mut switch = switch(true);
            let mut next = [1_u64; 4];
            let mut waiting = Vec::new();
            for (member, salt) in asks {
                let own = next[member as usize];
                next[member as usize] += 1;
                let text = |number: &str| format!(
                    r#"{{"jsonrpc":"2.0", "method":"tools/call","id":{number},"params":{{"n":1.50e+{salt},"_meta":{{"progressToken":{number} }},"u":"\u00e9é"}}}}"#
                );
                let told = sent(switch.says(member, line(text(&own.to_string()))));
                let number = Message::parse(told.clone()).unwrap().root().get("id").and_then(Value::as_u64).unwrap();
                prop_assert_eq!(&told, &line(text(&number.to_string())));
                waiting.push((member, own, number, salt));
            }
            let mut order = order;
            while !waiting.is_empty() {
                order = order.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let (member, own, number, salt) = waiting.swap_remove((order >> 33) as usize % waiting.len());
                let progress = |number: u64| line(format!(
                    r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progress":{salt}.0,"progressToken":{number}}}}}"#
                ));
                prop_assert_eq!(switch.answers(progress(number)), Some(vec![Out::To(member, progress(own))]));
                let answer = |number: u64| line(format!(r#"{{"result":{{"s": {salt}e0}},"id":{number},"jsonrpc":"2.0"}}"#));
                prop_assert_eq!(switch.answers(answer(number)), Some(vec![Out::To(member, answer(own))]));
                // Once more it is nobody's.
                prop_assert_eq!(switch.answers(answer(number)), Some(Vec::new()));
                prop_assert_eq!(switch.answers(progress(number)), Some(Vec::new()));
            }
            prop_assert_eq!(switch.waiting(), 0);
        }
    }

    #[test]
    fn a_task_is_its_makers_alone_where_users_meet() {
        let mut switch = switch(true);
        let call = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"task":{}}}"#;
        sent(switch.says(0, call.into()));
        switch
            .answers(r#"{"jsonrpc":"2.0","id":1,"result":{"task":{"taskId":"t"}}}"#.into())
            .unwrap();
        let get = r#"{"jsonrpc":"2.0","id":2,"method":"tasks/get","params":{"taskId":"t"}}"#;
        // Its progress is for the call that it was.
        let step =
            r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1}}"#;
        assert_eq!(
            switch.answers(step.into()),
            Some(vec![Out::To(0, step.into())])
        );
        // Member 2 is the same user; 1 and 3 are another.
        sent(switch.says(2, get.into()));
        for other in [1, 3] {
            let refused = switch.says(other, get.into());
            assert!(answered(refused).ends_with(b"no such task\"}}"));
        }
        let status =
            r#"{"jsonrpc":"2.0","method":"notifications/tasks/status","params":{"taskId":"t"}}"#;
        let mut told: Vec<_> = switch.answers(status.into()).unwrap();
        told.sort_by_key(|out| matches!(out, Out::To(2, _)));
        assert_eq!(told, [Out::To(0, status.into()), Out::To(2, status.into())]);
    }

    /// fault-46: the progress token of a question is kept until that is answered, as its id is: with longer ones nobody is
    /// asked, and the child is told so, for it waits.
    #[test]
    fn a_question_with_too_long_an_id_or_progress_token_is_answered_here() {
        for (id, token, is_asked) in [
            (254, 254, true),
            (1, 255, false),
            (255, 1, false),
            (3000, 1, false),
        ] {
            let mut switch = switch(false);
            let can = r#"{"capabilities":{"elicitation":{}}}"#;
            let opens =
                format!(r#"{{"jsonrpc":"2.0","id":1,"method":"initialize","params":{can}}}"#);
            sent(switch.says(0, line(opens)));
            let opened = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{can}}}"#);
            switch.answers(line(opened)).unwrap();
            let call = r#"{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"x"}}"#;
            sent(switch.says(0, call.into()));
            let (id, token) = ("q".repeat(id), "t".repeat(token));
            let asks = format!(
                r#"{{"jsonrpc":"2.0","id":"{id}","method":"elicitation/create","params":{{"_meta":{{"progressToken":"{token}"}}}}}}"#
            );
            let out = switch.answers(line(asks)).unwrap();
            if is_asked {
                assert!(matches!(out[..], [Out::To(0, _)]), "{out:?}");
            } else {
                let told = String::from_utf8(told(&out).to_vec()).unwrap();
                let nobody = format!(r#"{{"jsonrpc":"2.0","id":"{id}","error":{{"code":-32601,"#);
                assert!(told.starts_with(&nobody), "{told}");
            }
            assert_eq!(switch.asked.len(), usize::from(is_asked));
        }
    }

    /// fault-46: whose such a task is nobody remembers, so it is nobody's; the child is told to end it, in its own era's words.
    #[test]
    fn a_task_with_too_long_an_id_is_nobodys_and_ends() {
        for (longer, more, is_remembered) in [
            (0, "", true),
            (1, "", false),
            (1, r#""resultType":"task","#, false),
            (1 << 20, "", false),
        ] {
            let mut switch = switch(true);
            let call = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"task":{}}}"#;
            sent(switch.says(0, call.into()));
            let id = "k".repeat(task::MAX_ID - 2 + longer);
            let made = format!(
                r#"{{"jsonrpc":"2.0","id":1,"result":{{{more}"task":{{"taskId":"{id}","status":"working"}}}}}}"#
            );
            let out = switch.answers(line(made)).unwrap();
            // As long as can be told.
            let ends = !is_remembered && longer == 1;
            assert_eq!(out.len(), 1 + usize::from(ends));
            if ends {
                let [Out::Ends(told), _] = &out[..] else {
                    panic!("{out:?}");
                };
                let told: serde_json::Value = serde_json::from_slice(&told.text()).unwrap();
                assert_eq!(told["method"], "tasks/cancel");
                assert_eq!(told["params"]["taskId"], *id);
                assert_eq!(told["params"].get("_meta").is_some(), !more.is_empty());
            }
            assert_eq!(switch.tasks.len(), usize::from(is_remembered));
            let get = format!(
                r#"{{"jsonrpc":"2.0","id":2,"method":"tasks/get","params":{{"taskId":"{id}"}}}}"#
            );
            let out = switch.says(0, line(get));
            assert_eq!(matches!(out, Some(SaidByMember::ToChild(_))), is_remembered);
        }
    }

    /// A task of which the child tells when the call has ended here is nobody's, and so is a second one of the same call;
    /// what is somebody's stays, however often it is said.
    #[test]
    fn a_task_that_comes_too_late_or_is_one_too_many_ends() {
        for everybody in [false, true] {
            let mut switch = switch(everybody);
            let calls = |switch: &mut Switch, own: u64, method: &str| {
                let call = format!(
                    r#"{{"jsonrpc":"2.0","id":{own},"method":"{method}","params":{{"task":{{}}}}}}"#
                );
                sent(switch.says(0, line(call)));
                switch.next - 1
            };
            let makes = |switch: &mut Switch, number: u64, result: &str| {
                let made = format!(r#"{{"jsonrpc":"2.0","id":{number},"result":{result}}}"#);
                match &switch.answers(line(made)).unwrap()[..] {
                    [] => "nobody's".to_owned(),
                    [Out::To(0, _)] => "told".to_owned(),
                    [Out::Ends(told)] => {
                        let told: serde_json::Value = serde_json::from_slice(&told.text()).unwrap();
                        assert_eq!(told["method"], "tasks/cancel");
                        told["params"]["taskId"].as_str().unwrap().to_owned()
                    }
                    other => panic!("{other:?}"),
                }
            };
            let task = |id: &str| format!(r#"{{"task":{{"taskId":"{id}","status":"working"}}}}"#);
            let modern =
                |id: &str| format!(r#"{{"resultType":"task","taskId":"{id}","status":"working"}}"#);
            let cancels = |switch: &mut Switch, own: u64| {
                let cancels = format!(
                    r#"{{"method":"notifications/cancelled","params":{{"requestId":{own}}}}}"#
                );
                sent(switch.says(0, line(cancels)));
            };
            for (own, made) in [(1, task("a")), (2, modern("a"))] {
                let number = calls(&mut switch, own, "tools/call");
                cancels(&mut switch, own);
                assert_eq!(makes(&mut switch, number, &made), "a");
            }
            let number = calls(&mut switch, 3, "tools/call");
            for (made, becomes) in [
                (task("b"), "told"),
                (task("b"), "nobody's"),
                (task("c"), "c"),
            ] {
                assert_eq!(makes(&mut switch, number, &made), becomes);
            }
            // What tells of a task makes none.
            let stands = r#"{"taskId":"d","status":"working"}"#;
            let number = calls(&mut switch, 4, "resources/read");
            cancels(&mut switch, 4);
            assert_eq!(makes(&mut switch, number, stands), "nobody's");
            // What is said of the cancelling, by some as of a task that was made, has no answer.
            let number = calls(&mut switch, 6, "tools/call");
            cancels(&mut switch, 6);
            let over = r#"{"task":{"taskId":"f","status":"cancelled"}}"#;
            assert_eq!(makes(&mut switch, number, over), "nobody's");
            let number = calls(&mut switch, 5, "tools/call");
            switch.leave(0);
            assert_eq!(makes(&mut switch, number, &task("e")), "e");
        }
    }

    /// fault-46: a server that goes on with such a task, whenever it is told to end it, is told so no more often than it was
    /// called.
    #[test]
    fn a_server_that_does_not_end_its_tasks_is_let_go() {
        for everybody in [false, true] {
            let mut switch = switch(everybody);
            for own in 1..=3 {
                let call = format!(r#"{{"jsonrpc":"2.0","id":{own},"method":"tools/call"}}"#);
                sent(switch.says(0, line(call)));
            }
            switch.leave(0);
            let mut number = 1;
            let mut told = 0;
            loop {
                let made = format!(
                    r#"{{"jsonrpc":"2.0","id":{number},"result":{{"task":{{"taskId":"a","status":"working"}}}}}}"#
                );
                let out = switch.answers(line(made)).unwrap();
                let [Out::Ends(ends)] = &out[..] else {
                    break;
                };
                let ends: serde_json::Value = serde_json::from_slice(&ends.text()).unwrap();
                number = ends["id"].as_u64().unwrap();
                told += 1;
                assert!(told <= 3);
            }
            assert_eq!(told, 3);
        }
    }

    #[test]
    fn nobody_listens_to_anothers_task() {
        let mut switch = switch(true);
        let call = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x"}}"#;
        sent(switch.says(0, call.into()));
        switch
            .answers(
                r#"{"jsonrpc":"2.0","id":1,"result":{"taskId":"t","resultType":"task"}}"#.into(),
            )
            .unwrap();
        let listen = r#"{"jsonrpc":"2.0","id":2,"method":"subscriptions/listen","params":{"notifications":{"taskIds":["\u0074"]}}}"#;
        let refused = switch.says(1, listen.into());
        assert!(answered(refused).ends_with(b"no such task\"}}"));
        sent(switch.says(2, listen.into()));
        // What is no list of names is nobody's business to understand.
        for odd in [r#""t""#, r#"{"t":1}"#, "[[\"t\"]]"] {
            let odd = listen.replace(r#"["\u0074"]"#, odd);
            answered(switch.says(0, odd.into()));
        }
    }

    #[test]
    fn log_levels_are_merged_and_each_hears_from_his_own_on() {
        let mut switch = switch(false);
        let set = |level: &str| {
            format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"logging/setLevel","params":{{"level":"{level}"}}}}"#
            )
        };
        assert!(sent(switch.says(0, set("warning").into())).ends_with(b"\"warning\"}}"));
        assert!(sent(switch.says(1, set("info").into())).ends_with(b"\"info\"}}"));
        // Until it has agreed nobody is told that it does.
        for refused in [1, 2] {
            let error = format!(r#"{{"jsonrpc":"2.0","id":{refused},"error":{{"code":-32603}}}}"#);
            switch.answers(error.into()).unwrap();
        }
        assert!(sent(switch.says(1, set("info").into())).ends_with(b"\"info\"}}"));
        switch
            .answers(r#"{"jsonrpc":"2.0","id":3,"result":{}}"#.into())
            .unwrap();
        // The child says that much already.
        answered(switch.says(2, set("error").into()));
        let log = r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":1}}"#;
        assert_eq!(
            switch.answers(log.into()),
            Some(vec![Out::To(1, log.into())])
        );
    }

    /// From which level on a child logs is known by what it agreed to last, also where that comes out of order or to nobody;
    /// what it refuses changes nothing for whoever asked.
    #[test]
    fn a_childs_log_level_is_what_it_was_told_last() {
        let set = |level: &str| {
            line(format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"logging/setLevel","params":{{"level":"{level}"}}}}"#
            ))
        };
        let agrees = |number: u64| {
            line(format!(
                r#"{{"jsonrpc":"2.0","id":{number},"result":{{}}}}"#
            ))
        };
        let log = |level: &str| {
            line(format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/message","params":{{"level":"{level}","data":1}}}}"#
            ))
        };
        // Its asker leaves, or does not wait.
        let cancels = r#"{"method":"notifications/cancelled","params":{"requestId":1}}"#;
        for leaves in [true, false] {
            let mut switch = switch(false);
            sent(switch.says(0, set("info")));
            if leaves {
                switch.leave(0);
            } else {
                switch.says(0, cancels.into());
            }
            switch.answers(agrees(1)).unwrap();
            answered(switch.says(1, set("info")));
            // Nobody else is told more than before.
            let told = switch.answers(log("info")).unwrap();
            assert_eq!(told.len(), if leaves { 1 } else { 2 });
        }
        // It has been told twice, and says so the other way round.
        let mut switch = switch(false);
        for level in ["info", "warning"] {
            sent(switch.says(0, set(level)));
        }
        for number in [2, 1] {
            switch.answers(agrees(number)).unwrap();
        }
        sent(switch.says(1, set("info")));
        switch.answers(agrees(3)).unwrap();
        answered(switch.says(1, set("info")));
        // And while it is told something else.
        sent(switch.says(1, set("error")));
        sent(switch.says(2, set("warning")));

        for fails in [true, false] {
            let mut switch = self::switch(false);
            sent(switch.says(0, set("info")));
            if fails {
                switch.failed(1);
            } else {
                let error = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32601}}"#;
                switch.answers(error.into()).unwrap();
            }
            assert_eq!(switch.members[&0].level, None);
        }
        let refused = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32601}}"#;
        // What it wants by now is what it has asked for last, whatever becomes of the first.
        let mut switch = self::switch(false);
        for level in ["info", "warning"] {
            sent(switch.says(0, set(level)));
        }
        switch.answers(refused.into()).unwrap();
        assert_eq!(switch.members[&0].level, bridge::log_level("warning"));
        let mut switch = self::switch(false);
        sent(switch.says(0, set("info")));
        switch.answers(refused.into()).unwrap();
        assert_eq!(switch.answers(log("debug")).unwrap().len(), 4);
    }

    /// What a user's child says of nothing in particular goes to whose call runs, where that is one member's, and else to
    /// all of his that want it; where users meet, to nobody. That a user was at a page is for whose client was sent there.
    #[test]
    fn a_users_members_hear_what_his_child_says() {
        let call = |id: u64| {
            format!(
                r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"x"}}}}"#
            )
        };
        let log = r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":1}}"#;
        let own = r#"{"jsonrpc":"2.0","method":"notifications/of/its/own"}"#;
        let complete = |page: &str| {
            format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/elicitation/complete","params":{{"elicitationId":"{page}"}}}}"#
            )
        };
        for everybody in [false, true] {
            let mut switch = Switch::new(everybody);
            for member in 0..3 {
                switch.join(member, key("alice"), None, Rooms::new(1).room(key("alice")));
            }
            let hear = |switch: &mut Switch, text: &str| {
                let out = switch.answers(text.to_owned().into()).unwrap();
                let to = out.into_iter().map(|out| match out {
                    Out::To(to, line) if line == text => to,
                    other => panic!("{other:?}"),
                });
                let mut to: Vec<u64> = to.collect();
                to.sort_unstable();
                to
            };
            let his = |to: &[u64]| if everybody { Vec::new() } else { to.to_vec() };
            for text in [log, own] {
                assert_eq!(hear(&mut switch, text), his(&[0, 1, 2]));
            }
            sent(switch.says(1, call(1).into()));
            for text in [log, own, &complete("a")] {
                assert_eq!(hear(&mut switch, text), his(&[1]));
            }
            let refused = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32042,"data":{"elicitations":[{"elicitationId":"a"},{"elicitationId":"b"}]}}}"#;
            switch.answers(refused.into()).unwrap();
            for member in [0, 2] {
                sent(switch.says(member, call(1).into()));
            }
            for text in [log, own, &complete("c")] {
                assert_eq!(hear(&mut switch, text), his(&[0, 1, 2]));
            }
            assert_eq!(hear(&mut switch, &complete("b")), his(&[1]));
            switch.leave(1);
            assert_eq!(hear(&mut switch, &complete("a")), his(&[]));
        }
    }

    #[test]
    fn who_leaves_takes_his_calls_and_subscriptions_along() {
        let mut switch = switch(true);
        let on =
            r#"{"jsonrpc":"2.0","id":1,"method":"resources/subscribe","params":{"uri":"a:b"}}"#;
        sent(switch.says(0, on.into()));
        switch
            .answers(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#.into())
            .unwrap();
        sent(switch.says(
            0,
            r#"{"jsonrpc":"2.0","id":2,"method":"tools/call"}"#.into(),
        ));
        let left = left(&mut switch, 0);
        assert!(
            left.contains("notifications/cancelled") && left.contains(r#""requestId":2"#),
            "{left}"
        );
        assert!(
            left.contains("resources/unsubscribe") && left.contains("a:b"),
            "{left}"
        );
        assert_eq!(
            switch.answers(r#"{"jsonrpc":"2.0","id":2,"result":{}}"#.into()),
            Some(Vec::new())
        );
    }

    /// mcp-T29: what a child logs while one call has asked for that is told to whose call it is, and to nobody else.
    #[test]
    fn a_log_message_is_for_the_member_whose_call_asked_for_any() {
        let log = r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":1}}"#;
        let asks = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","_meta":{"io.modelcontextprotocol/logLevel":"info"}}}"#;
        let plain = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x"}}"#;
        let mut switch = switch(false);
        sent(switch.says(0, asks.into()));
        sent(switch.says(1, plain.into()));
        let told = vec![Out::To(0, log.into())];
        assert_eq!(switch.answers(log.into()), Some(told));
    }

    /// json-18, inc-7: what a member cancels is its own call, under the number that the child knows; what is another's, or
    /// nobody's, does not reach the child.
    #[test]
    fn a_member_cancels_its_own_calls_alone() {
        let mut switch = switch(false);
        let call = |own: u64| {
            line(format!(
                r#"{{"jsonrpc":"2.0","id":{own},"method":"tools/call"}}"#
            ))
        };
        let cancels = |number: u64| {
            line(format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{number}}}}}"#
            ))
        };
        sent(switch.says(0, call(1)));
        sent(switch.says(1, call(7)));
        // The child knows them as 1 and 2.
        for (member, other) in [(1, 1), (1, 2), (0, 2), (0, 7), (2, 7)] {
            assert_eq!(
                switch.says(member, cancels(other)),
                None,
                "{member} {other}"
            );
        }
        assert_eq!(sent(switch.says(1, cancels(7))), cancels(2));
        assert_eq!(switch.says(1, cancels(7)), None, "it is no more");
        let answer = line(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#.to_owned());
        assert!(matches!(
            switch.answers(answer).as_deref(),
            Some([Out::To(0, _)])
        ));
    }

    /// json-19: a child's question is answered by the member that was asked, and its progress told by that one alone; nobody
    /// is asked for roots, nor anybody where users meet.
    #[test]
    fn a_childs_question_is_for_who_was_asked() {
        let can = r#"{"capabilities":{"elicitation":{},"roots":{}}}"#;
        let asks = |method: &str| {
            line(format!(
                r#"{{"jsonrpc":"2.0","id":"q","method":"{method}","params":{{"_meta":{{"progressToken":"t"}}}}}}"#
            ))
        };
        let answer = || line(r#"{"jsonrpc":"2.0","id":"q","result":{}}"#.to_owned());
        let progress = || {
            let text = r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"t"}}"#;
            line(text.to_owned())
        };
        for (everybody, method, is_asked) in [
            (false, "elicitation/create", true),
            (false, "roots/list", false),
            (true, "elicitation/create", false),
        ] {
            let mut switch = switch(everybody);
            let opens =
                format!(r#"{{"jsonrpc":"2.0","id":1,"method":"initialize","params":{can}}}"#);
            for member in [0, 1] {
                switch.says(member, line(opens.clone()));
            }
            let opened = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{can}}}"#);
            switch.answers(line(opened)).unwrap();
            let call = r#"{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"x"}}"#;
            sent(switch.says(0, call.into()));
            let asked = switch.answers(asks(method)).unwrap();
            if !is_asked {
                let told = told(&asked);
                assert!(told.starts_with(br#"{"jsonrpc":"2.0","id":"q","error""#));
                continue;
            }
            assert_eq!(asked, [Out::To(0, asks(method))]);
            assert_eq!(switch.says(1, progress()), None);
            assert_eq!(sent(switch.says(0, progress())), progress());
            assert_eq!(switch.says(1, answer()), None);
            assert_eq!(sent(switch.says(0, answer())), answer());
            assert_eq!(switch.says(0, answer()), None, "it is answered");
        }
    }

    /// mcp-T28: a child ends a subscription under its own number, of which the member hears under his; what is no subscription
    /// is not ended so. A question of a member that leaves is nobody's, and the child is told.
    #[test]
    fn what_a_child_ends_is_its_members_subscription() {
        let mut switch = switch(false);
        let asks = |own: u64, method: &str| {
            line(format!(
                r#"{{"jsonrpc":"2.0","id":{own},"method":"{method}"}}"#
            ))
        };
        let ends = |number: u64| {
            line(format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{number}}}}}"#
            ))
        };
        sent(switch.says(0, asks(7, "tools/call")));
        sent(switch.says(1, asks(9, method::LISTEN)));
        assert_eq!(switch.answers(ends(1)), Some(Vec::new()));
        assert_eq!(switch.answers(ends(2)), Some(vec![Out::To(1, ends(9))]));
        assert_eq!(switch.answers(ends(2)), Some(Vec::new()), "it has ended");
        let (member, token) = (0, None);
        switch
            .asked
            .insert("\"q\"".into(), QuestionRoute { member, token });
        assert!(switch.leave(1).is_empty());
        let left = left(&mut switch, 0);
        let nobody = r#"{"jsonrpc":"2.0","id":"q","error":{"code":-32601"#;
        assert!(left.contains(nobody), "{left}");
    }

    /// mcp-L11: where users meet, nobody lists all tasks or says from which level on the child logs, and a task's id that
    /// the child gives to a second user stays the first one's.
    #[test]
    fn what_is_of_all_users_is_nobodys_where_they_meet() {
        let mut switch = switch(true);
        for method in ["tasks/list", "logging/setLevel"] {
            let asks = format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{{"level":"debug"}}}}"#
            );
            let refused = answered(switch.says(0, line(asks)));
            assert_eq!(refused, answer(b"1", NO_METHOD), "{method}");
        }
        let call = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"task":{}}}"#;
        for (member, number) in [(0, 1), (1, 2)] {
            sent(switch.says(member, call.into()));
            let made = format!(
                r#"{{"jsonrpc":"2.0","id":{number},"result":{{"task":{{"taskId":"t","status":"working"}}}}}}"#
            );
            switch.answers(line(made)).unwrap();
        }
        let get = r#"{"jsonrpc":"2.0","id":2,"method":"tasks/get","params":{"taskId":"t"}}"#;
        let refused = answered(switch.says(1, get.into()));
        assert_eq!(refused, answer(b"2", NO_TASK));
        sent(switch.says(0, get.into()));
    }

    /// mcp-T28: of a resource hears who has subscribed to it, or to what it is a part of.
    #[test]
    fn a_resource_is_told_of_to_who_has_subscribed_to_it() {
        let mut switch = switch(true);
        for (member, uri) in [(0, "a:b"), (1, "a:bc"), (2, "a:b/c")] {
            let on = format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"resources/subscribe","params":{{"uri":"{uri}"}}}}"#
            );
            sent(switch.says(member, line(on)));
        }
        let updated = line(
            r#"{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"a:b/c"}}"#
                .to_owned(),
        );
        let mut told = switch.answers(updated.clone()).unwrap();
        told.sort_by_key(|out| matches!(out, Out::To(2, _)));
        assert_eq!(told, [Out::To(0, updated.clone()), Out::To(2, updated)]);
    }

    /// probe-68: a member that subscribes to one resource too many is told so, and the child is not asked; what it has
    /// subscribed to is not one more, and another member has its own.
    #[test]
    fn more_resources_than_one_member_may_be_told_of_are_refused_without_the_child() {
        let mut switch = switch(false);
        let asks = |what: &str, uri: &str| {
            let text = format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"resources/{what}","params":{{"uri":"{uri}"}}}}"#
            );
            line(text)
        };
        for number in 0..MAX_SUBSCRIBED {
            sent(switch.says(0, asks("subscribe", &format!("a:{number}"))));
        }
        let refused = br#"{"jsonrpc":"2.0","id":1,"error":{"code":-32603,"message":"too many subscriptions"}}"#;
        let more = switch.says(0, asks("subscribe", "a:more"));
        assert_eq!(answered(more), Bytes::from_static(refused));
        sent(switch.says(0, asks("subscribe", "a:1")));
        sent(switch.says(1, asks("subscribe", "a:more")));
        sent(switch.says(0, asks("unsubscribe", "a:1")));
        sent(switch.says(0, asks("subscribe", "a:other")));
    }

    /// probe-68: what a child was asked and never answers is forgotten with the call that asked, with the member, and in any
    /// case when there is too much of it; but not what is meant to stay open, nor what was asked last.
    #[test]
    fn what_a_child_never_answers_is_not_remembered_for_ever() {
        let rooms = Rooms::new(1);
        let mut switch = switch_in(false, &rooms);
        let asks = |number: u64, method: &str| {
            line(format!(
                r#"{{"jsonrpc":"2.0","id":{number},"method":"{method}","params":{{"uri":"a:{number}"}}}}"#
            ))
        };
        sent(switch.says(0, asks(1, "tools/call")));
        let cancels = r#"{"method":"notifications/cancelled","params":{"requestId":1}}"#;
        sent(switch.says(0, cancels.into()));
        assert_eq!(
            (switch.routes.len(), switch.members[&0].numbers.len()),
            (0, 0)
        );
        for member in 10..20 {
            let user = key("user-0");
            switch.join(member, user, None, rooms.room(user));
            for number in 1..=20 {
                sent(switch.says(member, asks(number, "resources/subscribe")));
            }
            assert_eq!(switch.leave(member).len(), 40);
        }
        assert_eq!(switch.routes.len(), 0);

        sent(switch.says(0, asks(1, "subscriptions/listen")));
        let listens = switch.next - 1;
        let mut last = 0;
        for number in 2..2 + 3 * MAX_NUMBERS as u64 {
            sent(switch.says(0, asks(number, "resources/unsubscribe")));
            assert!(switch.routes.len() <= MAX_NUMBERS);
            last = number;
        }
        assert_eq!(switch.routes.len(), switch.members[&0].numbers.len());
        for (number, own) in [(switch.next - 1, last), (listens, 1)] {
            let answer = |number: u64| line(format!(r#"{{"id":{number},"result":{{}}}}"#));
            assert_eq!(
                switch.answers(answer(number)),
                Some(vec![Out::To(0, answer(own))])
            );
        }
    }

    /// conn-3: what the child has said to `initialize` is kept for those that come later, counted as the first one's as
    /// long as the child lives.
    #[test]
    fn what_a_shared_child_has_said_of_itself_is_counted() {
        let rooms = Rooms::new(1);
        let mut switch = switch_in(true, &rooms);
        let opens = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}"#;
        sent(switch.says(0, opens.into()));
        let size = 100 << 10;
        let text = "x".repeat(size);
        let said = format!(
            r#"{{"jsonrpc":"2.0","id":1,"result":{{"capabilities":{{"tools":{{"x":"{text}"}}}},"instructions":"{text}"}}}}"#
        );
        switch.answers(line(said.clone())).unwrap();
        let taken = rooms.taken();
        assert!(
            (said.len() + size..said.len() + size + 100).contains(&taken),
            "{taken}"
        );
        switch.leave(0);
        assert_eq!(rooms.taken(), taken);
        drop(switch);
        assert_eq!(rooms.taken(), 0);
    }

    /// conn-3: what is kept here by name, what a member has subscribed to and which tasks are its user's, is counted as
    /// its session's, and is no more than there is room for.
    #[test]
    fn what_is_kept_by_name_is_counted_as_the_members() {
        let rooms = Rooms::new(1);
        let mut switch = switch_in(true, &rooms);
        let subscribes = |number: usize| {
            let uri = format!("a:{number:0>2000}");
            line(format!(
                r#"{{"jsonrpc":"2.0","id":{number},"method":"resources/subscribe","params":{{"uri":"{uri}"}}}}"#
            ))
        };
        for number in 1..=8 {
            // A second time it is not one more.
            for _ in 0..2 {
                sent(switch.says(0, subscribes(number)));
            }
        }
        assert_eq!(rooms.taken(), 8 * 2002);
        let make = |switch: &mut Switch, name: &str| {
            let call = r#"{"jsonrpc":"2.0","id":100,"method":"tools/call"}"#;
            sent(switch.says(0, call.into()));
            let number = switch.next - 1;
            let made = format!(
                r#"{{"id":{number},"result":{{"task":{{"taskId":"{name}","status":"working"}}}}}}"#
            );
            switch.answers(line(made)).unwrap();
        };
        make(&mut switch, "task");
        assert_eq!(rooms.taken(), 8 * 2002 + 4);
        let room = switch.members[&0].room.clone();
        let rest = room.claim((16 << 20) - rooms.taken()).unwrap();
        make(&mut switch, "more");
        assert_eq!(switch.tasks.len(), 1);
        let refused = switch.says(0, subscribes(9));
        assert!(answered(refused).ends_with(b"too many subscriptions\"}}"));
        drop((rest, switch));
        assert_eq!(rooms.taken(), 0);
    }
}
