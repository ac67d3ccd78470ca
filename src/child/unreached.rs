//! What is to be said of a runner that cannot be reached, and what to type. Called by the launcher.

use std::{borrow::Cow, io, path::Path, time::Duration};

/// Nobody listens at its socket: its unit was stopped, or masked for a while.
pub(super) fn unconnected(place: &Path, error: &io::Error) -> String {
    let name = server_of(place);
    format!(
        "`{}`: {error}; `systemctl restart thv-runner@{name}.socket` has systemd listen there again",
        place.display()
    )
}

/// Behind the cause where a connection breaks before the runner has answered: mostly systemd could not start it.
pub(super) fn broken(place: Option<&Path>) -> String {
    place.map_or_else(String::new, |place| {
        let name = server_of(place);
        format!("; `thv check {name}` and `systemctl status thv-runner@{name}.socket` say why")
    })
}

/// It does not answer: mostly its unit does not start.
pub(super) fn silent(place: Option<&Path>, waited: Duration) -> String {
    let text = format!("it did not answer within {} seconds", waited.as_secs());
    let Some(place) = place else {
        return text;
    };
    // Not its status: between two tries there is nothing of the last one in it.
    let name = server_of(place);
    format!("{text}; `journalctl -u thv-runner@{name}.service -n 20` says why")
}

/// Whose runner listens there.
fn server_of(socket: &Path) -> Cow<'_, str> {
    socket.file_stem().unwrap_or_default().to_string_lossy()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_cannot_reach_a_runner_is_told_what_shows_why() {
        let place = Path::new("/run/thv/runner/x.sock");
        let error = io::Error::from(io::ErrorKind::NotFound);
        let told = unconnected(place, &error);
        assert!(
            told.contains("`systemctl restart thv-runner@x.socket`"),
            "{told}"
        );
        let told = broken(Some(place));
        assert!(
            told.contains("`thv check x`") && told.contains("thv-runner@x.socket`"),
            "{told}"
        );
        let told = silent(Some(place), Duration::from_secs(5));
        assert!(
            told.contains("5 seconds; `journalctl -u thv-runner@x.service -n 20`"),
            "{told}"
        );
        // Without systemd there is no unit to ask.
        assert_eq!(broken(None), "");
        assert!(!silent(None, Duration::from_secs(5)).contains("journalctl"));
    }
}
