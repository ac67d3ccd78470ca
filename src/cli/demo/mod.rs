//! `thv demo`: the whole of it on loopback, without root, configuration or network.
//!
//! Only the issuer and the printing are the demo's own. The configuration is
//! real files, the runner and its sandbox are the ones that serve, and the
//! gateway is `daemon::run`, called like `thv serve` calls it.

mod client;
mod files;
pub mod issuer;
mod play;
pub mod server;
mod window;

use std::{io::Write, net::TcpListener, process::ExitCode};

use anyhow::{Context as _, Result};

use crate::{
    audit::Audit,
    config::ServerName,
    daemon::{self, Setup},
    runner::{self, Person},
};

pub use self::issuer::DemoIssuer;
use self::play::Scene;
use self::window::Window;

/// Plays the demo; with `once` it ends after it, else it serves until Ctrl-C.
pub fn run(once: bool, out: &mut (impl Write + Send)) -> Result<ExitCode> {
    let listener = TcpListener::bind("127.0.0.1:0").context("listening on loopback")?;
    let issuer_listener = TcpListener::bind("127.0.0.1:0").context("listening on loopback")?;
    let address = listener.local_addr()?;
    let server = ServerName::parse("demo").context("the demo's own name")?;
    let person = Person::to_become();
    let files = files::write(address, issuer_listener.local_addr()?, person.as_ref())?;
    // Before any thread: the runner is forked, and root is given up for good.
    let program = std::env::current_exe().context("finding this program")?;
    let runner = runner::foreground(&program, files.root(), &server)?;
    if let Some(person) = &person {
        person.become_for_good()?;
        writeln!(
            out,
            "Started by root: gateway and server run as uid {}.\n",
            person.uid()
        )?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let played = runtime.block_on(async {
        let issuer = DemoIssuer::start(issuer_listener)?;
        let window = Window::default();
        let audit = Audit::stderr(window.clone(), &server)?;
        let scene = Scene { address, issuer: &issuer, audit: audit.clone(), window: window.clone() };
        let setup = Setup::in_foreground(files.root(), &server, listener, &runner, audit)?;
        let mut gateway = tokio::spawn(daemon::run(setup));
        let played = tokio::select! {
            played = play::play(&scene, out) => played,
            ended = &mut gateway => ended?.map(|_| ()).and_then(|()| anyhow::bail!("the gateway ended")),
        };
        played?;
        if once {
            // Ended with the process: its runner notices and ends the child.
            gateway.abort();
            return Ok(ExitCode::SUCCESS);
        }
        play::how_to_go_on(&scene, out)?;
        window.open();
        gateway.await??;
        Ok(ExitCode::SUCCESS)
    });
    runtime.shutdown_background();
    played
}
