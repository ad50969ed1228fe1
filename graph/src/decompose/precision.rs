//! Models in 16-bit floats, computed in 32 bits: a prompt needs gradients, and processors have no fast arithmetic of 16.

use std::{collections::HashSet, path::Path};

use crate::{
    Error,
    builder::{Attribute, Builder},
    onnx::{GraphProto, NodeProto, TensorProto, data_type},
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
    let tables: HashSet<String> = graph.node.iter().flat_map(tables).cloned().collect();
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

/// The tables that `node` looks rows up in, and the scales that make them.
fn tables(node: &NodeProto) -> &[String] {
    let places = match node.op_type() {
        "Gather" => 0..1,
        "EmbedLayerNormalization" => 2..5,
        "DequantizeLinear" => 1..2,
        "GatherBlockQuantized" => 2..3,
        _ => 0..0,
    };
    node.input.get(places).unwrap_or_default()
}

fn widened(tensor: &TensorProto, folder: &Path) -> Result<TensorProto, Error> {
    let values = tensor.floats(folder)?;
    Ok(TensorProto::of_floats(tensor.name(), &tensor.dims, &values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_stay_tensors_and_weights_are_cast() {
        let rows = FEW as i64;
        let short = |name: &str| {
            TensorProto::of_raw(name, data_type::FLOAT16, &[rows, 2], vec![0; 4 * FEW])
        };
        let mut graph = GraphProto {
            initializer: ["words", "looked up", "weight"].map(short).into(),
            ..GraphProto::default()
        };
        let mut builder = Builder::beside(&graph, "t", 17);
        let inputs = ["ids", "", "words", "places", "", "scale", "bias"];
        builder.apply("EmbedLayerNormalization", &inputs, &[]);
        builder.apply("Gather", &["looked up", "ids"], &[]);
        builder.apply("MatMul", &["rows", "weight"], &[]);
        builder.append_to(&mut graph);
        widen_floats(&mut graph, Path::new("")).unwrap();
        for table in ["words", "looked up"] {
            let tensor = graph.initializer(table).unwrap();
            assert_eq!(tensor.data_type(), data_type::FLOAT, "{table}");
        }
        assert!(graph.initializer("weight").is_none());
        let cast = &graph.node[0];
        assert_eq!((cast.op_type(), &*cast.output[0]), ("Cast", "weight"));
    }
}
