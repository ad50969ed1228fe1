//! Any bytes as a manifest, in a frame that fits it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use preface_bundle::{CONTEXT, Frame};

fuzz_target!(|data: &[u8]| {
    if data.len() < 256 {
        return;
    }
    let mut manifest = data[..data.len().min(4032)].to_vec();
    manifest.resize(manifest.len().next_multiple_of(64), 0);
    let stored = u32::from_le_bytes([manifest[144], manifest[145], manifest[146], manifest[147]])
        .clamp(1, 1 << 12);
    manifest[144..148].copy_from_slice(&stored.to_le_bytes());
    if manifest[188..190] == [0, 0] {
        manifest[148..152].copy_from_slice(&stored.to_le_bytes());
    }
    let length = u32::try_from(manifest.len()).expect("at most 4032");
    let header = [
        &CONTEXT[..],
        &[0; 4],
        &length.to_le_bytes(),
        &stored.to_le_bytes(),
        &[0; 20],
    ]
    .concat();
    let payload = vec![0; stored as usize];
    let entry = [&[1, 0, 0, 0, 0, 0, 0, 0][..], &[0; 80]].concat();
    let file = [
        &header,
        &manifest,
        &payload,
        &b"SIG1\x01\0\x58\0"[..],
        &entry,
    ]
    .concat();
    let frame = Frame::parse(&file).expect("a frame around any manifest");
    if let Ok(manifest) = frame.unverified_manifest() {
        preface_fuzz::read_manifest(&manifest);
    }
});
