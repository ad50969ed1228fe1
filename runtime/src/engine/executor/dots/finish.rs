//! Sums of bytes as numbers.

use std::ops::Range;
#[cfg(target_arch = "x86_64")]
use std::ptr;

use super::{
    super::{super::vectors::wide, arena::Shared},
    tile::{Instructions, OUTPUTS},
};

/// The sums of a run, and what is done with them.
pub(super) struct Run<'a> {
    pub sums: &'a [i32; OUTPUTS],
    /// What every sum is too great by.
    pub excess: i32,
    /// Of the run.
    pub scale: f32,
    /// Of each output.
    pub scales: &'a [f32; OUTPUTS],
    /// Added to the outputs that there are; of the same length as the others.
    pub bias: Option<&'a [f32]>,
    /// Where in the arena numbers lie that are added; it may be where they go.
    pub residual: Option<Range<usize>>,
    /// Where in the arena they go.
    pub output: Range<usize>,
}

impl Run<'_> {
    /// Writes the numbers, the same to the last bit with all instructions.
    pub fn finish(self, instructions: Instructions, arena: Shared<'_>) {
        let outputs = self.output.len();
        let fit = outputs <= OUTPUTS
            && self.bias.is_none_or(|bias| bias.len() == outputs)
            && self.residual.iter().all(|range| range.len() == outputs);
        assert!(fit, "a run has as many numbers as outputs");
        match instructions {
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512Vnni => {
                let start = arena.as_mut_ptr();
                let place = |range: Range<usize>| {
                    // What lies outside the arena ends here.
                    let _inside = arena.read(range.clone());
                    start.wrapping_add(range.start)
                };
                let bias = self.bias.map_or(ptr::null(), <[f32]>::as_ptr);
                let residual = self.residual.map(|range| place(range).cast_const());
                let added = (bias, residual.unwrap_or(ptr::null()));
                let of = (self.sums, self.excess, self.scale, self.scales);
                let output = (place(self.output), outputs);
                // SAFETY: the processor was asked when the instructions were chosen; all have so many numbers, which
                // are this thread's meanwhile, as was promised to `Arena::share`.
                unsafe { super::x86_64::finish(of, added, output) }
            }
            _ => {
                let mut numbers = [0.0; OUTPUTS];
                let residual = self.residual.clone().map(|range| arena.read(range));
                let (run, into) = (&self, &mut numbers);
                wide!(
                    |run: &Run<'_>, into: &mut [f32; OUTPUTS], residual: Option<&[f32]>| -> () {
                        run.numbers(into, residual);
                    }
                );
                arena
                    .write(self.output)
                    .copy_from_slice(&numbers[..outputs]);
            }
        }
    }
    /// The same with what every processor has.
    #[inline(always)]
    fn numbers(&self, numbers: &mut [f32; OUTPUTS], residual: Option<&[f32]>) {
        let sums = self.sums.iter().zip(self.scales);
        for (number, (sum, scale)) in numbers.iter_mut().zip(sums) {
            *number = sum.wrapping_sub(self.excess) as f32 * (self.scale * scale);
        }
        for more in self.bias.into_iter().chain(residual) {
            let pairs = numbers.iter_mut().zip(more);
            pairs.for_each(|(number, more)| *number += more);
        }
    }
}
