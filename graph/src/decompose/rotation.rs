//! Rotations of queries and keys by position, of com.microsoft (Su et al. 2021, RoFormer, section 3).

use super::writer::Writer;
use crate::{Error, onnx::data_type};

/// Cosines and sines by position, `half` a row.
pub(super) struct Rotation {
    cosine: String,
    sine: String,
    half: i64,
}

impl Writer<'_> {
    /// Positions of the tokens of `rows`: input `index`, or those behind the cache that input `past` names.
    pub(super) fn positions(
        &mut self,
        rows: &str,
        index: usize,
        past: usize,
    ) -> Result<String, Error> {
        if let Some(positions) = self.node.input(index) {
            return Ok(positions.to_owned());
        }
        let tokens = self.size(rows, 1);
        let from = match self.node.input(past).map(str::to_owned) {
            Some(past) => self.size(&past, 2),
            None => self.builder.scalar(data_type::INT64, 0.0),
        };
        let to = self.apply("Add", &[&from, &tokens]);
        Ok(self.range(&from, &to))
    }

    /// Cosines and sines of `positions` from the tables at `places`, for values whose heads are counted by `axis`.
    pub(super) fn rotation(
        &mut self,
        places: (usize, usize),
        positions: &str,
        axis: i64,
    ) -> Result<Rotation, Error> {
        let half = self.width(places.0)?;
        let tables = [
            self.input(places.0)?.to_owned(),
            self.input(places.1)?.to_owned(),
        ];
        let by_row = self
            .facts
            .get(positions)
            .is_some_and(|fact| fact.rank() == 2);
        let [cosine, sine] = tables.map(|table| {
            let rows = self.apply("Gather", &[&table, positions]);
            let axes: &[i64] = match (by_row, axis) {
                (true, axis) => &[axis],
                (false, 1) => return rows,
                (false, _) => &[1],
            };
            self.unsqueeze(&rows, axes)
        });
        Ok(Rotation { cosine, sine, half })
    }

    /// `value` `[.., .., .., head_dim]` with its first `2 half` elements turned in pairs: each with the one `half` behind
    /// it, or neighbours.
    pub(super) fn rotated(
        &mut self,
        value: &str,
        rotation: &Rotation,
        head_dim: i64,
        interleaved: bool,
    ) -> String {
        let half = rotation.half;
        let turning = 2 * half;
        let (whole, rest) = match head_dim > turning {
            false => (value.to_owned(), None),
            true => {
                let [whole, rest] = self.split(value, 3, [turning, head_dim - turning]);
                (whole, Some(rest))
            }
        };
        let [left, right] = match interleaved {
            false => self.split(&whole, 3, [half; 2]),
            true => {
                let pairs = self.reshape(&whole, &[0, 0, 0, half, 2]);
                let axis = self.builder.ints(&[4]);
                self.split(&pairs, 4, [1; 2])
                    .map(|part| self.apply("Squeeze", &[&part, &axis]))
            }
        };
        let Rotation { cosine, sine, .. } = rotation;
        let [a, b] = [(&left, cosine), (&right, sine)].map(|(x, y)| self.apply("Mul", &[x, y]));
        let first = self.apply("Sub", &[&a, &b]);
        let [a, b] = [(&left, sine), (&right, cosine)].map(|(x, y)| self.apply("Mul", &[x, y]));
        let second = self.apply("Add", &[&a, &b]);
        let turned = match interleaved {
            false => self.concat(&[&first, &second], 3),
            true => {
                let parts = [first, second].map(|part| self.unsqueeze(&part, &[4]));
                let pairs = self.concat(&[&parts[0], &parts[1]], 4);
                self.reshape(&pairs, &[0, 0, 0, -1])
            }
        };
        match rest {
            None => turned,
            Some(rest) => self.concat(&[&turned, &rest], 3),
        }
    }

    /// `RotaryEmbedding`: positions `[1]`, where the first token stands, or `[batch, tokens]`.
    pub(super) fn rotary_embedding(&mut self) -> Result<(), Error> {
        if self.node.int("is_packed_batching", 0) == 1 || self.node.float("scale", 1.0) != 1.0 {
            return Err(self.refuse("packed batches and scales are not known"));
        }
        let (input, interleaved) = (
            self.input(0)?.to_owned(),
            self.node.int("interleaved", 0) == 1,
        );
        let (tokens_axis, axis) = if self.rank(0) == 4 { (2, 1) } else { (1, 2) };
        let mut positions = self.input(1)?.to_owned();
        if self.rank(1) == 1 {
            let tokens = self.size(&input, tokens_axis);
            let zero = self.builder.scalar(data_type::INT64, 0.0);
            let steps = self.range(&zero, &tokens);
            positions = self.apply("Add", &[&steps, &positions]);
        }
        let rotation = self.rotation((2, 3), &positions, axis)?;
        let head_dim = match (self.rank(0), self.node.int("num_heads", 0)) {
            (4, _) => self.width(0)?,
            (3, 0) => 2 * rotation.half,
            (3, heads) => self.width(0)? / heads,
            _ => return Err(self.refuse("a value that is neither of 3 nor of 4 dimensions")),
        };
        let apart = match self.rank(0) {
            4 => input,
            _ => self.reshape(&input, &[0, 0, -1, head_dim]),
        };
        let turned = self.rotated(&apart, &rotation, head_dim, interleaved);
        let output = self.node.output[0].clone();
        match self.rank(0) {
            4 => self.builder.write("Identity", &[&turned], &[&output], &[]),
            _ => {
                let shape = self.builder.ints(&[0, 0, -1]);
                self.builder
                    .write("Reshape", &[&turned, &shape], &[&output], &[]);
            }
        }
        Ok(())
    }
}
