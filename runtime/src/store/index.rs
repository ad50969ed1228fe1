//! The fleet's index against what is installed: is this device held back?

use std::path::Path;

use preface_bundle::{
    Id, Index, IndexEntry, IndexFloor, MAX_INDEX_BYTES, TrustStore, VerifiedBundle, VerifiedIndex,
};

use super::{Release, State, Store, StoreError};
use crate::{Trust, bundle::read_text};

/// How the active bundle of a task stands to the newest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is the newest.
    Newest,
    /// A newer one is out.
    Behind,
    /// It is newer than the index says.
    Ahead,
    /// It is another bundle with the numbers of the newest.
    Rival,
    /// The index does not name the task.
    Unlisted,
}

/// A task of the store and the newest bundle that the index names for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskStanding {
    /// The task.
    pub task: String,
    /// Its active bundle.
    pub active: Release,
    /// Id, trust version and sequence of its newest bundle.
    pub newest: Option<(Id, u32, u64)>,
    /// How the two stand to each other.
    pub standing: Standing,
}

/// An index that was accepted, and how the tasks of the store stand to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The index.
    pub index: IndexFloor,
    /// Every task with an active bundle, in ascending order.
    pub tasks: Vec<TaskStanding>,
    /// Whether it is another index than the last one.
    pub changed: bool,
}

impl Checked {
    /// The tasks that are not at their newest bundle: older, or another with the same numbers.
    pub fn behind(&self) -> impl Iterator<Item = &TaskStanding> {
        let behind =
            |task: &&TaskStanding| matches!(task.standing, Standing::Behind | Standing::Rival);
        self.tasks.iter().filter(behind)
    }
}

impl Store {
    /// Takes in an index of the fleet: verifies it, and remembers it so that no older one is accepted again. Then
    /// compares every task with it.
    ///
    /// # Errors
    /// When the index is refused: not signed by a timestamp key, older than one that was accepted, or expired; or when
    /// something cannot be read or written.
    pub fn check_index(
        &self,
        file: &Path,
        trust: &Trust,
        now: Option<u64>,
    ) -> Result<Checked, StoreError> {
        let text = read(file)?;
        let trust = trust.store()?;
        self.disk.check()?;
        let _lock = self.disk.prepare()?;
        let state = self.state()?;
        self.check_trust(&state, &trust)?;
        let mut next = state.clone();
        next.rise(&trust);
        let index = next.accept(file, &text, &trust, now)?;
        let changed = next.index != state.index;
        if next != state {
            self.commit(&mut next)?;
        }
        Ok(Checked {
            index: index.floor(),
            tasks: standings(&next, &index),
            changed,
        })
    }

    /// The last index that was accepted, if it has not expired: a device that is cut off from newer ones notices.
    ///
    /// # Errors
    /// [`StoreError::NoNewIndex`] once it has expired, [`StoreError::NoIndex`] where there was none.
    pub fn last_index(&self, now: Option<u64>) -> Result<IndexFloor, StoreError> {
        let state = self.state()?;
        let index = state.index.ok_or_else(|| StoreError::NoIndex {
            path: self.folder().to_owned(),
        })?;
        match state.now(now) {
            Some(now) if now > index.expires => Err(StoreError::NoNewIndex {
                expires: index.expires,
                now,
            }),
            _ => Ok(index),
        }
    }
}

impl State {
    /// Verifies an index against what is remembered, and remembers it.
    pub(super) fn accept<'a>(
        &mut self,
        path: &Path,
        text: &'a str,
        trust: &TrustStore<'_>,
        clock: Option<u64>,
    ) -> Result<VerifiedIndex<'a>, StoreError> {
        let verified = Index::parse(text)
            .and_then(|index| index.verify(trust, self.index.as_ref(), self.now(clock)));
        let index = verified.map_err(|source| StoreError::Index {
            path: path.to_owned(),
            source,
        })?;
        self.index = Some(index.floor());
        Ok(index)
    }
}

/// Reads an index.
pub(super) fn read(path: &Path) -> Result<String, StoreError> {
    read_text(path, MAX_INDEX_BYTES).map_err(StoreError::ReadIndex)
}

/// Refuses a bundle that is not the one that the index names.
pub(super) fn check_newest(
    bundle: &VerifiedBundle<'_>,
    index: &VerifiedIndex<'_>,
) -> Result<(), StoreError> {
    let task = bundle.manifest().task;
    let found = bundle.bundle_id();
    match index.task(task) {
        Some(newest) if newest.bundle_id == found => Ok(()),
        Some(newest) => Err(StoreError::NotNewest {
            task: task.to_owned(),
            found,
            newest: newest.bundle_id,
        }),
        None => Err(StoreError::NotInIndex {
            task: task.to_owned(),
        }),
    }
}

fn standings(state: &State, index: &VerifiedIndex<'_>) -> Vec<TaskStanding> {
    let tasks = state.tasks.iter().filter_map(|known| {
        let active = *known.active.and_then(|id| known.release(id))?;
        let newest = index.task(&known.task);
        Some(TaskStanding {
            task: known.task.clone(),
            standing: newest.map_or(Standing::Unlisted, |newest| standing(&active, &newest)),
            active,
            newest: newest.map(|one| (one.bundle_id, one.trust_version, one.sequence)),
        })
    });
    tasks.collect()
}

fn standing(active: &Release, newest: &IndexEntry<'_>) -> Standing {
    match active.order().cmp(&newest.order()) {
        _ if active.id == newest.bundle_id => Standing::Newest,
        std::cmp::Ordering::Less => Standing::Behind,
        std::cmp::Ordering::Equal => Standing::Rival,
        std::cmp::Ordering::Greater => Standing::Ahead,
    }
}
