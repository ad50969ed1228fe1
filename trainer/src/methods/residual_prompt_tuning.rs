//! Residual prompt tuning: `P + s LN(W_up relu(W_down P))` with one MLP for all virtual tokens
//! (Razdaibiedina et al. 2023, section 3).
//!
//! The normalised part is scaled by a learned row that starts small beside the embeddings, as those are far from
//! length 1 in most bases.

use preface_graph::{FormKind, onnx::data_type};

use super::{Method, Parameter, p_tuning_mlp::scale_of};

/// The residual's size at the start, as a part of the prompt's.
const SHARE: f32 = 0.1;

pub(super) const METHOD: Method = Method {
    name: "residual-prompt-tuning",
    form: FormKind::Embeddings,
    gated: false,
    learning_rate: 1e-2,
    parameters: |sizes| {
        let [tokens, hidden] = [0, 1].map(|axis| sizes.form.shapes()[0][axis]);
        vec![
            Parameter::new("prompt", &[tokens, hidden]),
            Parameter::new("down", &[hidden, sizes.bottleneck]).at_rate(0.3),
            Parameter::new("up", &[sizes.bottleneck, hidden]).at_rate(0.3),
            Parameter::new("scale", &[hidden]),
        ]
    },
    initial: |sizes, seedbed| {
        let rows = seedbed.embeddings(sizes.form.tokens())?;
        let (scale, inner) = (scale_of(&rows), sizes.bottleneck);
        let hidden = rows.len() / sizes.form.tokens();
        Ok(vec![
            rows,
            seedbed.normal(hidden * inner, (1.0 / hidden as f32).sqrt() / scale),
            seedbed.normal(inner * hidden, (2.0 / inner as f32).sqrt()),
            vec![SHARE * scale; hidden],
        ])
    },
    subgraph: |_, canvas, parameters| {
        let [prompt, down, up, scale] = parameters else {
            return Ok(Vec::new());
        };
        let builder = &mut *canvas.builder;
        let inner = builder.apply("MatMul", &[prompt, down], &[]);
        let inner = builder.apply("Relu", &[&inner], &[]);
        let outer = builder.apply("MatMul", &[&inner, up], &[]);
        let mean = builder.reduce("ReduceMean", &outer, &[-1], true);
        let level = builder.apply("Sub", &[&outer, &mean], &[]);
        let square = builder.apply("Mul", &[&level, &level], &[]);
        let variance = builder.reduce("ReduceMean", &square, &[-1], true);
        let least = builder.scalar(data_type::FLOAT, 1e-5);
        let variance = builder.apply("Add", &[&variance, &least], &[]);
        let deviation = builder.apply("Sqrt", &[&variance], &[]);
        let normal = builder.apply("Div", &[&level, &deviation], &[]);
        let scaled = builder.apply("Mul", &[&normal, scale], &[]);
        Ok(vec![builder.apply("Add", &[prompt, &scaled], &[])])
    },
    peft_type: "PROMPT_TUNING",
};
