//! Dropout (Srivastava et al. 2014) where bases have it while they are trained, of which an export keeps nothing: at attention
//! weights, at what a sublayer adds to the residual stream (Vaswani et al. 2017, section 5.4) and at the rows that a head
//! reads (Devlin et al. 2019).
//!
//! What is kept is drawn outside of the graph, so that a training that is resumed goes on as it would have.

use preface_graph::{
    builder::Builder,
    facts::Facts,
    onnx::{NodeProto, data_type},
    order,
    wiring::Wiring,
};

use super::Assembly;
use crate::heads::Reads;

/// What each number is multiplied by, `[candidates, numbers]`: 0, or what keeps the mean. Places read it from different
/// beginnings on.
pub const KEPT: &str = "kept";

/// Numbers of [`KEPT`] between the beginnings of two places.
const STRIDE: usize = 7919;
/// More numbers than any place has.
const MANY: i64 = 1 << 40;
/// Nodes that change a shape alone.
const SHAPES: [&str; 3] = ["Reshape", "Squeeze", "Unsqueeze"];

/// Where a graph has dropout.
#[derive(Clone, Copy, Debug, Default)]
pub struct Places {
    count: usize,
    /// Heads of the attention weights that have most.
    heads: usize,
    /// Width of the widest rows.
    width: usize,
}

impl Places {
    /// Numbers of [`KEPT`] for so many rows of a candidate, each of at most `tokens`, that see at most `seen`.
    pub fn numbers(self, rows: usize, tokens: usize, seen: usize) -> usize {
        self.count * STRIDE + rows * tokens * self.width.max(self.heads * seen)
    }
}

/// A value that loses numbers, for the node that reads it or for all.
struct Place {
    value: String,
    reader: Option<usize>,
}

impl Assembly<'_> {
    /// Puts dropout into the graph as it is now, before a head that reads `features`.
    pub(super) fn drop_out(&mut self, reads: Reads, features: &str) {
        let facts = self.facts();
        let graph = self.model.graph.get_or_insert_default();
        let (mut places, mut sizes) = places(&Wiring::of(graph), &facts);
        if let (Reads::Hidden, Some(width)) = (reads, last(&facts, features)) {
            sizes.width = sizes.width.max(width);
            places.push(Place {
                value: features.to_owned(),
                reader: None,
            });
        }
        sizes.count = places.len();
        self.dropout = sizes;
        let candidates = self.extent.candidates as i64;
        let dims = [&candidates.to_string(), "numbers"];
        let shapes = [vec![candidates, MANY], vec![candidates, MANY]];
        let kept = self.take(KEPT, data_type::FLOAT, &dims, shapes);
        for (index, Place { value, reader }) in places.into_iter().enumerate() {
            let element = facts
                .get(&value)
                .map_or(data_type::FLOAT, |fact| fact.data_type);
            let factors = factors(&mut self.builder, &kept, &value, candidates, index);
            let factors = match element {
                data_type::FLOAT => factors,
                _ => self.builder.cast(&factors, element),
            };
            let dropped = self.builder.apply("Mul", &[&value, &factors], &[]);
            let nodes = self.graph().node.iter_mut().enumerate();
            nodes
                .filter(|(at, _)| reader.is_none_or(|reader| reader == *at))
                .flat_map(|(_, node)| &mut node.input)
                .filter(|input| **input == value)
                .for_each(|input| input.clone_from(&dropped));
        }
        self.flush();
        order::sort(self.graph());
    }
}

/// What the numbers of `value` are multiplied by, in its shape; its first dimension counts rows of all candidates.
fn factors(
    builder: &mut Builder,
    kept: &str,
    value: &str,
    candidates: i64,
    index: usize,
) -> String {
    let (size, candidates) = (
        builder.apply("Size", &[value], &[]),
        builder.ints(&[candidates]),
    );
    let count = builder.apply("Div", &[&size, &candidates], &[]);
    let start = builder.ints(&[(index * STRIDE) as i64]);
    let end = builder.apply("Add", &[&start, &count], &[]);
    let axis = builder.ints(&[1]);
    let part = builder.apply("Slice", &[kept, &start, &end, &axis], &[]);
    let shape = builder.apply("Shape", &[value], &[]);
    builder.apply("Reshape", &[&part, &shape], &[])
}

/// Attention weights `[rows, heads, tokens, seen]` for all that read them, and what sublayers add, for the sum alone.
fn places(wiring: &Wiring, facts: &Facts) -> (Vec<Place>, Places) {
    let (mut places, mut sizes) = (Vec::new(), Places::default());
    for (index, node) in wiring.graph.node.iter().enumerate() {
        let [output] = node.output.as_slice() else {
            continue;
        };
        let Some(fact) = facts.get(output) else {
            continue;
        };
        match node.op_type() {
            "Softmax" if fact.rank() == 4 => {
                let Some(heads) = fact.constant_dim(1) else {
                    continue;
                };
                sizes.heads = sizes.heads.max(heads as usize);
                places.push(Place {
                    value: output.clone(),
                    reader: None,
                });
            }
            "Add" => {
                let Some((value, width)) = added(wiring, facts, node).zip(last(facts, output))
                else {
                    continue;
                };
                sizes.width = sizes.width.max(width);
                places.push(Place {
                    value: value.to_owned(),
                    reader: Some(index),
                });
            }
            _ => {}
        }
    }
    (places, sizes)
}

/// The width of the rows of a value, where it is always the same.
fn last(facts: &Facts, value: &str) -> Option<usize> {
    let fact = facts.get(value)?;
    let width = fact.constant_dim(fact.rank().checked_sub(1)?)?;
    usize::try_from(width).ok()
}

/// The one of two summands, rows of one shape, that is a product with a weight.
fn added<'a>(wiring: &Wiring<'a>, facts: &Facts, sum: &'a NodeProto) -> Option<&'a str> {
    let [one, other] = sum.input.as_slice() else {
        return None;
    };
    let shape = |value: &str| facts.get(value).map(|fact| &fact.shapes);
    if shape(one)? != shape(other)? || facts.get(one)?.rank() < 2 {
        return None;
    }
    match (is_projection(wiring, one), is_projection(wiring, other)) {
        (true, false) => Some(one),
        (false, true) => Some(other),
        _ => None,
    }
}

/// Whether `value` is a product with a weight, with or without a bias.
fn is_projection<'a>(wiring: &Wiring<'a>, value: &'a str) -> bool {
    let maker = |value: &'a str| wiring.producer(wiring.origin(value, &SHAPES));
    let is_weight = |value: &String| wiring.initializer(value).is_some();
    let is_product = |node: &NodeProto| {
        matches!(node.op_type(), "MatMul" | "Gemm") && node.input.iter().skip(1).any(is_weight)
    };
    let Some(node) = maker(value) else {
        return false;
    };
    let biased = node.op_type() == "Add" && node.input.iter().any(is_weight);
    let product = node.input.iter().find(|input| !is_weight(input));
    match product.filter(|_| biased) {
        Some(product) => maker(product).is_some_and(is_product),
        None => is_product(node),
    }
}
