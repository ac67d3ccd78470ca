//! From a configuration to a gateway, in order.

use std::{
    path::Path,
    pin::Pin,
    sync::{Arc, atomic::AtomicU64},
};

use tokio::sync::{Notify, watch};
use tracing::warn;

use crate::{
    audit::Event,
    auth::{self, Authenticator, IntrospectionError, Notice, Notices, Surroundings},
    authz::{Engine, PolicyProblem},
    child::{Connection, Launcher, Source, stdio::Reading},
    config::{Auth, Config, Network, Problem, Problems, Transport},
    daemon::{
        Setup, backend,
        problem::{credential_help, problem},
        vetting,
    },
    egress,
    http::budget::Budget,
    pipeline::{Clients, Gateway},
    session::{self, Seal, Sessions},
};

/// The launcher's task: runs beside the gateway.
pub(super) type Launching = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What is wrong with policies, in the words of all other files.
pub fn policy_problems(found: Vec<PolicyProblem>) -> Problems {
    let problem = |found: PolicyProblem| Problem {
        line: u32::try_from(found.line).unwrap_or(u32::MAX),
        column: u32::try_from(found.column).unwrap_or(u32::MAX),
        ..Problem::of_file(&found.file, found.message, "see thv-cedar(7)")
    };
    let none = || {
        Problem::of_file(
            Path::new("/etc/thv/policies"),
            "the policies were refused",
            "",
        )
    };
    Problems::check(found.into_iter().map(problem).collect())
        .err()
        .unwrap_or_else(|| none().into())
}

fn keys_event(notice: Notice) -> Event {
    match notice {
        Notice::Fetched { issuer, keys } => Event::KeysFetched { issuer, keys },
        Notice::Unavailable {
            issuer,
            cached,
            error,
        } => Event::KeysUnavailable {
            issuer,
            cached,
            error,
        },
    }
}

/// Builds the gateway of `config`. Starts nothing.
pub(super) fn build(config: Config, setup: &Setup) -> Result<(Gateway, Launching), Problems> {
    if matches!(config.auth, Auth::None) && !setup.listener.is_local() {
        return Err(problem(
            &config,
            "auth.mode = \"none\" needs a Unix socket or a loopback address",
            &format!(
                "run `thv listen {} 127.0.0.1:PORT`, or set auth.mode = \"oidc\"",
                config.server
            ),
        ));
    }
    if matches!(config.auth, Auth::Peer) && !setup.listener.is_unix() {
        return Err(problem(
            &config,
            "auth.mode = \"peer\" needs a Unix socket: on any other nobody says which user connects",
            &format!(
                "run `thv listen {} /run/thv/{}.sock`",
                config.server, config.server
            ),
        ));
    }
    let engine = Arc::new(engine(&config, setup)?);
    let audit = setup.audit.clone();
    let notices: Notices = Arc::new(move |notice| audit.record(&keys_event(notice)));
    let around = Surroundings {
        resource: &config.resource,
        clock: setup.clock.clone(),
        notices: &notices,
        credentials: &setup.credentials,
    };
    let authenticator = Authenticator::build(&config.auth, around).map_err(|error| {
        let help = match error {
            IntrospectionError::Credential(_) => credential_help(&config.server, "it"),
            _ => format!("`thv check {}` says what to do", config.server),
        };
        problem(&config, &error.to_string(), &help)
    })?;
    let authenticator = match &setup.state {
        Some(directory) => authenticator.keeping(directory),
        None => authenticator,
    };
    let runner = match &setup.runner {
        Connection::Path(path) => Connection::Path(path.clone()),
        Connection::Inherited(socket) => {
            Connection::Inherited(socket.try_clone().map_err(|error| {
                problem(
                    &config,
                    &format!("the runner's socket cannot be used: {error}"),
                    "start again",
                )
            })?)
        }
    };
    let (launcher, launching) = Launcher::new(runner, setup.key.clone(), config.digest.clone());
    if config.sandbox.network == Network::Host {
        warn!(
            "children of this server are to run in THIS HOST'S network (sandbox.network = \"host\")"
        );
    }
    let (source, exchange) = match &config.transport {
        Transport::Stdio => (Source::stdio(launcher), None),
        Transport::Http(inside) => {
            let patience = config.limits.start_timeout;
            let longest = config.limits.message;
            let source = Source::inside(launcher, inside.clone(), patience, longest);
            (source, None)
        }
        Transport::Remote(upstream) => backend::remote(&config, upstream, setup)?,
    };
    let egress = egress::Rules::new(&config, setup.resolver.clone(), setup.audit.clone());
    let seal = match &setup.state {
        Some(directory) => Seal::kept(directory, setup.clock.clone()).unwrap_or_else(|error| {
            warn!(%error, "the key of calls that wait for their client cannot be kept, one for now is used");
            Seal::fleeting(setup.clock.clone())
        }),
        None => Seal::fleeting(setup.clock.clone()),
    };
    let sessions = Sessions::new(session::Setup {
        source: Arc::new(source),
        egress: Arc::new(egress),
        audit: setup.audit.clone(),
        scope: config.scope,
        pass_identity: config.pass_identity,
        any_tool_name: config.any_tool_name,
        warm: config.warm,
        exit_idle: config.limits.exit_idle,
        sessions: (config.limits.sessions, config.limits.sessions_per_user),
        calls: (config.limits.calls, config.limits.calls_per_user),
        call_timeout: config.limits.call_timeout,
        reading: Reading {
            longest: config.limits.message,
            rate: config.limits.output,
            counts: matches!(config.transport, Transport::Stdio),
        },
        longest_body: config.limits.body,
        session_idle: config.limits.session_idle,
        seal: Arc::new(seal),
        engine: engine.clone(),
    });
    let version = config.digest.get(..VERSION).unwrap_or(&config.digest);
    let gateway = Gateway {
        version: version.into(),
        bodies: Budget::new(config.limits.body),
        asked: AtomicU64::new(0),
        metadata: auth::metadata(&config),
        metadata_paths: auth::metadata_paths(&config.resource).to_vec(),
        authenticator,
        engine,
        sessions,
        clients: Clients::default(),
        exchange,
        audit: setup.audit.clone(),
        stale: Notify::new(),
        lasts: watch::Sender::new(()),
        config,
    };
    Ok((gateway, Box::pin(launching)))
}

/// The policies' engine; those that the last process has validated are not validated again.
fn engine(config: &Config, setup: &Setup) -> Result<Engine, Problems> {
    let state = setup.state.as_deref();
    let vetted = state.and_then(vetting::kept);
    let engine = Engine::build_again(&config.authz, &config.server, vetted.as_deref())
        .map_err(policy_problems)?;
    if let (Some(state), Some(sum)) = (state, engine.vetted())
        && vetted.as_deref() != Some(sum)
        && let Err(error) = vetting::keep(state, sum)
    {
        warn!(%error, "the next start validates the policies again");
    }
    Ok(engine)
}

/// Digits of the configuration's digest in a record: enough to tell versions apart.
const VERSION: usize = 16;
