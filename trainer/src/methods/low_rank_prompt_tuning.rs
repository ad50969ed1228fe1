//! A prompt of low rank: `A B` with `A [tokens, rank]` and `B [rank, hidden]` (Xiao et al. 2023, DPT, section 3).

use preface_graph::FormKind;

use super::{Method, Parameter};

pub(super) const METHOD: Method = Method {
    name: "low-rank-prompt-tuning",
    form: FormKind::Embeddings,
    gated: false,
    learning_rate: 3e-2,
    parameters: |sizes| {
        let [tokens, hidden] = [0, 1].map(|axis| sizes.form.shapes()[0][axis]);
        vec![
            Parameter::new("left", &[tokens, sizes.rank]),
            Parameter::new("right", &[sizes.rank, hidden]),
        ]
    },
    initial: |sizes, seedbed| {
        let tokens = sizes.form.tokens();
        let mut left = seedbed.normal(tokens * sizes.rank, 0.1);
        (0..tokens).for_each(|token| left[token * sizes.rank + token % sizes.rank] += 1.0);
        Ok(vec![left, seedbed.embeddings(sizes.rank)?])
    },
    subgraph: |_, canvas, parameters| {
        Ok(vec![canvas.builder.apply(
            "MatMul",
            &[&parameters[0], &parameters[1]],
            &[],
        )])
    },
    peft_type: "PROMPT_TUNING",
};
