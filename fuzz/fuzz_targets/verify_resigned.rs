//! Bundles that are changed and signed again, so that what lies behind the signature is reached.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use preface_bundle::Frame;
use preface_fuzz::{
    resigned,
    seal::{LEAST_BYTES, Repair},
    trust, verify,
};

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let size = fuzzer_mutate(data, size, max_size);
    if size < LEAST_BYTES {
        return size;
    }
    let repair = if seed.is_multiple_of(4) {
        Repair::Signature
    } else {
        Repair::All
    };
    let file = resigned(&data[..size], repair);
    if file.len() > max_size {
        return size;
    }
    data[..file.len()].copy_from_slice(&file);
    file.len()
});

fuzz_target!(|data: &[u8]| {
    let trust = trust("golden");
    let Ok(id) = verify(data, &trust) else { return };
    assert_eq!(verify(data, &trust), Ok(id));
    // The entry of a key that the store does not know may change, and is not used.
    if !Frame::parse(data).is_ok_and(|frame| frame.signatures().count() == 1) {
        return;
    }
    // One bit, at a place that the bundle chooses: what is signed cannot be changed.
    let mut changed = data.to_vec();
    let at = usize::from(u16::from_le_bytes([id.0[0], id.0[1]])) % changed.len();
    changed[at] ^= 1 << (id.0[2] % 8);
    assert_ne!(
        verify(&changed, &trust).ok(),
        Some(id),
        "bit {} of byte {at}",
        id.0[2] % 8
    );
});
