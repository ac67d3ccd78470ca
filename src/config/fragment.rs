//! What TOML files may say: every key, its form, and where it was written.
//!
//! Files are layers: each is read over what those before it say. Tables merge key by
//! key; a scalar or an array of an upper layer replaces the lower one's whole. Nothing
//! is required here and nothing has a default, for only the sum must be complete
//! (`resolve`).
//!
//! A new key is a field here and the line that reads it, and one line in `resolve`.
//! Keys are read in the order of thv.toml(5); `tests/tidy.rs` compares the two.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use super::{
    Addition, Destination, Engine, EnvValue, ImageName, Layer, Registry, Resource, Seccomp, Way,
    backend::BackendFragment,
    edge::{HttpFragment, TlsFragment},
    egress, image,
    issuer_table::IssuerFragment,
    problem::Place,
    sharing::SharingFragment,
    table::{At, Said, Table, Value, plain},
    url, value,
};

#[derive(Debug, Default)]
pub(super) struct Fragment {
    pub(super) command: Said<Vec<String>>,
    pub(super) image: Said<ImageName>,
    pub(super) arguments: Said<Vec<String>>,
    pub(super) engine: Said<Engine>,
    pub(super) digest_required: Said<bool>,
    pub(super) registry: BTreeMap<String, Said<Registry>>,
    pub(super) resource: Said<Resource>,
    pub(super) hosts: Said<Vec<String>>,
    pub(super) origins: Said<Vec<String>>,
    pub(super) tls: TlsFragment,
    pub(super) http: HttpFragment,
    pub(super) backend: BackendFragment,
    pub(super) legacy_sse: Said<bool>,
    pub(super) any_tool_name: Said<bool>,
    pub(super) auth: AuthFragment,
    pub(super) authz: AuthzFragment,
    pub(super) sandbox: SandboxFragment,
    pub(super) limits: LimitsFragment,
    pub(super) env: BTreeMap<String, Said<EnvValue>>,
    pub(super) sharing: SharingFragment,
}

#[derive(Debug, Default)]
pub(super) struct AuthFragment {
    pub(super) mode: Said<Mode>,
    pub(super) issuer: Said<Vec<IssuerFragment>>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Mode {
    Oidc,
    Peer,
    None,
}

/// `policies` and `allow` are two ways to say one thing, so they are one choice.
#[derive(Debug, Default)]
pub(super) struct AuthzFragment {
    pub(super) decides: Said<Decides>,
}

#[derive(Clone, Debug)]
pub(super) enum Decides {
    Policies(Vec<At<PathBuf>>),
    Authenticated,
}

#[derive(Debug, Default)]
pub(super) struct SandboxFragment {
    /// Where the topmost file that has such a table says something in it.
    pub(super) place: Option<Place>,
    pub(super) state: Said<bool>,
    pub(super) read_only: Said<Vec<PathBuf>>,
    pub(super) optional: Said<Vec<Layer>>,
    pub(super) egress: Said<Vec<Destination>>,
    pub(super) forward: Said<Vec<Way>>,
    /// Whether it is this host's.
    pub(super) host_network: Said<bool>,
    pub(super) dangerous: Said<bool>,
    pub(super) seccomp: Said<Seccomp>,
    pub(super) seccomp_allow: Said<Vec<Addition>>,
}

#[derive(Debug, Default)]
pub(super) struct LimitsFragment {
    pub(super) memory: Said<u64>,
    pub(super) tasks: Said<u64>,
    pub(super) cpu: Said<u64>,
    pub(super) io_weight: Said<u64>,
    pub(super) tmp: Said<u64>,
    pub(super) start_timeout: Said<Duration>,
    pub(super) output: Said<u64>,
    pub(super) message: Said<usize>,
    pub(super) sessions: Said<u64>,
    pub(super) call_timeout: Said<Duration>,
    pub(super) sessions_per_user: Said<u64>,
    pub(super) calls: Said<u64>,
    pub(super) calls_per_user: Said<u64>,
    pub(super) session_idle: Said<Duration>,
    pub(super) exit_idle: Said<Duration>,
    pub(super) body: Said<usize>,
    pub(super) connections: Said<u64>,
    pub(super) address_connections: Said<u64>,
    pub(super) egress_connections: Said<u64>,
    pub(super) egress_bytes: Said<u64>,
}

impl Fragment {
    /// One file over the lower layers.
    pub(super) fn read(mut top: Table<'_>, mut lower: Self) -> Self {
        // One replaces the other: a drop-in may turn a program into an image.
        match (top.has("command"), top.has("image")) {
            (true, false) => lower.image = Said::Nothing,
            (false, true) => lower.command = Said::Nothing,
            _ => {}
        }
        let fragment = Self {
            command: top.over("command", lower.command, |value| {
                value.own()?;
                command(value)
            }),
            image: top.over("image", lower.image, |value| {
                value.own()?;
                value.parsed(image)
            }),
            arguments: top.over("arguments", lower.arguments, |value| {
                value.own()?;
                value.texts(0, value::no_null)
            }),
            engine: top.over("engine", lower.engine, |value| value.parsed(image::engine)),
            digest_required: top.over("digest-required", lower.digest_required, Value::truth),
            registry: top.table("registry", lower.registry, image::registries),
            backend: BackendFragment::read(&mut top, lower.backend),
            resource: top.over("resource", lower.resource, |value| {
                value.own()?;
                value.parsed(url::resource)
            }),
            hosts: top.over("hosts", lower.hosts, |value| value.texts(0, url::host)),
            origins: top.over("origins", lower.origins, |value| {
                value.texts(0, url::origin)
            }),
            tls: top.table("tls", lower.tls, TlsFragment::read),
            http: top.table("http", lower.http, HttpFragment::read),
            legacy_sse: top.over("legacy-sse", lower.legacy_sse, Value::truth),
            any_tool_name: top.over("any-tool-name", lower.any_tool_name, Value::truth),
            auth: top.table("auth", lower.auth, AuthFragment::read),
            authz: top.table("authz", lower.authz, AuthzFragment::read),
            sandbox: top.table("sandbox", lower.sandbox, SandboxFragment::read),
            limits: top.table("limits", lower.limits, LimitsFragment::read),
            env: top.table("env", lower.env, env),
            sharing: SharingFragment::read(&mut top, lower.sharing),
        };
        top.finish(LATER);
        fragment
    }
}

impl AuthFragment {
    fn read(mut table: Table<'_>, lower: Self) -> Self {
        let mode = table.take("mode", |value| {
            let word = value.parsed(|text| value::word(text, &["oidc", "peer", "none"], &[]))?;
            Some(match word {
                "none" => Mode::None,
                "peer" => Mode::Peer,
                _ => Mode::Oidc,
            })
        });
        let issuer = table.take("issuer", |value| {
            if value.is_table() {
                return value.wrong("this is one table, not a list", "write `[[auth.issuer]]`");
            }
            let list = value.list(1, |value| value.table(IssuerFragment::read))?;
            Some(plain(list))
        });
        if let (Said::Given(mode), true) = (&mode, issuer.is_said()) {
            let means = match mode.value {
                Mode::Oidc => None,
                Mode::Peer => Some("`peer` means that the kernel says who connects"),
                Mode::None => Some("`none` means that no token is asked for"),
            };
            if let Some(means) = means {
                table.wrong(
                    &mode.place,
                    format!("{means}, but issuers are named"),
                    "remove one of the two",
                );
            }
        }
        table.finish(&[]);
        Self {
            mode: mode.or(lower.mode),
            issuer: issuer.or(lower.issuer),
        }
    }
}

impl AuthzFragment {
    fn read(mut table: Table<'_>, lower: Self) -> Self {
        let policies = table.take("policies", |value| {
            value
                .list(1, |value| value.parsed(value::absolute_path))
                .map(Decides::Policies)
        });
        let allow = table.take("allow", |value| {
            value
                .parsed(|text| value::word(text, &["authenticated"], &[]))
                .map(|_| Decides::Authenticated)
        });
        if let (true, Some(place)) = (policies.is_said(), allow.place()) {
            table.wrong(
                place,
                "`policies` and `allow` exclude each other",
                "remove one of the two",
            );
        }
        table.finish(LATER_AUTHZ);
        Self {
            decides: policies.or(allow).or(lower.decides),
        }
    }
}

impl SandboxFragment {
    fn read(mut table: Table<'_>, lower: Self) -> Self {
        let fragment = Self {
            place: table.first().or(lower.place),
            state: table.over("state", lower.state, Value::truth),
            read_only: table.over("read-only", lower.read_only, |value| {
                value.texts(0, value::shown_path)
            }),
            optional: table.over("optional", lower.optional, |value| {
                value.texts(0, value::layer)
            }),
            egress: table.over("egress", lower.egress, |value| {
                lines(value, egress::destination)
            }),
            forward: table.over("forward", lower.forward, |value| {
                lines(value, egress::forward)
            }),
            host_network: table.over("network", lower.host_network, |value| {
                let word = value.parsed(|text| value::word(text, &["own", "host"], &[]))?;
                Some(word == "host")
            }),
            dangerous: table.over("dangerous", lower.dangerous, Value::truth),
            seccomp: table.over("seccomp", lower.seccomp, |value| {
                value.parsed(value::profile)
            }),
            seccomp_allow: table.over("seccomp-allow", lower.seccomp_allow, |value| {
                value.texts(0, value::addition)
            }),
        };
        table.finish(LATER_SANDBOX);
        fragment
    }
}

impl LimitsFragment {
    fn read(mut table: Table<'_>, lower: Self) -> Self {
        let fragment = Self {
            memory: table.over("memory", lower.memory, |value| value.parsed(value::size)),
            tasks: table.over("tasks", lower.tasks, Value::count),
            cpu: table.over("cpu", lower.cpu, |value| value.parsed(value::percent)),
            io_weight: table.over("io-weight", lower.io_weight, |value| {
                match value.count()? {
                    number if number <= MAX_IO_WEIGHT => Some(number),
                    _ => value.wrong(format!("at most {MAX_IO_WEIGHT}"), ""),
                }
            }),
            tmp: table.over("tmp", lower.tmp, |value| value.parsed(value::size)),
            start_timeout: table.over("start-timeout", lower.start_timeout, |value| {
                value.parsed(value::start_timeout)
            }),
            output: table.over("output", lower.output, |value| {
                value.parsed(value::output_rate)
            }),
            message: table.over("message", lower.message, |value| {
                value.parsed(value::message_size)
            }),
            sessions: table.over("sessions", lower.sessions, Value::count),
            sessions_per_user: table.over(
                "sessions-per-user",
                lower.sessions_per_user,
                Value::count,
            ),
            calls: table.over("calls", lower.calls, Value::count),
            calls_per_user: table.over("calls-per-user", lower.calls_per_user, Value::count),
            call_timeout: table.over("call-timeout", lower.call_timeout, |value| {
                value.parsed(value::positive_duration)
            }),
            session_idle: table.over("session-idle", lower.session_idle, |value| {
                value.parsed(value::positive_duration)
            }),
            exit_idle: table.over("exit-idle", lower.exit_idle, |value| {
                value.parsed(value::duration)
            }),
            body: table.over("body", lower.body, |value| value.parsed(value::body_size)),
            connections: table.over("connections", lower.connections, Value::count),
            address_connections: table.over(
                "address-connections",
                lower.address_connections,
                Value::count,
            ),
            egress_connections: table.over(
                "egress-connections",
                lower.egress_connections,
                |value| match value.count()? {
                    number if number <= MAX_EGRESS_CONNECTIONS => Some(number),
                    _ => value.wrong(format!("at most {MAX_EGRESS_CONNECTIONS}"), ""),
                },
            ),
            egress_bytes: table.over("egress-bytes", lower.egress_bytes, |value| {
                value.parsed(value::size)
            }),
        };
        table.finish(LATER_LIMITS);
        fragment
    }
}

fn command(value: &Value<'_>) -> Option<Vec<String>> {
    let words = value.list(1, |word| word.parsed(value::no_null))?;
    let program = words
        .first()
        .map(|word| word.value.as_str())
        .unwrap_or_default();
    match value::absolute_path(program) {
        Ok(_) => Some(plain(words)),
        Err(error) => value.wrong(
            format!("the program: {error}"),
            "no shell and no PATH is searched",
        ),
    }
}

fn env(
    mut table: Table<'_>,
    lower: BTreeMap<String, Said<EnvValue>>,
) -> BTreeMap<String, Said<EnvValue>> {
    let values = table.rest(|name, value| {
        let first_ok = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !first_ok
            || !name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        {
            return value.wrong(
                "this is no name of an environment variable",
                "letters, digits and `_`",
            );
        }
        if value.is_table() {
            return value.table(credential)?;
        }
        value.parsed(value::no_null).map(EnvValue::Text)
    });
    table.finish(&[]);
    lower.into_iter().chain(values).collect()
}

/// `{ credential = "NAME" }` or `{ credential-file = "NAME" }`.
fn credential(mut table: Table<'_>) -> Option<EnvValue> {
    let place = table.place();
    let value = table.take("credential", |value| value.parsed(value::credential));
    let file = table.take("credential-file", |value| value.parsed(value::credential));
    let found = match (value.is_said(), file.is_said()) {
        (true, true) => {
            table.wrong(
                &place,
                "`credential` and `credential-file` are two ways to hand over one secret",
                "remove one of the two",
            );
            None
        }
        (false, false) => {
            table.wrong(
                &place,
                "it names no credential",
                "write a string, `{ credential = \"NAME\" }` or `{ credential-file = \"NAME\" }`",
            );
            None
        }
        (true, false) => value.given().map(EnvValue::Credential),
        (false, true) => file.given().map(EnvValue::CredentialFile),
    };
    table.finish(&[]);
    found
}

/// Lines of `egress` or `forward`.
fn lines<T>(value: &Value<'_>, parse: impl Fn(&str) -> Result<T, String>) -> Option<Vec<T>> {
    let lines = value.texts(0, parse)?;
    if lines.len() <= egress::MAX_LINES {
        Some(lines)
    } else {
        value.wrong(
            format!("more than {} lines", egress::MAX_LINES),
            "name fewer hosts, or a `*.`",
        )
    }
}

/// Descriptors of the gateway's, two for each, for every child.
const MAX_EGRESS_CONNECTIONS: u64 = 1024;

// Keys that later versions will know. They are told from slips of the keyboard,
// so that nobody believes a protection to be there that is not.
const LATER: &[&str] = &["audit", "broker", "metrics"];
const LATER_AUTHZ: &[&str] = &["scopes", "groups", "entities", "schema"];
/// `io.weight` (cgroups(7)).
const MAX_IO_WEIGHT: u64 = 10_000;
const LATER_SANDBOX: &[&str] = &["read-write"];
const LATER_LIMITS: &[&str] = &[
    "children",
    "cores",
    "files",
    "file-size",
    "in-flight",
    "io",
    "open-files",
    "rate",
    "requests",
    "response",
    "state",
    "streams",
];
