//! Writing new nodes and constants into a graph, with names that clash with nothing.

use std::collections::HashMap;

use bytes::Bytes;
use half::{bf16, f16};

use crate::onnx::{
    AttributeProto, FunctionProto, GraphProto, NodeProto, OperatorSetIdProto, TensorProto,
    attribute_type, data_type,
};

/// The value of an attribute.
#[derive(Clone, Debug)]
pub enum Attribute {
    /// One integer.
    Int(i64),
    /// One float.
    Float(f32),
    /// A list of integers.
    Ints(Vec<i64>),
    /// Text.
    Text(&'static str),
}

/// Collects nodes and the constants that they read.
///
/// Every name it makes begins with its prefix and a slash; a prefix that no name of the graph begins with
/// (see [`Builder::beside`]) cannot clash.
#[derive(Clone, Debug)]
pub struct Builder {
    prefix: String,
    counter: usize,
    written: usize,
    opset: i64,
    constants: HashMap<(i32, Vec<i64>, Vec<u8>), String>,
    /// The nodes, in the order in which they were written.
    pub nodes: Vec<NodeProto>,
    /// The constants that the nodes read.
    pub initializers: Vec<TensorProto>,
}

impl Builder {
    /// A builder for operator set `opset` whose names do not occur in `graph`.
    pub fn beside(graph: &GraphProto, prefix: &str, opset: i64) -> Self {
        let taken = |candidate: &str| {
            let values = graph
                .node
                .iter()
                .flat_map(|node| node.output.iter().map(String::as_str));
            let mut names = values
                .chain(graph.initializer.iter().map(TensorProto::name))
                .chain(graph.input.iter().map(|input| input.name()));
            names.any(|name| name.split('/').next() == Some(candidate))
        };
        let mut free = prefix.to_owned();
        while taken(&free) {
            free.push('_');
        }
        Self {
            prefix: free,
            counter: 0,
            written: 0,
            opset,
            constants: HashMap::new(),
            nodes: Vec::new(),
            initializers: Vec::new(),
        }
    }

    /// The version of ONNX's operator set that the nodes are written for.
    pub fn opset(&self) -> i64 {
        self.opset
    }

    /// The name that `label` has under this builder's prefix, the same at every call.
    pub fn named(&self, label: &str) -> String {
        format!("{}/{label}", self.prefix)
    }

    /// A name that nothing else has.
    pub fn fresh(&mut self) -> String {
        self.counter += 1;
        format!("{}/{}", self.prefix, self.counter)
    }

    /// Writes a node with given outputs.
    pub fn write(
        &mut self,
        operator: &str,
        inputs: &[&str],
        outputs: &[&str],
        attributes: &[(&str, Attribute)],
    ) {
        let (domain, op_type) = operator.split_once(':').unwrap_or(("", operator));
        self.written += 1;
        let own = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        self.nodes.push(NodeProto {
            name: Some(format!("{}/{op_type}/{}", self.prefix, self.written)),
            op_type: Some(op_type.to_owned()),
            domain: (!domain.is_empty()).then(|| domain.to_owned()),
            input: own(inputs),
            output: own(outputs),
            attribute: attributes
                .iter()
                .map(|(name, value)| attribute(name, value))
                .collect(),
            ..NodeProto::default()
        });
    }

    /// Writes a node with one output and returns the output's name.
    pub fn apply(
        &mut self,
        operator: &str,
        inputs: &[&str],
        attributes: &[(&str, Attribute)],
    ) -> String {
        let output = self.fresh();
        self.write(operator, inputs, &[&output], attributes);
        output
    }

    /// Casts `value` to element type `to`.
    pub fn cast(&mut self, value: &str, to: i32) -> String {
        let to = [("to", Attribute::Int(i64::from(to)))];
        self.apply("Cast", &[value], &to)
    }

    /// A one-dimensional constant of 64-bit integers.
    pub fn ints(&mut self, values: &[i64]) -> String {
        let raw = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.constant(data_type::INT64, &[values.len() as i64], raw)
    }

    /// A one-dimensional constant of 32-bit floats.
    pub fn floats(&mut self, values: &[f32]) -> String {
        let raw = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.constant(data_type::FLOAT, &[values.len() as i64], raw)
    }

    /// A scalar of element type `data_type`: a float type or a 64-bit integer.
    pub fn scalar(&mut self, data_type: i32, value: f64) -> String {
        let raw = match data_type {
            data_type::DOUBLE => value.to_le_bytes().to_vec(),
            data_type::FLOAT16 => f16::from_f64(value).to_le_bytes().to_vec(),
            data_type::BFLOAT16 => bf16::from_f64(value).to_le_bytes().to_vec(),
            data_type::INT64 => (value as i64).to_le_bytes().to_vec(),
            data_type::BOOL => vec![u8::from(value != 0.0)],
            _ => (value as f32).to_le_bytes().to_vec(),
        };
        self.constant(data_type, &[], raw)
    }

    /// A constant of little-endian bytes; equal constants are written once.
    pub fn constant(&mut self, data_type: i32, dims: &[i64], raw: Vec<u8>) -> String {
        let key = (data_type, dims.to_vec(), raw);
        if let Some(name) = self.constants.get(&key) {
            return name.clone();
        }
        let name = self.fresh();
        let (_, _, raw) = &key;
        self.initializers
            .push(TensorProto::of_raw(&name, data_type, dims, raw.clone()));
        self.constants.insert(key, name.clone());
        name
    }

    /// Reduces over `axes`, which are an attribute before operator set 18 (13 for `ReduceSum`) and an input since.
    pub fn reduce(&mut self, operator: &str, input: &str, axes: &[i64], keepdims: bool) -> String {
        let keepdims = ("keepdims", Attribute::Int(i64::from(keepdims)));
        let since = if operator == "ReduceSum" { 13 } else { 18 };
        if self.opset >= since {
            let axes = self.ints(axes);
            self.apply(operator, &[input, &axes], &[keepdims])
        } else {
            self.apply(
                operator,
                &[input],
                &[("axes", Attribute::Ints(axes.to_vec())), keepdims],
            )
        }
    }

    /// Makes the nodes, with their constants before them, a function of the model's own.
    pub fn into_function(
        self,
        domain: &str,
        name: &str,
        inputs: Vec<String>,
        output: String,
    ) -> FunctionProto {
        let constants = self.initializers.into_iter().map(|tensor| NodeProto {
            op_type: Some("Constant".into()),
            output: vec![tensor.name().to_owned()],
            attribute: vec![AttributeProto {
                name: Some("value".into()),
                r#type: Some(attribute_type::TENSOR),
                t: Some(tensor),
                ..AttributeProto::default()
            }],
            ..NodeProto::default()
        });
        FunctionProto {
            domain: Some(domain.to_owned()),
            name: Some(name.to_owned()),
            input: inputs,
            output: vec![output],
            node: constants.chain(self.nodes).collect(),
            opset_import: vec![OperatorSetIdProto {
                domain: Some(String::new()),
                version: Some(self.opset),
            }],
            ..FunctionProto::default()
        }
    }

    /// Moves the constants into `graph` and the nodes behind its own.
    pub fn append_to(mut self, graph: &mut GraphProto) {
        graph.initializer.append(&mut self.initializers);
        graph.node.append(&mut self.nodes);
    }

    /// Moves the constants into `graph` and the nodes before its node `position`.
    pub fn insert_into(mut self, graph: &mut GraphProto, position: usize) {
        graph.initializer.append(&mut self.initializers);
        graph.node.splice(position..position, self.nodes);
    }
}

pub(crate) fn attribute(name: &str, value: &Attribute) -> AttributeProto {
    let mut entry = AttributeProto {
        name: Some(name.to_owned()),
        ..AttributeProto::default()
    };
    let kind = match value {
        Attribute::Int(value) => {
            entry.i = Some(*value);
            attribute_type::INT
        }
        Attribute::Float(value) => {
            entry.f = Some(*value);
            attribute_type::FLOAT
        }
        Attribute::Ints(values) => {
            entry.ints.clone_from(values);
            attribute_type::INTS
        }
        Attribute::Text(text) => {
            entry.s = Some(Bytes::from_static(text.as_bytes()));
            attribute_type::STRING
        }
    };
    entry.r#type = Some(kind);
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_clash_with_nothing() {
        let graph = GraphProto {
            node: vec![NodeProto {
                output: vec!["gradient/1".into()],
                ..NodeProto::default()
            }],
            ..GraphProto::default()
        };
        let mut builder = Builder::beside(&graph, "gradient", 17);
        assert_eq!(builder.fresh(), "gradient_/1");
    }

    #[test]
    fn equal_constants_are_written_once() {
        let mut builder = Builder::beside(&GraphProto::default(), "x", 17);
        assert_eq!(builder.ints(&[1, 2]), builder.ints(&[1, 2]));
        assert_ne!(builder.ints(&[1]), builder.scalar(data_type::INT64, 1.0));
        assert_eq!(builder.initializers.len(), 3);
    }

    #[test]
    fn axes_move_with_the_operator_set() {
        let table = [
            (13, "ReduceMean", 1),
            (17, "ReduceSum", 2),
            (18, "ReduceMean", 2),
            (11, "ReduceSum", 1),
        ];
        for (opset, operator, inputs) in table {
            let mut builder = Builder::beside(&GraphProto::default(), "x", opset);
            builder.reduce(operator, "v", &[-1], true);
            assert_eq!(builder.nodes[0].input.len(), inputs, "{operator} {opset}");
        }
    }
}
