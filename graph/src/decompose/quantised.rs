//! Quantised weights and products as floats. What rounds activations stays as it is: it is what the model computes, and
//! its gradient is straight-through.

mod tables;

use std::{collections::HashMap, fmt, path::Path};

use crate::{
    Error,
    builder::Builder,
    decompose::contrib::unpacked,
    onnx::{GraphProto, NodeProto, TensorProto, data_type},
};

use self::tables::{TABLE, Tables, whole_tables};

/// Writes out `DequantizeLinear` of weights and of rows looked up in a quantised table, `GatherBlockQuantized` of
/// com.microsoft, and `MatMulInteger`, whose integers are exact in 32-bit floats but for the rounding of sums.
///
/// # Errors
/// When weights are quantised in a form that is not known, or cannot be read.
pub(super) fn write_out(graph: &mut GraphProto, opset: i64, folder: &Path) -> Result<(), Error> {
    if !graph.node.iter().any(is_quantised) {
        return Ok(());
    }
    let mut packed = as_bytes(graph);
    let whole_tables = whole_tables(graph, &mut packed)?;
    let mut builder = Builder::beside(graph, "dequantised", opset);
    let nodes = std::mem::take(&mut graph.node);
    let mut tables = Tables::of(graph, folder, &packed);
    for node in &nodes {
        match node.op_type() {
            "Gather" if is_only_dequantised(graph, &nodes, node) => {}
            _ if !is_quantised(node) => builder.nodes.push(node.clone()),
            "MatMulInteger" => product(&mut builder, node),
            "DequantizeLinear" => dequantise(&mut builder, &mut tables, &nodes, node)?,
            _ => {
                let whole = &whole_tables[node.output[0].as_str()];
                tables.look_up(&mut builder, node, whole)?;
            }
        }
    }
    let tables = tables.made();
    builder.append_to(graph);
    graph.initializer.extend(tables);
    Ok(())
}

/// Whether a node is one of those that are written out.
fn is_quantised(node: &NodeProto) -> bool {
    let standard = node.domain().is_empty();
    matches!(node.op_type(), "DequantizeLinear" | "MatMulInteger") && standard
        || node.operator() == TABLE
}

/// Whether a `Gather` looks up bytes that nothing reads but what dequantises them.
fn is_only_dequantised(graph: &GraphProto, nodes: &[NodeProto], node: &NodeProto) -> bool {
    let table = node.input(0).and_then(|name| graph.initializer(name));
    let bytes = [data_type::INT8, data_type::UINT8];
    let mut readers = nodes.iter().filter(|reader| {
        let reads = |input: &String| node.output.contains(input);
        reader.input.iter().any(reads)
    });
    table.is_some_and(|table| bytes.contains(&table.data_type()))
        && readers.all(|reader| reader.op_type() == "DequantizeLinear" && is_quantised(reader))
}

/// Writes out a `DequantizeLinear`: of looked-up rows as a lookup in the table's numbers, of a table that is looked up as
/// those numbers, of a weight in the graph. Of anything else it stays.
fn dequantise(
    builder: &mut Builder,
    tables: &mut Tables<'_>,
    nodes: &[NodeProto],
    node: &NodeProto,
) -> Result<(), Error> {
    let graph = tables.graph;
    let (input, output) = (node.input(0).unwrap_or_default(), &*node.output[0]);
    let mut lookups = nodes.iter().filter(|node| node.op_type() == "Gather");
    let made_by = |lookup: &&NodeProto| lookup.output.iter().any(|made| made == input);
    let lookup = lookups.clone().find(made_by);
    let table = lookup.and_then(|lookup| graph.initializer(lookup.input(0)?));
    if let (Some(lookup), Some(table)) = (lookup, table) {
        let name = format!("{}/{}", builder.named("table"), table.name());
        tables.make(&name, node, table)?;
        let mut plain = lookup.clone();
        plain.name = Some(node.label().to_owned());
        plain.input[0] = name;
        plain.output.clone_from(&node.output);
        builder.nodes.push(plain);
        return Ok(());
    }
    match graph.initializer(input) {
        Some(table) if lookups.any(|lookup| lookup.input(0) == Some(output)) => {
            tables.make(output, node, table)
        }
        Some(tensor) => weight(builder, graph, node, tensor, tables.packed),
        None => {
            builder.nodes.push(node.clone());
            Ok(())
        }
    }
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

/// The numbers of a tensor in 4 bits, of which the graph keeps the bytes.
struct Packed {
    signed: bool,
    dims: Vec<i64>,
}

/// Makes the 4-bit weights that only `DequantizeLinear` reads bytes, two numbers in each, which all engines know.
fn as_bytes(graph: &mut GraphProto) -> HashMap<String, Packed> {
    let mut packed = HashMap::new();
    for tensor in &mut graph.initializer {
        let narrow = [data_type::INT4, data_type::UINT4].contains(&tensor.data_type());
        let mut readers = graph.node.iter().filter(|node| {
            let mut inputs = node.input.iter();
            inputs.any(|input| input == tensor.name())
        });
        let known = |node: &NodeProto| node.op_type() != "MatMulInteger" && is_quantised(node);
        if !narrow || !readers.all(known) {
            continue;
        }
        let bytes = tensor.elements().div_ceil(2) as i64;
        let found = Packed {
            signed: tensor.data_type() == data_type::INT4,
            dims: std::mem::replace(&mut tensor.dims, vec![bytes]),
        };
        tensor.data_type = Some(data_type::UINT8);
        packed.insert(tensor.name().to_owned(), found);
    }
    packed
}

/// The whole numbers of `name` as floats in their shape.
fn whole(builder: &mut Builder, name: &str, packed: &HashMap<String, Packed>) -> String {
    let Some(Packed { signed, dims }) = packed.get(name) else {
        return builder.cast(name, data_type::FLOAT);
    };
    let elements: i64 = dims.iter().product();
    let mut value = unpacked(builder, name, 4, &[elements + elements % 2]);
    if elements % 2 == 1 {
        let [start, end] = [0, elements].map(|place| builder.ints(&[place]));
        value = builder.apply("Slice", &[&value, &start, &end], &[]);
    }
    if *signed {
        // Two's complement: 8 to 15 stand for -8 to -1.
        let [eighth, sixteen] =
            [1.0 / 8.0, 16.0].map(|number| builder.scalar(data_type::FLOAT, number));
        let upper = builder.apply("Mul", &[&value, &eighth], &[]);
        let upper = builder.apply("Floor", &[&upper], &[]);
        let below = builder.apply("Mul", &[&upper, &sixteen], &[]);
        value = builder.apply("Sub", &[&value, &below], &[]);
    }
    let shape = builder.ints(dims);
    builder.apply("Reshape", &[&value, &shape], &[])
}

/// How a weight's scales lie.
#[derive(Clone, Copy)]
enum Scales {
    /// One for all numbers.
    One,
    /// One a place of an axis.
    Axis(usize),
    /// One for so many places of an axis that follow each other, at each place of the others.
    Blocks(usize, i64),
}

impl Scales {
    /// Whether scales or zero points of these dimensions lie so, for a weight `[..dims]`.
    fn are(&self, own: &[i64], dims: &[i64]) -> bool {
        let count: i64 = own.iter().product();
        match *self {
            Self::One => count == 1,
            Self::Axis(axis) => dims.get(axis) == Some(&count),
            Self::Blocks(axis, block) => {
                let mut expected = dims.to_vec();
                let places = expected.get_mut(axis).filter(|_| block > 0);
                let fits = places.map(|places| {
                    *places = *places / block + i64::from(*places % block != 0);
                });
                fits.is_some() && expected == own
            }
        }
    }

    /// Which scale number `at` of a weight `[..dims]` has.
    fn place(&self, at: usize, dims: &[i64]) -> usize {
        match *self {
            Self::One => 0,
            Self::Axis(axis) => at / behind(dims, axis) % extent(dims, axis),
            Self::Blocks(axis, block) => {
                let (inner, places) = (behind(dims, axis), extent(dims, axis));
                let block = block.max(1) as usize;
                let along = at / inner % places / block;
                (at / inner / places * places.div_ceil(block) + along) * inner + at % inner
            }
        }
    }
}

/// Places of an axis, at least one.
fn extent(dims: &[i64], axis: usize) -> usize {
    dims.get(axis).map_or(1, |&places| places.max(1) as usize)
}

/// Numbers behind one place of an axis, at least one.
fn behind(dims: &[i64], axis: usize) -> usize {
    let inner: i64 = dims.iter().skip(axis + 1).product();
    inner.max(1) as usize
}

impl fmt::Display for Scales {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One => formatter.write_str("one for all numbers"),
            Self::Axis(axis) => write!(formatter, "one for each place of axis {axis}"),
            Self::Blocks(axis, block) => {
                write!(formatter, "one for {block} places each of axis {axis}")
            }
        }
    }
}

/// How the scales of a weight `[..dims]` lie; zero points lie likewise.
///
/// # Errors
/// When its integers are not known, the scales are not fixed, or there are more or fewer scales or zero points than places.
fn scales(
    graph: &GraphProto,
    node: &NodeProto,
    tensor: &TensorProto,
    packed: &HashMap<String, Packed>,
) -> Result<Scales, Error> {
    let dims = dims_of(tensor, packed);
    let known = matches!(
        tensor.data_type(),
        data_type::INT8 | data_type::UINT8 | data_type::INT32
    );
    let scale = node.input(1).and_then(|name| graph.initializer(name));
    let (true, Some(scale)) = (known, scale) else {
        return Err(Error::at(
            node,
            "weights of other than 4, 8 or 32 bits, or with a scale of their own making, are not known",
        ));
    };
    let rank = dims.len();
    let axis = node.int("axis", 1);
    let axis = usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).unwrap_or(rank);
    let found = match node.int("block_size", 0) {
        0 if scale.elements() == 1 => Scales::One,
        0 => Scales::Axis(axis.min(rank.saturating_sub(1))),
        block => Scales::Blocks(axis, block),
    };
    let zero = node.input(2).and_then(|name| graph.initializer(name));
    for (what, own) in [
        ("scales", Some(&*scale.dims)),
        ("zero points", zero.map(|zero| dims_of(zero, packed))),
    ] {
        if let Some(own) = own.filter(|own| !found.are(own, dims)) {
            return Err(Error::at(
                node,
                format!("{what} {own:?} do not fit {found} of {dims:?}"),
            ));
        }
    }
    Ok(found)
}

/// The shape of a tensor, of one in bytes that of its numbers.
fn dims_of<'a>(tensor: &'a TensorProto, packed: &'a HashMap<String, Packed>) -> &'a [i64] {
    let own = packed.get(tensor.name());
    own.map_or(&tensor.dims, |packed| &packed.dims)
}

/// `(weight - zero) scale`, in the graph.
fn weight(
    builder: &mut Builder,
    graph: &GraphProto,
    node: &NodeProto,
    tensor: &TensorProto,
    packed: &HashMap<String, Packed>,
) -> Result<(), Error> {
    let dims = dims_of(tensor, packed);
    let scales = scales(graph, node, tensor, packed)?;
    let spread = |builder: &mut Builder, value: &str| match scales {
        Scales::Axis(axis) if axis + 1 < dims.len() => {
            let mut shape = vec![1; dims.len() - axis];
            shape[0] = -1;
            let shape = builder.ints(&shape);
            builder.apply("Reshape", &[value, &shape], &[])
        }
        Scales::Blocks(axis, block) => repeated(builder, value, (dims, axis), block),
        Scales::One | Scales::Axis(_) => value.to_owned(),
    };
    let mut value = whole(builder, tensor.name(), packed);
    if let Some(zero) = node.input(2) {
        let zero = whole(builder, zero, packed);
        let zero = spread(builder, &zero);
        value = builder.apply("Sub", &[&value, &zero], &[]);
    }
    let scale = spread(builder, node.input(1).unwrap_or_default());
    builder.write("Mul", &[&value, &scale], &[&node.output[0]], &[]);
    Ok(())
}

/// One number for each place of an axis of `dims`, where `value` has one for `block` places.
fn repeated(
    builder: &mut Builder,
    value: &str,
    (dims, axis): (&[i64], usize),
    block: i64,
) -> String {
    let blocks = (dims[axis] + block - 1) / block;
    let along = |builder: &mut Builder, places: &[i64]| {
        let shape = [&dims[..axis], places, &dims[axis + 1..]].concat();
        builder.ints(&shape)
    };
    let [apart, wide, together] = [&[blocks, 1][..], &[blocks, block], &[blocks * block]]
        .map(|places| along(builder, places));
    let value = builder.apply("Reshape", &[value, &apart], &[]);
    let value = builder.apply("Expand", &[&value, &wide], &[]);
    let value = builder.apply("Reshape", &[&value, &together], &[]);
    if blocks * block == dims[axis] {
        return value;
    }
    let [start, end, axis] = [0, dims[axis], axis as i64].map(|place| builder.ints(&[place]));
    builder.apply("Slice", &[&value, &start, &end, &axis], &[])
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::Attribute;

    fn bytes(name: &str, dims: &[i64], values: &[u8]) -> TensorProto {
        TensorProto::of_raw(name, data_type::UINT8, dims, values.to_vec())
    }

    /// Rows looked up in a table `[3, 2]` of bytes and dequantised along `axis`.
    fn looked_up(scales: &[f32], zeros: &[u8], axis: i64) -> GraphProto {
        let mut graph = GraphProto {
            initializer: vec![
                bytes("table", &[3, 2], &[0, 1, 2, 3, 4, 5]),
                TensorProto::of_floats("scales", &[scales.len() as i64], scales),
                bytes("zeros", &[zeros.len() as i64], zeros),
            ],
            ..GraphProto::default()
        };
        let mut builder = Builder::beside(&graph, "rows", 21);
        let rows = builder.apply("Gather", &["table", "ids"], &[]);
        let inputs = [&*rows, "scales", "zeros"];
        builder.apply(
            "DequantizeLinear",
            &inputs,
            &[("axis", Attribute::Int(axis))],
        );
        builder.append_to(&mut graph);
        graph
    }

    #[test]
    fn a_table_has_the_scales_of_its_places() {
        let table: [(&[f32], &[u8], [f32; 6]); 2] = [
            (&[2.0], &[1], [-2.0, 0.0, 2.0, 4.0, 6.0, 8.0]),
            (&[2.0, 10.0], &[0, 1], [0.0, 0.0, 4.0, 20.0, 8.0, 40.0]),
        ];
        for (scales, zeros, expected) in table {
            let mut graph = looked_up(scales, zeros, -1);
            write_out(&mut graph, 21, Path::new("")).unwrap();
            let operators: Vec<_> = graph.node.iter().map(NodeProto::op_type).collect();
            assert_eq!(operators, ["Gather"]);
            let made = graph.node[0]
                .input(0)
                .and_then(|name| graph.initializer(name));
            let made = made.unwrap().floats(Path::new("")).unwrap();
            assert_eq!(made, expected);
        }
    }

    #[test]
    fn scales_and_zero_points_of_another_count_are_refused_by_the_node() {
        let table: [(&[f32], &[u8], &str); 4] = [
            (&[], &[], "scales [0]"),
            (&[1.0, 2.0, 3.0], &[0, 0, 0], "scales [3]"),
            (&[1.0, 2.0], &[0], "zero points [1]"),
            (&[1.0], &[0, 0], "zero points [2]"),
        ];
        for (scales, zeros, part) in table {
            let mut graph = looked_up(scales, zeros, -1);
            let node = graph.node[1].label().to_owned();
            let error = write_out(&mut graph, 21, Path::new("")).unwrap_err();
            let error = error.to_string();
            assert!(error.contains(part) && error.contains(&node), "{error}");
        }
    }
}
