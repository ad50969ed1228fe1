//! Quantises, compresses and signs an adapter into a bundle, and keeps the keys that sign.
//!
//! [`Adapter::open`] reads what a trainer or PEFT left, [`pack`] makes a bundle of it, byte for
//! byte the same for the same input and key, and verifies it before handing it out; [`packed_len`]
//! says how long it will be, without a key.
//! [`SecretKey`] signs; [`write_trust`] and its neighbours write the text that devices trust;
//! [`exchange`] reads and writes what other programs make: PEFT's folders, numpy arrays, ONNX Runtime's adapter files.
//! [`write_file`] is how every file is written: whole or not at all.

mod adapter;
mod description;
mod encode;
mod error;
pub mod exchange;
mod file;
mod key;
mod manifest;
mod pack;
mod quantise;
mod tensors;
mod trust;

pub use adapter::Adapter;
pub use description::{Answer, Decode, Description, Form, Head, Layer, Probe, TokenBudget};
pub use error::Error;
pub use file::{Access, write_file};
pub use key::{KeyFiles, SecretKey};
pub use pack::{Options, Packed, TensorReport, pack, packed_len};
pub use trust::{TrustDraft, add_keys, revoke, write_trust};
