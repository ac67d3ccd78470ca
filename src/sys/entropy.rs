//! Whether there is randomness, before anybody relies on it.

use std::io;

/// Asks the kernel for a random byte, without waiting for it (getrandom(2)).
pub(crate) fn is_random() -> io::Result<()> {
    let mut byte = [0_u8];
    // SAFETY: the buffer is one byte long, which is what is asked for, and outlives the call.
    let got = unsafe { libc::getrandom(byte.as_mut_ptr().cast(), byte.len(), libc::GRND_NONBLOCK) };
    if got == 1 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_host_has_randomness() {
        is_random().unwrap();
    }
}
