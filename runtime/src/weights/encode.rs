//! 32-bit floats to panels as an image stores them.

use half::f16;

use super::{EXCESS, GROUP, QUAD, Weights};

/// Greatest magnitude in `i8`.
const LARGEST: f32 = 127.0;
/// The ends of `i4`.
const LEAST: f32 = -8.0;
const MOST: f32 = 7.0;

impl Weights {
    /// The bytes of panels of `r` outputs whose records are `numbers`, `length` of them a panel; `None` where one of them
    /// cannot be stored so.
    pub(crate) fn encode(self, numbers: &[f32], length: usize, r: usize) -> Option<Vec<u8>> {
        let half = |number: &f32| {
            let half = f16::from_f32(*number);
            half.is_finite().then_some(half.to_le_bytes())
        };
        let fit = |largest: f32| numbers.iter().all(|number| number.abs() <= largest);
        let panels = numbers.chunks_exact(length);
        match self {
            Self::F32 => Some(
                numbers
                    .iter()
                    .flat_map(|number| number.to_le_bytes())
                    .collect(),
            ),
            Self::F16 => numbers
                .iter()
                .map(half)
                .collect::<Option<Vec<_>>>()
                .map(Vec::into_flattened),
            Self::I8 => fit(f32::MAX).then(|| panels.flat_map(|panel| bytes(panel, r)).collect()),
            Self::I8A8 => fit(f32::MAX).then(|| panels.flat_map(|panel| quads(panel, r)).collect()),
            Self::I4 => fit(MOST * f16::MAX.to_f32()).then(|| {
                let groups = panels.flat_map(|panel| panel.chunks(GROUP * r));
                groups.flat_map(|group| nibbles(group, r)).collect()
            }),
        }
    }
}

/// A panel of `i8`.
fn bytes(numbers: &[f32], r: usize) -> Vec<u8> {
    let scales = scales(numbers, r, [-LARGEST, LARGEST], |scale| scale);
    let records = numbers.chunks_exact(r).flatten().zip(scales.iter().cycle());
    let integers = records.map(|(&number, &scale)| integer(number, scale, [-LARGEST, LARGEST]));
    let bytes = integers.map(|integer| (integer as i8).cast_unsigned());
    let scales = scales.iter().flat_map(|scale| scale.to_le_bytes());
    scales.chain(bytes).collect()
}

/// A panel of `i8a8`.
fn quads(numbers: &[f32], r: usize) -> Vec<u8> {
    let scales_bytes = r * size_of::<f32>();
    let mut panel = bytes(numbers, r);
    let records = panel.split_off(scales_bytes);
    for quad in records.chunks(QUAD * r) {
        let byte = |input: usize, output: usize| quad.get(input * r + output).copied();
        let bytes = (0..QUAD * r).map(|at| byte(at % QUAD, at / QUAD).unwrap_or(0));
        panel.extend(bytes.map(|byte| byte.wrapping_add(EXCESS)));
    }
    panel
}

/// A group of `i4`.
fn nibbles(numbers: &[f32], r: usize) -> Vec<u8> {
    let half = |scale| f16::from_f32(scale).to_f32();
    let scales = scales(numbers, r, [LEAST, MOST], half);
    let mut bytes: Vec<u8> = scales
        .iter()
        .flat_map(|&scale| f16::from_f32(scale).to_le_bytes())
        .collect();
    for pair in numbers.chunks(2 * r) {
        let stored = |record: usize, output: usize| {
            let number = pair.get(record * r + output).copied().unwrap_or(0.0);
            (integer(number, scales[output], [LEAST, MOST]) - LEAST) as u8
        };
        bytes.extend((0..r).map(|output| stored(0, output) | stored(1, output) << 4));
    }
    bytes
}

/// The scale of each of `r` outputs.
fn scales(numbers: &[f32], r: usize, ends: [f32; 2], stored: fn(f32) -> f32) -> Vec<f32> {
    let mut own = Vec::with_capacity(numbers.len() / r);
    let scales = (0..r).map(|output| {
        own.clear();
        own.extend(numbers.iter().skip(output).step_by(r));
        best_scale(&own, ends, stored)
    });
    scales.collect()
}

/// The scale of least squared error among those that put the number of largest magnitude at one of the ends, or up to
/// two fifths behind it.
fn best_scale(numbers: &[f32], ends: [f32; 2], stored: fn(f32) -> f32) -> f32 {
    let largest = numbers
        .iter()
        .copied()
        .max_by(|one, other| one.abs().total_cmp(&other.abs()));
    let largest = largest.unwrap_or(0.0);
    let tried = (15..=25u8)
        .rev()
        .flat_map(|part| ends.map(|end| stored(largest / end * f32::from(part) / 25.0)));
    let tried = tried.map(|scale| (scale, error(numbers, scale, ends)));
    let best = tried.min_by(|one, other| one.1.total_cmp(&other.1));
    best.map_or(0.0, |(scale, _)| scale)
}

/// The sum of squared differences between numbers and what is stored for them.
fn error(numbers: &[f32], scale: f32, ends: [f32; 2]) -> f32 {
    let differences = numbers
        .iter()
        .map(|&number| number - scale * integer(number, scale, ends));
    differences.map(|difference| difference * difference).sum()
}

/// The integer between the ends that is nearest to `number / scale`, the even one of two.
fn integer(number: f32, scale: f32, [least, most]: [f32; 2]) -> f32 {
    /// A float of this magnitude has no fraction.
    const WHOLE: f32 = (3 << 22) as f32;
    let inverse = if scale == 0.0 { 0.0 } else { scale.recip() };
    (number * inverse).clamp(least, most) + WHOLE - WHOLE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::numbers;

    /// What comes back of panels.
    fn expanded(weights: Weights, bytes: &[u8], (k, r): (usize, usize), panels: usize) -> Vec<f32> {
        let panel_bytes = weights.panel_bytes(k, r).unwrap();
        assert_eq!(bytes.len(), panels * panel_bytes, "{weights} {k} {r}");
        let mut found = vec![f32::NAN; panels * k * r];
        for (panel, found) in bytes.chunks(panel_bytes).zip(found.chunks_mut(k * r)) {
            weights.expand(panel, r, 0, found);
        }
        found
    }

    /// The L2 norm of the differences over that of `numbers`.
    fn loss(numbers: &[f32], found: &[f32]) -> f32 {
        let square = |numbers: &mut dyn Iterator<Item = f32>| {
            numbers.map(|number| number * number).sum::<f32>()
        };
        let differences = &mut numbers.iter().zip(found).map(|(one, other)| one - other);
        (square(differences) / square(&mut numbers.iter().copied())).sqrt()
    }

    #[test]
    fn what_comes_back_is_as_near_as_the_bits_allow() {
        let shapes = [
            (96, 48),
            (384, 64),
            (64, 12),
            (45, 8),
            (1, 16),
            (33, 4),
            (384, 1),
        ];
        let table = [
            (Weights::F32, 0.0..=0.0),
            (Weights::F16, 1e-5..=4e-4),
            (Weights::I8, 1e-3..=8e-3),
            (Weights::I8A8, 1e-3..=8e-3),
            (Weights::I4, 0.01..=0.09),
        ];
        for (k, r) in shapes {
            for (weights, bounds) in table.clone() {
                if weights.panel_bytes(k, r).is_none() {
                    continue;
                }
                let panels = numbers(5, 3 * k * r);
                let bytes = weights.encode(&panels, k * r, r).unwrap();
                let loss = loss(&panels, &expanded(weights, &bytes, (k, r), 3));
                let exact = k == 1 && weights > Weights::F16;
                assert!(
                    bounds.contains(&loss) || exact && loss < 2e-3,
                    "{weights} {k} {r}: {loss}"
                );
            }
        }
    }

    #[test]
    fn a_panel_can_be_expanded_from_any_group_on() {
        let (k, r) = (100, 24);
        let panel = numbers(6, k * r);
        for weights in Weights::ALL {
            let bytes = weights.encode(&panel, k * r, r).unwrap();
            let whole = expanded(weights, &bytes, (k, r), 1);
            for first in (0..k).step_by(GROUP) {
                let records = GROUP.min(k - first);
                let mut part = vec![0.0; records * r];
                weights.expand(&bytes, r, first, &mut part);
                assert_eq!(part, whole[first * r..][..records * r], "{weights} {first}");
            }
        }
    }

    #[test]
    fn outputs_that_differ_in_size_have_scales_of_their_own() {
        let (k, r) = (64, 16);
        let sized: Vec<f32> = numbers(7, k * r)
            .iter()
            .enumerate()
            .map(|(at, number)| number * 4f32.powi((at % r) as i32 - 8))
            .collect();
        for (weights, most) in [
            (Weights::I8, 8e-3),
            (Weights::I8A8, 8e-3),
            (Weights::I4, 0.1),
        ] {
            let bytes = weights.encode(&sized, k * r, r).unwrap();
            let found = expanded(weights, &bytes, (k, r), 1);
            let of = |numbers: &[f32], output: usize| {
                numbers
                    .iter()
                    .skip(output)
                    .step_by(r)
                    .copied()
                    .collect::<Vec<f32>>()
            };
            for output in 0..r {
                let loss = loss(&of(&sized, output), &of(&found, output));
                assert!(loss < most, "{weights} {output}: {loss}");
            }
        }
    }

    #[test]
    fn integers_and_zeros_come_back_exactly() {
        let whole: Vec<f32> = (-127..=127).map(|number| number as f32 * 0.5).collect();
        let bytes = Weights::I8.encode(&whole, 255, 1).unwrap();
        assert_eq!(expanded(Weights::I8, &bytes, (255, 1), 1), whole);
        let sixteenths: Vec<f32> = (-8..8)
            .flat_map(|number| [number as f32 / 16.0; 4])
            .collect();
        let bytes = Weights::I4.encode(&sixteenths, 64, 4).unwrap();
        assert_eq!(expanded(Weights::I4, &bytes, (16, 4), 1), sixteenths);
        for weights in Weights::ALL {
            let bytes = weights.encode(&[0.0; 256], 256, 8).unwrap();
            assert_eq!(expanded(weights, &bytes, (32, 8), 1), [0.0; 256]);
        }
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        let table = [
            (Weights::F32, f32::INFINITY, true),
            (Weights::F16, 65_504.0, true),
            (Weights::F16, 65_520.0, false),
            (Weights::F16, f32::NAN, false),
            (Weights::I8, 1e30, true),
            (Weights::I8, f32::NEG_INFINITY, false),
            (Weights::I8A8, f32::NAN, false),
            (Weights::I4, f32::NAN, false),
            (Weights::I4, 1e30, false),
        ];
        for (weights, number, fits) in table {
            let numbers = [1.0, number, 0.0, 2.0];
            assert_eq!(
                weights.encode(&numbers, 4, 4).is_some(),
                fits,
                "{weights} {number}"
            );
        }
    }
}
