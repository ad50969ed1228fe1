//! Weights in fewer bits: what an image stores, and how it becomes 32-bit floats again.
//!
//! A weight lies in panels of `r` outputs. A panel holds, for each of `k` inputs in turn, a record of `r` numbers:
//!
//! | weights | a panel |
//! |---|---|
//! | `f32` | the records in binary32 |
//! | `f16` | the records in binary16 |
//! | `i8` | a binary32 scale for each output; the records, a byte a number |
//! | `i8a8` | a binary32 scale for each output; four records at a time: the bytes of each output in turn, those of the four inputs side by side, zeros behind the last, and each [`EXCESS`] more than it is |
//! | `i4` | for every [`GROUP`] inputs a binary16 scale for each output, and two records at a time: byte `j` holds number `j` of the first in its lower half and that of the second in its upper half, each 8 more than it is |
//!
//! A row of the embedding table is a panel of one output.

#[cfg(feature = "compile")]
mod encode;
mod expand;
// Converts with vectors: see the SAFETY comments there.
#[allow(unsafe_code)]
mod half;

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a base image stores the numbers of its weights, and whether they are multiplied as 32-bit floats.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Weights {
    /// 32-bit floats, which kernels read where they lie.
    #[default]
    F32,
    /// 16-bit floats.
    F16,
    /// 8-bit integers with a scale for each output.
    I8,
    /// The same, multiplied as they are with inputs that are rounded to 8-bit integers, with a scale for each row of
    /// them; scores of the vocabulary are computed as with [`Weights::I8`].
    I8A8,
    /// 4-bit integers with a scale for 32 inputs of each output; the embedding table in 8 bits.
    I4,
}

/// Inputs that share a scale in `i4`.
pub(crate) const GROUP: usize = 32;
/// Inputs whose bytes lie side by side in `i8a8`: what one instruction adds up.
pub(crate) const QUAD: usize = 4;
/// What stored bytes of `i8a8` are more than they are: on x86-64 instructions multiply bytes without a sign by bytes with one.
pub(crate) const EXCESS: u8 = if cfg!(target_arch = "x86_64") { 128 } else { 0 };
/// Inputs of `i8a8` whose products always add up to a 32-bit integer.
const MOST_INPUTS: usize = 1 << 16;
/// Outputs of the widest panel in fewer bits.
pub(crate) const MOST_OUTPUTS: usize = 128;

impl Weights {
    /// Every way, that of most bits first.
    pub const ALL: [Self; 5] = [Self::F32, Self::F16, Self::I8, Self::I8A8, Self::I4];

    /// The name in images and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::I8 => "i8",
            Self::I8A8 => "i8a8",
            Self::I4 => "i4",
        }
    }

    /// How the embedding table is stored beside such weights.
    #[cfg(feature = "compile")]
    pub(crate) fn of_table(self) -> Self {
        self.min(Self::I8)
    }

    /// Bytes of a panel of `r` outputs and `k` inputs; `None` where there is no such panel.
    pub(crate) fn panel_bytes(self, k: usize, r: usize) -> Option<usize> {
        let single = r == 1 && self <= Self::I8;
        if !(single || r.is_multiple_of(4)) || r == 0 || r > MOST_OUTPUTS {
            return None;
        }
        let record_bytes = match self {
            Self::F32 => return k.checked_mul(r)?.checked_mul(size_of::<f32>()),
            Self::F16 => return k.checked_mul(r)?.checked_mul(2),
            Self::I8 => k.checked_add(size_of::<f32>())?,
            Self::I8A8 if k > MOST_INPUTS => return None,
            Self::I8A8 => k.next_multiple_of(QUAD) + size_of::<f32>(),
            Self::I4 => k
                .div_ceil(2)
                .checked_add(k.div_ceil(GROUP).checked_mul(2)?)?,
        };
        record_bytes.checked_mul(r)
    }
}

impl fmt::Display for Weights {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panel_has_the_bytes_of_its_numbers_and_scales() {
        let table = [
            (Weights::F32, 384, 48, Some(73_728)),
            (Weights::F16, 384, 48, Some(36_864)),
            (Weights::I8, 384, 48, Some(18_624)),
            (Weights::I4, 384, 48, Some(10_368)),
            (Weights::I4, 33, 4, Some(4 * (17 + 4))),
            (Weights::I8, 384, 1, Some(388)),
            (Weights::I8A8, 384, 48, Some(18_624)),
            (Weights::I8A8, 33, 16, Some(16 * (36 + 4))),
            (Weights::I8A8, 384, 1, None),
            (Weights::I8A8, MOST_INPUTS + 1, 4, None),
            (Weights::I8A8, usize::MAX, 4, None),
            (Weights::I4, 384, 1, None),
            (Weights::F16, 384, 0, None),
            (Weights::F16, 384, 6, None),
            (Weights::F16, 384, 132, None),
            (Weights::I8, usize::MAX, 4, None),
            (Weights::I4, usize::MAX, 128, None),
        ];
        for (weights, k, r, bytes) in table {
            assert_eq!(weights.panel_bytes(k, r), bytes, "{weights} {k} {r}");
        }
    }
}
