//! What a token is called in memory: its SHA-256.
//!
//! A client shows the same token with each request, and to hash it is the larger part of knowing
//! it again. So the latest ones are kept as they were shown, few, and none when nobody asks for a
//! while: what was kept is compared, and has its name already. Asked by `authenticate`; decides
//! nothing.

use std::{
    hash::BuildHasher,
    sync::{Mutex, MutexGuard, PoisonError},
};

use aws_lc_rs::{constant_time::verify_slices_are_equal, digest};
use foldhash::fast::RandomState;

/// The name of a token.
pub(super) type Name = [u8; 32];

/// Names, and the latest tokens that were asked for.
pub(super) struct Names {
    /// Places by rows.
    kept: Mutex<Vec<[Kept; ROW]>>,
    /// Nobody outside can tell which share a row.
    rows: RandomState,
}

#[derive(Clone, Default)]
struct Kept {
    token: Box<[u8]>,
    name: Name,
    /// It was asked for since somebody else wanted its place.
    is_wanted: bool,
}

impl Names {
    pub(super) fn new() -> Self {
        Self {
            kept: Mutex::default(),
            rows: RandomState::default(),
        }
    }

    /// That of a token which is kept.
    pub(super) fn kept(&self, token: &[u8]) -> Option<Name> {
        let mut all = self.all();
        let row = all.get_mut(self.row(token))?;
        // An empty place is no token's: none is empty.
        let is_it = |kept: &&mut Kept| {
            kept.token.len() == token.len()
                && !token.is_empty()
                && verify_slices_are_equal(&kept.token, token).is_ok()
        };
        let kept = row.iter_mut().find(is_it)?;
        kept.is_wanted = true;
        Some(kept.name)
    }

    /// That of another, which is kept from now on if there is a place.
    pub(super) fn keep(&self, token: &str) -> Name {
        let token = token.as_bytes();
        let mut name = [0; 32];
        name.copy_from_slice(digest::digest(&digest::SHA256, token).as_ref());
        if token.len() <= LONGEST {
            let mut all = self.all();
            if all.is_empty() {
                all.resize(ROWS, Default::default());
            }
            let row = &mut all[self.row(token)];
            let others = row.iter_mut().filter(|kept| !kept.is_wanted);
            match others.min_by_key(|kept| !kept.token.is_empty()) {
                Some(kept) => {
                    kept.token = token.into();
                    kept.name = name;
                }
                // Where more want a row than it has places, those there keep them until they are not
                // asked for any more: moving costs, too.
                None => row.iter_mut().for_each(|kept| kept.is_wanted = false),
            }
        }
        name
    }

    fn row(&self, token: &[u8]) -> usize {
        // A signature is at the end: that differs.
        let end = token.last_chunk().copied().map_or(0, u64::from_ne_bytes);
        self.rows.hash_one(end) as usize % ROWS
    }

    /// Keeps none, until they are shown again.
    pub(super) fn forget(&self) {
        *self.all() = Vec::new();
    }

    fn all(&self) -> MutexGuard<'_, Vec<[Kept; ROW]>> {
        // Each place is whole at any time.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tokens that are kept as they were shown: so many rows of so many …
const ROWS: usize = 32;
const ROW: usize = 4;
/// … if they have no more bytes than this.
const LONGEST: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn sha256(token: &str) -> Name {
        let digest = digest::digest(&digest::SHA256, token.as_bytes());
        digest.as_ref().try_into().unwrap()
    }

    fn name(names: &Names, token: &str) -> Name {
        names
            .kept(token.as_bytes())
            .unwrap_or_else(|| names.keep(token))
    }

    /// Many more than there are places, some alike at the end, each several times.
    #[test]
    fn each_token_has_the_name_that_its_bytes_have_however_often_it_is_shown() {
        let names = Names::new();
        let long = "x".repeat(LONGEST + 1);
        let tokens: Vec<String> = (0..500)
            .flat_map(|n| [format!("{n}.payload.signature"), format!("h.p.{n}")])
            .chain([String::new(), "a".to_owned(), long])
            .collect();
        for _ in 0..5 {
            for token in &tokens {
                assert_eq!(name(&names, token), sha256(token), "{token}");
                assert_eq!(name(&names, token), sha256(token), "{token}");
            }
        }
    }

    #[test]
    fn few_tokens_are_kept_and_long_ones_not_and_none_after_a_pause() {
        let names = Names::new();
        let kept = |names: &Names| -> Vec<usize> {
            let all = names.all();
            let tokens = all.iter().flatten().map(|kept| kept.token.len());
            tokens.filter(|length| *length > 0).collect()
        };
        name(&names, &"x".repeat(LONGEST + 1));
        assert!(kept(&names).is_empty());
        for n in 0..1_000 {
            name(&names, &format!("{n:0>32}"));
        }
        assert!((1..=ROWS * ROW).contains(&kept(&names).len()));
        names.forget();
        assert!(kept(&names).is_empty());
        name(&names, &"x".repeat(LONGEST));
        assert_eq!(kept(&names), [LONGEST]);
    }

    /// As many as have one row find their places, and one more does not move them each time.
    #[test]
    fn tokens_that_want_one_row_in_turns_do_not_move_each_time() {
        let names = Names::new();
        let tokens: Vec<String> = (0..=ROW).map(|n| format!("{n}.same end")).collect();
        let (last, first) = tokens.split_last().unwrap();
        let holds = |token: &str| {
            let all = names.all();
            let mut all = all.iter().flatten();
            all.any(|kept| *kept.token == *token.as_bytes())
        };
        for _ in 0..2 {
            for token in first {
                name(&names, token);
            }
        }
        for token in [last, &first[0], &first[1], last] {
            name(&names, token);
            let held = first.iter().filter(|token| holds(token)).count();
            assert!(holds(&first[0]) && held >= ROW - 1, "{token}");
        }
        // Whoever does not come any more makes way.
        for _ in 0..ROW {
            name(&names, last);
        }
        assert!(holds(last));
    }
}
