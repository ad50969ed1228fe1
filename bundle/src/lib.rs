//! The signed soft-prompt bundle: its bytes, its verification and the trust store's text format.
//!
//! A bundle is verified in one fixed order, and every step is a type of its own, so that nothing of
//! a bundle can be used before the step that vouches for it:
//!
//! ```text
//! Frame::parse(file)            frame                    nothing is believed yet
//!   .authenticate(&store)       signatures, threshold    Authenticated
//!   .admit(&policy)             namespace, base, tokenizer, revocation, rollback, expiry,
//!                               runtime level, payload digest          Admitted
//!   (the caller decompresses)
//!   .open(decoded)              tensor digest, finite values           VerifiedBundle
//! ```
//!
//! [`TrustStore::admit_update`] says whether one trust store may take the place of another, [`likeliest`] what tags the
//! logits of words amount to.
//!
//! The crate borrows from buffers that its caller owns, allocates nothing, has no unsafe code, and
//! no input makes it panic. `FORMAT.md` describes the file byte by byte.
//!
//! What it does not do: it reads no files, keeps no state, knows no clock and decompresses nothing.

#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    warn(
        clippy::as_conversions,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

mod codec;
mod cursor;
mod error;
mod fields;
mod frame;
mod id;
mod index;
mod key;
mod manifest;
mod shorten;
mod tags;
mod tensor;
mod text;
mod time;
mod trust;
mod update;
mod values;
mod verify;

#[cfg(test)]
mod testing;

pub use codec::{Codec, ZSTD_WINDOW_BYTES, check_zstd_frame, shuffle, unshuffle};
pub use error::{Check, Error, Stores};
pub use fields::{
    AnswerKind, AnswerPlan, DecodeLimits, Head, HeadKind, Inputs, Labels, Metrics, Pooling,
    Positions, Probe, Probes, TokenBudget, Verbaliser, tlv,
};
pub use frame::{
    ALGORITHM_ED25519, CONTEXT, ENTRY_BYTES, Entry, Frame, HEADER_BYTES, MAGIC, SIGNATURE_MAGIC,
};
pub use id::{Id, KeyId, Namespace, is_name};
pub use index::{
    INDEX_CONTEXT, Index, IndexEntry, IndexError, IndexFloor, IndexVersion, MAX_INDEX_BYTES,
    MAX_INDEX_TASKS, VerifiedIndex,
};
pub use key::{PublicKey, read_signature};
pub use manifest::{CORE_BYTES, Form, Manifest, TASK_BYTES, is_task_id, is_task_pattern};
pub use shorten::shorten;
pub use tags::{Before, Tag, likeliest};
pub use tensor::{Dtype, MAX_RANK, Role, TensorSpec, TensorTable};
pub use time::UtcTime;
pub use trust::{KeyRole, MAX_KEYS, TrustStore, TrustedKey, unix_seconds};
pub use update::{TRUST_CONTEXT, TrustStatement};
pub use values::{MAX_VALUE, Tensor, f16_to_f32};
pub use verify::{Admitted, Authenticated, Binding, Expiry, Floor, Policy, VerifiedBundle};

/// Most bytes of a payload as stored.
pub const MAX_STORED_BYTES: usize = 1 << 20;
/// Most bytes of a payload once decompressed.
pub const MAX_DECODED_BYTES: usize = 8 << 20;
/// Most bytes of the signed prefix: what key services sign as one raw message.
pub const MAX_PREFIX_BYTES: usize = 4096;
/// Most signatures of a bundle.
pub const MAX_SIGNATURES: usize = 8;
/// Most bytes of a bundle file: larger files need not be read to be refused.
pub const MAX_FILE_BYTES: usize =
    MAX_PREFIX_BYTES + MAX_STORED_BYTES + 8 + MAX_SIGNATURES * ENTRY_BYTES;
/// Most bytes of a trust store.
pub const MAX_TRUST_BYTES: usize = 64 << 10;
// Lengths up to `MAX_FILE_BYTES` and their sums are computed in `usize`.
const _: () = assert!(usize::BITS >= 32);

/// The feature level of this reader; a bundle that needs a higher one is refused.
pub const RUNTIME_LEVEL: u32 = 4;
