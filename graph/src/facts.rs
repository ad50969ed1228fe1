//! What every value of a graph looks like, found by walking the graph at several concrete sizes.
//!
//! For given shapes of the inputs each node's output shapes follow from its operator, and the small integer tensors
//! on which shapes depend (`Shape`, `Range`, `Concat` of sizes, ...) follow by computing them. Walking at sizes that
//! differ in every symbol tells which dimensions are constant, without a symbolic algebra and without an engine.

mod operators;
mod small;

use std::collections::HashMap;

use crate::onnx::GraphProto;

pub use small::Value;

/// Tensors of more elements than this are known by type and shape alone.
const KEPT_ELEMENTS: usize = 64;

/// One value as seen at every size.
#[derive(Clone, Debug, PartialEq)]
pub struct Fact {
    /// Element type, [`crate::onnx::data_type`].
    pub data_type: i32,
    /// The shape at each size.
    pub shapes: Vec<Vec<i64>>,
    /// The elements at each size, for small tensors that depend on no input's contents.
    pub numbers: Vec<Option<Vec<f64>>>,
}

impl Fact {
    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.shapes[0].len()
    }

    /// The size of dimension `axis`, where it is the same at every size.
    pub fn constant_dim(&self, axis: usize) -> Option<i64> {
        let first = *self.shapes[0].get(axis)?;
        self.shapes
            .iter()
            .all(|shape| shape[axis] == first)
            .then_some(first)
    }

    /// The elements as integers, where they are the same at every size.
    pub fn constant_ints(&self) -> Option<Vec<i64>> {
        let numbers = self.constant_numbers()?;
        Some(numbers.iter().map(|&number| number as i64).collect())
    }

    /// The elements, where they are the same at every size.
    pub fn constant_numbers(&self) -> Option<&[f64]> {
        let first = self.numbers[0].as_deref()?;
        self.numbers
            .iter()
            .all(|numbers| numbers.as_deref() == Some(first))
            .then_some(first)
    }

    /// The one element, where there is just one and it is the same at every size.
    pub fn constant_scalar(&self) -> Option<f64> {
        match self.constant_numbers()? {
            [number] => Some(*number),
            _ => None,
        }
    }

    /// Whether the elements are floats of any width.
    pub fn is_float(&self) -> bool {
        small::is_float(self.data_type)
    }

    /// Whether two values have the same shape at every size.
    pub fn same_shape(&self, other: &Fact) -> bool {
        self.shapes == other.shapes
    }
}

/// Facts about the values of a graph, by name. A value that an unknown operator makes has none.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    values: HashMap<String, Fact>,
}

impl Facts {
    /// Walks `graph` once for each set of input shapes in `sizes`.
    ///
    /// A set names the shape of every graph input that is no initializer; element types are those the graph declares.
    pub fn of(graph: &GraphProto, sizes: &[HashMap<String, Vec<i64>>]) -> Self {
        Self::filled(graph, sizes, &HashMap::new())
    }

    /// As [`Facts::of`], with every element of the inputs in `fills` known to be the number given there.
    pub(crate) fn filled(
        graph: &GraphProto,
        sizes: &[HashMap<String, Vec<i64>>],
        fills: &HashMap<&str, f64>,
    ) -> Self {
        let mut values: HashMap<String, Fact> = HashMap::new();
        for (seen, shapes) in sizes.iter().enumerate() {
            for (name, value) in operators::walk(graph, shapes, fills) {
                let fact = values.entry(name).or_insert_with(|| Fact {
                    data_type: value.data_type,
                    shapes: Vec::new(),
                    numbers: Vec::new(),
                });
                if fact.shapes.len() == seen {
                    let kept = value.shape.iter().product::<i64>() <= KEPT_ELEMENTS as i64;
                    fact.numbers.push(value.numbers.filter(|_| kept));
                    fact.shapes.push(value.shape);
                }
            }
        }
        values.retain(|_, fact| {
            let rank = fact.shapes[0].len();
            fact.shapes.len() == sizes.len() && fact.shapes.iter().all(|shape| shape.len() == rank)
        });
        Self { values }
    }

    /// The fact about the value of that name.
    pub fn get(&self, name: &str) -> Option<&Fact> {
        self.values.get(name)
    }

    /// Every value that there is a fact about.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Fact)> {
        self.values.iter().map(|(name, fact)| (name.as_str(), fact))
    }
}
