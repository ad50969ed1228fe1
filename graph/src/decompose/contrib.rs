//! ONNX Runtime's fused operators (domain `com.microsoft`) whose arithmetic needs no shapes, as its `ContribOperators.md`
//! defines them.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use crate::{
    Error,
    builder::{Attribute, Builder},
    onnx::{GraphProto, NodeProto, TensorProto, data_type},
};

/// Epsilon of the normalisations that name none.
const EPSILON: f32 = 1e-12;

type Writing = fn(&mut Builder, &NodeProto, &GraphProto) -> Result<(), Error>;

/// The operators that are written out without a look at shapes; sorted.
const WRITTEN_OUT: &[(&str, Writing)] = &[
    ("BiasAdd", bias_add),
    ("BiasGelu", bias_gelu),
    ("EmbedLayerNormalization", embed_layer_normalization),
    ("FastGelu", fast_gelu),
    ("FusedGemm", fused_gemm),
    ("Gelu", bias_gelu),
    ("MatMulNBits", matmul_n_bits),
    ("QuickGelu", quick_gelu),
    (
        "SimplifiedLayerNormalization",
        simplified_layer_normalization,
    ),
    ("SkipLayerNormalization", skip_layer_normalization),
    ("SkipSimplifiedLayerNormalization", skip_layer_normalization),
];

/// Writes out every operator of the table.
///
/// # Errors
/// When one is used in a form that is not known.
pub(super) fn write_out(graph: &mut GraphProto, opset: i64) -> Result<(), Error> {
    let found = |node: &NodeProto| {
        let own = node.domain() == "com.microsoft"
            || node.op_type() == "SimplifiedLayerNormalization" && node.domain().is_empty();
        let row = WRITTEN_OUT.binary_search_by(|row| row.0.cmp(node.op_type()));
        row.ok().filter(|_| own).map(|row| WRITTEN_OUT[row].1)
    };
    if !graph.node.iter().any(|node| found(node).is_some()) {
        return Ok(());
    }
    let mut builder = Builder::beside(graph, "unfused", opset);
    for node in std::mem::take(&mut graph.node) {
        match found(&node) {
            Some(write) => write(&mut builder, &node, graph)?,
            None => builder.nodes.push(node),
        }
    }
    builder.append_to(graph);
    Ok(())
}

fn required(node: &NodeProto, index: usize) -> Result<&str, Error> {
    let input = node.input(index);
    input.ok_or_else(|| Error::at(node, format!("input {index} is left out")))
}

fn named_output(node: &NodeProto, index: usize) -> Option<&str> {
    let output = node.output.get(index).map(String::as_str);
    output.filter(|name| !name.is_empty())
}

fn number(builder: &mut Builder, value: f64) -> String {
    builder.scalar(data_type::FLOAT, value)
}

/// `A + bias + skip`.
fn bias_add(builder: &mut Builder, node: &NodeProto, _: &GraphProto) -> Result<(), Error> {
    let sum = builder.apply("Add", &[required(node, 0)?, required(node, 1)?], &[]);
    let skip = required(node, 2)?;
    builder.write("Add", &[&sum, skip], &[&node.output[0]], &[]);
    Ok(())
}

fn with_bias(builder: &mut Builder, node: &NodeProto) -> Result<String, Error> {
    let input = required(node, 0)?;
    Ok(match node.input(1) {
        Some(bias) => builder.apply("Add", &[input, bias], &[]),
        None => input.to_owned(),
    })
}

/// `x (1 + erf(x / sqrt(2))) / 2`.
fn bias_gelu(builder: &mut Builder, node: &NodeProto, _: &GraphProto) -> Result<(), Error> {
    let input = with_bias(builder, node)?;
    let (root, one, half) = (
        number(builder, FRAC_1_SQRT_2),
        number(builder, 1.0),
        number(builder, 0.5),
    );
    let scaled = builder.apply("Mul", &[&input, &root], &[]);
    let error = builder.apply("Erf", &[&scaled], &[]);
    let level = builder.apply("Add", &[&error, &one], &[]);
    let halved = builder.apply("Mul", &[&input, &half], &[]);
    builder.write("Mul", &[&halved, &level], &[&node.output[0]], &[]);
    Ok(())
}

/// `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`.
fn fast_gelu(builder: &mut Builder, node: &NodeProto, _: &GraphProto) -> Result<(), Error> {
    let input = with_bias(builder, node)?;
    let (root, cubic) = (
        number(builder, (2.0 / PI).sqrt()),
        number(builder, 0.044715),
    );
    let (one, half) = (number(builder, 1.0), number(builder, 0.5));
    let square = builder.apply("Mul", &[&input, &input], &[]);
    let inner = builder.apply("Mul", &[&square, &cubic], &[]);
    let inner = builder.apply("Add", &[&inner, &one], &[]);
    let inner = builder.apply("Mul", &[&inner, &input], &[]);
    let inner = builder.apply("Mul", &[&inner, &root], &[]);
    let tanh = builder.apply("Tanh", &[&inner], &[]);
    let level = builder.apply("Add", &[&tanh, &one], &[]);
    let halved = builder.apply("Mul", &[&input, &half], &[]);
    builder.write("Mul", &[&halved, &level], &[&node.output[0]], &[]);
    Ok(())
}

/// `Gemm` with an activation behind it.
fn fused_gemm(builder: &mut Builder, node: &NodeProto, _: &GraphProto) -> Result<(), Error> {
    let activation = node.text("activation", "");
    if !matches!(activation, "Relu" | "Sigmoid" | "Tanh") {
        return Err(Error::at(
            node,
            format!("the activation {activation:?} is not known"),
        ));
    }
    let product = builder.fresh();
    let gemm = NodeProto {
        op_type: Some("Gemm".into()),
        domain: None,
        output: vec![product.clone()],
        attribute: (node.attribute.iter())
            .filter(|entry| !entry.name().starts_with("activation"))
            .cloned()
            .collect(),
        ..node.clone()
    };
    builder.nodes.push(gemm);
    builder.write(activation, &[&product], &[&node.output[0]], &[]);
    Ok(())
}

/// `x sigmoid(alpha x)`.
fn quick_gelu(builder: &mut Builder, node: &NodeProto, _: &GraphProto) -> Result<(), Error> {
    let input = required(node, 0)?;
    let alpha = number(builder, f64::from(node.float("alpha", 1.702)));
    let scaled = builder.apply("Mul", &[input, &alpha], &[]);
    let gate = builder.apply("Sigmoid", &[&scaled], &[]);
    builder.write("Mul", &[input, &gate], &[&node.output[0]], &[]);
    Ok(())
}

/// `x / sqrt(mean(x^2) + epsilon) * scale`.
fn root_mean_square(builder: &mut Builder, input: &str, scale: &str, epsilon: f32, output: &str) {
    let epsilon = number(builder, f64::from(epsilon));
    let square = builder.apply("Mul", &[input, input], &[]);
    let mean = builder.reduce("ReduceMean", &square, &[-1], true);
    let mean = builder.apply("Add", &[&mean, &epsilon], &[]);
    let deviation = builder.apply("Sqrt", &[&mean], &[]);
    let normal = builder.apply("Div", &[input, &deviation], &[]);
    builder.write("Mul", &[&normal, scale], &[output], &[]);
}

fn simplified_layer_normalization(
    builder: &mut Builder,
    node: &NodeProto,
    _: &GraphProto,
) -> Result<(), Error> {
    if node.int("axis", -1) != -1 {
        return Err(Error::at(node, "normalises over more than the last axis"));
    }
    let (input, scale) = (required(node, 0)?, required(node, 1)?);
    let epsilon = node.float("epsilon", 1e-5);
    root_mean_square(builder, input, scale, epsilon, &node.output[0]);
    Ok(())
}

/// Normalises `input + skip + bias`, with a mean (inputs 2 and 3 are scale and shift) or without (2 is the scale).
fn skip_layer_normalization(
    builder: &mut Builder,
    node: &NodeProto,
    _: &GraphProto,
) -> Result<(), Error> {
    let simplified = node.op_type() == "SkipSimplifiedLayerNormalization";
    let sum = [required(node, 0)?, required(node, 1)?];
    let bias = node.input(if simplified { 3 } else { 4 });
    let whole = named_output(node, 3).map_or_else(|| builder.fresh(), str::to_owned);
    match bias {
        None => builder.write("Add", &sum, &[&whole], &[]),
        Some(bias) => {
            let sum = builder.apply("Add", &sum, &[]);
            builder.write("Add", &[&sum, bias], &[&whole], &[]);
        }
    }
    let (scale, epsilon) = (required(node, 2)?, node.float("epsilon", EPSILON));
    match simplified {
        true => root_mean_square(builder, &whole, scale, epsilon, &node.output[0]),
        false => normalise(builder, &whole, node, (2, 3))?,
    }
    Ok(())
}

/// Layer normalisation of `input` by the scale and shift that `node` has at `places`.
fn normalise(
    builder: &mut Builder,
    input: &str,
    node: &NodeProto,
    places: (usize, usize),
) -> Result<(), Error> {
    let mut inputs = vec![input, required(node, places.0)?];
    inputs.extend(node.input(places.1));
    let attributes = [
        ("axis", Attribute::Int(-1)),
        ("epsilon", Attribute::Float(node.float("epsilon", EPSILON))),
    ];
    let output = node.output[0].as_str();
    builder.write("LayerNormalization", &inputs, &[output], &attributes);
    Ok(())
}

fn embed_layer_normalization(
    builder: &mut Builder,
    node: &NodeProto,
    _: &GraphProto,
) -> Result<(), Error> {
    let ids = required(node, 0)?;
    let words = builder.apply("Gather", &[required(node, 2)?, ids], &[]);
    let positions = match node.input(8) {
        Some(positions) => positions.to_owned(),
        None => {
            let shape = builder.apply("Shape", &[ids], &[]);
            let [zero, one] = [0.0, 1.0].map(|value| builder.scalar(data_type::INT64, value));
            let tokens = builder.apply("Gather", &[&shape, &one], &[]);
            builder.apply("Range", &[&zero, &tokens, &one], &[])
        }
    };
    let places = builder.apply("Gather", &[required(node, 3)?, &positions], &[]);
    let mut sum = builder.apply("Add", &[&words, &places], &[]);
    if let (Some(segments), Some(table)) = (node.input(1), node.input(4)) {
        let rows = builder.apply("Gather", &[table, segments], &[]);
        sum = builder.apply("Add", &[&sum, &rows], &[]);
    }
    if let Some(whole) = named_output(node, 2) {
        builder.write("Identity", &[&sum], &[whole], &[]);
    }
    if let (Some(lengths), Some(mask)) = (named_output(node, 1), node.input(7)) {
        let counted = builder.reduce("ReduceSum", mask, &[1], false);
        let to = [("to", Attribute::Int(i64::from(data_type::INT32)))];
        builder.write("Cast", &[&counted], &[lengths], &to);
    }
    normalise(builder, &sum, node, (5, 6))
}

/// `A B^T` with `B` `[N, blocks, bytes]` of 4 or 8 bits an element, the lower half of a byte first, and a scale and a
/// zero point a block.
fn matmul_n_bits(builder: &mut Builder, node: &NodeProto, graph: &GraphProto) -> Result<(), Error> {
    let sizes = ["N", "K", "block_size"].map(|name| node.int(name, 0));
    let ([rows, inner, block], bits) = (sizes, node.int("bits", 4));
    if !matches!(bits, 4 | 8) || node.input(4).is_some() || sizes.contains(&0) {
        return Err(Error::at(
            node,
            "only weights of 4 or 8 bits in blocks, none of them reordered, are known",
        ));
    }
    let blocks = (inner + block - 1) / block;
    let weight = unpacked(builder, required(node, 1)?, bits, &[rows, blocks, block]);
    let by_block = builder.ints(&[rows, blocks, 1]);
    let scales = builder.apply("Reshape", &[required(node, 2)?, &by_block], &[]);
    let packed = |tensor: &TensorProto| tensor.data_type() == data_type::UINT8;
    let zeros = match node.input(3) {
        None => number(builder, f64::from(1 << (bits - 1))),
        Some(name) if graph.initializer(name).is_none_or(packed) => {
            let bytes = (blocks * bits + 7) / 8;
            let all = unpacked(builder, name, bits, &[rows, bytes * 8 / bits]);
            let [start, end, axis] = [0, blocks, 1].map(|value| builder.ints(&[value]));
            let own = builder.apply("Slice", &[&all, &start, &end, &axis], &[]);
            builder.apply("Reshape", &[&own, &by_block], &[])
        }
        Some(name) => builder.apply("Reshape", &[name, &by_block], &[]),
    };
    let weight = builder.apply("Sub", &[&weight, &zeros], &[]);
    let weight = builder.apply("Mul", &[&weight, &scales], &[]);
    let flat = builder.ints(&[rows, blocks * block]);
    let weight = builder.apply("Reshape", &[&weight, &flat], &[]);
    let [start, end, axis] = [0, inner, 1].map(|value| builder.ints(&[value]));
    let weight = builder.apply("Slice", &[&weight, &start, &end, &axis], &[]);
    let turn = [("perm", Attribute::Ints(vec![1, 0]))];
    let weight = builder.apply("Transpose", &[&weight], &turn);
    let (input, output) = (required(node, 0)?, node.output[0].as_str());
    match node.input(5) {
        None => builder.write("MatMul", &[input, &weight], &[output], &[]),
        Some(bias) => {
            let product = builder.apply("MatMul", &[input, &weight], &[]);
            builder.write("Add", &[&product, bias], &[output], &[]);
        }
    }
    Ok(())
}

/// The elements of bytes as floats of a shape, the lower half of a byte first.
pub(super) fn unpacked(builder: &mut Builder, bytes: &str, bits: i64, shape: &[i64]) -> String {
    let whole = builder.cast(bytes, data_type::FLOAT);
    let shape = builder.ints(shape);
    if bits == 8 {
        return builder.apply("Reshape", &[&whole, &shape], &[]);
    }
    let (part, sixteen) = (number(builder, 1.0 / 16.0), number(builder, 16.0));
    let upper = builder.apply("Mul", &[&whole, &part], &[]);
    let upper = builder.apply("Floor", &[&upper], &[]);
    let shifted = builder.apply("Mul", &[&upper, &sixteen], &[]);
    let lower = builder.apply("Sub", &[&whole, &shifted], &[]);
    let last = builder.ints(&[-1]);
    let halves = [lower, upper].map(|half| builder.apply("Unsqueeze", &[&half, &last], &[]));
    let axis = [("axis", Attribute::Int(-1))];
    let pairs = builder.apply("Concat", &[&halves[0], &halves[1]], &axis);
    builder.apply("Reshape", &[&pairs, &shape], &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted() {
        assert!(WRITTEN_OUT.is_sorted_by_key(|row| row.0));
    }
}
