//! Nodes in the order in which they can run.

use std::collections::{HashMap, HashSet};

use crate::onnx::{GraphProto, NodeProto};

/// Moves every node behind the nodes that make what it reads; where nothing forces a move, the order stays.
pub fn sort(graph: &mut GraphProto) {
    let mut waiting: Vec<Option<NodeProto>> = std::mem::take(&mut graph.node)
        .into_iter()
        .map(Some)
        .collect();
    let outputs = waiting.iter().enumerate().flat_map(|(index, node)| {
        let outputs = node.iter().flat_map(|node| &node.output);
        outputs.map(move |output| (output.clone(), index))
    });
    let makers: HashMap<String, usize> = outputs.collect();
    let mut open = HashSet::new();
    for first in 0..waiting.len() {
        let mut stack = vec![first];
        while let Some(&index) = stack.last() {
            let Some(node) = &waiting[index] else {
                stack.pop();
                continue;
            };
            let makers = node
                .input
                .iter()
                .filter_map(|input| makers.get(input).copied());
            let before: Vec<usize> = makers
                .filter(|&maker| waiting[maker].is_some() && maker != index)
                .collect();
            if before.is_empty() || !open.insert(index) {
                graph.node.extend(waiting[index].take());
                stack.pop();
            } else {
                stack.extend(before.into_iter().rev());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::Builder;

    #[test]
    fn only_what_must_move_moves() {
        let mut graph = GraphProto::default();
        let mut builder = Builder::beside(&graph, "t", 17);
        builder.write("Neg", &["c"], &["d"], &[]);
        builder.write("Abs", &["x"], &["a"], &[]);
        builder.write("Add", &["a", "b"], &["c"], &[]);
        builder.write("Exp", &["x"], &["b"], &[]);
        builder.write("Log", &["x"], &["e"], &[]);
        builder.append_to(&mut graph);
        sort(&mut graph);
        let order: Vec<&str> = graph
            .node
            .iter()
            .map(|node| node.output[0].as_str())
            .collect();
        assert_eq!(order, ["a", "b", "c", "d", "e"]);
    }
}
