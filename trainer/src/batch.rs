//! Examples as the arrays that a graph is fed.

use std::path::Path;

use preface_graph::Description;

use crate::{
    Error,
    data::Dataset,
    engine::Array,
    form::Form,
    heads::Pooling,
    step::{LABELS, POOL, Step, WEIGHTS},
    tokens::Tokens,
};

/// What happens to a text that the positions leave no room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overlength {
    /// It is an error.
    #[default]
    Refuse,
    /// Its tokens before the last are cut.
    Truncate,
}

/// The token ids and label of one example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids, special tokens included.
    pub ids: Vec<i64>,
    /// Index of the label.
    pub label: usize,
}

/// Encodes every example of `dataset`, its text put into `template` where that says `{text}`.
///
/// # Errors
/// When a label is not among `labels`, or a text leaves no room for the prompt and is not to be cut.
pub fn encode(
    dataset: &Dataset,
    labels: &[String],
    template: &str,
    tokens: &Tokens,
    room: Option<usize>,
    overlength: Overlength,
) -> Result<Vec<Encoded>, Error> {
    let indices = dataset.indices(labels)?;
    let examples = dataset.examples.iter().zip(indices);
    let encoded = examples.map(|(example, label)| {
        let ids = tokens.encode(&template.replace("{text}", &example.text))?;
        let ids = fit(ids, room, overlength, &dataset.path, example.line)?;
        Ok(Encoded { ids, label })
    });
    encoded.collect()
}

fn fit(
    mut ids: Vec<i64>,
    room: Option<usize>,
    overlength: Overlength,
    path: &Path,
    line: usize,
) -> Result<Vec<i64>, Error> {
    let Some(room) = room.filter(|&room| ids.len() > room) else {
        return Ok(ids);
    };
    if overlength == Overlength::Refuse || room == 0 {
        return Err(Error::TooLong {
            path: path.into(),
            line,
            tokens: ids.len(),
            room,
        });
    }
    ids.drain(room - 1..ids.len() - 1);
    Ok(ids)
}

/// Tokens of text that the base's positions leave room for beside a prompt; `None` where nothing bounds them.
pub fn room(base: &Description, form: &Form) -> Option<usize> {
    let taken = match form.positions(base) {
        crate::form::PositionPlan::AfterPrompt => form.tokens(),
        crate::form::PositionPlan::TextFromZero => 0,
    };
    base.max_positions
        .map(|positions| positions.saturating_sub(taken))
}

/// The arrays of one batch, by the graph's names.
pub struct Batch {
    feeds: Vec<(String, Array)>,
}

impl Batch {
    /// Lays `rows` side by side, padded on the right, with places for the prompt in front.
    ///
    /// Pooling weights, labels and loss weights are added where `step` takes them.
    pub fn of(
        rows: &[&Encoded],
        base: &Description,
        form: &Form,
        pooling: Pooling,
        step: &Step,
    ) -> Self {
        let slots = form.slots();
        let longest = rows.iter().map(|row| row.ids.len()).max().unwrap_or(0);
        let shape = [rows.len(), slots + longest];
        let mut layout = Layout {
            shape,
            slots,
            rows,
            feeds: Vec::new(),
        };
        let inputs = &base.inputs;
        let padding = i64::from(base.padding.unwrap_or(0));
        layout.ints(Some(&inputs.ids), |row, at| match at.checked_sub(slots) {
            None => i64::from(base.placeholder),
            Some(index) => row.ids.get(index).copied().unwrap_or(padding),
        });
        layout.ints(inputs.decoder_ids.as_deref(), |row, at| {
            row.ids.get(at).copied().unwrap_or(padding)
        });
        layout.ints(inputs.mask.as_deref(), |row, at| {
            i64::from(at < slots + row.ids.len())
        });
        layout.ints(inputs.token_types.as_deref(), |_, _| 0);
        layout.ints(inputs.positions.as_deref(), |_, at| at as i64);
        layout.past(base, form);
        if step.inputs.contains_key(POOL) {
            layout.pool(step.input(POOL), pooling);
        }
        if step.inputs.contains_key(LABELS) {
            let labels = rows.iter().map(|row| row.label as i64).collect();
            layout.feeds.push((
                step.input(LABELS).into(),
                Array::ints(&[rows.len()], labels),
            ));
            let weights = vec![1.0 / rows.len() as f32; rows.len()];
            layout.feeds.push((
                step.input(WEIGHTS).into(),
                Array::floats(&[rows.len()], weights),
            ));
        }
        let declared = step.model.graph.iter().flat_map(|graph| &graph.input);
        let declared: Vec<&str> = declared.map(|input| input.name()).collect();
        layout
            .feeds
            .retain(|(name, _)| declared.contains(&name.as_str()));
        Self {
            feeds: layout.feeds,
        }
    }

    /// The arrays with the parameters beside them.
    pub fn with<'a>(&'a self, parameters: &'a [(String, Array)]) -> Vec<(&'a str, &'a Array)> {
        let all = self.feeds.iter().chain(parameters);
        all.map(|(name, array)| (name.as_str(), array)).collect()
    }
}

struct Layout<'a> {
    shape: [usize; 2],
    slots: usize,
    rows: &'a [&'a Encoded],
    feeds: Vec<(String, Array)>,
}

impl Layout<'_> {
    fn ints(&mut self, name: Option<&str>, value: impl Fn(&Encoded, usize) -> i64) {
        let Some(name) = name else { return };
        let width = self.shape[1];
        let values = self
            .rows
            .iter()
            .flat_map(|row| (0..width).map(|at| value(row, at)).collect::<Vec<_>>());
        self.feeds
            .push((name.into(), Array::ints(&self.shape, values.collect())));
    }

    /// Empty caches for a graph that takes them and gets no prefix.
    fn past(&mut self, base: &Description, form: &Form) {
        if matches!(form, Form::KeyValues { .. }) {
            return;
        }
        for (index, name) in base.inputs.past.iter().enumerate() {
            let Some(layer) = base.layers.get(index / 2) else {
                return;
            };
            let shape = [self.rows.len(), layer.kv_heads, 0, layer.head_dim];
            self.feeds
                .push((name.clone(), Array::floats(&shape, Vec::new())));
        }
    }

    fn pool(&mut self, name: &str, pooling: Pooling) {
        let mut weights = vec![0.0; self.shape[0] * self.shape[1]];
        for (row, line) in self
            .rows
            .iter()
            .zip(weights.chunks_mut(self.shape[1].max(1)))
        {
            let text = &mut line[self.slots..self.slots + row.ids.len()];
            text.copy_from_slice(&pooling.weights(row.ids.len()));
        }
        self.feeds
            .push((name.into(), Array::floats(&self.shape, weights)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_refused_or_keeps_its_last_token() {
        let path = Path::new("train.jsonl");
        let error = fit(vec![1, 2, 3, 4], Some(3), Overlength::Refuse, path, 7)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(
                "train.jsonl, line 7: 4 tokens, but the base's positions leave room for 3"
            ),
            "{error}"
        );
        assert_eq!(
            fit(vec![1, 2, 3, 4], Some(3), Overlength::Truncate, path, 7).unwrap(),
            [1, 2, 4]
        );
        assert_eq!(
            fit(vec![1, 2], None, Overlength::Refuse, path, 7).unwrap(),
            [1, 2]
        );
    }
}
