//! Memory that was needed once and is not needed any more.

use std::ffi::{c_int, c_void};

/// Gives back what the start or the latest requests have needed: free memory of the
/// allocator's, which it does not give by itself where some of what came after is still in
/// use (malloc_trim(3)), and the pages of the program's file, most of which read policies and
/// configuration. What is needed again is mapped again.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer and frees nothing that is in use, and any thread may call it
    // at any time.
    unsafe {
        libc::malloc_trim(0);
    }
    // SAFETY: the function has the type that is asked for, and takes no data.
    unsafe {
        libc::dl_iterate_phdr(Some(unmap_unwritten), std::ptr::null_mut());
    }
}

/// Unmaps the pages of the first object, the program itself, that nothing ever writes to:
/// those of segments that are not writable (elf(5)). Relocations are in one that is.
extern "C" fn unmap_unwritten(
    object: *mut libc::dl_phdr_info,
    _size: usize,
    _data: *mut c_void,
) -> c_int {
    // SAFETY: the loader passes one that is whole for the time of this call, with as many
    // headers as it says (dl_iterate_phdr(3)).
    let (base, headers) = unsafe {
        let object = &*object;
        let count = usize::from(object.dlpi_phnum);
        (
            object.dlpi_addr,
            std::slice::from_raw_parts(object.dlpi_phdr, count),
        )
    };
    let is_unwritten = |header: &&libc::Elf64_Phdr| {
        header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0
    };
    for header in headers.iter().filter(is_unwritten) {
        let begin = base + header.p_vaddr;
        let end = begin + header.p_memsz;
        let begin = begin & !(PAGE - 1);
        // SAFETY: these pages are the file's, privately mapped and never written to, so that
        // each is read from there again when it is next touched (madvise(2), MADV_DONTNEED).
        unsafe {
            libc::madvise(
                begin as *mut c_void,
                (end - begin) as usize,
                libc::MADV_DONTNEED,
            );
        }
    }
    // The others are libraries, which other processes have mapped as well.
    1
}

/// A segment's beginning is a multiple of at least this; a larger page makes the call fail, and no harm.
const PAGE: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of files that are mapped and in memory.
    fn resident() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("RssFile:"));
        let kib = line.unwrap().split_whitespace().nth(1).unwrap();
        kib.parse::<usize>().unwrap() << 10
    }

    #[test]
    fn what_is_in_use_is_kept() {
        let kept: Vec<Vec<u8>> = (0..1000_usize)
            .map(|size| vec![(size % 251) as u8; size])
            .collect();
        let before = resident();
        give_back();
        let after = resident();
        assert!(after + (1 << 20) < before, "{before} and {after} bytes");
        let is_whole = |(size, bytes): (usize, &Vec<u8>)| {
            bytes.len() == size && bytes.iter().all(|byte| *byte == (size % 251) as u8)
        };
        assert!(kept.iter().enumerate().all(is_whole));
    }
}
