//! Whether a base's gradients are right: the written graph against finite differences.

use preface_graph::{Base, FormKind, Kind};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

use crate::{
    Error,
    batch::{Batch, Layout},
    encode::Encoded,
    engine::{Array, Library, Session},
    form::Form,
    heads::Pooling,
    methods::{Sizes, stored},
    seedbed::{Init, Seedbed, below},
    step::{COTANGENT, Extent, Purpose, Step},
    tokens::Tokens,
};

/// Virtual tokens of the checked prompt.
const TOKENS: usize = 3;
/// Tokens of each checked row: rows of different length, so that padding takes part.
const LENGTHS: [usize; 3] = [9, 6, 4];
/// Steps of the differences, as a part of the norm of the prompt; the one that agrees best counts, since the rounding
/// of 32-bit floats asks for a large step and curvature for a small one.
const STEPS: [f32; 9] = [1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5];

/// How well the gradient of one form agrees with finite differences.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GradientCheck {
    /// The form.
    pub form: FormKind,
    /// The largest difference along the checked directions, relative to the slope there.
    pub error: f64,
    /// Euclidean norm of the gradient.
    pub norm: f64,
}

/// Checks the gradient of every form that `base` takes; where its activations are rounded, that of the base without
/// the rounding, through which gradients pass straight.
///
/// # Errors
/// When a graph cannot be written or run.
pub fn gradients(
    base: &Base,
    library: &Library,
    threads: usize,
) -> Result<Vec<GradientCheck>, Error> {
    let unrounded = base.unrounded();
    let base = unrounded.as_ref().unwrap_or(base);
    let kinds = base.description.forms.iter();
    kinds
        .map(|&kind| gradient(base, library, threads, kind))
        .collect()
}

fn gradient(
    base: &Base,
    library: &Library,
    threads: usize,
    kind: FormKind,
) -> Result<GradientCheck, Error> {
    let form = Form::of(kind, TOKENS, &base.description);
    let method = stored(&form);
    let sizes = Sizes::of(form.clone(), base.description.hidden);
    let step = Step::build(base, method, &sizes, Extent::ONE, Purpose::HiddenGradient)?;
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let vocabulary = base.description.vocabulary;
    let mut ids = |count: usize| {
        (0..count)
            .map(|_| (3 + below(&mut random, vocabulary - 3)) as i64)
            .collect::<Vec<_>>()
    };
    let decodes = base.description.kind == Kind::EncoderDecoder;
    let rows = LENGTHS.map(|length| {
        let ids = ids(length);
        Encoded {
            decoder_ids: if decodes { ids.clone() } else { Vec::new() },
            ..Encoded::of_ids(ids)
        }
    });
    let sampled = ids(64);
    let tokens = Tokens::read(&base.tokenizer)?;
    let mut seedbed = Seedbed::new(base, library, &Init::Vocabulary, &tokens, &[], sampled, 7)?;
    let prompt = (method.initial)(&sizes, &mut seedbed)?;
    let rows: Vec<&Encoded> = rows.iter().collect();
    let layout = Layout {
        base: &base.description,
        form: &form,
        pooling: Pooling::Mean,
        class_weights: &[],
    };
    let batch = Batch::of(std::slice::from_ref(&rows), layout, &step);
    let slots = match base.description.kind {
        Kind::EncoderDecoder => 0,
        Kind::Encoder | Kind::Decoder => form.slots(),
    };
    let width = slots + LENGTHS[0];
    let shape = [rows.len(), width, base.description.hidden];
    let mut cotangent = vec![0.0; shape.iter().product()];
    for (row, values) in LENGTHS.iter().zip(cotangent.chunks_mut(width * shape[2])) {
        let text = slots * shape[2]..(slots + row) * shape[2];
        values[text].fill_with(|| uniform(&mut random));
    }
    let mut probe = Probe {
        session: library.session(&step.model, &base.folder, threads)?,
        batch,
        names: step.names.clone(),
        shapes: step
            .parameters
            .iter()
            .map(|parameter| parameter.shape.clone())
            .collect(),
        cotangent: (
            step.input(COTANGENT).to_owned(),
            Array::floats(&shape, cotangent),
        ),
    };
    let (_, slope) = probe.run(&prompt)?;
    let norm = norm_of(&slope);
    let along = slope
        .iter()
        .map(|tensor| tensor.iter().map(|value| value / norm as f32).collect())
        .collect();
    let mut error = probe.disagreement(&prompt, &slope, along)?;
    for _ in 0..2 {
        let other: Vec<Vec<f32>> = slope
            .iter()
            .map(|tensor| {
                tensor
                    .iter()
                    .map(|value| value / norm as f32 * (1.5 + uniform(&mut random)))
                    .collect()
            })
            .collect();
        error = error.max(probe.disagreement(&prompt, &slope, other)?);
    }
    Ok(GradientCheck {
        form: kind,
        error,
        norm,
    })
}

fn uniform(random: &mut ChaCha8Rng) -> f32 {
    (random.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0
}

fn norm_of(tensors: &[Vec<f32>]) -> f64 {
    let squares = tensors
        .iter()
        .flatten()
        .map(|&value| f64::from(value).powi(2));
    squares.sum::<f64>().sqrt()
}

struct Probe {
    session: Session,
    batch: Batch,
    names: Vec<String>,
    shapes: Vec<Vec<usize>>,
    cotangent: (String, Array),
}

impl Probe {
    /// The sum of cotangent times hidden rows, and its gradient.
    fn run(&mut self, prompt: &[Vec<f32>]) -> Result<(f64, Vec<Vec<f32>>), Error> {
        let named = self.names.iter().zip(&self.shapes).zip(prompt);
        let mut extra: Vec<(String, Array)> = named
            .map(|((name, shape), values)| (name.clone(), Array::floats(shape, values.clone())))
            .collect();
        extra.push(self.cotangent.clone());
        let mut outputs = self.session.run(&self.batch.with(&extra))?.into_iter();
        let hidden = outputs
            .next()
            .ok_or_else(|| Error::Engine("hidden rows are missing".into()))?
            .into_floats()?;
        let Array::Floats(_, weights) = &self.cotangent.1 else {
            return Err(Error::Engine("the cotangent is no float".into()));
        };
        let loss = weights
            .iter()
            .zip(&hidden)
            .map(|(weight, value)| f64::from(*weight) * f64::from(*value))
            .sum();
        Ok((
            loss,
            outputs.map(Array::into_floats).collect::<Result<_, _>>()?,
        ))
    }

    /// How far the slope along `direction` is from the difference quotient, relative to the slope.
    fn disagreement(
        &mut self,
        prompt: &[Vec<f32>],
        slope: &[Vec<f32>],
        direction: Vec<Vec<f32>>,
    ) -> Result<f64, Error> {
        let pairs = slope.iter().flatten().zip(direction.iter().flatten());
        let exact: f64 = pairs
            .map(|(slope, step)| f64::from(*slope) * f64::from(*step))
            .sum();
        let size = norm_of(prompt) / norm_of(&direction);
        let mut best = f64::INFINITY;
        for step in STEPS {
            let step = step * size as f32;
            let mut ends = [0.0; 2];
            for (end, sign) in ends.iter_mut().zip([1.0, -1.0]) {
                let moved: Vec<Vec<f32>> = prompt
                    .iter()
                    .zip(&direction)
                    .map(|(tensor, along)| {
                        tensor
                            .iter()
                            .zip(along)
                            .map(|(value, along)| value + sign * step * along)
                            .collect()
                    })
                    .collect();
                *end = self.run(&moved)?.0;
            }
            let difference = (ends[0] - ends[1]) / (2.0 * f64::from(step));
            best = best.min((difference - exact).abs() / exact.abs().max(1e-12));
        }
        Ok(best)
    }
}
