//! A program before its numbers have places: operations with their inputs, in the order in which they were found.

use std::collections::HashMap;

use crate::engine::executor::program::{Distances, Function, Mask};

/// Operations, and the constants and weights that they read.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub operations: Vec<Operation>,
    pub constants: Vec<f32>,
    /// Where runs of constants begin, by their bits.
    places: HashMap<Vec<u32>, usize>,
    pub weights: Vec<Matrix>,
}

/// A weight `[inputs, outputs]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Matrix {
    pub name: String,
    pub inputs: usize,
    pub outputs: usize,
    /// Whether the value of that name is `[outputs, inputs]`.
    pub turned: bool,
}

/// An operation that makes so many numbers of each row.
#[derive(Debug)]
pub(super) struct Operation {
    pub kind: Kind,
    pub numbers: usize,
}

#[derive(Debug)]
pub(super) enum Kind {
    /// The embedding rows.
    Rows,
    Product {
        weight: Weight,
        bias: Option<usize>,
        input: Part,
        residual: Option<Part>,
    },
    Attend(Box<Attention>),
    Keep(Kept),
    Row(Vec<Draw>),
}

/// What a product multiplies by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weight {
    /// Of [`Draft::weights`].
    Packed(usize),
    /// The embedding table, whose rows are the vocabulary.
    Table,
}

/// Numbers of an operation's row, from `first` on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub operation: usize,
    pub first: usize,
}

#[derive(Debug)]
pub(super) struct Attention {
    pub layer: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub query: HeadPart,
    /// Keys and values; none where they are those that an encoder kept.
    pub own: Option<[HeadPart; 2]>,
    pub scale: f32,
    pub cap: Option<f32>,
    pub distances: Option<Distances>,
    pub mask: Mask,
}

/// Keys and values that are kept for the attentions of a layer.
#[derive(Debug)]
pub(super) struct Kept {
    pub layer: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub from: [HeadPart; 2],
}

/// Where heads begin, and the numbers from one to the next.
pub(super) type HeadPart = (Part, usize);

/// One operation on each row, which writes its numbers from `first` on.
#[derive(Debug)]
pub(super) struct Draw {
    pub function: Function,
    pub inputs: Vec<Read>,
    pub first: usize,
    pub dims: [usize; 3],
}

/// What it reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read {
    pub from: From,
    pub first: usize,
    pub strides: [usize; 3],
}

#[derive(Clone, Copy, Debug)]
pub(super) enum From {
    Operation(usize),
    Constant,
    /// A table with rows of so many numbers, by position.
    Position(usize),
    /// The same by token type.
    Type(usize),
}

impl Draft {
    /// The constants and weights alone.
    pub fn without_operations(self) -> Self {
        Self {
            operations: Vec::new(),
            ..self
        }
    }

    pub fn add(&mut self, kind: Kind, numbers: usize) -> usize {
        self.operations.push(Operation { kind, numbers });
        self.operations.len() - 1
    }

    /// Where `numbers` are among the constants; equal ones are stored once.
    pub fn constant(&mut self, numbers: &[f32]) -> usize {
        let bits = numbers.iter().map(|number| number.to_bits()).collect();
        let constants = &mut self.constants;
        *self.places.entry(bits).or_insert_with(|| {
            constants.extend_from_slice(numbers);
            constants.len() - numbers.len()
        })
    }

    pub fn weight(&mut self, matrix: Matrix) -> usize {
        let known = self.weights.iter().position(|weight| *weight == matrix);
        known.unwrap_or_else(|| {
            self.weights.push(matrix);
            self.weights.len() - 1
        })
    }
}

impl Operation {
    /// The operations whose numbers it reads.
    pub fn inputs(&self) -> Vec<usize> {
        match &self.kind {
            Kind::Rows => Vec::new(),
            Kind::Product {
                input, residual, ..
            } => {
                let parts = [Some(*input), *residual];
                parts.iter().flatten().map(|part| part.operation).collect()
            }
            Kind::Attend(attention) => {
                let own = attention.own.iter().flatten();
                let all = own.chain([&attention.query]);
                all.map(|(part, _)| part.operation).collect()
            }
            Kind::Keep(kept) => kept.from.map(|(part, _)| part.operation).to_vec(),
            Kind::Row(draws) => {
                let reads = draws.iter().flat_map(|draw| &draw.inputs);
                let operations = reads.filter_map(|read| match read.from {
                    From::Operation(operation) => Some(operation),
                    _ => None,
                });
                operations.collect()
            }
        }
    }

    pub fn is_row(&self) -> bool {
        matches!(self.kind, Kind::Row(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_constants_are_stored_once() {
        let mut draft = Draft::default();
        let table: Vec<f32> = (0..100).map(|number| number as f32).collect();
        let first = draft.constant(&table);
        let zeros = [draft.constant(&[0.0]), draft.constant(&[-0.0])];
        assert_eq!((first, draft.constant(&table)), (0, 0));
        assert_eq!((zeros, draft.constants.len()), ([100, 101], 102));
    }
}
