//! Composite operators written out in primitives, so that sites and gradients have one form to know.

mod attention;
mod contrib;
mod precision;
mod product;
mod quantised;
mod rotation;
mod writer;

use std::{collections::HashSet, path::Path};

pub(crate) use self::quantised::unround;
use self::writer::Writer;
use crate::{
    Error,
    builder::{Attribute, Builder},
    facts::Facts,
    onnx::{GraphProto, NodeProto, data_type},
    wiring::Wiring,
};

/// The most negative finite 32-bit float: what hides a key.
pub(crate) const HIDDEN: f64 = f32::MIN as f64;

/// Moves the values of `Constant` nodes into initializers, as the TorchScript exporter writes hundreds of them.
///
/// # Errors
/// When a constant is kept in a form that is not a tensor or a list of numbers.
pub(crate) fn hoist_constants(graph: &mut GraphProto) -> Result<(), Error> {
    let nodes = std::mem::take(&mut graph.node);
    for node in nodes {
        if node.op_type() != "Constant" {
            graph.node.push(node);
            continue;
        }
        let tensor = constant(&node)
            .ok_or_else(|| Error::at(&node, "a constant that is no tensor or number"))?;
        graph.initializer.push(tensor);
    }
    Ok(())
}

fn constant(node: &NodeProto) -> Option<crate::onnx::TensorProto> {
    use crate::onnx::TensorProto;
    let name = node.output.first()?;
    let entry = node.attribute.first()?;
    Some(match entry.name() {
        "value" => TensorProto {
            name: Some(name.clone()),
            ..entry.t.clone()?
        },
        "value_int" => TensorProto::of_ints(name, &[], &[entry.i()]),
        "value_ints" => TensorProto::of_ints(name, &[entry.ints.len() as i64], &entry.ints),
        "value_float" => TensorProto::of_floats(name, &[], &[entry.f()]),
        "value_floats" => TensorProto::of_floats(name, &[entry.floats.len() as i64], &entry.floats),
        _ => return None,
    })
}

/// Writes out what needs no shapes: reduced precision, quantised weights and fused operators. Inputs and lookups are
/// found in what is left.
///
/// # Errors
/// When an operator is used in a form that has no rule here, or a tensor cannot be read.
pub(crate) fn write_out(graph: &mut GraphProto, opset: i64, folder: &Path) -> Result<(), Error> {
    precision::widen_floats(graph, folder)?;
    contrib::write_out(graph, opset)?;
    quantised::write_out(graph, opset, folder)
}

/// Writes out the attentions, rotary embeddings and products of ONNX (operator set 23) and of ONNX Runtime, whose
/// arithmetic depends on shapes, and returns the facts about what they became.
///
/// # Errors
/// When one of them is used in a form that has no rule here.
pub(crate) fn decompose(
    graph: &mut GraphProto,
    opset: i64,
    facts_of: impl Fn(&GraphProto) -> Facts,
) -> Result<Facts, Error> {
    let mut facts = facts_of(graph);
    let mut left = composites(graph).count();
    while left > 0 {
        pass(graph, opset, &facts)?;
        facts = facts_of(graph);
        let remaining = composites(graph).count();
        if remaining == left {
            let stuck = composites(graph).next();
            return Err(stuck.map_or_else(
                || Error::unusable("a composite operator is left"),
                |node| Error::at(node, "the shape of what it reads is not known"),
            ));
        }
        left = remaining;
    }
    Ok(facts)
}

type Writing = for<'a, 'b> fn(&'b mut Writer<'a>) -> Result<(), Error>;

/// How a composite operator is written out.
fn rule(node: &NodeProto, constants: &HashSet<&str>) -> Option<Writing> {
    Some(match (node.domain(), node.op_type()) {
        ("" | "ai.onnx", "RotaryEmbedding") => {
            |writer| rotary_embedding(writer.builder, writer.node)
        }
        ("" | "ai.onnx", "Attention") => {
            |writer| attention(writer.builder, writer.node, writer.facts)
        }
        ("com.microsoft", "Attention") => |writer| writer.packed_attention(),
        ("com.microsoft", "MultiHeadAttention") => |writer| writer.multi_head_attention(),
        ("com.microsoft", "GroupQueryAttention") => |writer| writer.group_query_attention(),
        ("com.microsoft", "RotaryEmbedding") => |writer| writer.rotary_embedding(),
        ("com.microsoft", "FusedMatMul") => {
            let weighted = node.input(1).is_some_and(|name| constants.contains(name));
            if weighted && node.int("transA", 0) == 0 {
                return None;
            }
            |writer| writer.fused_matmul()
        }
        _ => return None,
    })
}

fn constants(graph: &GraphProto) -> HashSet<&str> {
    let initializers = graph.initializer.iter();
    initializers.map(|tensor| tensor.name()).collect()
}

fn composites(graph: &GraphProto) -> impl Iterator<Item = &NodeProto> {
    let constants = constants(graph);
    let nodes = graph.node.iter();
    nodes.filter(move |node| rule(node, &constants).is_some())
}

/// Writes out every composite node whose inputs are known.
fn pass(graph: &mut GraphProto, opset: i64, facts: &Facts) -> Result<(), Error> {
    let mut builder = Builder::beside(graph, "plain", opset);
    let nodes = std::mem::take(&mut graph.node);
    let constants = constants(graph);
    for node in nodes {
        let mut inputs = node.input.iter().filter(|name| !name.is_empty());
        let known = inputs.all(|name| facts.get(name).is_some());
        match rule(&node, &constants).filter(|_| known) {
            Some(write) => write(&mut Writer {
                builder: &mut builder,
                node: &node,
                facts,
            })?,
            None => builder.nodes.push(node),
        }
    }
    builder.append_to(graph);
    Ok(())
}

/// Rewrites the repetition of key heads for grouped queries (`Unsqueeze`, `Expand`, `Reshape`) so that it takes the
/// number of tokens from the keys themselves: exporters take it from the ids, which a prefix does not lengthen.
pub(crate) fn loosen_repeats(graph: &mut GraphProto, opset: i64, facts: &Facts) {
    let mut builder = Builder::beside(graph, "repeat", opset);
    let wiring = Wiring::of(graph);
    let found: Vec<_> = (0..graph.node.len())
        .filter_map(|index| repeat_at(&wiring, facts, index))
        .collect();
    for repeat in found {
        let wide = builder.ints(&[1, 1, repeat.times, 1, 1]);
        let flat = builder.ints(&[0, repeat.heads, -1, repeat.head_dim]);
        graph.node[repeat.expand].input[1] = wide;
        graph.node[repeat.reshape].input[1] = flat;
        graph.node[repeat.reshape].attribute.clear();
    }
    builder.append_to(graph);
}

struct Repeat {
    expand: usize,
    reshape: usize,
    times: i64,
    heads: i64,
    head_dim: i64,
}

fn repeat_at(wiring: &Wiring, facts: &Facts, reshape: usize) -> Option<Repeat> {
    let node = &wiring.graph.node[reshape];
    let expand = wiring.producer_index(node.input(0)?)?;
    let unsqueeze = wiring.producer(wiring.graph.node[expand].input(0)?)?;
    let operators = [
        node.op_type(),
        wiring.graph.node[expand].op_type(),
        unsqueeze.op_type(),
    ];
    let wide = facts.get(node.input(0)?).filter(|fact| fact.rank() == 5)?;
    let flat = facts.get(&node.output[0]).filter(|fact| fact.rank() == 4)?;
    let (times, heads) = (wide.constant_dim(2)?, flat.constant_dim(1)?);
    let once = facts.get(&unsqueeze.output[0])?.constant_dim(2)? == 1;
    let repeats = operators == ["Reshape", "Expand", "Unsqueeze"]
        && once
        && wide.constant_dim(1)? * times == heads;
    repeats.then_some(Repeat {
        expand,
        reshape,
        times,
        heads,
        head_dim: flat.constant_dim(3)?,
    })
}

/// ONNX RotaryEmbedding-23 with caches `[batch, sequence, head_dim / 2]`: each half of a head is turned by the other.
fn rotary_embedding(builder: &mut Builder, node: &NodeProto) -> Result<(), Error> {
    let plain = node.int("interleaved", 0) == 0
        && node.int("rotary_embedding_dim", 0) == 0
        && node.input(3).is_none();
    let (true, [input, cosine, sine, ..]) = (plain, node.input.as_slice()) else {
        return Err(Error::at(
            node,
            "only rotary embeddings of whole heads with caches by position are known",
        ));
    };
    let heads = builder.ints(&[1]);
    let cosine = builder.apply("Unsqueeze", &[cosine, &heads], &[]);
    let sine = builder.apply("Unsqueeze", &[sine, &heads], &[]);
    let (left, right) = (builder.fresh(), builder.fresh());
    let halves = [
        ("axis", Attribute::Int(-1)),
        ("num_outputs", Attribute::Int(2)),
    ];
    builder.write("Split", &[input], &[&left, &right], &halves);
    let product = |builder: &mut Builder, a: &str, b: &str| builder.apply("Mul", &[a, b], &[]);
    let (a, b) = (
        product(builder, &left, &cosine),
        product(builder, &right, &sine),
    );
    let first = builder.apply("Sub", &[&a, &b], &[]);
    let (a, b) = (
        product(builder, &left, &sine),
        product(builder, &right, &cosine),
    );
    let second = builder.apply("Add", &[&a, &b], &[]);
    builder.write(
        "Concat",
        &[&first, &second],
        &[&node.output[0]],
        &[("axis", Attribute::Int(-1))],
    );
    Ok(())
}

/// ONNX Attention-23 on `[batch, heads, tokens, head_dim]`.
fn attention(builder: &mut Builder, node: &NodeProto, facts: &Facts) -> Result<(), Error> {
    let known = |index: usize| {
        node.input(index)
            .and_then(|name| facts.get(name))
            .filter(|fact| fact.rank() == 4)
    };
    let (Some(query), Some(key)) = (known(0), known(1)) else {
        return Err(Error::at(
            node,
            "queries and keys are not [batch, heads, tokens, head_dim]",
        ));
    };
    let caches = (4..node.input.len()).any(|index| node.input(index).is_some());
    if caches || node.output.iter().skip(1).any(|name| !name.is_empty()) {
        return Err(Error::at(
            node,
            "attention with a cache of its own is not known",
        ));
    }
    let heads = |fact: &crate::facts::Fact, axis| fact.constant_dim(axis);
    let (Some(q_heads), Some(kv_heads), Some(head_dim)) =
        (heads(query, 1), heads(key, 1), heads(key, 3))
    else {
        return Err(Error::at(
            node,
            "the number of heads or their size is not constant",
        ));
    };
    let data_type = query.data_type;
    let default_scale = 1.0 / (head_dim as f64).sqrt();
    let scale = node
        .attribute("scale")
        .map_or(default_scale, |entry| f64::from(entry.f()));
    let repeat = |builder: &mut Builder, name: &str| match q_heads / kv_heads {
        1 => name.to_owned(),
        times => repeat_heads(builder, name, times, q_heads, head_dim),
    };
    let keys = repeat(builder, &node.input[1]);
    let values = repeat(builder, &node.input[2]);
    let cap = f64::from(node.float("softcap", 0.0));
    let mut scores = scaled_scores(builder, data_type, [&node.input[0], &keys], (scale, cap));
    if let Some(mask) = node.input(3) {
        let truth = facts
            .get(mask)
            .is_some_and(|fact| fact.data_type == data_type::BOOL);
        let hidden = builder.scalar(data_type, HIDDEN);
        scores = match truth {
            true => builder.apply("Where", &[mask, &scores, &hidden], &[]),
            false => builder.apply("Add", &[&scores, mask], &[]),
        };
    }
    if node.int("is_causal", 0) == 1 {
        let causal = causal_mask(builder, &node.input[0], data_type);
        scores = builder.apply("Add", &[&scores, &causal], &[]);
    }
    let weights = builder.apply("Softmax", &[&scores], &[("axis", Attribute::Int(-1))]);
    builder.write("MatMul", &[&weights, &values], &[&node.output[0]], &[]);
    Ok(())
}

/// `scale Q K^T` of queries and keys `[batch, heads, tokens, head_dim]`, kept within `cap` where that is not 0.
fn scaled_scores(
    builder: &mut Builder,
    data_type: i32,
    [query, key]: [&str; 2],
    (scale, cap): (f64, f64),
) -> String {
    let scale = builder.scalar(data_type, scale);
    let scaled = builder.apply("Mul", &[query, &scale], &[]);
    let turned = [("perm", Attribute::Ints(vec![0, 1, 3, 2]))];
    let turned = builder.apply("Transpose", &[key], &turned);
    let scores = builder.apply("MatMul", &[&scaled, &turned], &[]);
    if cap == 0.0 {
        return scores;
    }
    let cap = builder.scalar(data_type, cap);
    let scores = builder.apply("Div", &[&scores, &cap], &[]);
    let scores = builder.apply("Tanh", &[&scores], &[]);
    builder.apply("Mul", &[&scores, &cap], &[])
}

fn repeat_heads(
    builder: &mut Builder,
    name: &str,
    times: i64,
    q_heads: i64,
    head_dim: i64,
) -> String {
    let axis = builder.ints(&[2]);
    let wide = builder.apply("Unsqueeze", &[name, &axis], &[]);
    let shape = builder.ints(&[1, 1, times, 1, 1]);
    let wide = builder.apply("Expand", &[&wide, &shape], &[]);
    let shape = builder.ints(&[0, q_heads, -1, head_dim]);
    builder.apply("Reshape", &[&wide, &shape], &[])
}

/// `[tokens, tokens]`: 0 up to the diagonal, hidden above it.
fn causal_mask(builder: &mut Builder, query: &str, data_type: i32) -> String {
    let shape = builder.apply("Shape", &[query], &[]);
    let axis = builder.ints(&[2, 2]);
    let square = builder.apply("Gather", &[&shape, &axis], &[]);
    let hidden = builder.scalar(data_type, HIDDEN);
    let full = builder.apply("Expand", &[&hidden, &square], &[]);
    let above = builder.scalar(data_type::INT64, 1.0);
    builder.apply("Trilu", &[&full, &above], &[("upper", Attribute::Int(1))])
}
