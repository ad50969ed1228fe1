//! Taking a bundle in: verified, tried on this device, written down, and only then active.

use std::path::Path;

use preface_bundle::{
    ALGORITHM_ED25519, ENTRY_BYTES, Floor, Frame, Id, Policy, SIGNATURE_MAGIC, TrustStore,
    VerifiedBundle,
};

use super::{Release, State, Store, StoreError, TaskState, index, probe};
use crate::{Image, LoadError, Options, Session, TokenizerUse, Trust, bundle, load::Candidate};

/// When an installed bundle is confirmed, which raises the rollback floor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Confirm {
    /// As soon as its probes are answered as its maker says.
    #[default]
    AfterProbes,
    /// With [`Store::confirm`]. Until then it is on trial: after [`MAX_STARTS`](super::MAX_STARTS) starts the bundle
    /// before it is active again.
    ByHand,
}

/// What happens to a state that cannot be believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Provision {
    /// The store is refused.
    #[default]
    Keep,
    /// Everything is forgotten, floors too.
    Anew,
}

/// What to install, and how.
#[derive(Clone, Copy, Debug)]
pub struct Install<'a> {
    /// The bundle.
    pub file: &'a Path,
    /// Whose signatures count.
    pub trust: &'a Trust,
    /// The fleet's index, which must name the bundle; `None` where none is asked.
    pub index: Option<&'a Path>,
    /// The clock, unix seconds; `None` where there is none.
    pub now: Option<u64>,
    /// When it is confirmed.
    pub confirm: Confirm,
    /// What happens to a state that cannot be believed.
    pub provision: Provision,
}

impl<'a> Install<'a> {
    /// Installs `file`, confirmed after its probes, into a store that can be believed.
    pub fn new(file: &'a Path, trust: &'a Trust, now: Option<u64>) -> Self {
        Self {
            file,
            trust,
            index: None,
            now,
            confirm: Confirm::default(),
            provision: Provision::default(),
        }
    }
}

/// What was installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// The task.
    pub task: String,
    /// The bundle, which is active now.
    pub release: Release,
    /// The one that was active before.
    pub before: Option<Id>,
    /// Whether it waits to be confirmed.
    pub trial: bool,
    /// Probes that it answered as its maker says; none of a bundle that was active and confirmed before.
    pub probes: usize,
    /// Whether anything was changed; not where it was active before.
    pub changed: bool,
}

impl Store {
    /// Installs a bundle: reads it once, verifies it, lets it answer its probes on `image`, writes it beside the others
    /// and makes it the active one of its task.
    ///
    /// # Errors
    /// When the bundle is refused or fails on a probe, the state cannot be believed, or something cannot be written:
    /// what was active before is active afterwards.
    pub fn install(&self, image: &Image, request: &Install<'_>) -> Result<Installed, StoreError> {
        let bytes = bundle::read(request.file).map_err(LoadError::ReadBundle)?;
        let text = request.index.map(index::read).transpose()?;
        let trust = request.trust.store()?;
        let _lock = self.disk.prepare()?;
        let state = self.provisioned(&trust, request.provision)?;
        self.check_trust(&state, &trust)?;
        let mut next = state.clone();
        next.rise(&trust);
        let newest = request.index.zip(text.as_deref());
        let newest = newest.map(|(path, text)| next.accept(path, text, &trust, request.now));
        let newest = newest.transpose()?;
        let base = image.description();
        let policy = |task: &str| Policy {
            now: next.now(request.now),
            floor: state.task(task).and_then(floor),
            ..Policy::for_base(base.base_id, base.tokenizer_id)
        };
        let path = request.file;
        let file = Candidate {
            path,
            bytes: &bytes,
        };
        file.verified(request.trust, policy, |bundle, _| {
            check_security(bundle, &next, path)?;
            newest.map_or(Ok(()), |index| index::check_newest(bundle, &index))?;
            let stored = with_signers_alone(&bytes, bundle);
            self.take_in(image, request, (bundle, &stored), &state, next.clone())
        })?
    }

    /// The state, or that of a new device.
    fn provisioned(
        &self,
        trust: &TrustStore<'_>,
        provision: Provision,
    ) -> Result<State, StoreError> {
        let mut new = State::new(trust.namespace());
        if provision == Provision::Anew {
            let known = self.believed().ok().flatten();
            let generation = known.map_or(0, |known| known.generation);
            new.generation = self.count()?.unwrap_or(0).max(generation);
            return Ok(new);
        }
        Ok(self.believed()?.unwrap_or(new))
    }

    /// Tries a verified bundle out, then writes it and what `state` becomes: `next`, which also names the bundle.
    fn take_in(
        &self,
        image: &Image,
        request: &Install<'_>,
        (bundle, stored): (&VerifiedBundle<'_>, &[u8]),
        state: &State,
        mut next: State,
    ) -> Result<Installed, StoreError> {
        let release = release_of(bundle);
        let known = next.task_or_new(bundle.manifest().task);
        let known = known.ok_or(StoreError::Full)?;
        check_rival(known, &release)?;
        let before = known.active;
        let is_active = before == Some(release.id);
        let waits = is_active && known.trial && request.confirm == Confirm::AfterProbes;
        let mut probes = 0;
        if waits || !is_active {
            probes = try_out(image, request, bundle)?;
            if !is_active {
                known.install(release);
            }
            if request.confirm == Confirm::AfterProbes {
                known.confirm();
            }
        }
        let trial = known.trial;
        let changed = self.write(state, next, release.id, stored, request.provision)?;
        Ok(Installed {
            task: bundle.manifest().task.to_owned(),
            release,
            before,
            trial,
            probes,
            changed,
        })
    }

    /// Writes a bundle where it is not there as it should be, then the state, and removes what it no longer keeps.
    fn write(
        &self,
        state: &State,
        mut next: State,
        id: Id,
        stored: &[u8],
        provision: Provision,
    ) -> Result<bool, StoreError> {
        let path = self.disk.bundle(id);
        let there = bundle::read(&path).is_ok_and(|found| found == stored);
        let anew = provision == Provision::Anew;
        if there && *state == next && !anew {
            return Ok(false);
        }
        // Bundles without a state are a state that was lost.
        if state.generation == 0 || anew {
            let mut first = State {
                tasks: Vec::new(),
                ..next.clone()
            };
            self.commit(&mut first)?;
            next.generation = first.generation;
        }
        let written = match there {
            true => Ok(()),
            false => self.disk.put_bundle(id, stored),
        };
        let written = written.and_then(|()| self.commit(&mut next));
        // After a failure the old state, as far as the system lets it be put back.
        if let Ok(Some(found)) = self.believed() {
            self.disk.sweep(&found);
        }
        written.map(|()| true)
    }
}

/// The greatest bundle that was confirmed, and must not be gone back behind.
fn floor(known: &TaskState) -> Option<Floor> {
    known.confirmed.map(|confirmed| Floor {
        trust_version: confirmed.trust_version,
        sequence: confirmed.sequence,
        bundle_id: confirmed.id,
    })
}

fn release_of(bundle: &VerifiedBundle<'_>) -> Release {
    let manifest = bundle.manifest();
    Release {
        id: bundle.bundle_id(),
        trust_version: manifest.trust_version,
        sequence: manifest.sequence,
        proven: false,
    }
}

fn check_rival(known: &TaskState, release: &Release) -> Result<(), StoreError> {
    known.rival(release).map_or(Ok(()), |rival| {
        Err(StoreError::Rival {
            task: known.task.clone(),
            trust_version: release.trust_version,
            sequence: release.sequence,
            known: rival.id,
        })
    })
}

/// Refuses a bundle below the security version that the latest trust store here demanded.
pub(super) fn check_security(
    bundle: &VerifiedBundle<'_>,
    state: &State,
    path: &Path,
) -> Result<(), LoadError> {
    let (found, required) = (bundle.manifest().security_version, state.min_security);
    match found < required {
        false => Ok(()),
        true => Err(LoadError::NotVerified {
            path: path.to_owned(),
            source: preface_bundle::Error::InsecureVersion {
                bundle: found,
                required,
            },
        }),
    }
}

/// Loads the bundle into a session of its own and lets it answer its probes.
fn try_out(
    image: &Image,
    request: &Install<'_>,
    bundle: &VerifiedBundle<'_>,
) -> Result<usize, StoreError> {
    let does_not_fit = |source| LoadError::DoesNotFit {
        path: request.file.to_owned(),
        source,
    };
    let options = Options {
        tokenizer: TokenizerUse::WithFirstText,
        ..Options::default()
    };
    let mut session = Session::open(image, options).map_err(does_not_fit)?;
    let handle = session.load(bundle).map_err(does_not_fit)?;
    probe::try_out(&mut session, handle, bundle)
}

/// The file without the signature entries of keys that do not vouch for it: nobody has looked at those.
fn with_signers_alone(file: &[u8], bundle: &VerifiedBundle<'_>) -> Vec<u8> {
    let Ok(frame) = Frame::parse(file) else {
        return file.to_vec();
    };
    let signers: Vec<_> = bundle.signers().map(|key| key.id).collect();
    let count = frame.signatures().count();
    let block = SIGNATURE_MAGIC.len() + 4 + count * ENTRY_BYTES;
    let body = file.len().saturating_sub(block);
    let mut kept = file.get(..body).unwrap_or_default().to_vec();
    let entries = || {
        frame
            .signatures()
            .filter(|entry| signers.contains(&entry.key_id))
    };
    let number = |value: usize| u16::try_from(value).unwrap_or(0).to_le_bytes();
    kept.extend(SIGNATURE_MAGIC);
    kept.extend(number(entries().count()));
    kept.extend(number(ENTRY_BYTES));
    for entry in entries() {
        kept.extend(ALGORITHM_ED25519.to_le_bytes());
        kept.extend([0; 6]);
        kept.extend(entry.key_id.as_bytes());
        kept.extend(entry.signature);
    }
    kept
}
