extern crate std;
use std::{
    borrow::ToOwned,
    format,
    string::{String, ToString},
    vec::Vec,
};

use ed25519_dalek::{Signer, SigningKey};
use proptest::prelude::*;

use super::*;
use crate::{
    CONTEXT, TRUST_CONTEXT,
    testing::{Sample, public_key},
};

/// Timestamp key of the stores here; 1 signs bundles, 2 is a root.
const TIME: u8 = 3;

fn body(version: u64) -> String {
    let newest = Id([7; 32]);
    format!(
        "preface-index v1\nnamespace default\ntrust-version 2\nversion {version}\n\
         dated 2026-11-23T00:00:00Z\nexpires 2026-12-07T00:00:00Z\n\
         task door 1 9 {newest}\ntask intent 2 0 {newest}\n"
    )
}

fn signed(body: &str, seeds: &[u8]) -> String {
    let statement = Index::parse(body).expect("a good body").statement();
    let mut lines: Vec<String> = seeds
        .iter()
        .map(|seed| {
            let key = SigningKey::from_bytes(&[*seed; 32]);
            let signature = Id(key.sign(statement.as_bytes()).to_bytes());
            format!("signature {} {signature}\n", public_key([*seed; 32]).id())
        })
        .collect();
    lines.sort();
    body.to_owned() + &lines.concat()
}

fn store(version: u32, more: &str) -> String {
    let [key, root, time] = [1, 2, TIME].map(|seed| public_key([seed; 32]));
    format!(
        "preface-trust v1\nnamespace default\nversion {version}\nthreshold 1\nkey {key}\n\
         root {root}\nroot-threshold 1\ntimestamp {time} name=clock\n{more}\n"
    )
}

fn verify(
    index: &str,
    store: &str,
    seen: Option<&IndexFloor>,
    now: Option<u64>,
) -> Result<IndexFloor, IndexError> {
    let store = TrustStore::parse(store).expect("a valid store");
    let verified = Index::parse(index).and_then(|index| index.verify(&store, seen, now));
    match verified {
        Ok(index) => Ok(index.floor()),
        Err(Error::Index(error)) => Err(error),
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn a_good_index_is_read_and_verified() {
    let text = signed(&body(5), &[TIME]);
    let index = Index::parse(&text).expect("a good index");
    let trust = store(2, "");
    let trust = TrustStore::parse(&trust).expect("a valid store");
    let index = index
        .verify(&trust, None, Some(1_796_601_600))
        .expect("valid on its last second");
    assert_eq!(index.namespace_name(), "default");
    assert_eq!(index.version().to_string(), "2.5");
    assert_eq!(
        (index.dated(), index.expires()),
        (1_795_392_000, 1_796_601_600)
    );
    let tasks: Vec<_> = index
        .tasks()
        .map(|entry| (entry.task, entry.order()))
        .collect();
    assert_eq!(tasks, [("door", (1, 9)), ("intent", (2, 0))]);
    assert_eq!(
        index.task("intent").map(|entry| entry.bundle_id),
        Some(Id([7; 32]))
    );
    assert!(index.task("other").is_none());
}

#[test]
fn what_is_outside_the_grammar_is_refused() {
    let good = body(5);
    let id = Id([7; 32]);
    let task = format!("task door 1 9 {id}\n");
    let many = |count: usize| -> String {
        (0..count)
            .map(|number| format!("task a{number:03} 1 1 {id}\n"))
            .collect()
    };
    let cases = [
        ("empty", String::new()),
        ("another first line", good.replace("index v1", "index v2")),
        ("a line left out", good.replace("version 5\n", "")),
        (
            "lines in another order",
            good.replace(
                "version 5\ndated 2026-11-23T00:00:00Z\n",
                "dated 2026-11-23T00:00:00Z\nversion 5\n",
            ),
        ),
        (
            "a line twice",
            good.replace("version 5\n", "version 5\nversion 5\n"),
        ),
        ("a blank line", good.replace("version 5\n", "version 5\n\n")),
        ("a comment", good.clone() + "# newest\n"),
        ("two spaces", good.replace("version 5", "version  5")),
        (
            "a space at the end",
            good.replace("version 5", "version 5 "),
        ),
        ("windows line ends", good.replace('\n', "\r\n")),
        ("no line end", good.trim_end().to_owned()),
        ("version 0", body(0)),
        ("version 05", good.replace("version 5", "version 05")),
        (
            "version of 2^64",
            good.replace("version 5", "version 18446744073709551616"),
        ),
        (
            "trust version of 2^32",
            good.replace("trust-version 2", "trust-version 4294967296"),
        ),
        (
            "trust version 0",
            good.replace("trust-version 2", "trust-version 0"),
        ),
        (
            "a namespace in capitals",
            good.replace("default", "Default"),
        ),
        (
            "a date without time",
            good.replace("2026-11-23T00:00:00Z", "2026-11-23"),
        ),
        (
            "expired when it was made",
            good.replace("2026-12-07", "2026-11-22"),
        ),
        ("tasks out of order", good.replace("door", "zoo")),
        (
            "a task twice",
            good.replace(&task, &format!("{task}{task}")),
        ),
        ("a task id in capitals", good.replace("door", "Door")),
        ("a task without id", good.replace(&task, "task door 1 9\n")),
        ("a short id", good.replace(&task, "task door 1 9 07\n")),
        (
            "an id in capitals",
            good.replace(
                &task,
                &format!("task door 1 9 {}\n", Id([0xab; 32])).replace("ab", "AB"),
            ),
        ),
        (
            "a word too many",
            good.replace(&task, &format!("task door 1 9 {id} x\n")),
        ),
        (
            "sequence -1",
            good.replace(&task, &format!("task door 1 -1 {id}\n")),
        ),
        (
            "a task of trust version 0",
            good.replace(&task, &format!("task door 0 9 {id}\n")),
        ),
        ("129 tasks", good.replace(&task, &many(129))),
        (
            "a task behind the signatures",
            signed(&good, &[TIME]) + &task.replace("door", "zoo"),
        ),
        ("a short signature", good.clone() + "signature 00 00\n"),
        ("a signature twice", {
            let text = signed(&good, &[TIME]);
            let line = text[good.len()..].to_owned();
            text + &line
        }),
        (
            "nine signatures",
            signed(&good, &[1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ),
        ("too large", good.clone() + &" ".repeat(MAX_INDEX_BYTES)),
    ];
    assert!(Index::parse(&good).is_ok());
    assert!(Index::parse(&good.replace(&task, &many(127))).is_ok());
    for (name, text) in cases {
        let error = Index::parse(&text).map(|_| ());
        let malformed = matches!(error, Err(Error::Index(IndexError::Malformed { .. })));
        assert!(malformed, "{name}: {error:?}");
    }
    let error = Index::parse(&good.replace("dated ", "date ")).map(|_| ());
    assert!(
        matches!(
            error,
            Err(Error::Index(IndexError::Malformed { line: 5, .. }))
        ),
        "{error:?}"
    );
}

#[test]
fn only_a_timestamp_key_that_is_not_revoked_vouches_for_an_index() {
    let body = body(5);
    let good = signed(&body, &[TIME]);
    let id = |seed: u8| public_key([seed; 32]).id();
    let check = |index: &str, more: &str| verify(index, &store(2, more), None, None).map(|_| ());
    assert_eq!(check(&good, ""), Ok(()));
    assert_eq!(check(&body, ""), Err(IndexError::Untrusted), "no signature");
    assert_eq!(
        check(&signed(&body, &[1, 2, 9]), ""),
        Err(IndexError::Untrusted),
        "keys for other things"
    );
    assert_eq!(
        check(&signed(&body, &[9, TIME]), ""),
        Ok(()),
        "an unknown key beside it"
    );
    let bad = Err(IndexError::BadSignature { key: id(TIME) });
    assert_eq!(check(&good.replace("version 5", "version 6"), ""), bad);
    assert_eq!(check(&good.replace(" 1 9 07", " 1 9 08"), ""), bad);
    let revoke = format!("revoke-key {}\n", id(TIME));
    assert_eq!(
        check(&good, &revoke),
        Err(IndexError::RevokedKey { key: id(TIME) })
    );
    let second = format!("{revoke}timestamp {}\n", public_key([4; 32]));
    assert_eq!(
        check(&signed(&body, &[TIME, 4]), &second),
        Ok(()),
        "a current key beside it"
    );
    let foreign = body.replace("default", "acme");
    assert!(matches!(
        check(&signed(&foreign, &[TIME]), ""),
        Err(IndexError::OtherNamespace { .. })
    ));
    let old = verify(&good, &store(1, ""), None, None);
    assert_eq!(
        old,
        Err(IndexError::TrustStoreTooOld { index: 2, store: 1 })
    );
}

/// Nothing that is signed as one of the three can stand for another, whichever key signed it.
#[test]
fn no_signature_on_an_index_is_one_on_a_bundle_or_a_trust_store() {
    assert!(INDEX_CONTEXT != CONTEXT && INDEX_CONTEXT != TRUST_CONTEXT);
    let [text, trust] = [body(5), store(2, "")];
    let index = Index::parse(&text).expect("a good body").statement();
    let trust = TrustStatement::of(&TrustStore::parse(&trust).expect("a valid store"));
    let bundle = Sample::default().prefix();
    let statements = [index.as_bytes(), trust.as_bytes(), &bundle];
    let key = SigningKey::from_bytes(&[TIME; 32]);
    for (place, one) in statements.iter().enumerate() {
        let signature = key.sign(one).to_bytes();
        for (other_place, other) in statements.iter().enumerate() {
            let holds = public_key([TIME; 32]).has_signed(other, &signature);
            assert_eq!(holds, place == other_place, "{place} {other_place}");
        }
    }
    assert!(index.as_bytes().len() <= 208);
}

/// A timestamp key in a bundle's signature block counts for nothing.
#[test]
fn a_timestamp_key_signs_no_bundle() {
    let sample = Sample {
        seeds: [[TIME; 32]].into(),
        ..Sample::default()
    };
    let (file, trust) = (sample.file(), store(2, ""));
    let trust = TrustStore::parse(&trust).expect("a valid store");
    let refused =
        crate::Frame::parse(&file).and_then(|frame| frame.authenticate(&trust).map(|_| ()));
    assert!(
        matches!(refused, Err(Error::Untrusted { valid: 0, .. })),
        "{refused:?}"
    );
}

#[test]
fn older_rival_and_expired_indexes_are_refused_and_a_new_trust_version_begins_low_again() {
    let trust = store(2, "");
    let seen = verify(&signed(&body(5), &[TIME]), &trust, None, None).expect("accepted");
    let again = |text: &str, now| verify(&signed(text, &[TIME]), &trust, Some(&seen), now);
    assert_eq!(again(&body(5), None), Ok(seen), "the same again");
    assert!(again(&body(6), None).is_ok());
    let older = IndexVersion {
        trust_version: 2,
        version: 4,
    };
    let rollback = |found| IndexError::Rollback {
        found,
        seen: seen.version,
    };
    assert_eq!(again(&body(4), None), Err(rollback(older)));
    let rival = body(5).replace("intent 2 0", "intent 2 1");
    assert_eq!(
        again(&rival, None),
        Err(IndexError::Rival {
            found: seen.version
        })
    );
    let below = IndexVersion {
        trust_version: 1,
        version: u64::MAX,
    };
    let low = body(u64::MAX).replace("trust-version 2", "trust-version 1");
    assert_eq!(again(&low, None), Err(rollback(below)));
    let late = Some(1_796_601_601);
    let expired = IndexError::Expired {
        expires: 1_796_601_600,
        now: 1_796_601_601,
    };
    assert_eq!(again(&body(6), late), Err(expired));
    assert_eq!(expired.exit_code(), 16);
    let recovered = body(1).replace("trust-version 2", "trust-version 3");
    let far = IndexFloor {
        version: IndexVersion {
            trust_version: 2,
            version: u64::MAX,
        },
        ..seen
    };
    assert!(
        verify(
            &signed(&recovered, &[TIME]),
            &store(3, ""),
            Some(&far),
            None
        )
        .is_ok()
    );
}

proptest! {
    /// A reader never panics, and what it reads is the whole of the text.
    #[test]
    fn no_text_panics_the_reader(noise in "\\PC{0,60}", at in 0usize..1200, with in any::<char>(), cut in 0usize..1200) {
        let text = signed(&body(5), &[TIME]);
        let place = text.char_indices().map(|(place, _)| place).nth(at % text.len()).unwrap_or(0);
        let mut changed = text.clone();
        changed.replace_range(place..=place, &String::from(with));
        let cut = text.get(..cut % text.len()).unwrap_or_default();
        let trust = store(2, "");
        let trust = TrustStore::parse(&trust).expect("a valid store");
        for one in [noise.as_str(), cut, &changed, &format!("preface-index v1\n{noise}")] {
            if let Ok(index) = Index::parse(one) {
                let signatures: String = index.signatures()
                    .map(|(key, signature)| format!("signature {key} {}\n", Id(signature))).collect();
                prop_assert_eq!(index.body().to_owned() + &signatures, one);
                prop_assert!(one == text || index.verify(&trust, None, None).is_err());
            }
        }
    }
}
