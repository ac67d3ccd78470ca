//! Reads one TOML table key by key, and remembers what nobody asked for.
//!
//! `serde` stops at the first error; a person wants all of them. So tables are
//! walked by hand: each key is taken once, by name, with the function that
//! reads its value, and what is left over is unknown. Used by `fragment` and the
//! files of its larger tables.

use std::{cell::RefCell, ops::Range, path::Path, sync::Arc};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    problem::{Place, Problem},
    sources::Reach,
    spelling::{Homes, nearest},
    syntax::mistakes,
};

/// A value and where it was written.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

/// What a file says of one key.
#[derive(Clone, Debug, Default)]
pub(super) enum Said<T> {
    /// Nothing.
    #[default]
    Nothing,
    /// Something unreadable, which is reported already: neither missing nor known.
    Wrong,
    Given(At<T>),
}

impl<T> Said<T> {
    /// What this says, or else the other: of an upper layer over a lower one.
    pub(super) fn or(self, lower: Self) -> Self {
        if matches!(self, Self::Nothing) {
            lower
        } else {
            self
        }
    }

    pub(super) fn is_said(&self) -> bool {
        !matches!(self, Self::Nothing)
    }

    pub(super) fn place(&self) -> Option<&Place> {
        if let Self::Given(at) = self {
            Some(&at.place)
        } else {
            None
        }
    }

    /// The value, if there is one that could be read.
    pub(super) fn given(self) -> Option<T> {
        if let Self::Given(at) = self {
            Some(at.value)
        } else {
            None
        }
    }

    /// The same with what holds where nothing is said.
    pub(super) fn given_or(self, default: T) -> T {
        self.given().unwrap_or(default)
    }
}

/// One file's text, and the problems found in it so far.
pub(super) struct Document<'a> {
    file: Arc<Path>,
    reach: Reach,
    text: &'a str,
    problems: RefCell<Vec<Problem>>,
    homes: RefCell<Homes>,
}

impl<'a> Document<'a> {
    pub(super) fn new(file: &Path, reach: Reach, text: &'a str) -> Self {
        Self {
            file: file.into(),
            reach,
            text,
            problems: RefCell::default(),
            homes: RefCell::default(),
        }
    }

    /// Reads the whole file with `read`. Where the text is no TOML, says so and gives nothing.
    pub(super) fn read<T>(&self, read: impl FnOnce(Table<'_>) -> T) -> Option<T> {
        match DeTable::parse(self.text) {
            Ok(root) => Some(read(Table::new(
                self,
                String::new(),
                0..0,
                Some(root.get_ref()),
            ))),
            Err(_) => {
                for mistake in mistakes(self.text) {
                    let place = self.place(mistake.at..mistake.at, String::new());
                    place.report(self, mistake.message, mistake.help);
                }
                None
            }
        }
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        self.homes.into_inner().help(&mut problems);
        problems
    }

    fn place(&self, span: Range<usize>, key: String) -> Place {
        let before = self.text.get(..span.start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let count = |number: usize| u32::try_from(number + 1).unwrap_or(u32::MAX);
        Place {
            file: Arc::clone(&self.file),
            line: count(before.matches('\n').count()),
            column: count(before[line_start..].chars().count()),
            key,
        }
    }
}

impl Place {
    fn report(&self, document: &Document<'_>, message: impl Into<String>, help: impl Into<String>) {
        document
            .problems
            .borrow_mut()
            .push(self.problem(message, help));
    }
}

/// One table, of which keys are taken.
pub(super) struct Table<'a> {
    document: &'a Document<'a>,
    /// The way here, as `auth.` or `auth.issuer[0].`.
    prefix: String,
    place: Place,
    left: Vec<(
        &'a Spanned<std::borrow::Cow<'a, str>>,
        &'a Spanned<DeValue<'a>>,
    )>,
    known: Vec<&'static str>,
}

impl<'a> Table<'a> {
    fn new(
        document: &'a Document<'a>,
        key: String,
        span: Range<usize>,
        table: Option<&'a DeTable<'a>>,
    ) -> Self {
        let prefix = if key.is_empty() {
            String::new()
        } else {
            format!("{key}.")
        };
        Self {
            document,
            prefix,
            place: document.place(span, key),
            left: table
                .map(|table| table.iter().collect())
                .unwrap_or_default(),
            known: Vec::new(),
        }
    }

    /// Takes a key of a fragment: where this file says nothing of it, the lower layers hold.
    pub(super) fn over<T>(
        &mut self,
        key: &'static str,
        lower: Said<T>,
        read: impl FnOnce(&Value<'a>) -> Option<T>,
    ) -> Said<T> {
        self.take(key, read).or(lower)
    }

    /// Takes a key; `read` reports itself what it cannot read.
    pub(super) fn take<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&Value<'a>) -> Option<T>,
    ) -> Said<T> {
        self.known.push(key);
        let Some(index) = self.left.iter().position(|(name, _)| name.get_ref() == key) else {
            return Said::Nothing;
        };
        let (_, value) = self.left.swap_remove(index);
        let value = Value {
            document: self.document,
            key: format!("{}{key}", self.prefix),
            value,
        };
        match read(&value) {
            Some(read) => Said::Given(At {
                value: read,
                place: value.place(),
            }),
            None => Said::Wrong,
        }
    }

    /// Takes a table of a fragment. One that is not there reads like an empty one.
    pub(super) fn table<T>(
        &mut self,
        key: &'static str,
        lower: T,
        read: impl FnOnce(Table<'_>, T) -> T,
    ) -> T {
        let table = self.take(key, Value::opened).given();
        let nothing = || Table::new(self.document, format!("{}{key}", self.prefix), 0..0, None);
        read(table.unwrap_or_else(nothing), lower)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.left.iter().any(|(name, _)| name.get_ref() == key)
    }

    /// The first that it says, if it says anything.
    pub(super) fn first(&self) -> Option<Place> {
        let (name, value) = self
            .left
            .iter()
            .min_by_key(|(_, value)| value.span().start)?;
        let key = format!("{}{}", self.prefix, printable(name.get_ref()));
        Some(self.document.place(value.span(), key))
    }

    /// Takes a key that must be there.
    pub(super) fn needed<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&Value<'a>) -> Option<T>,
    ) -> Option<T> {
        let said = self.take(key, read);
        if !said.is_said() {
            let place = self.place.about(&format!("{}{key}", self.prefix));
            place.report(self.document, "missing", format!("add `{key} = \"…\"`"));
        }
        said.given()
    }

    /// Takes all keys that are left, each read by `read`.
    pub(super) fn rest<T>(
        &mut self,
        read: impl Fn(&str, &Value<'_>) -> Option<T>,
    ) -> Vec<(String, Said<T>)> {
        let mut left: Vec<_> = self.left.drain(..).collect();
        left.sort_by_key(|(_, value)| value.span().start);
        left.into_iter()
            .map(|(name, value)| {
                let key = name.get_ref().to_string();
                let value = Value {
                    document: self.document,
                    key: format!("{}{}", self.prefix, printable(&key)),
                    value,
                };
                let said = read(&key, &value).map_or(Said::Wrong, |value_read| {
                    Said::Given(At {
                        value: value_read,
                        place: value.place(),
                    })
                });
                (key, said)
            })
            .collect()
    }

    /// Where the table begins.
    pub(super) fn place(&self) -> Place {
        self.place.clone()
    }

    /// Reports a problem of the table as a whole.
    pub(super) fn wrong(&self, place: &Place, message: impl Into<String>, help: impl Into<String>) {
        place.report(self.document, message, help);
    }

    /// Reports what was not taken. `later` are the keys of later versions.
    pub(super) fn finish(self, later: &[&str]) {
        let mut homes = self.document.homes.borrow_mut();
        homes.note(&self.prefix, &self.known);
        for (name, value) in &self.left {
            let key = name.get_ref();
            let place = self
                .document
                .place(name.span(), format!("{}{}", self.prefix, printable(key)));
            if later.contains(&key.as_ref()) {
                place.report(self.document, NOT_YET, "remove it");
            } else {
                let help = match nearest(key, &self.known) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => {
                        homes.stray(self.document.problems.borrow().len(), key, value.get_ref());
                        "the keys are in thv.toml(5)".to_owned()
                    }
                };
                place.report(self.document, "unknown key", help);
            }
        }
    }
}

/// One value, to be read.
pub(super) struct Value<'a> {
    document: &'a Document<'a>,
    key: String,
    value: &'a Spanned<DeValue<'a>>,
}

impl<'a> Value<'a> {
    pub(super) fn text(&self) -> Option<String> {
        self.typed("a string in quotes", DeValue::as_str)
            .map(str::to_owned)
    }

    pub(super) fn truth(&self) -> Option<bool> {
        self.typed("`true` or `false`", DeValue::as_bool)
    }

    /// A whole number of at least one.
    pub(super) fn count(&self) -> Option<u64> {
        let digits = self.typed("a whole number without quotes", DeValue::as_integer)?;
        match u64::from_str_radix(digits.as_str(), digits.radix()) {
            Ok(number) if (1..=MAX_COUNT).contains(&number) => Some(number),
            _ => self.wrong(format!("the number must be from 1 to {MAX_COUNT}"), ""),
        }
    }

    /// A string with rules.
    pub(super) fn parsed<T>(&self, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        parse(&self.text()?).map_or_else(|error| self.wrong(error, ""), Some)
    }

    /// A list of what `parse` makes of texts. `least` is 1 where no list at all means anything or
    /// everybody: an empty one reads as nothing and nobody.
    pub(super) fn texts<T>(
        &self,
        least: usize,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        self.list(least, |element| element.parsed(&parse))
            .map(plain)
    }

    /// A list of at least `least` elements, each with its place.
    pub(super) fn list<T>(
        &self,
        least: usize,
        read: impl Fn(&Value<'_>) -> Option<T>,
    ) -> Option<Vec<At<T>>> {
        let array = self.typed("a list in brackets", DeValue::as_array)?;
        if array.len() < least {
            return self.wrong("the list is empty", "");
        }
        let all: Vec<_> = array
            .iter()
            .enumerate()
            .map(|(index, value)| {
                let value = Value {
                    document: self.document,
                    key: format!("{}[{index}]", self.key),
                    value,
                };
                read(&value).map(|element| At {
                    value: element,
                    place: value.place(),
                })
            })
            .collect();
        all.into_iter().collect()
    }

    /// A string, a truth value or a whole number, as one type.
    pub(super) fn scalar<T>(
        &self,
        text: impl FnOnce(String) -> T,
        truth: impl FnOnce(bool) -> T,
        number: impl FnOnce(i64) -> T,
    ) -> Option<T> {
        let value = self.value.get_ref();
        if let Some(said) = value.as_str() {
            return Some(text(said.to_owned()));
        }
        if let Some(said) = value.as_bool() {
            return Some(truth(said));
        }
        let digits = self.typed(
            "a string, a truth value or a whole number",
            DeValue::as_integer,
        )?;
        match i64::from_str_radix(digits.as_str(), digits.radix()) {
            Ok(said) => Some(number(said)),
            Err(_) => self.wrong("the number is too large", ""),
        }
    }

    /// One value, or a list of at least one.
    pub(super) fn some<T>(&self, read: impl Fn(&Value<'_>) -> Option<T>) -> Option<Vec<T>> {
        if self.value.get_ref().is_array() {
            self.list(1, read).map(plain)
        } else {
            read(self).map(|value| vec![value])
        }
    }

    pub(super) fn table<T>(&self, read: impl FnOnce(Table<'_>) -> T) -> Option<T> {
        self.opened().map(read)
    }

    pub(super) fn is_table(&self) -> bool {
        self.value.get_ref().is_table()
    }

    /// Whether this file may say it: what belongs to one server cannot hold for all.
    pub(super) fn own(&self) -> Option<()> {
        match self.document.reach {
            Reach::Server => Some(()),
            // One `resource` for two servers would let a token for one open the other.
            Reach::Host => self.wrong("belongs to one server", "move it to servers/NAME.toml"),
        }
    }

    fn opened(&self) -> Option<Table<'a>> {
        let table = self.typed("a table", DeValue::as_table)?;
        Some(Table::new(
            self.document,
            self.key.clone(),
            self.value.span(),
            Some(table),
        ))
    }

    /// Reports, and gives nothing.
    pub(super) fn wrong<T>(
        &self,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Option<T> {
        self.place().report(self.document, message, help);
        None
    }

    fn place(&self) -> Place {
        self.document.place(self.value.span(), self.key.clone())
    }

    fn typed<T>(&self, wanted: &str, read: impl FnOnce(&'a DeValue<'a>) -> Option<T>) -> Option<T> {
        let value = self.value.get_ref();
        let found = value.type_str();
        read(value)
            .or_else(|| self.wrong(format!("must be {wanted}, not {}", with_article(found)), ""))
    }
}

/// The values without their places.
pub(super) fn plain<T>(list: Vec<At<T>>) -> Vec<T> {
    list.into_iter().map(|at| at.value).collect()
}

/// A key as it may stand in a one-line message. With what goes into no key there may be a value in it.
fn printable(key: &str) -> String {
    if key.contains(|c: char| "=@".contains(c) || c.is_whitespace()) {
        return "…".to_owned();
    }
    key.chars()
        .take(64)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

fn with_article(type_name: &str) -> String {
    let vowel = type_name.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {type_name}", if vowel { "an" } else { "a" })
}

/// For keys and values of later versions: never accepted and ignored.
pub(super) const NOT_YET: &str = "not supported by this version of thv";

/// Larger numbers are slips of the keyboard.
const MAX_COUNT: u64 = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_columns_count_characters_from_one() {
        let document = Document::new(Path::new("f"), Reach::Server, "a = 1\nä = 2\n");
        let place = document.place(8..9, String::new());
        assert_eq!((place.line, place.column), (2, 2));
    }
}
