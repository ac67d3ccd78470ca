//! Slips of the keyboard.

/// The known word that `word` was probably meant to be.
pub(super) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    // Underscores for hyphens are the commonest slip, and count as none.
    let word = word.to_lowercase().replace('_', "-");
    known
        .iter()
        .map(|known| (distance(&word, known), *known))
        .filter(|(distance, known)| *distance <= (known.len() / 3).max(1))
        .min()
        .map(|(_, known)| known)
}

/// Insertions, deletions and replacements between two words (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_miss_is_named_and_a_far_one_is_not() {
        let known = ["command", "resource", "read-only"];
        assert_eq!(nearest("comand", &known), Some("command"));
        assert_eq!(nearest("read_only", &known), Some("read-only"));
        assert_eq!(nearest("Resource", &known), Some("resource"));
        assert_eq!(nearest("xyzzy", &known), None);
        assert_eq!(nearest("", &known), None);
    }
}
