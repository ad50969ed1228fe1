//! Any bytes as the payload of a bundle that is signed: first byte the codec, second the dtype, then the payload.
#![no_main]

use libfuzzer_sys::fuzz_target;
use preface_fuzz::{payload_of, trust, verify};

fuzz_target!(|data: &[u8]| {
    let [codec, dtype, decoded @ ..] = data else {
        return;
    };
    for file in payload_of(*codec, *dtype, decoded) {
        let _ = verify(&file, &trust("default"));
    }
});
