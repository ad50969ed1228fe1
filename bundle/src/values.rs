//! Tensors with their bytes: how they become `f32`, and which values are refused.

use crate::{
    error::Error,
    tensor::{Dtype, TensorSpec},
};

/// Largest magnitude of a value.
pub const MAX_VALUE: f32 = 10_000.0;
/// Its bits as a binary16; those of larger numbers, of infinity and of what is no number are greater.
const MAX_F16: u16 = 0x70e2;

/// One tensor with its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    spec: TensorSpec,
    bytes: &'a [u8],
}

impl<'a> Tensor<'a> {
    /// The tensor that `spec` describes in a decoded payload.
    pub(crate) fn new(spec: TensorSpec, decoded: &'a [u8]) -> Option<Self> {
        let end = spec.offset.checked_add(spec.bytes)?;
        let bytes = decoded.get(spec.offset..end)?;
        Some(Self { spec, bytes })
    }

    /// Its entry in the tensor table.
    pub fn spec(&self) -> &TensorSpec {
        &self.spec
    }

    /// Its bytes as stored: scales (binary16), then values, all little-endian, row-major.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Writes its values, row-major, into `out`; put in place, with vectors as wide as the caller is compiled for.
    ///
    /// # Errors
    /// [`Error::BufferLength`] unless `out` has exactly [`TensorSpec::elements`] places.
    #[inline(always)]
    pub fn dequantise(&self, out: &mut [f32]) -> Result<(), Error> {
        let expected = self.spec.elements();
        if out.len() != expected {
            return Err(Error::BufferLength {
                expected,
                found: out.len(),
            });
        }
        match self.spec.dtype {
            Dtype::F32 => fill(out, self.bytes, f32::from_le_bytes),
            Dtype::F16 => fill(out, self.bytes, f16),
            Dtype::Bf16 => fill(out, self.bytes, bf16),
            Dtype::I8 | Dtype::I4 => self.unscale(out),
        }
        Ok(())
    }

    /// Scales and packed values of an integer tensor.
    #[inline]
    fn parts(&self) -> (&'a [[u8; 2]], &'a [u8]) {
        let group = usize::from(self.spec.group).max(1);
        let scale_bytes = self.spec.elements().div_ceil(group).saturating_mul(2);
        let (scales, values) = self.bytes.split_at_checked(scale_bytes).unwrap_or_default();
        (scales.as_chunks().0, values)
    }

    #[inline(always)]
    fn unscale(&self, out: &mut [f32]) {
        let (scales, values) = self.parts();
        let group = usize::from(self.spec.group).max(1);
        let per_byte = if self.spec.dtype == Dtype::I4 { 2 } else { 1 };
        let groups = out
            .chunks_mut(group)
            .zip(values.chunks((group / per_byte).max(1)));
        for ((out, values), scale) in groups.zip(scales) {
            let scale = f16(*scale);
            if per_byte == 2 {
                let (pairs, last) = out.as_chunks_mut();
                let (whole, odd) = values.split_at(pairs.len().min(values.len()));
                for (pair, byte) in pairs.iter_mut().zip(whole) {
                    *pair = nibbles(*byte).map(|q| scale * f32::from(q));
                }
                for (to, byte) in last.iter_mut().zip(odd) {
                    let [low, _] = nibbles(*byte);
                    *to = scale * f32::from(low);
                }
            } else {
                let (blocks, rest) = out.as_chunks_mut::<BLOCK>();
                let (from, rest_from) = values.as_chunks::<BLOCK>();
                let whole = blocks.iter_mut().zip(from);
                whole.for_each(|(out, bytes)| scaled(out, bytes, scale));
                scaled(rest, rest_from, scale);
            }
        }
    }

    /// Checks that every value may be used.
    ///
    /// # Errors
    /// [`Error::Value`]: a value is not finite or above [`MAX_VALUE`]; a scale is not a positive
    /// normal number or makes a value above it; a byte is -128, which has no negative.
    pub(crate) fn check_values(&self) -> Result<(), Error> {
        let sane = |value: f32| value.abs() <= MAX_VALUE;
        let values_are_sane = match self.spec.dtype {
            Dtype::F32 => every(self.bytes, |b| sane(f32::from_le_bytes(b))),
            Dtype::F16 => every(self.bytes, |b| u16::from_le_bytes(b) & 0x7fff <= MAX_F16),
            Dtype::Bf16 => every(self.bytes, |b| sane(bf16(b))),
            Dtype::I8 => every(self.parts().1, |[byte]| byte != 0x80),
            Dtype::I4 => true,
        };
        if !values_are_sane {
            let rule = "a value is not finite, above 10000, or an i8 of -128";
            return Err(Error::Value {
                role: self.spec.role,
                rule,
            });
        }
        let largest = if self.spec.dtype == Dtype::I4 {
            8.0
        } else {
            127.0
        };
        let scale_is_sane = |scale: &[u8; 2]| {
            let bits = u16::from_le_bytes(*scale);
            let normal = (0x0400..0x7c00).contains(&bits);
            normal && f16_to_f32(bits) * largest <= MAX_VALUE
        };
        if self.spec.dtype.has_scales() && !self.parts().0.iter().all(scale_is_sane) {
            let rule = "a scale is not a positive normal number, or too large";
            return Err(Error::Value {
                role: self.spec.role,
                rule,
            });
        }
        Ok(())
    }
}

#[inline(always)]
fn fill<const N: usize>(out: &mut [f32], bytes: &[u8], value: impl Fn([u8; N]) -> f32) {
    out.iter_mut()
        .zip(bytes.as_chunks::<N>().0)
        .for_each(|(to, chunk)| *to = value(*chunk));
}

/// Whether `rule` holds for every value. All are looked at: a loop that may end early is not vectorised.
fn every<const N: usize>(bytes: &[u8], rule: impl Fn([u8; N]) -> bool) -> bool {
    let chunks = bytes.as_chunks::<N>().0.iter();
    chunks.fold(true, |holds, chunk| holds & rule(*chunk))
}

/// Values that are scaled at once: a group is too short for loops that are unrolled.
const BLOCK: usize = 16;

/// Writes `scale` times each byte.
#[inline(always)]
fn scaled(out: &mut [f32], bytes: &[u8], scale: f32) {
    out.iter_mut()
        .zip(bytes)
        .for_each(|(to, byte)| *to = scale * f32::from(i8::from_le_bytes([*byte])));
}

/// The two values of a byte of i4: the low half first, each in two's complement.
#[inline]
fn nibbles(byte: u8) -> [i8; 2] {
    let [byte] = [byte].map(|byte| i8::from_le_bytes([byte]));
    [(byte << 4) >> 4, byte >> 4]
}

#[inline]
fn bf16([low, high]: [u8; 2]) -> f32 {
    f32::from_le_bytes([0, 0, low, high])
}

#[inline]
fn f16(bytes: [u8; 2]) -> f32 {
    f16_to_f32(u16::from_le_bytes(bytes))
}

/// The value of an IEEE 754 binary16 with these bits.
#[inline]
pub fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff) << 13;
    // Exponents are 112 apart: 2^112 times the same fields, exact for subnormal numbers too.
    let scaled = f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23);
    let beyond = if magnitude >= 0x7c00 << 13 {
        0x7f80_0000
    } else {
        0
    };
    f32::from_bits(sign | scaled.to_bits() | beyond)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{vec, vec::Vec};

    use super::*;
    use crate::tensor::Role;

    fn spec(role: Role, dtype: Dtype, dims: &[u16], group: u16) -> Result<TensorSpec, Error> {
        TensorSpec::new(role, dtype, 0, dims, group, 0)
    }

    fn values(dtype: Dtype, dims: &[u16], group: u16, bytes: &[u8]) -> Vec<f32> {
        let spec = spec(Role::Embeddings, dtype, dims, group).expect("a valid spec");
        assert_eq!(spec.bytes, bytes.len());
        let tensor = Tensor::new(spec, bytes).expect("bytes are there");
        let mut out = vec![f32::NAN; spec.elements()];
        tensor.dequantise(&mut out).expect("the length is right");
        out
    }

    #[test]
    fn every_dtype_dequantises_to_known_values() {
        let f32s: Vec<u8> = [1.5f32, -2.0]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        assert_eq!(values(Dtype::F32, &[1, 2], 0, &f32s), [1.5, -2.0]);
        assert_eq!(
            values(Dtype::F16, &[1, 2], 0, &[0x00, 0x3e, 0x00, 0xc0]),
            [1.5, -2.0]
        );
        assert_eq!(
            values(Dtype::Bf16, &[1, 2], 0, &[0xc0, 0x3f, 0x00, 0xc0]),
            [1.5, -2.0]
        );
        let i8s = [0x00, 0x38, 0x00, 0x3c, 2, 0xfe, 127, 0x81, 5];
        assert_eq!(
            values(Dtype::I8, &[1, 5], 3, &i8s),
            [1.0, -1.0, 63.5, -127.0, 5.0]
        );
        let i4s = [0x00, 0x38, 0x00, 0x3c, 0x8f, 0x70, 0x21];
        assert_eq!(
            values(Dtype::I4, &[1, 6], 4, &i4s),
            [-0.5, -4.0, 0.0, 3.5, 1.0, 2.0]
        );
    }

    #[test]
    fn halves_convert_exactly() {
        let cases = [
            (0x0000, 0.0),
            (0x0001, 5.960_464_5e-8),
            (0x03ff, 6.097_555e-5),
            (0x0400, 6.103_515_6e-5),
            (0x3555, 0.333_251_95),
            (0x7bff, 65504.0),
            (0xfbff, -65504.0),
            (0x8001, -5.960_464_5e-8),
            (0x7c00, f32::INFINITY),
            (0xfc00, f32::NEG_INFINITY),
        ];
        for (bits, value) in cases {
            assert_eq!(f16_to_f32(bits), value, "{bits:#06x}");
        }
        assert_eq!(f16_to_f32(MAX_F16), MAX_VALUE);
        assert!(f16_to_f32(0x7e00).is_nan() && f16_to_f32(0x7c01).is_nan());
        assert!(f16_to_f32(0x8000).is_sign_negative());
    }

    #[test]
    fn values_that_must_not_be_used_are_refused() {
        let cases: [(&str, Dtype, u16, &[u8]); 14] = [
            ("f32 nan", Dtype::F32, 0, &[0, 0, 0xc0, 0x7f, 0, 0, 0, 0]),
            (
                "f32 too large",
                Dtype::F32,
                0,
                &[0x01, 0x40, 0x1c, 0x46, 0, 0, 0, 0],
            ),
            ("f16 infinity", Dtype::F16, 0, &[0, 0x7c, 0, 0]),
            ("f16 too large", Dtype::F16, 0, &[0xff, 0x7b, 0, 0]),
            ("f16 a little too large", Dtype::F16, 0, &[0, 0, 0xe3, 0xf0]),
            ("f16 nan", Dtype::F16, 0, &[0, 0x7e, 0, 0]),
            ("bf16 nan", Dtype::Bf16, 0, &[0xc0, 0x7f, 0, 0]),
            ("i8 of -128", Dtype::I8, 2, &[0, 0x3c, 0x80, 0]),
            ("scale zero", Dtype::I8, 2, &[0, 0, 1, 1]),
            ("scale negative", Dtype::I8, 2, &[0, 0xbc, 1, 1]),
            ("scale denormal", Dtype::I8, 2, &[0xff, 0x03, 1, 1]),
            ("scale infinite", Dtype::I8, 2, &[0, 0x7c, 1, 1]),
            ("scale too large", Dtype::I8, 2, &[0, 0x60, 1, 1]),
            ("i4 scale zero", Dtype::I4, 2, &[0, 0, 0x11]),
        ];
        for (name, dtype, group, bytes) in cases {
            let spec = spec(Role::Embeddings, dtype, &[1, 2], group).expect("a valid spec");
            let tensor = Tensor::new(spec, bytes).expect("bytes are there");
            assert!(
                matches!(tensor.check_values(), Err(Error::Value { .. })),
                "{name}"
            );
        }
    }
}
