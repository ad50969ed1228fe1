//! `compile`, `run` and `bench` through the built program, on a base small enough to be written down.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use preface_graph::{
    Base,
    builder::{Attribute, Builder},
    onnx::{GraphProto, ModelProto, OperatorSetIdProto, TensorProto, ValueInfoProto, data_type},
};
use prost::Message;
use serde_json::{Value, json};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_preface");
const HIDDEN: usize = 64;
const WORDS: [&str; 8] = ["[UNK]", "light", "on", "off", "dim", "up", "down", "now"];
const OPSET: i64 = 17;

/// A folder with a base, its image, a trust store and two bundles: one of each form.
struct Scene {
    folder: TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        write_base(&scene.at("base"));
        scene.good(&["compile", "base", "-o", "x.base"]);
        scene.good(&["keygen", "--no-passphrase", "-o", "keys", "--name", "k"]);
        scene.good(&["trust", "new", "-o", "trust", "--key", "keys/k.pub"]);
        scene.bundle("rows", json!({}), &[(PROMPT, &[2, HIDDEN]), WEIGHT, BIAS]);
        let prefix = json!({"form": prefix(false), "positions": "text-from-zero"});
        scene.bundle(
            "prefix",
            prefix,
            &[(PROMPT, &[2, 2 * HIDDEN]), WEIGHT, BIAS],
        );
        scene
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(PROGRAM);
        command.current_dir(&self.folder).args(arguments);
        command.stdin(Stdio::null()).output().unwrap()
    }

    fn good(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// What the program says about arguments that it must refuse.
    fn refused(&self, arguments: &[&str]) -> String {
        self.refused_with(2, arguments)
    }

    fn refused_with(&self, exit_code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(
            output.status.code(),
            Some(exit_code),
            "{arguments:?}: {}",
            text(&output.stdout)
        );
        text(&output.stderr)
    }

    fn served<'a>(&self, verb: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let files = [
            "--base",
            "x.base",
            "--bundle",
            "rows.preface",
            "prefix.preface",
            "--trust",
            "trust",
        ];
        [&[verb], &files[..], more].concat()
    }

    /// Packs an adapter for the base, with these fields changed and these tensors.
    fn bundle(&self, task: &str, changes: Value, tensors: &[(&str, &[usize])]) {
        self.adapter(task, changes, tensors);
        let output = format!("{task}.preface");
        let key = ["--key", "keys/k.key", "-o", &output, "--dtype", "f32"];
        self.good(&[&["pack", task, "--task", task, "--sequence", "1"], &key[..]].concat());
    }

    fn adapter(&self, task: &str, changes: Value, tensors: &[(&str, &[usize])]) {
        let base = Base::open(&self.at("base")).unwrap().description;
        let mut description = json!({
            "format": 2, "method": "prompt-tuning",
            "form": {"kind": "embeddings", "tokens": 2, "hidden": HIDDEN},
            "head": head("linear"),
            "labels": ["on", "off", "dim"], "template": "{text}", "pooling": "mean", "positions": "after-prompt",
            "base_id": base.base_id, "tokenizer_id": base.tokenizer_id,
            "probes": [], "metrics": {}, "receipt": {"seed": 1},
            "token_budget": {"prompt": 2, "longest": 4, "typical": 2, "positions": 16},
        });
        for (field, value) in changes.as_object().unwrap() {
            description[field] = value.clone();
        }
        let adapter = self.at(task);
        fs::create_dir(&adapter).unwrap();
        fs::write(adapter.join("preface.json"), description.to_string()).unwrap();
        let path = adapter.join("adapter_model.safetensors");
        fs::write(path, safetensors(tensors)).unwrap();
    }

    /// The answer of one bundle to one text.
    fn answer(&self, task: &str, text: &str) -> Value {
        let bundle = format!("{task}.preface");
        let files = ["--base", "x.base", "--trust", "trust", "--bundle", &bundle];
        let said = self.good(&[&["run", "--json"], &files[..], &["--", text]].concat());
        serde_json::from_str(&said).unwrap()
    }
}

const PROMPT: &str = "prompt_embeddings";
const WEIGHT: (&str, &[usize]) = ("base_model.classifier.weight", &[3, HIDDEN]);
const BIAS: (&str, &[usize]) = ("base_model.classifier.bias", &[3]);

fn prefix(gated: bool) -> Value {
    let layer = json!({"kv_heads": 1, "head_dim": HIDDEN});
    json!({"kind": "key-values", "tokens": 2, "layers": [layer], "gated": gated})
}

fn head(kind: &str) -> Value {
    json!({"kind": kind, "classes": 3, "hidden": HIDDEN})
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Numbers that look random and stay soft.
fn numbers(seed: usize, count: usize) -> Vec<f32> {
    let number = |index: usize| ((index * 7919 + seed * 104_729) as f32 * 0.618).sin() / 4.0;
    (0..count).map(number).collect()
}

/// Made-up tensors; those of the same name and size are alike, and gates shut the prefix out.
fn safetensors(tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, shape) in tensors {
        let begin = data.len();
        let mut values = numbers(name.len(), shape.iter().product());
        if *name == "preface.gate" {
            values.fill(-1e4);
        }
        data.extend(values.into_iter().flat_map(f32::to_le_bytes));
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]});
        header.insert((*name).into(), entry);
    }
    let header = Value::Object(header).to_string();
    [
        &(header.len() as u64).to_le_bytes(),
        header.as_bytes(),
        &data,
    ]
    .concat()
}

/// One layer of attention with one head, as an exporter would write it.
fn write_base(folder: &Path) {
    fs::create_dir(folder).unwrap();
    let mut graph = GraphProto::default();
    let mut builder = Builder::beside(&graph, "n", OPSET);
    let dims = |rows: usize| [rows as i64, HIDDEN as i64];
    let words = TensorProto::of_floats(
        "words",
        &dims(WORDS.len()),
        &numbers(90, WORDS.len() * HIDDEN),
    );
    let axis = |axis| [("axis", Attribute::Int(axis))];
    let rows = builder.apply("Gather", &["words", "input_ids"], &axis(0));
    let (ends, head) = (builder.ints(&[1, 2]), builder.ints(&[1]));
    let mask = builder.apply("Unsqueeze", &["attention_mask", &ends], &[]);
    let mask = builder.apply(
        "Cast",
        &[&mask],
        &[("to", Attribute::Int(i64::from(data_type::FLOAT)))],
    );
    let (one, large) = (
        builder.scalar(data_type::FLOAT, 1.0),
        builder.scalar(data_type::FLOAT, 1e4),
    );
    let mask = builder.apply("Sub", &[&mask, &one], &[]);
    let mask = builder.apply("Mul", &[&mask, &large], &[]);
    let mut weights = Vec::new();
    let mut project = |builder: &mut Builder, name: &str, seed| {
        weights.push(TensorProto::of_floats(
            name,
            &dims(HIDDEN),
            &numbers(seed, HIDDEN * HIDDEN),
        ));
        let product = builder.apply("MatMul", &[&rows, name], &[]);
        builder.apply("Unsqueeze", &[&product, &head], &[])
    };
    let query = project(&mut builder, "query", 91);
    let key = project(&mut builder, "key", 92);
    let value = project(&mut builder, "value", 93);
    let turned = builder.apply(
        "Transpose",
        &[&key],
        &[("perm", Attribute::Ints(vec![0, 1, 3, 2]))],
    );
    let scores = builder.apply("MatMul", &[&query, &turned], &[]);
    let scores = builder.apply("Add", &[&scores, &mask], &[]);
    let shares = builder.apply("Softmax", &[&scores], &axis(-1));
    let mixed = builder.apply("MatMul", &[&shares, &value], &[]);
    let mixed = builder.apply("Squeeze", &[&mixed, &head], &[]);
    builder.write("Add", &[&rows, &mixed], &["hidden"], &[]);
    builder.append_to(&mut graph);
    graph.initializer.push(words);
    graph.initializer.extend(weights);
    for name in ["input_ids", "attention_mask"] {
        graph.input.push(ValueInfoProto::tensor(
            name,
            data_type::INT64,
            &["batch", "sequence"],
        ));
    }
    let hidden = ValueInfoProto::tensor(
        "hidden",
        data_type::FLOAT,
        &["batch", "sequence", &HIDDEN.to_string()],
    );
    graph.output.push(hidden);
    let opset = OperatorSetIdProto {
        version: Some(OPSET),
        ..Default::default()
    };
    let model = ModelProto {
        ir_version: Some(8),
        graph: Some(graph),
        opset_import: vec![opset],
        ..Default::default()
    };
    fs::write(folder.join("model.onnx"), model.encode_to_vec()).unwrap();
    fs::write(
        folder.join("config.json"),
        r#"{"max_position_embeddings": 16}"#,
    )
    .unwrap();
    let words: Value = WORDS
        .iter()
        .enumerate()
        .map(|(id, &word)| (word.to_owned(), json!(id)))
        .collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"},
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

/// What the base of [`write_base`] makes of a prompt and the words behind it: rows of [`HIDDEN`].
fn hidden(prompt: &[f32], text: &str) -> Vec<Vec<f32>> {
    let vocabulary = numbers(90, WORDS.len() * HIDDEN);
    let word = |word| {
        let id = WORDS.iter().position(|other| *other == word).unwrap();
        rows_of(&vocabulary).nth(id).unwrap().to_vec()
    };
    let mut rows: Vec<Vec<f32>> = rows_of(prompt).map(<[f32]>::to_vec).collect();
    rows.extend(text.split(' ').map(word));
    let project = |seed| -> Vec<Vec<f32>> {
        let weight = numbers(seed, HIDDEN * HIDDEN);
        let column = |row: &Vec<f32>, at: usize| -> f32 {
            let column = weight.iter().skip(at).step_by(HIDDEN);
            row.iter().zip(column).map(|(one, other)| one * other).sum()
        };
        let product = |row| (0..HIDDEN).map(|at| column(row, at)).collect();
        rows.iter().map(product).collect()
    };
    let (queries, keys, values) = (project(91), project(92), project(93));
    let attended = |(row, query): (&Vec<f32>, &Vec<f32>)| {
        let scores: Vec<f32> = keys.iter().map(|key| inner(query, key)).collect();
        let shares = softmax(&scores);
        let mixed = |at: usize| -> f32 {
            let values = values.iter().map(|value| value[at]);
            shares
                .iter()
                .zip(values)
                .map(|(share, value)| share * value)
                .sum()
        };
        (0..HIDDEN).map(|at| row[at] + mixed(at)).collect()
    };
    rows.iter().zip(&queries).map(attended).collect()
}

fn rows_of(numbers: &[f32]) -> impl Iterator<Item = &[f32]> {
    numbers.chunks(HIDDEN)
}

fn inner(one: &[f32], other: &[f32]) -> f32 {
    one.iter().zip(other).map(|(one, other)| one * other).sum()
}

fn mean(rows: &[Vec<f32>]) -> Vec<f32> {
    let sum = |at: usize| -> f32 { rows.iter().map(|row| row[at]).sum() };
    (0..HIDDEN).map(|at| sum(at) / rows.len() as f32).collect()
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let powers = logits.iter().map(|logit| logit.exp());
    let total: f32 = powers.clone().sum();
    powers.map(|power| power / total).collect()
}

/// The label of the greatest of three logits, and its share.
fn most_probable(logits: &[f32]) -> (&'static str, f32) {
    let shares = softmax(logits).into_iter().zip(["on", "off", "dim"]);
    let (share, label) = shares
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .unwrap();
    (label, share)
}

#[test]
fn every_task_answers_every_line() {
    let scene = Scene::new();
    fs::write(scene.at("lines"), "light on\n\n{\"text\": \"light off\"}\n").unwrap();
    let output = Command::new(PROGRAM)
        .current_dir(&scene.folder)
        .args(scene.served("run", &["--json"]))
        .stdin(fs::File::open(scene.at("lines")).unwrap())
        .output()
        .unwrap();
    let answers: Vec<Value> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let tasks: Vec<&str> = answers
        .iter()
        .map(|answer| answer["task"].as_str().unwrap())
        .collect();
    assert_eq!(
        tasks,
        ["rows", "prefix", "rows", "prefix"],
        "{}",
        text(&output.stderr)
    );
    for answer in &answers {
        let score = answer["score"].as_f64().unwrap();
        assert!(
            ["on", "off", "dim"].contains(&answer["label"].as_str().unwrap()),
            "{answer}"
        );
        assert!((1.0 / 3.0..=1.0).contains(&score), "{answer}");
    }
    let alone = scene.good(&scene.served("run", &["--json", "--task", "prefix", "light off"]));
    assert_eq!(serde_json::from_str::<Value>(&alone).unwrap(), answers[3]);
}

#[test]
fn every_kind_of_answer_is_given() {
    let scene = Scene::new();
    let prompt: (&str, &[usize]) = (PROMPT, &[2, HIDDEN]);
    let factors: [(&str, &[usize]); 2] = [
        ("preface.head.factor.0", &[3, 2]),
        ("preface.head.factor.1", &[2, HIDDEN]),
    ];
    let answer = |kind: &str, threshold: f32| json!({"kind": kind, "threshold": threshold});
    let linear = [prompt, WEIGHT, BIAS];
    let scoped = json!({"answer": answer("label", 1.0)});
    scene.bundle("scoped", scoped, &linear);
    scene.bundle("all", json!({"answer": answer("labels", 0.0)}), &linear);
    scene.bundle("none", json!({"answer": answer("labels", 1.0)}), &linear);
    scene.bundle("tags", json!({"head": head("token-linear")}), &linear);
    scene.bundle("pair", json!({"inputs": "pair"}), &linear);
    scene.bundle("after", json!({"positions": "text-from-zero"}), &linear);
    let factored = json!({"kind": "factored-linear", "classes": 3, "hidden": HIDDEN, "rank": 2});
    scene.bundle(
        "factored",
        json!({"head": factored}),
        &[prompt, factors[0], factors[1], BIAS],
    );
    scene.bundle(
        "spoken",
        json!({"head": head("label-text")}),
        &[prompt, BIAS],
    );

    let plain = scene.answer("rows", "light on");
    let scoped = scene.answer("scoped", "light on");
    assert_eq!(
        scoped,
        json!({"task": "scoped", "label": null, "score": plain["score"], "out_of_scope": true})
    );
    let all = scene.answer("all", "light on");
    assert_eq!(all["labels"], json!(["on", "off", "dim"]), "{all}");
    assert_eq!(all["score"].as_array().unwrap().len(), 3);
    assert_eq!(scene.answer("none", "light on")["labels"], json!([]));
    let tags = scene.answer("tags", "light  on now");
    let tags = tags["tags"].as_array().unwrap();
    assert_eq!(tags.len(), 3);
    assert!(
        tags.iter()
            .all(|tag| ["on", "off", "dim"].contains(&tag.as_str().unwrap()))
    );
    let joined = scene.answer("rows", "light on now");
    for pair in ["light on\tnow", r#"{"text": "light on", "text2": "now"}"#] {
        let pair = scene.answer("pair", pair);
        assert_eq!(
            (&pair["label"], &pair["score"]),
            (&joined["label"], &joined["score"])
        );
    }
    let bundle = [
        "--base",
        "x.base",
        "--trust",
        "trust",
        "--bundle",
        "pair.preface",
    ];
    let said = scene.refused(&[&["run", "light"], &bundle[..]].concat());
    assert!(said.contains("reads pairs of texts; give two"), "{said}");
    let features = mean(&hidden(&numbers(PROMPT.len(), 2 * HIDDEN), "light on")[2..]);
    let weight = |name: &str, count: usize| numbers(name.len(), count);
    let linear: Vec<f32> = rows_of(&weight(WEIGHT.0, 3 * HIDDEN))
        .map(|row| inner(row, &features))
        .collect();
    let lower = weight(factors[1].0, 2 * HIDDEN);
    let lower: Vec<f32> = rows_of(&lower).map(|row| inner(row, &features)).collect();
    let upper = weight(factors[0].0, 3 * 2);
    let factored = upper.chunks(2).map(|row| inner(row, &lower)).collect();
    let length = |vector: &[f32]| inner(vector, vector).sqrt();
    let spoken = ["on", "off", "dim"].map(|label| {
        let label = mean(&hidden(&[], label));
        20.0 * inner(&label, &features) / (length(&label) * length(&features))
    });
    let expected = [
        ("after", linear.clone()),
        ("rows", linear),
        ("factored", factored),
        ("spoken", spoken.to_vec()),
    ];
    for (task, mut logits) in expected {
        let bias = weight(BIAS.0, 3);
        logits
            .iter_mut()
            .zip(bias)
            .for_each(|(logit, bias)| *logit += bias);
        let (label, score) = most_probable(&logits);
        let said = scene.answer(task, "light on");
        assert_eq!(said["label"], label, "{task}: {said} for {logits:?}");
        let found = said["score"].as_f64().unwrap() as f32;
        assert!((found - score).abs() < 1e-5, "{task}: {said} for {score}");
    }
    let shown = scene.good(&["inspect", "pair.preface", "--json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(
        (
            &shown["answer"]["kind"],
            &shown["answer"]["inputs"],
            &shown["min_runtime"]
        ),
        (&json!("label"), &json!("pair"), &json!(2))
    );
    let bench = ["--runs", "2", "--processes", "1", "--tokens", "5", "--json"];
    let report = scene.good(&[&["bench"], &bundle[..], &bench].concat());
    assert_eq!(
        serde_json::from_str::<Value>(&report).unwrap()["tokens"],
        5.0
    );
}

#[test]
fn a_shut_gate_leaves_the_base_as_it_was() {
    let scene = Scene::new();
    let gated = json!({"form": prefix(true), "positions": "text-from-zero"});
    let tensors: [(&str, &[usize]); 4] = [
        (PROMPT, &[2, 2 * HIDDEN]),
        WEIGHT,
        BIAS,
        ("preface.gate", &[1]),
    ];
    scene.bundle("shut", gated, &tensors);
    let mut other = json!({"form": prefix(true), "positions": "text-from-zero"});
    other["form"]["tokens"] = json!(5);
    let tensors = [(PROMPT, &[5, 2 * HIDDEN][..]), WEIGHT, BIAS, tensors[3]];
    scene.bundle("also", other, &tensors);
    let score = |task| scene.answer(task, "light on")["score"].as_f64().unwrap();
    assert!((score("shut") - score("also")).abs() < 1e-6);
    assert!((score("shut") - score("prefix")).abs() > 1e-4);
}

#[test]
fn heads_that_the_base_cannot_serve_are_refused() {
    let scene = Scene::new();
    let prompt: [(&str, &[usize]); 1] = [(PROMPT, &[2, HIDDEN])];
    let verbaliser = |pooling: &str| {
        json!({"head": {"kind": "verbaliser", "classes": 3}, "verbaliser": [[1], [2], [3]],
        "pooling": pooling})
    };
    scene.bundle("mean", verbaliser("mean"), &prompt);
    scene.bundle("last", verbaliser("last"), &prompt);
    let generation = json!({"head": {"kind": "generation", "classes": 0}, "labels": [],
        "decode": {"most_tokens": 4, "stop_ids": [1]}, "answer": {"kind": "text", "threshold": null}});
    scene.bundle("generation", generation, &prompt);
    let table = [
        ("mean", "its verbaliser reads the mean of all tokens"),
        ("last", "this image makes no scores of the vocabulary"),
        ("generation", "this image makes no scores of the vocabulary"),
    ];
    for (task, reason) in table {
        let bundle = format!("{task}.preface");
        scene.good(&["verify", &bundle, "--trust", "trust", "--base", "x.base"]);
        let files = ["--base", "x.base", "--trust", "trust", "--bundle", &bundle];
        let said = scene.refused_with(1, &[&["run", "light"], &files[..]].concat());
        assert!(said.contains(reason), "{said}");
    }
    let layer = json!({"kv_heads": 1, "head_dim": HIDDEN});
    let elsewhere = json!({"positions": "text-from-zero",
        "form": {"kind": "key-values", "tokens": 2, "first_layer": 1, "layers": [layer]}});
    scene.bundle(
        "elsewhere",
        elsewhere,
        &[(PROMPT, &[2, 2 * HIDDEN]), WEIGHT, BIAS],
    );
    let files = [
        "--base",
        "x.base",
        "--trust",
        "trust",
        "--bundle",
        "elsewhere.preface",
    ];
    let said = scene.refused_with(1, &[&["run", "light"], &files[..]].concat());
    assert!(
        said.contains("its prefix has other layers or heads"),
        "{said}"
    );
}

#[test]
fn what_cannot_be_answered_is_refused() {
    let scene = Scene::new();
    let long = "light ".repeat(15);
    let table = [
        (
            scene.served("run", &["--task", "other", "light"]),
            "rows, prefix",
        ),
        (scene.served("run", &["--max-tokens", "0", "light"]), "1.."),
        (scene.served("bench", &["--runs", "9999999"]), "1000000"),
        (scene.served("bench", &["--tokens", "0"]), "1.."),
        (scene.served("bench", &["--generate", "1"]), "2.."),
        (
            scene.served("bench", &["--generate", "5"]),
            "task rows answers with labels; it generates no text",
        ),
        (scene.served("bench", &["--processes", "0"]), "1.."),
        (
            scene.served("run", &[&long]),
            "15 tokens, at most 14 fit; shorten it or cut it with --truncate",
        ),
        (
            scene.served("run", &["--max-tokens", "1", "light on"]),
            "2 tokens, at most 1 fit",
        ),
    ];
    for (arguments, message) in table {
        let said = scene.refused(&arguments);
        assert!(said.contains(message), "{arguments:?}: {said}");
    }
    scene.good(&scene.served("run", &["--truncate", &long]));
    let mut bundle = fs::read(scene.at("rows.preface")).unwrap();
    let last = bundle.len() - 1;
    bundle[last] ^= 1;
    fs::write(scene.at("rows.preface"), bundle).unwrap();
    assert!(
        scene
            .refused_with(1, &scene.served("run", &["light"]))
            .contains("rows.preface is refused")
    );
    let image = fs::read(scene.at("x.base")).unwrap();
    fs::write(scene.at("x.base"), &image[..image.len() / 2]).unwrap();
    assert!(
        scene
            .refused(&scene.served("run", &["light"]))
            .contains("preface compile BASE -o x.base")
    );
}

#[test]
fn bench_measures_what_scripts_rely_on() {
    let scene = Scene::new();
    let report = scene.good(&scene.served("bench", &["--tokens", "5", "--runs", "3", "--json"]));
    let report: Value = serde_json::from_str(&report).unwrap();
    let positive = [
        "/latency_ms/p50",
        "/latency_ms/p95",
        "/tokens_per_second",
        "/allocations_per_run",
        "/private_bytes",
        "/shared_bytes",
        "/cold_start_ms",
        "/load_us",
        "/swap_us",
    ];
    for field in positive {
        assert!(
            report
                .pointer(field)
                .and_then(Value::as_f64)
                .is_some_and(|number| number > 0.0),
            "{field} in {report}"
        );
    }
    assert_eq!(
        (&report["engine"], &report["arena_bytes"], &report["tokens"]),
        (&json!("plan"), &json!(0), &json!(5.0))
    );
    let image = &report["image"];
    assert_eq!(
        (&image["private_dirty_bytes"], &image["private_bytes"]),
        (&json!(0), &json!(0)),
        "{report}"
    );
    assert_eq!(image["shared_bytes"], image["resident_bytes"]);
}

/// A shell that runs the program, its arguments in `$@`, as `script` says.
fn shell(scene: &Scene, script: &str, arguments: &[&str]) -> Output {
    Command::new("sh")
        .current_dir(&scene.folder)
        .args(["-c", script, PROGRAM])
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn files_that_do_not_go_together_are_named() {
    let scene = Scene::new();
    fs::copy(scene.at("rows.preface"), scene.at("again.preface")).unwrap();
    fs::write(scene.at("bad"), "preface-trust v1\n").unwrap();
    let table: [(&str, &str, &[&str], &str); 4] = [
        (
            "x.base",
            "trust",
            &["it is dark"],
            "a text stands before it, or behind --: cannot read it is dark",
        ),
        (
            "x.base",
            "trust",
            &["again.preface"],
            "rows.preface and again.preface both have the task rows",
        ),
        (
            "base",
            "trust",
            &[],
            "base is a base folder; compile it first: preface compile base -o base.base",
        ),
        ("x.base", "bad", &[], "bad: trust store: "),
    ];
    for (base, trust, more, message) in table {
        let files = ["--base", base, "--trust", trust, "--bundle", "rows.preface"];
        let said = scene.refused(&[&["run", "light"], &files[..], more].concat());
        assert!(said.contains(message), "{files:?} {more:?}: {said}");
    }
}

#[test]
fn an_error_is_json_too() {
    let scene = Scene::new();
    let output = scene.run(&scene.served("run", &["--json", "--task", "other", "light"]));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["exit_code"], json!(2));
    let said = text(&output.stderr);
    assert_eq!(
        said.trim(),
        format!("preface: {}", report["error"].as_str().unwrap())
    );
}

#[test]
fn a_stdout_that_takes_nothing_is_no_panic() {
    let scene = Scene::new();
    let arguments = scene.served("run", &["light"]);
    let full = shell(&scene, r#"exec "$0" "$@" > /dev/full"#, &arguments);
    let said = text(&full.stderr);
    assert_eq!(full.status.code(), Some(2), "{said}");
    assert!(
        said.starts_with("preface: cannot write to standard output: "),
        "{said}"
    );
    let script = r#"yes light | ("$0" "$@"; echo $? >&2) | head -n 1"#;
    let gone = shell(&scene, script, &scene.served("run", &[]));
    assert_eq!(text(&gone.stderr).trim(), "0");
    let mut changed = fs::read(scene.at("rows.preface")).unwrap();
    let last = changed.len() - 1;
    changed[last] ^= 1;
    fs::write(scene.at("rows.preface"), changed).unwrap();
    let refused = ["verify", "rows.preface", "--trust", "trust", "--json"];
    let output = shell(&scene, r#"exec "$0" "$@" > /dev/full"#, &refused);
    assert_eq!(output.status.code(), Some(12), "{}", text(&output.stderr));
}

#[test]
fn a_line_that_is_no_text_is_named() {
    let scene = Scene::new();
    let table: [(&[u8], &str); 2] = [
        (b"\xff\xfe", "line 2 of standard input is not UTF-8 text"),
        (
            br#"{"tokens": ["light", ""]}"#,
            r#"line 2 of standard input: the token "" is not one word"#,
        ),
    ];
    for (line, message) in table {
        fs::write(scene.at("lines"), [b"light\n", line, b"\n"].concat()).unwrap();
        let output = shell(
            &scene,
            r#"exec "$0" "$@" < lines"#,
            &scene.served("run", &[]),
        );
        assert_eq!(output.status.code(), Some(2));
        let said = text(&output.stderr);
        assert!(said.contains(message), "{said}");
    }
    let said = scene.refused(&scene.served("bench", &["--text", "lines"]));
    assert!(said.contains("lines, line 2: the token"), "{said}");
}

#[test]
fn an_image_is_verified_and_shown() {
    let scene = Scene::new();
    assert!(scene.good(&["verify", "x.base"]).contains("verified"));
    let shown: Value = serde_json::from_str(&scene.good(&["inspect", "x.base", "--json"])).unwrap();
    let base = Base::open(&scene.at("base")).unwrap().description;
    assert_eq!(shown["base_id"], json!(base.base_id));
    assert_eq!(shown["architecture"], json!(std::env::consts::ARCH));
    let mut image = fs::read(scene.at("x.base")).unwrap();
    image[5000] ^= 1;
    fs::write(scene.at("x.base"), image).unwrap();
    let output = scene.run(&["verify", "x.base", "--json"]);
    assert_eq!(output.status.code(), Some(13), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&report["verified"], &report["exit_code"]),
        (&json!(false), &json!(13))
    );
    assert_eq!(
        report["checks"][1],
        json!({"name": "weights", "result": "failed"})
    );
}

#[test]
fn a_file_that_begins_as_nothing_known_is_malformed() {
    let scene = Scene::new();
    let image = fs::read(scene.at("x.base")).unwrap();
    let mut flipped = image.clone();
    flipped[0] ^= 1;
    for bytes in [&flipped[..], &image[..20], b""] {
        fs::write(scene.at("cut"), bytes).unwrap();
        let said = scene.refused_with(10, &["verify", "cut"]);
        assert!(
            said.contains("neither as a bundle nor as a base image"),
            "{said}"
        );
    }
    let said = scene.refused(&["verify", "rows.preface"]);
    assert!(said.contains("give --trust"), "{said}");
}

#[test]
fn a_bundle_is_for_its_base_alone() {
    let scene = Scene::new();
    scene.good(&["compile", "base", "-o", "same.base"]);
    write_base(&scene.at("other"));
    let config = r#"{"max_position_embeddings": 8}"#;
    fs::write(scene.at("other/config.json"), config).unwrap();
    let mut model = ModelProto::decode(&*fs::read(scene.at("other/model.onnx")).unwrap()).unwrap();
    let words = numbers(77, WORDS.len() * HIDDEN);
    let dims = [WORDS.len() as i64, HIDDEN as i64];
    let initializers = &mut model.graph.as_mut().unwrap().initializer;
    let table = initializers
        .iter_mut()
        .find(|tensor| tensor.name() == "words");
    *table.unwrap() = TensorProto::of_floats("words", &dims, &words);
    fs::write(scene.at("other/model.onnx"), model.encode_to_vec()).unwrap();
    scene.good(&["compile", "other", "-o", "other.base"]);
    let verify = ["verify", "rows.preface", "--trust", "trust", "--base"];
    for base in ["base", "x.base", "same.base"] {
        scene.good(&[&verify[..], &[base]].concat());
    }
    for base in ["other", "other.base"] {
        scene.refused_with(14, &[&verify[..], &[base]].concat());
    }
}

#[test]
fn a_full_disk_leaves_no_image() {
    let scene = Scene::new();
    let script = r#"trap '' XFSZ; ulimit -f 8; exec "$0" "$@""#;
    let full = shell(&scene, script, &["compile", "base", "-o", "full.base"]);
    let said = text(&full.stderr);
    assert_eq!(full.status.code(), Some(2), "{said}");
    let expected = "cannot write full.base; free some space or choose another place with -o";
    assert!(said.contains(expected), "{said}");
    let left = fs::read_dir(&scene.folder).unwrap().flatten();
    let names = left.map(|entry| entry.file_name().to_string_lossy().into_owned());
    assert!(
        names
            .filter(|name| name.contains("full.base"))
            .eq([] as [&str; 0])
    );
    let said = scene.refused(&["compile", "base", "-o", "nowhere/x.base"]);
    assert!(
        said.contains("cannot write nowhere/x.base; its folder is not there"),
        "{said}"
    );
}
