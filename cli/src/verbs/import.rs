//! `preface import`: a prompt of another program becomes an adapter folder.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum, value_parser};
use preface_bundle::Id;
use preface_graph::{Base, Kind};
use preface_packager::{
    Form, Layer,
    exchange::{
        BaseKind, Target, Wishes, import_numpy, import_ort_adapter, import_peft, refuse_gguf,
    },
};
use serde_json::json;

use crate::output::{Output, lossy};

/// Make an adapter folder of a prompt that another program trained
#[derive(Args)]
#[command(after_help = "\
peft: a folder of save_pretrained with PROMPT_TUNING, P_TUNING, PREFIX_TUNING, CARTRIDGE or
MULTITASK_PROMPT_TUNING; ort-adapter: an .onnx_adapter file; numpy: an .npy file [tokens, hidden], or
[tasks, tokens, hidden], or [tasks, tokens * hidden]. Nothing in the files is run. What changes the
base's weights (LoRA, GGUF) is refused: tasks share one unchanged base.

Exit: 0 written; 2 not written.

Example:
  preface import peft my-peft-folder --base out/base --labels on,off,dim -o out/home
  preface import numpy prompt.npy --base out/gpt2 -o out/story")]
pub struct Arguments {
    /// What the source is
    #[arg(value_enum)]
    format: Format,
    /// The folder or file to read
    source: PathBuf,
    /// The base folder that the prompt was trained on
    #[arg(long, value_name = "BASE")]
    base: PathBuf,
    /// The adapter folder to write
    #[arg(short, long, value_name = "ADAPTER")]
    output: PathBuf,
    /// Names of the labels in the head's order; without them id2label of a config.json in the source or the base
    #[arg(long, value_name = "LABEL", value_delimiter = ',')]
    labels: Vec<String>,
    /// Which hidden rows the head reads, where the source does not say
    #[arg(long, value_enum)]
    pooling: Option<Pooling>,
    /// The safetensors file of the model that the prompt was trained on, where its classifier reads the pooler
    #[arg(long, value_name = "FILE")]
    pooler: Option<PathBuf>,
    /// Which of several tasks in the source, counted from 0
    #[arg(long, value_name = "N")]
    task_index: Option<usize>,
    /// A text may have several of the labels
    #[arg(long)]
    multi_label: bool,
    /// Tokens of a generated text at most
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = value_parser!(u16).range(1..))]
    most_tokens: u16,
    /// Text around an input
    #[arg(long, value_name = "TEXT", default_value = "{text}")]
    template: String,
}

/// What can be read.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// A folder of Hugging Face's PEFT
    Peft,
    /// A file of ONNX Runtime
    OrtAdapter,
    /// An array of numpy
    Numpy,
    /// Looked at, and refused with the reason
    Gguf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Pooling {
    /// The mean of the text's rows
    Mean,
    /// The text's first row
    First,
    /// The text's last row
    Last,
}

/// Runs the verb.
pub fn run(arguments: Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let Arguments {
        format,
        source,
        base,
        output: folder,
        ..
    } = &arguments;
    ensure!(
        !same(source, folder),
        "{} is the source itself; name another folder with -o",
        folder.display()
    );
    if let Format::Gguf = format {
        refuse_gguf(source)?;
        bail!(
            "{} is no GGUF file, and of those none is taken",
            source.display()
        );
    }
    let target = target(base)?;
    let wishes = wishes(&arguments);
    let imported = match format {
        Format::Peft => import_peft(source, &target, &wishes),
        Format::OrtAdapter => import_ort_adapter(source, &target, &wishes),
        Format::Numpy | Format::Gguf => import_numpy(source, &target, &wishes),
    }?;
    imported.write(folder)?;
    imported.notes.iter().for_each(|note| output.note(note));
    let description = &imported.adapter.description;
    let (form, tokens) = match &description.form {
        Form::Embeddings { tokens, .. } => ("embeddings", tokens),
        Form::KeyValues { tokens, .. } => ("key-values", tokens),
    };
    output.say(format_args!(
        "wrote {}: {tokens} virtual tokens, {form}, head {}",
        folder.display(),
        description.head.kind.name()
    ));
    output.json(&json!({
        "adapter": lossy(folder), "method": description.method, "form": form, "tokens": tokens,
        "head": description.head.kind.name(), "labels": description.labels, "notes": imported.notes,
    }))?;
    Ok(ExitCode::SUCCESS)
}

/// Whether both lead to the same place.
fn same(one: &Path, other: &Path) -> bool {
    let place = |path: &Path| fs::canonicalize(path).ok();
    place(one).is_some_and(|one| place(other) == Some(one))
}

fn wishes(arguments: &Arguments) -> Wishes {
    let pooling = arguments.pooling.map(|pooling| match pooling {
        Pooling::Mean => "mean",
        Pooling::First => "first",
        Pooling::Last => "last",
    });
    let folders = [&arguments.source, &arguments.base];
    Wishes {
        labels: arguments.labels.clone(),
        pooling: pooling.map(str::to_owned),
        pooler: arguments.pooler.clone(),
        task_index: arguments.task_index,
        most_tokens: arguments.most_tokens,
        template: arguments.template.clone(),
        several_labels: arguments.multi_label,
        model_configs: folders.map(|folder| folder.join("config.json")).to_vec(),
    }
}

/// What the base folder is.
pub(super) fn target(folder: &Path) -> anyhow::Result<Target> {
    let base = Base::open(folder).with_context(|| folder.display().to_string())?;
    let description = base.description;
    let small = |number: usize| {
        u16::try_from(number)
            .with_context(|| format!("the base has a width of {number}, a bundle at most 65535"))
    };
    let layer = |kv_heads, head_dim| {
        Ok(Layer {
            kv_heads: small(kv_heads)?,
            head_dim: small(head_dim)?,
        })
    };
    let layers = description.layers.iter();
    let layers = layers.map(|one| layer(one.kv_heads, one.head_dim));
    let own = description.decoder_sites();
    let own = own.filter_map(|site| description.layers.get(site));
    let decoder_layers = own.map(|one| layer(one.kv_heads, one.head_dim));
    let id = |hex: &str| Id::from_hex(hex).context("the base's id is not hex");
    Ok(Target {
        kind: match description.kind {
            Kind::Encoder => BaseKind::Encoder,
            Kind::Decoder => BaseKind::Decoder,
            Kind::EncoderDecoder => BaseKind::EncoderDecoder,
        },
        hidden: small(description.hidden)?,
        embedding_width: small(description.embedding_width)?,
        layers: layers.collect::<anyhow::Result<_>>()?,
        decoder_layers: decoder_layers.collect::<anyhow::Result<_>>()?,
        writes: description.logits.is_some(),
        end_token: description.end_token,
        base_id: id(&description.base_id)?,
        tokenizer_id: id(&description.tokenizer_id)?,
    })
}
