//! Runs signed soft prompts on a memory-mapped base model.
//!
//! A base image ([`Image`]) is a frozen base model laid out for mapping: its weights are packed for this machine's
//! kernels and never copied, so every process that opens the image shares one copy. A [`Session`] runs an image; it
//! loads tasks from verified bundles and switches between them without touching the base. A [`store::Store`] keeps the
//! bundles of a device, and what must not be gone back behind. With the feature `compile` the module [`compile`] makes
//! an image from a base folder.

#![cfg_attr(test, allow(clippy::unwrap_used))]

#[cfg(test)]
#[path = "../../cli/src/allocations.rs"]
#[allow(unsafe_code)]
mod allocations;
mod answer;
pub mod bundle;
#[cfg(feature = "compile")]
pub mod compile;
mod engine;
mod error;
mod generation;
pub mod image;
mod load;
// Maps files: see the SAFETY comments there.
#[allow(unsafe_code)]
mod map;
mod session;
mod status;
pub mod store;
mod task;
#[cfg(all(test, feature = "compile"))]
mod testing;
mod text;
mod tokenizer;
mod trust_file;
mod weights;

pub use answer::{Answer, Choice, Choices, Scored};
pub use engine::{EngineKind, Kernels};
pub use error::Error;
pub use generation::{Constraint, Heard, Sampling};
pub use image::Image;
pub use load::{LoadError, Trust, unix_now};
pub use session::{Options, Part, Request, Session, TaskHandle, Threads, TokenizerUse};
pub use status::{Status, explained};
pub use text::{Encoded, Overlength};
pub use trust_file::{Update, UpdateError, update_trust};
pub use weights::Weights;
