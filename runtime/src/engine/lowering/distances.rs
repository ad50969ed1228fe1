//! Numbers that attention scores are given by how far a key is from its query: the bias of T5 (Raffel et al. 2020,
//! section 2.1).

use super::{
    Refused,
    statics::{At, Numbers, Statics},
};
use crate::engine::executor::program::Mask;

/// A number for each head and distance, `[heads, before + 1 + after]`, that of the tokens farthest back first.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ByDistance {
    pub table: Vec<f32>,
    pub before: usize,
    pub after: usize,
}

impl Statics<'_> {
    /// What `name`, `[.., heads, rows, keys]`, adds to scores by the distance of their tokens, and the tokens that it
    /// leaves visible: numbers up to `hidden` hide. `None` where its numbers depend on more.
    pub fn by_distance(
        &mut self,
        name: &str,
        hidden: f32,
    ) -> Result<Option<(Mask, ByDistance)>, Refused> {
        let few = self
            .few()
            .map(|at| Ok(Diagonals::of(&self.at(name, at)?, hidden)));
        let Some(few) = few.collect::<Result<Option<Vec<_>>, Refused>>()? else {
            return Ok(None);
        };
        let Ok(mask) = self.mask(name, |number| Some(number > hidden)) else {
            return Ok(None);
        };
        let all = Diagonals::of(&self.at(name, At::Full)?, hidden);
        let all = all.filter(|all| few.iter().all(|few| few.agrees_with(all)));
        Ok(all.map(|all| (mask, all.shortest())))
    }
}

/// For each head a number by distance, from the farthest back to as far ahead; NaN where nothing is visible.
struct Diagonals {
    heads: Vec<Vec<f32>>,
    /// The distance of the first and of the last.
    far: usize,
}

impl Diagonals {
    /// `None` where `numbers` has several for one distance.
    fn of(numbers: &Numbers, hidden: f32) -> Option<Self> {
        let [leading @ .., rows, keys] = &numbers.shape[..] else {
            return None;
        };
        let (rows, keys) = (*rows, *keys);
        let alone = leading.iter().filter(|&&dim| dim != 1).count() <= 1;
        if rows == 0 || keys < rows || !alone {
            return None;
        }
        let far = keys - 1;
        let head = |head: &[f32]| {
            let mut known = vec![f32::NAN; 2 * far + 1];
            for (row, numbers) in head.chunks_exact(keys).enumerate() {
                let place = keys - rows + row;
                for (&number, known) in numbers.iter().zip(&mut known[far - place..]) {
                    if number > hidden && known.is_nan() {
                        *known = number;
                    }
                    if number > hidden && *known != number {
                        return None;
                    }
                }
            }
            Some(known)
        };
        let heads = numbers.values.chunks_exact(rows * keys).map(head);
        let heads = heads.collect::<Option<_>>()?;
        Some(Self { heads, far })
    }

    /// Whether the tokens of these have the numbers of `all`, who are more.
    fn agrees_with(&self, all: &Self) -> bool {
        let same = |(few, all): (&Vec<f32>, &Vec<f32>)| {
            let mut pairs = few.iter().zip(&all[all.len() / 2 - self.far..]);
            pairs.all(|(few, all)| few.is_nan() || few == all)
        };
        let mut heads = self.heads.iter().zip(&all.heads);
        self.far <= all.far && self.heads.len() == all.heads.len() && heads.all(same)
    }

    /// The shortest table that says the same: farther tokens have the numbers at its ends.
    fn shortest(&self) -> ByDistance {
        let far = self.far;
        let reach = |at: &dyn Fn(usize) -> usize| {
            let differs = |distance: usize| {
                let mut heads = self.heads.iter();
                heads.any(|head| {
                    let (near, last) = (head[at(distance)], head[at(far)]);
                    near != last && !(near.is_nan() && last.is_nan())
                })
            };
            let farthest = (0..far).rev().find(|&distance| differs(distance));
            farthest.map_or(0, |distance| distance + 1)
        };
        let before = reach(&|distance| far - distance);
        let after = reach(&|distance| far + distance);
        let numbers = |head: &Vec<f32>| {
            let near = head[far - before..=far + after].iter();
            let near = near.map(|&number| if number.is_nan() { 0.0 } else { number });
            near.collect::<Vec<_>>()
        };
        ByDistance {
            table: self.heads.iter().flat_map(numbers).collect(),
            before,
            after,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HIDDEN: f32 = -1e4;
    /// The numbers of distances from -3 to 2; farther ones are as those.
    const NEAR: [f32; 6] = [7.0, 5.0, 3.0, 0.5, -1.0, -2.0];

    /// `[1, 2, rows, keys]`, the second head's numbers doubled.
    fn bias(rows: usize, keys: usize, causal: bool) -> Numbers {
        let mut values = Vec::new();
        for scale in [1.0, 2.0] {
            for row in 0..rows {
                values.extend((0..keys).map(|key| {
                    let distance = key as i64 - (keys - rows + row) as i64;
                    match causal && distance > 0 {
                        true => -1e30,
                        false => scale * NEAR[(distance.clamp(-3, 2) + 3) as usize],
                    }
                }));
            }
        }
        Numbers {
            shape: vec![1, 2, rows, keys],
            values,
        }
    }

    #[test]
    fn numbers_by_distance_become_a_short_table() {
        let all = Diagonals::of(&bias(20, 20, false), HIDDEN).unwrap();
        let found = all.shortest();
        let doubled = NEAR.map(|number| 2.0 * number);
        assert_eq!((found.before, found.after), (3, 2));
        assert_eq!(found.table, [NEAR, doubled].concat());
        let causal = Diagonals::of(&bias(20, 20, true), HIDDEN).unwrap();
        let found = causal.shortest();
        assert_eq!((found.before, found.after), (3, 1));
        assert_eq!(found.table, [7., 5., 3., 0.5, 0., 14., 10., 6., 1., 0.]);
        for (few, agrees) in [
            (bias(5, 5, false), true),
            (bias(5, 8, false), true),
            (bias(5, 5, true), true),
        ] {
            let few = Diagonals::of(&few, HIDDEN).unwrap();
            assert_eq!(few.agrees_with(&all), agrees);
        }
        assert!(!all.agrees_with(&causal));
    }

    #[test]
    fn numbers_that_depend_on_more_are_none() {
        let mut other = bias(5, 5, false);
        other.values[7] += 1.0;
        assert!(Diagonals::of(&other, HIDDEN).is_none());
    }
}
