//! The part that each graph input plays, found from where it leads.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::{
    Error,
    onnx::{Dimension, DimensionValue, TensorProto, ValueInfoProto, data_type},
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

fn free_inputs<'a>(wiring: &Wiring<'a>) -> impl Iterator<Item = &'a ValueInfoProto> {
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
                (None, 2) if leads_to_rotation(wiring, &name) => inputs.positions = Some(name),
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

fn rank(input: &ValueInfoProto) -> usize {
    input.dims().map_or(0, <[Dimension]>::len)
}

fn element_type(input: &ValueInfoProto) -> i32 {
    input.tensor_type().map_or(0, |tensor| tensor.elem_type())
}

pub(crate) fn fixed_size(dimension: &Dimension) -> Option<i64> {
    match dimension.value {
        Some(DimensionValue::Size(size)) => Some(size),
        _ => None,
    }
}
