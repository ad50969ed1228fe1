//! Reading an adapter folder: `preface.json` and `adapter_model.safetensors`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use preface_bundle::{HeadKind, Id, MAX_VALUE};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::{Error, description::Description};

pub(crate) const DESCRIPTION: &str = "preface.json";
pub(crate) const TENSORS: &str = "adapter_model.safetensors";
pub(crate) const PROMPT: &str = "prompt_embeddings";
pub(crate) const WEIGHT: &str = "base_model.classifier.weight";
pub(crate) const BIAS: &str = "base_model.classifier.bias";
pub(crate) const FACTORS: [&str; 2] = ["preface.head.factor.0", "preface.head.factor.1"];
pub(crate) const GATE: &str = "preface.gate";
const MAX_TENSOR_BYTES: u64 = 256 << 20;

/// A trained adapter: what it is, and its numbers in `f32`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Adapter {
    /// What `preface.json` says.
    pub description: Description,
    /// The prompt: `[tokens, hidden]`, or `[tokens, 2 * kv_heads * head_dim of every layer]` with
    /// keys before values in each layer.
    pub prompt: Vec<f32>,
    /// For each layer that has keys and values the number that is added to the attention scores of the prefix;
    /// none where the prompt is not gated.
    pub gates: Vec<f32>,
    /// The head's weight `[classes, hidden]`; none where its kind has no weight.
    pub head_weight: Vec<f32>,
    /// The head's bias `[classes]`, of a pooler behind which a linear layer stands `[classes + rank]`; none where its kind
    /// has no bias.
    pub head_bias: Vec<f32>,
    /// The factors `[classes, rank]` and `[rank, hidden]` of a factored head, otherwise none.
    pub head_factors: [Vec<f32>; 2],
}

impl Adapter {
    /// Reads and checks an adapter folder.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Json`], [`Error::Safetensors`], or [`Error::Field`] with file,
    /// field and rule.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let description = Description::open(&folder.join(DESCRIPTION))?;
        let path = folder.join(TENSORS);
        let bytes = read(&path)?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|source| Error::Safetensors {
            path: path.clone(),
            source,
        })?;
        let file = TensorFile {
            path: &path,
            tensors,
        };
        let expected = Expected::of(&description);
        let names: Vec<&str> = expected.shapes().map(|(name, _)| *name).collect();
        file.refuse_unknown(&names)?;
        let values = |tensor: &Option<Shape>| match tensor {
            Some((name, shape)) => file.values(name, shape),
            None => Ok(Vec::new()),
        };
        let [first, second] = &expected.factors;
        Ok(Self {
            prompt: values(&expected.prompt)?,
            gates: values(&expected.gates)?,
            head_weight: values(&expected.weight)?,
            head_bias: values(&expected.bias)?,
            head_factors: [values(first)?, values(second)?],
            description,
        })
    }

    /// Id of the base model that the adapter was trained against.
    pub fn base_id(&self) -> Option<Id> {
        Id::from_hex(&self.description.base_id)
    }

    /// Id of the tokenizer that the adapter was trained with.
    pub fn tokenizer_id(&self) -> Option<Id> {
        Id::from_hex(&self.description.tokenizer_id)
    }

    /// Checks that the adapter was trained with this base and this tokenizer.
    ///
    /// # Errors
    /// [`Error::OtherBase`].
    pub fn check_base(&self, base: Id, tokenizer: Id) -> Result<(), Error> {
        let pairs = [
            ("base", self.base_id(), base),
            ("tokenizer", self.tokenizer_id(), tokenizer),
        ];
        for (what, adapter, base) in pairs {
            match adapter {
                Some(adapter) if adapter == base => {}
                other => {
                    let adapter = other.unwrap_or(Id([0; 32]));
                    return Err(Error::OtherBase {
                        what,
                        adapter,
                        base,
                    });
                }
            }
        }
        Ok(())
    }
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Read {
        path: path.into(),
        source,
    };
    if fs::metadata(path).map_err(failed)?.len() > MAX_TENSOR_BYTES {
        return Err(Error::Field {
            path: path.into(),
            field: "file".into(),
            problem: "larger than 256 MiB".into(),
        });
    }
    fs::read(path).map_err(failed)
}

/// Name and dimensions of a tensor.
type Shape = (&'static str, Vec<usize>);

/// The tensors that an adapter of this description has.
struct Expected {
    prompt: Option<Shape>,
    gates: Option<Shape>,
    weight: Option<Shape>,
    bias: Option<Shape>,
    factors: [Option<Shape>; 2],
}

impl Expected {
    fn of(description: &Description) -> Self {
        let (form, head) = (&description.form, description.head);
        let [classes, hidden, rank] =
            [head.classes, head.width(), head.rank.unwrap_or(0)].map(usize::from);
        let weighted = matches!(head.kind, HeadKind::Linear | HeadKind::TokenLinear);
        let factored = head.is_factored();
        let biased = weighted || factored || head.kind == HeadKind::LabelText;
        let [first, second] = FACTORS;
        Self {
            prompt: Some((PROMPT, vec![form.tokens().into(), form.width()])),
            gates: form.gates().map(|layers| (GATE, vec![layers])),
            weight: weighted.then(|| (WEIGHT, vec![classes, hidden])),
            bias: biased.then(|| (BIAS, vec![head.biases()])),
            factors: [
                factored.then(|| (first, vec![classes, rank])),
                factored.then(|| (second, vec![rank, hidden])),
            ],
        }
    }

    fn shapes(&self) -> impl Iterator<Item = &Shape> {
        let Self {
            prompt,
            gates,
            weight,
            bias,
            factors: [first, second],
        } = self;
        [prompt, gates, weight, bias, first, second]
            .into_iter()
            .flatten()
    }
}

struct TensorFile<'a> {
    path: &'a PathBuf,
    tensors: SafeTensors<'a>,
}

impl TensorFile<'_> {
    fn refuse(&self, field: &str, problem: String) -> Error {
        Error::Field {
            path: self.path.clone(),
            field: field.to_owned(),
            problem,
        }
    }

    fn refuse_unknown(&self, known: &[&str]) -> Result<(), Error> {
        let names = self.tensors.names();
        match names.into_iter().find(|name| !known.contains(name)) {
            Some(name) => {
                Err(self.refuse(name, "a tensor that the form and head do not have".into()))
            }
            None => Ok(()),
        }
    }

    /// The values of a tensor of this shape, all of them finite and not above the bundle's limit.
    fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        let view = self
            .tensors
            .tensor(name)
            .map_err(|_| self.refuse(name, "the tensor is missing".into()))?;
        if view.shape() != shape {
            let problem = format!(
                "its shape is {:?}, {DESCRIPTION} says {shape:?}",
                view.shape()
            );
            return Err(self.refuse(name, problem));
        }
        let values = floats(&view).ok_or_else(|| {
            self.refuse(
                name,
                format!("numbers of type {:?}, not F32, F16 or BF16", view.dtype()),
            )
        })?;
        match values
            .iter()
            .position(|value| !value.is_finite() || value.abs() > MAX_VALUE)
        {
            Some(at) => {
                let value = values.get(at).copied().unwrap_or_default();
                Err(self.refuse(
                    name,
                    format!("value {at} is {value}: not finite or above {MAX_VALUE}"),
                ))
            }
            None => Ok(values),
        }
    }
}

pub(crate) fn floats(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let bytes = view.data();
    Some(match view.dtype() {
        Dtype::F32 => bytes
            .as_chunks()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect(),
        Dtype::F16 => bytes
            .as_chunks()
            .0
            .iter()
            .map(|b| f16::from_le_bytes(*b).to_f32())
            .collect(),
        Dtype::BF16 => bytes
            .as_chunks()
            .0
            .iter()
            .map(|b| bf16::from_le_bytes(*b).to_f32())
            .collect(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use preface_bundle::{AnswerKind, AnswerPlan, Inputs};
    use serde_json::{Value, json};

    use super::*;
    use crate::Form;

    fn description() -> Value {
        json!({
            "format": 1, "method": "prompt-tuning",
            "form": {"kind": "embeddings", "tokens": 2, "hidden": 4},
            "head": {"kind": "linear", "classes": 2, "hidden": 4},
            "labels": ["on", "off"], "template": "{text}", "pooling": "mean",
            "positions": "after-prompt", "base_id": "ab".repeat(32), "tokenizer_id": "cd".repeat(32),
            "probes": [{"ids": [1, 2], "label": 1, "second": 1}], "metrics": {"dev_accuracy": 0.5},
            "token_budget": {"prompt": 2, "longest": 9, "typical": 4, "positions": 64},
            "receipt": {"seed": 0}
        })
    }

    fn write(folder: &Path, description: &Value, tensors: &[(&str, Vec<usize>, Vec<f32>)]) {
        fs::write(folder.join(DESCRIPTION), description.to_string()).expect("written");
        let bytes: Vec<Vec<u8>> = tensors
            .iter()
            .map(|(.., values)| {
                values
                    .iter()
                    .flat_map(|value| value.to_le_bytes())
                    .collect()
            })
            .collect();
        let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
            (
                *name,
                TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a valid tensor"),
            )
        });
        let file = safetensors::serialize(views, None).expect("serialisable");
        fs::write(folder.join(TENSORS), file).expect("written");
    }

    fn tensors() -> Vec<(&'static str, Vec<usize>, Vec<f32>)> {
        vec![
            (PROMPT, vec![2, 4], vec![0.5; 8]),
            (WEIGHT, vec![2, 4], vec![0.25; 8]),
            (BIAS, vec![2], vec![0.0, 1.0]),
        ]
    }

    #[test]
    fn a_folder_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        write(folder.path(), &description(), &tensors());
        let adapter = Adapter::open(folder.path()).expect("valid");
        assert_eq!(adapter.head_bias, [0.0, 1.0]);
        assert_eq!(
            adapter.description.form,
            Form::Embeddings {
                tokens: 2,
                hidden: 4
            }
        );
        let (base, tokenizer) = (Id([0xab; 32]), Id([0xcd; 32]));
        assert!(adapter.check_base(base, tokenizer).is_ok());
        for (base, tokenizer) in [(tokenizer, tokenizer), (base, base)] {
            assert!(matches!(
                adapter.check_base(base, tokenizer),
                Err(Error::OtherBase { .. })
            ));
        }
    }

    #[test]
    fn descriptions_outside_the_rules_are_refused_with_their_field() {
        let cases = [
            ("format", json!(3)),
            (
                "form",
                json!({"kind": "embeddings", "tokens": 0, "hidden": 4}),
            ),
            (
                "form",
                json!({"kind": "key-values", "tokens": 1, "layers": []}),
            ),
            (
                "form",
                json!({"kind": "key-values", "tokens": 1, "layers": [{"kv_heads": 1, "head_dim": 0}]}),
            ),
            ("head", json!({"kind": "linear", "classes": 0, "hidden": 4})),
            (
                "head",
                json!({"kind": "linear", "classes": 2, "hidden": 4, "rank": 1}),
            ),
            (
                "head",
                json!({"kind": "factored-linear", "classes": 2, "hidden": 4}),
            ),
            (
                "head",
                json!({"kind": "factored-linear", "classes": 2, "hidden": 4, "rank": 0}),
            ),
            ("head", json!({"kind": "generation", "classes": 2})),
            ("verbaliser", json!([[1], [2]])),
            ("decode", json!({"most_tokens": 4, "stop_ids": []})),
            ("pooling", json!("mask")),
            ("pooling", json!("max")),
            ("positions", json!("before")),
            ("positions", json!("decoder-after-prompt")),
            ("answer", json!({"kind": "tags"})),
            ("answer", json!({"kind": "text"})),
            ("answer", json!({"kind": "label", "threshold": 1.5})),
            ("answer", json!({"kind": "labels", "threshold": -0.5})),
            (
                "form",
                json!({"kind": "key-values", "tokens": 1, "first_layer": 65535, "layers": [{"kv_heads": 1, "head_dim": 2}]}),
            ),
            ("labels", json!(["on"])),
            ("labels", json!(["on", "on"])),
            ("labels", json!(["on", ""])),
            ("labels", json!(["on", "o\u{7}"])),
            ("template", json!("no place")),
            ("template", json!("{text}\u{1b}")),
            ("base_id", json!("AB")),
            ("tokenizer_id", json!("")),
            ("probes", json!([{"ids": [1], "label": 2}])),
            ("probes", json!([{"ids": [], "label": 0}])),
            ("probes", json!([{"ids": [1], "label": 0, "second": 1}])),
            (
                "probes",
                json!([{"ids": [1], "label": 0, "tags": [[1, 0]]}]),
            ),
            (
                "probes",
                json!([{"ids": [1], "label": 0, "tags": [[0, 2]]}]),
            ),
            (
                "probes",
                json!([{"ids": [1, 2], "label": 0, "tags": [[1, 0], [0, 0]]}]),
            ),
            (
                "probes",
                json!([{"ids": [1], "label": 0, "text": "\u{1b}"}]),
            ),
            // Its task answers one label.
            ("probes", json!([{"ids": [1], "label": 0, "labels": [0]}])),
            ("metrics", json!({"Dev Accuracy": 1})),
        ];
        let folder = tempfile::tempdir().expect("a folder");
        for (field, value) in cases {
            let mut description = description();
            description[field] = value.clone();
            write(folder.path(), &description, &tensors());
            let error = Adapter::open(folder.path()).expect_err(field);
            let named = matches!(&error, Error::Field { field: one, .. } if one == field);
            assert!(named, "{field} {value}: {error}");
        }
    }

    /// A folder with these fields changed, and with tensors of these names and dimensions.
    fn opened(changes: Value, tensors: &[(&'static str, &[usize])]) -> Result<Adapter, Error> {
        let folder = tempfile::tempdir().expect("a folder");
        let mut description = description();
        description["format"] = json!(2);
        for (field, value) in changes.as_object().expect("an object") {
            description[field] = value.clone();
        }
        let prompt = (PROMPT, vec![2, 4], vec![0.5; 8]);
        let of = |&(name, dims): &(&'static str, &[usize])| {
            (name, dims.to_vec(), vec![0.25; dims.iter().product()])
        };
        let mut all: Vec<_> = tensors.iter().map(of).collect();
        if !all.iter().any(|(name, ..)| *name == PROMPT) {
            all.push(prompt);
        }
        write(folder.path(), &description, &all);
        Adapter::open(folder.path())
    }

    #[test]
    fn probes_of_several_labels_have_them_in_order_from_their_own_on() {
        let with = |probes: Value, kind: &str| {
            let answer = json!({"kind": kind, "threshold": null});
            let changes = json!({"probes": probes, "answer": answer});
            opened(changes, &[(WEIGHT, &[2, 4]), (BIAS, &[2])])
        };
        let probe =
            |label: u16, labels: &[u16]| json!({"ids": [1], "label": label, "labels": labels});
        let good = json!([probe(0, &[0, 1]), probe(1, &[1])]);
        assert!(with(good.clone(), "labels").is_ok());
        assert!(with(good, "label").is_err());
        for bad in [
            json!([probe(0, &[1])]),
            json!([probe(1, &[1, 0])]),
            json!([probe(0, &[0, 2])]),
            json!([probe(0, &[0, 0])]),
            json!([probe(0, &[0]), probe(1, &[])]),
        ] {
            assert!(with(bad.clone(), "labels").is_err(), "{bad}");
        }
    }

    #[test]
    fn each_head_has_its_tensors() {
        let [first, second] = FACTORS;
        let head = |kind: &str| json!({"head": {"kind": kind, "classes": 2, "hidden": 4}});
        let factored =
            json!({"head": {"kind": "factored-linear", "classes": 2, "hidden": 4, "rank": 3}});
        let verbaliser = json!({"head": {"kind": "verbaliser", "classes": 2, "hidden": 0}, "verbaliser": [[5], [6, 7]]});
        let generation = json!({"head": {"kind": "generation", "classes": 0, "hidden": 151936}, "labels": [], "probes": [],
            "decode": {"most_tokens": 8, "stop_ids": [2]}, "answer": {"kind": "text", "threshold": null}});
        type Tensors<'a> = &'a [(&'static str, &'a [usize])];
        let table: [(Value, Tensors<'_>); 6] = [
            (head("linear"), &[(WEIGHT, &[2, 4]), (BIAS, &[2])]),
            (head("token-linear"), &[(WEIGHT, &[2, 4]), (BIAS, &[2])]),
            (
                factored,
                &[(first, &[2, 3]), (second, &[3, 4]), (BIAS, &[2])],
            ),
            (head("label-text"), &[(BIAS, &[2])]),
            (verbaliser, &[]),
            (generation, &[]),
        ];
        for (changes, tensors) in table {
            let adapter = opened(changes.clone(), tensors).expect("valid");
            let counts = [&adapter.head_weight, &adapter.head_bias].map(Vec::len);
            let factors = adapter.head_factors.each_ref().map(Vec::len);
            let has = |name| tensors.iter().any(|(one, _)| *one == name);
            assert_eq!(
                counts,
                [
                    if has(WEIGHT) { 8 } else { 0 },
                    if has(BIAS) { 2 } else { 0 }
                ]
            );
            assert_eq!(factors, if has(first) { [6, 12] } else { [0, 0] });
            let stranger = [tensors, &[("preface.gate", &[2][..])]].concat();
            assert!(opened(changes.clone(), &stranger).is_err(), "{changes}");
            if let [_, rest @ ..] = tensors {
                assert!(opened(changes, rest).is_err(), "a tensor is missing");
            }
        }
    }

    #[test]
    fn a_prefix_of_the_upper_layers_has_gates() {
        let layers = json!([{"kv_heads": 1, "head_dim": 2}, {"kv_heads": 1, "head_dim": 2}]);
        let form = json!({"kind": "key-values", "tokens": 2, "first_layer": 4, "layers": layers, "gated": true});
        let changes = json!({"form": form, "positions": "text-from-zero"});
        let tensors: [(&str, &[usize]); 4] = [
            (PROMPT, &[2, 8]),
            (GATE, &[2]),
            (WEIGHT, &[2, 4]),
            (BIAS, &[2]),
        ];
        let adapter = opened(changes.clone(), &tensors).expect("valid");
        assert_eq!((adapter.gates.len(), adapter.prompt.len()), (2, 16));
        assert!(opened(changes, &[tensors[0], tensors[2], tensors[3]]).is_err());
    }

    #[test]
    fn answers_have_defaults() {
        let linear: [(&str, &[usize]); 2] = [(WEIGHT, &[2, 4]), (BIAS, &[2])];
        let plan = |changes| {
            let adapter = opened(changes, &linear).expect("valid");
            adapter.description.answer()
        };
        let (label, labels) = (AnswerKind::Label, AnswerKind::Labels);
        let table = [
            (json!({}), AnswerPlan::new(label, Inputs::One, None)),
            (
                json!({"answer": {"kind": "label", "threshold": 0.25}, "inputs": "pair"}),
                AnswerPlan::new(label, Inputs::Pair, Some(0.25)),
            ),
            (
                json!({"answer": {"kind": "labels"}}),
                AnswerPlan::new(labels, Inputs::One, Some(0.5)),
            ),
        ];
        for (changes, expected) in table {
            assert_eq!(plan(changes), expected);
        }
        let tagging = json!({"head": {"kind": "token-linear", "classes": 2, "hidden": 4}});
        assert_eq!(plan(tagging).kind, AnswerKind::Tags);
    }

    #[test]
    fn what_a_bundle_does_not_tell_is_passed_over() {
        let changes = json!({
            "token_budget": {"prompt": 2, "longest": 9, "typical": 4, "template": 3, "examples": 0},
            "metrics": {"dev_accuracy": 0.5, "Per Label": {"on": 0.5}, "note": "x", "none": null},
            "baselines": {"majority": 0.5}, "init": "label text",
        });
        let adapter = opened(changes, &[(WEIGHT, &[2, 4]), (BIAS, &[2])]).expect("valid");
        assert_eq!(adapter.description.metrics.len(), 1);
        assert_eq!(
            adapter
                .description
                .token_budget
                .map(|budget| budget.longest),
            Some(9)
        );
    }

    #[test]
    fn json_of_another_shape_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let cases = [
            ("unknown", json!(1)),
            ("form", json!({"kind": "rows"})),
            (
                "head",
                json!({"kind": "linear", "classes": 70000, "hidden": 4}),
            ),
            ("labels", json!("on")),
            ("head", json!({"kind": "crf", "classes": 2, "hidden": 4})),
            ("inputs", json!("three")),
            ("answer", json!({"kind": "number"})),
            ("answer", json!({"kind": "label", "least": 0.5})),
        ];
        for (field, value) in cases {
            let mut description = description();
            description[field] = value;
            write(folder.path(), &description, &tensors());
            assert!(
                matches!(Adapter::open(folder.path()), Err(Error::Json { .. })),
                "{field}"
            );
        }
    }

    #[test]
    fn tensors_outside_the_rules_are_refused_with_their_name() {
        let folder = tempfile::tempdir().expect("a folder");
        type Change = fn(&mut Vec<(&'static str, Vec<usize>, Vec<f32>)>);
        let cases: [(&str, Change); 5] = [
            (BIAS, |t| drop(t.remove(2))),
            (PROMPT, |t| t[0].1 = vec![4, 2]),
            (WEIGHT, |t| t[1].2[3] = f32::NAN),
            (WEIGHT, |t| t[1].2[3] = 20_000.0),
            ("other", |t| t.push(("other", vec![1], vec![0.0]))),
        ];
        for (name, change) in cases {
            let mut tensors = tensors();
            change(&mut tensors);
            write(folder.path(), &description(), &tensors);
            let error = Adapter::open(folder.path()).expect_err(name);
            let named = matches!(&error, Error::Field { field, .. } if field == name);
            assert!(named, "{name}: {error}");
        }
        fs::write(folder.path().join(TENSORS), b"not tensors").expect("written");
        assert!(matches!(
            Adapter::open(folder.path()),
            Err(Error::Safetensors { .. })
        ));
        fs::remove_file(folder.path().join(TENSORS)).expect("removed");
        assert!(matches!(
            Adapter::open(folder.path()),
            Err(Error::Read { .. })
        ));
    }
}
