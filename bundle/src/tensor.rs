//! The tensors of a payload: what they are for, their number formats, and their table.

use crate::{cursor::Cursor, error::Error};

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Role {
    /// Rows that take the place of token embeddings: `[tokens, hidden]`.
    Embeddings = 1,
    /// Keys and values of consecutive layers that are alike:
    /// `[layers, 2, kv_heads, tokens, head_dim]`, keys at 0, values at 1.
    KeyValues = 2,
    /// Weight of a linear head: `[classes, hidden]`.
    HeadWeight = 3,
    /// Bias of a head: `[classes]`; of a pooler and a linear layer `[classes + rank]`, the layer's first.
    HeadBias = 4,
    /// One factor of a factored head: `[classes, rank]`, then `[rank, hidden]`.
    HeadFactor = 5,
    /// Numbers added to the attention scores of a prefix: `[layers]`, one for each layer of the key-values.
    Gate = 6,
}

impl Role {
    fn from_u16(value: u16) -> Option<Self> {
        match value {
            1 => Some(Self::Embeddings),
            2 => Some(Self::KeyValues),
            3 => Some(Self::HeadWeight),
            4 => Some(Self::HeadBias),
            5 => Some(Self::HeadFactor),
            6 => Some(Self::Gate),
            _ => None,
        }
    }

    /// The role's number in the tensor table.
    pub fn to_u16(self) -> u16 {
        match self {
            Self::Embeddings => 1,
            Self::KeyValues => 2,
            Self::HeadWeight => 3,
            Self::HeadBias => 4,
            Self::HeadFactor => 5,
            Self::Gate => 6,
        }
    }

    /// The role's name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embeddings => "embeddings",
            Self::KeyValues => "key-values",
            Self::HeadWeight => "head-weight",
            Self::HeadBias => "head-bias",
            Self::HeadFactor => "head-factor",
            Self::Gate => "gate",
        }
    }

    fn allows_rank(self, rank: u8) -> bool {
        match self {
            Self::Embeddings | Self::HeadWeight | Self::HeadFactor => rank == 2,
            Self::KeyValues => rank == 5,
            Self::HeadBias | Self::Gate => rank == 1,
        }
    }
}

/// The number format of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32 = 1,
    /// IEEE 754 binary16.
    F16 = 2,
    /// The upper half of a binary32.
    Bf16 = 3,
    /// Signed bytes, `group` of them for one scale.
    I8 = 4,
    /// Signed half bytes, `group` of them for one scale.
    I4 = 5,
}

impl Dtype {
    fn from_u16(value: u16) -> Option<Self> {
        match value {
            1 => Some(Self::F32),
            2 => Some(Self::F16),
            3 => Some(Self::Bf16),
            4 => Some(Self::I8),
            5 => Some(Self::I4),
            _ => None,
        }
    }

    /// The format's number in the tensor table.
    pub fn to_u16(self) -> u16 {
        match self {
            Self::F32 => 1,
            Self::F16 => 2,
            Self::Bf16 => 3,
            Self::I8 => 4,
            Self::I4 => 5,
        }
    }

    /// The format's name in options and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::I8 => "i8",
            Self::I4 => "i4",
        }
    }

    /// Byte planes that [`shuffle`](crate::shuffle) makes of a tensor; 1 where it only copies.
    pub(crate) fn plane_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::I8 | Self::I4 => 1,
        }
    }

    pub(crate) fn has_scales(self) -> bool {
        matches!(self, Self::I8 | Self::I4)
    }
}

/// Most dimensions of a tensor.
pub const MAX_RANK: usize = 5;

const ENTRY_BYTES: usize = 32;

/// One entry of the tensor table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorSpec {
    /// What the tensor is for.
    pub role: Role,
    /// Its number format.
    pub dtype: Dtype,
    /// First layer of key-values; place of a head factor; otherwise 0.
    pub layer: u16,
    /// Values that share one scale, in row-major order across the whole tensor; the last group may
    /// be shorter. 0 where the format has no scales.
    pub group: u16,
    /// Where its bytes begin in the decoded payload.
    pub offset: usize,
    /// How many bytes it has, scales included.
    pub bytes: usize,
    rank: u8,
    dims: [u16; MAX_RANK],
}

impl TensorSpec {
    /// Describes a tensor at `offset`, for a writer.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the description breaks a rule of the tensor table.
    pub fn new(
        role: Role,
        dtype: Dtype,
        layer: u16,
        dims: &[u16],
        group: u16,
        offset: usize,
    ) -> Result<Self, Error> {
        let mut padded = [0; MAX_RANK];
        padded
            .iter_mut()
            .zip(dims)
            .for_each(|(to, from)| *to = *from);
        let rank =
            u8::try_from(dims.len()).map_err(|_| table("a tensor has a rank from 1 to 5"))?;
        let mut spec = Self {
            role,
            dtype,
            layer,
            group,
            offset,
            bytes: 0,
            rank,
            dims: padded,
        };
        spec.bytes = spec.check_shape()?;
        Ok(spec)
    }

    /// Sizes of its dimensions, outermost first.
    pub fn dims(&self) -> &[u16] {
        self.dims.get(..usize::from(self.rank)).unwrap_or_default()
    }

    /// Size of dimension `axis`, 0 where there is none.
    pub fn dim(&self, axis: usize) -> usize {
        self.dims.get(axis).copied().map_or(0, usize::from)
    }

    /// How many values it has.
    pub fn elements(&self) -> usize {
        self.dims()
            .iter()
            .try_fold(1usize, |product, dim| {
                product.checked_mul(usize::from(*dim))
            })
            .unwrap_or(0)
    }

    /// The entry as it stands in the tensor table.
    pub fn to_bytes(&self) -> [u8; ENTRY_BYTES] {
        let [d0, d1, d2, d3, d4] = self.dims.map(u16::to_le_bytes);
        let [r0, r1] = self.role.to_u16().to_le_bytes();
        let [t0, t1] = self.dtype.to_u16().to_le_bytes();
        let [l0, l1] = self.layer.to_le_bytes();
        let [g0, g1] = self.group.to_le_bytes();
        let [o0, o1, o2, o3] = u32::try_from(self.offset).unwrap_or(u32::MAX).to_le_bytes();
        let [b0, b1, b2, b3] = u32::try_from(self.bytes).unwrap_or(u32::MAX).to_le_bytes();
        [
            r0, r1, t0, t1, l0, l1, self.rank, 0, g0, g1, d0[0], d0[1], d1[0], d1[1], d2[0], d2[1],
            d3[0], d3[1], d4[0], d4[1], o0, o1, o2, o3, b0, b1, b2, b3, 0, 0, 0, 0,
        ]
    }

    fn read(bytes: &[u8; ENTRY_BYTES]) -> Result<Self, Error> {
        let mut cursor = Cursor::new(bytes);
        let spec = Self::fields(&mut cursor).ok_or(table("an entry holds an unknown code"))?;
        if spec.bytes != spec.check_shape()? {
            return Err(table("a tensor's length does not follow from its shape"));
        }
        Ok(spec)
    }

    fn fields(cursor: &mut Cursor<'_>) -> Option<Self> {
        let role = Role::from_u16(cursor.u16()?)?;
        let dtype = Dtype::from_u16(cursor.u16()?)?;
        let layer = cursor.u16()?;
        let rank = cursor.u8()?;
        cursor.zeros(1)?;
        let group = cursor.u16()?;
        let mut dims = [0; MAX_RANK];
        for dim in &mut dims {
            *dim = cursor.u16()?;
        }
        let offset = usize::try_from(cursor.u32()?).ok()?;
        let bytes = usize::try_from(cursor.u32()?).ok()?;
        cursor.zeros(4)?;
        Some(Self {
            role,
            dtype,
            layer,
            group,
            offset,
            bytes,
            rank,
            dims,
        })
    }

    /// Checks everything but the place, and computes the length in bytes.
    fn check_shape(&self) -> Result<usize, Error> {
        let rank = usize::from(self.rank);
        if rank == 0 || rank > MAX_RANK || !self.role.allows_rank(self.rank) {
            return Err(table("a tensor's rank does not fit its role"));
        }
        let used = |(axis, dim): (usize, &u16)| (axis < rank) == (*dim != 0);
        if !self.dims.iter().enumerate().all(used) {
            return Err(table("used dimensions are positive, unused ones are zero"));
        }
        if self.role == Role::KeyValues && self.dim(1) != 2 {
            return Err(table("key-values have keys and values: dimension 1 is 2"));
        }
        if self.role == Role::Gate && self.dtype.has_scales() {
            return Err(table("gates are floats"));
        }
        let layered = matches!(self.role, Role::KeyValues | Role::HeadFactor);
        if !layered && self.layer != 0 {
            return Err(table("only key-values and head factors have a layer"));
        }
        if self.role == Role::HeadFactor && self.layer > 1 {
            return Err(table("head factors are number 0 and 1"));
        }
        if self.role == Role::KeyValues && usize::from(self.layer) + self.dim(0) > 0xffff {
            return Err(table("a layer number is above 65535"));
        }
        self.length().ok_or(table(
            "a tensor's scale groups or size break the format's limits",
        ))
    }

    /// Length in bytes, `None` where shape and group do not fit or the length overflows.
    fn length(&self) -> Option<usize> {
        let elements = self.elements_checked()?;
        let group = usize::from(self.group);
        let scales = match (self.dtype.has_scales(), group) {
            (false, 0) => 0,
            (true, 1..) if group <= elements => elements.div_ceil(group).checked_mul(2)?,
            _ => return None,
        };
        let values = match self.dtype {
            Dtype::F32 => elements.checked_mul(4)?,
            Dtype::F16 | Dtype::Bf16 => elements.checked_mul(2)?,
            Dtype::I8 => elements,
            Dtype::I4 if elements.is_multiple_of(2) && group.is_multiple_of(2) => elements / 2,
            Dtype::I4 => return None,
        };
        let bytes = scales.checked_add(values)?;
        (bytes <= crate::MAX_DECODED_BYTES).then_some(bytes)
    }

    fn elements_checked(&self) -> Option<usize> {
        self.dims().iter().try_fold(1usize, |product, dim| {
            product.checked_mul(usize::from(*dim))
        })
    }
}

const fn table(rule: &'static str) -> Error {
    Error::malformed("tensor table", rule)
}

/// The tensor table: which bytes of the decoded payload are which tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TensorTable<'a>(&'a [[u8; ENTRY_BYTES]]);

impl<'a> TensorTable<'a> {
    /// Reads a table that covers `decoded_bytes` without gap or overlap.
    ///
    /// # Errors
    /// [`Error::Malformed`] with the rule that is broken.
    pub fn read(bytes: &'a [u8], decoded_bytes: usize) -> Result<Self, Error> {
        let (entries, rest) = bytes.as_chunks::<ENTRY_BYTES>();
        if entries.is_empty() || !rest.is_empty() {
            return Err(table("the table is one or more entries of 32 bytes"));
        }
        let mut end = 0usize;
        let mut previous: Option<TensorSpec> = None;
        for entry in entries {
            let spec = TensorSpec::read(entry)?;
            if spec.offset != end {
                return Err(table("tensors follow each other without gap or overlap"));
            }
            end = end
                .checked_add(spec.bytes)
                .ok_or(table("the tensors are too long"))?;
            if previous.is_some_and(|previous| !follows(&previous, &spec)) {
                return Err(table(
                    "tensors are ordered by role, then by layer, none twice",
                ));
            }
            previous = Some(spec);
        }
        if end != decoded_bytes {
            return Err(table("every byte of the payload belongs to one tensor"));
        }
        Ok(Self(entries))
    }

    /// The entries, in the order of their bytes.
    pub fn iter(&self) -> impl Iterator<Item = TensorSpec> + use<'a> {
        self.0
            .iter()
            .filter_map(|entry| TensorSpec::read(entry).ok())
    }

    /// The entries of one role.
    pub fn of(&self, role: Role) -> impl Iterator<Item = TensorSpec> + use<'a> {
        self.iter().filter(move |spec| spec.role == role)
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no tensors, as in a table that was not read yet.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes of all tensors: the length of the decoded payload.
    pub fn bytes(&self) -> usize {
        self.iter()
            .last()
            .map_or(0, |last| last.offset.saturating_add(last.bytes))
    }
}

/// Whether `next` may stand after `previous`; runs of key-values must not share a layer.
fn follows(previous: &TensorSpec, next: &TensorSpec) -> bool {
    let covered = match previous.role {
        Role::KeyValues => previous.dim(0),
        _ => 1,
    };
    let free = usize::from(previous.layer).saturating_add(covered);
    (previous.role, free) <= (next.role, usize::from(next.layer))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;

    fn spec(role: Role, dtype: Dtype, dims: &[u16], group: u16) -> Result<TensorSpec, Error> {
        TensorSpec::new(role, dtype, 0, dims, group, 0)
    }

    #[test]
    fn shapes_outside_the_rules_are_refused() {
        let cases: [(&str, Role, Dtype, &[u16], u16); 16] = [
            ("gate of two dimensions", Role::Gate, Dtype::F16, &[2, 2], 0),
            ("gate of scaled integers", Role::Gate, Dtype::I8, &[4], 4),
            ("no dimension", Role::Gate, Dtype::F16, &[], 0),
            (
                "six dimensions",
                Role::KeyValues,
                Dtype::F16,
                &[1, 2, 1, 1, 1, 1],
                0,
            ),
            ("zero dimension", Role::Embeddings, Dtype::F16, &[0, 8], 0),
            (
                "rank of another role",
                Role::Embeddings,
                Dtype::F16,
                &[8],
                0,
            ),
            (
                "three key-value halves",
                Role::KeyValues,
                Dtype::F16,
                &[1, 3, 1, 1, 1],
                0,
            ),
            ("group on f16", Role::Embeddings, Dtype::F16, &[2, 8], 8),
            ("i8 without group", Role::Embeddings, Dtype::I8, &[2, 8], 0),
            (
                "group above the tensor",
                Role::Embeddings,
                Dtype::I8,
                &[2, 8],
                17,
            ),
            ("i4 without group", Role::Embeddings, Dtype::I4, &[2, 8], 0),
            ("i4 of odd group", Role::Embeddings, Dtype::I4, &[2, 8], 3),
            ("i4 of odd count", Role::Embeddings, Dtype::I4, &[3, 3], 2),
            (
                "8 MiB and a bit",
                Role::Embeddings,
                Dtype::F32,
                &[2, 65535],
                1,
            ),
            ("too long", Role::Embeddings, Dtype::F32, &[65535, 65535], 0),
            (
                "overflow",
                Role::KeyValues,
                Dtype::F32,
                &[65535, 2, 65535, 65535, 65535],
                0,
            ),
        ];
        for (name, role, dtype, dims, group) in cases {
            assert!(spec(role, dtype, dims, group).is_err(), "{name}");
        }
        assert!(TensorSpec::new(Role::Embeddings, Dtype::F16, 1, &[2, 8], 0, 0).is_err());
        assert!(TensorSpec::new(Role::HeadFactor, Dtype::F16, 1, &[2, 8], 0, 0).is_ok());
        assert!(TensorSpec::new(Role::HeadFactor, Dtype::F16, 2, &[2, 8], 0, 0).is_err());
        assert!(
            TensorSpec::new(Role::KeyValues, Dtype::F16, 65535, &[1, 2, 1, 1, 1], 0, 0).is_err()
        );
    }

    #[test]
    fn tables_cover_the_payload_in_order() {
        let kv = |layer, layers, offset| {
            TensorSpec::new(
                Role::KeyValues,
                Dtype::F16,
                layer,
                &[layers, 2, 1, 1, 2],
                0,
                offset,
            )
            .expect("a valid spec")
        };
        let bias = |offset| {
            TensorSpec::new(Role::HeadBias, Dtype::F16, 0, &[3], 0, offset).expect("a valid spec")
        };
        let read = |specs: &[TensorSpec], bytes| {
            let table: Vec<u8> = specs.iter().flat_map(TensorSpec::to_bytes).collect();
            TensorTable::read(&table, bytes).map(|table| table.iter().collect::<Vec<_>>())
        };
        let good = [kv(0, 2, 0), kv(2, 1, 16), bias(24)];
        assert_eq!(read(&good, 30).as_deref(), Ok(good.as_slice()));
        let cases: [(&str, &[TensorSpec], usize); 8] = [
            ("empty", &[], 0),
            ("a byte left over", &good, 31),
            ("a byte missing", &good, 29),
            ("gap", &[kv(0, 1, 0), bias(9)], 15),
            ("overlap", &[kv(0, 1, 0), bias(7)], 13),
            ("order of roles", &[bias(0), kv(0, 1, 6)], 14),
            ("a layer twice", &[kv(0, 2, 0), kv(1, 1, 16)], 24),
            ("a role twice", &[bias(0), bias(6)], 12),
        ];
        for (name, specs, bytes) in cases {
            assert!(read(specs, bytes).is_err(), "{name}");
        }
    }

    #[test]
    fn every_changed_bit_of_an_entry_is_noticed_or_changes_the_meaning() {
        let spec = spec(Role::Embeddings, Dtype::F16, &[2, 8], 0).expect("a valid spec");
        let good = spec.to_bytes();
        for bit in 0..8 * good.len() {
            let mut entry = good;
            entry[bit / 8] ^= 1 << (bit % 8);
            if let Ok(read) = TensorTable::read(&entry, 32).map(|table| table.iter().next()) {
                assert_ne!(read, Some(spec), "bit {bit}");
            }
        }
    }
}
