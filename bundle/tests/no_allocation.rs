//! Attack 94: from the first byte to the last value, the reader allocates nothing, whatever it is given.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    fs,
};

use preface_bundle::{Codec, Error, Frame, Id, Policy, TrustStore};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, which counts what this thread asks of it.
struct Counting;

// SAFETY: every call goes to the system's allocator as it came.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Everything but decompression, which is not the reader's.
fn open(file: &[u8], trust: &str, values: &mut [f32]) -> Result<Id, Error> {
    let store = TrustStore::parse(trust)?;
    let policy = Policy::for_base(Id::of(b"golden base"), Id::of(b"golden tokenizer"));
    let admitted = Frame::parse(file)?.authenticate(&store)?.admit(&policy)?;
    admitted.check_compressed()?;
    if admitted.codec() != Codec::Stored {
        return Ok(Id([0; 32]));
    }
    let bundle = admitted.open(admitted.stored_payload())?;
    let manifest = bundle.manifest();
    let read = manifest.labels.iter().count()
        + manifest
            .probes
            .iter()
            .map(|probe| probe.ids().count())
            .sum::<usize>()
        + manifest.metrics.iter().count()
        + manifest.ignored().count();
    assert!(read > 0);
    for tensor in bundle.tensors() {
        if let Some(values) = values.get_mut(..tensor.spec().elements()) {
            tensor.dequantise(values)?;
        }
    }
    Ok(bundle.bundle_id())
}

#[test]
fn attack_94_no_bundle_good_or_bad_makes_the_reader_allocate() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/bundles");
    let trust = fs::read_to_string(format!("{folder}/trust")).expect("the golden trust store");
    let mut values = vec![0.0; 1024];
    let (mut good, mut bad) = (0, 0);
    for entry in fs::read_dir(folder).expect("the golden bundles") {
        let path = entry.expect("an entry").path();
        if path
            .extension()
            .is_none_or(|extension| extension != "preface")
        {
            continue;
        }
        let mut file = fs::read(&path).expect("a golden bundle");
        for at in (0..=file.len()).step_by(7) {
            if let Some(byte) = file.get_mut(at) {
                *byte ^= 0x10;
            }
            let cut = file.get(..at).unwrap_or_default();
            ALLOCATIONS.set(0);
            let whole = open(&file, &trust, &mut values);
            let part = open(cut, &trust, &mut values);
            assert_eq!(ALLOCATIONS.get(), 0, "{} at {at}", path.display());
            bad += usize::from(whole.is_err()) + usize::from(part.is_err());
            if let Some(byte) = file.get_mut(at) {
                *byte ^= 0x10;
            }
        }
        ALLOCATIONS.set(0);
        let whole = open(&file, &trust, &mut values);
        assert_eq!(ALLOCATIONS.get(), 0, "{}", path.display());
        good += usize::from(whole.is_ok());
    }
    assert_eq!(good, 11);
    assert!(bad > 1000, "{bad}");
    drop(Box::new([0u8; 16]));
    assert!(ALLOCATIONS.get() > 0, "allocations are counted");
}
