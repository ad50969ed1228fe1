//! `import` and `export`: prompts of PEFT, ONNX Runtime and numpy through the built program, against what real PEFT
//! answered in PyTorch (tests/golden/peft).

#![allow(clippy::unwrap_used)]

mod exchange_scene;
mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use exchange_scene::{Case, Scene, case, cases, golden, said};
use preface_graph::{Base, Kind};
use preface_trainer::{
    adapter::Adapter,
    data::Dataset,
    encode::Overlength,
    evaluation::{encode, evaluate},
    form::Form,
    metrics::Found,
    tokens::Tokens,
};
use safetensors::SafeTensors;
use serde_json::{Value, json};

/// Logits of PEFT in PyTorch and of the runtime, both in f32.
const TOLERANCE: f64 = 1e-5;

fn softmax(logits: &[f64]) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
    logits.iter().map(|logit| logit.exp() / sum).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    let numbers = value.as_array().unwrap().iter();
    numbers.map(|number| number.as_f64().unwrap()).collect()
}

/// How far the answer of a text is from what PEFT gave: the probabilities of all labels, or of each word's tag.
fn difference(scene: &Scene, case: &Case, answer: &Value, expected: &Value) -> f64 {
    let far = |one: &[f64], other: &[f64]| {
        assert_eq!(one.len(), other.len(), "{}", case.name);
        let pairs = one.iter().zip(other);
        pairs
            .map(|(one, other)| (one - other).abs())
            .fold(0.0, f64::max)
    };
    match &*case.task_type {
        "SEQ_CLS" => {
            let logistic = numbers(expected)
                .iter()
                .map(|logit| 1.0 / (1.0 + (-logit).exp()))
                .collect::<Vec<_>>();
            assert_eq!(answer["labels"], json!(scene.labels));
            far(&numbers(&answer["score"]), &logistic)
        }
        "TOKEN_CLS" => {
            let words = expected
                .as_array()
                .unwrap()
                .iter()
                .map(|logits| softmax(&numbers(logits)));
            let best = words.map(|word| {
                word.into_iter()
                    .enumerate()
                    .max_by(|one, other| one.1.total_cmp(&other.1))
                    .unwrap()
            });
            let (tags, scores): (Vec<usize>, Vec<f64>) = best.unzip();
            let tags: Vec<_> = tags.iter().map(|&tag| &scene.labels[tag]).collect();
            assert_eq!(answer["tags"], json!(tags), "{}", case.name);
            far(&numbers(&answer["score"]), &scores)
        }
        _ => {
            assert_eq!(&answer["text"], expected, "{}", case.name);
            0.0
        }
    }
}

/// Cases that are served, one for each task in them.
fn served() -> impl Iterator<Item = (Case, usize)> {
    let with_tasks = |case: Case| (0..case.tasks.len()).map(move |task| (case.clone(), task));
    cases()
        .into_iter()
        .filter(|case| case.is_served())
        .flat_map(with_tasks)
}

#[test]
fn peft_in_pytorch_and_the_runtime_give_the_same_answers() {
    let scene = Scene::new();
    let (mut compared, mut furthest) = (0, 0f64);
    for (case, task) in served() {
        let adapter = scene.imported(&case, task);
        // Every label is then given, with the logistic function of its logit.
        scene.change(&adapter, |card| {
            if card["answer"]["kind"] == "labels" {
                card["answer"]["threshold"] = json!(0.0);
            }
        });
        let bundle = scene.packed(&adapter);
        let answers = scene.answers(&case, &bundle);
        assert_eq!(answers.len(), case.texts.len());
        let expected = case.tasks[task].as_array().unwrap();
        for (answer, expected) in answers.iter().zip(expected) {
            let far = difference(&scene, &case, answer, expected);
            assert!(far < TOLERANCE, "{}: {far}", case.name);
            (compared, furthest) = (compared + 1, furthest.max(far));
        }
    }
    assert!(compared >= 51, "{compared}");
    println!("{compared} answers, at most {furthest:e} apart");
}

#[test]
fn a_decoder_behind_a_prefix_gives_every_word_the_logit_that_it_has_in_pytorch() {
    let scene = Scene::new();
    // Words w4 to w63 speak for labels of their names.
    let words = (4..64).map(|id| (vec![id], format!("w{id}")));
    let (ids, names): (Vec<_>, Vec<_>) = words.unzip();
    for name in ["t5-deep-prefix", "bart-prefix"] {
        let case = case(name);
        let adapter = scene.imported(&case, 0);
        scene.change(&adapter, |card| {
            assert_eq!(card["positions"], "decoder-after-prompt");
            card["head"] = json!({"kind": "verbaliser", "classes": ids.len(), "hidden": 16});
            card["answer"] = json!({"kind": "labels", "threshold": 0.0});
            card["verbaliser"] = json!(ids);
            card["labels"] = json!(names);
            card.as_object_mut().unwrap().remove("decode");
        });
        let answers = scene.answers(&case, &scene.packed(&adapter));
        let expected = case.first_logits.as_array().unwrap();
        assert_eq!(answers.len(), expected.len());
        for (answer, expected) in answers.iter().zip(expected) {
            assert_eq!(answer["labels"], json!(names));
            let scores = numbers(&answer["score"]).into_iter();
            let found = scores.map(|score| (score / (1.0 - score)).ln());
            let expected = &numbers(expected)[4..];
            let largest = |most: f64, logit: &f64| most.max(logit.abs());
            let most = expected.iter().fold(0.0, largest);
            for (found, expected) in found.zip(expected) {
                let far = (found - expected).abs();
                assert!(far < 1e-4 * most, "{name}: {found} {expected}");
            }
        }
    }
}

fn is_prefix(adapter: &Adapter) -> bool {
    matches!(adapter.card.form, Form::KeyValues { .. })
}

#[test]
fn labels_and_tags_through_onnxruntime_are_those_of_pytorch() {
    let scene = Scene::new();
    let (mut compared, mut furthest) = (0, 0f64);
    for (case, task) in served().filter(|(case, _)| case.task_type.ends_with("_CLS")) {
        let folder = scene.imported(&case, task);
        let adapter = Adapter::read(Path::new(&folder)).unwrap();
        let base = Base::open(Path::new(&case.base_folder())).unwrap();
        let fits = adapter.fits(&base.description, Path::new(&folder));
        // A decoder without a cache may count the tokens of its mask, and no place before the text is one.
        if base.description.kind == Kind::Decoder && is_prefix(&adapter) {
            let refused = fits.unwrap_err().to_string();
            assert!(refused.contains("preface eval --bundle"), "{refused}");
            continue;
        }
        fits.unwrap();
        let tags = case.task_type == "TOKEN_CLS";
        let line = |text: &String| match tags {
            true => {
                let words: Vec<&str> = text.split(' ').collect();
                json!({"tokens": words, "tags": vec!["red"; words.len()]})
            }
            false => json!({"text": text, "labels": ["red"]}),
        };
        let lines = case.texts.iter().map(|text| format!("{}\n", line(text)));
        let data = scene.at("asked.jsonl");
        fs::write(&data, lines.collect::<String>()).unwrap();
        let data = Dataset::read(Path::new(&data)).unwrap();
        let tokens = Tokens::read(&base.tokenizer).unwrap();
        let (card, described) = (&adapter.card, &base.description);
        let rows = encode(card, described, &tokens, &data, Overlength::Refuse, None).unwrap();
        let answers = evaluate(&adapter, &base, support::library(), &rows.rows, 1, |_| ()).unwrap();
        let expected = case.tasks[task].as_array().unwrap();
        assert_eq!(answers.len(), expected.len());
        for (answer, expected) in answers.iter().zip(expected) {
            let far = match &answer.found {
                Found::Probabilities(found) => {
                    let logits = numbers(expected);
                    assert_eq!(found.len(), logits.len());
                    let pairs = found.iter().zip(logits);
                    pairs
                        .map(|(found, logit)| {
                            (f64::from(*found) - 1.0 / (1.0 + (-logit).exp())).abs()
                        })
                        .fold(0.0, f64::max)
                }
                Found::Places(found) => {
                    let words = expected.as_array().unwrap().iter();
                    let best = words.map(|logits| {
                        let words = softmax(&numbers(logits)).into_iter().enumerate();
                        words
                            .max_by(|one, other| one.1.total_cmp(&other.1))
                            .unwrap()
                    });
                    let (tags, scores): (Vec<usize>, Vec<f64>) = best.unzip();
                    assert_eq!(found, &tags, "{}", case.name);
                    let least = scores.into_iter().fold(1.0, f64::min);
                    (f64::from(answer.score) - least).abs()
                }
                other => panic!("{other:?}"),
            };
            assert!(far < TOLERANCE, "{}: {far}", case.name);
            (compared, furthest) = (compared + 1, furthest.max(far));
        }
    }
    assert!(compared >= 21, "{compared}");
    println!("{compared} answers, at most {furthest:e} apart");
}

#[test]
fn an_encoder_decoder_goes_on_through_onnxruntime_as_in_pytorch() {
    let scene = Scene::new();
    for (case, task) in served().filter(|(case, _)| case.task_type == "SEQ_2_SEQ_LM") {
        let adapter = scene.imported(&case, task);
        let targets: Vec<String> = case.tasks[task]
            .as_array()
            .unwrap()
            .iter()
            .map(|text| text.as_str().unwrap().into())
            .collect();
        let lines = case
            .texts
            .iter()
            .zip(&targets)
            .map(|(text, target)| format!("{}\n", json!({"text": text, "target": target})));
        let data = scene.at("targets.jsonl");
        fs::write(&data, lines.collect::<String>()).unwrap();
        let base = case.base_folder();
        let eval = [
            "eval",
            "--json",
            "--base",
            &base,
            "--adapter",
            &adapter,
            "--data",
            &data,
        ];
        let figures = scene.good(&eval);
        // Of a text that PEFT cut off, all is right but the end that it has not.
        let words: usize = targets
            .iter()
            .map(|target| target.split_whitespace().count())
            .sum();
        let ended = targets
            .iter()
            .filter(|target| target.split_whitespace().count() < scene.generated)
            .count();
        let expected = (words + ended) as f64 / (words + targets.len()) as f64;
        let found = figures["token_accuracy"].as_f64().unwrap();
        assert!(
            (found - expected).abs() < 1e-9,
            "{}: {figures}, expected {expected}",
            case.name
        );
        scene.packed(&adapter);
    }
}

/// Tensors by name: shape and bytes.
fn tensors(folder: &Path) -> Vec<(String, Vec<usize>, Vec<u8>)> {
    let bytes = fs::read(folder.join("adapter_model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<_> = file
        .tensors()
        .into_iter()
        .map(|(name, tensor)| (name, tensor.shape().to_vec(), tensor.data().to_vec()))
        .collect();
    all.sort();
    all
}

#[test]
fn what_came_from_peft_goes_back_byte_for_byte_even_through_a_bundle() {
    let scene = Scene::new();
    for (case, task) in served() {
        let adapter = scene.imported(&case, task);
        let bundle = scene.packed(&adapter);
        for source in [&adapter, &bundle] {
            let exported = PathBuf::from(scene.exported(&case, source, "peft"));
            let (theirs, ours) = (tensors(&case.folder()), tensors(&exported));
            let config = |folder: &Path| -> Value {
                serde_json::from_slice(&fs::read(folder.join("adapter_config.json")).unwrap())
                    .unwrap()
            };
            let (their_config, our_config) = (config(&case.folder()), config(&exported));
            for key in [
                "task_type",
                "num_virtual_tokens",
                "num_transformer_submodules",
                "token_dim",
                "inference_mode",
            ] {
                assert_eq!(our_config[key], their_config[key], "{} {key}", case.name);
            }
            if case.tasks.len() > 1 || ["t5", "bart"].contains(&&*case.base) {
                // Factors of tasks are multiplied out; PEFT never reads the second half of a seq2seq prompt, nor every
                // other layer of a prefix where their number is even.
                let shape = |all: &[(String, Vec<usize>, Vec<u8>)]| {
                    all.iter()
                        .find(|one| one.0 == "prompt_embeddings")
                        .unwrap()
                        .1
                        .clone()
                };
                assert_eq!(shape(&ours), shape(&theirs));
                continue;
            }
            assert_eq!(ours, theirs, "{}", case.name);
            for key in ["peft_type", "num_layers", "num_attention_heads"] {
                let prefix = ours
                    .iter()
                    .any(|(name, shape, _)| name == "prompt_embeddings" && shape[1] == 64);
                assert!(
                    !(prefix || key == "peft_type") || our_config[key] == their_config[key],
                    "{} {key}",
                    case.name
                );
            }
        }
    }
}

#[test]
fn peft_loads_what_is_exported_with_the_same_logits() {
    let Some(python) = support::peft_python() else {
        return support::skip("the Python of `make peft`");
    };
    let scene = Scene::new();
    let folder = scene.at("exported");
    fs::create_dir(&folder).unwrap();
    for (case, task) in served() {
        let adapter = scene.imported(&case, task);
        let exported = scene.exported(&case, &adapter, "peft");
        fs::rename(
            exported,
            Path::new(&folder).join(format!("{}.{task}", case.name)),
        )
        .unwrap();
    }
    let output = Command::new(python)
        .arg(golden().join("load.py"))
        .arg(&folder)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        said(&output.stdout),
        said(&output.stderr)
    );
}

/// The Python beside the ONNX Runtime of `make base`.
fn onnxruntime_python() -> Option<PathBuf> {
    let library = PathBuf::from(std::env::var_os("ORT_DYLIB_PATH")?);
    library
        .ancestors()
        .map(|folder| folder.join("bin/python"))
        .find(|python| python.is_file())
}

#[test]
fn stock_onnxruntime_loads_an_exported_adapter_and_numpy_an_exported_prompt() {
    let Some(python) = onnxruntime_python() else {
        return support::skip("a Python with ONNX Runtime");
    };
    let scene = Scene::new();
    for name in ["gpt2-mlp", "llama-prefix"] {
        let case = case(name);
        let adapter = scene.imported(&case, 0);
        let bundle = scene.packed(&adapter);
        let file = scene.exported(&case, &bundle, "ort-adapter");
        let prompt = Path::new(&adapter).join("adapter_model.safetensors");
        let mut command = Command::new(&python);
        command
            .arg(golden().join("../ort_adapter.py"))
            .arg(&file)
            .arg(&prompt);
        if name == "gpt2-mlp" {
            command.arg(scene.exported(&case, &bundle, "numpy"));
        }
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "{}{}",
            said(&output.stdout),
            said(&output.stderr)
        );
    }
}

#[test]
fn onnxruntime_and_numpy_files_come_back_as_they_went() {
    let scene = Scene::new();
    for (name, format) in [
        ("llama-lstm", "numpy"),
        ("llama-lstm", "ort-adapter"),
        ("gpt2-prefix", "ort-adapter"),
        ("gpt2-cartridge", "ort-adapter"),
    ] {
        let case = case(name);
        let adapter = scene.imported(&case, 0);
        let file = scene.exported(&case, &adapter, format);
        let again = scene.at("again");
        let base = case.base_folder();
        scene.good(&[
            "import", format, &file, "--base", &base, "-o", &again, "--json",
        ]);
        let prompt = |folder: &str| {
            tensors(Path::new(folder))
                .into_iter()
                .find(|one| one.0 == "prompt_embeddings")
        };
        assert_eq!(prompt(&again), prompt(&adapter), "{name} {format}");
        scene.packed(&again);
    }
}

#[test]
fn numpy_prompts_of_several_tasks_are_told_apart() {
    let scene = Scene::new();
    let base = golden().join("bases/gpt2");
    let base = base.to_str().unwrap();
    let values: Vec<f32> = (0..2 * 3 * 16).map(|index| index as f32 / 64.0).collect();
    for shape in ["(2, 3, 16)", "(2, 48)"] {
        let file = scene.npy(shape, "<f4", &values);
        let adapter = scene.at("of-tasks");
        scene.good(&[
            "import",
            "numpy",
            &file,
            "--base",
            base,
            "-o",
            &adapter,
            "--task-index",
            "1",
            "--json",
        ]);
        let (_, shape, bytes) = tensors(Path::new(&adapter)).remove(0);
        assert_eq!(
            (shape, &bytes[..4]),
            (vec![3, 16], &values[48].to_le_bytes()[..])
        );
        let error = scene.refused(&["import", "numpy", &file, "--base", base, "-o", &adapter]);
        assert!(
            error.contains("2 tasks") && error.contains("--task-index 0 to 1"),
            "{error}"
        );
    }
    let file = scene.npy("(4, 24)", "<f4", &values);
    let error = scene.refused(&[
        "import",
        "numpy",
        &file,
        "--base",
        base,
        "-o",
        &scene.at("x"),
    ]);
    assert!(
        error.contains("[4, 24]") && error.contains("[tokens, 16]") && error.contains("--base"),
        "{error}"
    );
}
