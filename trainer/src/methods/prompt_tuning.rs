//! Prompt tuning: rows before the text's embeddings are learned as they are (Lester et al. 2021, section 2).

use preface_graph::FormKind;

use super::{Method, Parameter};

pub(super) const METHOD: Method = Method {
    name: "prompt-tuning",
    form: FormKind::Embeddings,
    learning_rate: 3e-2,
    parameters: |form| {
        let shape = form.shapes().remove(0);
        vec![Parameter {
            name: "prompt".into(),
            shape,
        }]
    },
    initial: |form, seedbed| Ok(vec![seedbed.embeddings(form.tokens())?]),
    subgraph: |_, _, parameters| parameters.to_vec(),
    collapse: |_, values| values,
    peft_type: "PROMPT_TUNING",
};
