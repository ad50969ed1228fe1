//! Writing the fleet's index.

use std::{collections::BTreeMap, fmt::Write};

use preface_bundle::{
    Id, Index, IndexError, IndexVersion, KeyId, KeyRole, PublicKey, TrustStore, UtcTime,
    VerifiedIndex,
};

use crate::{Error, SecretKey};

/// A bundle that is the newest of its task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Newest {
    /// Its trust version.
    pub trust_version: u32,
    /// Its sequence.
    pub sequence: u64,
    /// Its id.
    pub bundle_id: Id,
}

/// An index that is being made.
#[derive(Clone, Debug)]
pub struct IndexDraft {
    /// Name of the fleet.
    pub namespace: String,
    /// Its version.
    pub version: IndexVersion,
    /// When it is made, unix seconds.
    pub dated: u64,
    /// Last second of validity, unix seconds.
    pub expires: u64,
    /// The newest bundle of each task.
    pub tasks: BTreeMap<String, Newest>,
}

impl IndexDraft {
    /// Takes over the tasks of an index.
    pub fn take_over(&mut self, index: &VerifiedIndex<'_>) {
        self.tasks = index
            .tasks()
            .map(|entry| {
                let newest = Newest {
                    trust_version: entry.trust_version,
                    sequence: entry.sequence,
                    bundle_id: entry.bundle_id,
                };
                (entry.task.to_owned(), newest)
            })
            .collect();
    }

    /// Names the newest bundle of a task.
    ///
    /// # Errors
    /// [`Error::Option`] where the task has a newer one, or another with the same numbers.
    pub fn name(&mut self, task: &str, newest: Newest) -> Result<(), Error> {
        let order = |one: &Newest| (one.trust_version, one.sequence);
        let known = self.tasks.get(task).filter(|known| {
            order(known) > order(&newest)
                || (order(known) == order(&newest) && known.bundle_id != newest.bundle_id)
        });
        if let Some(known) = known {
            let problem = format!(
                "task {task} already has bundle {} with trust version {}, sequence {}, and {} is not newer",
                known.bundle_id, known.trust_version, known.sequence, newest.bundle_id
            );
            let option = "the bundles";
            return Err(Error::Option { option, problem });
        }
        self.tasks.insert(task.to_owned(), newest);
        Ok(())
    }

    /// The index without signatures, which no device accepts.
    ///
    /// # Errors
    /// [`Error::Index`] where it is not within the format's rules.
    pub fn to_text(&self) -> Result<String, Error> {
        let mut text = format!(
            "preface-index v1\nnamespace {}\ntrust-version {}\nversion {}\ndated {}\nexpires {}\n",
            self.namespace,
            self.version.trust_version,
            self.version.version,
            UtcTime(self.dated),
            UtcTime(self.expires),
        );
        for (task, newest) in &self.tasks {
            let (trust_version, sequence) = (newest.trust_version, newest.sequence);
            let _ = writeln!(
                text,
                "task {task} {trust_version} {sequence} {}",
                newest.bundle_id
            );
        }
        Index::parse(&text).map_err(refused)?;
        Ok(text)
    }
}

/// The index with this key's signature, in place of one that it has of the same key.
///
/// # Errors
/// [`Error::Index`] where the index is not one or has no room for one more; [`Error::Signature`] for a fault of the
/// machine.
pub fn sign_index(text: &str, key: &SecretKey) -> Result<String, Error> {
    let index = Index::parse(text).map_err(refused)?;
    let signature = key.sign(index.statement().as_bytes())?;
    with_signature(&index, key.public().id(), signature)
}

/// The index with a signature that was made elsewhere, and the timestamp key of `store` that made it of this index's
/// statement.
///
/// # Errors
/// [`Error::ForeignIndexSignature`]; [`Error::Index`] for a revoked key, for an index that is not one, and where it has
/// no room for one more.
pub fn attach_to_index(
    text: &str,
    signature: &[u8; 64],
    store: &TrustStore<'_>,
) -> Result<(String, PublicKey), Error> {
    let index = Index::parse(text).map_err(refused)?;
    let statement = index.statement();
    let key = store
        .keys_for(KeyRole::Timestamp)
        .find(|trusted| trusted.key.has_signed(statement.as_bytes(), signature))
        .ok_or(Error::ForeignIndexSignature)?;
    if store.revoked_keys().any(|revoked| revoked == key.id) {
        let revoked = IndexError::RevokedKey { key: key.id };
        return Err(refused(revoked.into()));
    }
    Ok((with_signature(&index, key.id, *signature)?, key.key))
}

fn with_signature(index: &Index<'_>, key: KeyId, signature: [u8; 64]) -> Result<String, Error> {
    let mut signatures: BTreeMap<_, _> = index.signatures().collect();
    signatures.insert(key, signature);
    let lines = signatures
        .into_iter()
        .map(|(key, signature)| format!("signature {key} {}\n", Id(signature)));
    let signed: String = [index.body().to_owned()].into_iter().chain(lines).collect();
    Index::parse(&signed).map_err(refused)?;
    Ok(signed)
}

fn refused(source: preface_bundle::Error) -> Error {
    Error::Index { source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newest(sequence: u64, id: u8) -> Newest {
        Newest {
            trust_version: 1,
            sequence,
            bundle_id: Id([id; 32]),
        }
    }

    fn draft() -> IndexDraft {
        IndexDraft {
            namespace: "default".into(),
            version: IndexVersion {
                trust_version: 1,
                version: 4,
            },
            dated: 1_795_392_000,
            expires: 1_796_601_600,
            tasks: BTreeMap::new(),
        }
    }

    #[test]
    fn an_index_is_written_signed_and_verified() {
        let mut draft = draft();
        for (task, sequence) in [("mood", 1), ("intent", 3)] {
            draft.name(task, newest(sequence, 7)).expect("the first");
        }
        let [clock, release] = [[3; 32], [1; 32]].map(|seed| SecretKey::from_seed(&seed));
        let trust = format!(
            "preface-trust v1\nnamespace default\nversion 1\nthreshold 1\nkey {}\ntimestamp {}\n",
            release.public(),
            clock.public()
        );
        let store = TrustStore::parse(&trust).expect("valid");
        let text = draft.to_text().expect("within the rules");
        let verify = |text: &str| {
            Index::parse(text)
                .expect("an index")
                .verify(&store, None, None)
                .map(|_| ())
        };
        assert!(verify(&text).is_err(), "nobody signed it");
        let by_release = sign_index(&text, &release).expect("signed");
        assert!(verify(&by_release).is_err(), "a release key signs no index");
        let text = sign_index(&by_release, &clock).expect("signed");
        assert_eq!(verify(&text), Ok(()));
        assert_eq!(
            sign_index(&text, &clock).expect("signed"),
            text,
            "once is enough"
        );
        let mut next = super::tests::draft();
        next.take_over(&Index::parse(&text).expect("an index").unverified());
        assert_eq!(next.tasks, draft.tasks);
    }

    #[test]
    fn a_revoked_timestamp_key_and_one_that_is_none_sign_nothing_elsewhere() {
        let mut draft = draft();
        draft.name("intent", newest(3, 7)).expect("the first");
        let text = draft.to_text().expect("within the rules");
        let statement = Index::parse(&text).expect("an index").statement();
        let [clock, release] = [[3; 32], [1; 32]].map(|seed| SecretKey::from_seed(&seed));
        let [by_clock, by_release] =
            [&clock, &release].map(|key| key.sign(statement.as_bytes()).expect("signed"));
        let trust = format!(
            "preface-trust v1\nnamespace default\nversion 1\nthreshold 1\nkey {}\ntimestamp {}\n",
            release.public(),
            clock.public()
        );
        let store = TrustStore::parse(&trust).expect("valid");
        let attached = attach_to_index(&text, &by_clock, &store).expect("a timestamp key's");
        let here = sign_index(&text, &clock).expect("signed");
        assert_eq!(attached, (here, clock.public()));
        let refused = attach_to_index(&text, &by_release, &store);
        assert!(matches!(refused, Err(Error::ForeignIndexSignature)));
        let trust = format!("{trust}revoke-key {}\n", clock.public().id());
        let store = TrustStore::parse(&trust).expect("valid");
        let refused = attach_to_index(&text, &by_clock, &store).map_err(|error| error.exit_code());
        assert_eq!(refused, Err(17));
    }

    #[test]
    fn a_task_does_not_go_back() {
        let mut draft = draft();
        draft.name("intent", newest(3, 7)).expect("the first");
        assert!(draft.name("intent", newest(2, 8)).is_err(), "older");
        assert!(
            draft.name("intent", newest(3, 8)).is_err(),
            "another with the same numbers"
        );
        draft.name("intent", newest(3, 7)).expect("the same");
        draft.name("intent", newest(4, 8)).expect("newer");
        assert_eq!(draft.tasks["intent"], newest(4, 8));
        draft.expires = 0;
        assert!(draft.to_text().is_err());
    }
}
