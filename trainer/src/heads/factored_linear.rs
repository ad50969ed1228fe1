//! A linear head of low rank: `A (B h) + b`, few bytes where there are many labels.

use super::{
    BIAS, FACTORS, Head, HeadSize, NOTHING, ONE_OR_MORE_LABELS, Reads, linear::against_rows,
};
use crate::methods::Parameter;

pub(super) const HEAD: Head = Head {
    name: "factored-linear",
    reads: Reads::Hidden,
    answers: ONE_OR_MORE_LABELS,
    parameters: |size| {
        vec![
            Parameter::new("factor.0", &[size.classes, size.rank]),
            Parameter::new("factor.1", &[size.rank, size.width]),
            Parameter::new("bias", &[size.classes]),
        ]
    },
    given: NOTHING,
    subgraph: |builder, _, rows, parameters| {
        let inner = against_rows(builder, rows, &parameters[1]);
        let product = against_rows(builder, &inner, &parameters[0]);
        builder.apply("Add", &[&product, &parameters[2]], &[])
    },
    from_linear: Some(factor),
    random: &[1],
    stored: &[FACTORS[0], FACTORS[1], BIAS],
};

/// Rounds of the power iteration: enough where the spectrum falls off at all.
const ROUNDS: usize = 12;

/// The best factors of rank `r` of a weight by orthogonal iteration (Golub and Van Loan, section 8.2.4).
fn factor(size: HeadSize, mut linear: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    let HeadSize {
        classes,
        width,
        rank,
    } = size;
    let (bias, weight) = (
        linear.pop().unwrap_or_default(),
        linear.pop().unwrap_or_default(),
    );
    let row = |class: usize| &weight[class * width..(class + 1) * width];
    let mut basis: Vec<Vec<f32>> = (0..rank)
        .map(|index| mixed_rows(index, classes, &row))
        .collect();
    let mut factors = vec![0.0; classes * rank];
    for _ in 0..ROUNDS {
        orthonormalise(&mut basis);
        for class in 0..classes {
            for (index, direction) in basis.iter().enumerate() {
                factors[class * rank + index] = dot(row(class), direction);
            }
        }
        for (index, direction) in basis.iter_mut().enumerate() {
            direction.fill(0.0);
            for class in 0..classes {
                let factor = factors[class * rank + index];
                direction
                    .iter_mut()
                    .zip(row(class))
                    .for_each(|(sum, value)| *sum += factor * value);
            }
        }
    }
    orthonormalise(&mut basis);
    for class in 0..classes {
        for (index, direction) in basis.iter().enumerate() {
            factors[class * rank + index] = dot(row(class), direction);
        }
    }
    vec![factors, basis.concat(), bias]
}

/// A fixed mixture of the weight's rows, another for each index.
fn mixed_rows<'a>(index: usize, classes: usize, row: &impl Fn(usize) -> &'a [f32]) -> Vec<f32> {
    let mut mixture = vec![0.0; row(0).len()];
    for class in 0..classes {
        let share = (1.0 + (index * classes + class) as f32 * 1.7).sin();
        mixture
            .iter_mut()
            .zip(row(class))
            .for_each(|(sum, value)| *sum += share * value);
    }
    mixture
}

/// Gram and Schmidt's process; directions that vanish stay zero.
fn orthonormalise(basis: &mut [Vec<f32>]) {
    for index in 0..basis.len() {
        let (before, rest) = basis.split_at_mut(index);
        let Some(direction) = rest.first_mut() else {
            continue;
        };
        for other in before {
            let share = dot(direction, other);
            direction
                .iter_mut()
                .zip(other.iter())
                .for_each(|(value, other)| *value -= share * other);
        }
        let norm = dot(direction, direction).sqrt();
        let scale = if norm > 1e-12 { 1.0 / norm } else { 0.0 };
        direction.iter_mut().for_each(|value| *value *= scale);
    }
}

fn dot(left: &[f32], right: &[f32]) -> f32 {
    left.iter()
        .zip(right)
        .map(|(left, right)| left * right)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_of_that_rank_is_found_again() {
        let size = HeadSize {
            classes: 5,
            width: 6,
            rank: 2,
        };
        let value = |class: usize, column: usize| {
            (class as f32).sin() * (column as f32).cos()
                + 0.3 * (class * class) as f32 * (column as f32 + 0.5)
        };
        let weight: Vec<f32> = (0..30).map(|at| value(at / 6, at % 6)).collect();
        let found = factor(size, vec![weight.clone(), vec![0.0; 5]]);
        for (at, expected) in weight.iter().enumerate() {
            let product: f32 = (0..2)
                .map(|rank| found[0][at / 6 * 2 + rank] * found[1][rank * 6 + at % 6])
                .sum();
            assert!(
                (product - expected).abs() < 1e-3 * (1.0 + expected.abs()),
                "{at}: {product} {expected}"
            );
        }
    }
}
