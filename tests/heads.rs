//! Every line of `HEADS` and every kind of answer: that it learns, survives its folder, and says what does not fit.

#![allow(clippy::unwrap_used)]

mod support;

use std::{fs, path::Path};

use preface_graph::{
    Base,
    onnx::{TensorProto, data_type},
};
use preface_trainer::{
    adapter::{Adapter, InputsCard},
    batch::Batch,
    data::{AnswerKind, Dataset},
    encode::{Encoded, Overlength, Rows, Truth},
    evaluation::{Evaluator, encode, evaluate},
    heads::{HEADS, Head, Pooling, Reads},
    metrics::{Evaluation, Found, rejection_threshold},
    options::{Candidate, ClassWeights, Options, Precision},
    progress::Silent,
    seedbed::Init,
    step::{Extent, Manner, Purpose, Step},
    task::{Task, refuse_unmeasurable},
    tokens::Tokens,
    training::{self, Outcome},
};
use serde_json::{Value, json};
use support::{Recording, Toy, export, library, skip, toys, written};

const BERT: &str = "bert_base.sdpa.legacy.op17.onnx";

const EPOCHS: usize = 16;

fn options() -> Options {
    Options {
        tokens: 3,
        epochs: EPOCHS,
        batch: 8,
        patience: None,
        // Its noise is larger than what a prompt does for the logits of random weights.
        dropout: Some(0.0),
        ..Options::default()
    }
}

/// A line of the kind for a text.
fn line(kind: AnswerKind, toy: Toy) -> Value {
    let label = if toy.has[0] { "one" } else { "two" };
    let words: Vec<&str> = toy.text.split(' ').collect();
    match kind {
        AnswerKind::Label => json!({"text": toy.text, "label": label}),
        AnswerKind::Labels => {
            let labels = ["one", "two"].into_iter().zip(toy.has);
            let labels: Vec<&str> = labels
                .filter(|(_, has)| *has)
                .map(|(name, _)| name)
                .collect();
            json!({"text": toy.text, "labels": labels})
        }
        AnswerKind::Tags => {
            let kind = |word: &&str| match &word[..2] {
                "w1" => Some("one"),
                "w2" => Some("two"),
                _ => None,
            };
            let kinds: Vec<_> = words.iter().map(kind).collect();
            let tag = |at: usize| match kinds[at] {
                None => "O".to_owned(),
                Some(kind) if at > 0 && kinds[at - 1] == Some(kind) => format!("I-{kind}"),
                Some(kind) => format!("B-{kind}"),
            };
            json!({"tokens": words, "tags": (0..words.len()).map(tag).collect::<Vec<_>>()})
        }
        AnswerKind::Text => json!({"text": toy.text, "target": label}),
    }
}

fn data(folder: &Path, kind: AnswerKind) -> (Dataset, Dataset) {
    let both = kind == AnswerKind::Labels;
    let part = |name: &str, count, salt| {
        let toys = toys(count, salt, both || kind == AnswerKind::Tags).into_iter();
        written(&folder.join(name), toys.map(|toy| line(kind, toy)))
    };
    (part("train.jsonl", 48, 1), part("dev.jsonl", 24, 2))
}

fn train(base: &Base, data: &(Dataset, Dataset), options: &Options) -> (Outcome, Recording) {
    let mut recording = Recording::default();
    let (train, dev) = data;
    let outcomes = training::train(base, library(), train, dev, options, None, &mut recording);
    (
        outcomes.unwrap_or_else(|error| panic!("{error}")).remove(0),
        recording,
    )
}

/// A tiny export that knows a mask token and the labels' names.
fn speaking(name: &str) -> Option<support::Export> {
    let Some(export) = export(name) else {
        skip("the exports of ../shared");
        return None;
    };
    if !name.starts_with("stories") {
        export.rename(&[(60, "one"), (61, "two"), (96, "[MASK]")]);
    }
    Some(export)
}

/// The bases on which a head is tried.
fn bases(head: &Head) -> &'static [&'static str] {
    match head.reads {
        Reads::Hidden => &[BERT, "gpt2.sdpa.legacy.op17.onnx"],
        Reads::Projection => &["optimum_bert_mlm", "optimum_gpt2"],
        Reads::Logits => &["stories260K_model_nocache", "optimum_gpt2"],
    }
}

#[test]
fn every_head_learns_and_answers_the_same_from_its_folder() {
    let cases = HEADS.iter().flat_map(|head| {
        let kinds = head
            .answers
            .iter()
            .flat_map(move |kind| bases(head).iter().map(move |base| (*kind, *base)));
        kinds.map(move |(kind, base)| (head, kind, base))
    });
    for (head, kind, name) in cases {
        let Some(export) = speaking(name) else { return };
        let base = Base::open(export.folder()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let data = data(folder.path(), kind);
        let masked = head.reads == Reads::Projection && name.contains("bert");
        let options = Options {
            head: Some(head.name.into()),
            head_rank: 2,
            template: if masked { "{text} {mask}" } else { "{text}" }.into(),
            candidates: vec![Candidate {
                head_learning_rate: 3e-2,
                ..Candidate::default()
            }],
            ..options()
        };
        let (outcome, told) = train(&base, &data, &options);
        let what = format!("{} {kind:?} {name}", head.name);
        let losses: Vec<f64> = told.epochs.iter().map(|epoch| epoch.train_loss).collect();
        eprintln!(
            "{what}: {:.3} to {:.3}, dev {:.3}",
            losses[0],
            losses[EPOCHS - 1],
            outcome.dev.score()
        );
        // A prompt alone does little for the logits of random weights.
        let bound = if outcome.adapter.head.is_empty() {
            0.995
        } else {
            0.97
        };
        assert!(losses[EPOCHS - 1] < bound * losses[0], "{what}: {losses:?}");
        let still = Options {
            epochs: 1,
            weight_decay: 0.0,
            candidates: vec![Candidate {
                learning_rate: Some(f32::MIN_POSITIVE),
                head_learning_rate: f32::MIN_POSITIVE,
                ..Candidate::default()
            }],
            ..options
        };
        let start = train(&base, &data, &still).0.adapter.head;
        let moved = start
            .iter()
            .zip(&outcome.adapter.head)
            .all(|(from, to)| from != to);
        assert!(moved, "{what}: a tensor of the head is dead");

        outcome.adapter.write(folder.path()).unwrap();
        let mut adapter = Adapter::read(folder.path()).unwrap();
        // Decimal digits may come back with another last bit.
        let metrics = &outcome.adapter.card.metrics;
        for (name, figure) in &mut adapter.card.metrics {
            assert!((*figure - metrics[name]).abs() < 1e-12, "{what}");
            *figure = metrics[name];
        }
        assert_eq!(adapter, outcome.adapter, "{what}");
        adapter.fits(&base.description, folder.path()).unwrap();
        let tokens = Tokens::read(&base.tokenizer).unwrap();
        let Rows { rows, .. } = encode(
            &adapter.card,
            &base.description,
            &tokens,
            &data.1,
            Overlength::Refuse,
            None,
        )
        .unwrap();
        let truths: Vec<Truth> = rows.iter().map(|row| row.truth.clone()).collect();
        assert_eq!(truths, outcome.dev_truths, "{what}");
        let answers = evaluate(&adapter, &base, library(), &rows, 1, |_| ()).unwrap();
        for (answer, expected) in answers.iter().zip(&outcome.dev_answers) {
            match (&answer.found, &expected.found) {
                (Found::Probabilities(left), Found::Probabilities(right)) => {
                    let mut pairs = left.iter().zip(right);
                    assert!(
                        pairs.all(|(left, right)| (left - right).abs() < 1e-5),
                        "{what}"
                    );
                }
                (left, right) => assert_eq!(left, right, "{what}"),
            }
            assert!(
                (answer.loss - expected.loss).abs() < 1e-5,
                "{what}: {answer:?} {expected:?}"
            );
        }
        let card = &adapter.card;
        let found = Evaluation::of(kind, &card.labels, card.answer.threshold, &answers, &truths);
        assert_eq!(found.figures, outcome.dev.figures, "{what}");
    }
}

fn refusal(base: &Base, data: &(Dataset, Dataset), options: &Options) -> String {
    let (train, dev) = data;
    let found = training::train(base, library(), train, dev, options, None, &mut Silent);
    found
        .err()
        .map_or_else(|| "trained".into(), |error| error.to_string())
}

#[test]
fn a_verbaliser_refuses_labels_without_tokens_of_their_own() {
    for name in ["optimum_bert_mlm", "optimum_gpt2"] {
        let Some(export) = speaking(name) else { return };
        let base = Base::open(export.folder()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let data = data(folder.path(), AnswerKind::Label);
        let with = |words: [&str; 2]| Options {
            head: Some("verbaliser".into()),
            template: if name.contains("bert") {
                "{text} {mask}"
            } else {
                "{text}"
            }
            .into(),
            words: words.map(String::from).into(),
            ..options()
        };
        let cases = [
            (["w5", "unheard"], "no tokens for the label \"unheard\""),
            (
                ["w5", "w5"],
                "\"w5\" and \"w5\" of two labels have the same",
            ),
            (["w5 w6", "w6 w5"], "have the same tokens"),
            (["w5", "w5 w5"], "have the same tokens"),
        ];
        for (words, part) in cases {
            let error = refusal(&base, &data, &with(words));
            assert!(
                error.contains(part) && error.contains("--verbaliser"),
                "{name}: {error}"
            );
        }
        let (outcome, _) = train(&base, &data, &with(["w5", "w6"]));
        assert_eq!(outcome.adapter.card.verbaliser, [[5], [6]]);
    }
    let Some(export) = speaking(BERT) else { return };
    let base = Base::open(export.folder()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path(), AnswerKind::Label);
    let options = Options {
        head: Some("verbaliser".into()),
        template: "{text} {mask}".into(),
        ..options()
    };
    let error = refusal(&base, &data, &options);
    assert!(error.contains("no logits over its vocabulary"), "{error}");
}

/// A base with data of lines that a test writes itself.
struct Scene {
    export: support::Export,
    folder: tempfile::TempDir,
    base: Base,
}

impl Scene {
    fn new() -> Option<Self> {
        let export = speaking(BERT)?;
        Some(Self {
            base: Base::open(export.folder()).unwrap(),
            folder: tempfile::tempdir().unwrap(),
            export,
        })
    }

    fn data(&self, name: &str, lines: impl IntoIterator<Item = Value>) -> Dataset {
        written(&self.folder.path().join(name), lines)
    }

    fn pair(&self, train: Vec<Value>, dev: Vec<Value>) -> (Dataset, Dataset) {
        (self.data("train.jsonl", train), self.data("dev.jsonl", dev))
    }

    fn labelled(&self) -> (Dataset, Dataset) {
        data(self.folder.path(), AnswerKind::Label)
    }

    fn task<'a>(&'a self, data: &(Dataset, Dataset), options: &'a Options) -> Task<'a> {
        Task::new(&self.base, library(), &data.0, &data.1, options).unwrap()
    }
}

#[test]
fn pairs_are_two_segments() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.export.edit(|tokenizer| {
        tokenizer["post_processor"] =
            json!({"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]});
    });
    scene.base = Base::open(scene.export.folder()).unwrap();
    let lines = |count, salt| {
        let (first, second) = (toys(count, salt + 7, false), toys(count, salt, false));
        let pairs = first.into_iter().rev().zip(second);
        let line = |(first, second): (Toy, Toy)| {
            let label = if second.has[0] { 1 } else { 0 };
            json!({"text": first.text, "text2": second.text, "label": label})
        };
        pairs.map(line).collect::<Vec<_>>()
    };
    let data = scene.pair(lines(48, 1), lines(24, 2));
    let options = Options {
        candidates: vec![Candidate {
            head_learning_rate: 1e-1,
            ..Candidate::default()
        }],
        ..options()
    };
    let task = scene.task(&data, &options);
    let row = &task.train.rows[0];
    let first = data.0.examples[0].text.split(' ').count() + 2;
    assert!(row.types[..first].iter().all(|kind| *kind == 0));
    assert!(row.types[first..].iter().all(|kind| *kind == 1) && row.types.len() > first);
    let (outcome, told) = train(&scene.base, &data, &options);
    assert_eq!(outcome.adapter.card.inputs, InputsCard::Pair);
    assert_eq!(outcome.adapter.card.labels, ["0", "1"]);
    assert!(told.epochs[EPOCHS - 1].train_loss < 0.97 * told.epochs[0].train_loss);
}

#[test]
fn a_template_surrounds_every_text() {
    let Some(scene) = Scene::new() else { return };
    let data = scene.labelled();
    let with = |template: &str, pooling| Options {
        template: template.into(),
        pooling,
        ..options()
    };
    let options = with("w5 {text} {mask} w6", Some(Pooling::Mask));
    let task = scene.task(&data, &options);
    let plain = task.tokens.plain(&data.0.examples[0].text).unwrap();
    let row = &task.train.rows[0];
    assert_eq!(row.ids, [&[5], &plain[..], &[96, 6]].concat());
    assert_eq!(row.mask, Some(plain.len() + 1));
    assert_eq!(task.token_budget().unwrap().template, 3);
    let cases = [
        (with("w5", None), "exactly once"),
        (with("{text} {text}", None), "exactly once"),
        (
            with("{text}", Some(Pooling::Mask)),
            "put {mask} into the template",
        ),
    ];
    for (options, part) in cases {
        let error = refusal(&scene.base, &data, &options);
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn long_texts_are_refused_or_cut_and_counted() {
    let Some(scene) = Scene::new() else { return };
    let (train_data, dev) = scene.labelled();
    let mut lines: Vec<Value> = toys(8, 5, false)
        .into_iter()
        .map(|toy| line(AnswerKind::Label, toy))
        .collect();
    lines.push(json!({"text": "w40 ".repeat(80).trim(), "label": "one"}));
    let data = (scene.data("long.jsonl", lines), dev);
    drop(train_data);
    let refused = options();
    let error = refusal(&scene.base, &data, &refused);
    for part in [
        "long.jsonl, line 9",
        "80 tokens",
        "room for 61",
        "--truncate",
    ] {
        assert!(error.contains(part), "{error}");
    }
    let cut = Options {
        overlength: Overlength::Truncate,
        epochs: 1,
        ..options()
    };
    let task = scene.task(&data, &cut);
    assert_eq!(
        (task.train.truncated, task.train.rows[8].ids.len()),
        (1, 61)
    );
    assert_eq!(train(&scene.base, &data, &cut).0.truncated, 1);
}

#[test]
fn the_longer_text_of_a_pair_is_cut() {
    let Some(scene) = Scene::new() else { return };
    let long = "w40 ".repeat(80);
    let pair = |text: &str, text2: &str, label: &str| json!({"text": text.trim(), "text2": text2.trim(), "label": label});
    let lines = vec![
        pair("w5 w6", &long, "a"),
        pair(&long, "w5 w6", "b"),
        pair(&long, &long, "a"),
    ];
    let data = scene.pair(lines.clone(), lines);
    let cut = Options {
        overlength: Overlength::Truncate,
        ..options()
    };
    let task = scene.task(&data, &cut);
    let counts =
        |row: &Encoded| [5, 6, 40].map(|id| row.ids.iter().filter(|&&of| of == id).count());
    for row in &task.train.rows {
        assert_eq!(row.ids.len(), 61, "{row:?}");
    }
    assert_eq!(counts(&task.train.rows[0])[..2], [1, 1]);
    assert_eq!(counts(&task.train.rows[1])[..2], [1, 1]);
}

#[test]
fn what_runs_away_is_stopped_and_two_draws_of_nothing_are_refused() {
    let Some(scene) = Scene::new() else { return };
    let data = scene.labelled();
    let candidates = vec![Candidate {
        learning_rate: Some(1e30),
        ..Candidate::default()
    }];
    let cases = [
        (
            Options {
                candidates,
                ..options()
            },
            "in epoch 1, step 2, a number of it is above 10000",
        ),
        (
            Options {
                consistency: 1.0,
                ..options()
            },
            "pass --dropout 0.1",
        ),
        (
            Options {
                consistency: -1.0,
                ..options()
            },
            "not below 0, not -1",
        ),
    ];
    for (options, part) in cases {
        let error = refusal(&scene.base, &data, &options);
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_loss_that_is_no_number_stops_with_its_place_and_its_lines() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let name = scene.base.description.embedding_table.clone();
    let graph = scene.base.model.graph.as_mut().unwrap();
    let mut tensors = graph.initializer.iter_mut();
    let table = tensors.find(|tensor| tensor.name() == name).unwrap();
    let mut numbers = table.floats(scene.export.folder()).unwrap();
    let width = table.dims[1] as usize;
    numbers[40 * width..41 * width].fill(f32::NAN);
    let bytes: Vec<u8> = numbers
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect();
    *table = TensorProto::of_raw(&name, data_type::FLOAT, &table.dims.clone(), bytes);
    let good = |label: &str| json!({"text": "w5 w6", "label": label});
    let train = vec![
        good("a"),
        good("b"),
        json!({"text": "w5 w40", "label": "b"}),
    ];
    let data = scene.pair(train, vec![good("a"), good("b")]);
    for (precision, more) in [(Precision::F32, false), (Precision::F16, true)] {
        let options = Options {
            precision,
            init: Init::Text("w5".into()),
            ..options()
        };
        let error = refusal(&scene.base, &data, &options);
        for part in ["in epoch 1, step 1 (lines 1, 2, 3)", "--learning-rate"] {
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(error.contains("--precision f32"), more, "{error}");
    }
}

#[test]
fn an_encoder_decoder_reads_label_names_as_it_reads_texts() {
    let Some(export) = speaking("t5.sdpa.legacy.op17.onnx") else {
        return;
    };
    let base = Base::open(export.folder()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path(), AnswerKind::Label);
    let options = Options {
        head: Some("label-text".into()),
        epochs: 1,
        ..options()
    };
    let task = Task::new(&base, library(), &data.0, &data.1, &options).unwrap();
    let [names] = &task.given.tensors[..] else {
        panic!("{:?}", task.given.tensors);
    };
    let (one, other) = names.split_at(base.description.hidden);
    assert!(one.len() == other.len() && one != other, "{names:?}");
    let (outcome, _) = train(&base, &data, &options);
    assert!(outcome.dev.loss.is_finite());
}

#[test]
fn what_does_not_fit_is_named() {
    let Some(scene) = Scene::new() else { return };
    let path = scene.folder.path().join("x.jsonl");
    let read = |text: &str| {
        fs::write(&path, text).unwrap();
        Dataset::read(&path).map(|_| ()).unwrap_err().to_string()
    };
    let empty = read("{\"text\": \"w5\", \"label\": 1}\n{\"text\": \"  \", \"label\": 1}\n");
    assert!(
        empty.contains("line 2") && empty.contains("the text is empty"),
        "{empty}"
    );
    assert!(read("").contains("no example"));
    let good = |label: Value| json!({"text": "w5 w6", "label": label});
    let one = scene.pair(vec![good(json!("a")); 4], vec![good(json!("a"))]);
    let error = refusal(&scene.base, &one, &options());
    assert!(error.contains("needs two or more"), "{error}");
    let unknown = scene.pair(
        vec![good(json!("a")), good(json!("b"))],
        vec![good(json!("a")), good(json!("c"))],
    );
    let error = refusal(&scene.base, &unknown, &options());
    for part in ["dev.jsonl, line 2", "\"c\"", "training data: a, b"] {
        assert!(error.contains(part), "{error}");
    }
    let kinds = scene.pair(
        vec![good(json!("a")), good(json!("b"))],
        vec![json!({"text": "w5", "labels": ["a"]})],
    );
    let error = refusal(&scene.base, &kinds, &options());
    assert!(
        error.contains("dev.jsonl, line 1") && error.contains("\"label\""),
        "{error}"
    );
    let data = scene.labelled();
    let cases = [
        (
            Options {
                tokens: 0,
                ..options()
            },
            "at least one virtual token",
        ),
        (
            Options {
                tokens: 60,
                ..options()
            },
            "at most 48 virtual tokens",
        ),
        (
            Options {
                head: Some("token-linear".into()),
                ..options()
            },
            "does not answer as these examples do",
        ),
        (
            Options {
                head: Some("none".into()),
                ..options()
            },
            "no head none",
        ),
        (
            Options {
                words: vec!["a".into()],
                ..options()
            },
            "words for the labels are for the verbaliser",
        ),
        (
            Options {
                clip: 0.0,
                ..options()
            },
            "the clip is above 0",
        ),
        (
            Options {
                warm_up: 1.5,
                ..options()
            },
            "the warm-up is a part of the steps",
        ),
    ];
    for (options, part) in cases {
        let error = refusal(&scene.base, &data, &options);
        assert!(error.contains(part), "{error}");
        let before = refuse_unmeasurable(&scene.base, &data.0, &data.1, &options).unwrap_err();
        assert_eq!(before.to_string(), error);
    }
    let tagged = json!({"tokens": ["w5", "w6"], "tags": ["O", "B-a"]});
    let tagged = scene.pair(vec![tagged.clone()], vec![tagged]);
    let template = Options {
        template: "w7 {text}".into(),
        ..options()
    };
    let error = refusal(&scene.base, &tagged, &template);
    assert!(error.contains("leave --template"), "{error}");
}

#[test]
fn few_examples_and_labels_that_are_numbers_train() {
    let Some(scene) = Scene::new() else { return };
    let good = |text: &str, label: Value| json!({"text": text, "label": label});
    let data = scene.pair(
        vec![
            good("w10 w41", json!(1)),
            good("w20", json!(2)),
            good("w11 w40", json!("1")),
        ],
        vec![good("w12", json!("1")), good("w21 w40", json!(2))],
    );
    let (outcome, told) = train(&scene.base, &data, &options());
    assert_eq!(outcome.adapter.card.labels, ["1", "2"]);
    assert_eq!(told.steps.len(), EPOCHS);
    assert!(told.epochs[EPOCHS - 1].train_loss < told.epochs[0].train_loss);
}

#[test]
fn the_threshold_of_out_of_scope_texts_is_that_of_the_dev_data() {
    let Some(scene) = Scene::new() else { return };
    let lines = |count, salt| {
        let mut lines: Vec<Value> = toys(count, salt, false)
            .into_iter()
            .map(|toy| line(AnswerKind::Label, toy))
            .collect();
        let outside = (0..count / 2).map(
            |at| json!({"text": format!("w{} w{}", 70 + at % 8, 80 + at % 5), "label": "none"}),
        );
        lines.extend(outside);
        lines
    };
    let data = scene.pair(lines(48, 1), lines(24, 2));
    let options = Options {
        out_of_scope: Some("none".into()),
        ..options()
    };
    let (outcome, _) = train(&scene.base, &data, &options);
    let card = &outcome.adapter.card;
    assert_eq!(card.labels, ["one", "two"]);
    assert_eq!(
        card.answer.threshold,
        rejection_threshold(&outcome.dev_answers, &outcome.dev_truths)
    );
    let threshold = card.answer.threshold.unwrap();
    assert!((0.5..1.0).contains(&threshold), "{threshold}");
    let outside = outcome
        .dev_truths
        .iter()
        .zip(&outcome.dev_answers)
        .filter(|(truth, _)| **truth == Truth::Outside);
    let rejected: Vec<bool> = outside
        .map(|(_, answer)| answer.score < threshold)
        .collect();
    let recall =
        rejected.iter().filter(|rejected| **rejected).count() as f64 / rejected.len() as f64;
    assert_eq!(
        (rejected.len(), outcome.dev.figures["out_of_scope_recall"]),
        (12, recall)
    );
    assert!(
        recall > 0.0 && outcome.dev.figures["accuracy"] > 0.5,
        "{:?}",
        outcome.dev
    );
}

#[test]
fn balanced_classes_weigh_as_by_hand() {
    let Some(scene) = Scene::new() else { return };
    let lines = toys(16, 1, false)
        .into_iter()
        .filter(|toy| toy.has[0] || toy.text.len() % 3 == 0);
    let lines: Vec<Value> = lines.map(|toy| line(AnswerKind::Label, toy)).collect();
    let ones = lines.iter().filter(|line| line["label"] == "one").count();
    let (all, twos) = (lines.len(), lines.len() - ones);
    assert!(twos > 0 && twos != ones);
    let data = scene.pair(lines.clone(), lines);
    let options = Options {
        class_weights: ClassWeights::Balanced,
        batch: all,
        ..options()
    };
    let task = scene.task(&data, &options);
    let expected = [ones, twos].map(|count| all as f32 / (2 * count) as f32);
    assert_eq!(task.class_weights, expected);

    let head: Vec<Vec<f32>> = (task.head.parameters)(task.reader().size)
        .iter()
        .map(|parameter| {
            (0..parameter.elements())
                .map(|at| (at as f32).sin())
                .collect()
        })
        .collect();
    let prompt: Vec<f32> = (0..3 * scene.base.description.hidden)
        .map(|at| (at as f32).cos())
        .collect();
    let values = [vec![prompt], head].concat();
    let mut evaluator = Evaluator::new(
        &scene.base,
        library(),
        task.method,
        &task.sizes,
        Extent::ONE,
        task.questions(),
        1,
    )
    .unwrap();
    let answers = evaluator
        .predict(&values, &task.train.rows, |_| ())
        .unwrap();
    let weighted = answers.iter().zip(&task.train.rows).map(|(answer, row)| {
        let Truth::Class(class) = row.truth else {
            panic!()
        };
        (answer.loss * expected[class], expected[class])
    });
    let (losses, weights): (Vec<f32>, Vec<f32>) = weighted.unzip();
    let by_hand = losses.iter().sum::<f32>() / weights.iter().sum::<f32>();
    let step = Step::build(
        &scene.base,
        task.method,
        &task.sizes,
        Extent::ONE,
        Purpose::Training(task.reader(), Manner::default()),
    )
    .unwrap();
    let mut session = library()
        .session(&step.model, &scene.base.folder, 1)
        .unwrap();
    let rows: Vec<&Encoded> = task.train.rows.iter().collect();
    let batch = Batch::of(&[rows], task.layout(), &step);
    let feeds = step.feeds(&values);
    let found = session
        .run(&batch.with(&feeds))
        .unwrap()
        .remove(0)
        .into_floats()
        .unwrap()[0];
    assert!((found - by_hand).abs() < 1e-5, "{found} {by_hand}");
}
