//! The adapter folder: PEFT's two files and `preface.json`.
//!
//! Tensor names, shapes and configuration keys are those that PEFT 0.21 writes for PROMPT_TUNING and PREFIX_TUNING.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use preface_graph::{Description, Kind, LayerGeometry};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    Error,
    budget::TokenBudget,
    data::AnswerKind,
    form::{Form, Moves, Place, PositionPlan, Prompt, Tensors, from_rows_by_token, rows_by_token},
    heads::{Head, Pooling, head},
    methods::method,
};

const CARD: &str = "preface.json";
const TENSORS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";
const PROMPT: &str = "prompt_embeddings";
const GATE: &str = "preface.gate";
pub(crate) const FORMAT: u32 = 2;
/// Formats that are read: the first had single labels, linear heads and prefixes at every layer alone.
const READ: [u32; 2] = [1, FORMAT];

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
    /// What an answer is.
    #[serde(default)]
    pub answer: AnswerCard,
    /// What a question is.
    #[serde(default)]
    pub inputs: InputsCard,
    /// Token ids that speak for each label, where the head is a verbaliser.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verbaliser: Vec<Vec<i64>>,
    /// When a generated text ends, where the head is generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode: Option<DecodeCard>,
    /// The base, 64 hexadecimal digits.
    pub base_id: String,
    /// The tokenizer, 64 hexadecimal digits.
    pub tokenizer_id: String,
    /// Texts with the answer that this adapter gives.
    pub probes: Vec<Probe>,
    /// Measured figures, by name.
    pub metrics: BTreeMap<String, f64>,
    /// Where the positions go.
    #[serde(default)]
    pub token_budget: TokenBudget,
    /// What the prompt started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// How it was trained.
    pub receipt: Receipt,
}

/// The head's kind and sizes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadCard {
    /// The head's name.
    pub kind: String,
    /// Labels; 0 for generation.
    pub classes: usize,
    /// Width of the rows it reads.
    pub hidden: usize,
    /// Rank of its factors, where it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
}

/// What an answer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AnswerCard {
    /// One label, several, tags or a text.
    pub kind: AnswerKind,
    /// The least probability of a label that is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f32>,
}

/// What a question is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InputsCard {
    /// One text.
    #[default]
    One,
    /// A sentence pair.
    Pair,
}

/// When a generated text ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecodeCard {
    /// Tokens at most.
    pub most_tokens: usize,
    /// Tokens that end it.
    pub stop_ids: Vec<u32>,
}

/// Token ids and the label that they must get.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Token ids, special tokens included.
    pub ids: Vec<i64>,
    /// Index of the label.
    pub label: usize,
    /// The place of the first token of a pair's second text; 0 where there is one text.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub second: usize,
    /// For each word that is tagged the place of its first token, and the index of its label.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<(usize, usize)>,
    /// The indices of all labels that are given, ascending, where an answer has several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<usize>,
    /// The text that is made, without the white space around it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// How an adapter was trained; of one that was trained elsewhere little is known.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
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
    /// The head's tensors, in the order of its parameters.
    pub head: Tensors,
}

impl HeadCard {
    /// The card of a head for `classes` labels over a base.
    pub fn of(head: &Head, classes: usize, rank: usize, base: &Description) -> Self {
        let generates = head.reads == crate::heads::Reads::Logits;
        Self {
            kind: head.name.into(),
            classes: if generates { 0 } else { classes },
            hidden: head.size(classes, rank, base).width,
            rank: head.is_factored().then_some(rank),
        }
    }

    /// The shapes of the head's tensors, with their names in the folder.
    fn tensors(&self) -> Result<Vec<(&'static str, Vec<usize>)>, Error> {
        let head = head(&self.kind)?;
        let size = crate::heads::HeadSize {
            classes: self.classes,
            width: self.hidden,
            rank: self.rank.unwrap_or(1),
        };
        let parameters = (head.parameters)(size).into_iter();
        Ok(head
            .stored
            .iter()
            .zip(parameters)
            .map(|(name, parameter)| (*name, parameter.shape))
            .collect())
    }
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
        let card = read(&path)?;
        let parsed = |error: serde_json::Error| wrong(error.to_string());
        let mut card: Card = serde_json::from_slice(&card).map_err(parsed)?;
        if !READ.contains(&card.format) {
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
        if let (Form::Embeddings { place, .. }, PositionPlan::TextFromZero) =
            (&mut card.form, card.positions)
        {
            *place = Place::After;
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
        let stored = floats(PROMPT, &stored_shape(&card.form))?;
        let mut prompt = Prompt {
            form: card.form.clone(),
            tensors: from_rows_by_token(&card.form, stored),
        };
        if let Form::KeyValues {
            layers,
            gated: true,
            ..
        } = &card.form
        {
            prompt.tensors.push(floats(GATE, &[layers.len()])?);
        }
        let head = card
            .head
            .tensors()?
            .iter()
            .map(|(name, shape)| floats(name, shape))
            .collect::<Result<_, _>>()?;
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
        let refuse = |reason| {
            Err(Error::Adapter {
                path: folder.into(),
                reason,
            })
        };
        let form = self.form_on(base);
        let positions = self.card.positions;
        if positions != form.positions(base) {
            return refuse(format!(
                "positions {positions:?} are not those of this base; pack it, and measure the bundle: preface eval --bundle"
            ));
        }
        let rows_before = matches!(
            form,
            Form::Embeddings {
                place: Place::Before,
                ..
            }
        );
        if self.card.pooling == Pooling::Prompt && !(rows_before && base.kind == Kind::Encoder) {
            return refuse("only a prompt before the text of an encoder can be read".into());
        }
        Ok(())
    }

    /// The form as a base takes it: a prefix whose positions an encoder does not count moves the text, one of all layers of
    /// a decoder behind an encoder that decoder's tokens.
    pub fn form_on(&self, base: &Description) -> Form {
        let mut form = self.prompt.form.clone();
        let counted = form.positions(base) == self.card.positions;
        if let Form::KeyValues { moves, layers, .. } = &mut form {
            let own = base.decoder_sites().map(|site| base.layers[site]);
            *moves = match (self.card.positions, base.kind) {
                (PositionPlan::DecoderAfterPrompt, Kind::EncoderDecoder)
                    if own.eq(layers.iter().copied()) =>
                {
                    Moves::Decoder
                }
                (PositionPlan::AfterPrompt, Kind::Encoder)
                    if !counted && base.inputs.mask.is_some() =>
                {
                    Moves::Text
                }
                _ => Moves::Nothing,
            };
        }
        form
    }

    /// Its prompt, for another training to start from.
    ///
    /// # Errors
    /// When its layers are those of a decoder behind an encoder alone: a training counts all attentions that take a
    /// prefix, those of the encoder first.
    pub fn start(self, folder: &Path) -> Result<Prompt, Error> {
        if self.card.positions == PositionPlan::DecoderAfterPrompt {
            return Err(Error::Adapter {
                path: folder.into(),
                reason: "its prefix is of a decoder's layers alone, which no training learns; start from labels, vocabulary, a text or an adapter that was trained here".into(),
            });
        }
        Ok(self.prompt)
    }

    fn tensors(&self) -> Result<Vec<u8>, Error> {
        let form = &self.prompt.form;
        let stored = rows_by_token(form, &self.prompt.tensors);
        let mut named = vec![(PROMPT, stored_shape(form), &stored)];
        if let (
            Form::KeyValues {
                layers,
                gated: true,
                ..
            },
            Some(gate),
        ) = (form, self.prompt.tensors.last())
        {
            named.push((GATE, vec![layers.len()], gate));
        }
        let head = self.card.head.tensors()?;
        named.extend(
            head.into_iter()
                .zip(&self.head)
                .map(|((name, shape), values)| (name, shape, values)),
        );
        let bytes: Vec<_> = named
            .into_iter()
            .map(|(name, shape, values)| {
                let bytes: Vec<u8> = values
                    .iter()
                    .flat_map(|value| value.to_le_bytes())
                    .collect();
                (name, shape, bytes)
            })
            .collect();
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
        let own = match (form, method.peft_type) {
            (Form::Embeddings { .. }, "P_TUNING") => json!({
                "encoder_dropout": 0.0,
                "encoder_hidden_size": width,
                "encoder_num_layers": 2,
                "encoder_reparameterization_type": "MLP",
            }),
            (Form::Embeddings { .. }, _) => json!({
                "prompt_tuning_init": "RANDOM",
                "prompt_tuning_init_text": null,
                "tokenizer_kwargs": null,
                "tokenizer_name_or_path": null,
            }),
            (Form::KeyValues { .. }, _) => {
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
        Form::Embeddings { tokens, hidden, .. } => vec![*tokens, *hidden],
        Form::KeyValues { tokens, layers, .. } => {
            let width = |layer: &LayerGeometry| 2 * layer.kv_heads * layer.head_dim;
            vec![*tokens, layers.iter().map(width).sum()]
        }
    }
}

fn pretty(value: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec_pretty(value).map_err(unfit)
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Read {
        path: path.into(),
        source,
    })
}

/// The name under which a file is written before it takes its place: always the same, so that what a kill leaves is
/// written over.
fn beside(path: &Path) -> PathBuf {
    path.with_extension("partial")
}

pub(crate) fn write_beside(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let written = File::create(beside(path)).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(|source| {
        // What is left of it helps nobody; the first failure is the one to tell.
        let _ = fs::remove_file(beside(path));
        Error::Write {
            path: path.into(),
            source,
        }
    })
}

pub(crate) fn rename(path: &Path) -> Result<(), Error> {
    fs::rename(beside(path), path).map_err(|source| Error::Write {
        path: path.into(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(form: Form, method: &str, head: HeadCard) -> Card {
        Card {
            format: FORMAT,
            method: method.into(),
            labels: (0..head.classes).map(|class| class.to_string()).collect(),
            positions: match form.place() {
                Place::After => PositionPlan::TextFromZero,
                Place::Before => PositionPlan::AfterPrompt,
            },
            form,
            head,
            template: "{text}".into(),
            pooling: Pooling::Mean,
            answer: AnswerCard {
                kind: AnswerKind::Label,
                threshold: Some(0.5),
            },
            inputs: InputsCard::Pair,
            verbaliser: Vec::new(),
            decode: None,
            base_id: "00".repeat(32),
            tokenizer_id: "11".repeat(32),
            probes: vec![Probe {
                ids: vec![1, 2],
                label: 1,
                second: 1,
                tags: vec![(0, 1)],
                labels: Vec::new(),
                text: "a".into(),
            }],
            metrics: BTreeMap::from([("dev_accuracy".into(), 0.5)]),
            token_budget: TokenBudget::default(),
            init: Some("labels".into()),
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
        let embeddings = |place| Form::Embeddings {
            tokens: 2,
            hidden: 4,
            place,
        };
        let prefix = |first_layer, gated| Form::KeyValues {
            tokens: 2,
            first_layer,
            layers: vec![layer; 2],
            gated,
            moves: Moves::Nothing,
        };
        let table = [
            (embeddings(Place::Before), "prompt-tuning", "linear", None),
            (embeddings(Place::After), "p-tuning-mlp", "label-text", None),
            (
                prefix(0, false),
                "prefix-tuning",
                "factored-linear",
                Some(3),
            ),
            (prefix(4, true), "gated-prefix-tuning", "token-linear", None),
        ];
        for (form, method, head, rank) in table {
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
            let head = HeadCard {
                kind: head.into(),
                classes: 2,
                hidden: 4,
                rank,
            };
            let own = head.tensors().unwrap();
            let adapter = Adapter {
                head: own.iter().map(|(_, shape)| numbers(shape)).collect(),
                card: card(form, method, head),
                prompt,
            };
            let folder = tempfile::tempdir().unwrap();
            adapter.write(folder.path()).unwrap();
            assert_eq!(Adapter::read(folder.path()).unwrap(), adapter);
            let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
            assert_eq!(left.len(), 3);
            let at = folder.path();
            assert_eq!(adapter.clone().start(at).unwrap(), adapter.prompt);
            let mut of_decoder = adapter;
            of_decoder.card.positions = PositionPlan::DecoderAfterPrompt;
            let refused = of_decoder.start(at).unwrap_err().to_string();
            assert!(refused.contains("a decoder's layers alone"), "{refused}");
        }
    }
}
