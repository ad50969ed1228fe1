//! What the targets share: bundles that are signed again after they were changed, and everything there is to read of
//! one that was verified.
//!
//! The readers of the runtime are taken in as source, so that fuzzing them does not build its engine.

#![allow(dead_code, unused_imports)]

use std::sync::OnceLock;

use preface_bundle::*;

#[rustfmt::skip]
#[path = "../../runtime/src/bundle.rs"]
pub mod bundle;
pub mod seal;
#[rustfmt::skip]
#[path = "../../runtime/src/store/state.rs"]
pub mod state;
#[rustfmt::skip]
#[path = "../../bundle/src/testing.rs"]
mod testing;

pub use seal::{SEED, resigned, trust};

/// Reads everything that a manifest gives away.
pub fn read_manifest(manifest: &Manifest<'_>) {
    let labels: Vec<_> = manifest.labels.iter().collect();
    assert_eq!(labels.len(), manifest.labels.len());
    assert_eq!(labels.len(), usize::from(manifest.head.classes));
    assert!(is_task_id(manifest.task));
    let table: usize = manifest.tensors.iter().map(|spec| spec.bytes).sum();
    assert_eq!(
        table, manifest.decoded_bytes,
        "every byte belongs to one tensor"
    );
    for probe in manifest.probes.iter() {
        assert!(probe.ids().count() > 0);
        let first = probe.labels().next();
        assert!(first.is_none_or(|first| first == probe.label));
        assert!(probe.labels().all(|label| label < manifest.head.classes));
    }
    if let Some(verbaliser) = &manifest.verbaliser {
        assert_eq!(verbaliser.iter().count(), verbaliser.len());
        verbaliser.iter().for_each(|ids| assert!(ids.count() > 0));
    }
    manifest
        .metrics
        .iter()
        .for_each(|(name, _)| assert!(is_name(name)));
    let _ = manifest
        .decode_limits
        .map(|limits| limits.stop_ids().count());
    assert!(manifest.answer.fits(manifest.head.kind));
}

/// From the first byte to the last value, as the runtime does it.
///
/// # Errors
/// What is wrong with the bundle.
pub fn verify(file: &[u8], trust: &str) -> Result<Id, Error> {
    static ADMITTED: OnceLock<[PublicKey; 2]> = OnceLock::new();
    let admitted = ADMITTED.get_or_init(|| [[1; 32], [2; 32]].map(testing::public_key));
    let store = TrustStore::parse_among(trust, admitted)?;
    let frame = Frame::parse(file)?;
    let claimed = frame.unverified_manifest();
    let admitted = frame.authenticate(&store)?;
    let claimed = claimed.expect("a manifest that was read a second time");
    let policy = Policy::for_base(claimed.base_id, claimed.tokenizer_id);
    let admitted = admitted.admit(&policy)?;
    let decoded = bundle::decode(&admitted)?;
    let bundle = admitted.open(&decoded)?;
    read_manifest(bundle.manifest());
    for tensor in bundle.tensors() {
        let mut values = vec![f32::NAN; tensor.spec().elements()];
        tensor.dequantise(&mut values).expect("the length is right");
        assert!(values.iter().all(|value| value.abs() <= MAX_VALUE));
    }
    Ok(bundle.bundle_id())
}

/// Bundles, signed, that have these bytes as their payload: as they are, and where the codec compresses, also what
/// they decompress to as it is said to be, and a good frame of them.
pub fn payload_of(codec: u8, dtype: u8, bytes: &[u8]) -> Vec<Vec<u8>> {
    let codec = codec % 3;
    if codec == 0 {
        return sample(0, dtype, bytes, None).into_iter().collect();
    }
    let claimed = bytes.get(5..7).map_or(0, |size| {
        usize::from(u16::from_le_bytes([size[0], size[1]])) + 256
    });
    let decoded = zstd::bulk::decompress(bytes, 1 << 16).unwrap_or_default();
    let frame = zstd::bulk::compress(bytes, 1).unwrap_or_default();
    let files = [
        sample(codec, dtype, &vec![0; claimed], Some(bytes)),
        sample(codec, dtype, &decoded, Some(bytes)),
        sample(codec, dtype, bytes, Some(&frame)),
    ];
    files.into_iter().flatten().collect()
}

/// A bundle whose one tensor is all that is decoded; `None` where there is no such tensor.
fn sample(codec: u8, dtype: u8, decoded: &[u8], stored: Option<&[u8]>) -> Option<Vec<u8>> {
    let integers = decoded.len().saturating_sub(2);
    let (dtype, values) = [
        (Dtype::F32, decoded.len() / 4),
        (Dtype::F16, decoded.len() / 2),
        (Dtype::Bf16, decoded.len() / 2),
        (Dtype::I8, integers),
        (Dtype::I4, integers * 2),
    ][usize::from(dtype % 5)];
    let values = u16::try_from(values).ok()?;
    let group = if matches!(dtype, Dtype::I8 | Dtype::I4) {
        values
    } else {
        0
    };
    let spec = TensorSpec::new(Role::Embeddings, dtype, 0, &[1, values], group, 0).ok()?;
    let mut bytes = decoded.get(..spec.bytes)?.to_vec();
    let mut sample = testing::Sample {
        codec: codec.into(),
        ..testing::Sample::default()
    };
    sample.set_specs(&[spec]);
    [tlv::LABELS, tlv::POOLING, tlv::PROBES]
        .into_iter()
        .for_each(|one| sample.remove(one));
    sample.set(tlv::HEAD, &[6, 0, 0, 0, 0, 0, 0, 0]);
    sample.set(tlv::DECODE_LIMITS, &[1, 0, 0, 0]);
    if codec == 2 {
        let table = sample.tensor_table();
        let table = TensorTable::read(&table, bytes.len()).ok()?;
        let shuffled = bytes.clone();
        unshuffle(table, &shuffled, &mut bytes).ok()?;
    }
    sample.decoded = bytes;
    sample.stored = stored.map(<[u8]>::to_vec);
    let mut prefix = sample.prefix();
    // The sample's form is two rows of four; this one's is one row.
    prefix[HEADER_BYTES + 192..HEADER_BYTES + 196]
        .copy_from_slice(&[[1, 0], values.to_le_bytes()].concat());
    let mut file = sample.file();
    file[..prefix.len()].copy_from_slice(&prefix);
    Some(seal::resigned(&file, seal::Repair::Signature))
}
