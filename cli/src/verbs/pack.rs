//! `preface pack`: an adapter becomes a signed bundle.

mod smallest;

use std::{env, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Args, ValueEnum, value_parser};
use preface_bundle::{Dtype, unix_seconds};
use preface_packager::{
    Access, Adapter, Encoding, Options, Packed, pack, pack_unsigned, write_file,
};
use serde_json::json;

use self::smallest::Measured;
use super::verify::ids_of;
use crate::{
    keys::PassphraseFrom,
    leak::{self, Reading},
    output::Output,
};

/// Quantise, compress and sign an adapter
#[derive(Args)]
#[command(after_help = "\
The bundle is verified before it is written. The same adapter, options and key give the same \
bytes; its date is SOURCE_DATE_EPOCH, or none.

With --max-loss, prompt and head are tried in i4, i8, f16 and f32 with every kind of scales, the smallest file first. Each \
is signed with a key that is thrown away, and verified and run on the base image; a base folder is compiled for that. The \
first that loses no more is taken, and the manifest carries the figures.

With --base, the tokens nearest to each vector of the prompt are shown, and a warning says what they spell of the \
training file. Keys and values have no such reading.

Exit: 0 written; 2 not written; 21 others can read the secret key or the passphrase.

Example:
  preface pack out/intent --base minilm --task intent --sequence 1 --key keys/release.key -o intent.preface
  preface pack out/intent --base minilm --task intent --sequence 1 --unsigned -o intent.unsigned
  preface pack out/intent --base out/base --task intent --sequence 1 --key keys/release.key -o intent.preface \\
               --max-loss 0.3 --dev dev.jsonl --train train.jsonl")]
pub struct Arguments {
    /// The adapter folder
    adapter: PathBuf,
    /// The base, a folder or an image, that the adapter must have been trained with
    #[arg(long, value_name = "BASE")]
    base: Option<PathBuf>,
    /// What the bundle makes the base do: lower-case letters, digits, . _ -
    #[arg(long, value_name = "ID")]
    task: String,
    /// Number of this release of the task; a device takes only larger ones
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
    sequence: u64,
    /// Number format of the prompt
    #[arg(long, value_enum, default_value_t = Format::I8)]
    dtype: Format,
    /// Number format of the head [default: that of the prompt]
    #[arg(long, value_enum)]
    head_dtype: Option<Format>,
    #[command(flatten)]
    smallest: smallest::Arguments,
    #[command(flatten)]
    leak: leak::Arguments,
    /// A secret key that signs; give it once for every signature
    #[arg(long, value_name = "FILE", required_unless_present = "unsigned")]
    key: Vec<PathBuf>,
    /// Leave the signatures out, to be made elsewhere: see preface statement, sign and attach
    #[arg(long, conflicts_with = "key")]
    unsigned: bool,
    #[command(flatten)]
    passphrase: PassphraseFrom,
    /// The bundle to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// The fleet that the bundle is for
    #[arg(long, value_name = "NAME", default_value = "default")]
    namespace: String,
    /// Version of the trust store that the bundle is released under
    #[arg(long, value_name = "N", default_value_t = 1)]
    trust_version: u32,
    /// Compared with min-security of trust stores
    #[arg(long, value_name = "N", default_value_t = 0)]
    security_version: u32,
    /// When the bundle expires, like 2030-01-31T00:00:00Z
    #[arg(long, value_name = "DATE", value_parser = date)]
    not_after: Option<u64>,
}

/// Number formats on the command line.
#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// Bytes with a scale for each row
    I8,
    /// Half bytes with a scale for every 32
    I4,
    /// IEEE 754 half precision
    F16,
    /// The upper half of single precision
    Bf16,
    /// Single precision
    F32,
}

impl From<Format> for Dtype {
    fn from(format: Format) -> Self {
        match format {
            Format::I8 => Self::I8,
            Format::I4 => Self::I4,
            Format::F16 => Self::F16,
            Format::Bf16 => Self::Bf16,
            Format::F32 => Self::F32,
        }
    }
}

fn date(text: &str) -> Result<u64, String> {
    unix_seconds(text).ok_or_else(|| "not a date like 2030-01-31T00:00:00Z".to_owned())
}

/// Runs the verb.
pub fn run(arguments: Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let keys = arguments.passphrase.keys(&arguments.key)?;
    let mut adapter = Adapter::open(&arguments.adapter)?;
    if let Some(base) = &arguments.base {
        let (base_id, tokenizer_id) = ids_of(base).with_context(|| base.display().to_string())?;
        adapter.check_base(base_id, tokenizer_id)?;
    }
    let (base, dtype) = (arguments.base.as_deref(), arguments.dtype.into());
    let reading = base.map(|base| arguments.leak.reading(&adapter, base, output));
    let reading = reading.transpose()?;
    let mut options = Options {
        encoding: Encoding {
            head: arguments.head_dtype.map_or(dtype, Dtype::from),
            ..Encoding::of(dtype)
        },
        namespace: arguments.namespace,
        trust_version: arguments.trust_version,
        security_version: arguments.security_version,
        created: created()?,
        not_after: arguments.not_after.unwrap_or(0),
        ..Options::new(&arguments.task, arguments.sequence)
    };
    let smallest =
        arguments
            .smallest
            .smallest(&adapter, &options, base, &arguments.output, output)?;
    let measured = smallest.map(|smallest| {
        (adapter, options.encoding) = (smallest.adapter, smallest.encoding);
        smallest.measured
    });
    let packed = match arguments.unsigned {
        true => pack_unsigned(&adapter, &options)?,
        false => pack(&adapter, &options, &keys)?,
    };
    if let Some(reading) = &reading {
        reading.show(output);
    }
    write_file(&arguments.output, &packed.bytes, Access::Everyone)?;
    report(
        &packed,
        options.encoding,
        measured.as_ref(),
        reading.as_ref(),
        keys.len(),
        &arguments.output.display().to_string(),
        output,
    )?;
    Ok(ExitCode::SUCCESS)
}

/// The date of the bundle: SOURCE_DATE_EPOCH, or none.
fn created() -> anyhow::Result<u64> {
    match env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text
            .parse()
            .context("SOURCE_DATE_EPOCH is not a number of seconds"),
        Err(_) => Ok(0),
    }
}

fn report(
    packed: &Packed,
    encoding: Encoding,
    measured: Option<&Measured>,
    reading: Option<&Reading>,
    signatures: usize,
    path: &str,
    output: &Output,
) -> anyhow::Result<()> {
    let (bytes, percent) = (packed.bytes.len(), 100.0 * packed.loss);
    let [prompt, head] = [encoding.prompt, encoding.head].map(Dtype::name);
    let formats = match prompt == head {
        true => prompt.to_owned(),
        false => format!("prompt {prompt}, head {head}"),
    };
    if let Some(measured) = measured {
        measured.show(output);
    }
    output.say(format_args!(
        "wrote {path}: {bytes} bytes, {formats} with a relative error of {percent:.3} %, bundle {}",
        packed.bundle_id
    ));
    if signatures == 0 {
        output.note("it has no signature: nothing accepts it before preface sign or preface attach gave it one");
    }
    let tensors: Vec<_> = packed
        .tensors
        .iter()
        .map(|tensor| {
            json!({
                "role": tensor.spec.role.name(), "dtype": tensor.spec.dtype.name(),
                "dims": tensor.spec.dims(), "bytes": tensor.spec.bytes, "loss": tensor.loss,
            })
        })
        .collect();
    output.json(&json!({
        "bytes": bytes,
        "bundle_id": packed.bundle_id.to_string(),
        "dtype": prompt,
        "head_dtype": head,
        "measured": measured,
        "reading": reading,
        "loss": packed.loss,
        "codec": packed.codec.name(),
        "signatures": signatures,
        "tensors": tensors,
    }))
}
