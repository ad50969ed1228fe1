//! Who makes and who reads each value of a graph.

use std::collections::{HashMap, HashSet};

use crate::onnx::{GraphProto, NodeProto, TensorProto};

/// A graph with its wires.
#[derive(Clone, Debug)]
pub struct Wiring<'a> {
    /// The graph.
    pub graph: &'a GraphProto,
    producers: HashMap<&'a str, usize>,
    consumers: HashMap<&'a str, Vec<usize>>,
    initializers: HashMap<&'a str, &'a TensorProto>,
}

impl<'a> Wiring<'a> {
    /// Traces the wires of `graph`.
    pub fn of(graph: &'a GraphProto) -> Self {
        let mut producers = HashMap::new();
        let mut consumers: HashMap<&str, Vec<usize>> = HashMap::new();
        for (index, node) in graph.node.iter().enumerate() {
            for output in &node.output {
                producers.insert(output.as_str(), index);
            }
            for input in &node.input {
                consumers.entry(input).or_default().push(index);
            }
        }
        let initializers = graph
            .initializer
            .iter()
            .map(|tensor| (tensor.name(), tensor));
        Self {
            graph,
            producers,
            consumers,
            initializers: initializers.collect(),
        }
    }

    /// The position of the node that makes `value`.
    pub fn producer_index(&self, value: &str) -> Option<usize> {
        self.producers.get(value).copied()
    }

    /// The node that makes `value`.
    pub fn producer(&self, value: &str) -> Option<&'a NodeProto> {
        Some(&self.graph.node[self.producer_index(value)?])
    }

    /// The nodes that read `value`.
    pub fn consumers(&self, value: &str) -> impl Iterator<Item = &'a NodeProto> {
        let indices = self.consumers.get(value).map_or(&[][..], Vec::as_slice);
        let graph = self.graph;
        indices.iter().map(move |&index| &graph.node[index])
    }

    /// The initializer of that name.
    pub fn initializer(&self, value: &str) -> Option<&'a TensorProto> {
        self.initializers.get(value).copied()
    }

    /// Whether the numbers of `value`, and not its shape alone, depend on those of `input`.
    pub fn reads(&self, value: &str, input: &str) -> bool {
        let mut seen = HashSet::new();
        let mut open = vec![value];
        while let Some(value) = open.pop() {
            if value == input {
                return true;
            }
            let index = self.producer_index(value);
            let index = index.filter(|&index| seen.insert(index));
            let node = index.map(|index| &self.graph.node[index]);
            let node = node.filter(|node| node.op_type() != "Shape");
            open.extend(node.iter().flat_map(|node| &node.input).map(String::as_str));
        }
        false
    }

    /// Every value on which `value` depends, itself included.
    pub fn ancestors(&self, value: &'a str) -> HashSet<&'a str> {
        let mut seen = HashSet::from([value]);
        let mut open = vec![value];
        while let Some(value) = open.pop() {
            let inputs = self
                .producer(value)
                .into_iter()
                .flat_map(|node| &node.input);
            open.extend(
                inputs
                    .map(String::as_str)
                    .filter(|input| seen.insert(input)),
            );
        }
        seen
    }

    /// Follows `value` upwards through nodes that `passes`, to the value that no such node makes.
    pub fn origin(&self, value: &'a str, passes: &[&str]) -> &'a str {
        let mut value = value;
        while let Some(node) = self
            .producer(value)
            .filter(|node| passes.contains(&node.op_type()))
        {
            match node.input(0) {
                Some(input) => value = input,
                None => break,
            }
        }
        value
    }
}
