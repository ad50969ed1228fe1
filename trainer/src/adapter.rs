//! The adapter folder: PEFT's two files and `preface.json`.
//!
//! Tensor names, shapes and configuration keys are those that PEFT 0.21 writes for PROMPT_TUNING and PREFIX_TUNING.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process,
};

use preface_graph::{Description, LayerGeometry};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    Error,
    form::{Form, PositionPlan, Prompt},
    heads::{Pooling, head},
    methods::method,
};

const CARD: &str = "preface.json";
const TENSORS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";
const FORMAT: u32 = 1;

/// What `preface.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Card {
    /// Version of the file's layout.
    pub format: u32,
    /// The method that learned the prompt.
    pub method: String,
    /// How the prompt enters the base.
    pub form: Form,
    /// The head.
    pub head: HeadCard,
    /// Labels, in the order of the head's rows.
    pub labels: Vec<String>,
    /// What surrounds a text; `{text}` stands for it.
    pub template: String,
    /// Which rows the head reads.
    pub pooling: Pooling,
    /// Which positions the text has.
    pub positions: PositionPlan,
    /// The base, 64 hexadecimal digits.
    pub base_id: String,
    /// The tokenizer, 64 hexadecimal digits.
    pub tokenizer_id: String,
    /// Texts with the answer that this adapter gives.
    pub probes: Vec<Probe>,
    /// Measured figures, by name.
    pub metrics: BTreeMap<String, f64>,
    /// Where the positions go.
    pub token_budget: TokenBudget,
    /// How it was trained.
    pub receipt: Receipt,
}

/// The head's kind and sizes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadCard {
    /// The head's name.
    pub kind: String,
    /// Labels.
    pub classes: usize,
    /// Width of the rows it reads.
    pub hidden: usize,
}

/// Token ids and the label that they must get.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Token ids, special tokens included.
    pub ids: Vec<i64>,
    /// Index of the label.
    pub label: usize,
}

/// Tokens of prompt and texts against the base's positions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenBudget {
    /// Virtual tokens.
    pub prompt: usize,
    /// Tokens of the longest training text.
    pub longest: usize,
    /// Tokens of the median training text.
    pub typical: usize,
    /// Positions of the base; absent where nothing bounds them.
    pub positions: Option<usize>,
}

/// How an adapter was trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// Seed of every random choice.
    pub seed: u64,
    /// Epochs run.
    pub epochs: usize,
    /// The epoch whose values were kept, counted from 1.
    pub best_epoch: usize,
    /// Peak learning rate of the prompt.
    pub learning_rate: f32,
    /// Peak learning rate of the head.
    pub head_learning_rate: f32,
    /// Rows a step.
    pub batch: usize,
    /// Training examples.
    pub examples: usize,
    /// SHA-256 of the training file.
    pub data_sha256: String,
    /// SHA-256 of the dev file.
    pub dev_sha256: String,
    /// Threads of ONNX Runtime.
    pub threads: usize,
    /// Version of the trainer.
    pub version: String,
}

/// A prompt with its head, as the trainer leaves it.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// What is known of it.
    pub card: Card,
    /// The prompt.
    pub prompt: Prompt,
    /// The head's tensors: weight `[classes, hidden]` and bias `[classes]`.
    pub head: Vec<Vec<f32>>,
}

impl Adapter {
    /// Writes the folder: all files beside their places first, then each is renamed.
    ///
    /// # Errors
    /// When a file cannot be written; what was there is left as it was.
    pub fn write(&self, folder: &Path) -> Result<(), Error> {
        let failed = |source| Error::Write {
            path: folder.into(),
            source,
        };
        fs::create_dir_all(folder).map_err(failed)?;
        let contents = [
            (TENSORS, self.tensors()?),
            (CONFIG, pretty(&self.peft_config()?)?),
            (CARD, pretty(&self.card)?),
        ];
        let written = contents
            .iter()
            .try_for_each(|(name, bytes)| write_beside(&folder.join(name), bytes));
        let written = written.and_then(|()| {
            contents
                .iter()
                .try_for_each(|(name, _)| rename(&folder.join(name)))
        });
        if written.is_err() {
            contents
                .iter()
                .for_each(|(name, _)| _ = fs::remove_file(beside(&folder.join(name))));
        }
        written?;
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(failed)
    }

    /// Reads the folder.
    ///
    /// # Errors
    /// When a file is missing, is not of the format, or the tensors do not fit the card.
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(CARD);
        let wrong = |reason: String| Error::Adapter {
            path: path.clone(),
            reason,
        };
        let card: Card =
            serde_json::from_slice(&read(&path)?).map_err(|error| wrong(error.to_string()))?;
        if card.format != FORMAT {
            return Err(wrong(format!(
                "format {} is not known; this program reads {FORMAT}",
                card.format
            )));
        }
        if head(&card.head.kind).is_err() || card.labels.len() != card.head.classes {
            return Err(wrong(format!(
                "a {} head with {} classes for {} labels",
                card.head.kind,
                card.head.classes,
                card.labels.len()
            )));
        }
        let path = folder.join(TENSORS);
        let bytes = read(&path)?;
        let wrong = |reason: String| Error::Adapter {
            path: path.clone(),
            reason,
        };
        let tensors = SafeTensors::deserialize(&bytes).map_err(|error| wrong(error.to_string()))?;
        let floats = |name: &str, shape: &[usize]| {
            let tensor = tensors
                .tensor(name)
                .map_err(|error| wrong(error.to_string()))?;
            if tensor.dtype() != Dtype::F32 || tensor.shape() != shape {
                return Err(wrong(format!(
                    "{name} is {:?} {:?}, not F32 {shape:?}",
                    tensor.dtype(),
                    tensor.shape()
                )));
            }
            Ok(tensor
                .data()
                .as_chunks()
                .0
                .iter()
                .map(|&chunk| f32::from_le_bytes(chunk))
                .collect::<Vec<_>>())
        };
        let stored = floats("prompt_embeddings", &stored_shape(&card.form))?;
        let prompt = Prompt {
            form: card.form.clone(),
            tensors: from_stored(&card.form, stored),
        };
        let head = vec![
            floats(
                "base_model.classifier.weight",
                &[card.head.classes, card.head.hidden],
            )?,
            floats("base_model.classifier.bias", &[card.head.classes])?,
        ];
        Ok(Self { card, prompt, head })
    }

    /// Refuses a base for which the adapter was not made.
    ///
    /// # Errors
    /// When base or tokenizer differ.
    pub fn fits(&self, base: &Description, folder: &Path) -> Result<(), Error> {
        let pairs = [
            ("base", &self.card.base_id, &base.base_id),
            ("tokenizer", &self.card.tokenizer_id, &base.tokenizer_id),
        ];
        for (what, expected, found) in pairs {
            if expected != found {
                let reason = format!("was trained for {what} {expected}, not for {found}");
                return Err(Error::Adapter {
                    path: folder.into(),
                    reason,
                });
            }
        }
        if self.card.positions != self.prompt.form.positions(base) {
            let reason = format!(
                "positions {:?} are not those of this base",
                self.card.positions
            );
            return Err(Error::Adapter {
                path: folder.into(),
                reason,
            });
        }
        Ok(())
    }

    fn tensors(&self) -> Result<Vec<u8>, Error> {
        let stored = to_stored(&self.prompt);
        let head = &self.card.head;
        let named = [
            (
                "prompt_embeddings",
                stored_shape(&self.prompt.form),
                &stored,
            ),
            (
                "base_model.classifier.weight",
                vec![head.classes, head.hidden],
                &self.head[0],
            ),
            (
                "base_model.classifier.bias",
                vec![head.classes],
                &self.head[1],
            ),
        ];
        let bytes = named.map(|(name, shape, values)| {
            (
                name,
                shape,
                values
                    .iter()
                    .flat_map(|value| value.to_le_bytes())
                    .collect::<Vec<u8>>(),
            )
        });
        let mut views = Vec::new();
        for (name, shape, bytes) in &bytes {
            views.push((
                *name,
                TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(unfit)?,
            ));
        }
        let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
        safetensors::serialize(views, Some(metadata)).map_err(unfit)
    }

    fn peft_config(&self) -> Result<serde_json::Value, Error> {
        let method = method(&self.card.method)?;
        let form = &self.prompt.form;
        let (heads, layers, width) = match form {
            Form::Embeddings { hidden, .. } => (1, 1, *hidden),
            Form::KeyValues { layers, .. } => {
                let first = layers
                    .first()
                    .map_or((1, 1), |layer| (layer.kv_heads, layer.head_dim));
                (first.0, layers.len(), first.0 * first.1)
            }
        };
        let mut config = json!({
            "auto_mapping": null,
            "base_model_name_or_path": format!("sha256:{}", self.card.base_id),
            "inference_mode": true,
            "modules_to_save": null,
            "num_attention_heads": heads,
            "num_layers": layers,
            "num_transformer_submodules": 1,
            "num_virtual_tokens": form.tokens(),
            "peft_type": method.peft_type,
            "revision": null,
            "task_type": "FEATURE_EXTRACTION",
            "token_dim": width,
        });
        let own = match form {
            Form::Embeddings { .. } => json!({
                "prompt_tuning_init": "RANDOM",
                "prompt_tuning_init_text": null,
                "tokenizer_kwargs": null,
                "tokenizer_name_or_path": null,
            }),
            Form::KeyValues { .. } => {
                json!({"encoder_hidden_size": width, "init_weights": null, "prefix_projection": false})
            }
        };
        if let (Some(config), serde_json::Value::Object(own)) = (config.as_object_mut(), own) {
            config.extend(own);
        }
        Ok(config)
    }
}

fn unfit(error: impl std::fmt::Display) -> Error {
    Error::Adapter {
        path: TENSORS.into(),
        reason: error.to_string(),
    }
}

/// PEFT's shape of a prompt: `[tokens, hidden]`, or `[tokens, layers * 2 * kv_heads * head_dim]`.
fn stored_shape(form: &Form) -> Vec<usize> {
    match form {
        Form::Embeddings { tokens, hidden } => vec![*tokens, *hidden],
        Form::KeyValues { tokens, layers } => {
            let width = |layer: &LayerGeometry| 2 * layer.kv_heads * layer.head_dim;
            vec![*tokens, layers.iter().map(width).sum()]
        }
    }
}

/// For each token the rows of every layer: keys of all heads, then values of all heads.
fn to_stored(prompt: &Prompt) -> Vec<f32> {
    let Form::KeyValues { tokens, layers } = &prompt.form else {
        return prompt.tensors.concat();
    };
    let mut stored = Vec::new();
    for token in 0..*tokens {
        for (layer, tensor) in layers.iter().zip(&prompt.tensors) {
            for head in 0..2 * layer.kv_heads {
                let start = (head * tokens + token) * layer.head_dim;
                stored.extend_from_slice(&tensor[start..start + layer.head_dim]);
            }
        }
    }
    stored
}

fn from_stored(form: &Form, stored: Vec<f32>) -> Vec<Vec<f32>> {
    let Form::KeyValues { tokens, layers } = form else {
        return vec![stored];
    };
    let mut rest = stored.as_slice();
    let mut tensors: Vec<Vec<f32>> = form
        .shapes()
        .iter()
        .map(|shape| vec![0.0; shape.iter().product()])
        .collect();
    for token in 0..*tokens {
        for (layer, tensor) in layers.iter().zip(&mut tensors) {
            for head in 0..2 * layer.kv_heads {
                let (row, behind) = rest.split_at(layer.head_dim);
                let start = (head * tokens + token) * layer.head_dim;
                tensor[start..start + layer.head_dim].copy_from_slice(row);
                rest = behind;
            }
        }
    }
    tensors
}

fn pretty(value: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec_pretty(value).map_err(unfit)
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Read {
        path: path.into(),
        source,
    })
}

/// The name under which a file is written before it takes its place.
fn beside(path: &Path) -> PathBuf {
    path.with_extension(format!("{}.partial", process::id()))
}

fn write_beside(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let written = File::create(beside(path)).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(|source| Error::Write {
        path: path.into(),
        source,
    })
}

fn rename(path: &Path) -> Result<(), Error> {
    fs::rename(beside(path), path).map_err(|source| Error::Write {
        path: path.into(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(form: Form, method: &str) -> Card {
        Card {
            format: FORMAT,
            method: method.into(),
            form,
            head: HeadCard {
                kind: "linear".into(),
                classes: 2,
                hidden: 4,
            },
            labels: vec!["no".into(), "yes".into()],
            template: "{text}".into(),
            pooling: Pooling::Mean,
            positions: PositionPlan::TextFromZero,
            base_id: "00".repeat(32),
            tokenizer_id: "11".repeat(32),
            probes: vec![Probe {
                ids: vec![1, 2],
                label: 1,
            }],
            metrics: BTreeMap::from([("dev_accuracy".into(), 0.5)]),
            token_budget: TokenBudget {
                prompt: 2,
                longest: 3,
                typical: 2,
                positions: None,
            },
            receipt: Receipt {
                seed: 0,
                epochs: 1,
                best_epoch: 1,
                learning_rate: 0.1,
                head_learning_rate: 0.1,
                batch: 8,
                examples: 2,
                data_sha256: "22".repeat(32),
                dev_sha256: "33".repeat(32),
                threads: 1,
                version: "0".into(),
            },
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let layer = LayerGeometry {
            kv_heads: 3,
            head_dim: 2,
        };
        let forms = [
            (
                Form::Embeddings {
                    tokens: 2,
                    hidden: 4,
                },
                "prompt-tuning",
            ),
            (
                Form::KeyValues {
                    tokens: 2,
                    layers: vec![layer; 2],
                },
                "prefix-tuning",
            ),
        ];
        for (form, method) in forms {
            let numbers = |shape: &Vec<usize>| {
                (0..shape.iter().product())
                    .map(|index: usize| index as f32)
                    .collect()
            };
            let tensors = form.shapes().iter().map(numbers).collect();
            let prompt = Prompt {
                form: form.clone(),
                tensors,
            };
            let head = vec![vec![0.5; 8], vec![1.0, -1.0]];
            let adapter = Adapter {
                card: card(form, method),
                prompt,
                head,
            };
            let folder = tempfile::tempdir().unwrap();
            adapter.write(folder.path()).unwrap();
            assert_eq!(Adapter::read(folder.path()).unwrap(), adapter);
            let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
            assert_eq!(left.len(), 3);
        }
    }

    #[test]
    fn keys_come_before_values_as_in_peft() {
        let layers = vec![LayerGeometry {
            kv_heads: 2,
            head_dim: 1,
        }];
        let prompt = Prompt {
            form: Form::KeyValues { tokens: 2, layers },
            tensors: vec![vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]],
        };
        assert_eq!(to_stored(&prompt), [0.0, 2.0, 4.0, 6.0, 1.0, 3.0, 5.0, 7.0]);
        assert_eq!(
            from_stored(&prompt.form, to_stored(&prompt)),
            prompt.tensors
        );
    }
}
