//! The passes as plain loops, compiled for the widest vectors that the processor has.

use std::f32::consts::{FRAC_1_SQRT_2, LOG2_E};

/// Sums that are added up side by side.
const LANES: usize = 16;

/// Rows of a pass.
pub struct Rows<'a> {
    /// The operands, in their order: those parts of them that belong to the rows.
    pub operands: &'a [&'a [f32]],
    /// The result `[rows, width]`.
    pub result: &'a mut [f32],
    /// Elements of a row.
    pub width: usize,
}

/// A loop over rows.
pub(super) trait Loop {
    /// Computes the result.
    fn run(rows: &mut Rows);
}

/// Runs a loop with the widest vectors that the processor has; every width gives the same numbers.
pub(super) fn widest<L: Loop>(rows: &mut Rows) {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512, as the line above asked.
            return unsafe { avx512::<L>(rows) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2, as the line above asked.
            return unsafe { avx2::<L>(rows) };
        }
    }
    L::run(rows);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512<L: Loop>(rows: &mut Rows) {
    L::run(rows);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2<L: Loop>(rows: &mut Rows) {
    L::run(rows);
}

/// `dy (Phi(x) + x phi(x))` with the normal distribution and its density.
pub(super) struct GeluGrad;

impl Loop for GeluGrad {
    #[inline(always)]
    fn run(rows: &mut Rows) {
        let (gradient, input) = (rows.operands[0], rows.operands[1]);
        for ((result, &gradient), &x) in rows.result.iter_mut().zip(gradient).zip(input) {
            *result = gradient * gelu_slope(x);
        }
    }
}

/// `Phi(x) + x phi(x)`, within 4e-7: `1 - Phi(|x|)` by Abramowitz and Stegun 1964, 7.1.26, which takes the density's
/// exponential.
#[inline(always)]
fn gelu_slope(x: f32) -> f32 {
    const STEP: f32 = 0.327_591_1 * FRAC_1_SQRT_2;
    const SERIES: [f32; 5] = [
        0.254_829_6,
        -0.284_496_72,
        1.421_413_8,
        -1.453_152_1,
        1.061_405_4,
    ];
    /// `1 / sqrt(2 pi)`.
    const HEIGHT: f32 = 0.398_942_3;
    let bell = exp_of_negative(-0.5 * x * x);
    let step = 1.0 / (1.0 + STEP * x.abs());
    let series = SERIES
        .iter()
        .rev()
        .fold(0.0, |sum, factor| sum * step + factor);
    let tail = 0.5 * series * step * bell;
    let area = if x < 0.0 { tail } else { 1.0 - tail };
    area + x * bell * HEIGHT
}

/// `exp(x)` of `x <= 0`, within 2e-7 of itself; the least positive normal number where that is less.
///
/// `x` is split into `n ln 2 + r` with `|r| <= ln 2 / 2`, and `exp(r)` is a Taylor series.
#[inline(always)]
fn exp_of_negative(x: f32) -> f32 {
    const LEAST: f32 = -87.0;
    /// Behind its last bit there is no fraction, so that adding it rounds.
    const ROUNDER: f32 = 12_582_912.0;
    /// `ln 2` in two parts, of which the first times a small integer is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    const SERIES: [f32; 7] = [
        1.0,
        1.0,
        0.5,
        1.0 / 6.0,
        1.0 / 24.0,
        1.0 / 120.0,
        1.0 / 720.0,
    ];
    let x = if x < LEAST { LEAST } else { x };
    let shifted = x * LOG2_E + ROUNDER;
    let exponent = shifted - ROUNDER;
    let rest = x - exponent * LN_2[0] - exponent * LN_2[1];
    let series = SERIES
        .iter()
        .rev()
        .fold(0.0, |sum, factor| sum * rest + factor);
    let power = shifted.to_bits().wrapping_sub(ROUNDER.to_bits());
    series * f32::from_bits(power.wrapping_add(127) << 23)
}

/// `(g - mean(g) - n mean(g n)) / deviation` with `n` the normalised input and `g = dy * scale`.
pub(super) struct LayerNormalizationGrad;

impl Loop for LayerNormalizationGrad {
    #[inline(always)]
    fn run(rows: &mut Rows) {
        let &[gradients, inputs, scale, means, inverses] = rows.operands else {
            return;
        };
        let statistics = means.iter().zip(inverses);
        let lines = gradients.chunks(rows.width).zip(inputs.chunks(rows.width));
        let results = rows.result.chunks_mut(rows.width);
        for ((result, (gradient, input)), (&mean, &inverse)) in results.zip(lines).zip(statistics) {
            let [sum, along] = sums(rows.width, |at| {
                let scaled = gradient[at] * scale[at];
                [scaled, scaled * (input[at] - mean)]
            });
            let count = rows.width as f32;
            let (average, along) = (sum / count, along / count * inverse * inverse);
            for (at, result) in result.iter_mut().enumerate() {
                let level = gradient[at] * scale[at] - average;
                *result = (level - (input[at] - mean) * along) * inverse;
            }
        }
    }
}

/// `y (dy - sum(dy y))`.
pub(super) struct SoftmaxGrad;

impl Loop for SoftmaxGrad {
    #[inline(always)]
    fn run(rows: &mut Rows) {
        let (gradients, outputs) = (rows.operands[0], rows.operands[1]);
        let lines = gradients.chunks(rows.width).zip(outputs.chunks(rows.width));
        for (result, (gradient, output)) in rows.result.chunks_mut(rows.width).zip(lines) {
            let [total] = sums(rows.width, |at| [gradient[at] * output[at]]);
            for ((result, &gradient), &output) in result.iter_mut().zip(gradient).zip(output) {
                *result = output * (gradient - total);
            }
        }
    }
}

/// Sums of what `terms` gives at each place, [`LANES`] of each side by side.
#[inline(always)]
fn sums<const N: usize>(count: usize, terms: impl Fn(usize) -> [f32; N]) -> [f32; N] {
    let mut lanes = [[0.0; LANES]; N];
    let whole = count / LANES * LANES;
    for first in (0..whole).step_by(LANES) {
        for lane in 0..LANES {
            let terms = terms(first + lane);
            for (lanes, term) in lanes.iter_mut().zip(terms) {
                lanes[lane] += term;
            }
        }
    }
    let mut sums = lanes.map(|lanes| lanes.iter().sum());
    for at in whole..count {
        for (sum, term) in sums.iter_mut().zip(terms(at)) {
            *sum += term;
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_of_every_width_give_the_same_numbers() {
        const WIDTH: usize = 37;
        let numbers = |salt: f32| {
            let number = |at: usize| (1.7 * at as f32 + salt).sin();
            (0..3 * WIDTH).map(number).collect::<Vec<_>>()
        };
        let (gradient, input, scale) = (numbers(0.3), numbers(1.3), numbers(2.3));
        let (mean, inverse) = ([0.1, -0.2, 0.3], [1.1, 1.2, 1.3]);
        let operands: [&[f32]; 5] = [&gradient, &input, &scale[..WIDTH], &mean, &inverse];
        let run = |kernel: fn(&mut Rows)| {
            let mut result = vec![0.0; 3 * WIDTH];
            kernel(&mut Rows {
                operands: &operands,
                result: &mut result,
                width: WIDTH,
            });
            result
        };
        let table: [[fn(&mut Rows); 2]; 3] = [
            [GeluGrad::run, widest::<GeluGrad>],
            [
                LayerNormalizationGrad::run,
                widest::<LayerNormalizationGrad>,
            ],
            [SoftmaxGrad::run, widest::<SoftmaxGrad>],
        ];
        for kernels in table {
            let [narrow, wide] = kernels.map(run);
            assert_eq!(narrow, wide);
            assert!(narrow.iter().all(|number| *number != 0.0));
        }
    }

    #[test]
    fn the_slope_of_gelu_is_exact_to_seven_digits() {
        let table = [
            (-20.0, 0.0),
            (-3.0, -0.011_945_647),
            (-1.0, -0.083_315_47),
            (-0.5, 0.132_504_87),
            (0.0, 0.5),
            (0.5, 0.867_495_1),
            (1.0, 1.083_315_5),
            (3.0, 1.011_945_6),
            (20.0, 1.0),
        ];
        for (x, slope) in table {
            let found = gelu_slope(x);
            assert!((found - slope).abs() < 4e-7, "{x}: {found} {slope}");
        }
        assert!(gelu_slope(f32::NAN).is_nan());
    }

    #[test]
    fn exponentials_end_at_the_least_normal_number() {
        for x in [0.0, -1e-6, -0.3, -1.0, -10.0, -86.9] {
            let (found, exact) = (exp_of_negative(x), f64::from(x).exp());
            let error = (f64::from(found) - exact).abs() / exact;
            assert!(error < 2e-7, "{x}: {error}");
        }
        for x in [-88.0, -1e9, f32::NEG_INFINITY] {
            assert!((0.0..2e-38).contains(&exp_of_negative(x)), "{x}");
        }
    }
}
