//! Golden bundles, written by tests/golden/bundles/make.py: every version reads them, and reads the same.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use serde_json::Value;
use tempfile::TempDir;

use crate::{Frame, Id, Policy, Tensor, TrustStore};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/bundles");

/// The program's report of a file in `folder`.
fn report(folder: &TempDir, arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_preface"))
        .current_dir(folder)
        .args(arguments)
        .arg("--json")
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!(
            "{arguments:?}: {error}: {}",
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

fn values_digest(tensor: &Tensor<'_>) -> String {
    let mut values = vec![0.0; tensor.spec().elements()];
    tensor.dequantise(&mut values).unwrap();
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    Id::of(&bytes).to_string()
}

#[test]
fn every_golden_bundle_is_read_with_the_same_ids_reports_and_values() {
    let folder = tempfile::tempdir().unwrap();
    let trust = fs::read_to_string(Path::new(FOLDER).join("trust")).unwrap();
    fs::write(folder.path().join("trust"), &trust).unwrap();
    fs::set_permissions(
        folder.path().join("trust"),
        fs::Permissions::from_mode(0o600),
    )
    .unwrap();
    let store = TrustStore::parse(&trust).unwrap();
    let (base, tokenizer) = (Id::of(b"golden base"), Id::of(b"golden tokenizer"));
    let (base_hex, tokenizer_hex) = (base.to_string(), tokenizer.to_string());
    let mut read = 0;
    for entry in fs::read_dir(FOLDER).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_none_or(|extension| extension != "preface")
        {
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap();
        let expected: Value =
            serde_json::from_slice(&fs::read(path.with_extension("json")).unwrap()).unwrap();
        let file = fs::read(&path).unwrap();
        fs::write(folder.path().join(name), &file).unwrap();
        let ids = ["--base-id", &base_hex, "--tokenizer-id", &tokenizer_hex];
        let verify = [&["verify", name, "--trust", "trust"], &ids[..]].concat();
        assert_eq!(report(&folder, &verify), expected["verify"], "{name}");
        assert_eq!(
            report(&folder, &["inspect", name]),
            expected["inspect"],
            "{name}"
        );
        let admitted = Frame::parse(&file).and_then(|frame| frame.authenticate(&store));
        let admitted = admitted
            .unwrap()
            .admit(&Policy::for_base(base, tokenizer))
            .unwrap();
        let decoded = preface_runtime::bundle::decode(&admitted).unwrap();
        let opened = admitted.open(&decoded).unwrap();
        let digests: Vec<_> = opened
            .tensors()
            .map(|tensor| values_digest(&tensor))
            .collect();
        assert_eq!(
            serde_json::json!(digests),
            expected["values_sha256"],
            "{name}"
        );
        if let Some(expected) = expected.get("probe_labels") {
            let probes = opened.manifest().probes.iter();
            let labels: Vec<Vec<u16>> = probes.map(|probe| probe.labels().collect()).collect();
            assert_eq!(&serde_json::json!(labels), expected, "{name}");
        }
        read += 1;
    }
    assert_eq!(read, 11, "none was lost");
}
