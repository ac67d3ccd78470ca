//! From a configuration to a gateway, in order.

use std::{pin::Pin, sync::Arc};

use tokio::sync::Notify;

use crate::{
    auth::{self, Authenticator},
    authz::Engine,
    child::{Connection, Launcher},
    config::{Auth, Config, Problems},
    daemon::Setup,
    pipeline::Gateway,
    session::{self, Sessions},
};

/// The launcher's task: runs beside the gateway.
pub type Launching = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Builds the gateway of `config`. Starts nothing.
pub fn build(config: Config, setup: &Setup) -> Result<(Gateway, Launching), Problems> {
    if matches!(config.auth, Auth::None) && !setup.listener.is_local() {
        return Err(Problems::one(
            &config,
            "auth.mode",
            "`none` needs a Unix socket or a loopback address",
            "run `thv listen NAME 127.0.0.1:PORT`, or set mode = \"oidc\"",
        ));
    }
    let engine = Arc::new(Engine::build(&config.authz, &config.server)?);
    let authenticator = Authenticator::build(&config.auth, setup.clock.clone())?;
    let runner = match &setup.runner {
        Connection::Path(path) => Connection::Path(path.clone()),
        Connection::Inherited(socket) => Connection::Inherited(socket.try_clone().map_err(|error| {
            Problems::one(&config, "runner", &format!("its socket cannot be used: {error}"), "start again")
        })?),
    };
    let (launcher, launching) = Launcher::new(runner, setup.key.clone(), config.digest.clone());
    let sessions = Sessions::new(session::Setup {
        launcher,
        audit: setup.audit.clone(),
        sessions: config.limits.sessions,
        call_timeout: config.limits.call_timeout,
        session_idle: config.limits.session_idle,
    });
    let gateway = Gateway {
        metadata: auth::metadata(&config),
        metadata_paths: auth::metadata_paths(&config.resource).to_vec(),
        authenticator,
        engine,
        sessions,
        audit: setup.audit.clone(),
        stale: Notify::new(),
        config,
    };
    Ok((gateway, Box::pin(launching)))
}
