//! Which tokens keep a constraint.

use super::{
    allowed::Allowed,
    automaton::State,
    constraint::{Constraint, refused},
    lexicon::Lexicon,
    pieces::Pieces,
};
use crate::Error;

/// No number of tokens leads to an end.
const NEVER: usize = usize::MAX;

/// How far a text has come.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Place {
    /// Whether a token came that is not special.
    begun: bool,
    /// The state behind a text that is guided.
    state: Option<State>,
}

impl Place {
    /// Goes on with `token`, which `guide` allowed where there is one. What it spells here: a guided text begins with
    /// no space.
    pub fn advance<'a>(
        &mut self,
        pieces: &'a Pieces,
        guide: Option<&Guide>,
        token: u32,
    ) -> &'a [u8] {
        let piece = match (self.begun, guide) {
            (true, _) => pieces.later(token),
            (false, None) => pieces.first(token),
            (false, Some(_)) => pieces.first_trimmed(token),
        };
        self.begun |= !pieces.later(token).is_empty();
        self.state = guide.and_then(|guide| guide.after(self.state, piece));
        piece
    }
}

/// A constraint laid out for the tokens of a vocabulary and those that end a text.
#[derive(Debug)]
pub(crate) struct Guide {
    constraint: Constraint,
    lexicon: Lexicon,
    /// Tokens that end a text.
    stops: Vec<u32>,
    /// How many tokens at least lead from each state to an end.
    fewest: Vec<usize>,
    /// How many tokens a text has at least.
    fewest_in_all: usize,
}

impl Guide {
    /// Lays `constraint` out for tokens that spell `pieces`.
    ///
    /// # Errors
    /// When the tokens cannot spell it, or a text that may end may also go on and no token ends it.
    pub fn new(constraint: &Constraint, pieces: &Pieces, stops: &[u32]) -> Result<Self, Error> {
        let automaton = &constraint.automaton;
        let all = || (0..).take(pieces.len());
        let stops: Vec<u32> = all().filter(|id| stops.contains(id)).collect();
        let open = |state| automaton.ends(state) && automaton.goes_on(state);
        if stops.is_empty() && automaton.states().any(open) {
            return Err(refused(
                "a text may go on where it may end, and the task has no token that ends a text; \
                 take labels of which none begins another, or an object",
            ));
        }
        let mut guide = Self {
            lexicon: Lexicon::of(pieces, all().filter(|id| !stops.contains(id))),
            constraint: constraint.clone(),
            stops,
            fewest: Vec::new(),
            fewest_in_all: NEVER,
        };
        guide.count(pieces)?;
        Ok(guide)
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.constraint.automaton.bytes()
            + self.lexicon.bytes()
            + self.fewest.capacity() * size_of::<usize>()
    }

    /// How many tokens a text has at least.
    pub fn fewest(&self) -> usize {
        self.fewest_in_all
    }

    /// Makes `allowed` the tokens that may come at `place` where at most `left` may still come: those behind which
    /// the text can end in time.
    pub fn allow(&self, pieces: &Pieces, place: Place, left: usize, allowed: &mut Allowed) {
        allowed.clear();
        let in_time = |id, next: State| {
            if self.fewest[next as usize] < left {
                allowed.insert(id);
            }
        };
        let automaton = &self.constraint.automaton;
        match place.state {
            None => self.first(pieces, in_time),
            Some(state) => self.lexicon.walk(pieces, automaton, state, in_time),
        }
        if place.state.is_some_and(|state| automaton.ends(state)) {
            self.stops.iter().for_each(|&stop| {
                allowed.insert(stop);
            });
        }
    }

    /// The state behind `piece`, from `state` or from the beginning; `None` where no text goes on so.
    fn after(&self, state: Option<State>, piece: &[u8]) -> Option<State> {
        let Constraint {
            automaton, start, ..
        } = &self.constraint;
        automaton.run(state.unwrap_or(*start), piece)
    }

    /// Whether the text is whole at `place` and goes on with nothing.
    pub fn is_whole(&self, place: Place) -> bool {
        place
            .state
            .is_some_and(|state| !self.constraint.automaton.goes_on(state))
    }

    /// Gives `found` every token that may be the first of a text, with the state behind it.
    fn first(&self, pieces: &Pieces, mut found: impl FnMut(u32, State)) {
        let ids = (0..)
            .take(pieces.len())
            .filter(|id| !self.stops.contains(id));
        for id in ids {
            let piece = pieces.first_trimmed(id);
            if let Some(state) = self.after(None, piece).filter(|_| !piece.is_empty()) {
                found(id, state);
            }
        }
    }

    /// Finds the fewest tokens from every state to an end, and whether all labels can be said.
    fn count(&mut self, pieces: &Pieces) -> Result<(), Error> {
        let automaton = &self.constraint.automaton;
        let after = automaton.states().map(|state| {
            let mut after = Vec::new();
            self.lexicon
                .walk(pieces, automaton, state, |_, next| after.push(next));
            after.sort_unstable();
            after.dedup();
            after.shrink_to_fit();
            after
        });
        let after: Vec<Vec<State>> = after.collect();
        let end = |state| if automaton.ends(state) { 0 } else { NEVER };
        let mut fewest: Vec<usize> = automaton.states().map(end).collect();
        let mut found = true;
        while found {
            found = false;
            for (state, after) in after.iter().enumerate() {
                let next = after.iter().map(|&next| fewest[next as usize]).min();
                let through = next.unwrap_or(NEVER).saturating_add(1);
                found |= through < fewest[state];
                fewest[state] = fewest[state].min(through);
            }
        }
        let mut first = Vec::new();
        self.first(pieces, |_, next| first.push(next));
        let behind_first = first.iter().map(|&state| fewest[state as usize]);
        let in_all = behind_first.min().unwrap_or(NEVER).saturating_add(1);
        if in_all == NEVER {
            return Err(refused("the base has no tokens that spell it"));
        }
        self.check_labels(first, &after)?;
        (self.fewest, self.fewest_in_all) = (fewest, in_all);
        Ok(())
    }

    /// Whether tokens spell every label: those that lead to the states `first`, and those that lead from each to the
    /// states `after` it.
    fn check_labels(&self, first: Vec<State>, after: &[Vec<State>]) -> Result<(), Error> {
        let mut reached = vec![false; after.len()];
        let mut next = first;
        while let Some(state) = next.pop() {
            if !reached[state as usize] {
                reached[state as usize] = true;
                next.extend(&after[state as usize]);
            }
        }
        let said = |label: &&String| {
            let end = self.after(None, label.as_bytes());
            end.is_some_and(|end| reached[end as usize])
        };
        match self.constraint.labels.iter().find(|label| !said(label)) {
            None => Ok(()),
            Some(label) => Err(refused(format!(
                "the base has no tokens that spell {label:?}"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::generation::{
        sampler::{Sampler, Sampling},
        testing::{allocations_of, byte_level, numbers, word_level},
    };

    /// A vocabulary of all bytes and of pieces of JSON, and the token that ends a text.
    fn pieces() -> (Pieces, u32) {
        let words = [
            "on", "only", "off", " on", "ly", "f", "{\"", "\":", "\", \"", "true", "tr", "}",
            "\"}", "12", " 3", "],", "é", "\"},", " kitchen", "level",
        ];
        let pieces = Pieces::of(&byte_level(&words), words.len() + 256 + 1).unwrap();
        let end = u32::try_from(pieces.len() - 1).unwrap();
        (pieces, end)
    }

    /// A text drawn at temperature 2 from logits that look random, of at most `most` tokens.
    fn drawn(guide: &Guide, pieces: &Pieces, stops: &[u32], most: usize, seed: u64) -> String {
        let sampling = Sampling {
            temperature: 2.0,
            seed,
            ..Sampling::default()
        };
        let mut sampler = Sampler::new(sampling, pieces.len()).unwrap();
        let mut allowed = Allowed::none(pieces.len());
        let (mut place, mut text) = (Place::default(), Vec::new());
        for step in 0..most {
            guide.allow(pieces, place, most - step, &mut allowed);
            let mut logits = numbers(seed * 1000 + step as u64, pieces.len());
            let token = sampler.next(&mut logits, &[], Some(&allowed)).unwrap();
            if stops.contains(&token) {
                break;
            }
            text.extend(place.advance(pieces, Some(guide), token));
            if guide.is_whole(place) {
                break;
            }
        }
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn a_text_is_a_label_and_every_label_is_said() {
        let (pieces, end) = pieces();
        let labels = ["on", "only", "off", "é on", "o"];
        let constraint = Constraint::labels(&labels).unwrap();
        let guide = Guide::new(&constraint, &pieces, &[end]).unwrap();
        let said: BTreeSet<String> = (0..200)
            .map(|seed| drawn(&guide, &pieces, &[end], 4, seed))
            .collect();
        assert_eq!(said, labels.map(str::to_owned).into());
        let short: BTreeSet<String> = (0..200)
            .map(|seed| drawn(&guide, &pieces, &[end], 1, seed))
            .collect();
        assert_eq!(short, ["on", "only", "off", "o"].map(str::to_owned).into());
    }

    #[test]
    fn what_no_token_ends_or_spells_is_refused() {
        let (pieces, end) = pieces();
        let words = word_level(&["on", "off"]);
        let words = Pieces::of(&words, 2).unwrap();
        let labels = |labels: &[&str]| Constraint::labels(labels).unwrap();
        let number = || Constraint::shape("\"integer\"").unwrap();
        let table: [(Constraint, &Pieces, &[u32], Option<&str>); 9] = [
            (
                labels(&["on", "only"]),
                &pieces,
                &[],
                Some("no token that ends"),
            ),
            (labels(&["on", "only"]), &pieces, &[end], None),
            (labels(&["on", "off"]), &pieces, &[], None),
            (number(), &pieces, &[], Some("no token that ends")),
            (number(), &pieces, &[end + 1], Some("no token that ends")),
            (number(), &pieces, &[end], None),
            (labels(&["on on", "off"]), &words, &[], None),
            (labels(&["off", "of"]), &words, &[0], Some("\"of\"")),
            (number(), &words, &[0], Some("no tokens that spell it")),
        ];
        for (constraint, pieces, stops, reason) in table {
            let guide = Guide::new(&constraint, pieces, stops);
            match (guide, reason) {
                (Ok(_), None) => {}
                (Err(error), Some(reason)) => {
                    assert!(error.to_string().contains(reason), "{error}");
                }
                (guide, reason) => panic!("{guide:?} {reason:?}"),
            }
        }
    }

    const SHAPE: &str = r#"{"room": "string", "on": "boolean", "level": "integer", "é": [["on", "off"]],
        "more": [{"x": "number"}]}"#;

    #[test]
    fn the_fewest_tokens_suffice() {
        let (pieces, end) = pieces();
        let constraint = Constraint::shape(SHAPE).unwrap();
        let guide = Guide::new(&constraint, &pieces, &[end]).unwrap();
        for seed in 0..20 {
            let text = drawn(&guide, &pieces, &[end], guide.fewest(), seed);
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(value["more"], serde_json::json!([]));
        }
        let mut allowed = Allowed::none(pieces.len());
        guide.allow(&pieces, Place::default(), guide.fewest() - 1, &mut allowed);
        assert_eq!(allowed.iter().next(), None);
    }

    proptest! {
        #[test]
        fn a_text_has_its_shape_however_few_tokens_may_come(seed in 0u64..1 << 40, more in 0usize..60) {
            let (pieces, end) = pieces();
            let constraint = Constraint::shape(SHAPE).unwrap();
            let guide = Guide::new(&constraint, &pieces, &[end]).unwrap();
            let text = drawn(&guide, &pieces, &[end], guide.fewest() + more, seed);
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            prop_assert!(value["room"].is_string() && value["on"].is_boolean());
            prop_assert!(value["level"].is_i64());
            let actions = value["é"].as_array().unwrap();
            prop_assert!(actions.iter().all(|action| action == "on" || action == "off"));
            let more = value["more"].as_array().unwrap();
            prop_assert!(more.iter().all(|more| more["x"].is_number()));
            prop_assert_eq!(value.as_object().unwrap().len(), 5);
        }
    }

    #[test]
    fn allowing_takes_no_memory() {
        let (pieces, end) = pieces();
        let constraint = Constraint::shape("\"string\"").unwrap();
        let guide = Guide::new(&constraint, &pieces, &[end]).unwrap();
        let made = || Allowed::none(pieces.len());
        let allocations = allocations_of(made, |allowed| {
            let mut place = Place::default();
            for _ in 0..3 {
                guide.allow(&pieces, place, 9, allowed);
                let token = allowed.iter().next().unwrap();
                place.advance(&pieces, Some(&guide), token);
            }
        });
        assert_eq!(allocations, 0);
    }
}
