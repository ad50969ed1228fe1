//! The reader against tests/verifier.py, which was written from FORMAT.md alone: one verdict, one identity.

use std::{
    env, fs,
    io::{Read, Write},
    process::{Command, Stdio},
    thread,
};

use preface_runtime::bundle::decode;

use crate::{
    Codec, Error, Frame, Id, Policy, TrustStore,
    seal::{LEAST_BYTES, Repair, resigned},
};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Numbers that repeat with their seed (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).unwrap()
    }
}

/// One to three changes, half of them where the manifest's fields are.
fn changed(good: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    const TELLING: [u8; 8] = [0, 1, 2, 4, 0x7f, 0x80, 0xfe, 0xff];
    let mut file = good.to_vec();
    for _ in 0..=numbers.below(3) {
        let span = if numbers.below(2) == 0 {
            file.len()
        } else {
            file.len().min(900)
        };
        let at = numbers.below(span);
        match numbers.below(6) {
            0 => file[at] ^= 1 << numbers.below(8),
            1 => file[at] = TELLING[numbers.below(8)],
            2 => file[at] = file[at].wrapping_add(1),
            3 => {
                let end = (at + 1 + numbers.below(4)).min(file.len());
                file.drain(at..end);
            }
            4 => drop(file.splice(at..at, [TELLING[numbers.below(8)]; 4])),
            _ => {
                let from = numbers.below(file.len());
                let length = (1 + numbers.below(8)).min(file.len() - from.max(at));
                file.copy_within(from..from + length, at);
            }
        }
        if file.len() < LEAST_BYTES {
            return good.to_vec();
        }
    }
    match numbers.below(4) {
        0 => file,
        1 => resigned(&file, Repair::Signature),
        _ => resigned(&file, Repair::All),
    }
}

/// Exit code, id and digest of the decoded payload, as the other verifier writes them.
fn verdict(store: &TrustStore<'_>, policy: &Policy, file: &[u8]) -> String {
    let mut digest = String::from("-");
    let mut open = || -> Result<Id, Error> {
        let admitted = Frame::parse(file)?.authenticate(store)?.admit(policy)?;
        let decoded = decode(&admitted)?;
        digest = Id::of(&decoded).to_string();
        admitted.open(&decoded).map(|bundle| bundle.bundle_id())
    };
    match open() {
        Ok(id) => format!("0 {id} {digest}"),
        Err(error) => format!("{} - {digest}", error.exit_code()),
    }
}

/// Whether the two differ because two versions of zstd do: on frames that no encoder writes, some decode and some
/// refuse, or both decode to something else. The digest of what was signed is right for one of them at most.
fn zstd_differs(file: &[u8], ours: &str, theirs: &str) -> bool {
    let manifest = Frame::parse(file).and_then(|frame| frame.unverified_manifest());
    let digest = |verdict: &str| verdict.split(' ').next_back().map(str::to_owned);
    let accepted = [ours, theirs]
        .iter()
        .filter(|verdict| verdict.starts_with("0 "))
        .count();
    manifest.is_ok_and(|manifest| manifest.codec != Codec::Stored)
        && digest(ours) != digest(theirs)
        && accepted <= 1
}

fn goldens() -> Vec<Vec<u8>> {
    let names = fs::read_dir(format!("{ROOT}/tests/golden/bundles")).unwrap();
    let mut paths: Vec<_> = names.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "preface")
    });
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// The other verifier's verdicts; `None`, said aloud, where Python or `cryptography` is not there.
fn others(files: &[Vec<u8>]) -> Option<Vec<String>> {
    let python = env::var("PREFACE_PYTHON").unwrap_or_else(|_| "python3".into());
    let there = Command::new(&python)
        .args(["-c", "import cryptography"])
        .output();
    if !there.is_ok_and(|output| output.status.success()) {
        eprintln!(
            "SKIPPED: {python} with the package cryptography is not here; name one with PREFACE_PYTHON"
        );
        return None;
    }
    let mut child = Command::new(python)
        .arg(format!("{ROOT}/tests/verifier.py"))
        .arg(format!("{ROOT}/tests/golden/bundles/trust"))
        .args([
            Id::of(b"golden base").to_string(),
            Id::of(b"golden tokenizer").to_string(),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let bytes: Vec<u8> = files
        .iter()
        .flat_map(|file| [&u32::try_from(file.len()).unwrap().to_le_bytes()[..], file].concat())
        .collect();
    let writer = thread::spawn(move || input.write_all(&bytes));
    let mut text = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    writer.join().unwrap().unwrap();
    assert!(child.wait().unwrap().success());
    Some(text.lines().map(str::to_owned).collect())
}

#[test]
fn an_independent_verifier_agrees_on_thousands_of_changed_bundles() {
    let seed = env::var("PREFACE_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1);
    let count = env::var("PREFACE_BUNDLES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(6000);
    eprintln!("seed {seed}, {count} bundles");
    let trust = fs::read_to_string(format!("{ROOT}/tests/golden/bundles/trust")).unwrap();
    let store = TrustStore::parse(&trust).unwrap();
    let policy = Policy {
        now: Some(4_000_000_000),
        ..Policy::for_base(Id::of(b"golden base"), Id::of(b"golden tokenizer"))
    };
    let goldens = goldens();
    let mut numbers = Numbers(seed);
    let mut files = goldens.clone();
    files.extend((0..count).map(|at| changed(&goldens[at % goldens.len()], &mut numbers)));
    let Some(theirs) = others(&files) else { return };
    assert_eq!(theirs.len(), files.len());
    let mut tally = std::collections::BTreeMap::<String, usize>::new();
    for (at, (file, theirs)) in files.iter().zip(&theirs).enumerate() {
        let ours = verdict(&store, &policy, file);
        if ours != *theirs && zstd_differs(file, &ours, theirs) {
            *tally.entry("zstd differs".into()).or_default() += 1;
            continue;
        }
        if ours != *theirs {
            let path = env::temp_dir().join(format!("disagreement-{seed}-{at}.preface"));
            fs::write(&path, file).unwrap();
            panic!(
                "bundle {at}: ours {ours}, theirs {theirs}: {}",
                path.display()
            );
        }
        *tally
            .entry(ours.split(' ').next().unwrap().to_owned())
            .or_default() += 1;
    }
    eprintln!("exit codes: {tally:?}");
    for code in ["0", "10", "11", "12", "13", "14", "15"] {
        assert!(
            tally.contains_key(code),
            "no bundle ended with {code}: {tally:?}"
        );
    }
    let differing = tally.get("zstd differs").copied().unwrap_or(0);
    assert!(
        differing * 100 < files.len(),
        "{differing} frames are read differently"
    );
}
