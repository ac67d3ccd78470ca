//! What the tests of this room share: keys that really sign, tokens, an
//! authenticator on a key file, and a provider on loopback that can misbehave.

mod bench;
mod provider;
#[path = "../../../tests/it/request.rs"]
mod request;
#[path = "../../../tests/it/signer.rs"]
mod signer;
mod tokens;

use std::time::Duration;

pub(super) use self::{
    bench::{Bench, bench, bench_of, bench_with, build, clock, issuer, post, resource, unheard},
    provider::{DISCOVERY, JWKS, Provider, Reply, raw},
    signer::{Signer, base64url, compact},
    tokens::{
        ALGORITHMS, AUDIENCE, HEADER, ISSUER, KEYS, LEEWAY, NOW, Token, bearer, set, spelled, token,
    },
};
pub(super) use super::AuthError;

/// Lets time pass at once. Between calls the clock runs: a paused one would jump
/// over deadlines while bytes are on their way.
pub(super) async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}
