//! Layers into one: which files are read, in which order, and who wins.
//!
//! Tables merge key by key; a scalar or an array of an upper layer replaces the
//! lower one's whole. Called by `config` only.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{
    ServerName,
    fragment::{AuthFragment, AuthzFragment, Fragment, LimitsFragment, Reach, SandboxFragment},
    table::Said,
};

/// One place to look for files, lowest first.
pub(super) enum Source {
    /// A file that may be missing.
    File(PathBuf, Reach),
    /// Every `*.toml` in a directory that may be missing, by name.
    DropIns(PathBuf, Reach),
}

/// Where one server's configuration comes from, lowest layer first.
pub(super) fn sources(name: &ServerName) -> [Source; 5] {
    let server = server_file(name);
    let mut drop_ins = server.clone().into_os_string();
    drop_ins.push(".d");
    [
        Source::File(PathBuf::from("/usr/lib/thv/thv.toml"), Reach::Host),
        Source::File(PathBuf::from("/etc/thv/thv.toml"), Reach::Host),
        Source::DropIns(PathBuf::from("/etc/thv/thv.toml.d"), Reach::Host),
        Source::File(server, Reach::Server),
        Source::DropIns(PathBuf::from(drop_ins), Reach::Server),
    ]
}

/// The file that makes a server exist.
pub(super) fn server_file(name: &ServerName) -> PathBuf {
    Path::new(SERVERS).join(format!("{name}.toml"))
}

/// Where the servers' files are.
pub(super) const SERVERS: &str = "/etc/thv/servers";

impl Fragment {
    /// This layer over a lower one. Taken apart by name, so that a new key must choose.
    pub(super) fn over(self, lower: Self) -> Self {
        let Self {
            command,
            image,
            arguments,
            engine,
            digest_required,
            registry,
            resource,
            hosts,
            origins,
            tls,
            http,
            backend,
            legacy_sse,
            auth,
            authz,
            sandbox,
            limits,
            env,
            sharing,
        } = self;
        // One replaces the other: a drop-in may turn a program into an image.
        let (lower_command, lower_image) = match (command.is_said(), image.is_said()) {
            (false, false) => (lower.command, lower.image),
            (true, false) => (lower.command, Said::Nothing),
            (false, true) => (Said::Nothing, lower.image),
            (true, true) => (lower.command, lower.image),
        };
        Self {
            command: command.or(lower_command),
            image: image.or(lower_image),
            arguments: arguments.or(lower.arguments),
            engine: engine.or(lower.engine),
            digest_required: digest_required.or(lower.digest_required),
            registry: over(registry, lower.registry),
            resource: resource.or(lower.resource),
            hosts: hosts.or(lower.hosts),
            origins: origins.or(lower.origins),
            tls: tls.over(lower.tls),
            http: http.over(lower.http),
            backend: backend.over(lower.backend),
            legacy_sse: legacy_sse.or(lower.legacy_sse),
            auth: auth.over(lower.auth),
            authz: authz.over(lower.authz),
            sandbox: sandbox.over(lower.sandbox),
            limits: limits.over(lower.limits),
            env: over(env, lower.env),
            sharing: sharing.over(lower.sharing),
        }
    }
}

impl AuthFragment {
    fn over(self, lower: Self) -> Self {
        let Self { mode, issuer } = self;
        Self {
            mode: mode.or(lower.mode),
            issuer: issuer.or(lower.issuer),
        }
    }
}

impl AuthzFragment {
    fn over(self, lower: Self) -> Self {
        let Self { decides } = self;
        Self {
            decides: decides.or(lower.decides),
        }
    }
}

impl SandboxFragment {
    fn over(self, lower: Self) -> Self {
        let Self {
            state,
            read_only,
            optional,
            egress,
            forward,
            host_network,
            dangerous,
            seccomp,
            seccomp_allow,
        } = self;
        Self {
            state: state.or(lower.state),
            read_only: read_only.or(lower.read_only),
            optional: optional.or(lower.optional),
            egress: egress.or(lower.egress),
            forward: forward.or(lower.forward),
            host_network: host_network.or(lower.host_network),
            dangerous: dangerous.or(lower.dangerous),
            seccomp: seccomp.or(lower.seccomp),
            seccomp_allow: seccomp_allow.or(lower.seccomp_allow),
        }
    }
}

impl LimitsFragment {
    fn over(self, lower: Self) -> Self {
        let Self {
            memory,
            tasks,
            cpu,
            io_weight,
            tmp,
            start_timeout,
            output,
            sessions,
            sessions_per_user,
            calls,
            calls_per_user,
            call_timeout,
            session_idle,
            exit_idle,
            body,
            connections,
            address_connections,
            egress_connections,
            egress_bytes,
        } = self;
        Self {
            memory: memory.or(lower.memory),
            tasks: tasks.or(lower.tasks),
            cpu: cpu.or(lower.cpu),
            io_weight: io_weight.or(lower.io_weight),
            tmp: tmp.or(lower.tmp),
            start_timeout: start_timeout.or(lower.start_timeout),
            output: output.or(lower.output),
            sessions: sessions.or(lower.sessions),
            sessions_per_user: sessions_per_user.or(lower.sessions_per_user),
            calls: calls.or(lower.calls),
            calls_per_user: calls_per_user.or(lower.calls_per_user),
            call_timeout: call_timeout.or(lower.call_timeout),
            session_idle: session_idle.or(lower.session_idle),
            exit_idle: exit_idle.or(lower.exit_idle),
            body: body.or(lower.body),
            connections: connections.or(lower.connections),
            address_connections: address_connections.or(lower.address_connections),
            egress_connections: egress_connections.or(lower.egress_connections),
            egress_bytes: egress_bytes.or(lower.egress_bytes),
        }
    }
}

fn over<T>(
    upper: BTreeMap<String, Said<T>>,
    lower: BTreeMap<String, Said<T>>,
) -> BTreeMap<String, Said<T>> {
    let mut merged = lower;
    merged.extend(upper);
    merged
}
