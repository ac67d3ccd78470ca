//! One blob on its way into a file: counted, hashed, and in place only when it is right.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use aws_lc_rs::digest;

use super::{ImageError, document::hex};

/// What has come so far of a blob, beside where it will be.
pub(super) struct Blob {
    place: PathBuf,
    part: PathBuf,
    file: File,
    context: digest::Context,
    length: u64,
    digest: String,
    size: u64,
}

impl Blob {
    /// Takes up what an earlier try has left.
    pub(super) fn open(place: &Path, digest: &str, size: u64) -> Result<Self, ImageError> {
        let part = place.with_extension("part");
        let failed = store(&part);
        let mut file = File::options()
            .read(true)
            .append(true)
            .create(true)
            .open(&part)
            .map_err(&failed)?;
        let mut context = digest::Context::new(&digest::SHA256);
        let mut length = 0;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let read = file.read(&mut buffer).map_err(&failed)?;
            if read == 0 {
                break;
            }
            context.update(&buffer[..read]);
            length += read as u64;
        }
        let mut blob = Self {
            place: place.to_owned(),
            part,
            file,
            context,
            length,
            digest: digest.to_owned(),
            size,
        };
        if blob.length > blob.size {
            blob.restart()?;
        }
        Ok(blob)
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn is_whole(&self) -> bool {
        self.length == self.size
    }

    /// Forgets what is there.
    pub(super) fn restart(&mut self) -> Result<(), ImageError> {
        self.file.set_len(0).map_err(store(&self.part))?;
        self.context = digest::Context::new(&digest::SHA256);
        self.length = 0;
        Ok(())
    }

    pub(super) fn write(&mut self, chunk: &[u8]) -> Result<(), ImageError> {
        self.length = self.length.saturating_add(chunk.len() as u64);
        if self.length > self.size {
            // Never written: whoever sends more than it says sends something else.
            let _ = fs::remove_file(&self.part);
            return Err(ImageError::TooLarge(format!(
                "`{}` goes on after its {} bytes",
                self.digest, self.size
            )));
        }
        self.context.update(chunk);
        self.file.write_all(chunk).map_err(store(&self.part))
    }

    /// Puts it in place, if it is what its digest says.
    pub(super) fn finish(self) -> Result<(), ImageError> {
        let found = format!("sha256:{}", hex(self.context.finish().as_ref()));
        if found != self.digest {
            let _ = fs::remove_file(&self.part);
            return Err(ImageError::Digest {
                what: "blob".to_owned(),
                expected: self.digest,
                found,
            });
        }
        self.file
            .sync_all()
            .and_then(|()| fs::rename(&self.part, &self.place))
            .map_err(store(&self.place))
    }
}

fn store(path: &Path) -> impl Fn(io::Error) -> ImageError + use<> {
    let path = path.to_owned();
    move |source| ImageError::Store {
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::document::sha256;

    #[test]
    fn a_blob_is_taken_up_where_it_was_left_and_in_place_only_when_it_is_right() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("x");
        let digest = sha256(b"0123456789");
        let mut blob = Blob::open(&path, &digest, 10).unwrap();
        blob.write(b"01234").unwrap();
        assert!(!blob.is_whole());
        drop(blob);
        let mut blob = Blob::open(&path, &digest, 10).unwrap();
        assert_eq!(blob.length(), 5);
        blob.write(b"56789").unwrap();
        blob.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"0123456789");
        assert!(!path.with_extension("part").exists());
    }

    #[test]
    fn another_blob_and_a_longer_one_leave_nothing() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("x");
        let mut blob = Blob::open(&path, &sha256(b"right"), 5).unwrap();
        blob.write(b"wrong").unwrap();
        assert!(matches!(blob.finish(), Err(ImageError::Digest { .. })));
        let mut blob = Blob::open(&path, &sha256(b"right"), 5).unwrap();
        assert!(matches!(
            blob.write(b"right!"),
            Err(ImageError::TooLarge(_))
        ));
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
        // What is left from something longer is not taken up.
        fs::write(path.with_extension("part"), b"far too long").unwrap();
        assert_eq!(Blob::open(&path, &sha256(b"right"), 5).unwrap().length(), 0);
    }
}
