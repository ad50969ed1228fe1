//! Chosen rows instead of all: a choice of tokens made as early as the graph allows.
//!
//! A head reads few rows of the last layer. What works token by token is done for those alone; in the last attention
//! the queries are chosen, while keys and values stay whole.

mod needs;
mod path;

use std::collections::HashMap;

use crate::{
    Error,
    builder::{Attribute, Builder},
    facts::{Fact, Facts},
    onnx::{GraphProto, data_type},
    sizes,
    wiring::Wiring,
};

pub(crate) use needs::Tokens;
pub(crate) use path::Plan;

/// Appends the product of `choose` and `value` `[batch, sequence, width]` and returns its name `[batch, rows, width]`.
///
/// Each row of `choose` `[batch, rows, sequence]` holds a single 1, which chooses a token, or zeros alone, which make
/// a row of zeros. The choice is made as early as it pays: before every node that works token by token and whose
/// output nobody needs whole; shapes are read from the graph's inputs, so that they need nothing whole. New nodes go
/// behind those of the graph, and [`prune`] drops those that are no longer read.
///
/// [`prune`]: crate::splice::prune
///
/// # Errors
/// When the shape of `value` is not known, or is no `[batch, sequence, width]`.
pub fn select(
    graph: &mut GraphProto,
    opset: i64,
    facts: &Facts,
    value: &str,
    choose: &str,
) -> Result<String, Error> {
    if facts.get(value).is_none_or(|fact| fact.rank() != 3) {
        return Err(Error::unusable(format!(
            "rows of {value}, which is no known [batch, sequence, width]"
        )));
    }
    sizes::read_from_inputs(graph, opset, facts);
    let mut builder = Builder::beside(graph, "chosen", opset);
    let wiring = Wiring::of(graph);
    let wanted = (value.to_owned(), Tokens::Along(1));
    let plan = Plan::of(&wiring, facts, std::slice::from_ref(&wanted), |_| false);
    if plan.is_empty() {
        let chosen = builder.apply("MatMul", &[choose, value], &[]);
        builder.append_to(graph);
        return Ok(chosen);
    }
    let choice = Choice::write(&mut builder, choose);
    let mut rows = HashMap::new();
    for (value, tokens) in &plan.sources {
        let fact = facts.get(value);
        let fact =
            fact.ok_or_else(|| Error::unusable(format!("the shape of {value} is not known")))?;
        let chosen = choice.of(&mut builder, value, *tokens, fact);
        rows.insert((value.clone(), *tokens), chosen);
    }
    let rows = plan.write(&wiring, facts, &mut builder, rows, &choice.sizes)?;
    let chosen = &rows[&wanted];
    let there = builder.reduce("ReduceSum", choose, &[-1], true);
    let chosen = builder.apply("Mul", &[chosen, &there], &[]);
    builder.append_to(graph);
    Ok(chosen)
}

/// The chosen tokens; a row that chooses none has the first instead, so that nothing on the way divides by zero.
struct Choice {
    /// `[batch, rows]`.
    indices: String,
    /// `[batch, rows, sequence]`.
    one_hot: String,
    /// The sizes of `one_hot`.
    sizes: String,
}

impl Choice {
    fn write(builder: &mut Builder, choose: &str) -> Self {
        let last = [
            ("axis", Attribute::Int(-1)),
            ("keepdims", Attribute::Int(0)),
        ];
        let indices = builder.apply("ArgMax", &[choose], &last);
        let sizes = builder.apply("Shape", &[choose], &[]);
        let third = builder.ints(&[2]);
        let depth = builder.apply("Gather", &[&sizes, &third], &[]);
        let off_on = builder.floats(&[0.0, 1.0]);
        let one_hot = builder.apply("OneHot", &[&indices, &depth, &off_on], &last[..1]);
        Self {
            indices,
            one_hot,
            sizes,
        }
    }

    /// The chosen rows of a value.
    fn of(&self, builder: &mut Builder, value: &str, tokens: Tokens, fact: &Fact) -> String {
        match tokens {
            Tokens::Along(axis) => self.along(builder, value, axis, fact),
            Tokens::Shared(axis, lead) => {
                let leading = builder.ints(&(0..lead as i64).collect::<Vec<_>>());
                let whole = builder.apply("Unsqueeze", &[value, &leading], &[]);
                let mut fact = fact.clone();
                for shape in &mut fact.shapes {
                    shape.splice(0..0, vec![1; lead]);
                }
                self.along(builder, &whole, axis + lead, &fact)
            }
            Tokens::Merged => {
                let (start, end) = (builder.ints(&[0]), builder.ints(&[1]));
                let batch = builder.apply("Slice", &[&self.sizes, &start, &end], &[]);
                let width = builder.ints(&[-1, fact.constant_dim(1).unwrap_or(0)]);
                let shape =
                    builder.apply("Concat", &[&batch, &width], &[("axis", Attribute::Int(0))]);
                let apart = builder.apply("Reshape", &[value, &shape], &[]);
                let chosen = builder.apply("MatMul", &[&self.one_hot, &apart], &[]);
                builder.apply("Reshape", &[&chosen, &width], &[])
            }
        }
    }

    /// A product where every element is finite and may have a gradient; masks, which hide keys by infinities or
    /// truth values, are picked.
    fn along(&self, builder: &mut Builder, value: &str, axis: usize, fact: &Fact) -> String {
        let rank = fact.rank();
        if fact.is_float() && axis + 1 < rank && fact.constant_dim(rank - 1).is_some() {
            moved(builder, value, (axis, rank - 2), rank, |builder, value| {
                self.multiplied(builder, value, fact.data_type, rank)
            })
        } else {
            let value = self.spread(builder, value, fact);
            moved(builder, &value, (axis, 1), rank, |builder, value| {
                self.picked(builder, value)
            })
        }
    }

    fn multiplied(&self, builder: &mut Builder, value: &str, element: i32, rank: usize) -> String {
        let mut one_hot = self.one_hot.clone();
        if element != data_type::FLOAT {
            one_hot = builder.cast(&one_hot, element);
        }
        if rank > 3 {
            let between = builder.ints(&(1..rank as i64 - 2).collect::<Vec<_>>());
            one_hot = builder.apply("Unsqueeze", &[&one_hot, &between], &[]);
        }
        builder.apply("MatMul", &[&one_hot, value], &[])
    }

    /// The tokens' dimension is the second.
    fn picked(&self, builder: &mut Builder, value: &str) -> String {
        let last = builder.ints(&[-1]);
        let indices = builder.apply("Unsqueeze", &[&self.indices, &last], &[]);
        builder.apply(
            "GatherND",
            &[value, &indices],
            &[("batch_dims", Attribute::Int(1))],
        )
    }

    /// The value once for each row of the batch, where it is the same for all.
    fn spread(&self, builder: &mut Builder, value: &str, fact: &Fact) -> String {
        if fact.constant_dim(0) != Some(1) {
            return value.to_owned();
        }
        let (start, end) = (builder.ints(&[0]), builder.ints(&[1]));
        let batch = builder.apply("Slice", &[&self.sizes, &start, &end], &[]);
        let rest = builder.ints(&vec![1; fact.rank() - 1]);
        let shape = builder.apply("Concat", &[&batch, &rest], &[("axis", Attribute::Int(0))]);
        builder.apply("Expand", &[value, &shape], &[])
    }
}

/// Swaps two dimensions before and after `work`.
fn moved(
    builder: &mut Builder,
    value: &str,
    (from, to): (usize, usize),
    rank: usize,
    work: impl FnOnce(&mut Builder, &str) -> String,
) -> String {
    if from == to {
        return work(builder, value);
    }
    let mut perm: Vec<i64> = (0..rank as i64).collect();
    perm.swap(from, to);
    let swap = [("perm", Attribute::Ints(perm))];
    let value = builder.apply("Transpose", &[value], &swap);
    let worked = work(builder, &value);
    builder.apply("Transpose", &[&worked], &swap)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::ValueInfoProto;

    type Build = fn(&mut Builder) -> String;

    /// `x` [batch, sequence, 4] under the nodes of `build`, whose last value is chosen from.
    fn operators(build: impl Fn(&mut Builder) -> String) -> Vec<String> {
        let float = |name, dims: &[&str]| ValueInfoProto::tensor(name, data_type::FLOAT, dims);
        let mut graph = GraphProto {
            input: vec![
                float("x", &["batch", "sequence", "4"]),
                float("choose", &["batch", "rows", "sequence"]),
            ],
            ..GraphProto::default()
        };
        let mut builder = Builder::beside(&graph, "t", 17);
        let value = build(&mut builder);
        builder.append_to(&mut graph);
        let before = graph.node.len();
        let sizes = [(2, 5, 3), (3, 7, 4)].map(|(batch, sequence, rows)| {
            HashMap::from([
                ("x".to_owned(), vec![batch, sequence, 4]),
                ("choose".to_owned(), vec![batch, rows, sequence]),
            ])
        });
        let facts = Facts::of(&graph, &sizes);
        let chosen = select(&mut graph, 17, &facts, &value, "choose").unwrap();
        let facts = Facts::of(&graph, &sizes);
        assert_eq!(facts.get(&chosen).unwrap().shapes, [[2, 3, 4], [3, 4, 4]]);
        let new = graph.node[before..].iter();
        new.map(|node| node.op_type().to_owned()).collect()
    }

    #[test]
    fn the_choice_is_made_before_what_works_row_by_row() {
        let choice = ["ArgMax", "Shape", "Gather", "OneHot", "MatMul"];
        let mask = ["ReduceSum", "Mul"];
        let chosen = |own: &[&'static str]| [&choice[..], own, &mask[..]].concat();
        let table: &[(Build, Vec<&str>)] = &[
            (
                |builder| {
                    let bias = builder.floats(&[1.0; 4]);
                    let sum = builder.apply("Add", &["x", &bias], &[]);
                    builder.apply("Tanh", &[&sum], &[])
                },
                chosen(&["Add", "Tanh"]),
            ),
            (
                |builder| {
                    let apart = builder.ints(&[0, 0, 2, 2]);
                    let heads = builder.apply("Reshape", &["x", &apart], &[]);
                    let together = builder.ints(&[0, 0, -1]);
                    builder.apply("Reshape", &[&heads, &together], &[])
                },
                chosen(&["Reshape", "Reshape"]),
            ),
            (
                |builder| {
                    let outputs = ["bytes", "step", "zero"];
                    builder.write("DynamicQuantizeLinear", &["x"], &outputs, &[]);
                    let rounded = builder.cast("bytes", data_type::FLOAT);
                    builder.apply("Tanh", &[&rounded], &[])
                },
                chosen(&["Tanh"]),
            ),
            (|_| "x".into(), vec!["MatMul"]),
            (
                |builder| {
                    let axis = builder.scalar(data_type::INT64, 1.0);
                    builder.apply("CumSum", &["x", &axis], &[])
                },
                vec!["MatMul"],
            ),
            (
                |builder| builder.apply("Softmax", &["x"], &[("axis", Attribute::Int(1))]),
                vec!["MatMul"],
            ),
        ];
        for (index, (build, expected)) in table.iter().enumerate() {
            assert_eq!(operators(build), *expected, "case {index}");
        }
    }

    #[test]
    fn what_is_needed_whole_is_made_once() {
        let found = operators(|builder| {
            let whole = builder.apply("Tanh", &["x"], &[]);
            let turned = [("perm", Attribute::Ints(vec![0, 2, 1]))];
            let turned = builder.apply("Transpose", &[&whole], &turned);
            let scores = builder.apply("MatMul", &[&whole, &turned], &[]);
            builder.apply("MatMul", &[&scores, &whole], &[])
        });
        assert_eq!(found.iter().filter(|name| *name == "Tanh").count(), 0);
        assert_eq!(found.iter().filter(|name| *name == "MatMul").count(), 3);
    }
}
