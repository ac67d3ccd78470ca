//! Where the runner has its servers' secrets from: systemd's credentials.
//!
//! They are opened for each child that is given some, and never read here. A
//! runner that gives up root opens them before, for they are root's alone.

use std::{collections::HashMap, fs::File, os::fd::OwnedFd};

use crate::{
    config::{Config, ServerName},
    files, frames,
    sandbox::{self, Fault},
    systemd,
};

pub(super) struct Vault {
    server: ServerName,
    place: systemd::Credentials,
    /// Opened as root.
    kept: HashMap<String, File>,
}

impl Vault {
    pub(super) fn from_environment(server: &ServerName) -> Self {
        Self {
            server: server.clone(),
            place: systemd::Credentials::from_environment(),
            kept: HashMap::new(),
        }
    }

    /// Opens what the configuration names, before root is given up. What is not
    /// there is missed when a child needs it.
    pub(super) fn keep(&mut self, config: &Config) {
        let plan = sandbox::plan(config, &sandbox::Host::default(), None, None);
        for name in plan.credentials() {
            if let Ok(file) = self.open(name) {
                self.kept.insert(name.to_owned(), file);
            }
        }
    }

    /// The credentials of one child.
    pub(super) fn of(&self, plan: &sandbox::Plan) -> Result<sandbox::Credentials, Fault> {
        let mut credentials = sandbox::Credentials::default();
        for name in plan.credentials() {
            let file = match self.kept.get(name) {
                Some(file) => file.try_clone().map_err(|error| error.to_string()),
                None => self.open(name),
            };
            let file = file.map_err(|error| Fault {
                layer: "credential".to_owned(),
                reason: format!(
                    "`{name}`: {error}; set it with `thv secret set {} {name}`",
                    self.server
                ),
            })?;
            credentials.add(name, OwnedFd::from(file));
        }
        Ok(credentials)
    }

    fn open(&self, name: &str) -> Result<File, String> {
        // By this one the gateway is known: it is no server's.
        if name == frames::KEY_CREDENTIAL {
            return Err("the name is thv's own".to_owned());
        }
        let path = self
            .place
            .look_for(name)
            .map_err(|error| error.to_string())?;
        files::open(&path).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_the_gateway_is_no_servers_secret() {
        let directory = tempfile::tempdir().unwrap();
        for name in [frames::KEY_CREDENTIAL, "token"] {
            std::fs::write(directory.path().join(name), "x").unwrap();
        }
        let vault = Vault {
            server: ServerName::parse("x").unwrap(),
            place: systemd::Credentials::within(directory.path().to_owned()),
            kept: HashMap::new(),
        };
        assert!(vault.open("token").is_ok());
        assert!(vault.open(frames::KEY_CREDENTIAL).is_err());
        assert!(vault.open("other").unwrap_err().contains("No such file"));
    }
}
