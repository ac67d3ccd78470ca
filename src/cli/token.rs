//! `thv token explain NAME`: the answer to "why am I getting 401?".

use std::{
    io::{self, Read},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{exit, print};
use crate::{
    auth::{AuthError, explain},
    config::{self, OwnerRule, ServerName},
    systemd::Credentials,
    time::Clock,
};

/// Reads a token from stdin and prints what the server `name` would make of it.
pub(super) fn explain_token(root: &Path, name: &ServerName, as_json: bool) -> Result<ExitCode> {
    let config = config::load(root, name, OwnerRule::RootOrCaller)?;
    let mut text = String::new();
    io::stdin()
        .take(MAX_INPUT)
        .read_to_string(&mut text)
        .context("reading the token from standard input")?;
    let text = text.trim();
    // People paste the whole header.
    let token = text.strip_prefix("Authorization:").unwrap_or(text).trim();
    let token = token.strip_prefix("Bearer ").unwrap_or(token).trim();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let explanation = runtime.block_on(explain(
        &config.auth,
        &config.resource,
        &Credentials::from_environment(),
        Clock::system(),
        token,
    ))?;
    let accepted = explanation.verdict.is_ok();
    let verdict = match &explanation.verdict {
        Ok(identity) => format!(
            "accepted: `{}` of `{}`",
            identity.subject(),
            identity.issuer()
        ),
        Err(AuthError::IssuerDown { .. }) => {
            "503: nobody can tell until the issuer's keys can be had".to_owned()
        }
        Err(AuthError::Malformed(_)) => "400: not a bearer token".to_owned(),
        Err(AuthError::Scope(needed)) => {
            format!(
                "403: the token was issued for less; it needs {}",
                needed.join(" ")
            )
        }
        Err(AuthError::Missing) => {
            "401: only tokens that are bound to a key are accepted here (dpop = \"required\")"
                .to_owned()
        }
        Err(AuthError::Rejected(_) | AuthError::Proof | AuthError::Nonce(_)) => {
            "401: refused".to_owned()
        }
    };
    if as_json {
        let answer =
            json!({ "accepted": accepted, "verdict": verdict, "checks": explanation.checks });
        print(&format!("{answer:#}\n"))?;
    } else {
        let lines: String = explanation
            .checks
            .iter()
            .map(|check| format!("{check}\n"))
            .collect();
        print(&format!("{lines}{verdict}\n"))?;
    }
    Ok(if accepted {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(exit::GENERAL)
    })
}

/// Bytes of input that are read: more than a token may have.
const MAX_INPUT: u64 = 64 << 10;
