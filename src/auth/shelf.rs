//! An issuer's last good key set, kept in the state directory: a gateway that
//! was idle starts without asking anybody, and while the provider is away (tok-104).
//!
//! The directory is the gateway's own (`StateDirectory=`), so what is read there
//! is what it once fetched; its age is honoured like that of any set.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};

use crate::{
    config::{Issuer, KeySource},
    files,
};

/// Where one issuer's set is kept.
#[derive(Clone, Debug)]
pub(super) struct Shelf {
    path: PathBuf,
    /// Issuer and source: a set that came from elsewhere says nothing.
    label: String,
}

/// A set as it was fetched.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Kept {
    label: String,
    /// Unix time in seconds.
    fetched: u64,
    /// Seconds.
    time_to_live: u64,
    /// The JWK set, as the issuer wrote it.
    keys: String,
}

impl Shelf {
    /// The place for an issuer's set; `None` where it comes from a file anyway.
    pub(super) fn new(directory: &Path, issuer: &str, source: &KeySource) -> Option<Self> {
        let from = match source {
            KeySource::File(_) => return None,
            KeySource::Discovery => "discovery",
            KeySource::Url(url) => url,
        };
        let label = format!("{issuer} {from}");
        let name = digest::digest(&digest::SHA256, label.as_bytes());
        let name: String = name.as_ref()[..16]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Some(Self {
            path: directory.join(format!("keys-{name}.json")),
            label,
        })
    }

    /// The set that is kept, its age and its time to live; `None` where there is
    /// none that can be used.
    pub(super) fn take_down(&self, now: u64) -> Option<(Vec<u8>, Duration, Duration)> {
        let text = files::read(&self.path, MAX_FILE).ok()?;
        let kept: Kept = serde_json::from_slice(&text).ok()?;
        // From the future: the clock was set, and its age is anybody's guess.
        let age = now.checked_sub(kept.fetched)?;
        let whole = kept.label == self.label;
        whole.then(|| {
            (
                kept.keys.into_bytes(),
                Duration::from_secs(age),
                Duration::from_secs(kept.time_to_live),
            )
        })
    }

    /// Keeps a set, in place of the one before.
    pub(super) fn put(&self, keys: &[u8], time_to_live: Duration, now: u64) -> io::Result<()> {
        let kept = Kept {
            label: self.label.clone(),
            fetched: now,
            time_to_live: time_to_live.as_secs(),
            keys: String::from_utf8_lossy(keys).into_owned(),
        };
        files::replace(&self.path, &serde_json::to_vec(&kept)?)
    }
}

/// Where `issuer`'s set is kept in `directory`.
pub(super) fn of(directory: &Path, issuer: &Issuer) -> Option<Shelf> {
    Shelf::new(directory, &issuer.issuer, &issuer.keys)
}

/// Bytes of a kept set: what `fetch` lets through, escaped as a JSON string.
const MAX_FILE: usize = 2 << 20;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_set_is_kept_whole_and_found_by_its_issuer_and_source_alone() {
        let directory = tempfile::tempdir().unwrap();
        let shelf = |issuer: &str, source| Shelf::new(directory.path(), issuer, &source).unwrap();
        let ours = shelf("https://a", KeySource::Discovery);
        assert!(ours.take_down(100).is_none());
        ours.put(b"{\"keys\":[]}", Duration::from_secs(60), 100)
            .unwrap();
        let (keys, age, time_to_live) = ours.take_down(130).unwrap();
        assert_eq!(
            (keys.as_slice(), age.as_secs(), time_to_live.as_secs()),
            (&b"{\"keys\":[]}"[..], 30, 60)
        );
        assert!(ours.take_down(99).is_none(), "from the future");
        assert!(
            shelf("https://b", KeySource::Discovery)
                .take_down(130)
                .is_none()
        );
        assert!(
            shelf("https://a", KeySource::Url("https://a/keys".to_owned()))
                .take_down(130)
                .is_none()
        );
        assert!(Shelf::new(directory.path(), "https://a", &KeySource::File("/x".into())).is_none());
        // Another issuer's file under this one's name is not believed.
        let theirs = shelf("https://b", KeySource::Discovery);
        theirs.put(b"{}", Duration::from_secs(60), 100).unwrap();
        fs::rename(&theirs.path, &ours.path).unwrap();
        assert!(ours.take_down(130).is_none());
        fs::write(&ours.path, "{\"label\":").unwrap();
        assert!(ours.take_down(130).is_none(), "half a file");
    }
}
