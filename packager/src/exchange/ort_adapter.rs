//! ONNX Runtime's adapter files: a FlatBuffer of named tensors (onnxruntime/lora/adapter_format/adapter_schema.fbs).
//!
//! A prompt of rows is one parameter, `prompt_embeddings [tokens, hidden]`. Keys and values are two of each layer,
//! `past_key_values.N.key` and `.value`, each `[1, kv_heads, tokens, head_dim]`: the inputs of a decoder that was
//! exported with its cache.

mod reader;

use std::path::Path;

use flatbuffers::{FlatBufferBuilder, WIPOffset};
use preface_bundle::Positions;
use serde_json::json;

use self::reader::{Parameter, parameters};
use super::{
    BaseKind, Imported, Target, Wishes,
    card::{Parts, card},
    foreign,
    peft::head::alone,
    refuse_gguf, small,
    source::check_values,
};
use crate::{
    Access, Adapter, Error, Form, Layer,
    adapter::{PROMPT, read},
    write_file,
};

const MAGIC: &str = "TORT";
const FORMAT_VERSION: i32 = 1;
/// ONNX's number of the element type.
const FLOAT: i32 = 1;

/// Offsets of a table's fields by their place in the schema.
const fn field(place: u16) -> u16 {
    4 + 2 * place
}

/// Writes an `.onnx_adapter` file.
///
/// # Errors
/// [`Error::Foreign`] for a gated prefix, and for one before a decoder's tokens; [`Error::Write`] and its neighbours.
pub fn export_ort_adapter(adapter: &Adapter, path: &Path) -> Result<Vec<String>, Error> {
    if adapter.description.positions == Positions::DecoderAfterPrompt.name() {
        let problem = "not written: the prefix is of the decoder of an encoder-decoder, whose cache has other names with each exporter; \
                       export peft";
        return Err(foreign(path, problem));
    }
    let named = match &adapter.description.form {
        Form::Embeddings { tokens, hidden } => {
            let shape = vec![i64::from(*tokens), i64::from(*hidden)];
            vec![(PROMPT.to_owned(), shape, adapter.prompt.clone())]
        }
        Form::KeyValues { gated: true, .. } => {
            let problem = "not written: the prefix has gates, for which a cache has no place; train it with --method prefix-tuning";
            return Err(foreign(path, problem));
        }
        Form::KeyValues {
            tokens,
            first_layer,
            layers,
            ..
        } => key_values(
            &adapter.prompt,
            usize::from(*tokens),
            usize::from(*first_layer),
            layers,
        ),
    };
    write_file(path, &file(&named), Access::Everyone)?;
    Ok(named.into_iter().map(|(name, ..)| name).collect())
}

/// A tensor with its name and dimensions.
type Named = (String, Vec<i64>, Vec<f32>);

/// Keys and values of each layer, from rows `[tokens, layers * 2 * kv_heads * head_dim]`.
fn key_values(prompt: &[f32], tokens: usize, first: usize, layers: &[Layer]) -> Vec<Named> {
    let width: usize = layers.iter().map(Layer::width).sum();
    let mut column = 0;
    let mut named = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        for half in ["key", "value"] {
            let (heads, head) = (usize::from(layer.kv_heads), usize::from(layer.head_dim));
            let starts = (0..heads)
                .flat_map(|at| (0..tokens).map(move |token| token * width + column + at * head));
            let values = starts
                .flat_map(|start| prompt.get(start..start + head).unwrap_or_default())
                .copied();
            let shape =
                [1, heads, tokens, head].map(|axis| i64::try_from(axis).unwrap_or(i64::MAX));
            named.push((
                format!("past_key_values.{}.{half}", first + index),
                shape.to_vec(),
                values.collect(),
            ));
            column += heads * head;
        }
    }
    named
}

fn file(named: &[Named]) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    let mut parameters = Vec::new();
    for (name, shape, values) in named {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let data = builder.create_vector(&bytes);
        let dims = builder.create_vector(shape);
        let name = builder.create_string(name);
        let table = builder.start_table();
        builder.push_slot_always(field(0), name);
        builder.push_slot_always(field(1), dims);
        builder.push_slot_always(field(2), FLOAT);
        builder.push_slot_always(field(3), data);
        let table = builder.end_table(table);
        parameters.push(WIPOffset::<flatbuffers::TableFinishedWIPOffset>::new(
            table.value(),
        ));
    }
    let parameters = builder.create_vector(&parameters);
    let table = builder.start_table();
    builder.push_slot_always(field(0), FORMAT_VERSION);
    builder.push_slot_always(field(1), 1i32);
    builder.push_slot_always(field(2), 1i32);
    builder.push_slot_always(field(3), parameters);
    let root = builder.end_table(table);
    builder.finish(root, Some(MAGIC));
    builder.finished_data().to_vec()
}

/// Reads an `.onnx_adapter` file with one prompt, or with keys and values of every layer.
///
/// # Errors
/// [`Error::Foreign`] with the file, what it holds, and the way out; [`Error::Read`].
pub fn import_ort_adapter(
    path: &Path,
    target: &Target,
    wishes: &Wishes,
) -> Result<Imported, Error> {
    refuse_gguf(path)?;
    let bytes = read(path)?;
    let parameters = parameters(&bytes).ok_or_else(|| {
        foreign(path, "no whole adapter file of ONNX Runtime; copy it again, or write it again with AdapterFormat")
    })?;
    let (form, prompt) = match parameters.iter().any(|parameter| parameter.name == PROMPT) {
        true => rows(path, &parameters, target)?,
        false => prefix(path, &parameters, target)?,
    };
    // A prefix of all attentions of an encoder-decoder takes no positions.
    let whole = target.kind == BaseKind::EncoderDecoder && form["kind"] == "key-values";
    let positions = match whole {
        true => Positions::TextFromZero,
        false => Positions::AfterPrompt,
    };
    let mut notes = Vec::new();
    let head = alone(path, target, wishes, &mut notes)?;
    let parts = Parts {
        method: if form["kind"] == "embeddings" {
            "prompt-tuning"
        } else {
            "prefix-tuning"
        },
        form,
        positions,
        head: head.kind,
        classes: head.classes,
        rank: None,
        labels: &head.labels,
        pooling: &head.pooling,
        receipt: json!({"imported_from": "ort-adapter"}),
    };
    let (card, description) = card(path, parts, target, wishes)?;
    let adapter = Adapter {
        description,
        prompt,
        gates: Vec::new(),
        head_weight: head.weight,
        head_bias: head.bias,
        head_factors: [Vec::new(), Vec::new()],
    };
    Ok(Imported {
        adapter,
        card,
        notes,
    })
}

type Read = (serde_json::Value, Vec<f32>);

fn names(parameters: &[Parameter<'_>]) -> Vec<String> {
    parameters
        .iter()
        .map(|parameter| format!("{} {:?}", parameter.name.escape_debug(), parameter.dims))
        .collect()
}

fn rows(path: &Path, parameters: &[Parameter<'_>], target: &Target) -> Result<Read, Error> {
    let hidden = target.embedding_width;
    let refuse = || {
        let found = names(parameters).join(", ");
        let problem = format!(
            "it holds {found}, expected {PROMPT} [tokens, {hidden}] of floats alone; pass --base the model that it was trained on"
        );
        foreign(path, problem)
    };
    let [parameter] = parameters else {
        return Err(refuse());
    };
    let &[tokens, width] = &parameter.dims[..] else {
        return Err(refuse());
    };
    let values = parameter.values().ok_or_else(refuse)?;
    if width != usize::from(hidden) {
        return Err(refuse());
    }
    check_values(path, PROMPT, &values)?;
    let tokens = small(path, "the number of virtual tokens", tokens)?;
    Ok((
        json!({"kind": "embeddings", "tokens": tokens, "hidden": hidden}),
        values,
    ))
}

fn prefix(path: &Path, parameters: &[Parameter<'_>], target: &Target) -> Result<Read, Error> {
    let layers = &target.layers;
    let refuse = || {
        let found = names(parameters).join(", ");
        let problem = format!(
            "it holds {found}, expected {PROMPT} [tokens, {}], or past_key_values.N.key and .value of the base's {} layers, \
             each [1, kv_heads, tokens, head_dim] of floats; other adapters (LoRA) change weights and are not taken",
            target.embedding_width,
            layers.len()
        );
        foreign(path, problem)
    };
    let find = |index: usize, half: &str| {
        parameters
            .iter()
            .find(|parameter| parameter.name == format!("past_key_values.{index}.{half}"))
    };
    let tokens = find(0, "key")
        .and_then(|parameter| parameter.dims.get(2).copied())
        .ok_or_else(refuse)?;
    if parameters.len() != 2 * layers.len() {
        return Err(refuse());
    }
    let mut by_token =
        vec![Vec::new(); usize::from(small(path, "the number of virtual tokens", tokens)?)];
    for (index, layer) in layers.iter().enumerate() {
        let [heads, head] = [layer.kv_heads, layer.head_dim].map(usize::from);
        for half in ["key", "value"] {
            let parameter =
                find(index, half).filter(|parameter| parameter.dims == [1, heads, tokens, head]);
            let values = parameter.and_then(Parameter::values).ok_or_else(refuse)?;
            check_values(path, &format!("past_key_values.{index}.{half}"), &values)?;
            for of_head in values.chunks_exact((tokens * head).max(1)) {
                by_token
                    .iter_mut()
                    .zip(of_head.chunks_exact(head.max(1)))
                    .for_each(|(row, values)| row.extend_from_slice(values));
            }
        }
    }
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| json!({"kv_heads": layer.kv_heads, "head_dim": layer.head_dim}))
        .collect();
    Ok((
        json!({"kind": "key-values", "tokens": tokens, "layers": layers}),
        by_token.concat(),
    ))
}
