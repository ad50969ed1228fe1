//! Every line of `METHODS`: that it learns, repeats, has right gradients, and starts where its initialisation says.

#![allow(clippy::unwrap_used)]

mod support;

use std::{iter, ops::Range};

use preface_graph::{Base, FormKind, LayerGeometry};
use preface_trainer::{
    Error,
    adapter::Adapter,
    batch::Batch,
    data::Dataset,
    encode::{Encoded, Truth},
    engine::{Array, Session},
    evaluation::Evaluator,
    form::{Form, Place, Prompt},
    heads::{Pooling, Reads},
    methods::{METHODS, Method},
    options::{Candidate, Layers, Options, Precision},
    progress::Silent,
    seedbed::{Init, Seedbed},
    step::{Extent, KEPT, Manner, Purpose, Reading, Step},
    task::Task,
    tokens::Tokens,
    training::{self, Outcome},
};
use support::{Recording, base_folder, bits, export, library, skip, small_task, toy_task};

const BERT: &str = "bert_base.sdpa.legacy.op17.onnx";
const GPT2: &str = "gpt2.sdpa.legacy.op17.onnx";
const LLAMA: &str = "llama.sdpa.legacy.op17.onnx";
/// A learning rate that moves nothing.
const STILL: f32 = 1e-30;
/// A head that speaks before it learned anything.
const SPEAKING: &str = "label-text";

fn options(method: &str) -> Options {
    Options {
        method: method.into(),
        tokens: 3,
        bottleneck: 16,
        rank: 2,
        epochs: 3,
        batch: 8,
        patience: None,
        ..Options::default()
    }
}

fn candidate(seed: u64) -> Candidate {
    Candidate {
        seed,
        ..Candidate::default()
    }
}

fn train(base: &Base, data: &(Dataset, Dataset), options: &Options) -> Vec<Outcome> {
    told(base, data, options).0
}

fn told(base: &Base, data: &(Dataset, Dataset), options: &Options) -> (Vec<Outcome>, Recording) {
    let mut recording = Recording::default();
    let (train, dev) = data;
    let outcomes = training::train(base, library(), train, dev, options, None, &mut recording)
        .unwrap_or_else(|error| panic!("{}: {error}", options.method));
    (outcomes, recording)
}

/// The adapter that training starts from.
fn start(base: &Base, data: &(Dataset, Dataset), options: &Options) -> Adapter {
    let still = Candidate {
        learning_rate: Some(STILL),
        head_learning_rate: STILL,
        ..options.candidates[0]
    };
    let options = Options {
        candidates: vec![still],
        epochs: 1,
        weight_decay: 0.0,
        ..options.clone()
    };
    train(base, data, &options).remove(0).adapter
}

/// A base of the shared folder with a task in its words.
struct Scene {
    _export: support::Export,
    _folder: tempfile::TempDir,
    base: Base,
    data: (Dataset, Dataset),
}

impl Scene {
    fn of(name: &str) -> Option<Self> {
        let Some(export) = export(name) else {
            skip("the exports of ../shared");
            return None;
        };
        // The labels get words that the tiny exports know; a real tokenizer knows them.
        if !name.starts_with("stories") {
            export.rename(&[(60, "one"), (61, "two")]);
        }
        let folder = tempfile::tempdir().unwrap();
        Some(Self {
            base: Base::open(export.folder()).unwrap(),
            data: toy_task(folder.path()),
            _export: export,
            _folder: folder,
        })
    }

    fn task<'a>(&'a self, options: &'a Options) -> Result<Task<'a>, Error> {
        Task::new(&self.base, library(), &self.data.0, &self.data.1, options)
    }
}

/// Calls `check` with every method on each of the bases, those that take it.
fn with_every_method(names: &[&str], check: impl Fn(&str, &Scene, &Method)) {
    for &name in names {
        let Some(scene) = Scene::of(name) else { return };
        let methods = METHODS.iter();
        methods
            .filter(|method| takes(&scene.base, method, name))
            .for_each(|method| check(name, &scene, method));
    }
}

/// Hidden prompts cannot enter where keys are rotated.
fn takes(base: &Base, method: &Method, name: &str) -> bool {
    let rotary = name.starts_with("llama");
    base.description.forms.contains(&method.form) && !(rotary && method.name == "hidden-prompts")
}

#[test]
fn every_method_learns_a_small_task() {
    let folder = tempfile::tempdir().unwrap();
    let (mut train_data, mut dev) = small_task(folder.path());
    train_data.examples.truncate(48);
    dev.examples.truncate(24);
    let data = (train_data, dev);
    let base = Base::open(&base_folder()).unwrap();
    let labels = data.1.labels();
    let counts = labels.iter().map(|label| {
        let has =
            |example: &&preface_trainer::data::Example| example.target.names() == [label.clone()];
        data.1.examples.iter().filter(has).count()
    });
    let majority = counts.max().unwrap() as f64 / data.1.examples.len() as f64;
    for method in METHODS {
        let options = Options {
            threads: 2,
            epochs: 4,
            candidates: vec![Candidate {
                head_learning_rate: 3e-2,
                ..candidate(3)
            }],
            ..options(method.name)
        };
        let (outcomes, told) = told(&base, &data, &options);
        let losses: Vec<f64> = told.epochs.iter().map(|epoch| epoch.train_loss).collect();
        let accuracy = outcomes[0].dev.score();
        eprintln!("{}: dev {accuracy:.3}, losses {losses:.3?}", method.name);
        assert!(
            accuracy > majority + 0.2,
            "{}: {accuracy} {losses:?}",
            method.name
        );
        assert!(losses[3] < 0.8 * losses[0], "{}: {losses:?}", method.name);
    }
}

#[test]
fn a_seed_repeats_bit_for_bit_and_another_does_not() {
    with_every_method(&[BERT, GPT2], |name, scene, method| {
        let with = |seed| Options {
            candidates: vec![candidate(seed)],
            epochs: 2,
            ..options(method.name)
        };
        let [first, second, other] =
            [3, 3, 4].map(|seed| train(&scene.base, &scene.data, &with(seed)).remove(0));
        assert_eq!(first.adapter, second.adapter, "{name} {}", method.name);
        assert_eq!(
            bits(&first.adapter),
            bits(&second.adapter),
            "{name} {}",
            method.name
        );
        assert_ne!(
            bits(&first.adapter),
            bits(&other.adapter),
            "{name} {}",
            method.name
        );
    });
}

/// The numbers of each virtual token of a prompt, keys and values of every layer apart.
fn by_token(prompt: &Prompt) -> Vec<Vec<f32>> {
    match &prompt.form {
        Form::Embeddings { hidden, .. } => prompt.tensors[0]
            .chunks(*hidden)
            .map(<[f32]>::to_vec)
            .collect(),
        Form::KeyValues { tokens, layers, .. } => {
            let mut rows = Vec::new();
            for (LayerGeometry { kv_heads, head_dim }, tensor) in layers.iter().zip(&prompt.tensors)
            {
                for half in tensor.chunks(kv_heads * tokens * head_dim) {
                    for token in 0..*tokens {
                        let heads = half.chunks(tokens * head_dim);
                        let own = heads.flat_map(|head| {
                            head[token * head_dim..(token + 1) * head_dim].to_vec()
                        });
                        rows.push(own.collect());
                    }
                }
            }
            rows
        }
    }
}

#[test]
fn every_row_of_a_prompt_and_the_head_move_and_the_prompt_alone_lowers_the_loss() {
    with_every_method(&[BERT, GPT2, LLAMA], |name, scene, method| {
        let all = options(method.name);
        let before = start(&scene.base, &scene.data, &all);
        let after = train(&scene.base, &scene.data, &all).remove(0).adapter;
        assert_eq!(before.prompt.form, after.prompt.form);
        let rows = by_token(&before.prompt)
            .into_iter()
            .zip(by_token(&after.prompt));
        for (index, (before, after)) in rows.enumerate() {
            assert_ne!(before, after, "{name} {}: row {index} is dead", method.name);
        }
        assert!(
            before
                .head
                .iter()
                .zip(&after.head)
                .all(|(before, after)| before != after)
        );
        if let (Form::KeyValues { gated: true, .. }, Some(gates)) =
            (&after.prompt.form, after.prompt.tensors.last())
        {
            let closed = before.prompt.tensors.last().unwrap();
            assert!(
                gates.iter().zip(closed).all(|(gate, closed)| gate > closed),
                "{gates:?} {closed:?}"
            );
        }
        let alone = Options {
            head: Some(SPEAKING.into()),
            candidates: vec![Candidate {
                head_learning_rate: STILL,
                ..candidate(0)
            }],
            weight_decay: 0.0,
            epochs: 12,
            ..all
        };
        let (outcomes, told) = told(&scene.base, &scene.data, &alone);
        let mut head = outcomes[0].adapter.head.iter().flatten();
        assert!(
            head.all(|bias| bias.abs() < 1e-20),
            "{name} {}",
            method.name
        );
        let losses: Vec<f64> = told.epochs.iter().map(|epoch| epoch.train_loss).collect();
        eprintln!(
            "{name} {}: {:.4} to {:.4}",
            method.name, losses[0], losses[11]
        );
        assert!(losses[11] < losses[0], "{name} {}: {losses:?}", method.name);
    });
}

/// The graph of a training step with its session, its batch and values for its parameters.
struct Bench {
    step: Step,
    session: Session,
    batch: Batch,
    given: Vec<(String, Array)>,
}

/// Takes every tenth number.
fn without_tenths(index: usize) -> f32 {
    match index.is_multiple_of(10) {
        true => 0.0,
        false => 1.0 / 0.9,
    }
}

impl Bench {
    /// The first `batch` rows, and the next so many for each further candidate; dropout takes every tenth number.
    fn new(task: &Task, candidates: usize, from: usize) -> Self {
        Self::of(
            task,
            (candidates, from),
            Some(without_tenths),
            Manner::default(),
        )
    }

    /// As [`Bench::new`], with these factors of dropout, in that manner.
    fn of(
        task: &Task,
        (candidates, from): (usize, usize),
        factor: Option<fn(usize) -> f32>,
        manner: Manner,
    ) -> Self {
        let extent = Extent {
            candidates,
            ..task.extent
        };
        let manner = Manner {
            drops: factor.is_some(),
            ..manner
        };
        let purpose = Purpose::Training(task.reader(), manner);
        let step = Step::build(task.base, task.method, &task.sizes, extent, purpose).unwrap();
        let session = library()
            .session(&step.model, &task.base.folder, 1)
            .unwrap();
        let each = task.options.batch;
        let rows: Vec<Vec<&Encoded>> = (from..from + candidates)
            .map(|at| {
                let rows = task.train.rows[at * each..(at + 1) * each].iter();
                iter::repeat_n(rows, manner.copies()).flatten().collect()
            })
            .collect();
        let given = step.given.iter().zip(&task.given.tensors);
        let given = given
            .map(|((name, shape), values)| (name.clone(), Array::floats(shape, values.clone())));
        let batch = Batch::of(&rows, task.layout(), &step);
        let kept = factor.map(|factor| {
            let seen = batch.tokens + task.options.tokens;
            let count = step
                .dropout
                .numbers(each * manner.copies(), batch.tokens, seen);
            let factors = (0..candidates).flat_map(|_| (0..count).map(factor));
            let factors = Array::floats(&[candidates, count], factors.collect());
            (step.input(KEPT).to_owned(), factors)
        });
        Self {
            given: given.chain(kept).collect(),
            batch,
            session,
            step,
        }
    }

    /// The losses, and the gradient of every parameter.
    fn run(&mut self, values: &[Vec<f32>]) -> (Vec<f32>, Vec<Vec<f32>>) {
        let mut feeds = self.step.feeds(values);
        feeds.extend(self.given.iter().cloned());
        let outputs = self.session.run(&self.batch.with(&feeds)).unwrap();
        let mut outputs = outputs
            .into_iter()
            .map(|array| array.into_floats().unwrap());
        (outputs.next().unwrap(), outputs.collect())
    }
}

/// Values of one candidate's parameters: the method's own, gates opened, and a head of waves.
fn values(task: &Task, seed: u64) -> Vec<Vec<f32>> {
    let vocabulary = (4..30).collect();
    let mut seedbed = Seedbed::new(
        task.base,
        library(),
        &Init::Labels,
        &task.tokens,
        &task.labels,
        vocabulary,
        seed,
    )
    .unwrap();
    let mut values = (task.method.initial)(&task.sizes, &mut seedbed).unwrap();
    if task.method.gated {
        values.last_mut().unwrap().fill(0.3);
    }
    let wave = |index: usize| 0.5 * (1.3 * index as f32 + seed as f32).sin();
    let head = (task.head.parameters)(task.reader().size);
    values.extend(
        head.iter()
            .map(|parameter| (0..parameter.elements()).map(wave).collect()),
    );
    values
}

fn norm(tensors: &[Vec<f32>]) -> f64 {
    let squares = tensors
        .iter()
        .flatten()
        .map(|value| f64::from(*value).powi(2));
    squares.sum::<f64>().sqrt()
}

/// Moves along the gradient, in parts of the values' size.
const STEPS: [f32; 5] = [3e-2, 1e-2, 3e-3, 1e-3, 3e-4];

#[test]
fn gradients_of_the_training_loss_agree_with_finite_differences() {
    with_every_method(&[BERT, GPT2, LLAMA], |name, scene, method| {
        for (candidates, consistency) in [(1, 0.0), (2, 0.0), (2, 3.0)] {
            let options = Options {
                candidates: (0..candidates).map(candidate).collect(),
                ..options(method.name)
            };
            let task = scene.task(&options).unwrap();
            let candidates = candidates as usize;
            let manner = Manner {
                consistency,
                ..Manner::default()
            };
            let mut bench = Bench::of(&task, (candidates, 0), Some(without_tenths), manner);
            let all: Vec<Vec<f32>> = (0..candidates as u64)
                .flat_map(|seed| values(&task, seed))
                .collect();
            let each = all.len() / candidates;
            let (losses, gradients) = bench.run(&all);
            for one in 0..candidates {
                let own = one * each..(one + 1) * each;
                let prompt = (task.method.parameters)(&task.sizes).len();
                for part in [own.start..own.start + prompt, own.start + prompt..own.end] {
                    let what = format!("{name} {} of {candidates}, {part:?}", method.name);
                    let directions = along(&all, &gradients, part);
                    let products = gradients.iter().flatten().zip(directions.iter().flatten());
                    let slope: f64 = products.map(|(left, right)| f64::from(left * right)).sum();
                    assert!(slope > 1e-6, "{what}: no gradient");
                    let mut error = f64::INFINITY;
                    for step in STEPS {
                        let ends = [step, -step].map(|step| {
                            let found = bench.run(&moved(&all, &directions, step)).0;
                            for other in (0..candidates).filter(|&other| other != one) {
                                let apart = (found[other] - losses[other]).abs();
                                assert!(apart < 1e-6, "{what}: candidates mix, {apart}");
                            }
                            f64::from(found[one])
                        });
                        let difference = (ends[0] - ends[1]) / f64::from(2.0 * step);
                        error = error.min((difference / slope - 1.0).abs());
                    }
                    assert!(error < 3e-2, "{what}: {error}");
                }
            }
        }
    });
}

/// The gradients of the tensors in `part`, each as large as its values; zeros elsewhere.
fn along(values: &[Vec<f32>], gradients: &[Vec<f32>], part: Range<usize>) -> Vec<Vec<f32>> {
    let own = |(index, gradient): (usize, &Vec<f32>)| {
        let one = |tensor: &Vec<f32>| norm(std::slice::from_ref(tensor));
        let size = match part.contains(&index) {
            true => one(&values[index]).max(0.05) / one(gradient).max(1e-20),
            false => 0.0,
        };
        gradient.iter().map(|value| value * size as f32).collect()
    };
    gradients.iter().enumerate().map(own).collect()
}

fn moved(values: &[Vec<f32>], directions: &[Vec<f32>], step: f32) -> Vec<Vec<f32>> {
    let pairs = values.iter().zip(directions);
    let one = |(values, directions): (&Vec<f32>, &Vec<f32>)| {
        let pairs = values.iter().zip(directions);
        pairs.map(|(value, along)| value + step * along).collect()
    };
    pairs.map(one).collect()
}

#[test]
fn products_of_16_bits_change_losses_and_gradients_a_little() {
    with_every_method(&[BERT, GPT2, LLAMA], |name, scene, method| {
        let options = options(method.name);
        let task = scene.task(&options).unwrap();
        let values = values(&task, 0);
        let run = |precision, emulated| {
            let manner = Manner {
                precision,
                emulated,
                ..Manner::default()
            };
            Bench::of(&task, (1, 0), None, manner).run(&values)
        };
        let (losses, gradients) = run(Precision::F32, false);
        let (halved_losses, halved) = run(Precision::F16, true);
        let apart = (halved_losses[0] / losses[0] - 1.0).abs();
        let error_to = |other: &[Vec<f32>]| norm(&moved(&halved, other, -1.0)) / norm(&gradients);
        let error = error_to(&gradients);
        let what = format!("{name} {}: {apart}, {error}", method.name);
        assert!(apart < 1e-3 && error < 1e-2, "{what}");
        // The processor alone rounds weights and nothing else.
        let of_weights = run(Precision::F16, false).1;
        assert!(error > 1e-5 && error_to(&of_weights) > 1e-5, "{what}");
    });
}

#[test]
fn answers_that_are_apart_cost_more_and_those_that_agree_nothing() {
    for name in [BERT, GPT2, LLAMA] {
        let Some(scene) = Scene::of(name) else { return };
        let options = options("prompt-tuning");
        let task = scene.task(&options).unwrap();
        let values = values(&task, 0);
        let loss = |factor, consistency| {
            let manner = Manner {
                consistency,
                ..Manner::default()
            };
            Bench::of(&task, (1, 0), Some(factor), manner)
                .run(&values)
                .0[0]
        };
        let kept: fn(usize) -> f32 = |_| 1.0;
        let (once, twice) = (loss(kept, 0.0), loss(kept, 5.0));
        assert!((once - twice).abs() < 1e-5, "{name}: {once} and {twice}");
        let [little, much] = [1.0, 3.0].map(|weight| loss(without_tenths, weight));
        assert!(
            little > 0.0 && much > little + 1e-4,
            "{name}: {little} and {much}"
        );
    }
}

#[test]
fn dropout_that_takes_nothing_changes_nothing() {
    for name in [BERT, GPT2, LLAMA] {
        let Some(scene) = Scene::of(name) else { return };
        let options = options("prompt-tuning");
        let task = scene.task(&options).unwrap();
        let values = values(&task, 0);
        let run = |factor| Bench::of(&task, (1, 0), factor, Manner::default()).run(&values);
        let without = run(None);
        assert_eq!(without, run(Some(|_| 1.0)), "{name}");
        let drawn = run(Some(|index| if index % 3 == 0 { 0.0 } else { 1.5 }));
        assert!((without.0[0] - drawn.0[0]).abs() > 1e-3, "{name}");
    }
}

#[test]
fn two_candidates_at_once_are_each_alone() {
    with_every_method(&[BERT, GPT2, LLAMA], |name, scene, method| {
        let options = options(method.name);
        let task = scene.task(&options).unwrap();
        let both: Vec<Vec<Vec<f32>>> = (0..2).map(|seed| values(&task, seed)).collect();
        let together = Bench::new(&task, 2, 0).run(&both.concat());
        for (one, own) in both.iter().enumerate() {
            let alone = Bench::new(&task, 1, one).run(own);
            let apart = (together.0[one] - alone.0[0]).abs();
            assert!(apart < 1e-5, "{name} {}: loss {apart}", method.name);
            let gradients = &together.1[one * own.len()..(one + 1) * own.len()];
            let differences: Vec<Vec<f32>> = gradients
                .iter()
                .zip(&alone.1)
                .map(|(left, right)| {
                    left.iter()
                        .zip(right)
                        .map(|(left, right)| left - right)
                        .collect()
                })
                .collect();
            let apart = norm(&differences) / norm(&alone.1);
            assert!(apart < 1e-5, "{name} {}: gradient {apart}", method.name);
        }
    });
}

/// What the head would read of the dev texts.
fn features(task: &Task, step: &Step, form: &Form, values: &[Vec<f32>]) -> Vec<f32> {
    let mut session = library()
        .session(&step.model, &task.base.folder, 1)
        .unwrap();
    let rows: Vec<&Encoded> = task.dev.rows.iter().collect();
    let layout = preface_trainer::batch::Layout {
        form,
        ..task.layout()
    };
    let batch = Batch::of(&[rows], layout, step);
    let feeds = step.feeds(values);
    session
        .run(&batch.with(&feeds))
        .unwrap()
        .remove(0)
        .into_floats()
        .unwrap()
}

#[test]
fn a_gated_prefix_starts_as_the_base_without_a_prompt() {
    for name in [BERT, GPT2, LLAMA] {
        let Some(scene) = Scene::of(name) else { return };
        let options = options("gated-prefix-tuning");
        let task = scene.task(&options).unwrap();
        let mut own = values(&task, 0);
        let gates = own.len() - 3;
        own[gates].fill(1e-13);
        let reading = task.reader().reading;
        let purpose = Purpose::Features(Reads::Hidden, reading);
        let step = Step::build(task.base, task.method, &task.sizes, Extent::ONE, purpose).unwrap();
        let bare = Step::unprompted(task.base, Reads::Hidden, reading).unwrap();
        let none = Form::Embeddings {
            tokens: 0,
            hidden: task.base.description.hidden,
            place: Place::Before,
        };
        let prompted = features(&task, &step, &task.sizes.form, &own[..gates + 1]);
        let unprompted = features(&task, &bare, &none, &[]);
        assert_eq!(prompted.len(), unprompted.len());
        let apart = prompted
            .iter()
            .zip(&unprompted)
            .map(|(left, right)| (left - right).abs());
        let largest = unprompted
            .iter()
            .fold(1.0, |most: f32, value| most.max(value.abs()));
        let apart = apart.fold(0.0, f32::max) / largest;
        eprintln!("{name}: {apart:e}");
        assert!(apart < 1e-6, "{name}: {apart}");
        let (_, gradients) = Bench::new(&task, 1, 0).run(&own);
        assert!(
            gradients[gates]
                .iter()
                .all(|gradient| gradient.abs() > 1e-7),
            "{name}: {:?}",
            gradients[gates]
        );
    }
}

#[test]
fn hidden_prompts_that_are_real_layer_inputs_are_the_keys_of_that_text() {
    for name in [BERT, GPT2] {
        let Some(scene) = Scene::of(name) else { return };
        let started = |method: &str| {
            let options = Options {
                init: Init::Text("w10 w40 w21".into()),
                ..options(method)
            };
            start(&scene.base, &scene.data, &options).prompt
        };
        let (hidden, prefix) = (started("hidden-prompts"), started("prefix-tuning"));
        assert_eq!(hidden.form, prefix.form);
        for (hidden, prefix) in hidden
            .tensors
            .iter()
            .flatten()
            .zip(prefix.tensors.iter().flatten())
        {
            assert!((hidden - prefix).abs() < 1e-5, "{name}: {hidden} {prefix}");
        }
    }
}

#[test]
fn rotated_keys_take_no_hidden_prompts_and_say_so() {
    let Some(scene) = Scene::of(LLAMA) else {
        return;
    };
    let options = options("hidden-prompts");
    let (train, dev) = &scene.data;
    let found = training::train(
        &scene.base,
        library(),
        train,
        dev,
        &options,
        None,
        &mut Silent,
    );
    let error = found.unwrap_err().to_string();
    assert!(error.contains("hidden prompts cannot enter"), "{error}");
}

#[test]
fn cached_lower_layers_give_the_losses_of_all() {
    for name in [BERT, GPT2, LLAMA] {
        let Some(scene) = Scene::of(name) else { return };
        for method in ["prefix-tuning", "gated-prefix-tuning", "prefix-tuning-mlp"] {
            let cached = Options {
                layers: Layers::Top(1),
                candidates: vec![candidate(0), candidate(1)],
                dropout: Some(0.0),
                ..options(method)
            };
            let whole = Options {
                cache_bytes: 0,
                ..cached.clone()
            };
            let tokens = {
                let task = scene.task(&cached).unwrap();
                let rows = task.train.rows.iter().chain(&task.dev.rows);
                rows.map(|row| row.ids.len()).sum::<usize>()
            };
            let hidden_rows = Options {
                cache_bytes: tokens * scene.base.description.hidden * size_of::<f32>(),
                ..cached.clone()
            };
            // Hidden rows with queries, keys and values; hidden rows alone; nothing.
            for (options, values) in [(&cached, 4), (&hidden_rows, 1), (&whole, 0)] {
                let found = scene.task(options).unwrap().train.rows[0].lower.len();
                assert_eq!(found, values, "{name}");
            }
            let [whole, cached, hidden_rows] = [whole, cached, hidden_rows]
                .map(|options| told(&scene.base, &scene.data, &options).1.steps);
            assert_eq!(cached.len(), whole.len());
            for ((cached, hidden_rows), whole) in cached.iter().zip(&hidden_rows).zip(&whole) {
                let bound = if whole.epoch == 1 { 1e-6 } else { 1e-4 };
                for step in [cached, hidden_rows] {
                    assert!(
                        (step.loss - whole.loss).abs() < bound,
                        "{name} {method}: {step:?} {whole:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn initialisations_are_what_they_say() {
    let Some(scene) = Scene::of(BERT) else { return };
    let base = &scene.base;
    let hidden = base.description.hidden;
    let graph = base.model.graph.as_ref().unwrap();
    let table = graph
        .initializer(&base.description.embedding_table)
        .unwrap();
    let table = table.floats(&base.folder).unwrap();
    let row = |id: usize| table[id * hidden..(id + 1) * hidden].to_vec();
    let started = |method: &str, tokens: usize, init: Init| {
        let options = Options {
            tokens,
            init,
            ..options(method)
        };
        start(base, &scene.data, &options).prompt
    };
    let rows = |prompt: Prompt| {
        let rows = prompt.tensors[0].chunks(hidden);
        rows.map(<[f32]>::to_vec).collect::<Vec<_>>()
    };
    let text = rows(started("prompt-tuning", 5, Init::Text("w12 w33 w7".into())));
    assert_eq!(text, [12, 33, 7, 12, 33].map(row));
    let seen = Tokens::read(&base.tokenizer).unwrap();
    let texts = scene
        .data
        .0
        .examples
        .iter()
        .map(|example| seen.plain(&example.text).unwrap());
    let vocabulary: Vec<Vec<f32>> = texts.flatten().map(|id| row(id as usize)).collect();
    let labels = rows(started("prompt-tuning", 5, Init::Labels));
    assert_eq!(labels[..2], [row(60), row(61)]);
    let sampled = rows(started("prompt-tuning", 6, Init::Vocabulary));
    for found in labels[2..].iter().chain(&sampled) {
        assert!(vocabulary.contains(found));
    }
    let other = started("prompt-tuning", 2, Init::Text("w12 w33".into()));
    let adapter = rows(started(
        "prompt-tuning",
        3,
        Init::Prompt(Box::new(other.clone())),
    ));
    assert_eq!(adapter, [12, 33, 12].map(row));

    let zero = started("prefix-tuning", 2, Init::Zero);
    assert!(
        zero.tensors
            .iter()
            .flatten()
            .all(|value| value.abs() < 1e-20)
    );
    let keys = started("prefix-tuning", 2, Init::Text("w12 w33".into()));
    let longer = started("prefix-tuning", 4, Init::Prompt(Box::new(keys.clone())));
    let (short, long) = (by_token(&keys), by_token(&longer));
    for (at, long) in long.iter().enumerate() {
        assert_eq!(*long, short[at / 4 * 2 + at % 4 % 2]);
    }

    for method in METHODS
        .iter()
        .filter(|method| method.form == FormKind::Embeddings)
    {
        let cases = [
            (Init::Zero, "rows of zeros"),
            (Init::Prompt(Box::new(keys.clone())), "another form"),
        ];
        for (init, part) in cases {
            let options = Options {
                init,
                ..options(method.name)
            };
            let (train, dev) = &scene.data;
            let found = training::train(base, library(), train, dev, &options, None, &mut Silent);
            let error = found.unwrap_err().to_string();
            assert!(error.contains(part), "{}: {error}", method.name);
        }
    }
}

/// What the head answers for every dev text, all in one batch or each alone.
fn answers(task: &Task, prompt: &[Vec<f32>], together: bool) -> Vec<f32> {
    let questions = task.questions();
    let mut evaluator = Evaluator::new(
        task.base,
        library(),
        task.method,
        &task.sizes,
        Extent::ONE,
        questions,
        1,
    )
    .unwrap();
    let each = if together { task.dev.rows.len() } else { 1 };
    let rows = task.dev.rows.chunks(each);
    let found = rows.flat_map(|rows| evaluator.predict(prompt, rows, |_| ()).unwrap());
    found.map(|answer| answer.loss).collect()
}

#[test]
fn a_prompt_behind_the_text_learns_and_padding_does_not_matter() {
    for name in [GPT2, LLAMA, "stories260K_model_nocache", "optimum_gpt2"] {
        let Some(scene) = Scene::of(name) else { return };
        for method in METHODS
            .iter()
            .filter(|method| method.form == FormKind::Embeddings)
        {
            let options = Options {
                head: Some(SPEAKING.into()),
                place: Place::After,
                epochs: 12,
                candidates: vec![Candidate {
                    head_learning_rate: STILL,
                    ..candidate(0)
                }],
                weight_decay: 0.0,
                ..options(method.name)
            };
            let task = scene.task(&options).unwrap();
            assert_eq!(
                (task.wording.pooling, task.reader().reading),
                (Pooling::Last, Reading::One)
            );
            let prompt = values(&task, 0);
            let pairs = answers(&task, &prompt, true)
                .into_iter()
                .zip(answers(&task, &prompt, false));
            for (together, alone) in pairs {
                assert!(
                    (together - alone).abs() < 1e-5,
                    "{name} {}: {together} {alone}",
                    method.name
                );
            }
            if method.name == "prompt-tuning" {
                let (outcomes, told) = told(&scene.base, &scene.data, &options);
                let losses: Vec<f64> = told.epochs.iter().map(|epoch| epoch.train_loss).collect();
                eprintln!("{name}: {losses:.4?}");
                assert!(losses[11] < 0.99 * losses[0], "{name}: {losses:?}");
                assert_eq!(outcomes[0].adapter.prompt.form.place(), Place::After);
            }
        }
        let refused = Options {
            place: Place::After,
            ..options("prefix-tuning")
        };
        let error = scene.task(&refused).err().unwrap().to_string();
        assert!(error.contains("no place behind the text"), "{error}");
    }
}

#[test]
fn texts_before_a_prompt_behind_them_are_run_once() {
    let mut cached_bases = 0;
    for name in [
        "optimum_gpt2_past",
        "optimum_llama_past",
        "stories260K_model",
    ] {
        let Some(scene) = Scene::of(name) else { return };
        let inputs = &scene.base.description.inputs;
        let caches = !inputs.past.is_empty() && inputs.positions.is_some();
        let cached = Options {
            place: Place::After,
            ..options("prompt-tuning")
        };
        let whole = Options {
            cache_bytes: 0,
            ..cached.clone()
        };
        assert_eq!(
            scene.task(&cached).unwrap().extent.cached > 0,
            caches,
            "{name}"
        );
        assert_eq!(scene.task(&whole).unwrap().extent.cached, 0);
        cached_bases += usize::from(caches);
        let [cached, whole] =
            [cached, whole].map(|options| told(&scene.base, &scene.data, &options).1);
        for (cached, whole) in cached.steps.iter().zip(&whole.steps) {
            let bound = if whole.step == 1 { 1e-5 } else { 1e-2 };
            assert!(
                (cached.loss - whole.loss).abs() < bound * (1.0 + whole.loss),
                "{name}: {cached:?} {whole:?}"
            );
        }
    }
    assert!(cached_bases > 0);
}

#[test]
fn an_encoder_decoder_goes_on_with_texts() {
    let Some(scene) = Scene::of("t5.sdpa.legacy.op17.onnx") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let lines = |count, salt| {
        let toys = support::toys(count, salt, false).into_iter();
        toys.map(|toy| {
            let target = if toy.has[0] { "w70 w71" } else { "w80" };
            serde_json::json!({"text": toy.text, "target": target})
        })
    };
    let data = (
        support::written(&folder.path().join("train.jsonl"), lines(32, 1)),
        support::written(&folder.path().join("dev.jsonl"), lines(16, 2)),
    );
    for method in ["prompt-tuning", "prefix-tuning"] {
        let options = Options {
            epochs: 10,
            ..options(method)
        };
        let (outcomes, told) = told(&scene.base, &data, &options);
        let losses: Vec<f64> = told.epochs.iter().map(|epoch| epoch.train_loss).collect();
        eprintln!("t5 {method}: {losses:.3?}");
        assert!(losses[9] < losses[0], "{method}: {losses:?}");
        assert!(
            outcomes[0]
                .dev_truths
                .iter()
                .all(|truth| matches!(truth, Truth::Places(_)))
        );
    }
}
