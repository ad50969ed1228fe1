//! What can go wrong between an adapter folder and a bundle.

use std::{io, path::PathBuf};

use preface_bundle::{Id, KeyId};

/// Why an adapter cannot be packed, or a key or a file not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no room for a file.
    #[error(
        "cannot write {path}: no space left on device; free some space or choose another folder with -o"
    )]
    NoSpace {
        /// The file.
        path: PathBuf,
    },
    /// The folder of a file does not exist.
    #[error("cannot write {path}: its folder does not exist; make it first")]
    NoFolder {
        /// The file.
        path: PathBuf,
    },
    /// A new file would replace one that must not be lost.
    #[error("cannot write {path}: it exists already; choose another name, or move it away first")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The JSON of an adapter does not have the expected shape.
    #[error("{path}: not the description of an adapter")]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A field of an adapter breaks a rule.
    #[error("{path}: {field}: {problem}")]
    Field {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The tensors of an adapter cannot be read.
    #[error("{path}: not a safetensors file")]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: safetensors::SafeTensorError,
    },
    /// An option cannot be used.
    #[error("{option}: {problem}")]
    Option {
        /// The option.
        option: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The adapter was trained against another base or with another tokenizer.
    #[error(
        "the adapter was trained with {what} {adapter}, the base folder has {base}; train it again or pack it with the base it was trained with"
    )]
    OtherBase {
        /// Which of the two differs.
        what: &'static str,
        /// Id in the adapter.
        adapter: Id,
        /// Id of the base folder.
        base: Id,
    },
    /// The description does not fit the signed prefix.
    #[error(
        "the description takes {found_bytes} bytes of at most {limit_bytes}; the longest field is {field}: shorten it"
    )]
    ManifestTooLarge {
        /// Bytes that it takes.
        found_bytes: usize,
        /// Bytes that there are.
        limit_bytes: usize,
        /// The longest field.
        field: &'static str,
    },
    /// The tensors do not fit a bundle.
    #[error(
        "the tensors take {found_bytes} bytes {state}, at most {limit_bytes} fit; choose a smaller --dtype or fewer virtual tokens"
    )]
    PayloadTooLarge {
        /// Bytes that they take.
        found_bytes: usize,
        /// Bytes that there are.
        limit_bytes: usize,
        /// Before or after compression.
        state: &'static str,
    },
    /// The compressor failed.
    #[error("cannot compress the tensors")]
    Compress {
        /// What it said.
        source: io::Error,
    },
    /// The new bundle does not verify, so it was thrown away.
    #[error("the new bundle does not verify and was thrown away")]
    SelfCheck {
        /// Why it was refused.
        source: preface_bundle::Error,
    },
    /// A file is not a bundle, or a bundle is refused.
    #[error("the bundle is refused")]
    Bundle {
        /// Why.
        source: preface_bundle::Error,
    },
    /// A fleet's index is not one, or would not be.
    #[error("the index is refused")]
    Index {
        /// Why.
        source: preface_bundle::Error,
    },
    /// A signature made elsewhere is not one that can be attached.
    #[error(
        "bad signature: no key of the trust store made it of this bundle's statement; sign exactly the bytes that preface statement -o writes, with plain Ed25519"
    )]
    ForeignSignature,
    /// A signature made elsewhere is not one that can be attached to an index.
    #[error(
        "bad signature: no timestamp key of the trust store made it of this index's statement; sign exactly the bytes that preface statement -o writes, with plain Ed25519"
    )]
    ForeignIndexSignature,
    /// The key made a signature that does not hold.
    #[error("key {key} made a signature that does not hold; is this machine's memory sound?")]
    Signature {
        /// The key.
        key: KeyId,
    },
    /// A key file can be read by others.
    #[error(
        "unsafe permissions: others can read the secret file {path} (mode {mode:03o}); run chmod 600 {path}, or make a new one if they may have"
    )]
    KeyPermissions {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A key file belongs to somebody else.
    #[error("unsafe permissions: the secret file {path} belongs to user {owner}, not to you")]
    KeyOwner {
        /// The file.
        path: PathBuf,
        /// The user id of its owner.
        owner: u32,
    },
    /// A key file does not hold a key.
    #[error("{path}: {problem}")]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A key file takes a passphrase, and none was given.
    #[error("{path} is under a passphrase; give --passphrase-file or --passphrase-fd")]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The passphrase does not open the key file.
    #[error("wrong passphrase for {path}, or the file is damaged")]
    Passphrase {
        /// The file.
        path: PathBuf,
    },
    /// A file of another program holds what this one does not take.
    #[error("{path}: {problem}")]
    Foreign {
        /// The file or folder.
        path: PathBuf,
        /// What it holds, and the way out.
        problem: String,
    },
    /// The system gave no random bytes.
    #[error("cannot make a key: the system gives no random bytes")]
    Random {
        /// What the system said.
        source: getrandom::Error,
    },
    /// A trust store is not valid, or would not be.
    #[error(transparent)]
    Trust {
        /// The rule that it breaks.
        source: preface_bundle::Error,
    },
}

impl Error {
    /// The exit code of the program: 21 where permissions make it unsafe to go on, that of `verify` for a bundle
    /// that is refused, 2 for the rest.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::KeyPermissions { .. } | Self::KeyOwner { .. } => 21,
            Self::ForeignSignature | Self::ForeignIndexSignature => 12,
            Self::Bundle { source } | Self::Index { source } => source.exit_code(),
            _ => 2,
        }
    }
}
