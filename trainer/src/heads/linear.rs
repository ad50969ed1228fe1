//! A linear map from the pooled rows to one logit a label.

use preface_graph::builder::Attribute;

use super::Head;
use crate::methods::Parameter;

pub(super) const HEAD: Head = Head {
    name: "linear",
    parameters: |size| {
        vec![
            Parameter {
                name: "weight".into(),
                shape: vec![size.classes, size.hidden],
            },
            Parameter {
                name: "bias".into(),
                shape: vec![size.classes],
            },
        ]
    },
    subgraph: |builder, pooled, parameters| {
        let turned = [("perm", Attribute::Ints(vec![1, 0]))];
        let weight = builder.apply("Transpose", &[&parameters[0]], &turned);
        let product = builder.apply("MatMul", &[pooled, &weight], &[]);
        builder.apply("Add", &[&product, &parameters[1]], &[])
    },
};
