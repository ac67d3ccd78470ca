//! A file in memory that nobody can change any more.
//!
//! No `unsafe` is needed for it (nix wraps the calls).

use std::{
    fs::File,
    io::{self, Write},
    os::fd::OwnedFd,
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};

/// `contents` as a sealed memfd: journald reads it without fear of its changing underneath.
pub(crate) fn sealed(contents: &[u8]) -> io::Result<OwnedFd> {
    let fd = memfd_create(c"thv", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = File::from(fd);
    file.write_all(contents)?;
    let seals = SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    #[test]
    fn a_sealed_file_holds_what_it_was_given_and_cannot_be_changed() {
        let mut file = File::from(sealed(b"record").unwrap());
        assert!(file.write_all(b"x").is_err());
        assert!(file.set_len(0).is_err());
        let mut read = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut read).unwrap();
        assert_eq!(read, "record");
    }
}
