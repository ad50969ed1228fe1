//! Panels as an image stores them, back to 32-bit floats.

use super::{EXCESS, GROUP, MOST_OUTPUTS, QUAD, Weights, half::widen};

impl Weights {
    /// Writes the records of a panel of `r` outputs, from record `first` on, into `numbers`, as many as they have room for.
    ///
    /// `first` is a multiple of [`GROUP`], and the panel is one that [`Weights::panel_bytes`] knows.
    #[inline(always)]
    pub(crate) fn expand(self, panel: &[u8], r: usize, first: usize, numbers: &mut [f32]) {
        match self {
            Self::F32 => {
                let (stored, _) = panel[first * r * size_of::<f32>()..].as_chunks();
                let pairs = numbers.iter_mut().zip(stored);
                pairs.for_each(|(number, bytes)| *number = f32::from_le_bytes(*bytes));
            }
            Self::F16 => widen(&panel.as_chunks().0[first * r..], numbers),
            Self::I8 => bytes(panel, r, first, numbers),
            Self::I8A8 => quads(panel, r, first, numbers),
            Self::I4 => nibbles(panel, r, first, numbers),
        }
    }

    /// Whether every number of a panel is finite.
    pub(crate) fn is_finite(self, panel: &[u8], r: usize) -> bool {
        let singles = |bytes: &[u8], greatest: f32| {
            let (singles, _) = bytes.as_chunks();
            let mut singles = singles.iter().map(|bytes| f32::from_le_bytes(*bytes));
            singles.all(|single| single.abs() <= greatest)
        };
        let halves = |bytes: &[u8]| {
            let (halves, _) = bytes.as_chunks();
            let mut halves = halves.iter().map(|bytes| half::f16::from_le_bytes(*bytes));
            halves.all(half::f16::is_finite)
        };
        match self {
            Self::F32 => singles(panel, f32::MAX),
            Self::F16 => halves(panel),
            Self::I8 | Self::I8A8 => singles(&panel[..r * size_of::<f32>()], f32::MAX / 128.0),
            Self::I4 => panel
                .chunks(group_bytes(r))
                .all(|group| halves(&group[..2 * r])),
        }
    }
}

/// Bytes of a whole group of `i4`.
fn group_bytes(r: usize) -> usize {
    (2 + GROUP / 2) * r
}

/// Expands `i8`.
#[inline(always)]
fn bytes(panel: &[u8], r: usize, first: usize, numbers: &mut [f32]) {
    let (scales, records) = panel.split_at(r * size_of::<f32>());
    let records = &records[first * r..];
    let (scales, _) = scales.as_chunks();
    let number = |byte: u8, scale: f32| f32::from(byte.cast_signed()) * scale;
    if let [scale] = *scales {
        let scale = f32::from_le_bytes(scale);
        let pairs = numbers.iter_mut().zip(records);
        return pairs.for_each(|(to, &byte)| *to = number(byte, scale));
    }
    let mut own = [0.0; MOST_OUTPUTS];
    let pairs = own.iter_mut().zip(scales);
    pairs.for_each(|(own, scale)| *own = f32::from_le_bytes(*scale));
    for (numbers, record) in numbers.chunks_exact_mut(r).zip(records.chunks_exact(r)) {
        scaled(numbers, record, &own[..r], number);
    }
}

/// Expands `i8a8`.
#[inline(always)]
fn quads(panel: &[u8], r: usize, first: usize, numbers: &mut [f32]) {
    let (scales, records) = panel.split_at(r * size_of::<f32>());
    let records = &records[first * r..];
    let (scales, _) = scales.as_chunks();
    for (numbers, quad) in numbers.chunks_mut(QUAD * r).zip(records.chunks(QUAD * r)) {
        for (input, numbers) in numbers.chunks_exact_mut(r).enumerate() {
            let bytes = quad.iter().skip(input).step_by(QUAD);
            for (number, (byte, scale)) in numbers.iter_mut().zip(bytes.zip(scales)) {
                let byte = byte.wrapping_sub(EXCESS).cast_signed();
                *number = f32::from(byte) * f32::from_le_bytes(*scale);
            }
        }
    }
}

/// Expands `i4`.
#[inline(always)]
fn nibbles(panel: &[u8], r: usize, first: usize, numbers: &mut [f32]) {
    let groups = panel.chunks(group_bytes(r)).skip(first / GROUP);
    let mut scales = [0.0; MOST_OUTPUTS];
    let scales = &mut scales[..r];
    for (numbers, group) in numbers.chunks_mut(GROUP * r).zip(groups) {
        let (halves, pairs) = group.split_at(2 * r);
        widen(halves.as_chunks().0, scales);
        for (numbers, pair) in numbers.chunks_mut(2 * r).zip(pairs.chunks_exact(r)) {
            let (low, high) = numbers.split_at_mut(r);
            scaled(low, pair, scales, |byte, scale| nibble(byte & 15) * scale);
            scaled(high, pair, scales, |byte, scale| nibble(byte >> 4) * scale);
        }
    }
}

#[inline(always)]
fn nibble(stored: u8) -> f32 {
    f32::from(stored) - 8.0
}

/// Makes a record of its bytes and scales; `numbers` may be none.
#[inline(always)]
fn scaled(numbers: &mut [f32], record: &[u8], scales: &[f32], number: impl Fn(u8, f32) -> f32) {
    let stored = record.iter().zip(scales);
    for (to, (&byte, &scale)) in numbers.iter_mut().zip(stored) {
        *to = number(byte, scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_or_half_that_is_no_number_is_found() {
        let r = 4;
        let panel = |weights: Weights| vec![0u8; weights.panel_bytes(40, r).unwrap()];
        let table = [
            (Weights::F16, 2 * 159, [0x00, 0x7c], false),
            (Weights::F16, 2 * 159, [0xff, 0x7b], true),
            (Weights::I8, 4 * 3 + 2, [0xc0, 0x7f], false),
            (Weights::I8, 4 * 4 + 2, [0xc0, 0x7f], true),
            (Weights::I8A8, 4 * 3 + 2, [0xc0, 0x7f], false),
            (Weights::I4, group_bytes(r) + 6, [0x00, 0xfc], false),
            (Weights::I4, group_bytes(r) + 8, [0x00, 0xfc], true),
        ];
        for (weights, place, bytes, finite) in table {
            let mut panel = panel(weights);
            assert!(weights.is_finite(&panel, r), "{weights}");
            panel[place..place + 2].copy_from_slice(&bytes);
            assert_eq!(weights.is_finite(&panel, r), finite, "{weights} {place}");
        }
    }
}
