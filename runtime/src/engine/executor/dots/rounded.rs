//! Rows as integers of 8 bits.

use super::{
    super::super::{failed, vectors::wide},
    tile::RUNS,
};
use crate::{
    Error,
    weights::{EXCESS, QUAD},
};
use tract_data::internal::format_err;

/// The magnitude that the number of greatest magnitude of a row becomes.
const LARGEST: f32 = 127.0;
/// Rows of no greater number are zeros: the inverse of their scale might be no number.
const LEAST: f32 = 1e-30;

/// Rows rounded to 8 bits, a run of products each.
#[derive(Debug)]
pub(in super::super) struct Rounded {
    /// In tiles of [`RUNS`] rows, the last of as many as are left: for every quad of inputs that of each row in turn.
    quads: Vec<i32>,
    /// What the integers of each row are multiplied by.
    scales: Vec<f32>,
    /// What sums of each row are too great by, since stored weights are.
    excess: Vec<i32>,
    /// A row's integers, zeros behind the last.
    row: Vec<u8>,
    rows: usize,
    inputs: usize,
}

/// Neighbouring rows.
pub(super) struct Tile<'a> {
    /// The number of the first.
    pub first: usize,
    pub quads: &'a [i32],
    pub scales: &'a [f32],
    pub excess: &'a [i32],
}

impl Rounded {
    /// Room for so many rows of at most `most_inputs` numbers.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn new(most_inputs: usize, most_rows: usize) -> Result<Self, Error> {
        let quads = most_inputs.div_ceil(QUAD);
        Ok(Self {
            quads: zeros(quads.saturating_mul(most_rows))?,
            scales: zeros(most_rows)?,
            excess: zeros(most_rows)?,
            row: zeros(quads * QUAD)?,
            rows: 0,
            inputs: 0,
        })
    }

    /// Bytes that are reserved.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.quads[..])
            + size_of_val(&self.scales[..])
            + size_of_val(&self.excess[..])
            + self.row.len()
    }

    /// Rounds `rows` rows of `inputs` numbers, one every `step` numbers.
    ///
    /// # Errors
    /// When the numbers are not all there, or there is no room for them.
    pub fn round(
        &mut self,
        from: &[f32],
        (inputs, rows): (usize, usize),
        step: usize,
    ) -> Result<(), Error> {
        let quads = inputs.div_ceil(QUAD);
        let last = rows.saturating_sub(1).saturating_mul(step);
        let there = last.saturating_add(inputs) <= from.len() && inputs > 0;
        let fits = rows <= self.scales.len() && quads.saturating_mul(rows) <= self.quads.len();
        if !there || !fits || step == 0 || quads * QUAD > self.row.len() {
            let error = format_err!("{rows} rows of {inputs} do not fit");
            return Err(failed("rounding")(error));
        }
        (self.rows, self.inputs) = (rows, inputs);
        for (index, row) in from.chunks(step).take(rows).enumerate() {
            let (first, run) = (index / RUNS * RUNS, index % RUNS);
            let runs = RUNS.min(rows - first);
            let bytes = &mut self.row[..quads * QUAD];
            bytes[inputs..].fill(0);
            let (row, into) = (&row[..inputs], &mut bytes[..inputs]);
            let (scale, sum) =
                wide!(|row: &[f32], into: &mut [u8]| -> (f32, i32) { rounded(row, into) });
            self.scales[index] = scale;
            self.excess[index] = i32::from(EXCESS) * sum;
            let places = self.quads[first * quads + run..].iter_mut().step_by(runs);
            let pairs = places.zip(bytes.as_chunks().0);
            pairs.for_each(|(place, quad)| *place = i32::from_le_bytes(*quad));
        }
        Ok(())
    }

    /// The rows of the last call of [`Rounded::round`].
    pub(super) fn tiles(&self) -> impl Iterator<Item = Tile<'_>> {
        let quads = self.inputs.div_ceil(QUAD);
        (0..self.rows).step_by(RUNS).map(move |first| {
            let rows = first..self.rows.min(first + RUNS);
            Tile {
                first,
                quads: &self.quads[first * quads..][..rows.len() * quads],
                scales: &self.scales[rows.clone()],
                excess: &self.excess[rows],
            }
        })
    }
}

/// So many zeros.
fn zeros<T: Copy + Default>(count: usize) -> Result<Vec<T>, Error> {
    let mut zeros = Vec::new();
    let reserved = zeros.try_reserve_exact(count);
    reserved.map_err(|_| Error::Memory {
        bytes: count.saturating_mul(size_of::<T>()),
    })?;
    zeros.resize(count, T::default());
    Ok(zeros)
}

/// Writes the integer nearest to each number, the even one of two, in units of the scale, which is returned with the sum
/// of the integers. A row with a number that is not finite has a scale that is none.
#[inline(always)]
fn rounded(row: &[f32], bytes: &mut [u8]) -> (f32, i32) {
    /// A float of this magnitude has no fraction, and the integer that was added to it in its lowest bits.
    const WHOLE: f32 = (3 << 22) as f32;
    const SIGN: u32 = 1 << 31;
    let magnitudes = row.iter().map(|number| number.to_bits() & !SIGN);
    let largest = f32::from_bits(magnitudes.max().unwrap_or(0));
    if !largest.is_finite() {
        bytes.fill(0);
        return (f32::NAN, 0);
    }
    if largest <= LEAST {
        bytes.fill(0);
        return (0.0, 0);
    }
    let inverse = LARGEST / largest;
    let pairs = bytes.iter_mut().zip(row);
    pairs.for_each(|(byte, number)| *byte = (number * inverse + WHOLE).to_bits() as u8);
    let integers = bytes.iter().map(|byte| i32::from(byte.cast_signed()));
    (largest / LARGEST, integers.sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_rounded_to_the_nearest_of_255_steps() {
        let row: Vec<f32> = (0..77)
            .map(|index| (index as f32 * 0.7).sin() * 3.0)
            .collect();
        let mut bytes = [0; 77];
        let (scale, sum) = rounded(&row, &mut bytes);
        let largest = row
            .iter()
            .fold(0.0f32, |most, number| most.max(number.abs()));
        assert_eq!(scale, largest / 127.0);
        let integers = bytes.map(|byte| i32::from(byte.cast_signed()));
        assert_eq!(sum, integers.iter().sum::<i32>());
        assert!(integers.iter().any(|integer| integer.abs() == 127));
        for (integer, number) in integers.iter().zip(&row) {
            let off = (*integer as f32 * scale - number).abs();
            assert!(off <= scale * 0.5001, "{number}: {integer}");
        }
    }

    #[test]
    fn rows_without_numbers_are_zeros_and_those_with_none_stay_none() {
        let table = [
            ([0.0, -0.0, 0.0], 0.0),
            ([1e-38, -1e-40, 0.0], 0.0),
            ([1.0, f32::NAN, 0.0], f32::NAN),
            ([f32::NEG_INFINITY, 1.0, 0.0], f32::NAN),
        ];
        for (row, expected) in table {
            let mut bytes = [9; 3];
            let (scale, sum) = rounded(&row, &mut bytes);
            let same = scale == expected || scale.is_nan() && expected.is_nan();
            assert!(same && sum == 0 && bytes == [0; 3], "{row:?}: {scale}");
        }
    }

    #[test]
    fn integers_come_back_wherever_their_row_lies() {
        let (inputs, step) = (6, 9);
        for rows in [1, 7, 8, 9, 19] {
            let number = |row: usize, input: usize| ((row * 7 + input * 5) % 255) as f32 - 127.0;
            let mut from = vec![f32::NAN; rows * step];
            for row in 0..rows {
                let numbers = (0..inputs).map(|input| number(row, input));
                let slots = from[row * step..].iter_mut().zip(numbers);
                slots.for_each(|(slot, number)| *slot = number);
                from[row * step + inputs - 1] = 127.0;
            }
            let mut rounded = Rounded::new(inputs, 19).unwrap();
            rounded.round(&from, (inputs, rows), step).unwrap();
            let mut found = 0;
            for tile in rounded.tiles() {
                let runs = tile.scales.len();
                for run in 0..runs {
                    assert_eq!(tile.scales[run], 1.0);
                    let quads = tile.quads.iter().skip(run).step_by(runs);
                    let bytes: Vec<u8> = quads.flat_map(|quad| quad.to_le_bytes()).collect();
                    let row = &from[(tile.first + run) * step..][..inputs];
                    let integers = bytes.iter().map(|byte| byte.cast_signed());
                    let integers: Vec<f32> = integers.map(f32::from).collect();
                    assert_eq!((&integers[..inputs], &bytes[inputs..]), (row, &[0, 0][..]));
                    let sum = row.iter().sum::<f32>() as i32;
                    assert_eq!(tile.excess[run], i32::from(EXCESS) * sum);
                    found += 1;
                }
            }
            assert_eq!(found, rows);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut rounded = Rounded::new(8, 3).unwrap();
        let numbers = [1.0; 40];
        for (size, step, fits) in [
            ((8, 3), 8, true),
            ((8, 4), 8, false),
            ((13, 1), 13, false),
            ((8, 3), 17, false),
            ((0, 1), 8, false),
            ((8, 2), 0, false),
        ] {
            assert_eq!(
                rounded.round(&numbers, size, step).is_ok(),
                fits,
                "{size:?} {step}"
            );
        }
    }
}
