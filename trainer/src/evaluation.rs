//! How often a prompt is right.

use preface_graph::Base;
use serde::Serialize;

use crate::{
    Error,
    adapter::Adapter,
    batch::{Batch, Encoded},
    engine::{Array, Library, Session},
    form::Form,
    heads::{HeadSize, Pooling, head},
    methods::{self, Method},
    step::{Purpose, Step},
};

/// Rows a run.
const ROWS: usize = 32;

/// One answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Index of the label.
    pub label: usize,
    /// Its probability.
    pub score: f32,
    /// Cross-entropy of the true label, in nats.
    pub loss: f32,
}

/// Figures over labelled texts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// The share of right answers.
    pub accuracy: f64,
    /// F1 averaged over the labels.
    pub macro_f1: f64,
    /// The number of texts.
    pub examples: usize,
    /// Mean cross-entropy, in nats.
    #[serde(skip)]
    pub loss: f64,
}

impl Evaluation {
    /// The figures of `predictions` for texts with the labels of `truth`.
    pub fn of(predictions: &[Prediction], truth: &[Encoded], classes: usize) -> Self {
        let pairs: Vec<(usize, usize)> = predictions
            .iter()
            .zip(truth)
            .map(|(prediction, row)| (prediction.label, row.label))
            .collect();
        let right = pairs.iter().filter(|(found, label)| found == label).count();
        let loss: f64 = predictions
            .iter()
            .map(|prediction| f64::from(prediction.loss))
            .sum();
        let examples = pairs.len();
        Self {
            accuracy: right as f64 / examples.max(1) as f64,
            macro_f1: macro_f1(&pairs, classes),
            examples,
            loss: loss / examples.max(1) as f64,
        }
    }
}

/// F1 of each label that occurs among answers or truths, averaged.
fn macro_f1(pairs: &[(usize, usize)], classes: usize) -> f64 {
    let scores = (0..classes).filter_map(|class| {
        let count = |matches: &dyn Fn(&(usize, usize)) -> bool| {
            pairs.iter().filter(|pair| matches(pair)).count()
        };
        let hits = count(&|&(found, label)| found == class && label == class);
        let named = count(&|&(found, _)| found == class) + count(&|&(_, label)| label == class);
        (named > 0).then(|| 2.0 * hits as f64 / named as f64)
    });
    let scores: Vec<f64> = scores.collect();
    scores.iter().sum::<f64>() / scores.len().max(1) as f64
}

/// Runs prompts of one form on a base.
pub struct Evaluator<'a> {
    base: &'a Base,
    form: Form,
    pooling: Pooling,
    step: Step,
    session: Session,
}

impl<'a> Evaluator<'a> {
    /// An evaluator for prompts that `method` parametrises, with a head of `size`.
    ///
    /// # Errors
    /// When the graph cannot be written or is refused.
    pub fn new(
        base: &'a Base,
        library: &Library,
        method: &Method,
        form: &Form,
        size: HeadSize,
        pooling: Pooling,
        threads: usize,
    ) -> Result<Self, Error> {
        let step = Step::build(base, method, form, Purpose::Logits(head("linear")?, size))?;
        let session = library.session(&step.model, &base.folder, threads)?;
        Ok(Self {
            base,
            form: form.clone(),
            pooling,
            step,
            session,
        })
    }

    /// Answers for `rows`, in their order. `after` is called with the number of rows done.
    ///
    /// # Errors
    /// When the base cannot be run.
    pub fn predict(
        &mut self,
        parameters: &[Vec<f32>],
        rows: &[Encoded],
        mut after: impl FnMut(usize),
    ) -> Result<Vec<Prediction>, Error> {
        let named = named(&self.step, parameters);
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|&index| rows[index].ids.len());
        let mut predictions = vec![None; rows.len()];
        for (done, chunk) in order.chunks(ROWS).enumerate() {
            let batch: Vec<&Encoded> = chunk.iter().map(|&index| &rows[index]).collect();
            let arrays = Batch::of(
                &batch,
                &self.base.description,
                &self.form,
                self.pooling,
                &self.step,
            );
            let mut outputs = self.session.run(&arrays.with(&named))?;
            let logits = outputs.swap_remove(0).into_floats()?;
            for (logits, &index) in logits.chunks(logits.len() / chunk.len()).zip(chunk) {
                predictions[index] = Some(prediction(logits, rows[index].label));
            }
            after(done * ROWS + chunk.len());
        }
        Ok(predictions.into_iter().flatten().collect())
    }
}

/// Evaluates an adapter on `rows`.
///
/// # Errors
/// When the base cannot be run.
pub fn evaluate(
    adapter: &Adapter,
    base: &Base,
    library: &Library,
    rows: &[Encoded],
    threads: usize,
    after: impl FnMut(usize),
) -> Result<Vec<Prediction>, Error> {
    let form = &adapter.prompt.form;
    let size = HeadSize {
        classes: adapter.card.head.classes,
        hidden: adapter.card.head.hidden,
    };
    let method = methods::stored(form);
    let mut evaluator = Evaluator::new(
        base,
        library,
        method,
        form,
        size,
        adapter.card.pooling,
        threads,
    )?;
    let parameters = [adapter.prompt.tensors.clone(), adapter.head.clone()].concat();
    evaluator.predict(&parameters, rows, after)
}

/// Parameters under the names by which the graph takes them.
pub(crate) fn named(step: &Step, parameters: &[Vec<f32>]) -> Vec<(String, Array)> {
    let named = step.names.iter().zip(&step.parameters).zip(parameters);
    named
        .map(|((name, parameter), values)| {
            (
                name.clone(),
                Array::floats(&parameter.shape, values.clone()),
            )
        })
        .collect()
}

fn prediction(logits: &[f32], truth: usize) -> Prediction {
    let label = logits.iter().enumerate().fold(
        0,
        |best, (index, &logit)| if logit > logits[best] { index } else { best },
    );
    let most = logits[label];
    let total: f32 = logits.iter().map(|&logit| (logit - most).exp()).sum();
    let loss = total.ln() + most - logits.get(truth).copied().unwrap_or(most);
    Prediction {
        label,
        score: 1.0 / total,
        loss,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_as_by_hand() {
        let rows = [0, 0, 1, 1].map(|label| Encoded { ids: vec![], label });
        let predictions = [0, 1, 1, 1].map(|label| Prediction {
            label,
            score: 1.0,
            loss: 0.5,
        });
        let evaluation = Evaluation::of(&predictions, &rows, 3);
        assert_eq!(evaluation.accuracy, 0.75);
        assert!((evaluation.macro_f1 - (2.0 / 3.0 + 4.0 / 5.0) / 2.0).abs() < 1e-12);
        assert_eq!(evaluation.loss, 0.5);
    }

    #[test]
    fn a_score_is_a_probability() {
        let found = prediction(&[1.0, 3.0, 1.0], 0);
        assert_eq!(found.label, 1);
        assert!((found.score - 1.0 / (1.0 + 2.0 * (-2f32).exp())).abs() < 1e-6);
        assert!((found.loss - (2.0 - found.score.ln())).abs() < 1e-6);
    }
}
