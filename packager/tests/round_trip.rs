//! Whatever is packed is verified and comes back; whatever is changed, even by a signer, is refused
//! or read, and never makes the reader panic.

#![allow(clippy::unwrap_used)]

use std::fs;

use preface_bundle::{
    AnswerKind, AnswerPlan, Dtype, Error, Frame, HEADER_BYTES, HeadKind, Id, Inputs, Policy,
    Positions, Role, TrustStore, VerifiedBundle,
};
use preface_packager::{Adapter, Encoding, Options, Packed, SecretKey, pack, packed_len};
use proptest::{collection::vec, prelude::*};
use safetensors::tensor::TensorView;
use serde_json::json;

const BASE: Id = Id([0xab; 32]);
const TOKENIZER: Id = Id([0xcd; 32]);

fn key() -> SecretKey {
    SecretKey::from_seed(&[1; 32])
}

fn trust() -> String {
    format!(
        "preface-trust v1\nnamespace default\nversion 1\nthreshold 1\nkey {}\n",
        key().public()
    )
}

/// What a test adapter looks like.
#[derive(Clone, Debug)]
struct Shape {
    tokens: u16,
    /// Heads and head width of each layer; none for the embeddings form.
    layers: Vec<(u16, u16)>,
    hidden: u16,
    classes: u16,
    scale: f32,
    seed: u64,
}

impl Shape {
    fn width(&self) -> usize {
        match self.layers.as_slice() {
            [] => usize::from(self.hidden),
            layers => layers
                .iter()
                .map(|(heads, dim)| 2 * usize::from(heads * dim))
                .sum(),
        }
    }

    fn values(&self, salt: u64, count: usize) -> Vec<f32> {
        let mut state = self.seed ^ salt;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..count).map(|_| self.scale * next()).collect()
    }

    fn adapter(&self) -> Adapter {
        self.adapter_with(json!({}), &[])
    }

    /// An adapter with these fields changed; of the head's tensors it has these, where there are any.
    fn adapter_with(&self, changes: serde_json::Value, head: &[(&'static str, &[u16])]) -> Adapter {
        let folder = tempfile::tempdir().unwrap();
        let (tokens, hidden, classes) = (self.tokens, self.hidden, self.classes);
        let form = match self.layers.as_slice() {
            [] => json!({"kind": "embeddings", "tokens": tokens, "hidden": hidden}),
            layers => json!({"kind": "key-values", "tokens": tokens, "layers": layers.iter()
                .map(|(heads, dim)| json!({"kv_heads": heads, "head_dim": dim})).collect::<Vec<_>>()}),
        };
        let mut description = json!({
            "format": 1, "method": "test", "form": form,
            "head": {"kind": "linear", "classes": classes, "hidden": hidden},
            "labels": (0..classes).map(|n| format!("label {n}")).collect::<Vec<_>>(),
            "template": "{text}", "pooling": "mean", "positions": if self.layers.is_empty() { "after-prompt" } else { "text-from-zero" },
            "base_id": BASE.to_string(), "tokenizer_id": TOKENIZER.to_string(),
            "probes": [{"ids": [1, 2, 3], "label": 0}],
            "metrics": {"dev_accuracy": 0.9}, "receipt": {"seed": self.seed},
        });
        for (field, value) in changes.as_object().unwrap() {
            description[field] = value.clone();
        }
        fs::write(folder.path().join("preface.json"), description.to_string()).unwrap();
        let mut tensors = vec![
            ("prompt_embeddings", vec![usize::from(tokens), self.width()]),
            (
                "base_model.classifier.weight",
                vec![usize::from(classes), usize::from(hidden)],
            ),
            ("base_model.classifier.bias", vec![usize::from(classes)]),
        ];
        if changes.get("head").is_some() {
            tensors.truncate(1);
        }
        let wide = |dims: &[u16]| dims.iter().map(|dim| usize::from(*dim)).collect();
        tensors.extend(head.iter().map(|(name, dims)| (*name, wide(dims))));
        let bytes: Vec<Vec<u8>> = tensors
            .iter()
            .zip(1..)
            .map(|((_, shape), salt)| self.values(salt, shape.iter().product()))
            .map(|values| {
                values
                    .iter()
                    .flat_map(|value| value.to_le_bytes())
                    .collect()
            })
            .collect();
        let views = tensors.iter().zip(&bytes).map(|((name, shape), bytes)| {
            (
                *name,
                TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap(),
            )
        });
        let file = safetensors::serialize(views, None).unwrap();
        fs::write(folder.path().join("adapter_model.safetensors"), file).unwrap();
        Adapter::open(folder.path()).unwrap()
    }
}

fn packed(adapter: &Adapter, dtype: Dtype) -> Packed {
    pack(
        adapter,
        &Options {
            encoding: Encoding::of(dtype),
            ..Options::new("intent", 1)
        },
        &[key()],
    )
    .unwrap()
}

/// Verifies a file, and hands an opened bundle to `use_it`.
fn verify<T>(file: &[u8], use_it: impl FnOnce(&VerifiedBundle<'_>) -> T) -> Result<T, Error> {
    let trust = trust();
    let store = TrustStore::parse(&trust)?;
    let policy = Policy::for_base(BASE, TOKENIZER);
    let admitted = Frame::parse(file)?.authenticate(&store)?.admit(&policy)?;
    admitted.check_compressed()?;
    let mut decoded = match admitted.codec() {
        preface_bundle::Codec::Stored => admitted.stored_payload().to_vec(),
        _ => zstd::bulk::decompress(admitted.stored_payload(), admitted.decoded_bytes())
            .map_err(|_| Error::PayloadDigest)?,
    };
    if admitted.codec() == preface_bundle::Codec::ShuffledZstd {
        let shuffled = decoded.clone();
        admitted.unshuffle(&shuffled, &mut decoded)?;
    }
    admitted.open(&decoded).map(|bundle| use_it(&bundle))
}

fn values(bundle: &VerifiedBundle<'_>, role: Role) -> Vec<f32> {
    let mut all = Vec::new();
    for tensor in bundle.tensors_of(role) {
        let mut out = vec![f32::NAN; tensor.spec().elements()];
        tensor.dequantise(&mut out).unwrap();
        all.extend(out);
    }
    all
}

fn relative_error(before: &[f32], after: &[f32]) -> f64 {
    assert_eq!(before.len(), after.len());
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let energy = squares(&mut before.iter().map(|v| f64::from(*v)));
    let error = squares(&mut before.iter().zip(after).map(|(b, a)| f64::from(b - a)));
    (error / energy).sqrt()
}

fn shapes() -> impl Strategy<Value = Shape> {
    let layers = vec((1u16..4, 1u16..9), 0..5);
    (
        1u16..9,
        layers,
        1u16..40,
        1u16..20,
        0.01f32..10.0,
        any::<u64>(),
    )
        .prop_map(|(tokens, layers, hidden, classes, scale, seed)| {
            let (hidden, layers) = (2 * hidden, layers);
            Shape {
                tokens,
                layers,
                hidden,
                classes,
                scale,
                seed,
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn what_was_packed_comes_back(shape in shapes()) {
        let adapter = shape.adapter();
        for (dtype, most) in [(Dtype::F32, 1e-12), (Dtype::F16, 1e-3), (Dtype::Bf16, 4e-3), (Dtype::I8, 0.02), (Dtype::I4, 0.2)] {
            let packed = packed(&adapter, dtype);
            let loss = verify(&packed.bytes, |bundle| {
                let weight = relative_error(&adapter.head_weight, &values(bundle, Role::HeadWeight));
                let bias = relative_error(&adapter.head_bias, &values(bundle, Role::HeadBias));
                let rows = values(bundle, Role::Embeddings);
                let prompt = match shape.layers.is_empty() {
                    true => relative_error(&adapter.prompt, &rows),
                    false => energy_error(&adapter.prompt, &values(bundle, Role::KeyValues)),
                };
                weight.max(bias).max(prompt)
            });
            let loss = loss.unwrap();
            prop_assert!(loss <= most, "{dtype:?}: {loss}");
            prop_assert!(packed.loss <= most, "{dtype:?}: {}", packed.loss);
        }
    }

    #[test]
    fn any_bytes_are_answered(bytes in vec(any::<u8>(), 0..2048)) {
        prop_assert!(Frame::parse(&bytes).is_err());
        let with_context = [&preface_bundle::CONTEXT[..], &bytes].concat();
        let _ = Frame::parse(&with_context).map(|frame| frame.unverified_manifest().is_ok());
        if let Ok(text) = std::str::from_utf8(&bytes) {
            prop_assert!(TrustStore::parse(text).is_err());
        }
    }

    #[test]
    fn any_text_after_a_trust_stores_first_line_is_answered(text in "(key |version |dated |namespace |threshold |revoke-key |[ -~\n])*") {
        let _ = TrustStore::parse(&format!("preface-trust v1\n{text}"));
    }

    /// A signer that writes nonsense: the signature holds, so every check behind it is reached.
    #[test]
    fn a_signed_bundle_of_changed_bytes_is_answered(
        dtype in prop_oneof![Just(Dtype::F32), Just(Dtype::I8), Just(Dtype::I4)],
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        fix_digests in any::<bool>(),
    ) {
        let shape = Shape { tokens: 2, layers: vec![(1, 4), (2, 4)], hidden: 8, classes: 3, scale: 1.0, seed: 7 };
        let good = packed(&shape.adapter(), dtype).bytes;
        let prefix = Frame::parse(&good).unwrap().signed_prefix().len();
        let mut bytes = good[..good.len() - 64].to_vec();
        for (at, value) in changes {
            let at = HEADER_BYTES + at.index(bytes.len() - HEADER_BYTES - 32);
            bytes[at] = value;
        }
        if fix_digests {
            let digest = Id::of(&bytes[prefix..bytes.len() - 32]);
            bytes[HEADER_BYTES + 80..][..32].copy_from_slice(&digest.0);
            bytes[HEADER_BYTES + 112..][..32].copy_from_slice(&digest.0);
        }
        let signature = key().sign(&bytes[..prefix]).unwrap();
        bytes.extend(signature);
        let used = verify(&bytes, |bundle| {
            bundle.tensors().for_each(|tensor| {
                let mut out = vec![0.0; tensor.spec().elements()];
                tensor.dequantise(&mut out).unwrap();
                assert!(out.iter().all(|value| value.is_finite()));
            });
            let manifest = bundle.manifest();
            (manifest.labels.iter().count(), manifest.probes.iter().map(|p| p.ids().count()).sum::<usize>())
        });
        if let Err(error) = used {
            prop_assert!((10..=18).contains(&error.exit_code()) && !error.to_string().is_empty());
        }
    }
}

/// Key-values come back in another order: compare what the order does not change.
fn energy_error(before: &[f32], after: &[f32]) -> f64 {
    let sorted = |values: &[f32]| {
        let mut values = values.to_vec();
        values.sort_by(f32::total_cmp);
        values
    };
    relative_error(&sorted(before), &sorted(after))
}

#[test]
fn key_values_are_where_the_form_says() {
    let shape = Shape {
        tokens: 3,
        layers: vec![(2, 4), (2, 4), (1, 2)],
        hidden: 8,
        classes: 2,
        scale: 1.0,
        seed: 5,
    };
    let adapter = shape.adapter();
    let width = shape.width();
    let packed = packed(&adapter, Dtype::F32);
    verify(&packed.bytes, |bundle| {
        let mut column = 0;
        let mut layers = 0;
        for tensor in bundle.tensors_of(Role::KeyValues) {
            let spec = *tensor.spec();
            assert_eq!(usize::from(spec.layer), layers);
            let mut out = vec![0.0; spec.elements()];
            tensor.dequantise(&mut out).unwrap();
            let [count, heads, tokens, dim] = [0, 2, 3, 4].map(|axis| spec.dim(axis));
            let mut values = out.chunks(dim);
            for _ in 0..count * 2 * heads {
                for token in 0..tokens {
                    let start = token * width + column;
                    assert_eq!(values.next().unwrap(), &adapter.prompt[start..start + dim]);
                }
                column += dim;
            }
            layers += count;
        }
        assert_eq!((layers, column), (3, width));
    })
    .unwrap();
}

/// Ids of bundles as they were before heads, gates and answers of other kinds could be packed.
#[test]
fn what_could_always_be_packed_keeps_its_bytes() {
    let table = [
        (
            vec![],
            Dtype::F32,
            "7ab272740a4e3cad81c5b9213a84d5d73aa41b1ef59cdc844102a327c7196896",
        ),
        (
            vec![],
            Dtype::I8,
            "a6991ca1f2a65d1b2017e7b6b3b1178af67f114c584353fe27114f304199dce7",
        ),
        (
            vec![(2, 4), (1, 4)],
            Dtype::F32,
            "f1ec42767519004f73b54121facfdaa52bc36d62dc624cad650da7fa21193c05",
        ),
        (
            vec![(2, 4), (1, 4)],
            Dtype::I8,
            "fafe15011d271d9241ac3c653954e31d48d8a9cfaa65be9c2ca0227f6065cdcb",
        ),
    ];
    for (layers, dtype, digest) in table {
        let shape = Shape { layers, ..plain() };
        for format in [1, 2] {
            let adapter = shape.adapter_with(json!({"format": format, "inputs": "one"}), &[]);
            let bytes = packed(&adapter, dtype).bytes;
            assert_eq!(
                Id::<32>::of(&bytes).to_string(),
                digest,
                "{dtype:?} {format}"
            );
        }
    }
}

fn plain() -> Shape {
    Shape {
        tokens: 4,
        layers: vec![],
        hidden: 64,
        classes: 5,
        scale: 0.3,
        seed: 3,
    }
}

/// What each kind of head and answer needs, comes back from a bundle in every number format, and the length of the
/// bundle is known before it is signed.
#[test]
fn every_head_and_answer_comes_back() {
    const BIAS: (&str, &[u16]) = ("base_model.classifier.bias", &[5]);
    const FACTORS: [(&str, &[u16]); 2] = [
        ("preface.head.factor.0", &[5, 3]),
        ("preface.head.factor.1", &[3, 64]),
    ];
    let weight: (&str, &[u16]) = ("base_model.classifier.weight", &[5, 64]);
    let head = |kind: &str| json!({"kind": kind, "classes": 5, "hidden": 64});
    let verbaliser = json!({"head": {"kind": "verbaliser", "classes": 5}, "verbaliser": [[1], [2, 3], [4], [5], [6]]});
    let generation = json!({"head": {"kind": "generation", "classes": 0}, "labels": [], "probes": [],
        "decode": {"most_tokens": 9, "stop_ids": [2, 3]}});
    let factored = json!({"kind": "factored-linear", "classes": 5, "hidden": 64, "rank": 3});
    let plan = AnswerPlan::new;
    let table = [
        (
            json!({"head": head("token-linear"), "template": "tag {text}"}),
            vec![weight, BIAS],
            HeadKind::TokenLinear,
            plan(AnswerKind::Tags, Inputs::One, None),
        ),
        (
            json!({"head": factored, "answer": {"kind": "label", "threshold": 0.25}}),
            vec![FACTORS[0], FACTORS[1], BIAS],
            HeadKind::FactoredLinear,
            plan(AnswerKind::Label, Inputs::One, Some(0.25)),
        ),
        (
            json!({"head": head("label-text"), "answer": {"kind": "labels"}, "inputs": "pair"}),
            vec![BIAS],
            HeadKind::LabelText,
            plan(AnswerKind::Labels, Inputs::Pair, Some(0.5)),
        ),
        (
            verbaliser,
            vec![],
            HeadKind::Verbaliser,
            plan(AnswerKind::Label, Inputs::One, None),
        ),
        (
            generation,
            vec![],
            HeadKind::Generation,
            plan(AnswerKind::Text, Inputs::One, None),
        ),
    ];
    for (changes, tensors, kind, answer) in table {
        let adapter = plain().adapter_with(changes, &tensors);
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::I8, Dtype::I4] {
            let packed = packed(&adapter, dtype);
            let options = Options {
                encoding: Encoding::of(dtype),
                ..Options::new("intent", 1)
            };
            assert_eq!(packed_len(&adapter, &options).unwrap(), packed.bytes.len());
            verify(&packed.bytes, |bundle| {
                let manifest = bundle.manifest();
                assert_eq!((manifest.head.kind, manifest.answer), (kind, answer));
                assert_eq!(manifest.template, "{text}");
                assert_eq!(manifest.min_runtime, 2, "{kind:?}");
                let most = [1e-12, 1e-3, 4e-3, 0.02, 0.2][usize::from(dtype.to_u16()) - 1];
                let [first, second] = &adapter.head_factors;
                for (before, role) in [
                    (&adapter.head_weight, Role::HeadWeight),
                    (&adapter.head_bias, Role::HeadBias),
                    (&[&first[..], second].concat(), Role::HeadFactor),
                ] {
                    let after = values(bundle, role);
                    let error = if before.is_empty() {
                        after.len() as f64
                    } else {
                        relative_error(before, &after)
                    };
                    assert!(error <= most, "{kind:?} {dtype:?} {role:?}: {error}");
                }
                let spoken: Vec<Vec<u32>> = manifest
                    .verbaliser
                    .iter()
                    .flat_map(|verbaliser| verbaliser.iter().map(Iterator::collect))
                    .collect();
                assert_eq!(spoken, adapter.description.verbaliser);
                let stops: Vec<u32> = manifest
                    .decode_limits
                    .iter()
                    .flat_map(|limits| limits.stop_ids())
                    .collect();
                let expected = adapter
                    .description
                    .decode
                    .as_ref()
                    .map_or(vec![], |decode| decode.stop_ids.clone());
                assert_eq!(stops, expected);
            })
            .unwrap();
        }
    }
}

#[test]
fn a_gated_prefix_of_the_upper_layers_costs_nothing_for_the_lower_ones() {
    let shape = Shape {
        layers: vec![(2, 4), (2, 4)],
        ..plain()
    };
    let layer = json!({"kv_heads": 2, "head_dim": 4});
    let form = |first: u16, gated: bool| json!({"kind": "key-values", "tokens": 4, "first_layer": first, "layers": [layer, layer], "gated": gated});
    let whole = shape.adapter();
    let upper = shape.adapter_with(json!({"form": form(4, false)}), &[]);
    let mut gated = shape.adapter_with(json!({"form": form(4, true)}), &[("preface.gate", &[2])]);
    let level = |bytes: &[u8]| {
        Frame::parse(bytes)
            .unwrap()
            .unverified_manifest()
            .unwrap()
            .min_runtime
    };
    for dtype in [Dtype::F32, Dtype::I8, Dtype::I4] {
        let [whole, upper] = [&whole, &upper].map(|adapter| packed(adapter, dtype).bytes);
        assert_eq!(whole.len(), upper.len());
        assert_eq!((level(&whole), level(&upper)), (1, 2));
        verify(&packed(&gated, dtype).bytes, |bundle| {
            assert_eq!(bundle.tensor(Role::KeyValues).unwrap().spec().layer, 4);
            assert!(relative_error(&gated.gates, &values(bundle, Role::Gate)) < 1e-3);
        })
        .unwrap();
    }
    gated.gates.fill(0.0);
    let [idle, upper] = [&gated, &upper].map(|adapter| packed(adapter, Dtype::I8).bytes.len());
    assert_eq!(idle, upper, "gates of zero change nothing and are left out");
}

#[test]
fn a_prefix_before_a_decoders_tokens_needs_a_runtime_that_knows_its_place() {
    let shape = Shape {
        layers: vec![(2, 4), (2, 4)],
        ..plain()
    };
    let adapter = shape.adapter_with(json!({"positions": "decoder-after-prompt"}), &[]);
    verify(&packed(&adapter, Dtype::F32).bytes, |bundle| {
        let manifest = bundle.manifest();
        let found = (manifest.positions, manifest.min_runtime);
        assert_eq!(found, (Positions::DecoderAfterPrompt, 4));
    })
    .unwrap();
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let shape = Shape {
        tokens: 4,
        layers: vec![],
        hidden: 64,
        classes: 5,
        scale: 0.3,
        seed: 3,
    };
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::I8, Dtype::I4] {
        let (one, other) = (
            packed(&shape.adapter(), dtype),
            packed(&shape.adapter(), dtype),
        );
        assert_eq!(one.bytes, other.bytes, "{dtype:?}");
        let next = Options {
            encoding: Encoding::of(dtype),
            ..Options::new("intent", 2)
        };
        let next = pack(&shape.adapter(), &next, &[key()]).unwrap();
        assert_ne!(next.bundle_id, one.bundle_id, "{dtype:?}");
    }
}

#[test]
fn every_encoding_is_packed_as_it_says_and_the_most_exact_one_is_last() {
    let shape = Shape {
        tokens: 4,
        layers: vec![],
        hidden: 64,
        classes: 5,
        scale: 0.3,
        seed: 3,
    };
    let without = json!({"head": {"kind": "label-text", "classes": 5, "hidden": 64}});
    let without = shape.adapter_with(without, &[("base_model.classifier.bias", &[5])]);
    for (adapter, count) in [(shape.adapter(), 28), (without, 6)] {
        let encodings = Encoding::all(&adapter);
        assert_eq!(encodings.len(), count);
        assert_eq!(encodings.last(), Some(&Encoding::of(Dtype::F32)));
        let mut payloads = Vec::new();
        for encoding in encodings {
            let options = Options {
                encoding,
                ..Options::new("intent", 1)
            };
            let packed = pack(&adapter, &options, &[key()]).unwrap();
            assert_eq!(packed_len(&adapter, &options).unwrap(), packed.bytes.len());
            for tensor in &packed.tensors {
                let expected = match tensor.spec.role {
                    Role::Embeddings => encoding.prompt,
                    Role::HeadWeight => encoding.head,
                    _ => match encoding.head {
                        Dtype::F32 => Dtype::F32,
                        _ => Dtype::F16,
                    },
                };
                assert_eq!(tensor.spec.dtype, expected, "{encoding:?}");
            }
            let decoded = verify(&packed.bytes, |bundle| {
                let tensors = bundle.tensors();
                tensors
                    .flat_map(|tensor| tensor.bytes().to_vec())
                    .collect::<Vec<u8>>()
            });
            payloads.push(decoded.unwrap());
        }
        payloads.sort_unstable();
        payloads.dedup();
        assert_eq!(payloads.len(), count, "no two are the same numbers");
    }
}

#[test]
fn every_flipped_bit_of_a_packed_bundle_is_refused() {
    let shape = Shape {
        tokens: 1,
        layers: vec![(1, 4)],
        hidden: 4,
        classes: 2,
        scale: 0.3,
        seed: 3,
    };
    let good = packed(&shape.adapter(), Dtype::I8).bytes;
    assert!(verify(&good, |_| ()).is_ok());
    for bit in 0..8 * good.len() {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(verify(&bad, |_| ()).is_err(), "bit {bit}");
    }
}

#[test]
fn options_outside_the_rules_are_refused() {
    let shape = Shape {
        tokens: 1,
        layers: vec![],
        hidden: 4,
        classes: 2,
        scale: 0.3,
        seed: 3,
    };
    let adapter = shape.adapter();
    let cases = [
        Options::new("../intent", 1),
        Options::new("", 1),
        Options {
            namespace: "A".into(),
            ..Options::new("intent", 1)
        },
    ];
    for options in cases {
        let error = pack(&adapter, &options, &[key()]).unwrap_err();
        assert!(
            matches!(error, preface_packager::Error::Option { .. }),
            "{error}"
        );
    }
    let long = Adapter::clone(&adapter);
    let mut long = long;
    long.description
        .receipt
        .insert("notes".into(), "x".repeat(5000).into());
    let error = pack(&long, &Options::new("intent", 1), &[key()]).unwrap_err();
    assert!(error.to_string().contains("receipt"), "{error}");
}
