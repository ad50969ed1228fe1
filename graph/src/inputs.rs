//! The part that each graph input plays, found from where it leads.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::{
    Error,
    builder::Builder,
    facts::Facts,
    onnx::{
        Dimension, DimensionValue, GraphProto, NodeProto, TensorProto, ValueInfoProto, data_type,
    },
    wiring::Wiring,
};

/// Nodes that leave integer ids as they are.
pub(crate) const RENAMING: &[&str] = &[
    "Cast",
    "Identity",
    "Reshape",
    "Unsqueeze",
    "Squeeze",
    "Flatten",
];

/// Nodes between positions and the rotation that they become.
const TOWARDS_ROTATION: &[&str] = &[
    "Cast",
    "Identity",
    "Unsqueeze",
    "Expand",
    "Reshape",
    "MatMul",
    "Mul",
    "Transpose",
    "Concat",
    "Gather",
    "QuantizeLinear",
    "DequantizeLinear",
];

/// The names of the graph's inputs, by part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    /// Token ids `[batch, sequence]`.
    pub ids: String,
    /// Token ids of an encoder-decoder's decoder `[batch, decoder sequence]`.
    pub decoder_ids: Option<String>,
    /// 1 for tokens that are there, 0 for padding `[batch, past + sequence]`.
    pub mask: Option<String>,
    /// Segment of each token `[batch, sequence]`.
    pub token_types: Option<String>,
    /// Position of each token `[batch, sequence]`.
    pub positions: Option<String>,
    /// Cached keys and values `[batch, kv_heads, past, head_dim]`, in the graph's order.
    pub past: Vec<String>,
}

/// A table of rows and the node that looks them up.
pub(crate) struct Lookup<'a> {
    pub node: usize,
    pub table: &'a TensorProto,
    pub input: &'a str,
}

/// Every Gather of rows of a constant table by indices that come straight from a graph input.
pub(crate) fn lookups<'a>(wiring: &Wiring<'a>) -> Vec<Lookup<'a>> {
    let free: Vec<&str> = free_inputs(wiring).map(ValueInfoProto::name).collect();
    let nodes = wiring.graph.node.iter().enumerate();
    nodes
        .filter(|(_, node)| node.op_type() == "Gather" && node.int("axis", 0) == 0)
        .filter_map(|(index, node)| {
            let table = wiring
                .initializer(node.input(0)?)
                .filter(|table| table.dims.len() == 2)?;
            let input = wiring.origin(node.input(1)?, RENAMING);
            free.contains(&input).then_some(Lookup {
                node: index,
                table,
                input,
            })
        })
        .collect()
}

/// Lets the same ids be looked up in the same table once: fusing leaves a second lookup, of which the shape alone is read.
pub(crate) fn merge_lookups(graph: &mut GraphProto, facts: &Facts) {
    let wiring = Wiring::of(graph);
    let mut firsts: Vec<(&str, &str, &str)> = Vec::new();
    let mut merged = HashMap::new();
    for lookup in lookups(&wiring) {
        let rows = graph.node[lookup.node].output[0].as_str();
        let same = firsts.iter().find(|(table, input, first)| {
            let shapes = [first, &rows].map(|value| facts.get(value).map(|fact| &fact.shapes));
            (*table, *input) == (lookup.table.name(), lookup.input) && shapes[0] == shapes[1]
        });
        match same {
            Some((.., first)) => {
                merged.insert(rows.to_owned(), (*first).to_owned());
            }
            None => firsts.push((lookup.table.name(), lookup.input, rows)),
        }
    }
    let inputs = graph.node.iter_mut().flat_map(|node| &mut node.input);
    for input in inputs {
        if let Some(first) = merged.get(input) {
            input.clone_from(first);
        }
    }
}

/// Declares every matrix that the graph takes as 64-bit integers and casts it to what it was: exporters also write
/// 32-bit ids, and masks of floats or truth values.
pub(crate) fn widen(graph: &mut GraphProto) {
    let initializers: HashSet<String> = graph
        .initializer
        .iter()
        .map(|tensor| tensor.name().to_owned())
        .collect();
    let mut builder = Builder::beside(graph, "narrow", 0);
    let GraphProto { input, node, .. } = graph;
    let narrow = input.iter_mut().filter(|input| {
        let fed = !initializers.contains(input.name());
        fed && rank(input) == 2 && element_type(input) != data_type::INT64
    });
    for input in narrow {
        let cast = builder.cast(input.name(), element_type(input));
        let readers = node.iter_mut().flat_map(|node| &mut node.input);
        for reader in readers.filter(|reader| *reader == input.name()) {
            reader.clone_from(&cast);
        }
        if let Some(tensor) = input.tensor_type_mut() {
            tensor.elem_type = Some(data_type::INT64);
        }
    }
    builder.insert_into(graph, 0);
}

/// Checks that nothing fixes the number of rows, of tokens or of cached tokens.
fn is_loose(input: &ValueInfoProto) -> Result<(), Error> {
    let dims = input.dims().unwrap_or_default();
    let counts: &[usize] = if dims.len() == 4 { &[0, 2] } else { &[0, 1] };
    let mut fixed = counts
        .iter()
        .filter_map(|&axis| fixed_size(dims.get(axis)?));
    fixed.next().map_or(Ok(()), |size| {
        Err(Error::unusable(format!(
            "input {} has a fixed size of {size}; export the model with dynamic batch and sequence",
            input.name()
        )))
    })
}

pub(crate) fn free_inputs<'a>(wiring: &Wiring<'a>) -> impl Iterator<Item = &'a ValueInfoProto> {
    let inputs = wiring.graph.input.iter();
    let fed = |input: &&ValueInfoProto| wiring.initializer(input.name()).is_none();
    inputs.filter(fed).collect::<Vec<_>>().into_iter()
}

impl Inputs {
    /// Finds the part of every input.
    ///
    /// # Errors
    /// When no input holds token ids, or an input's part is not known.
    pub(crate) fn of(wiring: &Wiring) -> Result<Self, Error> {
        let lookups = lookups(wiring);
        let rows = |lookup: &Lookup| lookup.table.dims[0];
        let most = lookups.iter().map(rows).max();
        let most = most
            .ok_or_else(|| Error::unusable("no Gather looks token ids up in an embedding table"))?;
        free_inputs(wiring).try_for_each(is_loose)?;
        let mut inputs = Self::default();
        for input in free_inputs(wiring) {
            let name = input.name().to_owned();
            let largest = lookups
                .iter()
                .filter(|lookup| lookup.input == name)
                .map(rows)
                .max();
            match (largest, rank(input)) {
                (Some(rows), 2) if rows == most && inputs.ids.is_empty() => inputs.ids = name,
                (Some(rows), 2) if rows == most => inputs.decoder_ids = Some(name),
                (Some(rows), 2) if rows <= 4 => inputs.token_types = Some(name),
                (Some(_), 2) => inputs.positions = Some(name),
                (None, 2) if leads_to_rotation(wiring, &name) || leads_to_table(wiring, &name) => {
                    inputs.positions = Some(name);
                }
                (None, 2) if inputs.mask.is_none() => inputs.mask = Some(name),
                (None, 4) if element_type(input) == data_type::FLOAT => inputs.past.push(name),
                _ => {
                    return Err(Error::unusable(format!(
                        "input {name} plays no part that is known"
                    )));
                }
            }
        }
        inputs.order_encoder_first(wiring);
        Ok(inputs)
    }

    /// Of two inputs of ids, the decoder's is the one on which some value depends that the other also reaches last:
    /// the encoder's ids never depend on the decoder's, so the first output that needs one alone names the encoder.
    fn order_encoder_first(&mut self, wiring: &Wiring) {
        let Some(second) = self.decoder_ids.clone() else {
            return;
        };
        let alone = |input: &str, other: &str| {
            let mut softmaxes = wiring
                .graph
                .node
                .iter()
                .filter(|node| node.op_type() == "Softmax");
            softmaxes.any(|node| {
                let ancestors = wiring.ancestors(&node.output[0]);
                ancestors.contains(input)
                    && !ancestors.contains(other)
                    && reads_mask(self.mask.as_deref(), &ancestors)
            })
        };
        if alone(&second, &self.ids) && !alone(&self.ids, &second) {
            self.decoder_ids = Some(std::mem::replace(&mut self.ids, second));
        }
    }

    /// The shape of every free input at one size.
    pub fn shapes(&self, wiring: &Wiring, size: Size) -> HashMap<String, Vec<i64>> {
        let mut shapes = HashMap::new();
        for input in free_inputs(wiring) {
            let name = input.name();
            let shape = if self.past.iter().any(|past| past == name) {
                let dims = input.dims().unwrap_or_default();
                let fixed = |axis: usize| dims.get(axis).and_then(fixed_size).unwrap_or(1);
                vec![size.batch, fixed(1), size.past, fixed(3)]
            } else if self.decoder_ids.as_deref() == Some(name) {
                vec![size.batch, size.decoder_sequence]
            } else if self.mask.as_deref() == Some(name) && !self.past.is_empty() {
                vec![size.batch, size.past + size.sequence]
            } else {
                vec![size.batch, size.sequence]
            };
            shapes.insert(name.to_owned(), shape);
        }
        shapes
    }
}

/// Sizes at which a graph is walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Rows.
    pub batch: i64,
    /// Tokens a row.
    pub sequence: i64,
    /// Tokens a row of an encoder-decoder's decoder.
    pub decoder_sequence: i64,
    /// Cached tokens a row.
    pub past: i64,
}

fn reads_mask(mask: Option<&str>, ancestors: &std::collections::HashSet<&str>) -> bool {
    mask.is_none_or(|mask| ancestors.contains(mask))
}

fn leads_to_rotation(wiring: &Wiring, input: &str) -> bool {
    let mut open = vec![input];
    while let Some(value) = open.pop() {
        for node in wiring.consumers(value) {
            match node.op_type() {
                "Cos" | "Sin" | "RotaryEmbedding" => return true,
                operator if TOWARDS_ROTATION.contains(&operator) => {
                    open.extend(node.output.iter().map(String::as_str))
                }
                _ => {}
            }
        }
    }
    false
}

/// Whether `input`, moved by a constant, looks rows up in a table of constants.
fn leads_to_table(wiring: &Wiring, input: &str) -> bool {
    let constant = |node: &NodeProto, index| {
        let name = node.input(index);
        name.and_then(|name| wiring.initializer(name)).is_some()
    };
    let mut open = vec![input];
    while let Some(value) = open.pop() {
        for node in wiring.consumers(value) {
            let moved = match node.op_type() {
                "Gather" if constant(node, 0) && node.input(1) == Some(value) => return true,
                "Add" | "Sub" => constant(node, 0) || constant(node, 1),
                operator => RENAMING.contains(&operator) && node.input(0) == Some(value),
            };
            if moved {
                open.extend(node.output.iter().map(String::as_str));
            }
        }
    }
    false
}

pub(crate) fn rank(input: &ValueInfoProto) -> usize {
    input.dims().map_or(0, <[Dimension]>::len)
}

pub(crate) fn element_type(input: &ValueInfoProto) -> i32 {
    input.tensor_type().map_or(0, |tensor| tensor.elem_type())
}

pub(crate) fn fixed_size(dimension: &Dimension) -> Option<i64> {
    match dimension.value {
        Some(DimensionValue::Size(size)) => Some(size),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_ids_are_cast_in_the_graph() {
        let mut graph = GraphProto {
            input: vec![
                ValueInfoProto::tensor("ids", data_type::INT32, &["batch", "sequence"]),
                ValueInfoProto::tensor("mask", data_type::INT64, &["batch", "sequence"]),
            ],
            ..GraphProto::default()
        };
        let mut builder = Builder::beside(&graph, "t", 17);
        builder.apply("Gather", &["table", "ids"], &[]);
        builder.append_to(&mut graph);
        widen(&mut graph);
        assert!(
            graph
                .input
                .iter()
                .all(|input| element_type(input) == data_type::INT64)
        );
        let [cast, gather] = graph.node.as_slice() else {
            panic!("{} nodes", graph.node.len());
        };
        assert_eq!((cast.op_type(), cast.input(0)), ("Cast", Some("ids")));
        assert_eq!(cast.int("to", 0), i64::from(data_type::INT32));
        assert_eq!(gather.input(1), Some(cast.output[0].as_str()));
    }

    /// A graph that looks `ids` up twice, once for the shape alone, and `places` behind the first two rows of a table.
    fn looking_up() -> GraphProto {
        let input = |name| ValueInfoProto::tensor(name, data_type::INT64, &["batch", "sequence"]);
        let table = |name, rows: i64| {
            let numbers = vec![0.0; 2 * rows as usize];
            TensorProto::of_floats(name, &[rows, 2], &numbers)
        };
        let mut graph = GraphProto {
            input: vec![input("ids"), input("places")],
            initializer: vec![table("words", 9), table("positions", 8)],
            ..GraphProto::default()
        };
        let mut builder = Builder::beside(&graph, "t", 17);
        let first = builder.apply("Gather", &["words", "ids"], &[]);
        builder.apply("Shape", &[&first], &[]);
        let narrow = builder.cast("ids", data_type::INT32);
        let second = builder.apply("Gather", &["words", &narrow], &[]);
        let two = builder.scalar(data_type::INT64, 2.0);
        let places = builder.apply("Add", &["places", &two], &[]);
        let places = builder.apply("Gather", &["positions", &places], &[]);
        builder.apply("Add", &[&second, &places], &[]);
        builder.append_to(&mut graph);
        graph
    }

    #[test]
    fn ids_are_looked_up_once() {
        let mut graph = looking_up();
        let shapes = ["ids", "places"].map(|name| (name.to_owned(), vec![2, 7]));
        let facts = Facts::of(&graph, &[shapes.into()]);
        merge_lookups(&mut graph, &facts);
        let sum = graph.node.last().unwrap();
        assert_eq!(sum.input(0), Some(graph.node[0].output[0].as_str()));
    }

    #[test]
    fn positions_that_are_moved_are_positions() {
        let graph = looking_up();
        let inputs = Inputs::of(&Wiring::of(&graph)).unwrap();
        assert_eq!(inputs.positions.as_deref(), Some("places"));
        assert_eq!(inputs.mask, None);
    }

    #[test]
    fn a_fixed_size_is_refused() {
        let table: &[(&[&str], bool)] = &[
            (&["batch", "sequence"], true),
            (&["1", "sequence"], false),
            (&["batch", "16"], false),
            (&["batch", "4", "past", "8"], true),
            (&["batch", "4", "1", "8"], false),
        ];
        for (dims, loose) in table {
            let input = ValueInfoProto::tensor("input", data_type::INT64, dims);
            assert_eq!(is_loose(&input).is_ok(), *loose, "{dims:?}");
        }
    }
}
