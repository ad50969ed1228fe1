//! What compares answers with the truth, and the answers themselves.

use preface_graph::{
    builder::{Attribute, Builder},
    onnx::data_type,
};
use serde::{Deserialize, Serialize};

use super::{Assembly, LABELS, Manner, Reader, Reading, TARGETS, WEIGHTS};
use crate::{Error, data::AnswerKind, options::Precision};

/// What gradients are multiplied by on their way through products of 16 bits, which would round the small ones to zero
/// (Micikevicius et al. 2018, section 3.2).
const GRADIENT_SCALE: f32 = 1024.0;

const LAST: (&str, Attribute) = ("axis", Attribute::Int(-1));

/// A loss over logits `[readings, classes]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// Cross-entropy of a softmax: one class is right.
    Softmax,
    /// Mean binary cross-entropy of sigmoids: any number of classes is right.
    Sigmoid,
}

impl Loss {
    /// The loss for answers of a kind.
    pub fn of(kind: AnswerKind) -> Self {
        match kind {
            AnswerKind::Labels => Self::Sigmoid,
            AnswerKind::Label | AnswerKind::Tags | AnswerKind::Text => Self::Softmax,
        }
    }
}

impl Assembly<'_> {
    /// Losses `[candidates]`, then gradients.
    pub(super) fn training(
        &mut self,
        reader: Reader,
        logits: &[String],
        manner: Manner,
    ) -> Result<Vec<String>, Error> {
        let precision = manner.precision;
        let scale = match precision {
            Precision::F32 => 1.0,
            Precision::F16 => GRADIENT_SCALE,
        };
        let rows = self.row_losses(reader, logits);
        let weights = self.per_reading(WEIGHTS, data_type::FLOAT, reader.reading);
        let weights = self.parts(&weights, None);
        let mut losses = Vec::new();
        for ((rows, weights), logits) in rows.iter().zip(&weights).zip(logits) {
            let weighted = self.builder.apply("Mul", &[rows, weights], &[]);
            let loss = self.builder.reduce("ReduceSum", &weighted, &[0], true);
            losses.push(match manner.copies() {
                1 => loss,
                _ => {
                    let apart = apart(&mut self.builder, reader, logits, weights);
                    let weight = self.builder.floats(&[manner.consistency]);
                    let apart = self.builder.apply("Mul", &[&apart, &weight], &[]);
                    self.builder.apply("Add", &[&loss, &apart], &[])
                }
            });
        }
        let seed = self.builder.floats(&[scale]);
        let names: Vec<&str> = losses.iter().map(String::as_str).collect();
        let all = self
            .builder
            .apply("Concat", &names, &[("axis", Attribute::Int(0))]);
        self.flush();
        let seeds: Vec<(String, String)> = losses
            .into_iter()
            .map(|loss| (loss, seed.clone()))
            .collect();
        let mut outputs = vec![all];
        let gradients = self.gradients(&seeds)?;
        outputs.extend(gradients.into_iter().map(|gradient| match precision {
            Precision::F32 => gradient,
            Precision::F16 => self.builder.apply("Div", &[&gradient, &seed], &[]),
        }));
        self.flush();
        Ok(outputs)
    }

    /// For a softmax: the class `[readings]`, its probability and the loss of the true class, candidate after
    /// candidate. For tags: log-probabilities `[readings, classes]` and losses `[readings]`. For sigmoids: probabilities `[readings, classes]` and losses `[readings]`.
    pub(super) fn answers(&mut self, reader: Reader, logits: &[String]) -> Vec<String> {
        let rows = self.row_losses(reader, logits);
        let builder = &mut self.builder;
        let mut columns: [Vec<String>; 2] = [Vec::new(), Vec::new()];
        for logits in logits {
            match reader.loss {
                Loss::Softmax if !reader.before.is_empty() => {
                    columns[0].push(builder.apply("LogSoftmax", &[logits], &[LAST]));
                }
                Loss::Softmax => {
                    let keepdims = ("keepdims", Attribute::Int(0));
                    columns[0].push(builder.apply("ArgMax", &[logits], &[LAST, keepdims]));
                    let probability = builder.apply("Softmax", &[logits], &[LAST]);
                    columns[1].push(builder.reduce("ReduceMax", &probability, &[-1], false));
                }
                Loss::Sigmoid => columns[0].push(builder.apply("Sigmoid", &[logits], &[])),
            }
        }
        let [first, second] = columns;
        let columns = [first, second, rows]
            .into_iter()
            .filter(|column| !column.is_empty());
        columns
            .map(|column| {
                let names: Vec<&str> = column.iter().map(String::as_str).collect();
                builder.apply("Concat", &names, &[("axis", Attribute::Int(0))])
            })
            .collect()
    }

    /// The loss of every reading of each candidate: `[readings]`.
    fn row_losses(&mut self, reader: Reader, logits: &[String]) -> Vec<String> {
        let classes = reader.size.classes;
        let truths = match reader.loss {
            Loss::Softmax => {
                let labels = self.per_reading(LABELS, data_type::INT64, reader.reading);
                self.parts(&labels, None)
            }
            Loss::Sigmoid => {
                let shapes = self.at_sizes(|size| vec![size.batch, classes as i64]);
                let dims = ["batch", &classes.to_string()];
                let targets = self.take(TARGETS, data_type::FLOAT, &dims, shapes);
                self.parts(&targets, Some(classes))
            }
        };
        let pairs = logits.iter().zip(&truths);
        let loss = |(logits, truth): (&String, &String)| match reader.loss {
            Loss::Softmax => cross_entropy(&mut self.builder, logits, truth, classes),
            Loss::Sigmoid => binary_cross_entropy(&mut self.builder, logits, truth),
        };
        pairs.map(loss).collect()
    }

    /// An input with one element a reading.
    fn per_reading(&mut self, part: &'static str, element: i32, reading: Reading) -> String {
        let readings = reading.counts();
        let sizes = self.enlarged();
        let shapes = [0, 1].map(|at| vec![sizes[at].batch * readings[at]]);
        self.take(part, element, &["readings_in_all"], shapes)
    }
}

/// How far the answers of the first half of `logits` are from those of the second, `[1]`: the mean over readings of half the
/// sum of both Kullback-Leibler divergences, by the `weights` of the losses; with sigmoids the mean over classes.
fn apart(builder: &mut Builder, reader: Reader, logits: &str, weights: &str) -> String {
    let (scores, chances) = match reader.loss {
        Loss::Softmax => {
            let scores = builder.apply("LogSoftmax", &[logits], &[LAST]);
            let chances = builder.apply("Exp", &[&scores], &[]);
            (scores, chances)
        }
        Loss::Sigmoid => (logits.to_owned(), builder.apply("Sigmoid", &[logits], &[])),
    };
    let [scores, chances] = [scores, chances].map(|value| {
        let [one, other] = halves(builder, &value);
        builder.apply("Sub", &[&one, &other], &[])
    });
    let products = builder.apply("Mul", &[&scores, &chances], &[]);
    let classes = builder.ints(&[-1, reader.size.classes as i64]);
    let products = builder.apply("Reshape", &[&products, &classes], &[]);
    let over = match reader.loss {
        Loss::Softmax => "ReduceSum",
        Loss::Sigmoid => "ReduceMean",
    };
    let divergences = builder.reduce(over, &products, &[-1], false);
    // The weights of both halves sum to 1, those of one to the half that is wanted.
    let [weights, _] = halves(builder, weights);
    let flat = builder.ints(&[-1]);
    let weights = builder.apply("Reshape", &[&weights, &flat], &[]);
    let weighted = builder.apply("Mul", &[&divergences, &weights], &[]);
    builder.reduce("ReduceSum", &weighted, &[0], true)
}

/// Both halves of a value, each in one row.
fn halves(builder: &mut Builder, value: &str) -> [String; 2] {
    let (rows, sizes) = (builder.ints(&[2, -1]), builder.ints(&[1, 1]));
    let rows = builder.apply("Reshape", &[value, &rows], &[]);
    let halves = [builder.fresh(), builder.fresh()];
    let outputs = [halves[0].as_str(), &halves[1]];
    let axis = ("axis", Attribute::Int(0));
    builder.write("Split", &[&rows, &sizes], &outputs, &[axis]);
    halves
}

/// `-log softmax(logits)[truth]`.
fn cross_entropy(builder: &mut Builder, logits: &str, truth: &str, classes: usize) -> String {
    let scores = builder.apply("LogSoftmax", &[logits], &[LAST]);
    let (depth, off_on) = (builder.ints(&[classes as i64]), builder.floats(&[0.0, 1.0]));
    let truth = builder.apply("OneHot", &[truth, &depth, &off_on], &[LAST]);
    let chosen = builder.apply("Mul", &[&scores, &truth], &[]);
    let chosen = builder.reduce("ReduceSum", &chosen, &[-1], false);
    builder.apply("Neg", &[&chosen], &[])
}

/// The mean over classes of `softplus(z) - z t`.
fn binary_cross_entropy(builder: &mut Builder, logits: &str, targets: &str) -> String {
    let soft = builder.apply("Softplus", &[logits], &[]);
    let right = builder.apply("Mul", &[logits, targets], &[]);
    let losses = builder.apply("Sub", &[&soft, &right], &[]);
    builder.reduce("ReduceMean", &losses, &[-1], false)
}
