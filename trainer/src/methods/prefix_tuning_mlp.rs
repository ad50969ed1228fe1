//! Prefix tuning through an MLP: `W2 tanh(W1 e + b1) + b2` for each virtual token (Li and Liang 2021, section 4.3).

use preface_graph::FormKind;

use super::{
    Method, Parameter, affine, by_layer,
    p_tuning_mlp::{mean_row, scale_of},
    width,
};

pub(super) const METHOD: Method = Method {
    name: "prefix-tuning-mlp",
    form: FormKind::KeyValues,
    gated: false,
    learning_rate: 3e-3,
    parameters: |sizes| {
        let (tokens, inner, outer) = (sizes.form.tokens(), sizes.bottleneck, width(&sizes.form));
        vec![
            Parameter::new("embedding", &[tokens, inner]),
            Parameter::new("in.weight", &[inner, inner]),
            Parameter::new("in.bias", &[inner]),
            Parameter::new("out.weight", &[inner, outer]),
            Parameter::new("out.bias", &[outer]),
        ]
    },
    initial: |sizes, seedbed| {
        let (tokens, inner) = (sizes.form.tokens(), sizes.bottleneck);
        let keys = seedbed.key_values_by_token(&sizes.form)?;
        let outer = keys.len() / tokens;
        Ok(vec![
            seedbed.normal(tokens * inner, 1.0),
            seedbed.normal(inner * inner, (1.0 / inner as f32).sqrt()),
            vec![0.0; inner],
            seedbed.normal(inner * outer, scale_of(&keys) / (inner as f32).sqrt()),
            mean_row(&keys, outer),
        ])
    },
    subgraph: |sizes, canvas, parameters| {
        let [embedding, weight, bias, out_weight, out_bias] = parameters else {
            return Ok(Vec::new());
        };
        let builder = &mut *canvas.builder;
        let inner = affine(builder, embedding, weight, bias);
        let inner = builder.apply("Tanh", &[&inner], &[]);
        let rows = affine(builder, &inner, out_weight, out_bias);
        Ok(by_layer(builder, &sizes.form, &rows))
    },
    peft_type: "PREFIX_TUNING",
};
