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
mod products;
mod rows;
mod schedule;
mod statics;

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use preface_graph::{
    Base, Halves,
    attention::{Direction, Joint, Layout as JointLayout},
    facts::{Fact, Facts},
    onnx::{GraphProto, NodeProto, ValueInfoProto, data_type},
    splice,
    wiring::Wiring,
};

use super::executor::{
    dots,
    kernels::kernels_for_weights,
    program::{Logits, Program, Step},
};
use crate::{
    Error, Weights,
    image::{Packed, Span},
};
use attention::Scores;
use draft::{Draft, Kind, Matrix, Part};
use layout::{Atom, Layout, Tokens};
use statics::{Statics, most_rows, shape_sizes, shapes};

/// A lowered base.
#[derive(Debug)]
pub(crate) struct Lowering {
    pub program: Program,
    pub constants: Vec<f32>,
    pub weights: Vec<(Matrix, Vec<f32>)>,
}

impl Lowering {
    /// Packs every weight for this machine's kernels and hands its panels to `store`, which says where it put them.
    ///
    /// # Errors
    /// When no kernel suits, numbers cannot be stored as `weights`, or `store` fails.
    pub fn pack(
        &self,
        weights: Weights,
        decodes: bool,
        mut store: impl FnMut(&[u8]) -> Result<Span, Error>,
    ) -> Result<Vec<Packed>, Error> {
        let (kernels, format) = kernels_for_weights(decodes).ok_or_else(|| Error::Compile {
            reason: "this machine has no kernel for 32-bit floats".into(),
        })?;
        let packed = self.weights.iter().enumerate();
        let packed = packed.map(|(index, (matrix, numbers))| {
            let Matrix {
                inputs, outputs, ..
            } = *matrix;
            let weights = match weights {
                Weights::I8A8 if self.scores(index) => Weights::I8,
                weights => weights,
            };
            let (kernels, r) = match weights {
                Weights::I8A8 => (vec![dots::NAME.to_owned()], dots::OUTPUTS),
                _ => (kernels.clone(), format.r),
            };
            if weights != Weights::F32 && weights.panel_bytes(inputs, r).is_none() {
                return Err(unstorable(&matrix.name, weights));
            }
            let length = match weights {
                Weights::F32 => format.single_panel_len(inputs),
                _ => inputs * r,
            };
            let panels = panels(matrix, numbers, r, length);
            let encoded = weights.encode(&panels, length, r);
            let encoded = encoded.ok_or_else(|| unstorable(&matrix.name, weights))?;
            Ok(Packed {
                name: matrix.name.clone(),
                kernels,
                dtype: weights,
                r,
                alignment: format.alignment_bytes,
                end_padding: format.end_padding_record,
                k: inputs,
                mn: outputs,
                panel_bytes: encoded.len() / outputs.div_ceil(r).max(1),
                span: store(&encoded)?,
            })
        });
        packed.collect()
    }

    /// Whether the weight `index` makes scores of the vocabulary.
    fn scores(&self, index: usize) -> bool {
        let mut steps = self.program.logits.iter().flat_map(|logits| &logits.steps);
        steps.any(|step| matches!(step, Step::Product(product) if product.weight == index))
    }

    /// The constants as an image holds them.
    pub fn constants(&self) -> Vec<u8> {
        let constants = self.constants.iter();
        constants.flat_map(|number| number.to_le_bytes()).collect()
    }
}

/// What is wrong with a tensor that has a number which `weights` cannot store.
pub(crate) fn unstorable(name: &str, weights: Weights) -> Error {
    Error::Compile {
        reason: format!(
            "{name} has numbers that {weights} does not hold; compile it with other --weights"
        ),
    }
}

/// `matrix` in panels of `r` outputs, each panel `length` numbers long: the outputs of an input are neighbours.
fn panels(matrix: &Matrix, numbers: &[f32], r: usize, length: usize) -> Vec<f32> {
    let mut panels = vec![0.0f32; length * matrix.outputs.div_ceil(r)];
    for input in 0..matrix.inputs {
        for output in 0..matrix.outputs {
            let at = match matrix.turned {
                true => output * matrix.inputs + input,
                false => input * matrix.outputs + output,
            };
            panels[output / r * length + input * r + output % r] = numbers[at];
        }
    }
    panels
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

impl Walk<'_> {
    /// The values before the first node.
    fn begin(&mut self) {
        let description = &self.base.description;
        let width = description.embedding_width;
        let operation = self.draft.add(Kind::Rows, width);
        let rows = Rows {
            operation,
            layout: Layout::plain(&[Some(1), None, Some(width)]),
            scale: 1.0,
            sole: false,
            joined: None,
        };
        self.values
            .insert(description.embedding_rows.clone(), Value::Rows(rows));
        if let Some(types) = &description.inputs.token_types {
            self.values.insert(types.clone(), Value::Types);
        }
        for (site, geometry) in description.sites.iter().enumerate() {
            if let Some((key, value)) = &geometry.past {
                for (name, keys) in [(key, true), (value, false)] {
                    self.values.insert(name.clone(), Value::Past { site, keys });
                }
            }
        }
        for (joint, site, keys) in encoded(self.base, self.wiring.graph) {
            let geometry = &description.sites[site];
            let (heads, length) = (geometry.kv_heads, geometry.head_dim);
            let mut layout = Layout::plain(&[Some(1), None, Some(heads), Some(length)]);
            layout.axes[1] = vec![Atom::Key];
            if joint.layout == JointLayout::HeadsFirst {
                layout.axes.swap(1, 2);
            }
            let rows = Rows {
                operation,
                layout,
                scale: 1.0,
                sole: false,
                joined: Some((site, keys)),
            };
            self.values.insert(joint.value.clone(), Value::Rows(rows));
        }
    }

    /// The hidden rows as a whole operation.
    fn hidden_rows(&mut self) -> Result<Part, Refused> {
        let name = self.base.description.hidden_rows.clone();
        let rows = self.rows_named(&name)?;
        let output = self.run(&rows)?;
        let hidden = self.base.description.hidden;
        let output = match self.draft.operations[output.operation].numbers == hidden {
            true => output,
            false => self.copied(&rows),
        };
        let rows = Rows {
            operation: output.operation,
            layout: self.plain(&self.dims(&name)?),
            scale: 1.0,
            sole: false,
            joined: None,
        };
        self.values.insert(name, Value::Rows(rows));
        Ok(output)
    }

    /// The steps behind the hidden rows `from`, made by `nodes`; `None` where the base has no logits, or steps for a
    /// hidden row alone do not make them.
    fn logits(&mut self, nodes: &[&NodeProto], from: Part) -> Option<Logits> {
        let value = &self.base.description.logits.as_ref()?.value;
        let weights = self.draft.weights.len();
        self.in_logits = true;
        let lowered = nodes.iter().try_for_each(|node| self.node(node));
        let output = lowered.and_then(|()| self.run(&self.rows_named(value)?));
        let logits = output
            .ok()
            .and_then(|output| schedule::logits(&self.draft, from.operation, output));
        if logits.is_none() {
            self.draft.weights.truncate(weights);
        }
        logits
    }

    /// The numbers of the weights behind those that are `known`.
    fn weights(
        &mut self,
        mut known: Vec<(Matrix, Vec<f32>)>,
    ) -> Result<Vec<(Matrix, Vec<f32>)>, Refused> {
        for matrix in &self.draft.weights[known.len()..] {
            let numbers = self.statics.at(&matrix.name, statics::At::Short)?;
            known.push((matrix.clone(), numbers.values));
        }
        Ok(known)
    }

    fn finish(
        mut self,
        output: Part,
        logits: Option<Logits>,
        known: Vec<(Matrix, Vec<f32>)>,
    ) -> Result<Lowering, Refused> {
        let frame = schedule::Frame {
            output,
            max_rows: self.statics.rows,
            counted: self.counted.unwrap_or(false),
            caches: !self.base.description.inputs.past.is_empty(),
            padding: self.statics.padding,
            logits,
        };
        Ok(Lowering {
            program: schedule::program(&self.draft, frame),
            weights: self.weights(known)?,
            constants: self.draft.constants,
        })
    }

    fn fact(&self, name: &str) -> Result<&Fact, Refused> {
        let fact = self.facts.get(name);
        fact.ok_or_else(|| Refused::value(name, "has no known shape"))
    }

    /// The sizes of `name` at `tokens`.
    fn dims(&self, name: &str) -> Result<Vec<usize>, Refused> {
        let dims = self.fact(name)?.shapes[0].iter();
        Ok(dims.map(|&dim| usize::try_from(dim).unwrap_or(0)).collect())
    }

    /// Lowers one node.
    fn node(&mut self, node: &NodeProto) -> Result<(), Refused> {
        let value = match node.op_type() {
            "Split" => return self.split(node),
            "Identity" | "Dropout" => self.value(node, 0)?,
            "Cast" | "CastLike" => self.cast(node)?,
            "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Expand" | "Transpose" | "Slice" => {
                self.view(node)?
            }
            "Gather" => self.gather(node)?,
            "Concat" => self.concat(node)?,
            "MatMul" | "Gemm" => self.product(node)?,
            "Softmax" => self.softmax(node)?,
            "Where" => self.choice(node)?,
            "IsNaN" => match self.value(node, 0)? {
                Value::Scores(_) => Value::Ignored,
                _ => return Err(Refused::node(node, "is of something else than scores")),
            },
            "ReduceMean" | "ReduceSum" | "ReduceMax" => self.reduction(node)?,
            "LayerNormalization" | "RMSNormalization" => self.normalisation(node)?,
            _ => self.elementwise(node)?,
        };
        self.values.insert(node.output[0].clone(), value);
        Ok(())
    }

    /// The value of input `index`, with whether this node is its only reader.
    fn value(&self, node: &NodeProto, index: usize) -> Result<Value, Refused> {
        let name = node.input(index).unwrap_or_default();
        let value = self.values.get(name);
        let mut value = value
            .cloned()
            .ok_or_else(|| Refused::node(node, &format!("reads {name}, which is no row")))?;
        if let Value::Rows(rows) = &mut value {
            rows.sole &= self.wiring.consumers(name).count() == 1
                && name != self.base.description.hidden_rows;
        }
        Ok(value)
    }

    fn rows(&self, node: &NodeProto, index: usize) -> Result<Rows, Refused> {
        match self.value(node, index)? {
            Value::Rows(rows) => Ok(rows),
            _ => Err(Refused::node(node, "works on scores or a cache")),
        }
    }

    fn rows_named(&self, name: &str) -> Result<Rows, Refused> {
        match self.values.get(name) {
            Some(Value::Rows(rows)) => Ok(rows.clone()),
            _ => Err(Refused::value(name, "is no row")),
        }
    }

    fn is_dynamic(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    fn cast(&mut self, node: &NodeProto) -> Result<Value, Refused> {
        let value = self.value(node, 0)?;
        let float = self.fact(&node.output[0])?.data_type == data_type::FLOAT;
        match (&value, float) {
            (Value::Types | Value::Ignored, _) | (_, true) => Ok(value),
            _ => Err(Refused::node(node, "rounds to another type")),
        }
    }

    /// Neighbouring numbers in the order of `dims`, of which one counts the tokens.
    fn plain(&self, dims: &[usize]) -> Layout {
        let rows = self.tokens.rows;
        let dims = dims.iter().map(|&dim| (dim != rows).then_some(dim));
        Layout::plain(&dims.collect::<Vec<_>>())
    }

    /// Where the numbers of `rows` are neighbours, copied there where they are not.
    fn run(&mut self, rows: &Rows) -> Result<Part, Refused> {
        if rows.joined.is_some() || !rows.layout.is_rows() {
            return Err(Refused("a cache is read as rows".into()));
        }
        let numbers = layout_numbers(&rows.layout);
        match rows.scale == 1.0 && rows.layout.is_run(numbers) {
            true => Ok(Part {
                operation: rows.operation,
                first: rows.layout.first,
            }),
            false => Ok(self.copied(rows)),
        }
    }
}

/// Numbers of a row in a layout.
fn layout_numbers(layout: &Layout) -> usize {
    let atoms = layout.inner();
    let sizes = atoms.iter().map(|atom| match atom {
        layout::Atom::Inner { size, .. } => *size,
        _ => 1,
    });
    sizes.product()
}
