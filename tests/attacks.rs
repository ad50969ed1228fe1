//! Attacks on the reader of bundles, by the number they have in tests/ADVERSARIAL.md; and what it must always read.

#![allow(clippy::unwrap_used)]

use preface_bundle::*;

#[allow(dead_code)]
#[path = "../fuzz/src/seal.rs"]
mod seal;
#[allow(dead_code)]
#[path = "../bundle/src/testing.rs"]
mod testing;

#[path = "attacks/binding.rs"]
mod binding;
#[path = "attacks/device.rs"]
mod device;
#[path = "attacks/differential.rs"]
mod differential;
#[path = "attacks/frame.rs"]
mod frame;
#[path = "attacks/golden.rs"]
mod golden;
#[path = "attacks/payload.rs"]
mod payload;
