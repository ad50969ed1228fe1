//! Heads that read hidden rows: a vector for each label, and what the features go through before.

use preface_bundle::Tensor;

use super::{finite, numbers};
use crate::Error;

/// How like features and a label's vector are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measure {
    /// Their inner product.
    Product,
    /// Their cosine, times [`SHARPNESS`].
    Cosine,
}

/// What the cosines of a label-text head are multiplied by.
const SHARPNESS: f32 = 20.0;

/// What turns features into a logit for each label.
#[derive(Clone, Debug)]
pub(crate) struct RowHead {
    pub measure: Measure,
    /// A vector for each label, `[classes, hidden]`; of label text unit vectors times [`SHARPNESS`], and none before
    /// [`RowHead::set_prototypes`].
    weight: Vec<f32>,
    /// `[classes]`.
    bias: Vec<f32>,
    /// What the features go through first.
    pooler: Option<Pooler>,
}

/// A dense layer and tanh, as encoders of BERT's family have it behind their first row.
#[derive(Clone, Debug)]
struct Pooler {
    /// `[rank, hidden]`.
    weight: Vec<f32>,
    /// `[rank]`.
    bias: Vec<f32>,
}

impl RowHead {
    /// `logits = weight features + bias`.
    pub fn linear(weight: Vec<f32>, bias: Vec<f32>) -> Self {
        Self {
            measure: Measure::Product,
            weight,
            bias,
            pooler: None,
        }
    }

    /// `logits = outer tanh(inner features + c) + b`, of biases `[classes + rank]` with those of the classes first.
    pub(super) fn behind_tanh(
        outer: &Tensor<'_>,
        inner: &Tensor<'_>,
        mut bias: Vec<f32>,
    ) -> Result<Self, String> {
        let (classes, rank) = (outer.spec().dim(0), outer.spec().dim(1));
        bias.resize(classes + rank, 0.0);
        let pooler = Pooler {
            weight: numbers(inner)?,
            bias: bias.split_off(classes),
        };
        Ok(Self {
            pooler: Some(pooler),
            ..Self::linear(numbers(outer)?, bias)
        })
    }

    /// `logits = 20 cos(features, prototypes) + bias`, the prototypes not yet known.
    pub fn label_text(bias: Vec<f32>) -> Self {
        Self {
            measure: Measure::Cosine,
            weight: Vec::new(),
            bias,
            pooler: None,
        }
    }

    /// Gives a label-text head the vectors of its labels, `[classes, hidden]`.
    pub fn set_prototypes(&mut self, mut prototypes: Vec<f32>, hidden: usize) {
        for prototype in prototypes.chunks_exact_mut(hidden.max(1)) {
            let scale = SHARPNESS / norm(prototype);
            prototype.iter_mut().for_each(|number| *number *= scale);
        }
        self.weight = prototypes;
    }

    /// Writes the logits of `features` to `logits`.
    ///
    /// # Errors
    /// [`Error::NotANumber`] where one is infinite or no number.
    pub fn logits(&self, features: &[f32], logits: &mut Vec<f32>) -> Result<(), Error> {
        let scale = match self.measure {
            Measure::Product => 1.0,
            Measure::Cosine => 1.0 / norm(features),
        };
        logits.clear();
        let Some(pooler) = &self.pooler else {
            let rows = self.weight.chunks_exact(features.len().max(1));
            logits.extend(
                rows.zip(&self.bias)
                    .map(|(row, bias)| scale * inner(row, features) + bias),
            );
            return finite(logits);
        };
        let rows = pooler.weight.chunks_exact(features.len().max(1));
        let pooled = rows.zip(&pooler.bias);
        logits.extend(pooled.map(|(row, bias)| (inner(row, features) + bias).tanh()));
        let rank = logits.len();
        for (row, bias) in self.weight.chunks_exact(rank.max(1)).zip(&self.bias) {
            logits.push(inner(row, &logits[..rank]) + bias);
        }
        logits.drain(..rank);
        finite(logits)
    }

    /// Numbers that [`RowHead::logits`] writes at once, those between the layers among them.
    pub fn most_numbers(&self) -> usize {
        self.bias.len() + self.pooler.as_ref().map_or(0, |pooler| pooler.bias.len())
    }

    /// Whether it has a vector of `hidden` numbers for each of `classes` labels, or will have.
    pub(super) fn fits(&self, classes: usize, hidden: usize) -> bool {
        let awaits = self.measure == Measure::Cosine && self.weight.is_empty();
        let width = self
            .pooler
            .as_ref()
            .map_or(hidden, |pooler| pooler.bias.len());
        let pooler_fits = |pooler: &Pooler| pooler.weight.len() == width * hidden;
        classes > 0
            && self.bias.len() == classes
            && self.pooler.as_ref().is_none_or(pooler_fits)
            && (awaits || self.weight.len() == classes * width)
    }

    /// Bytes of its numbers.
    pub fn bytes(&self) -> usize {
        let pooler = self.pooler.as_ref();
        let pooler = pooler.map_or(0, |pooler| {
            size_of_val(&pooler.weight[..]) + size_of_val(&pooler.bias[..])
        });
        size_of_val(&self.weight[..]) + size_of_val(&self.bias[..]) + pooler
    }

    #[cfg(test)]
    pub fn bias_mut(&mut self) -> &mut [f32] {
        &mut self.bias
    }
}

fn inner(one: &[f32], other: &[f32]) -> f32 {
    one.iter().zip(other).map(|(one, other)| one * other).sum()
}

/// The length of a vector, but never zero.
fn norm(vector: &[f32]) -> f32 {
    inner(vector, vector).sqrt().max(f32::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likeness_does_not_depend_on_length() {
        let mut head = RowHead::label_text(vec![0.0, 0.5, 0.0]);
        head.set_prototypes(vec![3.0, 4.0, -3.0, -4.0, 4.0, -3.0], 2);
        let mut logits = Vec::new();
        for length in [0.001, 1.0, 1000.0] {
            head.logits(&[0.6 * length, 0.8 * length], &mut logits)
                .unwrap();
            for (logit, expected) in logits.iter().zip([20.0, -19.5, 0.0]) {
                assert!((logit - expected).abs() < 1e-4, "{logits:?}");
            }
        }
        head.logits(&[0.0, 0.0], &mut logits).unwrap();
        assert_eq!(logits, [0.0, 0.5, 0.0]);
    }

    #[test]
    fn logits_that_are_no_numbers_are_refused() {
        for number in [f32::NAN, f32::INFINITY] {
            let head = RowHead::linear(vec![1.0, 2.0], vec![0.0, number]);
            let error = head.logits(&[1.0], &mut Vec::new());
            assert!(matches!(error, Err(Error::NotANumber)));
        }
    }

    #[test]
    fn a_classifier_reads_what_its_pooler_makes_of_the_features() {
        let head = RowHead {
            pooler: Some(Pooler {
                weight: vec![1.0, 0.0, 0.0, 1.0, 0.5, 0.5],
                bias: vec![0.0, 0.25, -1.0],
            }),
            ..RowHead::linear(vec![1.0, 2.0, 3.0, 0.0, 0.0, -1.0], vec![0.5, 0.0])
        };
        assert!(head.fits(2, 2) && !head.fits(2, 3) && !head.fits(3, 2));
        assert_eq!(head.most_numbers(), 5);
        let mut logits = Vec::with_capacity(5);
        head.logits(&[2.0, 0.5], &mut logits).unwrap();
        let pooled = [2f32, 0.75, 0.25].map(f32::tanh);
        let expected = [
            pooled[0] + 2.0 * pooled[1] + 3.0 * pooled[2] + 0.5,
            -pooled[2],
        ];
        assert_eq!((logits.len(), logits.capacity()), (2, 5));
        for (logit, expected) in logits.iter().zip(expected) {
            assert!((logit - expected).abs() < 1e-6, "{logits:?} {expected}");
        }
    }
}
