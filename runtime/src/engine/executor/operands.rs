//! Operands that are packed while the executor runs.

use std::{
    alloc::Layout,
    array, fmt,
    hash::{Hash, Hasher},
};

use tract_data::internal::*;
use tract_linalg::{
    mmm::{MMMInputFormat, MMMInputValue, PackedExoticFact},
    pack::PackedFormat,
};

use super::{
    super::failed,
    arena::{ALIGNMENT_BYTES, Block, Shared, find_room},
};
use crate::Error;

/// The right operand of a product: runs of as many numbers as the product is deep.
#[derive(Clone, Copy)]
pub(super) enum Right<'a> {
    Panels(&'a Panels),
    /// In the arena, for a kernel that reads them where they lie: runs of so many numbers.
    Arena(Block, usize),
}

impl<'a> Right<'a> {
    /// The `runs` runs of `depth` numbers at `block`, in `panels` where the kernel has such.
    ///
    /// # Errors
    /// As [`Panels::pack`].
    pub fn new(
        panels: Option<&'a mut Panels>,
        arena: Shared<'_>,
        block: Block,
        (depth, runs): (usize, usize),
    ) -> Result<Self, Error> {
        let Some(panels) = panels else {
            return Ok(Self::Arena(block, depth));
        };
        let from = arena.read(block.first..block.first + (runs - 1) * block.step + depth);
        panels.pack(from, (depth, runs), (1, block.step))?;
        Ok(Self::Panels(panels))
    }

    /// Copies the first run.
    pub fn copy_first(self, arena: Shared<'_>, run: &mut [f32]) {
        match self {
            Self::Panels(panels) => panels.copy_first(run),
            Self::Arena(block, _) => {
                run.copy_from_slice(arena.read(block.first..block.first + run.len()));
            }
        }
    }
}

/// An operand that is packed while the executor runs, in memory of its own.
#[derive(Clone)]
pub(super) struct Panels {
    format: PackedFormat,
    buffer: Tensor,
    panel_bytes: usize,
    mn: usize,
    fact: PackedExoticFact,
}

impl Panels {
    /// Room for `depth` by `mn` numbers.
    pub fn new(format: &PackedFormat, depth: usize, mn: usize) -> Result<Self, Error> {
        let count = format.len(depth, mn.next_multiple_of(format.r));
        find_room(count)?;
        let alignment = format.alignment().max(ALIGNMENT_BYTES);
        // SAFETY: panels are packed before they are multiplied, their padding is zeroed, and any bits are a number.
        let buffer = unsafe { Tensor::uninitialized_aligned::<f32>(&[count], alignment) };
        Ok(Self {
            format: format.clone(),
            buffer: buffer.map_err(failed("reserving panels"))?,
            panel_bytes: 0,
            mn: 0,
            fact: PackedExoticFact {
                format: Box::new(format.clone()),
                mn: mn.to_dim(),
                k: 0,
            },
        })
    }

    /// How numbers lie in it.
    pub fn layout(&self) -> &PackedFormat {
        &self.format
    }

    /// Bytes that are reserved.
    pub fn bytes(&self) -> usize {
        self.buffer.as_bytes().len()
    }

    /// Copies the first vector that was packed.
    fn copy_first(&self, vector: &mut [f32]) {
        // SAFETY: the tensor holds 32-bit floats, as `new` made it.
        let numbers = unsafe { self.buffer.as_slice_unchecked::<f32>() };
        let first = numbers.iter().step_by(self.format.r);
        let pairs = vector.iter_mut().zip(first);
        pairs.for_each(|(to, number)| *to = *number);
    }

    /// Panels of vectors of `depth` numbers that there is room for.
    pub fn room(&self, depth: usize) -> usize {
        self.buffer.len() / self.format.single_panel_len(depth).max(1)
    }

    /// Lets `write` write the panels of `mn` vectors of `depth` numbers, each given with its number.
    ///
    /// # Errors
    /// When there is no room for them.
    pub fn fill(
        &mut self,
        (depth, mn): (usize, usize),
        write: impl Fn(usize, &mut [f32]),
    ) -> Result<(), Error> {
        let panel = self.format.single_panel_len(depth);
        let panels = self.begin((depth, mn), true)?.chunks_exact_mut(panel);
        panels
            .enumerate()
            .for_each(|(index, panel)| write(index, panel));
        Ok(())
    }

    /// Packs `mn` vectors of `depth` numbers: number `i` of vector `j` is `from[i steps.0 + j steps.1]`.
    ///
    /// # Errors
    /// When the numbers are not all there, or there is no room for them.
    pub fn pack(
        &mut self,
        from: &[f32],
        (depth, mn): (usize, usize),
        (depth_step, mn_step): (usize, usize),
    ) -> Result<(), Error> {
        let last = (depth.saturating_sub(1))
            .saturating_mul(depth_step)
            .saturating_add(mn.saturating_sub(1).saturating_mul(mn_step));
        let packed = self.begin((depth, mn), last < from.len())?.as_mut_ptr();
        // SAFETY: all reads lie before `last` and all writes within the panels, both compared above.
        unsafe {
            self.format.pack_t::<f32>(
                packed,
                from.as_ptr(),
                mn,
                depth_step as isize,
                mn_step as isize,
                0..depth,
                0..mn,
            );
        }
        Ok(())
    }

    /// Packs the rows of both parts, one behind the other, each a vector of `length` numbers.
    ///
    /// # Errors
    /// As [`Panels::pack`].
    pub fn pack_rows(&mut self, parts: [Rows<'_>; 2], length: usize) -> Result<(), Error> {
        if let [Rows { count: 0, .. }, own] | [own, Rows { count: 0, .. }] = parts {
            return self.pack(own.numbers, (length, own.count), (1, own.step));
        }
        let rows = parts[0].count + parts[1].count;
        let r = self.format.r;
        let panel = self.format.single_panel_len(length);
        let packed = self.begin((length, rows), parts.iter().all(|part| part.hold(length)))?;
        let mut first = 0;
        for part in parts {
            pack_behind(packed, (r, panel), first, part, length);
            first += part.count;
        }
        Ok(())
    }

    /// Packs the columns of the rows of both parts, one behind the other: `length` vectors, a number of each from every
    /// row.
    ///
    /// # Errors
    /// As [`Panels::pack`].
    pub fn pack_columns(&mut self, parts: [Rows<'_>; 2], length: usize) -> Result<(), Error> {
        let rows = parts[0].count + parts[1].count;
        let r = self.format.r;
        let panel = self.format.single_panel_len(rows);
        let packed = self.begin((rows, length), parts.iter().all(|part| part.hold(length)))?;
        for (at, panel) in packed.chunks_exact_mut(panel).enumerate() {
            let columns = at * r..length.min((at + 1) * r);
            let rows = parts.iter().flat_map(|part| part.of(length));
            for (record, row) in panel.chunks_exact_mut(r).zip(rows) {
                record[..columns.len()].copy_from_slice(&row[columns.clone()]);
            }
        }
        Ok(())
    }

    /// The panels for `mn` vectors of `depth` numbers, where those are `there`; what pads the last one is zero.
    fn begin(&mut self, (depth, mn): (usize, usize), there: bool) -> Result<&mut [f32], Error> {
        let panel = self.format.single_panel_len(depth);
        let count = panel.saturating_mul(mn.div_ceil(self.format.r));
        if depth == 0 || mn == 0 || !there || count > self.buffer.len() {
            let error = format_err!("{mn} vectors of {depth} do not fit");
            return Err(failed("packing")(error));
        }
        self.panel_bytes = panel * size_of::<f32>();
        self.mn = mn;
        self.fact.k = depth;
        // SAFETY: the tensor holds 32-bit floats, as `new` made it.
        let packed = unsafe { self.buffer.as_slice_mut_unchecked::<f32>() };
        let packed = &mut packed[..count];
        if !mn.is_multiple_of(self.format.r) {
            packed[count - panel..].fill(0.0);
        }
        Ok(packed)
    }
}

/// Packs the rows of `part`, `length` numbers each, as those from `first` on of panels of `r` rows and `panel` numbers.
fn pack_behind(
    packed: &mut [f32],
    (r, panel): (usize, usize),
    first: usize,
    part: Rows<'_>,
    length: usize,
) {
    let row = |index: usize| &part.numbers[index * part.step..][..length];
    let mut index = 0;
    while index < part.count {
        let place = (first + index) % r;
        let records = packed[(first + index) / r * panel..][..panel].chunks_exact_mut(r);
        if (part.count - index).min(r - place) < ROWS_AT_ONCE {
            let slots = records.map(|record| &mut record[place]);
            slots
                .zip(row(index))
                .for_each(|(slot, number)| *slot = *number);
            index += 1;
            continue;
        }
        let rows: [&[f32]; ROWS_AT_ONCE] = array::from_fn(|more| row(index + more));
        for (at, record) in records.take(length).enumerate() {
            let slots = &mut record[place..place + ROWS_AT_ONCE];
            slots
                .iter_mut()
                .zip(rows)
                .for_each(|(slot, row)| *slot = row[at]);
        }
        index += ROWS_AT_ONCE;
    }
}

/// Rows that are packed side by side: the compiler turns squares of so many in registers, where it gathers more.
const ROWS_AT_ONCE: usize = 4;

/// Rows of numbers, one every `step` numbers.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub numbers: &'a [f32],
    pub count: usize,
    pub step: usize,
}

impl<'a> Rows<'a> {
    /// No row.
    pub const NONE: Self = Self {
        numbers: &[],
        count: 0,
        step: 1,
    };

    /// Whether every row has `length` numbers.
    fn hold(&self, length: usize) -> bool {
        let last = self.count.saturating_sub(1).saturating_mul(self.step);
        self.count == 0
            || (1..=self.step.max(1)).contains(&length)
                && last.saturating_add(length) <= self.numbers.len()
    }

    /// Its rows, each of `length` numbers.
    fn of(&self, length: usize) -> impl Iterator<Item = &'a [f32]> {
        let rows = self.numbers.chunks(self.step.max(1)).take(self.count);
        rows.map(move |row| &row[..length])
    }
}

impl MMMInputValue for Panels {
    fn format(&self) -> &dyn MMMInputFormat {
        &self.format
    }

    fn scratch_panel_buffer_layout(&self) -> Option<Layout> {
        None
    }

    fn panel_bytes(&self, index: usize, _buffer: Option<*mut u8>) -> TractResult<*const u8> {
        let start = index * self.panel_bytes;
        let panel = self.buffer.as_bytes().get(start..start + self.panel_bytes);
        Ok(panel.with_context(|| format!("no panel {index}"))?.as_ptr())
    }

    fn mn(&self) -> usize {
        self.mn
    }

    fn k(&self) -> usize {
        self.fact.k
    }

    fn exotic_fact(&self) -> &dyn ExoticFact {
        &self.fact
    }

    fn extract_at_mn_f16(&self, _mn: usize, _slice: &mut [f16]) -> TractResult<()> {
        bail!("panels of this machine's own kernels are not taken apart")
    }

    fn extract_at_mn_f32(&self, _mn: usize, _slice: &mut [f32]) -> TractResult<()> {
        bail!("panels of this machine's own kernels are not taken apart")
    }
}

impl fmt::Display for Panels {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} vectors of {}", self.mn, self.fact.k)
    }
}

impl fmt::Debug for Panels {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl PartialEq for Panels {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Panels {}

impl Hash for Panels {
    fn hash<H: Hasher>(&self, state: &mut H) {
        std::ptr::from_ref(self).hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_two_parts_stand_behind_each_other_in_the_panels() {
        let (r, length) = (12, 5);
        let format = PackedFormat::new(f32::datum_type(), r, ALIGNMENT_BYTES);
        let numbers: Vec<f32> = (1..=600u16).map(f32::from).collect();
        let part = |count: usize, step: usize| Rows {
            numbers: &numbers[count..],
            count,
            step,
        };
        for counts in [[1, 1], [3, 9], [9, 8], [10, 30], [8, 4], [0, 11], [25, 0]] {
            let parts = [part(counts[0], length), part(counts[1], 7)];
            let rows: Vec<&[f32]> = parts.iter().flat_map(|part| part.of(length)).collect();
            let mut panels = Panels::new(&format, length, rows.len()).unwrap();
            panels.pack_rows(parts, length).unwrap();
            let panel = format.single_panel_len(length);
            // SAFETY: the tensor holds 32-bit floats, as `new` made it.
            let packed = unsafe { panels.buffer.as_slice_unchecked::<f32>() };
            for place in 0..rows.len().next_multiple_of(r) {
                for at in 0..length {
                    let expected = rows.get(place).map_or(0.0, |row| row[at]);
                    let found = packed[place / r * panel + at * r + place % r];
                    assert_eq!(found, expected, "{counts:?}: row {place}, number {at}");
                }
            }
        }
    }
}
