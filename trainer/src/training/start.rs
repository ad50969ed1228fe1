//! What a training starts from, and what its parameters amount to at the end.

use crate::{
    Error,
    encode::Encoded,
    engine::{Array, Library},
    form::Tensors,
    methods::Parameter,
    options::Candidate,
    seedbed::Seedbed,
    step::Step,
    task::Task,
};

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
        all.extend((method.initial)(sizes, &mut seedbed)?);
        all.extend(head(task, &mut seedbed));
    }
    Ok(all)
}

/// What the head starts from: zeros, but for the factor that would otherwise leave the other no gradient.
///
/// A head that was fitted to the base's rows before is sure of most of them and leaves the prompt little to learn.
fn head(task: &Task, seedbed: &mut Seedbed) -> Tensors {
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
