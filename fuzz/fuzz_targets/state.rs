//! Any bytes as a store's state, as they are and under a digest that fits; what is read is written as the same bytes, or
//! where an older version wrote it, as a state that reads the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use preface_bundle::Id;
use preface_fuzz::state::State;

fuzz_target!(|data: &[u8]| {
    let body = &data[..data.len().saturating_sub(32)];
    let sealed = [body, &Id::of(body).0].concat();
    for bytes in [data, &sealed] {
        if let Some(mut state) = State::parse(bytes) {
            let written = state.to_bytes();
            if bytes.starts_with(b"preface-state-2\n") {
                assert_eq!(written, bytes);
            }
            assert_eq!(State::parse(&written).as_ref(), Some(&state));
            for task in &mut state.tasks {
                let _ = task.step_back();
                task.confirm();
                task.revert();
            }
            assert!(
                State::parse(&state.to_bytes()).is_some(),
                "what is changed by the rules is read again"
            );
        }
    }
});
