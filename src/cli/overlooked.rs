//! What `thv check` says of mistakes that else only show when somebody connects:
//! credentials that a unit cannot be given, an image that was not pulled, policies under which nobody can begin, and lists
//! that do not go with what may be called.
//!
//! Looks at names alone; reads no secret. Called by `check`.

use std::path::{Path, PathBuf};

use super::{below, credentials, fragments, sockets, standing, strays, unit, unseen};
use crate::{
    auth,
    authz::{Engine, Named, Reach},
    config::{
        Auth, Config, EnvValue, ImageSource, Issuer, Pem, ServerName, Transport,
        UpstreamAuthorization,
    },
    daemon,
    sandbox::Installed,
    systemd,
};

/// One remark: the key that it is about, the message, and what to do.
pub(super) type Remark = (String, String, String);

/// What is to be said of a configuration that loads.
pub(super) fn remarks(root: &Path, config: &Config) -> Vec<Remark> {
    let mut remarks = introspection(root, config);
    for template in ["thv@", "thv-runner@", "thv-fetch@"] {
        remarks.extend(sources(root, template, &config.server));
        remarks.extend(late(root, template, &config.server));
    }
    remarks.extend(standing::of_files(root, config));
    remarks.extend(standing::of_users(root, config));
    remarks.extend(strays::of(root, &config.server));
    remarks.extend(keys(config));
    remarks.extend(unseen::remarks(config));
    remarks.extend(readable_secrets(config));
    remarks.extend(shown_sockets(config));
    remarks.extend(image(root, config));
    remarks.extend(registry(root, config));
    remarks
}

/// Policies under which nobody can begin, or what a client is shown and what it may call
/// do not go together.
pub(super) fn policies(engine: &Engine, server: &ServerName) -> Vec<Remark> {
    let remark = |message: String, help: String| ("authz.policies".to_owned(), message, help);
    // The one request with which every client begins: without it the others are nobody's either.
    match engine.reach("initialize") {
        Reach::Here => {}
        Reach::Elsewhere(others) => {
            return vec![remark(
                format!(
                    "policies permit `initialize`, with which every client begins, on {} alone, and this is `Server::\"{server}\"`: nobody can connect",
                    in_ticks(&others)
                ),
                format!("write `Server::\"{server}\"` there, or `resource` alone for every server"),
            )];
        }
        Reach::Nowhere => {
            return vec![remark(
                "no policy permits `initialize`, with which every client begins: nobody can connect".to_owned(),
                format!("add {}, see thv-cedar(7)", permit("initialize")),
            )];
        }
    }
    let here = |method: &str| engine.reach(method) == Reach::Here;
    let remarks = PAIRS.iter().filter_map(|Pair { call, lists, what }| {
        let list = lists.first().expect("each pair has a list");
        match (here(call), lists.iter().any(|list| here(list))) {
            (true, false) => Some(remark(
                format!("policies permit `{call}` and not `{list}`: clients are shown no {what}"),
                format!("add {}", permit(list)),
            )),
            (false, true) if here(list) => {
                let elsewhere = match engine.reach(call) {
                    Reach::Elsewhere(others) => format!(" but on {}", in_ticks(&others)),
                    Reach::Here | Reach::Nowhere => String::new(),
                };
                Some(remark(
                    format!(
                        "policies permit `{list}` and not `{call}`{elsewhere}: the list shows the {what} that its reader may have, and so none"
                    ),
                    format!("add {}, or leave `{list}` out", permit(call)),
                ))
            }
            _ => None,
        }
    });
    remarks.collect()
}

/// What may be called, and the lists that show it.
struct Pair {
    call: &'static str,
    /// The one that is cut to what may be called comes first.
    lists: &'static [&'static str],
    what: &'static str,
}

const PAIRS: &[Pair] = &[
    Pair {
        call: "tools/call",
        lists: &["tools/list"],
        what: "tools",
    },
    Pair {
        call: "prompts/get",
        lists: &["prompts/list"],
        what: "prompts",
    },
    Pair {
        call: "resources/read",
        lists: &["resources/list", "resources/templates/list"],
        what: "resources",
    },
];

fn permit(method: &str) -> String {
    format!("`permit (principal, action == Action::\"{method}\", resource);`")
}

fn in_ticks(names: &[String]) -> String {
    let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

/// Principals that policies name and nobody can be: their parts of an id are issuer and subject.
pub(super) fn nobodies(engine: &Engine, config: &Config) -> Vec<Remark> {
    let issuers: Vec<&str> = match &config.auth {
        Auth::Oidc(issuers) => issuers.iter().map(|one| one.issuer.as_str()).collect(),
        Auth::Peer => vec![auth::LOCAL_ISSUER],
        Auth::None => return Vec::new(),
    };
    let remark = |Named { policy, uid, id }: &Named| {
        let why = match id.rsplit_once('|') {
            None => "is nobody: a principal is `User::\"ISSUER|SUBJECT\"`".to_owned(),
            // A subject may hold a `|` itself.
            Some(_)
                if issuers.iter().any(|issuer| {
                    id.strip_prefix(issuer)
                        .is_some_and(|rest| rest.starts_with('|'))
                }) =>
            {
                return None;
            }
            Some(_) => format!("is nobody: the issuers are {}", issuers.join(", ")),
        };
        Some((
            "authz.policies".to_owned(),
            format!("`{uid}`, whom the policy `{policy}` names, {why}"),
            format!(
                "write what `thv token explain {}` says behind `In policies:` for a token of theirs",
                config.server
            ),
        ))
    };
    engine.principals().iter().filter_map(remark).collect()
}

/// The gateway's own client at an issuer that is asked about tokens.
fn introspection(root: &Path, config: &Config) -> Vec<Remark> {
    let Auth::Oidc(issuers) = &config.auth else {
        return Vec::new();
    };
    let service = format!("thv@{}.service", config.server);
    let wanted = issuers.iter().filter_map(|issuer| {
        let credential = &issuer.introspection.as_ref()?.credential;
        let given = credentials::is_given(root, ("thv@", &config.server), credential);
        (!given).then(|| {
            (
                format!("auth.issuer `{}` introspection", issuer.issuer),
                format!("no drop-in gives {service} the credential `{credential}`"),
                format!(
                    "run `thv secret set --gateway {} {credential}`",
                    config.server
                ),
            )
        })
    });
    wanted.collect()
}

/// Files of credentials that are not there: systemd starts no unit whose credential is
/// missing where a path is named, and does not say which one it was.
fn sources(root: &Path, template: &str, server: &ServerName) -> Vec<Remark> {
    let texts = fragments::said(root, template, server.as_str());
    let files = credentials::files(root, &texts).into_values();
    let missing = files.filter_map(|file| {
        (file.is_there == Some(false)).then(|| {
            let service = format!("{template}{server}.service");
            let (name, source) = (file.name, file.source);
            let what = match source.starts_with('/') {
                true => format!("from `{source}`, where there is no file: the unit does not start"),
                false => format!("from `{source}` of systemd's stores, where there is no such file: the unit starts without it"),
            };
            (
                String::new(),
                format!("a drop-in of {service} loads `{name}` {what}"),
                credentials::cure(template, server, &file),
            )
        })
    });
    missing.collect()
}

/// Credentials that a drop-in gives since the unit has started: they come with a start alone, and a
/// reload of the gateway is refused until then.
fn late(root: &Path, template: &str, server: &ServerName) -> Vec<Remark> {
    let service = format!("{template}{server}.service");
    // Root alone can look, and a unit that does not run has none.
    let Ok(given) = std::fs::read_dir(below(root, &format!("/run/credentials/{service}"))) else {
        return Vec::new();
    };
    let given: Vec<_> = given
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    let texts = fragments::said(root, template, server.as_str());
    let files = credentials::files(root, &texts).into_values();
    let late = files.filter_map(|file| {
        // One that is not there would not come with a start, either; a directory is many.
        let is_file = !file.source.starts_with('/') || below(root, file.source).is_file();
        let is_there = file.is_there == Some(true) && is_file;
        (is_there && !given.iter().any(|given| given == file.name)).then(|| {
            (
                String::new(),
                format!("{service} runs since before a drop-in gave it the credential `{}`, and does not have it", file.name),
                format!("run {}", unit::restart(root, &service)),
            )
        })
    });
    late.collect()
}

/// Credentials that the gateway is to have and that runs without: they come with a start alone, so a reload is refused.
/// What the unit has is not shown to the commands of its reload, so the gateway has written down what it has.
pub(super) fn lacking(root: &Path, config: &Config) -> Vec<Remark> {
    let private = format!("/var/lib/private/thv/{}", config.server);
    let state = systemd::state_directory().unwrap_or_else(|| below(root, &private));
    let Some(given) = daemon::given(&state) else {
        return Vec::new();
    };
    let service = format!("thv@{}.service", config.server);
    let lacks = wanted(config)
        .into_iter()
        .filter(|(_, name)| !given.contains(name));
    let remark = |(key, name): (String, String)| {
        if credentials::is_given(root, ("thv@", &config.server), &name) {
            let message = format!(
                "{service} runs since before it was given the credential `{name}`, and does not have it"
            );
            return (
                key,
                message,
                format!("run {}", unit::restart(root, &service)),
            );
        }
        // A restart alone would end what runs well.
        let is_pem = key.starts_with("tls.");
        (
            key,
            format!("{service} does not have the credential `{name}`, and no drop-in gives it"),
            match is_pem {
                true => format!(
                    "`systemctl edit {service}`, and add `LoadCredential={name}:/PATH` below [Service]; then `systemctl restart {service}`"
                ),
                false => format!(
                    "run `thv secret set --gateway {} {name}`, then `systemctl restart {service}`",
                    config.server
                ),
            },
        )
    };
    lacks.map(remark).collect()
}

/// The credentials of the gateway's that its configuration names, and where.
pub(super) fn wanted(config: &Config) -> Vec<(String, String)> {
    let mut wanted = Vec::new();
    let mut want = |key: &str, name: &String| wanted.push((key.to_owned(), name.clone()));
    if let Some(tls) = &config.tls {
        for (key, pem) in [("tls.certificate", &tls.certificate), ("tls.key", &tls.key)] {
            if let Pem::Credential(name) = pem {
                want(key, name);
            }
        }
    }
    if let Auth::Oidc(issuers) = &config.auth {
        for issuer in issuers {
            if let Some(asked) = &issuer.introspection {
                let key = format!("auth.issuer `{}` introspection", issuer.issuer);
                want(&key, &asked.credential);
            }
        }
    }
    if let Transport::Remote(upstream) = &config.transport {
        match &upstream.authorization {
            UpstreamAuthorization::Nothing => {}
            UpstreamAuthorization::Credential(name) => want("upstream.authorization", name),
            UpstreamAuthorization::Exchange(exchange) => {
                want("upstream.token-exchange", &exchange.credential);
            }
        }
    }
    wanted
}

/// Variables whose value stands in a file that everybody reads, and is called as secrets are.
fn readable_secrets(config: &Config) -> Vec<Remark> {
    let remark = |(name, value): (&String, &EnvValue)| {
        let EnvValue::Text(text) = value else {
            return None;
        };
        let called = name.to_ascii_lowercase();
        let is_called_so = SECRETS.iter().any(|part| called.contains(part));
        // A number, a path, a URL and a word are none.
        let may_be_one =
            text.len() >= 12 && !text.contains('/') && text.contains(|c: char| !c.is_ascii_digit());
        (is_called_so && may_be_one).then(|| {
            let (server, key) = (&config.server, called.replace('_', "-"));
            (
                format!("env.{name}"),
                "what may be a secret stands in a file that every user of this host can read".to_owned(),
                format!("run `thv secret set {server} {key}`, and write `{name} = {{ credential = \"{key}\" }}`"),
            )
        })
    };
    config.env.iter().filter_map(remark).collect()
}

const SECRETS: &[&str] = &[
    "token",
    "secret",
    "password",
    "passwd",
    "api_key",
    "apikey",
    "private_key",
];

/// Files of keys that hold none: whoever shows a token of that issuer is told 503.
fn keys(config: &Config) -> Vec<Remark> {
    let Auth::Oidc(issuers) = &config.auth else {
        return Vec::new();
    };
    let remark = |issuer: &Issuer| {
        Some((
            format!("auth.issuer `{}` jwks-file", issuer.issuer),
            format!(
                "{}, so no token of this issuer is accepted",
                auth::fault_of_file(issuer)?
            ),
            "put the provider's JWK set there, as its `jwks_uri` gives it".to_owned(),
        ))
    };
    issuers.iter().filter_map(remark).collect()
}

/// Read-only does not hold for sockets.
fn shown_sockets(config: &Config) -> Vec<Remark> {
    let remark = |path: &PathBuf| {
        let (socket, cure) = match sockets::among(path) {
            sockets::Found::None => return None,
            sockets::Found::Itself => (path.clone(), "leave it out"),
            sockets::Found::Below(socket) => (socket, "show less"),
        };
        Some((
            "sandbox.read-only".to_owned(),
            format!(
                "the server may connect to the socket `{}`, where file permissions let it: read-only does not hold for sockets, and behind one may be all of this host",
                socket.display()
            ),
            format!("{cure}, unless the server is to have what is behind it"),
        ))
    };
    config.sandbox.read_only.iter().filter_map(remark).collect()
}

/// The credential of the registry that the image is of.
fn registry(root: &Path, config: &Config) -> Option<Remark> {
    let host = &config.image.as_ref()?.repository()?.registry;
    let credential = config.registries.get(host)?.credential.as_ref()?;
    let (name, unit) = (&config.server, "thv-fetch@");
    (!credentials::is_given(root, (unit, name), credential)).then(|| {
        (
            format!("registry.\"{host}\".credential"),
            format!("no drop-in gives {unit}{name}.service the credential `{credential}`"),
            format!("run `thv secret set --pull {name} {credential}`"),
        )
    })
}

/// Only root can look: the store is the runner's.
fn image(root: &Path, config: &Config) -> Option<Remark> {
    let name = config.image.as_ref()?;
    let state = PathBuf::from("/var/lib/private/thv-runner").join(config.server.as_str());
    let store = Installed::store(&below(root, &state.to_string_lossy()));
    let place = store.join(Installed::CURRENT);
    let gone = matches!(place.try_exists(), Ok(false));
    // An archive that is missing is spoken of already.
    let is_there = match &name.source {
        ImageSource::OciArchive(path) | ImageSource::DockerArchive(path) => path.exists(),
        ImageSource::Registry(_) => true,
    };
    (gone && is_there).then(|| {
        (
            "image".to_owned(),
            format!("`{}` is not pulled, so no child starts", name.text),
            format!("run `thv pull {}`", config.server),
        )
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::{self, Authz, OwnerRule, PolicyFile};

    /// The remarks on `text`, with a drop-in of `unit`.
    fn said(text: &str, drop_in: (&str, &str)) -> Vec<String> {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc/thv/servers");
        fs::create_dir_all(&etc).unwrap();
        let rest = "resource = \"https://h/x\"\nauthz.allow = \"authenticated\"\n";
        fs::write(etc.join("x.toml"), format!("{rest}{text}")).unwrap();
        if !drop_in.0.is_empty() {
            let text = format!("[Service]\n{}\n", drop_in.1);
            unit::write_drop_in(root.path(), drop_in.0, "x.conf", &text).unwrap();
        }
        let name = ServerName::parse("x").unwrap();
        let config = config::load(root.path(), &name, OwnerRule::RootOrCaller).unwrap();
        let line = |(key, message, help)| format!("{key}: {message}; {help}");
        remarks(root.path(), &config)
            .into_iter()
            .map(line)
            .collect()
    }

    const BARE: &str = "command = [\"/bin/sh\"]\nauth.mode = \"none\"\n";

    #[test]
    fn a_credential_for_introspection_that_nobody_gives_is_warned_of() {
        let text = "command = [\"/bin/sh\"]\n[[auth.issuer]]\nissuer = \"https://i.example\"\naudience = \"a\"\n\
                    introspection = { client-id = \"c\", credential = \"idp\" }\n";
        let found = said(text, ("", ""));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("thv@x.service") && found[0].contains("`idp`"));
        let given = ("thv@x.service", "SetCredential=idp:x");
        assert_eq!(said(text, given), [""; 0]);
    }

    #[test]
    fn a_credential_that_came_after_the_start_is_warned_of_while_the_unit_runs() {
        let root = tempfile::tempdir().unwrap();
        let name = ServerName::parse("x").unwrap();
        let put = |path: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        };
        let text = "[Service]\nLoadCredential=before:/etc/new\nLoadCredential=\n\
                    LoadCredential=old:/etc/old\nLoadCredential=new:/etc/new\nLoadCredentialEncrypted=stored\n\
                    LoadCredential=gone:/etc/new\nLoadCredential=gone:/etc/gone\nLoadCredential=none\nSetCredential=set:x\n";
        unit::write_drop_in(root.path(), "thv@x.service", "x.conf", text).unwrap();
        for file in ["etc/old", "etc/new", "etc/credstore.encrypted/stored"] {
            put(file);
        }
        assert_eq!(late(root.path(), "thv@", &name), []);
        put("run/credentials/thv@x.service/old");
        let found = late(root.path(), "thv@", &name);
        let named: Vec<_> = found
            .iter()
            .map(|remark| remark.1.contains("`new`") || remark.1.contains("`stored`"))
            .collect();
        assert_eq!(named, [true, true], "{found:?}");
        assert!(
            found
                .iter()
                .all(|remark| remark.2 == "run `systemctl restart thv@x.service`")
        );
    }

    /// A reload brings none, and would be refused by the gateway after `systemctl reload` has said that all is well.
    #[test]
    fn a_credential_that_the_running_gateway_lacks_is_a_problem_of_a_reload() {
        let root = tempfile::tempdir().unwrap();
        let (etc, state) = (
            root.path().join("etc/thv/servers"),
            root.path().join("var/lib/private/thv/x"),
        );
        fs::create_dir_all(&etc).unwrap();
        fs::create_dir_all(&state).unwrap();
        let text = "resource = \"https://h/x\"\nauthz.allow = \"authenticated\"\ncommand = [\"/bin/sh\"]\n\
                    [tls]\ncertificate = { credential = \"c\" }\nkey = { credential = \"k\" }\n\
                    [[auth.issuer]]\nissuer = \"https://i.example\"\naudience = \"a\"\n\
                    introspection = { client-id = \"c\", credential = \"idp\" }\n";
        fs::write(etc.join("x.toml"), text).unwrap();
        let name = ServerName::parse("x").unwrap();
        let config = config::load(root.path(), &name, OwnerRule::RootOrCaller).unwrap();
        let keys = || -> Vec<String> {
            let lacking = lacking(root.path(), &config).into_iter();
            lacking.map(|(key, ..)| key).collect()
        };
        assert_eq!(keys(), [""; 0], "none runs");
        fs::write(state.join("running"), "1 2\nrunner-key k\n").unwrap();
        assert_eq!(
            keys(),
            [
                "tls.certificate",
                "auth.issuer `https://i.example` introspection"
            ]
        );
        let drop_ins = root.path().join("etc/systemd/system/thv@x.service.d");
        fs::create_dir_all(&drop_ins).unwrap();
        let gives = "[Service]\nLoadCredential=c:/etc/c.pem\n";
        fs::write(drop_ins.join("tls.conf"), gives).unwrap();
        let cures = lacking(root.path(), &config).into_iter();
        let cures: Vec<String> = cures.map(|(.., cure)| cure).collect();
        assert_eq!(cures[0], "run `systemctl restart thv@x.service`");
        // What nobody gives would not come with a restart, and all that runs would end.
        assert!(
            cures[1].starts_with("run `thv secret set --gateway x idp`"),
            "{cures:?}"
        );
        fs::write(state.join("running"), "1 2\nrunner-key k c idp\n").unwrap();
        assert_eq!(keys(), [""; 0]);
    }

    #[test]
    fn a_file_of_keys_without_a_key_is_warned_of() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc/thv/servers")).unwrap();
        let file = root.path().join("etc/thv/keys.json");
        let config = "command = [\"/bin/sh\"]\nresource = \"https://h/x\"\nauthz.allow = \"authenticated\"\n\
                      [[auth.issuer]]\nissuer = \"https://i.example\"\naudience = \"a\"\njwks-file = \"/etc/thv/keys.json\"\n";
        fs::write(root.path().join("etc/thv/servers/x.toml"), config).unwrap();
        let name = ServerName::parse("x").unwrap();
        for (text, word) in [
            ("hello", Some("not a JWK set")),
            ("{\"keys\":[]}", Some("no usable key")),
            (
                "{\"keys\":[{\"kty\":\"oct\",\"k\":\"AAAA\"}]}",
                Some("no usable key"),
            ),
            (
                "{\"keys\":[{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"x\":\"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo\"}]}",
                None,
            ),
        ] {
            fs::write(&file, text).unwrap();
            let config = config::load(root.path(), &name, OwnerRule::RootOrCaller).unwrap();
            let found: Vec<_> = keys(&config)
                .into_iter()
                .map(|(_, message, _)| message)
                .collect();
            assert_eq!(
                found.len(),
                usize::from(word.is_some()),
                "{text}: {found:?}"
            );
            assert!(
                found
                    .iter()
                    .all(|one| one.contains(word.unwrap_or_default())),
                "{text}: {found:?}"
            );
        }
    }

    #[test]
    fn a_credential_whose_file_is_missing_is_named_with_its_unit() {
        for unit in ["thv@x.service", "thv-runner@x.service"] {
            let found = said(BARE, (unit, "LoadCredential=key:/etc/none/key.pem"));
            assert_eq!(found.len(), 1, "{found:?}");
            for word in [unit, "`key`", "/etc/none/key.pem"] {
                assert!(found[0].contains(word), "{found:?}");
            }
        }
        let there = "LoadCredential=key:/etc/thv/servers/x.toml\nLoadCredential=b:/run/%i";
        assert_eq!(said(BARE, ("thv@x.service", there)), [""; 0]);
        for (unit, line, cure) in [
            (
                "thv@x.service",
                "LoadCredential=c",
                "make the file `/etc/credstore/c`",
            ),
            (
                "thv@x.service",
                "LoadCredentialEncrypted=c",
                "run `systemd-creds encrypt --name=c - /etc/credstore.encrypted/c`",
            ),
            (
                "thv-runner@x.service",
                "LoadCredentialEncrypted=c:/etc/credstore.encrypted/thv.x.c",
                "run `thv secret set x c`",
            ),
            (
                "thv-fetch@x.service",
                "LoadCredentialEncrypted=c:/etc/credstore.encrypted/thv.x.c",
                "run `thv secret set --pull x c`",
            ),
        ] {
            let found = said(BARE, (unit, line));
            assert!(
                matches!(&found[..], [one] if one.contains(cure)),
                "{found:?}"
            );
        }
    }

    #[test]
    fn a_missing_credential_that_has_a_default_or_is_not_loaded_any_more_is_not_warned_of() {
        let of = |lines: &str| said(BARE, ("thv@x.service", lines));
        for fine in [
            "LoadCredential=opt\nSetCredential=opt:default",
            "SetCredential=opt:default\nLoadCredential=opt:/etc/none/opt",
            "LoadCredentialEncrypted=opt\nSetCredentialEncrypted=opt: Whxq",
            "LoadCredential=key:/etc/gone\nLoadCredential=key:/etc/thv/servers/x.toml",
            "LoadCredential=key:/etc/gone\nLoadCredential=",
            // One list of systemd's.
            "LoadCredential=key:/etc/gone\nLoadCredentialEncrypted = ",
        ] {
            assert_eq!(of(fine), [""; 0], "{fine}");
        }
        for missing in [
            "LoadCredential=key:/etc/gone\nSetCredential=other:default",
            "LoadCredential=key:/etc/gone\nSetCredential=key:default\nSetCredential=",
            "LoadCredential=key:/etc/thv/servers/x.toml\nLoadCredential=key:/etc/gone",
            "LoadCredential=\nLoadCredential = key:/etc/gone",
        ] {
            let found = of(missing);
            assert!(
                matches!(&found[..], [one] if one.contains("loads `key` from `/etc/gone`")),
                "{missing}: {found:?}"
            );
        }
    }

    #[test]
    fn an_argument_that_the_sandbox_does_not_show_is_warned_of() {
        let run = |argument: &str, more: &str| {
            let text = BARE.replace(
                "\"/bin/sh\"]",
                &format!("\"/bin/sh\", \"{argument}\"]\n{more}"),
            );
            said(&text, ("", ""))
        };
        for hidden in ["/etc/shadow", "--file=/etc/shadow"] {
            let found = run(hidden, "");
            assert!(
                matches!(&found[..], [one] if one.contains("`read-only`")),
                "{found:?}"
            );
        }
        for gone in ["/usr/none/such.py", "--file=/usr/none"] {
            let found = run(gone, "");
            assert!(
                matches!(&found[..], [one] if one.contains("there is no `/usr/none")),
                "{found:?}"
            );
        }
        for fine in [
            "-c",
            "/",
            "/usr/bin/env",
            "/tmp",
            "/bin/sh",
            "/none/such",
            "/etc/passwd",
        ] {
            assert_eq!(run(fine, ""), [""; 0], "{fine}");
        }
    }

    #[test]
    fn of_a_shells_script_the_program_is_looked_at_and_not_the_whole() {
        let run = |arguments: &str| {
            let text = BARE.replace("\"/bin/sh\"]", &format!("\"/bin/sh\", {arguments}]"));
            said(&text, ("", ""))
        };
        for gone in [
            r#""-c", "/usr/none/such --y s3cret""#,
            r#""-ec", "exec /usr/none/such --y=s3cret""#,
            r#""-c", "  /usr/none/such""#,
        ] {
            assert_eq!(
                run(gone),
                ["command: there is no `/usr/none/such`; install it, or correct the path"],
                "{gone}"
            );
        }
        let found = run(r#""-c", "/etc/shadow s3cret""#);
        assert!(
            matches!(&found[..], [one] if one.contains("does not see `/etc/shadow`") && !one.contains("s3cret")),
            "{found:?}"
        );
        for fine in [
            r#""-c", "/usr/bin/env --y""#,
            r#""-c", "env /usr/none/such""#,
            r#""-c", "/usr/none/$X""#,
            r#""-c", "/usr/none/such;true""#,
            r#""-c", "TOKEN=/usr/s3cret /bin/sh""#,
            r#""-c", """#,
            r#""-c", "exec""#,
            r#""--greeting=/usr/none is no file""#,
            r#""/usr/none is no file""#,
        ] {
            assert_eq!(run(fine), [""; 0], "{fine}");
        }
    }

    /// Files of thv's are for all to read, and are backed up, copied and pasted.
    #[test]
    fn a_secret_in_a_servers_file_is_warned_of_and_not_shown() {
        let found = said(
            &format!("{BARE}env.GITHUB_TOKEN = \"ghp_0123456789ab\"\n"),
            ("", ""),
        );
        let cure = "run `thv secret set x github-token`, and write `GITHUB_TOKEN = { credential = \"github-token\" }`";
        assert!(
            matches!(&found[..], [one] if one.starts_with("env.GITHUB_TOKEN:") && one.ends_with(cure) && !one.contains("ghp")),
            "{found:?}"
        );
        for fine in [
            "A = \"ghp_0123456789ab\"",
            "MAX_TOKENS = \"100000000000\"",
            "TOKEN_URL = \"https://sso.example.com/token\"",
            "PASSWORD_FILE = \"/etc/hostname\"",
            "TOKEN_KIND = \"bearer\"",
            "TOKEN = { credential-file = \"github-token\" }",
        ] {
            assert_eq!(
                said(&format!("{BARE}[env]\n{fine}\n"), ("", ""))
                    .iter()
                    .filter(|one| one.contains("every user"))
                    .count(),
                0,
                "{fine}"
            );
        }
    }

    #[test]
    fn a_registrys_credential_that_nobody_gives_is_warned_of() {
        let image = "image = \"docker.io/mcp/everything:1.0\"";
        let text = BARE.replace("command = [\"/bin/sh\"]", image)
            + "[registry.\"docker.io\"]\ncredential = \"hub\"\n[registry.\"ghcr.io\"]\ncredential = \"other\"\n";
        let found = said(&text, ("", ""));
        let cure = "run `thv secret set --pull x hub`";
        assert!(found.iter().any(|one| one.ends_with(cure)), "{found:?}");
        assert!(!found.iter().any(|one| one.contains("other")), "{found:?}");
        let given = ("thv-fetch@x.service", "LoadCredentialEncrypted=hub");
        let found = said(&text, given);
        assert!(!found.iter().any(|one| one.ends_with(cure)), "{found:?}");
    }

    #[test]
    fn a_socket_that_the_sandbox_shows_is_warned_of() {
        let place = tempfile::tempdir().unwrap();
        let socket = place.path().join("docker.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for shown in [place.path(), &socket] {
            let text = format!(
                "{BARE}[sandbox]\nread-only = [{:?}]\n",
                shown.display().to_string()
            );
            let found = said(&text, ("", ""));
            assert!(
                matches!(&found[..], [one] if one.contains("docker.sock") && one.starts_with("sandbox.read-only:")),
                "{found:?}"
            );
        }
    }

    #[test]
    fn an_image_that_was_not_pulled_is_warned_of() {
        let text = BARE.replace(
            "command = [\"/bin/sh\"]",
            "image = \"docker.io/mcp/everything:1.0\"",
        );
        let found = said(&text, ("", ""));
        assert!(
            matches!(&found[..], [one] if one.ends_with("run `thv pull x`")),
            "{found:?}"
        );
    }

    /// What is said of policies for the server `x`.
    fn said_of_policies(text: &str) -> Vec<String> {
        let file = PolicyFile {
            path: "/p/x.cedar".into(),
            text: text.to_owned(),
        };
        let name = ServerName::parse("x").unwrap();
        let engine = Engine::build(&Authz::Policies(vec![file]), &name).unwrap();
        let line = |(_, message, help)| format!("{message}; {help}");
        policies(&engine, &name).into_iter().map(line).collect()
    }

    #[test]
    fn policies_under_which_nobody_can_begin_are_warned_of() {
        for text in [
            "forbid (principal, action, resource);",
            "permit (principal, action == Action::\"tools/call\", resource);",
        ] {
            let found = said_of_policies(text);
            assert!(
                matches!(&found[..], [one] if one.contains("no policy permits `initialize`")),
                "{found:?}"
            );
        }
        let begin = |resource: &str| {
            said_of_policies(&format!(
                "permit (principal, action == Action::\"initialize\", {resource});"
            ))
        };
        for elsewhere in [
            "resource == Server::\"y\"",
            "resource in Server::\"y\"",
            "resource is Server in Server::\"y\"",
        ] {
            assert_eq!(
                begin(elsewhere),
                [
                    "policies permit `initialize`, with which every client begins, on `Server::\"y\"` alone, and this is `Server::\"x\"`: nobody can connect; \
                     write `Server::\"x\"` there, or `resource` alone for every server"
                ],
                "{elsewhere}"
            );
        }
        for here in [
            "resource",
            "resource is Server",
            "resource == Server::\"x\"",
            "resource in Server::\"x\"",
        ] {
            assert_eq!(begin(here), [""; 0], "{here}");
        }
        // One of several is enough.
        let both = "permit (principal, action, resource in Server::\"y\");\n\
                    permit (principal, action, resource in Server::\"x\");";
        assert_eq!(said_of_policies(both), [""; 0]);
    }

    #[test]
    fn what_may_be_called_and_is_not_shown_is_warned_of_and_the_reverse() {
        let permitted = |actions: &str, more: &str| {
            let text = format!(
                "permit (principal, action in [Action::\"initialize\", {actions}], resource);\n{more}"
            );
            said_of_policies(&text)
        };
        for (call, list, what) in [
            ("tools/call", "tools/list", "tools"),
            ("prompts/get", "prompts/list", "prompts"),
            ("resources/read", "resources/list", "resources"),
        ] {
            let (call_action, list_action) =
                (format!("Action::\"{call}\""), format!("Action::\"{list}\""));
            assert_eq!(
                permitted(&call_action, ""),
                [format!(
                    "policies permit `{call}` and not `{list}`: clients are shown no {what}; \
                     add `permit (principal, action == Action::\"{list}\", resource);`"
                )]
            );
            let found = permitted(&list_action, "");
            let start = format!("policies permit `{list}` and not `{call}`: ");
            assert!(
                matches!(&found[..], [one] if one.starts_with(&start)),
                "{found:?}"
            );
            let both = format!("{call_action}, {list_action}");
            assert_eq!(permitted(&both, ""), [""; 0]);
        }
        // Resources are shown by templates, too.
        let templates = "Action::\"resources/read\", Action::\"resources/templates/list\"";
        assert_eq!(permitted(templates, ""), [""; 0]);
        // Another server's tools are not this one's, and one named tool is a tool.
        let of = |resource: &str| {
            let call = format!("permit (principal, action == Action::\"tools/call\", {resource});");
            permitted("Action::\"tools/list\"", &call)
        };
        let found = of("resource in Server::\"y\"");
        assert!(
            matches!(&found[..], [one] if one.contains("not `tools/call` but on `Server::\"y\"`")),
            "{found:?}"
        );
        assert_eq!(of("resource == Tool::\"a\""), [""; 0]);
    }
}
