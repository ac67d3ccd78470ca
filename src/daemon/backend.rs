//! A server that somebody else runs: who it is, and what it is shown.

use std::sync::Arc;

use http::HeaderValue;

use super::{
    Setup,
    problem::{credential_help, problem},
};
use crate::{
    auth::Exchange,
    child::{Showing, Shown, Source},
    config::{Config, Problems, Upstream, UpstreamAuthorization},
    fetch::Endpoint,
};

/// Prepares the way to `upstream`. Asks nobody anything yet.
pub(super) fn remote(
    config: &Config,
    upstream: &Upstream,
    setup: &Setup,
) -> Result<(Source, Option<Arc<Exchange>>), Problems> {
    let endpoint = Endpoint::new(&upstream.url, upstream.ca_file.as_deref()).map_err(|error| {
        problem(
            config,
            &error.to_string(),
            "mend `url` or `upstream.ca-file`",
        )
    })?;
    let mut exchange = None;
    let shown: Shown = match &upstream.authorization {
        UpstreamAuthorization::Nothing => Box::new(|_| Showing::always(None)),
        UpstreamAuthorization::Credential(name) => {
            let shown = credential(config, name, setup)?;
            Box::new(move |_| Showing::always(Some(shown.clone())))
        }
        UpstreamAuthorization::Exchange(wanted) => {
            let made = Exchange::new(
                wanted,
                upstream.ca_file.as_deref(),
                &setup.credentials,
                setup.clock.clone(),
            );
            let made = Arc::new(made.map_err(|error| {
                problem(
                    config,
                    &format!("upstream.token-exchange: {error}"),
                    &credential_help(&config.server, &format!("`{}`", wanted.credential)),
                )
            })?);
            exchange = Some(made.clone());
            Box::new(move |owner| {
                let (made, seat) = (made.clone(), made.seat(owner));
                let shown = seat.clone();
                Showing {
                    now: Box::new(move || shown.shown()),
                    refused: Box::new(move || made.forget(&seat)),
                }
            })
        }
    };
    let longest = config.limits.message;
    Ok((Source::remote(endpoint, shown, longest), exchange))
}

/// The text of a credential as the Authorization header wants it: a token, or a scheme and what belongs to it.
fn credential(config: &Config, name: &str, setup: &Setup) -> Result<HeaderValue, Problems> {
    let wrong = |error: String| {
        problem(
            config,
            &format!("upstream.authorization: {error}"),
            &credential_help(&config.server, &format!("`{name}`")),
        )
    };
    let secret = setup
        .credentials
        .read(name, MAX_SECRET)
        .map_err(|error| wrong(error.to_string()))?;
    let text = std::str::from_utf8(&secret).unwrap_or_default().trim();
    let text = match text.contains(' ') {
        true => text.to_owned(),
        false => format!("Bearer {text}"),
    };
    let mut value = HeaderValue::from_str(&text)
        .ok()
        .filter(|_| text != "Bearer ")
        .ok_or_else(|| {
            wrong(format!(
                "the credential `{name}` is empty or not plain text"
            ))
        })?;
    value.set_sensitive(true);
    Ok(value)
}

/// Bytes of a credential.
const MAX_SECRET: usize = 16 << 10;
