//! sd_notify(3).

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use sd_notify::NotifyState;
use tracing::debug;

/// Tells systemd how the service is; nobody, where systemd does not listen.
#[derive(Debug)]
pub struct Notifier {
    listens: bool,
    /// How often the watchdog wants to hear, and when it last did.
    watchdog: Option<Duration>,
    alive: Mutex<Option<Instant>>,
    status: Mutex<String>,
}

impl Notifier {
    /// What the environment says (`NOTIFY_SOCKET`, `WATCHDOG_USEC`).
    pub fn from_environment() -> Self {
        let listens = std::env::var_os("NOTIFY_SOCKET").is_some();
        // Half of its patience, as sd_watchdog_enabled(3) recommends.
        let watchdog = sd_notify::watchdog_enabled().map(|patience| patience / 2);
        Self {
            listens,
            watchdog,
            ..Self::none()
        }
    }

    /// Tells nobody.
    pub fn none() -> Self {
        Self {
            listens: false,
            watchdog: None,
            alive: Mutex::default(),
            status: Mutex::default(),
        }
    }

    pub fn ready(&self) {
        self.tell(&[NotifyState::Ready]);
    }

    pub fn stopping(&self) {
        self.tell(&[NotifyState::Stopping]);
    }

    /// One line for `systemctl status`; sent when it changes.
    pub fn status(&self, text: &str) {
        let Ok(mut last) = self.status.lock() else {
            return;
        };
        if *last != text {
            text.clone_into(&mut last);
            self.tell(&[NotifyState::Status(text)]);
        }
    }

    /// Called by the loop whose life is the service's; feeds the watchdog when it is due.
    pub fn alive(&self) {
        let (Some(every), Ok(mut last)) = (self.watchdog, self.alive.lock()) else {
            return;
        };
        if last.is_none_or(|last| last.elapsed() >= every) {
            *last = Some(Instant::now());
            self.tell(&[NotifyState::Watchdog]);
        }
    }

    fn tell(&self, state: &[NotifyState<'_>]) {
        if self.listens
            && let Err(error) = sd_notify::notify(state)
        {
            debug!(%error, "systemd was not told, ignoring");
        }
    }
}
