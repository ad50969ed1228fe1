//! ONNX Runtime's fused attentions and rotary embeddings (domain `com.microsoft`), as its `ContribOperators.md` defines
//! them, and its product with factors, which needs shapes as they do.

use super::{HIDDEN, causal_mask, repeat_heads};
use crate::{
    Error,
    builder::{Attribute, Builder},
    facts::{Fact, Facts},
    onnx::{NodeProto, data_type},
};

/// A node to write out, what is known of its inputs, and where its parts go.
pub(super) struct Writer<'a> {
    pub builder: &'a mut Builder,
    pub node: &'a NodeProto,
    pub facts: &'a Facts,
}

/// Queries, keys and values `[batch, heads, tokens, head_dim]`.
struct Heads {
    query: String,
    key: String,
    value: String,
    head_dim: i64,
}

impl Writer<'_> {
    fn refuse(&self, reason: impl Into<String>) -> Error {
        Error::at(self.node, reason)
    }

    fn input(&self, index: usize) -> Result<&str, Error> {
        let input = self.node.input(index);
        input.ok_or_else(|| self.refuse(format!("input {index} is left out")))
    }

    fn fact(&self, index: usize) -> Option<&Fact> {
        self.facts.get(self.node.input(index)?)
    }

    fn rank(&self, index: usize) -> usize {
        self.fact(index).map_or(0, Fact::rank)
    }

    /// The constant size of the last dimension of input `index`.
    fn width(&self, index: usize) -> Result<i64, Error> {
        let fact = self.fact(index);
        let width = fact.and_then(|fact| fact.constant_dim(fact.rank().checked_sub(1)?));
        width.ok_or_else(|| self.refuse(format!("the width of input {index} is not constant")))
    }

    fn output(&self, index: usize) -> Option<&str> {
        let output = self.node.output.get(index).map(String::as_str);
        output.filter(|name| !name.is_empty())
    }

    fn heads(&self, attribute: &str) -> Result<i64, Error> {
        let heads = self.node.int(attribute, 0);
        match heads > 0 {
            true => Ok(heads),
            false => Err(self.refuse(format!("{attribute} is not given"))),
        }
    }

    fn apply(&mut self, operator: &str, inputs: &[&str]) -> String {
        self.builder.apply(operator, inputs, &[])
    }

    fn reshape(&mut self, value: &str, shape: &[i64]) -> String {
        let shape = self.builder.ints(shape);
        self.apply("Reshape", &[value, &shape])
    }

    fn unsqueeze(&mut self, value: &str, axes: &[i64]) -> String {
        let axes = self.builder.ints(axes);
        self.apply("Unsqueeze", &[value, &axes])
    }

    fn transpose(&mut self, value: &str, perm: &[i64]) -> String {
        let perm = [("perm", Attribute::Ints(perm.to_vec()))];
        self.builder.apply("Transpose", &[value], &perm)
    }

    fn concat(&mut self, values: &[&str], axis: i64) -> String {
        let axis = [("axis", Attribute::Int(axis))];
        self.builder.apply("Concat", values, &axis)
    }

    fn cast(&mut self, value: &str, to: i32) -> String {
        let to = [("to", Attribute::Int(i64::from(to)))];
        self.builder.apply("Cast", &[value], &to)
    }

    fn split<const N: usize>(&mut self, value: &str, axis: i64, sizes: [i64; N]) -> [String; N] {
        let parts = sizes.map(|_| self.builder.fresh());
        let names: Vec<&str> = parts.iter().map(String::as_str).collect();
        let sizes = self.builder.ints(&sizes);
        let axis = [("axis", Attribute::Int(axis))];
        self.builder.write("Split", &[value, &sizes], &names, &axis);
        parts
    }

    /// Dimension `axis` of `value` as a scalar.
    fn size(&mut self, value: &str, axis: i64) -> String {
        let shape = self.apply("Shape", &[value]);
        let axis = self.builder.scalar(data_type::INT64, axis as f64);
        self.apply("Gather", &[&shape, &axis])
    }

    fn range(&mut self, from: &str, to: &str) -> String {
        let one = self.builder.scalar(data_type::INT64, 1.0);
        self.apply("Range", &[from, to, &one])
    }

    /// `[batch, tokens, heads * head_dim]` as `[batch, heads, tokens, head_dim]`.
    fn apart(&mut self, value: &str, heads: i64) -> String {
        let apart = self.reshape(value, &[0, 0, heads, -1]);
        self.transpose(&apart, &[0, 2, 1, 3])
    }

    /// 0 where `visible`, the node's filter value elsewhere.
    fn bias(&mut self, visible: &str) -> String {
        let filter = f64::from(self.node.float("mask_filter_value", -10_000.0));
        let filter = self.builder.scalar(data_type::FLOAT, filter);
        let zero = self.builder.scalar(data_type::FLOAT, 0.0);
        self.apply("Where", &[visible, &zero, &filter])
    }

    /// Input `index`, a mask of the keys, as what is added to scores `[batch, heads, queries, keys]`: the number of
    /// keys of each row `[batch]`, or 1 for what is visible, `[batch, keys]` or `[batch, queries, keys]`.
    fn padding(&mut self, index: usize, keys: &str) -> Result<Option<String>, Error> {
        let Some(mask) = self.node.input(index).map(str::to_owned) else {
            return Ok(None);
        };
        let batches = self.facts.get(keys).map(|fact| &fact.shapes);
        let rows = |fact: &Fact| {
            let pairs = batches.map(|batches| batches.iter().zip(&fact.shapes));
            pairs.is_none_or(|mut pairs| pairs.all(|(keys, mask)| keys[0] == mask[0]))
        };
        let axes: &[i64] = match (self.rank(index), self.fact(index).is_none_or(rows)) {
            (1, true) => {
                let (count, zero) = (
                    self.size(keys, 1),
                    self.builder.scalar(data_type::INT64, 0.0),
                );
                let columns = self.range(&zero, &count);
                let ends = self.cast(&mask, data_type::INT64);
                let ends = self.unsqueeze(&ends, &[1]);
                let visible = self.apply("Less", &[&columns, &ends]);
                let bias = self.bias(&visible);
                return Ok(Some(self.unsqueeze(&bias, &[1, 2])));
            }
            (2, _) => &[1, 2],
            (3, _) => &[1],
            _ => return Err(self.refuse("a mask in a form that is not known")),
        };
        let visible = self.cast(&mask, data_type::BOOL);
        let bias = self.bias(&visible);
        Ok(Some(self.unsqueeze(&bias, axes)))
    }

    /// What hides from each of `query`'s tokens the keys behind it; the last query stands at the last key.
    fn causal(&mut self, query: &str, key: &str) -> String {
        let zero = self.builder.scalar(data_type::INT64, 0.0);
        let (asking, asked) = (self.size(query, 2), self.size(key, 2));
        let before = self.apply("Sub", &[&asked, &asking]);
        let rows = self.range(&before, &asked);
        let rows = self.unsqueeze(&rows, &[1]);
        let columns = self.range(&zero, &asked);
        let visible = self.apply("LessOrEqual", &[&columns, &rows]);
        let hidden = self.builder.scalar(data_type::FLOAT, HIDDEN);
        let seen = self.builder.scalar(data_type::FLOAT, 0.0);
        self.apply("Where", &[&visible, &seen, &hidden])
    }

    /// `softmax(scale Q K^T + biases) V` into the first output `[batch, tokens, heads * head_dim]`.
    fn weigh(&mut self, heads: &Heads, biases: &[String]) {
        let scale = match self.node.float("scale", 0.0) {
            0.0 => 1.0 / (heads.head_dim as f64).sqrt(),
            scale => f64::from(scale),
        };
        let scale = self.builder.scalar(data_type::FLOAT, scale);
        let scaled = self.apply("Mul", &[&heads.query, &scale]);
        let turned = self.transpose(&heads.key, &[0, 1, 3, 2]);
        let mut scores = self.apply("MatMul", &[&scaled, &turned]);
        let cap = f64::from(self.node.float("softcap", 0.0));
        if cap != 0.0 {
            let cap = self.builder.scalar(data_type::FLOAT, cap);
            scores = self.apply("Div", &[&scores, &cap]);
            scores = self.apply("Tanh", &[&scores]);
            scores = self.apply("Mul", &[&scores, &cap]);
        }
        for bias in biases {
            scores = self.apply("Add", &[&scores, bias]);
        }
        let last = [("axis", Attribute::Int(-1))];
        let weights = self.builder.apply("Softmax", &[&scores], &last);
        let mixed = self.apply("MatMul", &[&weights, &heads.value]);
        let mixed = self.transpose(&mixed, &[0, 2, 1, 3]);
        let shape = self.builder.ints(&[0, 0, -1]);
        let output = self.node.output[0].clone();
        self.builder
            .write("Reshape", &[&mixed, &shape], &[&output], &[]);
    }

    /// Puts the cache that input `index` names before `value`; output `present` is both.
    fn cached(&mut self, value: String, index: usize, present: usize) -> String {
        let name = self.output(present).map(str::to_owned);
        let Some(past) = self.node.input(index).map(str::to_owned) else {
            if let Some(name) = name {
                self.builder.write("Identity", &[&value], &[&name], &[]);
            }
            return value;
        };
        let whole = name.unwrap_or_else(|| self.builder.fresh());
        let axis = [("axis", Attribute::Int(2))];
        self.builder
            .write("Concat", &[&past, &value], &[&whole], &axis);
        whole
    }

    /// `Attention`: one product with the weights `[width, queries + keys + values]`.
    pub(super) fn packed_attention(&mut self) -> Result<(), Error> {
        let cached = self.node.input(4).is_some() || self.output(1).is_some();
        if cached || self.node.int("do_rotary", 0) == 1 {
            return Err(self.refuse("an attention with a cache or a rotation of its own"));
        }
        let (heads, total) = (self.heads("num_heads")?, self.width(1)?);
        let sizes = match self.node.ints("qkv_hidden_sizes") {
            Some(&[query, key, value]) => [query, key, value],
            _ => [total / 3; 3],
        };
        let input = self.input(0)?.to_owned();
        let mut all = self.builder.apply(
            "MatMul",
            &[&input, self.node.input(1).unwrap_or_default()],
            &[],
        );
        if let Some(bias) = self.node.input(2) {
            all = self.builder.apply("Add", &[&all, bias], &[]);
        }
        let [query, key, value] = self
            .split(&all, -1, sizes)
            .map(|part| self.apart(&part, heads));
        let mut biases = Vec::new();
        biases.extend(self.padding(3, &input)?);
        biases.extend(self.node.input(5).map(str::to_owned));
        if self.node.int("unidirectional", 0) == 1 {
            biases.push(causal_mask(self.builder, &query, data_type::FLOAT));
        }
        let head_dim = sizes[0] / heads;
        let heads = Heads {
            query,
            key,
            value,
            head_dim,
        };
        self.weigh(&heads, &biases);
        Ok(())
    }

    /// `MultiHeadAttention`: queries, keys and values apart, or packed in one value or two.
    pub(super) fn multi_head_attention(&mut self) -> Result<(), Error> {
        let heads = self.heads("num_heads")?;
        let parts = match (self.rank(0), self.rank(1), self.rank(2)) {
            (3, 3, 3) => self.biased_parts(heads)?,
            (3, 4, 4) if self.node.input(3).is_none() => {
                let query = self.input(0)?.to_owned();
                let query = self.apart(&query, heads);
                [query, self.input(1)?.to_owned(), self.input(2)?.to_owned()]
            }
            (5, 0, 0) if self.node.input(3).is_none() => {
                let packed = self.input(0)?.to_owned();
                self.split(&packed, 3, [1; 3])
                    .map(|part| self.unpacked(&part))
            }
            (3, 5, 0) if self.node.input(3).is_none() => {
                let (query, packed) = (self.input(0)?.to_owned(), self.input(1)?.to_owned());
                let query = self.apart(&query, heads);
                let [key, value] = self
                    .split(&packed, 3, [1; 2])
                    .map(|part| self.unpacked(&part));
                [query, key, value]
            }
            _ => return Err(self.refuse("queries, keys and values in a form that is not known")),
        };
        let head_dim = match self.rank(0) {
            5 => self.width(0)?,
            _ => self.width(0)? / heads,
        };
        let [query, key, value] = parts;
        let (key, value) = (self.cached(key, 6, 1), self.cached(value, 7, 2));
        let mut biases = Vec::new();
        let counted = match self.rank(1) {
            3 => self.input(1)?.to_owned(),
            _ => self.input(0)?.to_owned(),
        };
        biases.extend(self.padding(4, &counted)?);
        biases.extend(self.node.input(5).map(str::to_owned));
        if self.node.int("unidirectional", 0) == 1 {
            biases.push(self.causal(&query, &key));
        }
        let heads = Heads {
            query,
            key,
            value,
            head_dim,
        };
        self.weigh(&heads, &biases);
        Ok(())
    }

    fn biased_parts(&mut self, heads: i64) -> Result<[String; 3], Error> {
        let mut parts =
            [0, 1, 2].map(|index| self.node.input(index).unwrap_or_default().to_owned());
        if let Some(bias) = self.node.input(3).map(str::to_owned) {
            let sizes = [self.width(0)?, self.width(1)?, self.width(2)?];
            let biases = self.split(&bias, 0, sizes);
            for (part, bias) in parts.iter_mut().zip(&biases) {
                *part = self.builder.apply("Add", &[part, bias], &[]);
            }
        }
        Ok(parts.map(|part| self.apart(&part, heads)))
    }

    /// `[batch, tokens, heads, 1, head_dim]` as `[batch, heads, tokens, head_dim]`.
    fn unpacked(&mut self, part: &str) -> String {
        let axis = self.builder.ints(&[3]);
        let part = self.apply("Squeeze", &[part, &axis]);
        self.transpose(&part, &[0, 2, 1, 3])
    }

    /// `GroupQueryAttention`: causal, with a cache, its queries and keys rotated. Padding stands behind the text, where
    /// no token sees it; the counts of keys are therefore not read.
    pub(super) fn group_query_attention(&mut self) -> Result<(), Error> {
        let (heads, kv_heads) = (self.heads("num_heads")?, self.heads("kv_num_heads")?);
        let plain = self.node.int("smooth_softmax", 0) == 0
            && self.node.int("local_window_size", -1) <= 0
            && self.node.input(11).is_none();
        if !plain {
            return Err(self.refuse("a local window or a sink is not known"));
        }
        let query = self.input(0)?.to_owned();
        let (parts, head_dim) = match (self.rank(1), self.rank(2)) {
            (3, 3) => {
                let (key, value) = (self.input(1)?.to_owned(), self.input(2)?.to_owned());
                let head_dim = self.width(0)? / heads;
                let query = self.reshape(&query, &[0, 0, heads, head_dim]);
                let key = self.reshape(&key, &[0, 0, kv_heads, head_dim]);
                let value = self.reshape(&value, &[0, 0, kv_heads, head_dim]);
                ([query, key, value], head_dim)
            }
            (0, 0) => {
                let all = heads + 2 * kv_heads;
                let head_dim = self.width(0)? / all;
                let apart = self.reshape(&query, &[0, 0, all, head_dim]);
                (self.split(&apart, 2, [heads, kv_heads, kv_heads]), head_dim)
            }
            _ => return Err(self.refuse("keys and values in a form that is not known")),
        };
        let [mut query, mut key, value] = parts;
        if self.node.int("do_rotary", 0) == 1 {
            let positions = self.positions(&query, 9, 3)?;
            let interleaved = self.node.int("rotary_interleaved", 0) == 1;
            let rotation = self.rotation((7, 8), &positions, 2)?;
            query = self.rotated(&query, &rotation, head_dim, interleaved);
            key = self.rotated(&key, &rotation, head_dim, interleaved);
        }
        let [query, key, value] =
            [query, key, value].map(|part| self.transpose(&part, &[0, 2, 1, 3]));
        let (key, value) = (self.cached(key, 3, 1), self.cached(value, 4, 2));
        let mut biases: Vec<String> = self.node.input(10).map(str::to_owned).into_iter().collect();
        biases.push(self.causal(&query, &key));
        let mut heads_of = Heads {
            query,
            key,
            value,
            head_dim,
        };
        if heads != kv_heads {
            let times = heads / kv_heads;
            for part in [&mut heads_of.key, &mut heads_of.value] {
                *part = repeat_heads(self.builder, part, times, heads, head_dim);
            }
        }
        self.weigh(&heads_of, &biases);
        Ok(())
    }

    /// Positions of the tokens of `rows`: input `index`, or those behind the cache that input `past` names.
    fn positions(&mut self, rows: &str, index: usize, past: usize) -> Result<String, Error> {
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
    fn rotation(
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
    fn rotated(
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

    /// `FusedMatMul`: `alpha op(A) op(B)`.
    pub(super) fn fused_matmul(&mut self) -> Result<(), Error> {
        if ["transBatchA", "transBatchB"].map(|name| self.node.int(name, 0)) != [0; 2] {
            return Err(self.refuse("a product that moves its batches is not known"));
        }
        let mut operands = [self.input(0)?.to_owned(), self.input(1)?.to_owned()];
        for (index, name) in ["transA", "transB"].iter().enumerate() {
            if self.node.int(name, 0) == 1 {
                let rank = self.rank(index) as i64;
                let mut perm: Vec<i64> = (0..rank).collect();
                let last = perm.len().saturating_sub(1);
                perm.swap(last, last.saturating_sub(1));
                let operand = operands[index].clone();
                operands[index] = self.transpose(&operand, &perm);
            }
        }
        let product = self.apply("MatMul", &[&operands[0], &operands[1]]);
        let alpha = f64::from(self.node.float("alpha", 1.0));
        let alpha = self.builder.scalar(data_type::FLOAT, alpha);
        let output = self.node.output[0].clone();
        self.builder
            .write("Mul", &[&product, &alpha], &[&output], &[]);
        Ok(())
    }
}

/// Cosines and sines by position, `half` a row.
struct Rotation {
    cosine: String,
    sine: String,
    half: i64,
}
