//! What a store remembers: floors, and for each task its releases. Fixed records under a digest; see `STORE.md`.
//!
//! Reading takes any bytes: it neither panics nor allocates more than the largest state needs.

use preface_bundle::{Id, IndexFloor, IndexVersion, Namespace, TASK_BYTES, is_task_id};
use sha2::{Digest, Sha256};

/// Most tasks of a store.
pub const MAX_TASKS: usize = 64;
/// Releases of a task that are kept, the active one among them.
pub const MAX_KEPT: usize = 4;
/// Most bytes of a state file.
pub const MAX_STATE_BYTES: usize = HEADER_BYTES + MAX_TASKS * RECORD_BYTES + DIGEST_BYTES;

const MAGIC: [u8; 16] = *b"preface-state-2\n";
/// The first format, which had no index: it is read, and written no more.
const MAGIC_WITHOUT_INDEX: [u8; 16] = *b"preface-state-1\n";
const HEADER_BYTES: usize = 64 + INDEX_BYTES;
const INDEX_BYTES: usize = 64;
const RELEASE_BYTES: usize = 48;
const RECORD_BYTES: usize = TASK_BYTES + (2 + MAX_KEPT) * RELEASE_BYTES + 8;
const DIGEST_BYTES: usize = 32;
/// In place of a release's number: there is none.
const NONE: u8 = 0xff;

/// A bundle that was installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// Its id.
    pub id: Id,
    /// Trust version that it was released under.
    pub trust_version: u32,
    /// Its sequence.
    pub sequence: u64,
    /// Whether it was confirmed once.
    pub proven: bool,
}

impl Release {
    /// What releases are ordered by.
    pub fn order(&self) -> (u32, u64) {
        (self.trust_version, self.sequence)
    }
}

/// What is remembered of one task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskState {
    /// The task's id.
    pub task: String,
    /// Releases whose bundles are kept, the latest installed first; at most [`MAX_KEPT`].
    pub kept: Vec<Release>,
    /// The release that answers, one of those kept.
    pub active: Option<Id>,
    /// The release to go back to, one of those kept.
    pub previous: Option<Id>,
    /// Whether the active release waits to be confirmed.
    pub trial: bool,
    /// Starts of the active release while it waits.
    pub starts: u8,
    /// The greatest release that was confirmed: nothing before it is installed again.
    pub confirmed: Option<Release>,
    /// The greatest release that was installed.
    pub installed: Option<Release>,
}

impl TaskState {
    /// A task without a release.
    pub fn new(task: &str) -> Self {
        Self {
            task: task.to_owned(),
            kept: Vec::new(),
            active: None,
            previous: None,
            trial: false,
            starts: 0,
            confirmed: None,
            installed: None,
        }
    }

    /// The kept release with this id.
    pub fn release(&self, id: Id) -> Option<&Release> {
        self.kept.iter().find(|release| release.id == id)
    }

    /// A known release of the same trust version and sequence that is another bundle.
    pub fn rival(&self, release: &Release) -> Option<&Release> {
        let known = self.kept.iter().chain(&self.confirmed);
        known
            .chain(&self.installed)
            .find(|known| known.order() == release.order() && known.id != release.id)
    }

    /// Makes `release` the active one, on trial.
    pub fn install(&mut self, release: Release) {
        self.leave();
        let known = self.kept.iter().position(|kept| kept.id == release.id);
        let proven = known.is_some_and(|place| self.kept.remove(place).proven);
        self.kept.insert(0, Release { proven, ..release });
        self.switch(release.id, true);
        let (active, previous) = (self.active, self.previous);
        let is_named = |kept: &Release| Some(kept.id) == active || Some(kept.id) == previous;
        while self.kept.len() > MAX_KEPT {
            let Some(last) = self.kept.iter().rposition(|kept| !is_named(kept)) else {
                break;
            };
            self.kept.remove(last);
        }
        let greatest = self.installed.filter(|old| old.order() >= release.order());
        self.installed = greatest.or(Some(release));
    }

    /// Confirms the active release: the floor rises to it.
    pub fn confirm(&mut self) {
        self.trial = false;
        self.starts = 0;
        let active = self.active;
        let release = self.kept.iter_mut().find(|kept| Some(kept.id) == active);
        let Some(release) = release else { return };
        release.proven = true;
        let release = *release;
        let greatest = self.confirmed.filter(|old| old.order() >= release.order());
        self.confirmed = greatest.or(Some(release));
    }

    /// Makes a kept release the active one; on trial unless it was confirmed once.
    pub fn activate(&mut self, release: &Release) {
        self.leave();
        self.switch(release.id, !release.proven);
    }

    /// Ends a trial that failed: the previous release is active again, or none.
    pub fn revert(&mut self) {
        (self.active, self.previous) = (self.previous, None);
        self.trial = false;
        self.starts = 0;
    }

    /// The release that a step back leads to: the previous one, or the latest confirmed one before the active.
    pub fn step_back(&self) -> Option<Release> {
        let active = self.active.and_then(|id| self.release(id));
        let before = |kept: &&Release| {
            kept.proven && active.is_some_and(|active| kept.order() < active.order())
        };
        let older = self
            .kept
            .iter()
            .filter(before)
            .max_by_key(|kept| kept.order());
        let previous = self.previous.and_then(|id| self.release(id));
        previous.or(older).copied()
    }

    /// Remembers the active release as the previous one, unless it is on trial.
    fn leave(&mut self) {
        if !self.trial {
            self.previous = self.active;
        }
    }

    fn switch(&mut self, to: Id, trial: bool) {
        self.previous = self.previous.filter(|&previous| previous != to);
        self.active = Some(to);
        self.trial = trial;
        self.starts = 0;
    }

    fn is_sound(&self) -> bool {
        let named = |id: Option<Id>| id.is_none_or(|id| self.release(id).is_some());
        let twice = |place: usize, release: &Release| {
            self.kept
                .iter()
                .skip(place + 1)
                .any(|other| other.id == release.id)
        };
        let mut kept = self.kept.iter().enumerate();
        let above = |one: Option<Release>, other: Option<Release>| {
            one.map(|one| one.order()) > other.map(|other| other.order())
        };
        is_task_id(&self.task)
            && self.kept.len() <= MAX_KEPT
            && !kept.any(|(place, release)| twice(place, release))
            && named(self.active)
            && named(self.previous)
            && (self.previous.is_none() || self.previous != self.active)
            && (!self.trial || self.active.is_some())
            && (self.trial || self.starts == 0)
            && !above(self.confirmed, self.installed)
            && !self
                .kept
                .iter()
                .any(|kept| above(Some(*kept), self.installed))
    }

    fn write(&self, bytes: &mut Vec<u8>) {
        let mut name = [0; TASK_BYTES];
        for (to, from) in name.iter_mut().zip(self.task.bytes()) {
            *to = from;
        }
        bytes.extend(name);
        let kept = (0..MAX_KEPT).map(|place| self.kept.get(place).copied());
        for release in [self.confirmed, self.installed].into_iter().chain(kept) {
            write_release(release, bytes);
        }
        let place = |id: Option<Id>| {
            let place = self.kept.iter().position(|kept| Some(kept.id) == id);
            place
                .and_then(|place| u8::try_from(place).ok())
                .unwrap_or(NONE)
        };
        let places = [place(self.active), place(self.previous)];
        bytes.extend(places);
        bytes.extend([u8::from(self.trial), self.starts, 0, 0, 0, 0]);
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let name = reader.array::<TASK_BYTES>()?;
        let length = name.iter().position(|byte| *byte == 0)?;
        let (name, zeros) = name.split_at_checked(length)?;
        let confirmed = reader.release()?;
        let installed = reader.release()?;
        let mut kept = Vec::with_capacity(MAX_KEPT);
        let mut ended = false;
        for _ in 0..MAX_KEPT {
            match reader.release()? {
                Some(release) if !ended => kept.push(release),
                Some(_) => return None,
                None => ended = true,
            }
        }
        let [active, previous, trial, starts] = reader.array()?;
        let named = |place: u8| match place {
            NONE => Some(None),
            place => Some(Some(kept.get(usize::from(place))?.id)),
        };
        let (active, previous) = (named(active)?, named(previous)?);
        let sound = zeros.iter().all(|byte| *byte == 0) && trial <= 1;
        (sound && reader.array()? == [0; 4]).then_some(())?;
        let task = Self {
            task: str::from_utf8(name).ok()?.to_owned(),
            kept,
            active,
            previous,
            trial: trial == 1,
            starts,
            confirmed,
            installed,
        };
        task.is_sound().then_some(task)
    }
}

fn write_release(release: Option<Release>, bytes: &mut Vec<u8>) {
    let Some(release) = release else {
        return bytes.extend([0; RELEASE_BYTES]);
    };
    bytes.extend(release.id.as_bytes());
    bytes.extend(release.trust_version.to_le_bytes());
    bytes.extend([1, u8::from(release.proven), 0, 0]);
    bytes.extend(release.sequence.to_le_bytes());
}

fn write_index(index: Option<&IndexFloor>, bytes: &mut Vec<u8>) {
    let Some(index) = index else {
        return bytes.extend([0; INDEX_BYTES]);
    };
    bytes.extend(index.id.as_bytes());
    bytes.extend(index.version.trust_version.to_le_bytes());
    bytes.extend([1, 0, 0, 0]);
    for number in [index.version.version, index.dated, index.expires] {
        bytes.extend(number.to_le_bytes());
    }
}

/// All that a store remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Grows with every change.
    pub generation: u64,
    /// The fleet that the device belongs to.
    pub namespace: Namespace,
    /// The greatest version of a trust store that was used.
    pub trust_version: u32,
    /// The `min-security` of that trust store.
    pub min_security: u32,
    /// The `dated` of that trust store, or of the last one that had any, unix seconds: it is not earlier now.
    pub time_floor: u64,
    /// The last index of the fleet that was accepted: no older one is.
    pub index: Option<IndexFloor>,
    /// The tasks, in ascending order of their ids; at most [`MAX_TASKS`].
    pub tasks: Vec<TaskState>,
}

impl State {
    /// What a device of this namespace remembers before its first bundle.
    pub fn new(namespace: Namespace) -> Self {
        Self {
            generation: 0,
            namespace,
            trust_version: 0,
            min_security: 0,
            time_floor: 0,
            index: None,
            tasks: Vec::new(),
        }
    }

    /// Reads a state file; `None` for bytes that no store wrote.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > MAX_STATE_BYTES {
            return None;
        }
        let (body, digest) = bytes.split_last_chunk::<DIGEST_BYTES>()?;
        let found: [u8; DIGEST_BYTES] = Sha256::digest(body).into();
        let mut reader = Reader(body);
        let magic = reader.array()?;
        let known = magic == MAGIC || magic == MAGIC_WITHOUT_INDEX;
        (found == *digest && known).then_some(())?;
        let mut state = Self {
            generation: reader.u64()?,
            namespace: Id(reader.array()?),
            trust_version: reader.u32()?,
            min_security: reader.u32()?,
            time_floor: reader.u64()?,
            index: None,
            tasks: Vec::new(),
        };
        let count = u16::from_le_bytes(reader.array()?);
        let zeros = reader.array()? == [0; 6];
        (zeros && usize::from(count) <= MAX_TASKS).then_some(())?;
        if magic == MAGIC {
            state.index = reader.index()?;
        }
        for _ in 0..count {
            let task = TaskState::read(&mut reader)?;
            let last = state.tasks.last();
            last.is_none_or(|last| last.task < task.task)
                .then_some(())?;
            state.tasks.push(task);
        }
        reader.0.is_empty().then_some(state)
    }

    /// The bytes of a state file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(MAX_STATE_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(self.generation.to_le_bytes());
        bytes.extend(self.namespace.as_bytes());
        bytes.extend(self.trust_version.to_le_bytes());
        bytes.extend(self.min_security.to_le_bytes());
        bytes.extend(self.time_floor.to_le_bytes());
        let count = u16::try_from(self.tasks.len()).unwrap_or(u16::MAX);
        bytes.extend(count.to_le_bytes());
        bytes.extend([0; 6]);
        write_index(self.index.as_ref(), &mut bytes);
        self.tasks.iter().for_each(|task| task.write(&mut bytes));
        let digest: [u8; DIGEST_BYTES] = Sha256::digest(&bytes).into();
        bytes.extend(digest);
        bytes
    }

    /// What is remembered of a task.
    pub fn task(&self, task: &str) -> Option<&TaskState> {
        self.tasks.iter().find(|known| known.task == task)
    }

    /// The same, to change it.
    pub fn task_mut(&mut self, task: &str) -> Option<&mut TaskState> {
        self.tasks.iter_mut().find(|known| known.task == task)
    }

    /// What is remembered of a task, which is added where it is new; `None` where there is no room for it.
    pub fn task_or_new(&mut self, task: &str) -> Option<&mut TaskState> {
        let place = self.tasks.partition_point(|known| *known.task < *task);
        let known = self
            .tasks
            .get(place)
            .is_some_and(|known| known.task == task);
        if !known {
            (self.tasks.len() < MAX_TASKS).then_some(())?;
            self.tasks.insert(place, TaskState::new(task));
        }
        self.tasks.get_mut(place)
    }

    /// Whether a task keeps the bundle with this id.
    pub fn keeps(&self, id: Id) -> bool {
        self.tasks.iter().any(|task| task.release(id).is_some())
    }
}

/// The unread rest of a state file.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk()?;
        self.0 = tail;
        Some(*head)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// An index, or the zeros in place of one.
    fn index(&mut self) -> Option<Option<IndexFloor>> {
        let id = Id(self.array()?);
        let trust_version = self.u32()?;
        let there = self.array::<4>()?;
        let (version, dated, expires) = (self.u64()?, self.u64()?, self.u64()?);
        let index = IndexFloor {
            id,
            version: IndexVersion {
                trust_version,
                version,
            },
            dated,
            expires,
        };
        match there {
            [1, 0, 0, 0] => Some(Some(index)),
            [0, 0, 0, 0] => {
                let empty = id == Id([0; 32]) && trust_version == 0;
                (empty && [version, dated, expires] == [0; 3]).then_some(None)
            }
            _ => None,
        }
    }

    /// A release, or the zeros in place of one.
    fn release(&mut self) -> Option<Option<Release>> {
        let id = Id(self.array()?);
        let trust_version = self.u32()?;
        let [there, proven, zeros @ ..] = self.array::<4>()?;
        let sequence = self.u64()?;
        match (there, proven, zeros) {
            (0, 0, [0, 0]) => {
                let empty = id == Id([0; 32]) && (trust_version, sequence) == (0, 0);
                empty.then_some(None)
            }
            (1, 0 | 1, [0, 0]) => Some(Some(Release {
                id,
                trust_version,
                sequence,
                proven: proven == 1,
            })),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
