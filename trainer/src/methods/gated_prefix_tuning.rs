//! A prefix whose attention weights are multiplied by a learned gate in each layer.
//!
//! The logarithm of the gate is added to the scores of the prefix, so that the gate multiplies its part of the softmax.
//! Gates start so small that the first answer is, to the last bit, that of the base without a prompt, and yet their
//! gradient is not: zero-initialised attention, Zhang et al. 2023 (LLaMA-Adapter), section 3.2, within one softmax.

use preface_graph::{FormKind, onnx::data_type};

use super::{Method, Parameter, prefix_parameters};
use crate::Error;

/// A gate that lets nothing through in 32-bit floats.
const CLOSED: f32 = 1e-13;

pub(super) const METHOD: Method = Method {
    name: "gated-prefix-tuning",
    form: FormKind::KeyValues,
    gated: true,
    learning_rate: 3e-2,
    parameters: |sizes| {
        let mut parameters = prefix_parameters(&sizes.form);
        let layers = parameters.len();
        parameters.push(Parameter::new("gate", &[layers]));
        parameters
    },
    initial: |sizes, seedbed| {
        let mut values = seedbed.key_values(&sizes.form)?;
        values.push(vec![CLOSED; values.len()]);
        Ok(values)
    },
    subgraph: |_, canvas, parameters| {
        let gate = parameters
            .last()
            .ok_or_else(|| Error::Options("a prefix needs a layer".into()))?;
        let builder = &mut *canvas.builder;
        let size = builder.apply("Abs", &[gate], &[]);
        let least = builder.scalar(data_type::FLOAT, f64::from(CLOSED));
        let open = builder.apply("Add", &[&size, &least], &[]);
        let mut tensors = parameters[..parameters.len() - 1].to_vec();
        tensors.push(builder.apply("Log", &[&open], &[]));
        Ok(tensors)
    },
    peft_type: "PREFIX_TUNING",
};

/// The same with the numbers that are added to the scores as parameters.
pub(super) const STORED: Method = Method {
    subgraph: |_, _, parameters| Ok(parameters.to_vec()),
    ..METHOD
};
