//! Several messages in one body: only where a session agreed on 2025-03-26 (mcp-O2).
//!
//! Each message is read, decided and recorded by itself, as if it had come
//! alone; what was refused is answered beside the others.

use bytes::Bytes;
use http::{StatusCode, request::Parts};

use super::{
    Gateway, Place, Refused, accepted, legacy_version, only_permitted, permitted_call, session_id,
    settle,
};
use crate::{
    aside::aside,
    audit::{Decision, Event, RequestId, Verdict},
    auth::Identity,
    http::{Refusal, Response, body::Events, budget::Lent, reply},
    json::Kind,
    mcp::{Call, CallError, Era, Id, Message, NoCall, method, version},
    session::{Exchange, Sent},
};

/// Whether the body can only be a batch.
pub(super) fn is_one(body: &[u8]) -> bool {
    body.trim_ascii_start().first() == Some(&b'[')
}

pub(super) async fn answer(
    gateway: &Gateway,
    head: &Parts,
    identity: &Identity,
    (body, lent): (Bytes, Lent),
    record: &Decision,
) -> Result<Response, Refused> {
    legacy_version(&head.headers)?;
    let session = session_id(&head.headers)?.ok_or(NONE_HERE)?;
    let session = gateway
        .sessions
        .enter(identity, session)
        .map_err(Refusal::NoSession)?;
    if !session.speaks(version::BATCHES) {
        return Err(NONE_HERE.into());
    }
    let calls = aside(body.len(), move || calls(body, &lent)).await;
    // From here on nothing waits: whoever takes it back does so before, or when all of it is on record.
    let (mut refused, mut exchanges) = (Vec::new(), Vec::new());
    for call in calls.map_err(Refusal::Call)? {
        let mut record = record.clone();
        record.request_id = RequestId::random();
        match one(gateway, head, identity, call, &mut record) {
            Ok(Some(Answer::Coming(id, exchange))) => exchanges.push((id, exchange)),
            Ok(Some(Answer::Here(answer))) => refused.push(answer),
            Ok(None) => {}
            Err(Refused { refusal, id }) => {
                record.verdict = Verdict::Deny(refusal.reason());
                record.status = Some(refusal.status().as_u16());
                gateway.audit.record(&Event::Decision(record));
                if !matches!(refusal, Refusal::Unheard) {
                    refused.push(refusal.rpc(id.as_ref()));
                }
            }
        }
    }
    if refused.is_empty() && exchanges.is_empty() {
        return Ok(reply::empty(StatusCode::ACCEPTED));
    }
    Ok(reply::events(Events::batch(refused, exchanges)))
}

/// The messages of it, each read by itself. A part of it keeps all of it, which is counted for as long.
fn calls(body: Bytes, lent: &Lent) -> Result<Vec<Result<Call, NoCall>>, CallError> {
    let batch = Message::parse(body).map_err(|_| CallError::NotJson)?;
    // All of it at once and in its place: a message of it would be copied for its line breaks.
    let mut batch = batch.on_one_line();
    batch.keep(|text| lent.keep(text));
    let root = batch.root();
    let messages: Vec<Bytes> = root
        .elements()
        .take(MAX_MESSAGES + 1)
        .map(|message| batch.bytes().slice(message.span()))
        .collect();
    if root.kind() != Kind::Array || messages.is_empty() || messages.len() > MAX_MESSAGES {
        return Err(CallError::Invalid("a batch is empty or too long"));
    }
    // What is known of all of it goes before as much is known of each.
    drop(batch);
    let read = |message| Call::read(message, false);
    Ok(messages.into_iter().map(read).collect())
}

enum Answer {
    Here(Bytes),
    Coming(Id, Exchange),
}

/// One message of it: what will answer it, if it is a request.
fn one(
    gateway: &Gateway,
    head: &Parts,
    identity: &Identity,
    call: Result<Call, NoCall>,
    record: &mut Decision,
) -> Result<Option<Answer>, Refused> {
    let call = call?;
    record.method = Some(call.kept_method());
    record.aim = call.aim();
    let id = call.id().cloned();
    let refused = |refusal| Refused {
        refusal,
        id: id.clone(),
    };
    if call.era() == Era::Modern {
        return Err(refused(NONE_HERE));
    }
    let list = method::filtered_list(call.method());
    let (permit, place) = permitted_call(gateway, head, identity, call, record).map_err(refused)?;
    // A batch names its session, and what names one is carried out there: an `initialize` is refused by now.
    let Place::Session(session) = place else {
        return Err(refused(NONE_HERE));
    };
    let mut owed = record.permits(&gateway.audit);
    Ok(match (session.send(permit, identity, &mut owed), id) {
        (Ok(Sent::Exchange(exchange)), Some(id)) => {
            let exchange = only_permitted(gateway, identity, list, exchange);
            Some(Answer::Coming(id, exchange))
        }
        (Ok(_), _) => {
            accepted(&mut owed);
            None
        }
        (Err(error), id) => {
            let refusal = match id {
                Some(_) => Refusal::of_call(error),
                None => Refusal::Send(error),
            };
            settle(&mut owed, Some(&refusal));
            Some(Answer::Here(refusal.rpc(id.as_ref())))
        }
    })
}

const NONE_HERE: Refusal = Refusal::Call(CallError::Invalid(
    "batches are not part of this protocol version",
));
/// Messages of one batch.
const MAX_MESSAGES: usize = 64;

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;

    /// mcp-O2: of a batch with line breaks no message is held twice.
    #[test]
    fn a_batch_of_several_lines_is_one_line_where_it_stands() {
        let ping = "{\n\"jsonrpc\":\"2.0\",\"id\":1,\r\n\"method\":\"ping\"}";
        let body = BytesMut::from(format!("[\n{ping},\n{ping}\n]").as_bytes());
        let place = body.as_ptr_range();
        let calls = calls(body.freeze(), &Lent::nothing()).unwrap();
        assert_eq!(calls.len(), 2);
        for call in calls {
            let text = call.unwrap().message().bytes().clone();
            assert_eq!(text, ping.replace(['\r', '\n'], " "));
            assert!(place.contains(&text.as_ptr()), "nothing is copied");
        }
    }
    /// json-8, mcp-O2: there is something in a batch, and no more than may be.
    #[test]
    fn a_batch_has_its_length() {
        let batch = |count: usize| {
            let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
            let body = format!("[{}]", vec![ping; count].join(","));
            let calls = calls(body.into(), &Lent::nothing());
            calls.map(|calls| calls.len()).ok()
        };
        for count in [1, MAX_MESSAGES] {
            assert_eq!(batch(count), Some(count));
        }
        for count in [0, MAX_MESSAGES + 1, 2 * MAX_MESSAGES] {
            assert_eq!(batch(count), None, "{count}");
        }
    }
}
