//! The training loop.

use std::time::Instant;

use preface_graph::{Base, FormKind, Kind};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use crate::{
    Error,
    adapter::{Adapter, Card, HeadCard, Probe, Receipt, TokenBudget},
    batch::{Batch, Encoded, Overlength, encode, room},
    data::Dataset,
    engine::{Library, Session},
    evaluation::{Evaluation, Evaluator, Prediction, named},
    form::{Form, PositionPlan, Prompt},
    heads::{HeadSize, Pooling, head},
    methods::{Method, Parameter, method},
    optimizer::{AdamW, Group, clip, schedule},
    seedbed::{Seedbed, below},
    step::{Purpose, Step},
    tokens::Tokens,
};

/// Largest Euclidean norm of a step's gradient.
const CLIP: f32 = 1.0;
/// Batches among which rows are sorted by length, so that little is padded.
const BUCKET: usize = 8;
/// What surrounds a text: nothing.
const TEMPLATE: &str = "{text}";
/// Positions that a prompt must leave for texts.
const LEAST_ROOM: usize = 16;
/// Bytes of label names for which a bundle's signed part has room.
const LABEL_BYTES: usize = 3000;
/// Token ids of all probes for which it has room.
const PROBE_IDS: usize = 256;
/// Examples that a bundle carries to prove itself on a device.
const PROBES: usize = 4;

/// What to train, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Name of the method.
    pub method: String,
    /// Virtual tokens.
    pub tokens: usize,
    /// Name of the head.
    pub head: String,
    /// Which rows the head reads.
    pub pooling: Pooling,
    /// Passes over the training data.
    pub epochs: usize,
    /// Rows a step.
    pub batch: usize,
    /// Peak learning rate of the prompt; the method's own where `None`.
    pub learning_rate: Option<f32>,
    /// Peak learning rate of the head.
    pub head_learning_rate: f32,
    /// Weight decay of the head.
    pub weight_decay: f32,
    /// Seed of every random choice.
    pub seed: u64,
    /// Threads of ONNX Runtime. Results depend on their number in the last bits.
    pub threads: usize,
    /// What happens to texts that are too long.
    pub overlength: Overlength,
}

/// Told how training goes.
pub trait Progress {
    /// Training begins: `epochs` passes of `steps` steps each.
    fn begin(&mut self, epochs: usize, steps: usize);
    /// A step is done.
    fn step(&mut self);
    /// An epoch (counted from 1) is done.
    fn epoch(&mut self, epoch: usize, train_loss: f64, dev: &Evaluation);
}

/// What training gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The prompt and head of the best epoch.
    pub adapter: Adapter,
    /// Figures on the dev data at the best epoch.
    pub dev: Evaluation,
    /// Trained numbers.
    pub parameters: usize,
    /// Wall time.
    pub seconds: f64,
}

/// Trains a prompt and its head for `base` on `train`, keeping the epoch that is best on `dev`: the most right answers,
/// and among equals the smallest loss.
///
/// # Errors
/// When the data do not fit, the base does not take the method's form, or it cannot be run.
pub fn train(
    base: &Base,
    library: &Library,
    train: &Dataset,
    dev: &Dataset,
    options: &Options,
    progress: &mut dyn Progress,
) -> Result<Outcome, Error> {
    let begun = Instant::now();
    let mut run = Run::prepare(base, library, train, dev, options)?;
    let steps = run.train.len().div_ceil(options.batch);
    progress.begin(options.epochs, steps);
    let mut best: Option<Best> = None;
    for epoch in 1..=options.epochs {
        let loss = run.epoch(epoch, steps, progress)?;
        let predictions = run.evaluator.predict(&run.values, &run.dev, |_| ())?;
        let dev = Evaluation::of(&predictions, &run.dev, run.labels.len());
        progress.epoch(epoch, loss, &dev);
        if best
            .as_ref()
            .is_none_or(|best| (dev.accuracy, -dev.loss) > (best.dev.accuracy, -best.dev.loss))
        {
            best = Some(Best {
                epoch,
                dev,
                values: run.values.clone(),
                predictions,
            });
        }
    }
    let best = best.ok_or_else(|| Error::Options("training needs at least one epoch".into()))?;
    let (dev, parameters) = (best.dev, run.values.iter().map(Vec::len).sum());
    let adapter = run.adapter(best, train);
    Ok(Outcome {
        adapter,
        dev,
        parameters,
        seconds: begun.elapsed().as_secs_f64(),
    })
}

struct Best {
    epoch: usize,
    dev: Evaluation,
    values: Vec<Vec<f32>>,
    predictions: Vec<Prediction>,
}

struct Run<'a> {
    base: &'a Base,
    options: &'a Options,
    method: &'static Method,
    form: Form,
    labels: Vec<String>,
    train: Vec<Encoded>,
    dev: Vec<Encoded>,
    dev_sha256: String,
    step: Step,
    session: Session,
    evaluator: Evaluator<'a>,
    optimizer: AdamW,
    values: Vec<Vec<f32>>,
    random: ChaCha8Rng,
}

impl<'a> Run<'a> {
    fn prepare(
        base: &'a Base,
        library: &'a Library,
        train: &Dataset,
        dev: &Dataset,
        options: &'a Options,
    ) -> Result<Self, Error> {
        let method = method(&options.method)?;
        let head = head(&options.head)?;
        let tokens = Tokens::read(&base.tokenizer)?;
        let form = Form::of(method.form, options.tokens, &base.description);
        let labels = train.labels();
        refuse_unfit(base, method, &labels, options)?;
        let room = room(&base.description, &form);
        let train = encode(train, &labels, TEMPLATE, &tokens, room, options.overlength)?;
        let dev_sha256 = dev.sha256.clone();
        let dev = encode(dev, &labels, TEMPLATE, &tokens, room, options.overlength)?;
        let size = HeadSize {
            classes: labels.len(),
            hidden: base.description.hidden,
        };
        let step = Step::build(base, method, &form, Purpose::Training(head, size))?;
        let session = library.session(&step.model, &base.folder, options.threads)?;
        let evaluator = Evaluator::new(
            base,
            library,
            method,
            &form,
            size,
            options.pooling,
            options.threads,
        )?;
        let labels_spoken = spoken(&tokens, &labels)?;
        let mut seedbed = Seedbed::new(
            base,
            library,
            labels_spoken,
            vocabulary(&train),
            options.seed,
        );
        let mut values = (method.initial)(&form, &mut seedbed)?;
        let zeros = |parameter: &Parameter| vec![0.0; parameter.elements()];
        values.extend((head.parameters)(size).iter().map(zeros));
        let optimizer = AdamW::new(&groups(method, &form, &values, options));
        let random = ChaCha8Rng::seed_from_u64(options.seed);
        Ok(Self {
            base,
            options,
            method,
            form,
            labels,
            train,
            dev,
            dev_sha256,
            step,
            session,
            evaluator,
            optimizer,
            values,
            random,
        })
    }

    /// Runs one epoch and returns its mean loss.
    fn epoch(
        &mut self,
        epoch: usize,
        steps: usize,
        progress: &mut dyn Progress,
    ) -> Result<f64, Error> {
        let mut total = 0.0;
        for (index, rows) in self.batches().into_iter().enumerate() {
            let batch: Vec<&Encoded> = rows.iter().map(|&row| &self.train[row]).collect();
            let arrays = Batch::of(
                &batch,
                &self.base.description,
                &self.form,
                self.options.pooling,
                &self.step,
            );
            let parameters = named(&self.step, &self.values);
            let mut outputs = self.session.run(&arrays.with(&parameters))?.into_iter();
            let loss = outputs
                .next()
                .ok_or_else(|| Error::Engine("the loss is missing".into()))?
                .into_floats()?;
            let mut gradients = outputs
                .skip(1)
                .map(|output| output.into_floats())
                .collect::<Result<Vec<_>, _>>()?;
            let finite = loss
                .iter()
                .chain(gradients.iter().flatten())
                .all(|number| number.is_finite());
            if !finite {
                return Err(Error::Diverged { epoch });
            }
            clip(&mut gradients, CLIP);
            let factor = schedule((epoch - 1) * steps + index, self.options.epochs * steps);
            self.optimizer.update(&mut self.values, &gradients, factor);
            total += f64::from(loss[0]) * batch.len() as f64;
            progress.step();
        }
        Ok(total / self.train.len() as f64)
    }

    /// The rows of each step: shuffled, then sorted by length within every few batches.
    fn batches(&mut self) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..self.train.len()).collect();
        shuffle(&mut order, &mut self.random);
        let batch = self.options.batch;
        for bucket in order.chunks_mut(batch * BUCKET) {
            bucket.sort_by_key(|&row| self.train[row].ids.len());
        }
        let mut batches: Vec<Vec<usize>> = order.chunks(batch).map(<[usize]>::to_vec).collect();
        shuffle(&mut batches, &mut self.random);
        batches
    }

    fn adapter(self, best: Best, train: &Dataset) -> Adapter {
        let description = &self.base.description;
        let figures = [
            ("dev_accuracy", best.dev.accuracy),
            ("dev_macro_f1", best.dev.macro_f1),
        ];
        let card = Card {
            format: 1,
            method: self.method.name.into(),
            form: self.form.clone(),
            head: HeadCard {
                kind: self.options.head.clone(),
                classes: self.labels.len(),
                hidden: description.hidden,
            },
            labels: self.labels.clone(),
            template: TEMPLATE.into(),
            pooling: self.options.pooling,
            positions: self.form.positions(description),
            base_id: description.base_id.clone(),
            tokenizer_id: description.tokenizer_id.clone(),
            probes: self.probes(&best.predictions),
            metrics: figures
                .map(|(name, figure)| (name.to_owned(), figure))
                .into(),
            token_budget: self.token_budget(),
            receipt: self.receipt(best.epoch, train),
        };
        let mut values = best.values;
        let head = values.split_off((self.method.parameters)(&self.form).len());
        let tensors = (self.method.collapse)(&self.form, values);
        let prompt = Prompt {
            form: self.form,
            tensors,
        };
        Adapter { card, prompt, head }
    }

    /// The shortest dev examples of different labels that the prompt answers rightly.
    fn probes(&self, predictions: &[Prediction]) -> Vec<Probe> {
        let pairs = self.dev.iter().zip(predictions);
        let mut right: Vec<&Encoded> = pairs
            .filter(|(row, prediction)| row.label == prediction.label)
            .map(|(row, _)| row)
            .collect();
        right.sort_by_key(|row| row.ids.len());
        let mut probes: Vec<Probe> = Vec::new();
        let mut room = PROBE_IDS;
        for row in right {
            let new = probes.iter().all(|probe| probe.label != row.label);
            if probes.len() < PROBES && new && row.ids.len() <= room {
                room -= row.ids.len();
                probes.push(Probe {
                    ids: row.ids.clone(),
                    label: row.label,
                });
            }
        }
        probes
    }

    fn token_budget(&self) -> TokenBudget {
        let mut lengths: Vec<usize> = self.train.iter().map(|row| row.ids.len()).collect();
        lengths.sort_unstable();
        TokenBudget {
            prompt: self.options.tokens,
            longest: lengths.last().copied().unwrap_or(0),
            typical: lengths.get(lengths.len() / 2).copied().unwrap_or(0),
            positions: self.base.description.max_positions,
        }
    }

    fn receipt(&self, best_epoch: usize, train: &Dataset) -> Receipt {
        let options = self.options;
        Receipt {
            seed: options.seed,
            epochs: options.epochs,
            best_epoch,
            learning_rate: options.learning_rate.unwrap_or(self.method.learning_rate),
            head_learning_rate: options.head_learning_rate,
            batch: options.batch,
            examples: train.examples.len(),
            data_sha256: train.sha256.clone(),
            dev_sha256: self.dev_sha256.clone(),
            threads: options.threads,
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }
}

/// Refuses what could not be trained, packed or run.
fn refuse_unfit(
    base: &Base,
    method: &Method,
    labels: &[String],
    options: &Options,
) -> Result<(), Error> {
    let refuse = |reason: String| Err(Error::Options(reason));
    let description = &base.description;
    let rates = [
        options.learning_rate.unwrap_or(method.learning_rate),
        options.head_learning_rate,
    ];
    let label_bytes: usize = labels.iter().map(String::len).sum();
    if description.kind == Kind::EncoderDecoder {
        return refuse(
            "classification needs an encoder or a decoder; this base is an encoder-decoder".into(),
        );
    }
    if !description.forms.contains(&method.form) {
        return refuse(
            "the base does not take the form that this method makes; see preface check".into(),
        );
    }
    if options.tokens == 0 || options.batch == 0 || options.epochs == 0 {
        return refuse(
            "training needs at least one virtual token, one row a batch and one epoch".into(),
        );
    }
    if rates.iter().any(|rate| !rate.is_finite() || *rate <= 0.0) {
        return refuse(format!(
            "learning rates must be positive numbers, not {rates:?}"
        ));
    }
    if labels.len() < 2 {
        return refuse(format!(
            "the training data have the one label {labels:?}; a task needs two or more"
        ));
    }
    if label_bytes > LABEL_BYTES {
        return refuse(format!(
            "the labels take {label_bytes} bytes, a bundle has room for {LABEL_BYTES}; shorten them"
        ));
    }
    let form = Form::of(method.form, options.tokens, description);
    if method.form == FormKind::KeyValues
        && form.positions(description) == PositionPlan::AfterPrompt
    {
        return refuse("the base counts positions from its cache, so that a prefix would move the text; use prompt-tuning".into());
    }
    let most = description
        .max_positions
        .map(|positions| positions.saturating_sub(LEAST_ROOM));
    match most {
        Some(most) if options.tokens > most => refuse(format!(
            "this base takes at most {most} virtual tokens; pass fewer --tokens"
        )),
        _ => Ok(()),
    }
}

/// Token ids of each label, read as words.
fn spoken(tokens: &Tokens, labels: &[String]) -> Result<Vec<Vec<i64>>, Error> {
    let speak = |label: &String| tokens.plain(&label.replace(['-', '_', '.'], " "));
    labels.iter().map(speak).collect()
}

/// The distinct ids of the texts.
fn vocabulary(rows: &[Encoded]) -> Vec<i64> {
    let mut ids: Vec<i64> = rows
        .iter()
        .flat_map(|row| row.ids.iter().copied())
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn groups(method: &Method, form: &Form, values: &[Vec<f32>], options: &Options) -> Vec<Group> {
    let own = (method.parameters)(form).len();
    let prompt_rate = options.learning_rate.unwrap_or(method.learning_rate);
    let group = |(index, values): (usize, &Vec<f32>)| {
        let (learning_rate, weight_decay) = match index < own {
            true => (prompt_rate, 0.0),
            false => (options.head_learning_rate, options.weight_decay),
        };
        Group {
            elements: values.len(),
            learning_rate,
            weight_decay,
        }
    };
    values.iter().enumerate().map(group).collect()
}

/// Fisher and Yates' shuffle.
fn shuffle<T>(items: &mut [T], random: &mut ChaCha8Rng) {
    for last in (1..items.len()).rev() {
        items.swap(last, below(random, last + 1));
    }
}
