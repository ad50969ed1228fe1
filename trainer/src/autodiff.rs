//! Gradients: an ONNX graph in, an ONNX graph out.
//!
//! One [table](rules::RULES) holds a rule for every operator; [`backward`] walks the nodes between the wanted values
//! and the seeds once, from the last to the first, and lets each rule write the nodes of its gradient. Weights get no
//! gradient. A rule works on shapes that the walk knows from [`Facts`]; it returns gradients as broadcast as the
//! node's output, and the walk alone sums them back to the shape of the input.

mod gelu;
pub mod passes;
mod rules;
mod slices;

use std::collections::{HashMap, HashSet};

use preface_graph::{
    builder::{Attribute, Builder},
    facts::{Fact, Facts},
    onnx::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, data_type},
};

use self::passes::{PASSES, Pass};
use crate::Error;

pub use rules::RULES;

/// How a node passes gradients on.
pub enum Gradient {
    /// Not at all: shapes, comparisons, indices.
    Stops,
    /// By the nodes that this function writes.
    Flows(fn(&mut Call) -> Result<Vec<Part>, Error>),
}

/// One line of the table.
pub struct Rule {
    /// The operator, with its domain where that is not ONNX's own.
    pub operator: &'static str,
    /// The gradient.
    pub gradient: Gradient,
    /// Nodes that a test compares with central differences.
    pub checks: &'static [Check],
}

/// A node to compare with central differences.
pub struct Check {
    /// What the node reads.
    pub inputs: &'static [Operand],
    /// Its attributes.
    pub attributes: &'static [(&'static str, Setting)],
    /// The number of its outputs; all of them are differentiated.
    pub outputs: usize,
}

/// An input of a checked node.
#[derive(Clone, Copy, Debug)]
pub enum Operand {
    /// Floats of this shape, differentiated.
    Free(&'static [i64]),
    /// Positive floats of this shape, differentiated.
    Positive(&'static [i64]),
    /// Floats of this shape that are weights.
    Fixed(&'static [i64]),
    /// A constant float.
    Number(f32),
    /// A constant list of integers.
    Ints(&'static [i64]),
    /// Constant integers of a shape.
    Table(&'static [i64], &'static [i64]),
    /// Constant truth values of a shape.
    Truth(&'static [i64], &'static [bool]),
    /// Left out.
    Absent,
}

/// An attribute of a checked node.
#[derive(Clone, Copy, Debug)]
pub enum Setting {
    /// An integer.
    Int(i64),
    /// A float.
    Float(f32),
    /// A list of integers.
    Ints(&'static [i64]),
    /// Text.
    Text(&'static str),
}

/// A gradient that a rule found for one input.
pub struct Part {
    input: usize,
    gradient: String,
    spread: Spread,
}

/// How far a gradient is broadcast beyond its input.
enum Spread {
    /// Not at all.
    Exact,
    /// Over every dimension of the node's output.
    Elements,
    /// Over every dimension of the node's output but the last two.
    Matrices,
}

impl Part {
    /// A gradient with the shape of its input.
    pub fn exact(input: usize, gradient: String) -> Self {
        let spread = Spread::Exact;
        Self {
            input,
            gradient,
            spread,
        }
    }

    /// A gradient with the shape of the node's output.
    pub fn elements(input: usize, gradient: String) -> Self {
        let spread = Spread::Elements;
        Self {
            input,
            gradient,
            spread,
        }
    }

    /// A gradient whose matrices fit the input and whose other dimensions are those of the node's output.
    pub fn matrices(input: usize, gradient: String) -> Self {
        let spread = Spread::Matrices;
        Self {
            input,
            gradient,
            spread,
        }
    }
}

/// What a rule sees of its node, and the tools that it writes with.
pub struct Call<'a> {
    /// Writes the nodes of the gradient.
    pub builder: &'a mut Builder,
    /// The node; a rule may ask it for further outputs.
    pub node: &'a mut NodeProto,
    /// Gradients of the node's outputs; `None` where none arrived.
    pub output_gradients: Vec<Option<String>>,
    facts: &'a Facts,
    needed: &'a HashSet<String>,
    mended: &'a HashMap<String, String>,
}

impl Call<'_> {
    /// Whether input `index` wants a gradient.
    pub fn wants(&self, index: usize) -> bool {
        self.node
            .input(index)
            .is_some_and(|name| self.needed.contains(name))
    }

    /// The name of input `index`.
    ///
    /// # Errors
    /// When it is left out.
    pub fn input(&self, index: usize) -> Result<String, Error> {
        let name = self.node.input(index).map(str::to_owned);
        name.ok_or_else(|| self.refuse(format!("input {index} is left out")))
    }

    /// The name of the first output.
    pub fn output(&self) -> String {
        self.node.output[0].clone()
    }

    /// The first output without its NaNs, where the graph itself puts zeros in their place.
    pub fn mended_output(&self) -> String {
        let output = self.output();
        self.mended.get(&output).cloned().unwrap_or(output)
    }

    /// The gradient of the first output.
    ///
    /// # Errors
    /// When only other outputs have one.
    pub fn gradient(&self) -> Result<String, Error> {
        let first = self.output_gradients.first().cloned().flatten();
        first.ok_or_else(|| self.refuse("only a further output has a gradient"))
    }

    /// What is known of a value.
    ///
    /// # Errors
    /// When nothing is.
    pub fn fact(&self, name: &str) -> Result<Fact, Error> {
        let fact = self.facts.get(name).cloned();
        fact.ok_or_else(|| self.refuse(format!("the shape of {name} is not known")))
    }

    /// What is known of input `index`.
    ///
    /// # Errors
    /// When nothing is.
    pub fn input_fact(&self, index: usize) -> Result<Fact, Error> {
        self.fact(&self.input(index)?)
    }

    /// The error that this node has no gradient in this form.
    pub fn refuse(&self, reason: impl Into<String>) -> Error {
        Error::Graph(preface_graph::Error::at(self.node, reason))
    }

    /// Applies an operator without attributes.
    pub fn apply(&mut self, operator: &str, inputs: &[&str]) -> String {
        self.builder.apply(operator, inputs, &[])
    }

    /// Applies a gradient in one pass.
    ///
    /// # Errors
    /// When the element type of the first output is not known.
    pub fn pass(&mut self, pass: &Pass, operands: &[&str]) -> Result<String, Error> {
        Ok(match self.fact(&self.output())?.data_type {
            data_type::FLOAT => self.apply(&pass.operator(), operands),
            other => (pass.body)(self.builder, other, operands),
        })
    }

    /// A scalar of the element type of the first output.
    ///
    /// # Errors
    /// When that type is not known.
    pub fn number(&mut self, value: f64) -> Result<String, Error> {
        let data_type = self.fact(&self.output())?.data_type;
        Ok(self.builder.scalar(data_type, value))
    }

    /// The size of dimension `axis` of `name` as a list of one integer.
    ///
    /// # Errors
    /// When the shape is not known.
    pub fn dim(&mut self, name: &str, axis: usize) -> Result<String, Error> {
        if let Some(size) = self.fact(name)?.constant_dim(axis) {
            return Ok(self.builder.ints(&[size]));
        }
        let shape = self.apply("Shape", &[name]);
        let axis = self.builder.ints(&[axis as i64]);
        Ok(self
            .builder
            .apply("Gather", &[&shape, &axis], &[("axis", Attribute::Int(0))]))
    }

    /// The shape of `name` for a Reshape: constant where at most one dimension is not.
    ///
    /// # Errors
    /// When the shape is not known.
    pub fn shape(&mut self, name: &str) -> Result<String, Error> {
        let fact = self.fact(name)?;
        let dims: Vec<i64> = (0..fact.rank())
            .map(|axis| fact.constant_dim(axis).unwrap_or(-1))
            .collect();
        let free = dims.iter().filter(|&&dim| dim == -1).count();
        Ok(match free <= 1 && !dims.contains(&0) {
            true => self.builder.ints(&dims),
            false => self.apply("Shape", &[name]),
        })
    }

    /// An axis counted from the front.
    pub fn axis(&self, axis: i64, rank: usize) -> usize {
        (if axis < 0 { axis + rank as i64 } else { axis }) as usize
    }

    /// Axes from the attribute of older operator sets or the input of newer ones; all of them where neither is there.
    ///
    /// # Errors
    /// When they depend on the size of the input.
    pub fn axes(&self, input: usize, rank: usize) -> Result<Vec<usize>, Error> {
        let axes = match (self.node.ints("axes"), self.node.input(input)) {
            (Some(axes), _) => axes.to_vec(),
            (None, None) => (0..rank as i64).collect(),
            (None, Some(name)) => {
                let axes = self.fact(name)?.constant_ints();
                axes.ok_or_else(|| self.refuse("axes that depend on the input"))?
            }
        };
        Ok(axes.iter().map(|&axis| self.axis(axis, rank)).collect())
    }
}

/// Writes the gradients of `seeds` (a value and the name of its gradient) with respect to `wanted` into `builder` and
/// returns their names, in the order of `wanted`.
///
/// GELUs that the graph writes out become nodes of com.microsoft first, and nodes are asked for further outputs that
/// gradients use; the model imports the domains of new nodes and defines the [`passes`] that they apply.
///
/// # Errors
/// When an operator on the way has no rule, or no gradient reaches a wanted value; the node is named.
pub fn backward(
    model: &mut ModelProto,
    facts: &Facts,
    builder: &mut Builder,
    seeds: &[(String, String)],
    wanted: &[String],
) -> Result<Vec<String>, Error> {
    let graph = model.graph.get_or_insert_default();
    gelu::fuse(graph, facts);
    let Path { needed, nodes } = nodes_between(graph, facts, seeds, wanted)?;
    let mended = mended(graph, facts);
    let mut arrived: HashMap<String, Vec<String>> = HashMap::new();
    for (value, gradient) in seeds {
        arrived
            .entry(value.clone())
            .or_default()
            .push(gradient.clone());
    }
    for (index, flows) in nodes.into_iter().rev() {
        let node = &mut graph.node[index];
        let outputs = node.output.clone();
        let output_gradients: Vec<_> = outputs
            .iter()
            .map(|output| arrived.remove(output).map(|parts| sum(builder, parts)))
            .collect();
        if output_gradients.iter().all(Option::is_none) {
            continue;
        }
        let mut call = Call {
            builder,
            node,
            output_gradients,
            facts,
            needed: &needed,
            mended: &mended,
        };
        let parts = flows(&mut call)?;
        for part in parts {
            let input = call.input(part.input)?;
            let gradient = undo_broadcast(&mut call, &part, &input, &outputs[0])?;
            arrived.entry(input).or_default().push(gradient);
        }
    }
    let gradient_of = |value: &String| {
        let parts = arrived.remove(value).ok_or_else(|| Error::NoGradient {
            value: value.clone(),
        })?;
        Ok(sum(builder, parts))
    };
    let gradients = wanted.iter().map(gradient_of).collect();
    import(model, builder);
    gradients
}

/// Imports the domains of nodes that gradients take, and defines the passes that `builder` applied.
fn import(model: &mut ModelProto, builder: &Builder) {
    const FIRST_WITH_FUNCTIONS: i64 = 8;
    for domain in ["com.microsoft", passes::DOMAIN] {
        let mut imported = model.opset_import.iter();
        if !imported.any(|entry| entry.domain() == domain) {
            model.opset_import.push(OperatorSetIdProto {
                domain: Some(domain.into()),
                version: Some(1),
            });
        }
    }
    for pass in PASSES {
        let mut nodes = builder.nodes.iter();
        if nodes.any(|node| node.operator() == pass.operator()) {
            model
                .functions
                .push(pass.function(data_type::FLOAT, builder.opset()));
            model.ir_version = model.ir_version.max(Some(FIRST_WITH_FUNCTIONS));
        }
    }
}

type Flow = fn(&mut Call) -> Result<Vec<Part>, Error>;

/// What lies between the wanted values and everything behind them.
struct Path {
    /// Float values that depend on a wanted one.
    needed: HashSet<String>,
    /// The nodes that make them, with their rules.
    nodes: Vec<(usize, Flow)>,
}

fn nodes_between(
    graph: &GraphProto,
    facts: &Facts,
    seeds: &[(String, String)],
    wanted: &[String],
) -> Result<Path, Error> {
    let mut before: HashSet<&str> = seeds.iter().map(|(value, _)| value.as_str()).collect();
    for node in graph.node.iter().rev() {
        if node
            .output
            .iter()
            .any(|output| before.contains(output.as_str()))
        {
            before.extend(node.input.iter().map(String::as_str));
        }
    }
    let mut needed: HashSet<String> = wanted.iter().cloned().collect();
    let mut nodes = Vec::new();
    for (index, node) in graph.node.iter().enumerate() {
        let on_the_way = node.input.iter().any(|input| needed.contains(input))
            && node
                .output
                .iter()
                .any(|output| before.contains(output.as_str()));
        if !on_the_way {
            continue;
        }
        let rule = RULES.binary_search_by(|rule| rule.operator.cmp(&node.operator()));
        let rule = rule.map_err(|_| Error::NoRule {
            operator: node.operator(),
            node: node.label().to_owned(),
        })?;
        if let Gradient::Flows(flow) = RULES[rule].gradient {
            nodes.push((index, flow));
            let rounds = rules::ROUNDING.contains(&node.op_type());
            let differentiable = node
                .output
                .iter()
                .enumerate()
                .filter(|(index, output)| {
                    (rounds && *index == 0) || facts.get(output).is_none_or(Fact::is_float)
                })
                .map(|(_, output)| output);
            needed.extend(differentiable.cloned());
        }
    }
    Ok(Path { needed, nodes })
}

/// Values that `Where(IsNaN(x), 0, x)` makes of `x`: exporters write so behind a Softmax, whose row is NaN where every key
/// is hidden.
fn mended(graph: &GraphProto, facts: &Facts) -> HashMap<String, String> {
    let is_nan = |name: &str, of: &str| {
        let mut nodes = graph.node.iter().filter(|node| node.op_type() == "IsNaN");
        nodes.any(|node| node.output[0] == name && node.input(0) == Some(of))
    };
    let choices = graph.node.iter().filter(|node| node.op_type() == "Where");
    let found = choices.filter_map(|node| {
        let (condition, zero, value) = (node.input(0)?, node.input(1)?, node.input(2)?);
        let zeros = facts.get(zero)?.constant_scalar() == Some(0.0);
        let mends = zeros && is_nan(condition, value);
        mends.then(|| (value.to_owned(), node.output[0].clone()))
    });
    found.collect()
}

fn sum(builder: &mut Builder, mut parts: Vec<String>) -> String {
    if parts.len() == 1 {
        return parts.remove(0);
    }
    let names: Vec<&str> = parts.iter().map(String::as_str).collect();
    builder.apply("Sum", &names, &[])
}

/// Sums a gradient over the dimensions in which the input was broadcast.
fn undo_broadcast(
    call: &mut Call,
    part: &Part,
    input: &str,
    output: &str,
) -> Result<String, Error> {
    let kept = match part.spread {
        Spread::Exact => return Ok(part.gradient.clone()),
        Spread::Elements => 0,
        Spread::Matrices => 2,
    };
    let (from, to) = (call.fact(output)?, call.fact(input)?);
    let lead = from.rank() - to.rank();
    let stretched =
        |axis: usize| to.constant_dim(axis - lead) == Some(1) && from.constant_dim(axis) != Some(1);
    let axes: Vec<i64> = (0..from.rank() - kept)
        .filter(|&axis| axis < lead || stretched(axis))
        .map(|axis| axis as i64)
        .collect();
    if axes.is_empty() {
        return Ok(part.gradient.clone());
    }
    let only_leading = axes.len() == lead;
    let mut gradient = call
        .builder
        .reduce("ReduceSum", &part.gradient, &axes, !only_leading);
    if !only_leading && lead > 0 {
        let leading = call.builder.ints(&(0..lead as i64).collect::<Vec<_>>());
        gradient = call.apply("Squeeze", &[&gradient, &leading]);
    }
    Ok(gradient)
}

#[cfg(test)]
mod tests;
