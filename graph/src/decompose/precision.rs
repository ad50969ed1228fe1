//! Models in 16-bit floats, computed in 32 bits: a prompt needs gradients, and processors have no fast arithmetic of 16.

use std::{collections::HashSet, path::Path};

use half::{bf16, f16};

use crate::{
    Error,
    builder::{Attribute, Builder},
    onnx::{GraphProto, TensorProto, data_type},
};

/// Numbers of a tensor that is widened here; one of more is widened by the engine, from its file, unless it is a table.
const FEW: usize = 4096;

fn is_short(element: i32) -> bool {
    matches!(element, data_type::FLOAT16 | data_type::BFLOAT16)
}

/// Makes every float of 16 bits one of 32: tensors, inputs, outputs and what is cast to them.
///
/// # Errors
/// When a tensor cannot be read.
pub(super) fn widen_floats(graph: &mut GraphProto, folder: &Path) -> Result<(), Error> {
    let mut tensors = graph.initializer.iter();
    if !tensors.any(|tensor| is_short(tensor.data_type())) {
        return Ok(());
    }
    let tables: HashSet<String> = graph
        .node
        .iter()
        .filter(|node| node.op_type() == "Gather")
        .filter_map(|node| node.input(0).map(str::to_owned))
        .collect();
    let mut builder = Builder::beside(graph, "wide", 0);
    for tensor in &mut graph.initializer {
        if !is_short(tensor.data_type()) {
            continue;
        }
        if tensor.elements() <= FEW || tables.contains(tensor.name()) {
            *tensor = widened(tensor, folder)?;
            continue;
        }
        let (name, short) = (tensor.name().to_owned(), builder.fresh());
        tensor.name = Some(short.clone());
        let to = [("to", Attribute::Int(i64::from(data_type::FLOAT)))];
        builder.write("Cast", &[&short], &[&name], &to);
    }
    for node in &mut graph.node {
        let cast = node.op_type() == "Cast";
        for attribute in &mut node.attribute {
            let short = attribute.i.is_some_and(|to| is_short(to as i32));
            if cast && attribute.name() == "to" && short {
                attribute.i = Some(i64::from(data_type::FLOAT));
            }
            if let Some(tensor) = &mut attribute.t
                && is_short(tensor.data_type())
            {
                *tensor = widened(tensor, folder)?;
            }
        }
    }
    for value in graph.input.iter_mut().chain(&mut graph.output) {
        if let Some(tensor) = value.tensor_type_mut()
            && is_short(tensor.elem_type())
        {
            tensor.elem_type = Some(data_type::FLOAT);
        }
    }
    graph.value_info.clear();
    builder.insert_into(graph, 0);
    Ok(())
}

fn widened(tensor: &TensorProto, folder: &Path) -> Result<TensorProto, Error> {
    let bytes = tensor.little_endian(folder)?;
    let half = tensor.data_type() == data_type::FLOAT16;
    let pairs = bytes.as_chunks().0.iter();
    let values: Vec<f32> = pairs
        .map(|&pair| match half {
            true => f16::from_le_bytes(pair).to_f32(),
            false => bf16::from_le_bytes(pair).to_f32(),
        })
        .collect();
    Ok(TensorProto::of_floats(tensor.name(), &tensor.dims, &values))
}
