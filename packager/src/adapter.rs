//! Reading an adapter folder: `preface.json` and `adapter_model.safetensors`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use preface_bundle::{Id, MAX_VALUE, is_name};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::Deserialize;

use crate::Error;

const DESCRIPTION: &str = "preface.json";
const TENSORS: &str = "adapter_model.safetensors";
const PROMPT: &str = "prompt_embeddings";
const WEIGHT: &str = "base_model.classifier.weight";
const BIAS: &str = "base_model.classifier.bias";
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
    /// The head's weight: `[classes, hidden]`.
    pub head_weight: Vec<f32>,
    /// The head's bias: `[classes]`.
    pub head_bias: Vec<f32>,
}

/// The content of `preface.json`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// Version of this description: 1.
    pub format: u32,
    /// Name of the method that trained the adapter.
    pub method: String,
    /// How the prompt enters the model.
    pub form: Form,
    /// What turns the base's output into an answer.
    pub head: Head,
    /// Names of the labels; a label's number is its place.
    pub labels: Vec<String>,
    /// Text around an input; `{text}` is the input's place.
    pub template: String,
    /// Which hidden states the head sees: `mean`, `first` or `last`.
    pub pooling: String,
    /// Positions of prompt and text: `text-from-zero` or `after-prompt`.
    pub positions: String,
    /// Base model that the prompt was trained against, 64 hex digits.
    pub base_id: String,
    /// Tokenizer that it was trained with, 64 hex digits.
    pub tokenizer_id: String,
    /// Inputs to try a bundle with.
    #[serde(default)]
    pub probes: Vec<Probe>,
    /// What the trainer measured.
    #[serde(default)]
    pub metrics: BTreeMap<String, f32>,
    /// How many tokens the task takes.
    #[serde(default)]
    pub token_budget: Option<TokenBudget>,
    /// How the adapter was trained.
    #[serde(default)]
    pub receipt: serde_json::Map<String, serde_json::Value>,
}

/// How the prompt enters the model.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Form {
    /// Rows in place of token embeddings.
    Embeddings {
        /// Virtual tokens.
        tokens: u16,
        /// Width of the base's token embeddings.
        hidden: u16,
    },
    /// Keys and values of every layer.
    KeyValues {
        /// Virtual tokens.
        tokens: u16,
        /// The layers, from the base's first on.
        layers: Vec<Layer>,
    },
}

/// Keys and values of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// Heads of keys and values.
    pub kv_heads: u16,
    /// Width of one head.
    pub head_dim: u16,
}

/// What turns the base's output into an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Head {
    /// `logits = W h + b`.
    Linear {
        /// Number of labels.
        classes: u16,
        /// Width of the hidden states.
        hidden: u16,
    },
}

/// One input and the answer expected of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// Token ids of a text, special tokens included.
    pub ids: Vec<u32>,
    /// Number of the label that the adapter gives.
    pub label: u16,
}

/// How many tokens the task takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBudget {
    /// Virtual tokens.
    pub prompt: u32,
    /// Tokens of the longest text.
    pub longest: u32,
    /// Tokens of the median text.
    pub typical: u32,
    /// Positions that the base has; `None` where nothing bounds them.
    #[serde(default)]
    pub positions: Option<u32>,
}

impl Form {
    /// Virtual tokens.
    pub fn tokens(&self) -> u16 {
        match self {
            Self::Embeddings { tokens, .. } | Self::KeyValues { tokens, .. } => *tokens,
        }
    }

    /// Numbers of one virtual token.
    pub(crate) fn width(&self) -> usize {
        match self {
            Self::Embeddings { hidden, .. } => usize::from(*hidden),
            Self::KeyValues { layers, .. } => layers.iter().map(Layer::width).sum(),
        }
    }
}

impl Layer {
    /// Numbers of one virtual token in this layer, keys and values.
    pub(crate) fn width(&self) -> usize {
        2 * usize::from(self.kv_heads) * usize::from(self.head_dim)
    }
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
        let Head::Linear { classes, hidden } = description.head;
        let (classes, hidden) = (usize::from(classes), usize::from(hidden));
        file.refuse_unknown(&[PROMPT, WEIGHT, BIAS])?;
        let tokens = usize::from(description.form.tokens());
        Ok(Self {
            prompt: file.values(PROMPT, &[tokens, description.form.width()])?,
            head_weight: file.values(WEIGHT, &[classes, hidden])?,
            head_bias: file.values(BIAS, &[classes])?,
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

impl Description {
    fn open(path: &Path) -> Result<Self, Error> {
        let bytes = read(path)?;
        let description: Self = serde_json::from_slice(&bytes).map_err(|source| Error::Json {
            path: path.into(),
            source,
        })?;
        description
            .check()
            .map_err(|(field, problem)| Error::Field {
                path: path.into(),
                field: field.into(),
                problem,
            })?;
        Ok(description)
    }

    /// Field and problem of the first rule that is broken.
    fn check(&self) -> Result<(), (&'static str, String)> {
        let refuse = |field, problem: &str| Err((field, problem.to_owned()));
        if self.format != 1 {
            return Err((
                "format",
                format!("{} is not 1; update preface", self.format),
            ));
        }
        let layers_fit = match &self.form {
            Form::Embeddings { .. } => true,
            Form::KeyValues { layers, .. } => layers.iter().all(|layer| layer.width() > 0),
        };
        if self.form.tokens() == 0 || self.form.width() == 0 || !layers_fit {
            return refuse("form", "a size is zero");
        }
        self.check_labels()?;
        if self.template.matches("{text}").count() != 1 {
            return refuse("template", "it must have {text} exactly once");
        }
        if self
            .template
            .chars()
            .any(|c| c.is_control() && c != '\n' && c != '\t')
        {
            return refuse("template", "it has control characters");
        }
        for (field, id) in [
            ("base_id", &self.base_id),
            ("tokenizer_id", &self.tokenizer_id),
        ] {
            if Id::<32>::from_hex(id).is_none() {
                return refuse(field, "not 64 lower-case hex digits");
            }
        }
        for (name, value) in &self.metrics {
            if !is_name(name) || !value.is_finite() {
                return Err((
                    "metrics",
                    format!("{name:?} is no name or {value} no finite number"),
                ));
            }
        }
        Ok(())
    }

    fn check_labels(&self) -> Result<(), (&'static str, String)> {
        let Head::Linear { classes, hidden } = self.head;
        if classes == 0 || hidden == 0 {
            return Err(("head", "a size is zero".into()));
        }
        if self.labels.len() != usize::from(classes) {
            let found = self.labels.len();
            return Err(("labels", format!("{found} labels for {classes} classes")));
        }
        let mut seen = BTreeSet::new();
        for label in &self.labels {
            let good = (1..=255).contains(&label.len()) && !label.chars().any(char::is_control);
            if !good || !seen.insert(label) {
                let rule = "a label is 1 to 255 bytes of text, none twice";
                return Err(("labels", format!("{label:?}: {rule}")));
            }
        }
        for probe in &self.probes {
            if probe.label >= classes || probe.ids.is_empty() {
                return Err((
                    "probes",
                    "a probe has no ids or a label that does not exist".into(),
                ));
            }
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
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

fn floats(view: &TensorView<'_>) -> Option<Vec<f32>> {
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
    use serde_json::{Value, json};

    use super::*;

    fn description() -> Value {
        json!({
            "format": 1, "method": "prompt-tuning",
            "form": {"kind": "embeddings", "tokens": 2, "hidden": 4},
            "head": {"kind": "linear", "classes": 2, "hidden": 4},
            "labels": ["on", "off"], "template": "{text}", "pooling": "mean",
            "positions": "after-prompt", "base_id": "ab".repeat(32), "tokenizer_id": "cd".repeat(32),
            "probes": [{"ids": [1, 2], "label": 1}], "metrics": {"dev_accuracy": 0.5},
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
            ("format", json!(2)),
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
