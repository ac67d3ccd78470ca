//! Cedar decides what an identity may do.
//!
//! `Engine::build` reads and validates the policy files, `Engine::decide`
//! turns a `Call` into a `Permit` or a `Denied`, `Engine::filter` cuts
//! from a list what may not be called. All three ask the same function. Default
//! deny; a policy that cannot be evaluated denies. No clock, no files, no
//! sockets, no logging. Called by `pipeline`; `session` takes the `Permit`.

mod decide;
mod entity;
mod filter;
mod policy;
mod remembered;
mod scopes;
mod slice;
mod wording;

pub use decide::{Denied, DenyReason, Engine, Permit};
pub use entity::principal_name;
pub use policy::{Named, PolicyProblem};
pub use slice::Reach;

#[cfg(test)]
mod fixture {
    //! What the tests of this module share.

    use bytes::Bytes;

    use super::{Engine, PolicyProblem};
    use crate::{
        auth::Identity,
        config::{Authz, PolicyFile, ServerName},
        mcp::Call,
    };

    pub(super) const ISSUER: &str = "https://sso.example.com";

    pub(super) fn file(path: &str, text: &str) -> PolicyFile {
        PolicyFile {
            path: path.into(),
            text: text.to_owned(),
        }
    }

    pub(super) fn build(files: Vec<PolicyFile>) -> Result<Engine, Vec<PolicyProblem>> {
        Engine::build(
            &Authz::Policies(files),
            &ServerName::parse("github").unwrap(),
        )
    }

    /// An engine of one file, `/etc/thv/policies/github.cedar`.
    #[track_caller]
    pub(super) fn engine(text: &str) -> Engine {
        build(vec![file("/etc/thv/policies/github.cedar", text)]).unwrap()
    }

    pub(super) fn alice() -> Identity {
        Identity::example(ISSUER, "alice")
    }

    /// A request of `method` with these `params` (JSON).
    #[track_caller]
    pub(super) fn call(method: &str, params: &str) -> Call {
        let body = format!(r#"{{"jsonrpc":"2.0","id":7,"method":"{method}","params":{params}}}"#);
        Call::read(Bytes::from(body), false).unwrap()
    }

    #[track_caller]
    pub(super) fn tool(name: &str) -> Call {
        call(
            "tools/call",
            &serde_json::json!({ "name": name }).to_string(),
        )
    }
}
