//! Writing text token by token: what needs the logits of the next token and not the engine that computes them.
//!
//! Once for each token a caller asks a [`Constraint`](constraint::Constraint) which tokens may come next, lets a
//! [`Sampler`](sampler::Sampler) choose one of them by the logits, advances the constraint by it, and hands its piece to
//! a [`Stream`](stream::Stream) and the stream's text to [`Stops`](stops::Stops). None of this takes memory once made.

mod allowed;
mod draw;
pub(crate) mod sampler;
#[cfg(test)]
mod testing;

pub use sampler::Sampling;
