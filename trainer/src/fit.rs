//! A linear head fitted to features that stay: what a prompt and its head start from.
//!
//! Fitting the head first keeps the features from being bent towards a random one (linear probing before tuning,
//! Kumar et al. 2022, section 3).

use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use crate::{
    optimizer::{Group, Optimizer, Rule},
    seedbed::shuffle,
    step::Loss,
};

/// Passes over the rows: few, as a head that is sure of every row leaves a prompt nothing to learn.
const PASSES: usize = 3;
/// Steps at least, however few rows there are.
const LEAST_STEPS: usize = 60;
const BATCH: usize = 32;
const LEARNING_RATE: f32 = 1e-2;
const WEIGHT_DECAY: f32 = 1e-2;

/// Features `[rows, width]` and the classes of each row.
pub struct Examples<'a> {
    /// The features, row after row.
    pub features: &'a [f32],
    /// Their width.
    pub width: usize,
    /// The classes of each row.
    pub classes: Vec<Vec<usize>>,
    /// The weight of each class; empty where all weigh the same.
    pub weights: &'a [f32],
}

/// Weight `[labels, width]` and bias `[labels]` after a few passes of AdamW.
pub fn linear(examples: &Examples, labels: usize, loss: Loss, seed: u64) -> Vec<Vec<f32>> {
    let width = examples.width;
    let mut values = vec![vec![0.0; labels * width], vec![0.0; labels]];
    let group = |shape: &[usize], weight_decay| Group {
        shape: shape.into(),
        learning_rate: LEARNING_RATE,
        weight_decay,
    };
    let groups = vec![group(&[labels, width], WEIGHT_DECAY), group(&[labels], 0.0)];
    let mut optimizer = Optimizer::new(Rule::AdamW, groups);
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut order: Vec<usize> = (0..examples.classes.len()).collect();
    let steps = (PASSES * order.len().div_ceil(BATCH)).max(LEAST_STEPS);
    let mut step = 0;
    while step < steps && !order.is_empty() {
        shuffle(&mut order, &mut random);
        for batch in order.chunks(BATCH).take(steps - step) {
            let gradients = gradients(examples, &values, batch, labels, loss);
            optimizer.update(&mut values, &gradients, 1.0);
            step += 1;
        }
    }
    values
}

/// The logits of one row.
fn logits(examples: &Examples, values: &[Vec<f32>], row: usize) -> Vec<f32> {
    let features = &examples.features[row * examples.width..(row + 1) * examples.width];
    let rows = values[0].chunks(examples.width).zip(&values[1]);
    let product = |weight: &[f32]| -> f32 {
        weight
            .iter()
            .zip(features)
            .map(|(weight, feature)| weight * feature)
            .sum()
    };
    rows.map(|(weight, bias)| product(weight) + bias).collect()
}

fn gradients(
    examples: &Examples,
    values: &[Vec<f32>],
    batch: &[usize],
    labels: usize,
    loss: Loss,
) -> Vec<Vec<f32>> {
    let width = examples.width;
    let mut gradients = vec![vec![0.0; labels * width], vec![0.0; labels]];
    for &row in batch {
        let features = &examples.features[row * width..(row + 1) * width];
        let mut errors = logits(examples, values, row);
        probabilities(&mut errors, loss);
        let classes = &examples.classes[row];
        classes.iter().for_each(|&class| errors[class] -= 1.0);
        let weigh = |class: &usize| examples.weights.get(*class).copied();
        let weight = classes.first().and_then(weigh).unwrap_or(1.0) / batch.len() as f32;
        for (class, error) in errors.iter().enumerate() {
            let error = error * weight;
            gradients[1][class] += error;
            let sums = &mut gradients[0][class * width..(class + 1) * width];
            sums.iter_mut()
                .zip(features)
                .for_each(|(sum, feature)| *sum += error * feature);
        }
    }
    gradients
}

fn probabilities(logits: &mut [f32], loss: Loss) {
    match loss {
        Loss::Sigmoid => logits
            .iter_mut()
            .for_each(|logit| *logit = 1.0 / (1.0 + (-*logit).exp())),
        Loss::Softmax => {
            let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            logits
                .iter_mut()
                .for_each(|logit| *logit = (*logit - most).exp());
            let total: f32 = logits.iter().sum();
            logits.iter_mut().for_each(|logit| *logit /= total);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separable_rows_are_told_apart() {
        let features: Vec<f32> = (0..60)
            .flat_map(|row| {
                let noise = (row as f32 * 1.3).sin() * 0.2;
                match row % 3 {
                    0 => [1.0 + noise, 0.0],
                    1 => [0.0, 1.0 + noise],
                    _ => [-1.0, -1.0 + noise],
                }
            })
            .collect();
        let classes: Vec<Vec<usize>> = (0..60).map(|row| vec![row % 3]).collect();
        for loss in [Loss::Softmax, Loss::Sigmoid] {
            let examples = Examples {
                features: &features,
                width: 2,
                classes: classes.clone(),
                weights: &[],
            };
            let values = linear(&examples, 3, loss, 0);
            for (row, classes) in features.chunks(2).zip(&classes) {
                let logits: Vec<f32> = values[0]
                    .chunks(2)
                    .zip(&values[1])
                    .map(|(weight, bias)| weight[0] * row[0] + weight[1] * row[1] + bias)
                    .collect();
                let best = (0..3)
                    .max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
                    .unwrap();
                assert_eq!(best, classes[0], "{loss:?} {row:?}");
            }
        }
    }
}
