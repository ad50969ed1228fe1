//! `preface check`: will this base work?

use std::{path::PathBuf, process::ExitCode};

use preface_graph::{Base, Description, FormKind, Kind, PositionRule};
use preface_runtime::compile::Prospect;
use preface_trainer::{
    Error,
    check::{GradientCheck, gradients},
    tokens::Tokens,
};
use serde_json::json;

use crate::{onnxruntime::OnnxRuntime, output::Output};

/// Gradients that differ more than this from finite differences are taken to be wrong.
const TOLERANCE: f64 = 0.05;

/// What is said of a base whose logits its images do not make.
const SILENT: &str =
    "words        and generated texts only with `preface eval --adapter`, not from its images";

/// Say whether an ONNX folder can be a base, what it is, and how well its gradients agree with finite differences.
#[derive(clap::Args)]
#[command(after_help = "\
The folder, or the folder onnx in it, holds model.onnx, or decoder_model.onnx or decoder_model_merged.onnx beside the
encoder_model.onnx of an encoder-decoder; tokenizer.json belongs to it.

Exit: 0 usable; 1 not usable, with the reason; 2 could not tell.

Example:
  preface check out/base")]
pub struct Arguments {
    /// Base folder.
    base: PathBuf,
    #[command(flatten)]
    onnxruntime: OnnxRuntime,
}

/// Opens the base and compares its gradients.
pub fn run(arguments: Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let base = match Base::open(&arguments.base) {
        Ok(base) => base,
        Err(
            error @ (preface_graph::Error::Node { .. } | preface_graph::Error::Unusable { .. }),
        ) => {
            return refuse(None, &error.to_string(), output);
        }
        Err(error) => return Err(error.into()),
    };
    if let Err(error) = Tokens::read(&base.tokenizer) {
        return refuse(Some(&base.description), &error.to_string(), output);
    }
    let library = arguments.onnxruntime.load()?;
    let checks = match gradients(&base, &library, arguments.onnxruntime.threads()) {
        Ok(checks) => checks,
        Err(error @ (Error::NoRule { .. } | Error::NoGradient { .. } | Error::Graph(_))) => {
            return refuse(Some(&base.description), &error.to_string(), output);
        }
        Err(error) => return Err(error.into()),
    };
    let worst = checks.iter().map(|check| check.error).fold(0.0, f64::max);
    if worst.is_nan() || worst > TOLERANCE {
        let reason =
            format!("gradients differ from finite differences by {worst:.1e} of their size");
        return refuse(Some(&base.description), &reason, output);
    }
    report(&base, &checks, worst, output)?;
    Ok(ExitCode::SUCCESS)
}

fn refuse(
    description: Option<&Description>,
    reason: &str,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    output.say(format_args!("not usable: {reason}"));
    output.json(&json!({
        "usable": false,
        "kind": description.map(|base| base.kind),
        "layers": description.map(|base| base.layers.len()),
        "hidden": description.map(|base| base.hidden),
        "forms": description.map_or(&[][..], |base| &base.forms),
        "gradient_error": null,
        "reason": reason,
    }))?;
    Ok(ExitCode::from(1))
}

fn report(
    base: &Base,
    checks: &[GradientCheck],
    worst: f64,
    output: &Output,
) -> anyhow::Result<()> {
    let description = &base.description;
    let kind = match description.kind {
        Kind::Encoder => "encoder",
        Kind::Decoder => "decoder",
        Kind::EncoderDecoder => "encoder-decoder",
    };
    let positions = match (description.position_rule, description.max_positions) {
        (rule, Some(most)) => format!("{}, at most {most}", rule_name(rule)),
        (rule, None) => format!("{}, unbounded", rule_name(rule)),
    };
    let layers = &description.layers;
    let geometry = layers
        .first()
        .map_or((0, 0), |layer| (layer.kv_heads, layer.head_dim));
    output.say(format_args!("usable       {}", base.path.display()));
    output.say(format_args!("kind         {kind}"));
    output.say(format_args!("parameters   {}", description.parameters));
    output.say(format_args!("hidden       {}", description.hidden));
    output.say(format_args!("vocabulary   {}", description.vocabulary));
    output.say(format_args!(
        "attention    {} sites; a prefix joins {}, each with {} heads of {} for keys and values",
        description.sites.len(),
        layers.len(),
        geometry.0,
        geometry.1
    ));
    output.say(format_args!("positions    {positions}"));
    for check in checks {
        let form = form_name(check.form);
        output.say(format_args!(
            "form         {form}: gradient within {:.1e} of finite differences",
            check.error
        ));
    }
    let rounds = base.unrounded().is_some();
    if rounds {
        output.say("rounding     of activations: gradients pass straight through it, and were checked without it");
    }
    let prospect = Prospect::of_base(base);
    match (&prospect.refused, &prospect.unlowered) {
        (Some(reason), _) => output.say(format_args!("image        none: {reason}")),
        (None, Some(reason)) => output.say(format_args!(
            "image        on tract's plan, if that runs it, since {reason}: slower, on one thread"
        )),
        (None, None) => {}
    }
    if description.logits.is_some() && !prospect.scores {
        output.say(SILENT);
    }
    output.json(&json!({
        "servable": prospect.refused.is_none(),
        "scores": prospect.scores,
        "usable": true,
        "kind": description.kind,
        "layers": layers.len(),
        "hidden": description.hidden,
        "vocabulary": description.vocabulary,
        "parameters": description.parameters,
        "attention_sites": description.sites.len(),
        "position_rule": description.position_rule,
        "max_positions": description.max_positions,
        "forms": description.forms,
        "gradient_error": worst,
        "rounds_activations": rounds,
        "reason": null,
        "base_id": description.base_id,
        "tokenizer_id": description.tokenizer_id,
    }))
}

fn rule_name(rule: PositionRule) -> &'static str {
    match rule {
        PositionRule::Learned => "learned",
        PositionRule::Rotary => "rotary",
        PositionRule::Relative => "relative",
        PositionRule::Unknown => "of an unknown kind",
    }
}

fn form_name(form: FormKind) -> &'static str {
    match form {
        FormKind::Embeddings => "embeddings",
        FormKind::KeyValues => "key-values",
    }
}
