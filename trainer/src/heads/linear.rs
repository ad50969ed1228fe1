//! A linear map from the rows that are read to one logit a label, of the pooled rows or of every word's.

use preface_graph::builder::{Attribute, Builder};

use super::{BIAS, Head, HeadSize, NOTHING, ONE_OR_MORE_LABELS, Reads, WEIGHT};
use crate::{data::AnswerKind, methods::Parameter};

pub(super) const HEAD: Head = Head {
    name: "linear",
    reads: Reads::Hidden,
    answers: ONE_OR_MORE_LABELS,
    parameters,
    given: NOTHING,
    subgraph,
    random: &[],
    stored: &[WEIGHT, BIAS],
};

pub(super) const TOKEN_HEAD: Head = Head {
    name: "token-linear",
    answers: &[AnswerKind::Tags],
    ..HEAD
};

fn parameters(size: HeadSize) -> Vec<Parameter> {
    vec![
        Parameter::new("weight", &[size.classes, size.width]),
        Parameter::new("bias", &[size.classes]),
    ]
}

fn subgraph(builder: &mut Builder, _: HeadSize, rows: &str, parameters: &[String]) -> String {
    let product = against_rows(builder, rows, &parameters[0]);
    builder.apply("Add", &[&product, &parameters[1]], &[])
}

/// `rows weight^T` for a weight `[classes, width]`.
pub(super) fn against_rows(builder: &mut Builder, rows: &str, weight: &str) -> String {
    let turned = [("perm", Attribute::Ints(vec![1, 0]))];
    let weight = builder.apply("Transpose", &[weight], &turned);
    builder.apply("MatMul", &[rows, &weight], &[])
}
