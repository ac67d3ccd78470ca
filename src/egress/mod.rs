//! The only way out of a child's network.
//!
//! Whoever connects to a door inside is accepted here, in the gateway. What the
//! door is for decides which name is meant; behind the proxy's door the child
//! says the name, and it is looked for among the lines before anybody else hears
//! of it. Then the name is resolved once, every address checked, and one of
//! those dialled. Each connection leaves one audit record. Knows nothing of
//! tokens, policies or messages. Used by `session`.

mod connection;
mod dial;
mod hello;
mod outlet;
mod proxy;
mod tunnel;

pub use dial::Resolver;
pub use outlet::{Child, Rules};
