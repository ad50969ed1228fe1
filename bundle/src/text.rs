//! Searching text by bytes, and numbers as text. The searchers behind `str::split` and `str::contains` and the way in
//! which `u64` is written hold bounds checks that a compiler cannot remove, so that a linker could not show that the
//! reader never panics.

use core::{
    fmt::{self, Write},
    iter,
};

/// How often `word` is in `text`.
pub(crate) fn count(text: &str, word: &str) -> usize {
    let mut rest = text.as_bytes();
    let places = iter::from_fn(|| {
        let found = rest.starts_with(word.as_bytes());
        (_, rest) = rest.split_first()?;
        Some(found)
    });
    places.filter(|found| *found).count()
}

/// What is before and what is behind the first `mark`, an ASCII character.
pub(crate) fn split_once(text: &str, mark: u8) -> Option<(&str, &str)> {
    let at = text.bytes().position(|byte| byte == mark)?;
    let (before, from) = text.split_at_checked(at)?;
    Some((before, from.get(1..)?))
}

/// The parts of `text` between `mark`s, an ASCII character; one more than there are marks.
pub(crate) fn split(text: &str, mark: u8) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    iter::from_fn(move || {
        let text = rest?;
        let (part, next) = match split_once(text, mark) {
            Some((part, next)) => (part, Some(next)),
            None => (text, None),
        };
        rest = next;
        Some(part)
    })
}

/// A number, shown in decimal digits.
#[derive(Clone, Copy)]
pub(crate) struct Decimal(pub(crate) u64);

impl fmt::Display for Decimal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let powers = iter::successors(Some(10_000_000_000_000_000_000), |power| Some(power / 10));
        let digits = powers.take_while(|power| *power > 0);
        digits
            .skip_while(|power| *power > self.0.max(1))
            .filter_map(|power: u64| char::from_digit(u32::try_from(self.0 / power % 10).ok()?, 10))
            .try_for_each(|digit| formatter.write_char(digit))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{string::ToString, vec::Vec};

    use super::*;

    #[test]
    fn parts_and_counts_are_those_of_the_standard_library() {
        for text in [
            "",
            ",",
            "a",
            "a,",
            ",a",
            "a,,b",
            "ä,ö",
            "{text}",
            "x{text}{text",
            "..a..",
            "{{text}}",
        ] {
            let expected: Vec<_> = text.split(',').collect();
            assert_eq!(split(text, b',').collect::<Vec<_>>(), expected, "{text:?}");
            assert_eq!(split_once(text, b','), text.split_once(','), "{text:?}");
            for word in ["..", "{text}", "a"] {
                assert_eq!(count(text, word), text.matches(word).count(), "{text:?}");
            }
        }
    }
    #[test]
    fn numbers_are_written_as_by_the_standard_library() {
        for number in [0, 1, 9, 10, 99, 100, 1_000_005, u64::MAX / 10, u64::MAX] {
            assert_eq!(Decimal(number).to_string(), number.to_string());
        }
    }
}
