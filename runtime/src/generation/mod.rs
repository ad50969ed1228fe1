//! Writing text token by token: what needs the logits of the next token and not the engine that computes them.
//!
//! Once for each token a [`Guide`](guide::Guide) says which tokens may come next, where a [`Constraint`] is to be
//! kept, a [`Sampler`](sampler::Sampler) chooses one of them by the logits, and what it spells, its
//! [`Pieces`](pieces::Pieces), goes to a [`Stream`](stream::Stream), which gives the text out up to the first of its
//! [`Stops`](stops::Stops). None of this takes memory once made.

pub(crate) mod allowed;
mod automaton;
mod constraint;
mod draw;
pub(crate) mod guide;
mod lexicon;
pub(crate) mod pieces;
pub(crate) mod sampler;
mod shape;
pub(crate) mod stops;
pub(crate) mod stream;
#[cfg(test)]
mod testing;

use std::ops::ControlFlow;

pub use constraint::Constraint;
pub use sampler::Sampling;

/// What whoever hears a text as it grows answers: nothing, or whether the text goes on.
pub trait Heard {
    /// Whether the text ends here.
    fn ends(self) -> bool;
}

impl Heard for () {
    fn ends(self) -> bool {
        false
    }
}

impl Heard for ControlFlow<()> {
    fn ends(self) -> bool {
        self.is_break()
    }
}
