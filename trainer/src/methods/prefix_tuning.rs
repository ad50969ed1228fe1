//! Prefix tuning without reparameterisation: keys and values of each layer are learned as they are
//! (Li and Liang 2021, section 4; P-tuning v2, Liu et al. 2022, section 3).

use preface_graph::FormKind;

use super::{Method, prefix_parameters};

pub(super) const METHOD: Method = Method {
    name: "prefix-tuning",
    form: FormKind::KeyValues,
    gated: false,
    learning_rate: 3e-2,
    parameters: |sizes| prefix_parameters(&sizes.form),
    initial: |sizes, seedbed| seedbed.key_values(&sizes.form),
    subgraph: |_, _, parameters| Ok(parameters.to_vec()),
    peft_type: "PREFIX_TUNING",
};
