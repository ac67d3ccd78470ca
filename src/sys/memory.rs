//! Memory that was needed once and is not needed any more.

use std::{io, ptr};

/// Gives back what only the start has needed: free memory of the allocator's, and the pages of
/// this program's code, of which those that are still used come back when they are.
pub(crate) fn give_back() -> io::Result<()> {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, and any thread may call it at any time.
    unsafe {
        libc::malloc_trim(0);
    }
    let program = std::env::current_exe()?;
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    for line in maps.lines() {
        let Some((start, end)) = code_of(line, program.as_os_str().as_encoded_bytes()) else {
            continue;
        };
        // SAFETY: a private mapping of a file that may be read and executed and not written, so
        // that its pages hold what the file holds: dropped, they are read from there again.
        // Nothing is unmapped, so whoever runs in it or points to it goes on.
        let result = unsafe {
            libc::madvise(
                ptr::without_provenance_mut(start),
                end - start,
                libc::MADV_DONTNEED,
            )
        };
        super::done(result.into())?;
    }
    Ok(())
}

/// Where a mapping of proc_pid_maps(5) is, if it is code of `program` that nobody can have written to.
fn code_of(line: &str, program: &[u8]) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (range, permissions) = (fields.next()?, fields.next()?);
    let is_program = line.as_bytes().ends_with(program)
        && line.len() - program.len() > 0
        && line.as_bytes()[line.len() - program.len() - 1] == b' ';
    if permissions != "r-xp" || !is_program {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    Some((address(start)?, address(end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_goes_on_when_its_code_was_given_back() {
        for _ in 0..3 {
            give_back().unwrap();
            assert_eq!((1..=10).product::<u32>(), 3_628_800);
        }
    }

    #[test]
    fn only_code_of_the_program_itself_is_given_back() {
        let of = |line| code_of(line, b"/usr/bin/thv");
        let code = "55d0e5c00000-55d0e6a00000 r-xp 00200000 fe:00 1234   /usr/bin/thv";
        assert_eq!(of(code), Some((0x55d0_e5c0_0000, 0x55d0_e6a0_0000)));
        for other in [
            "55d0e5c00000-55d0e6a00000 r--p 00200000 fe:00 1234   /usr/bin/thv",
            "55d0e5c00000-55d0e6a00000 rwxp 00200000 fe:00 1234   /usr/bin/thv",
            "55d0e5c00000-55d0e6a00000 r-xs 00200000 fe:00 1234   /usr/bin/thv",
            "7f00e5c00000-7f00e6a00000 r-xp 00200000 fe:00 1234   /usr/lib/libc.so.6",
            "7f00e5c00000-7f00e6a00000 r-xp 00200000 fe:00 1234   /x/usr/bin/thv",
            "7ffd7a5f2000-7ffd7a5f4000 r-xp 00000000 00:00 0      [vdso]",
            "",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
