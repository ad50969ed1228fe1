//! Lowering a base to the executor's steps.
//!
//! The graph is walked once. What depends on the number of tokens alone is computed ([`statics`]); reshapes and
//! transposes become layouts ([`layout`]); what is left are operations on rows, products with weights and attentions
//! ([`draft`]), which [`schedule`] puts in order. A node that is none of these ends the lowering with its name.

mod attention;
mod distances;
pub(crate) mod draft;
mod layout;
mod moves;
mod pack;
mod products;
mod rows;
mod schedule;
mod statics;
mod walk;

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use preface_graph::{
    Base, Halves,
    attention::{Direction, Joint},
    facts::Facts,
    onnx::{GraphProto, NodeProto, ValueInfoProto, data_type},
    splice,
    wiring::Wiring,
};

use super::executor::program::Program;
use attention::Scores;
use draft::{Draft, Matrix};
use layout::{Layout, Tokens};
pub(crate) use pack::unstorable;
use statics::{Statics, most_rows, shape_sizes, shapes};
use walk::layout_numbers;

/// A lowered base.
#[derive(Debug)]
pub(crate) struct Lowering {
    pub program: Program,
    pub constants: Vec<f32>,
    pub weights: Vec<(Matrix, Vec<f32>)>,
}

/// Why a base does not lower.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl Refused {
    fn value(name: &str, reason: &str) -> Self {
        Self(format!("value {name} {reason}"))
    }

    fn node(node: &NodeProto, reason: &str) -> Self {
        let (label, operator) = (node.label(), node.operator());
        Self(format!("node {label} ({operator}) {reason}"))
    }
}

/// A value that depends on the text.
#[derive(Clone, Debug)]
enum Value {
    Rows(Rows),
    /// Keys or values of a cache: those of a site.
    Past {
        site: usize,
        keys: bool,
    },
    /// Scores of queries against keys, or the weights that they become.
    Scores(Box<Scores>),
    /// Something that only tells whether scores are numbers.
    Ignored,
    /// No number at all.
    Empty,
    Types,
}

/// Numbers of an operation's rows.
#[derive(Clone, Debug)]
struct Rows {
    operation: usize,
    layout: Layout,
    /// What they are still to be multiplied by.
    scale: f32,
    /// Whether nobody else reads the operation.
    sole: bool,
    /// Whether the rows of a cache stand before them.
    joined: Option<(usize, bool)>,
}

struct Walk<'a> {
    base: &'a Base,
    wiring: &'a Wiring<'a>,
    /// Whether what stands behind the hidden rows is walked.
    in_logits: bool,
    statics: Statics<'a>,
    facts: Facts,
    draft: Draft,
    values: HashMap<String, Value>,
    counted: Option<bool>,
    /// The sizes of the first of the shapes in `facts`.
    tokens: Tokens,
}

/// Lowers `base`, with tables of as many positions as it has, or as can be found out.
///
/// # Errors
/// The node or value that stops it.
pub(crate) fn lower(base: &Base) -> Result<Lowering, Refused> {
    match base.description.kind {
        preface_graph::Kind::EncoderDecoder => {
            let halves = base.halves().map_err(failed)?;
            lower_halving(base, |rows| lower_halves(&halves, rows))
        }
        _ => lower_halving(base, |rows| lower_for(base, rows)),
    }
}

/// Lowers by `lower` for as many positions as `base` has, or fewer where they are not known.
fn lower_halving(
    base: &Base,
    lower: impl Fn(usize) -> Result<Lowering, Refused>,
) -> Result<Lowering, Refused> {
    let most = most_rows(base);
    let known = base.description.max_positions.is_some();
    let least = if known { most } else { FEWEST_ROWS };
    let lowered = lower(most);
    let halves = std::iter::successors(Some(most / 2), |rows| Some(rows / 2));
    let mut halves = halves.take_while(|&rows| rows >= least);
    match lowered {
        Err(refused) => halves.find_map(|rows| lower(rows).ok()).ok_or(refused),
        lowered => lowered,
    }
}

/// Tables shorter than this are not tried.
const FEWEST_ROWS: usize = 64;

/// Lowers `base` for texts of at most `rows` tokens.
fn lower_for(base: &Base, rows: usize) -> Result<Lowering, Refused> {
    lower_decoding(base, rows, Draft::default(), Vec::new())
}

/// Lowers the halves of an encoder-decoder for texts of at most `rows` tokens on either side.
fn lower_halves(halves: &Halves, rows: usize) -> Result<Lowering, Refused> {
    let base = &halves.encoder;
    let graph = base.model.graph.as_ref();
    let graph = cut(base, graph.map_or(Vec::new(), |graph| graph.output.clone()))?;
    let (encoder, weights, draft) =
        walked(base, &graph, rows, Draft::default(), |mut walk, nodes| {
            nodes.into_iter().try_for_each(|node| walk.node(node))?;
            let sites = base.description.sites.iter().enumerate();
            let looked_at = sites.filter(|(_, site)| site.direction == Direction::Cross);
            let kept = looked_at.map(|(site, _)| walk.keep(site));
            let kept = kept.collect::<Result<Vec<_>, _>>()?;
            let encoder = schedule::encoder(&walk.draft, &kept, walk.statics.padding);
            let weights = walk.weights(Vec::new())?;
            Ok((encoder, weights, walk.draft.without_operations()))
        })?;
    let mut lowering = lower_decoding(&halves.decoder, rows, draft, weights)?;
    lowering.program.encoder = Some(encoder);
    Ok(lowering)
}

/// Lowers what makes hidden rows and logits; `draft` and `weights` are of what is lowered before.
fn lower_decoding(
    base: &Base,
    rows: usize,
    draft: Draft,
    weights: Vec<(Matrix, Vec<f32>)>,
) -> Result<Lowering, Refused> {
    let graph = cut(base, made(base))?;
    walked(base, &graph, rows, draft, |mut walk, nodes| {
        let needed = needed(&graph, &base.description.hidden_rows);
        let is_needed =
            |node: &&NodeProto| node.output.iter().any(|output| needed.contains(&**output));
        let (body, behind): (Vec<_>, Vec<_>) = nodes.into_iter().partition(is_needed);
        body.into_iter().try_for_each(|node| walk.node(node))?;
        let output = walk.hidden_rows()?;
        let logits = walk.logits(&behind, output);
        walk.finish(output, logits, weights)
    })
}

/// Lets `lower` walk `graph`: it is given the nodes that read the text, in their order.
fn walked<T>(
    base: &Base,
    graph: &GraphProto,
    rows: usize,
    draft: Draft,
    lower: impl FnOnce(Walk<'_>, Vec<&NodeProto>) -> Result<T, Refused>,
) -> Result<T, Refused> {
    let wiring = Wiring::of(graph);
    let dynamic = dynamic(base, graph);
    let few = || Refused("the base has too few positions to tell tokens from widths".into());
    let sizes = shape_sizes(base, rows).ok_or_else(few)?;
    let tokens = Tokens {
        rows: sizes[0].0 as usize,
        keys: match base.description.inputs.past.is_empty() {
            true => sizes[0].0 as usize,
            false => (sizes[0].0 + sizes[0].1) as usize,
        },
    };
    let sizes = sizes.map(|size| shapes(base, &wiring, size));
    let mut walk = Walk {
        base,
        wiring: &wiring,
        in_logits: false,
        statics: Statics::new(base, graph, &wiring, &dynamic, rows),
        facts: Facts::of(graph, &sizes),
        draft,
        values: HashMap::new(),
        counted: None,
        tokens,
    };
    walk.begin();
    let reads_text = |node: &&NodeProto| {
        let reads = node.input.iter().any(|input| dynamic.contains(input));
        reads && node.op_type() != "Shape"
    };
    let nodes = graph.node.iter().filter(reads_text).collect();
    lower(walk, nodes)
}

/// Keys and values of an encoder that `graph` takes as inputs: the site, and whether they are keys.
fn encoded<'a>(
    base: &'a Base,
    graph: &'a GraphProto,
) -> impl Iterator<Item = (&'a Joint, usize, bool)> {
    let sites = base.description.sites.iter().enumerate();
    let sites = sites.filter(|(_, site)| site.direction == Direction::Cross);
    let joints =
        sites.flat_map(|(index, site)| [(&site.key, index, true), (&site.value, index, false)]);
    joints.filter(|(joint, ..)| graph.input.iter().any(|input| input.name() == joint.value))
}

/// The values that `name` is made of, itself among them.
fn needed<'a>(graph: &'a GraphProto, name: &'a str) -> HashSet<&'a str> {
    let mut needed = HashSet::from([name]);
    for node in graph.node.iter().rev() {
        if node.output.iter().any(|output| needed.contains(&**output)) {
            needed.extend(node.input.iter().map(String::as_str));
        }
    }
    needed
}

/// The graph from embedding rows to `outputs`.
fn cut(base: &Base, outputs: Vec<ValueInfoProto>) -> Result<GraphProto, Refused> {
    let description = &base.description;
    let mut graph = base.model.graph.clone().unwrap_or_default();
    splice::cut_embedding(&mut graph, description).map_err(failed)?;
    splice::prune(&mut graph, outputs);
    let rows = rows_of(&description.embedding_rows, description.embedding_width);
    graph.input.push(rows);
    Ok(graph)
}

fn failed(error: preface_graph::Error) -> Refused {
    Refused(error.to_string())
}

/// A value `[1, sequence, width]`.
fn rows_of(name: &str, width: usize) -> ValueInfoProto {
    let width = width.to_string();
    ValueInfoProto::tensor(name, data_type::FLOAT, &["1", "sequence", &width])
}

/// The hidden rows, and the logits where the base has them.
fn made(base: &Base) -> Vec<ValueInfoProto> {
    let description = &base.description;
    let logits = description.logits.iter().map(|logits| {
        let vocabulary = logits.vocabulary.to_string();
        let dims = ["1", "sequence", &vocabulary];
        ValueInfoProto::tensor(&logits.value, data_type::FLOAT, &dims)
    });
    let hidden_rows = rows_of(&description.hidden_rows, description.hidden);
    [hidden_rows].into_iter().chain(logits).collect()
}

/// The values that depend on the text, by name.
fn dynamic(base: &Base, graph: &GraphProto) -> HashSet<String> {
    let inputs = &base.description.inputs;
    let mut dynamic: HashSet<String> = inputs.past.iter().cloned().collect();
    dynamic.insert(base.description.embedding_rows.clone());
    dynamic.extend(inputs.token_types.clone());
    dynamic.extend(encoded(base, graph).map(|(joint, ..)| joint.value.clone()));
    for node in &graph.node {
        if node.op_type() != "Shape" && node.input.iter().any(|input| dynamic.contains(input)) {
            dynamic.extend(node.output.iter().cloned());
        }
    }
    dynamic
}
