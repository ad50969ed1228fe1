//! Where the attacks are tried: the built program, and a trust store that it is told to use.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Output},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    HEADER_BYTES,
    seal::{Repair, resigned},
    testing::{Sample, trust_text},
};

/// Base and tokenizer of a [`Sample`].
const BASE: &str = "0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b";
const TOKENIZER: &str = "0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c";

/// A folder with a trust store for the sample's key.
pub struct Device {
    folder: TempDir,
}

impl Device {
    /// Makes it.
    pub fn new() -> Self {
        let device = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        fs::write(device.at("trust"), trust_text(&[1], 1, "")).unwrap();
        fs::set_permissions(device.at("trust"), Permissions::from_mode(0o600)).unwrap();
        device
    }

    /// The path of a file in it.
    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs `verify` on a file in it, through a shell that sets limits first.
    pub fn verify(&self, name: &str, json: bool) -> Output {
        let script = "ulimit -v 1048576; exec \"$@\"";
        let mut command = Command::new("sh");
        command
            .current_dir(&self.folder)
            .args(["-c", script, "sh", env!("CARGO_BIN_EXE_preface"), "verify"])
            .args([name, "--trust", "trust", "--base-id", BASE])
            .args(["--tokenizer-id", TOKENIZER])
            .args(json.then_some("--json"))
            .output()
            .unwrap()
    }

    /// The exit code for a file in it, after a look at everything that was said.
    pub fn code_of(&self, name: &str, what: &str) -> i32 {
        let output = self.verify(name, true);
        let said = String::from_utf8(output.stderr).unwrap();
        let report: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{what}: not one JSON object: {error}: {said}"));
        let code = output
            .status
            .code()
            .unwrap_or_else(|| panic!("{what}: killed: {said}"));
        assert_eq!(report["exit_code"], code, "{what}: {report}");
        assert_eq!(report["verified"], code == 0, "{what}: {report}");
        let checks = report["checks"].as_array().unwrap();
        let failed = checks
            .iter()
            .filter(|check| check["result"] == "failed")
            .count();
        assert!(failed <= usize::from(code != 0), "{what}: {report}");
        if code != 0 {
            let plain = self.verify(name, false);
            assert_eq!(plain.status.code(), Some(code), "{what}");
            assert!(
                plain.stdout.is_empty(),
                "{what}: a refusal is said on stderr alone"
            );
            let message = report["message"].as_str().unwrap();
            assert!(said.contains(message), "{what}: {said}");
            assert!(
                String::from_utf8_lossy(&plain.stderr).contains(message),
                "{what}"
            );
        }
        code
    }

    /// The exit code for a file of these bytes.
    pub fn code(&self, file: &[u8], what: &str) -> i32 {
        fs::write(self.at("a.preface"), file).unwrap();
        self.code_of("a.preface", what)
    }

    /// Tries a table of files, each with the exit code that is demanded.
    pub fn try_all(&self, cases: impl IntoIterator<Item = (&'static str, Vec<u8>, i32)>) {
        for (name, file, expected) in cases {
            assert_eq!(self.code(&file, name), expected, "{name}");
        }
        assert_eq!(self.code(&Sample::default().file(), "untouched"), 0);
    }
}

/// The sample after a change to it, signed.
pub fn with(change: impl FnOnce(&mut Sample)) -> Vec<u8> {
    let mut sample = Sample::default();
    change(&mut sample);
    sample.file()
}

/// The sample's file after a change to it, its prefix signed again as it then is.
pub fn signed(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut file = Sample::default().file();
    change(&mut file);
    resigned(&file, Repair::Signature)
}

/// The same with a change to the manifest.
pub fn manifest(change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    signed(|file| change(&mut file[HEADER_BYTES..]))
}

/// The same with a change to the bytes of a field, whose place in the manifest is found.
pub fn field(tlv: u16, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let sample = Sample::default();
    let before = sample.fields.iter().take_while(|(one, _)| *one != tlv);
    let at = before.fold(256, |at, (_, bytes)| {
        at + 4 + bytes.len().next_multiple_of(4)
    });
    manifest(|bytes| change(&mut bytes[at..]))
}
