//! A new configuration for a gateway that runs: refused in words, or a reason to make way.
//!
//! Nothing that runs is changed in place. Each decision is made by the one
//! configuration that its process was built with (fault-52). What is new is tried beside
//! the loop: reading policies takes long, and nobody's request waits for that.

use std::sync::Arc;

use tokio::task::{JoinHandle, spawn_blocking};
use tracing::{error, info, warn};

use super::{Setup, build::build, edge, record_refusal};
use crate::{pipeline::Gateway, sys::memory};

/// The trial of what the files say now, while there is one.
#[derive(Default)]
pub(super) struct Trial {
    running: Option<JoinHandle<bool>>,
    /// Asked for once more: it may have read what has changed since.
    again: bool,
}

impl Trial {
    /// Begins one, or has one follow that which runs.
    pub(super) fn begin(&mut self, gateway: &Gateway, setup: &Arc<Setup>) {
        if self.running.is_some() {
            self.again = true;
            return;
        }
        let (digest, setup) = (gateway.config.digest.clone(), setup.clone());
        let trial = spawn_blocking(move || {
            let wants = wants_another(&digest, &setup);
            memory::give_back();
            wants
        });
        self.running = Some(trial);
    }

    /// Waits until one has found a reason to make way. Safe to drop and call again.
    pub(super) async fn succeeds(&mut self, gateway: &Gateway, setup: &Arc<Setup>) {
        loop {
            let Some(running) = &mut self.running else {
                return std::future::pending().await;
            };
            let wants = running.await;
            self.running = None;
            match wants {
                Ok(true) => return,
                Ok(false) => {}
                Err(failed) => error!(%failed, "the changed configuration could not be tried"),
            }
            if std::mem::take(&mut self.again) {
                self.begin(gateway, setup);
            }
        }
    }
}

/// Whether a gateway of this configuration should make way for one that has read what the files say now.
fn wants_another(digest: &str, setup: &Setup) -> bool {
    // All that a start would do, but for the start.
    let tried = (setup.load)().and_then(|config| {
        edge::entrance(&config, setup).1?;
        let digest = config.digest.clone();
        build(config, setup).map(|_| digest)
    });
    match tried {
        Ok(tried) if tried == digest => {
            info!("nothing in the configuration has changed");
            false
        }
        Ok(_) => {
            info!("the configuration has changed, making way for a new process");
            true
        }
        Err(problems) => {
            record_refusal(&problems, setup);
            warn!("the changed configuration is refused, going on with the one from before");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        future::poll_fn,
        net::TcpListener,
        path::{Path, PathBuf},
        pin::pin,
        sync::{Mutex, mpsc},
        task::Poll,
        time::Duration,
    };

    use super::*;
    use crate::{
        audit::Audit,
        child::Connection,
        config::{self, OwnerRule, ServerName},
    };

    const GOOD: &str = "command = [\"/bin/sh\"]\nresource = \"http://localhost/x\"\nauthz.allow = \"authenticated\"\nauth.mode = \"none\"\n";

    fn write(root: &Path, text: &str) {
        let servers = root.join("etc/thv/servers");
        fs::create_dir_all(&servers).unwrap();
        fs::write(servers.join("it.toml"), text).unwrap();
    }

    /// What a gateway is run with that reads its files when it is told to, and tells when it has.
    fn setup(root: PathBuf) -> (Arc<Setup>, mpsc::Sender<()>, mpsc::Receiver<()>) {
        let server = ServerName::parse("it").unwrap();
        let (audit, _) = Audit::memory(&server);
        let ((go_on, wait), (tell, told)) = (mpsc::channel(), mpsc::channel());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let nobody = (Connection::Path("/nowhere".into()), String::new());
        let wait = Mutex::new(wait);
        let alone = Setup::alone(&root, &server, listener, nobody, audit).unwrap();
        let setup = Setup {
            load: Box::new(move || {
                let patience = Duration::from_secs(60);
                wait.lock()
                    .unwrap()
                    .recv_timeout(patience)
                    .expect("the loop goes on");
                let loaded = config::load(&root, &server, OwnerRule::RootOrCaller);
                tell.send(()).unwrap();
                loaded
            }),
            may_exit: true,
            ..alone
        };
        (Arc::new(setup), go_on, told)
    }

    /// Waits until no trial runs; whether one has found a reason to make way.
    async fn over(trial: &mut Trial, gateway: &Gateway, setup: &Arc<Setup>) -> bool {
        poll_fn(|context| {
            let found = pin!(trial.succeeds(gateway, setup)).poll(context);
            match found {
                Poll::Pending if trial.running.is_some() => Poll::Pending,
                found => Poll::Ready(found.is_ready()),
            }
        })
        .await
    }

    /// fault-51: what a reload reads keeps nobody waiting: here it is the loop that lets it read. What is
    /// refused or has not changed is no reason to make way, and a reload during a reload reads once more.
    #[tokio::test]
    async fn a_new_configuration_is_tried_beside_the_loop() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), GOOD);
        let (setup, go_on, told) = setup(root.path().to_owned());
        go_on.send(()).unwrap();
        let (gateway, _) = build((setup.load)().unwrap(), &setup).unwrap();
        told.recv().unwrap();
        let mut trial = Trial::default();
        for text in [GOOD.to_owned(), GOOD.replace("command", "comand")] {
            write(root.path(), &text);
            trial.begin(&gateway, &setup);
            go_on.send(()).unwrap();
            assert!(!over(&mut trial, &gateway, &setup).await, "{text}");
            told.recv().unwrap();
        }
        // Asked for twice, the second time for what was written after the first had read.
        trial.begin(&gateway, &setup);
        trial.begin(&gateway, &setup);
        go_on.send(()).unwrap();
        told.recv().unwrap();
        write(root.path(), &format!("# edited\n{GOOD}"));
        go_on.send(()).unwrap();
        assert!(over(&mut trial, &gateway, &setup).await);
        assert!(trial.running.is_none() && !trial.again);
    }
}
