//! What several tests of this module need.

use super::draw::Draws;
use crate::allocations;

/// Numbers between -1 and 1 that look random; the same for the same seed.
pub fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut draws = Draws::new(seed);
    (0..count)
        .map(|_| (2.0 * draws.unit() - 1.0) as f32)
        .collect()
}

/// How often `run` asks for memory with what `make` has just made: the least of many times, as other tests may allocate
/// beside it.
pub fn allocations_of<T>(make: impl Fn() -> T, run: impl Fn(&mut T)) -> u64 {
    let round = |_| {
        let mut made = make();
        let before = allocations::calls();
        run(&mut made);
        allocations::calls() - before
    };
    (0..50).map(round).min().unwrap_or(0)
}
