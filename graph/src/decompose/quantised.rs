//! Quantised weights and products as floats. What rounds activations stays as it is: it is what the model computes, and
//! its gradient is straight-through.

use std::{collections::HashMap, path::Path};

use crate::{
    Error,
    builder::Builder,
    onnx::{GraphProto, NodeProto, TensorProto, data_type},
};

/// Writes out `DequantizeLinear` of weights and of rows looked up in a quantised table, and `MatMulInteger`, whose
/// integers are exact in 32-bit floats but for the rounding of sums.
///
/// # Errors
/// When weights are quantised in a form that is not known, or cannot be read.
pub(super) fn write_out(graph: &mut GraphProto, opset: i64, folder: &Path) -> Result<(), Error> {
    let quantised = |node: &NodeProto| {
        matches!(node.op_type(), "DequantizeLinear" | "MatMulInteger") && node.domain().is_empty()
    };
    if !graph.node.iter().any(quantised) {
        return Ok(());
    }
    let mut builder = Builder::beside(graph, "dequantised", opset);
    let nodes = std::mem::take(&mut graph.node);
    let makers: HashMap<&str, &NodeProto> = nodes
        .iter()
        .flat_map(|node| {
            node.output
                .iter()
                .map(move |output| (output.as_str(), node))
        })
        .collect();
    let looked_up = |value: &str| {
        let mut lookups = nodes.iter().filter(|node| node.op_type() == "Gather");
        lookups.any(|node| node.input(0) == Some(value))
    };
    let only_dequantised = |node: &NodeProto| {
        let mut readers = nodes.iter().filter(|reader| {
            let reads = |input: &String| node.output.contains(input);
            reader.input.iter().any(reads)
        });
        let table = node.input(0).and_then(|name| graph.initializer(name));
        let bytes = [data_type::INT8, data_type::UINT8];
        node.op_type() == "Gather"
            && table.is_some_and(|table| bytes.contains(&table.data_type()))
            && readers.all(|reader| reader.op_type() == "DequantizeLinear" && quantised(reader))
    };
    let mut tables: HashMap<String, TensorProto> = HashMap::new();
    for node in nodes.iter().filter(|node| !only_dequantised(node)) {
        let input = node.input(0).unwrap_or_default();
        match node.op_type() {
            "MatMulInteger" if quantised(node) => product(&mut builder, node),
            "DequantizeLinear" if quantised(node) => {
                let lookup = makers
                    .get(input)
                    .filter(|maker| maker.op_type() == "Gather");
                let table = lookup.and_then(|lookup| graph.initializer(lookup.input(0)?));
                if let (Some(lookup), Some(table)) = (lookup, table) {
                    let name = format!("{}/{}", builder.named("table"), table.name());
                    if !tables.contains_key(&name) {
                        tables.insert(name.clone(), numbers(graph, node, table, &name, folder)?);
                    }
                    let mut plain = (*lookup).clone();
                    plain.name = Some(node.label().to_owned());
                    plain.input[0] = name;
                    plain.output.clone_from(&node.output);
                    builder.nodes.push(plain);
                } else if let Some(tensor) = graph.initializer(input) {
                    let output = node.output[0].as_str();
                    match looked_up(output) {
                        true => {
                            let table = numbers(graph, node, tensor, output, folder)?;
                            tables.insert(output.to_owned(), table);
                        }
                        false => weight(&mut builder, graph, node, tensor)?,
                    }
                } else {
                    builder.nodes.push(node.clone());
                }
            }
            _ => builder.nodes.push(node.clone()),
        }
    }
    builder.append_to(graph);
    graph.initializer.extend(tables.into_values());
    Ok(())
}

/// `(A - a) (B - b)` in floats.
fn product(builder: &mut Builder, node: &NodeProto) {
    let [left, right] = [0, 1].map(|index| {
        let operand = builder.cast(node.input(index).unwrap_or_default(), data_type::FLOAT);
        match node.input(index + 2) {
            None => operand,
            Some(zero) => {
                let zero = builder.cast(zero, data_type::FLOAT);
                builder.apply("Sub", &[&operand, &zero], &[])
            }
        }
    });
    builder.write("MatMul", &[&left, &right], &[&node.output[0]], &[]);
}

/// The axis along which a weight's scales lie; `None` where there is one scale.
fn scale_axis(
    graph: &GraphProto,
    node: &NodeProto,
    tensor: &TensorProto,
) -> Result<Option<usize>, Error> {
    let known = matches!(
        tensor.data_type(),
        data_type::INT8 | data_type::UINT8 | data_type::INT32
    );
    let scale = node.input(1).and_then(|name| graph.initializer(name));
    let (true, 0, Some(scale)) = (known, node.int("block_size", 0), scale) else {
        return Err(Error::at(
            node,
            "weights quantised by blocks, below 8 bits or with a scale of their own making are not known",
        ));
    };
    let rank = tensor.dims.len() as i64;
    let axis = node.int("axis", 1);
    let axis = usize::try_from(if axis < 0 { axis + rank } else { axis }).unwrap_or(0);
    Ok((scale.elements() > 1).then_some(axis))
}

/// `(weight - zero) scale`, in the graph.
fn weight(
    builder: &mut Builder,
    graph: &GraphProto,
    node: &NodeProto,
    tensor: &TensorProto,
) -> Result<(), Error> {
    let axis = scale_axis(graph, node, tensor)?;
    let along = |builder: &mut Builder, value: &str| match axis {
        Some(axis) if axis + 1 < tensor.dims.len() => {
            let mut shape = vec![1; tensor.dims.len() - axis];
            shape[0] = -1;
            let shape = builder.ints(&shape);
            builder.apply("Reshape", &[value, &shape], &[])
        }
        _ => value.to_owned(),
    };
    let mut value = builder.cast(tensor.name(), data_type::FLOAT);
    if let Some(zero) = node.input(2) {
        let zero = builder.cast(zero, data_type::FLOAT);
        let zero = along(builder, &zero);
        value = builder.apply("Sub", &[&value, &zero], &[]);
    }
    let scale = along(builder, node.input(1).unwrap_or_default());
    builder.write("Mul", &[&value, &scale], &[&node.output[0]], &[]);
    Ok(())
}

/// A table's numbers, dequantised as `node` does.
fn numbers(
    graph: &GraphProto,
    node: &NodeProto,
    table: &TensorProto,
    name: &str,
    folder: &Path,
) -> Result<TensorProto, Error> {
    let axis = scale_axis(graph, node, table)?;
    let list = |index: usize| {
        let tensor = graph.initializer(node.input(index)?)?;
        tensor.numbers(tensor.elements())
    };
    let (scales, zeros) = (list(1).unwrap_or_default(), list(2).unwrap_or_default());
    let bytes = table.little_endian(folder)?;
    let inner: i64 = match axis {
        Some(axis) => table.dims.iter().skip(axis + 1).product(),
        None => 1,
    };
    let inner = usize::try_from(inner).unwrap_or(1).max(1);
    let of = |list: &[f64], at: usize, otherwise: f64| {
        let index = axis.map_or(0, |_| at / inner % list.len().max(1));
        list.get(index).copied().unwrap_or(otherwise)
    };
    let whole: Vec<f64> = match table.data_type() {
        data_type::INT8 => bytes.iter().map(|&byte| f64::from(byte as i8)).collect(),
        data_type::UINT8 => bytes.iter().map(|&byte| f64::from(byte)).collect(),
        _ => return Err(Error::at(node, "a table of other than 8-bit integers")),
    };
    let values: Vec<f32> = whole
        .iter()
        .enumerate()
        .map(|(at, value)| ((value - of(&zeros, at, 0.0)) as f32) * (of(&scales, at, 1.0) as f32))
        .collect();
    Ok(TensorProto::of_floats(name, &table.dims, &values))
}

/// Replaces what rounds activations by the same arithmetic without rounding; whether there was any.
pub(crate) fn unround(graph: &mut GraphProto, opset: i64) -> bool {
    const ROUNDING: &[&str] = &[
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "QuantizeLinear",
    ];
    let rounds = |node: &NodeProto| ROUNDING.contains(&node.op_type());
    if !graph.node.iter().any(rounds) {
        return false;
    }
    let mut builder = Builder::beside(graph, "unrounded", opset);
    for mut node in std::mem::take(&mut graph.node) {
        if !rounds(&node) {
            builder.nodes.push(node);
            continue;
        }
        let input = node.input(0).unwrap_or_default().to_owned();
        let output = node.output[0].clone();
        let (scale, zero) = match node.op_type() {
            "DynamicQuantizeLinear" => {
                let names = (node.output.get(1).cloned(), node.output.get(2).cloned());
                node.output[0] = builder.fresh();
                builder.nodes.push(node.clone());
                names
            }
            _ => (node.input.get(1).cloned(), node.input.get(2).cloned()),
        };
        let scale = scale.unwrap_or_default();
        let zero = zero.filter(|name| !name.is_empty());
        let zero = match zero {
            Some(zero) => builder.cast(&zero, data_type::FLOAT),
            None => builder.scalar(data_type::FLOAT, 0.0),
        };
        if node.op_type() == "DequantizeLinear" {
            let input = builder.cast(&input, data_type::FLOAT);
            let value = builder.apply("Sub", &[&input, &zero], &[]);
            builder.write("Mul", &[&value, &scale], &[&output], &[]);
        } else {
            let value = builder.apply("Div", &[&input, &scale], &[]);
            builder.write("Add", &[&value, &zero], &[&output], &[]);
        }
    }
    builder.append_to(graph);
    true
}
