//! A linear head of low rank: `A (B h) + b`, few bytes where there are many labels.

use super::{BIAS, FACTORS, Head, NOTHING, ONE_OR_MORE_LABELS, Reads, linear::against_rows};
use crate::methods::Parameter;

pub(super) const HEAD: Head = Head {
    name: "factored-linear",
    reads: Reads::Hidden,
    answers: ONE_OR_MORE_LABELS,
    parameters: |size| {
        vec![
            Parameter::new("factor.0", &[size.classes, size.rank]),
            Parameter::new("factor.1", &[size.rank, size.width]),
            Parameter::new("bias", &[size.classes]),
        ]
    },
    given: NOTHING,
    subgraph: |builder, _, rows, parameters| {
        let inner = against_rows(builder, rows, &parameters[1]);
        let product = against_rows(builder, &inner, &parameters[0]);
        builder.apply("Add", &[&product, &parameters[2]], &[])
    },
    random: &[1],
    stored: &[FACTORS[0], FACTORS[1], BIAS],
};
