//! The adapter that a candidate leaves.

use super::{Outcome, Run, start::collapse};
use crate::{
    Error,
    adapter::{
        Adapter, AnswerCard, Card, DecodeCard, FORMAT, HeadCard, InputsCard, Probe, Receipt,
    },
    data::{AnswerKind, Dataset},
    encode::{Encoded, Truth},
    engine::Library,
    form::{Prompt, Tensors},
    heads::Reads,
    metrics::{Evaluation, Prediction, rejection_threshold},
    options::Candidate,
    task::Task,
    tokens::Tokens,
};

/// Token ids of all probes for which a bundle's signed part has room.
const PROBE_IDS: usize = 256;
/// Examples that a bundle carries to prove itself on a device.
const PROBES: usize = 4;
/// The least probability of every label, tag and token of an example that proves a bundle: all others together have a
/// third of it, so that it takes ln 3 in their logits to turn the answer, far more than rounding and numbers in fewer bits
/// move them.
const SURE: f32 = 0.75;

impl Run<'_> {
    pub(super) fn outcome(
        &mut self,
        library: &Library,
        candidate: usize,
        train: &Dataset,
        dev: &Dataset,
    ) -> Result<Outcome, Error> {
        let values = self.best[candidate].clone();
        let answers = self
            .evaluator
            .predict(&values, &self.task.dev.rows, |_| ())?;
        let threshold = match self.task.wording.kind {
            AnswerKind::Label => rejection_threshold(&answers, self.task.dev.truths()),
            _ => None,
        };
        let found = self.evaluation(&answers, threshold);
        let history = self
            .state
            .history
            .iter()
            .filter(|figures| figures.candidate == candidate);
        Ok(Outcome {
            parameters: values.iter().map(Vec::len).sum(),
            adapter: self.adapter(
                library,
                candidate,
                values,
                (&found, &answers, threshold),
                [train, dev],
            )?,
            dev: found,
            dev_answers: answers,
            dev_truths: self.task.dev.truths().cloned().collect(),
            history: history.cloned().collect(),
            truncated: self.task.train.truncated + self.task.dev.truncated,
            seconds: self.seconds(),
        })
    }

    fn adapter(
        &self,
        library: &Library,
        candidate: usize,
        mut values: Tensors,
        (found, answers, threshold): (&Evaluation, &[Prediction], Option<f32>),
        data: [&Dataset; 2],
    ) -> Result<Adapter, Error> {
        let Task {
            base,
            options,
            method,
            sizes,
            head,
            labels,
            wording,
            given,
            ..
        } = self.task;
        let description = &base.description;
        let own = (method.parameters)(sizes).len();
        let head_values = values.split_off(own);
        let metrics = found
            .figures
            .iter()
            .map(|(name, figure)| (format!("dev_{name}"), *figure));
        let card = Card {
            format: FORMAT,
            method: method.name.into(),
            form: sizes.form.clone(),
            head: HeadCard::of(head, labels.len(), options.head_rank, description),
            labels: labels.clone(),
            template: wording.template.clone(),
            pooling: wording.pooling,
            positions: sizes.form.positions(description),
            answer: AnswerCard {
                kind: wording.kind,
                threshold,
            },
            inputs: if wording.pairs {
                InputsCard::Pair
            } else {
                InputsCard::One
            },
            verbaliser: given.verbaliser.clone(),
            decode: self.decode(),
            base_id: description.base_id.clone(),
            tokenizer_id: description.tokenizer_id.clone(),
            probes: self.probes(answers, threshold)?,
            metrics: metrics.collect(),
            token_budget: self.task.token_budget()?,
            init: Some(options.init.name().into()),
            receipt: self.receipt(candidate, data),
        };
        let prompt = Prompt {
            form: sizes.form.clone(),
            tensors: collapse(self.task, library, &values)?,
        };
        Ok(Adapter {
            card,
            prompt,
            head: head_values,
        })
    }

    /// Room for the longest target that was learned.
    fn decode(&self) -> Option<DecodeCard> {
        let longest = self
            .task
            .train
            .rows
            .iter()
            .filter_map(|row| match &row.truth {
                Truth::Places(places) => Some(places.len()),
                _ => None,
            });
        (self.task.head.reads == Reads::Logits).then(|| DecodeCard {
            most_tokens: longest.max().unwrap_or(1),
            stop_ids: self.task.base.description.end_token.into_iter().collect(),
        })
    }

    /// The shortest dev examples of different answers that the prompt gives rightly.
    fn probes(&self, answers: &[Prediction], threshold: Option<f32>) -> Result<Vec<Probe>, Error> {
        let pairs = self.task.dev.rows.iter().zip(answers);
        let mut right: Vec<&Encoded> = pairs
            .filter(|(row, answer)| {
                // Rounding on a device turns an answer of many parts where one of them is nearly even.
                let sure = matches!(row.truth, Truth::Class(_)) || answer.score >= SURE;
                sure && answer.is_right(&row.truth, threshold)
            })
            .map(|(row, _)| row)
            .collect();
        right.sort_by_key(|row| row.text_ids().len());
        let tokens = Tokens::read(&self.task.base.tokenizer)?;
        let mut probes: Vec<Probe> = Vec::new();
        let mut room = PROBE_IDS;
        for row in right {
            let Some(probe) = self.probe(row, &tokens)? else {
                continue;
            };
            let takes =
                probe.ids.len() + probe.tags.len() + probe.labels.len() / 2 + probe.text.len() / 4;
            let new = probes
                .iter()
                .all(|known| answer_of(known) != answer_of(&probe));
            if probes.len() < PROBES && new && takes <= room {
                room -= takes;
                probes.push(probe);
            }
        }
        Ok(probes)
    }

    /// An example as a probe; `None` where a bundle has no words for it.
    fn probe(&self, row: &Encoded, tokens: &Tokens) -> Result<Option<Probe>, Error> {
        let (ids, of_second) = (row.text_ids(), |&kind: &i64| kind != 0);
        let second = row.types.iter().position(of_second).unwrap_or(0);
        let split = row.types.iter().skip(second).all(of_second);
        if second > 0 && (!split || !row.past.ids.is_empty()) {
            return Ok(None);
        }
        let mut probe = Probe {
            ids,
            label: 0,
            second,
            tags: Vec::new(),
            labels: Vec::new(),
            text: String::new(),
        };
        match (&row.truth, self.task.wording.kind) {
            (Truth::Class(class), _) => probe.label = *class,
            (Truth::Classes(classes), _) => {
                // A bundle has no words for none of the labels.
                let Some(first) = classes.first() else {
                    return Ok(None);
                };
                (probe.label, probe.labels) = (*first, classes.clone());
            }
            (Truth::Places(places), AnswerKind::Tags) if !places.is_empty() => {
                let before = row.past.ids.len();
                probe.tags = places.iter().map(|&(at, tag)| (before + at, tag)).collect();
            }
            (Truth::Places(places), AnswerKind::Text) => {
                let ids: Vec<i64> = places
                    .iter()
                    .filter_map(|&(_, id)| id.try_into().ok())
                    .collect();
                let ends = self
                    .decode()
                    .map_or_else(Vec::new, |limits| limits.stop_ids);
                let Some((end, made)) = ids.split_last() else {
                    return Ok(None);
                };
                if !ends.iter().any(|id| i64::from(*id) == *end) {
                    return Ok(None);
                }
                probe.text = tokens.text(made)?.trim().into();
                if probe.text.is_empty() || probe.text.chars().any(char::is_control) {
                    return Ok(None);
                }
            }
            _ => return Ok(None),
        }
        Ok(Some(probe))
    }

    fn receipt(&self, candidate: usize, [train, dev]: [&Dataset; 2]) -> Receipt {
        let options = self.task.options;
        let Candidate {
            seed,
            learning_rate,
            head_learning_rate,
        } = options.candidates[candidate];
        Receipt {
            seed,
            epochs: self.state.epoch,
            best_epoch: self.state.best_epochs[candidate],
            learning_rate: learning_rate.unwrap_or(self.task.method.learning_rate),
            head_learning_rate,
            batch: options.batch,
            examples: train.examples.len(),
            data_sha256: train.sha256.clone(),
            dev_sha256: dev.sha256.clone(),
            threads: options.threads,
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }
}

/// What a probe answers: examples of different answers prove more.
fn answer_of(probe: &Probe) -> (usize, &[usize], Vec<usize>, &str) {
    let tags = probe.tags.iter().map(|&(_, label)| label).collect();
    (probe.label, &probe.labels, tags, &probe.text)
}
