//! Writing trust stores.

use std::{fmt::Write, path::Path};

use preface_bundle::{Id, KeyId, KeyRole, PublicKey, TrustStore, is_name};

use crate::{
    Error,
    file::{Access, write_file},
    foreign::own_spelling,
};

/// What is put into a trust store, or taken out of it.
#[derive(Clone, Debug, Default)]
pub struct TrustChange {
    /// Keys that sign bundles: `[key ]ed25519:BASE64 [name=NAME] [tasks=PATTERN,...]`, or as OpenSSL, OpenSSH or
    /// minisign write them.
    pub keys: Vec<String>,
    /// Tasks that keys without `tasks=` may sign for, where not all.
    pub tasks: Option<String>,
    /// Keys that sign the next trust store.
    pub roots: Vec<String>,
    /// Keys that sign a fleet's index.
    pub timestamps: Vec<String>,
    /// Keys, of whatever role, that are taken out.
    pub removed: Vec<KeyId>,
    /// Keys that are revoked.
    pub revoked_keys: Vec<KeyId>,
    /// Bundles that are revoked.
    pub revoked_bundles: Vec<Id>,
    /// Signatures that a bundle needs.
    pub threshold: Option<u32>,
    /// Roots that must sign the next trust store.
    pub root_threshold: Option<u32>,
    /// Least security version of a bundle.
    pub min_security: Option<u32>,
    /// It is not earlier than this: `YYYY-MM-DDTHH:MM:SSZ`.
    pub dated: Option<String>,
}

/// What a change does to a store's version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VersionStep {
    /// It grows by one.
    #[default]
    Next,
    /// It stays: for a store that is not in force yet.
    Stay,
}

impl TrustChange {
    /// Directives that are there once, with their new values.
    fn settings(&self) -> impl Iterator<Item = (&'static str, String)> {
        let number = |value: Option<u32>| value.map(|value| value.to_string());
        let settings = [
            ("threshold", number(self.threshold)),
            ("root-threshold", number(self.root_threshold)),
            ("min-security", number(self.min_security)),
            ("dated", self.dated.clone()),
        ];
        settings
            .into_iter()
            .filter_map(|(word, value)| Some((word, value?)))
    }

    /// Lines that are added.
    fn lines(&self) -> Result<String, Error> {
        let mut lines = key_lines("key", &self.keys, self.tasks.as_deref())?;
        lines += &key_lines("root", &self.roots, None)?;
        lines += &key_lines("timestamp", &self.timestamps, None)?;
        for key in &self.revoked_keys {
            let _ = writeln!(lines, "revoke-key {key}");
        }
        for bundle in &self.revoked_bundles {
            let _ = writeln!(lines, "revoke-bundle {bundle}");
        }
        Ok(lines)
    }
}

/// The text of a trust store of version 1.
///
/// # Errors
/// [`Error::Trust`] when a store of this content is not valid, [`Error::Option`].
pub fn new_trust(namespace: &str, content: &TrustChange) -> Result<String, Error> {
    if !is_name(namespace) {
        return Err(Error::Option {
            option: "--namespace",
            problem: format!("{namespace:?} is no name: lower-case letters, digits, . _ -"),
        });
    }
    let text = format!("preface-trust v1\nnamespace {namespace}\nversion 1\n");
    checked(changed(text, content)?)
}

/// Changes a store's text.
///
/// # Errors
/// [`Error::Trust`] when the store is not valid, before or after; [`Error::Option`] for a key that is to be taken out
/// and is not there.
pub fn change_trust(store: &str, change: &TrustChange, step: VersionStep) -> Result<String, Error> {
    let parsed = TrustStore::parse(store).map_err(|source| Error::Trust { source })?;
    let present = |key: &KeyId| parsed.every_key().any(|one| one.id == *key);
    if let Some(key) = change.removed.iter().find(|key| !present(key)) {
        return Err(Error::Option {
            option: "--key",
            problem: format!("key {key} is not in the trust store"),
        });
    }
    let next = match step {
        VersionStep::Stay => parsed.version(),
        VersionStep::Next => parsed.version().checked_add(1).ok_or(Error::Option {
            option: "version",
            problem: "the store's version cannot grow any further".into(),
        })?,
    };
    let text = set(store.to_owned(), "version", &next.to_string());
    let kept = text
        .lines()
        .filter(|line| key_of(line).is_none_or(|key| !change.removed.contains(&key)));
    let kept = kept.map(|line| format!("{line}\n")).collect();
    checked(changed(kept, change)?)
}

fn changed(text: String, change: &TrustChange) -> Result<String, Error> {
    let set_all = change
        .settings()
        .fold(text, |text, (word, value)| set(text, word, &value));
    Ok(set_all + &change.lines()?)
}

/// The text with this value for a directive that is there once, or with a line more.
fn set(text: String, word: &str, value: &str) -> String {
    let is_it = |line: &str| line.trim_matches(' ').split(' ').next() == Some(word);
    let new = format!("{word} {value}\n");
    if !text.lines().any(is_it) {
        return text + &new;
    }
    let lines = text.lines().map(|line| match is_it(line) {
        true => new.clone(),
        false => format!("{line}\n"),
    });
    lines.collect()
}

/// Id of the key in a line of a valid store.
fn key_of(line: &str) -> Option<KeyId> {
    let mut words = line.split(' ').filter(|word| !word.is_empty());
    let role = words.next()?;
    let key = PublicKey::from_text(words.next()?).ok()?;
    ["key", "root", "timestamp"]
        .contains(&role)
        .then(|| key.id())
}

/// Lines of a trust store, with `tasks=` added where a key has none. A key is one line: a file of
/// a stranger must not bring further directives with it.
fn key_lines(word: &str, keys: &[String], tasks: Option<&str>) -> Result<String, Error> {
    let mut lines = String::new();
    for key in keys {
        let key = own_spelling(key)?;
        let key = key.strip_prefix("key ").unwrap_or(&key);
        let mut line = format!("{word} {key}");
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

fn checked(text: String) -> Result<String, Error> {
    match TrustStore::parse(&text) {
        Ok(_) => Ok(text),
        Err(source) => Err(Error::Trust { source }),
    }
}

/// Whether the key is a root of the store.
pub fn is_root(store: &TrustStore<'_>, key: &PublicKey) -> bool {
    store.keys_for(KeyRole::Root).any(|root| root.key == *key)
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

    fn id(seed: u8) -> KeyId {
        SecretKey::from_seed(&[seed; 32]).public().id()
    }

    fn content() -> TrustChange {
        TrustChange {
            keys: vec![key(1)],
            threshold: Some(1),
            ..TrustChange::default()
        }
    }

    #[test]
    fn new_stores_are_valid() {
        let text = new_trust("default", &content()).expect("valid");
        let store = TrustStore::parse(&text).expect("valid");
        assert_eq!(
            (store.version(), store.threshold(), store.keys().count()),
            (1, 1, 1)
        );
        let full = TrustChange {
            tasks: Some("acme.*".into()),
            roots: vec![key(2), key(3)],
            root_threshold: Some(2),
            timestamps: vec![key(4)],
            min_security: Some(7),
            dated: Some("2026-11-23T00:00:00Z".into()),
            ..content()
        };
        let text = new_trust("default", &full).expect("valid");
        let store = TrustStore::parse(&text).expect("valid");
        assert!(store.keys().all(|key| key.tasks == "acme.*"));
        let count = |role| store.keys_for(role).count();
        assert_eq!((count(KeyRole::Root), count(KeyRole::Timestamp)), (2, 1));
        assert_eq!((store.root_threshold(), store.min_security()), (2, 7));
        assert_eq!(store.dated(), Some(1_795_392_000));
    }

    #[test]
    fn stores_outside_the_rules_are_not_made() {
        let cases = [
            TrustChange {
                keys: vec![],
                ..content()
            },
            TrustChange {
                threshold: Some(0),
                ..content()
            },
            TrustChange {
                threshold: Some(2),
                ..content()
            },
            TrustChange {
                keys: vec![key(1), key(1)],
                ..content()
            },
            TrustChange {
                keys: vec!["ed25519:AAAA".into()],
                ..content()
            },
            TrustChange {
                keys: vec![format!("{}\nmin-security 9", key(1).trim())],
                ..content()
            },
            TrustChange {
                roots: vec![format!("{}\nmin-security 9", key(2).trim())],
                root_threshold: Some(1),
                ..content()
            },
            TrustChange {
                roots: vec![key(2)],
                ..content()
            },
            TrustChange {
                roots: vec![key(1)],
                root_threshold: Some(1),
                ..content()
            },
            TrustChange {
                tasks: Some("x\nthreshold 1".into()),
                ..content()
            },
            TrustChange {
                dated: Some("tomorrow".into()),
                ..content()
            },
            TrustChange {
                tasks: Some("a*".into()),
                ..content()
            },
        ];
        for content in cases {
            assert!(new_trust("default", &content).is_err(), "{content:?}");
        }
        assert!(new_trust("a b", &content()).is_err());
    }

    #[test]
    fn a_store_grows_by_one_version() {
        let change =
            |text: &str, change: TrustChange| change_trust(text, &change, VersionStep::Next);
        let text = new_trust("default", &content()).expect("valid") + "# a note\n";
        let add = |seed| TrustChange {
            keys: vec![key(seed)],
            ..TrustChange::default()
        };
        let more = change(&text, add(2)).expect("valid");
        let revoked = TrustChange {
            revoked_keys: vec![id(1)],
            revoked_bundles: vec![Id([7; 32])],
            ..TrustChange::default()
        };
        let less = change(&more, revoked).expect("valid");
        let store = TrustStore::parse(&less).expect("valid");
        assert_eq!((store.version(), store.keys().count()), (3, 2));
        assert_eq!(store.revoked_keys().collect::<Vec<_>>(), [id(1)]);
        assert_eq!(store.revoked_bundles().collect::<Vec<_>>(), [Id([7; 32])]);
        assert!(less.contains("# a note"));
        assert!(change(&more, add(2)).is_err());
        assert!(change("preface-trust v1\n", add(2)).is_err());
    }

    #[test]
    fn values_are_replaced_and_keys_are_taken_out() {
        let text = new_trust("default", &content()).expect("valid");
        let change = TrustChange {
            keys: vec![key(2)],
            removed: vec![id(1)],
            min_security: Some(3),
            ..TrustChange::default()
        };
        let text = change_trust(&text, &change, VersionStep::Stay).expect("valid");
        let again = TrustChange {
            min_security: Some(4),
            ..TrustChange::default()
        };
        let text = change_trust(&text, &again, VersionStep::Stay).expect("valid");
        let store = TrustStore::parse(&text).expect("valid");
        assert_eq!((store.version(), store.min_security()), (1, 4));
        assert!(store.keys().map(|key| key.id).eq([id(2)]));
        let gone = TrustChange {
            removed: vec![id(1)],
            ..TrustChange::default()
        };
        assert!(change_trust(&text, &gone, VersionStep::Next).is_err());
    }
}
