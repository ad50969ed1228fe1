//! Quantises, compresses and signs an adapter into a bundle, and keeps the keys that sign.
//!
//! [`Adapter::open`] reads what a trainer or PEFT left, [`pack`] makes a bundle of it, byte for
//! byte the same for the same input and key, and verifies it before handing it out; an [`Encoding`] says in which numbers.
//! [`packed_len`] says how long it will be, without a key, and [`pack_unsigned`] leaves out the signatures that [`Signing`] adds.
//! [`SecretKey`] signs; [`write_trust`] and its neighbours write the text that devices trust;
//! [`exchange`] reads and writes what other programs make: PEFT's folders, numpy arrays, ONNX Runtime's adapter files.
//! [`write_file`] is how every file is written: whole or not at all.

mod adapter;
mod description;
mod encode;
mod encoding;
mod error;
pub mod exchange;
mod file;
mod foreign;
mod index;
mod key;
mod leak;
mod manifest;
mod minisign;
mod pack;
mod quantise;
mod sealed;
mod signing;
mod tensors;
mod trust;

pub use adapter::Adapter;
pub use description::{Answer, Decode, Description, Form, Head, Layer, Probe, TokenBudget};
pub use encoding::{Encoding, Scales};
pub use error::Error;
pub use file::{Access, remove_unfinished, write_file};
pub use index::{IndexDraft, Newest, attach_to_index, sign_index};
pub use key::{KeyFile, KeyFiles, Protection, SecretKey, read_private};
pub use leak::{Neighbour, READABLE_COSINE, neighbours, spelled};
pub use minisign::{minisign, minisign_key};
pub use pack::{Options, Packed, TensorReport, pack, pack_unsigned, packed_len};
pub use sealed::Passphrase;
pub use signing::{Signing, signature_text};
pub use trust::{TrustChange, VersionStep, change_trust, is_root, new_trust, write_trust};
