//! Files to one typed [`Config`].
//!
//! A fragment is what files may say (`fragment`): each file is read over those of the
//! layers below it (`sources`), and of their sum `resolve` makes the [`Config`], in
//! which nothing is optional that has a default. All problems of all files are
//! reported at once. Never talks to the network, never starts anything.

mod backend;
mod edge;
mod egress;
mod fragment;
mod image;
mod issuer;
mod issuer_table;
mod kubernetes;
mod load;
mod name;
mod owner;
mod problem;
mod resolve;
mod sharing;
mod sources;
mod spelling;
mod syntax;
mod table;
mod url;
mod value;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

pub use backend::{
    Inside, InsideDoor, SOCKETS, TokenExchange, Transport, Upstream, UpstreamAuthorization,
};
pub use edge::{Pem, Proxies, Tls, Told};
pub use egress::{Destination, Door, Host, Network, PROXY, Way, spelled};
pub use image::{Engine, ImageName, ImageSource, Registry, Repository, image};
pub use issuer::{
    ClaimValue, Dpop, Introspection, Issuer, KeySource, Pattern, RequiredClaim, ServiceAccount,
    TokenFile, TokenKind,
};
pub use kubernetes::service_account;
pub use load::{Stamp, load, load_stamped, misnamed, servers, stamp};
pub use name::{BadName, ServerName};
pub use owner::{HOMES, OwnerRule};
pub use problem::{Problem, Problems};
pub use sharing::IDENTITY_VARIABLES;
pub use value::{credential, may_be_secret, plain_path, shown_path};

/// Everything that one server's configuration says, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which server this is.
    pub server: ServerName,
    /// SHA-256 over the files read, in order, as lower-case hex: gateway and
    /// runner compare it, so that an edited file is noticed.
    pub digest: String,
    /// The files that were read (or looked for), for re-reading when they change.
    pub files: Vec<PathBuf>,
    /// How the server is spoken to, and where.
    pub transport: Transport,
    /// The program and its arguments; the program's path is absolute. Empty for an image
    /// and for a server that somebody else runs.
    pub command: Vec<String>,
    /// The image that is run in place of a program of this host.
    pub image: Option<ImageName>,
    /// What the image's program is given in place of the image's own arguments.
    pub arguments: Option<Vec<String>>,
    /// What runs it.
    pub engine: Engine,
    /// How registries are asked, by the host that images name.
    pub registries: BTreeMap<String, Registry>,
    /// The URL that names this server in tokens; its path is the path served.
    pub resource: Resource,
    /// Accepted `Host` values, lower case, the resource's own included.
    pub hosts: Vec<String>,
    /// Accepted `Origin` values besides the resource's own origin, lower case.
    pub origins: Vec<String>,
    /// What the gateway's socket speaks TLS with; plain HTTP without.
    pub tls: Option<Tls>,
    /// Who may say for whom they speak; nobody without.
    pub proxies: Option<Proxies>,
    /// Whether clients of the transport of 2024-11-05 (HTTP+SSE) are served, too.
    pub legacy_sse: bool,
    /// Whether tools may have names that MCP advises against.
    pub any_tool_name: bool,
    pub auth: Auth,
    pub authz: Authz,
    pub sandbox: Sandbox,
    pub scope: Scope,
    /// Children that are started before anybody needs them, while there are sessions.
    pub warm: usize,
    /// Whether the server is told who calls.
    pub pass_identity: bool,
    pub limits: Limits,
    /// The child's environment, besides what the sandbox itself sets.
    pub env: BTreeMap<String, EnvValue>,
}

/// Where the value of a variable comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum EnvValue {
    Text(String),
    /// The text of this credential of the runner's.
    Credential(String),
    /// The path of a private file that holds this credential of the runner's.
    CredentialFile(String),
}

/// The protected resource's identifier (RFC 8707 §2, RFC 9728 §2).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Resource {
    /// The URL exactly as configured: absolute, no fragment, no query.
    pub url: String,
    /// `scheme://host[:port]`, lower case.
    pub origin: String,
    /// `host[:port]`, lower case, without a default port.
    pub authority: String,
    /// The path, at least `/`.
    pub path: String,
}

/// How callers prove who they are.
#[derive(Clone, Debug)]
pub enum Auth {
    /// Bearer tokens of these issuers; never empty.
    Oidc(Vec<Issuer>),
    /// The kernel says which user connects (`mode = "peer"`): only on a Unix socket.
    Peer,
    /// Nobody has to (`mode = "none"`): only on loopback or a Unix socket.
    None,
}

/// What decides.
#[derive(Clone, Debug)]
pub enum Authz {
    /// `allow = "authenticated"`: whoever is authenticated may do everything.
    Authenticated,
    /// Cedar policy files, in order; never empty.
    Policies(Vec<PolicyFile>),
}

/// A policy file as it was read.
#[derive(Clone, Debug)]
pub struct PolicyFile {
    pub path: PathBuf,
    pub text: String,
}

/// What the child may see, beyond the base.
#[derive(Clone, Debug, Default)]
pub struct Sandbox {
    /// A writable directory, one a principal, kept between starts.
    pub state: bool,
    /// Host paths shown read-only, at the same place.
    pub read_only: Vec<PathBuf>,
    /// Layers that may be missing on this host.
    pub optional: Vec<Layer>,
    /// What it may reach.
    pub network: Network,
    /// Which system calls are let through.
    pub seccomp: Seccomp,
    /// Named additions to them.
    pub seccomp_allow: Vec<Addition>,
}

impl Config {
    /// Whether a child's environment says whose it is: that of a child of everybody's cannot.
    pub fn names_caller_to_child(&self) -> bool {
        self.pass_identity && self.scope != Scope::Server
    }
}

/// Whom one child serves.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Scope {
    /// One session; what is asked without one belongs to its user.
    #[default]
    Session,
    /// All sessions of one user: issuer and subject.
    User,
    /// Everybody.
    Server,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 3] = [Self::Session, Self::User, Self::Server];

    /// The name in configuration and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::User => "user",
            Self::Server => "server",
        }
    }
}

/// A profile of system calls; `sandbox/filters` holds what each means.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Seccomp {
    /// What ordinary programs of any language need.
    #[default]
    Default,
    /// Without what just-in-time compilers, debuggers and old programs need besides.
    Strict,
}

/// System calls that a profile refuses and a configuration may let through again, by name.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Addition {
    /// Looking into one's own processes: ptrace and its kin.
    Debug,
    /// Placing memory on nodes of a large machine.
    Numa,
    /// The ring interface for input and output.
    IoUring,
}

impl Seccomp {
    /// Every profile.
    pub const ALL: [Self; 2] = [Self::Default, Self::Strict];

    /// The name in configuration and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Strict => "strict",
        }
    }
}

impl Addition {
    /// Every addition.
    pub const ALL: [Self; 3] = [Self::Debug, Self::Numa, Self::IoUring];

    /// The name in configuration and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Numa => "numa",
            Self::IoUring => "io-uring",
        }
    }
}

/// One layer of the sandbox. Each is required unless `sandbox.optional` names it, which
/// it can of those alone that [`Layer::may_be_missing`].
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, PartialOrd, Ord)]
pub enum Layer {
    /// User, mount, pid, network, ipc, uts and cgroup namespaces.
    Namespaces,
    /// The private read-only root.
    Root,
    /// Capabilities dropped, `no_new_privs`.
    Privileges,
    /// Resource limits by `setrlimit`.
    Rlimits,
    /// Files, signals and abstract sockets once more, by Landlock.
    Landlock,
    /// The system call allow-list.
    Seccomp,
    /// An own cgroup with memory, tasks and cpu limits.
    Cgroup,
}

impl Layer {
    /// Every layer, in the order they are applied.
    pub const ALL: [Self; 7] = [
        Self::Namespaces,
        Self::Root,
        Self::Privileges,
        Self::Rlimits,
        Self::Landlock,
        Self::Seccomp,
        Self::Cgroup,
    ];

    /// The name in configuration, messages and journal.
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::Root => "root",
            Self::Privileges => "privileges",
            Self::Rlimits => "rlimits",
            Self::Landlock => "landlock",
            Self::Seccomp => "seccomp",
            Self::Cgroup => "cgroup",
        }
    }

    /// Whether a child is still kept from the host without it: in no namespaces, or with the
    /// host's root, it is not.
    pub fn may_be_missing(self) -> bool {
        !matches!(self, Self::Namespaces | Self::Root)
    }
}

/// Every limit an administrator may set. Others are constants beside their use.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of memory of one child (cgroup).
    pub memory: u64,
    /// Processes and threads of one child (cgroup).
    pub tasks: u64,
    /// Per cent of one processor of one child (cgroup); 200 is two.
    pub cpu: u64,
    /// One child's share of a busy disk (cgroup), of which others have 100; the kernel's own where it is not said.
    pub io_weight: Option<u64>,
    /// Bytes of one child's `/tmp`, in memory.
    pub tmp: u64,
    /// How long a child may take from its beginning to its program's.
    pub start_timeout: Duration,
    /// Bytes of one child's output that are read in a second, on average.
    pub output: u64,
    /// Bytes of one message of a server's.
    pub message: usize,
    /// Sessions at once.
    pub sessions: usize,
    /// Sessions of one user at once; where nothing else is said half of `sessions`, and all where there is no second user.
    pub sessions_per_user: usize,
    /// Calls that wait for an answer, of all users.
    pub calls: usize,
    /// The same of one user.
    pub calls_per_user: usize,
    /// How long one call may take.
    pub call_timeout: Duration,
    /// A session without a request ends after this.
    pub session_idle: Duration,
    /// Gateway and runner exit when nothing happened for this long; zero means never.
    pub exit_idle: Duration,
    /// Bytes of one request body.
    pub body: usize,
    /// Connections at once.
    pub connections: usize,
    /// Connections of one address at once.
    pub address_connections: usize,
    /// Connections of one child to the outside, at once.
    pub egress_connections: usize,
    /// Bytes that one child may send and receive over all of them.
    pub egress_bytes: u64,
}

#[cfg(test)]
mod tests;
