//! The opening of a conversation that several clients share.
//!
//! The gateway says `initialize` to the child once and keeps the answer; each
//! client is given it under its own id, with a version of its own. Used by `switch`.

use bytes::Bytes;

use crate::{
    json::Value,
    mcp::{Message, answer, version},
};

/// How far it is.
#[derive(Default)]
pub(in crate::session) struct SharedOpening {
    result: Option<InitializeResult>,
    /// Asked, and who waits: member, its own number, its version if that is served.
    waiting: Option<Vec<(u64, u64, Option<&'static str>)>>,
}

/// The child's answer to `initialize`.
struct InitializeResult {
    /// Read again for each: what stands where in it may take ten times its length.
    text: Bytes,
    /// Nothing if it is none that is served.
    version: Option<&'static str>,
    /// What its members are told that it can, where that is less than all.
    capabilities: Option<Bytes>,
}

impl SharedOpening {
    /// The answer for whoever asks now, if it is known.
    pub(in crate::session) fn answer(&self, own: u64, asked: &str) -> Option<Bytes> {
        self.result.as_ref()?.told(own, version::legacy(asked))
    }

    /// Whether the child has agreed on this version.
    pub(in crate::session) fn speaks(&self, version: &str) -> bool {
        self.result
            .as_ref()
            .is_some_and(|result| result.version == Some(version))
    }

    /// Whether the child was asked already. Notes who waits either way.
    pub(in crate::session) fn wait(&mut self, member: u64, own: u64, asked: &str) -> bool {
        let was_asked = self.waiting.is_some();
        let waiting = self.waiting.get_or_insert_default();
        waiting.push((member, own, version::legacy(asked)));
        was_asked
    }

    pub(in crate::session) fn forget(&mut self, member: u64) {
        if let Some(waiting) = &mut self.waiting {
            waiting.retain(|(waits, ..)| *waits != member);
        }
    }

    /// The child will not answer: who waited, by their own numbers.
    pub(in crate::session) fn failed(&mut self) -> Vec<(u64, u64)> {
        let waited = self.waiting.take().unwrap_or_default();
        let names = |(member, own, _)| (member, own);
        waited.into_iter().map(names).collect()
    }

    /// Who waits first.
    pub(in crate::session) fn first(&self) -> Option<u64> {
        let (member, ..) = self.waiting.as_ref()?.first()?;
        Some(*member)
    }

    /// The child has answered: what those are told that wait. A refusal is kept for none but them, a result for as long
    /// as the child lives, as what `keep` makes of it.
    pub(in crate::session) fn opened(
        &mut self,
        message: &Message,
        everybody: bool,
        keep: impl Fn(Bytes) -> Bytes,
    ) -> Vec<(u64, Bytes)> {
        let waited = self.waiting.take().unwrap_or_default();
        let result = message.root().get("result");
        self.result = result.map(|result| {
            let version = result.get("protocolVersion").and_then(Value::as_str);
            let capabilities = result.get("capabilities").filter(|_| everybody);
            InitializeResult {
                text: keep(Bytes::copy_from_slice(message.bytes())),
                version: version.and_then(|version| version::legacy(&version)),
                capabilities: capabilities.map(|all| keep(without_logging(all).into())),
            }
        });
        let told = |(member, own, asked): (u64, u64, Option<&'static str>)| {
            let text = match &self.result {
                Some(result) => result.told(own, asked)?,
                None => {
                    let id = message.root().get("id")?;
                    let own = own.to_string();
                    message.with(&[(id.span(), own.as_bytes())]).into()
                }
            };
            Some((member, text))
        };
        waited.into_iter().filter_map(told).collect()
    }
}

impl InitializeResult {
    fn told(&self, own: u64, asked: Option<&'static str>) -> Option<Bytes> {
        let message = Message::parse(self.text.clone()).ok()?;
        let root = message.root();
        let result = root.get("result")?;
        let own = own.to_string();
        let agreed = self.agreed(asked).map(|version| format!("\"{version}\""));
        let mut changes = vec![(root.get("id")?.span(), own.as_bytes())];
        if let (Some(agreed), Some(version)) = (&agreed, result.get("protocolVersion")) {
            changes.push((version.span(), agreed.as_bytes()));
        }
        if let (Some(less), Some(all)) = (&self.capabilities, result.get("capabilities")) {
            changes.push((all.span(), less));
        }
        changes.sort_by_key(|(span, _)| span.start);
        Some(message.with(&changes).into())
    }

    /// The client's version, unless it is unknown or newer than the child's. Nothing where nobody serves the
    /// child's: that stays as it was written.
    fn agreed(&self, asked: Option<&'static str>) -> Option<&'static str> {
        let age = |version| version::LEGACY.iter().position(|known| *known == version);
        match (asked.and_then(age), self.version.and_then(age)) {
            (Some(asks), Some(has)) if asks >= has => asked,
            _ => self.version,
        }
    }
}

/// Log messages of everybody's child are for nobody, so nobody is told that there are any.
fn without_logging(capabilities: Value<'_>) -> Vec<u8> {
    let all = capabilities.members();
    let others = all.filter(|(name, _)| name != "logging");
    answer::object(others.map(|(name, value)| (name, value.raw())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What one that asked for `asked` is told of a child's version, as JSON.
    fn told(asked: &str, version: &str) -> String {
        let answer = format!(r#"{{"id":1,"result":{{"protocolVersion":{version}}}}}"#);
        let mut opening = SharedOpening::default();
        opening.wait(3, 7, asked);
        let waited = opening.opened(&Message::parse(answer.into()).unwrap(), false, |text| text);
        let (member, first) = waited.into_iter().next().unwrap();
        assert_eq!(member, 3);
        assert_eq!(opening.answer(7, asked), Some(first.clone()));
        let text = String::from_utf8(first.to_vec()).unwrap();
        let rest = text.strip_prefix(r#"{"id":7,"result":{"protocolVersion":"#);
        rest.unwrap().strip_suffix("}}").unwrap().to_owned()
    }

    #[test]
    fn of_the_childs_answer_its_text_is_kept_and_nothing_else_of_what_it_was_read_into() {
        let answer = br#"{"id":1,"result":{}}"#;
        let mut buffer = bytes::BytesMut::with_capacity(1 << 20);
        buffer.extend_from_slice(answer);
        let message = Message::parse(buffer.split_to(answer.len()).freeze()).unwrap();
        let mut opening = SharedOpening::default();
        opening.opened(&message, false, |text| text);
        drop((message, buffer));
        let text = opening.result.unwrap().text;
        assert_eq!(text.try_into_mut().unwrap().capacity(), answer.len());
    }

    #[test]
    fn each_is_told_a_version_of_its_own_and_one_that_nobody_serves_stays_as_it_was_written() {
        let newest = r#""2025-11-25""#;
        assert_eq!(told("2025-06-18", newest), r#""2025-06-18""#);
        assert_eq!(told("2025-11-25", r#""2025-06-18""#), r#""2025-06-18""#);
        assert_eq!(told(&"9".repeat(1 << 20), newest), newest);
        for odd in [r#""2030-01-01""#, r#""1\",\"x\":\"""#, "7"] {
            assert_eq!(told("2025-06-18", odd), odd);
        }
    }
}
