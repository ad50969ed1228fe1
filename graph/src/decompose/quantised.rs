//! Quantised weights and products as floats. What rounds activations stays as it is: it is what the model computes, and
//! its gradient is straight-through.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

use crate::{
    Error,
    builder::{Attribute, Builder},
    decompose::contrib::unpacked,
    onnx::{GraphProto, NodeProto, TensorProto, data_type},
};

/// Writes out `DequantizeLinear` of weights and of rows looked up in a quantised table, `GatherBlockQuantized` of
/// com.microsoft, and `MatMulInteger`, whose integers are exact in 32-bit floats but for the rounding of sums.
///
/// # Errors
/// When weights are quantised in a form that is not known, or cannot be read.
pub(super) fn write_out(graph: &mut GraphProto, opset: i64, folder: &Path) -> Result<(), Error> {
    let quantised = |node: &NodeProto| {
        matches!(node.op_type(), "DequantizeLinear" | "MatMulInteger") && node.domain().is_empty()
            || node.operator() == TABLE
    };
    if !graph.node.iter().any(quantised) {
        return Ok(());
    }
    let mut packed = as_bytes(graph);
    let whole_tables = whole_tables(graph, &mut packed)?;
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
            "GatherBlockQuantized" if quantised(node) => {
                let table = graph.initializer(input);
                let table =
                    table.ok_or_else(|| Error::at(node, "looks up rows of no fixed table"))?;
                let name = format!("{}/{input}", builder.named("table"));
                if !tables.contains_key(&name) {
                    let dequantised = &whole_tables[node.output[0].as_str()];
                    let from = (folder, &packed);
                    let table = numbers(graph, dequantised, table, &name, from)?;
                    tables.insert(name.clone(), table);
                }
                let (ids, rows) = (node.input(1).unwrap_or_default(), &*node.output[0]);
                builder.write("Gather", &[&name, ids], &[rows], &[]);
            }
            "DequantizeLinear" if quantised(node) => {
                let lookup = makers
                    .get(input)
                    .filter(|maker| maker.op_type() == "Gather");
                let table = lookup.and_then(|lookup| graph.initializer(lookup.input(0)?));
                if let (Some(lookup), Some(table)) = (lookup, table) {
                    let name = format!("{}/{}", builder.named("table"), table.name());
                    if !tables.contains_key(&name) {
                        tables.insert(
                            name.clone(),
                            numbers(graph, node, table, &name, (folder, &packed))?,
                        );
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
                            let table = numbers(graph, node, tensor, output, (folder, &packed))?;
                            tables.insert(output.to_owned(), table);
                        }
                        false => weight(&mut builder, graph, node, tensor, &packed)?,
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
        let known = |node: &NodeProto| {
            node.op_type() == "DequantizeLinear" && node.domain().is_empty()
                || node.operator() == TABLE
        };
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

/// The lookup in a table that is quantised in blocks.
const TABLE: &str = "com.microsoft:GatherBlockQuantized";

/// What makes the whole table of each lookup in a quantised one, by what the lookup makes; notes which tables hold two
/// numbers a byte, and writes out the zero points that are left out.
fn whole_tables(
    graph: &mut GraphProto,
    packed: &mut HashMap<String, Packed>,
) -> Result<HashMap<String, NodeProto>, Error> {
    let bytes: HashSet<String> = packed.keys().cloned().collect();
    let mut found = HashMap::new();
    let mut zeros = Vec::new();
    for node in graph.node.iter().filter(|node| node.operator() == TABLE) {
        let bits = node.int("bits", 4);
        let [from, axis, block] = [
            ("gather_axis", 0),
            ("quantize_axis", 1),
            ("block_size", 128),
        ]
        .map(|(name, usual)| node.int(name, usual));
        let tensor = |index: usize| graph.initializer(node.input(index)?);
        let known = from == 0 && matches!(bits, 4 | 8);
        let (Some(table), Some(scale), true) = (tensor(0), tensor(2), known) else {
            return Err(Error::at(
                node,
                "looks up other than the rows of a fixed table of 4 or 8 bits",
            ));
        };
        let stored = table.data_type() == data_type::UINT8 && !bytes.contains(table.name());
        let mut names = [table.name().to_owned(), scale.name().to_owned()].to_vec();
        if stored && bits == 4 {
            let zero = tensor(3).map(|zero| (zero, scale.dims.last()));
            if zero.is_some_and(|(_, blocks)| blocks.is_none_or(|blocks| blocks % 2 == 1)) {
                return Err(Error::at(node, "rows of an odd number of zero points"));
            }
            for tensor in [Some(table), zero.map(|(zero, _)| zero)]
                .into_iter()
                .flatten()
            {
                let mut dims = tensor.dims.clone();
                dims.iter_mut().rev().take(1).for_each(|last| *last *= 2);
                let signed = false;
                packed.insert(tensor.name().to_owned(), Packed { signed, dims });
            }
        }
        match node.input(3) {
            Some(zero) => names.push(zero.to_owned()),
            None if stored => {
                let name = format!("{}.zeros", node.output[0]);
                let middle = vec![1_u8 << (bits - 1); scale.elements()];
                let zero = TensorProto::of_raw(&name, data_type::UINT8, &scale.dims, middle);
                zeros.push(zero);
                names.push(name);
            }
            None => {}
        }
        let mut builder = Builder::beside(graph, "whole", 21);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let along = [
            ("axis", Attribute::Int(axis)),
            ("block_size", Attribute::Int(block)),
        ];
        builder.write("DequantizeLinear", &names, &[node.label()], &along);
        found.extend(
            builder
                .nodes
                .pop()
                .map(|whole| (node.output[0].clone(), whole)),
        );
    }
    graph.initializer.extend(zeros);
    Ok(found)
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
enum Scales {
    /// One for all numbers.
    One,
    /// One a place of an axis.
    Axis(usize),
    /// One for so many places of an axis that follow each other, at each place of the others.
    Blocks(usize, i64),
}

/// How the scales of a weight `[..dims]` lie.
fn scales(
    graph: &GraphProto,
    node: &NodeProto,
    data_type: i32,
    dims: &[i64],
) -> Result<Scales, Error> {
    let known = matches!(
        data_type,
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
    match node.int("block_size", 0) {
        0 if scale.elements() <= 1 => Ok(Scales::One),
        0 => Ok(Scales::Axis(axis.min(rank.saturating_sub(1)))),
        block => {
            let mut expected = dims.to_vec();
            let blocks = expected.get_mut(axis).filter(|_| block > 0);
            if let Some(places) = blocks {
                *places = *places / block + i64::from(*places % block != 0);
            }
            match expected == scale.dims && axis < rank && block > 0 {
                true => Ok(Scales::Blocks(axis, block)),
                false => Err(Error::at(
                    node,
                    format!("scales {:?} for blocks of {block} of {dims:?}", scale.dims),
                )),
            }
        }
    }
}

/// `(weight - zero) scale`, in the graph.
fn weight(
    builder: &mut Builder,
    graph: &GraphProto,
    node: &NodeProto,
    tensor: &TensorProto,
    packed: &HashMap<String, Packed>,
) -> Result<(), Error> {
    let own = packed.get(tensor.name());
    let dims = own.map_or(&tensor.dims, |packed| &packed.dims);
    let scales = scales(graph, node, tensor.data_type(), dims)?;
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

/// A table's numbers, dequantised as `node` does.
fn numbers(
    graph: &GraphProto,
    node: &NodeProto,
    table: &TensorProto,
    name: &str,
    (folder, packed): (&Path, &HashMap<String, Packed>),
) -> Result<TensorProto, Error> {
    let own = packed.get(table.name());
    let dims = own.map_or(&table.dims, |packed| &packed.dims);
    let scales = scales(graph, node, table.data_type(), dims)?;
    let factors = node.input(1).and_then(|name| graph.initializer(name));
    let factors = factors.map(|scale| scale.floats(folder)).transpose()?;
    let factors = factors.unwrap_or_default();
    let zeros = match node.input(2).map(|name| graph.initializer(name)) {
        None => Vec::new(),
        Some(Some(zero)) => integers(node, zero, packed, folder)?,
        Some(None) => {
            return Err(Error::at(
                node,
                "a table with zero points of its own making is not known",
            ));
        }
    };
    let place = |at: usize| match scales {
        Scales::One => 0,
        Scales::Axis(axis) => at / behind(dims, axis) % extent(dims, axis),
        Scales::Blocks(axis, block) => {
            let (inner, places, block) = (
                behind(dims, axis),
                extent(dims, axis),
                block.max(1) as usize,
            );
            let along = at / inner % places / block;
            (at / inner / places * places.div_ceil(block) + along) * inner + at % inner
        }
    };
    let of = |list: &[f32], at: usize| list.get(place(at)).copied();
    let number = |(at, value): (usize, &f32)| {
        (value - of(&zeros, at).unwrap_or(0.0)) * of(&factors, at).unwrap_or(1.0)
    };
    let whole = integers(node, table, packed, folder)?;
    let values: Vec<f32> = whole.iter().enumerate().map(number).collect();
    Ok(TensorProto::of_floats(name, dims, &values))
}

/// The whole numbers of a tensor of 4 or 8 bits.
fn integers(
    node: &NodeProto,
    tensor: &TensorProto,
    packed: &HashMap<String, Packed>,
    folder: &Path,
) -> Result<Vec<f32>, Error> {
    let bytes = tensor.little_endian(folder)?;
    let signed = |byte: &u8| f32::from(*byte as i8);
    Ok(match (packed.get(tensor.name()), tensor.data_type()) {
        (Some(Packed { signed, dims }), _) => {
            let halves = bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]);
            let number = |half: u8| match *signed && half > 7 {
                true => f32::from(half) - 16.0,
                false => f32::from(half),
            };
            let elements: i64 = dims.iter().product();
            halves.map(number).take(elements as usize).collect()
        }
        (None, data_type::INT8) => bytes.iter().map(signed).collect(),
        (None, data_type::UINT8) => bytes.iter().map(|&byte| f32::from(byte)).collect(),
        _ => {
            return Err(Error::at(
                node,
                "a table of other than 4-bit or 8-bit integers",
            ));
        }
    })
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
