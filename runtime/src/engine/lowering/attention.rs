//! Attentions: products of queries with keys, what happens to the scores, and products of their weights with values.

use preface_graph::{
    attention::{Direction, Layout as JointLayout},
    onnx::NodeProto,
};

use super::{
    Refused, Rows, Value, Walk,
    distances::ByDistance,
    draft::{Attention, Kept, Kind, Part},
    layout::{Atom, Axis, Layout, joined},
};
use crate::engine::executor::program::{Distances, Mask};

/// Scores of queries against keys.
#[derive(Clone, Debug)]
pub(super) struct Scores {
    queries: Heads,
    keys: Heads,
    scale: f32,
    cap: Option<f32>,
    mask: Mask,
    distances: Option<ByDistance>,
    /// Dimensions of the scores: heads as places, rows and keys.
    pub layout: Layout,
    /// The site whose Softmax made weights of them.
    site: Option<usize>,
}

/// Rows apart by head.
#[derive(Clone, Debug)]
struct Heads {
    rows: Rows,
    /// The dimensions before the last two.
    heads: Axis,
    /// Numbers of one head.
    length: usize,
}

/// Scores and mask values that are as good as minus infinity.
const HIDDEN: f32 = -1e4;

impl Walk<'_> {
    pub(super) fn attention_product(&mut self, node: &NodeProto) -> Result<Value, Refused> {
        match (self.value(node, 0)?, self.value(node, 1)?) {
            (Value::Rows(queries), Value::Rows(keys)) => self.scores(node, queries, keys),
            (Value::Scores(scores), Value::Rows(values)) => self.mixture(node, &scores, values),
            _ => Err(Refused::node(
                node,
                "is neither scores nor a mixture of values",
            )),
        }
    }

    fn scores(
        &mut self,
        node: &NodeProto,
        queries: Rows,
        mut keys: Rows,
    ) -> Result<Value, Refused> {
        let refused = |reason: &str| Refused::node(node, reason);
        let rank = keys.layout.axes.len();
        if rank < 2 {
            return Err(refused("multiplies a single row"));
        }
        keys.layout.axes.swap(rank - 2, rank - 1);
        let dims = self.dims(&node.output[0])?;
        let heads = &dims[..dims.len() - 2];
        let queries = split(queries, heads).ok_or_else(|| refused("has queries of no heads"))?;
        let keys = split(keys, heads).ok_or_else(|| refused("has keys of no heads"))?;
        if queries.length != keys.length || queries.rows.joined.is_some() {
            return Err(refused("multiplies heads of other sizes"));
        }
        let mut layout = Layout::plain(&heads.iter().map(|&dim| Some(dim)).collect::<Vec<_>>());
        layout.axes.extend([vec![Atom::Row], vec![Atom::Key]]);
        Ok(Value::Scores(Box::new(Scores {
            scale: queries.rows.scale * keys.rows.scale,
            queries,
            keys,
            cap: None,
            mask: Mask::default(),
            distances: None,
            layout,
            site: None,
        })))
    }

    /// What an operation does to scores; `None` where it works on none.
    pub(super) fn scores_elementwise(
        &mut self,
        node: &NodeProto,
    ) -> Result<Option<Value>, Refused> {
        let refused = |reason: &str| Refused::node(node, reason);
        let place = (0..node.input.len()).find(|&index| {
            let name = node.input(index).unwrap_or_default();
            matches!(self.values.get(name), Some(Value::Scores(_)))
        });
        let Some(place) = place else {
            return Ok(None);
        };
        let Value::Scores(mut scores) = self.value(node, place)? else {
            return Ok(None);
        };
        if scores.site.is_some() {
            return Err(refused("changes the weights of an attention"));
        }
        let unmasked = scores.mask == Mask::default() && scores.distances.is_none();
        if node.op_type() == "Tanh" {
            if scores.cap.is_some() || !unmasked {
                return Err(refused("bends scores twice"));
            }
            // What divided the scores before is what multiplies them behind: see the Mul below.
            scores.cap = Some(f32::NAN);
            return Ok(Some(Value::Scores(scores)));
        }
        let other = node.input(1 - place.min(1)).unwrap_or_default();
        if self.is_dynamic(other) || node.input.len() != 2 {
            return Err(refused("combines scores with rows"));
        }
        match (node.op_type(), place) {
            ("Mul", _) | ("Div", 0) => {
                let number = self.statics.scalar(other)?;
                let number = number.ok_or_else(|| refused("scales scores one by one"))?;
                let factor = if node.op_type() == "Div" {
                    number.recip()
                } else {
                    number
                };
                if !unmasked {
                    return Err(refused("scales scores behind their mask"));
                }
                match scores.cap {
                    Some(cap) if cap.is_nan() => {
                        scores.cap = Some(factor);
                        scores.scale *= factor;
                    }
                    Some(_) => return Err(refused("scales scores that are capped")),
                    None => scores.scale *= factor,
                }
            }
            ("Add", _) => {
                let added = |number: f32| match number {
                    0.0 => Some(true),
                    number if number <= HIDDEN => Some(false),
                    _ => None,
                };
                let mask = match self.statics.mask(other, added) {
                    Ok(mask) => mask,
                    Err(reason) => {
                        let (mask, distances) = self.by_distance(other, &scores, reason)?;
                        scores.distances = Some(distances);
                        mask
                    }
                };
                scores.mask = narrower(scores.mask, mask);
            }
            ("Max", _) => {
                let number = self.statics.scalar(other)?;
                if !number.is_some_and(|number| number <= HIDDEN) {
                    return Err(refused("bounds scores"));
                }
            }
            _ => return Err(refused("does to scores what the executor does not")),
        }
        Ok(Some(Value::Scores(scores)))
    }

    /// What `name` adds to `scores` by the distance of their tokens; `reason` says why it is no mask.
    fn by_distance(
        &mut self,
        name: &str,
        scores: &Scores,
        reason: Refused,
    ) -> Result<(Mask, ByDistance), Refused> {
        let bent = scores.distances.is_some() || scores.cap.is_some_and(f32::is_nan);
        match self.statics.by_distance(name, HIDDEN)? {
            Some(found) if !bent => Ok(found),
            _ => Err(reason),
        }
    }

    /// A choice between scores and a number that hides them.
    pub(super) fn choice(&mut self, node: &NodeProto) -> Result<Value, Refused> {
        let refused = |reason: &str| Refused::node(node, reason);
        let name = |index: usize| node.input(index).unwrap_or_default();
        let place = [1, 2]
            .into_iter()
            .find(|&index| matches!(self.values.get(name(index)), Some(Value::Scores(_))));
        let place = place.ok_or_else(|| refused("chooses between rows"))?;
        let Value::Scores(mut scores) = self.value(node, place)? else {
            return Err(refused("chooses between rows"));
        };
        if matches!(self.values.get(name(0)), Some(Value::Ignored)) {
            return Ok(Value::Scores(scores));
        }
        if self.is_dynamic(name(0)) || self.is_dynamic(name(3 - place)) {
            return Err(refused("chooses by the text"));
        }
        let hidden = self.statics.scalar(name(3 - place))?;
        let hides = match scores.site {
            None => hidden.is_some_and(|hidden| hidden <= HIDDEN),
            Some(_) => hidden == Some(0.0),
        };
        if !hides {
            return Err(refused("hides tokens behind no small number"));
        }
        let visible = |number: f32| Some((number != 0.0) == (place == 1));
        let mask = self.statics.mask(name(0), visible)?;
        if scores.site.is_some() && narrower(scores.mask, mask) != scores.mask {
            return Err(refused("hides tokens behind their Softmax"));
        }
        scores.mask = narrower(scores.mask, mask);
        Ok(Value::Scores(scores))
    }

    pub(super) fn softmax(&mut self, node: &NodeProto) -> Result<Value, Refused> {
        let refused = |reason: &str| Refused::node(node, reason);
        let Value::Scores(mut scores) = self.value(node, 0)? else {
            return Err(refused("weighs something else than scores"));
        };
        let rank = scores.layout.axes.len() as i64;
        let last = scores
            .layout
            .axes
            .last()
            .is_some_and(|axis| axis[..] == [Atom::Key]);
        if ![-1, rank - 1].contains(&node.int("axis", -1)) || !last {
            return Err(refused("weighs something else than keys"));
        }
        if scores.cap.is_some_and(f32::is_nan) || scores.site.is_some() {
            return Err(refused("weighs scores that are bent"));
        }
        let mut sites = self.base.description.sites.iter();
        let site = sites.position(|site| site.node == node.label());
        scores.site = Some(site.ok_or_else(|| refused("is no attention site of the base"))?);
        Ok(Value::Scores(scores))
    }

    /// A mixture of values by the weights of an attention.
    fn mixture(
        &mut self,
        node: &NodeProto,
        scores: &Scores,
        values: Rows,
    ) -> Result<Value, Refused> {
        let refused = |reason: &str| Refused::node(node, reason);
        let site = scores
            .site
            .ok_or_else(|| refused("mixes values by scores"))?;
        let [leading @ .., rows, keys] = &scores.layout.axes[..] else {
            return Err(refused("mixes values by single scores"));
        };
        if (&rows[..], &keys[..]) != (&[Atom::Row][..], &[Atom::Key][..]) {
            return Err(refused("turns the weights of an attention"));
        }
        let dims = self.dims(&node.output[0])?;
        let values = split(values, &dims[..dims.len() - 2]);
        let values = values.ok_or_else(|| refused("has values of no heads"))?;
        self.joins_there(node, site, scores, &values)?;
        let all = joined(leading.iter().flatten().copied());
        let heads = match all[..] {
            [] => 1,
            [Atom::Inner { size, stride: 1 }] => size,
            _ => return Err(refused("takes its heads in another order")),
        };
        let crosses = self.base.description.sites[site].direction == Direction::Cross;
        if crosses && (scores.mask != Mask::default() || scores.distances.is_some()) {
            return Err(refused("counts the distance to tokens of another text"));
        }
        let distances = match &scores.distances {
            None => None,
            Some(by) => Some(self.distances(by, heads).ok_or_else(|| {
                refused("adds numbers for other heads than its own to the scores")
            })?),
        };
        let steps = |of: &Heads| of.shared(heads);
        let (queries, keys, mixed) = (steps(&scores.queries), steps(&scores.keys), steps(&values));
        let (Some(queries), Some(keys), Some(mixed)) = (queries, keys, mixed) else {
            return Err(refused("shares keys among heads in another order"));
        };
        let length = scores.queries.length;
        if queries.0 != heads || keys.0 != mixed.0 || values.length != length {
            return Err(refused("shares keys and values in different ways"));
        }
        let attention = Attention {
            layer: site,
            heads,
            kv_heads: keys.0,
            head_dim: length,
            query: (scores.queries.part(), queries.1),
            own: (!crosses).then_some([(scores.keys.part(), keys.1), (values.part(), mixed.1)]),
            scale: scores.scale,
            cap: scores.cap,
            distances,
            mask: scores.mask,
        };
        let numbers = heads * length;
        let operation = self.draft.add(Kind::Attend(Box::new(attention)), numbers);
        let mut axes: Vec<Axis> = leading
            .iter()
            .map(|axis| {
                let wide = axis.iter().map(|atom| match *atom {
                    Atom::Inner { size, stride } => Atom::Inner {
                        size,
                        stride: stride * length,
                    },
                    atom => atom,
                });
                wide.collect()
            })
            .collect();
        axes.push(vec![Atom::Row]);
        axes.push(joined([Atom::Inner {
            size: length,
            stride: 1,
        }]));
        Ok(Value::Rows(Rows {
            operation,
            layout: Layout { axes, first: 0 },
            scale: 1.0,
            sole: true,
            joined: None,
        }))
    }

    /// The table of `by` among the constants, for `heads` heads.
    fn distances(&mut self, by: &ByDistance, heads: usize) -> Option<Distances> {
        let width = by.before + 1 + by.after;
        let table = match by.table.len() / width {
            1 => by.table.repeat(heads),
            count if count == heads => by.table.clone(),
            _ => return None,
        };
        Some(Distances {
            first: self.draft.constant(&table),
            before: by.before,
            after: by.after,
        })
    }

    /// Keeps the keys and values of a site for tokens of another text; the operation that does.
    pub(super) fn keep(&mut self, index: usize) -> Result<usize, Refused> {
        let base = self.base;
        let site = &base.description.sites[index];
        let (kv_heads, head_dim) = (site.kv_heads, site.head_dim);
        let mut halves = Vec::new();
        for joint in [&site.key, &site.value] {
            let refused = |reason: &str| Refused::value(&joint.value, reason);
            let mut rows = self.rows_named(&joint.value)?;
            if joint.layout == JointLayout::TokensFirst {
                rows.layout.axes.swap(1, 2);
            }
            if rows.scale != 1.0 || rows.joined.is_some() {
                return Err(refused("is no product of the text alone"));
            }
            let heads = split(rows, &[1, kv_heads]);
            let heads = heads.ok_or_else(|| refused("has keys of no heads"))?;
            let (count, step) = heads
                .shared(kv_heads)
                .ok_or_else(|| refused("takes its heads in another order"))?;
            if (count, heads.length) != (kv_heads, head_dim) {
                return Err(refused("has other heads than its attention"));
            }
            halves.push((heads.part(), step));
        }
        let [key, value] = halves[..] else {
            unreachable!("keys and values are two")
        };
        let kept = Kept {
            layer: index,
            kv_heads,
            head_dim,
            from: [key, value],
        };
        Ok(self.draft.add(Kind::Keep(kept), 0))
    }

    /// Whether a prefix that joins `site` stands beside just these keys and values.
    fn joins_there(
        &self,
        node: &NodeProto,
        index: usize,
        scores: &Scores,
        values: &Heads,
    ) -> Result<(), Refused> {
        let site = &self.base.description.sites[index];
        let crosses = site.direction == Direction::Cross;
        let refused = |reason: &str| Refused::node(node, reason);
        if values.rows.scale != 1.0 {
            return Err(refused("mixes values that are scaled"));
        }
        for (heads, joint, is_key) in [
            (&scores.keys, &site.key, true),
            (values, &site.value, false),
        ] {
            match (&site.past, heads.rows.joined) {
                (Some(_), Some(found)) if found == (index, is_key) => {}
                (None, Some(found)) if crosses && found == (index, is_key) => {}
                (None, None) => {
                    let Some(Value::Rows(there)) = self.values.get(&joint.value) else {
                        return Err(refused("reads keys that no prefix joins"));
                    };
                    if there.operation != heads.rows.operation || there.scale != 1.0 {
                        return Err(refused("changes keys behind the prefix"));
                    }
                }
                _ => return Err(refused("reads another cache")),
            }
        }
        Ok(())
    }
}

impl Heads {
    fn part(&self) -> Part {
        Part {
            operation: self.rows.operation,
            first: self.rows.layout.first,
        }
    }

    /// Heads of its own and the numbers from one to the next, where each serves as many neighbours of `heads`.
    fn shared(&self, heads: usize) -> Option<(usize, usize)> {
        match self.heads[..] {
            [] => Some((1, 0)),
            [Atom::Inner { size, stride: 0 }] if size == heads => Some((1, 0)),
            [Atom::Inner { size, stride }] if size == heads => Some((size, stride)),
            [
                Atom::Inner { size, stride },
                Atom::Inner {
                    size: shared,
                    stride: 0,
                },
            ] if size * shared == heads => Some((size, stride)),
            _ => None,
        }
    }
}

/// `rows`, `[heads ..., tokens, length]`, by head; `dims` are the sizes of the heads' dimensions.
fn split(rows: Rows, dims: &[usize]) -> Option<Heads> {
    let [leading @ .., tokens, numbers] = &rows.layout.axes[..] else {
        return None;
    };
    let own = match rows.joined {
        None => Atom::Row,
        Some(_) => Atom::Key,
    };
    if tokens[..] != [own] {
        return None;
    }
    let length = match numbers[..] {
        [Atom::Inner { size, stride: 1 }] => size,
        [] => 1,
        _ => return None,
    };
    let missing = dims.len().checked_sub(leading.len())?;
    let mut atoms = Vec::new();
    for (place, &dim) in dims.iter().enumerate() {
        let axis = place.checked_sub(missing).map(|place| &leading[place]);
        match axis {
            Some(axis) if !axis.is_empty() => atoms.extend(axis.iter().copied()),
            _ => atoms.push(Atom::Inner {
                size: dim,
                stride: 0,
            }),
        }
    }
    let heads = joined(atoms);
    let inner = |atom: &Atom| matches!(atom, Atom::Inner { .. });
    heads.iter().all(inner).then_some(Heads {
        rows,
        heads,
        length,
    })
}

/// What both masks leave.
fn narrower(one: Mask, other: Mask) -> Mask {
    let least = |one: Option<usize>, other: Option<usize>| match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    };
    Mask {
        before: least(one.before, other.before),
        after: least(one.after, other.after),
    }
}
