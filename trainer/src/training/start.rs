//! What a training starts from, and what its parameters amount to at the end.

use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use crate::{
    Error,
    batch::Batch,
    encode::{Encoded, Truth},
    engine::{Array, Library, Session},
    fit,
    form::Tensors,
    methods::Parameter,
    options::{Candidate, HeadStart},
    seedbed::{Seedbed, shuffle},
    step::{Purpose, Step},
    task::Task,
};

/// Rows to whose features a head is fitted.
const FITTED_ROWS: usize = 8192;

/// The values that the candidates start from: for each the method's, then the head's.
pub(super) fn initial(task: &Task, library: &Library) -> Result<Tensors, Error> {
    let Task {
        base,
        options,
        method,
        sizes,
        labels,
        tokens,
        ..
    } = task;
    let mut fitted = match (options.head_start, task.head.from_linear) {
        (HeadStart::Fitted, Some(from_linear)) => {
            Some((Features::open(task, library)?, from_linear))
        }
        _ => None,
    };
    let vocabulary = vocabulary(task);
    let mut all = Vec::new();
    for &Candidate { seed, .. } in &options.candidates {
        let vocabulary = vocabulary.clone();
        let mut seedbed = Seedbed::new(
            base,
            library,
            &options.init,
            tokens,
            labels,
            vocabulary,
            seed,
        )?;
        let values = (method.initial)(sizes, &mut seedbed)?;
        let head = match &mut fitted {
            Some((features, from_linear)) => {
                let reader = task.reader();
                let (rows, classes) = features.of(&values, seed)?;
                let examples = fit::Examples {
                    features: &rows,
                    width: reader.size.width,
                    classes,
                    weights: &task.class_weights,
                };
                from_linear(
                    reader.size,
                    fit::linear(&examples, labels.len(), reader.loss, seed),
                )
            }
            None => unfitted(task, &mut seedbed),
        };
        all.extend(values);
        all.extend(head);
    }
    Ok(all)
}

/// What a head that nothing was fitted to starts from.
fn unfitted(task: &Task, seedbed: &mut Seedbed) -> Tensors {
    let parameters = (task.head.parameters)(task.reader().size);
    let start = |(index, parameter): (usize, &Parameter)| {
        let columns = parameter.shape.last().copied().unwrap_or(1).max(1);
        match task.head.random.contains(&index) {
            true => seedbed.normal(parameter.elements(), (1.0 / columns as f32).sqrt()),
            false => vec![0.0; parameter.elements()],
        }
    };
    parameters.iter().enumerate().map(start).collect()
}

/// Runs prompts for the rows that the head reads of training examples.
struct Features<'a> {
    task: &'a Task<'a>,
    step: Step,
    session: Session,
}

impl<'a> Features<'a> {
    fn open(task: &'a Task<'a>, library: &Library) -> Result<Self, Error> {
        let reader = task.reader();
        let purpose = Purpose::Features(reader.head.reads, reader.reading);
        let extent = task.extent.of_one();
        let step = Step::build(task.base, task.method, &task.sizes, extent, purpose)?;
        let session = library.session(&step.model, &task.base.folder, task.options.threads)?;
        Ok(Self {
            task,
            step,
            session,
        })
    }

    /// The rows under a prompt, and their classes.
    fn of(&mut self, values: &[Vec<f32>], seed: u64) -> Result<(Vec<f32>, Vec<Vec<usize>>), Error> {
        let Task { options, train, .. } = self.task;
        let width = self.task.reader().size.width;
        let parameters = self.step.feeds(values);
        let mut order: Vec<usize> = (0..train.rows.len()).collect();
        shuffle(&mut order, &mut ChaCha8Rng::seed_from_u64(seed));
        order.truncate(FITTED_ROWS);
        order.sort_by_key(|&row| train.rows[row].length());
        let (mut features, mut classes) = (Vec::new(), Vec::new());
        for chunk in order.chunks(2 * options.batch) {
            let rows: Vec<&Encoded> = chunk.iter().map(|&row| &train.rows[row]).collect();
            let arrays = Batch::of(std::slice::from_ref(&rows), self.task.layout(), &self.step);
            let found = self.session.run(&arrays.with(&parameters))?;
            let found = found.into_iter().next();
            let found = found.ok_or_else(|| Error::Engine("features are missing".into()))?;
            let found = found.into_floats()?;
            for (row, found) in rows.iter().zip(found.chunks(found.len() / rows.len())) {
                let truths: Vec<Vec<usize>> = match &row.truth {
                    Truth::Class(class) => vec![vec![*class]],
                    Truth::Classes(classes) => vec![classes.clone()],
                    Truth::Places(places) => places.iter().map(|&(_, class)| vec![class]).collect(),
                    Truth::Outside => Vec::new(),
                };
                features.extend_from_slice(&found[..truths.len() * width]);
                classes.extend(truths);
            }
        }
        Ok((features, classes))
    }
}

/// The tensors of the form that a method's parameters amount to.
pub(super) fn collapse(
    task: &Task,
    library: &Library,
    values: &[Vec<f32>],
) -> Result<Tensors, Error> {
    let Task {
        base,
        method,
        sizes,
        ..
    } = task;
    let step = Step::tensors(base, method, sizes)?;
    let graph = step.model.graph.iter().flat_map(|graph| &graph.output);
    let outputs: Vec<&str> = graph.map(|output| output.name()).collect();
    if outputs == step.names {
        return Ok(values.to_vec());
    }
    let mut model = step.model.clone();
    if let Some(graph) = &mut model.graph {
        let computed = |name: &str| !step.names.iter().any(|parameter| parameter == name);
        graph.output.retain(|output| computed(output.name()));
    }
    let mut session = library.session(&model, &base.folder, 1)?;
    let declared: Vec<String> = model
        .graph
        .iter()
        .flat_map(|graph| &graph.input)
        .map(|input| input.name().to_owned())
        .collect();
    let parameters = step.feeds(values);
    let feeds: Vec<(&str, &Array)> = parameters
        .iter()
        .filter(|(name, _)| declared.contains(name))
        .map(|(name, array)| (name.as_str(), array))
        .collect();
    let mut computed = session.run(&feeds)?.into_iter();
    outputs
        .iter()
        .map(
            |output| match step.names.iter().position(|name| name == output) {
                Some(at) => Ok(values[at].clone()),
                None => computed
                    .next()
                    .ok_or_else(|| Error::Engine("a tensor of the prompt is missing".into()))?
                    .into_floats(),
            },
        )
        .collect()
}

/// The distinct ids of the training texts.
fn vocabulary(task: &Task) -> Vec<i64> {
    let mut ids: Vec<i64> = task.train.rows.iter().flat_map(Encoded::text_ids).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}
