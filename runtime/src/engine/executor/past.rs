//! Keys and values of the tokens before those of a run.

use crate::{Error, image::Layer as Shape, task::KeyValues};

/// Keys and values that stand before a text's own: those of a prefix, and behind them those of tokens that were run
/// before.
#[derive(Clone, Debug)]
pub(crate) struct Past {
    /// Position of the next token.
    position: usize,
    /// Tokens that were run, those of a prefix not counted.
    ran: usize,
    layers: Vec<Layer>,
}

/// Keys and values of one layer, each `[kv_heads, room, head_dim]`.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    shape: Shape,
    room: usize,
    prefix: usize,
    tokens: usize,
    gate: f32,
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// Keys or values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    Keys,
    Values,
}

impl Past {
    /// A prefix by layer. Where the base counts, positions go on behind one of all layers.
    pub fn of_prefix(prefix: &KeyValues, layers: &[Shape], counts: bool) -> Self {
        let whole = prefix.layers.len() == layers.len();
        let layer = |(index, &shape)| match prefix.layers.get(&index) {
            Some(layer) if prefix.tokens > 0 => Layer {
                shape,
                room: prefix.tokens,
                prefix: prefix.tokens,
                tokens: prefix.tokens,
                gate: layer.gate,
                keys: layer.keys.clone(),
                values: layer.values.clone(),
            },
            _ => Layer::empty(shape, 0),
        };
        Self {
            position: if counts && whole { prefix.tokens } else { 0 },
            ran: 0,
            layers: layers.iter().enumerate().map(layer).collect(),
        }
    }

    /// Room for `room` tokens in every layer.
    pub fn with_room(layers: &[Shape], room: usize) -> Self {
        let layers = layers.iter().map(|&shape| Layer::empty(shape, room));
        Self {
            position: 0,
            ran: 0,
            layers: layers.collect(),
        }
    }

    /// Becomes what `other` is, and keeps its room.
    ///
    /// # Errors
    /// When there is too little.
    pub fn begin(&mut self, other: &Self) -> Result<(), Error> {
        for (layer, other) in self.layers.iter_mut().zip(&other.layers) {
            layer.begin(other)?;
        }
        (self.position, self.ran) = (other.position, other.ran);
        Ok(())
    }

    /// Position of the next token.
    pub fn position(&self) -> usize {
        self.position
    }

    /// How many tokens there still is room for.
    pub(super) fn left(&self) -> usize {
        let layers = self.layers.iter().map(|layer| layer.room - layer.tokens);
        layers.min().unwrap_or(usize::MAX)
    }

    pub(super) fn layer(&self, index: usize) -> Option<&Layer> {
        self.layers.get(index)
    }

    pub(super) fn layer_mut(&mut self, index: usize) -> Option<&mut Layer> {
        self.layers.get_mut(index)
    }

    /// Counts tokens whose keys and values every layer was given.
    pub(super) fn advance(&mut self, tokens: usize) {
        self.position += tokens;
        self.ran += tokens;
    }

    /// Forgets the keys and values of tokens that were not counted.
    pub(super) fn forget(&mut self) {
        let ran = self.ran;
        self.layers
            .iter_mut()
            .for_each(|layer| layer.tokens = layer.prefix + ran);
    }
}

impl Layer {
    fn empty(shape: Shape, room: usize) -> Self {
        let numbers = shape.kv_heads * room * shape.head_dim;
        Self {
            shape,
            room,
            prefix: 0,
            tokens: 0,
            gate: 0.0,
            keys: vec![0.0; numbers],
            values: vec![0.0; numbers],
        }
    }

    fn begin(&mut self, other: &Self) -> Result<(), Error> {
        self.fits(other.tokens)?;
        (self.prefix, self.tokens, self.gate) = (other.prefix, other.tokens, other.gate);
        let (room, length) = (self.room, self.shape.head_dim);
        let filled = other.tokens * length;
        for half in [Half::Keys, Half::Values] {
            for head in 0..self.shape.kv_heads {
                let from = other.head(half, head);
                let start = head * room * length;
                self.half_mut(half)[start..start + filled].copy_from_slice(from);
            }
        }
        Ok(())
    }

    fn fits(&self, tokens: usize) -> Result<(), Error> {
        match tokens <= self.room {
            true => Ok(()),
            false => Err(Error::Room {
                rows: tokens,
                limit: self.room,
            }),
        }
    }

    fn half_mut(&mut self, half: Half) -> &mut [f32] {
        match half {
            Half::Keys => &mut self.keys,
            Half::Values => &mut self.values,
        }
    }

    /// Tokens in it.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The first tokens, which every later one sees: those of a prefix.
    pub fn prefix(&self) -> usize {
        self.prefix
    }

    /// What is added to the scores of the prefix.
    pub fn gate(&self) -> f32 {
        self.gate
    }

    /// One head's keys or values, `[tokens, head_dim]`.
    pub fn head(&self, half: Half, head: usize) -> &[f32] {
        let numbers = match half {
            Half::Keys => &self.keys,
            Half::Values => &self.values,
        };
        let start = head * self.room * self.shape.head_dim;
        &numbers[start..start + self.tokens * self.shape.head_dim]
    }

    /// Appends `count` tokens. Those of `rows(half, head)` are `head_dim` numbers each, one every `step` numbers.
    ///
    /// # Errors
    /// When there is no room for them.
    pub fn push<'a>(
        &mut self,
        count: usize,
        rows: impl Fn(Half, usize) -> (&'a [f32], usize),
    ) -> Result<(), Error> {
        self.fits(self.tokens + count)?;
        let Shape { kv_heads, head_dim } = self.shape;
        for half in [Half::Keys, Half::Values] {
            for head in 0..kv_heads {
                let (from, step) = rows(half, head);
                let start = (head * self.room + self.tokens) * head_dim;
                let into = &mut self.half_mut(half)[start..start + count * head_dim];
                for (into, from) in into.chunks_exact_mut(head_dim).zip(from.chunks(step)) {
                    into.copy_from_slice(&from[..head_dim]);
                }
            }
        }
        self.tokens += count;
        Ok(())
    }
}
