//! The attention sites of a graph: where keys, values and masks of each layer can be extended.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::{
    Error,
    facts::{Fact, Facts},
    inputs::Size,
    onnx::{NodeProto, data_type},
    wiring::Wiring,
};

/// How keys or values lie at the place where a prefix joins them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// `[batch, kv_heads, tokens, head_dim]`.
    HeadsFirst,
    /// `[batch, tokens, kv_heads, head_dim]`.
    TokensFirst,
}

impl Layout {
    /// The dimension that counts tokens.
    pub fn token_axis(self) -> i64 {
        match self {
            Self::HeadsFirst => 2,
            Self::TokensFirst => 1,
        }
    }
}

/// A value that a prefix joins, with its layout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joint {
    /// The value's name.
    pub value: String,
    /// How it lies.
    pub layout: Layout,
}

/// An operand that covers every key and grows with the prefix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MaskOperand {
    /// The node that reads it: its first output.
    pub node: String,
    /// Which input of that node.
    pub input: usize,
    /// What stands for "visible": 0 added to scores, or the truth value that keeps them.
    pub visible: f64,
}

/// Which tokens ask and which are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// An encoder's tokens among themselves.
    Encoder,
    /// A decoder's tokens among themselves.
    Decoder,
    /// A decoder's tokens to the encoder's.
    Cross,
}

/// One attention: `softmax(Q K^T + mask) V`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Site {
    /// The Softmax node.
    pub node: String,
    /// Heads of the keys and values; fewer than the queries' with grouped queries.
    pub kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Which tokens take part.
    pub direction: Direction,
    /// The keys.
    pub key: Joint,
    /// The values.
    pub value: Joint,
    /// The masks that cover the keys.
    pub masks: Vec<MaskOperand>,
    /// Names of the cached keys and values, where the graph takes them as inputs.
    pub past: Option<(String, String)>,
}

/// Nodes between the product of queries and keys and the Softmax.
const SCORE_PATH: &[&str] = &[
    "Add",
    "Where",
    "Mul",
    "Div",
    "Cast",
    "Identity",
    "Tanh",
    "Max",
    "Clip",
    "Sub",
    "QuantizeLinear",
    "DequantizeLinear",
];

/// Nodes between the Softmax and the product with the values.
const WEIGHT_PATH: &[&str] = &[
    "Where",
    "Cast",
    "Identity",
    "Dropout",
    "QuantizeLinear",
    "DequantizeLinear",
];

/// Scores that are rounded in longer steps weigh one token alone, or all alike.
const COARSEST_STEP: f64 = 16.0;

/// Finds every attention site, in the order of the graph.
///
/// # Errors
/// When a Softmax looks like an attention whose keys, values or mask cannot be extended.
pub(crate) fn sites(
    wiring: &Wiring,
    facts: &Facts,
    past: &[String],
    sizes: &[Size],
) -> Result<Vec<Site>, Error> {
    let finder = Finder {
        wiring,
        facts,
        past,
        sizes,
    };
    let softmaxes = wiring
        .graph
        .node
        .iter()
        .filter(|node| node.op_type() == "Softmax");
    let mut sites = Vec::new();
    for softmax in softmaxes {
        match finder.site(softmax)? {
            Some(site) => sites.push(site),
            None if finder.covers_tokens(softmax) => {
                return Err(Error::at(
                    softmax,
                    "weighs tokens, but not between a product of queries with keys and one with values; \
                     no such attention can take a prefix",
                ));
            }
            None => {}
        }
    }
    Ok(sites)
}

/// Checks that scores still tell tokens apart behind what rounds them on their `path`.
fn tell_apart(wiring: &Wiring, path: &[(&NodeProto, usize)]) -> Result<(), Error> {
    let rounding = path
        .iter()
        .filter(|(node, _)| node.op_type() == "QuantizeLinear");
    for (node, _) in rounding {
        let scale = node.input(1).and_then(|name| wiring.initializer(name));
        match scale.and_then(|scale| scale.numbers(1)).as_deref() {
            Some(&[step]) if step > COARSEST_STEP => {
                return Err(Error::at(
                    node,
                    format!(
                        "rounds attention scores in steps of {step:.1e}, which no two tokens differ by: the mask was quantised with \
                         them; quantise without the sum of scores and mask (nodes_to_exclude), or the weights alone"
                    ),
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

struct Finder<'a> {
    wiring: &'a Wiring<'a>,
    facts: &'a Facts,
    past: &'a [String],
    sizes: &'a [Size],
}

impl<'a> Finder<'a> {
    fn site(&self, softmax: &'a NodeProto) -> Result<Option<Site>, Error> {
        let mut path = Vec::new();
        let scores = softmax
            .input(0)
            .and_then(|value| self.scores(value, &mut path));
        let weighted = self.weighted(&softmax.output[0]);
        let (Some(scores), Some(weighted)) = (scores, weighted) else {
            return Ok(None);
        };
        tell_apart(self.wiring, &path)?;
        let rank = self.facts.get(&softmax.output[0]).map_or(0, Fact::rank) as i64;
        if ![-1, rank - 1].contains(&softmax.int("axis", -1)) {
            return Err(Error::at(
                softmax,
                "weighs along another axis than the keys",
            ));
        }
        let (key, value) = (self.joint(scores, 1)?, self.joint(weighted, 1)?);
        let (kv_heads, head_dim) = self.geometry(&value.0, weighted)?;
        if self.geometry(&key.0, scores)? != (kv_heads, head_dim) {
            return Err(Error::at(
                softmax,
                "weighs values of another size than the keys; a prefix has one size for both",
            ));
        }
        Ok(Some(Site {
            node: softmax.label().to_owned(),
            kv_heads,
            head_dim,
            direction: Direction::Encoder,
            masks: self.masks(&path)?,
            past: key.1.zip(value.1),
            key: key.0,
            value: value.0,
        }))
    }

    /// Whether the weights of `softmax` are as many as there are tokens.
    fn covers_tokens(&self, softmax: &NodeProto) -> bool {
        let fact = self.facts.get(&softmax.output[0]);
        fact.is_some_and(|fact| fact.rank() >= 3 && fact.constant_dim(fact.rank() - 1).is_none())
    }

    /// The product of queries and keys above `value`, noting the nodes on the way (nearest to the Softmax first).
    fn scores(
        &self,
        value: &'a str,
        path: &mut Vec<(&'a NodeProto, usize)>,
    ) -> Option<&'a NodeProto> {
        let node = self.wiring.producer(value)?;
        if node.op_type() == "MatMul" {
            let free = |index| {
                node.input(index)
                    .is_some_and(|name| self.wiring.initializer(name).is_none())
            };
            return (free(0) && free(1) && self.facts.get(value)?.rank() >= 3).then_some(node);
        }
        if path.len() > 12 {
            return None;
        }
        if node.op_type() == "Reshape" {
            return self.scores(self.merged(node)?, path);
        }
        if !SCORE_PATH.contains(&node.op_type()) {
            return None;
        }
        let depth = path.len();
        for (index, input) in node.input.iter().enumerate() {
            path.push((node, index));
            if let Some(found) = self.scores(input, path) {
                return Some(found);
            }
            path.truncate(depth);
        }
        None
    }

    fn weighted(&self, value: &'a str) -> Option<&'a NodeProto> {
        self.wiring
            .consumers(value)
            .find_map(|node| match node.op_type() {
                "MatMul" => (node.input(0) == Some(value)).then_some(node),
                operator if WEIGHT_PATH.contains(&operator) => self.weighted(&node.output[0]),
                "Reshape" => self
                    .merged(node)
                    .and_then(|_| self.weighted(&node.output[0])),
                _ => None,
            })
    }

    /// Where a prefix joins operand `input` of `product`, and the cache that joins it there already.
    fn joint(
        &self,
        product: &'a NodeProto,
        input: usize,
    ) -> Result<(Joint, Option<String>), Error> {
        let mut value = product.input(input).unwrap_or_default();
        let mut shapes = Vec::new();
        while let Some(node) = self.wiring.producer(value) {
            match node.op_type() {
                "Concat" => {
                    if let Some(past) = node.input.iter().find_map(|name| self.cache(name)) {
                        let joint = self.heads_first(node, value)?;
                        return Ok((joint, Some(past.to_owned())));
                    }
                    break;
                }
                "Mul" | "Div" => match self.scaled(node) {
                    Some(input) => value = input,
                    None => break,
                },
                "Transpose" => match node.ints("perm") {
                    Some([0, 1, 3, 2] | [0, 2, 1]) => value = node.input(0).unwrap_or_default(),
                    Some([0, 2, 3, 1]) => {
                        let value = node.input(0).unwrap_or_default().to_owned();
                        let layout = Layout::TokensFirst;
                        return Ok((Joint { value, layout }, None));
                    }
                    Some([0, 2, 1, 3]) if self.sized_before(node, &shapes) => {
                        let value = node.input(0).unwrap_or_default().to_owned();
                        let layout = Layout::TokensFirst;
                        return Ok((Joint { value, layout }, None));
                    }
                    _ => break,
                },
                "Reshape" => match self.repeated(node) {
                    Some(input) => {
                        shapes.extend(node.input(1));
                        value = input;
                    }
                    None => break,
                },
                "Cast" | "Identity" | "QuantizeLinear" | "DequantizeLinear" => {
                    value = node.input(0).unwrap_or_default();
                }
                _ => break,
            }
        }
        Ok((self.heads_first(product, value)?, None))
    }

    /// Whether one of `shapes` counts the tokens of what `transpose` reads, and not of what it makes: what a prefix joins
    /// behind it would not be counted.
    fn sized_before(&self, transpose: &'a NodeProto, shapes: &[&'a str]) -> bool {
        let mut seen = HashSet::from([transpose.output[0].as_str()]);
        let mut open = shapes.to_vec();
        while let Some(value) = open.pop() {
            if transpose.input(0) == Some(value) {
                return true;
            }
            if seen.insert(value) {
                let node = self.wiring.producer(value).into_iter();
                open.extend(node.flat_map(|node| &node.input).map(String::as_str));
            }
        }
        false
    }

    /// The cache that `value` is, as it comes in: floats of 16 bits are 32 wide by now, and a cast to them changes nothing.
    fn cache(&self, value: &'a str) -> Option<&'a str> {
        let mut value = value;
        while let Some(node) = self.wiring.producer(value) {
            let same = match node.op_type() {
                "Concat" => node.input.len() == 1,
                "Cast" => node.int("to", 0) == i64::from(data_type::FLOAT),
                operator => operator == "Identity",
            };
            value = node.input(0).filter(|_| same)?;
        }
        self.past.iter().any(|past| past == value).then_some(value)
    }

    /// The other operand of a multiplication or division by one number.
    fn scaled(&self, node: &'a NodeProto) -> Option<&'a str> {
        let single = |index: usize| {
            let fact = self.facts.get(node.input(index)?)?;
            fact.shapes
                .iter()
                .all(|shape| shape.iter().product::<i64>() == 1)
                .then_some(())
        };
        match (single(0), single(1)) {
            (_, Some(())) => node.input(0),
            (Some(()), None) if node.op_type() == "Mul" => node.input(1),
            _ => None,
        }
    }

    /// The keys before they are repeated for grouped queries: `Unsqueeze`, `Expand`, `Reshape`.
    fn repeated(&self, reshape: &'a NodeProto) -> Option<&'a str> {
        let above = |value: &'a str, operator: &str| {
            self.wiring
                .producer(value)
                .filter(|node| node.op_type() == operator)
        };
        let unsqueeze = match above(reshape.input(0)?, "Expand") {
            Some(expand) => above(expand.input(0)?, "Unsqueeze")?,
            None => return self.merged(reshape),
        };
        unsqueeze.input(0)
    }

    /// What a Reshape reads that merges batch and heads into one dimension, or takes them apart again.
    fn merged(&self, reshape: &'a NodeProto) -> Option<&'a str> {
        let input = reshape.input(0)?;
        let (from, to) = (self.facts.get(input)?, self.facts.get(&reshape.output[0])?);
        let same_tail = |(from, to): (&Vec<i64>, &Vec<i64>)| {
            let ranks = (from.len(), to.len());
            matches!(ranks, (4, 3) | (3, 4)) && from[from.len() - 2..] == to[to.len() - 2..]
        };
        from.shapes
            .iter()
            .zip(&to.shapes)
            .all(same_tail)
            .then_some(input)
    }

    fn heads_first(&self, node: &NodeProto, value: &str) -> Result<Joint, Error> {
        let fact = self.facts.get(value);
        let fits = fact.is_some_and(|fact| {
            let shapes = fact.shapes.iter().zip(self.sizes);
            fact.rank() == 4
                && fact.constant_dim(1).is_some()
                && shapes.clone().all(|(shape, size)| shape[0] == size.batch)
        });
        if fits {
            let layout = Layout::HeadsFirst;
            return Ok(Joint {
                value: value.to_owned(),
                layout,
            });
        }
        Err(Error::at(
            node,
            format!("keys or values {value} are not [batch, kv_heads, tokens, head_dim]"),
        ))
    }

    fn geometry(&self, joint: &Joint, node: &NodeProto) -> Result<(usize, usize), Error> {
        let heads_axis = if joint.layout == Layout::HeadsFirst {
            1
        } else {
            2
        };
        let dim = |axis| {
            let dim = self.facts.get(&joint.value)?.constant_dim(axis)?;
            usize::try_from(dim).ok()
        };
        dim(heads_axis)
            .zip(dim(3))
            .ok_or_else(|| Error::at(node, "the number of heads or their size is not constant"))
    }

    /// The operands on the score path that are as wide as the keys.
    fn masks(&self, path: &[(&'a NodeProto, usize)]) -> Result<Vec<MaskOperand>, Error> {
        let mut masks = Vec::new();
        for &(node, own) in path {
            for (input, name) in node
                .input
                .iter()
                .enumerate()
                .filter(|&(input, _)| input != own)
            {
                let Some(fact) = self.facts.get(name) else {
                    return Err(Error::at(node, format!("the shape of {name} is not known")));
                };
                if fact.rank() == 0 || fact.constant_dim(fact.rank() - 1) == Some(1) {
                    continue;
                }
                let visible = match (node.op_type(), input, own) {
                    ("Add", _, _) => 0.0,
                    ("Where", 0, 1) => 1.0,
                    ("Where", 0, 2) => 0.0,
                    _ => {
                        return Err(Error::at(
                            node,
                            "changes the attention scores in a way that a prefix cannot follow",
                        ));
                    }
                };
                let node = node.output[0].clone();
                masks.push(MaskOperand {
                    node,
                    input,
                    visible,
                });
            }
        }
        Ok(masks)
    }
}

#[cfg(test)]
mod tests;
