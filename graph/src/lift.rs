//! Older operator sets written as operator set 13, the first in which axes and sizes are inputs.

use crate::{
    Error,
    builder::{Attribute, Builder, attribute},
    facts::{Fact, Facts},
    onnx::{ModelProto, NodeProto},
};

/// The oldest operator set that can be lifted: slices and pads take their bounds as inputs since then.
const OLDEST: i64 = 11;
/// The operator set that the rest of this crate, the trainer and the runtime write for at least.
const LEAST: i64 = 13;

/// Lifts `model` to operator set 13 where it is written for an older one.
///
/// # Errors
/// When it is too old, or at a Softmax over several dimensions at once.
pub(crate) fn lift(model: &mut ModelProto, facts: &Facts) -> Result<(), Error> {
    let opset = model.opset();
    if opset >= LEAST {
        return Ok(());
    }
    if opset < OLDEST {
        return Err(Error::unusable(format!(
            "operator set {opset} is too old; export the model with operator set 17 or later"
        )));
    }
    let graph = model.graph.get_or_insert_default();
    let mut builder = Builder::beside(graph, "lift", LEAST);
    for node in graph
        .node
        .iter_mut()
        .filter(|node| node.domain().is_empty())
    {
        match node.op_type() {
            "Unsqueeze" | "Squeeze" | "ReduceSum" => take_as_input(&mut builder, node, "axes"),
            "Split" => take_as_input(&mut builder, node, "split"),
            "Softmax" | "LogSoftmax" => name_last_axis(node, facts)?,
            _ => {}
        }
    }
    builder.append_to(graph);
    let own = |domain: &str| matches!(domain, "" | "ai.onnx");
    for entry in &mut model.opset_import {
        if own(entry.domain()) {
            entry.version = Some(LEAST);
        }
    }
    Ok(())
}

fn take_as_input(builder: &mut Builder, node: &mut NodeProto, attribute: &str) {
    let Some(values) = node.ints(attribute).map(<[i64]>::to_vec) else {
        return;
    };
    node.attribute.retain(|entry| entry.name() != attribute);
    node.input.push(builder.ints(&values));
}

/// Before operator set 13 the axis was 1 where none is named, and all behind it took part.
fn name_last_axis(node: &mut NodeProto, facts: &Facts) -> Result<(), Error> {
    let rank = node
        .input(0)
        .and_then(|input| facts.get(input))
        .map(Fact::rank);
    let axis = node.int("axis", 1);
    if axis != -1 && rank.is_none_or(|rank| axis + 1 != rank as i64) {
        return Err(Error::at(
            node,
            "takes several dimensions as one; export the model with operator set 17 or later",
        ));
    }
    node.attribute.retain(|entry| entry.name() != "axis");
    node.attribute.push(attribute("axis", &Attribute::Int(-1)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::onnx::{GraphProto, OperatorSetIdProto, ValueInfoProto, data_type};

    /// A model with one node on `x` [2, 3, 4].
    fn model(opset: i64, operator: &str, attributes: &[(&str, Attribute)]) -> (ModelProto, Facts) {
        let input = ValueInfoProto::tensor("x", data_type::FLOAT, &["a", "b", "c"]);
        let mut graph = GraphProto {
            input: vec![input],
            ..GraphProto::default()
        };
        let mut builder = Builder::beside(&graph, "t", opset);
        builder.write(operator, &["x"], &["y"], attributes);
        builder.append_to(&mut graph);
        let shapes = HashMap::from([("x".to_owned(), vec![2, 3, 4])]);
        let facts = Facts::of(&graph, &[shapes]);
        let opset_import = vec![OperatorSetIdProto {
            domain: None,
            version: Some(opset),
        }];
        let model = ModelProto {
            graph: Some(graph),
            opset_import,
            ..ModelProto::default()
        };
        (model, facts)
    }

    #[test]
    fn axes_become_inputs() {
        let (mut model, facts) = model(11, "Unsqueeze", &[("axes", Attribute::Ints(vec![1]))]);
        lift(&mut model, &facts).unwrap();
        assert_eq!(model.opset(), 13);
        let graph = model.graph.unwrap();
        let [node] = graph.node.as_slice() else {
            panic!("{} nodes", graph.node.len());
        };
        assert!(node.attribute.is_empty());
        let axes = graph.initializer(node.input(1).unwrap()).unwrap();
        assert_eq!(axes.numbers(1).unwrap(), [1.0]);
    }

    #[test]
    fn a_softmax_over_several_dimensions_is_refused() {
        let (mut several, facts) = model(12, "Softmax", &[]);
        let error = lift(&mut several, &facts).unwrap_err().to_string();
        assert!(error.contains("several dimensions"), "{error}");
        let (mut last, facts) = model(12, "Softmax", &[("axis", Attribute::Int(2))]);
        lift(&mut last, &facts).unwrap();
        assert_eq!(last.graph.unwrap().node[0].int("axis", 0), -1);
    }

    #[test]
    fn what_is_too_old_is_refused_and_what_is_new_stays() {
        let (mut old, facts) = model(9, "Relu", &[]);
        let error = lift(&mut old, &facts).unwrap_err().to_string();
        assert!(error.contains("operator set 9 is too old"), "{error}");
        let (mut new, facts) = model(17, "Softmax", &[]);
        let before = new.clone();
        lift(&mut new, &facts).unwrap();
        assert_eq!(new, before);
    }
}
