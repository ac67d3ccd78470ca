//! Any text as the payload of a token.
#![no_main]

use std::{fs, sync::LazyLock};

use thv::config::{self, Auth, Issuer, OwnerRule, ServerName};

const NOW: u64 = 1_800_000_000;

/// An issuer as a file of a server describes it.
static ISSUER: LazyLock<Issuer> = LazyLock::new(|| {
    let files = tempfile::tempdir().expect("a directory for the configuration");
    let servers = files.path().join("etc/thv/servers");
    fs::create_dir_all(&servers).expect("making it");
    let text = "command = [\"/bin/true\"]\nresource = \"https://mcp.example.com/a\"\n[[auth.issuer]]\n\
                issuer = \"https://sso.example.com\"\naudience = \"a\"\n[authz]\nallow = \"authenticated\"\n";
    fs::write(servers.join("fuzz.toml"), text).expect("writing it");
    let name = ServerName::parse("fuzz").expect("it is a name");
    let config = config::load(files.path(), &name, OwnerRule::RootOrCaller).expect("it is right");
    match config.auth {
        Auth::Oidc(issuers) => issuers.into_iter().next().expect("it names one"),
        other => panic!("no issuer in {other:?}"),
    }
});

libfuzzer_sys::fuzz_target!(|text: &[u8]| thv::auth::properties::claims(text, &ISSUER, NOW));
