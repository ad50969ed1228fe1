//! P-tuning through a bidirectional LSTM and an MLP (Liu et al. 2021, section 3.2).
//!
//! The LSTM (Hochreiter and Schmidhuber 1997) is unrolled over the virtual tokens into primitives that have gradients.

use preface_graph::{
    FormKind,
    builder::{Attribute, Builder},
};

use super::{
    Method, Parameter, affine,
    p_tuning_mlp::{linear, linear_start, mean_row, rectified, scale_of},
};

pub(super) const METHOD: Method = Method {
    name: "p-tuning-lstm",
    form: FormKind::Embeddings,
    gated: false,
    learning_rate: 3e-3,
    parameters: |sizes| {
        let [tokens, hidden] = [0, 1].map(|axis| sizes.form.shapes()[0][axis]);
        let inner = sizes.bottleneck;
        let mut parameters = vec![Parameter::new("embedding", &[tokens, hidden])];
        for direction in ["forward", "backward"] {
            parameters.extend(linear(&format!("{direction}.input"), hidden, 4 * inner));
            parameters.push(Parameter::new(
                format!("{direction}.recurrent"),
                &[inner, 4 * inner],
            ));
        }
        parameters.extend(linear("middle", 2 * inner, inner));
        parameters.extend(linear("out", inner, hidden));
        parameters
    },
    initial: |sizes, seedbed| {
        let tokens = sizes.form.tokens();
        let rows = seedbed.embeddings(tokens)?;
        let hidden = rows.len() / tokens;
        let (scale, inner) = (scale_of(&rows), sizes.bottleneck);
        let mut values = vec![rows.iter().map(|value| value / scale).collect()];
        for _ in 0..2 {
            values.push(seedbed.normal(hidden * 4 * inner, (1.0 / hidden as f32).sqrt()));
            values.push(vec![0.0; 4 * inner]);
            values.push(seedbed.normal(inner * 4 * inner, (1.0 / inner as f32).sqrt()));
        }
        values.extend(linear_start(
            seedbed,
            2 * inner,
            inner,
            vec![0.0; inner],
            2.0,
        ));
        values.extend(linear_start(
            seedbed,
            inner,
            hidden,
            mean_row(&rows, hidden),
            scale,
        ));
        Ok(values)
    },
    subgraph: |sizes, canvas, parameters| {
        let builder = &mut *canvas.builder;
        let tokens = sizes.form.tokens();
        let unrolled = |builder: &mut Builder, at: usize, order: Vec<usize>| {
            lstm(
                builder,
                &parameters[0],
                &parameters[at..at + 3],
                tokens,
                sizes.bottleneck,
                &order,
            )
        };
        let onward = unrolled(builder, 1, (0..tokens).collect());
        let backward = unrolled(builder, 4, (0..tokens).rev().collect());
        let both = builder.apply(
            "Concat",
            &[&onward, &backward],
            &[("axis", Attribute::Int(1))],
        );
        let middle = rectified(builder, &both, &parameters[7..9]);
        Ok(vec![affine(
            builder,
            &middle,
            &parameters[9],
            &parameters[10],
        )])
    },
    peft_type: "P_TUNING",
};

/// The states `[tokens, inner]` of an LSTM that reads `rows` in the given order; `weights` are those of the input with
/// its bias, and of the state, with the gates in the order input, forget, cell, output.
fn lstm(
    builder: &mut Builder,
    rows: &str,
    weights: &[String],
    tokens: usize,
    inner: usize,
    order: &[usize],
) -> String {
    let inputs = affine(builder, rows, &weights[0], &weights[1]);
    let mut states = vec![String::new(); tokens];
    let mut last: Option<(String, String)> = None;
    for &token in order {
        let index = builder.ints(&[token as i64]);
        let mut gates = builder.apply("Gather", &[&inputs, &index], &[("axis", Attribute::Int(0))]);
        if let Some((state, _)) = &last {
            let recurrent = builder.apply("MatMul", &[state, &weights[2]], &[]);
            gates = builder.apply("Add", &[&gates, &recurrent], &[]);
        }
        let (state, cell) = lstm_step(
            builder,
            &gates,
            last.as_ref().map(|(_, cell)| cell.as_str()),
            inner,
        );
        states[token].clone_from(&state);
        last = Some((state, cell));
    }
    let states: Vec<&str> = states.iter().map(String::as_str).collect();
    builder.apply("Concat", &states, &[("axis", Attribute::Int(0))])
}

/// State and cell after one token.
fn lstm_step(
    builder: &mut Builder,
    gates: &str,
    cell: Option<&str>,
    inner: usize,
) -> (String, String) {
    let sizes = builder.ints(&[inner as i64; 4]);
    let parts: [String; 4] = std::array::from_fn(|_| builder.fresh());
    let outputs: Vec<&str> = parts.iter().map(String::as_str).collect();
    builder.write(
        "Split",
        &[gates, &sizes],
        &outputs,
        &[("axis", Attribute::Int(1))],
    );
    let [input, forget, candidate, output] = parts;
    let input = builder.apply("Sigmoid", &[&input], &[]);
    let candidate = builder.apply("Tanh", &[&candidate], &[]);
    let mut new = builder.apply("Mul", &[&input, &candidate], &[]);
    if let Some(cell) = cell {
        let forget = builder.apply("Sigmoid", &[&forget], &[]);
        let kept = builder.apply("Mul", &[&forget, cell], &[]);
        new = builder.apply("Add", &[&new, &kept], &[]);
    }
    let output = builder.apply("Sigmoid", &[&output], &[]);
    let shown = builder.apply("Tanh", &[&new], &[]);
    (builder.apply("Mul", &[&output, &shown], &[]), new)
}
