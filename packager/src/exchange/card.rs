//! The adapter folder of an imported prompt.

use std::{collections::HashMap, fs, io::ErrorKind, path::Path};

use preface_bundle::{HeadKind, Positions};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

use super::{Target, Wishes, make_folder, peft_config};
use crate::{
    Access, Adapter, Description, Error, Form,
    adapter::{BIAS, DESCRIPTION, FACTORS, GATE, PROMPT, TENSORS, WEIGHT},
    write_file,
};

pub(super) const CONFIG: &str = "adapter_config.json";

/// What `preface.json` is made of.
pub(super) struct Parts<'a> {
    pub method: &'a str,
    pub form: Value,
    pub positions: Positions,
    pub head: HeadKind,
    pub classes: usize,
    pub rank: Option<usize>,
    pub labels: &'a [String],
    pub pooling: &'a str,
    /// Where it came from.
    pub receipt: Value,
}

/// The content of `preface.json`, with its description checked; `path` is what it was read from.
pub(super) fn card(
    path: &Path,
    parts: Parts<'_>,
    target: &Target,
    wishes: &Wishes,
) -> Result<(Value, Description), Error> {
    let generates = parts.head == HeadKind::Generation;
    let mut card = json!({
        "format": 2,
        "method": parts.method,
        "form": parts.form,
        "head": {"kind": parts.head.name(), "classes": parts.classes, "hidden": target.hidden, "rank": parts.rank},
        "labels": parts.labels,
        "template": wishes.template,
        "pooling": parts.pooling,
        "positions": parts.positions.name(),
        "answer": {"kind": match parts.head {
            HeadKind::Generation => "text",
            HeadKind::TokenLinear => "tags",
            _ if wishes.several_labels => "labels",
            _ => "label",
        }},
        "inputs": "one",
        "base_id": target.base_id.to_string(),
        "tokenizer_id": target.tokenizer_id.to_string(),
        "probes": [],
        "metrics": {},
        "receipt": parts.receipt,
    });
    if generates {
        let stops: Vec<u32> = target.end_token.into_iter().collect();
        card["decode"] = json!({"most_tokens": wishes.most_tokens, "stop_ids": stops});
    }
    let description = Description::of_json(path, card.to_string().as_bytes())?;
    Ok((card, description))
}

/// Writes the three files of an adapter folder, `preface.json` last: without it the folder is none.
pub(super) fn write(folder: &Path, adapter: &Adapter, card: &Value) -> Result<(), Error> {
    make_folder(folder)?;
    remove(&folder.join(DESCRIPTION))?;
    let config = peft_config::own(adapter);
    let write = |name: &str, bytes: &[u8]| write_file(&folder.join(name), bytes, Access::Everyone);
    write(TENSORS, &safetensors(folder, &own_tensors(adapter))?)?;
    write(CONFIG, &pretty(&config))?;
    write(DESCRIPTION, &pretty(card))
}

/// Removes a file where there is one.
fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != ErrorKind::NotFound => Err(Error::Write {
            path: path.into(),
            source,
        }),
        _ => Ok(()),
    }
}

pub(super) fn pretty(value: &Value) -> Vec<u8> {
    format!("{value:#}").into_bytes()
}

/// A tensor of a file that is written.
pub(super) type Named<'a> = (&'a str, Vec<usize>, &'a [f32]);

/// The tensors of an adapter by the names in its folder.
pub(super) fn own_tensors(adapter: &Adapter) -> Vec<Named<'_>> {
    let Description { form, head, .. } = &adapter.description;
    let [classes, hidden, rank] =
        [head.classes, head.width(), head.rank.unwrap_or(0)].map(usize::from);
    let [first, second] = &adapter.head_factors;
    let all: [Named<'_>; 6] = [
        (PROMPT, prompt_shape(form), &adapter.prompt),
        (GATE, vec![adapter.gates.len()], &adapter.gates),
        (WEIGHT, vec![classes, hidden], &adapter.head_weight),
        (BIAS, vec![adapter.head_bias.len()], &adapter.head_bias),
        (FACTORS[0], vec![classes, rank], first),
        (FACTORS[1], vec![rank, hidden], second),
    ];
    all.into_iter()
        .filter(|(.., values)| !values.is_empty())
        .collect()
}

/// `[tokens, width]`.
pub(super) fn prompt_shape(form: &Form) -> Vec<usize> {
    vec![form.tokens().into(), form.width()]
}

/// A safetensors file as PEFT writes it.
pub(super) fn safetensors(path: &Path, tensors: &[Named<'_>]) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Safetensors {
        path: path.into(),
        source,
    };
    let little_endian = |values: &[f32]| {
        values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect()
    };
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(.., values)| little_endian(values))
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        Ok((*name, TensorView::new(Dtype::F32, shape.clone(), bytes)?))
    });
    let views: Vec<_> = views.collect::<Result<_, _>>().map_err(failed)?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(metadata)).map_err(failed)
}
