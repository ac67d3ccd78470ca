//! What a modern client carries between the rounds of one call: `requestState`.
//!
//! Nobody but this gateway can read or make one (mcp-M2). It names the child's
//! session and the call that waits there, and says for whom and for what call
//! it was given, and until when; it is no proof of who brings it.

use std::{io, path::Path};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    digest,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::{
    auth::Identity,
    files,
    json::{Kind, Value},
    mcp::Call,
    sys::random,
    time::Clock,
};

/// The key that states are sealed with, and the clock that they end by.
pub struct Seal {
    key: RandomizedNonceKey,
    /// Stands in the open before what is sealed: `thv1.`, and which gateway's it is.
    prefix: String,
    clock: Clock,
}

/// What a state says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(in crate::session) struct Ticket {
    /// The id of the session, which has had one child only.
    pub(in crate::session) session: String,
    /// The number of the call that waits there, and how often it has asked.
    pub(in crate::session) number: u64,
    pub(in crate::session) round: u64,
    /// Unix time in seconds.
    pub(in crate::session) expires: u64,
    /// For whom and for which call it was given.
    pub(in crate::session) binding: Binding,
}

/// SHA-256 of a principal, a method and its parameters.
pub(in crate::session) type Binding = [u8; 32];

/// Why a call does not go on from the state that it brings.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum StateError {
    /// Not of this gateway, or changed since.
    #[error("requestState is none that was given for this call")]
    Invalid,
    /// Given to another caller, or for another method or other arguments.
    #[error("requestState is none that was given for this call")]
    Mismatch,
    #[error("requestState has expired: make the call again")]
    Expired,
    /// The call has gone on from there already, or has ended.
    #[error("requestState was used before, or its call has ended")]
    Used,
    /// The child is gone, and the call with it: it is not made again by itself.
    #[error("the server that asked is gone, and its call with it: make the call again")]
    Lost,
}

impl Seal {
    /// With the key that is kept in `directory`, so that a state outlives a restart
    /// at least as far as its holder is told what became of it.
    pub fn kept(directory: &Path, clock: Clock) -> io::Result<Self> {
        let path = directory.join(FILE);
        let kept = files::read(&path, KEY)
            .ok()
            .and_then(|key| key.try_into().ok());
        let key: [u8; KEY] = match kept {
            Some(key) => key,
            None => made(&path)?,
        };
        Ok(Self::with(&key, clock))
    }

    /// With a key that nobody keeps.
    pub fn fleeting(clock: Clock) -> Self {
        Self::with(&random(), clock)
    }

    fn with(key: &[u8; KEY], clock: Clock) -> Self {
        // Tells gateways apart for whoever shares requests out between several; it gives nothing of the key away.
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(b"thv gateway");
        context.update(key);
        let id = &context.finish().as_ref()[..GATEWAY].to_vec();
        let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        Self {
            key: RandomizedNonceKey::new(&AES_256_GCM, key)
                .expect("the key has the algorithm's length"),
            prefix: format!("{PREFIX}{id}."),
            clock,
        }
    }

    pub(in crate::session) fn now(&self) -> u64 {
        self.clock.now()
    }

    /// Whether the state says that it is this gateway's: another's may be the business of
    /// whatever stands behind this one.
    pub(in crate::session) fn is_named_in(&self, state: &str) -> bool {
        state.starts_with(&self.prefix)
    }

    pub(in crate::session) fn seal(&self, ticket: &Ticket) -> String {
        let mut text = Vec::with_capacity(SESSION + 3 * 8 + 32 + 16);
        text.extend_from_slice(ticket.session.as_bytes());
        for number in [ticket.number, ticket.round, ticket.expires] {
            text.extend_from_slice(&number.to_be_bytes());
        }
        text.extend_from_slice(&ticket.binding);
        let nonce = self
            .key
            .seal_in_place_append_tag(Aad::from(self.prefix.as_bytes()), &mut text)
            .expect("the operating system gives random bytes, and the text is short");
        let sealed = [nonce.as_ref().as_slice(), &text].concat();
        format!("{}{}", self.prefix, URL_SAFE_NO_PAD.encode(sealed))
    }

    /// What the state says, if it is this gateway's and still good.
    pub(in crate::session) fn open(&self, state: &str) -> Result<Ticket, StateError> {
        let sealed = state
            .strip_prefix(&self.prefix)
            .filter(|sealed| sealed.len() <= MAX_STATE)
            .and_then(|sealed| URL_SAFE_NO_PAD.decode(sealed).ok())
            .ok_or(StateError::Invalid)?;
        let (nonce, text) = sealed
            .split_at_checked(NONCE_LEN)
            .ok_or(StateError::Invalid)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| StateError::Invalid)?;
        let mut text = text.to_vec();
        let text = self
            .key
            .open_in_place(nonce, Aad::from(self.prefix.as_bytes()), &mut text)
            .map_err(|_| StateError::Invalid)?;
        let ticket = Ticket::read(text).ok_or(StateError::Invalid)?;
        if ticket.expires < self.now() {
            return Err(StateError::Expired);
        }
        Ok(ticket)
    }
}

impl Ticket {
    fn read(text: &[u8]) -> Option<Self> {
        let (session, rest) = text.split_at_checked(SESSION)?;
        let (numbers, binding) = rest.split_at_checked(3 * 8)?;
        let mut numbers = numbers
            .chunks_exact(8)
            .filter_map(|number| Some(u64::from_be_bytes(number.try_into().ok()?)));
        Some(Self {
            session: String::from_utf8(session.to_vec()).ok()?,
            number: numbers.next()?,
            round: numbers.next()?,
            expires: numbers.next()?,
            binding: binding.try_into().ok()?,
        })
    }
}

/// The state that the call brings, if a gateway has made it: a server's own is none of ours.
pub(in crate::session) fn brought(call: &Call) -> Option<String> {
    let state = call.param("requestState")?.as_str()?;
    state.starts_with(PREFIX).then(|| state.into_owned())
}

/// Who calls, and through which client.
pub(in crate::session) fn holder(identity: &Identity) -> Binding {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(identity.principal_key().to_string().as_bytes());
    if let Some(client) = identity.client() {
        context.update(b"\0");
        context.update(client.as_bytes());
    }
    finished(context)
}

/// The caller and the call, without what differs from round to round. In whatever order
/// a client writes members, it is the same call.
pub(in crate::session) fn binding(holder: &Binding, call: &Call) -> Binding {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(holder);
    context.update(call.method().as_bytes());
    let mut members: Vec<_> = call
        .params()
        .iter()
        .flat_map(|params| params.members())
        .filter(|(name, _)| !matches!(&**name, "_meta" | "requestState" | "inputResponses"))
        .collect();
    members.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, value) in members {
        part(&mut context, b'n', name.as_bytes());
        add(&mut context, value);
    }
    finished(context)
}

fn add(context: &mut digest::Context, value: Value<'_>) {
    match value.kind() {
        Kind::Object => {
            let mut members: Vec<_> = value.members().collect();
            members.sort_by(|a, b| a.0.cmp(&b.0));
            part(context, b'{', &(members.len() as u64).to_be_bytes());
            for (name, value) in members {
                part(context, b'n', name.as_bytes());
                add(context, value);
            }
        }
        Kind::Array => {
            let count = value.elements().count() as u64;
            part(context, b'[', &count.to_be_bytes());
            value.elements().for_each(|value| add(context, value));
        }
        Kind::String => {
            let text = value.as_str().unwrap_or_default();
            part(context, b's', text.as_bytes());
        }
        Kind::Null | Kind::Bool | Kind::Number => part(context, b'v', value.raw()),
    }
}

/// Length first, so that no two values give the same bytes.
fn part(context: &mut digest::Context, kind: u8, text: &[u8]) {
    context.update(&[kind]);
    context.update(&(text.len() as u64).to_be_bytes());
    context.update(text);
}

fn finished(context: digest::Context) -> Binding {
    let mut binding = [0; 32];
    binding.copy_from_slice(context.finish().as_ref());
    binding
}

/// A new key, kept at `path` for nobody else to read.
fn made(path: &Path) -> io::Result<[u8; KEY]> {
    let key = random();
    files::replace(path, &key)?;
    Ok(key)
}

fn random() -> [u8; KEY] {
    let mut key = [0; KEY];
    random::fill(&mut key)
        .expect("the operating system gives random bytes, or nothing here is safe");
    key
}

/// What every state of a gateway begins with.
const PREFIX: &str = "thv1.";
/// The key's file in the state directory.
const FILE: &str = "input.key";
const KEY: usize = 32;
/// Bytes of a gateway's name.
const GATEWAY: usize = 4;
/// Bytes of a session's id.
const SESSION: usize = 32;
/// Characters of what is sealed; ours have fewer.
const MAX_STATE: usize = 512;

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use bytes::Bytes;

    use super::*;

    fn ticket() -> Ticket {
        Ticket {
            session: "0123456789abcdef0123456789abcdef".to_owned(),
            number: 7,
            round: 2,
            expires: 1000,
            binding: [9; 32],
        }
    }

    fn at(now: u64) -> Clock {
        Clock::new(move || now)
    }

    /// tok-133: nothing of it can be changed, and it ends.
    #[test]
    fn a_state_is_what_was_sealed_or_nothing() {
        let seal = Seal::fleeting(at(1000));
        let state = seal.seal(&ticket());
        assert_eq!(seal.open(&state), Ok(ticket()));
        assert_ne!(state, seal.seal(&ticket()), "no two are alike");
        for at in 0..state.len() {
            let mut forged = state.clone().into_bytes();
            forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(forged).unwrap();
            // The last character of base64 may differ in bits that mean nothing; the decoder refuses those.
            assert_eq!(seal.open(&forged), Err(StateError::Invalid), "{at}");
        }
        for cut in [
            &state[..state.len() - 4],
            "",
            "thv1.",
            &format!("{state}AAAA"),
        ] {
            assert_eq!(seal.open(cut), Err(StateError::Invalid));
        }
        let another = Seal::fleeting(at(0));
        assert!(seal.is_named_in(&state) && !another.is_named_in(&state));
        assert_eq!(another.open(&state), Err(StateError::Invalid));
        let late = Seal {
            clock: at(1001),
            ..seal
        };
        assert_eq!(late.open(&state), Err(StateError::Expired));
    }

    #[test]
    fn the_key_is_kept_for_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let state = Seal::kept(directory.path(), at(0)).unwrap().seal(&ticket());
        let again = Seal::kept(directory.path(), at(0)).unwrap();
        assert_eq!(again.open(&state), Ok(ticket()));
        let file = directory.path().join(FILE);
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(&file, "half").unwrap();
        let new = Seal::kept(directory.path(), at(0)).unwrap();
        assert_eq!(new.open(&state), Err(StateError::Invalid));
        assert!(Seal::kept(Path::new("/nonexistent"), at(0)).is_err());
    }

    /// tok-133: another principal, another client, another method, other arguments.
    #[test]
    fn a_binding_is_of_one_caller_and_one_call() {
        let call = |method: &str, params: &str| {
            let body =
                format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#);
            Call::read(Bytes::from(body), true).unwrap()
        };
        let alice = holder(&Identity::example("https://a", "alice"));
        let bob = holder(&Identity::example("https://a", "bob"));
        let first = binding(
            &alice,
            &call(
                "tools/call",
                r#"{"name":"a","arguments":{"x":[1,"2"],"y":null}}"#,
            ),
        );
        let again = r#"{"inputResponses":{},"requestState":"s","_meta":{"z":1},"arguments":{"y":null,"x":[1,"2"]},"name":"\u0061"}"#;
        assert_eq!(binding(&alice, &call("tools/call", again)), first);
        assert_ne!(binding(&bob, &call("tools/call", again)), first);
        for other in [
            r#"{"name":"b","arguments":{"x":[1,"2"],"y":null}}"#,
            r#"{"name":"a","arguments":{"x":[1,2],"y":null}}"#,
            r#"{"name":"a","arguments":{"x":["2",1],"y":null}}"#,
            r#"{"name":"a","arguments":{"x":[1,"2"]},"y":null}"#,
            r#"{"name":"a","arguments":{"x":[1,"2"],"y":{}}}"#,
            r#"{"name":"a"}"#,
        ] {
            assert_ne!(
                binding(&alice, &call("tools/call", other)),
                first,
                "{other}"
            );
        }
        let got = binding(&alice, &call("prompts/get", again));
        assert_ne!(got, first);
    }
}
