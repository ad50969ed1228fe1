//! `preface pack --max-loss`: the smallest encoding that loses little enough on the runtime.

use std::{
    path::{Path, PathBuf},
    slice,
};

use anyhow::Context;
use preface_bundle::{Frame, Policy, TrustStore};
use preface_graph::Base;
use preface_packager::{
    Adapter, Encoding, Error, Options, Scales, SecretKey, TrustChange, new_trust, pack, packed_len,
};
use preface_runtime::{Image, Options as SessionOptions, Session, Weights, bundle::decode};
use preface_trainer::{
    data::Dataset,
    metrics::{Evaluation, main_figure},
};
use serde::Serialize;
use serde_json::json;

use crate::{
    leak::note_other,
    output::Output,
    tasks::overlength,
    verbs::{
        compile::{Choice, compile_if, evaluate::points},
        eval::on_runtime,
    },
};

/// What an encoding may lose, and the texts on which that is measured.
#[derive(clap::Args)]
pub struct Arguments {
    /// Take the smallest encoding that loses at most so many points against f32, measured on the runtime
    #[arg(long, value_name = "POINTS", value_parser = points,
          conflicts_with_all = ["dtype", "head_dtype"])]
    max_loss: Option<f64>,
    /// Labelled texts to measure on: those that chose the epoch, not those of a test
    #[arg(long, value_name = "FILE", requires = "max_loss")]
    dev: Option<PathBuf>,
    /// Label of texts that have none of the labels
    #[arg(long, value_name = "LABEL", requires = "max_loss")]
    out_of_scope: Option<String>,
    /// Cut texts that are too long instead of refusing them
    #[arg(long, requires = "max_loss")]
    truncate: bool,
}

const NO_BASE: &str = "--max-loss measures on the base: give the image that devices run as --base, or the base folder";
const NO_DEV: &str = "--max-loss measures on labelled texts: give those that chose the epoch as --dev, or any the prompt was \
     not trained on; without such, --dtype i8 is the usual choice, and f16 the one that changes next to nothing";

/// What was measured.
#[derive(Serialize)]
pub struct Measured {
    /// The name of the figure that counts.
    figure: &'static str,
    examples: usize,
    max_loss_points: f64,
    /// The most exact encoding that fits a bundle.
    reference: Trial,
    /// From the smallest to the one that is taken.
    tried: Vec<Trial>,
}

/// One encoding.
#[derive(Clone, Copy, Serialize)]
struct Trial {
    prompt: &'static str,
    head: &'static str,
    /// None without integers.
    scales: Option<&'static str>,
    /// Of the finished file.
    bytes: usize,
    found: f64,
    loss_points: f64,
}

/// What the smallest encoding that is good enough makes of an adapter.
pub struct Smallest {
    /// The adapter with the figures.
    pub adapter: Adapter,
    /// The encoding.
    pub encoding: Encoding,
    /// The figures of all.
    pub measured: Measured,
}

impl Arguments {
    /// Measures encodings on the runtime, the smallest first, until one is good enough; `None` where that is not asked
    /// for. A base folder is compiled for it, at a sibling of the `bundle` to be written.
    ///
    /// # Errors
    /// When a file cannot be read, no encoding fits a bundle, or the task cannot be measured on this base.
    pub fn smallest(
        &self,
        adapter: &Adapter,
        options: &Options,
        base: Option<&Path>,
        bundle: &Path,
        output: &Output,
    ) -> anyhow::Result<Option<Smallest>> {
        let Some(max_loss) = self.max_loss else {
            return Ok(None);
        };
        let base = base.context(NO_BASE)?;
        let dev = self.dev.as_ref().context(NO_DEV)?;
        let dev = Dataset::read(dev)?;
        note_other(&dev, adapter, ("dev_sha256", "dev"), output);
        let measure = |image: &Image| {
            let overlength = overlength(self.truncate);
            let options_here = SessionOptions {
                overlength,
                ..SessionOptions::default()
            };
            let key = SecretKey::generate()?;
            let trust = TrustChange {
                keys: vec![key.public().to_string()],
                threshold: Some(1),
                ..TrustChange::default()
            };
            let mut trials = Trials {
                adapter,
                options,
                max_loss,
                dev: &dev,
                out_of_scope: self.out_of_scope.as_deref(),
                session: Session::open(image, options_here)?,
                trust: new_trust(&options.namespace, &trust)?,
                key,
                output,
            };
            trials.run()
        };
        on_image(base, bundle, output, measure).map(Some)
    }
}

/// Hands the image at `base` to `measure`, or one that is compiled of a base folder and removed again.
fn on_image<T>(
    base: &Path,
    bundle: &Path,
    output: &Output,
    measure: impl FnOnce(&Image) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    if !base.is_dir() {
        return measure(&crate::image::open(base)?);
    }
    let base = Base::open(base)?;
    let mut found = None;
    let choice = (Choice::Auto, Weights::F32);
    compile_if(
        &base,
        &bundle.with_extension("base"),
        choice,
        output,
        |image| {
            found = Some(measure(image));
            false
        },
    )?;
    found.context("nothing was measured")?
}

/// Encodings of an adapter on a runtime.
struct Trials<'a> {
    adapter: &'a Adapter,
    options: &'a Options,
    max_loss: f64,
    dev: &'a Dataset,
    out_of_scope: Option<&'a str>,
    session: Session,
    /// Signs what is tried, and is thrown away.
    key: SecretKey,
    /// The trust store with that key.
    trust: String,
    output: &'a Output,
}

impl Trials<'_> {
    fn run(&mut self) -> anyhow::Result<Smallest> {
        let mut sizes = self.sizes()?;
        let largest = "no encoding fits a bundle: train fewer virtual tokens or layers";
        let (reference_bytes, exact) = *sizes.last().context(largest)?;
        let reference = self.measure(exact)?;
        sizes.sort_by_key(|(bytes, _)| *bytes);
        let mut tried = Vec::new();
        for (bytes, encoding) in sizes {
            let found = match encoding == exact {
                true => reference.clone(),
                false => self.measure(encoding)?,
            };
            let trial = Trial::of(encoding, bytes, &found, &reference);
            tried.push(trial);
            // What is exactly as much is not more, however it is rounded.
            if trial.loss_points <= self.max_loss + 1e-9 {
                return Ok(Smallest {
                    adapter: self.noted(encoding, [&found, &reference].map(Evaluation::score)),
                    encoding,
                    measured: Measured {
                        figure: found.main,
                        examples: found.examples,
                        max_loss_points: self.max_loss,
                        reference: Trial::of(exact, reference_bytes, &reference, &reference),
                        tried,
                    },
                });
            }
        }
        unreachable!("the reference is among them and loses nothing")
    }

    /// The encodings that fit a bundle with the bytes of the finished file, the most exact one last.
    fn sizes(&self) -> anyhow::Result<Vec<(usize, Encoding)>> {
        let mut sizes = Vec::new();
        for encoding in Encoding::all(self.adapter) {
            match packed_len(&self.noted(encoding, [0.0; 2]), &self.options(encoding)) {
                Ok(bytes) => sizes.push((bytes, encoding)),
                Err(Error::PayloadTooLarge { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(sizes)
    }

    fn options(&self, encoding: Encoding) -> Options {
        Options {
            encoding,
            ..self.options.clone()
        }
    }

    /// The adapter with what its bundle says of its encoding, and the figures of that and of the reference.
    fn noted(&self, encoding: Encoding, figures: [f64; 2]) -> Adapter {
        let mut adapter = self.adapter.clone();
        let figure = format!("runtime_dev_{}", main_figure(self.dev.kind()));
        let names = [figure.clone(), format!("{figure}_exact")];
        let figures = figures.map(|figure| figure as f32);
        let description = &mut adapter.description;
        description.metrics.extend(names.into_iter().zip(figures));
        let mut how = json!({
            "prompt": encoding.prompt.name(), "head": encoding.head.name(), "max_loss_points": self.max_loss, "examples": self.dev.examples.len(), "dev_sha256": self.dev.sha256,
        });
        if encoding.scales != Scales::default() {
            how["scales"] = encoding.scales.name().into();
        }
        description.receipt.insert("encoding".into(), how);
        adapter
    }

    /// Packs the adapter in this encoding, and lets the runtime verify, load and answer as with every bundle.
    fn measure(&mut self, encoding: Encoding) -> anyhow::Result<Evaluation> {
        let options = Options {
            encoding,
            namespace: self.options.namespace.clone(),
            ..Options::new(&self.options.task, self.options.sequence)
        };
        let packed = pack(self.adapter, &options, slice::from_ref(&self.key))?;
        let store = TrustStore::parse(&self.trust)?;
        let base = self.session.description();
        let policy = Policy::for_base(base.base_id, base.tokenizer_id);
        let admitted = Frame::parse(&packed.bytes)?
            .authenticate(&store)?
            .admit(&policy)?;
        let decoded = decode(&admitted)?;
        let task = self.session.load(&admitted.open(&decoded)?)?;
        on_runtime(
            &mut self.session,
            task,
            self.dev,
            self.out_of_scope,
            self.output,
        )
    }
}

impl Trial {
    fn of(encoding: Encoding, bytes: usize, found: &Evaluation, reference: &Evaluation) -> Self {
        Self {
            prompt: encoding.prompt.name(),
            head: encoding.head.name(),
            scales: encoding.has_scales().then(|| encoding.scales.name()),
            bytes,
            found: found.score(),
            loss_points: 100.0 * (reference.score() - found.score()),
        }
    }
}

impl Measured {
    /// Shows the table.
    pub fn show(&self, output: &Output) {
        let line = |[prompt, head, scales, bytes, found, loss]: [&str; 6]| {
            output.say(format_args!(
                "{prompt:<6} {head:<4} {scales:<11} {bytes:>8} {found:>11} {loss:>12}"
            ));
        };
        let figure = self.figure;
        line(["prompt", "head", "scales", "bytes", figure, "loss, points"]);
        for trial in self.tried.iter().chain([&self.reference]) {
            line([
                trial.prompt,
                trial.head,
                trial.scales.unwrap_or("-"),
                &trial.bytes.to_string(),
                &format!("{:.1} %", 100.0 * trial.found),
                &format!("{:.1}", trial.loss_points),
            ]);
        }
        let Trial { prompt, head, .. } = self.reference;
        output.say(format_args!(
            "on {} texts; losses are against the last line, prompt {prompt} and head {head}; the line before it is taken",
            self.examples
        ));
    }
}
