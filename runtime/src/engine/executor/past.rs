//! Keys and values of the tokens before those of a run.

use preface_bundle::Positions;

use crate::{Error, image::Layer as Shape, map::Numbers, task::KeyValues};

/// Keys and values that stand before a text's own: those of a prefix, and behind them those of tokens that were run
/// before.
#[derive(Clone, Debug)]
pub(crate) struct Past {
    /// Position of the next token.
    position: usize,
    layers: Vec<Layer>,
}

/// Keys and values of one layer, each `[kv_heads, room, head_dim]`.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    shape: Shape,
    room: usize,
    prefix: usize,
    /// Whether the prefix is a cache that the base knows, from which distances go on.
    cached: bool,
    tokens: usize,
    /// Tokens of runs that came to their end, and those of a prefix.
    counted: usize,
    gate: f32,
    store: Store,
}

/// Keys and values.
#[derive(Clone, Debug)]
enum Store {
    /// Those of a prefix, to which nothing is added.
    Prefix { keys: Numbers, values: Numbers },
    /// Room for more.
    Room { keys: Vec<f32>, values: Vec<f32> },
}

/// Keys or values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    Keys,
    Values,
}

impl Past {
    /// A prefix by layer. Where the base counts, or the prefix asks for it, positions go on behind one of all layers, which
    /// is the base's cache where it `caches`. Behind one of a decoder's own layers both are so of themselves.
    pub fn of_prefix(
        mut prefix: KeyValues,
        layers: &[Shape],
        (counts, caches): (bool, bool),
    ) -> Self {
        let (tokens, whole) = (prefix.tokens, prefix.layers.len() == layers.len());
        let cached = prefix.is_of_decoder() || caches && whole;
        let counts = counts || prefix.positions == Positions::AfterPrompt;
        let counted = prefix.is_of_decoder() || counts && whole;
        let layer = |(index, &shape)| match prefix.layers.remove(&index) {
            Some(layer) if tokens > 0 => Layer {
                shape,
                room: tokens,
                prefix: tokens,
                cached,
                tokens,
                counted: tokens,
                gate: layer.gate,
                store: Store::Prefix {
                    keys: layer.keys,
                    values: layer.values,
                },
            },
            _ => Layer::empty(shape, 0),
        };
        Self {
            position: if counted { tokens } else { 0 },
            layers: layers.iter().enumerate().map(layer).collect(),
        }
    }

    /// Room for so many tokens in each layer.
    pub fn with_room(layers: &[Shape], rooms: &[usize]) -> Self {
        let layers = layers.iter().zip(rooms);
        Self {
            position: 0,
            layers: layers
                .map(|(&shape, &room)| Layer::empty(shape, room))
                .collect(),
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
        self.position = other.position;
        Ok(())
    }

    /// Position of the next token.
    pub fn position(&self) -> usize {
        self.position
    }

    /// How many tokens there still is room for in each of `layers`.
    pub(super) fn left(&self, layers: impl Iterator<Item = usize>) -> usize {
        let layers = layers.filter_map(|layer| self.layers.get(layer));
        let left = layers.map(|layer| layer.room - layer.tokens);
        left.min().unwrap_or(usize::MAX)
    }

    /// Bytes of its keys and values.
    pub fn bytes(&self) -> usize {
        let numbers = self.layers.iter().map(|layer| {
            let Shape { kv_heads, head_dim } = layer.shape;
            2 * kv_heads * layer.room * head_dim
        });
        numbers.sum::<usize>() * size_of::<f32>()
    }

    pub(super) fn layer(&self, index: usize) -> Option<&Layer> {
        self.layers.get(index)
    }

    pub(super) fn layer_mut(&mut self, index: usize) -> Option<&mut Layer> {
        self.layers.get_mut(index)
    }

    /// Counts the tokens whose keys and values its layers were given; the next token is so many positions on.
    pub(super) fn advance(&mut self, positions: usize) {
        self.position += positions;
        let layers = self.layers.iter_mut();
        layers.for_each(|layer| layer.counted = layer.tokens);
    }

    /// Forgets the keys and values of tokens that were not counted.
    pub(super) fn forget(&mut self) {
        let layers = self.layers.iter_mut();
        layers.for_each(|layer| layer.tokens = layer.counted);
    }
}

impl Layer {
    fn empty(shape: Shape, room: usize) -> Self {
        let numbers = shape.kv_heads * room * shape.head_dim;
        Self {
            shape,
            room,
            prefix: 0,
            cached: false,
            tokens: 0,
            counted: 0,
            gate: 0.0,
            store: Store::Room {
                keys: vec![0.0; numbers],
                values: vec![0.0; numbers],
            },
        }
    }

    fn begin(&mut self, other: &Self) -> Result<(), Error> {
        self.fits(other.tokens)?;
        (self.prefix, self.tokens, self.gate) = (other.prefix, other.tokens, other.gate);
        (self.cached, self.counted) = (other.cached, self.tokens);
        let (room, length) = (self.room, self.shape.head_dim);
        let filled = other.tokens * length;
        for half in [Half::Keys, Half::Values] {
            for head in 0..self.shape.kv_heads {
                let from = other.head(half, head);
                let start = head * room * length;
                self.half_mut(half)?[start..start + filled].copy_from_slice(from);
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

    /// # Errors
    /// [`Error::NoPast`] for a prefix, to which nothing is added.
    fn half_mut(&mut self, half: Half) -> Result<&mut [f32], Error> {
        match (&mut self.store, half) {
            (Store::Room { keys, .. }, Half::Keys) => Ok(keys),
            (Store::Room { values, .. }, Half::Values) => Ok(values),
            (Store::Prefix { .. }, _) => Err(Error::NoPast),
        }
    }

    /// Tokens in it.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The first tokens: those of a prefix.
    pub fn prefix(&self) -> usize {
        self.prefix
    }

    /// The first tokens, which every later one sees, at no distance: those of a prefix that is no cache of the base's.
    pub fn always_seen(&self) -> usize {
        if self.cached { 0 } else { self.prefix }
    }

    /// What is added to the scores of the prefix.
    pub fn gate(&self) -> f32 {
        self.gate
    }

    /// One head's keys or values, `[tokens, head_dim]`.
    pub fn head(&self, half: Half, head: usize) -> &[f32] {
        let numbers: &[f32] = match (&self.store, half) {
            (Store::Prefix { keys, .. }, Half::Keys) => keys,
            (Store::Prefix { values, .. }, Half::Values) => values,
            (Store::Room { keys, .. }, Half::Keys) => keys,
            (Store::Room { values, .. }, Half::Values) => values,
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
                let into = &mut self.half_mut(half)?[start..start + count * head_dim];
                for (into, from) in into.chunks_exact_mut(head_dim).zip(from.chunks(step)) {
                    into.copy_from_slice(&from[..head_dim]);
                }
            }
        }
        self.tokens += count;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::LayerKeyValues;

    const SHAPE: Shape = Shape {
        kv_heads: 2,
        head_dim: 3,
    };

    /// Numbers that differ, `[kv_heads, tokens, head_dim]`.
    fn numbers(from: usize, tokens: usize) -> Vec<f32> {
        let count = SHAPE.kv_heads * tokens * SHAPE.head_dim;
        (from..from + count).map(|number| number as f32).collect()
    }

    /// A prefix of one layer of two.
    fn prefix(tokens: usize) -> Past {
        Past::of_prefix(prefix_of(tokens), &[SHAPE; 2], (true, true))
    }

    fn prefix_of(tokens: usize) -> KeyValues {
        let layer = LayerKeyValues {
            shape: SHAPE,
            keys: numbers(0, tokens).into(),
            values: numbers(100, tokens).into(),
            gate: 0.5,
        };
        KeyValues {
            tokens,
            positions: Positions::AfterPrompt,
            layers: [(1, layer)].into(),
        }
    }

    /// Everything that a run sees of a layer.
    fn seen(layer: &Layer) -> (usize, usize, f32, Vec<f32>) {
        let halves = [Half::Keys, Half::Values].into_iter();
        let heads = halves.flat_map(|half| (0..SHAPE.kv_heads).map(move |head| (half, head)));
        let numbers = heads.flat_map(|(half, head)| layer.head(half, head).to_vec());
        (
            layer.tokens(),
            layer.prefix(),
            layer.gate(),
            numbers.collect(),
        )
    }

    /// Appends `count` tokens of rows of four heads' width, of which these heads are the middle.
    fn push(layer: &mut Layer, count: usize, from: &[f32]) -> Result<(), Error> {
        layer.push(count, |half, head| {
            let start = SHAPE.head_dim * (head + usize::from(half == Half::Values));
            (&from[start..], 4 * SHAPE.head_dim)
        })
    }

    #[test]
    fn a_prefix_stands_in_its_layers_and_positions_go_on_behind_one_of_all() {
        let past = prefix(2);
        assert_eq!(past.position(), 0);
        let layers = [0, 1].map(|index| seen(past.layer(index).unwrap()));
        assert_eq!(layers[0], (0, 0, 0.0, Vec::new()));
        let all = [numbers(0, 2), numbers(100, 2)].concat();
        assert_eq!(layers[1], (2, 2, 0.5, all));
        let whole = KeyValues {
            tokens: 2,
            ..KeyValues::default()
        };
        let seen = [true, false].map(|caches| {
            let mut both = prefix_of(2);
            let one = both.layers[&1].clone();
            both.layers.insert(0, one);
            let past = Past::of_prefix(both, &[SHAPE; 2], (false, caches));
            past.layer(0).unwrap().always_seen()
        });
        assert_eq!(seen, [0, 2]);
        assert_eq!(past.layer(1).unwrap().always_seen(), 2);
        assert_eq!(
            Past::of_prefix(whole.clone(), &[], (true, false)).position(),
            2
        );
        assert_eq!(
            Past::of_prefix(whole.clone(), &[], (false, true)).position(),
            0
        );
        let asks = KeyValues {
            positions: Positions::AfterPrompt,
            ..whole
        };
        assert_eq!(Past::of_prefix(asks, &[], (false, true)).position(), 2);
        let of_decoder = KeyValues {
            positions: Positions::DecoderAfterPrompt,
            ..prefix_of(2)
        };
        let past = Past::of_prefix(of_decoder, &[SHAPE; 2], (false, false));
        assert_eq!(
            (past.position(), past.layer(1).unwrap().always_seen()),
            (2, 0)
        );
    }

    #[test]
    fn tokens_are_appended_behind_a_prefix_and_forgotten_where_they_do_not_count() {
        let mut past = Past::with_room(&[SHAPE; 2], &[4; 2]);
        past.begin(&prefix(2)).unwrap();
        let before = seen(past.layer(1).unwrap());
        let rows: Vec<f32> = (200..224).map(|number| number as f32).collect();
        push(past.layer_mut(1).unwrap(), 2, &rows).unwrap();
        let layer = past.layer(1).unwrap();
        let own = |half, head| layer.head(half, head)[2 * SHAPE.head_dim..].to_vec();
        assert_eq!((layer.tokens(), layer.prefix()), (4, 2));
        assert_eq!(own(Half::Keys, 0), [200., 201., 202., 212., 213., 214.]);
        assert_eq!(own(Half::Values, 1), [206., 207., 208., 218., 219., 220.]);
        past.forget();
        assert_eq!(seen(past.layer(1).unwrap()), before);
        push(past.layer_mut(1).unwrap(), 1, &rows).unwrap();
        past.advance(1);
        past.forget();
        assert_eq!((past.position(), past.layer(1).unwrap().tokens()), (1, 3));
    }

    #[test]
    fn a_full_room_leaves_what_is_there_as_it_was() {
        let mut past = Past::with_room(&[SHAPE; 2], &[3; 2]);
        past.begin(&prefix(2)).unwrap();
        let before = seen(past.layer(1).unwrap());
        let full = push(past.layer_mut(1).unwrap(), 2, &[7.0; 24]);
        assert!(matches!(full, Err(Error::Room { rows: 4, limit: 3 })));
        let wide = past.begin(&prefix(4));
        assert!(matches!(wide, Err(Error::Room { rows: 4, limit: 3 })));
        assert_eq!(seen(past.layer(1).unwrap()), before);
    }
}
