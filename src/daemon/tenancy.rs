//! The gateway's state directory: one process at a time, and whether the last came to its end.
//!
//! Called by [`super::run`] before anything else, and by `thv check`, which is told what the process was given and what it serves. What lies in the directory
//! (keys of issuers, the key of sealed states) is others' business. A directory
//! that cannot be written keeps nobody from serving.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use tracing::warn;

use crate::{audit::Event, files};

/// The directory is this process's until this is dropped.
pub(super) struct Tenancy {
    mark: PathBuf,
    /// Held by the kernel until the process ends, however it does.
    _lock: Option<Flock<File>>,
}

impl Tenancy {
    /// Takes the directory, or says who cannot; and what the last process has left undone.
    /// `given` are the credentials that it has.
    pub(super) fn begin(directory: &Path, given: &[String]) -> Result<(Self, Option<Event>)> {
        let lock = match lock(directory) {
            Ok(lock) => Some(lock),
            Err(Errno::EWOULDBLOCK) => bail!(
                "another gateway serves from the state directory `{}`; end it first, or give this one its own",
                directory.display()
            ),
            Err(error) => {
                warn!(directory = %directory.display(), %error, "the state directory cannot be locked, going on without");
                None
            }
        };
        let mark = directory.join(MARK);
        let last = files::read_text(&mark, MAX_MARK)
            .ok()
            .map(|text| unfinished(&text));
        // Without the mark a violent end is not noticed, and nothing else is lost.
        if let Err(error) = make(&mark, given) {
            // It is the last process's, which had other credentials.
            let _ = fs::remove_file(&mark);
            warn!(%error, "it will not be known whether this process comes to its end");
        }
        Ok((Self { mark, _lock: lock }, last))
    }

    /// Nothing that was permitted is without its outcome.
    pub(super) fn end(self) {
        // What cannot be removed is told once too often by the next process.
        let _ = fs::remove_file(&self.mark);
    }
}

/// A lock on the directory itself: it needs no file, so a full disk does not matter.
fn lock(directory: &Path) -> Result<Flock<File>, Errno> {
    let open = File::open(directory)
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or_default()))?;
    Flock::lock(open, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error)
}

fn make(mark: &Path, given: &[String]) -> io::Result<()> {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let (pid, since, given) = (std::process::id(), since.as_micros(), given.join(" "));
    let text = format!("{pid} {since}\n{given}\n");
    files::replace(mark, text.as_bytes())
}

/// The credentials that the gateway has which serves from the directory; `None` where there is none, or nobody knows.
pub fn given(directory: &Path) -> Option<Vec<String>> {
    let text = files::read_text(&directory.join(MARK), MAX_MARK).ok()?;
    let given = text.strip_suffix('\n')?.lines().nth(1)?;
    Some(given.split(' ').map(str::to_owned).collect())
}

/// Notes which configuration the gateway serves, for those who compare it with what the files say.
pub(super) fn serves(directory: &Path, digest: &str) {
    let mark = OpenOptions::new().append(true).open(directory.join(MARK));
    // Where there is none, or no room, nobody knows it.
    let _ = mark.and_then(|mut mark| mark.write_all(format!("{digest}\n").as_bytes()));
}

/// The digest of the configuration that the gateway serves which serves from the directory; `None` where nobody knows.
pub fn served(directory: &Path) -> Option<String> {
    let text = files::read_text(&directory.join(MARK), MAX_MARK).ok()?;
    let digest = text.strip_suffix('\n')?.lines().nth(2)?;
    Some(digest.to_owned())
}

/// What the mark of another process says; it may have been cut short.
fn unfinished(text: &str) -> Event {
    let mut words = text.lines().next().unwrap_or_default().split(' ');
    Event::Unfinished {
        pid: words.next().and_then(|word| word.parse().ok()),
        since: words.next().and_then(|word| word.parse().ok()),
    }
}

/// There while a gateway runs.
const MARK: &str = "running";
/// Two numbers, and names.
const MAX_MARK: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    /// fault-53: the second is told who is in its way; the directory is free when the first is gone.
    #[test]
    fn a_state_directory_has_one_gateway() {
        let directory = tempfile::tempdir().unwrap();
        let (first, _) = Tenancy::begin(directory.path(), &[]).unwrap();
        let Err(error) = Tenancy::begin(directory.path(), &[]) else {
            panic!("two gateways in one directory");
        };
        let error = error.to_string();
        assert!(
            error.contains(&directory.path().display().to_string()),
            "{error}"
        );
        first.end();
        assert!(Tenancy::begin(directory.path(), &[]).is_ok());
    }

    /// fault-6: whoever comes after a violent end says so once, and after an orderly one not.
    #[test]
    fn a_violent_end_is_told_by_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let begin = || Tenancy::begin(directory.path(), &[]).unwrap();
        let (killed, last) = begin();
        assert!(last.is_none());
        drop(killed);
        let (orderly, last) = begin();
        let Some(Event::Unfinished { pid, since }) = last else {
            panic!("{last:?}");
        };
        assert_eq!(pid, Some(std::process::id()));
        assert!(since.is_some());
        orderly.end();
        let (cut, last) = begin();
        assert!(last.is_none());
        fs::write(&cut.mark, "").unwrap();
        drop(cut);
        let (_, last) = begin();
        assert!(matches!(
            last,
            Some(Event::Unfinished {
                pid: None,
                since: None
            })
        ));
    }

    /// A reload asks: what a drop-in gives since comes with a start alone.
    #[test]
    fn which_credentials_a_gateway_has_is_known_while_it_serves() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(given(directory.path()), None);
        let names = ["key".to_owned(), "tls".to_owned()];
        let (gateway, _) = Tenancy::begin(directory.path(), &names).unwrap();
        assert_eq!(given(directory.path()), Some(names.to_vec()));
        // Of another version, or cut short.
        for text in ["1 2", "1 2\n", "1 2\nke"] {
            fs::write(&gateway.mark, text).unwrap();
            assert_eq!(given(directory.path()), None, "{text}");
        }
        // Which configuration it serves comes later.
        assert_eq!(served(directory.path()), None);
        fs::write(&gateway.mark, "1 2\nkey\n").unwrap();
        assert_eq!(served(directory.path()), None);
        serves(directory.path(), "abc");
        assert_eq!(served(directory.path()), Some("abc".to_owned()));
        assert_eq!(given(directory.path()), Some(vec!["key".to_owned()]));
        gateway.end();
        assert_eq!(given(directory.path()), None);
        serves(directory.path(), "abc");
        assert_eq!(served(directory.path()), None, "it has no mark");
    }

    /// Nobody takes what the last process was given for this one's.
    #[test]
    fn a_mark_that_cannot_be_replaced_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(MARK), "1 2\nold\n").unwrap();
        fs::create_dir(directory.path().join("running.new")).unwrap();
        let (_gateway, last) = Tenancy::begin(directory.path(), &["key".to_owned()]).unwrap();
        assert!(matches!(last, Some(Event::Unfinished { pid: Some(1), .. })));
        assert_eq!(given(directory.path()), None);
    }

    /// A pipe in the mark's place has no writer whom a start could wait for.
    #[test]
    fn a_mark_that_is_no_file_is_replaced_by_one() {
        let directory = tempfile::tempdir().unwrap();
        mkfifo(&directory.path().join(MARK), Mode::S_IRWXU).unwrap();
        let begin = || Tenancy::begin(directory.path(), &[]).unwrap();
        let (killed, last) = begin();
        assert!(last.is_none());
        drop(killed);
        let (_, last) = begin();
        assert!(matches!(last, Some(Event::Unfinished { pid: Some(_), .. })));
    }

    /// fault-40: a directory that cannot be written, or is not there, keeps nobody from serving.
    #[test]
    fn a_directory_that_cannot_be_used_is_done_without() {
        let (tenancy, last) = Tenancy::begin(Path::new("/proc/self"), &[]).unwrap();
        assert!(last.is_none());
        tenancy.end();
        let (tenancy, _) = Tenancy::begin(Path::new("/nonexistent"), &[]).unwrap();
        tenancy.end();
    }
}
