//! What a training starts from, and what its parameters amount to at the end.

use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use crate::{
    Error,
    batch::Batch,
    encode::{Encoded, Truth},
    engine::{Array, Library},
    evaluation::named,
    fit,
    form::Tensors,
    methods::Parameter,
    options::{Candidate, HeadStart},
    seedbed::{Seedbed, shuffle},
    step::{Extent, Purpose, Step},
    task::Task,
};

/// Rows to whose features a head is fitted.
const FITTED_ROWS: usize = 8192;

/// The values that a candidate starts from: the method's, then the head's.
pub(super) fn initial(
    task: &Task,
    library: &Library,
    candidate: &Candidate,
) -> Result<Tensors, Error> {
    let Task {
        base,
        options,
        method,
        sizes,
        labels,
        tokens,
        ..
    } = task;
    let seed = candidate.seed;
    let mut seedbed = Seedbed::new(
        base,
        library,
        &options.init,
        tokens,
        labels,
        vocabulary(task),
        seed,
    )?;
    let mut values = (method.initial)(sizes, &mut seedbed)?;
    let reader = task.reader();
    let head = match (options.head_start, task.head.from_linear) {
        (HeadStart::Fitted, Some(from_linear)) => {
            let (features, classes) = features(task, library, &values, seed)?;
            let examples = fit::Examples {
                features: &features,
                width: reader.size.width,
                classes,
                weights: &task.class_weights,
            };
            from_linear(
                reader.size,
                fit::linear(&examples, labels.len(), reader.loss, seed),
            )
        }
        _ => unfitted(task, &mut seedbed),
    };
    values.extend(head);
    Ok(values)
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

/// The rows that the head reads of training examples under a prompt, and their classes.
fn features(
    task: &Task,
    library: &Library,
    values: &[Vec<f32>],
    seed: u64,
) -> Result<(Vec<f32>, Vec<Vec<usize>>), Error> {
    let Task {
        base,
        options,
        method,
        sizes,
        extent,
        ..
    } = task;
    let reader = task.reader();
    let purpose = Purpose::Features(reader.head.reads, reader.reading);
    let step = Step::build(
        base,
        method,
        sizes,
        Extent {
            candidates: 1,
            ..*extent
        },
        purpose,
    )?;
    let mut session = library.session(&step.model, &base.folder, options.threads)?;
    let parameters = named(&step, values);
    let mut order: Vec<usize> = (0..task.train.rows.len()).collect();
    shuffle(&mut order, &mut ChaCha8Rng::seed_from_u64(seed));
    order.truncate(FITTED_ROWS);
    order.sort_by_key(|&row| task.train.rows[row].length());
    let (mut features, mut classes) = (Vec::new(), Vec::new());
    for chunk in order.chunks(2 * options.batch) {
        let rows: Vec<&Encoded> = chunk.iter().map(|&row| &task.train.rows[row]).collect();
        let arrays = Batch::of(std::slice::from_ref(&rows), task.layout(), &step);
        let found = session
            .run(&arrays.with(&parameters))?
            .swap_remove(0)
            .into_floats()?;
        let wide = found.len() / rows.len();
        for (row, found) in rows.iter().zip(found.chunks(wide)) {
            let truths: Vec<Vec<usize>> = match &row.truth {
                Truth::Class(class) => vec![vec![*class]],
                Truth::Classes(classes) => vec![classes.clone()],
                Truth::Places(places) => places.iter().map(|&(_, class)| vec![class]).collect(),
                Truth::Outside => Vec::new(),
            };
            features.extend_from_slice(&found[..truths.len() * reader.size.width]);
            classes.extend(truths);
        }
    }
    Ok((features, classes))
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
    let step = Step::build(base, method, sizes, Extent::ONE, Purpose::Tensors)?;
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
    let parameters = named(&step, values);
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
