//! CPU time and memory of a training step, for `run.py` to set beside PyTorch with PEFT.
//!
//! Forward, gradients and AdamW on random token ids, 15 classes, a linear head. What no prefix reaches is computed once
//! before, as training does for every example; what that takes is printed beside the steps.

use std::{env, error::Error, fs, path::Path};

use preface_graph::{Base, FormKind};
use preface_trainer::{
    batch::{Batch, Layout},
    encode::{Encoded, Truth},
    engine::{Array, Library},
    form::{Form, Moves},
    heads::{Pooling, head},
    methods::{Sizes, stored},
    optimizer::{Group, Optimizer, Rule, clip},
    options::Layers,
    step::{Extent, Loss, Manner, Purpose, Reader, Reading, Step},
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};
use serde_json::json;

const CLASSES: usize = 15;

/// The value behind `--name`, or `otherwise`.
fn option(name: &str, otherwise: &str) -> String {
    let arguments: Vec<String> = env::args().collect();
    let at = arguments
        .iter()
        .position(|argument| *argument == format!("--{name}"));
    at.and_then(|at| arguments.get(at + 1).cloned())
        .unwrap_or(otherwise.into())
}

fn number(name: &str, otherwise: usize) -> Result<usize, Box<dyn Error>> {
    Ok(option(name, &otherwise.to_string()).parse()?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let library = Library::load(Path::new(&env::var("ORT_DYLIB_PATH")?))?;
    let base = Base::open(Path::new(&option("base", "out/base")))?;
    let (tokens, batch, sequence) = (
        number("tokens", 20)?,
        number("batch", 16)?,
        number("sequence", 64)?,
    );
    let (threads, steps, warm_up) = (
        number("threads", 1)?,
        number("steps", 10)?,
        number("warm-up", 2)?,
    );
    let form = form(&base, tokens)?;
    let (pooling, reading) = match option("pool", "mean").as_str() {
        "first" => (Pooling::First, Reading::One),
        _ => (Pooling::Mean, Reading::Mean),
    };
    let head = head("linear")?;
    let reader = Reader {
        head,
        size: head.size(CLASSES, 1, &base.description),
        loss: Loss::Softmax,
        reading,
        before: &[],
    };
    let sizes = Sizes::of(form.clone(), base.description.hidden);
    let extent = Extent {
        candidates: 1,
        cached: match form {
            Form::Embeddings { .. } | Form::KeyValues { first_layer: 0, .. } => 0,
            Form::KeyValues { .. } => usize::MAX,
        },
    };
    let mut step = Step::build(
        &base,
        stored(&form),
        &sizes,
        extent,
        Purpose::Training(reader, Manner::default()),
    )?;
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let mut uniform = || (random.next_u32() >> 8) as f32 / (1 << 24) as f32 - 0.5;
    let mut values: Vec<Vec<f32>> = step
        .parameters
        .iter()
        .map(|parameter| (0..parameter.elements()).map(|_| 0.1 * uniform()).collect())
        .collect();
    let mut rows: Vec<Encoded> = (0..batch)
        .map(|row| Encoded {
            truth: Truth::Class(row % CLASSES),
            ..Encoded::of_ids(
                (0..sequence)
                    .map(|_| 1000 + ((uniform() + 0.5) * 28000.0) as i64)
                    .collect(),
            )
        })
        .collect();
    let layout = Layout {
        base: &base.description,
        form: &form,
        pooling,
        class_weights: &[],
    };
    let lower_ms = match step.lower.take() {
        None => 0.0,
        Some(lower) => lower_rows(&base, &library, lower, layout, &mut rows, threads)?,
    };
    let mut session = library.session(&step.model, &base.folder, threads)?;
    let groups = step.parameters.iter().map(|parameter| Group {
        shape: parameter.shape.clone(),
        learning_rate: 1e-3,
        weight_decay: 0.0,
    });
    let mut optimizer = Optimizer::new(Rule::AdamW, groups.collect());
    let mut cpu_ms = Vec::new();
    for index in 0..warm_up + steps {
        let begun = cpu_time_ms()?;
        let batch = Batch::of(&[rows.iter().collect()], layout, &step);
        let parameters = step.feeds(&values);
        let outputs = session.run(&batch.with(&parameters))?;
        let mut gradients = outputs
            .into_iter()
            .skip(1)
            .map(Array::into_floats)
            .collect::<Result<Vec<_>, _>>()?;
        clip(&mut gradients, 1.0);
        optimizer.update(&mut values, &gradients, 1.0);
        if index >= warm_up {
            cpu_ms.push(cpu_time_ms()? - begun);
        }
    }
    println!(
        "{}",
        json!({"cpu_ms": cpu_ms, "lower_ms": lower_ms, "peak_rss_bytes": peak_rss_bytes()?})
    );
    Ok(())
}

fn form(base: &Base, tokens: usize) -> Result<Form, Box<dyn Error>> {
    let kind = match option("method", "prompt").as_str() {
        "prompt" => FormKind::Embeddings,
        _ => FormKind::KeyValues,
    };
    let (first, end) =
        Layers::parse(&option("layers", "all"))?.bounds(base.description.layers.len())?;
    Ok(match Form::of(kind, tokens, &base.description) {
        Form::KeyValues {
            tokens,
            layers,
            gated,
            ..
        } => Form::KeyValues {
            tokens,
            first_layer: first,
            layers: layers[first..end].to_vec(),
            gated,
            moves: Moves::Nothing,
        },
        rows => rows,
    })
}

/// Computes what no prefix reaches; returns the CPU time.
fn lower_rows(
    base: &Base,
    library: &Library,
    lower: preface_graph::onnx::ModelProto,
    layout: Layout,
    rows: &mut [Encoded],
    threads: usize,
) -> Result<f64, Box<dyn Error>> {
    let lower = Step::bare(lower);
    let mut session = library.session(&lower.model, &base.folder, threads)?;
    let batch = Batch::of(&[rows.iter().collect()], layout, &lower);
    session.run(&batch.with(&[]))?;
    let begun = cpu_time_ms()?;
    let outputs = session.run(&batch.with(&[]))?;
    let spent = cpu_time_ms()? - begun;
    for output in outputs {
        let values = output.into_floats()?;
        let parts = values.chunks(values.len() / rows.len());
        rows.iter_mut()
            .zip(parts)
            .for_each(|(row, part)| row.lower.push(part.to_vec()));
    }
    Ok(spent)
}

/// CPU time of all threads so far.
fn cpu_time_ms() -> Result<f64, Box<dyn Error>> {
    let mut nanoseconds = 0.0;
    for task in fs::read_dir("/proc/self/task")? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        nanoseconds += text
            .split_whitespace()
            .next()
            .ok_or("an empty schedstat")?
            .parse::<f64>()?;
    }
    Ok(nanoseconds / 1e6)
}

fn peak_rss_bytes() -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? * 1024)
}
