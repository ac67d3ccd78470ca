//! What all files together say to a [`Config`]: defaults, what is required, what files hold.
//!
//! The only place that knows defaults, but for those of the larger tables. Reports
//! everything that is missing, not the first of it.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use super::{
    Auth, Authz, Config, Destination, Door, Engine, ImageName, InsideDoor, Issuer, Limits, Network,
    PolicyFile, Registry, Resource, Sandbox, ServerName, Transport, UpstreamAuthorization, Way,
    egress,
    fragment::{AuthFragment, Decides, Fragment, LimitsFragment, Mode, SandboxFragment},
    issuer_table,
    load::Loader,
    problem::Place,
    sharing::Beside,
    table::{At, Said},
};

/// Makes the configuration of `server`; `None` when something was reported.
///
/// `place` is where the server's own file begins: what is missing is missing there.
pub(super) fn resolve(
    loader: &mut Loader,
    server: &ServerName,
    said: Fragment,
    place: &Place,
) -> Option<Config> {
    if let (Said::Given(image), true) = (&said.image, said.digest_required.given_or(false))
        && image.value.digest.is_none()
    {
        loader.report(image.place.problem(
            "`digest-required` is set, and this names no digest",
            "add `@sha256:…`; `thv pull` prints that of what it has pulled",
        ));
    }
    if let Said::Given(engine) = &said.engine
        && engine.value == Engine::Podman
        && said.command.is_said()
    {
        let message = "podman runs images, and the server is a `command`";
        loader.report(engine.place.problem(message, "remove it"));
    }
    let registries = registries(loader, said.registry);
    // What holds for all servers of this host is no contradiction in one of them.
    let own = |place: &&Place| place.file.iter().any(|part| part == "servers");
    let beside = [
        said.command.place(),
        said.image.place(),
        said.arguments.place(),
        said.sandbox.place.as_ref().filter(own),
        said.env.values().find_map(Said::place).filter(own),
    ];
    let remote = said.backend.is_remote();
    let transport = said.backend.resolve(loader, &beside);
    let program = if remote {
        Some((Vec::new(), None))
    } else {
        program(loader, said.command, said.image, place)
    };
    if let (false, Some((_, None)), Some(place)) = (remote, &program, said.arguments.place()) {
        loader.report(place.problem("they belong to an `image`", "write them into `command`"));
    }
    let resource = required(
        loader,
        said.resource,
        place,
        "resource",
        "add `resource = \"https://HOST/PATH\"`, the URL clients are given",
    );
    let tls = said.tls.resolve(loader, place);
    let proxies = said.http.resolve(loader, place);
    let auth = resolve_auth(loader, said.auth, place);
    let authz = match required(
        loader,
        said.authz.decides,
        place,
        "authz",
        "add `policies = [\"/etc/thv/policies/FILE.cedar\"]` or `allow = \"authenticated\"` to [authz]",
    ) {
        Some(Decides::Policies(paths)) => policies(loader, paths).map(Authz::Policies),
        Some(Decides::Authenticated) => Some(Authz::Authenticated),
        None => None,
    };
    let sandbox = resolve_sandbox(loader, said.sandbox);
    if let (Some(Transport::Remote(upstream)), Some(Auth::Peer | Auth::None)) = (&transport, &auth)
        && matches!(upstream.authorization, UpstreamAuthorization::Exchange(_))
    {
        loader.report(place.about("upstream.token-exchange").problem(
            "without `mode = \"oidc\"` in [auth] there are no tokens to exchange",
            "set `authorization = { credential = \"NAME\" }`",
        ));
        return None;
    }
    if let (Some(Transport::Http(inside)), Some(sandbox)) = (&transport, &sandbox)
        && matches!(inside.door, InsideDoor::Port(_))
        && sandbox.network == Network::Host
    {
        loader.report(place.about("port").problem(
            "under `network = \"host\"` all children would share one port, and whoever has it first is asked for all",
            "write `socket = \"/run/mcp/mcp.sock\"`, or leave the server its own network",
        ));
        return None;
    }
    let limits = resolve_limits(said.limits, auth.as_ref());
    let beside = Beside {
        transport: transport.as_ref(),
        auth: auth.as_ref(),
        sandbox: sandbox.as_ref(),
        env: &said.env,
        sessions: limits.sessions,
    };
    let sharing = said.sharing.resolve(loader, &beside)?;
    let resource = resource?;
    let (command, image) = program?;
    Some(Config {
        server: server.clone(),
        digest: String::new(),
        files: Vec::new(),
        transport: transport?,
        command,
        image,
        arguments: said.arguments.given(),
        engine: said.engine.given().unwrap_or_default(),
        registries,
        hosts: accepted_hosts(&resource, said.hosts.given().unwrap_or_default()),
        origins: said.origins.given().unwrap_or_default(),
        resource,
        tls: tls?,
        proxies: proxies?,
        legacy_sse: said.legacy_sse.given_or(false),
        any_tool_name: said.any_tool_name.given_or(false),
        auth: auth?,
        authz: authz?,
        sandbox: sandbox?,
        scope: sharing.scope,
        warm: sharing.warm,
        pass_identity: sharing.pass_identity,
        limits,
        env: said
            .env
            .into_iter()
            .filter_map(|(name, said)| Some((name, said.given()?)))
            .collect(),
    })
}

fn resolve_auth(loader: &mut Loader, auth: AuthFragment, place: &Place) -> Option<Auth> {
    match auth.mode.given().unwrap_or(Mode::Oidc) {
        Mode::None => return Some(Auth::None),
        Mode::Peer => return Some(Auth::Peer),
        Mode::Oidc => {}
    }
    let help = "add [[auth.issuer]] with `issuer` and `audience`; only `mode = \"peer\"` or `\"none\"` in [auth] does without";
    let issuers = required(loader, auth.issuer, place, "auth.issuer", help)?;
    let resolved: Vec<_> = issuers
        .into_iter()
        .map(|issuer| issuer_table::resolve(loader, issuer))
        .collect();
    let issuers = resolved.into_iter().collect::<Option<Vec<Issuer>>>()?;
    for (index, issuer) in issuers.iter().enumerate() {
        if issuers[..index]
            .iter()
            .any(|earlier| earlier.issuer == issuer.issuer)
        {
            let place = place.about(&format!("auth.issuer[{index}].issuer"));
            loader.report(place.problem(
                format!("`{}` is named twice", issuer.issuer),
                "put all into one [[auth.issuer]]",
            ));
        }
    }
    // A token that is no JWT does not say whose it is.
    let mut asked = issuers
        .iter()
        .enumerate()
        .filter(|(_, issuer)| issuer.introspection.is_some());
    if let (Some(_), Some((second, _))) = (asked.next(), asked.next()) {
        let place = place.about(&format!("auth.issuer[{second}].introspection"));
        loader.report(place.problem(
            "another issuer has it already, and a token that is no JWT does not say whose it is",
            "leave it to one issuer",
        ));
    }
    Some(Auth::Oidc(issuers))
}

/// The registries' tables, with their files as paths of this host.
fn registries(
    loader: &mut Loader,
    said: BTreeMap<String, Said<Registry>>,
) -> BTreeMap<String, Registry> {
    let mut registries = BTreeMap::new();
    for (host, said) in said {
        if let Said::Given(At { mut value, place }) = said {
            value.ca_file = value.ca_file.and_then(|path| {
                loader.vouch(&path, &place.about(&format!("registry.{host}.ca-file")))
            });
            registries.insert(host, value);
        }
    }
    registries
}

/// Exactly one of a program and an image.
fn program(
    loader: &mut Loader,
    command: Said<Vec<String>>,
    image: Said<ImageName>,
    place: &Place,
) -> Option<(Vec<String>, Option<ImageName>)> {
    if let (true, Some(place)) = (command.is_said(), image.place()) {
        loader.report(place.problem(
            "`command` and `image` exclude each other",
            "remove one of the two",
        ));
        return None;
    }
    if image.is_said() {
        return Some((Vec::new(), Some(image.given()?)));
    }
    let command = required(
        loader,
        command,
        place,
        "command",
        "add `command = [\"/path/to/program\", …]`, `image = \"docker.io/mcp/everything\"` or `url = \"https://HOST/PATH\"`",
    );
    Some((command?, None))
}

fn policies(loader: &mut Loader, paths: Vec<At<PathBuf>>) -> Option<Vec<PolicyFile>> {
    let read: Vec<_> = paths
        .into_iter()
        .map(|At { value, place }| loader.text(&value, &place))
        .collect();
    read.into_iter()
        .map(|read| read.map(|(path, text)| PolicyFile { path, text }))
        .collect()
}

fn resolve_sandbox(loader: &mut Loader, said: SandboxFragment) -> Option<Sandbox> {
    Some(Sandbox {
        state: said.state.given_or(false),
        read_only: said.read_only.given().unwrap_or_default(),
        optional: said.optional.given().unwrap_or_default(),
        seccomp: said.seccomp.given().unwrap_or_default(),
        seccomp_allow: said.seccomp_allow.given().unwrap_or_default(),
        network: network(
            loader,
            said.egress,
            said.forward,
            said.host_network,
            said.dangerous,
        )?,
    })
}

fn network(
    loader: &mut Loader,
    egress: Said<Vec<Destination>>,
    forward: Said<Vec<Way>>,
    host_network: Said<bool>,
    dangerous: Said<bool>,
) -> Option<Network> {
    if let Said::Given(At { value: true, place }) = &host_network {
        let named = [egress.place(), forward.place()]
            .into_iter()
            .flatten()
            .next();
        if let Some(named) = named {
            loader.report(named.problem(
                "it means nothing under `network = \"host\"`, where everything is reached",
                "remove one of the two",
            ));
        } else if !dangerous.given_or(false) {
            loader.report(place.problem(
                "the child would reach all that this host reaches, its loopback and every private network included",
                "name hosts in `egress`; if it must be, add `dangerous = true`",
            ));
        } else {
            return Some(Network::Host);
        }
        return None;
    }
    let places = [egress.place().cloned(), forward.place().cloned()];
    let mut ways = egress::open(egress.given().unwrap_or_default());
    ways.extend(forward.given().unwrap_or_default());
    for (index, way) in ways.iter().enumerate() {
        let same = |earlier: &Way| match way.door {
            Door::Proxy => earlier.to == way.to,
            door => earlier.door == door,
        };
        let place = match way.door {
            Door::Forward(_) => &places[1],
            _ => &places[0],
        };
        if let (true, Some(place)) = (ways[..index].iter().any(same), place) {
            let message = match way.door {
                Door::Forward(address) => format!("two lines begin at `{address}`"),
                _ => format!("`{}` is named twice", way.to),
            };
            loader.report(place.problem(message, "remove one of the two"));
            return None;
        }
    }
    Some(Network::Own(ways))
}

fn resolve_limits(said: LimitsFragment, auth: Option<&Auth>) -> Limits {
    let count = |said: Said<u64>, default: usize| {
        said.given()
            .and_then(|n| usize::try_from(n).ok())
            .unwrap_or(default)
    };
    let sessions = count(said.sessions, 100);
    let connections = count(said.connections, 256);
    // One user leaves room for another, where there can be another.
    let share = match auth {
        Some(Auth::None) => sessions,
        _ => sessions.div_ceil(2),
    };
    Limits {
        memory: said.memory.given_or(512 << 20),
        tasks: said.tasks.given_or(64),
        cpu: said.cpu.given_or(100),
        io_weight: said.io_weight.given(),
        tmp: said.tmp.given_or(256 << 20),
        start_timeout: said.start_timeout.given_or(Duration::from_secs(10)),
        output: said.output.given_or(64 << 20),
        message: said.message.given_or(4 << 20),
        sessions,
        sessions_per_user: count(said.sessions_per_user, share),
        calls: count(said.calls, 4096),
        calls_per_user: count(said.calls_per_user, 1024),
        call_timeout: said.call_timeout.given_or(Duration::from_secs(5 * 60)),
        session_idle: said.session_idle.given_or(Duration::from_secs(30 * 60)),
        exit_idle: said.exit_idle.given_or(Duration::from_secs(5 * 60)),
        body: said.body.given_or(4 << 20),
        connections,
        // One address leaves room for another.
        address_connections: count(said.address_connections, connections.div_ceil(2)),
        egress_connections: count(said.egress_connections, 64),
        egress_bytes: said.egress_bytes.given_or(8 << 30),
    }
}

/// The resource's own host first, then the others, each once.
fn accepted_hosts(resource: &Resource, others: Vec<String>) -> Vec<String> {
    let mut hosts = vec![resource.authority.clone()];
    for host in others {
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    hosts
}

/// The value; where nothing is said, a report. What is wrong was reported when it was read.
pub(super) fn required<T>(
    loader: &mut Loader,
    said: Said<T>,
    place: &Place,
    key: &str,
    help: &str,
) -> Option<T> {
    if !said.is_said() {
        loader.report(place.about(key).problem("missing", help));
    }
    said.given()
}
