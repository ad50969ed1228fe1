//! Loading what a store has active, and following it as it changes.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use preface_bundle::{Expiry, Id, Policy};

use super::{
    MAX_STARTS, State, Store, StoreError, TaskState,
    disk::{FileStamp, stamp_of},
    install::check_security,
};
use crate::{LoadError, Session, TaskHandle, Trust, bundle, load::Candidate};

/// A task of the store as it was loaded.
#[derive(Debug)]
pub struct Served {
    /// The task.
    pub task: String,
    /// Its place in the session and its bundle; `None` where none of its bundles may be used.
    pub loaded: Option<(TaskHandle, Id)>,
    /// What whoever runs the device should hear.
    pub notes: Vec<Note>,
}

/// Why another bundle than the active one serves, or none.
#[derive(Debug)]
#[non_exhaustive]
pub enum Note {
    /// A bundle of the store is refused.
    Refused {
        /// The bundle.
        id: Id,
        /// Why.
        error: StoreError,
    },
    /// A bundle was started too often without being confirmed, and is no longer active.
    Reverted {
        /// The bundle.
        id: Id,
    },
    /// A bundle on trial is not started, as its start cannot be written down.
    NotCounted {
        /// The bundle.
        id: Id,
        /// Why.
        error: StoreError,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { id, error } => {
                write!(
                    formatter,
                    "bundle {id} is not used: {}",
                    crate::explained(error)
                )
            }
            Self::Reverted { id } => write!(
                formatter,
                "bundle {id} was started {MAX_STARTS} times and never confirmed: it is no longer active"
            ),
            Self::NotCounted { id, error } => write!(
                formatter,
                "bundle {id} is on trial and its start cannot be written down, so it is not used: {}",
                crate::explained(error)
            ),
        }
    }
}

/// Keeps the tasks of a session those of a store.
///
/// Between two requests of its owner a session asks [`Follower::follow`] for what changed: a request in flight ends on
/// the bundle that it began with.
#[derive(Debug)]
pub struct Follower {
    store: Store,
    trust: Trust,
    /// The files of state and trust store as they were the last time.
    seen: Option<[FileStamp; 3]>,
    /// The active bundle of each task as it was when it was loaded.
    active: BTreeMap<String, Option<Id>>,
}

impl Follower {
    /// Follows a store, whose bundles are verified against `trust` again.
    pub fn new(store: Store, trust: Trust) -> Self {
        Self {
            store,
            trust,
            seen: None,
            active: BTreeMap::new(),
        }
    }

    /// The store's folder.
    pub fn folder(&self) -> &Path {
        self.store.folder()
    }

    /// Whether it follows the store in that folder with that trust store file.
    pub fn is_of(&self, store: &Path, trust: &Path) -> bool {
        self.store.folder() == store && self.trust.path() == trust
    }

    /// Loads every task whose active bundle is another than the last time, at first all of them. Where neither store nor
    /// trust store was written it costs three look-ups of files; where the trust store is another, every task is verified
    /// and loaded again. A task that is served no longer answers nothing more, the active one too.
    ///
    /// An expired bundle goes on serving; one that is revoked or changed does not, and the bundle before it serves.
    ///
    /// # Errors
    /// When the state cannot be believed, or the trust store is older than one used before.
    pub fn follow(&mut self, session: &mut Session) -> Result<Vec<Served>, StoreError> {
        // Taken before the files are read: what changes later is seen the next time.
        let [first, second] = self.store.disk.stamp();
        let stamps = [first, second, stamp_of(self.trust.path())];
        if self.seen == Some(stamps) {
            return Ok(Vec::new());
        }
        let mut state = self.store.state()?;
        if let Some(trust) = self.trust.renewed()? {
            self.active.clear();
            self.trust = trust;
        }
        let trust = self.trust.store()?;
        self.store.check_trust(&state, &trust)?;
        state.rise(&trust);
        let served = self.changed(&state, session);
        self.seen = Some(stamps);
        Ok(served)
    }

    fn changed(&mut self, state: &State, session: &mut Session) -> Vec<Served> {
        let mut all = Vec::new();
        for task in &state.tasks {
            if self.active.get(&task.task) == Some(&task.active) {
                continue;
            }
            let mut notes = Vec::new();
            let (active, bundles) = self.started(task, &mut notes);
            let loaded = self.load(state, &task.task, bundles, session, &mut notes);
            if loaded.is_none() {
                session.withdraw(&task.task);
            }
            self.active.insert(task.task.clone(), active);
            all.push(Served {
                task: task.task.clone(),
                loaded,
                notes,
            });
        }
        all
    }

    /// The active bundle of a task once its start is written down, where it is on trial, and the bundles that may serve.
    fn started(&self, task: &TaskState, notes: &mut Vec<Note>) -> (Option<Id>, [Option<Id>; 2]) {
        let (Some(id), true) = (task.active, task.trial) else {
            return (task.active, [task.active, task.previous]);
        };
        match self.store.count_start(&task.task, id) {
            Ok(counted) => {
                if counted.active != Some(id) {
                    notes.push(Note::Reverted { id });
                }
                (counted.active, [counted.active, counted.previous])
            }
            Err(error) => {
                notes.push(Note::NotCounted { id, error });
                (task.active, [task.previous, None])
            }
        }
    }

    /// Loads the first of the bundles that may be used.
    fn load(
        &self,
        state: &State,
        task: &str,
        bundles: [Option<Id>; 2],
        session: &mut Session,
        notes: &mut Vec<Note>,
    ) -> Option<(TaskHandle, Id)> {
        for id in bundles.into_iter().flatten() {
            match self.load_one(state, task, id, session) {
                Ok(handle) => return Some((handle, id)),
                Err(error) => notes.push(Note::Refused { id, error }),
            }
        }
        None
    }

    fn load_one(
        &self,
        state: &State,
        task: &str,
        id: Id,
        session: &mut Session,
    ) -> Result<TaskHandle, StoreError> {
        let path: PathBuf = self.store.disk.bundle(id);
        let bytes = bundle::read(&path).map_err(LoadError::ReadBundle)?;
        let base = session.description();
        let policy = Policy {
            expiry: Expiry::Passed,
            ..Policy::for_base(base.base_id, base.tokenizer_id)
        };
        let file = Candidate {
            path: &path,
            bytes: &bytes,
        };
        file.verified(
            &self.trust,
            |_| policy,
            |bundle, taken| {
                // A bundle that is good by itself and lies in the place of another.
                if bundle.bundle_id() != id || bundle.manifest().task != task {
                    return Err(StoreError::Replaced { path: path.clone() });
                }
                check_security(bundle, state, &path)?;
                Ok(session.take(&path, bundle, taken)?)
            },
        )?
    }
}

impl Store {
    /// Writes down that a bundle on trial is started, or that it was started often enough and the one before it is
    /// active again.
    fn count_start(&self, task: &str, id: Id) -> Result<TaskState, StoreError> {
        let _lock = self.disk.prepare()?;
        let mut state = self.state()?;
        let known = state.task_mut(task).ok_or(StoreError::NoTask {
            task: task.to_owned(),
        })?;
        if known.trial && known.active == Some(id) {
            match known.starts < MAX_STARTS {
                true => known.starts += 1,
                false => known.revert(),
            }
            let counted = known.clone();
            self.commit(&mut state)?;
            return Ok(counted);
        }
        Ok(known.clone())
    }
}
