//! Decoders that were exported twice into one file: with a cache, and without one for the first tokens.

use std::collections::HashSet;

use crate::{
    Error,
    inputs::element_type,
    onnx::{GraphProto, NodeProto, data_type},
};

/// Keeps of a graph that is one `If` on a truth value among its inputs, as optimum merges decoders, the branch that is taken
/// without a cache, `else`. Other graphs stay as they are.
///
/// # Errors
/// When the `If` has no such branch with as many outputs.
pub(crate) fn keep_first_pass(graph: &mut GraphProto) -> Result<(), Error> {
    let [node] = graph.node.as_slice() else {
        return Ok(());
    };
    let chosen = |name: &str| {
        let mut inputs = graph.input.iter();
        inputs.any(|input| input.name() == name && element_type(input) == data_type::BOOL)
    };
    if node.op_type() != "If" || !node.input(0).is_some_and(chosen) {
        return Ok(());
    }
    let branch = node.attribute("else_branch");
    let branch = branch.and_then(|branch| branch.g.clone());
    let branch = branch.filter(|branch| branch.output.len() == node.output.len());
    let Some(mut branch) = branch else {
        return Err(Error::at(node, "has no branch else with as many outputs"));
    };
    for (inner, outer) in branch.output.iter().zip(&node.output) {
        if inner.name() != outer {
            branch.node.push(NodeProto {
                name: Some(format!("{outer}/Identity")),
                op_type: Some("Identity".into()),
                input: vec![inner.name().to_owned()],
                output: vec![outer.clone()],
                ..NodeProto::default()
            });
        }
    }
    graph.node = branch.node;
    graph.initializer.extend(branch.initializer);
    graph.value_info.extend(branch.value_info);
    let read: HashSet<&str> = graph
        .node
        .iter()
        .flat_map(|node| &node.input)
        .map(String::as_str)
        .collect();
    graph.input.retain(|input| read.contains(input.name()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{AttributeProto, ValueInfoProto};

    fn node(operator: &str, input: &str, output: &str) -> NodeProto {
        NodeProto {
            op_type: Some(operator.into()),
            input: vec![input.into()],
            output: vec![output.into()],
            ..NodeProto::default()
        }
    }

    fn merged() -> GraphProto {
        let branch = |name: &str, operator: &str, input: &str| AttributeProto {
            name: Some(name.into()),
            g: Some(GraphProto {
                node: vec![node(operator, input, "inner")],
                output: vec![ValueInfoProto::untyped("inner")],
                ..GraphProto::default()
            }),
            ..AttributeProto::default()
        };
        let input = |name, element| ValueInfoProto::tensor(name, element, &["batch"]);
        GraphProto {
            input: vec![
                input("ids", data_type::INT64),
                input("past", data_type::FLOAT),
                input("use_cache", data_type::BOOL),
            ],
            node: vec![NodeProto {
                attribute: vec![
                    branch("else_branch", "Neg", "ids"),
                    branch("then_branch", "Abs", "past"),
                ],
                ..node("If", "use_cache", "scores")
            }],
            output: vec![ValueInfoProto::untyped("scores")],
            ..GraphProto::default()
        }
    }

    #[test]
    fn the_branch_without_a_cache_is_kept() {
        let mut graph = merged();
        keep_first_pass(&mut graph).unwrap();
        let operators: Vec<&str> = graph.node.iter().map(NodeProto::op_type).collect();
        assert_eq!(operators, ["Neg", "Identity"]);
        assert_eq!(graph.node[1].output, ["scores"]);
        let inputs: Vec<&str> = graph.input.iter().map(ValueInfoProto::name).collect();
        assert_eq!(inputs, ["ids"]);
    }

    #[test]
    fn what_depends_on_data_stays() {
        let mut graph = merged();
        graph.node.insert(0, node("Not", "other", "use_cache"));
        let before = graph.clone();
        keep_first_pass(&mut graph).unwrap();
        assert_eq!(graph, before);
        let mut graph = merged();
        graph.node[0].attribute.remove(0);
        assert!(keep_first_pass(&mut graph).is_err());
    }
}
