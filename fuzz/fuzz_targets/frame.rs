//! Any bytes as a bundle file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use preface_bundle::{ENTRY_BYTES, Frame, Id};

fuzz_target!(|data: &[u8]| {
    let Ok(frame) = Frame::parse(data) else {
        return;
    };
    let signatures = frame.signatures().count();
    assert!((1..=8).contains(&signatures));
    assert!(data.starts_with(frame.signed_prefix()));
    assert_eq!(frame.bundle_id(), Id::of(frame.signed_prefix()));
    assert!(frame.signed_prefix().len() + 8 + signatures * ENTRY_BYTES < data.len());
    let ids: Vec<_> = frame.signatures().map(|entry| entry.key_id).collect();
    assert!(ids.is_sorted_by(|a, b| a < b), "distinct and ascending");
    if let Ok(manifest) = frame.unverified_manifest() {
        preface_fuzz::read_manifest(&manifest);
    }
    let file = [data, &[0]].concat();
    assert!(Frame::parse(&file).is_err() && Frame::parse(&data[..data.len() - 1]).is_err());
});
