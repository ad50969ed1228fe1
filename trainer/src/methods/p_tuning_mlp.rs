//! P-tuning through an MLP: rows of the prompt are three linear maps with ReLU between them of learned rows
//! (Liu et al. 2021, section 3; PEFT's `PromptEncoder`).

use preface_graph::{FormKind, builder::Builder};

use super::{Method, Parameter, affine};
use crate::seedbed::Seedbed;

pub(super) const METHOD: Method = Method {
    name: "p-tuning-mlp",
    form: FormKind::Embeddings,
    gated: false,
    learning_rate: 3e-3,
    parameters: |sizes| {
        let [tokens, hidden] = [0, 1].map(|axis| sizes.form.shapes()[0][axis]);
        let inner = sizes.bottleneck;
        let mut parameters = vec![Parameter::new("embedding", &[tokens, hidden])];
        parameters.extend(linear("in", hidden, inner));
        parameters.extend(linear("middle", inner, inner));
        parameters.extend(linear("out", inner, hidden));
        parameters
    },
    initial: |sizes, seedbed| {
        let tokens = sizes.form.tokens();
        let rows = seedbed.embeddings(tokens)?;
        let hidden = rows.len() / tokens;
        let scale = scale_of(&rows);
        let inner = sizes.bottleneck;
        let mut values = vec![rows.iter().map(|value| value / scale).collect()];
        values.extend(linear_start(seedbed, hidden, inner, vec![0.0; inner], 1.0));
        values.extend(linear_start(seedbed, inner, inner, vec![0.0; inner], 1.0));
        values.extend(linear_start(
            seedbed,
            inner,
            hidden,
            mean_row(&rows, hidden),
            scale,
        ));
        Ok(values)
    },
    subgraph: |_, canvas, parameters| {
        let builder = &mut *canvas.builder;
        let inner = rectified(builder, &parameters[0], &parameters[1..3]);
        let middle = rectified(builder, &inner, &parameters[3..5]);
        Ok(vec![affine(
            builder,
            &middle,
            &parameters[5],
            &parameters[6],
        )])
    },
    peft_type: "P_TUNING",
};

/// Weight and bias of a linear map.
pub(super) fn linear(name: &str, from: usize, to: usize) -> [Parameter; 2] {
    [
        Parameter::new(format!("{name}.weight"), &[from, to]),
        Parameter::new(format!("{name}.bias"), &[to]),
    ]
}

/// Their values at the start: outputs of rectified inputs have the size `scale`, around `bias`.
pub(super) fn linear_start(
    seedbed: &mut Seedbed,
    from: usize,
    to: usize,
    bias: Vec<f32>,
    scale: f32,
) -> [Vec<f32>; 2] {
    [
        seedbed.normal(from * to, scale * (2.0 / from as f32).sqrt()),
        bias,
    ]
}

/// The root mean square.
pub(super) fn scale_of(rows: &[f32]) -> f32 {
    (rows.iter().map(|value| value * value).sum::<f32>() / rows.len().max(1) as f32)
        .sqrt()
        .max(1e-6)
}

/// The mean of rows `hidden` wide.
pub(super) fn mean_row(rows: &[f32], hidden: usize) -> Vec<f32> {
    let count = (rows.len() / hidden).max(1) as f32;
    (0..hidden)
        .map(|column| rows.iter().skip(column).step_by(hidden).sum::<f32>() / count)
        .collect()
}

/// `relu(rows weight + bias)`.
pub(super) fn rectified(builder: &mut Builder, rows: &str, linear: &[String]) -> String {
    let outer = affine(builder, rows, &linear[0], &linear[1]);
    builder.apply("Relu", &[&outer], &[])
}
