//! `preface bench`: what running tasks on a base image costs here.

mod other;
mod report;

use std::{
    fs,
    hint::black_box,
    io::{Read, stdin},
    mem,
    path::PathBuf,
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context, ensure};
use clap::builder::RangedU64ValueParser;
use preface_bundle::{AnswerKind, Inputs};
use preface_runtime::{
    Encoded, Error, Part, Request, Sampling, Session, TaskHandle, TokenizerUse, Trust, unix_now,
};
use rustix::time::{ClockId, clock_gettime};

use self::{
    other::{Other, READY},
    report::{Report, percentiles, say},
};
use crate::{
    allocations,
    memory::Memory,
    output::Output,
    tasks::{Files, Tasks, Text, count, name},
};

/// Processes started to take the median cold start of.
const COLD_STARTS: usize = 5;
const WARM_UPS: usize = 3;
/// Bundles loaded to take the median of.
const LOADS: usize = 21;
const SWAPS: u32 = 100_000;

/// Measure latency, memory, cold start, loading and swapping.
#[derive(clap::Args)]
#[command(mut_arg("store", |store| store.hide(true)))]
#[command(after_help = "\
A run goes from token ids to a label; text_latency_ms adds the tokenizer. Cold start is the median over fresh processes, \
from starting the process to its first answer, with the image in the page cache. With --generate, \
tokens_per_second is that of generated tokens, of --together texts at once, else of tokens that are read. Memory is read from \
/proc/self/smaps_rollup after the runs, while a second process has the image open: only then does the kernel call its \
pages shared.

Example:
  preface bench --base minilm.base --bundle intents.preface --trust trust.txt --tokens 16")]
pub struct Arguments {
    #[command(flatten)]
    files: Files,
    /// Texts to run, one a line, as `preface run` reads them.
    #[arg(long, value_name = "FILE", conflicts_with = "tokens")]
    text: Option<PathBuf>,
    /// Length of a made-up text, special tokens included.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = count(1_000_000))]
    tokens: usize,
    /// Run from token ids alone: the tokenizer is never read, unless the task generates text or its labels speak for
    /// themselves.
    #[arg(long, conflicts_with = "text")]
    ids: bool,
    /// How many runs are timed.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = count(1_000_000))]
    runs: usize,
    /// Time the tokens of generated texts but for the first of each, each text of at most N tokens, 2 or more; takes a
    /// task that generates.
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(2..=1_000_000))]
    generate: Option<usize>,
    /// Processes that have the image open while memory is read, this one included.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = count(1000))]
    processes: usize,
    /// Answer once, say so, and wait until standard input closes.
    #[arg(long, hide = true)]
    hold: bool,
}

/// Measures everything and prints it.
pub fn run(arguments: Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    ensure!(
        arguments.files.store.is_none(),
        "bench measures bundles, not a store; give --bundle"
    );
    let tasks = arguments.files.open(arguments.tokenizer())?;
    if !arguments.hold {
        tasks.note_memory(output);
    }
    let Tasks {
        image,
        mut session,
        handles,
        ..
    } = tasks;
    let &first = handles.first().context("no bundle is given")?;
    session.activate(first)?;
    let plan = session.plan(first);
    let generates = plan.is_some_and(|plan| plan.kind == AnswerKind::Text);
    if arguments.generate.is_some() && !generates {
        let task = name(&session, first).to_owned();
        return Err(Error::NoText { task }.into());
    }
    let texts = arguments.texts(&session, plan.map_or(Inputs::One, |plan| plan.inputs))?;
    let mut bench = Bench {
        session,
        texts,
        runs: arguments.runs,
    };
    if arguments.hold {
        return bench.hold(output);
    }
    bench.warm_up()?;
    let (from_tokens, from_text) = bench.runs()?;
    let together = arguments.files.together;
    let generated = arguments.generate;
    let generated = generated.map(|most| bench.generate(first, most, together));
    let generated = generated.transpose()?;
    let swap_us = bench.swap(&handles)?;
    let load_us = bench.load(&arguments.files)?;
    let cold_start_ms = match arguments.cold_start_ms() {
        Ok(time_ms) => Some(time_ms),
        Err(error) => {
            output.say(format_args!("note: no cold start was measured: {error:#}"));
            None
        }
    };
    let others = (1..arguments.processes).map(|_| Other::start());
    let others = others.collect::<anyhow::Result<Vec<_>>>()?;
    let memory = Memory::of_process().context("cannot read this process's memory")?;
    let mapped = Memory::of_file(image.path()).context("cannot read the image's memory")?;
    others.into_iter().try_for_each(Other::end)?;
    let tokens = bench.mean_tokens();
    let allocations_per_run = from_tokens.allocations();
    let allocations_per_text = from_text.as_ref().map(Cost::allocations);
    let latency_ms = percentiles(from_tokens.times_ms);
    let cpu_ms = percentiles(from_tokens.cpu_ms);
    let report = Report {
        engine: bench.session.engine().to_string(),
        weights: image.weights(),
        tokens,
        tokens_per_second: generated.as_ref().map_or_else(
            || tokens * 1e3 / latency_ms.p50,
            |generated| generated.tokens_per_second,
        ),
        cpu_ms_per_token: generated.map(|generated| generated.cpu_ms_per_token),
        latency_ms,
        cpu_ms,
        text_latency_ms: from_text.map(|cost| percentiles(cost.times_ms)),
        allocations_per_run,
        allocations_per_text,
        cold_start_ms,
        load_us,
        swap_us,
        arena_bytes: bench.session.arena_bytes(),
        ceiling_bytes: bench.session.ceiling_bytes(),
        private_bytes: memory.private_bytes,
        shared_bytes: memory.shared_bytes,
        processes: arguments.processes,
        image_bytes: image.len_bytes(),
        image: mapped,
    };
    say(&report, output);
    output.json(&report)?;
    Ok(ExitCode::SUCCESS)
}

impl Arguments {
    fn tokenizer(&self) -> TokenizerUse {
        match self.ids {
            true => TokenizerUse::WithFirstText,
            false => TokenizerUse::AtOpen,
        }
    }

    /// The texts of the file, or one that has the wanted length.
    fn texts(&self, session: &Session, inputs: Inputs) -> anyhow::Result<Vec<Sample>> {
        if self.ids {
            let ids = vec![session.description().placeholder; self.tokens];
            return Ok(vec![Sample {
                text: None,
                encoded: Encoded::of_ids(&ids),
            }]);
        }
        let Some(path) = &self.text else {
            return Ok(vec![made_up(session, self.tokens, inputs)?]);
        };
        let content =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let lines = (1..).zip(content.lines());
        let lines = lines.filter(|(_, line)| !line.trim().is_empty());
        let samples = lines.map(|(number, line)| {
            let text = Text::of_line(line, inputs);
            let sample = text.and_then(|text| Sample::of(session, text));
            sample.with_context(|| format!("{}, line {number}", path.display()))
        });
        let samples: Vec<Sample> = samples.collect::<anyhow::Result<_>>()?;
        ensure!(!samples.is_empty(), "{} has no text", path.display());
        Ok(samples)
    }

    fn cold_start_ms(&self) -> anyhow::Result<f64> {
        let mut times = Vec::new();
        for _ in 0..COLD_STARTS {
            let start = Instant::now();
            let other = Other::start()?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
            other.end()?;
        }
        Ok(percentiles(times).p50)
    }
}

/// A text, or a pair of them, with its tokens.
struct Sample {
    /// None where only its tokens are made up.
    text: Option<Text>,
    encoded: Encoded,
}

impl Sample {
    /// Answers it with the active task, from the text where there is one.
    fn ask(&self, session: &mut Session) -> Result<(), Error> {
        let answer = match &self.text {
            Some(text) => text.ask(session)?,
            None => session.answer_encoded(&self.encoded)?,
        };
        black_box(answer);
        Ok(())
    }

    fn of(session: &Session, text: Text) -> anyhow::Result<Self> {
        let encoded = session.encode(&text.first, text.second.as_deref())?;
        Ok(Self {
            text: Some(text),
            encoded,
        })
    }
}

/// A text of `tokens` tokens: a word said as often as that takes.
fn made_up(session: &Session, tokens: usize, inputs: Inputs) -> anyhow::Result<Sample> {
    for words in 1..=tokens {
        let text = Text {
            first: vec!["light"; words].join(" "),
            second: (inputs == Inputs::Pair).then(|| "light".to_owned()),
        };
        let sample = Sample::of(session, text)?;
        if sample.encoded.len() >= tokens {
            return Ok(sample);
        }
    }
    anyhow::bail!("no text has {tokens} tokens")
}

/// What runs of one kind cost.
struct Cost {
    times_ms: Vec<f64>,
    cpu_ms: Vec<f64>,
    allocations: u64,
}

impl Cost {
    /// Room for `runs` runs, so that measuring allocates nothing.
    fn of(runs: usize) -> Self {
        Self {
            times_ms: Vec::with_capacity(runs),
            cpu_ms: Vec::with_capacity(runs),
            allocations: 0,
        }
    }

    fn add(&mut self, run: impl FnOnce() -> Result<(), Error>) -> anyhow::Result<()> {
        let (start, cpu_ms) = (Instant::now(), cpu_time_ms());
        let before = allocations::calls();
        run()?;
        self.allocations += allocations::calls() - before;
        self.cpu_ms.push(cpu_time_ms() - cpu_ms);
        self.times_ms.push(start.elapsed().as_secs_f64() * 1e3);
        Ok(())
    }

    fn allocations(&self) -> f64 {
        self.allocations as f64 / self.times_ms.len() as f64
    }
}

/// What a generated token takes.
struct Generated {
    tokens_per_second: f64,
    cpu_ms_per_token: f64,
}

/// Processor time of this process so far.
fn cpu_time_ms() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

struct Bench {
    session: Session,
    texts: Vec<Sample>,
    runs: usize,
}

impl Bench {
    fn mean_tokens(&self) -> f64 {
        let tokens: usize = self.texts.iter().map(|sample| sample.encoded.len()).sum();
        tokens as f64 / self.texts.len() as f64
    }

    fn warm_up(&mut self) -> anyhow::Result<()> {
        for sample in self
            .texts
            .iter()
            .cycle()
            .take(WARM_UPS.max(self.texts.len()))
        {
            sample.ask(&mut self.session)?;
        }
        Ok(())
    }

    /// Runs from token ids and runs from text, one of each in turn.
    fn runs(&mut self) -> anyhow::Result<(Cost, Option<Cost>)> {
        let (mut from_tokens, mut from_text) = (Cost::of(self.runs), Cost::of(self.runs));
        for sample in self.texts.iter().cycle().take(self.runs) {
            from_tokens.add(|| {
                let answer = self.session.answer_encoded(&sample.encoded)?;
                black_box(answer);
                Ok(())
            })?;
            if sample.text.is_some() {
                from_text.add(|| sample.ask(&mut self.session))?;
            }
        }
        let any = !from_text.times_ms.is_empty();
        Ok((from_tokens, any.then_some(from_text)))
    }

    /// Times the tokens of `together` texts at once, each of at most `most` generated tokens, but for the first of each:
    /// the median over the runs.
    fn generate(
        &mut self,
        task: TaskHandle,
        most: usize,
        together: usize,
    ) -> anyhow::Result<Generated> {
        let (mut times_s, mut cpu_ms) = (Vec::new(), Vec::new());
        self.session.at_most(Some(most))?;
        for run in 0..self.runs {
            let samples = self.texts.iter().cycle().skip(run).take(together);
            let requests = samples.map(|sample| Request {
                task,
                text: &sample.encoded,
                sampling: Sampling::default(),
            });
            let requests: Vec<_> = requests.collect();
            let now = || (Instant::now(), cpu_time_ms());
            let mut begun = vec![false; together];
            let (mut timed, mut first, mut last) = (0, now(), now());
            self.session.generate_all(&requests, |text, part| {
                if !matches!(part, Part::Token(_)) {
                    return;
                }
                match mem::replace(&mut begun[text], true) {
                    false => first = now(),
                    true => (timed, last) = (timed + 1, now()),
                }
            })?;
            ensure!(timed > 0, "the text ends before its second token");
            times_s.push((last.0 - first.0).as_secs_f64() / f64::from(timed));
            cpu_ms.push((last.1 - first.1) / f64::from(timed));
        }
        self.session.at_most(None)?;
        Ok(Generated {
            tokens_per_second: percentiles(times_s).p50.recip(),
            cpu_ms_per_token: percentiles(cpu_ms).p50,
        })
    }

    /// Microseconds of making another task the active one.
    fn swap(&mut self, handles: &[TaskHandle]) -> anyhow::Result<f64> {
        let start = Instant::now();
        for (&handle, _) in handles.iter().cycle().zip(0..SWAPS) {
            self.session.activate(black_box(handle))?;
        }
        Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(SWAPS))
    }

    /// Microseconds of reading, verifying and loading one bundle; the median over the bundles.
    fn load(&mut self, files: &Files) -> anyhow::Result<f64> {
        let trust = Trust::read(&files.trust)?;
        let mut times = Vec::new();
        for path in files
            .bundles
            .iter()
            .cycle()
            .take(files.bundles.len().max(LOADS))
        {
            let start = Instant::now();
            self.session.load_file(path, &trust, unix_now())?;
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        Ok(percentiles(times).p50)
    }

    /// Answers once and then keeps the image open until the parent is done.
    fn hold(&mut self, output: &Output) -> anyhow::Result<ExitCode> {
        let sample = self.texts.first().context("no text")?;
        sample.ask(&mut self.session)?;
        output.print(READY);
        stdin()
            .read_to_end(&mut Vec::new())
            .context("cannot wait for the parent")?;
        Ok(ExitCode::SUCCESS)
    }
}
