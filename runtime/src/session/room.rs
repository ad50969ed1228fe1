//! Buffers for the texts and the answers of a run.

use crate::{
    Encoded, Error, Image,
    answer::Scored,
    engine::Input,
    image::Description,
    task::{Form, Place},
};

/// Buffers that one run after another uses.
#[derive(Debug, Default)]
pub(super) struct Room {
    pub rows: Vec<f32>,
    pub ids: Vec<i64>,
    pub types: Vec<i64>,
    /// Rows of each text, those of its prompt among them.
    pub lengths: Vec<usize>,
    pub features: Vec<f32>,
    pub logits: Vec<f32>,
    /// Logits of all words of a text, and sums of them.
    pub sums: Vec<f32>,
    pub found: Vec<Scored>,
}

impl Room {
    /// Makes room for texts of `rows` rows, prompt rows among them.
    pub fn reserve(&mut self, rows: usize, base: &Description) {
        self.rows.reserve_exact(rows * base.embedding_width());
        self.ids.reserve_exact(rows);
        self.types.reserve_exact(rows);
        self.lengths.reserve_exact(rows);
        self.features.resize(base.hidden, 0.0);
        self.found.reserve_exact(rows);
    }

    /// Bytes that are reserved.
    pub fn bytes(&self) -> usize {
        let numbers = [&self.rows, &self.features, &self.logits, &self.sums].map(Vec::capacity);
        let tokens = [&self.ids, &self.types].map(Vec::capacity);
        let numbers = numbers.iter().sum::<usize>() * size_of::<f32>();
        let tokens = tokens.iter().sum::<usize>() * size_of::<i64>();
        let lengths = self.lengths.capacity() * size_of::<usize>();
        numbers + tokens + lengths + self.found.capacity() * size_of::<Scored>()
    }

    /// Makes room for the answers of a task with so many labels, and so many sums over the words of a text.
    pub fn expect(&mut self, labels: usize, sums: usize) {
        self.logits.clear();
        self.logits.reserve_exact(labels);
        self.sums.clear();
        self.sums.reserve_exact(sums);
        self.found.clear();
        self.found.reserve(labels);
    }

    /// Takes the texts out.
    pub fn clear(&mut self, base: &Description) {
        self.features.resize(base.hidden, 0.0);
        self.rows.clear();
        self.ids.clear();
        self.types.clear();
        self.lengths.clear();
    }

    /// Lays out the rows, ids and types of one more text and of the prompt beside it.
    pub fn push(
        &mut self,
        image: &Image,
        form: Option<&Form>,
        text: &Encoded,
    ) -> Result<(), Error> {
        let placeholder = image.description().placeholder;
        let width = image.description().embedding_width();
        let (prompt, place) = match form {
            Some(Form::Embeddings { rows, place, .. }) => (&rows[..], *place),
            _ => (&[][..], Place::BeforeText),
        };
        let slots = prompt.len() / width;
        let first = match place {
            Place::BeforeText => slots,
            Place::AfterText => 0,
        };
        let before = self.ids.len();
        let sequence = before + slots + text.len();
        self.lengths.push(slots + text.len());
        self.rows.resize(sequence * width, 0.0);
        self.ids.resize(sequence, placeholder.into());
        self.types.resize(sequence, 0);
        let start = match place {
            Place::BeforeText => before * width,
            Place::AfterText => (before + text.len()) * width,
        };
        self.rows[start..start + prompt.len()].copy_from_slice(prompt);
        let first = before + first;
        let rows = self.rows.chunks_exact_mut(width).skip(first);
        for (row, &id) in rows.zip(text.ids()) {
            image.embedding(id, row)?;
        }
        let ids = self.ids[first..].iter_mut().zip(text.ids());
        ids.for_each(|(slot, &id)| *slot = id.into());
        let types = self.types[first..].iter_mut().zip(text.types());
        types.for_each(|(slot, &kind)| *slot = kind.into());
        Ok(())
    }

    pub fn input(&self) -> Input<'_> {
        Input {
            rows: &self.rows,
            ids: &self.ids,
            types: &self.types,
            lengths: &self.lengths,
        }
    }
}
