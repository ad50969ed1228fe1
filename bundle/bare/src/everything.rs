//! What a reader can call beyond what verifying takes, for the link that fails where a panic is possible.

use core::hint::black_box;

use preface_bundle::{
    Error, Id, Index, KeyId, PublicKey, TrustStatement, TrustStore, VerifiedBundle,
    check_zstd_frame, is_task_pattern, read_signature, shuffle, unshuffle,
};

/// Values and bytes that are written out; a tensor of another size is refused.
const VALUES: usize = 4096;

/// Reads every field and tensor of a bundle, then text and bytes as if they were each of the other things that are read.
///
/// # Errors
/// The first refusal.
#[inline(never)]
pub fn read(bundle: &VerifiedBundle<'_>, text: &str, bytes: &[u8]) -> Result<(), Error> {
    fields(bundle);
    tensors(bundle, bytes)?;
    trust(text, bytes)?;
    index(text)
}

fn fields(bundle: &VerifiedBundle<'_>) {
    let manifest = bundle.manifest();
    black_box((manifest, bundle.is_bound()));
    black_box(manifest.labels.get(black_box(0)));
    manifest.labels.iter().for_each(|label| {
        black_box(label);
    });
    for probe in manifest.probes.iter() {
        probe.ids().for_each(|id| {
            black_box((probe.label, probe.text, id));
        });
        probe.labels().for_each(|label| {
            black_box(label);
        });
        probe.tags().for_each(|tag| {
            black_box(tag);
        });
    }
    let spoken = manifest.verbaliser.iter().flat_map(|each| each.iter());
    spoken.flatten().for_each(|id| {
        black_box(id);
    });
    let stops = manifest.decode_limits.iter();
    stops.flat_map(|each| each.stop_ids()).for_each(|id| {
        black_box(id);
    });
    manifest.metrics.iter().for_each(|metric| {
        black_box(metric);
    });
    manifest.ignored().for_each(|tlv| {
        black_box(tlv);
    });
    bundle.signers().for_each(|signer| {
        black_box(signer);
    });
}

fn tensors(bundle: &VerifiedBundle<'_>, bytes: &[u8]) -> Result<(), Error> {
    let mut values = [0.0; VALUES];
    for tensor in bundle.tensors() {
        let spec = tensor.spec();
        let places = values.get_mut(..spec.elements()).unwrap_or_default();
        tensor.dequantise(places)?;
        black_box((places, spec.dims(), spec.dim(black_box(1))));
    }
    let mut planes = [0; VALUES];
    let table = bundle.manifest().tensors;
    shuffle(table, bytes, &mut planes)?;
    unshuffle(table, bytes, &mut planes)?;
    black_box(planes);
    check_zstd_frame(bytes, black_box(VALUES))
}

fn trust(text: &str, bytes: &[u8]) -> Result<(), Error> {
    let signature = read_signature(bytes).unwrap_or([0; 64]);
    let key = PublicKey::from_text(text)?;
    let present = TrustStore::parse(text)?;
    let next = TrustStore::parse_among(text, &[key])?;
    present.admit_update(&next, &[signature])?;
    black_box(TrustStatement::of(&next).as_bytes());
    black_box((Id::<32>::from_hex(text), KeyId::from_hex(text)));
    black_box((present.key(key.id()), is_task_pattern(text)));
    present.every_key().for_each(|key| {
        black_box(key);
    });
    present.revoked_bundles().for_each(|id| {
        black_box(id);
    });
    Ok(())
}

fn index(text: &str) -> Result<(), Error> {
    let index = Index::parse(text)?;
    let seen = index.unverified().floor();
    let store = TrustStore::parse(text)?;
    let verified = index.verify(&store, Some(&seen), Some(black_box(0)))?;
    verified.tasks().for_each(|entry| {
        black_box(entry);
    });
    black_box((verified.task(text), verified.namespace_name()));
    Ok(())
}
