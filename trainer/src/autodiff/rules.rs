//! The table of gradients, sorted by operator.
//!
//! Formulas are those of the operators' definitions in the ONNX operator reference, differentiated by hand;
//! the source is named where there is another.

use std::f64::consts::PI;

use preface_graph::{builder::Attribute, onnx::data_type};

use super::{
    Call, Check, Gradient,
    Gradient::{Flows, Stops},
    Operand::{Absent, Fixed, Free, Ints, Number, Positive, Table, Truth},
    Part, Rule, Setting, passes, slices,
};
use crate::Error;

type Parts = Result<Vec<Part>, Error>;

const fn rule(operator: &'static str, gradient: Gradient, checks: &'static [Check]) -> Rule {
    Rule {
        operator,
        gradient,
        checks,
    }
}

const fn stops(operator: &'static str) -> Rule {
    rule(operator, Stops, &[])
}

const fn check(
    inputs: &'static [super::Operand],
    attributes: &'static [(&'static str, Setting)],
) -> Check {
    let outputs = 1;
    Check {
        inputs,
        attributes,
        outputs,
    }
}

/// Operators whose first output is integers and still passes a gradient, straight through.
pub(super) const ROUNDING: &[&str] = &["DynamicQuantizeLinear", "QuantizeLinear"];

/// A rule for every operator between a prompt and a loss.
pub const RULES: &[Rule] = &[
    rule("Abs", Flows(abs), &[check(&[Free(&[2, 3])], &[])]),
    rule(
        "Add",
        Flows(add),
        &[
            check(&[Free(&[2, 3, 4]), Free(&[3, 1])], &[]),
            check(&[Free(&[4]), Free(&[2, 4])], &[]),
        ],
    ),
    stops("And"),
    stops("ArgMax"),
    stops("ArgMin"),
    rule(
        "Cast",
        Flows(cast),
        &[check(
            &[Free(&[2, 3])],
            &[("to", Setting::Int(data_type::FLOAT as i64))],
        )],
    ),
    rule(
        "Clip",
        Flows(clip),
        &[
            check(&[Free(&[3, 4]), Number(-0.5), Number(0.7)], &[]),
            check(&[Free(&[3, 4]), Absent, Number(0.2)], &[]),
        ],
    ),
    rule(
        "Concat",
        Flows(slices::concat),
        &[check(
            &[Free(&[2, 3]), Fixed(&[2, 1]), Free(&[2, 2])],
            &[("axis", Setting::Int(-1))],
        )],
    ),
    stops("ConstantOfShape"),
    rule("Cos", Flows(cos), &[check(&[Free(&[2, 3])], &[])]),
    rule("DequantizeLinear", Flows(dequantize_straight_through), &[]),
    rule(
        "Div",
        Flows(div),
        &[
            check(&[Free(&[2, 3]), Positive(&[3])], &[]),
            check(&[Fixed(&[2, 1]), Positive(&[2, 3])], &[]),
        ],
    ),
    rule("Dropout", Flows(identity), &[]),
    rule(
        "DynamicQuantizeLinear",
        Flows(quantize_dynamically_straight_through),
        &[],
    ),
    stops("Equal"),
    rule("Erf", Flows(erf), &[check(&[Free(&[2, 3])], &[])]),
    rule("Exp", Flows(exp), &[check(&[Free(&[2, 3])], &[])]),
    rule(
        "Expand",
        Flows(expand),
        &[check(&[Free(&[2, 1, 3]), Ints(&[2, 2, 4, 3])], &[])],
    ),
    rule(
        "Flatten",
        Flows(reshape),
        &[check(&[Free(&[2, 3, 2])], &[("axis", Setting::Int(2))])],
    ),
    stops("Floor"),
    rule(
        "Gather",
        Flows(slices::gather),
        &[
            check(
                &[Free(&[2, 3, 4]), Table(&[], &[-1])],
                &[("axis", Setting::Int(1))],
            ),
            check(
                &[Free(&[2, 3, 4]), Ints(&[2])],
                &[("axis", Setting::Int(1))],
            ),
            check(&[Free(&[4, 3]), Table(&[2, 2], &[0, 3, 3, 1])], &[]),
        ],
    ),
    rule(
        "GatherND",
        Flows(slices::gather_nd),
        &[check(
            &[Free(&[3, 4]), Table(&[3, 2], &[0, 1, 2, 3, 0, 1])],
            &[],
        )],
    ),
    rule(
        "Gelu",
        Flows(gelu),
        &[
            check(&[Free(&[2, 5])], &[]),
            check(&[Free(&[2, 5])], &[("approximate", Setting::Text("tanh"))]),
        ],
    ),
    rule(
        "Gemm",
        Flows(gemm),
        &[
            check(
                &[Free(&[2, 3]), Fixed(&[3, 4]), Free(&[4])],
                &[
                    ("alpha", Setting::Float(0.5)),
                    ("beta", Setting::Float(2.0)),
                ],
            ),
            check(
                &[Free(&[3, 2]), Fixed(&[4, 3])],
                &[("transA", Setting::Int(1)), ("transB", Setting::Int(1))],
            ),
        ],
    ),
    stops("Greater"),
    stops("GreaterOrEqual"),
    rule("Identity", Flows(identity), &[check(&[Free(&[2, 3])], &[])]),
    stops("IsInf"),
    stops("IsNaN"),
    rule(
        "LayerNormalization",
        Flows(layer_normalization),
        &[check(
            &[Free(&[2, 3, 8]), Fixed(&[8]), Fixed(&[8])],
            &[("epsilon", Setting::Float(1e-3))],
        )],
    ),
    rule(
        "LeakyRelu",
        Flows(leaky_relu),
        &[check(&[Free(&[3, 4])], &[("alpha", Setting::Float(0.1))])],
    ),
    stops("Less"),
    stops("LessOrEqual"),
    rule("Log", Flows(log), &[check(&[Positive(&[2, 3])], &[])]),
    rule(
        "LogSoftmax",
        Flows(log_softmax),
        &[check(&[Free(&[2, 5])], &[("axis", Setting::Int(-1))])],
    ),
    rule(
        "MatMul",
        Flows(matmul),
        &[
            check(&[Free(&[2, 3, 4]), Fixed(&[4, 5])], &[]),
            check(&[Free(&[2, 1, 3, 4]), Free(&[2, 2, 4, 5])], &[]),
            check(&[Free(&[3, 4]), Free(&[2, 4, 5])], &[]),
        ],
    ),
    rule(
        "Max",
        Flows(extremum),
        &[check(&[Free(&[2, 3]), Number(0.1)], &[])],
    ),
    rule(
        "Min",
        Flows(extremum),
        &[check(&[Free(&[2, 3]), Number(0.1)], &[])],
    ),
    rule(
        "Mul",
        Flows(mul),
        &[
            check(&[Free(&[2, 3]), Free(&[3])], &[]),
            check(&[Fixed(&[2, 3]), Free(&[2, 1])], &[]),
        ],
    ),
    rule("Neg", Flows(neg), &[check(&[Free(&[2, 3])], &[])]),
    stops("NonZero"),
    stops("Not"),
    stops("OneHot"),
    stops("Or"),
    rule(
        "Pad",
        Flows(slices::unpad),
        &[
            check(&[Free(&[2, 3]), Ints(&[0, 1, 1, 2])], &[]),
            check(&[Free(&[2, 3]), Ints(&[2, -1]), Absent, Ints(&[1])], &[]),
        ],
    ),
    rule(
        "Pow",
        Flows(pow),
        &[
            check(&[Free(&[2, 3]), Number(2.0)], &[]),
            check(&[Free(&[2, 3]), Number(3.0)], &[]),
            check(&[Positive(&[2, 3]), Number(-0.5)], &[]),
        ],
    ),
    rule("QuantizeLinear", Flows(quantize_straight_through), &[]),
    rule(
        "RMSNormalization",
        Flows(rms_normalization),
        &[check(
            &[Free(&[2, 3, 8]), Fixed(&[8])],
            &[("epsilon", Setting::Float(1e-3))],
        )],
    ),
    stops("Range"),
    rule(
        "Reciprocal",
        Flows(reciprocal),
        &[check(&[Positive(&[2, 3])], &[])],
    ),
    rule(
        "ReduceMean",
        Flows(reduce_mean),
        &[
            check(&[Free(&[2, 3, 4]), Ints(&[-1])], &[]),
            check(
                &[Free(&[2, 3, 4]), Ints(&[0, 2])],
                &[("keepdims", Setting::Int(0))],
            ),
        ],
    ),
    rule(
        "ReduceSum",
        Flows(reduce_sum),
        &[
            check(
                &[Free(&[2, 3, 4]), Ints(&[1])],
                &[("keepdims", Setting::Int(0))],
            ),
            check(&[Free(&[2, 3])], &[]),
        ],
    ),
    rule("Relu", Flows(relu), &[check(&[Free(&[3, 4])], &[])]),
    rule(
        "Reshape",
        Flows(reshape),
        &[check(&[Free(&[2, 3, 4]), Ints(&[0, -1])], &[])],
    ),
    stops("Round"),
    rule(
        "ScatterND",
        Flows(scatter_nd),
        &[check(
            &[Free(&[3, 2]), Table(&[2, 1], &[2, 0]), Free(&[2, 2])],
            &[],
        )],
    ),
    stops("Shape"),
    rule("Sigmoid", Flows(sigmoid), &[check(&[Free(&[2, 3])], &[])]),
    stops("Sign"),
    rule("Sin", Flows(sin), &[check(&[Free(&[2, 3])], &[])]),
    stops("Size"),
    rule(
        "Slice",
        Flows(slices::slice),
        &[
            check(
                &[
                    Free(&[3, 5]),
                    Ints(&[1, -4]),
                    Ints(&[3, i64::MAX]),
                    Ints(&[0, 1]),
                ],
                &[],
            ),
            check(
                &[
                    Free(&[3, 5]),
                    Ints(&[0]),
                    Ints(&[2]),
                    Ints(&[-1]),
                    Ints(&[1]),
                ],
                &[],
            ),
            check(
                &[
                    Free(&[3, 5]),
                    Ints(&[0, 1]),
                    Ints(&[i64::MAX, i64::MAX]),
                    Ints(&[0, 1]),
                    Ints(&[2, 3]),
                ],
                &[],
            ),
        ],
    ),
    rule(
        "Softmax",
        Flows(softmax),
        &[
            check(&[Free(&[2, 5])], &[("axis", Setting::Int(-1))]),
            check(&[Free(&[2, 5])], &[("axis", Setting::Int(0))]),
        ],
    ),
    rule("Softplus", Flows(softplus), &[check(&[Free(&[2, 5])], &[])]),
    rule(
        "Split",
        Flows(slices::split),
        &[Check {
            inputs: &[Free(&[2, 5]), Ints(&[2, 3])],
            attributes: &[("axis", Setting::Int(1))],
            outputs: 2,
        }],
    ),
    rule("Sqrt", Flows(sqrt), &[check(&[Positive(&[2, 3])], &[])]),
    rule(
        "Squeeze",
        Flows(reshape),
        &[check(&[Free(&[2, 1, 3]), Ints(&[1])], &[])],
    ),
    rule(
        "Sub",
        Flows(sub),
        &[check(&[Free(&[2, 3]), Free(&[2, 1])], &[])],
    ),
    rule(
        "Sum",
        Flows(add),
        &[check(&[Free(&[2, 3]), Free(&[3]), Free(&[2, 1])], &[])],
    ),
    rule("Tanh", Flows(tanh), &[check(&[Free(&[2, 3])], &[])]),
    rule(
        "Transpose",
        Flows(transpose),
        &[
            check(&[Free(&[2, 3, 4])], &[("perm", Setting::Ints(&[2, 0, 1]))]),
            check(&[Free(&[2, 3])], &[]),
        ],
    ),
    rule(
        "Trilu",
        Flows(trilu),
        &[check(
            &[Free(&[3, 3]), Table(&[], &[1])],
            &[("upper", Setting::Int(1))],
        )],
    ),
    rule(
        "Unsqueeze",
        Flows(reshape),
        &[check(&[Free(&[2, 3]), Ints(&[1])], &[])],
    ),
    rule(
        "Where",
        Flows(where_),
        &[check(
            &[Truth(&[2, 1], &[true, false]), Free(&[2, 3]), Free(&[3])],
            &[],
        )],
    ),
    stops("Xor"),
    rule(
        "com.microsoft:FusedMatMul",
        Flows(fused_matmul),
        &[check(
            &[Free(&[2, 3, 4]), Fixed(&[5, 4])],
            &[("transB", Setting::Int(1))],
        )],
    ),
    rule(
        "com.microsoft:Gelu",
        Flows(gelu),
        &[check(&[Free(&[2, 5])], &[])],
    ),
];

fn one(part: Part) -> Parts {
    Ok(vec![part])
}

/// The gradient of an operator `y = f(x)` is `dy` times what `derivative` writes.
fn times(
    call: &mut Call,
    derivative: impl FnOnce(&mut Call, &str) -> Result<String, Error>,
) -> Parts {
    let (input, gradient) = (call.input(0)?, call.gradient()?);
    let derivative = derivative(call, &input)?;
    one(Part::exact(0, call.apply("Mul", &[&gradient, &derivative])))
}

/// Gradients for those inputs that want one, as broadcast as the output.
fn each_wanted(
    call: &mut Call,
    mut gradient: impl FnMut(&mut Call, usize) -> Result<String, Error>,
) -> Parts {
    let wanted: Vec<usize> = (0..call.node.input.len())
        .filter(|&index| call.wants(index))
        .collect();
    let parts = wanted
        .into_iter()
        .map(|index| Ok(Part::elements(index, gradient(call, index)?)));
    parts.collect()
}

fn identity(call: &mut Call) -> Parts {
    one(Part::exact(0, call.gradient()?))
}

fn add(call: &mut Call) -> Parts {
    each_wanted(call, |call, _| call.gradient())
}

fn sub(call: &mut Call) -> Parts {
    each_wanted(call, |call, index| {
        let gradient = call.gradient()?;
        Ok(if index == 0 {
            gradient
        } else {
            call.apply("Neg", &[&gradient])
        })
    })
}

fn mul(call: &mut Call) -> Parts {
    each_wanted(call, |call, index| {
        let (gradient, other) = (call.gradient()?, call.input(1 - index)?);
        Ok(call.apply("Mul", &[&gradient, &other]))
    })
}

fn div(call: &mut Call) -> Parts {
    each_wanted(call, |call, index| {
        let divisor = call.input(1)?;
        let gradient = call.gradient()?;
        let quotient = call.apply("Div", &[&gradient, &divisor]);
        if index == 0 {
            return Ok(quotient);
        }
        let output = call.output();
        let scaled = call.apply("Mul", &[&quotient, &output]);
        Ok(call.apply("Neg", &[&scaled]))
    })
}

fn neg(call: &mut Call) -> Parts {
    let gradient = call.gradient()?;
    one(Part::exact(0, call.apply("Neg", &[&gradient])))
}

fn expand(call: &mut Call) -> Parts {
    one(Part::elements(0, call.gradient()?))
}

fn reshape(call: &mut Call) -> Parts {
    let (input, gradient) = (call.input(0)?, call.gradient()?);
    let shape = call.shape(&input)?;
    one(Part::exact(0, call.apply("Reshape", &[&gradient, &shape])))
}

fn transpose(call: &mut Call) -> Parts {
    let rank = call.input_fact(0)?.rank();
    let perm: Vec<i64> = match call.node.ints("perm") {
        Some(perm) => perm.to_vec(),
        None => (0..rank as i64).rev().collect(),
    };
    let mut inverse = vec![0; rank];
    for (to, &from) in perm.iter().enumerate() {
        inverse[from as usize] = to as i64;
    }
    let gradient = call.gradient()?;
    let inverse = [("perm", Attribute::Ints(inverse))];
    one(Part::exact(
        0,
        call.builder.apply("Transpose", &[&gradient], &inverse),
    ))
}

/// The gradient of integers, which straight-through estimators pass, is itself a float.
fn cast(call: &mut Call) -> Parts {
    let (fact, gradient) = (call.input_fact(0)?, call.gradient()?);
    if !fact.is_float() {
        return one(Part::exact(0, gradient));
    }
    one(Part::exact(0, call.builder.cast(&gradient, fact.data_type)))
}

/// The straight-through estimator of Bengio, Leonard and Courville 2013: `round(x / scale) + zero` passes the gradient
/// as `x / scale` would, outside its range too.
fn quantize_straight_through(call: &mut Call) -> Parts {
    let (scale, gradient) = (one_scale(call)?, call.gradient()?);
    one(Part::exact(0, call.apply("Div", &[&gradient, &scale])))
}

/// The same for the other way, `(y - zero) scale`.
fn dequantize_straight_through(call: &mut Call) -> Parts {
    let (scale, gradient) = (one_scale(call)?, call.gradient()?);
    one(Part::exact(0, call.apply("Mul", &[&gradient, &scale])))
}

/// The same where the scale follows the input: it is taken as a constant.
fn quantize_dynamically_straight_through(call: &mut Call) -> Parts {
    let Some(gradient) = call.output_gradients[0].clone() else {
        return Ok(Vec::new());
    };
    let scale = call.node.output[1].clone();
    one(Part::exact(0, call.apply("Div", &[&gradient, &scale])))
}

fn one_scale(call: &Call) -> Result<String, Error> {
    let single = |shape: &Vec<i64>| shape.iter().product::<i64>() == 1;
    match call.input_fact(1)?.shapes.iter().all(single) {
        true => call.input(1),
        false => Err(call.refuse("activations with several scales")),
    }
}

fn where_(call: &mut Call) -> Parts {
    let (condition, zero) = (call.input(0)?, call.number(0.0)?);
    each_wanted(call, |call, index| {
        let gradient = call.gradient()?;
        Ok(match index {
            1 => call.apply("Where", &[&condition, &gradient, &zero]),
            _ => call.apply("Where", &[&condition, &zero, &gradient]),
        })
    })
}

fn trilu(call: &mut Call) -> Parts {
    let gradient = call.gradient()?;
    let mut inputs = vec![gradient.as_str()];
    let diagonal = call.node.input(1).map(str::to_owned);
    inputs.extend(diagonal.as_deref());
    let upper = [("upper", Attribute::Int(call.node.int("upper", 1)))];
    one(Part::exact(0, call.builder.apply("Trilu", &inputs, &upper)))
}

fn scatter_nd(call: &mut Call) -> Parts {
    if call.node.text("reduction", "none") != "none" {
        return Err(call.refuse("a reduction"));
    }
    let (index, gradient) = (call.input(1)?, call.gradient()?);
    let mut parts = Vec::new();
    if call.wants(0) {
        let (updates, zero) = (call.input(2)?, call.number(0.0)?);
        let shape = call.apply("Shape", &[&updates]);
        let zeros = call.apply("Expand", &[&zero, &shape]);
        parts.push(Part::exact(
            0,
            call.apply("ScatterND", &[&gradient, &index, &zeros]),
        ));
    }
    if call.wants(2) {
        parts.push(Part::exact(2, call.apply("GatherND", &[&gradient, &index])));
    }
    Ok(parts)
}

fn transposed_product(call: &mut Call, left: &str, right: &str, turn: (bool, bool)) -> String {
    let turns = [
        ("transA", Attribute::Int(i64::from(turn.0))),
        ("transB", Attribute::Int(i64::from(turn.1))),
    ];
    call.builder
        .apply("com.microsoft:FusedMatMul", &[left, right], &turns)
}

/// `Y = A B`: `dA = dY B^T`, `dB = A^T dY`.
fn matmul(call: &mut Call) -> Parts {
    let (left, right, gradient) = (call.input(0)?, call.input(1)?, call.gradient()?);
    if call.fact(&left)?.rank() < 2 || call.fact(&right)?.rank() < 2 {
        return Err(call.refuse("a product with a vector"));
    }
    let mut parts = Vec::new();
    if call.wants(0) {
        let product = transposed_product(call, &gradient, &right, (false, true));
        parts.push(Part::matrices(0, product));
    }
    if call.wants(1) {
        let product = transposed_product(call, &left, &gradient, (true, false));
        parts.push(Part::matrices(1, product));
    }
    Ok(parts)
}

/// `Y = alpha op(A) op(B)` of com.microsoft with the first operand as it is.
fn fused_matmul(call: &mut Call) -> Parts {
    let plain = call.node.int("transA", 0) == 0
        && call.node.int("transBatchA", 0) == 0
        && call.node.int("transBatchB", 0) == 0;
    if !plain || call.wants(1) {
        return Err(call.refuse("only the first operand, as it is, has a gradient"));
    }
    let (right, gradient) = (call.input(1)?, call.gradient()?);
    let turn = call.node.int("transB", 0) == 0;
    let product = transposed_product(call, &gradient, &right, (false, turn));
    let alpha = call.number(f64::from(call.node.float("alpha", 1.0)))?;
    one(Part::matrices(0, call.apply("Mul", &[&product, &alpha])))
}

fn gemm(call: &mut Call) -> Parts {
    if call.wants(1) {
        return Err(call.refuse("a gradient of the second operand"));
    }
    let (right, gradient) = (call.input(1)?, call.gradient()?);
    let (turned_left, turned_right) = (call.node.int("transA", 0), call.node.int("transB", 0));
    let alpha = ("alpha", Attribute::Float(call.node.float("alpha", 1.0)));
    let mut parts = Vec::new();
    if call.wants(0) {
        let product = if turned_left == 0 {
            let turns = [("transB", Attribute::Int(1 - turned_right)), alpha];
            call.builder.apply("Gemm", &[&gradient, &right], &turns)
        } else {
            let turns = [
                ("transA", Attribute::Int(turned_right)),
                ("transB", Attribute::Int(1)),
                alpha,
            ];
            call.builder.apply("Gemm", &[&right, &gradient], &turns)
        };
        parts.push(Part::exact(0, product));
    }
    if call.wants(2) {
        let beta = call.number(f64::from(call.node.float("beta", 1.0)))?;
        parts.push(Part::elements(2, call.apply("Mul", &[&gradient, &beta])));
    }
    Ok(parts)
}

/// `y (dy - sum(dy y))`; a row that hides everything passes nothing.
fn softmax(call: &mut Call) -> Parts {
    let (output, gradient) = (call.mended_output(), call.gradient()?);
    let operands = [gradient.as_str(), &output];
    let rank = call.fact(&output)?.rank();
    let axis = call.node.int("axis", -1);
    let through = if call.axis(axis, rank) + 1 == rank {
        call.pass(&passes::SOFTMAX_GRAD, &operands)?
    } else {
        passes::softmax_grad(call.builder, &operands, axis)
    };
    one(Part::exact(0, through))
}

/// `dy - exp(y) sum(dy)`.
fn log_softmax(call: &mut Call) -> Parts {
    let axis = call.node.int("axis", -1);
    let (output, gradient) = (call.output(), call.gradient()?);
    let total = call.builder.reduce("ReduceSum", &gradient, &[axis], true);
    let probability = call.apply("Exp", &[&output]);
    let shared = call.apply("Mul", &[&probability, &total]);
    one(Part::exact(0, call.apply("Sub", &[&gradient, &shared])))
}

/// Layer normalisation, from the forward's own mean and inverse deviation.
fn layer_normalization(call: &mut Call) -> Parts {
    normalises_last_axis(call)?;
    let (output, input, scale) = (call.output(), call.input(0)?, call.input(1)?);
    let (mean, inverse) = (
        format!("{output}/mean"),
        format!("{output}/inverse-deviation"),
    );
    call.node.output = vec![output, mean.clone(), inverse.clone()];
    let gradient = call.gradient()?;
    let operands = [&gradient, &input, &scale, &mean, &inverse].map(String::as_str);
    let through = call.pass(&passes::LAYER_NORMALIZATION_GRAD, &operands)?;
    one(Part::exact(0, through))
}

/// Root-mean-square normalisation (Zhang and Sennrich 2019): as layer normalisation, without the mean.
fn rms_normalization(call: &mut Call) -> Parts {
    normalises_last_axis(call)?;
    let (input, scale, gradient) = (call.input(0)?, call.input(1)?, call.gradient()?);
    let epsilon = call.number(f64::from(call.node.float("epsilon", 1e-5)))?;
    let square = call.apply("Mul", &[&input, &input]);
    let mean = call.builder.reduce("ReduceMean", &square, &[-1], true);
    let mean = call.apply("Add", &[&mean, &epsilon]);
    let deviation = call.apply("Sqrt", &[&mean]);
    let normal = call.apply("Div", &[&input, &deviation]);
    let gradient = call.apply("Mul", &[&gradient, &scale]);
    let rest = along(call, &gradient, &normal);
    let rest = call.apply("Sub", &[&gradient, &rest]);
    one(Part::exact(0, call.apply("Div", &[&rest, &deviation])))
}

fn normalises_last_axis(call: &Call) -> Result<(), Error> {
    let rank = call.input_fact(0)?.rank();
    if call.wants(1) || call.wants(2) {
        return Err(call.refuse("a gradient of scale or bias"));
    }
    match call.axis(call.node.int("axis", -1), rank) + 1 == rank {
        true => Ok(()),
        false => Err(call.refuse("normalises over more than the last axis")),
    }
}

/// `normal * mean(gradient * normal)` over the last axis.
fn along(call: &mut Call, gradient: &str, normal: &str) -> String {
    let product = call.apply("Mul", &[gradient, normal]);
    let mean = call.builder.reduce("ReduceMean", &product, &[-1], true);
    call.apply("Mul", &[normal, &mean])
}

/// `1 - y^2`.
fn tanh(call: &mut Call) -> Parts {
    times(call, |call, _| {
        let (output, one) = (call.output(), call.number(1.0)?);
        let square = call.apply("Mul", &[&output, &output]);
        Ok(call.apply("Sub", &[&one, &square]))
    })
}

/// `y (1 - y)`.
fn sigmoid(call: &mut Call) -> Parts {
    times(call, |call, _| {
        let (output, one) = (call.output(), call.number(1.0)?);
        let rest = call.apply("Sub", &[&one, &output]);
        Ok(call.apply("Mul", &[&output, &rest]))
    })
}

/// `sigmoid(x)`.
fn softplus(call: &mut Call) -> Parts {
    times(call, |call, input| Ok(call.apply("Sigmoid", &[input])))
}

fn exp(call: &mut Call) -> Parts {
    times(call, |call, _| Ok(call.output()))
}

fn log(call: &mut Call) -> Parts {
    let (input, gradient) = (call.input(0)?, call.gradient()?);
    one(Part::exact(0, call.apply("Div", &[&gradient, &input])))
}

fn sin(call: &mut Call) -> Parts {
    times(call, |call, input| Ok(call.apply("Cos", &[input])))
}

fn cos(call: &mut Call) -> Parts {
    times(call, |call, input| {
        let sine = call.apply("Sin", &[input]);
        Ok(call.apply("Neg", &[&sine]))
    })
}

/// `1 / (2 y)`.
fn sqrt(call: &mut Call) -> Parts {
    times(call, |call, _| {
        let (output, half) = (call.output(), call.number(0.5)?);
        Ok(call.apply("Div", &[&half, &output]))
    })
}

/// `-y^2`.
fn reciprocal(call: &mut Call) -> Parts {
    times(call, |call, _| {
        let output = call.output();
        let square = call.apply("Mul", &[&output, &output]);
        Ok(call.apply("Neg", &[&square]))
    })
}

fn abs(call: &mut Call) -> Parts {
    times(call, |call, input| Ok(call.apply("Sign", &[input])))
}

/// `2 / sqrt(pi) exp(-x^2)`, by a division by `exp(x^2)`.
fn erf(call: &mut Call) -> Parts {
    let (input, gradient) = (call.input(0)?, call.gradient()?);
    let scale = call.number(2.0 / PI.sqrt())?;
    let square = call.apply("Mul", &[&input, &input]);
    let inverse = call.apply("Exp", &[&square]);
    let bell = call.apply("Div", &[&gradient, &inverse]);
    one(Part::exact(0, call.apply("Mul", &[&bell, &scale])))
}

fn relu(call: &mut Call) -> Parts {
    passes_where(call, 0.0)
}

fn leaky_relu(call: &mut Call) -> Parts {
    let alpha = f64::from(call.node.float("alpha", 0.01));
    passes_where(call, alpha)
}

/// 1 where the input is positive, `otherwise` elsewhere.
fn passes_where(call: &mut Call, otherwise: f64) -> Parts {
    times(call, |call, input| {
        let (zero, one, otherwise) = (
            call.number(0.0)?,
            call.number(1.0)?,
            call.number(otherwise)?,
        );
        let positive = call.apply("Greater", &[input, &zero]);
        Ok(call.apply("Where", &[&positive, &one, &otherwise]))
    })
}

/// Gaussian error linear unit (Hendrycks and Gimpel 2016), exact and with tanh.
fn gelu(call: &mut Call) -> Parts {
    if call.node.text("approximate", "none") == "tanh" {
        return times(call, gelu_tanh_derivative);
    }
    let (input, gradient) = (call.input(0)?, call.gradient()?);
    let through = call.pass(&passes::GELU_GRAD, &[&gradient, &input])?;
    one(Part::exact(0, through))
}

/// With `u = sqrt(2 / pi) (x + c x^3)`: `(1 + tanh u) / 2 + x (1 - tanh^2 u) sqrt(2 / pi) (1 + 3 c x^2) / 2`.
fn gelu_tanh_derivative(call: &mut Call, input: &str) -> Result<String, Error> {
    const CUBIC: f64 = 0.044715;
    let (one, half, root) = (
        call.number(1.0)?,
        call.number(0.5)?,
        call.number((2.0 / PI).sqrt())?,
    );
    let (cubic, triple) = (call.number(CUBIC)?, call.number(3.0 * CUBIC)?);
    let square = call.apply("Mul", &[input, input]);
    let inner = call.apply("Mul", &[&square, &cubic]);
    let inner = call.apply("Add", &[&inner, &one]);
    let inner = call.apply("Mul", &[&inner, input]);
    let inner = call.apply("Mul", &[&inner, &root]);
    let tanh = call.apply("Tanh", &[&inner]);
    let slope = call.apply("Mul", &[&square, &triple]);
    let slope = call.apply("Add", &[&slope, &one]);
    let slope = call.apply("Mul", &[&slope, &root]);
    let tanh_square = call.apply("Mul", &[&tanh, &tanh]);
    let bell = call.apply("Sub", &[&one, &tanh_square]);
    let moved = call.apply("Mul", &[&bell, &slope]);
    let moved = call.apply("Mul", &[&moved, input]);
    let level = call.apply("Add", &[&tanh, &one]);
    let sum = call.apply("Add", &[&level, &moved]);
    Ok(call.apply("Mul", &[&sum, &half]))
}

/// `e x^(e - 1)` for a constant exponent `e`.
fn pow(call: &mut Call) -> Parts {
    let exponent = call.input_fact(1)?.constant_scalar();
    let exponent = exponent
        .filter(|_| !call.wants(1))
        .ok_or_else(|| call.refuse("an exponent that is not one number"))?;
    times(call, |call, input| {
        let factor = call.number(exponent)?;
        let power = if exponent == 2.0 {
            input.to_owned()
        } else if exponent == 3.0 {
            call.apply("Mul", &[input, input])
        } else {
            let lower = call.number(exponent - 1.0)?;
            call.apply("Pow", &[input, &lower])
        };
        Ok(call.apply("Mul", &[&power, &factor]))
    })
}

fn clip(call: &mut Call) -> Parts {
    let (input, zero) = (call.input(0)?, call.number(0.0)?);
    let mut gradient = call.gradient()?;
    for (bound, inside) in [(1, "GreaterOrEqual"), (2, "LessOrEqual")] {
        if let Some(bound) = call.node.input(bound).map(str::to_owned) {
            let inside = call.apply(inside, &[&input, &bound]);
            gradient = call.apply("Where", &[&inside, &gradient, &zero]);
        }
    }
    one(Part::exact(0, gradient))
}

/// The gradient goes to the input that the output equals.
fn extremum(call: &mut Call) -> Parts {
    let (output, zero) = (call.output(), call.number(0.0)?);
    each_wanted(call, |call, index| {
        let (input, gradient) = (call.input(index)?, call.gradient()?);
        let taken = call.apply("Equal", &[&input, &output]);
        Ok(call.apply("Where", &[&taken, &gradient, &zero]))
    })
}

fn reduce_sum(call: &mut Call) -> Parts {
    let gradient = spread_out(call)?;
    one(Part::exact(0, gradient))
}

fn reduce_mean(call: &mut Call) -> Parts {
    let fact = call.input_fact(0)?;
    let axes = call.axes(1, fact.rank())?;
    let constant: Option<i64> = axes.iter().map(|&axis| fact.constant_dim(axis)).product();
    let gradient = spread_out(call)?;
    let count = match constant {
        Some(count) => call.number(count as f64)?,
        None => {
            let input = call.input(0)?;
            let shape = call.apply("Shape", &[&input]);
            let axes = call
                .builder
                .ints(&axes.iter().map(|&axis| axis as i64).collect::<Vec<_>>());
            let sizes =
                call.builder
                    .apply("Gather", &[&shape, &axes], &[("axis", Attribute::Int(0))]);
            let count =
                call.builder
                    .apply("ReduceProd", &[&sizes], &[("keepdims", Attribute::Int(0))]);
            call.builder.cast(&count, fact.data_type)
        }
    };
    one(Part::exact(0, call.apply("Div", &[&gradient, &count])))
}

/// The gradient of a reduction, repeated over the reduced axes.
fn spread_out(call: &mut Call) -> Result<String, Error> {
    let (input, mut gradient) = (call.input(0)?, call.gradient()?);
    let rank = call.fact(&input)?.rank();
    if call.node.int("keepdims", 1) == 0 {
        let axes: Vec<i64> = call
            .axes(1, rank)?
            .iter()
            .map(|&axis| axis as i64)
            .collect();
        let axes = call.builder.ints(&axes);
        gradient = call.apply("Unsqueeze", &[&gradient, &axes]);
    }
    let shape = call.apply("Shape", &[&input]);
    Ok(call.apply("Expand", &[&gradient, &shape]))
}
