//! The head beside a prompt: one linear layer that PEFT saved as `modules_to_save`, or the base's own scores.

use std::path::Path;

use preface_bundle::HeadKind;

use super::{File, Kind, PROMPT, TASK_COLUMNS, TASK_ROWS, foreign, labels_of};
use crate::{
    Error,
    adapter::read,
    exchange::{BaseKind, Target, Wishes, source::Source},
};

/// Names of the head that PEFT saves, with and without a level between.
const PREFIXES: [&str; 2] = ["base_model.", "base_model.model."];
const LAYERS: [&str; 2] = ["classifier", "score"];

/// Names of the dense layer of a head with a tanh behind it, and of what is behind that.
const DENSE: [&str; 2] = ["classifier.dense", "classifier.out_proj"];
const POOLER: &str = "pooler.dense";

/// A head with its labels.
pub(in crate::exchange) struct PeftHead {
    pub kind: HeadKind,
    pub classes: usize,
    pub labels: Vec<String>,
    pub pooling: String,
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
    /// Of a classifier behind a pooler: its weight, and the pooler's.
    pub factors: [Vec<f32>; 2],
}

impl PeftHead {
    pub(super) fn of(file: &File<'_>, notes: &mut Vec<String>) -> Result<Self, Error> {
        let layers = Layers::of(file)?;
        match (file.config.task_type(), layers.last) {
            ("CAUSAL_LM" | "SEQ_2_SEQ_LM", None) => {
                generation(file.source.path, file.target, notes)
            }
            ("SEQ_CLS", Some(last)) if through_pooler(file) => {
                pooled(file, &last, layers.dense.as_deref(), notes)
            }
            ("SEQ_CLS" | "FEATURE_EXTRACTION" | "", Some(last)) => {
                linear(file, &last, HeadKind::Linear, pooling(file)?)
            }
            ("TOKEN_CLS", Some(last)) => linear(file, &last, HeadKind::TokenLinear, "mean".into()),
            ("FEATURE_EXTRACTION" | "", None) => {
                alone(file.source.path, file.target, file.wishes, notes)
            }
            (task @ ("SEQ_CLS" | "TOKEN_CLS"), None) => Err(file.refuse(format!(
                "its task type is {task}, and it holds no classifier or score; save it with modules_to_save=[\"classifier\"]"
            ))),
            (task, _) => Err(file.refuse(format!(
                "the head of its task type {task:?} is not served; there are SEQ_CLS, TOKEN_CLS, CAUSAL_LM, SEQ_2_SEQ_LM and \
                 FEATURE_EXTRACTION"
            ))),
        }
    }

    /// One without numbers.
    fn empty() -> Self {
        Self {
            kind: HeadKind::Linear,
            classes: 0,
            labels: Vec::new(),
            pooling: String::new(),
            weight: Vec::new(),
            bias: Vec::new(),
            factors: [Vec::new(), Vec::new()],
        }
    }

    /// The width between the layers.
    pub(super) fn rank(&self) -> Option<usize> {
        self.factors[0]
            .len()
            .checked_div(self.classes)
            .filter(|rank| *rank > 0)
    }
}

/// The head's layers by the names of their tensors before `.weight` and `.bias`.
struct Layers {
    /// The linear layer that gives the logits.
    last: Option<String>,
    /// The dense layer before it, where the file has it.
    dense: Option<String>,
}

impl Layers {
    /// Refuses tensors that are no part of them.
    fn of(file: &File<'_>) -> Result<Self, Error> {
        let names = file.source.names();
        let is_there = |layer: &String| names.contains(&&*format!("{layer}.weight"));
        let with_prefix = |layers: &[&str]| {
            let all = layers
                .iter()
                .flat_map(|layer| PREFIXES.map(|prefix| format!("{prefix}{layer}")));
            { all }.find(|layer| is_there(layer))
        };
        let [dense, behind] = DENSE.map(|layer| with_prefix(&[layer]));
        let pooler = names.iter().find_map(|name| {
            name.strip_suffix(".weight")
                .filter(|layer| layer.ends_with(POOLER))
        });
        let layers = match (behind, with_prefix(&LAYERS)) {
            (Some(last), _) => Self {
                last: Some(last),
                dense,
            },
            (None, last) => Self {
                last,
                dense: pooler.map(str::to_owned),
            },
        };
        let of_head = [&layers.last, &layers.dense].into_iter().flatten();
        let of_head: Vec<String> = of_head
            .flat_map(|layer| [format!("{layer}.weight"), format!("{layer}.bias")])
            .collect();
        let of_prompt = [PROMPT, TASK_COLUMNS, TASK_ROWS];
        let strange = names
            .iter()
            .find(|name| !of_prompt.contains(*name) && !of_head.iter().any(|one| one == **name));
        match strange {
            None => Ok(layers),
            Some(name) => Err(file.refuse(format!(
                "the tensor {name:?} is no part of a prompt with a classifier or score behind it, and other heads are not \
                 served; train the head as one linear layer, or take `preface train`"
            ))),
        }
    }
}

/// Whether the classifier reads one row through a pooler: that of an encoder does, where nothing else is asked for.
fn through_pooler(file: &File<'_>) -> bool {
    file.target.kind == BaseKind::Encoder && file.wishes.pooling.is_none()
}

/// A linear layer: classes and weight `[classes, width]`, and bias.
fn layer(
    source: &Source<'_>,
    name: &str,
    width: usize,
) -> Result<(usize, Vec<f32>, Vec<f32>), Error> {
    let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
    let rows = source.shape(&weight)?.first().copied().unwrap_or(0);
    let because = format!("it reads rows of {width}");
    let values = source.values(&weight, &[rows, width], &because)?;
    let bias = match source.names().contains(&&*bias) {
        true => source.values(&bias, &[rows], "one number for each row of its weight")?,
        false => vec![0.0; rows],
    };
    Ok((rows, values, bias))
}

fn linear(file: &File<'_>, name: &str, kind: HeadKind, pooling: String) -> Result<PeftHead, Error> {
    let (classes, weight, bias) = layer(file.source, name, file.target.hidden.into())?;
    Ok(PeftHead {
        kind,
        classes,
        labels: labels(file, classes)?,
        pooling,
        weight,
        bias,
        ..PeftHead::empty()
    })
}

/// A classifier behind a dense layer and tanh. PEFT's model reads the first of all rows: with a prompt of embeddings that
/// is a row of the prompt, with a prefix the text's first.
fn pooled(
    file: &File<'_>,
    last: &str,
    dense: Option<&str>,
    notes: &mut Vec<String>,
) -> Result<PeftHead, Error> {
    let hidden = usize::from(file.target.hidden);
    let (rank, pooler, pooler_bias) = match (dense, &file.wishes.pooler) {
        (Some(dense), _) => layer(file.source, dense, hidden)?,
        (None, Some(path)) => {
            let bytes = read(path)?;
            let source = Source::read(path, &bytes)?;
            let found = source.names().into_iter().find_map(|name| {
                name.strip_suffix(".weight")
                    .filter(|name| name.ends_with(POOLER))
            });
            let name = found.map(str::to_owned).ok_or_else(|| {
                foreign(path, format!("it has no {POOLER}.weight; name the model.safetensors of the model that the prompt was trained on"))
            })?;
            layer(&source, &name, hidden)?
        }
        (None, None) => {
            return Err(file.refuse(
                "its classifier reads one row through the base's pooler (a dense layer and tanh), which PEFT does not save; \
                 pass --pooler the model.safetensors of that model, or if yours reads hidden rows themselves, --pooling first, \
                 mean or last",
            ));
        }
    };
    let (classes, weight, mut bias) = layer(file.source, last, rank)?;
    bias.extend(pooler_bias);
    let pooling = match file.config.kind {
        Kind::KeyValues => "first",
        Kind::Embeddings | Kind::Tasks => {
            notes.push("the classifier reads the first virtual token, as PEFT's model does".into());
            "prompt"
        }
    };
    Ok(PeftHead {
        kind: HeadKind::TanhLinear,
        classes,
        labels: labels(file, classes)?,
        pooling: pooling.into(),
        bias,
        factors: [weight, pooler],
        ..PeftHead::empty()
    })
}

/// The labels that were asked for, or those of the first file with as many.
fn labels(file: &File<'_>, classes: usize) -> Result<Vec<String>, Error> {
    let asked = &file.wishes.labels;
    if asked.len() == classes {
        return Ok(asked.clone());
    }
    let files = &file.wishes.model_configs;
    let named = files
        .iter()
        .filter_map(|path| labels_of(path))
        .find(|labels| labels.len() == classes);
    match named.filter(|_| asked.is_empty()) {
        Some(labels) => Ok(labels),
        None => Err(file.refuse(format!(
            "its head has {classes} labels, --labels names {}; name {classes} in the head's order, or put the model's \
             config.json with id2label beside it",
            asked.len()
        ))),
    }
}

/// Which row the head reads: a decoder's classifier the last.
fn pooling(file: &File<'_>) -> Result<String, Error> {
    if let Some(pooling) = &file.wishes.pooling {
        return Ok(pooling.clone());
    }
    match file.target.kind {
        BaseKind::Decoder => Ok("last".into()),
        BaseKind::Encoder => {
            Err(file.refuse("nothing says which rows its head reads; pass --pooling first, mean or last"))
        }
        BaseKind::EncoderDecoder => Err(file.refuse(
            "the classifier of an encoder-decoder has several layers and is not served; train it with `preface train`",
        )),
    }
}

/// The base's own texts.
fn generation(path: &Path, target: &Target, notes: &mut Vec<String>) -> Result<PeftHead, Error> {
    if !target.writes {
        let problem = "it generates text, and the base gives no scores over its vocabulary; export the base with its \
                       language-model head";
        return Err(foreign(path, problem));
    }
    if target.end_token.is_none() {
        notes
            .push("the base names no token that ends a text: texts end after --most-tokens".into());
    }
    Ok(PeftHead {
        kind: HeadKind::Generation,
        classes: 0,
        labels: Vec::new(),
        pooling: "last".into(),
        ..PeftHead::empty()
    })
}

/// The head of a prompt that comes alone: likeness to the labels that are named, or the base's own texts.
pub(in crate::exchange) fn alone(
    path: &Path,
    target: &Target,
    wishes: &Wishes,
    notes: &mut Vec<String>,
) -> Result<PeftHead, Error> {
    let labels = &wishes.labels;
    if labels.is_empty() && target.kind != BaseKind::Encoder {
        return generation(path, target, notes);
    }
    if labels.is_empty() {
        let problem = "it holds no head, and nothing says what an answer is; name labels with --labels, to which texts are \
                       then compared, or save the head with modules_to_save";
        return Err(foreign(path, problem));
    }
    notes.push(
        "it holds no head: a text gets the label whose name the base finds most like it".into(),
    );
    Ok(PeftHead {
        kind: HeadKind::LabelText,
        classes: labels.len(),
        labels: labels.clone(),
        pooling: wishes.pooling.clone().unwrap_or_else(|| "mean".into()),
        bias: vec![0.0; labels.len()],
        ..PeftHead::empty()
    })
}
