//! The pieces of a vocabulary in the order of their bytes.

use super::{
    automaton::{Automaton, State},
    pieces::Pieces,
};

/// Bytes of the longest piece that is held.
const LONGEST: usize = u8::MAX as usize;

/// Tokens by what they spell behind others, so that pieces that begin alike are read once.
#[derive(Debug)]
pub(crate) struct Lexicon {
    tokens: Vec<u32>,
    /// How many first bytes each has in common with the one before.
    shared: Vec<u8>,
}

impl Lexicon {
    /// The tokens among `ids` that spell something.
    pub fn of(pieces: &Pieces, ids: impl Iterator<Item = u32>) -> Self {
        let spells = |id: &u32| (1..=LONGEST).contains(&pieces.later(*id).len());
        let mut tokens: Vec<u32> = ids.filter(spells).collect();
        tokens.sort_by_key(|&id| pieces.later(id));
        let mut before: &[u8] = &[];
        let shared = tokens.iter().map(|&id| {
            let piece = pieces.later(id);
            let pairs = before.iter().zip(piece);
            before = piece;
            let shared = pairs.take_while(|(one, other)| one == other).count();
            u8::try_from(shared).expect("a longer piece is not held")
        });
        Self {
            shared: shared.collect(),
            tokens,
        }
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.tokens.capacity() * size_of::<u32>() + self.shared.capacity()
    }

    /// Gives `found` every token with which a text may go on at `state`, with the state behind it.
    pub fn walk(
        &self,
        pieces: &Pieces,
        automaton: &Automaton,
        state: State,
        mut found: impl FnMut(u32, State),
    ) {
        // The states behind the first bytes of a piece, of which `taken` are taken.
        let mut states = [state; LONGEST + 1];
        let mut taken = 0;
        for (&id, &shared) in self.tokens.iter().zip(&self.shared) {
            let shared = usize::from(shared);
            if shared > taken {
                continue;
            }
            let piece = pieces.later(id);
            taken = shared;
            for &byte in &piece[shared..] {
                let Some(next) = automaton.next(states[taken], byte) else {
                    break;
                };
                taken += 1;
                states[taken] = next;
            }
            if taken == piece.len() {
                found(id, states[taken]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::testing::byte_level;

    #[test]
    fn a_walk_finds_what_trying_every_token_finds() {
        let words = ["on", "only", "of", "off", "offer", "fo", "nf"];
        let pieces = Pieces::of(&byte_level(&words), words.len() + 256).unwrap();
        let ids = || (0..).take(pieces.len()).filter(|&id| id != 2);
        let lexicon = Lexicon::of(&pieces, ids());
        let mut automaton = Automaton::default();
        let start = automaton.add();
        for word in ["on", "only", "off", "offonf"] {
            automaton.branch(start, word.as_bytes());
        }
        for state in automaton.states() {
            let mut found = Vec::new();
            lexicon.walk(&pieces, &automaton, state, |id, next| {
                found.push((id, next))
            });
            found.sort_unstable();
            let tried = ids().filter_map(|id| Some((id, automaton.run(state, pieces.later(id))?)));
            assert_eq!(found, tried.collect::<Vec<_>>());
        }
    }
}
