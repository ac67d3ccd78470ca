//! The gateway's own socket: how many connections it takes, and the next certificate.

use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit};
use tracing::{info, warn};

use crate::{
    config::{self, Config, Problem, Problems},
    daemon::{
        Setup,
        problem::{credential_help, problem_of},
    },
    http::{
        Entrance, Roster, Tls,
        certificate::{self, DAY},
        tls::{Source, Stamp},
    },
    time::Clock,
};

/// The way in that `config` describes; and what is wrong with its TLS, which it then is without.
pub(super) fn entrance(config: &Config, setup: &Setup) -> (Entrance, Result<(), Problems>) {
    let (tls, loaded) = match &config.tls {
        None => (None, Ok(())),
        Some(tls) => match load(tls, config, setup) {
            Ok(tls) => (Some(Arc::new(tls)), Ok(())),
            Err(problems) => (None, Err(problems)),
        },
    };
    if let Some((_, until)) = tls
        .as_ref()
        .and_then(|tls| certificate::validity(&tls.certificate()))
        && until < setup.clock.now() + SOON
    {
        warn!(until, "the certificate has expired, or will soon");
    }
    let entrance = Entrance {
        tls,
        lacks_tls: loaded.is_err(),
        proxies: config.proxies.clone(),
        roster: Roster::new(),
        share: config.limits.address_connections,
    };
    (entrance, loaded)
}

fn load(tls: &config::Tls, config: &Config, setup: &Setup) -> Result<Tls, Problems> {
    let source = Source {
        config: tls.clone(),
        credentials: setup.credentials.clone(),
    };
    Tls::load(source).map_err(|error| {
        let help = match error.is_of_credential() {
            true => credential_help(&config.server, "it"),
            false => format!("`thv check {}` says what to do", config.server),
        };
        Problem {
            key: error.key().to_owned(),
            ..problem_of(config, &error.to_string(), &help)
        }
        .into()
    })
}

/// How many connections there may be: children need descriptors, too (fault-36).
pub(super) fn places(wanted: usize) -> usize {
    let open = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    let places = usize::try_from(open / 2).unwrap_or(usize::MAX).max(1);
    if wanted > places {
        warn!(
            wanted,
            places,
            "limits.connections is more than half of this process's descriptors, taking fewer"
        );
    }
    wanted.min(places)
}

/// Looks after the files of certificate and key.
pub(super) struct Reloading {
    tls: Option<Arc<Tls>>,
    clock: Clock,
    /// The files as they were when they were last read.
    read: Option<Stamp>,
    /// As they were when last looked at.
    seen: Option<Stamp>,
}

impl Reloading {
    pub(super) fn new(entrance: &Entrance, clock: &Clock) -> Self {
        let tls = entrance.tls.clone();
        let stamp = tls.as_ref().map(|tls| tls.stamp());
        Self {
            tls,
            clock: clock.clone(),
            read: stamp.clone(),
            seen: stamp,
        }
    }

    /// Reads the pair again when its files have changed and are quiet again.
    pub(super) fn look(&mut self) {
        let Some(tls) = &self.tls else {
            return;
        };
        let now = Some(tls.stamp());
        if now != self.seen {
            // Two files are not written at once.
            self.seen = now;
            return;
        }
        if now == self.read {
            return;
        }
        self.read = now;
        match tls.reload(self.clock.now()) {
            Ok(()) => info!("new connections are shown the new certificate"),
            Err(error) => {
                warn!(
                    "the new certificate is not used, keeping the old one: {}: {error}",
                    error.key()
                );
            }
        }
    }
}

/// Seconds before its end at which a certificate is spoken of.
const SOON: u64 = 7 * DAY;
