//! The training loop.

mod dropout;
mod keep;
mod start;

use std::{collections::BTreeSet, iter, path::Path, time::Instant};

use preface_bundle::MAX_VALUE;
use preface_graph::Base;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use sha2::{Digest, Sha256};

use self::{dropout::Dropout, start::initial};
use crate::{
    Error,
    adapter::Adapter,
    batch::Batch,
    checkpoint::{Checkpoint, Checkpoints, Start, State},
    data::Dataset,
    encode::{Encoded, Truth},
    engine::{Array, Library, Place, Session},
    evaluation::Evaluator,
    given::fed,
    methods::Parameter,
    metrics::{Evaluation, Prediction},
    optimizer::{Group, Optimizer, clip},
    options::Options,
    progress::{EpochFigures, Progress, StepFigures},
    seedbed::shuffle,
    step::{KEPT, Manner, Purpose, Step},
    task::Task,
};

/// Batches among which rows are sorted by length, so that little is padded.
const BUCKET: usize = 8;

/// What training gave one candidate.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The prompt and head of the best epoch.
    pub adapter: Adapter,
    /// Figures on the dev data at the best epoch.
    pub dev: Evaluation,
    /// Answers on the dev data then.
    pub dev_answers: Vec<Prediction>,
    /// The right answers to them.
    pub dev_truths: Vec<Truth>,
    /// Figures of every epoch.
    pub history: Vec<EpochFigures>,
    /// Trained numbers.
    pub parameters: usize,
    /// Training and dev texts that lost tokens.
    pub truncated: usize,
    /// Wall time, of all candidates together.
    pub seconds: f64,
}

/// Trains a prompt and its head for each candidate on `train`, keeping the epoch that is best on `dev`: the one with
/// the best figure, and among equals with the smallest loss.
///
/// # Errors
/// When the data do not fit, the base does not take the method's form, it cannot be run, or the loss is no number any
/// more.
pub fn train(
    base: &Base,
    library: &Library,
    train: &Dataset,
    dev: &Dataset,
    options: &Options,
    checkpoints: Option<&Checkpoints>,
    progress: &mut dyn Progress,
) -> Result<Vec<Outcome>, Error> {
    let training = training_id(base, train, dev, options);
    let before = match checkpoints {
        Some(Checkpoints {
            path,
            start: Start::Resume,
        }) => Checkpoint::read(path, &training)?.map(|checkpoint| (path.as_path(), checkpoint)),
        _ => None,
    };
    let task = Task::new(base, library, train, dev, options)?;
    let mut run = Run::prepare(&task, library, training, before)?;
    progress.begin(options.epochs, run.steps);
    if let Some(checkpoints) = checkpoints {
        // A place that takes no checkpoint is found out before an epoch's work is lost.
        run.checkpoint().write(&checkpoints.path)?;
    }
    while run.state.epoch < options.epochs && !run.is_stale() {
        run.epoch(progress)?;
        if let Some(checkpoints) = checkpoints {
            run.checkpoint().write(&checkpoints.path)?;
        }
    }
    let outcomes =
        (0..options.candidates.len()).map(|candidate| run.outcome(library, candidate, train, dev));
    outcomes.collect()
}

/// SHA-256 of everything that decides what a training gives.
pub fn training_id(base: &Base, train: &Dataset, dev: &Dataset, options: &Options) -> String {
    let parts = [
        base.description.base_id.as_str(),
        &base.description.tokenizer_id,
        &train.sha256,
        &dev.sha256,
        env!("CARGO_PKG_VERSION"),
    ];
    let all = format!("{parts:?} {options:?}");
    preface_graph::hex(&Sha256::digest(all.as_bytes()))
}

struct Run<'a> {
    task: &'a Task<'a>,
    step: Step,
    session: Session,
    evaluator: Evaluator<'a>,
    optimizer: Optimizer,
    values: Vec<Vec<f32>>,
    best: Vec<Vec<Vec<f32>>>,
    state: State,
    steps: usize,
    /// How often each row is there in a step.
    copies: usize,
    dropout: Dropout,
    before: f64,
    begun: Instant,
}

impl<'a> Run<'a> {
    /// A training at its beginning, or where the checkpoint of a file left it.
    fn prepare(
        task: &'a Task<'a>,
        library: &Library,
        training: String,
        before: Option<(&Path, Checkpoint)>,
    ) -> Result<Self, Error> {
        let Task {
            base,
            options,
            method,
            sizes,
            extent,
            ..
        } = task;
        let begun = Instant::now();
        let manner = Manner {
            drops: task.dropout() > 0.0,
            consistency: options.consistency,
            precision: options.precision,
            emulated: library.place() == Place::Cpu,
        };
        let purpose = Purpose::Training(task.reader(), manner);
        let step = Step::build(base, method, sizes, *extent, purpose)?;
        let session = library.session(&step.model, &base.folder, options.threads)?;
        let evaluator = Evaluator::new(
            base,
            library,
            method,
            sizes,
            extent.of_one(),
            task.questions(),
            options.threads,
        )?;
        let mut run = Self {
            optimizer: Optimizer::new(options.optimizer, groups(task, &step)),
            steps: task.train.rows.len().div_ceil(options.batch),
            task,
            step,
            session,
            evaluator,
            values: Vec::new(),
            best: vec![Vec::new(); options.candidates.len()],
            state: State {
                training,
                best_epochs: vec![0; options.candidates.len()],
                best_scores: vec![(-1.0, 0.0); options.candidates.len()],
                ..State::default()
            },
            copies: manner.copies(),
            dropout: Dropout::new(task.dropout()),
            before: 0.0,
            begun,
        };
        match before {
            Some((path, checkpoint)) => run.resume(path, checkpoint)?,
            None => run.values = initial(task, library)?,
        }
        Ok(run)
    }

    /// Parameters of each candidate.
    fn each(&self) -> usize {
        self.values.len() / self.task.options.candidates.len()
    }

    fn of_candidate(&self, candidate: usize) -> &[Vec<f32>] {
        let each = self.each();
        &self.values[candidate * each..(candidate + 1) * each]
    }

    /// Whether no candidate had a better epoch for as many as the patience lasts.
    fn is_stale(&self) -> bool {
        let last = self.state.best_epochs.iter().max().copied().unwrap_or(0);
        self.task
            .options
            .patience
            .is_some_and(|patience| self.state.epoch >= last + patience.max(1))
    }

    fn seconds(&self) -> f64 {
        self.before + self.begun.elapsed().as_secs_f64()
    }

    fn epoch(&mut self, progress: &mut dyn Progress) -> Result<(), Error> {
        let options = self.task.options;
        let epoch = self.state.epoch + 1;
        let orders: Vec<Vec<Vec<usize>>> = options
            .candidates
            .iter()
            .map(|candidate| self.batches(candidate.seed, epoch))
            .collect();
        let mut losses = vec![0.0; options.candidates.len()];
        for index in 0..self.steps {
            let rows: Vec<Vec<&Encoded>> = orders
                .iter()
                .map(|order| {
                    let rows = order[index].iter().map(|&row| &self.task.train.rows[row]);
                    iter::repeat_n(rows, self.copies).flatten().collect()
                })
                .collect();
            let found = self.step(epoch, index, &rows, progress)?;
            for ((sum, loss), order) in losses.iter_mut().zip(found).zip(&orders) {
                *sum += f64::from(loss) * order[index].len() as f64;
            }
        }
        self.state.epoch = epoch;
        for (candidate, loss) in losses.into_iter().enumerate() {
            self.judge(
                candidate,
                loss / self.task.train.rows.len() as f64,
                progress,
            )?;
        }
        Ok(())
    }

    /// One step of every candidate; returns their losses.
    fn step(
        &mut self,
        epoch: usize,
        index: usize,
        rows: &[Vec<&Encoded>],
        progress: &mut dyn Progress,
    ) -> Result<Vec<f32>, Error> {
        let options = self.task.options;
        let arrays = Batch::of(rows, self.task.layout(), &self.step);
        let mut parameters = self.step.feeds(&self.values);
        parameters.extend(fed(&self.step, &self.task.given));
        let number = (epoch - 1) * self.steps + index;
        if let Some(name) = self.step.inputs.get(KEPT) {
            let tokens = arrays.tokens;
            let seen = tokens + self.task.sizes.form.tokens();
            let count = self.step.dropout.numbers(rows[0].len(), tokens, seen);
            let factors = self.dropout.factors(&options.candidates, number, count);
            parameters.push((name.clone(), factors));
        }
        let mut outputs = self.session.run(&arrays.with(&parameters))?.into_iter();
        let losses = outputs
            .next()
            .ok_or_else(|| Error::Engine("the loss is missing".into()))?
            .into_floats()?;
        let mut gradients = outputs
            .map(Array::into_floats)
            .collect::<Result<Vec<_>, _>>()?;
        let finite = losses
            .iter()
            .chain(gradients.iter().flatten())
            .all(|number| number.is_finite());
        if !finite {
            let lines: BTreeSet<usize> = rows.iter().flatten().map(|row| row.line).collect();
            return Err(Error::Diverged {
                epoch,
                step: number + 1,
                lines,
                precision: options.precision,
            });
        }
        let factor = options
            .decay
            .factor(number, options.epochs * self.steps, options.warm_up);
        let each = self.each();
        for (candidate, gradients) in gradients.chunks_mut(each.max(1)).enumerate() {
            let rate = options.candidates[candidate]
                .learning_rate
                .unwrap_or(self.task.method.learning_rate);
            progress.step(&StepFigures {
                candidate,
                epoch,
                step: number + 1,
                loss: f64::from(losses[candidate]),
                gradient_norm: clip(gradients, options.clip),
                learning_rate: f64::from(rate * factor),
            });
        }
        self.optimizer.update(&mut self.values, &gradients, factor);
        let mut numbers = self.values.iter().flatten();
        match numbers.all(|number| number.abs() <= MAX_VALUE) {
            true => Ok(losses),
            false => Err(Error::RanAway {
                epoch,
                step: number + 1,
            }),
        }
    }

    /// Measures a candidate on the dev data and keeps it where it is the best so far.
    fn judge(
        &mut self,
        candidate: usize,
        train_loss: f64,
        progress: &mut dyn Progress,
    ) -> Result<(), Error> {
        let values = self.of_candidate(candidate).to_vec();
        let answers = self
            .evaluator
            .predict(&values, &self.task.dev.rows, |_| ())?;
        let dev = self.evaluation(&answers, None);
        let score = (dev.score(), -dev.loss);
        let best = score > self.state.best_scores[candidate] || self.best[candidate].is_empty();
        if best {
            self.state.best_scores[candidate] = score;
            self.state.best_epochs[candidate] = self.state.epoch;
            self.best[candidate] = values;
        }
        let figures = EpochFigures {
            candidate,
            epoch: self.state.epoch,
            train_loss,
            dev_loss: dev.loss,
            dev: dev.figures,
            best,
            seconds: self.seconds(),
        };
        progress.epoch(&figures);
        self.state.history.push(figures);
        Ok(())
    }

    fn evaluation(&self, answers: &[Prediction], threshold: Option<f32>) -> Evaluation {
        let Task {
            wording,
            labels,
            dev,
            ..
        } = self.task;
        Evaluation::of(wording.kind, labels, threshold, answers, dev.truths())
    }

    /// The rows of each step: shuffled, then sorted by length within every few batches. The last may be shorter.
    fn batches(&self, seed: u64, epoch: usize) -> Vec<Vec<usize>> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(epoch as u64);
        let rows = &self.task.train.rows;
        let batch = self.task.options.batch;
        let mut order: Vec<usize> = (0..rows.len()).collect();
        shuffle(&mut order, &mut random);
        for bucket in order.chunks_mut(batch * BUCKET) {
            bucket.sort_by_key(|&row| rows[row].length());
        }
        let mut batches: Vec<Vec<usize>> = order.chunks(batch).map(<[usize]>::to_vec).collect();
        let whole = rows.len() / batch;
        shuffle(&mut batches[..whole], &mut random);
        batches
    }

    fn checkpoint(&self) -> Checkpoint {
        let (step, moments) = self.optimizer.state();
        Checkpoint {
            state: State {
                step,
                seconds: self.seconds(),
                ..self.state.clone()
            },
            values: self.values.clone(),
            moments,
            best: self.best.clone(),
        }
    }

    fn resume(&mut self, path: &Path, checkpoint: Checkpoint) -> Result<(), Error> {
        let expected = self.step.parameters.iter().map(Parameter::elements);
        let fits = checkpoint.values.iter().map(Vec::len).eq(expected)
            && self
                .optimizer
                .restore(checkpoint.state.step, checkpoint.moments);
        if !fits {
            let reason = "does not hold the tensors of this training; remove it".into();
            return Err(Error::Adapter {
                path: path.into(),
                reason,
            });
        }
        self.before = checkpoint.state.seconds;
        (self.values, self.best, self.state) =
            (checkpoint.values, checkpoint.best, checkpoint.state);
        Ok(())
    }
}

/// How each parameter learns: the method's at its rate, the head's at their own.
fn groups(task: &Task, step: &Step) -> Vec<Group> {
    let own = (task.method.parameters)(&task.sizes).len();
    let each = step.parameters.len() / task.options.candidates.len();
    let group = |(index, parameter): (usize, &Parameter)| {
        let candidate = task.options.candidates[index / each.max(1)];
        let (learning_rate, weight_decay) = match index % each.max(1) < own {
            true => (
                candidate.learning_rate.unwrap_or(task.method.learning_rate),
                0.0,
            ),
            false => (candidate.head_learning_rate, task.options.weight_decay),
        };
        Group {
            shape: parameter.shape.clone(),
            learning_rate: learning_rate * parameter.rate,
            weight_decay,
        }
    };
    step.parameters.iter().enumerate().map(group).collect()
}
