//! A bundle's probes: inputs whose answers its maker knew.

use preface_bundle::{AnswerKind, Inputs, Probe, VerifiedBundle};

use super::StoreError;
use crate::{Answer, Encoded, Session, TaskHandle};

/// Lets a loaded bundle answer its probes; how many it answered as its maker says.
///
/// What a bundle's maker has not said is not asked: where a base tells the texts of a pair by their types, where the
/// second begins; the tags of words; the text that is made; the labels beside the first.
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
    let kind = manifest.answer.kind;
    let can_be_asked = |probe: &Probe<'_>| {
        let answered = match kind {
            AnswerKind::Tags => probe.tags().len() > 0,
            AnswerKind::Text => !probe.text.is_empty(),
            _ => true,
        };
        answered && (probe.second > 0 || !(paired && typed))
    };
    let failed = |probe, source| StoreError::ProbeFailed {
        task: manifest.task.to_owned(),
        probe,
        source,
    };
    let labels: Vec<&str> = manifest.labels.iter().collect();
    let mut tried = 0;
    for (probe, number) in manifest.probes.iter().zip(1..) {
        if !can_be_asked(&probe) {
            continue;
        }
        session
            .activate(handle)
            .map_err(|source| failed(number, source))?;
        let answer = session.answer_encoded(&question(&probe, typed));
        let answer = answer.map_err(|source| failed(number, source))?;
        if let Some(found) = another(&answer, &probe) {
            return Err(StoreError::Probe {
                task: manifest.task.to_owned(),
                probe: number,
                expected: expected(kind, &probe, &labels),
                found,
            });
        }
        tried += 1;
    }
    Ok(tried)
}

/// The text of a probe as the base reads it.
fn question(probe: &Probe<'_>, typed: bool) -> Encoded {
    let ids: Vec<u32> = probe.ids().collect();
    let second = usize::from(probe.second);
    let types: Vec<u32> = match typed && second > 0 {
        true => (0..ids.len()).map(|at| u32::from(at >= second)).collect(),
        false => Vec::new(),
    };
    let mut text = Encoded::with_room(ids.len());
    text.set(
        &ids,
        &types,
        probe.tags().map(|(place, _)| Some(place.into())),
    );
    text
}

/// What the bundle's maker says that the answer is.
fn expected(kind: AnswerKind, probe: &Probe<'_>, labels: &[&str]) -> String {
    let name = |label: u16| labels.get(usize::from(label)).copied().unwrap_or_default();
    match kind {
        AnswerKind::Tags => joined(probe.tags().map(|(_, label)| name(label))),
        AnswerKind::Text => probe.text.to_owned(),
        AnswerKind::Labels if probe.labels().len() > 0 => joined(probe.labels().map(name)),
        _ => name(probe.label).to_owned(),
    }
}

fn joined<'a>(labels: impl Iterator<Item = &'a str>) -> String {
    labels.collect::<Vec<_>>().join(", ")
}

/// The answer, where it is not the probe's.
fn another(answer: &Answer<'_>, probe: &Probe<'_>) -> Option<String> {
    let label = usize::from(probe.label);
    match answer {
        Answer::Label { best, .. } => (best.class != label).then(|| best.label.to_owned()),
        Answer::Labels(choices) => {
            let mut found = choices.iter().flatten().map(|choice| choice.class);
            let right = match probe.labels().len() {
                0 => found.any(|class| class == label),
                _ => found.eq(probe.labels().map(usize::from)),
            };
            (!right).then(|| joined(choices.iter().flatten().map(|choice| choice.label)))
        }
        Answer::Tags(words) => {
            let found = words.iter().map(|word| word.map(|choice| choice.class));
            let tags = probe.tags().map(|(_, label)| Some(usize::from(label)));
            (!found.eq(tags)).then(|| joined(words.iter().flatten().map(|choice| choice.label)))
        }
        Answer::Text(text) => (text.trim() != probe.text).then(|| text.trim().to_owned()),
    }
}
