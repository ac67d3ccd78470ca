//! A request's body as a message, read beside the loop where it is large.

use bytes::Bytes;

use crate::{
    audit::Decision,
    auth::Identity,
    http::{
        Refusal,
        budget::{Budget, Lent},
    },
    mcp::Call,
    session,
};

/// The message, and what is recorded of it.
pub(super) async fn read(
    (body, lent): (Bytes, Lent),
    modern: bool,
    (bodies, user): (&Budget, &Identity),
    record: &mut Decision,
) -> Result<(Call, Lent), Refusal> {
    let size = body.len();
    let read = move || {
        let mut call = Call::read(body, modern)?;
        // Only then: what is made of it is made in its place.
        call.keep(|text| lent.keep(text));
        Ok((call, lent))
    };
    let (call, mut lent) = session::aside(size, read).await.map_err(Refusal::Call)?;
    record.method = Some(call.kept_method());
    record.aim = call.aim();
    lent.count_document(call.message().document_size(), (bodies, user))?;
    Ok((call, lent))
}
