//! Strings that end a text.

use crate::Error;

/// Strings that end a text before themselves; none where there are no strings.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stops(Vec<String>);

impl Stops {
    /// # Errors
    /// When one is empty.
    pub fn new(strings: &[impl AsRef<str>]) -> Result<Self, Error> {
        let strings = strings.iter().map(|string| string.as_ref().to_owned());
        let stops = Self(strings.collect());
        match stops.0.iter().any(String::is_empty) {
            true => Err(Error::EmptyStop),
            false => Ok(stops),
        }
    }

    /// Whether there are no strings.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Where the string begins that ends `text`: of those whose ends lie behind the first `old` bytes the one that ends
    /// first, the longest among equals. So it does not matter in which pieces a text comes.
    pub fn find(&self, text: &str, old: usize) -> Option<usize> {
        let ends = self.0.iter().filter_map(|stop| {
            let mut from = (old + 1).saturating_sub(stop.len());
            while !text.is_char_boundary(from) {
                from += 1;
            }
            let start = from + text[from..].find(&**stop)?;
            Some((start + stop.len(), start))
        });
        ends.min().map(|(_, start)| start)
    }

    /// How many bytes of `text`, in which none of the strings is, will be in no string, whatever comes behind it.
    pub fn certain(&self, text: &str) -> usize {
        let begun = |stop: &String| -> Option<usize> {
            let (text, stop) = (text.as_bytes(), stop.as_bytes());
            let mut lengths = (1..stop.len()).rev();
            lengths.find(|&length| text.ends_with(&stop[..length]))
        };
        text.len() - self.0.iter().filter_map(begun).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_stop_that_ends_first_ends_a_text() {
        let table: [(&[&str], &str, usize, Option<usize>); 7] = [
            (&["b"], "abc", 0, Some(1)),
            (&["b"], "abc", 2, None),
            (&["bc"], "abc", 2, Some(1)),
            (&["abcb", "c"], "xabcb", 0, Some(3)),
            (&["c", "bc"], "abc", 0, Some(1)),
            (&["é"], "aéb", 1, Some(1)),
            (&[], "abc", 0, None),
        ];
        for (stops, text, old, expected) in table {
            let stops = Stops::new(stops).unwrap();
            assert_eq!(stops.find(text, old), expected, "{stops:?} {text}");
        }
    }

    #[test]
    fn only_what_may_become_a_stop_is_held_back() {
        let table: [(&[&str], &str, usize); 6] = [
            (&["stop"], "a st", 2),
            (&["stop"], "a sp", 4),
            (&["aab"], "xaaa", 2),
            (&["b", "ab"], "xa", 1),
            (&["\n\n"], "\n", 0),
            (&[], "a", 1),
        ];
        for (stops, text, expected) in table {
            let stops = Stops::new(stops).unwrap();
            assert_eq!(stops.certain(text), expected, "{stops:?} {text}");
        }
    }

    #[test]
    fn an_empty_string_ends_nothing() {
        assert!(matches!(Stops::new(&["a", ""]), Err(Error::EmptyStop)));
    }

    proptest! {
        #[test]
        fn a_stop_is_found_where_a_slow_search_finds_it(
            text in "[abé]{0,12}",
            strings in prop::collection::vec("[abé]{1,4}", 0..4),
            old in 0usize..12,
        ) {
            let old = old.min(text.len());
            let stops = Stops::new(&strings).unwrap();
            let ends = (old + 1..=text.len()).filter(|&end| text.is_char_boundary(end));
            let cut = |end: usize| -> Option<usize> {
                let there = strings.iter().filter(|stop| text[..end].ends_with(&***stop));
                there.map(|stop| end - stop.len()).min()
            };
            let expected = ends.into_iter().find_map(cut);
            prop_assert_eq!(stops.find(&text, old), expected);
        }
    }
}
