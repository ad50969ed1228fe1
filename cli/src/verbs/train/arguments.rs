//! The options of `preface train`.

use std::{fs, path::PathBuf};

use anyhow::{Context, bail, ensure};
use clap::value_parser;
use preface_graph::{Base, FormKind};
use preface_trainer::{
    adapter::Adapter,
    checkpoint::{Checkpoints, Start},
    data::{AnswerKind, Dataset, Target},
    encode::{Overlength, TEXT},
    form::Place,
    heads::Pooling,
    methods::method,
    optimizer::{Decay, Rule},
    options::{Candidate, ClassWeights, Layers, Options, Precision},
    search::Given,
    seedbed::Init,
};

use super::{Inputs, search};
use crate::{onnxruntime::OnnxRuntime, verbs::eval::Measuring};

/// Learn a prompt and a head for one task; the base stays as it is
#[derive(clap::Args)]
#[command(after_help = "\
Data files hold one example a line, as JSON lines, or CSV or TSV with a header. Their fields say \
what is learned:
  text, label              one label             text, text2, label   one label of a pair
  text, labels             any number of labels  tokens, tags         one tag a word, JSON alone
  text, target             a text to go on with
The epoch that is best on the dev file is kept; the test file is only measured. The same seed on \
the same machine gives the same adapter, bit for bit, also when training was interrupted and goes \
on with --resume.

Methods:
  rows before the text (--place after: behind it)
    prompt-tuning, residual-prompt-tuning, low-rank-prompt-tuning, p-tuning-lstm, p-tuning-mlp
  keys and values at --layers
    prefix-tuning (p-tuning-v2), prefix-tuning-mlp, gated-prefix-tuning, hidden-prompts
Heads:
  linear, factored-linear, tanh-linear, label-text, verbaliser      one label or several
  token-linear                                          tags
  generation                                            texts

The folder gets the adapter, report.html, metrics.jsonl and TensorBoard events, with --budget also \
search.jsonl.

With --budget, up to 8 designs are trained with 3 learning rates each for a few epochs on at most \
512 rows; the better half goes on, from the start, for a third of the epochs, and the better half \
of those for all. The smallest bundle that is within one standard error of the best dev figure is \
chosen.

Examples:
  preface train --base out/base --train train.jsonl --dev dev.jsonl -o out/intent
  preface train --base out/base --train train.jsonl --dev dev.jsonl --test test.jsonl \\
                --method prefix-tuning --tokens 4 --layers top:2 --seeds 3 -o out/intent
  preface train --base out/base --train train.jsonl --dev dev.jsonl --budget 8KiB -o out/intent")]
pub struct Arguments {
    /// Base folder
    #[arg(long, value_name = "BASE")]
    pub base: PathBuf,
    /// Examples to learn from
    #[arg(long, value_name = "FILE")]
    pub train: PathBuf,
    /// Examples that choose the epoch
    #[arg(long, value_name = "FILE")]
    pub dev: PathBuf,
    /// Examples that are only measured
    #[arg(long, value_name = "FILE")]
    pub test: Option<PathBuf>,
    /// Folder for the adapter
    #[arg(short, long, value_name = "ADAPTER")]
    pub output: PathBuf,
    /// How the prompt is learned [default: prompt-tuning]
    #[arg(long)]
    pub method: Option<String>,
    /// Virtual tokens [default: 8]
    #[arg(long, value_name = "N")]
    pub tokens: Option<usize>,
    /// Layers that get a prefix: all, top:K, or A..B counted from 0 [default: all]
    #[arg(long, value_parser = Layers::parse)]
    pub layers: Option<Layers>,
    /// Search learning rate, length, layers, method and head for the best bundle of at most so many bytes: 8192, 8KB or
    /// 8KiB; what is given with --method, --tokens, --layers, --head, --head-rank or --learning-rate stays
    #[arg(long, value_name = "SIZE", value_parser = search::bytes)]
    pub budget: Option<usize>,
    /// Where the rows of a prompt stand: before or after the text
    #[arg(long, default_value = "before", value_parser = place)]
    pub place: Place,
    /// Where the prompt starts: labels, vocabulary, zero, text:TEXT or adapter:FOLDER
    #[arg(long, default_value = "labels")]
    pub init: String,
    /// Width of the narrow layer of a reparameterisation
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub bottleneck: usize,
    /// Rank of a low-rank prompt
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub rank: usize,
    /// What turns the base's output into an answer; what suits the data where left out
    #[arg(long)]
    pub head: Option<String>,
    /// Rank of a factored head [default: 16]
    #[arg(long, value_name = "N")]
    pub head_rank: Option<usize>,
    /// Rows that the head reads: mean, first, last or mask
    #[arg(long, value_parser = pooling)]
    pub pooling: Option<Pooling>,
    /// Text around an input; {text} stands for it, {mask} for the mask token
    #[arg(long, default_value = TEXT)]
    pub template: String,
    /// Put so many training examples before every text; a second training without them tells whether they are worth it
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub few_shot: usize,
    /// JSON file with a word for each label, {"label": "word"}, for the head verbaliser
    #[arg(long, value_name = "FILE")]
    pub verbaliser: Option<PathBuf>,
    /// Label of dev and test texts that have none of the labels: a threshold on the probability rejects them
    #[arg(long, value_name = "LABEL")]
    pub out_of_scope: Option<String>,
    /// Let every class count the same in the loss
    #[arg(long)]
    pub balance_classes: bool,
    /// Passes over the training data at most
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub epochs: usize,
    /// Epochs without a better one after which training stops; 0: never
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub patience: usize,
    /// Examples a step
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub batch: usize,
    /// Peak learning rate of the prompt; without it, the method's own
    #[arg(long, value_name = "RATE")]
    pub learning_rate: Option<f32>,
    /// Peak learning rate of the head
    #[arg(long, value_name = "RATE", default_value_t = 1e-2)]
    pub head_learning_rate: f32,
    /// adamw or adafactor
    #[arg(long, default_value = "adamw", value_parser = optimizer)]
    pub optimizer: Rule,
    /// How learning rates fall after the warm-up: linear, cosine or constant
    #[arg(long, default_value = "linear", value_parser = decay)]
    pub schedule: Decay,
    /// Part of the steps over which learning rates rise
    #[arg(long, value_name = "PART", default_value_t = 0.1)]
    pub warm_up: f64,
    /// Largest Euclidean norm of a gradient
    #[arg(long, value_name = "NORM", default_value_t = 1.0)]
    pub clip: f32,
    /// Weight decay of the head
    #[arg(long, value_name = "DECAY", default_value_t = 0.01)]
    pub weight_decay: f32,
    /// Part of the base's numbers that dropout takes in training; without it 0.1 on encoders with heads that
    /// learn all of their own, 0 elsewhere
    #[arg(long, value_name = "PART")]
    pub dropout: Option<f32>,
    /// What two answers to each text under two draws of dropout count by how far they are apart (R-Drop): a step
    /// takes twice as long; 1 helps where labels are many and examples few
    #[arg(long, value_name = "WEIGHT", default_value_t = 0.0)]
    pub consistency: f32,
    /// What matrix products of training steps read: f32, or f16 for GPUs with units for it; the rest, dev and
    /// test stay in 32 bits
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = precision)]
    pub precision: Precision,
    /// Seed of every random choice
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Train with so many seeds at once, keep the best on dev, and print mean and spread
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u64).range(1..=1000))]
    pub seeds: u64,
    /// Go on with an interrupted training in the output folder
    #[arg(long)]
    pub resume: bool,
    /// Cut texts that are too long instead of refusing them
    #[arg(long)]
    pub truncate: bool,
    /// Do not train others beside it to find out whether the prompt is too small
    #[arg(long)]
    pub no_advice: bool,
    /// Memory for cached rows of the layers below a prompt, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    pub cache: usize,
    #[command(flatten)]
    pub onnxruntime: OnnxRuntime,
}

/// The head that has a rank.
const FACTORED_HEAD: &str = "factored-linear";

fn place(text: &str) -> Result<Place, String> {
    match text {
        "before" => Ok(Place::Before),
        "after" => Ok(Place::After),
        _ => Err("before or after".into()),
    }
}

fn pooling(text: &str) -> Result<Pooling, String> {
    match text {
        "mean" => Ok(Pooling::Mean),
        "first" => Ok(Pooling::First),
        "last" => Ok(Pooling::Last),
        "mask" => Ok(Pooling::Mask),
        _ => Err("mean, first, last or mask".into()),
    }
}

fn optimizer(text: &str) -> Result<Rule, String> {
    Rule::named(text).map_err(|error| error.to_string())
}

fn precision(text: &str) -> Result<Precision, String> {
    Precision::named(text).map_err(|error| error.to_string())
}

fn decay(text: &str) -> Result<Decay, String> {
    Decay::named(text).map_err(|error| error.to_string())
}

impl Arguments {
    /// Reads the data, the base and the library.
    pub fn read(&self) -> anyhow::Result<Inputs> {
        let train = Dataset::read(&self.train)?;
        let dev = Dataset::read(&self.dev)?;
        let test = self.test.as_deref().map(Dataset::read).transpose()?;
        if let Some(test) = &test {
            test.expect(train.kind(), train.pairs())?;
        }
        Ok(Inputs {
            train,
            dev,
            test,
            base: Base::open(&self.base)?,
            library: self.onnxruntime.load()?,
        })
    }

    /// What to train, and how.
    pub fn options(&self, inputs: &Inputs) -> anyhow::Result<Options> {
        self.refuse_idle()?;
        let last = self.seed.checked_add(self.seeds - 1);
        let seeds = self.seed..=last.context("--seed is too large for so many --seeds")?;
        let candidate = |seed| Candidate {
            seed,
            learning_rate: self.learning_rate,
            head_learning_rate: self.head_learning_rate,
        };
        let usual = Options::default();
        Ok(Options {
            method: self.method.clone().unwrap_or(usual.method),
            tokens: self.tokens.unwrap_or(usual.tokens),
            layers: self.layers.unwrap_or(usual.layers),
            place: self.place,
            bottleneck: self.bottleneck,
            rank: self.rank,
            head: self.head.clone(),
            head_rank: self.head_rank.unwrap_or(usual.head_rank),
            pooling: self.pooling,
            template: self.template.clone(),
            examples: String::new(),
            words: self.words(&inputs.train)?,
            init: self.init()?,
            epochs: self.epochs,
            patience: (self.patience > 0).then_some(self.patience),
            batch: self.batch,
            candidates: seeds.map(candidate).collect(),
            optimizer: self.optimizer,
            decay: self.schedule,
            warm_up: self.warm_up,
            clip: self.clip,
            weight_decay: self.weight_decay,
            dropout: self.dropout,
            consistency: self.consistency,
            precision: self.precision,
            class_weights: if self.balance_classes {
                ClassWeights::Balanced
            } else {
                ClassWeights::Equal
            },
            out_of_scope: self.out_of_scope.clone(),
            threads: self.onnxruntime.threads(),
            overlength: self.overlength(),
            cache_bytes: self.cache << 20,
        })
    }

    /// Refuses options that the method or the head that was chosen has no use for.
    fn refuse_idle(&self) -> anyhow::Result<()> {
        let usual = Options::default();
        let form = match (&self.method, self.budget) {
            (Some(name), _) => Some(method(name)?.form),
            (None, None) => Some(method(&usual.method)?.form),
            (None, Some(_)) => None,
        };
        ensure!(
            self.layers.is_none() || form != Some(FormKind::Embeddings),
            "--layers is for methods that give layers keys and values; pass --method prefix-tuning"
        );
        let head = self.head.as_deref();
        ensure!(
            self.head_rank.is_none() || self.budget.is_some() || head == Some(FACTORED_HEAD),
            "--head-rank is for a factored head; pass --head {FACTORED_HEAD}"
        );
        Ok(())
    }

    /// Refuses a label of texts that are out of scope which no dev text has: there would be no threshold.
    pub fn refuse_empty_scope(&self, inputs: &Inputs) -> anyhow::Result<()> {
        let Some(label) = &self.out_of_scope else {
            return Ok(());
        };
        ensure!(
            inputs.dev.kind() == AnswerKind::Label,
            "--out-of-scope is for texts with one label each"
        );
        let mut examples = inputs.dev.examples.iter();
        ensure!(
            examples.any(|example| example.target.names() == [label.as_str()]),
            "--out-of-scope {label}: no text of {} has that label, and its threshold is chosen on them",
            self.dev.display()
        );
        Ok(())
    }

    /// What a search leaves as it is.
    pub fn given(&self) -> Given {
        Given {
            method: self.method.clone(),
            tokens: self.tokens,
            layers: self.layers,
            head: self.head.clone(),
            head_rank: self.head_rank,
            learning_rate: self.learning_rate,
        }
    }

    fn overlength(&self) -> Overlength {
        match self.truncate {
            true => Overlength::Truncate,
            false => Overlength::Refuse,
        }
    }

    /// How adapters are measured.
    pub fn measuring(&self) -> Measuring<'_> {
        Measuring {
            overlength: self.overlength(),
            out_of_scope: self.out_of_scope.as_deref(),
            threads: self.onnxruntime.threads(),
        }
    }

    /// Where checkpoints are, and whether to go on from one.
    pub fn checkpoints(&self, name: &str) -> Checkpoints {
        Checkpoints {
            path: self.output.join(name),
            start: if self.resume {
                Start::Resume
            } else {
                Start::Anew
            },
        }
    }

    fn init(&self) -> anyhow::Result<Init> {
        let named = match self.init.split_once(':') {
            Some(("text", text)) => Some(Init::Text(text.to_owned())),
            Some(("adapter", folder)) => {
                let adapter = Adapter::read(folder.as_ref())?;
                Some(Init::Prompt(Box::new(adapter.start(folder.as_ref())?)))
            }
            _ => None,
        };
        Ok(match (named, self.init.as_str()) {
            (Some(init), _) => init,
            (None, "labels") => Init::Labels,
            (None, "vocabulary") => Init::Vocabulary,
            (None, "zero") => Init::Zero,
            (None, other) => {
                bail!("--init {other}: pass labels, vocabulary, zero, text:TEXT or adapter:FOLDER")
            }
        })
    }

    /// The words of the labels, in the labels' order.
    fn words(&self, train: &Dataset) -> anyhow::Result<Vec<String>> {
        let Some(path) = &self.verbaliser else {
            return Ok(Vec::new());
        };
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let words: std::collections::BTreeMap<String, String> = serde_json::from_str(&text)
            .with_context(|| format!("{}: not an object of words", path.display()))?;
        let word = |label: String| {
            let word = words.get(&label).cloned();
            word.with_context(|| format!("{}: no word for the label {label:?}", path.display()))
        };
        train
            .labels()
            .into_iter()
            .filter(|label| Some(label) != self.out_of_scope.as_ref())
            .map(word)
            .collect()
    }
}

/// An answer as people read it.
pub fn spelled(target: &Target) -> String {
    match target {
        Target::Label(label) => label.clone(),
        Target::Labels(names) | Target::Tags(names) => names.join(" "),
        Target::Text(text) => text.clone(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn options_without_use_are_refused() {
        let table: [(&str, Option<&str>); 6] = [
            ("--layers top:2", Some("--method prefix-tuning")),
            ("--layers top:2 --method p-tuning-v2", None),
            ("--layers top:2 --budget 8KiB", None),
            ("--head-rank 4", Some("--head factored-linear")),
            ("--head-rank 4 --head factored-linear", None),
            ("--head-rank 4 --budget 8KiB", None),
        ];
        for (options, expected) in table {
            let line = format!("x --base b --train t --dev d -o o {options}");
            let line = Line::parse_from(line.split(' '));
            let found = line
                .arguments
                .refuse_idle()
                .map_err(|error| error.to_string());
            match expected {
                None => assert_eq!(found, Ok(()), "{options}"),
                Some(part) => assert!(found.unwrap_err().contains(part), "{options}"),
            }
        }
    }
}
