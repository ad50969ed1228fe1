//! The store's files: each is written beside its place, flushed and renamed, one process at a time.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use preface_bundle::Id;
use rustix::fs::{FlockOperation, OFlags, flock};

use super::{
    StoreError,
    state::{MAX_STATE_BYTES, State},
};
use crate::bundle::{ReadError, open_folder, read_file};

const COPIES: [&str; 2] = ["state.0", "state.1"];
const BUNDLES: &str = "bundles";
const LOCK: &str = "lock";
const EXTENSION: &str = "preface";
/// What the name of a file that is being written ends with.
const TEMPORARY: &str = ".tmp";

/// A store's folder.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    folder: PathBuf,
}

/// Held while the store is changed; others wait.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// What the state files hold.
#[derive(Debug)]
pub(super) enum Found {
    /// Nothing was ever installed.
    Nothing,
    /// A state that can be believed.
    State(State),
    /// There was a state, and no copy of it can be believed.
    Damaged,
}

/// Which file is at a path, and when it was last changed: its content, its name or its mode.
pub(super) type FileStamp = Option<(u64, i64, i64)>;

/// The stamp of a file; none where there is no file.
pub(super) fn stamp_of(path: &Path) -> FileStamp {
    let found = fs::symlink_metadata(path).ok()?;
    Some((found.ino(), found.ctime(), found.ctime_nsec()))
}

impl Disk {
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the bundle with this id is.
    pub fn bundle(&self, id: Id) -> PathBuf {
        self.bundles().join(format!("{id}.{EXTENSION}"))
    }

    fn bundles(&self) -> PathBuf {
        self.folder.join(BUNDLES)
    }

    /// Makes the folder where it is not there, and waits until no other process changes it. What one that was killed
    /// left half written is removed.
    pub fn prepare(&self) -> Result<Lock, StoreError> {
        for folder in [self.folder.clone(), self.bundles()] {
            make_folder(&folder)?;
        }
        self.check()?;
        let path = self.folder.join(LOCK);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)
            .map_err(failed("open", &path))?;
        // Who may open it can keep others waiting.
        set_mode(&file, 0o600).map_err(failed("open", &path))?;
        flock(&file, FlockOperation::LockExclusive)
            .map_err(|error| failed("lock", &path)(error.into()))?;
        self.remove_temporary();
        Ok(Lock { _file: file })
    }

    /// Refuses folders that others could have changed.
    ///
    /// # Errors
    /// [`StoreError::NoStore`] where there is none.
    pub fn check(&self) -> Result<(), StoreError> {
        for folder in [self.folder.clone(), self.bundles()] {
            let found = match folder == self.folder {
                true => fs::metadata(&folder),
                false => fs::symlink_metadata(&folder),
            };
            let found = found.map_err(|source| match source.kind() {
                ErrorKind::NotFound => StoreError::NoStore {
                    path: self.folder.clone(),
                },
                _ => failed("read", &folder)(source),
            })?;
            let (mode, owner) = (found.mode() & 0o7777, found.uid());
            let path = folder;
            if !found.is_dir() {
                let expected = "a folder";
                return Err(StoreError::Misplaced { path, expected });
            }
            if mode & 0o022 != 0 {
                return Err(StoreError::WritableByOthers { path, mode });
            }
            if owner != 0 && owner != rustix::process::geteuid().as_raw() {
                return Err(StoreError::OtherOwner { path, owner });
            }
        }
        // Whoever can move the folder away brings back a device that remembers no floors.
        let open = open_folder(&self.folder).map_err(failed("read", &self.folder))?;
        open.map_or(Ok(()), |(path, mode)| {
            Err(StoreError::WritableByOthers { path, mode })
        })
    }

    /// Reads both copies of the state; the later one counts.
    pub fn state(&self) -> Result<Found, StoreError> {
        let (mut best, mut some, mut failure) = (None::<State>, false, None);
        for path in self.copies() {
            match read_file(&path, MAX_STATE_BYTES) {
                Ok(bytes) => {
                    some = true;
                    let later = |state: &State| {
                        let best = best.as_ref().map(|best| best.generation);
                        best.is_none_or(|best| best < state.generation)
                    };
                    best = State::parse(&bytes).filter(later).or(best);
                }
                Err(ReadError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
                Err(ReadError::Io { source, .. }) => failure = Some(failed("read", &path)(source)),
                Err(_) => some = true,
            }
        }
        match (best, failure) {
            (Some(state), _) => Ok(Found::State(state)),
            (None, Some(failure)) => Err(failure),
            (None, None) if some || self.has_bundles()? => Ok(Found::Damaged),
            (None, None) => Ok(Found::Nothing),
        }
    }

    /// What tells whether the state may have changed.
    pub fn stamp(&self) -> [FileStamp; 2] {
        self.copies().map(|path| stamp_of(&path))
    }

    /// Writes both copies of the state: all of it, or when something fails what was there before.
    pub fn commit(
        &self,
        state: &State,
        then: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let bytes = state.to_bytes();
        let copies = self.copies();
        let before = copies
            .each_ref()
            .map(|path| read_file(path, MAX_STATE_BYTES).ok());
        let staged = copies
            .iter()
            .map(|path| stage(path, &bytes).map_err(failed("write", path)));
        // Both are on disk before the first takes its place.
        let staged = staged.collect::<Result<Vec<_>, _>>()?;
        let placed = staged.into_iter().zip(&copies);
        let mut placed = placed.map(|(one, path)| one.place().map_err(failed("write", path)));
        let placed = placed.try_fold((), |(), placed| placed);
        if let Err(error) = placed.and_then(|()| then()) {
            // As far as the system still lets it.
            for (path, before) in copies.iter().zip(before) {
                let _ = match before {
                    Some(bytes) => stage(path, &bytes).and_then(Staged::place),
                    None => fs::remove_file(path),
                };
            }
            return Err(error);
        }
        Ok(())
    }

    /// Writes a bundle into its place.
    pub fn put_bundle(&self, id: Id, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.bundle(id);
        let placed = stage(&path, bytes).and_then(Staged::place);
        placed.map_err(failed("write", &path))
    }

    /// Removes the bundles that `state` does not keep. What cannot be removed is removed another time.
    pub fn sweep(&self, state: &State) {
        for (path, name) in files_of(&self.bundles()).into_iter().flatten() {
            let id = name
                .strip_suffix(EXTENSION)
                .and_then(|stem| stem.strip_suffix('.'));
            let kept = id.and_then(Id::from_hex).is_some_and(|id| state.keeps(id));
            if id.is_some() && !kept {
                let _ = fs::remove_file(path);
            }
        }
    }

    fn copies(&self) -> [PathBuf; 2] {
        COPIES.map(|name| self.folder.join(name))
    }

    fn has_bundles(&self) -> Result<bool, StoreError> {
        let bundles = self.bundles();
        let mut files = files_of(&bundles).map_err(failed("read", &bundles))?;
        Ok(files.any(|(_, name)| name.ends_with(EXTENSION)))
    }

    fn remove_temporary(&self) {
        for folder in [self.folder.clone(), self.bundles()] {
            for (path, name) in files_of(&folder).into_iter().flatten() {
                if name.ends_with(TEMPORARY) {
                    let _ = fs::remove_file(path);
                }
            }
        }
    }
}

fn files_of(folder: &Path) -> io::Result<impl Iterator<Item = (PathBuf, String)>> {
    let entries = fs::read_dir(folder)?.flatten();
    Ok(entries.map(|entry| {
        (
            entry.path(),
            entry.file_name().to_string_lossy().into_owned(),
        )
    }))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io {
        action,
        path,
        source,
    }
}

/// Makes a folder of mode 755, whatever the process masks, where nothing of the name is.
fn make_folder(path: &Path) -> Result<(), StoreError> {
    let made = DirBuilder::new().mode(0o755).create(path);
    match made {
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(0o755))
            .and_then(|()| sync_folder_of(path))
            .map_err(failed("make", path)),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(failed("make", path)(error)),
    }
}

fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(mode))
}

/// A file beside its place, on disk in full; removed unless it is placed.
#[derive(Debug)]
struct Staged {
    temporary: PathBuf,
    path: PathBuf,
}

fn stage(path: &Path, bytes: &[u8]) -> io::Result<Staged> {
    let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
    let name = format!(".{}{TEMPORARY}", name.to_string_lossy());
    let temporary = path.with_file_name(name);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    let staged = Staged {
        temporary,
        path: path.to_owned(),
    };
    file.write_all(bytes)?;
    set_mode(&file, 0o644)?;
    file.sync_all()?;
    Ok(staged)
}

impl Staged {
    fn place(self) -> io::Result<()> {
        fs::rename(&self.temporary, &self.path)?;
        sync_folder_of(&self.path)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Not there once it was placed.
        let _ = fs::remove_file(&self.temporary);
    }
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}
