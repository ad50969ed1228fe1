//! Running prompts on examples.

use preface_bundle::{Before, likeliest};
use preface_graph::{Base, Description};

use crate::{
    Error,
    adapter::{Adapter, Card, InputsCard},
    batch::{Batch, Layout},
    data::{AnswerKind, Dataset},
    encode::{Encoded, Encoder, Overlength, Rows, Truth, Wording},
    engine::{Array, Library, Session},
    form::PositionPlan,
    given::{Given, fed},
    heads::{Pooling, head},
    methods::{self, Method, Sizes},
    metrics::{Found, Prediction},
    step::{Extent, Loss, Purpose, Reader, Reading, Step},
    tokens::Tokens,
};

/// Rows a run.
const ROWS: usize = 32;

/// What it takes to read answers of a task.
#[derive(Clone, Copy)]
pub struct Questions<'a> {
    /// Head, sizes, loss and how much is read.
    pub reader: Reader<'a>,
    /// Which rows the head reads.
    pub pooling: Pooling,
    /// What the head is given.
    pub given: &'a Given,
}

/// How the rows of a task are read.
pub fn reading(kind: AnswerKind, pooling: Pooling) -> Reading {
    match (kind, pooling) {
        (AnswerKind::Tags | AnswerKind::Text, _) => Reading::Several,
        (_, Pooling::Mean) => Reading::Mean,
        _ => Reading::One,
    }
}

/// What may stand before each of the labels, where they are tags.
pub fn before(kind: AnswerKind, labels: &[String]) -> Vec<Before> {
    match kind {
        AnswerKind::Tags => Before::each(labels.iter().map(String::as_str)).collect(),
        AnswerKind::Label | AnswerKind::Labels | AnswerKind::Text => Vec::new(),
    }
}

/// Runs prompts of one form on a base.
pub struct Evaluator<'a> {
    base: &'a Base,
    sizes: Sizes,
    questions: Questions<'a>,
    step: Step,
    session: Session,
}

impl<'a> Evaluator<'a> {
    /// An evaluator for prompts that `method` parametrises.
    ///
    /// # Errors
    /// When the graph cannot be written or is refused.
    pub fn new(
        base: &'a Base,
        library: &Library,
        method: &Method,
        sizes: &Sizes,
        extent: Extent,
        questions: Questions<'a>,
        threads: usize,
    ) -> Result<Self, Error> {
        let step = Step::build(
            base,
            method,
            sizes,
            extent,
            Purpose::Answers(questions.reader),
        )?;
        let session = library.session(&step.model, &base.folder, threads)?;
        Ok(Self {
            base,
            sizes: sizes.clone(),
            questions,
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
        let mut named = self.step.feeds(parameters);
        named.extend(fed(&self.step, self.questions.given));
        let layout = Layout {
            base: &self.base.description,
            form: &self.sizes.form,
            pooling: self.questions.pooling,
            class_weights: &[],
        };
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|&index| rows[index].length());
        let at_once = if rounds_together(self.base) { 1 } else { ROWS };
        let mut predictions = vec![None; rows.len()];
        for (done, chunk) in order.chunks(at_once).enumerate() {
            let batch: Vec<&Encoded> = chunk.iter().map(|&index| &rows[index]).collect();
            let arrays = Batch::of(std::slice::from_ref(&batch), layout, &self.step);
            let outputs = self.session.run(&arrays.with(&named))?;
            let answers = answers(self.questions.reader, outputs, &batch)?;
            for (answer, &index) in answers.into_iter().zip(chunk) {
                predictions[index] = Some(answer);
            }
            after(done * at_once + chunk.len());
        }
        Ok(predictions.into_iter().flatten().collect())
    }
}

/// Whether activations are rounded by the range of a whole batch, so that a text has other answers beside others than
/// alone, as it stands on a device.
fn rounds_together(base: &Base) -> bool {
    let mut nodes = base.model.graph.iter().flat_map(|graph| &graph.node);
    nodes.any(|node| node.op_type() == "DynamicQuantizeLinear")
}

/// One answer for each row, from the arrays of [`Purpose::Answers`].
fn answers(
    reader: Reader,
    outputs: Vec<Array>,
    rows: &[&Encoded],
) -> Result<Vec<Prediction>, Error> {
    let missing = || Error::Engine("an answer is missing".into());
    let mut outputs = outputs.into_iter();
    let mut next = || outputs.next().ok_or_else(missing);
    match reader.loss {
        Loss::Softmax if !reader.before.is_empty() => {
            let (mut scores, losses) = (next()?.into_floats()?, next()?.into_floats()?);
            let (each, most) = (scores.len() / rows.len(), losses.len() / rows.len());
            let parts = scores
                .chunks_mut(each.max(1))
                .zip(losses.chunks(most.max(1)));
            let row = |(row, (scores, losses)): (&&Encoded, (&mut [f32], &[f32]))| {
                let read = readings(row);
                let (tags, score) =
                    sequence(&mut scores[..read * reader.before.len()], reader.before);
                Prediction {
                    found: Found::Places(tags),
                    score,
                    loss: losses[..read].iter().sum::<f32>() / read.max(1) as f32,
                }
            };
            Ok(rows.iter().zip(parts).map(row).collect())
        }
        Loss::Softmax => {
            let classes = next()?.into_ints()?;
            let (scores, losses) = (next()?.into_floats()?, next()?.into_floats()?);
            let most = classes.len() / rows.len().max(1);
            let row = |(index, row): (usize, &&Encoded)| {
                let read = index * most..index * most + readings(row);
                let classes: Vec<usize> = classes[read.clone()]
                    .iter()
                    .map(|&class| class as usize)
                    .collect();
                let losses = &losses[read.clone()];
                Prediction {
                    found: match (&row.truth, classes.first()) {
                        (Truth::Places(_), _) | (_, None) => Found::Places(classes),
                        (_, Some(&class)) => Found::Class(class),
                    },
                    score: scores[read].iter().copied().fold(1.0, f32::min),
                    loss: losses.iter().sum::<f32>() / losses.len().max(1) as f32,
                }
            };
            Ok(rows.iter().enumerate().map(row).collect())
        }
        Loss::Sigmoid => {
            let (probabilities, losses) = (next()?.into_floats()?, next()?.into_floats()?);
            let width = probabilities.len() / rows.len().max(1);
            let pairs = probabilities.chunks(width.max(1)).zip(losses);
            let row = |(probabilities, loss): (&[f32], f32)| Prediction {
                score: probabilities
                    .iter()
                    .copied()
                    .map(|p| p.max(1.0 - p))
                    .fold(1.0, f32::min),
                found: Found::Probabilities(probabilities.into()),
                loss,
            };
            Ok(pairs.map(row).collect())
        }
    }
}

/// The likeliest sequence of tags for log-probabilities `[words, tags]`, and the least probability among them.
fn sequence(scores: &mut [f32], before: &[Before]) -> (Vec<usize>, f32) {
    let logs = scores.to_vec();
    let mut tags: Vec<usize> = likeliest(scores, before).collect();
    tags.reverse();
    let words = logs.chunks(before.len()).zip(&tags);
    let least = words.map(|(logs, &tag)| logs[tag]).fold(0.0, f32::min);
    (tags, least.exp())
}

fn readings(row: &Encoded) -> usize {
    match &row.truth {
        Truth::Places(places) => places.len(),
        _ => 1,
    }
}

/// Examples in numbers as the task of an adapter reads them; `outside` is the label of texts that have none of its
/// labels.
///
/// # Errors
/// As [`Encoder::encode`].
pub fn encode(
    card: &Card,
    base: &Description,
    tokens: &Tokens,
    data: &Dataset,
    overlength: Overlength,
    outside: Option<&str>,
) -> Result<Rows, Error> {
    let taken = match card.positions {
        PositionPlan::AfterPrompt => card.form.tokens(),
        PositionPlan::TextFromZero => card.form.taken(base),
        PositionPlan::DecoderAfterPrompt => 0,
    };
    let wording = Wording {
        template: card.template.clone(),
        kind: card.answer.kind,
        pairs: card.inputs == InputsCard::Pair,
        pooling: card.pooling,
        room: base
            .max_positions
            .map(|positions| positions.saturating_sub(taken)),
        overlength,
    };
    Encoder::new(tokens, base, &wording, &card.labels, outside)?.encode(data)
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
    let card = &adapter.card;
    let head = head(&card.head.kind)?;
    let given = match card.verbaliser.is_empty() {
        true => Given::of(
            head,
            base,
            library,
            &Tokens::read(&base.tokenizer)?,
            &card.labels,
            &[],
        )?,
        false => Given::of_verbaliser(base, card.verbaliser.clone())?,
    };
    let before = before(card.answer.kind, &card.labels);
    let questions = Questions {
        reader: Reader {
            head,
            size: head.size(
                card.labels.len(),
                card.head.rank.unwrap_or(1),
                &base.description,
            ),
            loss: Loss::of(card.answer.kind),
            reading: reading(card.answer.kind, card.pooling),
            before: &before,
        },
        pooling: card.pooling,
        given: &given,
    };
    let form = adapter.form_on(&base.description);
    let method = methods::stored(&form);
    let sizes = Sizes::of(form, base.description.hidden);
    let mut evaluator = Evaluator::new(
        base,
        library,
        method,
        &sizes,
        Extent::ONE,
        questions,
        threads,
    )?;
    let parameters = [adapter.prompt.tensors.clone(), adapter.head.clone()].concat();
    evaluator.predict(&parameters, rows, after)
}
