//! Values during a walk: shapes, with the numbers of small tensors.

use crate::onnx::data_type;

/// Tensors of more elements than this are not computed during a walk.
const COMPUTED_ELEMENTS: i64 = 4096;

/// A value at one size.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// Element type, [`crate::onnx::data_type`].
    pub data_type: i32,
    /// The shape.
    pub shape: Vec<i64>,
    /// The elements in row-major order, where they are known.
    pub numbers: Option<Vec<f64>>,
}

pub(super) fn is_float(data_type: i32) -> bool {
    let floats = [
        data_type::FLOAT,
        data_type::DOUBLE,
        data_type::FLOAT16,
        data_type::BFLOAT16,
    ];
    floats.contains(&data_type)
}

/// The shape of two shapes broadcast together; `None` where they do not fit.
pub(super) fn broadcast(left: &[i64], right: &[i64]) -> Option<Vec<i64>> {
    let rank = left.len().max(right.len());
    let dim = |shape: &[i64], axis: usize| {
        (axis + shape.len())
            .checked_sub(rank)
            .map_or(1, |index| shape[index])
    };
    let merge = |axis| match (dim(left, axis), dim(right, axis)) {
        (a, b) if a == b => Some(a),
        (1, b) => Some(b),
        (a, 1) => Some(a),
        _ => None,
    };
    (0..rank).map(merge).collect()
}

impl Value {
    pub(super) fn shaped(data_type: i32, shape: Vec<i64>) -> Self {
        Self {
            data_type,
            shape,
            numbers: None,
        }
    }

    pub(super) fn known(data_type: i32, shape: Vec<i64>, numbers: Vec<f64>) -> Self {
        let numbers = (shape.iter().product::<i64>() == numbers.len() as i64).then_some(numbers);
        Self {
            data_type,
            shape,
            numbers,
        }
    }

    pub(super) fn ints(numbers: &[i64]) -> Self {
        let shape = vec![numbers.len() as i64];
        Self::known(
            data_type::INT64,
            shape,
            numbers.iter().map(|&number| number as f64).collect(),
        )
    }

    pub(super) fn rank(&self) -> usize {
        self.shape.len()
    }

    pub(super) fn elements(&self) -> i64 {
        self.shape.iter().product()
    }

    /// The elements as integers.
    pub(super) fn as_ints(&self) -> Option<Vec<i64>> {
        Some(
            self.numbers
                .as_ref()?
                .iter()
                .map(|&number| number as i64)
                .collect(),
        )
    }

    /// The value that for every index of `shape` takes the element of `self` which `source` names.
    pub(super) fn pick(&self, shape: Vec<i64>, source: impl Fn(&[i64]) -> Vec<i64>) -> Self {
        let count = shape.iter().product::<i64>();
        let numbers = self.numbers.as_ref().filter(|_| count <= COMPUTED_ELEMENTS);
        let picked = numbers.and_then(|numbers| {
            let at = |index: &[i64]| numbers.get(offset(&self.shape, &source(index))).copied();
            indices(&shape).map(|index| at(&index)).collect()
        });
        Self {
            data_type: self.data_type,
            shape,
            numbers: picked,
        }
    }

    /// `self` broadcast to `shape`.
    pub(super) fn expand(&self, shape: Vec<i64>) -> Self {
        let own = self.shape.clone();
        self.pick(shape, move |index| {
            let tail = &index[index.len() - own.len()..];
            own.iter()
                .zip(tail)
                .map(|(&dim, &at)| if dim == 1 { 0 } else { at })
                .collect()
        })
    }
}

/// Applies `operation` element by element to `values`, broadcast together.
pub(super) fn elementwise(
    data_type: i32,
    values: &[&Value],
    operation: impl Fn(&[f64]) -> f64,
) -> Option<Value> {
    let mut shape = Vec::new();
    for value in values {
        shape = broadcast(&shape, &value.shape)?;
    }
    if shape.iter().product::<i64>() > COMPUTED_ELEMENTS
        || values.iter().any(|value| value.numbers.is_none())
    {
        return Some(Value::shaped(data_type, shape));
    }
    let wide: Vec<Vec<f64>> = values
        .iter()
        .filter_map(|value| value.expand(shape.clone()).numbers)
        .collect();
    let count = shape.iter().product::<i64>() as usize;
    let at = |index: usize| {
        operation(
            &wide
                .iter()
                .map(|numbers| numbers[index])
                .collect::<Vec<_>>(),
        )
    };
    let numbers = (0..count).map(at).collect();
    Some(Value::known(data_type, shape, numbers))
}

fn offset(shape: &[i64], index: &[i64]) -> usize {
    let position = shape
        .iter()
        .zip(index)
        .fold(0, |sum, (&dim, &at)| sum * dim + at);
    usize::try_from(position).unwrap_or(usize::MAX)
}

fn indices(shape: &[i64]) -> impl Iterator<Item = Vec<i64>> {
    let shape = shape.to_vec();
    (0..shape.iter().product::<i64>()).map(move |flat| {
        let mut rest = flat;
        let mut index: Vec<i64> = shape
            .iter()
            .rev()
            .map(|&dim| {
                let at = rest % dim;
                rest /= dim;
                at
            })
            .collect();
        index.reverse();
        index
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_broadcast_from_the_right() {
        let table = [
            (vec![2, 1, 3], vec![4, 3], Some(vec![2, 4, 3])),
            (vec![], vec![5], Some(vec![5])),
            (vec![2], vec![3], None),
        ];
        for (left, right, expected) in table {
            assert_eq!(broadcast(&left, &right), expected, "{left:?} {right:?}");
        }
    }

    #[test]
    fn numbers_broadcast_with_their_shapes() {
        let column = Value::known(data_type::INT64, vec![2, 1], vec![10.0, 20.0]);
        let row = Value::ints(&[1, 2, 3]);
        let sum =
            elementwise(data_type::INT64, &[&column, &row], |pair| pair[0] + pair[1]).unwrap();
        assert_eq!(sum.shape, [2, 3]);
        assert_eq!(sum.as_ints().unwrap(), [11, 12, 13, 21, 22, 23]);
    }
}
