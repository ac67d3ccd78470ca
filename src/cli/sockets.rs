//! Unix sockets among what a server is shown.
//!
//! That a mount is read-only keeps nobody from connecting, and behind a socket may be all of
//! this host: whoever reaches Docker's is root. Looks at names alone, connects to nothing.
//! Called by `run` and `overlooked`.

use std::{
    fs,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
};

/// What a path that is shown has of them.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Found {
    None,
    /// It is one.
    Itself,
    /// It is a directory, with at least this one in it.
    Below(PathBuf),
}

/// Looks for one.
pub(super) fn among(shown: &Path) -> Found {
    match fs::metadata(shown) {
        Ok(it) if it.file_type().is_socket() => Found::Itself,
        Ok(it) if it.is_dir() => {
            let mut left = MOST;
            below(shown, DEEPEST, &mut left).map_or(Found::None, Found::Below)
        }
        _ => Found::None,
    }
}

fn below(directory: &Path, deeper: usize, left: &mut usize) -> Option<PathBuf> {
    let mut directories = Vec::new();
    // What cannot be read is not warned of.
    for entry in fs::read_dir(directory).ok()?.flatten() {
        *left = left.checked_sub(1)?;
        // Of a link only the end counts, which is shown at its own place or not at all.
        match entry.file_type() {
            Ok(kind) if kind.is_socket() => return Some(entry.path()),
            Ok(kind) if kind.is_dir() && deeper > 0 => directories.push(entry.path()),
            _ => {}
        }
    }
    directories
        .iter()
        .find_map(|directory| below(directory, deeper - 1, left))
}

/// Entries that are looked at: this is a warning, not a search.
const MOST: usize = 10_000;
/// Directories below each other.
const DEEPEST: usize = 3;

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::symlink, net::UnixListener};

    use super::*;

    #[test]
    fn a_socket_is_found_by_its_kind_and_below_what_is_shown() {
        let place = tempfile::tempdir().unwrap();
        let inner = place.path().join("run/app");
        fs::create_dir_all(&inner).unwrap();
        fs::write(place.path().join("docker.sock"), "no socket").unwrap();
        assert_eq!(among(place.path()), Found::None);
        let socket = inner.join("it");
        let _listener = UnixListener::bind(&socket).unwrap();
        assert_eq!(among(&socket), Found::Itself);
        assert_eq!(among(place.path()), Found::Below(socket.clone()));
        let link = place.path().join("link");
        symlink(&socket, &link).unwrap();
        assert_eq!(
            among(&link),
            Found::Itself,
            "it is shown as what it leads to"
        );
        assert_eq!(among(Path::new("/none/such")), Found::None);
    }

    #[test]
    fn a_large_tree_is_not_searched_to_its_end() {
        let place = tempfile::tempdir().unwrap();
        let far = place.path().join("a/b/c/d");
        fs::create_dir_all(&far).unwrap();
        let _listener = UnixListener::bind(far.join("it")).unwrap();
        assert_eq!(among(place.path()), Found::None);
        let mut left = 1;
        assert_eq!(below(place.path(), DEEPEST, &mut left), None);
    }
}
