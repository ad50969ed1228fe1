//! `adapter_config.json`.

use std::path::Path;

use serde::Deserialize;

use super::{TENSORS, foreign};
use crate::{Error, adapter::read};

/// How PEFT's types of prompts enter a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Embeddings,
    /// Rows that all tasks share, and factors of each task.
    Tasks,
    KeyValues,
}

const KINDS: [(&str, Kind); 5] = [
    ("CARTRIDGE", Kind::KeyValues),
    ("MULTITASK_PROMPT_TUNING", Kind::Tasks),
    ("PREFIX_TUNING", Kind::KeyValues),
    ("PROMPT_TUNING", Kind::Embeddings),
    ("P_TUNING", Kind::Embeddings),
];

/// Types that are prompts and have no equal here, and why.
const OTHER_PROMPTS: [(&str, &str); 2] = [
    (
        "ADAPTION_PROMPT",
        "it adds attention of its own inside the upper layers, which no form of a prompt can stand for",
    ),
    (
        "CPT",
        "its rows are the tokens of examples with offsets and masks of their own",
    ),
];

#[derive(Deserialize)]
struct Written {
    peft_type: Option<String>,
    task_type: Option<String>,
    num_virtual_tokens: Option<usize>,
    num_transformer_submodules: Option<usize>,
    peft_version: Option<String>,
    prefix_projection: Option<bool>,
    encoder_reparameterization_type: Option<String>,
}

/// What matters of a configuration.
pub(super) struct Config {
    path: std::path::PathBuf,
    pub peft_type: String,
    pub peft_version: Option<String>,
    pub kind: Kind,
    pub tokens: usize,
    written: Written,
}

impl Config {
    pub fn open(path: &Path) -> Result<Self, Error> {
        let written: Written = serde_json::from_slice(&read(path)?).map_err(|source| {
            foreign(
                path,
                format!("no configuration of PEFT ({source}); save the adapter again with PEFT"),
            )
        })?;
        let Some(peft_type) = written.peft_type.clone() else {
            return Err(foreign(
                path,
                "it names no peft_type; save the adapter again with PEFT",
            ));
        };
        let known = KINDS.iter().find(|(name, _)| *name == peft_type);
        let kind = known
            .map(|(_, kind)| *kind)
            .ok_or_else(|| foreign(path, refusal(&peft_type)))?;
        let Some(tokens) = written.num_virtual_tokens.filter(|&tokens| tokens > 0) else {
            return Err(foreign(
                path,
                "num_virtual_tokens is not 1 or more; save the adapter again with PEFT",
            ));
        };
        Ok(Self {
            path: path.into(),
            peft_version: written.peft_version.clone(),
            peft_type,
            kind,
            tokens,
            written,
        })
    }

    /// The task type, empty where there is none.
    pub fn task_type(&self) -> &str {
        self.written.task_type.as_deref().unwrap_or_default()
    }

    /// Submodules that have rows of their own: two of an encoder-decoder.
    pub fn halves(&self) -> Result<usize, Error> {
        let own = if self.task_type() == "SEQ_2_SEQ_LM" {
            2
        } else {
            1
        };
        match self.written.num_transformer_submodules.unwrap_or(own) {
            halves @ 1..=2 => Ok(halves),
            other => Err(foreign(
                &self.path,
                format!(
                    "num_transformer_submodules is {other}; PEFT knows 1, and 2 of an encoder-decoder"
                ),
            )),
        }
    }

    /// The method's name here.
    pub fn method(&self) -> &'static str {
        let lstm = self.written.encoder_reparameterization_type.as_deref() == Some("LSTM");
        match &*self.peft_type {
            "CARTRIDGE" => "cartridge",
            "MULTITASK_PROMPT_TUNING" => "multitask-prompt-tuning",
            "PREFIX_TUNING" if self.written.prefix_projection == Some(true) => "prefix-tuning-mlp",
            "PREFIX_TUNING" => "prefix-tuning",
            "P_TUNING" if lstm => "p-tuning-lstm",
            "P_TUNING" => "p-tuning-mlp",
            _ => "prompt-tuning",
        }
    }
}

/// Why a type is not taken, and the way out.
fn refusal(peft_type: &str) -> String {
    let prompt = OTHER_PROMPTS.iter().find(|(name, _)| *name == peft_type);
    if let Some((name, why)) = prompt {
        return format!(
            "{name} is not taken: {why}; train the task with PROMPT_TUNING or PREFIX_TUNING, or `preface train`"
        );
    }
    let known: Vec<&str> = KINDS.iter().map(|(name, _)| *name).collect();
    format!(
        "{peft_type:?} changes the weights of the model in {TENSORS} or is not known, and tasks here share one unchanged \
         base: only prompts are taken ({}); merge it into a base of its own (merge_and_unload) and export that to ONNX, \
         or train a prompt with `preface train`",
        known.join(", ")
    )
}
