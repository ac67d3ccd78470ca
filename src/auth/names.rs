//! What a token is called in memory: its SHA-256.
//!
//! A client shows the same token with each request, and to hash it is the larger part of knowing
//! it again. So the latest ones are kept as they were shown, few, and none when nobody asks for a
//! while: what was kept is compared, and has its name already. Asked by `authenticate`; decides
//! nothing.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
};

use aws_lc_rs::{constant_time::verify_slices_are_equal, digest};

/// The name of a token.
pub(super) type Name = [u8; 32];

/// Names, and the latest tokens that were asked for.
pub(super) struct Names {
    kept: Mutex<Vec<Kept>>,
    /// Nobody outside can tell which two share a place.
    places: RandomState,
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
            places: RandomState::new(),
        }
    }

    pub(super) fn of(&self, token: &str) -> Name {
        let token = token.as_bytes();
        // A signature is at the end: that differs.
        let end = &token[token.len().saturating_sub(8)..];
        let place = self.places.hash_one(end) as usize % PLACES;
        let mut all = self.kept();
        // An empty place is no token's: none is empty.
        if let Some(kept) = all.get_mut(place)
            && !token.is_empty()
            && verify_slices_are_equal(&kept.token, token).is_ok()
        {
            kept.is_wanted = true;
            return kept.name;
        }
        let mut name = [0; 32];
        name.copy_from_slice(digest::digest(&digest::SHA256, token).as_ref());
        if token.len() <= LONGEST {
            if all.is_empty() {
                all.resize(PLACES, Kept::default());
            }
            let kept = &mut all[place];
            // Where two want one place in turns, the first keeps it: moving costs, too.
            if !std::mem::take(&mut kept.is_wanted) {
                kept.token = token.into();
                kept.name = name;
            }
        }
        name
    }

    /// Keeps none, until they are shown again.
    pub(super) fn forget(&self) {
        *self.kept() = Vec::new();
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Kept>> {
        // Each place is whole at any time.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tokens that are kept as they were shown …
const PLACES: usize = 64;
/// … if they have no more bytes than this.
const LONGEST: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn sha256(token: &str) -> Name {
        let digest = digest::digest(&digest::SHA256, token.as_bytes());
        digest.as_ref().try_into().unwrap()
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
                assert_eq!(names.of(token), sha256(token), "{token}");
                assert_eq!(names.of(token), sha256(token), "{token}");
            }
        }
    }

    #[test]
    fn few_tokens_are_kept_and_long_ones_not_and_none_after_a_pause() {
        let names = Names::new();
        let kept = |names: &Names| -> Vec<usize> {
            let kept = names.kept();
            let tokens = kept.iter().filter(|kept| !kept.token.is_empty());
            tokens.map(|kept| kept.token.len()).collect()
        };
        names.of(&"x".repeat(LONGEST + 1));
        assert!(kept(&names).is_empty());
        for n in 0..1_000 {
            names.of(&format!("{n:0>32}"));
        }
        assert!((1..=PLACES).contains(&kept(&names).len()));
        names.forget();
        assert!(kept(&names).is_empty());
        names.of(&"x".repeat(LONGEST));
        assert_eq!(kept(&names), [LONGEST]);
    }

    #[test]
    fn two_tokens_that_want_one_place_in_turns_do_not_move_each_time() {
        let names = Names::new();
        let (first, second) = ("first.same end", "second.same end");
        let holds = |token: &str| {
            let kept = names.kept();
            kept.iter().any(|kept| *kept.token == *token.as_bytes())
        };
        for token in [first, first, second, first, second, first] {
            names.of(token);
            assert!(holds(first), "{token}");
        }
        // Whoever does not come any more makes way.
        names.of(second);
        names.of(second);
        assert!(holds(second) && !holds(first));
    }
}
