//! Every rule against central differences.

use std::{path::Path, sync::OnceLock};

use preface_graph::{
    facts::Facts,
    onnx::{ModelProto, OperatorSetIdProto, TensorProto, ValueInfoProto, data_type},
    splice,
};

use super::*;
use crate::engine::{Array, Library, Session, tests};

const OPSET: i64 = 23;

/// Rules without differences to compare with: what drops nothing, and what rounds and passes gradients straight through.
const UNCHECKED: [&str; 4] = [
    "DequantizeLinear",
    "Dropout",
    "DynamicQuantizeLinear",
    "QuantizeLinear",
];

/// A process loads ONNX Runtime once.
fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(tests::library)
}

#[test]
fn the_table_is_sorted_and_every_flow_is_checked() {
    for pair in RULES.windows(2) {
        assert!(
            pair[0].operator < pair[1].operator,
            "{} {}",
            pair[0].operator,
            pair[1].operator
        );
    }
    for rule in RULES {
        let checked = !rule.checks.is_empty() || UNCHECKED.contains(&rule.operator);
        let flows = matches!(rule.gradient, Gradient::Flows(_));
        assert_eq!(checked, flows, "{}", rule.operator);
    }
}

#[test]
fn every_rule_agrees_with_central_differences() {
    let library = library();
    for rule in RULES {
        for (index, check) in rule.checks.iter().enumerate() {
            let error = largest_error(library, rule.operator, check);
            assert!(error < 3e-3, "{} check {index}: {error}", rule.operator);
        }
    }
}

#[test]
fn an_operator_without_a_rule_is_named() {
    let mut graph = GraphProto::default();
    let mut forward = Builder::beside(&graph, "f", OPSET);
    let output = forward.apply("Det", &["x"], &[]);
    forward.append_to(&mut graph);
    let mut builder = Builder::beside(&graph, "g", OPSET);
    let seeds = [(output, "dy".to_owned())];
    let error = backward(
        &mut model(graph),
        &Facts::default(),
        &mut builder,
        &seeds,
        &["x".into()],
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "node f/Det/1: operator Det has no gradient rule"
    );
}

/// Numbers that repeat nowhere and avoid the kinks of piecewise operators.
fn values(count: usize, salt: f32, positive: bool) -> Vec<f32> {
    let value = |index: usize| (1.7 * index as f32 + salt).sin();
    (0..count)
        .map(|index| {
            if positive {
                1.2 + 0.7 * value(index)
            } else {
                value(index)
            }
        })
        .collect()
}

struct Bench {
    graph: GraphProto,
    feeds: Vec<(String, Array)>,
    free: Vec<String>,
    shapes: HashMap<String, Vec<i64>>,
}

fn bench(operator: &str, check: &Check) -> Bench {
    let mut bench = Bench {
        graph: GraphProto::default(),
        feeds: vec![],
        free: vec![],
        shapes: HashMap::new(),
    };
    let mut inputs = Vec::new();
    for (index, operand) in check.inputs.iter().enumerate() {
        let name = format!("x{index}");
        match *operand {
            Operand::Free(shape) | Operand::Positive(shape) | Operand::Fixed(shape) => {
                let positive = matches!(operand, Operand::Positive(_));
                let count = shape.iter().product::<i64>() as usize;
                let dims: Vec<String> = shape.iter().map(i64::to_string).collect();
                let dims: Vec<&str> = dims.iter().map(String::as_str).collect();
                bench
                    .graph
                    .input
                    .push(ValueInfoProto::tensor(&name, data_type::FLOAT, &dims));
                bench.feeds.push((
                    name.clone(),
                    Array::Floats(shape.to_vec(), values(count, index as f32 + 0.3, positive)),
                ));
                bench.shapes.insert(name.clone(), shape.to_vec());
                if !matches!(operand, Operand::Fixed(_)) {
                    bench.free.push(name.clone());
                }
            }
            Operand::Number(number) => {
                bench
                    .graph
                    .initializer
                    .push(TensorProto::of_floats(&name, &[], &[number]))
            }
            Operand::Ints(list) => bench.graph.initializer.push(TensorProto::of_ints(
                &name,
                &[list.len() as i64],
                list,
            )),
            Operand::Table(shape, list) => bench
                .graph
                .initializer
                .push(TensorProto::of_ints(&name, shape, list)),
            Operand::Truth(shape, list) => {
                let raw = list.iter().map(|&truth| u8::from(truth)).collect();
                bench.graph.initializer.push(TensorProto::of_raw(
                    &name,
                    data_type::BOOL,
                    shape,
                    raw,
                ));
            }
            Operand::Absent => {}
        }
        inputs.push(if matches!(operand, Operand::Absent) {
            String::new()
        } else {
            name
        });
    }
    let attributes: Vec<(&str, Attribute)> = check
        .attributes
        .iter()
        .map(|(name, value)| (*name, attribute(*value)))
        .collect();
    let outputs: Vec<String> = (0..check.outputs)
        .map(|index| format!("y{index}"))
        .collect();
    let mut builder = Builder::beside(&bench.graph, "f", OPSET);
    let names: Vec<&str> = inputs.iter().map(String::as_str).collect();
    let output_names: Vec<&str> = outputs.iter().map(String::as_str).collect();
    builder.write(operator, &names, &output_names, &attributes);
    builder.append_to(&mut bench.graph);
    bench
}

fn attribute(setting: Setting) -> Attribute {
    match setting {
        Setting::Int(value) => Attribute::Int(value),
        Setting::Float(value) => Attribute::Float(value),
        Setting::Ints(values) => Attribute::Ints(values.to_vec()),
        Setting::Text(text) => Attribute::Text(text),
    }
}

/// The largest difference between rule and central difference, relative to the largest gradient.
fn largest_error(library: &Library, operator: &str, check: &Check) -> f64 {
    let mut bench = bench(operator, check);
    let facts = Facts::of(&bench.graph, std::slice::from_ref(&bench.shapes));
    let outputs: Vec<String> = (0..check.outputs)
        .map(|index| format!("y{index}"))
        .collect();
    let mut weights = Vec::new();
    for output in &outputs {
        let fact = facts
            .get(output)
            .unwrap_or_else(|| panic!("{operator} has no shape rule"));
        let shape = fact.shapes[0].clone();
        let dims: Vec<String> = shape.iter().map(i64::to_string).collect();
        let dims: Vec<&str> = dims.iter().map(String::as_str).collect();
        let name = format!("d{output}");
        bench
            .graph
            .input
            .push(ValueInfoProto::tensor(&name, data_type::FLOAT, &dims));
        let count = shape.iter().product::<i64>() as usize;
        weights.push((name, Array::Floats(shape, values(count, 9.1, false))));
    }
    let seeds: Vec<(String, String)> = outputs
        .iter()
        .map(|output| (output.clone(), format!("d{output}")))
        .collect();
    let mut builder = Builder::beside(&bench.graph, "g", OPSET);
    let mut model = model(bench.graph);
    let gradients = backward(&mut model, &facts, &mut builder, &seeds, &bench.free).unwrap();
    let outputs: Vec<String> = outputs.into_iter().chain(gradients).collect();
    let inputs = finish(&mut model, builder, &outputs);
    let mut session = library.session(&model, Path::new(""), 1).unwrap();
    let needed = |name: &str| inputs.iter().any(|input| input == name);
    bench.feeds.retain(|(name, _)| needed(name));
    let fed_weights: Vec<_> = weights
        .iter()
        .filter(|(name, _)| needed(name))
        .cloned()
        .collect();
    let exact = run(&mut session, &bench.feeds, &fed_weights);
    let mut worst: f64 = 0.0;
    for (index, free) in bench.free.iter().enumerate() {
        let gradient = &exact[check.outputs + index];
        let scale = gradient
            .iter()
            .fold(1e-3, |most: f64, value| most.max(f64::from(value.abs())));
        for (element, &exact) in gradient.iter().enumerate() {
            let numeric = difference(
                &mut session,
                &bench.feeds,
                &weights,
                &fed_weights,
                free,
                element,
            );
            worst = worst.max((numeric - f64::from(exact)).abs() / scale);
        }
    }
    worst
}

/// `(L(x + h) - L(x - h)) / 2h` for `L = sum(weights * outputs)` along one element.
fn difference(
    session: &mut Session,
    feeds: &[(String, Array)],
    weights: &[(String, Array)],
    fed: &[(String, Array)],
    free: &str,
    element: usize,
) -> f64 {
    const STEP: f32 = 4e-3;
    let mut loss_at = |step: f32| {
        let mut moved = feeds.to_vec();
        for (_, array) in moved.iter_mut().filter(|(name, _)| name == free) {
            if let Array::Floats(_, values) = array {
                values[element] += step;
            }
        }
        let outputs = run(session, &moved, fed);
        let sums = weights.iter().zip(outputs).map(|((_, weights), output)| {
            let weights = weights.clone().into_floats().unwrap();
            weights
                .iter()
                .zip(output)
                .map(|(weight, value)| f64::from(*weight) * f64::from(value))
                .sum::<f64>()
        });
        sums.sum::<f64>()
    };
    (loss_at(STEP) - loss_at(-STEP)) / (2.0 * f64::from(STEP))
}

fn run(
    session: &mut Session,
    feeds: &[(String, Array)],
    weights: &[(String, Array)],
) -> Vec<Vec<f32>> {
    let all: Vec<(&str, &Array)> = feeds
        .iter()
        .chain(weights)
        .map(|(name, array)| (name.as_str(), array))
        .collect();
    let outputs = session.run(&all).unwrap();
    outputs
        .into_iter()
        .map(|output| output.into_floats().unwrap())
        .collect()
}

fn model(graph: GraphProto) -> ModelProto {
    ModelProto {
        ir_version: Some(10),
        opset_import: vec![OperatorSetIdProto {
            domain: Some(String::new()),
            version: Some(OPSET),
        }],
        graph: Some(graph),
        ..ModelProto::default()
    }
}

/// Puts written nodes behind those of a model and keeps what leads to `outputs`; returns the names of the inputs left.
fn finish(model: &mut ModelProto, builder: Builder, outputs: &[String]) -> Vec<String> {
    let graph = model.graph.as_mut().unwrap();
    builder.append_to(graph);
    let declared = outputs.iter().map(|name| ValueInfoProto::untyped(name));
    splice::prune(graph, declared.collect());
    let inputs = graph.input.iter().map(|input| input.name().to_owned());
    inputs.collect()
}

/// A row that hides every key is NaN behind the Softmax and mended there; its gradient is zero.
#[test]
fn a_row_that_hides_everything_passes_no_nan() {
    let mut graph = GraphProto {
        input: vec![ValueInfoProto::tensor("x", data_type::FLOAT, &["2", "3"])],
        ..GraphProto::default()
    };
    let mut forward = Builder::beside(&graph, "f", OPSET);
    let hidden: Vec<f32> = vec![
        0.0,
        0.0,
        0.0,
        f32::NEG_INFINITY,
        f32::NEG_INFINITY,
        f32::NEG_INFINITY,
    ];
    let raw = hidden
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let mask = forward.constant(data_type::FLOAT, &[2, 3], raw);
    let zero = forward.scalar(data_type::FLOAT, 0.0);
    let scores = forward.apply("Add", &["x", &mask], &[]);
    let weights = forward.apply("Softmax", &[&scores], &[("axis", Attribute::Int(-1))]);
    let wrong = forward.apply("IsNaN", &[&weights], &[]);
    let mended = forward.apply("Where", &[&wrong, &zero, &weights], &[]);
    forward.append_to(&mut graph);
    let shapes = HashMap::from([("x".to_owned(), vec![2, 3])]);
    let facts = Facts::of(&graph, &[shapes]);
    let mut builder = Builder::beside(&graph, "g", OPSET);
    let seed = builder.constant(
        data_type::FLOAT,
        &[2, 3],
        [1.0_f32, 2.0, 3.0, 1.0, 2.0, 3.0]
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
    );
    let wanted = ["x".to_owned()];
    let mut model = model(graph);
    let found = backward(&mut model, &facts, &mut builder, &[(mended, seed)], &wanted).unwrap();
    finish(&mut model, builder, &found);
    let mut session = library().session(&model, Path::new(""), 1).unwrap();
    let x = Array::Floats(vec![2, 3], vec![0.1, 0.4, -0.2, 0.3, 0.2, 0.1]);
    let gradient = session
        .run(&[("x", &x)])
        .unwrap()
        .remove(0)
        .into_floats()
        .unwrap();
    assert!(
        gradient[..3]
            .iter()
            .all(|value| value.is_finite() && *value != 0.0),
        "{gradient:?}"
    );
    assert_eq!(gradient[3..], [0.0; 3]);
}

/// A pass gives the same by its kernel and, in a domain without one, by its definition.
#[test]
fn kernels_of_passes_agree_with_their_bodies() {
    const SHAPE: [i64; 3] = [3, 5, 37];
    for pass in PASSES {
        let mut graph = GraphProto::default();
        let mut feeds = Vec::new();
        for (index, operand) in pass.operands.iter().enumerate() {
            let shape = match operand {
                passes::Operand::Elements => SHAPE.to_vec(),
                passes::Operand::Columns => SHAPE[2..].to_vec(),
                passes::Operand::Rows => [&SHAPE[..2], &[1]].concat(),
            };
            let name = format!("x{index}");
            let dims: Vec<String> = shape.iter().map(i64::to_string).collect();
            let dims: Vec<&str> = dims.iter().map(String::as_str).collect();
            graph
                .input
                .push(ValueInfoProto::tensor(&name, data_type::FLOAT, &dims));
            let count = shape.iter().product::<i64>() as usize;
            let numbers = values(count, index as f32, false);
            let wide = numbers.iter().map(|number| 4.0 * number).collect();
            feeds.push((name, Array::Floats(shape, wide)));
        }
        let names: Vec<&str> = feeds.iter().map(|(name, _)| name.as_str()).collect();
        let mut builder = Builder::beside(&graph, "t", OPSET);
        let kernel = builder.apply(&pass.operator(), &names, &[]);
        let defined = builder.apply(&format!("elsewhere:{}", pass.name), &names, &[]);
        let mut model = model(graph);
        import(&mut model, &builder);
        finish(&mut model, builder, &[kernel, defined]);
        let mut function = model.functions[0].clone();
        function.domain = Some("elsewhere".into());
        model.functions.push(function);
        model.opset_import.push(OperatorSetIdProto {
            domain: Some("elsewhere".into()),
            version: Some(1),
        });
        let mut session = library().session(&model, Path::new(""), 1).unwrap();
        let found = run(&mut session, &feeds, &[]);
        let most = found[1]
            .iter()
            .fold(0.0, |most: f32, value| most.max(value.abs()));
        for (kernel, defined) in found[0].iter().zip(&found[1]) {
            assert!(
                (kernel - defined).abs() < 1e-6 * most,
                "{}: {kernel} {defined}",
                pass.name
            );
        }
        assert_ne!(found[0], found[1], "{}: the kernel did not run", pass.name);
    }
}
