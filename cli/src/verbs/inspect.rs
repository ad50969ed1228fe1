//! `preface inspect`: what does this file say about itself?

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::Args;
use preface_bundle::{Form, Frame, Manifest};
use preface_runtime::{Image, bundle::read};
use serde_json::{Value, json};

use crate::output::Output;

/// Show what a bundle, a base image or an adapter says about itself, without verifying anything
#[derive(Args)]
#[command(after_help = "\
Nothing that this shows is vouched for: use `preface verify` before you believe it.

Example:
  preface inspect intent.preface
  preface inspect minilm.base
  preface inspect out/intent --base out/base --train train.jsonl")]
pub struct Arguments {
    /// The bundle, base image or adapter folder
    file: PathBuf,
    /// The base of an adapter, a folder or an image, in whose vocabulary its prompt is read
    #[cfg(feature = "host")]
    #[arg(long, value_name = "BASE")]
    base: Option<PathBuf>,
    #[cfg(feature = "host")]
    #[command(flatten)]
    leak: crate::leak::Arguments,
}

/// Runs the verb.
pub fn run(arguments: Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let name = arguments.file.display().to_string();
    if Image::is_at(&arguments.file) {
        let report = describe_image(&arguments.file)?;
        show(&report, &format!("{name}: a base image"), output)?;
        return Ok(ExitCode::SUCCESS);
    }
    #[cfg(feature = "host")]
    if arguments.file.is_dir() {
        return inspect_adapter(&arguments, output);
    }
    let bytes = read(&arguments.file)?;
    let frame = Frame::parse(&bytes).with_context(|| name.clone())?;
    let manifest = frame.unverified_manifest().with_context(|| name.clone())?;
    let mut report = describe(&manifest);
    report["bundle_id"] = frame.bundle_id().to_string().into();
    report["bytes"] = bytes.len().into();
    report["signature_keys"] = frame
        .signatures()
        .map(|entry| entry.key_id.to_string())
        .collect::<Vec<_>>()
        .into();
    let title = format!("{name}: NOT VERIFIED: anybody can have written what follows");
    show(&report, &title, output)?;
    Ok(ExitCode::SUCCESS)
}

/// Shows what an adapter folder says, and, with its base, what its prompt is near to.
#[cfg(feature = "host")]
fn inspect_adapter(arguments: &Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let folder = &arguments.file;
    let adapter = preface_packager::Adapter::open(folder)?;
    let mut report: Value = serde_json::from_slice(&std::fs::read(folder.join("preface.json"))?)?;
    report["probes"] = adapter.description.probes.len().into();
    let reading = match &arguments.base {
        Some(base) => {
            let (base_id, tokenizer_id) =
                super::verify::ids_of(base).with_context(|| base.display().to_string())?;
            adapter.check_base(base_id, tokenizer_id)?;
            Some(arguments.leak.reading(&adapter, base, output)?)
        }
        None => None,
    };
    let title = format!("{}: an adapter", folder.display());
    say(&report, &title, output);
    if let Some(reading) = &reading {
        reading.show(output);
        report["reading"] = serde_json::to_value(reading)?;
    }
    output.json(&report)?;
    Ok(ExitCode::SUCCESS)
}

fn show(report: &Value, title: &str, output: &Output) -> anyhow::Result<()> {
    output.json(report)?;
    say(report, title, output);
    Ok(())
}

/// The fields for people, a line each, those of a list of objects a line for each object.
fn say(report: &Value, title: &str, output: &Output) {
    output.say(title);
    for (field, value) in report.as_object().into_iter().flatten() {
        match value
            .as_array()
            .filter(|items| items.iter().any(Value::is_object))
        {
            Some(items) => items
                .iter()
                .for_each(|item| output.say(format_args!("{field:>16}  {}", visible(item)))),
            None => output.say(format_args!("{field:>16}  {}", visible(value))),
        }
    }
}

/// A value whose marks without width are written as JSON can: some turn around what stands beside them, so that a signer
/// would read another label than the one that is signed.
fn visible(value: &Value) -> String {
    let hides = |character: char| {
        matches!(character, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
    };
    let mut units = [0; 2];
    let mut text = String::new();
    for character in value.to_string().chars() {
        match hides(character) {
            true => {
                let units = character.encode_utf16(&mut units).iter();
                text.extend(units.map(|unit| format!("\\u{unit:04x}")));
            }
            false => text.push(character),
        }
    }
    text
}

fn describe_image(path: &Path) -> anyhow::Result<Value> {
    let image = crate::image::open(path)?;
    let base = image.description();
    let mut described = json!({
        "kind": base.kind,
        "layers": base.layers,
        "hidden": base.hidden,
        "vocabulary": base.vocabulary,
        "max_positions": base.max_positions,
        "engine": image.engine().to_string(),
        "weights": image.weights(),
        "packer": format!("tract {}", image.packer()),
        "architecture": image.architecture(),
        "kernels": image.kernels(),
        "base_id": base.base_id.to_string(),
        "tokenizer_id": base.tokenizer_id.to_string(),
        "bytes": image.len_bytes(),
        "tokenizer_bytes": image.tokenizer().len(),
    });
    if let Some(reason) = image.unlowered() {
        described["reason"] = reason.into();
    }
    Ok(described)
}

pub(crate) fn describe(manifest: &Manifest<'_>) -> Value {
    let receipt = manifest
        .receipt
        .map(|text| serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned())));
    let budget = manifest.token_budget.map(|budget| {
        json!({"prompt": budget.prompt, "longest": budget.longest, "typical": budget.typical, "positions": budget.positions})
    });
    json!({
        "verified": false,
        "task": manifest.task,
        "sequence": manifest.sequence,
        "namespace": manifest.namespace.to_string(),
        "base_id": manifest.base_id.to_string(),
        "tokenizer_id": manifest.tokenizer_id.to_string(),
        "trust_version": manifest.trust_version,
        "security_version": manifest.security_version,
        "created": manifest.created,
        "not_after": manifest.not_after,
        "min_runtime": manifest.min_runtime,
        "codec": manifest.codec.name(),
        "stored_bytes": manifest.stored_bytes,
        "decoded_bytes": manifest.decoded_bytes,
        "form": form(manifest.form),
        "tensors": tensors(manifest),
        "head": {"kind": manifest.head.kind.name(), "classes": manifest.head.classes, "hidden": manifest.head.hidden},
        "labels": manifest.labels.iter().collect::<Vec<_>>(),
        "template": manifest.template,
        "pooling": manifest.pooling.map(|pooling| pooling.name()),
        "positions": manifest.positions.name(),
        "answer": {
            "kind": manifest.answer.kind.name(), "inputs": manifest.answer.inputs.name(),
            "threshold": manifest.answer.threshold.map(decimal),
        },
        "verbaliser": manifest.verbaliser.map(|verbaliser| verbaliser.iter().map(Iterator::collect).collect::<Vec<Vec<u32>>>()),
        "decode": manifest.decode_limits.map(|limits| {
            json!({"most_tokens": limits.max_tokens, "stop_ids": limits.stop_ids().collect::<Vec<_>>()})
        }),
        "probes": manifest.probes.iter().count(),
        "metrics": manifest.metrics.iter().map(|(name, value)| (name.to_owned(), decimal(value))).collect::<serde_json::Map<_, _>>(),
        "token_budget": budget,
        "receipt": receipt,
        "ignored_fields": manifest.ignored().map(|tlv| format!("{tlv:#06x}")).collect::<Vec<_>>(),
    })
}

/// The number with no more digits than single precision has.
fn decimal(value: f32) -> Value {
    value
        .to_string()
        .parse::<f64>()
        .map_or(Value::Null, Value::from)
}

fn form(form: Form) -> Value {
    match form {
        Form::Embeddings { tokens, hidden } => {
            json!({"kind": "embeddings", "tokens": tokens, "hidden": hidden})
        }
        Form::KeyValues { tokens, layers } => {
            json!({"kind": "key-values", "tokens": tokens, "layers": layers})
        }
        _ => json!({"kind": form.name(), "tokens": form.tokens()}),
    }
}

fn tensors(manifest: &Manifest<'_>) -> Vec<Value> {
    let entries = manifest.tensors.iter().map(|spec| {
        json!({
            "role": spec.role.name(), "dtype": spec.dtype.name(), "layer": spec.layer,
            "dims": spec.dims(), "group": spec.group, "bytes": spec.bytes,
        })
    });
    entries.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_that_turn_a_line_around_are_shown() {
        let shown = visible(&json!([
            "un\u{202e}kcol",
            "a\u{200b}b",
            "\u{e0041}",
            "größer \u{5d0}"
        ]));
        assert_eq!(
            shown,
            r#"["un\u202ekcol","a\u200bb","\udb40\udc41","größer א"]"#
        );
    }
}
