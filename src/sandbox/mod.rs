//! What a child may see and do.
//!
//! [`plan`](plan()) computes it from the configuration, without side effects;
//! it is data that is printed, compared and applied. `stage` applies it in
//! order, in the process that becomes the child, a mechanism a file. Knows
//! nothing of tokens, HTTP or MCP. Used by `runner`, and by `cli` to explain.

mod bpf;
pub mod cgroup;
mod credentials;
mod doors;
mod explain;
mod filter;
mod host;
mod init;
mod installed;
mod landlock;
mod namespaces;
mod oci;
mod plan;
mod podman;
mod privileges;
mod root;
mod stage;

pub use credentials::Credentials;
pub use doors::{Doors, received};
pub use filter::{Filter, FilterError};
pub use host::Host;
pub use init::read_status;
pub use installed::Installed;
pub use namespaces::FLAGS;
pub use oci::oci;
pub use plan::{Access, Entry, Plan, plan};
pub use podman::{PODMAN, within_podman};
pub use root::PROC;
pub use stage::{Fault, GO, Report, Start, read_report, run};
