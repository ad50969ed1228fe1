//! Why a store does not do what it is asked.

use std::{io, path::PathBuf};

use preface_bundle::{Id, Namespace, UtcTime};

use super::MAX_TASKS;
use crate::{LoadError, bundle::ReadError};

/// Why a store refuses, or fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The bundle or the trust store is refused or cannot be read.
    #[error(transparent)]
    Bundle(#[from] LoadError),
    /// A probe has another answer on this device than its maker's.
    #[error(
        "task {task}: probe {probe} is answered {found} on this device, its maker says {expected}; the bundle is not used"
    )]
    Probe {
        /// The task.
        task: String,
        /// Which of the bundle's probes, from 1.
        probe: usize,
        /// The label in the bundle.
        expected: String,
        /// What this device answers.
        found: String,
    },
    /// The base fails on a probe.
    #[error("task {task}: probe {probe} cannot be answered on this device; the bundle is not used")]
    ProbeFailed {
        /// The task.
        task: String,
        /// Which of the bundle's probes, from 1.
        probe: usize,
        /// Why.
        source: crate::Error,
    },
    /// Two bundles of one task have the same trust version and sequence.
    #[error(
        "rollback: task {task} already has another bundle with trust version {trust_version}, sequence {sequence}: {known}; ask for one with a greater sequence"
    )]
    Rival {
        /// The task.
        task: String,
        /// The trust version of both.
        trust_version: u32,
        /// The sequence of both.
        sequence: u64,
        /// The bundle that is known.
        known: Id,
    },
    /// The trust store is older than one that was used before.
    #[error(
        "rollback: the trust store is version {found}, this device has used version {required}; give it the newer one"
    )]
    OlderTrust {
        /// Version of the trust store.
        found: u32,
        /// The greatest version that was used.
        required: u32,
    },
    /// The index cannot be read.
    #[error(transparent)]
    ReadIndex(ReadError),
    /// The index is refused.
    #[error("{path} is refused")]
    Index {
        /// The index.
        path: PathBuf,
        /// What does not hold.
        source: preface_bundle::Error,
    },
    /// The index names another bundle as the newest of its task than the one to install.
    #[error(
        "rollback: the index says that bundle {newest} is the newest of task {task}, not {found}; install that one, or get a newer index"
    )]
    NotNewest {
        /// The task.
        task: String,
        /// The bundle to install.
        found: Id,
        /// The one that the index names.
        newest: Id,
    },
    /// The index does not name the task of the bundle to install.
    #[error(
        "rollback: the index does not name task {task}; get a newer index, or one that has all tasks of the fleet"
    )]
    NotInIndex {
        /// The task.
        task: String,
    },
    /// Nothing newer was seen since the last index expired.
    #[error(
        "expired: the last index that this device saw was valid until {}, it is {}: it may be held back; give it a newer one with `preface index check`",
        UtcTime(*expires), UtcTime(*now)
    )]
    NoNewIndex {
        /// Last second of its validity, unix time.
        expires: u64,
        /// The time, unix time.
        now: u64,
    },
    /// No index was ever accepted.
    #[error("{path} has never seen an index; give it one with `preface index check FILE`")]
    NoIndex {
        /// The store's folder.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {action} {path}{}", remedy(source))]
    Io {
        /// What was to be done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// What should be a folder or a file is something else.
    #[error("{path} is not {expected}; move it away")]
    Misplaced {
        /// The path.
        path: PathBuf,
        /// What should be there.
        expected: &'static str,
    },
    /// There is no store.
    #[error("there is no store in {path}; the first `preface install` makes it")]
    NoStore {
        /// The store's folder.
        path: PathBuf,
    },
    /// Neither state file can be believed.
    #[error(
        "the state of {path} is gone or damaged, both copies: what was installed and which bundles are too old is no longer known; after looking into it, begin anew with `preface install --reprovision`"
    )]
    NoState {
        /// The store's folder.
        path: PathBuf,
    },
    /// The state is older than the hardware counter says.
    #[error(
        "the state of {path} was put back: it is number {generation}, the counter is at {counter}; begin anew with `preface install --reprovision`"
    )]
    PutBack {
        /// The store's folder.
        path: PathBuf,
        /// The state's generation.
        generation: u64,
        /// The hardware counter.
        counter: u64,
    },
    /// The state is another fleet's.
    #[error(
        "the state of {path} belongs to namespace {found}, the trust store to {expected}: it is another device's"
    )]
    OtherNamespace {
        /// The store's folder.
        path: PathBuf,
        /// Namespace of the state.
        found: Namespace,
        /// Namespace of the trust store.
        expected: Namespace,
    },
    /// Others than its owner can change the store.
    #[error("unsafe permissions: others can write {path} (mode {mode:03o}); run chmod go-w {path}")]
    WritableByOthers {
        /// The folder.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The store belongs to somebody else.
    #[error("unsafe permissions: {path} belongs to user {owner}, not to root or to you")]
    OtherOwner {
        /// The folder.
        path: PathBuf,
        /// The user id of its owner.
        owner: u32,
    },
    /// The store has as many tasks as it can.
    #[error(
        "the store has {} tasks, which is all that it holds; preface install --reprovision begins anew, without them and their floors",
        MAX_TASKS
    )]
    Full,
    /// The store does not have the task.
    #[error("the store has no task {task}; see `preface list`")]
    NoTask {
        /// The task.
        task: String,
    },
    /// The store does not keep the bundle for the task.
    #[error("task {task} does not keep bundle {id}; see `preface list`")]
    NotKept {
        /// The task.
        task: String,
        /// The bundle's id.
        id: Id,
    },
    /// Another bundle is active than the caller thinks.
    #[error("task {task}: {} is active, not {expected}; nothing was changed", or_none(found.as_ref()))]
    NotExpected {
        /// The task.
        task: String,
        /// What the caller thinks is active.
        expected: Id,
        /// What is active.
        found: Option<Id>,
    },
    /// There is nothing to go back to.
    #[error("task {task} has no earlier bundle that was confirmed here; see `preface list`")]
    NothingBefore {
        /// The task.
        task: String,
    },
    /// No bundle of the task answers, so none can be confirmed.
    #[error("task {task} has no active bundle; install one")]
    NothingActive {
        /// The task.
        task: String,
    },
    /// A bundle file of the store is not the one that was installed.
    #[error("{path} is not the bundle that was installed; install it again")]
    Replaced {
        /// The file.
        path: PathBuf,
    },
}

impl StoreError {
    /// The exit code of `install` and its neighbours.
    pub fn exit_code(&self) -> u8 {
        match self {
            // A bundle that `verify` lets pass was made for another runtime.
            Self::Bundle(error) => error.exit_code().unwrap_or(14),
            Self::Probe { .. } | Self::ProbeFailed { .. } => 14,
            Self::Rival { .. }
            | Self::OlderTrust { .. }
            | Self::NotNewest { .. }
            | Self::NotInIndex { .. } => 15,
            Self::NoNewIndex { .. } => 16,
            Self::Index { source, .. } => source.exit_code(),
            Self::ReadIndex(error) => error.bundle_exit_code(),
            Self::NoState { .. } | Self::PutBack { .. } | Self::OtherNamespace { .. } => 18,
            Self::Io { .. } | Self::Misplaced { .. } | Self::NoStore { .. } | Self::Full => 20,
            Self::WritableByOthers { .. } | Self::OtherOwner { .. } => 21,
            Self::Replaced { .. } => 13,
            Self::NoTask { .. }
            | Self::NoIndex { .. }
            | Self::NotKept { .. }
            | Self::NotExpected { .. }
            | Self::NothingBefore { .. }
            | Self::NothingActive { .. } => 2,
        }
    }

    /// One word for scripts, finer than the exit code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Bundle(error) => error.reason(),
            Self::Probe { .. } | Self::ProbeFailed { .. } => "probe-failed",
            Self::Rival { .. } => "rival",
            Self::OlderTrust { .. } => "trust-store-older",
            Self::ReadIndex(_) => "index-unreadable",
            Self::Index { source, .. } => source.reason(),
            Self::NotNewest { .. } => "not-newest",
            Self::NotInIndex { .. } => "not-in-index",
            Self::NoNewIndex { .. } => "index-expired",
            Self::NoIndex { .. } => "no-index",
            Self::Io { .. } => "io",
            Self::Misplaced { .. } => "misplaced",
            Self::NoStore { .. } => "no-store",
            Self::NoState { .. } => "state-invalid",
            Self::PutBack { .. } => "state-put-back",
            Self::OtherNamespace { .. } => "state-of-another",
            Self::WritableByOthers { .. } | Self::OtherOwner { .. } => "unsafe-permissions",
            Self::Full => "store-full",
            Self::NoTask { .. } => "no-task",
            Self::NotKept { .. } => "not-kept",
            Self::NotExpected { .. } => "not-expected",
            Self::NothingBefore { .. } => "nothing-before",
            Self::NothingActive { .. } => "nothing-active",
            Self::Replaced { .. } => "replaced",
        }
    }
}

fn or_none(id: Option<&Id>) -> String {
    id.map_or_else(|| "nothing".to_owned(), Id::to_string)
}

/// What to do about a folder or a file that cannot be written.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free some space",
        io::ErrorKind::ReadOnlyFilesystem => "; its file system is read-only",
        io::ErrorKind::PermissionDenied => "; run this as the store's owner",
        io::ErrorKind::NotFound => "; make its folder first, or give another with --store",
        _ => "",
    }
}
