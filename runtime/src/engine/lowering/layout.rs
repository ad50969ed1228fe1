//! How a tensor's dimensions lie in the rows of the executor.
//!
//! The executor keeps one row of numbers for each token. A dimension of a tensor is made of atoms: the tokens, or
//! steps within a row. What reshapes, transposes and slices only changes the atoms; no number moves.

/// A part of a dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Atom {
    /// The tokens that ask.
    Row,
    /// The tokens that are asked, where they are another dimension than those that ask.
    Key,
    /// `size` places in a row, each `stride` numbers behind the one before.
    Inner { size: usize, stride: usize },
}

/// A dimension: its atoms, the first the outermost; none where the dimension is 1.
pub(super) type Axis = Vec<Atom>;

/// Where a tensor's numbers are in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub axes: Vec<Axis>,
    /// The place of the first.
    pub first: usize,
}

/// How many tokens there are at one of the sizes that shapes are known at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tokens {
    pub rows: usize,
    pub keys: usize,
}

impl Atom {
    pub fn size(self, tokens: Tokens) -> usize {
        match self {
            Self::Row => tokens.rows,
            Self::Key => tokens.keys,
            Self::Inner { size, .. } => size,
        }
    }
}

/// `atoms` with neighbours that are one run joined, and those of one place left out.
pub(super) fn joined(atoms: impl IntoIterator<Item = Atom>) -> Axis {
    let mut axis: Axis = Vec::new();
    for atom in atoms {
        match (axis.last_mut(), atom) {
            (_, Atom::Inner { size: 1, .. }) => {}
            (
                Some(Atom::Inner { size, stride }),
                Atom::Inner {
                    size: inner,
                    stride: step,
                },
            ) if *stride == inner * step => {
                *size *= inner;
                *stride = step;
            }
            _ => axis.push(atom),
        }
    }
    axis
}

impl Layout {
    /// Neighbouring numbers in the order of `dims`, where `None` stands for the tokens.
    pub fn plain(dims: &[Option<usize>]) -> Self {
        let mut stride = 1;
        let mut axes: Vec<Axis> = dims
            .iter()
            .rev()
            .map(|dim| match *dim {
                None => vec![Atom::Row],
                Some(size) => {
                    let atom = Atom::Inner { size, stride };
                    stride *= size;
                    joined([atom])
                }
            })
            .collect();
        axes.reverse();
        Self { axes, first: 0 }
    }

    pub fn permuted(&self, permutation: impl IntoIterator<Item = usize>) -> Option<Self> {
        let axes = permutation
            .into_iter()
            .map(|axis| self.axes.get(axis).cloned());
        Some(Self {
            axes: axes.collect::<Option<_>>()?,
            first: self.first,
        })
    }

    /// The same numbers in other dimensions, whose sizes are `dims` at `tokens`.
    pub fn reshaped(&self, dims: &[usize], tokens: Tokens) -> Option<Self> {
        let mut atoms: Vec<Atom> = self.axes.iter().flatten().rev().copied().collect();
        let mut axes = Vec::new();
        for &dim in dims {
            let mut axis = Vec::new();
            let mut left = dim;
            while left > 1 {
                let atom = atoms.pop()?;
                let size = atom.size(tokens);
                match atom {
                    _ if left.is_multiple_of(size) => {
                        left /= size;
                        axis.push(atom);
                    }
                    Atom::Inner { size, stride } if size.is_multiple_of(left) => {
                        let inner = size / left;
                        axis.push(Atom::Inner {
                            size: left,
                            stride: stride * inner,
                        });
                        atoms.push(Atom::Inner {
                            size: inner,
                            stride,
                        });
                        left = 1;
                    }
                    _ => return None,
                }
            }
            axes.push(joined(axis));
        }
        atoms.is_empty().then_some(Self {
            axes,
            first: self.first,
        })
    }

    /// Places `start..end` of dimension `axis`.
    pub fn sliced(&self, axis: usize, start: usize, end: usize) -> Option<Self> {
        self.stepped(axis, start, end.checked_sub(start)?, 1)
    }

    /// `count` places of dimension `axis`: `start`, and each `step` behind the one before.
    pub fn stepped(&self, axis: usize, start: usize, count: usize, step: usize) -> Option<Self> {
        let mut stepped = self.clone();
        let [Atom::Inner { size, stride }] = stepped.axes.get(axis)?[..] else {
            return None;
        };
        if count == 0 || start + (count - 1) * step >= size {
            return None;
        }
        stepped.first += start * stride;
        stepped.axes[axis] = joined([Atom::Inner {
            size: count,
            stride: stride * step,
        }]);
        Some(stepped)
    }

    /// Dimensions of 1 repeated so that `dims` come out.
    pub fn expanded(&self, dims: &[usize], tokens: Tokens) -> Option<Self> {
        let mut expanded = self.clone();
        let missing = dims.len().checked_sub(self.axes.len())?;
        expanded.axes.splice(0..0, vec![Vec::new(); missing]);
        for (axis, &dim) in expanded.axes.iter_mut().zip(dims) {
            let size: usize = axis.iter().map(|atom| atom.size(tokens)).product();
            if size == 1 && dim > 1 {
                *axis = vec![Atom::Inner {
                    size: dim,
                    stride: 0,
                }];
            } else if size != dim {
                return None;
            }
        }
        Some(expanded)
    }

    /// The atoms of all dimensions but the tokens', outermost first, with joined neighbours.
    pub fn inner(&self) -> Vec<Atom> {
        let atoms = self.axes.iter().flatten().copied();
        joined(atoms.filter(|atom| *atom != Atom::Row))
    }

    /// Whether the numbers of a row are neighbours in the order of the dimensions, `count` of them.
    pub fn is_run(&self, count: usize) -> bool {
        match self.inner()[..] {
            [] => count == 1,
            [Atom::Inner { size, stride: 1 }] => size == count,
            _ => false,
        }
    }

    /// Whether the tokens that ask are a dimension of their own, and no other tokens are.
    pub fn is_rows(&self) -> bool {
        let tokens = self.axes.iter().flatten();
        let tokens = tokens.filter(|atom| !matches!(atom, Atom::Inner { .. }));
        tokens.copied().eq([Atom::Row]) && self.axes.iter().any(|axis| axis[..] == [Atom::Row])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKENS: Tokens = Tokens { rows: 7, keys: 10 };

    fn inner(size: usize, stride: usize) -> Atom {
        Atom::Inner { size, stride }
    }

    #[test]
    fn heads_come_apart_and_together() {
        let rows = Layout::plain(&[Some(1), None, Some(12)]);
        let heads = rows.reshaped(&[1, 7, 3, 4], TOKENS).unwrap();
        assert_eq!(heads.axes[2..], [vec![inner(3, 4)], vec![inner(4, 1)]]);
        let turned = heads.permuted([0, 2, 1, 3]).unwrap();
        assert!(turned.is_rows() && turned.is_run(12));
        let back = turned.permuted([0, 2, 1, 3]).unwrap();
        assert_eq!(back.reshaped(&[1, 7, 12], TOKENS).unwrap(), rows);
        assert_eq!(rows.reshaped(&[7, 12], TOKENS).unwrap().axes.len(), 2);
        assert_eq!(rows.reshaped(&[5, 12], TOKENS), None);
    }

    #[test]
    fn repeated_heads_are_steps_of_nothing() {
        let heads = Layout::plain(&[Some(1), Some(2), None, Some(4)]);
        let apart = heads.reshaped(&[1, 2, 1, 7, 4], TOKENS).unwrap();
        let repeated = apart.expanded(&[1, 2, 3, 7, 4], TOKENS).unwrap();
        let merged = repeated.reshaped(&[1, 6, 7, 4], TOKENS).unwrap();
        assert_eq!(merged.axes[1], [inner(2, 4), inner(3, 0)]);
        assert!(!merged.is_run(24));
    }

    #[test]
    fn slices_move_the_start() {
        let rows = Layout::plain(&[None, Some(12)]);
        let last = rows.sliced(1, 8, 12).unwrap();
        assert_eq!((last.first, &last.axes[1]), (8, &vec![inner(4, 1)]));
        assert_eq!(rows.sliced(0, 0, 1), None);
        assert_eq!(rows.sliced(1, 8, 13), None);
    }

    #[test]
    fn every_second_place_is_a_longer_step() {
        let heads = Layout::plain(&[None, Some(3), Some(4)]);
        let odd = heads.stepped(2, 1, 2, 2).unwrap();
        assert_eq!((odd.first, &odd.axes[2]), (1, &vec![inner(2, 2)]));
        assert_eq!(heads.stepped(2, 2, 2, 2), None);
    }
}
