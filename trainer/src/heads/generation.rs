//! The base's own logits over its vocabulary, at the places where the target's tokens are chosen.

use super::{Head, NOTHING, Reads};
use crate::data::AnswerKind;

pub(super) const HEAD: Head = Head {
    name: "generation",
    reads: Reads::Logits,
    answers: &[AnswerKind::Text],
    parameters: |_| Vec::new(),
    given: NOTHING,
    subgraph: |_, _, rows, _| rows.to_owned(),
    random: &[],
    stored: &[],
};
