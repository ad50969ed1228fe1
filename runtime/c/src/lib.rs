//! The runtime for programs in C: what `include/preface.h` declares.
//!
//! Every entry is one function of the header, and the header says what it owes its caller: no pointer is believed to
//! be set, no panic leaves, and an answer allocates nothing that the engine does not.

#![cfg_attr(test, allow(clippy::unwrap_used))]

// Reads and writes what the caller points at: see the SAFETY comments there.
#[allow(unsafe_code)]
mod answer;
#[allow(unsafe_code)]
mod border;
mod failure;
mod guard;
#[allow(unsafe_code)]
mod image;
#[allow(unsafe_code)]
mod session;
mod status;
