//! Any bytes as a store's state, as they are and under a digest that fits; what is read is written as the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use preface_bundle::Id;
use preface_fuzz::state::State;

fuzz_target!(|data: &[u8]| {
    let body = &data[..data.len().saturating_sub(32)];
    let sealed = [body, &Id::of(body).0].concat();
    for bytes in [data, &sealed] {
        if let Some(mut state) = State::parse(bytes) {
            assert_eq!(state.to_bytes(), bytes);
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
