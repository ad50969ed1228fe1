//! Graphs without inputs, made so that tract computes them.

use preface_graph::onnx::{GraphProto, ModelProto, NodeProto, TensorProto, data_type};
use prost::Message;
use tract_onnx::prelude::{Framework, InferenceModelExt, *};

use super::Numbers;

/// A tensor of `numbers`.
pub(super) fn tensor(name: &str, data_type: i32, dims: &[i64], numbers: &[f64]) -> TensorProto {
    let bytes = numbers.iter().flat_map(|&number| match data_type {
        data_type::BOOL => vec![u8::from(number != 0.0)],
        data_type::INT32 => (number as i32).to_le_bytes().to_vec(),
        data_type::INT64 => (number as i64).to_le_bytes().to_vec(),
        data_type::DOUBLE => number.to_le_bytes().to_vec(),
        _ => (number as f32).to_le_bytes().to_vec(),
    });
    TensorProto::of_raw(name, data_type, dims, bytes.collect())
}

/// Gives a Range scalars where it reads lists of one number: tract takes only those.
pub(super) fn scalars(node: &mut NodeProto, part: &mut GraphProto) {
    for input in &mut node.input {
        let list = part.initializer(input).cloned();
        if let Some(mut scalar) = list.filter(|list| list.dims == [1]) {
            input.push_str(".scalar");
            scalar.name = Some(input.clone());
            scalar.dims.clear();
            if part.initializer(input).is_none() {
                part.initializer.push(scalar);
            }
        }
    }
}

/// Runs a graph without inputs.
pub(super) fn computed(model: &ModelProto) -> TractResult<Numbers> {
    let mut model = model.clone();
    crate::engine::lower::spell_out_zeros(model.graph.get_or_insert_default());
    let bytes = model.encode_to_vec();
    let onnx = tract_onnx::onnx().proto_model_for_read(&mut &*bytes)?;
    let plan = tract_onnx::onnx()
        .model_for_proto_model(&onnx)?
        .into_typed()?
        .into_runnable()?;
    let outputs = plan.run(tvec!())?;
    let output = outputs[0].cast_to::<f32>()?;
    Ok(Numbers {
        shape: output.shape().to_vec(),
        values: output.try_as_plain_ram()?.as_slice::<f32>()?.to_vec(),
    })
}
