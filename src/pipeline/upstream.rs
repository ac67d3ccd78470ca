//! What a permitted call needs before it may go to a server elsewhere: a token of
//! its own, for the caller's.

use http::request::Parts;
use tracing::warn;

use super::Gateway;
use crate::{
    auth::{CallerToken, Identity, Owner},
    config::Scope,
    http::Refusal,
    mcp::Era,
};

/// Sees that the caller's conversation has a token that the upstream accepts, where it needs
/// one, for a call whose decision is on record.
pub(super) async fn make_ready_for(
    gateway: &Gateway,
    head: &Parts,
    identity: &Identity,
    era: Era,
) -> Result<(), Refusal> {
    if gateway.exchange.is_none() {
        return Ok(());
    }
    // The issuer hears of the call, too.
    gateway.audit.hand_on();
    Box::pin(make_ready(gateway, head, identity, era)).await
}

/// The same before there is a decision.
pub(super) async fn make_ready(
    gateway: &Gateway,
    head: &Parts,
    identity: &Identity,
    era: Era,
) -> Result<(), Refusal> {
    let Some(exchange) = &gateway.exchange else {
        return Ok(());
    };
    // Without a token nobody was let in where tokens are exchanged.
    let Some(token) = CallerToken::of(&head.headers) else {
        return Ok(());
    };
    let owner = match (gateway.config.scope, era) {
        (Scope::Session, Era::Legacy) => Owner::of(identity),
        // Where users meet in one conversation none's token is shown: such a configuration is refused.
        _ => Owner::of_all_clients(identity),
    };
    let ready = Box::pin(exchange.make_ready(&owner, identity, token)).await;
    ready.map(drop).map_err(|error| {
        warn!(
            details = error.details(),
            "a caller's token was not exchanged"
        );
        Refusal::Exchange(error)
    })
}
