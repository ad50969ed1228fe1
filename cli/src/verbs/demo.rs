//! `preface demo`: the whole way on the built-in tasks.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use preface_bundle::{Frame, TrustStore};
use preface_graph::Base;
use preface_packager::{
    Access, Adapter as Packable, Protection, SecretKey, TrustChange, new_trust, pack, write_file,
    write_trust,
};
use preface_runtime::{
    Answer, Options as SessionOptions, Overlength as Excess, Session, TaskHandle, Trust, Weights,
    bundle, unix_now,
};
use preface_trainer::{
    adapter::Adapter,
    data::{Dataset, Example},
    encode::Overlength,
    engine::Library,
    options::{Candidate, Options},
    training,
};
use serde::Serialize;

use super::{
    compile,
    eval::{Measuring, on_onnxruntime},
    train::{Bar, note_test},
};
use crate::{onnxruntime::OnnxRuntime, output::Output};

/// Train, pack, sign, verify and run two tasks on one frozen base model.
#[derive(clap::Args)]
#[command(after_help = "\
What is there from an earlier run is used again; --fresh begins anew.

Example:
  preface demo --base out/base --out out/demo")]
pub struct Arguments {
    /// Base folder.
    #[arg(long, value_name = "BASE", default_value = "out/base")]
    base: PathBuf,
    /// Folder for everything that the demo makes.
    #[arg(long, value_name = "DIR", default_value = "out/demo")]
    out: PathBuf,
    /// Train and compile even where the results are there.
    #[arg(long)]
    fresh: bool,
    #[command(flatten)]
    onnxruntime: OnnxRuntime,
}

/// A built-in task and how its prompt is learned.
struct Task {
    name: &'static str,
    method: &'static str,
    tokens: usize,
    epochs: usize,
    learning_rate: f32,
    /// Train, dev and test examples.
    data: [&'static str; 3],
}

const TASKS: [Task; 2] = [
    Task {
        name: "home_command",
        method: "prompt-tuning",
        tokens: 8,
        epochs: 12,
        learning_rate: 3e-2,
        data: [
            include_str!("../../../demo/tasks/home_command/train.jsonl"),
            include_str!("../../../demo/tasks/home_command/dev.jsonl"),
            include_str!("../../../demo/tasks/home_command/test.jsonl"),
        ],
    },
    Task {
        name: "message_urgency",
        method: "prefix-tuning",
        tokens: 1,
        epochs: 12,
        learning_rate: 3e-2,
        data: [
            include_str!("../../../demo/tasks/message_urgency/train.jsonl"),
            include_str!("../../../demo/tasks/message_urgency/dev.jsonl"),
            include_str!("../../../demo/tasks/message_urgency/test.jsonl"),
        ],
    },
];

/// One line of the table at the end.
#[derive(Serialize)]
struct Row {
    task: &'static str,
    method: &'static str,
    accuracy_f32: f64,
    accuracy_bundle: f64,
    majority: f64,
    bundle_bytes: usize,
    swap_us: f64,
    latency_ms: f64,
}

/// A trained, packed and verified task.
struct Packed {
    test: Dataset,
    accuracy: f64,
    bytes: usize,
    path: PathBuf,
}

/// Goes the whole way.
pub fn run(arguments: Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let base = Base::open(&arguments.base)?;
    let library = arguments.onnxruntime.load()?;
    let stage = Stage {
        arguments: &arguments,
        base: &base,
        library: &library,
        output,
    };
    let key = stage.key()?;
    let trust = stage.trust(&key)?;
    let packed = TASKS
        .iter()
        .map(|task| stage.pack(task, &key, &trust))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let image = stage.image()?;
    let rows = stage.run(&image, &packed)?;
    print(&rows, output)?;
    output.note(format_args!(
        "{:.0} s; everything is in {}",
        begun.elapsed().as_secs_f64(),
        arguments.out.display()
    ));
    Ok(ExitCode::SUCCESS)
}

struct Stage<'a> {
    arguments: &'a Arguments,
    base: &'a Base,
    library: &'a Library,
    output: &'a Output,
}

impl Stage<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.arguments.out.join(name)
    }

    /// The key that signs, made where it is missing.
    fn key(&self) -> anyhow::Result<SecretKey> {
        let folder = self.path("keys");
        let path = folder.join("demo.key");
        if path.exists() {
            return Ok(SecretKey::open(&path)?);
        }
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let key = SecretKey::generate()?;
        key.save(&folder, "demo", Protection::ModeOnly)?;
        self.output
            .note(format_args!("made the signing key {}", path.display()));
        Ok(key)
    }

    /// The text of the trust store that trusts the key.
    fn trust(&self, key: &SecretKey) -> anyhow::Result<String> {
        let path = self.path("trust");
        let line = key.public().to_string();
        if let Ok(text) = bundle::read_trust(&path)
            && text.contains(&line)
        {
            return Ok(text);
        }
        let content = TrustChange {
            keys: vec![line],
            threshold: Some(1),
            ..TrustChange::default()
        };
        let text = new_trust("default", &content)?;
        write_trust(&path, &text)?;
        Ok(text)
    }

    /// Writes a task's data where people can read them, and reads them.
    fn data(&self, task: &Task) -> anyhow::Result<[Dataset; 3]> {
        let folder = self.path("data").join(task.name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let read = |(name, text): (&str, &str)| {
            let path = folder.join(name);
            write_file(&path, text.as_bytes(), Access::Everyone)?;
            Ok::<_, anyhow::Error>(Dataset::read(&path)?)
        };
        let [train, dev, test] = task.data;
        Ok([
            read(("train.jsonl", train))?,
            read(("dev.jsonl", dev))?,
            read(("test.jsonl", test))?,
        ])
    }

    fn pack(&self, task: &Task, key: &SecretKey, trust: &str) -> anyhow::Result<Packed> {
        let [train, dev, test] = self.data(task)?;
        let folder = self.path(&format!("{}.adapter", task.name));
        let mut adapter = self.adapter(task, &folder, &train, &dev)?;
        let measuring = Measuring {
            overlength: Overlength::Refuse,
            out_of_scope: None,
            threads: self.arguments.onnxruntime.threads(),
        };
        let figures = on_onnxruntime(
            &adapter,
            self.base,
            self.library,
            &test,
            &measuring,
            self.output,
        )?;
        note_test(&mut adapter, &figures.evaluation);
        adapter.write(&folder)?;
        let options = preface_packager::Options::new(task.name, 1);
        let packed = pack(
            &Packable::open(&folder)?,
            &options,
            std::slice::from_ref(key),
        )?;
        let path = self.path(&format!("{}.preface", task.name));
        write_file(&path, &packed.bytes, Access::Everyone)?;
        let store = TrustStore::parse(trust)?;
        Frame::parse(&packed.bytes)?.authenticate(&store)?;
        self.output.note(format_args!(
            "{}: packed, signed and verified: {} bytes",
            path.display(),
            packed.bytes.len()
        ));
        Ok(Packed {
            test,
            accuracy: figures.evaluation.score(),
            bytes: packed.bytes.len(),
            path,
        })
    }

    /// The trained adapter: that of an earlier run where it was trained for this base, on these data, in this way.
    fn adapter(
        &self,
        task: &Task,
        folder: &Path,
        train: &Dataset,
        dev: &Dataset,
    ) -> anyhow::Result<Adapter> {
        let candidate = Candidate {
            learning_rate: Some(task.learning_rate),
            ..Candidate::default()
        };
        let options = Options {
            method: task.method.into(),
            tokens: task.tokens,
            epochs: task.epochs,
            patience: None,
            candidates: vec![candidate],
            threads: self.arguments.onnxruntime.threads(),
            ..Options::default()
        };
        if let Ok(adapter) = Adapter::read(folder)
            && !self.arguments.fresh
            && is_result_of(&adapter, &options, self.base, [train, dev])
        {
            self.output
                .note(format_args!("{}: trained already", folder.display()));
            return Ok(adapter);
        }
        let label = format!("training {}", task.name);
        let outcomes = training::train(
            self.base,
            self.library,
            train,
            dev,
            &options,
            None,
            &mut Bar::new(self.output, &label),
        )?;
        let outcome = outcomes
            .into_iter()
            .next()
            .context("training gave nothing")?;
        self.output.note(format_args!(
            "{}: trained in {:.0} s",
            folder.display(),
            outcome.seconds
        ));
        Ok(outcome.adapter)
    }

    /// The base image, compiled where it is missing or not of this base and machine.
    fn image(&self) -> anyhow::Result<PathBuf> {
        let path = self.path("base.base");
        let fits = crate::image::open(&path).is_ok_and(|image| {
            let description = image.description();
            image.fits().is_ok() && description.base_id.to_string() == self.base.description.base_id
        });
        if self.arguments.fresh || !fits {
            let choice = (compile::Choice::Auto, Weights::default());
            compile::compile(self.base, &path, choice, self.output)?;
        }
        Ok(path)
    }

    /// Runs the test sentences of all tasks in turn, so that the task is swapped before every sentence.
    fn run(&self, image: &Path, packed: &[Packed]) -> anyhow::Result<Vec<Row>> {
        let image = crate::image::open(image)?;
        let options = SessionOptions {
            max_tokens: None,
            overlength: Excess::Refuse,
            ..SessionOptions::default()
        };
        let mut session = Session::open(&image, options)?;
        let trust = Trust::read(&self.path("trust"))?;
        let load = |packed: &Packed| session.load_file(&packed.path, &trust, unix_now());
        let handles = packed
            .iter()
            .map(load)
            .collect::<Result<Vec<TaskHandle>, _>>()?;
        let mut tallies: Vec<Tally> = packed.iter().map(|_| Tally::default()).collect();
        let longest = packed
            .iter()
            .map(|packed| packed.test.examples.len())
            .max()
            .unwrap_or(0);
        let bar = self
            .output
            .progress(longest as u64, "running on the runtime");
        for index in 0..longest {
            for ((packed, &handle), tally) in packed.iter().zip(&handles).zip(&mut tallies) {
                if let Some(example) = packed.test.examples.get(index) {
                    tally.sentence(&mut session, handle, example)?;
                }
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        let rows = TASKS.iter().zip(packed).zip(tallies);
        rows.map(|((task, packed), tally)| tally.row(task, packed))
            .collect()
    }
}

fn is_result_of(adapter: &Adapter, options: &Options, base: &Base, data: [&Dataset; 2]) -> bool {
    let (card, receipt) = (&adapter.card, &adapter.card.receipt);
    let [train, dev] = data;
    let same_way = card.method == options.method
        && card.form.tokens() == options.tokens
        && receipt.epochs == options.epochs
        && receipt.batch == options.batch
        && receipt.version == env!("CARGO_PKG_VERSION")
        && options.candidates.iter().any(|candidate| {
            receipt.seed == candidate.seed
                && receipt.head_learning_rate == candidate.head_learning_rate
                && candidate.learning_rate == Some(receipt.learning_rate)
        });
    let same_data = receipt.data_sha256 == train.sha256 && receipt.dev_sha256 == dev.sha256;
    same_way && same_data && adapter.fits(&base.description, Path::new("")).is_ok()
}

/// What the runtime did with one task's sentences.
#[derive(Default)]
struct Tally {
    right: usize,
    swaps: Vec<Duration>,
    runs: Vec<Duration>,
}

impl Tally {
    fn sentence(
        &mut self,
        session: &mut Session,
        task: TaskHandle,
        example: &Example,
    ) -> anyhow::Result<()> {
        let begun = Instant::now();
        session.activate(task)?;
        self.swaps.push(begun.elapsed());
        let begun = Instant::now();
        let answer = session.answer(&example.text, None)?;
        self.runs.push(begun.elapsed());
        let Answer::Label { best, .. } = answer else {
            bail!("a task of the demo does not answer with one label");
        };
        self.right += usize::from(example.target.names() == [best.label]);
        Ok(())
    }

    fn row(self, task: &Task, packed: &Packed) -> anyhow::Result<Row> {
        ensure!(
            !self.runs.is_empty(),
            "task {} has no test sentence",
            task.name
        );
        let examples = &packed.test.examples;
        let count = |label: &String| {
            examples
                .iter()
                .filter(|example| example.target.names() == [label.as_str()])
                .count()
        };
        let most = packed.test.labels().iter().map(count).max().unwrap_or(0);
        Ok(Row {
            task: task.name,
            method: task.method,
            accuracy_f32: packed.accuracy,
            accuracy_bundle: self.right as f64 / examples.len() as f64,
            majority: most as f64 / examples.len() as f64,
            bundle_bytes: packed.bytes,
            swap_us: median(self.swaps).as_secs_f64() * 1e6,
            latency_ms: median(self.runs).as_secs_f64() * 1e3,
        })
    }
}

fn median(mut durations: Vec<Duration>) -> Duration {
    durations.sort_unstable();
    durations[durations.len() / 2]
}

fn print(rows: &[Row], output: &Output) -> anyhow::Result<()> {
    let line = |cells: [&str; 8]| {
        let [task, method, f32, bundle, majority, bytes, swap, latency] = cells;
        output.say(format_args!(
            "{task:<16} {method:<14} {f32:>8} {bundle:>8} {majority:>9} {bytes:>7} {swap:>9} {latency:>11}"
        ));
    };
    line([
        "task",
        "method",
        "f32, ort",
        "bundle",
        "majority",
        "bytes",
        "swap, us",
        "latency, ms",
    ]);
    for row in rows {
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        line([
            row.task,
            row.method,
            &percent(row.accuracy_f32),
            &percent(row.accuracy_bundle),
            &percent(row.majority),
            &row.bundle_bytes.to_string(),
            &format!("{:.2}", row.swap_us),
            &format!("{:.2}", row.latency_ms),
        ]);
    }
    output.json(&rows)
}
