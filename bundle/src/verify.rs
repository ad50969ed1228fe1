//! The order of trust, as types: each step takes what the step before it vouches for.

use core::ptr;

use sha2::{Digest, Sha256};

use crate::{
    MAX_SIGNATURES, RUNTIME_LEVEL,
    codec::{Codec, check_zstd_frame, unshuffle},
    error::Error,
    frame::Frame,
    id::{Id, KeyId, Namespace},
    manifest::Manifest,
    tensor::Role,
    trust::{TrustStore, TrustedKey},
    values::Tensor,
};

/// Whether a bundle must have been made for a certain base or tokenizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// Made for this one, or refused.
    Required(Id),
    /// Not compared: enough to look at a bundle, never enough to run it.
    Unchecked,
}

/// What is installed already, and must not be gone back behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Floor {
    /// Trust version of the installed bundle.
    pub trust_version: u32,
    /// Its sequence.
    pub sequence: u64,
    /// Its id: the same bundle again is no step back.
    pub bundle_id: Id,
}

/// Whether a bundle past its last day is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expiry {
    /// It is: what a device demands of a bundle that it takes in.
    #[default]
    Refused,
    /// It is not: what was taken in while it was valid goes on serving, as a device without
    /// supplies has nothing better.
    Passed,
}

/// What a device demands of a bundle beyond its signatures.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// A namespace to demand besides the trust store's, which is always demanded.
    pub namespace: Option<Namespace>,
    /// The base model.
    pub base: Binding,
    /// The tokenizer.
    pub tokenizer: Binding,
    /// The installed bundle of the same task.
    pub floor: Option<Floor>,
    /// The time, unix seconds; the trust store's date is used where it is later.
    pub now: Option<u64>,
    /// What happens past the bundle's last day.
    pub expiry: Expiry,
    /// Feature level of the runtime.
    pub runtime_level: u32,
}

impl Policy {
    /// What running a bundle takes: made for this base and this tokenizer.
    pub fn for_base(base: Id, tokenizer: Id) -> Self {
        Self {
            base: Binding::Required(base),
            tokenizer: Binding::Required(tokenizer),
            ..Self::unbound()
        }
    }

    /// What looking at a bundle takes: base and tokenizer are not compared.
    pub fn unbound() -> Self {
        Self {
            namespace: None,
            base: Binding::Unchecked,
            tokenizer: Binding::Unchecked,
            floor: None,
            now: None,
            expiry: Expiry::Refused,
            runtime_level: RUNTIME_LEVEL,
        }
    }
}

/// Keys of the trust store whose signatures hold.
type Signers<'a> = [Option<&'a TrustedKey<'a>>; MAX_SIGNATURES];

impl<'a> Frame<'a> {
    /// Checks the signatures, then reads the manifest, then checks that enough of the signers may
    /// sign for its task.
    ///
    /// Every signature that names a key of the store must hold. Signatures of unknown keys are
    /// passed over, so that a bundle signed with an old and a new key works on both sides of a
    /// change of keys; revoked keys do not count.
    ///
    /// # Errors
    /// [`Error::BadSignature`], [`Error::WrongKeyId`], [`Error::Untrusted`], [`Error::RevokedKey`],
    /// [`Error::OutsideScope`], or what is wrong with the manifest.
    pub fn authenticate(self, store: &'a TrustStore<'a>) -> Result<Authenticated<'a>, Error> {
        let signers = self.signers(store)?;
        let manifest = self.unverified_manifest()?;
        let (valid, threshold) = (count(&signers, manifest.task), store.threshold());
        if valid < threshold {
            return Err(Error::OutsideScope { valid, threshold });
        }
        Ok(Authenticated {
            frame: self,
            manifest,
            store,
            signers,
        })
    }

    fn signers(&self, store: &'a TrustStore<'a>) -> Result<Signers<'a>, Error> {
        let mut signers: Signers<'a> = [None; MAX_SIGNATURES];
        let mut revoked = None;
        for (entry, slot) in self.signatures().zip(&mut signers) {
            let known = store.key(entry.key_id);
            if known
                .is_some_and(|known| !known.key.has_signed(self.signed_prefix(), entry.signature))
            {
                return Err(Error::BadSignature { key: entry.key_id });
            }
            if store.revoked_keys().any(|key| key == entry.key_id) {
                revoked = Some(entry.key_id);
            } else {
                *slot = known;
            }
        }
        let valid = signers.iter().flatten().count();
        if valid < store.threshold() {
            return Err(self.missed(store, &signers, revoked));
        }
        Ok(signers)
    }

    /// Why the threshold was missed.
    fn missed(
        &self,
        store: &TrustStore<'_>,
        signers: &Signers<'_>,
        revoked: Option<KeyId>,
    ) -> Error {
        if let Some(key) = revoked {
            return Error::RevokedKey { key };
        }
        let unknown = || {
            self.signatures()
                .filter(|entry| store.key(entry.key_id).is_none())
        };
        let signed = |key: &&TrustedKey<'_>| {
            unknown().any(|entry| key.key.has_signed(self.signed_prefix(), entry.signature))
        };
        let counted = |id| signers.iter().flatten().any(|signer| signer.id == id);
        if let Some(key) = store.keys().find(|key| !counted(key.id) && signed(key)) {
            return Error::WrongKeyId { key: key.id };
        }
        let named = unknown().next().or_else(|| self.signatures().next());
        let key = named.map_or(Id([0; 16]), |entry| entry.key_id);
        Error::Untrusted {
            valid: signers.iter().flatten().count(),
            threshold: store.threshold(),
            key,
        }
    }
}

fn count(signers: &Signers<'_>, task: &str) -> usize {
    signers
        .iter()
        .flatten()
        .filter(|key| key.may_sign(task))
        .count()
}

/// A bundle that enough trusted keys signed. Whether it belongs here is not known yet.
#[derive(Clone, Copy, Debug)]
pub struct Authenticated<'a> {
    frame: Frame<'a>,
    manifest: Manifest<'a>,
    store: &'a TrustStore<'a>,
    signers: Signers<'a>,
}

impl<'a> Authenticated<'a> {
    /// The bundle's task, to find the installed bundle that [`Policy::floor`] asks for.
    pub fn task(&self) -> &'a str {
        self.manifest.task
    }

    /// The bundle's id.
    pub fn bundle_id(&self) -> Id {
        self.frame.bundle_id()
    }

    /// Checks that the bundle belongs here: namespace, base, tokenizer, revocation, rollback,
    /// expiry, runtime level, and last the digest of the payload.
    ///
    /// # Errors
    /// The first check that fails, in that order.
    pub fn admit(self, policy: &Policy) -> Result<Admitted<'a>, Error> {
        self.check_namespace(policy)?;
        self.check_binding(policy)?;
        let bundle = self.bundle_id();
        if self
            .store
            .revoked_bundles()
            .any(|revoked| revoked == bundle)
        {
            return Err(Error::RevokedBundle { bundle });
        }
        self.check_rollback(policy, bundle)?;
        self.check_expiry(policy)?;
        let (required, found) = (self.manifest.min_runtime, policy.runtime_level);
        if required > found {
            return Err(Error::RuntimeTooOld { required, found });
        }
        if sha256(self.frame.payload()) != self.manifest.payload_sha256 {
            return Err(Error::PayloadDigest);
        }
        let bound = [policy.base, policy.tokenizer]
            .iter()
            .all(|one| *one != Binding::Unchecked);
        Ok(Admitted {
            authenticated: self,
            bound,
        })
    }

    fn check_namespace(&self, policy: &Policy) -> Result<(), Error> {
        let bundle = self.manifest.namespace;
        for expected in [Some(self.store.namespace()), policy.namespace]
            .into_iter()
            .flatten()
        {
            if bundle != expected {
                return Err(Error::OtherNamespace { bundle, expected });
            }
        }
        Ok(())
    }

    fn check_binding(&self, policy: &Policy) -> Result<(), Error> {
        let Manifest {
            base_id,
            tokenizer_id,
            ..
        } = self.manifest;
        match policy.base {
            Binding::Required(expected) if expected != base_id => {
                return Err(Error::OtherBase {
                    bundle: base_id,
                    expected,
                });
            }
            _ => {}
        }
        match policy.tokenizer {
            Binding::Required(expected) if expected != tokenizer_id => Err(Error::OtherTokenizer {
                bundle: tokenizer_id,
                expected,
            }),
            _ => Ok(()),
        }
    }

    fn check_rollback(&self, policy: &Policy, bundle_id: Id) -> Result<(), Error> {
        let Manifest {
            trust_version,
            security_version,
            sequence,
            ..
        } = self.manifest;
        if trust_version > self.store.version() {
            return Err(Error::TrustStoreTooOld {
                bundle: trust_version,
                store: self.store.version(),
            });
        }
        if security_version < self.store.min_security() {
            let required = self.store.min_security();
            return Err(Error::InsecureVersion {
                bundle: security_version,
                required,
            });
        }
        let Some(floor) = policy.floor.filter(|floor| floor.bundle_id != bundle_id) else {
            return Ok(());
        };
        if (trust_version, sequence) <= (floor.trust_version, floor.sequence) {
            return Err(Error::Rollback {
                trust_version,
                sequence,
                floor_trust_version: floor.trust_version,
                floor_sequence: floor.sequence,
            });
        }
        Ok(())
    }

    /// The time is the later of clock and trust store's date: a clock that was set back does not
    /// bring an expired bundle back.
    fn check_expiry(&self, policy: &Policy) -> Result<(), Error> {
        let not_after = self.manifest.not_after;
        match policy.now.max(self.store.dated()) {
            Some(now) if not_after != 0 && now > not_after && policy.expiry == Expiry::Refused => {
                Err(Error::Expired { not_after, now })
            }
            _ => Ok(()),
        }
    }
}

/// A bundle that is trusted and belongs here. Its payload is the signed one and may be decoded.
#[derive(Clone, Copy, Debug)]
pub struct Admitted<'a> {
    authenticated: Authenticated<'a>,
    bound: bool,
}

impl<'a> Admitted<'a> {
    /// The payload as stored.
    pub fn stored_payload(&self) -> &'a [u8] {
        self.authenticated.frame.payload()
    }

    /// How the payload is stored.
    pub fn codec(&self) -> Codec {
        self.authenticated.manifest.codec
    }

    /// Bytes of the payload once decoded.
    pub fn decoded_bytes(&self) -> usize {
        self.authenticated.manifest.decoded_bytes
    }

    /// Checks the rules of a compressed payload before a decoder sees it; see
    /// [`check_zstd_frame`]. A payload stored as it is has none.
    ///
    /// # Errors
    /// [`Error::Compressed`].
    pub fn check_compressed(&self) -> Result<(), Error> {
        match self.codec() {
            Codec::Stored => Ok(()),
            Codec::Zstd | Codec::ShuffledZstd => {
                check_zstd_frame(self.stored_payload(), self.decoded_bytes())
            }
        }
    }

    /// Undoes the shuffle of [`Codec::ShuffledZstd`] after decompression.
    ///
    /// # Errors
    /// [`Error::BufferLength`] unless both buffers have [`Admitted::decoded_bytes`] bytes.
    pub fn unshuffle(&self, from: &[u8], to: &mut [u8]) -> Result<(), Error> {
        unshuffle(self.authenticated.manifest.tensors, from, to)
    }

    /// Takes the decoded payload and checks its digest, then every value in it.
    ///
    /// # Errors
    /// [`Error::Compressed`] for another length, [`Error::TensorDigest`], [`Error::Value`].
    pub fn open(self, decoded: &'a [u8]) -> Result<VerifiedBundle<'a>, Error> {
        let Self {
            authenticated,
            bound,
        } = self;
        if decoded.len() != authenticated.manifest.decoded_bytes {
            return Err(Error::Compressed {
                rule: "it decodes to another length than the manifest's",
            });
        }
        // The stored payload itself was digested by `admit`.
        let is_stored = ptr::eq(decoded, authenticated.frame.payload());
        let digest = match is_stored {
            true => authenticated.manifest.payload_sha256,
            false => sha256(decoded),
        };
        if digest != authenticated.manifest.tensor_sha256 {
            return Err(Error::TensorDigest);
        }
        let bundle = VerifiedBundle {
            authenticated,
            bound,
            decoded,
        };
        bundle
            .tensors()
            .try_for_each(|tensor| tensor.check_values())?;
        Ok(bundle)
    }
}

/// A bundle that passed every check: the only one whose content may be used.
#[derive(Clone, Copy, Debug)]
pub struct VerifiedBundle<'a> {
    authenticated: Authenticated<'a>,
    bound: bool,
    decoded: &'a [u8],
}

impl<'a> VerifiedBundle<'a> {
    /// What the bundle says about itself, and its signers vouch for.
    pub fn manifest(&self) -> &Manifest<'a> {
        &self.authenticated.manifest
    }

    /// The bundle's id.
    pub fn bundle_id(&self) -> Id {
        self.authenticated.frame.bundle_id()
    }

    /// Whether base and tokenizer were compared. A runtime must not run a bundle without it.
    pub fn is_bound(&self) -> bool {
        self.bound
    }

    /// The keys that vouch for the bundle.
    pub fn signers(&self) -> impl Iterator<Item = &'a TrustedKey<'a>> + use<'a> {
        let task = self.authenticated.manifest.task;
        self.authenticated
            .signers
            .into_iter()
            .flatten()
            .filter(move |key| key.may_sign(task))
    }

    /// The tensors, in the order of their bytes.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor<'a>> + use<'a> {
        let decoded = self.decoded;
        let table = self.authenticated.manifest.tensors;
        table
            .iter()
            .filter_map(move |spec| Tensor::new(spec, decoded))
    }

    /// The tensors of one role.
    pub fn tensors_of(&self, role: Role) -> impl Iterator<Item = Tensor<'a>> + use<'a> {
        self.tensors()
            .filter(move |tensor| tensor.spec().role == role)
    }

    /// The first tensor of one role; of most roles the only one.
    pub fn tensor(&self, role: Role) -> Option<Tensor<'a>> {
        self.tensors_of(role).next()
    }
}

fn sha256(bytes: &[u8]) -> Id {
    Id(Sha256::digest(bytes).into())
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{vec, vec::Vec};

    use super::*;
    use crate::testing::{Sample, public_key, trust_text, zstd_raw_frame};

    fn verify(file: &[u8], trust: &str, policy: &Policy) -> Result<Id, Error> {
        let store = TrustStore::parse(trust)?;
        let admitted = Frame::parse(file)?.authenticate(&store)?.admit(policy)?;
        admitted.check_compressed()?;
        admitted
            .open(admitted.stored_payload())
            .map(|bundle| bundle.bundle_id())
    }

    fn policy() -> Policy {
        Policy::for_base(Id([0xb; 32]), Id([0xc; 32]))
    }

    fn trust() -> std::string::String {
        trust_text(&[1], 1, "")
    }

    fn with(change: impl FnOnce(&mut Sample)) -> Sample {
        let mut sample = Sample::default();
        change(&mut sample);
        sample
    }

    #[test]
    fn an_intact_bundle_is_opened_and_its_tensors_are_read() {
        let file = Sample::default().file();
        let text = trust();
        let store = TrustStore::parse(&text).expect("a valid store");
        let frame = Frame::parse(&file).expect("a frame");
        let admitted = frame
            .authenticate(&store)
            .and_then(|one| one.admit(&policy()));
        let admitted = admitted.expect("signed and made for this base");
        let bundle = admitted.open(admitted.stored_payload()).expect("intact");
        assert!(bundle.is_bound());
        assert_eq!(bundle.bundle_id(), frame.bundle_id());
        assert_eq!(
            bundle.signers().map(|key| key.id).collect::<Vec<_>>(),
            [public_key([1; 32]).id()]
        );
        let weight = bundle.tensor(Role::HeadWeight).expect("a head");
        let mut values = vec![0.0; 12];
        weight.dequantise(&mut values).expect("12 values");
        assert_eq!(values[..5], [1.0, 2.0, 3.0, 4.0, 0.0]);
        assert!(weight.dequantise(&mut values[..11]).is_err());
        let loose = frame
            .authenticate(&store)
            .and_then(|one| one.admit(&Policy::unbound()));
        let loose = loose
            .and_then(|one| one.open(one.stored_payload()))
            .expect("intact");
        assert!(!loose.is_bound());
    }

    #[test]
    fn every_flipped_bit_every_cut_and_every_byte_more_is_refused() {
        let good = Sample::default().file();
        assert!(verify(&good, &trust(), &policy()).is_ok());
        for bit in 0..8 * good.len() {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let code = verify(&bad, &trust(), &policy()).map_err(|error| error.exit_code());
            assert!(matches!(code, Err(10 | 12 | 13)), "bit {bit}: {code:?}");
        }
        for cut in 0..good.len() {
            let error = verify(&good[..cut], &trust(), &policy());
            assert!(
                matches!(error, Err(Error::Truncated { .. })),
                "cut at {cut}: {error:?}"
            );
        }
        for byte in 0..=255 {
            let error = verify(&[good.as_slice(), &[byte]].concat(), &trust(), &policy());
            assert!(matches!(error, Err(Error::TrailingBytes { .. })));
        }
    }

    #[test]
    fn each_refusal_has_its_error() {
        let flip = |at: usize| {
            let mut file = Sample::default().file();
            file[at] ^= 1;
            file
        };
        let end = Sample::default().file().len();
        let payload_at = Sample::default().prefix().len();
        let cases: [(&str, Vec<u8>, u8, &str); 15] = [
            ("manifest changed", flip(64 + 16), 12, "bad-signature"),
            ("signature changed", flip(end - 1), 12, "bad-signature"),
            ("key id changed", flip(end - 80), 12, "bad-signature"),
            ("payload changed", flip(payload_at), 13, "payload-changed"),
            (
                "unknown key",
                with(|s| s.seeds = vec![[9; 32]]).file(),
                11,
                "unknown-key",
            ),
            (
                "other namespace",
                with(|s| s.namespace = Namespace::of_name("x")).file(),
                14,
                "other-namespace",
            ),
            (
                "other base",
                with(|s| s.base_id.0[31] ^= 1).file(),
                14,
                "other-base",
            ),
            (
                "other tokenizer",
                with(|s| s.tokenizer_id.0[0] ^= 1).file(),
                14,
                "other-tokenizer",
            ),
            (
                "newer runtime",
                with(|s| s.min_runtime = RUNTIME_LEVEL + 1).file(),
                14,
                "runtime-too-old",
            ),
            (
                "newer trust",
                with(|s| s.trust_version = 3).file(),
                11,
                "trust-store-too-old",
            ),
            (
                "malformed manifest",
                with(|s| s.codec = 9).file(),
                10,
                "malformed",
            ),
            (
                "nan",
                with(|s| s.decoded[..4].fill(0xff)).file(),
                10,
                "malformed-payload",
            ),
            (
                "zero scale",
                with(|s| s.decoded[32..34].fill(0)).file(),
                10,
                "malformed-payload",
            ),
            (
                "signature of the payload",
                {
                    let sample = Sample::default();
                    sample.file_signing(&sample.decoded)
                },
                12,
                "bad-signature",
            ),
            (
                "signature of the digest",
                {
                    let sample = Sample::default();
                    sample.file_signing(&Id::of(&sample.prefix()).0)
                },
                12,
                "bad-signature",
            ),
        ];
        for (name, file, code, reason) in cases {
            let error = verify(&file, &trust(), &policy()).expect_err(name);
            assert_eq!(
                (error.exit_code(), error.reason()),
                (code, reason),
                "{name}: {error}"
            );
        }
    }

    #[test]
    fn trust_store_decides() {
        let two = with(|s| s.seeds = vec![[1; 32], [2; 32]]).file();
        let one = Sample::default().file();
        let id = Frame::parse(&one).expect("a frame").bundle_id();
        let revoke = |seed| std::format!("revoke-key {}\n", public_key([seed; 32]).id());
        let scoped = |tasks| {
            trust_text(
                &[],
                1,
                &std::format!("key {} tasks={tasks}\n", public_key([1; 32])),
            )
        };
        let cases = [
            ("both of two", &two, trust_text(&[1, 2], 2, ""), Ok(())),
            ("one of two", &one, trust_text(&[1, 2], 2, ""), Err(11)),
            (
                "unknown key beside a known one",
                &two,
                trust_text(&[1], 1, ""),
                Ok(()),
            ),
            ("revoked", &one, trust_text(&[1], 1, &revoke(1)), Err(17)),
            (
                "revoked without its key line",
                &one,
                trust_text(&[2], 1, &revoke(1)),
                Err(17),
            ),
            (
                "revoked beside a good one",
                &two,
                trust_text(&[1, 2], 1, &revoke(2)),
                Ok(()),
            ),
            (
                "revoked of two needed",
                &two,
                trust_text(&[1, 2], 2, &revoke(2)),
                Err(17),
            ),
            (
                "bundle revoked",
                &one,
                trust_text(&[1], 1, &std::format!("revoke-bundle {id}\n")),
                Err(17),
            ),
            ("task in scope", &one, scoped("acme.*,intent"), Ok(())),
            ("task out of scope", &one, scoped("acme.*"), Err(11)),
            (
                "security floor",
                &one,
                trust_text(&[1], 1, "min-security 1\n"),
                Err(15),
            ),
            ("invalid store", &one, trust_text(&[1], 0, ""), Err(18)),
            ("no key", &one, trust_text(&[], 1, ""), Err(18)),
        ];
        for (name, file, trust, expected) in cases {
            let found = verify(file, &trust, &policy()).map(|_| ());
            assert_eq!(
                found.map_err(|error| error.exit_code()),
                expected,
                "{name}: {found:?}"
            );
        }
    }

    #[test]
    fn a_bad_signature_of_a_known_key_outweighs_a_good_one() {
        let good = with(|s| s.seeds = vec![[1; 32], [2; 32]]).file();
        for entry in [1, 2] {
            let mut bad = good.clone();
            let at = bad.len() - 88 * entry + 87;
            bad[at] ^= 0x10;
            let error = verify(&bad, &trust_text(&[1, 2], 1, ""), &policy());
            assert!(matches!(error, Err(Error::BadSignature { .. })));
        }
    }

    #[test]
    fn one_key_under_two_ids_counts_once() {
        let good = with(|s| s.seeds = vec![[1; 32]]).file();
        let at = good.len() - 88;
        let mut forged = good[at..].to_vec();
        forged[8..24].fill(0xff);
        let mut file = [&good[..], &forged].concat();
        file[at - 4] = 2;
        assert_eq!(
            verify(&file, &trust_text(&[1, 2], 2, ""), &policy())
                .map_err(|error| error.exit_code()),
            Err(11)
        );
        assert!(verify(&file, &trust_text(&[1], 1, ""), &policy()).is_ok());
    }

    #[test]
    fn what_is_older_than_the_floor_is_refused() {
        let floor = |trust_version, sequence| {
            Some(Floor {
                trust_version,
                sequence,
                bundle_id: Id([0; 32]),
            })
        };
        let sample = with(|s| (s.trust_version, s.sequence) = (1, 5));
        let id = Frame::parse(&sample.file()).expect("a frame").bundle_id();
        let cases = [
            ("nothing installed", None, Ok(())),
            ("older installed", floor(1, 4), Ok(())),
            ("same numbers, other bundle", floor(1, 5), Err(15)),
            ("newer installed", floor(1, 6), Err(15)),
            ("newer trust installed", floor(2, 0), Err(15)),
            ("older trust, highest sequence", floor(0, u64::MAX), Ok(())),
            (
                "itself",
                Some(Floor {
                    trust_version: 1,
                    sequence: 5,
                    bundle_id: id,
                }),
                Ok(()),
            ),
        ];
        for (name, floor, expected) in cases {
            let found = verify(&sample.file(), &trust(), &Policy { floor, ..policy() });
            assert_eq!(
                found.map(|_| ()).map_err(|error| error.exit_code()),
                expected,
                "{name}"
            );
        }
    }

    #[test]
    fn time_is_the_later_of_clock_and_store() {
        let file = with(|s| s.not_after = 1000).file();
        let dated = "dated 1970-01-01T01:00:00Z\n";
        let cases = [
            ("no clock", None, "", Ok(())),
            ("last second", Some(1000), "", Ok(())),
            ("one later", Some(1001), "", Err(16)),
            ("clock set back", Some(0), dated, Err(16)),
            ("store alone", None, dated, Err(16)),
        ];
        for (name, now, lines, expected) in cases {
            let found = verify(
                &file,
                &trust_text(&[1], 1, lines),
                &Policy { now, ..policy() },
            );
            assert_eq!(
                found.map(|_| ()).map_err(|error| error.exit_code()),
                expected,
                "{name}"
            );
        }
        let forever = Policy {
            now: Some(u64::MAX),
            ..policy()
        };
        assert!(verify(&Sample::default().file(), &trust(), &forever).is_ok());
        let serving = Policy {
            now: Some(1001),
            expiry: Expiry::Passed,
            ..policy()
        };
        assert!(verify(&file, &trust(), &serving).is_ok());
    }

    #[test]
    fn a_demanded_namespace_comes_on_top_of_the_stores() {
        let file = Sample::default().file();
        let demand = |name| Policy {
            namespace: Some(Namespace::of_name(name)),
            ..policy()
        };
        assert!(verify(&file, &trust(), &demand("default")).is_ok());
        assert!(verify(&file, &trust(), &demand("acme")).is_err());
    }

    #[test]
    fn decoded_bytes_other_than_the_signed_ones_are_refused() {
        let decoded = Sample::default().decoded;
        let stored = zstd_raw_frame(&[0; 300]);
        let file = with(|s| (s.codec, s.stored) = (1, Some(stored))).file();
        let text = trust();
        let store = TrustStore::parse(&text).expect("a valid store");
        let frame = Frame::parse(&file).expect("a frame");
        let admitted = frame
            .authenticate(&store)
            .and_then(|one| one.admit(&policy()));
        let admitted = admitted.expect("signed and made for this base");
        assert!(
            matches!(admitted.check_compressed(), Err(Error::Compressed { .. })),
            "other size"
        );
        assert!(
            admitted.open(&decoded).is_ok(),
            "the digest is of what is decoded"
        );
        let mut other = decoded.clone();
        other[0] ^= 1;
        assert_eq!(admitted.open(&other).map(|_| ()), Err(Error::TensorDigest));
        let short = admitted.open(&decoded[1..]).map(|_| ());
        assert!(matches!(short, Err(Error::Compressed { .. })));
    }
}
