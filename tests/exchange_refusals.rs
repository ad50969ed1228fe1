//! What `import` and `export` refuse: each with the file, what is wrong, and the way out.

#![allow(clippy::unwrap_used)]

mod exchange_scene;
mod support;

use std::{fs, path::Path};

use exchange_scene::{Scene, case, golden};
use serde_json::json;

#[test]
fn labels_come_from_the_model_and_must_be_as_many_as_the_head_has() {
    let scene = Scene::new();
    let case = case("gpt2-mlp");
    let folder = scene.copy(&case);
    let output = scene.at("named");
    let import = [
        "import",
        "peft",
        &folder,
        "--base",
        &case.base_folder(),
        "-o",
        &output,
    ];
    let error = scene.refused(&[&import[..], &["--labels", "one,two"]].concat());
    assert!(
        error.contains("3 labels") && error.contains("--labels names 2"),
        "{error}"
    );
    let labels = json!({"id2label": {"0": "on", "1": "off", "2": "dim"}});
    fs::write(Path::new(&folder).join("config.json"), labels.to_string()).unwrap();
    let report = scene.good(&[&import[..], &["--json"]].concat());
    assert_eq!(report["labels"], json!(["on", "off", "dim"]));
}

#[test]
fn what_is_no_prompt_or_has_no_equal_is_refused_by_name() {
    let scene = Scene::new();
    let table = [
        (
            "gpt2-lora",
            "\"LORA\" changes the weights",
            "merge_and_unload",
        ),
        ("gpt2-ia3", "\"IA3\" changes the weights", "preface train"),
        (
            "gpt2-adalora",
            "\"ADALORA\" changes the weights",
            "preface train",
        ),
    ];
    for (name, reason, way_out) in table {
        let case = case(name);
        let source = case.folder();
        let error = scene.refused(&[
            "import",
            "peft",
            source.to_str().unwrap(),
            "--base",
            &case.base_folder(),
            "-o",
            &scene.at("x"),
        ]);
        assert!(
            error.contains(name) && error.contains(reason) && error.contains(way_out),
            "{error}"
        );
        assert!(!Path::new(&scene.at("x")).exists());
    }
    let gguf = scene.at("model.gguf");
    fs::write(&gguf, [&b"GGUF"[..], &[3, 0, 0, 0], &[0; 16]].concat()).unwrap();
    for format in ["gguf", "peft", "numpy", "ort-adapter"] {
        let base = golden().join("bases/gpt2");
        let error = scene.refused(&[
            "import",
            format,
            &gguf,
            "--base",
            base.to_str().unwrap(),
            "-o",
            &scene.at("x"),
        ]);
        assert!(
            error.contains("model.gguf")
                && error.contains("no place for a soft prompt")
                && error.contains("ONNX"),
            "{error}"
        );
    }
}

#[test]
fn an_adapter_for_another_base_is_refused_with_both_shapes() {
    let scene = Scene::new();
    let llama = golden().join("bases/llama");
    for (name, found, expected) in [
        ("gpt2-mlp", "[3, 16]", "[3, 24]"),
        ("bert-tags-prompt", "[3, 16]", "[3, 24]"),
    ] {
        let source = golden().join("adapters").join(name);
        let error = scene.refused(&[
            "import",
            "peft",
            source.to_str().unwrap(),
            "--base",
            llama.to_str().unwrap(),
            "-o",
            &scene.at("x"),
            "--labels",
            "a,b,c",
        ]);
        assert!(
            error.contains(found) && error.contains(expected) && error.contains("--base"),
            "{error}"
        );
    }
    let source = golden().join("adapters/gpt2-prefix");
    let bert = golden().join("bases/bert");
    let error = scene.refused(&[
        "import",
        "peft",
        source.to_str().unwrap(),
        "--base",
        bert.to_str().unwrap(),
        "-o",
        &scene.at("x"),
    ]);
    assert!(
        error.contains("CAUSAL_LM") && error.contains("an encoder"),
        "{error}"
    );
}

/// A change of a good folder: its name, the tensors (none: a pickle), the configuration where it is another, what is
/// said of it, and the way out.
type Hostile = (
    &'static str,
    Option<Vec<u8>>,
    Option<String>,
    &'static str,
    &'static str,
);

/// What an attacker, or a bad copy, makes of the files of a good adapter.
#[test]
fn hostile_folders_are_refused_and_nothing_is_written() {
    let scene = Scene::new();
    let case = case("gpt2-mlp");
    let good = fs::read(case.folder().join("adapter_model.safetensors")).unwrap();
    let header = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let renamed = |name: &str| -> Vec<u8> {
        let text = String::from_utf8(good[8..8 + header].to_vec()).unwrap();
        let text = text
            .replace("prompt_embeddings", name)
            .trim_end()
            .to_owned();
        [
            &(text.len() as u64).to_le_bytes()[..],
            text.as_bytes(),
            &good[8 + header..],
        ]
        .concat()
    };
    let mut with_nan = good.clone();
    let last = good.len() - 4;
    with_nan[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    let config = |text: &str| Some(text.to_owned());
    let table: [Hostile; 10] = [
        (
            "cut short",
            Some(good[..good.len() - 5].to_vec()),
            None,
            "no whole safetensors",
            "copy it again",
        ),
        (
            "huge header",
            Some([&[0xff; 8][..], &good[8..]].concat()),
            None,
            "no whole safetensors",
            "copy it again",
        ),
        (
            "not a number",
            Some(with_nan),
            None,
            "NaN",
            "train it again",
        ),
        (
            "a path for a name",
            Some(renamed("../../../etc/x")),
            None,
            "is missing",
            "../../../etc/x",
        ),
        (
            "a shape that lies",
            Some(good.clone()),
            config(r#"{"peft_type": "P_TUNING", "num_virtual_tokens": 4}"#),
            "[3, 16]",
            "expected [4, 16]",
        ),
        (
            "endless tokens",
            Some(good.clone()),
            config(
                r#"{"peft_type": "P_TUNING", "task_type": "SEQ_2_SEQ_LM", "num_virtual_tokens": 18446744073709551615}"#,
            ),
            "SEQ_2_SEQ_LM",
            "--base",
        ),
        (
            "endless tokens of a decoder",
            Some(good.clone()),
            config(r#"{"peft_type": "P_TUNING", "num_virtual_tokens": 18446744073709551615}"#),
            "expected [18446744073709551615, 16]",
            "--base",
        ),
        (
            "no JSON",
            Some(good.clone()),
            config("{"),
            "no configuration of PEFT",
            "save the adapter again",
        ),
        (
            "no tensors",
            None,
            None,
            "adapter_model.bin",
            "safe_serialization=True",
        ),
        (
            "not there",
            Some(good.clone()),
            config(r#"{"peft_type": "P_TUNING"}"#),
            "num_virtual_tokens",
            "save the adapter again",
        ),
    ];
    for (what, tensors, config, problem, way_out) in table {
        let folder = scene.copy(&case);
        let at = |name: &str| Path::new(&folder).join(name);
        match tensors {
            Some(bytes) => fs::write(at("adapter_model.safetensors"), bytes).unwrap(),
            None => fs::rename(at("adapter_model.safetensors"), at("adapter_model.bin")).unwrap(),
        }
        if let Some(config) = config {
            fs::write(at("adapter_config.json"), config).unwrap();
        }
        let output = scene.at("hostile-out");
        let error = scene.refused(&[
            "import",
            "peft",
            &folder,
            "--base",
            &case.base_folder(),
            "--labels",
            "a,b,c",
            "-o",
            &output,
        ]);
        assert!(error.contains(&folder), "{what} names its file: {error}");
        assert!(
            error.contains(problem) && error.contains(way_out),
            "{what}: {error}"
        );
        assert!(!Path::new(&output).exists(), "{what}");
    }
}

#[test]
fn a_head_of_several_layers_is_refused_by_the_name_of_its_tensor() {
    let scene = Scene::new();
    let case = case("gpt2-mlp");
    let folder = scene.copy(&case);
    let path = Path::new(&folder).join("adapter_model.safetensors");
    let good = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let text = String::from_utf8(good[8..8 + header].to_vec())
        .unwrap()
        .replace("score.weight", "classifier.other.weight");
    let text = text.trim_end();
    fs::write(
        &path,
        [
            &(text.len() as u64).to_le_bytes()[..],
            text.as_bytes(),
            &good[8 + header..],
        ]
        .concat(),
    )
    .unwrap();
    let error = scene.refused(&[
        "import",
        "peft",
        &folder,
        "--base",
        &case.base_folder(),
        "--labels",
        "a,b,c",
        "-o",
        &scene.at("x"),
    ]);
    assert!(
        error.contains("classifier.other.weight") && error.contains("preface train"),
        "{error}"
    );
}

#[test]
fn a_bundle_that_nobody_vouches_for_is_not_exported() {
    let scene = Scene::new();
    let case = case("gpt2-mlp");
    let bundle = scene.packed(&scene.imported(&case, 0));
    let output = scene.at("x.npy");
    let error = scene.refused(&["export", "numpy", &bundle, "-o", &output]);
    assert!(error.contains("--trust"), "{error}");
    let mut bytes = fs::read(&bundle).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&bundle, bytes).unwrap();
    scene.refused(&[
        "export",
        "numpy",
        &bundle,
        "--trust",
        &scene.at("trust"),
        "-o",
        &output,
    ]);
    assert!(!Path::new(&output).exists());
}

#[test]
fn labels_that_are_none_are_refused_beside_the_file_that_was_read() {
    let scene = Scene::new();
    let case = case("gpt2-mlp");
    let (file, output) = (scene.at("x.npy"), scene.at("y"));
    let export = ["export", "numpy", &scene.imported(&case, 0), "-o", &file];
    scene.good(&[&export[..], &["--json"]].concat());
    let import = ["import", "numpy", &file, "--base", &case.base_folder()];
    let error = scene.refused(&[&import[..], &["--labels", "a,a", "-o", &output]].concat());
    assert!(error.contains("x.npy: labels: \"a\""), "{error}");
    assert!(!Path::new(&output).exists());
}

#[test]
fn an_export_is_not_written_into_an_adapter() {
    let scene = Scene::new();
    let case = case("t5-prefix");
    let adapter = scene.imported(&case, 0);
    let files = || {
        let entries = fs::read_dir(&adapter).unwrap();
        let mut files: Vec<_> = entries
            .map(|entry| fs::read(entry.unwrap().path()).unwrap())
            .collect();
        files.sort();
        files
    };
    let (before, base) = (files(), case.base_folder());
    let export = ["export", "peft", &adapter, "--base", &base];
    let error = scene.refused(&[&export[..], &["-o", &adapter]].concat());
    assert!(error.contains("is an adapter folder"), "{error}");
    assert_eq!(files(), before);
    let output = scene.at("x");
    let error = scene.refused(&[&export[..], &["--table", "-o", &output]].concat());
    assert!(error.contains("--table is of numpy's arrays"), "{error}");
    assert!(!Path::new(&output).exists());
}

#[test]
fn a_classifier_behind_a_pooler_needs_the_pooler() {
    let scene = Scene::new();
    let case = case("bert-pooled-prompt");
    let (source, output) = (case.folder(), scene.at("x"));
    let base = case.base_folder();
    let import = [
        "import",
        "peft",
        source.to_str().unwrap(),
        "--base",
        &base,
        "--labels",
        "a,b,c",
        "-o",
        &output,
    ];
    let error = scene.refused(&import);
    assert!(
        error.contains("pooler") && error.contains("--pooler") && error.contains("--pooling"),
        "{error}"
    );
    let other = golden().join("adapters/gpt2-mlp/adapter_model.safetensors");
    let error = scene.refused(&[&import[..], &["--pooler", other.to_str().unwrap()]].concat());
    assert!(
        error.contains("pooler.dense.weight") && error.contains("model.safetensors"),
        "{error}"
    );
}

#[test]
fn a_prefix_of_a_decoder_behind_an_encoder_goes_where_peft_puts_it_or_nowhere() {
    let scene = Scene::new();
    let case = case("t5-prefix");
    let base = case.base_folder();
    let folder = scene.copy(&case);
    let path = Path::new(&folder).join("adapter_config.json");
    let config = fs::read_to_string(&path).unwrap();
    for (one, other) in [
        ("_submodules\": 2", "_submodules\": 1"),
        ("SEQ_2_SEQ_LM", "FEATURE_EXTRACTION"),
    ] {
        fs::write(&path, config.replace(one, other)).unwrap();
        let output = scene.at("x");
        let import = ["import", "peft", &folder, "--base", &base, "-o", &output];
        let error = scene.refused(&import);
        assert!(error.contains("num_transformer_submodules is 2"), "{error}");
    }
    let adapter = scene.imported(&case, 0);
    let refused = |format| {
        let output = scene.at("out");
        scene.refused(&["export", format, &adapter, "--base", &base, "-o", &output])
    };
    let error = refused("ort-adapter");
    assert!(error.contains("export peft"), "{error}");
    let path = Path::new(&adapter).join("adapter_model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.last_chunk_mut::<4>().unwrap();
    *last = 0.25f32.to_le_bytes();
    fs::write(&path, bytes).unwrap();
    let error = refused("peft");
    assert!(error.contains("layers 0 and 1"), "{error}");
    scene.change(&adapter, |card| card["positions"] = json!("after-prompt"));
    let error = refused("peft");
    assert!(
        error.contains("its decoder's own attentions alone"),
        "{error}"
    );
}
