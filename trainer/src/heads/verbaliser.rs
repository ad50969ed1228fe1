//! The base's own logits at the tokens that speak for each label (Schick and Schuetze 2021, section 3).
//!
//! A label of several tokens has the mean of their logits. Only the columns of those tokens are multiplied, where the
//! logits are no more than a product.

use preface_graph::onnx::data_type;

use super::{Head, ONE_OR_MORE_LABELS, Reads, linear::against_rows};

pub(super) const HEAD: Head = Head {
    name: "verbaliser",
    reads: Reads::Projection,
    answers: ONE_OR_MORE_LABELS,
    parameters: |_| Vec::new(),
    given: |size| {
        vec![
            ("columns", vec![size.classes, size.width]),
            ("bias", vec![size.classes]),
        ]
    },
    subgraph: |builder, _, rows, given| {
        // Logits of tokens that a base rules out are minus infinity, which a share of zero would make no number.
        let lowest = builder.scalar(data_type::FLOAT, f64::from(f32::MIN));
        let rows = builder.apply("Clip", &[rows, &lowest], &[]);
        let product = against_rows(builder, &rows, &given[0]);
        builder.apply("Add", &[&product, &given[1]], &[])
    },
    random: &[],
    stored: &[],
};

#[cfg(test)]
mod tests {
    use std::path::Path;

    use preface_graph::{
        builder::Builder,
        onnx::{GraphProto, ModelProto, OperatorSetIdProto, ValueInfoProto},
    };

    use super::*;
    use crate::{
        engine::{Array, tests::library},
        heads::HeadSize,
    };

    #[test]
    fn tokens_that_a_base_rules_out_leave_the_other_labels_their_logits() {
        let input = |name, dims: &[&str]| ValueInfoProto::tensor(name, data_type::FLOAT, dims);
        let mut graph = GraphProto {
            input: vec![
                input("rows", &["1", "4"]),
                input("shares", &["3", "4"]),
                input("bias", &["3"]),
            ],
            ..GraphProto::default()
        };
        let mut builder = Builder::beside(&graph, "head", 18);
        let size = HeadSize {
            classes: 3,
            width: 4,
            rank: 1,
        };
        let given = ["shares".to_owned(), "bias".to_owned()];
        let logits = (HEAD.subgraph)(&mut builder, size, "rows", &given);
        builder.append_to(&mut graph);
        graph.output = vec![ValueInfoProto::untyped(&logits)];
        let model = ModelProto {
            ir_version: Some(8),
            graph: Some(graph),
            opset_import: vec![OperatorSetIdProto {
                domain: None,
                version: Some(18),
            }],
            ..ModelProto::default()
        };
        let mut session = library().session(&model, Path::new(""), 1).unwrap();
        let rows = Array::floats(
            &[1, 4],
            vec![2.0, f32::NEG_INFINITY, 4.0, f32::NEG_INFINITY],
        );
        let shares = vec![0.5, 0.0, 0.5, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.5];
        let shares = Array::floats(&[3, 4], shares);
        let bias = Array::floats(&[3], vec![0.0, 1.0, 0.0]);
        let found = session.run(&[("rows", &rows), ("shares", &shares), ("bias", &bias)]);
        let found = found.unwrap().remove(0).into_floats().unwrap();
        assert_eq!(found, [3.0, 3.0, f32::MIN]);
    }
}
