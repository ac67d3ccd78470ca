//! Words of other tools: what people type who know ToolHive, Docker or systemctl.
//!
//! thv leaves starting, stopping and logs to systemd, so many a verb that is typed here
//! is another program's. Whoever types one is told the command, in place of a guess at
//! what else begins with the same letter.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// What to type in place of what clap does not know, if that is known.
pub(super) fn hint(error: &clap::Error) -> Option<String> {
    let said = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let known = |words: &[(&[&str], &str)], word: &str| {
        words
            .iter()
            .find(|(names, _)| names.contains(&word))
            .map(|(_, hint)| (*hint).to_owned())
    };
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let usage = error.get(ContextKind::Usage).map(ToString::to_string);
            let usage = usage.unwrap_or_default();
            // The verb was left out, and the server named at once.
            if usage.contains("thv token") {
                return Some("`thv token explain NAME < FILE`".to_owned());
            }
            if usage.contains("thv secret") {
                return Some(
                    "`thv secret list NAME`, or `set` or `remove` in the place of `list`"
                        .to_owned(),
                );
            }
            known(VERBS, said(ContextKind::InvalidSubcommand)?)
        }
        ErrorKind::UnknownArgument => {
            let argument = said(ContextKind::InvalidArg)?;
            if argument.starts_with('/') {
                let hint =
                    "a program and its arguments stand behind `--`: `… -- COMMAND ARGUMENT…`";
                return Some(hint.to_owned());
            }
            let flag = argument.split('=').next()?;
            known(FLAGS, flag).or_else(|| of_run(error, flag))
        }
        _ => None,
    }
}

/// clap would have `run` take an unknown flag for the server's program.
fn of_run(error: &clap::Error, flag: &str) -> Option<String> {
    let usage = error.get(ContextKind::Usage)?.to_string();
    let is_near_one = error.get(ContextKind::SuggestedArg).is_some();
    (usage.contains("thv run") && flag.starts_with('-') && !is_near_one).then(|| {
        "thv(1) has the flags of `run`; the server's own arguments stand behind `--`, and what has no flag here is for configured servers, thv.toml(5)".to_owned()
    })
}

const VERBS: &[(&[&str], &str)] = &[
    (
        &["list", "ls", "ps", "status", "show"],
        "`systemctl list-units 'thv*'` shows what runs, `thv check` what is configured",
    ),
    (
        &["start", "up", "enable"],
        "servers are units: `systemctl enable --now thv@NAME.socket`",
    ),
    (
        &["stop", "down", "kill"],
        "servers are units: `systemctl stop thv@NAME.socket thv@NAME.service`; of `thv run`: `systemctl stop thv-run-NAME.service`",
    ),
    (
        &["restart"],
        "servers are units: `systemctl try-restart thv@NAME.service`",
    ),
    (
        &["reload"],
        "servers are units: `systemctl try-reload-or-restart thv@NAME.service`",
    ),
    (
        &["rm", "remove", "delete", "disable", "uninstall"],
        "`systemctl disable --now thv@NAME.socket`, then remove /etc/thv/servers/NAME.toml",
    ),
    (
        &["logs", "log", "journal"],
        "`journalctl -u thv@NAME.service -u thv-runner@NAME.service`",
    ),
    (
        &["add", "create", "new", "init", "install", "config", "edit"],
        "write /etc/thv/servers/NAME.toml (thv.toml(5) has an example), then `thv check NAME`",
    ),
    (
        &["explain"],
        "`thv check --explain NAME`, or `thv token explain NAME`",
    ),
    (
        &["proxy"],
        "a server elsewhere is `url = \"https://…\"` in a server's file, see thv.toml(5)",
    ),
    (
        &["registry", "search"],
        "there is no registry of servers here: name a program or an image, see thv.toml(5)",
    ),
    (&["version"], "`thv --version`"),
    (
        &["client", "group"],
        "nothing is set up in clients: give them the URL of `resource` in the server's file",
    ),
    (
        &["mcp", "inspector"],
        "any client of MCP looks at a server, by the URL of its `resource` and with a token; `journalctl -u thv@NAME.service` shows what it asked",
    ),
    (
        &["export"],
        "a server is its file, /etc/thv/servers/NAME.toml; `thv check --explain NAME` shows what it comes to",
    ),
    (
        &["build"],
        "no images are built here: name one in a registry or an archive, `image` in thv.toml(5)",
    ),
    (
        &["inspect", "info"],
        "`thv check --explain NAME`; `systemctl status thv@NAME.service`",
    ),
    (&["exec", "shell"], "`thv sandbox NAME -- COMMAND`"),
    (
        &["login", "auth"],
        "tokens are had from the provider, by the client; `thv token explain NAME < FILE` looks at one",
    ),
];

const FLAGS: &[(&[&str], &str)] = &[
    (&["--proxy-port"], "it is called `--port` here"),
    (&["--proxy-host"], "it is called `--host` here"),
    (&["--resource-url"], "it is called `--resource` here"),
    (
        &["--authz-config"],
        "policies are a file of Cedar's: `--policy FILE`, see thv-cedar(7)",
    ),
    (
        &["--enable-audit", "--audit-config"],
        "leave it out: every decision is recorded, see thv-journal(7)",
    ),
    (
        &["--isolate-network"],
        "leave it out: a server reaches no host but those of its `--permission-profile`",
    ),
    (
        &["--oidc-client-secret", "--oidc-introspection-url"],
        "opaque tokens are for configured servers: `introspection` in thv.toml(5)",
    ),
    (
        &["--thv-ca-bundle", "--ca-cert"],
        "authorities of one's own are for configured servers: `ca-file` in thv.toml(5)",
    ),
    (
        &["--group", "--label", "-l"],
        "leave it out: servers are units, and `systemctl list-units 'thv*'` shows them",
    ),
    (
        &["--proxy-mode"],
        "leave it out: clients are served Streamable HTTP; the transport before it is for configured servers, `legacy-sse` in thv.toml(5)",
    ),
    (
        &["--tools", "--tools-override"],
        "who may call which tools is decided by `--policy FILE`, see thv-cedar(7)",
    ),
    (
        &["--env-file", "--env-dir"],
        "name each variable, `-e NAME=VALUE`, or use [env] of a configured server, see thv.toml(5)",
    ),
    (
        &["--from-config"],
        "a server's file is /etc/thv/servers/NAME.toml, see thv.toml(5)",
    ),
    (
        &["--remote-url", "--remote-auth"],
        "a server elsewhere is `url = \"https://…\"` in a server's file, see thv.toml(5)",
    ),
    (
        &["--network", "--publish", "--allow-docker-gateway"],
        "leave it out: a server has a network of its own, and reaches the hosts of its `--permission-profile`",
    ),
    (
        &["--image-verification"],
        "leave it out: every digest is checked; `IMAGE@sha256:…` names the only one that is accepted",
    ),
    (
        &["--jwks-auth-token-file", "--jwks-allow-private-ip"],
        "providers on private networks are for configured servers: `token-file` and `allow-addresses` in thv.toml(5)",
    ),
    (
        &["--args", "--cmd-arg"],
        "the server's arguments stand behind `--`",
    ),
    (
        &["--debug", "--verbose", "-v"],
        "the variable `THV_LOG=thv=debug` has more said, see thv(1)",
    ),
    (
        &["--detach", "-d"],
        "leave it out: without `--foreground` it becomes a unit of its own",
    ),
    (
        &["--rm"],
        "leave it out: nothing is left of a server that was stopped",
    ),
];

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::*;
    use crate::cli::Cli;

    fn hint_for(line: &str) -> Option<String> {
        hint(&Cli::try_parse_from(line.split(' ')).unwrap_err())
    }

    #[test]
    fn words_of_other_tools_are_answered_with_the_command() {
        for (line, word) in [
            ("thv list", "systemctl list-units"),
            ("thv start github", "enable --now"),
            ("thv logs github", "journalctl"),
            ("thv client setup", "`resource`"),
            ("thv inspector github", "`resource`"),
            ("thv exec github", "thv sandbox"),
            ("thv --debug check", "THV_LOG"),
            ("thv token github", "token explain"),
            ("thv secret github", "secret list"),
            ("thv run --proxy-port 8080 x", "--port"),
            ("thv run --authz-config=x.json x", "--policy"),
            ("thv run --group default x", "systemctl list-units"),
            ("thv run --otel-endpoint x y", "thv(1)"),
            ("thv run /usr/bin/python3 /srv/x.py", "`--`"),
        ] {
            let hint = hint_for(line).unwrap();
            assert!(hint.contains(word), "{line}: {hint}");
        }
        assert_eq!(hint_for("thv chek"), None);
        assert_eq!(hint_for("thv run --polixy x"), None);
        assert_eq!(hint_for("thv check --colour"), None);
    }

    /// What thv has itself needs no hint, and would hide one.
    #[test]
    fn no_word_is_one_of_ours() {
        let command = Cli::command();
        let run = command.find_subcommand("run").unwrap();
        for name in VERBS.iter().flat_map(|(names, _)| *names) {
            assert!(command.find_subcommand(name).is_none(), "{name}");
        }
        for flag in FLAGS.iter().flat_map(|(names, _)| *names) {
            let long = flag.trim_start_matches('-');
            assert!(
                run.get_arguments().all(|one| one.get_long() != Some(long)),
                "{flag}"
            );
        }
    }
}
