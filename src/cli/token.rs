//! `thv token explain NAME`: the answer to "why am I getting 401?".

use std::{
    io::{self, IsTerminal as _, Read},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{Usage, credentials, exit, print, say};
use crate::{
    audit::Reason,
    auth::{AuthError, Explanation, IntrospectionError, explain},
    authz::principal_name,
    config::{self, Auth, Config, OwnerRule, ServerName},
    systemd::{CredentialError, Credentials},
    time::Clock,
};

/// Reads a token from stdin and prints what the server `name` would make of it.
pub(super) fn explain_token(root: &Path, name: &ServerName, as_json: bool) -> Result<ExitCode> {
    let config = config::load(root, name, OwnerRule::RootOrCaller)?;
    let mode = match config.auth {
        Auth::Oidc(_) => None,
        Auth::Peer => Some("peer"),
        Auth::None => Some("none"),
    };
    if let Some(mode) = mode {
        return Err(Usage(format!(
            "`{name}` asks for no token (auth.mode = \"{mode}\"): there is nothing to explain"
        ))
        .into());
    }
    if io::stdin().is_terminal() {
        say("thv: paste the token, then Return and Ctrl-D");
    }
    let mut text = String::new();
    io::stdin()
        .take(MAX_INPUT)
        .read_to_string(&mut text)
        .context("reading the token from standard input")?;
    let text = text.trim();
    // People paste the whole header.
    let token = text.strip_prefix("Authorization:").unwrap_or(text).trim();
    let token = token.strip_prefix("Bearer ").unwrap_or(token).trim();
    if token.is_empty() {
        return Err(Usage(format!(
            "there is no token on standard input: `thv token explain {name} < FILE`"
        ))
        .into());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let explanation = runtime
        .block_on(explain(
            &config.auth,
            &config.resource,
            &Credentials::from_environment(),
            Clock::system(),
            token,
        ))
        .map_err(|error| unable(error, &config))?;
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
        Err(AuthError::Proof) => {
            "401: good only with a proof of its key, which its client alone can make".to_owned()
        }
        Err(AuthError::Rejected(_) | AuthError::Nonce(_)) => "401: refused".to_owned(),
    };
    let reason = explanation.verdict.as_ref().err().map(Reason::from);
    let principal = explanation.verdict.as_ref().ok();
    let principal = principal.map(|identity| principal_name(identity));
    let cure = reason.and_then(|reason| cure(reason, &explanation, &config, token));
    if as_json {
        let answer = json!({
            "accepted": accepted,
            "verdict": verdict,
            "principal": principal,
            "reason": reason.map(Reason::as_str),
            "help": cure,
            "checks": explanation.checks,
        });
        print(&format!("{answer:#}\n"))?;
    } else {
        let lines: String = explanation
            .checks
            .iter()
            .map(|check| format!("{check}\n"))
            .collect();
        print(&format!("{lines}{verdict}\n"))?;
        if let Some(principal) = principal {
            print(&format!("In policies: {principal}\n"))?;
        }
        if let Some(reason) = reason {
            print(&format!(
                "In the journal: THV_REASON={}\n{}",
                reason.as_str(),
                cure.map(|cure| format!("To do: {cure}\n"))
                    .unwrap_or_default()
            ))?;
        }
    }
    Ok(if accepted {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(exit::GENERAL)
    })
}

/// Nothing was checked. A secret that the gateway has from its unit is to be had otherwise here.
fn unable(error: IntrospectionError, config: &Config) -> anyhow::Error {
    let asking = match &config.auth {
        Auth::Oidc(issuers) => issuers.iter().find_map(|issuer| {
            let asked = issuer.introspection.as_ref()?;
            Some((&asked.credential, &issuer.issuer))
        }),
        Auth::Peer | Auth::None => None,
    };
    let (IntrospectionError::Credential(cause), Some((key, issuer))) = (&error, asking) else {
        return error.into();
    };
    let name = &config.server;
    // Where `thv secret set --gateway` has put it; another's is in systemd's own place.
    let place = credentials::stored(name, key);
    let source = match Path::new(&place).symlink_metadata() {
        Ok(_) => format!("{key}:{place}"),
        Err(_) => key.clone(),
    };
    let advice = format!(
        "asking `{issuer}` about tokens needs the credential `{key}`, as `systemd-run -qP -p LoadCredentialEncrypted={source} thv token explain {name} < FILE` gives it"
    );
    match cause {
        // It would send people to the unit.
        CredentialError::NoDirectory => anyhow::anyhow!(advice),
        _ => anyhow::Error::from(error).context(advice),
    }
}

/// What is likely to help, in the server's file or at the provider.
fn cure(reason: Reason, explanation: &Explanation, config: &Config, token: &str) -> Option<String> {
    let file = format!("/etc/thv/servers/{}.toml", config.server);
    Some(match reason {
        Reason::TokenMalformed if token.contains(['"', '{', ':']) => {
            "give it the token alone: in a provider's answer it is what stands behind `access_token`, without the quotes"
                .to_owned()
        }
        Reason::TokenMalformed if token.contains(char::is_whitespace) => {
            "give it the token alone, in one line".to_owned()
        }
        Reason::TokenMalformed if token.matches('.').count() != 2 => format!(
            "was it cut off on its way here? If the provider's tokens look like this, they are opaque: it is asked about those with `introspection` of its [[auth.issuer]] in {file}"
        ),
        Reason::TokenIssuer if explanation.is_near_miss() => {
            format!("write `issuer` in {file} as the token says `iss`")
        }
        Reason::TokenIssuer => format!(
            "ask the provider that is configured for a token, or add an `[[auth.issuer]]` to {file}"
        ),
        Reason::TokenAudience => format!(
            "have the provider issue it for this server (its resource is `{}`), or name what it says in `audience` in {file}",
            config.resource.url
        ),
        Reason::TokenExpired => "get a new one".to_owned(),
        Reason::TokenNotYetValid => "compare this host's clock with the provider's".to_owned(),
        Reason::TokenType => format!(
            "show an access token, not an ID token; where the provider marks none, write `typ = \"legacy\"` in {file}"
        ),
        Reason::TokenKeyUnknown | Reason::TokenSignature => {
            "get a new one; if that is no better, another provider has signed it, or it was changed"
                .to_owned()
        }
        Reason::ProviderUnavailable => {
            format!(
                "is the provider up, are `issuer` or `jwks-url` right, as seen from this host, and is its certificate of an authority that is known here (`ca-file` in {file})?"
            )
        }
        Reason::TokenClient => format!("add its client to `clients` in {file}, if it may call"),
        Reason::TokenSubject => format!("add its subject to `subjects` in {file}, if it may call"),
        Reason::ScopeInsufficient => format!(
            "have its client ask the provider for that scope, or write another in `scopes` in {file}"
        ),
        Reason::TokenUnbound => format!(
            "have its client ask for one that is bound to a key (DPoP), or write `dpop = \"accepted\"` in {file}"
        ),
        Reason::TokenClaim | Reason::TokenRequiredClaim => format!(
            "the line that says NO names what is wanted: have the provider issue it so, or change {file} (thv.toml(5))"
        ),
        _ => return None,
    })
}

/// Bytes of input that are read: more than a token may have.
const MAX_INPUT: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// It would be "accepted", beside a line that says it is no token.
    #[test]
    fn where_no_token_is_asked_for_none_is_explained() {
        let root = tempfile::tempdir().unwrap();
        let servers = root.path().join("etc/thv/servers");
        fs::create_dir_all(&servers).unwrap();
        let name = ServerName::parse("x").unwrap();
        for mode in ["none", "peer"] {
            let text = format!(
                "command = [\"/bin/sh\"]\nresource = \"https://h/x\"\nauth.mode = \"{mode}\"\nauthz.allow = \"authenticated\"\n"
            );
            fs::write(servers.join("x.toml"), text).unwrap();
            let error = explain_token(root.path(), &name, false).unwrap_err();
            assert!(
                error.is::<Usage>() && error.to_string().contains(mode),
                "{error}"
            );
        }
    }

    /// What is pasted is often a provider's whole answer.
    #[test]
    fn of_what_is_no_token_it_is_said_what_to_do() {
        let root = tempfile::tempdir().unwrap();
        let servers = root.path().join("etc/thv/servers");
        fs::create_dir_all(&servers).unwrap();
        let text = "command = [\"/bin/sh\"]\nresource = \"https://h/x\"\nauthz.allow = \"authenticated\"\n\
            [[auth.issuer]]\nissuer = \"https://sso.example.com\"\naudience = \"x\"\n";
        fs::write(servers.join("x.toml"), text).unwrap();
        let name = ServerName::parse("x").unwrap();
        let config = config::load(root.path(), &name, OwnerRule::RootOrCaller).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        for (token, cure_has) in [
            ("{\"access_token\":\"eyJ.a.b\"}", "`access_token`"),
            ("\"eyJ.a.b\"", "without the quotes"),
            ("eyJ.a\neyJ.b", "in one line"),
            ("2YotnFZFEjr1zCsicMWpAA", "`introspection`"),
        ] {
            let explanation = runtime
                .block_on(explain(
                    &config.auth,
                    &config.resource,
                    &Credentials::default(),
                    Clock::system(),
                    token,
                ))
                .unwrap();
            let reason = Reason::from(explanation.verdict.as_ref().unwrap_err());
            let cure = cure(reason, &explanation, &config, token).unwrap_or_default();
            assert!(cure.contains(cure_has), "{token}: {reason:?} {cure}");
            let form = &explanation.checks[0].to_string();
            let is_fine = form.contains("of the kind");
            assert_eq!(is_fine, form.starts_with("ok"), "{form}");
            for (reason, word) in [
                (
                    Reason::ScopeInsufficient,
                    "`scopes` in /etc/thv/servers/x.toml",
                ),
                (Reason::TokenUnbound, "`dpop = "),
                (Reason::TokenClaim, "says NO"),
                (Reason::TokenRequiredClaim, "says NO"),
            ] {
                let cure = super::cure(reason, &explanation, &config, token).unwrap_or_default();
                assert!(cure.contains(word), "{reason:?}: {cure}");
            }
        }
    }

    #[test]
    fn a_secret_that_is_not_here_is_named_with_the_way_to_have_it() {
        let root = tempfile::tempdir().unwrap();
        let servers = root.path().join("etc/thv/servers");
        fs::create_dir_all(&servers).unwrap();
        let text = "command = [\"/bin/sh\"]\nresource = \"https://h/x\"\nauthz.allow = \"authenticated\"\n\
            [[auth.issuer]]\nissuer = \"https://sso.example.com\"\naudience = \"x\"\n\
            introspection = { client-id = \"thv\", credential = \"sso\" }\n";
        fs::write(servers.join("x.toml"), text).unwrap();
        let name = ServerName::parse("x").unwrap();
        let config = config::load(root.path(), &name, OwnerRule::RootOrCaller).unwrap();
        for credentials in [
            Credentials::default(),
            Credentials::within("/nonexistent".into()),
        ] {
            let missing = credentials.read("sso", 1).unwrap_err();
            let told = format!("{:#}", unable(missing.into(), &config));
            assert!(
                told.contains("`sso`, as `systemd-run -qP -p LoadCredentialEncrypted=sso thv token explain x < FILE` gives it"),
                "{told}"
            );
            assert!(!told.contains("started by its unit"), "{told}");
        }
    }
}
