//! Tables of embeddings that are quantised: their numbers are made once, and rows are looked up in those.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

use super::{Packed, dims_of, scales};
use crate::{
    Error,
    builder::{Attribute, Builder},
    onnx::{GraphProto, NodeProto, TensorProto, data_type},
};

/// The lookup in a table that is quantised in blocks.
pub(super) const TABLE: &str = "com.microsoft:GatherBlockQuantized";

/// The quantised tables of a graph, and the numbers that were made of them.
pub(super) struct Tables<'a> {
    pub graph: &'a GraphProto,
    pub packed: &'a HashMap<String, Packed>,
    folder: &'a Path,
    /// By their names, beside the name of their scales.
    made: HashMap<String, (String, TensorProto)>,
}

impl<'a> Tables<'a> {
    /// None made yet.
    pub fn of(
        graph: &'a GraphProto,
        folder: &'a Path,
        packed: &'a HashMap<String, Packed>,
    ) -> Self {
        Self {
            graph,
            packed,
            folder,
            made: HashMap::new(),
        }
    }

    /// Makes the numbers of a table, dequantised as `node` does, under `name`, unless they are made.
    pub fn make(&mut self, name: &str, node: &NodeProto, table: &TensorProto) -> Result<(), Error> {
        let by = node.input(1).unwrap_or_default();
        match self.made.get(name) {
            Some((other, _)) if other == by => return Ok(()),
            Some(_) => return Err(Error::at(node, "a table that has other scales elsewhere")),
            None => {}
        }
        let numbers = self.numbers(node, table, name)?;
        self.made.insert(name.to_owned(), (by.to_owned(), numbers));
        Ok(())
    }

    /// Writes a lookup in a table in blocks as one in its numbers, which `whole` makes.
    pub fn look_up(
        &mut self,
        builder: &mut Builder,
        node: &NodeProto,
        whole: &NodeProto,
    ) -> Result<(), Error> {
        let table = node.input(0).and_then(|name| self.graph.initializer(name));
        let table = table.ok_or_else(|| Error::at(node, "looks up rows of no fixed table"))?;
        let name = format!("{}/{}", builder.named("table"), table.name());
        self.make(&name, whole, table)?;
        let (ids, rows) = (node.input(1).unwrap_or_default(), &*node.output[0]);
        builder.write("Gather", &[&name, ids], &[rows], &[]);
        Ok(())
    }

    /// All that were made.
    pub fn made(self) -> impl Iterator<Item = TensorProto> + use<> {
        self.made.into_values().map(|(_, numbers)| numbers)
    }

    fn numbers(
        &self,
        node: &NodeProto,
        table: &TensorProto,
        name: &str,
    ) -> Result<TensorProto, Error> {
        let dims = dims_of(table, self.packed);
        let scales = scales(self.graph, node, table, self.packed)?;
        let factors = node.input(1).and_then(|name| self.graph.initializer(name));
        let factors = factors.map(|scale| scale.floats(self.folder)).transpose()?;
        let factors = factors.unwrap_or_default();
        let zeros = match node.input(2).map(|name| self.graph.initializer(name)) {
            None => vec![0.0; factors.len()],
            Some(Some(zero)) => self.integers(node, zero)?,
            Some(None) => {
                return Err(Error::at(
                    node,
                    "a table with zero points of its own making is not known",
                ));
            }
        };
        let whole = self.integers(node, table)?;
        let values = whole.iter().enumerate().map(|(at, value)| {
            let place = scales.place(at, dims);
            (value - zeros[place]) * factors[place]
        });
        let values: Vec<f32> = values.collect();
        Ok(TensorProto::of_floats(name, dims, &values))
    }

    /// The whole numbers of a tensor of 4 or 8 bits.
    fn integers(&self, node: &NodeProto, tensor: &TensorProto) -> Result<Vec<f32>, Error> {
        let bytes = tensor.little_endian(self.folder)?;
        let signed = |byte: &u8| f32::from(*byte as i8);
        Ok(match (self.packed.get(tensor.name()), tensor.data_type()) {
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
}

/// What makes the whole table of each lookup in a quantised one, by what the lookup makes; notes which tables hold two
/// numbers a byte, and writes out the zero points that are left out.
pub(super) fn whole_tables(
    graph: &mut GraphProto,
    packed: &mut HashMap<String, Packed>,
) -> Result<HashMap<String, NodeProto>, Error> {
    let bytes: HashSet<String> = packed.keys().cloned().collect();
    let mut found = HashMap::new();
    let mut zeros = Vec::new();
    for node in graph.node.iter().filter(|node| node.operator() == TABLE) {
        let lookup = Lookup::of(graph, node, &bytes)?;
        packed.extend(lookup.halves(node)?);
        let zero = match (node.input(3), lookup.middle(node)) {
            (Some(zero), _) => Some(zero.to_owned()),
            (None, Some(middle)) => {
                let name = middle.name().to_owned();
                zeros.push(middle);
                Some(name)
            }
            (None, None) => None,
        };
        let whole = lookup.whole(graph, node, zero.as_deref());
        found.extend(whole.map(|whole| (node.output[0].clone(), whole)));
    }
    graph.initializer.extend(zeros);
    Ok(found)
}

/// What a lookup in a table in blocks reads.
struct Lookup<'a> {
    bits: i64,
    table: &'a TensorProto,
    scale: &'a TensorProto,
    zero: Option<&'a TensorProto>,
    /// Whether it is of unsigned bytes in the graph too: of 4 bits they hold two numbers.
    in_bytes: bool,
}

impl<'a> Lookup<'a> {
    fn of(graph: &'a GraphProto, node: &NodeProto, bytes: &HashSet<String>) -> Result<Self, Error> {
        let bits = node.int("bits", 4);
        let tensor = |index: usize| graph.initializer(node.input(index)?);
        let known = node.int("gather_axis", 0) == 0 && matches!(bits, 4 | 8);
        let (Some(table), Some(scale), true) = (tensor(0), tensor(2), known) else {
            return Err(Error::at(
                node,
                "looks up other than the rows of a fixed table of 4 or 8 bits",
            ));
        };
        let in_bytes = table.data_type() == data_type::UINT8 && !bytes.contains(table.name());
        Ok(Self {
            bits,
            table,
            scale,
            zero: tensor(3),
            in_bytes,
        })
    }

    /// The tensors that hold two numbers a byte, by name.
    fn halves(&self, node: &NodeProto) -> Result<Vec<(String, Packed)>, Error> {
        if !self.in_bytes || self.bits != 4 {
            return Ok(Vec::new());
        }
        let odd = self.scale.dims.last().is_none_or(|blocks| blocks % 2 == 1);
        if self.zero.is_some() && odd {
            return Err(Error::at(node, "rows of an odd number of zero points"));
        }
        let tensors = [Some(self.table), self.zero].into_iter().flatten();
        let halves = tensors.map(|tensor| {
            let mut dims = tensor.dims.clone();
            dims.iter_mut().rev().take(1).for_each(|last| *last *= 2);
            let signed = false;
            (tensor.name().to_owned(), Packed { signed, dims })
        });
        Ok(halves.collect())
    }

    /// The zero points of a table of unsigned bytes that names none: the middle of its range.
    fn middle(&self, node: &NodeProto) -> Option<TensorProto> {
        let name = format!("{}.zeros", node.output[0]);
        let middle = vec![1_u8 << (self.bits - 1); self.scale.elements()];
        self.in_bytes
            .then(|| TensorProto::of_raw(&name, data_type::UINT8, &self.scale.dims, middle))
    }

    /// What dequantises the whole table.
    fn whole(&self, graph: &GraphProto, node: &NodeProto, zero: Option<&str>) -> Option<NodeProto> {
        let names = [Some(self.table.name()), Some(self.scale.name()), zero];
        let names: Vec<&str> = names.into_iter().flatten().collect();
        let along = [
            ("axis", Attribute::Int(node.int("quantize_axis", 1))),
            ("block_size", Attribute::Int(node.int("block_size", 128))),
        ];
        let mut builder = Builder::beside(graph, "whole", 21);
        builder.write("DequantizeLinear", &names, &[node.label()], &along);
        builder.nodes.pop()
    }
}
