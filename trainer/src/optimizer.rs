//! AdamW with warm-up and decay (Kingma and Ba 2015; Loshchilov and Hutter 2019, algorithm 2).

const MOMENTUM: f32 = 0.9;
const SQUARE_MOMENTUM: f32 = 0.999;
const EPSILON: f32 = 1e-8;

/// One trainable tensor's state.
#[derive(Clone, Debug)]
struct Slot {
    mean: Vec<f32>,
    square: Vec<f32>,
    learning_rate: f32,
    weight_decay: f32,
}

/// The optimizer's state.
#[derive(Clone, Debug)]
pub struct AdamW {
    slots: Vec<Slot>,
    step: i32,
}

/// How one tensor learns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    /// Elements of the tensor.
    pub elements: usize,
    /// Learning rate at its peak.
    pub learning_rate: f32,
    /// Decay of the weights a step, times the learning rate.
    pub weight_decay: f32,
}

impl AdamW {
    /// A fresh state for tensors that learn as `groups` say.
    pub fn new(groups: &[Group]) -> Self {
        let slot = |group: &Group| Slot {
            mean: vec![0.0; group.elements],
            square: vec![0.0; group.elements],
            learning_rate: group.learning_rate,
            weight_decay: group.weight_decay,
        };
        Self {
            slots: groups.iter().map(slot).collect(),
            step: 0,
        }
    }

    /// Moves `values` against `gradients`, the learning rates scaled by `factor`.
    pub fn update(&mut self, values: &mut [Vec<f32>], gradients: &[Vec<f32>], factor: f32) {
        self.step += 1;
        let correction = 1.0 - MOMENTUM.powi(self.step);
        let square_correction = 1.0 - SQUARE_MOMENTUM.powi(self.step);
        for ((slot, values), gradients) in self.slots.iter_mut().zip(values).zip(gradients) {
            let rate = slot.learning_rate * factor;
            let moments = slot.mean.iter_mut().zip(&mut slot.square);
            for ((value, &gradient), (mean, square)) in
                values.iter_mut().zip(gradients).zip(moments)
            {
                *mean = MOMENTUM * *mean + (1.0 - MOMENTUM) * gradient;
                *square = SQUARE_MOMENTUM * *square + (1.0 - SQUARE_MOMENTUM) * gradient * gradient;
                let step = (*mean / correction) / ((*square / square_correction).sqrt() + EPSILON);
                *value -= rate * (step + slot.weight_decay * *value);
            }
        }
    }
}

/// The factor of the learning rate: linear warm-up over the first tenth, then linear decay to zero.
pub fn schedule(step: usize, steps: usize) -> f32 {
    let warm_up = (steps / 10).max(1);
    if step < warm_up {
        return (step + 1) as f32 / warm_up as f32;
    }
    (steps - step) as f32 / (steps - warm_up).max(1) as f32
}

/// Scales `gradients` down to a Euclidean norm of `most`.
pub fn clip(gradients: &mut [Vec<f32>], most: f32) {
    let squares = gradients
        .iter()
        .flatten()
        .map(|&value| f64::from(value).powi(2));
    let norm = squares.sum::<f64>().sqrt() as f32;
    if norm > most {
        gradients
            .iter_mut()
            .flatten()
            .for_each(|value| *value *= most / norm);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_steps_as_by_hand() {
        let group = Group {
            elements: 1,
            learning_rate: 0.1,
            weight_decay: 0.5,
        };
        let mut optimizer = AdamW::new(&[group]);
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
    fn the_rate_rises_and_falls() {
        let rates: Vec<f32> = (0..20).map(|step| schedule(step, 20)).collect();
        assert_eq!((rates[0], rates[1], rates[2]), (0.5, 1.0, 1.0));
        assert!(rates[2..].windows(2).all(|pair| pair[0] > pair[1]) && rates[19] > 0.0);
    }

    #[test]
    fn long_gradients_are_clipped_and_short_ones_left() {
        let mut gradients = vec![vec![3.0], vec![4.0]];
        clip(&mut gradients, 1.0);
        assert!((gradients[0][0] - 0.6).abs() < 1e-6 && (gradients[1][0] - 0.8).abs() < 1e-6);
        clip(&mut gradients, 2.0);
        assert!((gradients[0][0] - 0.6).abs() < 1e-6);
    }
}
