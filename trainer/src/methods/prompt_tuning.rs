//! Prompt tuning: rows among the text's embeddings are learned as they are (Lester et al. 2021, section 2).

use preface_graph::FormKind;

use super::{Method, Parameter};

pub(super) const METHOD: Method = Method {
    name: "prompt-tuning",
    form: FormKind::Embeddings,
    gated: false,
    learning_rate: 3e-2,
    parameters: |sizes| vec![Parameter::new("prompt", &sizes.form.shapes()[0])],
    initial: |sizes, seedbed| Ok(vec![seedbed.embeddings(sizes.form.tokens())?]),
    subgraph: |_, _, parameters| Ok(parameters.to_vec()),
    peft_type: "PROMPT_TUNING",
};
