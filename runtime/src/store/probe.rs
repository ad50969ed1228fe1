//! A bundle's probes: inputs whose answers its maker knew.

use preface_bundle::{AnswerKind, Inputs, Probe, VerifiedBundle};

use super::StoreError;
use crate::{Answer, Encoded, Session, TaskHandle};

/// Lets a loaded bundle answer its probes; how many it answered as its maker says.
///
/// A probe is token ids without their types, and one label: of tasks that tag or generate there are none, and where a
/// base tells the texts of a pair by their types, probes of pairs cannot be asked.
///
/// # Errors
/// [`StoreError::Probe`], [`StoreError::ProbeFailed`].
pub(super) fn try_out(
    session: &mut Session,
    handle: TaskHandle,
    bundle: &VerifiedBundle<'_>,
) -> Result<usize, StoreError> {
    let manifest = bundle.manifest();
    let typed = session.description().inputs.token_types.is_some();
    let paired = manifest.answer.inputs == Inputs::Pair;
    let labelled = matches!(manifest.answer.kind, AnswerKind::Label | AnswerKind::Labels);
    if !labelled || (paired && typed) {
        return Ok(0);
    }
    let failed = |probe, source| StoreError::ProbeFailed {
        task: manifest.task.to_owned(),
        probe,
        source,
    };
    let mut tried = 0;
    for (probe, number) in manifest.probes.iter().zip(1..) {
        session
            .activate(handle)
            .map_err(|source| failed(number, source))?;
        let ids: Vec<u32> = probe.ids().collect();
        let answer = session.answer_encoded(&Encoded::of_ids(&ids));
        let answer = answer.map_err(|source| failed(number, source))?;
        if let Some(found) = another(&answer, &probe) {
            let labels: Vec<&str> = manifest.labels.iter().collect();
            let expected = labels.get(usize::from(probe.label));
            return Err(StoreError::Probe {
                task: manifest.task.to_owned(),
                probe: number,
                expected: expected.map_or("", |label| label).to_owned(),
                found,
            });
        }
        tried = number;
    }
    Ok(tried)
}

/// The labels of an answer without the probe's.
fn another(answer: &Answer<'_>, probe: &Probe<'_>) -> Option<String> {
    let label = usize::from(probe.label);
    match answer {
        Answer::Label { best, .. } => (best.class != label).then(|| best.label.to_owned()),
        Answer::Labels(choices) => {
            let mut found = choices.iter().flatten();
            (!found.any(|choice| choice.class == label)).then(|| {
                let labels = choices.iter().flatten().map(|choice| choice.label);
                labels.collect::<Vec<_>>().join(", ")
            })
        }
        _ => Some("something else than labels".to_owned()),
    }
}
