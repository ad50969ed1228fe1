//! One base, three engines: what the runtime answers from a signed f32 bundle, by its executor and by tract's plan, is
//! what ONNX Runtime computes from the spliced graph, for every family and every form, and on one base for every head and
//! answer.

#![allow(clippy::unwrap_used)]

mod support;

#[path = "support/fused.rs"]
mod fused;
#[path = "support/prompts.rs"]
mod prompts;

use std::{fs, path::Path, process::Command};

use preface_graph::{
    Base, FormKind,
    builder::Builder,
    onnx::{ModelProto, data_type},
};
use preface_runtime::Image;
use preface_trainer::{
    adapter::{Adapter, Card},
    data::{Dataset, Example, Target},
    encode::Overlength,
    evaluation::{encode, evaluate},
    form::{Form, PositionPlan},
    metrics::{Found, Prediction},
    tokens::Tokens,
};
use prompts::{every_answer, linear, spoken};
use prost::Message;
use serde_json::{Value, json};
use support::{base_folder, exports, library, skip};

/// The runtime's engines, as `compile --engine` names them.
const ENGINES: [&str; 2] = ["auto", "plan"];

/// How a base is compiled, and how near its answers are.
#[derive(Clone, Copy, Debug)]
struct Way {
    engine: &'static str,
    weights: &'static str,
    /// Relative difference of scores to those of ONNX Runtime.
    tolerance: f32,
}

impl Way {
    /// With 32-bit floats.
    const fn exact(engine: &'static str) -> Self {
        Self {
            engine,
            weights: "f32",
            tolerance: 1e-4,
        }
    }

    /// Whether the most probable label is the same too, and not one as probable.
    fn is_exact(self) -> bool {
        self.weights == "f32"
    }

    const fn narrow(weights: &'static str, tolerance: f32) -> Self {
        Self {
            engine: "auto",
            weights,
            tolerance,
        }
    }
}

/// Weights in fewer bits.
const NARROW: [Way; 4] = [
    Way::narrow("f16", 1e-2),
    Way::narrow("i8", 0.05),
    Way::narrow("i8a8", 0.1),
    Way::narrow("i4", 0.3),
];

/// Bases that an engine of the runtime does not run, with what it says; one that runs after all fails the test.
const EXCEPTIONS: [(&str, &[&str], &str); 5] = [
    (
        "stories260K_model",
        &["plan"],
        "Impossible to unify 1 with 0",
    ),
    (
        "stories260K_model_nocache",
        &["plan"],
        "Impossible to unify 1 with 0",
    ),
    ("t5.eager.dynamo.op18.onnx", &["plan"], ENCODER_DECODER),
    ("t5.sdpa.legacy.op14.onnx", &["plan"], ENCODER_DECODER),
    ("t5.sdpa.legacy.op17.onnx", &["plan"], ENCODER_DECODER),
];

const ENCODER_DECODER: &str = "the executor alone runs encoder-decoders";

#[test]
fn minilm_gives_the_same_scores_on_both_engines() {
    let texts = ["turn on the light", "why is it so dark in here", "no"];
    for engine in ENGINES {
        let way = Way::exact(engine);
        assert_eq!(compare(&base_folder(), way, &texts, linear), Ok(()));
    }
}

#[test]
fn minilm_in_fewer_bits_gives_nearly_the_same_scores() {
    let texts = ["turn on the light", "why is it so dark in here", "no"];
    for way in NARROW {
        assert_eq!(compare(&base_folder(), way, &texts, linear), Ok(()));
    }
}

#[test]
fn every_family_in_fewer_bits_gives_nearly_the_same_scores() {
    let Some(exports) = exports() else {
        return skip("the exports of ../shared");
    };
    let mut wrong = Vec::new();
    let mut compared = 0;
    for export in exports {
        let one_of_its_family = ["legacy.op17", "optimum", "stories"];
        let name = &*export.name;
        if !one_of_its_family.iter().any(|part| name.contains(part)) {
            continue;
        }
        compared += 1;
        for way in NARROW {
            if let Err(reason) = compare(export.folder(), way, texts(&export.name), linear) {
                wrong.push(format!("{}, {way:?}: {reason}", export.name));
            }
        }
    }
    assert!(compared > 5, "{compared} exports");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What an export is asked about.
fn texts(name: &str) -> &'static [&'static str] {
    match name {
        _ if name.starts_with("stories") => &["Once upon a time", "the dog was happy"],
        // Longer than the window, which leaves the prefix behind too.
        "groups, window" => &["w5 w9 w17 w40 w3 w8 w21 w2 w44 w7 w30 w12 w6 w19", "w3 w88"],
        _ => &["w5 w9 w17 w40", "w3 w88"],
    }
}

#[test]
fn minilm_gives_the_same_answers_of_every_kind_on_both_engines() {
    let texts = ["turn on the unbelievably dim light", "no"];
    for engine in ENGINES {
        assert_eq!(
            compare(&base_folder(), Way::exact(engine), &texts, every_answer),
            Ok(())
        );
    }
}

#[test]
fn every_export_gives_the_same_scores_on_both_engines() {
    let Some(exports) = exports() else {
        return skip("the exports of ../shared");
    };
    let mut wrong = Vec::new();
    for export in exports {
        for engine in ENGINES {
            let way = Way::exact(engine);
            let found = compare(export.folder(), way, texts(&export.name), linear);
            let expected = EXCEPTIONS
                .iter()
                .find(|(name, engines, _)| *name == export.name && engines.contains(&engine));
            let as_listed = match (&found, expected) {
                (Ok(()), None) => true,
                (Err(reason), Some((_, _, listed))) => reason.contains(listed),
                _ => false,
            };
            if !as_listed {
                let name = &export.name;
                wrong.push(format!("{name}, {engine}: {found:?}, listed: {expected:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn models_written_by_hand_give_the_same_scores_on_both_engines() {
    let models = fused::models();
    let both = [
        "narrow embeddings",
        "one key head",
        "counted positions",
        "weights in blocks",
        "table in blocks",
        "groups, window",
    ];
    // tract knows no product with factors, the executor no heads that are one dimension with the batch.
    let one = [
        ("turned weights", &ENGINES[..1]),
        ("merged heads", &ENGINES[1..]),
    ];
    let bases = both.map(|name| (name, &ENGINES[..]));
    for (name, engines) in bases.into_iter().chain(one) {
        let (_, model) = models.iter().find(|(other, _)| *other == name).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fused::write(model, folder.path());
        let described = Base::open(folder.path()).unwrap().description;
        let narrow = described.embedding_width < described.hidden;
        assert_eq!(narrow, name == "narrow embeddings");
        for engine in engines {
            let found = compare(folder.path(), Way::exact(engine), texts(name), linear);
            assert_eq!(found, Ok(()), "{name}, {engine}");
        }
    }
}

#[test]
fn an_image_gives_the_embeddings_of_its_base_in_their_own_width() {
    let models = fused::models();
    for name in ["narrow embeddings", "one key head"] {
        let (_, model) = models.iter().find(|(other, _)| *other == name).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fused::write(model, folder.path());
        let image = folder.path().join("x.base");
        let [source, path] = [folder.path(), &image].map(|path| path.to_str().unwrap());
        preface(&["compile", source, "-o", path]).unwrap();
        // SAFETY: the test wrote the file and changes it no more.
        #[allow(unsafe_code)]
        let image = unsafe { Image::open(&image) }.unwrap();
        let base = Base::open(folder.path()).unwrap();
        let table = base.model.graph.as_ref().unwrap();
        let table = table.initializer(&base.description.embedding_table);
        let expected = table.unwrap().floats(&base.folder).unwrap();
        assert!(image.embeddings() == expected, "{name}");
    }
}

#[test]
fn texts_that_would_be_rounded_together_are_evaluated_as_alone() {
    let models = fused::models();
    let mut models = models.iter();
    let (_, model) = models
        .find(|(name, _)| *name == "products of integers")
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    fused::write(model, folder.path());
    let base = Base::open(folder.path()).unwrap();
    let adapter = &linear(&base)[0];
    let tokens = Tokens::read(&base.tokenizer).unwrap();
    let rows = texts("").iter().flat_map(|text| {
        let data = dataset(&adapter.card, text);
        let (card, described) = (&adapter.card, &base.description);
        let encoded = encode(card, described, &tokens, &data, Overlength::Refuse, None);
        encoded.unwrap().rows
    });
    let rows: Vec<_> = rows.collect();
    let scores = |rows| {
        let found = evaluate(adapter, &base, library(), rows, 1, |_| ()).unwrap();
        found.iter().map(|found| found.score).collect::<Vec<_>>()
    };
    let alone: Vec<f32> = rows.chunks(1).flat_map(scores).collect();
    assert_eq!(scores(&rows[..]), alone);
}

#[test]
fn every_export_with_logits_gives_the_same_words() {
    let Some(exports) = exports() else {
        return skip("the exports of ../shared");
    };
    let mut spoke = 0;
    let mut wrong = Vec::new();
    for export in exports {
        let base = Base::open(export.folder()).unwrap();
        if spoken(&base).is_empty() {
            continue;
        }
        spoke += 1;
        let way = Way::exact("auto");
        if let Err(reason) = compare(export.folder(), way, texts(&export.name), spoken) {
            wrong.push(format!("{}: {reason}", export.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(spoke > 10, "{spoke} decoders");
}

/// A decoder of the shared folder whose scores `change` works on; `None` without that folder.
fn with_scores(change: fn(&mut Builder, &str) -> String) -> Option<support::Export> {
    let export = support::export("llama.sdpa.legacy.op17.onnx")?;
    let path = export.folder().join("model.onnx");
    let mut model = ModelProto::decode(&*fs::read(&path).unwrap()).unwrap();
    let graph = model.graph.as_mut().unwrap();
    let scores = graph.output[0].name().to_owned();
    let mut builder = Builder::beside(graph, "behind", 17);
    graph.output[0].name = Some(change(&mut builder, &scores));
    builder.append_to(graph);
    fs::remove_file(&path).unwrap();
    fs::write(&path, model.encode_to_vec()).unwrap();
    Some(export)
}

#[test]
fn words_are_read_from_scores_that_are_scaled_and_capped() {
    let capped = with_scores(|builder, scores| {
        let [narrow, wide] = [0.4, 2.5].map(|factor| builder.scalar(data_type::FLOAT, factor));
        let capped = builder.apply("Mul", &[scores, &narrow], &[]);
        let capped = builder.apply("Tanh", &[&capped], &[]);
        builder.apply("Mul", &[&capped, &wide], &[])
    });
    let Some(export) = capped else {
        return skip("the exports of ../shared");
    };
    let logits = Base::open(export.folder()).unwrap().description.logits;
    assert_eq!(logits.unwrap().projection, None);
    let way = Way::exact("auto");
    let found = compare(export.folder(), way, texts(&export.name), spoken);
    assert_eq!(found, Ok(()));
}

#[test]
fn what_images_will_lack_is_said_before_a_training() {
    let rounded = with_scores(|builder, scores| {
        let step = builder.scalar(data_type::FLOAT, 0.05);
        let zero = builder.constant(data_type::INT8, &[], vec![0]);
        let whole = builder.apply("QuantizeLinear", &[scores, &step, &zero], &[]);
        builder.apply("DequantizeLinear", &[&whole, &step, &zero], &[])
    });
    let Some(export) = rounded else {
        return skip("the exports of ../shared");
    };
    let base = export.folder().to_str().unwrap();
    let checked: Value =
        serde_json::from_str(&preface(&["check", "--json", base]).unwrap()).unwrap();
    let expected = (&json!(true), &json!(false));
    assert_eq!((&checked["servable"], &checked["scores"]), expected);
    let warnings = |head: &str| trained(export.folder(), &["--head", head])["warnings"].to_string();
    let (spoken, linear) = (warnings("verbaliser"), warnings("linear"));
    let lack = "make no scores of its vocabulary, which the head verbaliser reads";
    assert!(spoken.contains(lack), "{spoken}");
    assert!(!linear.contains("no scores"), "{linear}");
}

/// What `preface train` says of a task of two words that it learns for an epoch with the base in `folder`.
fn trained(folder: &Path, how: &[&str]) -> Value {
    let scene = tempfile::tempdir().unwrap();
    let [data, adapter] = ["data.jsonl", "adapter"].map(|name| scene.path().join(name));
    let lines = ["w5", "w9"].map(|label| json!({"text": format!("w30 {label}"), "label": label}));
    fs::write(&data, lines.map(|line| format!("{line}\n")).concat()).unwrap();
    let [base, data, adapter] = [folder, &data, &adapter].map(|path| path.to_str().unwrap());
    let train = ["train", "--json", "--base", base, "--train", data];
    let rest = ["--dev", data, "--epochs", "1", "--no-advice", "-o", adapter];
    let said = preface(&[&train[..], &rest, how].concat()).unwrap();
    serde_json::from_str(&said).unwrap()
}

#[test]
fn a_prefix_is_trained_where_positions_are_counted_from_the_cache() {
    let models = fused::models();
    let mut models = models.iter();
    let (_, model) = models.find(|(name, _)| *name == "heads, cache").unwrap();
    let folder = tempfile::tempdir().unwrap();
    fused::write(model, folder.path());
    let base = Base::open(folder.path()).unwrap().description;
    let form = Form::of(FormKind::KeyValues, 3, &base);
    assert_eq!(form.positions(&base), PositionPlan::AfterPrompt);
    let said = trained(folder.path(), &["--method", "prefix-tuning"]);
    assert_eq!(said["best_epoch"], 1);
}

#[test]
fn an_encoder_decoder_of_two_files_gives_the_same_words() {
    let Some(export) = support::export("t5.sdpa.legacy.op17.onnx") else {
        return skip("the exports of ../shared");
    };
    support::parted::part(&export);
    let checked = preface(&["check", "--json", export.folder().to_str().unwrap()]).unwrap();
    let checked: Value = serde_json::from_str(&checked).unwrap();
    assert_eq!(
        (&checked["kind"], &checked["servable"]),
        (&json!("encoder-decoder"), &json!(true))
    );
    let way = Way::exact("auto");
    assert_eq!(
        compare(export.folder(), way, texts(&export.name), spoken),
        Ok(())
    );
}

#[test]
fn nodes_may_stand_in_any_order() {
    let Some(export) = support::export("bert_base.sdpa.legacy.op17.onnx") else {
        return skip("the exports of ../shared");
    };
    let sorted = Base::open(export.folder()).unwrap().description;
    let path = export.folder().join("model.onnx");
    let mut model = ModelProto::decode(&*fs::read(&path).unwrap()).unwrap();
    model.graph.as_mut().unwrap().node.reverse();
    fs::remove_file(&path).unwrap();
    fs::write(&path, model.encode_to_vec()).unwrap();
    let found = Base::open(export.folder()).unwrap().description;
    assert_eq!(
        (found.hidden_rows, found.sites),
        (sorted.hidden_rows, sorted.sites)
    );
}

#[test]
fn a_mask_token_is_read_where_the_template_puts_it() {
    let Some(export) = support::export("optimum_bert_mlm") else {
        return skip("the exports of ../shared");
    };
    export.rename(&[(96, "[MASK]")]);
    let way = Way::exact("auto");
    assert_eq!(
        compare(export.folder(), way, &["w5 w9", "w3"], spoken),
        Ok(())
    );
}

/// Compares the answers of adapters; what the program says where it fails.
fn compare(
    folder: &Path,
    way: Way,
    texts: &[&str],
    adapters: fn(&Base) -> Vec<Adapter>,
) -> Result<(), String> {
    let base = Base::open(folder).unwrap();
    let scene = tempfile::tempdir().unwrap();
    let at = |name: &str| scene.path().join(name).to_str().unwrap().to_owned();
    let source = folder.to_str().unwrap();
    let image = at("x.base");
    let Way {
        engine, weights, ..
    } = way;
    let compile = ["compile", "--json", source, "--engine", engine];
    let compiled = preface(&[&compile[..], &["--weights", weights, "-o", &image]].concat())?;
    let compiled: Value = serde_json::from_str(&compiled).unwrap();
    let wanted = if engine == "plan" { "plan" } else { "executor" };
    if compiled["engine"] != wanted {
        return Err(format!("not for the {wanted}: {}", compiled["reason"]));
    }
    preface(&[
        "keygen",
        "--no-passphrase",
        "-o",
        &at("keys"),
        "--name",
        "k",
    ])?;
    let trust = at("trust");
    preface(&["trust", "new", "-o", &trust, "--key", &at("keys/k.pub")])?;
    let (key, bundle) = (at("keys/k.key"), at("x.preface"));
    let run = [
        "run", "--json", "--base", &image, "--bundle", &bundle, "--trust", &trust,
    ];
    let tokens = Tokens::read(&base.tokenizer).unwrap();
    for adapter in adapters(&base) {
        adapter.write(Path::new(&at("adapter"))).unwrap();
        let pack = [
            "pack",
            &at("adapter"),
            "--task",
            "x",
            "--sequence",
            "1",
            "--dtype",
            "f32",
        ];
        preface(&[&pack[..], &["--key", &key, "-o", &bundle]].concat())?;
        for text in texts {
            let data = dataset(&adapter.card, text);
            let described = &base.description;
            let rows = encode(
                &adapter.card,
                described,
                &tokens,
                &data,
                Overlength::Refuse,
                None,
            );
            let rows = rows.unwrap().rows;
            let expected = &evaluate(&adapter, &base, library(), &rows, 1, |_| ()).unwrap()[0];
            let pair = format!("{text}\t{SECOND}");
            let line = if data.pairs() { &*pair } else { text };
            let said = preface(&[&run[..], &[line]].concat())?;
            let answer: Value = serde_json::from_str(&said).unwrap();
            if !agrees(expected, &answer, &adapter.card.labels, way) {
                let card = &adapter.card;
                return Err(format!(
                    "{:?} {text}: {answer} for {expected:?}",
                    (&card.form, &card.head)
                ));
            }
        }
    }
    Ok(())
}

/// The second text of every pair.
const SECOND: &str = "it is dark";

/// One example of the kind that the adapter answers.
fn dataset(card: &Card, text: &str) -> Dataset {
    let label = || card.labels[0].clone();
    let target = match &*serde_json::to_value(card.answer.kind).unwrap().to_string() {
        "\"labels\"" => Target::Labels(vec![label()]),
        "\"tags\"" => Target::Tags(text.split_whitespace().map(|_| label()).collect()),
        _ => Target::Label(label()),
    };
    let pair = serde_json::to_value(card.inputs).unwrap() == json!("pair");
    Dataset {
        path: "x".into(),
        examples: vec![Example {
            text: text.into(),
            text2: pair.then(|| SECOND.to_owned()),
            target,
            line: 1,
        }],
        sha256: String::new(),
        begun: None,
    }
}

fn agrees(expected: &Prediction, answer: &Value, labels: &[String], way: Way) -> bool {
    let near = |found: &Value, expected: f32| {
        let found = found.as_f64().unwrap_or(f64::NAN) as f32;
        (found - expected).abs() / expected < way.tolerance
    };
    let scores = answer["score"].as_array().cloned().unwrap_or_default();
    match &expected.found {
        Found::Class(class) => {
            let same = answer["label"] == json!(labels[*class]);
            (same || !way.is_exact()) && near(&answer["score"], expected.score)
        }
        Found::Probabilities(all) => {
            answer["labels"] == json!(labels)
                && scores.len() == all.len()
                && scores
                    .iter()
                    .zip(all)
                    .all(|(found, expected)| near(found, *expected))
        }
        Found::Places(classes) => {
            let tags: Vec<&String> = classes.iter().map(|class| &labels[*class]).collect();
            let least = scores.iter().filter_map(Value::as_f64).fold(1.0, f64::min);
            answer["tags"] == json!(tags) && near(&json!(least), expected.score)
        }
    }
}

fn preface(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(env!("CARGO_BIN_EXE_preface"))
        .args(arguments)
        .output()
        .unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}
