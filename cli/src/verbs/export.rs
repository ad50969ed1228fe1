//! `preface export`: a prompt for another program.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use preface_bundle::{Frame, Policy, TrustStore};
use preface_packager::{
    Adapter,
    exchange::{Layout, adapter_of, export_numpy, export_ort_adapter, export_peft},
};
use preface_runtime::{
    bundle::{decode, read, read_trust},
    unix_now,
};
use serde_json::{Value, json};

use super::import::target;
use crate::output::{Output, lossy};

/// Write a prompt for another program
#[derive(Args)]
#[command(after_help = "\
peft: a folder that PeftModel.from_pretrained loads on the model that --base was exported from;
ort-adapter: an .onnx_adapter file that ONNX Runtime loads, rows as prompt_embeddings, keys and values
as past_key_values.N.key and .value; numpy: an .npy file [tokens, hidden], or with --table
[1, tokens, hidden]. Where PEFT's answers differ from the adapter's, it is said.

The source is an adapter folder, or a bundle, which is verified first and is written as a device has it.

Exit: 0 written; 2 not written.

Example:
  preface export peft out/home --base out/base -o home-peft
  preface export ort-adapter home.preface --trust release.trust -o home.onnx_adapter")]
pub struct Arguments {
    /// What is written
    #[arg(value_enum)]
    format: Format,
    /// The adapter folder, or a bundle
    source: PathBuf,
    /// Where it is written: a folder for peft, otherwise a file
    #[arg(short, long, value_name = "DST")]
    output: PathBuf,
    /// The base folder of the adapter; peft needs it
    #[arg(long, value_name = "BASE", required_if_eq("format", "peft"))]
    base: Option<PathBuf>,
    /// The trust store with the keys that may sign the bundle
    #[arg(long, value_name = "FILE")]
    trust: Option<PathBuf>,
    /// Write numpy's array as a table of one task
    #[arg(long)]
    table: bool,
}

/// What can be written.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// A folder for Hugging Face's PEFT
    Peft,
    /// A file for ONNX Runtime
    OrtAdapter,
    /// An array for numpy
    Numpy,
}

/// Runs the verb.
pub fn run(arguments: Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let Arguments {
        source,
        output: place,
        ..
    } = &arguments;
    ensure!(
        !arguments.table || matches!(arguments.format, Format::Numpy),
        "--table is of numpy's arrays alone"
    );
    let adapter = adapter(source, arguments.trust.as_deref())?;
    let target = arguments.base.as_deref().map(target).transpose()?;
    if let Some(target) = &target {
        adapter.check_base(target.base_id, target.tokenizer_id)?;
    }
    let layout = if arguments.table {
        Layout::Table
    } else {
        Layout::Prompt
    };
    let mut report = json!({"path": lossy(place), "labels": adapter.description.labels});
    match arguments.format {
        Format::Peft => {
            let target = target.context("pass --base")?;
            let exported = export_peft(&adapter, &target, place)?;
            exported
                .differences
                .iter()
                .for_each(|difference| output.note(difference));
            report["peft_type"] = exported.peft_type.into();
            report["task_type"] = exported.task_type.into();
            report["differences"] = json!(exported.differences);
        }
        Format::OrtAdapter => report["parameters"] = json!(export_ort_adapter(&adapter, place)?),
        Format::Numpy => export_numpy(&adapter, layout, place)?,
    }
    output.say(format_args!("wrote {}", sentence(place, &report)));
    output.json(&report)?;
    Ok(ExitCode::SUCCESS)
}

fn sentence(place: &Path, report: &Value) -> String {
    match (report["peft_type"].as_str(), report["task_type"].as_str()) {
        (Some(peft), Some(task)) => format!("{}: {peft}, {task}", place.display()),
        _ => place.display().to_string(),
    }
}

/// The adapter of a folder, or of a bundle that the trust store vouches for.
fn adapter(source: &Path, trust: Option<&Path>) -> anyhow::Result<Adapter> {
    let name = || source.display().to_string();
    if source.is_dir() {
        return Ok(Adapter::open(source)?);
    }
    let trust = trust.with_context(|| {
        format!(
            "{} is a bundle; pass --trust, so that it can be verified",
            name()
        )
    })?;
    let text = read_trust(trust)?;
    let store = TrustStore::parse(&text).with_context(|| trust.display().to_string())?;
    let file = read(source)?;
    let mut policy = Policy::unbound();
    policy.now = unix_now();
    let admitted = Frame::parse(&file)
        .and_then(|frame| frame.authenticate(&store))
        .and_then(|bundle| bundle.admit(&policy))
        .with_context(name)?;
    let decoded = decode(&admitted).with_context(name)?;
    let bundle = admitted.open(&decoded).with_context(name)?;
    Ok(adapter_of(source, &bundle)?)
}
