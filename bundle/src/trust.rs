//! The trust store: the only place where public keys live, as strict text.

use crate::{
    MAX_TRUST_BYTES,
    error::Error,
    id::{Id, KeyId, Namespace, is_name},
    key::PublicKey,
    manifest::is_task_pattern,
    text::{split, split_once},
};

/// Most keys of a trust store.
pub const MAX_KEYS: usize = 32;

const FIRST_LINE: &str = "preface-trust v1";
const WHOLE: usize = 0;

/// What a key of the trust store is for. No key is for two things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyRole {
    /// Signs bundles.
    Release,
    /// Signs the next trust store.
    Root,
    /// Signs a fleet's index.
    Timestamp,
}

/// A key of the trust store, and what it may sign.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct TrustedKey<'a> {
    /// The key.
    pub key: PublicKey,
    /// Its id.
    pub id: KeyId,
    /// What it is for.
    pub role: KeyRole,
    /// Its name for people, where it has one.
    pub name: Option<&'a str>,
    /// Patterns of the tasks that it may sign for, comma-separated.
    pub tasks: &'a str,
}

impl<'a> TrustedKey<'a> {
    /// Reads what follows `key `: `ed25519:BASE64 [name=NAME] [tasks=PATTERN[,PATTERN]...]`.
    ///
    /// # Errors
    /// [`Error::PublicKey`] with the rule that is broken.
    pub fn from_text(text: &'a str) -> Result<Self, Error> {
        Self::from_text_among(text, KeyRole::Release, &[])
    }

    fn from_text_among(
        text: &'a str,
        role: KeyRole,
        admitted: &[PublicKey],
    ) -> Result<Self, Error> {
        let refuse = |rule| Err(Error::PublicKey { rule });
        let mut words = split(text, b' ').filter(|word| !word.is_empty());
        let key = PublicKey::from_text_among(words.next().unwrap_or_default(), admitted)?;
        let (mut name, mut tasks) = (None, None);
        for word in words {
            match split_once(word, b'=') {
                Some(("name", value)) if name.is_none() && is_name(value) => name = Some(value),
                Some(("tasks", value))
                    if role == KeyRole::Release
                        && tasks.is_none()
                        && split(value, b',').all(is_task_pattern) =>
                {
                    tasks = Some(value);
                }
                _ => {
                    return refuse(
                        "after the key come name=NAME and, for keys of releases, tasks=PATTERN,... at most once",
                    );
                }
            }
        }
        Ok(Self {
            key,
            id: key.id(),
            role,
            name,
            tasks: tasks.unwrap_or("*"),
        })
    }

    /// Whether the key may sign for this task.
    pub fn may_sign(&self, task: &str) -> bool {
        split(self.tasks, b',').any(|pattern| match pattern.strip_suffix(".*") {
            Some(prefix) => task
                .strip_prefix(prefix)
                .is_some_and(|rest| rest.starts_with('.')),
            None => pattern == "*" || pattern == task,
        })
    }
}

/// A valid trust store. It has at least one key and a threshold that its keys can reach.
#[derive(Clone, Copy, Debug)]
pub struct TrustStore<'a> {
    text: &'a str,
    namespace: &'a str,
    version: u32,
    threshold: usize,
    root_threshold: usize,
    min_security: u32,
    dated: Option<u64>,
    keys: [Option<TrustedKey<'a>>; MAX_KEYS],
}

impl<'a> TrustStore<'a> {
    /// Reads a trust store. `FORMAT.md` gives the grammar.
    ///
    /// # Errors
    /// [`Error::TrustStore`] with line and rule: a store is valid as a whole or not at all.
    pub fn parse(text: &'a str) -> Result<Self, Error> {
        Self::parse_among(text, &[])
    }

    /// Reads a trust store as [`TrustStore::parse`] does, whose keys are often among the `admitted`: those are not
    /// examined again, which takes longer than all else. Whoever reads a store for one bundle after another keeps
    /// the keys of the first time.
    ///
    /// # Errors
    /// As [`TrustStore::parse`].
    pub fn parse_among(text: &'a str, admitted: &[PublicKey]) -> Result<Self, Error> {
        if text.len() > MAX_TRUST_BYTES {
            return Err(at(WHOLE, "the store is larger than 64 KiB"));
        }
        if text.contains('\r') || !text.ends_with('\n') {
            return Err(at(
                WHOLE,
                "each line ends in LF alone, the last too; it was cut short or has other line ends",
            ));
        }
        let mut lines = split(text, b'\n').zip(1..);
        if lines.next().map(|(line, _)| line) != Some(FIRST_LINE) {
            return Err(at(1, "the first line is not: preface-trust v1"));
        }
        let mut draft = Draft {
            keys: [None; MAX_KEYS],
            ..Draft::default()
        };
        for (line, number) in lines {
            draft
                .read(line, admitted)
                .map_err(|rule| at(number, rule))?;
        }
        draft.finish(text)
    }

    /// The namespace's name.
    pub fn namespace_name(&self) -> &'a str {
        self.namespace
    }

    /// The namespace that bundles must be made for.
    pub fn namespace(&self) -> Namespace {
        Namespace::of_name(self.namespace)
    }

    /// The store's version; bundles of a later trust version are refused.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// How many keys must have signed a bundle, at least 1.
    pub fn threshold(&self) -> usize {
        self.threshold
    }

    /// The least security version of a bundle.
    pub fn min_security(&self) -> u32 {
        self.min_security
    }

    /// When the store was made, unix seconds: it is not earlier now.
    pub fn dated(&self) -> Option<u64> {
        self.dated
    }

    /// The keys that sign bundles, in order of the file.
    pub fn keys(&self) -> impl Iterator<Item = &TrustedKey<'a>> {
        self.keys_for(KeyRole::Release)
    }

    /// The keys of one role, in order of the file.
    pub fn keys_for(&self, role: KeyRole) -> impl Iterator<Item = &TrustedKey<'a>> {
        self.every_key().filter(move |key| key.role == role)
    }

    /// The keys of all roles, in order of the file: for [`TrustStore::parse_among`].
    pub fn every_key(&self) -> impl Iterator<Item = &TrustedKey<'a>> {
        self.keys.iter().flatten()
    }

    /// How many roots must have signed the next store; 0 for a store without roots, which no signature can replace.
    pub fn root_threshold(&self) -> usize {
        self.root_threshold
    }

    /// The text that was read.
    pub fn text(&self) -> &'a str {
        self.text
    }

    /// The key for bundles with this id.
    pub fn key(&self, id: KeyId) -> Option<&TrustedKey<'a>> {
        self.keys().find(|key| key.id == id)
    }

    /// The roots that are not revoked.
    pub(crate) fn active_roots(&self) -> impl Iterator<Item = &TrustedKey<'a>> {
        self.keys_for(KeyRole::Root)
            .filter(|root| self.revoked_keys().all(|revoked| revoked != root.id))
    }

    /// Ids of revoked keys, in order of the file.
    pub fn revoked_keys(&self) -> impl Iterator<Item = KeyId> + use<'a> {
        self.values("revoke-key").filter_map(Id::from_hex)
    }

    /// Ids of revoked bundles, in order of the file.
    pub fn revoked_bundles(&self) -> impl Iterator<Item = Id> + use<'a> {
        self.values("revoke-bundle").filter_map(Id::from_hex)
    }

    /// The values of a directive, from lines that [`TrustStore::parse`] has checked.
    fn values(&self, directive: &'static str) -> impl Iterator<Item = &'a str> + use<'a> {
        split(self.text, b'\n').filter_map(move |line| {
            let (word, value) = directive_of(line)?;
            (word == directive).then_some(value)
        })
    }
}

const fn at(line: usize, rule: &'static str) -> Error {
    Error::TrustStore { line, rule }
}

/// First word and rest of a line, `None` for blank lines and comments.
fn directive_of(line: &str) -> Option<(&str, &str)> {
    let line = line.trim_matches(' ');
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let (word, value) = split_once(line, b' ').unwrap_or((line, ""));
    Some((word, value.trim_matches(' ')))
}

/// What was read so far.
#[derive(Default)]
struct Draft<'a> {
    namespace: Option<&'a str>,
    version: Option<u32>,
    threshold: Option<u32>,
    root_threshold: Option<u32>,
    min_security: Option<u32>,
    dated: Option<u64>,
    keys: [Option<TrustedKey<'a>>; MAX_KEYS],
}

impl<'a> Draft<'a> {
    fn read(&mut self, line: &'a str, admitted: &[PublicKey]) -> Result<(), &'static str> {
        let Some((word, value)) = directive_of(line) else {
            return Ok(());
        };
        match word {
            "namespace" => once(
                &mut self.namespace,
                Some(value).filter(|name| is_name(name)),
            ),
            "version" => once(&mut self.version, positive(value)),
            "threshold" => once(&mut self.threshold, positive(value)),
            "root-threshold" => once(&mut self.root_threshold, positive(value)),
            "min-security" => once(&mut self.min_security, number(value)),
            "dated" => once(&mut self.dated, unix_seconds(value)),
            "key" => self.add_key(value, KeyRole::Release, admitted),
            "root" => self.add_key(value, KeyRole::Root, admitted),
            "timestamp" => self.add_key(value, KeyRole::Timestamp, admitted),
            "revoke-key" => KeyId::from_hex(value)
                .map(|_| ())
                .ok_or("a key id is 32 hex digits"),
            "revoke-bundle" => Id::<32>::from_hex(value)
                .map(|_| ())
                .ok_or("a bundle id is 64 hex digits"),
            _ => Err("unknown directive"),
        }
    }

    fn add_key(
        &mut self,
        text: &'a str,
        role: KeyRole,
        admitted: &[PublicKey],
    ) -> Result<(), &'static str> {
        let key =
            TrustedKey::from_text_among(text, role, admitted).map_err(|error| match error {
                Error::PublicKey { rule } => rule,
                _ => "the key cannot be read",
            })?;
        let mut known = self.keys.iter().flatten();
        if known.any(|one| one.id == key.id || (key.name.is_some() && one.name == key.name)) {
            return Err("a key or a key's name is there twice");
        }
        let free = self.keys.iter_mut().find(|slot| slot.is_none());
        *free.ok_or("more than 32 keys")? = Some(key);
        Ok(())
    }

    fn finish(self, text: &'a str) -> Result<TrustStore<'a>, Error> {
        let threshold = self
            .threshold
            .ok_or(at(WHOLE, "the line threshold N is missing"))?;
        let threshold = usize::try_from(threshold).unwrap_or(usize::MAX);
        let count = |role| {
            let keys = self.keys.iter().flatten();
            keys.filter(|key| key.role == role).count()
        };
        if count(KeyRole::Release) == 0 {
            return Err(at(WHOLE, "there is no key: nothing can be trusted"));
        }
        if threshold > count(KeyRole::Release) {
            return Err(at(WHOLE, "the threshold is above the number of keys"));
        }
        let root_threshold = match (self.root_threshold, count(KeyRole::Root)) {
            (None, 0) => 0,
            (None, _) => return Err(at(WHOLE, "the line root-threshold N is missing")),
            (Some(threshold), _) => usize::try_from(threshold).unwrap_or(usize::MAX),
        };
        let store = TrustStore {
            text,
            namespace: self
                .namespace
                .ok_or(at(WHOLE, "the line namespace NAME is missing"))?,
            version: self
                .version
                .ok_or(at(WHOLE, "the line version N is missing"))?,
            threshold,
            root_threshold,
            min_security: self.min_security.unwrap_or(0),
            dated: self.dated,
            keys: self.keys,
        };
        match root_threshold > store.active_roots().count() {
            true => Err(at(
                WHOLE,
                "the root-threshold is above the number of roots that are not revoked",
            )),
            false => Ok(store),
        }
    }
}

fn once<T>(slot: &mut Option<T>, value: Option<T>) -> Result<(), &'static str> {
    if slot.is_some() {
        return Err("this directive is there twice");
    }
    *slot = Some(value.ok_or("the value is not of the directive's kind")?);
    Ok(())
}

/// Decimal digits without sign, spaces or leading zeros.
fn number(text: &str) -> Option<u32> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let canonical = text == "0" || !text.starts_with('0');
    (plain && canonical).then(|| text.parse().ok()).flatten()
}

fn positive(text: &str) -> Option<u32> {
    number(text).filter(|number| *number > 0)
}

/// Unix seconds of `YYYY-MM-DDTHH:MM:SSZ`, from 1970 on (RFC 3339 in UTC, no leap second).
pub fn unix_seconds(text: &str) -> Option<u64> {
    let (date, time) = split_once(text.strip_suffix('Z')?, b'T')?;
    let [year, month, day] = parts(date, b'-', [4, 2, 2])?;
    let [hour, minute, second] = parts(time, b':', [2, 2, 2])?;
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let february = if leap(year) { 29 } else { 28 };
    let months = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let month_at = usize::try_from(month).ok()?.checked_sub(1)?;
    let days_of_month = *months.get(month_at)?;
    let in_range = year >= 1970
        && (1..=days_of_month).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !in_range {
        return None;
    }
    let years = (1970..year)
        .map(|year| if leap(year) { 366 } else { 365 })
        .sum::<u64>();
    let days = years + months.iter().take(month_at).sum::<u64>() + day - 1;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

/// Three decimal numbers of fixed width.
fn parts(text: &str, separator: u8, widths: [usize; 3]) -> Option<[u64; 3]> {
    let mut words = split(text, separator);
    let mut numbers = [0; 3];
    for (number, width) in numbers.iter_mut().zip(widths) {
        let word = words.next().filter(|word| word.len() == width)?;
        *number = word
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| word.parse().ok())??;
    }
    words.next().is_none().then_some(numbers)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{format, string::String, vec::Vec};

    use proptest::prelude::*;

    use super::*;
    use crate::testing::public_key;

    fn key_text(seed: u8) -> String {
        format!("{}", public_key([seed; 32]))
    }

    fn store(lines: &str) -> String {
        format!("preface-trust v1\nnamespace default\nversion 3\nthreshold 1\n{lines}\n")
    }

    proptest! {
        /// Lines of directives in any order, with values that fit and that do not: a store or an error, never a panic,
        /// and a store keeps its promises.
        #[test]
        fn no_text_panics_and_every_store_has_keys_and_thresholds_in_reach(
            lines in proptest::collection::vec(0usize..20, 0..12),
            noise in "\\PC{0,40}",
        ) {
            let [one, two, root] = [1, 2, 3].map(key_text);
            let choices = [
                "namespace default".into(), "version 1".into(), "threshold 1".into(), "threshold 2".into(),
                format!("key {one}"), format!("key {two} tasks=a.*"), format!("root {root}"), format!("root {one}"),
                "root-threshold 1".into(), "root-threshold 2".into(), format!("timestamp {two}"), "min-security 3".into(),
                "dated 2026-11-23T00:00:00Z".into(), format!("revoke-key {}", public_key([3; 32]).id()), "revoke-key".into(),
                "version 4294967295".into(), String::new(), "#".into(), noise.clone(), format!("key {noise}"),
            ];
            let body: String = lines.iter().map(|line| format!("{}\n", choices[*line])).collect();
            for text in [format!("preface-trust v1\n{body}"), format!("preface-trust v1\nnamespace n\nversion 2\nthreshold 1\nkey {one}\n{body}"), noise] {
                if let Ok(store) = TrustStore::parse(&text) {
                    prop_assert!((1..=store.keys().count()).contains(&store.threshold()));
                    prop_assert!(store.root_threshold() <= store.active_roots().count());
                    prop_assert_eq!(store.root_threshold() == 0, store.keys_for(KeyRole::Root).count() == 0);
                    prop_assert!(crate::TrustStatement::of(&store).as_bytes().ends_with(b"\n"));
                }
            }
        }

        #[test]
        fn no_bytes_panic_the_reader_of_signatures(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let read = crate::read_signature(&bytes);
            prop_assert!(bytes.len() != 64 || read.map(|read| read.to_vec()) == Some(bytes));
        }
    }

    #[test]
    fn a_full_store_is_read() {
        let (one, two) = (key_text(1), key_text(2));
        let revoked = public_key([9; 32]).id();
        let text = store(&format!(
            "# release keys\n\nkey {one} name=release tasks=*\nkey   {two}  tasks=acme.*,intent\n\
             min-security 7\ndated 2026-11-23T00:00:00Z\nrevoke-key {revoked}\nrevoke-bundle {}\n",
            Id([5; 32])
        ));
        let store = TrustStore::parse(&text).expect("a valid store");
        assert_eq!(
            (store.namespace_name(), store.version(), store.threshold()),
            ("default", 3, 1)
        );
        assert_eq!(
            (store.min_security(), store.dated()),
            (7, Some(1_795_392_000))
        );
        assert_eq!(
            store.keys().filter_map(|key| key.name).collect::<Vec<_>>(),
            ["release"]
        );
        assert_eq!(store.keys().count(), 2);
        assert_eq!(store.revoked_keys().collect::<Vec<_>>(), [revoked]);
        assert_eq!(store.revoked_bundles().collect::<Vec<_>>(), [Id([5; 32])]);
        assert!(store.key(public_key([2; 32]).id()).is_some());
        assert!(store.key(revoked).is_none());
    }

    #[test]
    fn keys_of_other_roles_do_not_sign_bundles() {
        let [one, root, time] = [1, 2, 3].map(key_text);
        let text = store(&format!(
            "key {one}\nroot {root} name=r\nroot-threshold 1\ntimestamp {time} name=t\n"
        ));
        let store = TrustStore::parse(&text).expect("a valid store");
        let names = |role| store.keys_for(role).map(|key| key.name).collect::<Vec<_>>();
        assert_eq!(names(KeyRole::Root), [Some("r")]);
        assert_eq!(names(KeyRole::Timestamp), [Some("t")]);
        assert_eq!((store.keys().count(), store.every_key().count()), (1, 3));
        assert_eq!(store.root_threshold(), 1);
        for seed in [2, 3] {
            assert!(store.key(public_key([seed; 32]).id()).is_none());
        }
    }

    #[test]
    fn keys_that_were_admitted_before_are_the_same_and_others_are_examined() {
        let text = store(&format!("key {}\nkey {}", key_text(1), key_text(2)));
        let first = TrustStore::parse(&text).expect("a valid store");
        let admitted: Vec<PublicKey> = first.keys().map(|trusted| trusted.key).collect();
        let again = TrustStore::parse_among(&text, &admitted).expect("a valid store");
        assert!(again.keys().map(|trusted| trusted.key).eq(admitted.clone()));
        let weak = "key ed25519:AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        assert!(TrustStore::parse_among(&store(weak), &admitted).is_err());
    }

    #[test]
    fn stores_outside_the_rules_are_refused() {
        let one = format!("key {}", key_text(1));
        let good = store(&one);
        assert!(TrustStore::parse(&good).is_ok());
        let weak = "key ed25519:AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        let many: String = (1..=33)
            .map(|seed| format!("key {}\n", key_text(seed)))
            .collect();
        let cases = [
            ("empty", String::new()),
            (
                "other first line",
                good.replace("preface-trust", "spb-trust"),
            ),
            ("no key", store("")),
            ("cut in its last line", format!("{good}min-security 7")),
            ("no namespace", good.replace("namespace default\n", "")),
            ("no version", good.replace("version 3\n", "")),
            ("no threshold", good.replace("threshold 1\n", "")),
            ("threshold 0", good.replace("threshold 1", "threshold 0")),
            ("threshold -1", good.replace("threshold 1", "threshold -1")),
            ("threshold +1", good.replace("threshold 1", "threshold +1")),
            ("threshold 01", good.replace("threshold 1", "threshold 01")),
            (
                "threshold above keys",
                good.replace("threshold 1", "threshold 2"),
            ),
            (
                "threshold of 2^32",
                good.replace("threshold 1", "threshold 4294967296"),
            ),
            ("version 0", good.replace("version 3", "version 0")),
            (
                "namespace of other letters",
                good.replace("default", "De/fault"),
            ),
            ("threshold twice", store(&format!("threshold 1\n{one}"))),
            (
                "unknown directive",
                store(&format!("{one}\nskip-verification yes")),
            ),
            ("key twice", store(&format!("{one}\n{one}"))),
            (
                "name twice",
                store(&format!("{one} name=a\nkey {} name=a", key_text(2))),
            ),
            ("weak key", store(weak)),
            ("key without base64", store("key ed25519:")),
            ("unknown key option", store(&format!("{one} roles=admin"))),
            ("tasks empty", store(&format!("{one} tasks="))),
            ("tasks of other letters", store(&format!("{one} tasks=a*"))),
            ("33 keys", store(&many)),
            ("windows line ends", good.replace('\n', "\r\n")),
            (
                "bad date",
                store(&format!("{one}\ndated 2026-02-29T00:00:00Z")),
            ),
            (
                "date with offset",
                store(&format!("{one}\ndated 2026-02-28T00:00:00+01:00")),
            ),
            ("short key id", store(&format!("{one}\nrevoke-key 00"))),
            (
                "short bundle id",
                store(&format!("{one}\nrevoke-bundle 00")),
            ),
            (
                "root-threshold without a root",
                store(&format!("{one}\nroot-threshold 1")),
            ),
            (
                "root without root-threshold",
                store(&format!("{one}\nroot {}", key_text(2))),
            ),
            (
                "root-threshold 0",
                store(&format!("{one}\nroot {}\nroot-threshold 0", key_text(2))),
            ),
            (
                "root-threshold above roots",
                store(&format!("{one}\nroot {}\nroot-threshold 2", key_text(2))),
            ),
            (
                "root-threshold above roots that are not revoked",
                store(&format!(
                    "{one}\nroot {}\nroot-threshold 1\nrevoke-key {}",
                    key_text(2),
                    public_key([2; 32]).id()
                )),
            ),
            (
                "root that signs bundles too",
                store(&format!("{one}\nroot {}\nroot-threshold 1", key_text(1))),
            ),
            (
                "timestamp key that signs bundles too",
                store(&format!("{one}\ntimestamp {}", key_text(1))),
            ),
            (
                "root with tasks",
                store(&format!(
                    "{one}\nroot {} tasks=*\nroot-threshold 1",
                    key_text(2)
                )),
            ),
            (
                "weak root",
                store(&format!(
                    "{one}\n{}\nroot-threshold 1",
                    weak.replace("key", "root")
                )),
            ),
            (
                "roots alone",
                store(&format!("root {}\nroot-threshold 1", key_text(2))),
            ),
            (
                "too large",
                store(&format!("{one}\n#{}", " ".repeat(MAX_TRUST_BYTES))),
            ),
        ];
        for (name, text) in cases {
            let error = TrustStore::parse(&text).map(|_| ());
            assert!(
                matches!(error, Err(Error::TrustStore { .. })),
                "{name}: {error:?}"
            );
        }
    }

    #[test]
    fn errors_name_the_line() {
        let text = store(&format!("key {}\nfoo", key_text(1)));
        let error = TrustStore::parse(&text).map(|_| ());
        assert_eq!(
            error,
            Err(Error::TrustStore {
                line: 6,
                rule: "unknown directive"
            })
        );
    }

    #[test]
    fn task_patterns_match_whole_words() {
        let cases = [
            ("*", "intent", true),
            ("intent", "intent", true),
            ("intent", "intents", false),
            ("acme.*", "acme.door", true),
            ("acme.*", "acme", false),
            ("acme.*", "acmedoor", false),
            ("acme.*,intent", "intent", true),
            ("acme.*,intent", "other", false),
        ];
        for (tasks, task, allowed) in cases {
            let text = format!("{} tasks={tasks}", key_text(1));
            let key = TrustedKey::from_text(&text).expect("a valid key line");
            assert_eq!(key.may_sign(task), allowed, "{tasks} {task}");
        }
    }

    #[test]
    fn dates_are_unix_seconds() {
        let cases = [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-02-29T23:59:59Z", Some(951_868_799)),
            ("2024-12-31T12:00:00Z", Some(1_735_646_400)),
            ("2026-13-01T00:00:00Z", None),
            ("2026-00-01T00:00:00Z", None),
            ("2026-01-01T24:00:00Z", None),
            ("1969-12-31T23:59:59Z", None),
            ("2026-1-01T00:00:00Z", None),
            ("2026-01-01 00:00:00Z", None),
        ];
        for (text, seconds) in cases {
            assert_eq!(unix_seconds(text), seconds, "{text}");
        }
    }
}
