//! The stack of a process that shares its maker's memory for a few calls.
//!
//! Pages of its own: one that the allocator is asked for, as large as it is, has that tidy all it
//! holds, which in a fresh copy of a process writes to pages all over it.

use std::{io, ptr};

/// Mapped until it is dropped, which must not be before whoever runs on it has ended.
#[derive(Debug)]
pub(super) struct Stack(*mut libc::c_void);

impl Stack {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: at no given address, so it takes the place of nothing, and of no file.
        let begin = unsafe {
            libc::mmap(
                ptr::null_mut(),
                SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if begin == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(begin))
    }

    /// Where it begins: it grows downwards from its last byte. A page's end is aligned as every
    /// machine wants it.
    pub(super) fn end(&self) -> *mut libc::c_void {
        self.0.wrapping_byte_add(SIZE)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: it was mapped by `new`, with this size, and nobody runs on it any more.
        unsafe { libc::munmap(self.0, SIZE) };
    }
}

/// Not touched before it is used, so most of it never exists.
const SIZE: usize = 64 << 10;
