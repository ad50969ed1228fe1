//! `preface doctor`: what this machine can do.

use std::{env::consts::ARCH, fs, process::ExitCode, thread};

#[cfg(feature = "host")]
use std::path::PathBuf;

use preface_runtime::Kernels;
#[cfg(feature = "host")]
use preface_trainer::engine::{Device, Library, cuda_libraries};
use serde_json::{Value, json};

use crate::output::Output;

/// Where NVIDIA's driver tells its version.
#[cfg(feature = "host")]
const DRIVER: &str = "/proc/driver/nvidia/version";

/// Say what this machine can do: processor, engine, ONNX Runtime.
#[derive(clap::Args)]
#[command(after_help = "\
Exit: 0 everything that this build can do works here; 1 something is missing, and what to do about it is said. That \
CUDA cannot start counts with --device cuda alone.

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
    let engines: &[&str] = match cfg!(feature = "plan") {
        true => &["executor", "plan"],
        false => &["executor"],
    };
    output.say(format_args!("engines      {}", engines.join(" ")));
    let Kernels {
        encoders,
        decoders,
        bytes: [layout, instructions],
    } = Kernels::here();
    output.say(format_args!(
        "kernels      {} for encoders",
        encoders.join(" ")
    ));
    output.say(format_args!(
        "             {} for decoders",
        decoders.join(" ")
    ));
    output.say(format_args!(
        "             {layout} by {instructions} for weights in i8a8"
    ));
    let (onnxruntime, works) = onnxruntime(&arguments, output);
    output.json(&json!({
        "architecture": ARCH,
        "processors": processors,
        "features": features,
        "engines": engines,
        "kernels": {
            "encoders": encoders,
            "decoders": decoders,
            "i8a8": {"layout": layout, "instructions": instructions},
        },
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
    match arguments.onnxruntime.load_on_cpu() {
        Ok(library) => {
            let info = library.info();
            let providers = library.providers();
            output.say(format_args!("onnxruntime  {info}"));
            output.say(format_args!("providers    {}", providers.join(" ")));
            let (cuda, works) = cuda(arguments, library, output);
            let found = json!({"loaded": true, "info": info, "providers": providers, "cuda": cuda});
            (found, works)
        }
        Err(error) => {
            output.say(format_args!("onnxruntime  {error}"));
            (json!({"loaded": false, "reason": error.to_string()}), false)
        }
    }
}

/// Says whether CUDA starts, and what of it is here.
#[cfg(feature = "host")]
fn cuda(arguments: &Arguments, library: Library, output: &Output) -> (Value, bool) {
    let driver = fs::read_to_string(DRIVER).ok();
    let driver = driver.as_deref().and_then(|text| text.lines().next());
    output.say(format_args!("driver       {}", driver.unwrap_or("none")));
    let packages = arguments.onnxruntime.packages();
    let files: Vec<PathBuf> = cuda_libraries(&packages)
        .into_iter()
        .flat_map(|library| library.files)
        .collect();
    let names = files.iter().filter_map(|file| file.file_name()?.to_str());
    let names: Vec<&str> = names.collect();
    let named = match names.is_empty() {
        true => "none in the Python environment".into(),
        false => names.join(" "),
    };
    output.say(format_args!("libraries    {named}"));
    let (device, asked) = match arguments.onnxruntime.device() {
        Device::Cuda(number) => (Device::Cuda(number), true),
        Device::Cpu | Device::Auto => (Device::Cuda(0), false),
    };
    let reason = library.on(device, &packages).err();
    let reason = reason.map(|error| error.to_string());
    output.say(format_args!(
        "cuda         {}",
        reason.as_deref().unwrap_or("works")
    ));
    let works = reason.is_none();
    let libraries: Vec<String> = files
        .iter()
        .map(|file| crate::output::lossy(file))
        .collect();
    let found = json!({"works": works, "reason": reason, "driver": driver, "libraries": libraries});
    (found, works || !asked)
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
