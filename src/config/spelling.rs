//! Slips of the keyboard, and keys that are right and stand in the wrong place.

use std::collections::BTreeSet;

use toml::de::DeValue;

use super::problem::Problem;

/// Which keys belong to which tables of a file.
#[derive(Debug, Default)]
pub(super) struct Homes {
    known: BTreeSet<(String, &'static str)>,
    strays: Vec<Stray>,
}

/// A key that its table does not know.
#[derive(Debug)]
struct Stray {
    /// Where it is among the problems.
    index: usize,
    key: String,
    form: Form,
}

/// How a key that belongs elsewhere is to be written there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Form {
    Line,
    Table,
    Tables,
}

impl Form {
    fn of(value: &DeValue<'_>) -> Self {
        match value {
            DeValue::Table(_) => Self::Table,
            DeValue::Array(list) if list.iter().any(|one| one.get_ref().is_table()) => Self::Tables,
            _ => Self::Line,
        }
    }
}

impl Homes {
    /// The table that is reached by `prefix`, such as `auth.issuer[0].`, may have these keys.
    pub(super) fn note(&mut self, prefix: &str, keys: &[&'static str]) {
        let table = prefix.trim_end_matches('.').replace("[0]", "");
        // The first of a list stands for all; tables that are named freely are not meant.
        let is_named = table.starts_with("env.") || table.starts_with("registry.");
        if !is_named && !table.contains('[') {
            self.known
                .extend(keys.iter().map(|key| (table.clone(), *key)));
        }
    }

    /// The key of that value is unknown in its table; the problem that says so is the one of this number.
    pub(super) fn stray(&mut self, index: usize, key: &str, value: &DeValue<'_>) {
        self.strays.push(Stray {
            index,
            key: key.to_owned(),
            form: Form::of(value),
        });
    }

    /// Says of such keys where they belong, now that all tables are known.
    pub(super) fn help(&self, problems: &mut [Problem]) {
        for stray in &self.strays {
            if let Some(help) = self.of(&stray.key, stray.form) {
                problems[stray.index].help = help;
            }
        }
    }

    /// What to do with a key that its table does not know.
    fn of(&self, key: &str, form: Form) -> Option<String> {
        let homes = || self.known.iter().filter(|(_, known)| *known == key);
        let places: Vec<_> = homes()
            .map(|(table, key)| match (table.as_str(), form) {
                ("", _) => "at the top of the file, above the first `[TABLE]`".to_owned(),
                (table, Form::Table) => format!("as `[{table}.{key}]`"),
                (table, Form::Tables) => format!("as `[[{table}.{key}]]`"),
                ("auth.issuer", Form::Line) => "below `[[auth.issuer]]`".to_owned(),
                (table, Form::Line) => format!("below `[{table}]`"),
            })
            .collect();
        if !places.is_empty() {
            return Some(format!("write it {}", places.join(", or ")));
        }
        let (_, meant) = OTHERS.iter().find(|(other, _)| *other == key)?;
        Some((*meant).to_owned())
    }
}

/// What other tools' files call what is called otherwise here.
const OTHERS: &[(&str, &str)] = &[(
    "args",
    "arguments stand in `command`, behind the program; those of an image in `arguments`",
)];

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

/// Insertions, deletions, replacements and swapped neighbours between two words (Levenshtein, Damerau).
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let replaced = rows[i][j] + usize::from(x != y);
            let mut least = replaced.min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                least = least.min(rows[i - 1][j - 1] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
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
        assert_eq!(nearest("auhtz", &["auth", "authz"]), Some("authz"));
        assert_eq!(nearest("xyzzy", &known), None);
        assert_eq!(nearest("", &known), None);
    }

    /// TOML's own trap: what is added at the end of the file belongs to the table above it.
    #[test]
    fn a_key_in_the_wrong_table_is_told_where_it_belongs() {
        let mut homes = Homes::default();
        homes.note("", &["scope", "auth"]);
        homes.note("auth.", &["issuer"]);
        homes.note("auth.issuer[0].", &["audience", "ca-file"]);
        homes.note("auth.issuer[1].", &["audience", "ca-file"]);
        homes.note("upstream.", &["ca-file"]);
        homes.note("registry.docker.io.", &["ca-file"]);
        for (key, form, words) in [
            ("scope", Form::Line, "at the top of the file"),
            ("issuer", Form::Tables, "write it as `[[auth.issuer]]`"),
            ("audience", Form::Line, "write it below `[[auth.issuer]]`"),
            (
                "ca-file",
                Form::Line,
                "below `[[auth.issuer]]`, or below `[upstream]`",
            ),
            ("args", Form::Line, "`command`"),
        ] {
            let said = homes.of(key, form).unwrap_or_default();
            assert!(said.contains(words), "{key}: {said}");
        }
        assert_eq!(homes.of("xyzzy", Form::Line), None);
    }
}
