//! The base's own logits at the tokens that speak for each label (Schick and Schuetze 2021, section 3).
//!
//! A label of several tokens has the mean of their logits. Only the columns of those tokens are multiplied, where the
//! logits are no more than a product.

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
        let product = against_rows(builder, rows, &given[0]);
        builder.apply("Add", &[&product, &given[1]], &[])
    },
    random: &[],
    stored: &[],
};
