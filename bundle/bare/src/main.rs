//! Verifies one bundle with the reader and nothing else, and says which bundle it is and how much stack that took.
//!
//! It has neither `std` nor `alloc`, so that it does not link where the reader allocates. With the feature `no-panic` it
//! does not link where a panic is possible either; without it, its panic handler names the place, so that every place
//! where a panic is left is in the program by name. `check.sh` builds both.

#![no_std]
#![no_main]

#[cfg(feature = "everything")]
mod everything;
mod machine;

use core::{fmt::Write, hint::black_box};

use preface_bundle::{Codec, Error, Frame, Id, Policy, TrustStore};

static BUNDLE: &[u8] =
    include_bytes!("../../../tests/golden/bundles/embeddings-f32-stored-linear-mean.preface");
static TRUST: &str = include_str!("../../../tests/golden/bundles/trust");

/// Bytes below the present frame that are painted before the reader is called, and looked at afterwards.
const PAINTED_BYTES: usize = 128 << 10;

/// A store without roots is updated by nobody; this is here for the update's size and panics.
#[inline(never)]
fn refuse_update(store: &TrustStore<'_>) -> Result<(), Error> {
    match store.admit_update(store, black_box(&[])) {
        Err(Error::NoRoots { .. }) => Ok(()),
        _ => Err(Error::PublicKey {
            rule: "a store without roots was updated",
        }),
    }
}

/// From frame to values; the base is compared with the one that the bundle names, since there is none here.
#[inline(never)]
fn verify(file: &[u8], trust: &str) -> Result<Id, Error> {
    let store = TrustStore::parse(trust)?;
    refuse_update(&store)?;
    let frame = Frame::parse(file)?;
    let claimed = frame.unverified_manifest()?;
    let policy = Policy::for_base(claimed.base_id, claimed.tokenizer_id);
    let admitted = frame.authenticate(&store)?.admit(&policy)?;
    admitted.check_compressed()?;
    if admitted.codec() != Codec::Stored {
        return Err(Error::Compressed {
            rule: "there is no decoder here",
        });
    }
    let bundle = admitted.open(admitted.stored_payload())?;
    #[cfg(feature = "everything")]
    everything::read(&bundle, trust, file)?;
    Ok(bundle.bundle_id())
}

fn run() -> Result<usize, Error> {
    #[cfg(feature = "panic")]
    black_box(BUNDLE[black_box(0)]);
    let (mut id, mut changed) = (Ok(Id([0; 32])), Ok(Id([0; 32])));
    let stack = machine::stack_bytes(PAINTED_BYTES, || {
        id = verify(black_box(BUNDLE), black_box(TRUST));
        changed = verify(
            black_box(BUNDLE.get(1..).unwrap_or_default()),
            black_box(TRUST),
        );
    });
    let out = &mut machine::Out;
    let written = match changed {
        Err(_) => writeln!(out, "{} {stack}", id?),
        Ok(_) => writeln!(out, "a changed bundle was accepted"),
    };
    written.map_err(|_| Error::Compressed {
        rule: "nothing can be written",
    })?;
    Ok(stack)
}

/// What the machine starts.
#[unsafe(no_mangle)]
extern "C" fn begin() -> ! {
    machine::end(if run().is_ok() { 0 } else { 1 })
}

#[cfg(feature = "no-panic")]
unsafe extern "C" {
    /// Nothing has this symbol: the link fails unless the optimiser has removed the panic handler, its only caller.
    fn a_panic_is_possible() -> !;
}

#[cfg(feature = "no-panic")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: a program with this call in it does not link.
    unsafe { a_panic_is_possible() }
}

#[cfg(not(feature = "no-panic"))]
#[panic_handler]
fn panic(panic: &core::panic::PanicInfo<'_>) -> ! {
    // The place's name is in the program for as long as a panic there cannot be ruled out: that is what is searched.
    if let Some(place) = panic.location() {
        let _ = writeln!(machine::Out, "{}", place.file());
    }
    machine::end(101)
}
