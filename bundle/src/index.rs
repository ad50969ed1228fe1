//! The fleet's index: what is newest, and until when that can be believed, signed by a timestamp key.
//!
//! [`Index::parse`] believes nothing; [`Index::verify`] hands out what a timestamp key of the trust store vouches for.

use core::fmt;

use crate::{
    MAX_SIGNATURES, Namespace,
    error::Error,
    id::{Id, KeyId, is_name},
    manifest::is_task_id,
    text::{Decimal, split, split_once},
    time::UtcTime,
    trust::{KeyRole, TrustStore, unix_seconds},
    update::TrustStatement,
};

/// Most bytes of an index.
pub const MAX_INDEX_BYTES: usize = 32 << 10;
/// Most tasks of an index.
pub const MAX_INDEX_TASKS: usize = 128;

/// The first 32 bytes of what a timestamp key signs: as [`crate::CONTEXT`], with a purpose of its own.
pub const INDEX_CONTEXT: [u8; 32] = *b"\x89PRF\r\n\x1a\nsoft-prompt-index--v001\n";

const FIRST_LINE: &str = "preface-index v1";
const WHOLE: usize = 0;

/// Why an index is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// A line breaks a rule.
    #[error("malformed index: line {line}: {rule}")]
    Malformed {
        /// Line, from 1; 0 when the index as a whole is meant.
        line: usize,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// No timestamp key of the trust store signed it.
    #[error(
        "not trusted: no timestamp key of the trust store signed the index; see the lines timestamp in the trust store"
    )]
    Untrusted,
    /// A timestamp key is named, but its signature does not hold.
    #[error(
        "bad signature: the index was changed after key {key} signed it, or never signed by it"
    )]
    BadSignature {
        /// The key that the signature names.
        key: KeyId,
    },
    /// The keys that signed are revoked.
    #[error(
        "revoked: key {key} signed the index and the trust store revokes it; ask for an index signed by a current key"
    )]
    RevokedKey {
        /// The revoked key.
        key: KeyId,
    },
    /// The index is of another fleet.
    #[error("wrong namespace: the index is of {index}, not of {expected}")]
    OtherNamespace {
        /// Namespace of the index.
        index: Namespace,
        /// Namespace required.
        expected: Namespace,
    },
    /// The index was made under a newer trust store.
    #[error(
        "not trusted: the index was made under trust version {index}, the trust store is version {store}; update the trust store first"
    )]
    TrustStoreTooOld {
        /// Trust version of the index.
        index: u32,
        /// Version of the trust store.
        store: u32,
    },
    /// The index is older than one that was accepted before.
    #[error(
        "rollback: the index is {found}, this device has seen {seen}; whoever sends it holds this device back: get the newer one"
    )]
    Rollback {
        /// Its version.
        found: IndexVersion,
        /// The greatest version that was accepted.
        seen: IndexVersion,
    },
    /// Another index of the same version was accepted before.
    #[error(
        "rollback: this device has seen another index {found}; two of one version tell two stories: ask for one with a greater version"
    )]
    Rival {
        /// The version of both.
        found: IndexVersion,
    },
    /// The index is past its time.
    #[error(
        "expired: the index was valid until {}, it is {}; without a newer one it cannot be told what is newest: this device may be held back",
        UtcTime(*expires), UtcTime(*now)
    )]
    Expired {
        /// Last second of validity, unix time.
        expires: u64,
        /// The time that was used, unix time.
        now: u64,
    },
}

impl IndexError {
    /// The exit code, as [`Error::exit_code`].
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Malformed { .. } => 10,
            Self::Untrusted | Self::TrustStoreTooOld { .. } => 11,
            Self::BadSignature { .. } => 12,
            Self::OtherNamespace { .. } => 14,
            Self::Rollback { .. } | Self::Rival { .. } => 15,
            Self::Expired { .. } => 16,
            Self::RevokedKey { .. } => 17,
        }
    }

    /// One word for scripts, finer than the exit code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed { .. } => "index-malformed",
            Self::Untrusted => "index-untrusted",
            Self::TrustStoreTooOld { .. } => "index-trust-store-too-old",
            Self::BadSignature { .. } => "index-bad-signature",
            Self::OtherNamespace { .. } => "index-other-namespace",
            Self::Rollback { .. } => "index-rollback",
            Self::Rival { .. } => "index-rival",
            Self::Expired { .. } => "index-expired",
            Self::RevokedKey { .. } => "index-revoked-key",
        }
    }
}

/// What indexes are ordered by: trust version first, so that a new one makes low versions good again after a theft.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IndexVersion {
    /// Trust version that it was made under.
    pub trust_version: u32,
    /// Grows with every index.
    pub version: u64,
}

impl fmt::Display for IndexVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [trust_version, version] = [self.trust_version.into(), self.version].map(Decimal);
        write!(formatter, "{trust_version}.{version}")
    }
}

/// What a device remembers of the last index that it accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexFloor {
    /// SHA-256 of what was signed.
    pub id: Id,
    /// Its version.
    pub version: IndexVersion,
    /// When it was made, unix seconds.
    pub dated: u64,
    /// Last second of validity, unix seconds.
    pub expires: u64,
}

/// The newest bundle of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry<'a> {
    /// The task.
    pub task: &'a str,
    /// Trust version of its newest bundle.
    pub trust_version: u32,
    /// Sequence of its newest bundle.
    pub sequence: u64,
    /// Id of its newest bundle.
    pub bundle_id: Id,
}

impl IndexEntry<'_> {
    /// What releases are ordered by.
    pub fn order(&self) -> (u32, u64) {
        (self.trust_version, self.sequence)
    }
}

/// An index that follows the grammar, and that nobody vouches for yet.
#[derive(Clone, Copy, Debug)]
pub struct Index<'a> {
    /// Everything before the signatures: what is signed.
    body: &'a str,
    tasks: &'a str,
    signatures: &'a str,
    namespace: &'a str,
    version: IndexVersion,
    dated: u64,
    expires: u64,
}

/// An index that a timestamp key of the trust store vouches for, for this fleet, and for now.
#[derive(Clone, Copy, Debug)]
pub struct VerifiedIndex<'a>(Index<'a>);

impl<'a> Index<'a> {
    /// Reads an index. `FORMAT.md` gives the grammar.
    ///
    /// # Errors
    /// [`IndexError::Malformed`] with line and rule.
    pub fn parse(text: &'a str) -> Result<Self, Error> {
        if text.len() > MAX_INDEX_BYTES {
            return Err(malformed(WHOLE, "the index is larger than 32 KiB"));
        }
        let mut lines = Lines::new(text);
        lines.exactly(FIRST_LINE)?;
        let namespace = lines.value("namespace ", |name| is_name(name).then_some(name))?;
        let trust_version = lines.value("trust-version ", positive)?;
        let trust_version = u32::try_from(trust_version)
            .map_err(|_| lines.refuse("trust-version is above 2^32"))?;
        let version = lines.value("version ", positive)?;
        let dated = lines.value("dated ", unix_seconds)?;
        let expires = lines.value("expires ", unix_seconds)?;
        if expires < dated {
            return Err(lines.refuse("it expires before it was made"));
        }
        let tasks = lines.run("task ", MAX_INDEX_TASKS, task_of, |entry| entry.task)?;
        let body = lines.read();
        let signatures = lines.run("signature ", MAX_SIGNATURES, signature_of, |(key, _)| *key)?;
        lines.end()?;
        Ok(Self {
            body,
            tasks,
            signatures,
            namespace,
            version: IndexVersion {
                trust_version,
                version,
            },
            dated,
            expires,
        })
    }

    /// What is signed, exactly.
    pub fn statement(&self) -> TrustStatement {
        TrustStatement::lines(&INDEX_CONTEXT, self.namespace, &self.version, self.id())
    }

    /// SHA-256 of everything before the signatures.
    pub fn id(&self) -> Id {
        Id::of(self.body.as_bytes())
    }

    /// Everything before the signatures.
    pub fn body(&self) -> &'a str {
        self.body
    }

    /// The signatures with the ids of the keys that they name.
    pub fn signatures(&self) -> impl Iterator<Item = (KeyId, [u8; 64])> + use<'a> {
        entries(self.signatures, "signature ", signature_of)
    }

    /// What the index says; nobody vouches for it.
    pub fn unverified(&self) -> VerifiedIndex<'a> {
        VerifiedIndex(*self)
    }

    /// Verifies it: a signature by a timestamp key that is not revoked; namespace and trust version; that it is not
    /// older than `seen`, the last one that was accepted; and that it has not expired at `now`, where that is known.
    ///
    /// A signature by a timestamp key that does not hold condemns the index; those of other keys are passed over.
    ///
    /// # Errors
    /// [`Error::Index`] with the first of these that does not hold.
    pub fn verify(
        &self,
        store: &TrustStore<'_>,
        seen: Option<&IndexFloor>,
        now: Option<u64>,
    ) -> Result<VerifiedIndex<'a>, Error> {
        self.check_signatures(store)?;
        let (index, expected) = (Namespace::of_name(self.namespace), store.namespace());
        if index != expected {
            return Err(IndexError::OtherNamespace { index, expected }.into());
        }
        let (index, newest) = (self.version.trust_version, store.version());
        if index > newest {
            return Err(IndexError::TrustStoreTooOld {
                index,
                store: newest,
            }
            .into());
        }
        self.check_rollback(seen)?;
        if let Some(now) = now.filter(|now| *now > self.expires) {
            let expires = self.expires;
            return Err(IndexError::Expired { expires, now }.into());
        }
        Ok(VerifiedIndex(*self))
    }

    fn check_signatures(&self, store: &TrustStore<'_>) -> Result<(), Error> {
        let (mut holds, mut revoked) = (false, None);
        let statement = self.statement();
        for (id, signature) in self.signatures() {
            let mut keys = store.keys_for(KeyRole::Timestamp);
            let Some(known) = keys.find(|known| known.id == id) else {
                continue;
            };
            if !known.key.has_signed(statement.as_bytes(), &signature) {
                return Err(IndexError::BadSignature { key: id }.into());
            }
            match store.revoked_keys().any(|key| key == id) {
                true => revoked = revoked.or(Some(id)),
                false => holds = true,
            }
        }
        match (holds, revoked) {
            (true, _) => Ok(()),
            (false, Some(key)) => Err(IndexError::RevokedKey { key }.into()),
            (false, None) => Err(IndexError::Untrusted.into()),
        }
    }

    fn check_rollback(&self, seen: Option<&IndexFloor>) -> Result<(), Error> {
        let found = self.version;
        let Some(seen) = seen else { return Ok(()) };
        if found < seen.version {
            let seen = seen.version;
            return Err(IndexError::Rollback { found, seen }.into());
        }
        match found == seen.version && self.id() != seen.id {
            true => Err(IndexError::Rival { found }.into()),
            false => Ok(()),
        }
    }
}

impl<'a> VerifiedIndex<'a> {
    /// Name of the fleet.
    pub fn namespace_name(&self) -> &'a str {
        self.0.namespace
    }

    /// Its version.
    pub fn version(&self) -> IndexVersion {
        self.0.version
    }

    /// When it was made, unix seconds: it is not earlier now.
    pub fn dated(&self) -> u64 {
        self.0.dated
    }

    /// Last second of validity, unix seconds.
    pub fn expires(&self) -> u64 {
        self.0.expires
    }

    /// What a device remembers of it.
    pub fn floor(&self) -> IndexFloor {
        IndexFloor {
            id: self.0.id(),
            version: self.0.version,
            dated: self.0.dated,
            expires: self.0.expires,
        }
    }

    /// The newest bundles, in ascending order of their tasks.
    pub fn tasks(&self) -> impl Iterator<Item = IndexEntry<'a>> + use<'a> {
        entries(self.0.tasks, "task ", task_of)
    }

    /// The newest bundle of a task.
    pub fn task(&self, task: &str) -> Option<IndexEntry<'a>> {
        self.tasks().find(|entry| entry.task == task)
    }
}

impl From<IndexError> for Error {
    fn from(error: IndexError) -> Self {
        Self::Index(error)
    }
}

const fn malformed(line: usize, rule: &'static str) -> Error {
    Error::Index(IndexError::Malformed { line, rule })
}

/// Decimal digits from 1, without sign, spaces or leading zeros.
fn positive(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    plain.then(|| text.parse().ok()).flatten()
}

/// `TASK TRUST-VERSION SEQUENCE BUNDLE-ID`.
fn task_of(text: &str) -> Option<IndexEntry<'_>> {
    let mut words = split(text, b' ');
    let task = words.next().filter(|task| is_task_id(task))?;
    let trust_version = u32::try_from(positive(words.next()?)?).ok()?;
    let sequence = words.next()?;
    let sequence = if sequence == "0" {
        0
    } else {
        positive(sequence)?
    };
    let bundle_id = Id::from_hex(words.next()?)?;
    words.next().is_none().then_some(IndexEntry {
        task,
        trust_version,
        sequence,
        bundle_id,
    })
}

/// `KEY-ID SIGNATURE`, both in hex.
fn signature_of(text: &str) -> Option<(KeyId, [u8; 64])> {
    let (key, signature) = split_once(text, b' ')?;
    Some((Id::from_hex(key)?, Id::<64>::from_hex(signature)?.0))
}

/// The entries of lines that [`Index::parse`] has checked.
fn entries<'a, T: 'a>(
    lines: &'a str,
    word: &'static str,
    read: fn(&'a str) -> Option<T>,
) -> impl Iterator<Item = T> + use<'a, T> {
    split(lines, b'\n').filter_map(move |line| read(line.strip_prefix(word)?))
}

/// The lines of an index, each ending in a line feed.
struct Lines<'a> {
    text: &'a str,
    rest: &'a str,
    number: usize,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            text,
            rest: text,
            number: 0,
        }
    }

    /// Everything that was read.
    fn read(&self) -> &'a str {
        self.read_from(0)
    }

    /// What was read from byte `begin` on.
    fn read_from(&self, begin: usize) -> &'a str {
        self.text.get(begin..self.bytes()).unwrap_or_default()
    }

    fn bytes(&self) -> usize {
        self.text.len().saturating_sub(self.rest.len())
    }

    fn refuse(&self, rule: &'static str) -> Error {
        malformed(self.number, rule)
    }

    fn peek(&self) -> Option<&'a str> {
        let line = split(self.rest, b'\n').next();
        line.filter(|_| !self.rest.is_empty())
    }

    fn next(&mut self) -> Result<&'a str, Error> {
        self.number = self.number.saturating_add(1);
        let (line, rest) = split_once(self.rest, b'\n')
            .ok_or(self.refuse("a line is missing, or does not end in a line feed"))?;
        self.rest = rest;
        Ok(line)
    }

    fn exactly(&mut self, expected: &str) -> Result<(), Error> {
        match self.next()? == expected {
            true => Ok(()),
            false => Err(self.refuse("the first line is not: preface-index v1")),
        }
    }

    /// The value of a line that begins with `word`.
    fn value<T>(
        &mut self,
        word: &'static str,
        read: impl FnOnce(&'a str) -> Option<T>,
    ) -> Result<T, Error> {
        let line = self.next()?;
        line.strip_prefix(word).and_then(read).ok_or(self.refuse(
            "not the line that the grammar has here, with one space and a value of its kind",
        ))
    }

    /// A run of 0 to `most` lines that begin with `word`, strictly ascending by their key.
    fn run<T, K: PartialOrd + Copy>(
        &mut self,
        word: &'static str,
        most: usize,
        read: fn(&'a str) -> Option<T>,
        key: fn(&T) -> K,
    ) -> Result<&'a str, Error> {
        let begin = self.bytes();
        let (mut last, mut count) = (None, 0usize);
        while self.peek().is_some_and(|line| line.starts_with(word)) {
            let entry = self.value(word, read)?;
            let key = key(&entry);
            if last.is_some_and(|last| last >= key) {
                return Err(self.refuse("tasks and key ids are strictly ascending"));
            }
            last = Some(key);
            count = count.saturating_add(1);
            if count > most {
                return Err(self.refuse("more lines of this kind than an index may have"));
            }
        }
        Ok(self.read_from(begin))
    }

    fn end(&mut self) -> Result<(), Error> {
        match self.peek() {
            None => Ok(()),
            Some(_) => {
                self.number = self.number.saturating_add(1);
                Err(self.refuse("not a line that the grammar has here"))
            }
        }
    }
}

#[cfg(test)]
mod tests;
