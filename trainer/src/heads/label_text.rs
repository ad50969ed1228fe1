//! Likeness to what the frozen base makes of the label names: no bytes of weights are shipped.
//!
//! Prototypes are the mean-pooled hidden rows that the base gives each name (Reimers and Gurevych 2019, section 3).

use preface_graph::{builder::Builder, onnx::data_type};

use super::{BIAS, Head, ONE_OR_MORE_LABELS, Reads, linear::against_rows};
use crate::methods::Parameter;

/// The cosine's factor: the usual inverse temperature of sentence encoders.
pub const SCALE: f64 = 20.0;

/// The least square of a norm.
const LEAST: f64 = 1e-12;

pub(super) const HEAD: Head = Head {
    name: "label-text",
    reads: Reads::Hidden,
    answers: ONE_OR_MORE_LABELS,
    parameters: |size| vec![Parameter::new("bias", &[size.classes])],
    given: |size| vec![("prototypes", vec![size.classes, size.width])],
    subgraph: |builder, _, rows, names| {
        let (rows, prototypes) = (unit(builder, rows), unit(builder, &names[1]));
        let cosine = against_rows(builder, &rows, &prototypes);
        let scale = builder.scalar(data_type::FLOAT, SCALE);
        let scaled = builder.apply("Mul", &[&cosine, &scale], &[]);
        builder.apply("Add", &[&scaled, &names[0]], &[])
    },
    random: &[],
    stored: &[BIAS],
};

/// Rows of length 1.
fn unit(builder: &mut Builder, rows: &str) -> String {
    let square = builder.apply("Mul", &[rows, rows], &[]);
    let sum = builder.reduce("ReduceSum", &square, &[-1], true);
    let least = builder.scalar(data_type::FLOAT, LEAST);
    let sum = builder.apply("Add", &[&sum, &least], &[]);
    let norm = builder.apply("Sqrt", &[&sum], &[]);
    builder.apply("Div", &[rows, &norm], &[])
}
