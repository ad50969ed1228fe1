//! The fleet's index: a device that is held back notices.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use preface_bundle::UtcTime;
use preface_runtime::{
    Trust,
    store::{Checked, Install, Standing, StoreError},
};
use serde_json::Value;

use crate::scene::{Design, PROGRAM, Probe, Scene, good, id_of};

const DAY: u64 = 86_400;

/// A fleet with a timestamp key, at trust version 2.
struct Fleet {
    scene: Scene,
    /// When its first index is made.
    begin: u64,
}

/// What an index says, besides the newest bundles.
#[derive(Clone, Copy)]
struct Made {
    version: u64,
    /// Days from the beginning to when it is made.
    day: u64,
    /// Days that it is valid.
    days: u64,
}

impl Fleet {
    fn new() -> Self {
        let scene = Scene::new();
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let fleet = Self {
            scene,
            begin: now - DAY,
        };
        fleet.clock("clock");
        fleet
    }

    fn text(&self, name: &str) -> String {
        self.scene.text(name)
    }

    /// Makes a timestamp key, and a trust store of the next version that names it.
    fn clock(&self, name: &str) {
        let keys = self.text("keys");
        good(&["keygen", "-o", &keys, "--name", name, "--no-passphrase"]);
        let public = self.text(&format!("keys/{name}.pub"));
        good(&["trust", "add", &self.text("trust"), "--timestamp", &public]);
    }

    fn day(&self, day: u64) -> Option<u64> {
        Some(self.begin + day * DAY)
    }

    /// An index that names these bundles, signed by the key.
    fn index(&self, name: &str, made: Made, bundles: &[&str], key: &str) -> PathBuf {
        let dated = self.begin + made.day * DAY;
        let expires = UtcTime(dated + made.days * DAY).to_string();
        let (version, path) = (made.version.to_string(), self.text(name));
        let trust = self.text("trust");
        let mut command = Command::new(PROGRAM);
        command.args(["index", "new", "--trust", &trust, "--version", &version]);
        command.args(["--expires", &expires, "-o", &path]);
        command.args(bundles.iter().map(|bundle| self.text(bundle)));
        command.env("SOURCE_DATE_EPOCH", dated.to_string());
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let key = self.text(&format!("keys/{key}.key"));
        good(&["index", "sign", &path, "--key", &key]);
        self.scene.at(name)
    }

    fn check(&self, index: &Path, now: Option<u64>) -> Result<Checked, (u8, &'static str)> {
        let trust = self.scene.trust();
        let checked = self.scene.store().check_index(index, &trust, now);
        checked.map_err(answer)
    }

    fn install(
        &self,
        name: &str,
        index: Option<&Path>,
        now: Option<u64>,
    ) -> Result<(), (u8, &'static str)> {
        let (file, trust): (PathBuf, Trust) = (self.scene.at(name), self.scene.trust());
        let request = Install {
            index,
            ..Install::new(&file, &trust, now)
        };
        let installed = self.scene.store().install(&self.scene.image(), &request);
        installed.map(|_| ()).map_err(answer)
    }

    /// Exit code and report of `index check`, at the time that it is.
    fn says(&self, arguments: &[&str]) -> (i32, Value) {
        self.scene.verb(&[&["index", "check"], arguments].concat())
    }

    fn seen(&self) -> Option<(u32, u64)> {
        let index = self.scene.state().index?;
        Some((index.version.trust_version, index.version.version))
    }
}

fn answer(error: StoreError) -> (u8, &'static str) {
    (error.exit_code(), error.reason())
}

const FIRST: Made = Made {
    version: 1,
    day: 0,
    days: 14,
};
const SECOND: Made = Made {
    version: 2,
    day: 10,
    days: 14,
};

#[test]
fn a_device_says_when_a_newer_bundle_is_out() {
    let fleet = Fleet::new();
    fleet.scene.installed("old");
    let (index, trust) = (fleet.text("index"), fleet.text("trust"));
    assert_eq!(fleet.says(&[]).1["reason"], "no-index");
    fleet.index("index", FIRST, &["old"], "clock");
    let (code, report) = fleet.says(&[&index, "--trust", &trust]);
    assert_eq!((code, &report["reason"]), (0, &"newest".into()), "{report}");
    fleet.index(
        "index",
        Made {
            version: 2,
            ..FIRST
        },
        &["new"],
        "clock",
    );
    let (code, report) = fleet.says(&[&index, "--trust", &trust]);
    assert_eq!(
        (code, &report["reason"]),
        (15, &"held-back".into()),
        "{report}"
    );
    let task = &report["tasks"][0];
    assert_eq!(task["standing"], "behind");
    assert_eq!(task["newest"], id_of(&fleet.scene.at("new")).to_string());
    let (code, report) = fleet.scene.install("new", &["--index", &index]);
    assert_eq!(code, 0, "{report}");
    let (code, report) = fleet.says(&[&index, "--trust", &trust]);
    assert_eq!((code, &report["changed"]), (0, &false.into()), "{report}");
    let (code, report) = fleet.says(&[]);
    assert_eq!(
        (code, &report["index"]["version"]),
        (0, &2.into()),
        "{report}"
    );
    let (_, listed) = fleet.scene.verb(&["list"]);
    assert_eq!(listed["index"]["version"], 2, "{listed}");
    assert_eq!(fleet.scene.verb(&["rollback", "intent"]).0, 0);
    assert_eq!(
        fleet.says(&[&index, "--trust", &trust]).0,
        15,
        "whoever steps back is behind"
    );
}

/// A freeze attack: whoever stands between sends the last index for ever, or none.
#[test]
fn a_device_that_gets_no_newer_index_notices() {
    let fleet = Fleet::new();
    let first = fleet.index("first", FIRST, &["old"], "clock");
    assert_eq!(fleet.install("old", Some(&first), fleet.day(1)), Ok(()));
    let last = |now| {
        fleet
            .scene
            .store()
            .last_index(now)
            .map(|_| ())
            .map_err(answer)
    };
    for now in [None, Some(0), fleet.day(14)] {
        assert!(fleet.check(&first, now).is_ok(), "{now:?}");
        assert_eq!(last(now), Ok(()));
    }
    let late = fleet.begin + 14 * DAY + 1;
    assert_eq!(
        fleet.check(&first, Some(late)).map(|_| ()),
        Err((16, "index-expired"))
    );
    assert_eq!(last(Some(late)), Err((16, "index-expired")));
    assert_eq!(
        fleet.install("old", Some(&first), Some(late)),
        Err((16, "index-expired"))
    );
    assert_eq!(
        fleet.install("old", None, Some(late)),
        Ok(()),
        "without an index nothing is asked of one"
    );
    // A clock that is put back does not help: the trust store's date is a floor.
    let trust = fs::read_to_string(fleet.scene.at("trust")).unwrap();
    let dated = trust.replace("version 2", "version 3") + &format!("dated {}\n", UtcTime(late));
    fs::write(fleet.scene.at("trust"), dated).unwrap();
    assert_eq!(
        fleet.check(&first, Some(0)).map(|_| ()),
        Err((16, "index-expired"))
    );
    assert!(fleet.scene.store().remember(&fleet.scene.trust()).unwrap());
    assert_eq!(last(None), Err((16, "index-expired")));
    // Nor does the index's own date help: that of a newer one is a floor too.
    let fleet = Fleet::new();
    let bundles = Design {
        name: "short",
        sequence: 3,
        salt: 3,
        probe: Probe::None,
        more: &["--not-after", &UtcTime(fleet.begin + 5 * DAY).to_string()],
    };
    fleet.scene.design(&bundles);
    let index = fleet.index("index", SECOND, &["old"], "clock");
    assert_eq!(fleet.install("old", Some(&index), Some(0)), Ok(()));
    assert_eq!(
        fleet.install("short", None, Some(0)),
        Err((16, "expired")),
        "it is day 10 at least"
    );
}

#[test]
fn an_old_index_is_not_accepted_again() {
    let fleet = Fleet::new();
    let first = fleet.index("first", FIRST, &["old"], "clock");
    let second = fleet.index("second", SECOND, &["new"], "clock");
    fleet.scene.installed("old");
    let behind = fleet.check(&second, None).unwrap();
    assert_eq!(behind.behind().count(), 1);
    assert_eq!(
        fleet.seen(),
        Some((2, 2)),
        "it is remembered, however the tasks stand"
    );
    let before = fleet.scene.state();
    assert_eq!(
        fleet.check(&first, fleet.day(1)).map(|_| ()),
        Err((15, "index-rollback"))
    );
    assert_eq!(
        fleet.install("old", Some(&first), fleet.day(1)),
        Err((15, "index-rollback"))
    );
    let rival = fleet.index("rival", SECOND, &["old"], "clock");
    assert_eq!(
        fleet.check(&rival, fleet.day(11)).map(|_| ()),
        Err((15, "index-rival"))
    );
    assert_eq!(
        fleet.scene.state(),
        before,
        "what is refused changes nothing"
    );
    let (code, report) = fleet.says(&[&fleet.text("first"), "--trust", &fleet.text("trust")]);
    assert_eq!(
        (code, &report["reason"]),
        (15, &"index-rollback".into()),
        "{report}"
    );
}

/// Fast-forward: a thief of the timestamp key puts version and time as far ahead as they go.
#[test]
fn a_new_trust_version_recovers_from_a_stolen_timestamp_key() {
    let fleet = Fleet::new();
    let far = Made {
        version: u64::MAX,
        day: 365_000,
        days: 1,
    };
    let stolen = fleet.index("stolen", far, &["old"], "clock");
    assert_eq!(fleet.install("old", Some(&stolen), fleet.day(1)), Ok(()));
    let good = fleet.index("good", SECOND, &["new"], "clock");
    assert_eq!(
        fleet.check(&good, fleet.day(10)).map(|_| ()),
        Err((15, "index-rollback"))
    );
    let until = UtcTime(fleet.begin + 100 * DAY).to_string();
    let not_after = ["--not-after", &until];
    let design = |name, sequence| Design {
        name,
        sequence,
        salt: 4,
        probe: Probe::None,
        more: &not_after,
    };
    fleet.scene.design(&design("season", 7));
    assert_eq!(
        fleet.install("season", None, fleet.day(10)),
        Err((16, "expired")),
        "the thief moved time"
    );
    // The key is revoked, another is named: trust version 4, and versions begin anew.
    fleet.clock("second");
    let key = fs::read_to_string(fleet.scene.at("keys/clock.pub")).unwrap();
    let line = key
        .split_whitespace()
        .find(|word| word.starts_with("ed25519:"))
        .unwrap();
    let id = preface_bundle::PublicKey::from_text(line)
        .unwrap()
        .id()
        .to_string();
    crate::scene::good(&["trust", "revoke", &fleet.text("trust"), "--key", &id]);
    let again = fleet.index(
        "again",
        Made {
            version: 1,
            day: 11,
            days: 14,
        },
        &["season"],
        "second",
    );
    assert_eq!(
        fleet.check(&stolen, fleet.day(11)).map(|_| ()),
        Err((17, "index-revoked-key"))
    );
    let checked = fleet.check(&again, fleet.day(11)).unwrap();
    assert_eq!(checked.tasks[0].standing, Standing::Behind);
    assert_eq!(fleet.seen(), Some((4, 1)));
    assert_eq!(fleet.install("season", Some(&again), fleet.day(12)), Ok(()));
    assert_eq!(
        fleet.check(&good, fleet.day(12)).map(|_| ()),
        Err((17, "index-revoked-key"))
    );
}

/// Mix and match: bundles and indexes, each good by itself, that never belonged together.
#[test]
fn a_bundle_is_installed_with_an_index_only_if_that_names_it() {
    let fleet = Fleet::new();
    let first = fleet.index("first", FIRST, &["old"], "clock");
    let second = fleet.index("second", SECOND, &["new"], "clock");
    let now = fleet.day(11);
    assert_eq!(
        fleet.install("old", Some(&second), now),
        Err((15, "not-newest"))
    );
    assert_eq!(
        fleet.install("new", Some(&first), now),
        Err((15, "not-newest")),
        "newer than it says"
    );
    fleet.scene.pack(2, 9, "rival");
    assert_eq!(
        fleet.install("rival", Some(&second), now),
        Err((15, "not-newest")),
        "the same numbers"
    );
    assert!(fleet.scene.store().state().is_err(), "nothing was written");
    assert_eq!(fleet.install("rival", None, now), Ok(()));
    let standing = |index: &Path| fleet.check(index, now).unwrap().tasks[0].standing;
    assert_eq!(standing(&first), Standing::Ahead);
    assert_eq!(standing(&second), Standing::Rival);
    assert_eq!(fleet.check(&second, now).unwrap().behind().count(), 1);
    // Another task's index names nothing for this one.
    let adapter = fleet.text("adapter");
    let (key, mood) = (fleet.text("keys/k.key"), fleet.text("mood"));
    let pack = ["pack", &adapter, "--task", "mood", "--sequence", "1"];
    good(&[&pack[..], &["--key", &key, "-o", &mood]].concat());
    let third = fleet.index(
        "third",
        Made {
            version: 3,
            ..SECOND
        },
        &["mood"],
        "clock",
    );
    fleet.scene.pack(3, 3, "next");
    assert_eq!(
        fleet.install("next", Some(&third), now),
        Err((15, "not-in-index"))
    );
    assert_eq!(standing(&third), Standing::Unlisted);
}

#[test]
fn what_no_timestamp_key_signed_is_no_index() {
    let fleet = Fleet::new();
    fleet.scene.installed("old");
    let before = fleet.scene.state();
    let good_index = fleet.index("index", FIRST, &["new"], "clock");
    let text = fs::read_to_string(&good_index).unwrap();
    let by_release = fleet.index("release", FIRST, &["new"], "k");
    let write = |name: &str, text: &str| {
        fs::write(fleet.scene.at(name), text).unwrap();
        fleet.scene.at(name)
    };
    let unsigned = text
        .split_inclusive('\n')
        .filter(|line| !line.starts_with("signature"));
    let unsigned = write("unsigned", &unsigned.collect::<String>());
    let bundle = fleet.scene.at("old");
    let cases = [
        (
            "signed by a release key",
            by_release,
            (11, "index-untrusted"),
        ),
        ("not signed", unsigned, (11, "index-untrusted")),
        (
            "changed",
            write("changed", &text.replace("version 1\n", "version 9\n")),
            (12, "index-bad-signature"),
        ),
        (
            "cut short",
            write("short", &text[..text.len() - 1]),
            (10, "index-malformed"),
        ),
        ("a bundle", bundle, (20, "index-unreadable")),
        (
            "not there",
            fleet.scene.at("nowhere"),
            (20, "index-unreadable"),
        ),
        (
            "too large",
            write("large", &" ".repeat(40_000)),
            (10, "index-unreadable"),
        ),
    ];
    for (name, path, expected) in cases {
        assert_eq!(
            fleet.check(&path, fleet.day(1)).map(|_| ()),
            Err(expected),
            "{name}"
        );
        assert_eq!(
            fleet.install("new", Some(&path), fleet.day(1)),
            Err(expected),
            "{name}"
        );
    }
    assert_eq!(fleet.scene.state(), before);
    let text = fs::read_to_string(fleet.scene.at("trust")).unwrap();
    let other = text.replace("namespace default", "namespace acme");
    fs::write(fleet.scene.at("trust"), other).unwrap();
    assert_eq!(
        fleet.check(&good_index, None).map(|_| ()),
        Err((18, "state-of-another"))
    );
}

#[test]
fn an_index_is_made_of_the_one_before() {
    let fleet = Fleet::new();
    let at = |name: &str| fleet.text(name);
    fleet.index("first", FIRST, &["old"], "clock");
    let run = |arguments: &[&str]| reported_or_error(arguments);
    let (trust, first, second) = (at("trust"), at("first"), at("second"));
    let new = [
        "index", "new", "--trust", &trust, "--from", &first, "--days", "14", "-o", &second,
    ];
    let (code, report) = run(&[&new[..], &[&at("new")]].concat());
    assert_eq!(code, 0, "{report}");
    assert_eq!(
        (&report["version"], &report["trust_version"]),
        (&2.into(), &2.into())
    );
    assert_eq!(
        report["tasks"][0]["bundle_id"],
        id_of(&fleet.scene.at("new")).to_string()
    );
    let (code, report) = run(&["index", "show", &second, "--trust", &trust]);
    assert_eq!(code, 11, "unsigned: {report}");
    good(&["index", "sign", &second, "--key", &at("keys/clock.key")]);
    let (code, report) = run(&["index", "show", &second, "--trust", &trust]);
    assert_eq!((code, &report["verified"]), (0, &true.into()), "{report}");
    let (code, report) = run(&["index", "show", &second]);
    assert_eq!((code, &report["verified"]), (0, &false.into()), "{report}");
    // Made anew without a bundle, and never back to an older one.
    let third = at("third");
    let again = [
        "index", "new", "--trust", &trust, "--from", &second, "--days", "14", "-o", &third,
    ];
    let (code, report) = run(&again);
    assert_eq!((code, &report["version"]), (0, &3.into()), "{report}");
    let (code, report) = run(&[&again[..], &[&at("old")]].concat());
    assert!(
        code == 2 && report["error"].as_str().unwrap().contains("is not newer"),
        "{report}"
    );
    let (code, _) = run(&[
        "index", "new", "--trust", &trust, "--days", "1", "-o", &third,
    ]);
    assert_eq!(code, 2, "an index of nothing");
    fs::write(fleet.scene.at("junk"), "junk").unwrap();
    let junk = [
        "index",
        "new",
        &at("junk"),
        "--trust",
        &trust,
        "--days",
        "1",
        "-o",
        &third,
    ];
    assert_eq!(run(&junk).0, 10);
    assert_eq!(
        run(&["index", "sign", &at("junk"), "--key", &at("keys/clock.key")]).0,
        10
    );
}

/// Exit code and JSON of a verb that reports an error as one.
fn reported_or_error(arguments: &[&str]) -> (i32, Value) {
    let output = Command::new(PROGRAM)
        .args(arguments)
        .arg("--json")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout);
    let report: Value = report.unwrap_or_else(|error| panic!("{arguments:?}: {error}: {said}"));
    (output.status.code().unwrap(), report)
}
