//! Gradients and shape facts on whole models: against PyTorch in float64, against finite differences and against what
//! ONNX Runtime makes of the same graphs.

#![allow(clippy::unwrap_used)]

#[path = "support/fused.rs"]
mod fused;
mod support;

use std::{collections::HashMap, path::Path};

use preface_graph::{
    Base, Description, FormKind, Kind, PositionRule, SIZES,
    builder::{Attribute, Builder},
    facts::Facts,
    onnx::{GraphProto, ModelProto, OperatorSetIdProto, ValueInfoProto, data_type},
    splice::{self, Prefix},
    wiring::Wiring,
};
use preface_trainer::{
    batch::{Batch, Layout},
    check,
    encode::Encoded,
    engine::Array,
    form::Form,
    heads::Pooling,
    methods::{self, METHODS, Sizes},
    options::Options,
    progress::Silent,
    step::{COTANGENT, Extent, Purpose, Step},
    training,
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
    let sizes = Sizes::of(form.clone(), base.description.hidden);
    let method = methods::stored(form);
    let step = Step::build(base, method, &sizes, Extent::ONE, Purpose::HiddenGradient).unwrap();
    let mut session = library().session(&step.model, &base.folder, 2).unwrap();
    let rows: Vec<Encoded> = ids.iter().map(|ids| Encoded::of_ids(ids.clone())).collect();
    let rows: Vec<&Encoded> = rows.iter().collect();
    let layout = Layout {
        base: &base.description,
        form,
        pooling: Pooling::Mean,
        class_weights: &[],
    };
    let batch = Batch::of(&[rows], layout, &step);
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
            1e-2
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
            .map(|name| ValueInfoProto::untyped(name))
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
        let mut session = library.session(&model, &base.folder, 1).unwrap();
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

/// Which exports have a language-modelling head, and that its projection makes the logits.
#[test]
fn logits_are_what_their_projection_makes() {
    let Some(exports) = exports() else {
        return skip("the exports of ../shared");
    };
    let library = library();
    for export in exports {
        let base = Base::open(export.folder()).unwrap();
        let bare = [
            "bert_base",
            "bert_seqcls",
            "optimum_bert_feat",
            "optimum_bert_seqcls",
        ];
        let headless = bare.iter().any(|name| export.name.starts_with(name));
        let logits = base.description.logits.clone();
        assert_eq!(logits.is_none(), headless, "{}: {logits:?}", export.name);
        let Some(logits) = logits else { continue };
        let projection = logits.projection.unwrap();
        let mut model = base.model.clone();
        let graph = model.graph.as_mut().unwrap();
        let shapes = base.description.inputs.shapes(&Wiring::of(graph), SIZES[0]);
        let weight = graph.initializer(&projection.weight).unwrap();
        let weight = weight.floats(&base.folder).unwrap();
        let bias = projection.bias.map(|name| {
            let bias = graph.initializer(&name).unwrap();
            bias.floats(&base.folder).unwrap()
        });
        let names = [logits.value.clone(), projection.input.clone()];
        splice::prune(
            graph,
            names.map(|name| ValueInfoProto::untyped(&name)).into(),
        );
        let kept: Vec<String> = graph
            .input
            .iter()
            .map(|input| input.name().to_owned())
            .collect();
        let feeds: Vec<(&String, Array)> = shapes
            .iter()
            .filter(|(name, _)| kept.contains(name))
            .map(|(name, shape)| (name, feed(&base.description, name, shape)))
            .collect();
        let feeds: Vec<(&str, &Array)> = feeds
            .iter()
            .map(|(name, array)| (name.as_str(), array))
            .collect();
        let mut session = library.session(&model, &base.folder, 1).unwrap();
        let mut outputs = session
            .run(&feeds)
            .unwrap()
            .into_iter()
            .map(|array| array.into_floats().unwrap());
        let (scores, rows) = (outputs.next().unwrap(), outputs.next().unwrap());
        let (width, vocabulary) = (projection.width, logits.vocabulary);
        let mut worst = 0.0_f32;
        for (row, scores) in rows.chunks(width).zip(scores.chunks(vocabulary)) {
            for (column, score) in scores.iter().enumerate() {
                let at = |line: usize| match projection.transposed {
                    true => weight[column * width + line],
                    false => weight[line * vocabulary + column],
                };
                let product: f32 = row
                    .iter()
                    .enumerate()
                    .map(|(line, value)| value * at(line))
                    .sum();
                let added = bias.as_ref().map_or(0.0, |bias| bias[column]);
                worst = worst.max((product + added - score).abs());
            }
        }
        assert!(worst < 1e-4, "{}: {worst}", export.name);
    }
}

/// Fused operators written out: the same numbers from ONNX Runtime's own kernels, where it has them, and right gradients.
#[test]
fn fused_operators_are_written_out_and_differentiated() {
    const NO_KERNEL: [&str; 1] = ["heads, packed"];
    for (name, model) in fused::models() {
        let (base, _folder) = base_of(&model);
        if !NO_KERNEL.contains(&name) {
            let padded = !name.starts_with("groups");
            let (theirs, ours) = (
                rows_of(&base, &model, padded),
                rows_of(&base, &base.model, padded),
            );
            assert_eq!(theirs.len(), ours.len(), "{name}");
            let pairs = theirs.iter().zip(&ours);
            let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-5, "{name}: {worst}");
        }
        for check in check::gradients(&base, library(), 2).unwrap() {
            assert!(check.norm > 1e-3 && check.error < 1e-3, "{name} {check:?}");
        }
    }
}

/// What passes straight through rounding is the gradient without rounding, though the values are others.
#[test]
fn gradients_pass_straight_through_rounding() {
    let models = fused::models();
    let (_, model) = models
        .iter()
        .find(|(name, _)| *name == "products of integers")
        .unwrap();
    let (base, _folder) = base_of(model);
    let smooth = base.unrounded().unwrap();
    let ids = [vec![5, 9, 17, 40], vec![3, 88]];
    for kind in base.description.forms.clone() {
        let form = Form::of(kind, 2, &base.description);
        let count = form.shapes().iter().flatten().product();
        let prompt: Vec<f32> = (0..count)
            .map(|at| 0.5 * (0.37 * at as f32).sin())
            .collect();
        let (loss, rounded) = loss_and_gradient(&base, &form, prompt.clone(), &ids);
        let (smooth_loss, exact) = loss_and_gradient(&smooth, &form, prompt, &ids);
        let norm = |values: &mut dyn Iterator<Item = f32>| {
            values.map(|value| value * value).sum::<f32>().sqrt()
        };
        let apart = norm(&mut rounded.iter().zip(&exact).map(|(a, b)| a - b));
        let apart = apart / norm(&mut exact.iter().copied());
        assert!(apart < 0.05, "{kind:?}: {apart}");
        assert!(loss != smooth_loss, "{kind:?}: {loss}");
    }
    assert!(Base::open(&base_folder()).unwrap().unrounded().is_none());
}

/// What rounds activations is computed as it is written: ONNX Runtime's kernels for such integers give others.
#[test]
fn rounding_is_computed_as_it_is_written() {
    const STEPS: f32 = 255.0;
    let mut graph = GraphProto {
        input: vec![ValueInfoProto::tensor(
            "scores",
            data_type::FLOAT,
            &["rows", "keys"],
        )],
        output: vec![ValueInfoProto::untyped("weights")],
        ..GraphProto::default()
    };
    let mut builder = Builder::beside(&graph, "t", 17);
    let rounded = |builder: &mut Builder, value: &str, step: f64, zero: u8, output: &str| {
        let step = builder.scalar(data_type::FLOAT, step);
        let zero = builder.constant(data_type::UINT8, &[], vec![zero]);
        let whole = builder.apply("QuantizeLinear", &[value, &step, &zero], &[]);
        builder.write("DequantizeLinear", &[&whole, &step, &zero], &[output], &[]);
    };
    rounded(&mut builder, "scores", 0.1, 128, "rounded");
    let weights = builder.apply("Softmax", &["rounded"], &[("axis", Attribute::Int(-1))]);
    rounded(&mut builder, &weights, 1.0 / f64::from(STEPS), 0, "weights");
    builder.append_to(&mut graph);
    let model = ModelProto {
        ir_version: Some(8),
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto {
            version: Some(17),
            ..OperatorSetIdProto::default()
        }],
        ..ModelProto::default()
    };
    let scores: Vec<f32> = (0..24).map(|at| 3.0 * (1.37 * at as f32).sin()).collect();
    let mut session = library().session(&model, Path::new(""), 1).unwrap();
    let fed = Array::floats(&[4, 6], scores.clone());
    let found = session.run(&[("scores", &fed)]).unwrap().remove(0);
    let found = found.into_floats().unwrap();
    for (row, found) in scores.chunks(6).zip(found.chunks(6)) {
        let powers: Vec<f32> = row
            .iter()
            .map(|score| (0.1 * (score / 0.1).round_ties_even()).exp())
            .collect();
        let sum: f32 = powers.iter().sum();
        for (power, found) in powers.iter().zip(found) {
            let expected = (power / sum * STEPS).round_ties_even() / STEPS;
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }
}

/// A model as a base folder.
fn base_of(model: &ModelProto) -> (Base, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    fused::write(model, folder.path());
    (Base::open(folder.path()).unwrap(), folder)
}

/// The hidden rows that `model` makes of two rows of ids without a cache, the second with padding where `padded`.
fn rows_of(base: &Base, model: &ModelProto, padded: bool) -> Vec<f32> {
    let mut model = model.clone();
    let graph = model.graph.as_mut().unwrap();
    splice::prune(
        graph,
        vec![ValueInfoProto::untyped(
            &base.description.hidden_rows.clone(),
        )],
    );
    let texts = [vec![5, 9, 17, 40, 3], vec![31, 8, 77, 2, 60]];
    let masks = [
        vec![1; 5],
        vec![1, 1, 1, i64::from(!padded), i64::from(!padded)],
    ];
    run_rows(
        base,
        &model,
        &texts,
        &masks,
        &[(0..5).collect(), (0..5).collect()],
    )
}

/// What a pruned model makes of ids, masks and positions of the same shape.
fn run_rows(
    base: &Base,
    model: &ModelProto,
    ids: &[Vec<i64>],
    masks: &[Vec<i64>],
    positions: &[Vec<i64>],
) -> Vec<f32> {
    let ints = |rows: &[Vec<i64>]| Array::ints(&[rows.len(), rows[0].len()], rows.concat());
    let inputs = &base.description.inputs;
    let segments: Vec<Vec<i64>> = ids.iter().map(|row| vec![0; row.len()]).collect();
    let decoder = vec![vec![4, 7, 9]; ids.len()];
    let named = [
        (Some(&inputs.ids), ints(ids)),
        (inputs.decoder_ids.as_ref(), ints(&decoder)),
        (inputs.mask.as_ref(), ints(masks)),
        (inputs.token_types.as_ref(), ints(&segments)),
        (inputs.positions.as_ref(), ints(positions)),
    ];
    let named = named
        .into_iter()
        .filter_map(|(name, array)| Some((name?.clone(), array)));
    let mut feeds: Vec<(String, Array)> = named.collect();
    for (index, name) in inputs.past.iter().enumerate() {
        let layer = &base.description.layers[index / 2];
        let shape = [ids.len(), layer.kv_heads, 0, layer.head_dim];
        feeds.push((name.clone(), Array::floats(&shape, Vec::new())));
    }
    let graph = model.graph.as_ref().unwrap();
    let declared: Vec<&str> = graph.input.iter().map(|input| input.name()).collect();
    feeds.retain(|(name, _)| declared.contains(&name.as_str()));
    let feeds: Vec<(&str, &Array)> = feeds
        .iter()
        .map(|(name, array)| (name.as_str(), array))
        .collect();
    let mut session = library().session(model, &base.folder, 1).unwrap();
    session
        .run(&feeds)
        .unwrap()
        .remove(0)
        .into_floats()
        .unwrap()
}

/// The rows of a text are the same alone, padded on the right, and padded on the left where the graph takes positions
/// or knows only distances; a row of padding alone makes no NaN.
#[test]
fn padding_changes_nothing() {
    let Some(exports) = exports() else {
        return skip("the exports of ../shared");
    };
    let text = vec![5, 9, 17, 40];
    for export in exports {
        let base = Base::open(export.folder()).unwrap();
        let description = &base.description;
        let mut model = base.model.clone();
        let graph = model.graph.as_mut().unwrap();
        splice::prune(
            graph,
            vec![ValueInfoProto::untyped(&description.hidden_rows)],
        );
        let hidden = description.hidden;
        let one = [text.clone()];
        let alone = run_rows(&base, &model, &one, &[vec![1; 4]], &[(0..4).collect()]);
        let pads = vec![i64::from(description.padding.unwrap_or(0)); 3];
        let right = [
            [text.clone(), pads.clone()].concat(),
            vec![6; 7],
            vec![6; 7],
        ];
        let right_mask = [vec![1, 1, 1, 1, 0, 0, 0], vec![1; 7], vec![0; 7]];
        let counted = [0, 1, 2].map(|_| (0..7).collect());
        let found = run_rows(&base, &model, &right, &right_mask, &counted);
        assert!(
            found.iter().all(|value| value.is_finite()),
            "{}",
            export.name
        );
        let apart = |found: &[f32], from: usize| {
            let found = &found[from * hidden..from * hidden + alone.len()];
            let largest = alone
                .iter()
                .fold(1.0, |most: f32, value| most.max(value.abs()));
            let pairs = alone.iter().zip(found);
            pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
        };
        let worst = apart(&found, 0);
        assert!(worst < 1e-5, "{} on the right: {worst}", export.name);
        let fixed = description.position_rule == PositionRule::Learned;
        if description.inputs.positions.is_none() && fixed {
            continue;
        }
        let left = [[pads, text.clone()].concat(), vec![6; 7]];
        let left_mask = [vec![0, 0, 0, 1, 1, 1, 1], vec![1; 7]];
        let counted = [vec![0, 0, 0, 0, 1, 2, 3], (0..7).collect()];
        let found = run_rows(&base, &model, &left, &left_mask, &counted);
        let from = if description.kind == Kind::EncoderDecoder {
            0
        } else {
            3
        };
        let worst = apart(&found, from);
        assert!(worst < 1e-5, "{} on the left: {worst}", export.name);
    }
}

/// A layer without a prefix is a layer whose prefix has a closed gate, and a gate at 0 is none.
#[test]
fn a_closed_gate_is_a_layer_without_prefix() {
    let Some(exports) = exports() else {
        return skip("the exports of ../shared");
    };
    const CLOSED: f32 = -1e9;
    for export in exports {
        let base = Base::open(export.folder()).unwrap();
        let layers = base.description.layers.len();
        let top = |below: Option<Gate>| {
            let mut all = vec![below; layers];
            all[layers - 1] = Some(Gate::None);
            all
        };
        let rows = |gates: &[Option<Gate>]| prefixed_rows(&base, gates);
        let apart = |left: &[f32], right: &[f32]| {
            assert_eq!(left.len(), right.len());
            let largest = left
                .iter()
                .fold(1.0, |most: f32, value| most.max(value.abs()));
            let pairs = left.iter().zip(right);
            pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
        };
        let whole = rows(&vec![Some(Gate::None); layers]);
        let open = rows(&vec![Some(Gate::At(0.0)); layers]);
        let (name, ungated) = (&export.name, apart(&whole, &open));
        assert!(ungated < 1e-6, "{name}: {ungated}");
        let cached = !base.description.inputs.past.is_empty();
        if cached && base.description.inputs.positions.is_none() {
            continue;
        }
        let (closed, alone) = (rows(&top(Some(Gate::At(CLOSED)))), rows(&top(None)));
        let (shut, moved) = (apart(&closed, &alone), apart(&whole, &alone));
        assert!(shut < 1e-6, "{name}: {shut}");
        assert!(moved > 1e-4, "{name}: {moved}");
    }
}

/// The gate of a layer's prefix.
#[derive(Clone, Copy)]
enum Gate {
    None,
    At(f32),
}

/// Hidden rows of two padded texts with a prefix on the layers that have a gate.
fn prefixed_rows(base: &Base, gates: &[Option<Gate>]) -> Vec<f32> {
    const BATCH: usize = 2;
    const SEQUENCE: usize = 6;
    const PREFIX: usize = 3;
    let description = &base.description;
    let mut model = base.model.clone();
    let opset = model.opset();
    let graph = model.graph.as_mut().unwrap();
    let mut feeds: Vec<(String, Array)> = Vec::new();
    let mut prefixes = Vec::new();
    for (index, (layer, gate)) in description.layers.iter().zip(gates).enumerate() {
        let shape = [BATCH, layer.kv_heads, PREFIX, layer.head_dim];
        let mut input = |part: &str, shape: &[usize], values: Vec<f32>| {
            let name = format!("test/{part}/{index}");
            let dims = vec!["d"; shape.len()];
            graph.input.push(ValueInfoProto::tensor(&name, 1, &dims));
            feeds.push((name.clone(), Array::floats(shape, values)));
            name
        };
        let waves = |salt: f32| {
            let wave = |at: usize| (0.7 * at as f32 + salt + index as f32).sin();
            (0..shape.iter().product()).map(wave).collect()
        };
        prefixes.push(gate.map(|gate| Prefix {
            key: input("key", &shape, waves(0.0)),
            value: input("value", &shape, waves(1.0)),
            gate: match gate {
                Gate::None => None,
                Gate::At(level) => Some(input("gate", &[1], vec![level])),
            },
        }));
    }
    let facts = &base.facts;
    splice::join_prefix(graph, opset, description, facts, &prefixes).unwrap();
    splice::prune(
        graph,
        vec![ValueInfoProto::untyped(&description.hidden_rows)],
    );
    let shape = [BATCH as i64, SEQUENCE as i64];
    let ints = |value: fn(usize, usize) -> i64| {
        let places = (0..BATCH * SEQUENCE).map(|at| value(at / SEQUENCE, at % SEQUENCE));
        Array::Ints(shape.to_vec(), places.collect())
    };
    let inputs = &description.inputs;
    let ids = ints(|row, at| 3 + (7 * at as i64 + 11 * row as i64) % 80);
    let named = [
        (Some(&inputs.ids), ids.clone()),
        (inputs.decoder_ids.as_ref(), ids),
        (
            inputs.mask.as_ref(),
            ints(|row, at| i64::from(row == 0 || at < 4)),
        ),
        (inputs.token_types.as_ref(), ints(|_, _| 0)),
        (inputs.positions.as_ref(), ints(|_, at| at as i64)),
    ];
    feeds.extend(
        named
            .into_iter()
            .filter_map(|(name, array)| Some((name?.clone(), array))),
    );
    for (index, name) in inputs.past.iter().enumerate() {
        let layer = &description.layers[index / 2];
        let shape = [BATCH, layer.kv_heads, 0, layer.head_dim];
        feeds.push((name.clone(), Array::floats(&shape, Vec::new())));
    }
    let declared: Vec<&str> = graph.input.iter().map(|input| input.name()).collect();
    feeds.retain(|(name, _)| declared.contains(&name.as_str()));
    let feeds: Vec<(&str, &Array)> = feeds
        .iter()
        .map(|(name, array)| (name.as_str(), array))
        .collect();
    let mut session = library().session(&model, &base.folder, 1).unwrap();
    session
        .run(&feeds)
        .unwrap()
        .remove(0)
        .into_floats()
        .unwrap()
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

/// The adapter folder in PEFT itself: tensors bit for bit, hidden states and probes (see `peft_load.py`). PEFT knows no
/// gates.
#[test]
fn adapters_load_in_peft() {
    let Some(python) = support::peft_python() else {
        return skip("PEFT (make peft)");
    };
    let folder = tempfile::tempdir().unwrap();
    let (train, dev) = support::small_task(folder.path());
    let base = Base::open(&base_folder()).unwrap();
    for method in METHODS.iter().filter(|method| !method.gated) {
        let options = Options {
            method: method.name.into(),
            tokens: 2,
            epochs: 2,
            batch: 8,
            threads: 2,
            ..Options::default()
        };
        let silent = &mut Silent;
        let outcomes =
            training::train(&base, library(), &train, &dev, &options, None, silent).unwrap();
        let adapter = folder.path().join(method.name);
        outcomes[0].adapter.write(&adapter).unwrap();
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
