//! Export as PEFT's folder.

use std::path::Path;

use preface_bundle::{HeadKind, Positions};
use serde_json::{Value, json};

use super::{
    BaseKind, Target,
    card::{CONFIG, Named, own_tensors, pretty, prompt_shape, safetensors},
    foreign, make_folder,
    peft::decoder,
};
use crate::{
    Access, Adapter, Description, Error, Form, Layer,
    adapter::{BIAS, DESCRIPTION, PROMPT, TENSORS, WEIGHT},
    write_file,
};

const SCORE: &str = "base_model.score.weight";
/// Names here and there, where they differ in more than the form.
const TYPES: [(&str, &str); 3] = [
    ("cartridge", "CARTRIDGE"),
    ("p-tuning-lstm", "P_TUNING"),
    ("p-tuning-mlp", "P_TUNING"),
];

/// What was written for PEFT.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Exported {
    /// PEFT's name of the method.
    pub peft_type: &'static str,
    /// PEFT's name of the task.
    pub task_type: &'static str,
    /// Where PEFT's answers are not those of the adapter, or need something done by hand: empty where they are equal.
    pub differences: Vec<String>,
}

/// Writes a folder that `PeftModel.from_pretrained` loads on the base `target`.
///
/// # Errors
/// [`Error::Foreign`] where PEFT has no equal of the form, or the folder is an adapter's; [`Error::Write`] and its neighbours.
pub fn export_peft(adapter: &Adapter, target: &Target, folder: &Path) -> Result<Exported, Error> {
    let description = &adapter.description;
    if folder.join(DESCRIPTION).exists() {
        return Err(foreign(
            folder,
            "it is an adapter folder of this program, whose tensors lie otherwise; name another folder with -o",
        ));
    }
    check_form(folder, description, target)?;
    let mut differences = position_difference(description);
    let (task_type, head) = head(adapter, target, &mut differences);
    let seq2seq = task_type == "SEQ_2_SEQ_LM";
    let halves = if seq2seq { 2 } else { 1 };
    let [tokens, width] = prompt_shape(&description.form)[..] else {
        return Err(foreign(folder, "the prompt is no matrix"));
    };
    let (tokens, rows) = match &description.form {
        Form::KeyValues { layers, .. } if target.kind == BaseKind::EncoderDecoder => {
            (tokens, of_decoder(folder, adapter, layers, task_type)?)
        }
        _ => (tokens * halves, adapter.prompt.repeat(halves)),
    };
    let mut tensors: Vec<Named<'_>> = vec![(PROMPT, vec![tokens, width], &rows)];
    tensors.extend(
        head.iter()
            .map(|(name, shape, values)| (*name, shape.clone(), &values[..])),
    );
    let mut config = own(adapter);
    config["task_type"] = task_type.into();
    config["num_transformer_submodules"] = halves.into();
    if matches!(task_type, "SEQ_CLS" | "TOKEN_CLS") {
        config["modules_to_save"] = json!(["classifier", "score"]);
    }
    make_folder(folder)?;
    write_file(
        &folder.join(TENSORS),
        &safetensors(folder, &tensors)?,
        Access::Everyone,
    )?;
    write_file(&folder.join(CONFIG), &pretty(&config), Access::Everyone)?;
    Ok(Exported {
        peft_type: peft_type(description),
        task_type,
        differences,
    })
}

/// `adapter_config.json` of an adapter folder: hidden rows are what PEFT makes of it, the head stands beside.
pub(super) fn own(adapter: &Adapter) -> Value {
    let description = &adapter.description;
    let (heads, layers, width) = match &description.form {
        Form::Embeddings { hidden, .. } => (1, 1, usize::from(*hidden)),
        Form::KeyValues { layers, .. } => {
            let heads = layers.first().map_or(1, |layer| layer.kv_heads);
            (
                heads,
                layers.len(),
                layers.first().map_or(1, |layer| layer.width() / 2),
            )
        }
    };
    let mut config = json!({
        "auto_mapping": null,
        "base_model_name_or_path": format!("sha256:{}", description.base_id),
        "inference_mode": true,
        "modules_to_save": null,
        "num_attention_heads": heads,
        "num_layers": layers,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": description.form.tokens(),
        "peft_type": peft_type(description),
        "revision": null,
        "task_type": "FEATURE_EXTRACTION",
        "token_dim": width,
    });
    let lstm = description.method == "p-tuning-lstm";
    let more = match peft_type(description) {
        "P_TUNING" => json!({
            "encoder_dropout": 0.0, "encoder_hidden_size": width, "encoder_num_layers": 2,
            "encoder_reparameterization_type": if lstm { "LSTM" } else { "MLP" },
        }),
        "PREFIX_TUNING" => {
            json!({"encoder_hidden_size": width, "init_weights": null, "prefix_projection": false})
        }
        "CARTRIDGE" => json!({"num_frozen_tokens": 0}),
        _ => json!({
            "prompt_tuning_init": "RANDOM", "prompt_tuning_init_text": null, "tokenizer_kwargs": null,
            "tokenizer_name_or_path": null,
        }),
    };
    if let (Some(config), Value::Object(more)) = (config.as_object_mut(), more) {
        config.extend(more);
    }
    config
}

fn peft_type(description: &Description) -> &'static str {
    let named = TYPES
        .iter()
        .find(|(method, _)| *method == description.method);
    match (&description.form, named) {
        (Form::Embeddings { .. }, Some((_, "P_TUNING"))) => "P_TUNING",
        (Form::Embeddings { .. }, _) => "PROMPT_TUNING",
        (Form::KeyValues { .. }, Some((_, "CARTRIDGE"))) => "CARTRIDGE",
        (Form::KeyValues { .. }, _) => "PREFIX_TUNING",
    }
}

/// The prefix of a decoder behind an encoder as PEFT stores it.
fn of_decoder(
    path: &Path,
    adapter: &Adapter,
    layers: &[Layer],
    task_type: &str,
) -> Result<Vec<f32>, Error> {
    if task_type != "SEQ_2_SEQ_LM" {
        let problem = format!(
            "not written: PEFT reads a prefix of an encoder-decoder where text is generated, and the head is {}",
            adapter.description.head.kind.name()
        );
        return Err(foreign(path, problem));
    }
    let width = layers.first().map_or(0, Layer::width);
    decoder::stored(&adapter.prompt, layers.len(), width).map_err(|[one, other]| {
        let problem = format!(
            "not written: PEFT gives layers {one} and {other} of a decoder behind an encoder the same rows, and here they differ"
        );
        foreign(path, problem)
    })
}

/// Refuses what PEFT cannot say.
fn check_form(path: &Path, description: &Description, target: &Target) -> Result<(), Error> {
    let refuse = |problem: &str| Err(foreign(path, format!("not written: {problem}")));
    match &description.form {
        Form::Embeddings { .. } if description.positions != Positions::AfterPrompt.name() => {
            refuse(
                "the prompt stands behind its text, and PEFT's before it; train it before the text, or export ort-adapter",
            )
        }
        Form::Embeddings { .. } => Ok(()),
        Form::KeyValues { gated: true, .. } => {
            refuse("the prefix has gates, and PEFT's none; train it with --method prefix-tuning")
        }
        Form::KeyValues { .. }
            if target.kind == BaseKind::EncoderDecoder && !is_of_decoder(description) =>
        {
            refuse(
                "the prefix is of an encoder-decoder, and PEFT gives one to its decoder's own attentions alone, as tokens before the \
                 decoder's first",
            )
        }
        Form::KeyValues { layers, .. } if layers.len() != layers_of(target).len() => refuse(
            "the prefix is of some layers, and PEFT's of all; train it on all layers, or export ort-adapter",
        ),
        Form::KeyValues { layers, .. } if layers.windows(2).any(|pair| pair[0] != pair[1]) => {
            refuse(
                "the layers differ in their heads, and PEFT gives all the same; export ort-adapter",
            )
        }
        Form::KeyValues { .. } => Ok(()),
    }
}

fn is_of_decoder(description: &Description) -> bool {
    description.positions == Positions::DecoderAfterPrompt.name()
}

/// The layers to which PEFT gives a prefix.
fn layers_of(target: &Target) -> &[Layer] {
    match target.kind {
        BaseKind::EncoderDecoder => &target.decoder_layers,
        _ => &target.layers,
    }
}

fn position_difference(description: &Description) -> Vec<String> {
    let prefix = matches!(description.form, Form::KeyValues { .. });
    let differs = prefix && description.positions == Positions::TextFromZero.name();
    let words = "PEFT counts the text's positions behind the prefix, this adapter from zero: hidden rows differ unless \
                 position_ids from zero are passed";
    differs.then(|| words.to_owned()).into_iter().collect()
}

/// A head's tensor by PEFT's name.
type HeadTensor = (&'static str, Vec<usize>, Vec<f32>);

/// PEFT's task, and the tensors of the head.
fn head(
    adapter: &Adapter,
    target: &Target,
    differences: &mut Vec<String>,
) -> (&'static str, Vec<HeadTensor>) {
    let description = &adapter.description;
    let kind = description.head.kind;
    let weight = match kind {
        HeadKind::FactoredLinear => product(adapter),
        _ => adapter.head_weight.clone(),
    };
    let rows = usize::from(description.head.classes);
    let shape = vec![rows, usize::from(description.head.width())];
    let unbiased = adapter.head_bias.iter().all(|bias| *bias == 0.0);
    let biased = |weight| {
        vec![
            (BIAS, vec![rows], adapter.head_bias.clone()),
            (WEIGHT, shape.clone(), weight),
        ]
    };
    match (kind, target.kind) {
        (HeadKind::TanhLinear, _) => {
            differences.extend(pooler_difference(description));
            let [weight, _] = &adapter.head_factors;
            let width = weight.len().checked_div(rows).unwrap_or(0);
            let bias = adapter.head_bias.get(..rows).unwrap_or_default().to_vec();
            (
                "SEQ_CLS",
                vec![
                    (BIAS, vec![rows], bias),
                    (WEIGHT, vec![rows, width], weight.clone()),
                ],
            )
        }
        (HeadKind::Generation, BaseKind::EncoderDecoder) => ("SEQ_2_SEQ_LM", vec![]),
        (HeadKind::Generation, _) => ("CAUSAL_LM", vec![]),
        (HeadKind::TokenLinear, BaseKind::Encoder) => ("TOKEN_CLS", biased(weight)),
        (HeadKind::Linear | HeadKind::FactoredLinear, BaseKind::Decoder)
            if description.pooling == "last" && unbiased =>
        {
            ("SEQ_CLS", vec![(SCORE, shape, weight)])
        }
        (HeadKind::Verbaliser | HeadKind::LabelText, _) => {
            differences.push(format!(
                "PEFT has no {} head: it gives hidden rows, the answer is made of them by hand",
                kind.name()
            ));
            (
                "FEATURE_EXTRACTION",
                own_tensors(adapter)
                    .into_iter()
                    .filter(|tensor| tensor.0 == BIAS)
                    .map(|(_, shape, values)| (BIAS, shape, values.to_vec()))
                    .collect(),
            )
        }
        _ => {
            differences.push(format!(
                "PEFT gives hidden rows; the head lies beside the prompt as {WEIGHT} and {BIAS}, for the {} of the text's rows",
                description.pooling
            ));
            ("FEATURE_EXTRACTION", biased(weight))
        }
    }
}

/// Where PEFT's classifier reads another row: it reads the first of all.
fn pooler_difference(description: &Description) -> Option<String> {
    let first = match description.form {
        Form::Embeddings { .. } => "prompt",
        Form::KeyValues { .. } => "first",
    };
    let words = format!(
        "PEFT's classifier reads the first of all rows, this adapter's the {} one of its text",
        description.pooling
    );
    (description.pooling != first).then_some(words)
}

/// The weight `[classes, hidden]` that the factors of a head make.
fn product(adapter: &Adapter) -> Vec<f32> {
    let [first, second] = &adapter.head_factors;
    let rank = usize::from(adapter.description.head.rank.unwrap_or(1)).max(1);
    let hidden = usize::from(adapter.description.head.width());
    let row = |factors: &[f32]| -> Vec<f32> {
        let column = |at: usize| {
            second
                .iter()
                .skip(at)
                .step_by(hidden.max(1))
                .zip(factors)
                .map(|(one, other)| one * other)
                .sum()
        };
        (0..hidden).map(column).collect()
    };
    first.chunks_exact(rank).flat_map(row).collect()
}
