//! `preface doctor`: what this machine can do.

use std::{env::consts::ARCH, fs, process::ExitCode, thread};

use serde_json::{Value, json};

use crate::output::Output;

/// Say what this machine can do: processor, engine, ONNX Runtime.
#[derive(clap::Args)]
#[command(after_help = "\
Exit: 0 everything that this build can do works here; 1 something is missing, and what to do about it is said.

Example:
  preface doctor")]
pub struct Arguments {
    #[cfg(feature = "host")]
    #[command(flatten)]
    onnxruntime: crate::onnxruntime::OnnxRuntime,
}

/// Looks and reports.
pub fn run(arguments: Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let features = processor_features();
    output.say(format_args!("processor    {ARCH}, {processors} at hand"));
    output.say(format_args!("features     {}", features.join(" ")));
    let engine = if cfg!(feature = "plan") {
        "plan"
    } else {
        "none"
    };
    output.say(format_args!("engine       {engine}"));
    let (onnxruntime, works) = onnxruntime(&arguments, output);
    output.json(&json!({
        "architecture": ARCH,
        "processors": processors,
        "features": features,
        "engine": engine,
        "onnxruntime": onnxruntime,
    }))?;
    Ok(if works {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

#[cfg(feature = "host")]
fn onnxruntime(arguments: &Arguments, output: &Output) -> (Value, bool) {
    match arguments.onnxruntime.load() {
        Ok(library) => {
            let info = library.info();
            output.say(format_args!("onnxruntime  {info}"));
            (json!({"loaded": true, "info": info}), true)
        }
        Err(error) => {
            output.say(format_args!("onnxruntime  {error}"));
            (json!({"loaded": false, "reason": error.to_string()}), false)
        }
    }
}

#[cfg(not(feature = "host"))]
fn onnxruntime(_: &Arguments, _: &Output) -> (Value, bool) {
    (Value::Null, true)
}

/// Instruction sets that kernels are chosen by, as `/proc/cpuinfo` names them.
fn processor_features() -> Vec<String> {
    const KNOWN: [&str; 12] = [
        "asimd",
        "asimddp",
        "asimdhp",
        "avx",
        "avx2",
        "avx512_vnni",
        "avx512f",
        "f16c",
        "fma",
        "i8mm",
        "sve",
        "sve2",
    ];
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text
        .lines()
        .find(|line| line.starts_with("flags") || line.starts_with("Features"));
    let words = line.unwrap_or_default().split_ascii_whitespace();
    words
        .filter(|word| KNOWN.contains(word))
        .map(str::to_owned)
        .collect()
}
