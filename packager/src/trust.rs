//! Writing trust stores.

use std::{fmt::Write, path::Path};

use preface_bundle::{Id, KeyId, TrustStore, is_name};

use crate::{
    Error,
    file::{Access, write_file},
    foreign::own_spelling,
};

/// A new trust store.
#[derive(Clone, Debug)]
pub struct TrustDraft {
    /// Name of the namespace.
    pub namespace: String,
    /// Signatures that a bundle needs.
    pub threshold: u32,
    /// Key lines: `[key ]ed25519:BASE64 [name=NAME] [tasks=PATTERN,...]`.
    pub keys: Vec<String>,
    /// Tasks that keys without `tasks=` may sign for, where not all.
    pub tasks: Option<String>,
}

impl TrustDraft {
    /// The store's text.
    ///
    /// # Errors
    /// [`Error::Trust`] when a store of this content is not valid.
    pub fn to_text(&self) -> Result<String, Error> {
        if !is_name(&self.namespace) {
            let problem = format!(
                "{:?} is no name: lower-case letters, digits, . _ -",
                self.namespace
            );
            return Err(Error::Option {
                option: "--namespace",
                problem,
            });
        }
        let Self {
            namespace,
            threshold,
            ..
        } = self;
        let mut text =
            format!("preface-trust v1\nnamespace {namespace}\nversion 1\nthreshold {threshold}\n");
        text += &key_lines(&self.keys, self.tasks.as_deref())?;
        checked(text)
    }
}

/// Lines of a trust store, with `tasks=` added where a key has none. A key is one line: a file of
/// a stranger must not bring further directives with it.
fn key_lines(keys: &[String], tasks: Option<&str>) -> Result<String, Error> {
    let mut lines = String::new();
    for key in keys {
        let key = own_spelling(key)?;
        let key = key.strip_prefix("key ").unwrap_or(&key);
        let mut line = format!("key {key}");
        if let Some(tasks) = tasks.filter(|_| !key.contains(" tasks=")) {
            let _ = write!(line, " tasks={tasks}");
        }
        if line.chars().any(char::is_control) {
            let problem = "a public key is one line of text".into();
            return Err(Error::Option {
                option: "--key",
                problem,
            });
        }
        lines += &line;
        lines.push('\n');
    }
    Ok(lines)
}

/// Adds keys to a store's text and raises its version by one.
///
/// # Errors
/// [`Error::Trust`] when the store is not valid, before or after.
pub fn add_keys(store: &str, keys: &[String], tasks: Option<&str>) -> Result<String, Error> {
    grown(store, &key_lines(keys, tasks)?)
}

/// Adds revoked keys and bundles to a store's text and raises its version by one.
///
/// # Errors
/// [`Error::Trust`] when the store is not valid, before or after.
pub fn revoke(store: &str, keys: &[KeyId], bundles: &[Id]) -> Result<String, Error> {
    let mut lines = String::new();
    for key in keys {
        let _ = writeln!(lines, "revoke-key {key}");
    }
    for bundle in bundles {
        let _ = writeln!(lines, "revoke-bundle {bundle}");
    }
    grown(store, &lines)
}

fn grown(store: &str, lines: &str) -> Result<String, Error> {
    let version = TrustStore::parse(store)
        .map_err(|source| Error::Trust { source })?
        .version();
    let next = version.checked_add(1).ok_or(Error::Option {
        option: "version",
        problem: "the store's version cannot grow any further".into(),
    })?;
    let raised = store.lines().map(
        |line| match line.trim_matches(' ').strip_prefix("version ") {
            Some(_) => format!("version {next}\n"),
            None => format!("{line}\n"),
        },
    );
    checked(raised.collect::<String>() + lines)
}

fn checked(text: String) -> Result<String, Error> {
    match TrustStore::parse(&text) {
        Ok(_) => Ok(text),
        Err(source) => Err(Error::Trust { source }),
    }
}

/// Writes a store that is valid.
///
/// # Errors
/// [`Error::Trust`] when it is not; [`Error::Write`], [`Error::NoSpace`].
pub fn write_trust(path: &Path, text: &str) -> Result<(), Error> {
    TrustStore::parse(text).map_err(|source| Error::Trust { source })?;
    write_file(path, text.as_bytes(), Access::Everyone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SecretKey;

    fn key(seed: u8) -> String {
        format!(
            "key {} name=k{seed}\n",
            SecretKey::from_seed(&[seed; 32]).public()
        )
    }

    fn draft() -> TrustDraft {
        TrustDraft {
            namespace: "default".into(),
            threshold: 1,
            keys: vec![key(1)],
            tasks: None,
        }
    }

    #[test]
    fn drafts_become_valid_stores() {
        let text = draft().to_text().expect("valid");
        let store = TrustStore::parse(&text).expect("valid");
        assert_eq!(
            (store.version(), store.threshold(), store.keys().count()),
            (1, 1, 1)
        );
        let scoped = TrustDraft {
            tasks: Some("acme.*".into()),
            ..draft()
        }
        .to_text()
        .expect("valid");
        let store = TrustStore::parse(&scoped).expect("valid");
        assert!(store.keys().all(|key| key.tasks == "acme.*"));
    }

    #[test]
    fn drafts_outside_the_rules_are_refused() {
        let cases = [
            TrustDraft {
                keys: vec![],
                ..draft()
            },
            TrustDraft {
                threshold: 0,
                ..draft()
            },
            TrustDraft {
                threshold: 2,
                ..draft()
            },
            TrustDraft {
                keys: vec![key(1), key(1)],
                ..draft()
            },
            TrustDraft {
                keys: vec!["ed25519:AAAA".into()],
                ..draft()
            },
            TrustDraft {
                keys: vec![format!("{}\nmin-security 9", key(1).trim())],
                ..draft()
            },
            TrustDraft {
                tasks: Some("x\nthreshold 1".into()),
                ..draft()
            },
            TrustDraft {
                namespace: "a b".into(),
                ..draft()
            },
            TrustDraft {
                tasks: Some("a*".into()),
                ..draft()
            },
        ];
        for draft in cases {
            assert!(draft.to_text().is_err(), "{draft:?}");
        }
    }

    #[test]
    fn a_store_grows_by_one_version() {
        let text = draft().to_text().expect("valid") + "# a note\n";
        let more = add_keys(&text, &[key(2)], None).expect("valid");
        let revoked = SecretKey::from_seed(&[1; 32]).public().id();
        let less = revoke(&more, &[revoked], &[Id([7; 32])]).expect("valid");
        let store = TrustStore::parse(&less).expect("valid");
        assert_eq!((store.version(), store.keys().count()), (3, 2));
        assert_eq!(store.revoked_keys().collect::<Vec<_>>(), [revoked]);
        assert_eq!(store.revoked_bundles().collect::<Vec<_>>(), [Id([7; 32])]);
        assert!(less.contains("# a note"));
        assert!(add_keys(&more, &[key(2)], None).is_err());
        assert!(add_keys("preface-trust v1\n", &[key(2)], None).is_err());
    }
}
