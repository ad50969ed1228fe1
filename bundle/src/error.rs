//! What can be wrong with a bundle or a trust store, and which check says so.

use core::fmt;

use crate::{
    id::{Id, KeyId},
    index::IndexError,
    tensor::Role,
    time::UtcTime,
};

/// The checks of a verification, in the order in which they are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Check {
    /// The file has the layout of a bundle, from its first byte to its last.
    Frame,
    /// Every signature by a key of the trust store holds.
    Signature,
    /// Enough keys of the trust store signed.
    Threshold,
    /// The signed manifest follows the format's rules.
    Manifest,
    /// Enough of the keys that signed may sign for this task.
    Scope,
    /// The bundle was made for this namespace.
    Namespace,
    /// The bundle was made for this base model.
    Base,
    /// The bundle was made for this tokenizer.
    Tokenizer,
    /// The bundle has not been revoked.
    Revocation,
    /// The bundle is not older than what is installed or required.
    Rollback,
    /// The bundle has not expired.
    Expiry,
    /// The bundle needs nothing that this reader lacks.
    Runtime,
    /// The stored payload is the one that was signed.
    PayloadDigest,
    /// The payload decompresses under the format's rules.
    Decompression,
    /// The decompressed tensors are the ones that were signed.
    TensorDigest,
    /// Every value is finite and of sane size, every scale is usable.
    Values,
}

impl Check {
    /// All checks, in the order in which they are made.
    pub const ALL: [Self; 16] = [
        Self::Frame,
        Self::Signature,
        Self::Threshold,
        Self::Manifest,
        Self::Scope,
        Self::Namespace,
        Self::Base,
        Self::Tokenizer,
        Self::Revocation,
        Self::Rollback,
        Self::Expiry,
        Self::Runtime,
        Self::PayloadDigest,
        Self::Decompression,
        Self::TensorDigest,
        Self::Values,
    ];

    /// The check's name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Frame => "frame",
            Self::Signature => "signature",
            Self::Threshold => "threshold",
            Self::Manifest => "manifest",
            Self::Scope => "scope",
            Self::Namespace => "namespace",
            Self::Base => "base",
            Self::Tokenizer => "tokenizer",
            Self::Revocation => "revocation",
            Self::Rollback => "rollback",
            Self::Expiry => "expiry",
            Self::Runtime => "runtime",
            Self::PayloadDigest => "payload-digest",
            Self::Decompression => "decompression",
            Self::TensorDigest => "tensor-digest",
            Self::Values => "values",
        }
    }
}

/// Why a bundle or a trust store is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file ends before the bundle does.
    #[error(
        "the bundle is cut short: {found} bytes of at least {expected}; copy it again, or sign it where it was packed unsigned"
    )]
    Truncated {
        /// Bytes that the file must have, as far as it could be read.
        expected: usize,
        /// Bytes that the file has.
        found: usize,
    },
    /// The file goes on after the bundle ends.
    #[error(
        "bytes follow the bundle: it ends at byte {expected}, the file has {found}; copy it again"
    )]
    TrailingBytes {
        /// Bytes that the bundle has.
        expected: usize,
        /// Bytes that the file has.
        found: usize,
    },
    /// The file does not begin as a bundle does.
    #[error(
        "not a preface bundle, or changed by a transfer in text mode: its first bytes are wrong"
    )]
    NotABundle,
    /// The file is a bundle of another major version.
    #[error("a bundle of another format version: this program reads version 001 only")]
    OtherVersion,
    /// Something in the file breaks a rule of the format.
    #[error("malformed bundle: {part}: {rule}")]
    Malformed {
        /// The part of the file.
        part: &'static str,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// The manifest holds a critical field that this reader does not know.
    #[error(
        "malformed bundle: critical field {tlv:#06x} is unknown to this program; a newer one may read it"
    )]
    UnknownCritical {
        /// The field's type.
        tlv: u16,
    },
    /// A key of the trust store is named, but its signature does not hold.
    #[error(
        "bad signature: the bundle was changed after key {key} signed it, or never signed by it"
    )]
    BadSignature {
        /// The key that the signature names.
        key: KeyId,
    },
    /// A signature holds for a key of the trust store, but names another key.
    #[error(
        "bad signature: the bundle was signed by key {key}, but its signature entry names another; it was changed"
    )]
    WrongKeyId {
        /// The key that made the signature.
        key: KeyId,
    },
    /// Too few keys of the trust store signed.
    #[error(
        "not trusted: {valid} of {threshold} required signatures are by keys of the trust store; the bundle names key {key}"
    )]
    Untrusted {
        /// Valid signatures by keys of the store.
        valid: usize,
        /// Signatures that the store requires.
        threshold: usize,
        /// The first key that the bundle names.
        key: KeyId,
    },
    /// Too few of the keys that signed may sign for this task.
    #[error(
        "not trusted: {valid} of {threshold} required signatures are by keys that may sign for this task; see tasks= in the trust store"
    )]
    OutsideScope {
        /// Valid signatures by keys that may sign for the task.
        valid: usize,
        /// Signatures that the store requires.
        threshold: usize,
    },
    /// Without its revoked keys the bundle misses the threshold.
    #[error(
        "revoked: key {key} signed the bundle and the trust store revokes it; ask for a bundle signed by a current key"
    )]
    RevokedKey {
        /// The revoked key.
        key: KeyId,
    },
    /// The bundle was released under a newer trust store.
    #[error(
        "not trusted: the bundle was released under trust version {bundle}, the trust store is version {store}; update the trust store first"
    )]
    TrustStoreTooOld {
        /// Trust version of the bundle.
        bundle: u32,
        /// Version of the trust store.
        store: u32,
    },
    /// The bundle was made for another namespace.
    #[error("wrong namespace: the bundle was made for {bundle}, not for {expected}")]
    OtherNamespace {
        /// Namespace of the bundle.
        bundle: Id<16>,
        /// Namespace required.
        expected: Id<16>,
    },
    /// The bundle was made for another base model.
    #[error("wrong base model: the bundle was made for base {bundle}, this base is {expected}")]
    OtherBase {
        /// Base id of the bundle.
        bundle: Id,
        /// Base id required.
        expected: Id,
    },
    /// The bundle was made for another tokenizer.
    #[error(
        "wrong tokenizer: the bundle was made for tokenizer {bundle}, this tokenizer is {expected}"
    )]
    OtherTokenizer {
        /// Tokenizer id of the bundle.
        bundle: Id,
        /// Tokenizer id required.
        expected: Id,
    },
    /// The trust store revokes the bundle.
    #[error("revoked: the trust store revokes bundle {bundle}")]
    RevokedBundle {
        /// The bundle's id.
        bundle: Id,
    },
    /// The bundle is older than the installed one, or equal to it in number only.
    #[error(
        "rollback: trust version {trust_version}, sequence {sequence} is not newer than the installed {floor_trust_version}, {floor_sequence}"
    )]
    Rollback {
        /// Trust version of the bundle.
        trust_version: u32,
        /// Sequence of the bundle.
        sequence: u64,
        /// Trust version of the installed bundle.
        floor_trust_version: u32,
        /// Sequence of the installed bundle.
        floor_sequence: u64,
    },
    /// The bundle's security version is below the trust store's.
    #[error(
        "rollback: security version {bundle} is below the trust store's min-security {required}"
    )]
    InsecureVersion {
        /// Security version of the bundle.
        bundle: u32,
        /// The least that the store accepts.
        required: u32,
    },
    /// The bundle is past its last day.
    #[error("expired: the bundle was valid until {}, it is {}", UtcTime(*not_after), UtcTime(*now))]
    Expired {
        /// Last second of validity, unix time.
        not_after: u64,
        /// The time that was used, unix time.
        now: u64,
    },
    /// The bundle needs a newer runtime.
    #[error(
        "wrong runtime: the bundle needs level {required}, this one has {found}; update preface"
    )]
    RuntimeTooOld {
        /// Level that the bundle needs.
        required: u32,
        /// Level of this runtime.
        found: u32,
    },
    /// The stored payload is not the signed one.
    #[error("payload changed: its bytes do not match the signed digest; copy the bundle again")]
    PayloadDigest,
    /// The authentic payload does not decompress under the rules.
    #[error("malformed payload: {rule}")]
    Compressed {
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// The decompressed tensors are not the signed ones.
    #[error("payload changed: the decompressed tensors do not match the signed digest")]
    TensorDigest,
    /// A tensor holds a value that must not be used.
    #[error("malformed payload: {} tensor: {rule}", .role.name())]
    Value {
        /// What the tensor is for.
        role: Role,
        /// The rule that the value breaks.
        rule: &'static str,
    },
    /// The caller's buffer does not have the length that the operation needs.
    #[error("buffer holds {found} elements, {expected} needed")]
    BufferLength {
        /// Elements needed.
        expected: usize,
        /// Elements given.
        found: usize,
    },
    /// A trust store has no roots, so no signature can put another in its place, or it in the place of another.
    #[error("not trusted: {which} has no roots: it changes by hand alone")]
    NoRoots {
        /// Which of the two.
        which: Stores,
    },
    /// A signature on an update is by no root of either trust store, or of something else.
    #[error(
        "bad signature: signature {} is by no root of the trust store in force or of the new one, or of another store", .index.saturating_add(1)
    )]
    UpdateSignature {
        /// Which signature, from 0.
        index: usize,
    },
    /// Too few roots signed an update.
    #[error("not trusted: {valid} of {threshold} required signatures are by roots of {which}")]
    UpdateUntrusted {
        /// Whose roots.
        which: Stores,
        /// Roots that signed.
        valid: usize,
        /// Roots that must sign.
        threshold: usize,
    },
    /// An update skips a version, or is none.
    #[error(
        "rollback: the new trust store is version {next}, the one in force version {present}; updates go one version at a time"
    )]
    UpdateVersion {
        /// Version in force.
        present: u32,
        /// Version of the update.
        next: u32,
    },
    /// The trust store is not valid; nothing can be verified with it.
    #[error("trust store{}: {rule}", Place(*line))]
    TrustStore {
        /// Line, from 1; 0 when the store as a whole is meant.
        line: usize,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// A public key that must not be trusted.
    #[error("public key refused: {rule}")]
    PublicKey {
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// A fleet's index is refused.
    #[error(transparent)]
    Index(IndexError),
}

/// One of the two trust stores of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stores {
    /// The one in force.
    Present,
    /// The one that is to be.
    Next,
}

impl fmt::Display for Stores {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Present => "the trust store in force",
            Self::Next => "the new trust store",
        })
    }
}

/// Where in a trust store: ` line 3`, or nothing for the store as a whole.
struct Place(usize);

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            line => write!(formatter, " line {line}"),
        }
    }
}

impl Error {
    /// A broken rule of the format.
    pub(crate) const fn malformed(part: &'static str, rule: &'static str) -> Self {
        Self::Malformed { part, rule }
    }

    /// The exit code of `verify` and `install`: a stable contract with scripts.
    ///
    /// 10 malformed, 11 not trusted, 12 bad signature, 13 digest, 14 wrong base, tokenizer,
    /// namespace or runtime, 15 rollback, 16 expired, 17 revoked, 18 trust store invalid.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Truncated { .. }
            | Self::TrailingBytes { .. }
            | Self::NotABundle
            | Self::OtherVersion
            | Self::Malformed { .. }
            | Self::UnknownCritical { .. }
            | Self::Compressed { .. }
            | Self::Value { .. }
            | Self::BufferLength { .. } => 10,
            Self::Untrusted { .. }
            | Self::OutsideScope { .. }
            | Self::TrustStoreTooOld { .. }
            | Self::NoRoots { .. }
            | Self::UpdateUntrusted { .. } => 11,
            Self::BadSignature { .. } | Self::WrongKeyId { .. } | Self::UpdateSignature { .. } => {
                12
            }
            Self::PayloadDigest | Self::TensorDigest => 13,
            Self::OtherNamespace { .. }
            | Self::OtherBase { .. }
            | Self::OtherTokenizer { .. }
            | Self::RuntimeTooOld { .. } => 14,
            Self::Rollback { .. } | Self::InsecureVersion { .. } | Self::UpdateVersion { .. } => 15,
            Self::Expired { .. } => 16,
            Self::RevokedKey { .. } | Self::RevokedBundle { .. } => 17,
            Self::TrustStore { .. } | Self::PublicKey { .. } => 18,
            Self::Index(error) => error.exit_code(),
        }
    }

    /// One word for scripts, finer than the exit code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Truncated { .. } => "truncated",
            Self::TrailingBytes { .. } => "trailing-bytes",
            Self::NotABundle => "not-a-bundle",
            Self::OtherVersion => "other-version",
            Self::Malformed { .. } | Self::UnknownCritical { .. } => "malformed",
            Self::Compressed { .. } | Self::Value { .. } | Self::BufferLength { .. } => {
                "malformed-payload"
            }
            Self::BadSignature { .. } | Self::WrongKeyId { .. } | Self::UpdateSignature { .. } => {
                "bad-signature"
            }
            Self::NoRoots { .. } => "no-roots",
            Self::UpdateUntrusted { .. } => "threshold-missed",
            Self::UpdateVersion { .. } => "rollback",
            Self::Untrusted { valid: 0, .. } => "unknown-key",
            Self::Untrusted { .. } => "threshold-missed",
            Self::OutsideScope { .. } => "key-out-of-scope",
            Self::TrustStoreTooOld { .. } => "trust-store-too-old",
            Self::RevokedKey { .. } => "revoked-key",
            Self::RevokedBundle { .. } => "revoked-bundle",
            Self::OtherNamespace { .. } => "other-namespace",
            Self::OtherBase { .. } => "other-base",
            Self::OtherTokenizer { .. } => "other-tokenizer",
            Self::RuntimeTooOld { .. } => "runtime-too-old",
            Self::Rollback { .. } => "rollback",
            Self::InsecureVersion { .. } => "insecure-version",
            Self::Expired { .. } => "expired",
            Self::PayloadDigest => "payload-changed",
            Self::TensorDigest => "tensors-changed",
            Self::TrustStore { .. } | Self::PublicKey { .. } => "trust-store-invalid",
            Self::Index(error) => error.reason(),
        }
    }

    /// The check that failed; all checks before it in [`Check::ALL`] have passed.
    /// `None` where no bundle was looked at.
    pub fn check(&self) -> Option<Check> {
        Some(match self {
            Self::Truncated { .. }
            | Self::TrailingBytes { .. }
            | Self::NotABundle
            | Self::OtherVersion => Check::Frame,
            Self::Malformed { part, .. } if *part == FRAME => Check::Frame,
            Self::Malformed { .. } | Self::UnknownCritical { .. } => Check::Manifest,
            Self::BadSignature { .. } | Self::WrongKeyId { .. } => Check::Signature,
            Self::Untrusted { .. } | Self::RevokedKey { .. } => Check::Threshold,
            Self::OutsideScope { .. } => Check::Scope,
            Self::OtherNamespace { .. } => Check::Namespace,
            Self::OtherBase { .. } => Check::Base,
            Self::OtherTokenizer { .. } => Check::Tokenizer,
            Self::RevokedBundle { .. } => Check::Revocation,
            Self::Rollback { .. }
            | Self::InsecureVersion { .. }
            | Self::TrustStoreTooOld { .. } => Check::Rollback,
            Self::Expired { .. } => Check::Expiry,
            Self::RuntimeTooOld { .. } => Check::Runtime,
            Self::PayloadDigest => Check::PayloadDigest,
            Self::Compressed { .. } | Self::BufferLength { .. } => Check::Decompression,
            Self::TensorDigest => Check::TensorDigest,
            Self::Value { .. } => Check::Values,
            Self::TrustStore { .. }
            | Self::PublicKey { .. }
            | Self::NoRoots { .. }
            | Self::UpdateSignature { .. }
            | Self::UpdateUntrusted { .. }
            | Self::UpdateVersion { .. }
            | Self::Index(_) => return None,
        })
    }
}

/// The part that errors before authentication name.
pub(crate) const FRAME: &str = "frame";
