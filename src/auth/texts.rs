//! A list of short texts, held as one.
//!
//! Thousands of identities are remembered, each with its scopes and groups: a
//! piece of memory for every word would cost more than reading the token does.

/// Texts in the order in which they were given.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Texts {
    text: Box<str>,
    /// Where each text ends.
    ends: Box<[usize]>,
}

impl Texts {
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts
            .zip(self.ends.iter())
            .map(|(start, end)| &self.text[start..*end])
    }

    pub fn contains(&self, text: &str) -> bool {
        self.iter().any(|one| one == text)
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Each text by itself.
    pub fn to_vec(&self) -> Vec<String> {
        self.iter().map(str::to_owned).collect()
    }
}

impl<T: AsRef<str>> From<&[T]> for Texts {
    fn from(list: &[T]) -> Self {
        let mut text = String::with_capacity(list.iter().map(|one| one.as_ref().len()).sum());
        let ends = list.iter().map(|one| {
            text.push_str(one.as_ref());
            text.len()
        });
        let ends = ends.collect();
        Self {
            text: text.into_boxed_str(),
            ends,
        }
    }
}

#[cfg(test)]
impl<const N: usize> PartialEq<[&str; N]> for &Texts {
    fn eq(&self, other: &[&str; N]) -> bool {
        self.iter().eq(other.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::Texts;

    #[test]
    fn texts_come_back_as_they_were_given() {
        let lists: [&[&str]; 5] = [&[], &[""], &["", ""], &["a", "", "b c"], &["ä", "ä"]];
        for list in lists {
            let texts = Texts::from(list);
            assert_eq!(texts.iter().collect::<Vec<_>>(), list);
            assert_eq!(texts.is_empty(), list.is_empty());
            assert_eq!(texts.to_vec(), list);
        }
        let texts = Texts::from(&["ab", "c"][..]);
        assert!(texts.contains("ab") && !texts.contains("a") && !texts.contains("abc"));
        assert_ne!(texts, Texts::from(&["a", "bc"][..]));
    }
}
