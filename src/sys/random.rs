//! Random bytes of the kernel's.

use std::{io, ptr};

/// Fills `bytes` from the kernel's generator (getrandom(2)).
///
/// Not the generator of the cryptographic library: that one first gathers noise of its own,
/// which takes tens of milliseconds of every process that starts.
pub(crate) fn fill(bytes: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let left = &mut bytes[done..];
        // SAFETY: pointer and length are those of one slice that is borrowed for the call, and
        // the kernel writes no more than that length.
        let got = unsafe { libc::getrandom(ptr::from_mut(left).cast(), left.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => done += got,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// So many of them, as lower-case hexadecimal digits.
pub(crate) fn digits<const BYTES: usize>() -> io::Result<String> {
    let mut bytes = [0; BYTES];
    fill(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_filled_and_no_two_times_alike() {
        let (mut one, mut other) = ([0; 4096], [0; 4096]);
        fill(&mut one).unwrap();
        fill(&mut other).unwrap();
        assert_ne!(one, other);
        for half in one.chunks(64) {
            assert!(half.iter().any(|byte| *byte != 0));
        }
        fill(&mut []).unwrap();
        let digits = digits::<16>().unwrap();
        assert!(digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
    }
}
