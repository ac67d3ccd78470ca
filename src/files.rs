//! Small files that lie where others may have put something else: never waited for.
//!
//! Opening a pipe with a name waits until somebody opens its other end, and what a device gives
//! has no end. Whoever starts must not wait for either, so what is read at a start is a regular
//! file of a bounded size, and what is kept for the next one takes the place of whatever lies there.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use nix::libc;

/// A file to be read; anything else that lies there, or that a link leads to, is an error.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        // Nothing to a regular file; a terminal does not become this process's.
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(|error| match error.raw_os_error() {
            // What the kernel says of a socket ("no such device or address") helps nobody.
            Some(libc::ENXIO) => none(),
            _ => error,
        })?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(none())
    }
}

/// The bytes of a file, of which there may be `most`.
pub(crate) fn read(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    up_to(&open(path)?, most)
}

/// The bytes of one that is open.
pub(crate) fn up_to(file: &File, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > most {
        let long = format!("it is longer than {most} bytes");
        Err(io::Error::new(io::ErrorKind::FileTooLarge, long))
    } else {
        Ok(bytes)
    }
}

/// The same for a text.
pub(crate) fn read_text(path: &Path, most: usize) -> io::Result<String> {
    String::from_utf8(read(path, most)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
}

/// Keeps `bytes` for this user alone, in place of what lies at `path`. A reader finds the one or
/// the other, and never half of it.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    // Whatever stands there may be another's to read.
    let _ = fs::remove_file(&new);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(bytes)?;
    fs::rename(&new, path)
}

fn none() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")
}

#[cfg(test)]
mod tests {
    use std::os::unix::{
        fs::{PermissionsExt as _, symlink},
        net::UnixListener,
    };

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    /// Each of these would have the reader wait, or read for ever.
    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        mkfifo(&at("pipe"), Mode::S_IRWXU).unwrap();
        symlink("pipe", at("link")).unwrap();
        symlink("/dev/zero", at("zero")).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        for name in ["pipe", "link", "zero", "socket", "."] {
            let error = read(&at(name), 10).unwrap_err();
            assert_eq!(error.to_string(), "it is not a regular file", "{name}");
        }
    }

    #[test]
    fn a_file_is_read_whole_and_up_to_a_length() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("file");
        fs::write(&path, "0123456789").unwrap();
        symlink("file", place.path().join("link")).unwrap();
        assert_eq!(
            read_text(&place.path().join("link"), 10).unwrap(),
            "0123456789"
        );
        let error = read(&path, 9).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        fs::write(&path, [0xff]).unwrap();
        assert!(read_text(&path, 10).is_err());
        assert_eq!(read(&path, 10).unwrap(), [0xff]);
    }

    #[test]
    fn what_is_kept_takes_the_place_of_whatever_lay_there() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        mkfifo(&at("kept"), Mode::S_IRWXU).unwrap();
        mkfifo(&at("kept.new"), Mode::S_IRWXU).unwrap();
        replace(&at("kept"), b"one").unwrap();
        replace(&at("kept"), b"two").unwrap();
        assert_eq!(read(&at("kept"), 3).unwrap(), b"two");
        let mode = fs::metadata(at("kept")).unwrap().permissions().mode();
        assert_eq!((mode & 0o777, at("kept.new").exists()), (0o600, false));
        fs::create_dir(at("directory")).unwrap();
        assert!(replace(&at("directory"), b"").is_err());
    }
}
