//! Signatures on bundles: what is signed, and how they are added.

use std::collections::{BTreeMap, BTreeSet};

use base64ct::{Base64, Encoding};
use preface_bundle::{
    ALGORITHM_ED25519, CONTEXT, ENTRY_BYTES, Frame, HEADER_BYTES, Id, KeyId, MAX_SIGNATURES,
    Manifest, Policy, PublicKey, SIGNATURE_MAGIC, TrustStore,
};

use crate::{Error, SecretKey, encode::decode};

/// A bundle to which signatures are added. As [`crate::pack_unsigned`] leaves it, it has none, and no device reads it.
#[derive(Clone, Debug)]
pub struct Signing {
    /// Signed prefix and payload, and the signature of nobody, which makes a frame of them.
    framed: Vec<u8>,
    prefix_bytes: usize,
    unsigned_bytes: usize,
    entries: BTreeMap<KeyId, [u8; 64]>,
}

impl Signing {
    /// Takes a bundle apart, with or without signatures.
    ///
    /// # Errors
    /// [`Error::Bundle`].
    pub fn read(file: &[u8]) -> Result<Self, Error> {
        if is_unsigned(file) {
            return Self::of_unsigned(file).map_err(refused);
        }
        let frame = Frame::parse(file).map_err(refused)?;
        let stored_bytes = frame.unverified_manifest().map_err(refused)?.stored_bytes;
        let unsigned_bytes = frame.signed_prefix().len() + stored_bytes;
        let signatures = frame.signatures();
        let entries = signatures.map(|entry| (entry.key_id, *entry.signature));
        Ok(Self {
            entries: entries.collect(),
            ..Self::of_unsigned(file.get(..unsigned_bytes).unwrap_or_default()).map_err(refused)?
        })
    }

    /// Takes signed prefix and payload.
    pub(crate) fn of_unsigned(unsigned: &[u8]) -> Result<Self, preface_bundle::Error> {
        let nobody = BTreeMap::from([(Id([0; 16]), [0; 64])]);
        let framed = [unsigned, &block(&nobody)].concat();
        let frame = Frame::parse(&framed)?;
        frame.unverified_manifest()?;
        Ok(Self {
            prefix_bytes: frame.signed_prefix().len(),
            unsigned_bytes: unsigned.len(),
            entries: BTreeMap::new(),
            framed,
        })
    }

    /// The bytes to sign, exactly.
    pub fn statement(&self) -> &[u8] {
        &self.framed[..self.prefix_bytes]
    }

    /// The bundle's id, which no signature changes.
    pub fn bundle_id(&self) -> Id {
        Id::of(self.statement())
    }

    /// Ids of the keys that the signatures name, ascending.
    pub fn key_ids(&self) -> impl Iterator<Item = KeyId> {
        self.entries.keys().copied()
    }

    /// What the statement says; nobody vouches for it.
    ///
    /// # Errors
    /// [`Error::Bundle`] never, once [`Signing::read`] has read it.
    pub fn manifest(&self) -> Result<Manifest<'_>, Error> {
        Frame::parse(&self.framed)
            .and_then(|frame| frame.unverified_manifest())
            .map_err(refused)
    }

    /// Adds the signatures of these keys; one that is there already is made again.
    ///
    /// # Errors
    /// [`Error::Signature`] for a fault of the machine, [`Error::Option`] where a key is there twice or there is no room
    /// for one more.
    pub fn sign(&mut self, keys: &[SecretKey]) -> Result<(), Error> {
        let mut signed = BTreeSet::new();
        for key in keys {
            let id = key.public().id();
            if !signed.insert(id) {
                return Err(Error::Option {
                    option: "--key",
                    problem: "the same key is there twice".into(),
                });
            }
            let signature = key.sign(self.statement())?;
            self.add(id, signature)?;
        }
        Ok(())
    }

    /// Adds a signature made elsewhere, if a key of the trust store made it of this statement, and may.
    ///
    /// # Errors
    /// [`Error::ForeignSignature`], [`Error::Bundle`] for a revoked key or one out of its scope.
    pub fn attach(
        &mut self,
        signature: &[u8; 64],
        store: &TrustStore<'_>,
    ) -> Result<PublicKey, Error> {
        let key = store
            .keys()
            .find(|trusted| trusted.key.has_signed(self.statement(), signature))
            .ok_or(Error::ForeignSignature)?;
        if store.revoked_keys().any(|revoked| revoked == key.id) {
            return Err(refused(preface_bundle::Error::RevokedKey { key: key.id }));
        }
        if !key.may_sign(self.manifest()?.task) {
            let (valid, threshold) = (0, store.threshold());
            return Err(refused(preface_bundle::Error::OutsideScope {
                valid,
                threshold,
            }));
        }
        self.add(key.id, *signature)?;
        Ok(key.key)
    }

    fn add(&mut self, key: KeyId, signature: [u8; 64]) -> Result<(), Error> {
        self.entries.insert(key, signature);
        if self.entries.len() > MAX_SIGNATURES {
            return Err(Error::Option {
                option: "signatures",
                problem: format!("a bundle has at most {MAX_SIGNATURES}"),
            });
        }
        Ok(())
    }

    /// The file: without a signature block where there is no signature.
    pub fn to_bytes(&self) -> Vec<u8> {
        let block = match self.entries.is_empty() {
            true => Vec::new(),
            false => block(&self.entries),
        };
        [&self.framed[..self.unsigned_bytes], &block].concat()
    }

    /// Verifies the file as a device would that trusts these keys and demands them all, but for base and
    /// tokenizer.
    ///
    /// # Errors
    /// [`Error::Bundle`].
    pub fn verify(&self, namespace: &str, keys: &[PublicKey]) -> Result<(), Error> {
        verify(&self.to_bytes(), namespace, keys, &Policy::unbound())
            .map(|_| ())
            .map_err(refused)
    }
}

fn refused(source: preface_bundle::Error) -> Error {
    Error::Bundle { source }
}

/// Whether a file is a bundle's signed prefix and payload, and ends there.
fn is_unsigned(file: &[u8]) -> bool {
    let number = |at: usize| {
        let bytes = file.get(at..)?.first_chunk()?;
        usize::try_from(u32::from_le_bytes(*bytes)).ok()
    };
    let lengths = number(36).zip(number(40));
    let end = lengths
        .and_then(|(manifest, payload)| HEADER_BYTES.checked_add(manifest)?.checked_add(payload));
    file.starts_with(&CONTEXT) && end == Some(file.len())
}

/// A signature block.
fn block(entries: &BTreeMap<KeyId, [u8; 64]>) -> Vec<u8> {
    let mut block = SIGNATURE_MAGIC.to_vec();
    for number in [entries.len(), ENTRY_BYTES] {
        block.extend(u16::try_from(number).unwrap_or(u16::MAX).to_le_bytes());
    }
    for (key, signature) in entries {
        block.extend(ALGORITHM_ED25519.to_le_bytes());
        block.extend([0; 6]);
        block.extend(key.0);
        block.extend(signature);
    }
    block
}

/// Verifies a bundle as a device would that trusts these keys and demands them all; its id and decoded payload.
pub(crate) fn verify(
    file: &[u8],
    namespace: &str,
    keys: &[PublicKey],
    policy: &Policy,
) -> Result<(Id, Vec<u8>), preface_bundle::Error> {
    let frame = Frame::parse(file)?;
    let lines: String = keys.iter().map(|key| format!("key {key}\n")).collect();
    let trust = format!(
        "preface-trust v1\nnamespace {namespace}\nversion {}\nthreshold {}\n{lines}",
        frame.unverified_manifest()?.trust_version.max(1),
        keys.len(),
    );
    let store = TrustStore::parse(&trust)?;
    let admitted = frame.authenticate(&store)?.admit(policy)?;
    let decoded = decode(&admitted)?;
    let bundle_id = admitted.open(&decoded)?.bundle_id();
    Ok((bundle_id, decoded))
}

/// A signature as a line of base64, as [`preface_bundle::read_signature`] reads it.
pub fn signature_text(signature: &[u8; 64]) -> String {
    Base64::encode_string(signature) + "\n"
}
