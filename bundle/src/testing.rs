//! A bundle made by hand for the tests of this crate: every part can be spoilt before signing.

extern crate std;

use std::{format, string::String, vec, vec::Vec};

use ed25519_dalek::{Signer, SigningKey};

use crate::{CONTEXT, Dtype, Id, Namespace, PublicKey, Role, SIGNATURE_MAGIC, TensorSpec, tlv};

/// The public key of a seed.
pub(crate) fn public_key(seed: [u8; 32]) -> PublicKey {
    let bytes = SigningKey::from_bytes(&seed).verifying_key().to_bytes();
    PublicKey::admit(bytes).expect("derived keys are good")
}

/// A zstd frame with a two-byte content size and one raw block.
pub(crate) fn zstd_raw_frame(content: &[u8]) -> Vec<u8> {
    let size = u16::try_from(content.len() - 256)
        .expect("256 to 65791 bytes")
        .to_le_bytes();
    let block = u32::try_from((content.len() << 3) | 1)
        .expect("small")
        .to_le_bytes();
    [
        &[0x28, 0xb5, 0x2f, 0xfd, 0x60],
        size.as_slice(),
        &block[..3],
        content,
    ]
    .concat()
}

/// What a bundle is made of.
pub(crate) struct Sample {
    pub minor: u16,
    pub namespace: Namespace,
    pub base_id: Id,
    pub tokenizer_id: Id,
    pub trust_version: u32,
    pub security_version: u32,
    pub sequence: u64,
    pub not_after: u64,
    pub min_runtime: u32,
    pub codec: u16,
    pub task: String,
    pub fields: Vec<(u16, Vec<u8>)>,
    pub decoded: Vec<u8>,
    /// The payload, where it is not `decoded`.
    pub stored: Option<Vec<u8>>,
    pub seeds: Vec<[u8; 32]>,
}

impl Default for Sample {
    fn default() -> Self {
        let specs = Self::specs();
        let embeddings = [0.5f32; 8].map(f32::to_le_bytes).concat();
        let weight = [vec![0x00, 0x3c], vec![1, 2, 3, 4], vec![0; 8]].concat();
        let decoded = [embeddings, weight, vec![0; 6]].concat();
        let table = specs.iter().flat_map(TensorSpec::to_bytes).collect();
        Self {
            minor: 0,
            namespace: Namespace::of_name("default"),
            base_id: Id([0xb; 32]),
            tokenizer_id: Id([0xc; 32]),
            trust_version: 1,
            security_version: 0,
            sequence: 3,
            not_after: 0,
            min_runtime: 1,
            codec: 0,
            task: "intent".into(),
            fields: vec![
                (
                    tlv::PROBES,
                    [2u16, 2, 5, 0, 6, 0].map(u16::to_le_bytes).concat(),
                ),
                (
                    tlv::METRICS,
                    [b"\x0cdev_accuracy", 0.5f32.to_le_bytes().as_slice()].concat(),
                ),
                (
                    tlv::TOKEN_BUDGET,
                    [2u32, 31, 9, 512].map(u32::to_le_bytes).concat(),
                ),
                (tlv::RECEIPT, b"{\"seed\":0}".to_vec()),
                (tlv::TENSORS, table),
                (tlv::LABELS, b"\x03\0\x02on\x03off\x03dim".to_vec()),
                (tlv::HEAD, [1u16, 3, 4, 0].map(u16::to_le_bytes).concat()),
                (tlv::TEMPLATE, b"say: {text}".to_vec()),
                (tlv::POOLING, vec![1, 0, 0, 0]),
                (tlv::POSITIONS, vec![2, 0, 0, 0]),
            ],
            decoded,
            stored: None,
            seeds: vec![[1; 32]],
        }
        .with_one_probe()
    }
}

impl Sample {
    fn specs() -> [TensorSpec; 3] {
        let spec = |role, dtype, dims: &[u16], group, offset| {
            TensorSpec::new(role, dtype, 0, dims, group, offset).expect("a valid spec")
        };
        [
            spec(Role::Embeddings, Dtype::F32, &[2, 4], 0, 0),
            spec(Role::HeadWeight, Dtype::I8, &[3, 4], 12, 32),
            spec(Role::HeadBias, Dtype::F16, &[3], 0, 46),
        ]
    }

    /// A prefix of two tokens in `layers` layers of one head, in place of the embeddings.
    pub fn of_key_values(layers: u16) -> Self {
        let [_, weight, bias] = Self::specs();
        let prefix = [layers, 2, 1, 2, 3];
        let mut specs = Vec::new();
        let mut offset = 0;
        for (role, dtype, dims, group) in [
            (Role::KeyValues, Dtype::F16, &prefix[..], 0),
            (weight.role, weight.dtype, weight.dims(), weight.group),
            (bias.role, bias.dtype, bias.dims(), bias.group),
        ] {
            let spec = TensorSpec::new(role, dtype, 0, dims, group, offset).expect("a valid spec");
            offset += spec.bytes;
            specs.push(spec);
        }
        let mut sample = Self {
            decoded: vec![0; offset],
            ..Self::default()
        };
        sample.set_specs(&specs);
        sample
    }

    /// Adds gates of this shape behind the other tensors.
    pub fn gate(&mut self, dims: &[u16]) {
        let offset = self.decoded.len();
        let spec = TensorSpec::new(Role::Gate, Dtype::F32, 0, dims, 0, offset);
        let spec = spec.expect("a valid spec");
        self.decoded.resize(offset + spec.bytes, 0);
        let table = [self.tensor_table(), spec.to_bytes().to_vec()].concat();
        self.set(tlv::TENSORS, &table);
    }

    /// Lets the key-values begin at this layer.
    pub fn shift_layers(&mut self, first: u16) {
        let mut table = self.tensor_table();
        table[4..6].copy_from_slice(&first.to_le_bytes());
        self.set(tlv::TENSORS, &table);
    }

    pub fn set_specs(&mut self, specs: &[TensorSpec]) {
        let table: Vec<u8> = specs.iter().flat_map(TensorSpec::to_bytes).collect();
        self.set(tlv::TENSORS, &table);
    }

    /// Makes the task one of several labels, each of a probability of at least a half.
    pub fn several(&mut self) {
        self.set(tlv::ANSWER, &[2, 0, 1, 0, 0, 0, 0, 0x3f]);
    }

    fn with_one_probe(mut self) -> Self {
        let probe = [
            [1u16, 2, 1].map(u16::to_le_bytes).concat(),
            7u32.to_le_bytes().to_vec(),
        ];
        self.set(tlv::PROBES, &probe.concat());
        self
    }

    pub fn tensor_table(&self) -> Vec<u8> {
        let field = self.fields.iter().find(|(tlv, _)| *tlv == tlv::TENSORS);
        field.map(|(_, bytes)| bytes.clone()).unwrap_or_default()
    }

    pub fn remove(&mut self, tlv: u16) {
        self.fields.retain(|(one, _)| *one != tlv);
    }

    pub fn set(&mut self, tlv: u16, bytes: &[u8]) {
        self.remove(tlv);
        let at = self.fields.partition_point(|(one, _)| *one < tlv);
        self.fields.insert(at, (tlv, bytes.to_vec()));
    }

    fn payload(&self) -> &[u8] {
        self.stored.as_ref().unwrap_or(&self.decoded)
    }

    pub fn manifest(&self) -> Vec<u8> {
        let bytes32 = |len: usize| u32::try_from(len).expect("small").to_le_bytes();
        let mut out = self.namespace.0.to_vec();
        let ids = [
            self.base_id,
            self.tokenizer_id,
            Id::of(self.payload()),
            Id::of(&self.decoded),
        ];
        ids.iter().for_each(|id| out.extend(id.0));
        out.extend(bytes32(self.payload().len()));
        out.extend(bytes32(self.decoded.len()));
        out.extend(self.trust_version.to_le_bytes());
        out.extend(self.security_version.to_le_bytes());
        [self.sequence, 0, self.not_after]
            .iter()
            .for_each(|time| out.extend(time.to_le_bytes()));
        out.extend(self.min_runtime.to_le_bytes());
        [self.codec, 1, 2, 4]
            .iter()
            .for_each(|word| out.extend(word.to_le_bytes()));
        out.extend([0; 12]);
        out.extend(self.task.as_bytes());
        out.resize(256, 0);
        for (tlv, bytes) in &self.fields {
            out.extend(tlv.to_le_bytes());
            out.extend(u16::try_from(bytes.len()).expect("small").to_le_bytes());
            out.extend(bytes);
            out.resize(out.len().next_multiple_of(4), 0);
        }
        out.resize((out.len() + 4).next_multiple_of(64), 0);
        out
    }

    /// The signed prefix.
    pub fn prefix(&self) -> Vec<u8> {
        let manifest = self.manifest();
        let mut out = CONTEXT.to_vec();
        out.extend(self.minor.to_le_bytes());
        out.extend([0; 2]);
        for length in [manifest.len(), self.payload().len()] {
            out.extend(u32::try_from(length).expect("small").to_le_bytes());
        }
        out.extend([0; 20]);
        [out, manifest].concat()
    }

    /// The whole file, signed by every seed.
    pub fn file(&self) -> Vec<u8> {
        self.file_signing(&self.prefix())
    }

    /// The whole file, with signatures of another message.
    pub fn file_signing(&self, message: &[u8]) -> Vec<u8> {
        let mut entries: Vec<_> = self
            .seeds
            .iter()
            .map(|seed| {
                let signature = SigningKey::from_bytes(seed).sign(message).to_bytes();
                [
                    &[1, 0, 0, 0, 0, 0, 0, 0],
                    &public_key(*seed).id().0[..],
                    &signature,
                ]
                .concat()
            })
            .collect();
        entries.sort();
        let count = u16::try_from(entries.len()).expect("small").to_le_bytes();
        let block = [&SIGNATURE_MAGIC, &count[..], &[88, 0]].concat();
        [
            self.prefix(),
            self.payload().to_vec(),
            block,
            entries.concat(),
        ]
        .concat()
    }
}

/// A trust store with these keys and further lines.
pub(crate) fn trust_text(seeds: &[u8], threshold: usize, lines: &str) -> String {
    let keys: String = seeds
        .iter()
        .map(|seed| format!("key {}\n", public_key([*seed; 32])))
        .collect();
    format!(
        "preface-trust v1\nnamespace default\nversion 2\nthreshold {threshold}\n{keys}{lines}\n"
    )
}
