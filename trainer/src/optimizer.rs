//! Optimizers, learning-rate schedules and clipping.

use serde::{Deserialize, Serialize};

use crate::Error;

const MOMENTUM: f32 = 0.9;
const SQUARE_MOMENTUM: f32 = 0.999;
const EPSILON: f32 = 1e-8;
/// Adafactor's `epsilon_1` and clipping threshold `d` (Shazeer and Stern 2018, algorithm 4).
const FACTOR_EPSILON: f32 = 1e-30;
const FACTOR_CLIP: f32 = 1.0;

/// An optimizer's update rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2).
    #[default]
    AdamW,
    /// Adafactor without momentum and without scaling by parameters (Shazeer and Stern 2018, algorithm 4), as Lester et
    /// al. 2021 train prompts.
    Adafactor,
}

impl Rule {
    /// The rule of that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn named(name: &str) -> Result<Self, Error> {
        match name {
            "adamw" => Ok(Self::AdamW),
            "adafactor" => Ok(Self::Adafactor),
            other => Err(Error::Options(format!(
                "there is no optimizer {other}; choose adamw or adafactor"
            ))),
        }
    }
}

/// How one tensor learns.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// The tensor's shape.
    pub shape: Vec<usize>,
    /// Learning rate at its peak.
    pub learning_rate: f32,
    /// Decay of the weights a step, times the learning rate.
    pub weight_decay: f32,
}

/// The optimizer's state.
#[derive(Clone, Debug)]
pub struct Optimizer {
    rule: Rule,
    groups: Vec<Group>,
    /// For each tensor: Adam's mean and mean square, or Adafactor's rows and columns of the mean square.
    moments: Vec<[Vec<f32>; 2]>,
    step: u32,
}

impl Optimizer {
    /// A fresh state for tensors that learn as `groups` say.
    pub fn new(rule: Rule, groups: Vec<Group>) -> Self {
        let moments = groups.iter().map(|group| {
            let elements = group.shape.iter().product();
            let columns = columns(&group.shape);
            match rule {
                Rule::AdamW => [vec![0.0; elements], vec![0.0; elements]],
                Rule::Adafactor => [vec![0.0; elements / columns.max(1)], vec![0.0; columns]],
            }
        });
        Self {
            rule,
            moments: moments.collect(),
            groups,
            step: 0,
        }
    }

    /// Moves `values` against `gradients`, the learning rates scaled by `factor`.
    pub fn update(&mut self, values: &mut [Vec<f32>], gradients: &[Vec<f32>], factor: f32) {
        self.step += 1;
        let tensors = values.iter_mut().zip(gradients).zip(&mut self.moments);
        for (((values, gradients), moments), group) in tensors.zip(&self.groups) {
            let rate = group.learning_rate * factor;
            let decay = rate * group.weight_decay;
            values.iter_mut().for_each(|value| *value -= decay * *value);
            match self.rule {
                Rule::AdamW => adam(values, gradients, moments, rate, self.step),
                Rule::Adafactor => adafactor(values, gradients, moments, rate, self.step),
            }
        }
    }

    /// What a later run needs to go on: steps done, and the moments of every tensor.
    pub fn state(&self) -> (u32, Vec<[Vec<f32>; 2]>) {
        (self.step, self.moments.clone())
    }

    /// Goes on from a state; `false` where it does not fit the tensors.
    #[must_use]
    pub fn restore(&mut self, step: u32, moments: Vec<[Vec<f32>; 2]>) -> bool {
        let sizes = |moments: &[[Vec<f32>; 2]]| -> Vec<[usize; 2]> {
            moments
                .iter()
                .map(|[first, second]| [first.len(), second.len()])
                .collect()
        };
        let fits = sizes(&moments) == sizes(&self.moments);
        if fits {
            (self.step, self.moments) = (step, moments);
        }
        fits
    }
}

/// Elements of a row, where a tensor is a matrix of rows; a vector is one row.
fn columns(shape: &[usize]) -> usize {
    shape.last().copied().unwrap_or(1).max(1)
}

fn adam(values: &mut [f32], gradients: &[f32], moments: &mut [Vec<f32>; 2], rate: f32, step: u32) {
    let correction = 1.0 - MOMENTUM.powi(step.cast_signed());
    let square_correction = 1.0 - SQUARE_MOMENTUM.powi(step.cast_signed());
    let [means, squares] = moments;
    let moments = means.iter_mut().zip(squares);
    for ((value, &gradient), (mean, square)) in values.iter_mut().zip(gradients).zip(moments) {
        *mean = MOMENTUM * *mean + (1.0 - MOMENTUM) * gradient;
        *square = SQUARE_MOMENTUM * *square + (1.0 - SQUARE_MOMENTUM) * gradient * gradient;
        *value -= rate * (*mean / correction) / ((*square / square_correction).sqrt() + EPSILON);
    }
}

fn adafactor(
    values: &mut [f32],
    gradients: &[f32],
    moments: &mut [Vec<f32>; 2],
    rate: f32,
    step: u32,
) {
    let keep = 1.0 - (step as f32).powf(-0.8);
    let [rows, columns] = moments;
    let width = columns.len();
    let squares: Vec<f32> = gradients
        .iter()
        .map(|gradient| gradient * gradient + FACTOR_EPSILON)
        .collect();
    for (row, squares) in rows.iter_mut().zip(squares.chunks(width)) {
        *row = keep * *row + (1.0 - keep) * squares.iter().sum::<f32>() / width as f32;
    }
    for (index, column) in columns.iter_mut().enumerate() {
        let sum: f32 = squares.iter().skip(index).step_by(width).sum();
        *column = keep * *column + (1.0 - keep) * sum / rows.len() as f32;
    }
    let mean = rows.iter().sum::<f32>() / rows.len() as f32;
    // In this order, as the product of two of the smallest means is no number any more.
    let estimate = |at: usize| (rows[at / width] / mean * columns[at % width]).sqrt();
    let steps: Vec<f32> = gradients
        .iter()
        .enumerate()
        .map(|(at, gradient)| gradient / estimate(at))
        .collect();
    let size =
        (steps.iter().map(|step| step * step).sum::<f32>() / steps.len().max(1) as f32).sqrt();
    let scale = rate / (size / FACTOR_CLIP).max(1.0);
    values
        .iter_mut()
        .zip(steps)
        .for_each(|(value, step)| *value -= scale * step);
}

/// How the learning rate goes after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// Falls in a straight line to zero.
    #[default]
    Linear,
    /// Falls along half a cosine to zero (Loshchilov and Hutter 2017, section 3).
    Cosine,
    /// Stays.
    Constant,
}

impl Decay {
    /// The decay of that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn named(name: &str) -> Result<Self, Error> {
        match name {
            "linear" => Ok(Self::Linear),
            "cosine" => Ok(Self::Cosine),
            "constant" => Ok(Self::Constant),
            other => Err(Error::Options(format!(
                "there is no schedule {other}; choose linear, cosine or constant"
            ))),
        }
    }

    /// The factor of the learning rate at `step` of `steps`: linear warm-up over a part of them, then the decay.
    pub fn factor(self, step: usize, steps: usize, warm_up: f64) -> f32 {
        let rising = ((steps as f64 * warm_up) as usize).max(1);
        if step < rising {
            return (step + 1) as f32 / rising as f32;
        }
        let left = (steps - step.min(steps)) as f32 / (steps - rising.min(steps)).max(1) as f32;
        match self {
            Self::Linear => left,
            Self::Cosine => 0.5 * (1.0 - (std::f32::consts::PI * left).cos()),
            Self::Constant => 1.0,
        }
    }
}

/// Scales `gradients` down to a Euclidean norm of `most` and returns the norm that they had.
pub fn clip(gradients: &mut [Vec<f32>], most: f32) -> f64 {
    let squares = gradients
        .iter()
        .flatten()
        .map(|&value| f64::from(value).powi(2));
    let norm = squares.sum::<f64>().sqrt();
    if norm > f64::from(most) {
        let scale = (f64::from(most) / norm) as f32;
        gradients
            .iter_mut()
            .flatten()
            .for_each(|value| *value *= scale);
    }
    norm
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(shape: &[usize], weight_decay: f32) -> Group {
        Group {
            shape: shape.into(),
            learning_rate: 0.1,
            weight_decay,
        }
    }

    #[test]
    fn two_steps_of_adamw_as_by_hand() {
        let mut optimizer = Optimizer::new(Rule::AdamW, vec![group(&[1], 0.5)]);
        let mut values = vec![vec![1.0]];
        optimizer.update(&mut values, &[vec![2.0]], 1.0);
        assert!((values[0][0] - 0.85).abs() < 1e-6, "{values:?}");
        optimizer.update(&mut values, &[vec![-1.0]], 1.0);
        let mean = (0.9 * 0.1 * 2.0 - 0.1) / (1.0 - 0.81);
        let square: f32 = (0.999 * 0.001 * 4.0 + 0.001) / (1.0 - 0.998_001);
        let expected = 0.85 - 0.1 * (mean / square.sqrt() + 0.5 * 0.85);
        assert!(
            (values[0][0] - expected).abs() < 1e-5,
            "{values:?} {expected}"
        );
    }

    #[test]
    fn a_step_of_adafactor_as_by_hand() {
        let mut optimizer = Optimizer::new(Rule::Adafactor, vec![group(&[2, 2], 0.0)]);
        let mut values = vec![vec![0.0; 4]];
        optimizer.update(&mut values, &[vec![1.0, 2.0, 3.0, 4.0]], 1.0);
        let (rows, columns) = ([2.5f32, 12.5], [5.0f32, 10.0]);
        let steps: Vec<f32> = [1.0, 2.0, 3.0, 4.0]
            .iter()
            .enumerate()
            .map(|(at, gradient)| gradient / (rows[at / 2] * columns[at % 2] / 7.5).sqrt())
            .collect();
        let size = (steps.iter().map(|step| step * step).sum::<f32>() / 4.0).sqrt();
        for (value, step) in values[0].iter().zip(steps) {
            assert!(
                (value + 0.1 * step / size.max(1.0)).abs() < 1e-6,
                "{value} {step}"
            );
        }
    }

    #[test]
    fn what_has_no_gradient_stays() {
        for rule in [Rule::AdamW, Rule::Adafactor] {
            let mut optimizer = Optimizer::new(rule, vec![group(&[2, 2], 0.0)]);
            let mut values = vec![vec![1.0, -2.0, 3.0, -4.0]];
            for _ in 0..2 {
                optimizer.update(&mut values, &[vec![0.0; 4]], 1.0);
            }
            assert_eq!(values[0], [1.0, -2.0, 3.0, -4.0], "{rule:?}");
        }
    }

    #[test]
    fn a_restored_state_goes_on_the_same() {
        for rule in [Rule::AdamW, Rule::Adafactor] {
            let mut whole = Optimizer::new(rule, vec![group(&[2, 3], 0.1)]);
            let mut values = vec![vec![0.5; 6]];
            let gradients = [vec![1.0, -2.0, 0.5, 3.0, 0.1, -1.0]];
            whole.update(&mut values, &gradients, 1.0);
            let mut resumed = Optimizer::new(rule, vec![group(&[2, 3], 0.1)]);
            let (step, moments) = whole.state();
            assert!(resumed.restore(step, moments.clone()));
            let mut same = values.clone();
            whole.update(&mut values, &gradients, 0.5);
            resumed.update(&mut same, &gradients, 0.5);
            assert_eq!(values, same);
            assert!(!Optimizer::new(rule, vec![group(&[7], 0.1)]).restore(step, moments));
        }
    }

    #[test]
    fn the_rate_rises_and_falls() {
        for (decay, last) in [
            (Decay::Linear, 0.06),
            (Decay::Cosine, 0.01),
            (Decay::Constant, 1.0),
        ] {
            let rates: Vec<f32> = (0..20).map(|step| decay.factor(step, 20, 0.1)).collect();
            assert_eq!((rates[0], rates[1]), (0.5, 1.0), "{decay:?}");
            assert!(
                rates[2..].windows(2).all(|pair| pair[0] >= pair[1]),
                "{decay:?} {rates:?}"
            );
            assert!((rates[19] - last).abs() < 0.01, "{decay:?} {rates:?}");
        }
    }

    #[test]
    fn long_gradients_are_clipped_and_short_ones_left() {
        let mut gradients = vec![vec![3.0], vec![4.0]];
        assert_eq!(clip(&mut gradients, 1.0), 5.0);
        assert!((gradients[0][0] - 0.6).abs() < 1e-6 && (gradients[1][0] - 0.8).abs() < 1e-6);
        clip(&mut gradients, 2.0);
        assert!((gradients[0][0] - 0.6).abs() < 1e-6);
    }
}
