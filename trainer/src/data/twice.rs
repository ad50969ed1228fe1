//! Inputs that stand in the data more than once.

use std::collections::{BTreeMap, BTreeSet};

use super::{Dataset, Example};

type Input<'a> = (&'a str, Option<&'a str>);

fn input(example: &Example) -> Input<'_> {
    (&example.text, example.text2.as_deref())
}

impl Dataset {
    /// The lines whose input stands in `other` too: a figure on them says little about new texts.
    pub fn lines_in(&self, other: &Self) -> Vec<usize> {
        let there: BTreeSet<Input> = other.examples.iter().map(input).collect();
        let examples = self.examples.iter();
        examples
            .filter(|example| there.contains(&input(example)))
            .map(|example| example.line)
            .collect()
    }

    /// The lines whose input stands with another answer on an earlier line, each behind the first such line.
    pub fn contradictions(&self) -> Vec<(usize, usize)> {
        let mut first: BTreeMap<Input, &Example> = BTreeMap::new();
        let mut lines = Vec::new();
        for example in &self.examples {
            let earlier = *first.entry(input(example)).or_insert(example);
            if earlier.target != example.target {
                lines.push((earlier.line, example.line));
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_that_come_again_are_found() {
        let train =
            Dataset::of_labels(&[("a", "x"), ("b", "x"), ("a", "x"), ("a", "y"), ("b", "z")]);
        assert_eq!(train.contradictions(), [(1, 4), (2, 5)]);
        let dev = Dataset::of_labels(&[("c", "x"), ("b", "y")]);
        assert_eq!(dev.lines_in(&train), [2]);
        let mut pair = dev.clone();
        pair.examples[1].text2 = Some("d".into());
        assert_eq!(pair.lines_in(&train), [0_usize; 0]);
    }
}
