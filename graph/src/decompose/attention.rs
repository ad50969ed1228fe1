//! ONNX Runtime's fused attentions (domain `com.microsoft`), as its `ContribOperators.md` defines them.

use super::{HIDDEN, causal_mask, repeat_heads, scaled_scores, writer::Writer};
use crate::{Error, builder::Attribute, facts::Fact, onnx::data_type};

/// Queries, keys and values `[batch, heads, tokens, head_dim]`.
struct Heads {
    query: String,
    key: String,
    value: String,
    head_dim: i64,
}

impl Writer<'_> {
    /// 0 where `visible`, the node's filter value elsewhere.
    fn bias(&mut self, visible: &str) -> String {
        let filter = f64::from(self.node.float("mask_filter_value", -10_000.0));
        let filter = self.builder.scalar(data_type::FLOAT, filter);
        let zero = self.builder.scalar(data_type::FLOAT, 0.0);
        self.apply("Where", &[visible, &zero, &filter])
    }

    /// Input `index`, a mask of the keys, as what is added to scores `[batch, heads, queries, keys]`: the number of
    /// keys of each row `[batch]`, or 1 for what is visible, `[batch, keys]` or `[batch, queries, keys]`.
    /// Keys are counted along `axis` of `keys`.
    fn padding(&mut self, index: usize, keys: &str, axis: i64) -> Result<Option<String>, Error> {
        let Some(mask) = self.node.input(index).map(str::to_owned) else {
            return Ok(None);
        };
        let batches = self.facts.get(keys).map(|fact| &fact.shapes);
        let rows = |fact: &Fact| {
            let pairs = batches.map(|batches| batches.iter().zip(&fact.shapes));
            pairs.is_none_or(|mut pairs| pairs.all(|(keys, mask)| keys.first() == mask.first()))
        };
        let axes: &[i64] = match (self.rank(index), self.fact(index).is_none_or(rows)) {
            (1, true) => {
                let (count, zero) = (
                    self.size(keys, axis),
                    self.builder.scalar(data_type::INT64, 0.0),
                );
                let columns = self.range(&zero, &count);
                let ends = self.builder.cast(&mask, data_type::INT64);
                let ends = self.unsqueeze(&ends, &[1]);
                let visible = self.apply("Less", &[&columns, &ends]);
                let bias = self.bias(&visible);
                return Ok(Some(self.unsqueeze(&bias, &[1, 2])));
            }
            (2, _) => &[1, 2],
            (3, _) => &[1],
            _ => return Err(self.refuse("a mask in a form that is not known")),
        };
        let visible = self.builder.cast(&mask, data_type::BOOL);
        let bias = self.bias(&visible);
        Ok(Some(self.unsqueeze(&bias, axes)))
    }

    /// What hides from each of `query`'s tokens the keys behind it, and all but the last `window` others where that is not
    /// 0; the last query stands at the last key.
    fn causal(&mut self, query: &str, key: &str, window: i64) -> String {
        let zero = self.builder.scalar(data_type::INT64, 0.0);
        let (asking, asked) = (self.size(query, 2), self.size(key, 2));
        let before = self.apply("Sub", &[&asked, &asking]);
        let rows = self.range(&before, &asked);
        let rows = self.unsqueeze(&rows, &[1]);
        let columns = self.range(&zero, &asked);
        let mut visible = self.apply("LessOrEqual", &[&columns, &rows]);
        if window > 0 {
            let window = self.builder.scalar(data_type::INT64, window as f64);
            let ends = self.apply("Sub", &[&rows, &window]);
            let near = self.apply("Greater", &[&columns, &ends]);
            visible = self.apply("And", &[&visible, &near]);
        }
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
        let cap = f64::from(self.node.float("softcap", 0.0));
        let mut scores = scaled_scores(
            self.builder,
            data_type::FLOAT,
            [&heads.query, &heads.key],
            (scale, cap),
        );
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
        biases.extend(self.padding(3, &input, 1)?);
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
        biases.extend(self.padding(4, &key, 2)?);
        biases.extend(self.node.input(5).map(str::to_owned));
        if self.node.int("unidirectional", 0) == 1 {
            biases.push(self.causal(&query, &key, 0));
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
        if self.node.int("smooth_softmax", 0) != 0 || self.node.input(11).is_some() {
            return Err(self.refuse("a sink is not known"));
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
        let window = self.node.int("local_window_size", 0).max(0);
        biases.push(self.causal(&query, &key, window));
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
}
