//! Numbers in fewer bits, and what that costs.

use half::{bf16, f16};
use preface_bundle::{Dtype, Role, TensorSpec};

use crate::{Error, Scales};

/// A tensor before quantisation.
#[derive(Clone, Debug)]
pub(crate) struct FloatTensor {
    pub role: Role,
    /// First layer of key-values, otherwise 0.
    pub layer: u16,
    pub dims: Vec<u16>,
    /// Row-major.
    pub values: Vec<f32>,
    /// Numbers of values that may share an i8 scale.
    pub rows: Vec<usize>,
}

/// A tensor as it stands in the payload.
#[derive(Clone, Debug)]
pub(crate) struct Quantised {
    pub spec: TensorSpec,
    pub bytes: Vec<u8>,
    /// Sum of squared differences to the values before.
    pub error: f64,
    /// Sum of the squared values before.
    pub energy: f64,
}

/// Values that share a scale in i4.
const I4_GROUP: u16 = 32;

/// Largest number of an i8; -128 is not used, so that every number has its negative.
const I8_LARGEST: f32 = 127.0;
const I4_LARGEST: f32 = 7.0;
const I4_SMALLEST: f32 = -8.0;

impl Quantised {
    /// Quantises a tensor that begins at `offset` of the payload.
    ///
    /// Of i8 the scale's reach is chosen among `tensor.rows` as the one that costs fewer bits a
    /// value at equal error, where one bit more halves the error.
    pub fn new(
        tensor: &FloatTensor,
        dtype: Dtype,
        scales: Scales,
        offset: usize,
    ) -> Result<Self, Error> {
        let FloatTensor {
            role,
            layer,
            dims,
            values,
            ..
        } = tensor;
        let group = group_of(tensor, dtype, scales);
        let spec = TensorSpec::new(*role, dtype, *layer, dims, group, offset).map_err(|error| {
            let problem = format!(
                "{} does not fit the {} tensor: {error}",
                dtype.name(),
                role.name()
            );
            Error::Option {
                option: "--dtype",
                problem,
            }
        })?;
        let (bytes, error) = coded(values, dtype, usize::from(group), scales);
        let energy = values.iter().map(|value| f64::from(*value).powi(2)).sum();
        Ok(Self {
            spec,
            bytes,
            error,
            energy,
        })
    }

    /// Relative error: the L2 norm of the differences over that of the values.
    pub fn loss(&self) -> f64 {
        relative(self.error, self.energy)
    }
}

/// Relative L2 error of summed squares.
pub(crate) fn relative(error: f64, energy: f64) -> f64 {
    if energy > 0.0 {
        (error / energy).sqrt()
    } else {
        0.0
    }
}

/// Values that share a scale.
fn group_of(tensor: &FloatTensor, dtype: Dtype, scales: Scales) -> u16 {
    match dtype {
        Dtype::I8 => {
            let rows = tensor
                .rows
                .iter()
                .filter_map(|row| u16::try_from(*row).ok());
            let costs =
                rows.map(|row| (bits_at_equal_error(tensor, usize::from(row), scales), row));
            costs
                .min_by(|one, other| one.0.total_cmp(&other.0))
                .map_or(0, |(_, row)| row)
        }
        Dtype::I4 => u16::try_from(tensor.values.len())
            .unwrap_or(I4_GROUP)
            .min(I4_GROUP),
        _ => 0,
    }
}

/// The bytes of a tensor, and the squared error of what they stand for.
fn coded(values: &[f32], dtype: Dtype, group: usize, scales: Scales) -> (Vec<u8>, f64) {
    match dtype {
        Dtype::F16 => halves(values, |value| {
            let half = f16::from_f32(value);
            (half.to_le_bytes(), half.to_f32())
        }),
        Dtype::Bf16 => halves(values, |value| {
            let half = bf16::from_f32(value);
            (half.to_le_bytes(), half.to_f32())
        }),
        Dtype::I8 => integers(values, group, Range::I8, scales).pack(),
        Dtype::I4 => integers(values, group, Range::I4, scales).pack(),
        _ => (
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
            0.0,
        ),
    }
}

fn halves(values: &[f32], half: impl Fn(f32) -> ([u8; 2], f32)) -> (Vec<u8>, f64) {
    let mut error = 0.0;
    let mut bytes = Vec::with_capacity(2 * values.len());
    for value in values {
        let (half, read) = half(*value);
        bytes.extend(half);
        error += f64::from(value - read).powi(2);
    }
    (bytes, error)
}

/// Bits a value plus the binary logarithm of the error.
fn bits_at_equal_error(tensor: &FloatTensor, row: usize, scales: Scales) -> f64 {
    let coded = integers(&tensor.values, row, Range::I8, scales);
    let error: f64 = coded.error;
    let bits = 8.0 + 16.0 / row as f64;
    bits + 0.5 * error.max(f64::MIN_POSITIVE).log2()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Range {
    I8,
    I4,
}

impl Range {
    fn clamp(self, value: f32) -> f32 {
        match self {
            Self::I8 => value.clamp(-I8_LARGEST, I8_LARGEST),
            Self::I4 => value.clamp(I4_SMALLEST, I4_LARGEST),
        }
    }

    /// The largest number that has its negative.
    fn reach(self) -> f32 {
        match self {
            Self::I8 => I8_LARGEST,
            Self::I4 => I4_LARGEST,
        }
    }
}

/// Scales and integers of a tensor.
struct Integers {
    range: Range,
    scales: Vec<f16>,
    values: Vec<i8>,
    error: f64,
}

impl Integers {
    fn pack(&self) -> (Vec<u8>, f64) {
        let mut bytes: Vec<u8> = self
            .scales
            .iter()
            .flat_map(|scale| scale.to_le_bytes())
            .collect();
        let values = self.values.iter().map(|value| value.cast_unsigned());
        match self.range {
            Range::I8 => bytes.extend(values),
            Range::I4 => {
                let values: Vec<u8> = values.collect();
                let pairs = values.as_chunks().0.iter();
                bytes.extend(pairs.map(|[low, high]| (low & 15) | (high << 4)));
            }
        }
        (bytes, self.error)
    }
}

fn integers(values: &[f32], group: usize, range: Range, scales: Scales) -> Integers {
    let mut out = Integers {
        range,
        scales: vec![],
        values: Vec::with_capacity(values.len()),
        error: 0.0,
    };
    for values in values.chunks(group.max(1)) {
        let (scale, error) = match scales {
            Scales::LeastError => best_scale(values, range),
            Scales::Largest => scored(values, usable(largest(values) / range.reach()), range),
        };
        out.scales.push(scale);
        out.values.extend(
            values
                .iter()
                .map(|value| round(*value, scale.to_f32(), range) as i8),
        );
        out.error += error;
    }
    out
}

fn round(value: f32, scale: f32, range: Range) -> f32 {
    range.clamp((value / scale).round_ties_even())
}

/// The largest magnitude of the values.
fn largest(values: &[f32]) -> f32 {
    values
        .iter()
        .fold(0.0f32, |largest, value| largest.max(value.abs()))
}

/// The binary16 scale of least squared error, and that error: tried are scales that clip the
/// largest value more and more, then the least-squares fit to the integers of the best of them.
fn best_scale(values: &[f32], range: Range) -> (f16, f64) {
    let whole = largest(values) / range.reach();
    let least = match range {
        Range::I8 => 80,
        Range::I4 => 50,
    };
    let tried = (least..=100)
        .rev()
        .map(|percent| whole * percent as f32 / 100.0);
    let best = tried
        .map(|scale| scored(values, usable(scale), range))
        .min_by(|one, other| one.1.total_cmp(&other.1));
    let Some((scale, error)) = best else {
        return (f16::MIN_POSITIVE, 0.0);
    };
    let refined = scored(values, usable(fitted(values, scale.to_f32(), range)), range);
    if refined.1 < error {
        refined
    } else {
        (scale, error)
    }
}

/// The nearest scale that a bundle may have: positive and normal.
fn usable(scale: f32) -> f16 {
    let scale = f16::from_f32(scale);
    if scale.is_finite() && scale > f16::MIN_POSITIVE {
        scale
    } else {
        f16::MIN_POSITIVE
    }
}

fn scored(values: &[f32], scale: f16, range: Range) -> (f16, f64) {
    let step = scale.to_f32();
    let difference = |value: &f32| f64::from(value - step * round(*value, step, range));
    (
        scale,
        values.iter().map(|value| difference(value).powi(2)).sum(),
    )
}

fn fitted(values: &[f32], scale: f32, range: Range) -> f32 {
    let (mut products, mut squares) = (0.0, 0.0);
    for value in values {
        let integer = round(*value, scale, range);
        products += value * integer;
        squares += integer * integer;
    }
    if squares > 0.0 {
        products / squares
    } else {
        scale
    }
}

#[cfg(test)]
mod tests {
    use preface_bundle::f16_to_f32;

    use super::*;

    /// Numbers like those of a normal distribution: sums of twelve uniform ones.
    fn normal(count: usize) -> Vec<f32> {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut uniform = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 24) as f32
        };
        (0..count)
            .map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0)
            .collect()
    }

    fn tensor(values: Vec<f32>, width: u16) -> FloatTensor {
        let rows = u16::try_from(values.len()).expect("small") / width;
        FloatTensor {
            role: Role::Embeddings,
            layer: 0,
            dims: vec![rows, width],
            values,
            rows: vec![usize::from(width)],
        }
    }

    #[test]
    fn half_precision_of_the_bundle_is_that_of_half() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (f16_to_f32(bits), f16::from_bits(bits).to_f32());
            assert!(
                ours == theirs && ours.is_sign_negative() == theirs.is_sign_negative()
                    || ours.is_nan() && theirs.is_nan(),
                "{bits:#06x}"
            );
        }
    }

    #[test]
    fn fewer_bits_cost_as_much_as_known() {
        let tensor = tensor(normal(16 * 768), 768);
        let cases = [
            (Dtype::F32, 0.0, 0.0),
            (Dtype::F16, 1e-4, 3e-4),
            (Dtype::Bf16, 1e-3, 2.5e-3),
            (Dtype::I8, 5e-3, 8.5e-3),
            (Dtype::I4, 0.07, 0.1),
        ];
        for (dtype, least, most) in cases {
            let quantised = Quantised::new(&tensor, dtype, Scales::LeastError, 0).expect("fits");
            let loss = quantised.loss();
            assert!((least..=most).contains(&loss), "{dtype:?}: {loss}");
            assert_eq!(quantised.bytes.len(), quantised.spec.bytes, "{dtype:?}");
        }
    }

    #[test]
    fn the_scale_is_at_least_as_good_as_that_of_the_largest_value() {
        for range in [Range::I8, Range::I4] {
            for values in normal(64 * 32).chunks(32) {
                let [least, plain] = [Scales::LeastError, Scales::Largest]
                    .map(|scales| integers(values, 32, range, scales).error);
                assert!(least <= plain);
            }
        }
    }

    #[test]
    fn a_large_value_among_small_ones_is_clipped_for_the_least_error_alone() {
        let values: Vec<f32> = normal(31).into_iter().chain([5.0]).collect();
        let read = |scales| {
            let coded = integers(&values, 32, Range::I4, scales);
            (
                coded.scales[0].to_f32() * f32::from(coded.values[31]),
                coded.error,
            )
        };
        let ((clipped, least), (whole, error)) = (read(Scales::LeastError), read(Scales::Largest));
        assert!(
            clipped < 4.9 && (whole - 5.0).abs() < 0.01,
            "{clipped} {whole}"
        );
        assert!(least < 0.95 * error, "{least} {error}");
    }

    #[test]
    fn rows_of_zeros_and_of_tiny_numbers_have_usable_scales() {
        for values in [vec![0.0; 8], vec![1e-8; 8], vec![-0.0; 8]] {
            for dtype in [Dtype::I8, Dtype::I4] {
                let quantised =
                    Quantised::new(&tensor(values.clone(), 8), dtype, Scales::LeastError, 0)
                        .expect("fits");
                let scale = f16::from_le_bytes([quantised.bytes[0], quantised.bytes[1]]);
                assert!(scale.is_normal() && scale > f16::ZERO, "{values:?}");
            }
        }
    }

    #[test]
    fn numbers_that_scales_hit_come_back_exactly() {
        let values: Vec<f32> = (-127i8..=127)
            .chain([0])
            .map(|value| 0.5 * f32::from(value))
            .collect();
        let quantised =
            Quantised::new(&tensor(values, 256), Dtype::I8, Scales::LeastError, 0).expect("fits");
        assert_eq!(quantised.error, 0.0);
        let values: Vec<f32> = (-8i8..=7).map(|value| 0.25 * f32::from(value)).collect();
        let quantised =
            Quantised::new(&tensor(values, 16), Dtype::I4, Scales::LeastError, 0).expect("fits");
        assert_eq!(quantised.error, 0.0);
    }

    #[test]
    fn rows_that_differ_in_size_get_scales_of_their_own() {
        let alike = FloatTensor {
            rows: vec![32, 256],
            ..tensor(normal(32 * 256), 256)
        };
        let apart = FloatTensor {
            values: alike
                .values
                .iter()
                .enumerate()
                .map(|(at, value)| value * 4f32.powi((at / 32 % 4) as i32))
                .collect(),
            ..alike.clone()
        };
        let group = |tensor| {
            Quantised::new(tensor, Dtype::I8, Scales::LeastError, 0)
                .expect("fits")
                .spec
                .group
        };
        assert_eq!(group(&apart), 32);
        assert_eq!(group(&alike), 256);
    }
}
