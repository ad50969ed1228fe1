//! A packed weight that lies in the map.

use std::{
    alloc::Layout,
    fmt,
    hash::{Hash, Hasher},
    ops::Range,
};

use tract_data::internal::*;
use tract_linalg::{
    mmm::{MMMInputFormat, MMMInputValue, PackedExoticFact},
    pack::PackedFormat,
};

use crate::{Image, image::Packed};

/// A matrix operand whose panels are read straight from a mapped image.
#[derive(Clone)]
pub(super) struct MappedPanels {
    image: Image,
    packed: Packed,
    /// Which of its panels is the first.
    first: usize,
    mn: usize,
    fact: PackedExoticFact,
}

/// The layout that `packed` records, in 32-bit floats.
pub(super) fn format(packed: &Packed) -> PackedFormat {
    PackedFormat::new(f32::datum_type(), packed.r, packed.alignment)
        .with_end_padding_record(packed.end_padding)
}

impl MappedPanels {
    /// Some of the panels of `packed`.
    pub fn new(image: &Image, packed: &Packed, panels: Range<usize>) -> Self {
        let mn = packed.mn.min(panels.end * packed.r) - panels.start * packed.r;
        Self {
            image: image.clone(),
            packed: packed.clone(),
            first: panels.start,
            mn,
            fact: PackedExoticFact {
                format: Box::new(format(packed)),
                mn: mn.to_dim(),
                k: packed.k,
            },
        }
    }

    fn panel(&self, index: usize) -> TractResult<&[u8]> {
        let panels = self.image.panels(&self.packed);
        let start = (self.first + index).checked_mul(self.packed.panel_bytes);
        let panel = start.and_then(|start| panels.get(start..)?.get(..self.packed.panel_bytes));
        panel.with_context(|| format!("no panel {index} in {self}"))
    }

    /// The `k` numbers of row or column `mn`.
    fn numbers(&self, mn: usize) -> TractResult<impl Iterator<Item = f32>> {
        let (numbers, _) = self.panel(mn / self.packed.r)?.as_chunks();
        let picked = numbers
            .iter()
            .skip(mn % self.packed.r)
            .step_by(self.packed.r);
        Ok(picked
            .take(self.packed.k)
            .map(|bytes| f32::from_le_bytes(*bytes)))
    }
}

impl MMMInputValue for MappedPanels {
    fn format(&self) -> &dyn MMMInputFormat {
        &*self.fact.format
    }

    fn scratch_panel_buffer_layout(&self) -> Option<Layout> {
        None
    }

    fn panel_bytes(&self, index: usize, _buffer: Option<*mut u8>) -> TractResult<*const u8> {
        Ok(self.panel(index)?.as_ptr())
    }

    fn mn(&self) -> usize {
        self.mn
    }

    fn k(&self) -> usize {
        self.packed.k
    }

    fn exotic_fact(&self) -> &dyn ExoticFact {
        &self.fact
    }

    fn extract_at_mn_f16(&self, mn: usize, slice: &mut [f16]) -> TractResult<()> {
        let slots = slice.iter_mut().zip(self.numbers(mn)?);
        slots.for_each(|(slot, number)| *slot = f16::from_f32(number));
        Ok(())
    }

    fn extract_at_mn_f32(&self, mn: usize, slice: &mut [f32]) -> TractResult<()> {
        let slots = slice.iter_mut().zip(self.numbers(mn)?);
        slots.for_each(|(slot, number)| *slot = number);
        Ok(())
    }
}

impl fmt::Display for MappedPanels {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "mapped {} of {}", self.fact, self.packed.name)
    }
}

impl fmt::Debug for MappedPanels {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl PartialEq for MappedPanels {
    fn eq(&self, other: &Self) -> bool {
        self.image.is(&other.image)
            && self.packed == other.packed
            && (self.first, self.mn) == (other.first, other.mn)
    }
}

impl Eq for MappedPanels {}

impl Hash for MappedPanels {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.packed.name.hash(state);
        self.first.hash(state);
        self.fact.hash(state);
    }
}
