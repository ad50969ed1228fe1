//! Prefix tuning without reparameterisation: keys and values of every layer are learned as they are
//! (Li and Liang 2021, section 4; P-tuning v2, Liu et al. 2022, section 3).

use preface_graph::FormKind;

use super::{Method, Parameter};

pub(super) const METHOD: Method = Method {
    name: "prefix-tuning",
    form: FormKind::KeyValues,
    learning_rate: 1e-2,
    parameters: |form| {
        let shapes = form.shapes().into_iter().enumerate();
        shapes
            .map(|(layer, shape)| Parameter {
                name: format!("prefix.{layer}"),
                shape,
            })
            .collect()
    },
    initial: |form, seedbed| seedbed.key_values(form.tokens()),
    subgraph: |_, _, parameters| parameters.to_vec(),
    collapse: |_, values| values,
    peft_type: "PREFIX_TUNING",
};
