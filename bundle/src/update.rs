//! Signed updates: which trust store may take the place of another.

use core::fmt::{self, Write};

use crate::{
    error::{Error, Stores},
    frame::CONTEXT,
    id::Id,
    trust::{TrustStore, TrustedKey},
};

/// The first 32 bytes of what roots sign: magic, purpose and version, as in [`CONTEXT`], so that no signature of a
/// trust store is one of a bundle, and none of a bundle is one of a trust store.
pub const TRUST_CONTEXT: [u8; 32] = *b"\x89PRF\r\n\x1a\nsoft-prompt-trust--v001\n";

// The two differ in what they are for, and in nothing before it.
const _: () = assert!(CONTEXT.len() == TRUST_CONTEXT.len());

/// Most bytes of a statement: the context, and lines of at most 58, 40 and 72 bytes.
const MOST_BYTES: usize = 208;

/// What the roots sign to put a trust store in force: [`TRUST_CONTEXT`], then its namespace, version and SHA-256 as
/// lines of text.
#[derive(Clone, Debug)]
pub struct TrustStatement {
    bytes: [u8; MOST_BYTES],
    length: usize,
}

impl TrustStatement {
    /// The statement of a store.
    pub fn of(store: &TrustStore<'_>) -> Self {
        let digest = Id::of(store.text().as_bytes());
        Self::lines(
            &TRUST_CONTEXT,
            store.namespace_name(),
            &store.version(),
            digest,
        )
    }

    /// The statement of something with a namespace, a version and a digest, for one purpose.
    pub(crate) fn lines(
        context: &[u8; 32],
        namespace: &str,
        version: &dyn fmt::Display,
        digest: Id,
    ) -> Self {
        let mut statement = Self {
            bytes: [0; MOST_BYTES],
            length: 0,
        };
        statement.push(context);
        // A namespace has at most 47 bytes, so all of it fits.
        let _ = write!(
            statement,
            "namespace {namespace}\nversion {version}\nsha256 {digest}\n"
        );
        statement
    }

    /// The bytes to sign, exactly.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    fn push(&mut self, more: &[u8]) -> Option<()> {
        let end = self.length.checked_add(more.len())?;
        self.bytes.get_mut(self.length..end)?.copy_from_slice(more);
        self.length = end;
        Some(())
    }
}

impl Write for TrustStatement {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes()).ok_or(fmt::Error)
    }
}

impl TrustStore<'_> {
    /// Checks that `next` may take the place of this store: enough roots of both signed its [`TrustStatement`], it is
    /// for the same namespace, and its version is the next one. What else it changes is up to the roots.
    ///
    /// # Errors
    /// [`Error::NoRoots`], [`Error::UpdateSignature`], [`Error::UpdateUntrusted`], [`Error::OtherNamespace`],
    /// [`Error::UpdateVersion`].
    pub fn admit_update(
        &self,
        next: &TrustStore<'_>,
        signatures: &[[u8; 64]],
    ) -> Result<(), Error> {
        for (store, which) in [(self, Stores::Present), (next, Stores::Next)] {
            if store.root_threshold() == 0 {
                return Err(Error::NoRoots { which });
            }
        }
        let statement = TrustStatement::of(next);
        let signed = |root: &TrustedKey<'_>, signature: &[u8; 64]| {
            root.key.has_signed(statement.as_bytes(), signature)
        };
        let holds = |signature| {
            let mut roots = self.active_roots().chain(next.active_roots());
            roots.any(|root| signed(root, signature))
        };
        if let Some(index) = signatures.iter().position(|signature| !holds(signature)) {
            return Err(Error::UpdateSignature { index });
        }
        for (store, which) in [(self, Stores::Present), (next, Stores::Next)] {
            let roots = store.active_roots();
            let valid = roots
                .filter(|root| signatures.iter().any(|one| signed(root, one)))
                .count();
            let threshold = store.root_threshold();
            if valid < threshold {
                return Err(Error::UpdateUntrusted {
                    which,
                    valid,
                    threshold,
                });
            }
        }
        self.check_succession(next)
    }

    fn check_succession(&self, next: &TrustStore<'_>) -> Result<(), Error> {
        let (bundle, expected) = (next.namespace(), self.namespace());
        if bundle != expected {
            return Err(Error::OtherNamespace { bundle, expected });
        }
        let (present, next) = (self.version(), next.version());
        match present.checked_add(1) == Some(next) {
            true => Ok(()),
            false => Err(Error::UpdateVersion { present, next }),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{
        format,
        string::{String, ToString},
        vec::Vec,
    };

    use ed25519_dalek::{Signer, SigningKey};

    use super::*;
    use crate::testing::{Sample, public_key};

    fn store(version: u32, roots: &[u8], threshold: usize, more: &str) -> String {
        let roots: String = roots
            .iter()
            .map(|seed| format!("root {}\n", public_key([*seed; 32])))
            .collect();
        let key = public_key([1; 32]);
        let threshold = match threshold {
            0 => String::new(),
            threshold => format!("root-threshold {threshold}\n"),
        };
        format!(
            "preface-trust v1\nnamespace default\nversion {version}\nthreshold 1\nkey {key}\n{roots}{threshold}{more}\n"
        )
    }

    fn sign(seed: u8, message: &[u8]) -> [u8; 64] {
        SigningKey::from_bytes(&[seed; 32]).sign(message).to_bytes()
    }

    fn update(old: &str, new: &str, seeds: &[u8]) -> Result<(), Error> {
        let [old, new] = [old, new].map(|text| TrustStore::parse(text).expect("a valid store"));
        let statement = TrustStatement::of(&new);
        let signatures: Vec<_> = seeds
            .iter()
            .map(|seed| sign(*seed, statement.as_bytes()))
            .collect();
        old.admit_update(&new, &signatures)
    }

    #[test]
    fn a_statement_is_context_and_text_of_at_most_192_bytes() {
        let text = store(u32::MAX, &[2], 1, "").replace("default", &"n".repeat(47));
        let store = TrustStore::parse(&text).expect("a valid store");
        let statement = TrustStatement::of(&store);
        let [name, digest] = ["n".repeat(47), Id::of(text.as_bytes()).to_string()];
        let lines = format!("namespace {name}\nversion 4294967295\nsha256 {digest}\n");
        assert_eq!(
            statement.as_bytes(),
            [&TRUST_CONTEXT, lines.as_bytes()].concat()
        );
        assert_eq!(TRUST_CONTEXT[..20], CONTEXT[..20]);
        assert_ne!(TRUST_CONTEXT, CONTEXT);
    }

    /// Attack 66, and changes of roots.
    #[test]
    fn an_update_takes_enough_roots_of_both_stores_and_the_next_version() {
        let old = store(3, &[2, 3, 4], 2, "");
        let same = store(4, &[2, 3, 4], 2, "min-security 1\n");
        let other = store(4, &[5, 6], 2, "");
        let half = store(4, &[3, 5], 1, "");
        let untrusted = |which, valid, threshold| {
            Err(Error::UpdateUntrusted {
                which,
                valid,
                threshold,
            })
        };
        let version = |next| Err(Error::UpdateVersion { present: 3, next });
        let revoked = store(
            3,
            &[2, 3, 4],
            2,
            &format!("revoke-key {}\n", public_key([2; 32]).id()),
        );
        type Case<'a> = (&'a str, &'a str, &'a str, &'a [u8], Result<(), Error>);
        let cases: [Case<'_>; 16] = [
            ("two of three", &old, &same, &[2, 4], Ok(())),
            ("all", &old, &same, &[2, 3, 4], Ok(())),
            ("one", &old, &same, &[2], untrusted(Stores::Present, 1, 2)),
            ("none", &old, &same, &[], untrusted(Stores::Present, 0, 2)),
            (
                "one twice",
                &old,
                &same,
                &[2, 2],
                untrusted(Stores::Present, 1, 2),
            ),
            ("old and new roots", &old, &other, &[2, 3, 5, 6], Ok(())),
            (
                "old roots alone",
                &old,
                &other,
                &[2, 3],
                untrusted(Stores::Next, 0, 2),
            ),
            (
                "new roots alone",
                &old,
                &other,
                &[5, 6],
                untrusted(Stores::Present, 0, 2),
            ),
            (
                "a root of both counts for both",
                &old,
                &half,
                &[2, 3],
                Ok(()),
            ),
            (
                "a release key",
                &old,
                &same,
                &[2, 4, 1],
                Err(Error::UpdateSignature { index: 2 }),
            ),
            ("the same version", &old, &old, &[2, 3], version(3)),
            (
                "an older one",
                &old,
                &store(2, &[2, 3], 1, ""),
                &[2, 3],
                version(2),
            ),
            (
                "one too far",
                &old,
                &store(5, &[2, 3], 1, ""),
                &[2, 3],
                version(5),
            ),
            (
                "a root that is revoked already",
                &revoked,
                &same,
                &[2, 3],
                untrusted(Stores::Present, 1, 2),
            ),
            (
                "a store without roots",
                &store(3, &[], 0, ""),
                &same,
                &[2, 3],
                Err(Error::NoRoots {
                    which: Stores::Present,
                }),
            ),
            (
                "to a store without roots",
                &old,
                &store(4, &[], 0, ""),
                &[2, 3],
                Err(Error::NoRoots {
                    which: Stores::Next,
                }),
            ),
        ];
        for (name, old, new, seeds, expected) in cases {
            assert_eq!(update(old, new, seeds), expected, "{name}");
        }
        let fleet = same.replace("default", "acme");
        let error = update(&old, &fleet, &[2, 3]).map_err(|error| error.exit_code());
        assert_eq!(error, Err(14));
        let last = store(u32::MAX, &[2], 1, "");
        assert!(update(&last, &last, &[2]).is_err());
    }

    #[test]
    fn a_byte_more_or_less_in_the_new_store_is_another_store() {
        let old = store(3, &[2], 1, "");
        let new = store(4, &[2], 1, "");
        fn parsed(text: &str) -> TrustStore<'_> {
            TrustStore::parse(text).expect("a valid store")
        }
        let signature = sign(2, TrustStatement::of(&parsed(&new)).as_bytes());
        assert_eq!(
            parsed(&old).admit_update(&parsed(&new), &[signature]),
            Ok(())
        );
        for changed in [
            format!("{new}\n"),
            new.replace("threshold 1\nkey", "threshold 1\n\nkey"),
        ] {
            let error = parsed(&old).admit_update(&parsed(&changed), &[signature]);
            assert_eq!(error, Err(Error::UpdateSignature { index: 0 }));
        }
    }

    /// Attack 42, both ways, with one key in both places.
    #[test]
    fn no_signature_of_a_store_is_one_of_a_bundle_nor_the_other_way_round() {
        let old = store(3, &[2], 1, "");
        let new = store(4, &[2], 1, "");
        let [old, new] = [&old, &new].map(|text| TrustStore::parse(text).expect("a valid store"));
        let statement = TrustStatement::of(&new);
        let sample = Sample {
            seeds: [[2; 32]].to_vec(),
            ..Sample::default()
        };
        let trust = crate::testing::trust_text(&[2], 1, "");
        let trust = TrustStore::parse(&trust).expect("a valid store");
        let authenticate = |file: &[u8]| {
            let frame = crate::Frame::parse(file)?;
            frame.authenticate(&trust).map(|_| ())
        };
        assert_eq!(authenticate(&sample.file()), Ok(()));
        for message in [statement.as_bytes(), new.text().as_bytes()] {
            let file = sample.file_signing(message);
            let error = authenticate(&file).map_err(|error| error.exit_code());
            assert_eq!(error, Err(12));
        }
        let mut begun = sample.file();
        begun[..32].copy_from_slice(&TRUST_CONTEXT);
        assert_eq!(authenticate(&begun), Err(Error::NotABundle));
        for message in [&sample.prefix()[..], new.text().as_bytes(), b""] {
            let error = old.admit_update(&new, &[sign(2, message)]);
            assert_eq!(error, Err(Error::UpdateSignature { index: 0 }));
        }
    }
}
