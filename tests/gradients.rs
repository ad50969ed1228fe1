//! Gradients and shape facts on whole models: against PyTorch in float64, against finite differences and against what
//! ONNX Runtime makes of the same graphs.

#![allow(clippy::unwrap_used)]

mod support;

use std::{collections::HashMap, path::Path};

use preface_graph::{
    Base, Description, FormKind, Kind, SIZES, facts::Facts, onnx::ValueInfoProto, wiring::Wiring,
};
use preface_trainer::{
    batch::{Batch, Encoded},
    check,
    engine::Array,
    evaluation::Evaluation,
    form::Form,
    heads::Pooling,
    methods::{self, METHODS},
    step::{COTANGENT, Purpose, Step},
    training::{self, Options, Progress},
};
use serde::Deserialize;
use support::{base_folder, exports, library, skip};

#[derive(Deserialize)]
struct Golden {
    ids: Vec<Vec<i64>>,
    embeddings: Case,
    key_values: Case,
}

#[derive(Deserialize)]
struct Case {
    shape: Vec<usize>,
    loss: f64,
    gradient: Vec<f64>,
}

/// `golden/minilm_gradient.py` made the golden file and defines prompt, cotangent and loss.
#[test]
fn minilm_gradients_agree_with_float64_pytorch() {
    let golden: Golden = serde_json::from_str(include_str!("golden/minilm_gradient.json")).unwrap();
    let base = Base::open(&base_folder()).unwrap();
    let cases = [
        (FormKind::Embeddings, &golden.embeddings, (0.05, 0.37)),
        (FormKind::KeyValues, &golden.key_values, (0.3, 0.21)),
    ];
    for (kind, case, (scale, frequency)) in cases {
        let tokens = if kind == FormKind::Embeddings {
            case.shape[0]
        } else {
            case.shape[3]
        };
        let prompt = (0..case.gradient.len())
            .map(|index| (scale * (frequency * index as f64).sin()) as f32)
            .collect();
        let form = Form::of(kind, tokens, &base.description);
        let (loss, gradient) = loss_and_gradient(&base, &form, prompt, &golden.ids);
        let largest = case
            .gradient
            .iter()
            .fold(0.0, |most: f64, value| most.max(value.abs()));
        let worst = gradient
            .iter()
            .zip(&case.gradient)
            .map(|(ours, theirs)| (f64::from(*ours) - theirs).abs())
            .fold(0.0, f64::max);
        eprintln!(
            "{kind:?}: gradient within {:.1e} of PyTorch, loss {loss:.6} against {:.6}",
            worst / largest,
            case.loss
        );
        assert!(worst / largest < 1e-5, "{kind:?}: {worst} of {largest}");
        assert!(
            (loss - case.loss).abs() < 1e-3,
            "{kind:?}: {loss} {}",
            case.loss
        );
    }
}

/// The golden file's loss and the gradient of all prompt values, in the order of the form's tensors.
fn loss_and_gradient(
    base: &Base,
    form: &Form,
    prompt: Vec<f32>,
    ids: &[Vec<i64>],
) -> (f64, Vec<f32>) {
    let step = Step::build(base, methods::stored(form), form, Purpose::HiddenGradient).unwrap();
    let mut session = library().session(&step.model, &base.folder, 2).unwrap();
    let rows: Vec<Encoded> = ids
        .iter()
        .map(|ids| Encoded {
            ids: ids.clone(),
            label: 0,
        })
        .collect();
    let rows: Vec<&Encoded> = rows.iter().collect();
    let batch = Batch::of(&rows, &base.description, form, Pooling::Mean, &step);
    let longest = ids.iter().map(Vec::len).max().unwrap();
    let (slots, hidden) = (form.slots(), base.description.hidden);
    let mut cotangent = Vec::new();
    for (row, ids) in ids.iter().enumerate() {
        for place in 0..slots + longest {
            let real = place >= slots && place - slots < ids.len();
            let at = |column: usize| ((row * longest + place - slots) * hidden + column) as f64;
            cotangent.extend((0..hidden).map(|column| {
                if real {
                    (0.11 * at(column)).cos() as f32
                } else {
                    0.0
                }
            }));
        }
    }
    let shape = [ids.len(), slots + longest, hidden];
    let mut values = prompt.as_slice();
    let mut extra = Vec::new();
    for (name, parameter) in step.names.iter().zip(&step.parameters) {
        let (own, rest) = values.split_at(parameter.elements());
        extra.push((name.clone(), Array::floats(&parameter.shape, own.to_vec())));
        values = rest;
    }
    extra.push((
        step.input(COTANGENT).to_owned(),
        Array::floats(&shape, cotangent.clone()),
    ));
    let mut outputs = session.run(&batch.with(&extra)).unwrap().into_iter();
    let rows = outputs.next().unwrap().into_floats().unwrap();
    let loss = rows
        .iter()
        .zip(&cotangent)
        .map(|(row, weight)| f64::from(*row) * f64::from(*weight))
        .sum();
    (
        loss,
        outputs
            .flat_map(|output| output.into_floats().unwrap())
            .collect(),
    )
}

/// Every family and exporter of `shared/exports`. T5's weights saturate its attention, where differences of 32-bit
/// floats say little; its bound is wider.
#[test]
fn every_export_is_understood_and_its_gradients_agree_with_finite_differences() {
    let Some(exports) = exports() else {
        return skip("the exports of ../shared");
    };
    let library = library();
    assert!(exports.len() >= 30, "only {} exports", exports.len());
    for export in &exports {
        let base =
            Base::open(export.folder()).unwrap_or_else(|error| panic!("{}: {error}", export.name));
        let expected = match export.name.as_str() {
            name if name.contains("bert") => Kind::Encoder,
            name if name.starts_with("t5") => Kind::EncoderDecoder,
            _ => Kind::Decoder,
        };
        assert_eq!(base.description.kind, expected, "{}", export.name);
        let bound = if expected == Kind::EncoderDecoder {
            5e-2
        } else {
            1e-3
        };
        for check in check::gradients(&base, library, 2)
            .unwrap_or_else(|error| panic!("{}: {error}", export.name))
        {
            assert!(check.norm > 1e-3, "{} {check:?}", export.name);
            assert!(check.error < bound, "{} {check:?}", export.name);
        }
    }
}

/// The walk at concrete sizes against the shapes that ONNX Runtime gives every value at those sizes.
#[test]
fn facts_are_what_onnxruntime_computes() {
    let Some(exports) = exports() else {
        return skip("the exports of ../shared");
    };
    let library = library();
    for export in exports {
        let base = Base::open(export.folder()).unwrap();
        let mut model = base.model.clone();
        let graph = model.graph.as_mut().unwrap();
        let shapes = base.description.inputs.shapes(&Wiring::of(graph), SIZES[0]);
        let facts = Facts::of(graph, std::slice::from_ref(&shapes));
        let floats = graph
            .node
            .iter()
            .flat_map(|node| &node.output)
            .filter(|name| {
                facts
                    .get(name)
                    .is_some_and(|fact| matches!(fact.data_type, 1 | 7 | 9))
            });
        let names: Vec<String> = floats.cloned().collect();
        let known = names.len();
        assert!(
            known * 100 > graph.node.len() * 95,
            "{}: only {known} of {} values are known",
            export.name,
            graph.node.len()
        );
        graph.output = names
            .iter()
            .map(|name| ValueInfoProto {
                name: Some(name.clone()),
                ..ValueInfoProto::default()
            })
            .collect();
        graph.value_info.clear();
        let feeds: HashMap<String, Array> = shapes
            .iter()
            .map(|(name, shape)| (name.clone(), feed(&base.description, name, shape)))
            .collect();
        let feeds: Vec<(&str, &Array)> = feeds
            .iter()
            .map(|(name, array)| (name.as_str(), array))
            .collect();
        let mut session = library.session(&model, Path::new(""), 1).unwrap();
        for (name, array) in names.iter().zip(session.run(&feeds).unwrap()) {
            assert_eq!(
                facts.get(name).unwrap().shapes[0],
                array.shape(),
                "{}: {name}",
                export.name
            );
        }
    }
}

fn feed(base: &Description, name: &str, shape: &[i64]) -> Array {
    let count = shape.iter().product::<i64>() as usize;
    if base.inputs.past.iter().any(|past| past == name) {
        return Array::Floats(shape.to_vec(), vec![0.1; count]);
    }
    let counted = base.inputs.token_types.as_deref() != Some(name);
    Array::Ints(
        shape.to_vec(),
        (0..count)
            .map(|index| if counted { 1 + index as i64 % 5 } else { 0 })
            .collect(),
    )
}

struct Silent;

impl Progress for Silent {
    fn begin(&mut self, _: usize, _: usize) {}
    fn step(&mut self) {}
    fn epoch(&mut self, _: usize, _: f64, _: &Evaluation) {}
}

fn options(method: &str, epochs: usize) -> Options {
    Options {
        method: method.into(),
        tokens: 2,
        head: "linear".into(),
        pooling: Pooling::Mean,
        epochs,
        batch: 8,
        learning_rate: None,
        head_learning_rate: 1e-2,
        weight_decay: 0.01,
        seed: 3,
        threads: 2,
        overlength: Default::default(),
    }
}

/// Every line of `METHODS` learns a small task, and twice the same.
#[test]
fn every_method_learns_and_is_deterministic() {
    let folder = tempfile::tempdir().unwrap();
    let (train, dev) = support::small_task(folder.path());
    let base = Base::open(&base_folder()).unwrap();
    let library = library();
    for method in METHODS {
        let options = options(method.name, 6);
        let run = || training::train(&base, library, &train, &dev, &options, &mut Silent).unwrap();
        let (first, second) = (run(), run());
        assert!(first.dev.accuracy > 0.9, "{}: {:?}", method.name, first.dev);
        assert_eq!(first.adapter, second.adapter, "{}", method.name);
        let bits = |adapter: &preface_trainer::adapter::Adapter| {
            let numbers = adapter.prompt.tensors.iter().chain(&adapter.head).flatten();
            numbers.map(|number| number.to_bits()).collect::<Vec<_>>()
        };
        assert_eq!(
            bits(&first.adapter),
            bits(&second.adapter),
            "{}",
            method.name
        );
    }
}

/// The adapter folder in PEFT itself: tensors bit for bit, hidden states and probes (see `peft_load.py`).
#[test]
fn adapters_load_in_peft() {
    let Some(python) = support::peft_python() else {
        return skip("PEFT (make peft)");
    };
    let folder = tempfile::tempdir().unwrap();
    let (train, dev) = support::small_task(folder.path());
    let base = Base::open(&base_folder()).unwrap();
    for method in METHODS {
        let outcome = training::train(
            &base,
            library(),
            &train,
            &dev,
            &options(method.name, 2),
            &mut Silent,
        )
        .unwrap();
        let adapter = folder.path().join(method.name);
        outcome.adapter.write(&adapter).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/peft_load.py");
        let output = std::process::Command::new(&python)
            .arg(script)
            .arg(&adapter)
            .arg(support::weights_folder())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}: {}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
