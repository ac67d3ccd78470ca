//! What the tools of a session's child want to be known of them before they are called.
//!
//! Learnt from every list that passes. Who calls a tool before anybody has asked for a
//! list has it asked for here, once: what is said in headers must agree with the body
//! whether or not this gateway was there when its client read the list (mcp-T13, mcp-T16).

use std::{
    borrow::Cow,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tracing::debug;

use crate::{
    aside::aside,
    audit::Event,
    mcp::{
        Message,
        tools::{self, Tool, Tools},
    },
    session::{Sent, Session, own::OwnMessage, table::answer_of},
};

/// What is known of a child's tools.
#[derive(Default)]
pub(super) struct KnownTools {
    list: Mutex<ToolList>,
    /// Held by whoever asks.
    asking: tokio::sync::Mutex<()>,
    /// Whether they may have any name.
    any_name: AtomicBool,
}

#[derive(Default)]
struct ToolList {
    tools: Tools,
    /// All that there is was read, or asked for in vain: such a server has said nothing that could be wrong.
    whole: bool,
    /// How often the child has said that they are others now.
    changes: u64,
}

impl KnownTools {
    /// Reads the child's answer to `tools/list`.
    pub(super) fn learn(&self, answer: &Message) {
        if let Some(result) = answer.root().get("result") {
            self.list().tools.learn(result);
        }
    }

    /// Tools of any name are shown.
    pub(super) fn show_any_name(&self) {
        self.any_name.store(true, Ordering::Relaxed);
    }

    /// The child says that its tools are others now.
    pub(super) fn changed(&self) {
        let mut list = self.list();
        list.whole = false;
        list.changes += 1;
    }

    /// What is known of the tool now.
    pub(super) fn get(&self, name: &str) -> Option<Tool> {
        self.list().tools.get(name).cloned()
    }

    fn seen(&self) -> (bool, u64) {
        let list = self.list();
        (list.whole, list.changes)
    }

    fn list(&self) -> MutexGuard<'_, ToolList> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// The child's answer to `tools/list` without those of odd names, which are on record; `None`
    /// if there are none, or any may be shown (json-21).
    pub(super) fn without_odd_tools(&self, answer: &Message) -> Option<Message> {
        if self.tools.any_name.load(Ordering::Relaxed) {
            return None;
        }
        let (text, tools) = tools::without_odd(answer)?;
        self.audit.record(&Event::ToolsHidden { tools });
        Message::parse(text.into()).ok()
    }

    /// What is to be known of a tool that is about to be called; the child is asked if nobody has yet.
    pub async fn tool(self: &Arc<Self>, name: &str) -> Option<Tool> {
        if !self.tools.seen().0 {
            Box::pin(self.learn_tools()).await;
        }
        self.tools.get(name)
    }

    async fn learn_tools(self: &Arc<Self>) {
        let _turn = self.tools.asking.lock().await;
        let (whole, changes) = self.tools.seen();
        if !whole {
            self.list_tools().await;
            let mut list = self.tools.list();
            list.whole = list.changes == changes;
        }
    }

    async fn list_tools(self: &Arc<Self>) {
        let mut cursor: Option<String> = None;
        let is_legacy = self.legacy_server().is_some();
        for _ in 0..MAX_PAGES {
            let asked = self.ask_own(PATIENCE, |number| OwnMessage::ListTools {
                number,
                is_legacy,
                cursor: cursor.as_deref(),
            });
            let Ok(asked) = asked else {
                return;
            };
            let answer = match answer_of(Sent::Exchange(asked)).await {
                Ok(answer) => answer,
                Err(failure) => {
                    debug!(
                        reason = failure.code(),
                        "the server does not list its tools"
                    );
                    return;
                }
            };
            let session = self.clone();
            let next = aside(answer.len(), move || session.learn_page(answer)).await;
            match next {
                Some(next) => cursor = Some(next),
                None => return,
            }
        }
    }

    /// Reads one part of the list; where the next begins, if there is one.
    fn learn_page(&self, answer: Bytes) -> Option<String> {
        let answer = Message::parse(answer).ok()?;
        self.tools.learn(&answer);
        let next = answer.root().get("result")?.get("nextCursor")?;
        next.as_str().map(Cow::into_owned)
    }
}

/// How long a list may take, and how many parts it may have.
const PATIENCE: Duration = Duration::from_secs(10);
const MAX_PAGES: usize = 64;
