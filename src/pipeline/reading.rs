//! A request's body as a message, read beside the loop where it is large.

use bytes::Bytes;

use super::Refused;
use crate::{
    aside::aside,
    audit::Decision,
    auth::Identity,
    http::budget::{Budget, Lent},
    mcp::{Call, NoCall},
};

/// The message, and what is recorded of it.
pub(super) async fn read(
    (body, lent): (Bytes, Lent),
    modern: bool,
    (bodies, user): (&Budget, &Identity),
    record: &mut Decision,
) -> Result<(Call, Lent), Refused> {
    let size = body.len();
    let read = move || {
        let mut call = Call::read(body, modern)?;
        // Only then: what is made of it is made in its place.
        call.keep(|text| lent.keep(text));
        Ok::<_, NoCall>((call, lent))
    };
    let (call, mut lent) = aside(size, read).await?;
    record.method = Some(call.kept_method());
    record.aim = call.aim();
    let counted = lent.count_document(call.message().document_size(), (bodies, user));
    counted.map_err(|refusal| Refused {
        refusal,
        id: call.id().cloned(),
    })?;
    Ok((call, lent))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{audit::RequestId, http::Refusal};

    /// fault-46: a message of many small values is refused where what is made of it has no room, and says on record what it was.
    #[tokio::test]
    async fn a_message_that_takes_more_than_there_is_room_is_refused() {
        let (bodies, user) = (
            Budget::new(1 << 20),
            Identity::example("https://i", "alice"),
        );
        let many = "0,".repeat(1 << 20);
        let dense =
            format!(r#"{{"jsonrpc":"2.0","id":1,"method":"ping","params":{{"v":[{many}0]}}}}"#);
        let small = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
        let ask = async |text: &str| {
            let mut record = Decision::allowed(RequestId::random(), Arc::default());
            let body = (Bytes::copy_from_slice(text.as_bytes()), Lent::nothing());
            let read = read(body, false, (&bodies, &user), &mut record).await;
            assert_eq!(record.method.as_deref(), Some("ping"));
            read
        };
        let mut held = vec![ask(&dense).await.unwrap()];
        let refused = loop {
            assert!(held.len() < 100);
            match ask(&dense).await {
                Ok(read) => held.push(read),
                Err(refused) => break refused,
            }
        };
        assert!(matches!(refused.refusal, Refusal::Overloaded));
        assert!(refused.id.is_some());
        assert!(ask(small).await.is_ok());
        held.clear();
        assert!(ask(&dense).await.is_ok());
    }
}
