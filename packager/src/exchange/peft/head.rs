//! The head beside a prompt: one linear layer that PEFT saved as `modules_to_save`, or the base's own scores.

use std::path::Path;

use preface_bundle::HeadKind;

use super::{File, PROMPT, TASK_COLUMNS, TASK_ROWS, foreign, labels_of};
use crate::{
    Error,
    exchange::{BaseKind, Target, Wishes},
};

/// Names of the head that PEFT saves, with and without a level between.
const PREFIXES: [&str; 2] = ["base_model.", "base_model.model."];
const LAYERS: [&str; 2] = ["classifier", "score"];

/// A head with its labels.
pub(in crate::exchange) struct PeftHead {
    pub kind: HeadKind,
    pub classes: usize,
    pub labels: Vec<String>,
    pub pooling: String,
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
}

impl PeftHead {
    pub(super) fn of(file: &File<'_>, notes: &mut Vec<String>) -> Result<Self, Error> {
        match (file.config.task_type(), layer(file)?) {
            ("CAUSAL_LM" | "SEQ_2_SEQ_LM", None) => generation(file.source.path, file.target, notes),
            ("SEQ_CLS" | "FEATURE_EXTRACTION" | "", Some(layer)) => {
                linear(file, &layer, HeadKind::Linear, pooling(file)?)
            }
            ("TOKEN_CLS", Some(layer)) => linear(file, &layer, HeadKind::TokenLinear, "mean".into()),
            ("FEATURE_EXTRACTION" | "", None) => alone(file.source.path, file.target, file.wishes, notes),
            (task @ ("SEQ_CLS" | "TOKEN_CLS"), None) => Err(file.refuse(format!(
                "its task type is {task}, and it holds no classifier or score; save it with modules_to_save=[\"classifier\"]"
            ))),
            (task, _) => Err(file.refuse(format!(
                "the head of its task type {task:?} is not served; there are SEQ_CLS, TOKEN_CLS, CAUSAL_LM, SEQ_2_SEQ_LM and \
                 FEATURE_EXTRACTION"
            ))),
        }
    }
}

/// The name of the linear layer before `.weight`; refuses tensors that are no part of it.
fn layer(file: &File<'_>) -> Result<Option<String>, Error> {
    let names = file.source.names();
    let candidates = PREFIXES
        .iter()
        .flat_map(|prefix| LAYERS.map(|layer| format!("{prefix}{layer}")));
    let layer = { candidates }.find(|layer| names.contains(&&*format!("{layer}.weight")));
    let of_prompt = [PROMPT, TASK_COLUMNS, TASK_ROWS];
    let of_head = layer
        .as_ref()
        .map(|layer| [format!("{layer}.weight"), format!("{layer}.bias")]);
    let strange = names.iter().find(|name| {
        let in_head = of_head
            .as_ref()
            .is_some_and(|head| head.iter().any(|one| one == **name));
        !of_prompt.contains(*name) && !in_head
    });
    match strange {
        None => Ok(layer),
        Some(name) => Err(file.refuse(format!(
            "the tensor {name:?} is no part of a prompt with one linear layer behind it (classifier or score), and heads of \
             several layers are not served; train the head as one linear layer, or take `preface train`"
        ))),
    }
}

fn linear(
    file: &File<'_>,
    layer: &str,
    kind: HeadKind,
    pooling: String,
) -> Result<PeftHead, Error> {
    let (weight, bias) = (format!("{layer}.weight"), format!("{layer}.bias"));
    let hidden = usize::from(file.target.hidden);
    let classes = file.source.shape(&weight)?.first().copied().unwrap_or(0);
    let because = format!("the head reads the base's hidden rows of {hidden}");
    let values = file.source.values(&weight, &[classes, hidden], &because)?;
    let bias = match file.source.names().contains(&&*bias) {
        true => file
            .source
            .values(&bias, &[classes], "one number for each row of its weight")?,
        false => vec![0.0; classes],
    };
    Ok(PeftHead {
        kind,
        classes,
        labels: labels(file, classes)?,
        pooling,
        weight: values,
        bias,
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

/// Which row the head reads: a decoder's classifier the last. An encoder's goes through the base's pooler in PEFT.
fn pooling(file: &File<'_>) -> Result<String, Error> {
    if let Some(pooling) = &file.wishes.pooling {
        return Ok(pooling.clone());
    }
    match (file.target.kind, file.config.task_type()) {
        (BaseKind::Decoder, _) => Ok("last".into()),
        (BaseKind::Encoder, "SEQ_CLS") => Err(file.refuse(
            "the classifier of an encoder usually reads one row through the base's pooler (a dense layer and tanh), which a \
             linear head has not; if yours reads hidden rows themselves, say which with --pooling first, mean or last, \
             otherwise train it again with `preface train`",
        )),
        (BaseKind::Encoder, _) => {
            Err(file.refuse("nothing says which rows its head reads; pass --pooling first, mean or last"))
        }
        (BaseKind::EncoderDecoder, _) => Err(file.refuse(
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
        weight: Vec::new(),
        bias: Vec::new(),
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
        weight: Vec::new(),
        bias: vec![0.0; labels.len()],
    })
}
