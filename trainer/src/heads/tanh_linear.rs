//! A dense layer, tanh and a linear layer: the pooler of encoders with a classifier behind it, `A tanh(B h + c) + b`.

use super::{BIAS, FACTORS, Head, NOTHING, ONE_OR_MORE_LABELS, Reads, linear::against_rows};
use crate::methods::Parameter;

pub(super) const HEAD: Head = Head {
    name: "tanh-linear",
    reads: Reads::Hidden,
    answers: ONE_OR_MORE_LABELS,
    parameters: |size| {
        vec![
            Parameter::new("factor.0", &[size.classes, size.rank]),
            Parameter::new("factor.1", &[size.rank, size.width]),
            Parameter::new("bias", &[size.classes + size.rank]),
        ]
    },
    given: NOTHING,
    subgraph: |builder, size, rows, parameters| {
        let ends =
            [0, size.classes, size.classes + size.rank].map(|end| builder.ints(&[end as i64]));
        let [outer, inner] = [0, 1].map(|part| {
            builder.apply(
                "Slice",
                &[&parameters[2], &ends[part], &ends[part + 1]],
                &[],
            )
        });
        let product = against_rows(builder, rows, &parameters[1]);
        let sum = builder.apply("Add", &[&product, &inner], &[]);
        let pooled = builder.apply("Tanh", &[&sum], &[]);
        let product = against_rows(builder, &pooled, &parameters[0]);
        builder.apply("Add", &[&product, &outer], &[])
    },
    random: &[0, 1],
    stored: &[FACTORS[0], FACTORS[1], BIAS],
};
