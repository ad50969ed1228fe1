//! Gradients that a processor computes in one pass over memory.
//!
//! In a graph each is a function of the model's own, whose body of ONNX operators is its definition: an engine that has
//! no kernel for it runs the body.

// Calls functions that are compiled for vectors once the processor says that it has them.
#[allow(unsafe_code)]
mod vectors;

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use preface_graph::{
    builder::{Attribute, Builder},
    onnx::{FunctionProto, GraphProto},
};

pub use self::vectors::Rows;
use self::vectors::widest;

/// The domain of the functions.
pub const DOMAIN: &str = "preface";

/// A gradient in one pass: a tensor of the shape of its first operand.
pub struct Pass {
    /// The operator's name.
    pub name: &'static str,
    /// Its operands.
    pub operands: &'static [Operand],
    /// Writes it for an element type in ONNX's own operators.
    pub(super) body: fn(&mut Builder, i32, &[&str]) -> String,
    /// Computes it for 32-bit floats.
    pub kernel: fn(&mut Rows),
}

/// What an operand of a [`Pass`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// A number for each element of the result.
    Elements,
    /// A number for each element of the last axis.
    Columns,
    /// A number for each row of the last axis.
    Rows,
}

/// All of them.
pub const PASSES: &[&Pass] = &[&GELU_GRAD, &LAYER_NORMALIZATION_GRAD, &SOFTMAX_GRAD];

/// The gradient of the exact Gaussian error linear unit (Hendrycks and Gimpel 2016) from `dy` and `x`.
pub const GELU_GRAD: Pass = Pass {
    name: "GeluGrad",
    operands: &[Operand::Elements, Operand::Elements],
    body: gelu_grad,
    kernel: widest::<vectors::GeluGrad>,
};

/// The gradient of layer normalisation over the last axis (Ba et al. 2016) from `dy`, `x`, the scale and the forward's
/// mean and inverse deviation.
pub const LAYER_NORMALIZATION_GRAD: Pass = Pass {
    name: "LayerNormalizationGrad",
    operands: &[
        Operand::Elements,
        Operand::Elements,
        Operand::Columns,
        Operand::Rows,
        Operand::Rows,
    ],
    body: layer_normalization_grad,
    kernel: widest::<vectors::LayerNormalizationGrad>,
};

/// The gradient of a softmax over the last axis from `dy` and `y`.
pub const SOFTMAX_GRAD: Pass = Pass {
    name: "SoftmaxGrad",
    operands: &[Operand::Elements, Operand::Elements],
    body: |builder, _, operands| softmax_grad(builder, operands, -1),
    kernel: widest::<vectors::SoftmaxGrad>,
};

impl Pass {
    /// The operator with its domain.
    pub(super) fn operator(&self) -> String {
        format!("{DOMAIN}:{}", self.name)
    }

    /// The function that defines it for an element type and an operator set.
    pub(super) fn function(&self, data_type: i32, opset: i64) -> FunctionProto {
        let inputs: Vec<String> = (0..self.operands.len())
            .map(|index| format!("x{index}"))
            .collect();
        let operands: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let mut builder = Builder::beside(&GraphProto::default(), self.name, opset);
        let output = (self.body)(&mut builder, data_type, &operands);
        builder.into_function(DOMAIN, self.name, inputs, output)
    }
}

/// With `u = x / sqrt 2`: `dy ((1 + erf u) / 2 + u exp(-u^2) / sqrt(pi))`. A division by `exp(u^2)`, infinite or not,
/// saves a pass over the negation, and a sigmoid of straight lines, exact between -1 and 1, one over the sum.
fn gelu_grad(builder: &mut Builder, data_type: i32, operands: &[&str]) -> String {
    let (gradient, input) = (operands[0], operands[1]);
    let root = builder.scalar(data_type, FRAC_1_SQRT_2);
    let height = builder.scalar(data_type, 1.0 / PI.sqrt());
    let line = [
        ("alpha", Attribute::Float(0.5)),
        ("beta", Attribute::Float(0.5)),
    ];
    let scaled = builder.apply("Mul", &[input, &root], &[]);
    let error = builder.apply("Erf", &[&scaled], &[]);
    let area = builder.apply("HardSigmoid", &[&error], &line);
    let square = builder.apply("Mul", &[&scaled, &scaled], &[]);
    let inverse = builder.apply("Exp", &[&square], &[]);
    let bell = builder.apply("Div", &[&scaled, &inverse], &[]);
    let moved = builder.apply("Mul", &[&bell, &height], &[]);
    let slope = builder.apply("Add", &[&area, &moved], &[]);
    builder.apply("Mul", &[gradient, &slope], &[])
}

/// With `n` the normalised input and `g = dy * scale`: `(g - mean(g) - n mean(g n)) / deviation`. The centred input
/// stands for `n`, its two inverse deviations are multiplied into the mean.
fn layer_normalization_grad(builder: &mut Builder, _: i32, operands: &[&str]) -> String {
    let [gradient, input, scale, mean, inverse] = [0, 1, 2, 3, 4].map(|index| operands[index]);
    let gradient = builder.apply("Mul", &[gradient, scale], &[]);
    let centred = builder.apply("Sub", &[input, mean], &[]);
    let average = builder.reduce("ReduceMean", &gradient, &[-1], true);
    let level = builder.apply("Sub", &[&gradient, &average], &[]);
    let product = builder.apply("Mul", &[&gradient, &centred], &[]);
    let along = builder.reduce("ReduceMean", &product, &[-1], true);
    let square = builder.apply("Mul", &[inverse, inverse], &[]);
    let along = builder.apply("Mul", &[&along, &square], &[]);
    let rest = builder.apply("Mul", &[&centred, &along], &[]);
    let rest = builder.apply("Sub", &[&level, &rest], &[]);
    builder.apply("Mul", &[&rest, inverse], &[])
}

/// Over `axis`: `y (dy - sum(dy y))`.
pub(super) fn softmax_grad(builder: &mut Builder, operands: &[&str], axis: i64) -> String {
    let (gradient, output) = (operands[0], operands[1]);
    let weighted = builder.apply("Mul", &[gradient, output], &[]);
    let total = builder.reduce("ReduceSum", &weighted, &[axis], true);
    let shared = builder.apply("Mul", &[output, &total], &[]);
    builder.apply("Sub", &[&weighted, &shared], &[])
}
