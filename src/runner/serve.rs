//! The one loop: connections, reports and ends, by poll(2).

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tracing::{debug, info, warn};

use super::{Setup, link::Link};
use crate::{sandbox::cgroup::Delegated, sys};

/// Where gateways come from.
pub(super) enum Peers {
    /// A listening socket, which is systemd's.
    Listener(OwnedFd),
    /// One connection; its end is the runner's end.
    One(OwnedFd),
}

/// Something that happened, by the index of its connection.
enum Event {
    Connection,
    Frame(usize),
    Report(usize, u64),
    End(usize, u64),
}

/// Serves until nobody is left.
pub(super) fn run(setup: &Setup, peers: Peers) -> Result<ExitCode> {
    // Once, before there is any child: this process moves into a leaf of its own.
    let cgroups = Delegated::prepare();
    let (listener, mut links) = match peers {
        Peers::Listener(listener) => (Some(listener), Vec::new()),
        Peers::One(socket) => (None, vec![Link::of_parent(socket)]),
    };
    setup.notifier.ready();
    // The first connection is what this was started for; one that is there is not waited for.
    let mut patience = listener
        .is_some()
        .then(|| Instant::now() + FIRST_CONNECTION);
    loop {
        if links.is_empty() {
            // Once more, without waiting: whoever connects after this waits in the
            // socket's queue, which is systemd's, and starts the next runner.
            match listener.as_ref().and_then(accept) {
                Some(socket) => links.push(Link::new(socket)),
                None if patience.is_none_or(|end| Instant::now() >= end) => {
                    setup.notifier.stopping();
                    info!("nobody is left, ending");
                    return Ok(ExitCode::SUCCESS);
                }
                None => {}
            }
        }
        let events = wait(listener.as_ref(), &links, patience)?;
        if events.is_empty() {
            // Nobody asks for anything now.
            for link in links.iter_mut().filter(|link| link.wants_spare()) {
                link.make_spare(setup, &cgroups);
            }
        }
        for event in events {
            match event {
                Event::Connection => {
                    if let Some(socket) = listener.as_ref().and_then(accept) {
                        // A stranger gives way to whoever comes: a gateway says hello at once.
                        if links.len() >= MAX_LINKS
                            && let Some(stranger) = links.iter_mut().find(|link| link.is_stranger())
                        {
                            stranger.close();
                        }
                        links.push(Link::new(socket));
                    }
                }
                Event::Frame(link) => links[link].read(setup, &cgroups),
                Event::Report(link, child) => links[link].hear(child, setup, &cgroups),
                Event::End(link, child) => links[link].reap(child),
            }
        }
        // A gateway says hello at once. A stranger that says nothing makes room for
        // whoever comes after it, or a few of them could keep the gateway waiting.
        if links.len() > MAX_LINKS
            && let Some(oldest) = links.iter_mut().find(|link| link.is_stranger())
        {
            oldest.dismiss();
        }
        let now = Instant::now();
        for link in &mut links {
            link.mind_deadlines(now);
        }
        if links.iter().any(|link| !link.is_stranger()) {
            patience = None;
        }
        // Dropping a link kills and reaps its children.
        links.retain(|link| !link.is_over());
        // Only gateways are left over it, and there is one; its predecessor is about to go.
        links.truncate(MAX_LINKS);
    }
}

/// Waits for something to happen; returns nothing where only time has passed.
fn wait(
    listener: Option<&OwnedFd>,
    links: &[Link],
    patience: Option<Instant>,
) -> Result<Vec<Event>> {
    let mut watched = Vec::new();
    let mut events = Vec::new();
    if let Some(listener) = listener {
        watched.push(PollFd::new(listener.as_fd(), PollFlags::POLLIN));
        events.push(Event::Connection);
    }
    for (index, link) in links.iter().enumerate() {
        watched.push(PollFd::new(link.socket(), PollFlags::POLLIN));
        events.push(Event::Frame(index));
        for child in link.children.values() {
            if let Some(report) = child.report() {
                watched.push(PollFd::new(report, PollFlags::POLLIN));
                events.push(Event::Report(index, child.number));
            } else {
                watched.push(PollFd::new(child.pidfd(), PollFlags::POLLIN));
                events.push(Event::End(index, child.number));
            }
        }
    }
    // A deadline is only near while somebody is expected, or something starts.
    let hurried = patience.is_some() || links.iter().any(Link::has_deadline);
    let time = if links.iter().any(Link::wants_spare) {
        PollTimeout::from(QUIET)
    } else if hurried {
        PollTimeout::from(HURRY)
    } else {
        PollTimeout::NONE
    };
    match poll(&mut watched, time) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ok(Vec::new()),
        Err(error) => return Err(error).context("waiting for its gateway"),
    }
    let ready = watched.iter().map(|watched| watched.any().unwrap_or(false));
    Ok(events
        .into_iter()
        .zip(ready.collect::<Vec<_>>())
        .filter(|(_, ready)| *ready)
        .map(|(event, _)| event)
        .collect())
}

fn accept(listener: &OwnedFd) -> Option<OwnedFd> {
    match sys::accept(listener.as_fd()) {
        Ok(socket) => Some(socket),
        Err(error) => {
            if error.kind() == io::ErrorKind::WouldBlock {
                debug!("no connection waits");
            } else {
                warn!(%error, "accepting a connection failed");
            }
            None
        }
    }
}

/// Connections at once: the gateway's, the next gateway's, and some strangers'.
const MAX_LINKS: usize = 8;
/// How long the connection that started this runner may take to say hello.
const FIRST_CONNECTION: Duration = Duration::from_secs(5);
/// Milliseconds in which nobody asked for anything, before a child is made ahead.
const QUIET: u8 = 10;
/// Milliseconds between two looks at deadlines, while there are any.
const HURRY: u16 = 250;
