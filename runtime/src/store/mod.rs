//! The tasks of a device: bundles that were verified, tried and are kept, one of each task active.
//!
//! A store is a folder; `STORE.md` describes its files and the order in which they are written. Whatever happens while a
//! bundle is installed, the old one or the new one is active afterwards. What was installed is verified again whenever it
//! is loaded.

mod counter;
mod disk;
mod error;
mod index;
mod install;
mod probe;
mod serve;
mod state;

use std::{path::Path, sync::Arc};

use preface_bundle::{Frame, Id, IndexFloor, TrustStore};

use disk::{Disk, Found};

use crate::{LoadError, Trust, bundle};

pub use counter::{MonotonicCounter, NoCounter};
pub use error::StoreError;
pub use index::{Checked, Standing, TaskStanding};
pub use install::{Confirm, Install, Installed, Provision};
pub use serve::{Follower, Note, Served};
pub use state::{MAX_KEPT, MAX_STATE_BYTES, MAX_TASKS, Release, State, TaskState};

/// Where a device keeps its tasks unless told otherwise.
pub const DEFAULT_FOLDER: &str = "/var/lib/preface";
/// Starts that a bundle has to be confirmed in.
pub const MAX_STARTS: u8 = 3;

/// A device's store of tasks.
#[derive(Clone, Debug)]
pub struct Store {
    disk: Disk,
    counter: Arc<dyn MonotonicCounter>,
}

impl Store {
    /// The store in `folder`, which need not be there yet.
    pub fn at(folder: &Path) -> Self {
        Self::with_counter(folder, Arc::new(NoCounter))
    }

    /// The same, whose state a hardware counter keeps from being put back.
    pub fn with_counter(folder: &Path, counter: Arc<dyn MonotonicCounter>) -> Self {
        Self {
            disk: Disk::new(folder),
            counter,
        }
    }

    /// The store's folder.
    pub fn folder(&self) -> &Path {
        self.disk.folder()
    }

    /// What the store remembers.
    ///
    /// # Errors
    /// [`StoreError::NoStore`] before the first bundle, or why the state cannot be believed.
    pub fn state(&self) -> Result<State, StoreError> {
        self.disk.check()?;
        match self.believed()? {
            Some(state) => Ok(state),
            None => Err(StoreError::NoStore {
                path: self.folder().to_owned(),
            }),
        }
    }

    /// The state; `None` where nothing was ever installed.
    fn believed(&self) -> Result<Option<State>, StoreError> {
        let path = || self.folder().to_owned();
        let counter = self.count()?;
        match self.disk.state()? {
            Found::Nothing if counter.is_none_or(|counter| counter == 0) => Ok(None),
            Found::Nothing | Found::Damaged => Err(StoreError::NoState { path: path() }),
            Found::State(state) => match counter {
                Some(counter) if state.generation < counter => Err(StoreError::PutBack {
                    path: path(),
                    generation: state.generation,
                    counter,
                }),
                _ => Ok(Some(state)),
            },
        }
    }

    fn count(&self) -> Result<Option<u64>, StoreError> {
        self.counter.read().map_err(|source| StoreError::Io {
            action: "read the hardware counter of",
            path: self.folder().to_owned(),
            source,
        })
    }

    /// Writes what `state` has become.
    fn commit(&self, state: &mut State) -> Result<(), StoreError> {
        state.generation = state.generation.saturating_add(1);
        let generation = state.generation;
        self.disk.commit(state, || {
            self.counter
                .raise(generation)
                .map_err(|source| StoreError::Io {
                    action: "raise the hardware counter of",
                    path: self.folder().to_owned(),
                    source,
                })
        })
    }

    /// Confirms the active bundle of a task: the rollback floor rises to it. One that was confirmed before stays so.
    ///
    /// # Errors
    /// [`StoreError::NotExpected`] where another bundle is active, or what stands in the way of writing it down.
    pub fn confirm(&self, task: &str, expect: Option<Id>) -> Result<Switched, StoreError> {
        self.change(task, expect, |known| {
            let active = known.active.ok_or(StoreError::NothingActive {
                task: known.task.clone(),
            })?;
            if known.trial {
                known.confirm();
            }
            Ok(active)
        })
    }

    /// Makes a kept bundle of a task the active one; on trial unless it was confirmed once. The floor stays.
    ///
    /// # Errors
    /// [`StoreError::NotKept`], [`StoreError::NotExpected`], or what stands in the way of writing it down.
    pub fn activate(&self, task: &str, id: Id, expect: Option<Id>) -> Result<Switched, StoreError> {
        self.change(task, expect, |known| {
            let release = *known.release(id).ok_or(StoreError::NotKept {
                task: known.task.clone(),
                id,
            })?;
            self.check_file(id)?;
            if known.active != Some(id) {
                known.activate(&release);
            }
            Ok(id)
        })
    }

    /// Goes back to the bundle of a task that was active before, or the latest confirmed one before it. The floor
    /// stays.
    ///
    /// # Errors
    /// [`StoreError::NothingBefore`], [`StoreError::NotExpected`], or what stands in the way of writing it down.
    pub fn roll_back(&self, task: &str, expect: Option<Id>) -> Result<Switched, StoreError> {
        self.change(task, expect, |known| {
            let back = known.step_back().ok_or(StoreError::NothingBefore {
                task: known.task.clone(),
            })?;
            self.check_file(back.id)?;
            known.activate(&back);
            Ok(back.id)
        })
    }

    /// Lets `change` change a task, alone, and writes it down where something changed.
    fn change(
        &self,
        task: &str,
        expect: Option<Id>,
        change: impl FnOnce(&mut TaskState) -> Result<Id, StoreError>,
    ) -> Result<Switched, StoreError> {
        self.disk.check()?;
        let _lock = self.disk.prepare()?;
        let mut state = self.state()?;
        let known = state.task_mut(task).ok_or(StoreError::NoTask {
            task: task.to_owned(),
        })?;
        let before = known.clone();
        if let Some(expected) = expect.filter(|&expected| known.active != Some(expected)) {
            return Err(StoreError::NotExpected {
                task: task.to_owned(),
                expected,
                found: known.active,
            });
        }
        let active = change(known)?;
        let trial = known.trial;
        let changed = *known != before;
        if changed {
            self.commit(&mut state)?;
        }
        Ok(Switched {
            task: task.to_owned(),
            active,
            before: before.active,
            trial,
            changed,
        })
    }

    /// Whether the file of a kept bundle is there and says that it is this bundle; all else is verified when it is
    /// loaded.
    fn check_file(&self, id: Id) -> Result<(), StoreError> {
        let path = self.disk.bundle(id);
        let bytes = bundle::read(&path).map_err(LoadError::ReadBundle)?;
        match Frame::parse(&bytes) {
            Ok(frame) if frame.bundle_id() == id => Ok(()),
            _ => Err(StoreError::Replaced { path }),
        }
    }

    /// Takes over the floors of a trust store that is in force now, as an install with it would; whether that changed
    /// anything.
    ///
    /// # Errors
    /// When it is another fleet's or older than one used before, or what stands in the way of writing it down.
    pub fn remember(&self, trust: &Trust) -> Result<bool, StoreError> {
        let trust = trust.store()?;
        self.disk.check()?;
        let _lock = self.disk.prepare()?;
        let state = self.state()?;
        self.check_trust(&state, &trust)?;
        let mut next = state.clone();
        next.rise(&trust);
        let changed = next != state;
        if changed {
            self.commit(&mut next)?;
        }
        Ok(changed)
    }

    /// Refuses a trust store of another fleet, or one older than was used before.
    fn check_trust(&self, state: &State, trust: &TrustStore<'_>) -> Result<(), StoreError> {
        if state.namespace != trust.namespace() {
            return Err(StoreError::OtherNamespace {
                path: self.folder().to_owned(),
                found: state.namespace,
                expected: trust.namespace(),
            });
        }
        if trust.version() < state.trust_version {
            return Err(StoreError::OlderTrust {
                found: trust.version(),
                required: state.trust_version,
            });
        }
        Ok(())
    }
}

/// A task whose bundle was confirmed or changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switched {
    /// The task.
    pub task: String,
    /// The bundle that is active.
    pub active: Id,
    /// The one that was active before.
    pub before: Option<Id>,
    /// Whether the active one waits to be confirmed.
    pub trial: bool,
    /// Whether anything was changed.
    pub changed: bool,
}

impl State {
    /// Sets the floors to those of a trust store that is used: of a later version as it says, for roots have the last
    /// word, and a floor that they set too high by mistake must not stay for ever; of the same version the greater ones.
    /// A later version without a date leaves the time as it is.
    fn rise(&mut self, trust: &TrustStore<'_>) {
        if trust.version() > self.trust_version {
            self.trust_version = trust.version();
            self.min_security = trust.min_security();
            self.time_floor = trust.dated().unwrap_or(self.time_floor);
            return;
        }
        self.min_security = self.min_security.max(trust.min_security());
        self.time_floor = self.time_floor.max(trust.dated().unwrap_or(0));
    }

    /// The time, where it is known: never before the floors. The clock moves no floor.
    ///
    /// The index's date counts until a later trust version is used, so that a timestamp key that was stolen cannot
    /// move time for ever.
    fn now(&self, clock: Option<u64>) -> Option<u64> {
        let floor = (self.time_floor > 0).then_some(self.time_floor);
        let current = |index: &&IndexFloor| index.version.trust_version >= self.trust_version;
        let index = self.index.as_ref().filter(current);
        clock.max(floor).max(index.map(|index| index.dated))
    }
}
