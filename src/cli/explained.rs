//! What `thv check --explain` prints: whom a child serves, and what it may see and do.

use std::path::PathBuf;

use crate::{
    auth::PrincipalKey,
    config::{
        self, Config, Engine as ImageEngine, Scope, Transport, Upstream, UpstreamAuthorization,
    },
    mcp::meta,
    sandbox::{self, Host},
};

/// Whom a child serves, and what it is told of them.
pub(super) fn serves(config: &Config) -> String {
    let whom = match config.scope {
        Scope::Session => "one session; what is asked without one belongs to its principal",
        Scope::User => "all sessions of one principal",
        Scope::Server => "everybody",
    };
    let ahead = match config.warm {
        0 => String::new(),
        count => format!("; {count} wait for the next while there are sessions"),
    };
    let told = if config.names_caller_to_child() {
        let names = config::IDENTITY_VARIABLES.join(" ");
        format!("Told      who calls: {names}; never the token\n")
    } else if config.pass_identity {
        format!(
            "Told      who calls, in each request, as `{}`; never the token\n",
            meta::CALLER
        )
    } else {
        String::new()
    };
    format!("Serves    {whom}{ahead}\n{told}")
}

/// What a child of `config` may see and do, as its runner will apply it.
pub(super) fn plan(config: &Config) -> String {
    if let Transport::Remote(upstream) = &config.transport {
        return remote(upstream);
    }
    // Which directory is the principal's is not known before there is one.
    let whose = match config.scope {
        Scope::Session | Scope::User => "PRINCIPAL".to_owned(),
        Scope::Server => PrincipalKey::EVERYBODY.to_string(),
    };
    let kept = format!("/var/lib/private/thv-runner/{}/{whose}", config.server);
    let state = config.sandbox.state.then(|| PathBuf::from(kept));
    let images = PathBuf::from("/var/lib/thv-runner").join(config.server.as_str());
    let images = sandbox::Installed::store(&images);
    let image = config
        .image
        .as_ref()
        .and_then(|name| sandbox::Installed::open(&images, name).ok());
    let plan = sandbox::plan(config, &Host::look(), state.as_deref(), image.as_ref()).to_string();
    let plan = match config.engine {
        ImageEngine::Native => plan,
        ImageEngine::Podman => format!(
            "Run by podman, as the one user of a namespace; of the layer landlock only its scopes.\n{plan}"
        ),
    };
    match (&config.image, image) {
        (Some(name), None) => format!(
            "The image `{}` is not pulled, or not readable for you: what it says itself is not here.\n{plan}",
            name.text
        ),
        _ => plan,
    }
}

/// What there is to say of a server that somebody else runs.
fn remote(upstream: &Upstream) -> String {
    let shown = match &upstream.authorization {
        UpstreamAuthorization::Nothing => "nothing".to_owned(),
        UpstreamAuthorization::Credential(name) => {
            format!("the credential `{name}` of thv@.service, the same for every caller")
        }
        UpstreamAuthorization::Exchange(exchange) => format!(
            "a token of its own for each caller, from `{}`",
            exchange.token_url
        ),
    };
    format!(
        "Runs      nothing here: the server is at `{}`\nShown     {shown}; never the caller's token\n",
        upstream.url
    )
}
