//! Memory that was needed once and is not needed any more.

/// Gives free memory of the allocator's back to the system, which it does not do by itself
/// where some of what came after is still in use (malloc_trim(3)).
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer and frees nothing that is in use, and any thread may call it
    // at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_is_kept() {
        let kept: Vec<Vec<u8>> = (0..1000_usize)
            .map(|size| vec![(size % 251) as u8; size])
            .collect();
        give_back();
        let is_whole = |(size, bytes): (usize, &Vec<u8>)| {
            bytes.len() == size && bytes.iter().all(|byte| *byte == (size % 251) as u8)
        };
        assert!(kept.iter().enumerate().all(is_whole));
    }
}
