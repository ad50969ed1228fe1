use proptest::prelude::*;

use super::*;

fn release(number: u8) -> Release {
    Release {
        id: Id([number; 32]),
        trust_version: 1,
        sequence: number.into(),
        proven: false,
    }
}

fn sample() -> State {
    let mut state = State::new(Namespace::of_name("default"));
    (state.generation, state.trust_version, state.min_security) = (9, 3, 2);
    state.time_floor = 1_700_000_000;
    state.index = Some(IndexFloor {
        id: Id([5; 32]),
        version: IndexVersion {
            trust_version: 3,
            version: 12,
        },
        dated: 1_700_000_000,
        expires: 1_700_600_000,
    });
    for name in ["weather", "intent", "mood"] {
        let task = state.task_or_new(name).unwrap();
        for number in 1..=3 {
            task.install(release(number));
            if name != "mood" {
                task.confirm();
            }
        }
    }
    state
}

/// A state with its digest made anew behind a change.
fn signed(mut bytes: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    bytes.truncate(bytes.len() - DIGEST_BYTES);
    change(&mut bytes);
    let digest: [u8; DIGEST_BYTES] = Sha256::digest(&bytes).into();
    bytes.extend(digest);
    bytes
}

#[test]
fn a_state_is_read_as_it_was_written_and_every_flipped_bit_and_cut_is_refused() {
    let state = sample();
    let names: Vec<&str> = state.tasks.iter().map(|task| &*task.task).collect();
    assert_eq!(names, ["intent", "mood", "weather"]);
    let bytes = state.to_bytes();
    assert_eq!(State::parse(&bytes), Some(state));
    for bit in 0..bytes.len() * 8 {
        let mut changed = bytes.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(State::parse(&changed), None, "bit {bit}");
    }
    for cut in 0..bytes.len() {
        assert_eq!(State::parse(&bytes[..cut]), None, "cut at {cut}");
    }
    assert_eq!(State::parse(&[&bytes[..], &[0]].concat()), None);
}

#[test]
fn what_breaks_a_rule_is_refused_under_a_good_digest() {
    let bytes = sample().to_bytes();
    let places = HEADER_BYTES + TASK_BYTES + (2 + MAX_KEPT) * RELEASE_BYTES;
    let kept = HEADER_BYTES + TASK_BYTES + 2 * RELEASE_BYTES;
    let table: [(&str, usize, u8); 15] = [
        ("an index that is neither there nor not", 64 + 36, 2),
        ("a reserved byte of the index", 64 + 37, 1),
        ("another kind of file", 0, b'P'),
        ("a reserved byte", 63, 1),
        ("more tasks than there are", 56, 4),
        ("a task id in capitals", HEADER_BYTES, b'I'),
        ("something behind the task id", HEADER_BYTES + 40, b'x'),
        ("an active release that is not kept", places, 3),
        ("one that is active and previous", places + 1, 0),
        ("a trial that is neither yes nor no", places + 2, 2),
        ("starts without a trial", places + 3, 1),
        ("a reserved byte of a task", places + 7, 1),
        ("a release that is neither there nor not", kept + 36, 2),
        (
            "a release after the greatest that was installed",
            kept + 47,
            1,
        ),
        ("a gap among the releases", kept + RELEASE_BYTES + 36, 0),
    ];
    assert!(State::parse(&signed(bytes.clone(), |_| ())).is_some());
    for (name, at, value) in table {
        let changed = signed(bytes.clone(), |bytes| bytes[at] = value);
        assert_eq!(State::parse(&changed), None, "{name}");
    }
    let twice = signed(bytes.clone(), |bytes| {
        let first = bytes[kept..kept + RELEASE_BYTES].to_vec();
        bytes[kept + RELEASE_BYTES..kept + 2 * RELEASE_BYTES].copy_from_slice(&first);
    });
    assert_eq!(State::parse(&twice), None, "a release twice");
    let swapped = signed(bytes.clone(), |bytes| {
        let tasks = &mut bytes[HEADER_BYTES..HEADER_BYTES + 2 * RECORD_BYTES];
        tasks.rotate_left(RECORD_BYTES);
    });
    assert_eq!(State::parse(&swapped), None, "tasks out of order");
}

#[test]
fn an_index_that_is_not_there_is_zeros() {
    let mut state = sample();
    state.index = None;
    let bytes = state.to_bytes();
    assert_eq!(State::parse(&bytes), Some(state));
    for at in 64..HEADER_BYTES {
        let changed = signed(bytes.clone(), |bytes| bytes[at] = 3);
        assert_eq!(State::parse(&changed), None, "byte {at}");
    }
}

#[test]
fn a_state_of_the_first_format_is_read_and_has_no_index() {
    let mut state = sample();
    let old = signed(state.to_bytes(), |bytes| {
        bytes.drain(64..HEADER_BYTES);
        bytes[..16].copy_from_slice(b"preface-state-1\n");
    });
    state.index = None;
    assert_eq!(State::parse(&old), Some(state.clone()));
    assert_eq!(
        State::parse(&state.to_bytes()),
        Some(state),
        "and written as the second"
    );
    let mixed = signed(old, |bytes| bytes[14] = b'2');
    assert_eq!(
        State::parse(&mixed),
        None,
        "a first under the second's name"
    );
}

proptest! {
    #[test]
    fn no_bytes_panic_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..1200), at in 0usize..1200, with in any::<u8>()) {
        let _ = State::parse(&bytes);
        let _ = State::parse(&signed([&bytes[..], &[0; DIGEST_BYTES]].concat(), |_| ()));
        let changed = signed(sample().to_bytes(), |bytes| {
            let at = at % bytes.len();
            bytes[at] = with;
        });
        if let Some(state) = State::parse(&changed) {
            prop_assert_eq!(state.to_bytes(), changed);
        }
    }
}

#[test]
fn the_largest_state_is_read() {
    let mut state = sample();
    for number in 0..MAX_TASKS {
        let name = format!("task-{number:02}");
        let Some(task) = state.task_or_new(&name) else {
            assert!(number >= MAX_TASKS - 3, "{number}");
            continue;
        };
        (1..=9).for_each(|number| task.install(release(number)));
        assert_eq!(task.kept.len(), MAX_KEPT);
    }
    let bytes = state.to_bytes();
    assert_eq!(bytes.len(), MAX_STATE_BYTES);
    assert_eq!(State::parse(&bytes), Some(state));
}

#[test]
fn the_floor_rises_at_confirm_alone() {
    let mut task = TaskState::new("t");
    task.install(release(1));
    assert_eq!((task.confirmed, task.trial), (None, true));
    task.confirm();
    assert_eq!(task.confirmed.map(|one| one.sequence), Some(1));
    task.install(release(2));
    assert_eq!(task.confirmed.map(|one| one.sequence), Some(1));
    assert_eq!(task.previous, Some(Id([1; 32])));
    task.install(release(3));
    assert_eq!(task.previous, Some(Id([1; 32])), "a trial is no way back");
    task.revert();
    assert_eq!((task.active, task.trial), (Some(Id([1; 32])), false));
    assert_eq!(task.confirmed.map(|one| one.sequence), Some(1));
    assert_eq!(task.installed.map(|one| one.sequence), Some(3));
    let unproven = *task.release(Id([2; 32])).unwrap();
    task.activate(&unproven);
    assert!(task.trial, "what was never confirmed is tried again");
}

#[test]
fn steps_back_lead_to_what_was_confirmed_and_the_floor_stays() {
    let mut task = TaskState::new("t");
    for number in 1..=5 {
        task.install(release(number));
        task.confirm();
    }
    let ids: Vec<u8> = task.kept.iter().map(|kept| kept.id.0[0]).collect();
    assert_eq!(ids, [5, 4, 3, 2]);
    for expected in [4, 5] {
        let back = task.step_back().unwrap();
        task.activate(&back);
        assert_eq!(task.active, Some(Id([expected; 32])), "back and forth");
    }
    assert_eq!(task.confirmed.map(|one| one.sequence), Some(5));
    task.previous = None;
    assert_eq!(task.step_back().map(|back| back.sequence), Some(4));
    let first = *task.release(Id([2; 32])).unwrap();
    task.activate(&first);
    task.previous = None;
    assert_eq!(task.step_back(), None, "nothing before the first");
}
