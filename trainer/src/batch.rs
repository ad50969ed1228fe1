//! Examples as the arrays that a graph is fed.

use preface_graph::{Description, Kind, cut::Cut};

use crate::{
    encode::{Encoded, Truth},
    engine::Array,
    form::{Form, Moves, Place},
    heads::Pooling,
    step::{CHOICE, LABELS, PLACES, Step, TARGETS, WEIGHTS},
};

/// How rows are laid out for one step.
#[derive(Clone, Copy, Debug)]
pub struct Layout<'a> {
    /// The base.
    pub base: &'a Description,
    /// The form of the prompt.
    pub form: &'a Form,
    /// Which rows a head reads.
    pub pooling: Pooling,
    /// The weight of each class in the loss; empty where all weigh the same.
    pub class_weights: &'a [f32],
}

/// The arrays of one batch, by the graph's names.
pub struct Batch {
    feeds: Vec<(String, Array)>,
    /// Tokens of the longest row, with those of the prompt and of what ran before.
    pub tokens: usize,
}

impl Batch {
    /// Lays the rows of every candidate side by side, padded on the right, with places for the prompt.
    ///
    /// Every candidate has as many rows. What the graph does not take is left out.
    pub fn of(candidates: &[Vec<&Encoded>], layout: Layout, step: &Step) -> Self {
        let rows: Vec<&Encoded> = candidates.iter().flatten().copied().collect();
        let longest =
            |length: fn(&Encoded) -> usize| rows.iter().map(|row| length(row)).max().unwrap_or(0);
        let width = layout.form.slots() + longest(|row| row.ids.len());
        let mut sheet = Sheet {
            width,
            read_width: match layout.base.kind {
                Kind::EncoderDecoder => {
                    layout.form.decoder_slots() + longest(|row| row.decoder_ids.len())
                }
                _ => width,
            },
            layout,
            rows: &rows,
            feeds: Vec::new(),
        };
        sheet.texts();
        sheet.past();
        sheet.places(step.input(PLACES));
        sheet.lower(&step.cuts);
        sheet.answers(step, candidates.first().map_or(0, Vec::len));
        let graph = step.model.graph.iter();
        let declared: Vec<&str> = graph
            .flat_map(|graph| &graph.input)
            .map(|input| input.name())
            .collect();
        let tokens = sheet.past_width() + sheet.width.max(sheet.read_width);
        let mut feeds = sheet.feeds;
        feeds.retain(|(name, _)| declared.contains(&name.as_str()));
        Self { feeds, tokens }
    }

    /// The arrays with the parameters beside them.
    pub fn with<'a>(&'a self, parameters: &'a [(String, Array)]) -> Vec<(&'a str, &'a Array)> {
        let all = self.feeds.iter().chain(parameters);
        all.map(|(name, array)| (name.as_str(), array)).collect()
    }
}

struct Sheet<'a> {
    width: usize,
    read_width: usize,
    layout: Layout<'a>,
    rows: &'a [&'a Encoded],
    feeds: Vec<(String, Array)>,
}

impl Sheet<'_> {
    fn texts(&mut self) {
        let Layout { base, form, .. } = self.layout;
        let (slots, inputs) = (form.slots(), &base.inputs);
        let hidden = match form.moves() {
            Moves::Text => slots,
            Moves::Nothing | Moves::Decoder => 0,
        };
        let padding = i64::from(base.padding.unwrap_or(0));
        let placeholder = i64::from(base.placeholder);
        let id = |row: &Encoded, at: usize| match index_at(form, row, at) {
            Some(index) => row.ids.get(index).copied().unwrap_or(padding),
            None => placeholder,
        };
        let segment = |row: &Encoded, at: usize| {
            index_at(form, row, at)
                .and_then(|index| row.types.get(index).copied())
                .unwrap_or(0)
        };
        self.ints(Some(&inputs.ids), self.width, id);
        let before = form.decoder_slots();
        self.ints(
            inputs.decoder_ids.as_deref(),
            self.read_width,
            |row, at| match at.checked_sub(before) {
                Some(index) => row.decoder_ids.get(index).copied().unwrap_or(padding),
                None => placeholder,
            },
        );
        self.ints(inputs.token_types.as_deref(), self.width, segment);
        let past = self.past_width();
        self.ints(inputs.mask.as_deref(), past + self.width, |row, at| {
            let taken = match at.checked_sub(past) {
                None => at < row.past.ids.len(),
                Some(at) => (hidden..slots + row.ids.len()).contains(&at),
            };
            i64::from(taken)
        });
        self.ints(inputs.positions.as_deref(), self.width, |row, at| {
            (row.past.ids.len() + at) as i64
        });
    }

    /// Tokens of the longest past.
    fn past_width(&self) -> usize {
        let tokens = self.rows.iter().map(|row| row.past.ids.len());
        tokens.max().unwrap_or(0)
    }

    fn ints(&mut self, name: Option<&str>, width: usize, value: impl Fn(&Encoded, usize) -> i64) {
        let Some(name) = name else { return };
        let line = |row: &&Encoded| (0..width).map(|at| value(row, at)).collect::<Vec<_>>();
        let values = self.rows.iter().flat_map(line).collect();
        self.feeds
            .push((name.into(), Array::ints(&[self.rows.len(), width], values)));
    }

    /// Caches `[rows, kv_heads, past, head_dim]`, empty where nothing was computed before; a graph that takes a prefix as
    /// its cache does not declare them any more.
    fn past(&mut self) {
        let width = self.past_width();
        for (index, name) in self.layout.base.inputs.past.iter().enumerate() {
            let Some(layer) = self.layout.base.layers.get(index / 2) else {
                return;
            };
            let parts = self.rows.iter().map(|row| {
                let cache = row.past.caches.get(index);
                cache.map_or(&[][..], Vec::as_slice)
            });
            let parts: Vec<&[f32]> = parts.collect();
            let cache = padded(&parts, layer.kv_heads, width * layer.head_dim);
            let shape = [self.rows.len(), layer.kv_heads, width, layer.head_dim];
            self.feeds
                .push((name.clone(), Array::floats(&shape, cache)));
        }
    }

    /// Which virtual token stands at each place: `[rows, sequence, tokens]`.
    fn places(&mut self, name: &str) {
        let form = self.layout.form;
        if form.place() == Place::Before {
            return;
        }
        let tokens = form.tokens();
        let mut places = vec![0.0; self.rows.len() * self.width * tokens];
        for (row, sheet) in self.rows.iter().zip(places.chunks_mut(self.width * tokens)) {
            for token in 0..tokens {
                sheet[(row.text + token) * tokens + token] = 1.0;
            }
        }
        let shape = [self.rows.len(), self.width, tokens];
        self.feeds
            .push((name.into(), Array::floats(&shape, places)));
    }

    /// What was computed before, cut by cut.
    fn lower(&mut self, cuts: &[Cut]) {
        for (index, cut) in cuts.iter().enumerate() {
            let parts = self.rows.iter().filter_map(|row| row.lower.get(index));
            let parts: Vec<&[f32]> = parts.map(Vec::as_slice).collect();
            let line = self.width * cut.inner.iter().product::<usize>();
            let values = padded(&parts, cut.outer.iter().product(), line);
            let shape = cut.shape(self.rows.len(), self.width);
            self.feeds
                .push((cut.value.clone(), Array::floats(&shape, values)));
        }
    }

    /// Where answers are read, what they should be, and how much each counts.
    fn answers(&mut self, step: &Step, each: usize) {
        let readings: Vec<Vec<Reading>> = self.rows.iter().map(|row| self.readings(row)).collect();
        let most = readings.iter().map(Vec::len).max().unwrap_or(0);
        let count = self.rows.len() * most;
        let mut choice = vec![0.0; count * self.read_width];
        let (mut labels, mut weights) = (vec![0; count], vec![0.0; count]);
        let at = |row: usize, index: usize| row * most + index;
        for (row, readings) in readings.iter().enumerate() {
            for (index, reading) in readings.iter().enumerate() {
                let place = at(row, index);
                labels[place] = reading.class as i64;
                weights[place] = reading.weight;
                let line = &mut choice[place * self.read_width..(place + 1) * self.read_width];
                reading
                    .chosen
                    .iter()
                    .for_each(|&(at, weight)| line[at] = weight);
            }
        }
        for part in weights.chunks_mut((each * most).max(1)) {
            let total: f32 = part.iter().sum();
            part.iter_mut()
                .for_each(|weight| *weight /= total.max(f32::MIN_POSITIVE));
        }
        let shape = [self.rows.len(), most, self.read_width];
        self.feeds
            .push((step.input(CHOICE).into(), Array::floats(&shape, choice)));
        self.feeds
            .push((step.input(LABELS).into(), Array::ints(&[count], labels)));
        self.feeds
            .push((step.input(WEIGHTS).into(), Array::floats(&[count], weights)));
        self.targets(step);
    }

    /// 1 for each class that a row has: `[rows, classes]`.
    fn targets(&mut self, step: &Step) {
        if !step.inputs.contains_key(TARGETS) {
            return;
        }
        let mut targets = vec![0.0; self.rows.len() * step.classes];
        for (row, line) in self
            .rows
            .iter()
            .zip(targets.chunks_mut(step.classes.max(1)))
        {
            if let Truth::Classes(classes) = &row.truth {
                classes.iter().for_each(|&class| line[class] = 1.0);
            }
        }
        let shape = [self.rows.len(), step.classes];
        self.feeds
            .push((step.input(TARGETS).into(), Array::floats(&shape, targets)));
    }

    fn readings(&self, row: &Encoded) -> Vec<Reading> {
        let weight = |class: usize| self.layout.class_weights.get(class).copied().unwrap_or(1.0);
        let form = self.layout.form;
        match &row.truth {
            Truth::Places(places) => places
                .iter()
                .map(|&(at, class)| {
                    let at = match self.layout.base.kind {
                        Kind::EncoderDecoder => form.decoder_slots() + at,
                        _ => place_before_next(form, row, at),
                    };
                    Reading {
                        chosen: vec![(at, 1.0)],
                        class,
                        weight: weight(class),
                    }
                })
                .collect(),
            truth => {
                let class = match truth {
                    Truth::Class(class) => *class,
                    _ => 0,
                };
                vec![Reading {
                    chosen: self.pooled(row),
                    class,
                    weight: weight(class),
                }]
            }
        }
    }

    /// The places that the pooling takes of a text, each with its weight.
    fn pooled(&self, row: &Encoded) -> Vec<(usize, f32)> {
        let Layout {
            base,
            form,
            pooling,
            ..
        } = self.layout;
        if base.kind == Kind::EncoderDecoder {
            return vec![(form.decoder_slots(), 1.0)];
        }
        let text = row.text;
        let only = |index: usize| vec![(place_of(form, row, index), 1.0)];
        match pooling {
            Pooling::Mean => {
                let weight = 1.0 / text as f32;
                (0..text)
                    .map(|index| (place_of(form, row, index), weight))
                    .collect()
            }
            Pooling::First => only(0),
            Pooling::Last if base.kind == Kind::Decoder => {
                vec![(place_before_next(form, row, text.saturating_sub(1)), 1.0)]
            }
            Pooling::Last => only(text.saturating_sub(1)),
            Pooling::Mask => only(row.mask.unwrap_or(0)),
            Pooling::Prompt => vec![(0, 1.0)],
        }
    }
}

/// One answer of a row: the places that it is read from, the class, and how much it counts.
struct Reading {
    chosen: Vec<(usize, f32)>,
    class: usize,
    weight: f32,
}

/// Parts of so many lines each, side by side, every line filled up with zeros to `length` numbers.
fn padded(parts: &[&[f32]], lines: usize, length: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(parts.len() * lines * length);
    for part in parts {
        let own = part.len() / lines;
        for line in 0..lines {
            values.extend_from_slice(&part[line * own..(line + 1) * own]);
            values.resize(values.len() + length - own, 0.0);
        }
    }
    values
}

/// The index of the id at a place of the sequence; `None` at the prompt.
fn index_at(form: &Form, row: &Encoded, at: usize) -> Option<usize> {
    let slots = form.slots();
    let first = match form.place() {
        Place::Before => 0,
        Place::After => row.text,
    };
    match at {
        _ if at < first => Some(at),
        _ if at < first + slots => None,
        _ => Some(at - slots),
    }
}

/// The place in the sequence of the id `index`.
fn place_of(form: &Form, row: &Encoded, index: usize) -> usize {
    match form.place() {
        Place::After if index < row.text => index,
        _ => index + form.slots(),
    }
}

/// The place before that of the id behind `index`: the prompt stands between the last of the text and what follows.
fn place_before_next(form: &Form, row: &Encoded, index: usize) -> usize {
    match form.place() {
        Place::After if index + 1 < row.text => index,
        _ => index + form.slots(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_stands_before_or_behind_the_text() {
        let row = Encoded {
            text: 2,
            ..Encoded::of_ids(vec![7, 8, 9])
        };
        let form = |place| Form::Embeddings {
            tokens: 2,
            hidden: 4,
            place,
        };
        let ids = |place| {
            (0..5)
                .map(|at| index_at(&form(place), &row, at))
                .collect::<Vec<_>>()
        };
        assert_eq!(ids(Place::Before), [None, None, Some(0), Some(1), Some(2)]);
        assert_eq!(ids(Place::After), [Some(0), Some(1), None, None, Some(2)]);
        let places = |place| {
            (0..3)
                .map(|index| place_of(&form(place), &row, index))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            (places(Place::Before), places(Place::After)),
            (vec![2, 3, 4], vec![0, 1, 4])
        );
        let before = |place| {
            (0..3)
                .map(|index| place_before_next(&form(place), &row, index))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            (before(Place::Before), before(Place::After)),
            (vec![2, 3, 4], vec![0, 3, 4])
        );
    }
}
