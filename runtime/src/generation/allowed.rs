//! Which tokens may come next.

/// A set of token ids below the size of a vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Allowed {
    words: Vec<u64>,
    vocabulary: usize,
}

impl Allowed {
    /// No token of a vocabulary of so many.
    pub fn none(vocabulary: usize) -> Self {
        Self {
            words: vec![0; vocabulary.div_ceil(64)],
            vocabulary,
        }
    }

    /// Puts `id` into the set; nothing happens outside the vocabulary. Whether it was not there before.
    pub fn insert(&mut self, id: u32) -> bool {
        let inside = usize::try_from(id).is_ok_and(|id| id < self.vocabulary);
        let Some((word, bit)) = place(id).filter(|_| inside) else {
            return false;
        };
        let word = &mut self.words[word];
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// Takes all tokens out.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// The ids in the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0u32..)
            .step_by(64)
            .zip(&self.words)
            .flat_map(|(first, &word)| {
                let after =
                    |&rest: &u64| Some(rest & rest.wrapping_sub(1)).filter(|&rest| rest != 0);
                std::iter::successors(Some(word).filter(|&word| word != 0), after)
                    .map(move |rest| first + rest.trailing_zeros())
            })
    }
}

fn place(id: u32) -> Option<(usize, u64)> {
    Some((usize::try_from(id / 64).ok()?, 1 << (id % 64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_was_put_in() {
        let mut set = Allowed::none(130);
        for (id, new) in [
            (129, true),
            (0, true),
            (63, true),
            (64, true),
            (0, false),
            (130, false),
        ] {
            assert_eq!(set.insert(id), new, "{id}");
        }
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 63, 64, 129]);
        set.clear();
        assert_eq!(set.iter().next(), None);
    }
}
