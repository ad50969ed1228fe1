//! The last values that the trainable inputs leave alone: computed once for each text, and then taken as inputs.

use std::{
    collections::{BTreeSet, HashSet},
    iter,
    ops::Range,
};

use crate::{
    Description, Error,
    builder::Builder,
    facts::Facts,
    onnx::{GraphProto, NodeProto, ValueInfoProto, data_type},
    sizes,
    wiring::Wiring,
};

/// A float value with a part for each token of each text: `[batch, ..outer, sequence, ..inner]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The value's name.
    pub value: String,
    /// Dimensions between batch and sequence.
    pub outer: Vec<usize>,
    /// Dimensions behind the sequence.
    pub inner: Vec<usize>,
}

impl Cut {
    /// `value`, where it has a part for each token of rows that are `[batch, sequence, ..]` in `of_text`.
    fn of(value: &str, facts: &Facts, of_text: &[Vec<i64>]) -> Option<Self> {
        let fact = facts.get(value)?;
        let counts = |axis: usize, of: usize| {
            let mut shapes = fact.shapes.iter().zip(of_text);
            shapes.all(|(shape, text)| shape[axis] == text[of])
        };
        let fixed = |axes: Range<usize>| -> Option<Vec<usize>> {
            axes.map(|axis| Some(fact.constant_dim(axis)? as usize))
                .collect()
        };
        let axis = (1..fact.rank()).find(|&axis| counts(axis, 1))?;
        let fits = fact.data_type == data_type::FLOAT && counts(0, 0);
        fits.then_some(Self {
            value: value.to_owned(),
            outer: fixed(1..axis)?,
            inner: fixed(axis + 1..fact.rank())?,
        })
    }

    /// The shape for so many texts of so many tokens.
    pub fn shape(&self, batch: usize, sequence: usize) -> Vec<usize> {
        [&[batch], &self.outer[..], &[sequence], &self.inner].concat()
    }

    /// Numbers of one token.
    pub fn width(&self) -> usize {
        self.outer.iter().chain(&self.inner).product()
    }
}

/// Finds values that depend on none of `free` and through which the embedding rows reach everything that depends on
/// them and leads to an output, of at most `width` numbers a token: all that is read there, or else the latest hidden
/// rows `[batch, sequence, hidden]` that everything there is made of.
///
/// What needs no embedding row (masks, positions, biases by distance) may still be read from the graph's inputs.
/// Nothing is found where the embedding rows themselves depend on `free`, or no attention lies before such values.
pub fn find(
    graph: &GraphProto,
    facts: &Facts,
    description: &Description,
    free: &[String],
    width: usize,
) -> Vec<Cut> {
    let rows = description.embedding_rows.as_str();
    let moved = descendants(graph, free.iter().map(String::as_str));
    let text = descendants(graph, [rows]);
    let Some(of_text) = facts.get(rows).filter(|_| !moved.contains(rows)) else {
        return Vec::new();
    };
    let wiring = Wiring::of(graph);
    let read = read_by_moved(graph, &moved, &text);
    let cut = |value: &str| Cut::of(value, facts, &of_text.shapes);
    let frontier: Option<Vec<Cut>> = read.iter().map(|value| cut(value)).collect();
    let hidden = || {
        let values = graph.node.iter().rev().flat_map(|node| node.output.first());
        let mut own = values
            .filter(|value| text.contains(value.as_str()) && !moved.contains(value.as_str()))
            .filter_map(|value| cut(value))
            .filter(|cut| cut.outer.is_empty() && cut.inner == [description.hidden]);
        let found = own.find(|cut| separates(&wiring, &text, &cut.value, rows, &read));
        found.filter(|_| !read.is_empty()).map(|cut| vec![cut])
    };
    let fits = |cuts: &Vec<Cut>| {
        let attends = |cut: &Cut| attends(&wiring, description, &cut.value);
        cuts.iter().map(Cut::width).sum::<usize>() <= width && cuts.iter().any(attends)
    };
    let found = frontier.filter(fits).or_else(|| hidden().filter(fits));
    found.unwrap_or_default()
}

/// Whether an attention lies before `value`.
fn attends(wiring: &Wiring, description: &Description, value: &str) -> bool {
    wiring.ancestors(value).iter().any(|name| {
        wiring.producer(name).is_some_and(|node| {
            let mut sites = description.sites.iter();
            sites.any(|site| site.node == node.label())
        })
    })
}

/// Makes the values of `cuts` inputs of the graph.
///
/// Shapes of values below them are read from the inputs, so that [`prune`] drops all that made them.
///
/// [`prune`]: crate::splice::prune
///
/// # Errors
/// When no node makes one of the values.
pub fn behind(
    graph: &mut GraphProto,
    opset: i64,
    facts: &Facts,
    cuts: &[Cut],
) -> Result<(), Error> {
    sizes::read_from_inputs(graph, opset, facts);
    let mut unread = Builder::beside(graph, "replaced", opset);
    for cut in cuts {
        let mut outputs = graph.node.iter_mut().flat_map(|node| &mut node.output);
        *outputs
            .find(|output| **output == cut.value)
            .ok_or_else(|| Error::unusable(format!("no node makes {}", cut.value)))? =
            unread.fresh();
        let outer = cut.outer.iter().map(usize::to_string);
        let inner = cut.inner.iter().map(usize::to_string);
        let before = iter::once("batch".to_owned()).chain(outer);
        let dims: Vec<String> = before
            .chain(iter::once("sequence".to_owned()))
            .chain(inner)
            .collect();
        let dims: Vec<&str> = dims.iter().map(String::as_str).collect();
        let input = ValueInfoProto::tensor(&cut.value, data_type::FLOAT, &dims);
        graph.input.push(input);
    }
    Ok(())
}

/// Whether a node reads what its inputs hold, and not their shape alone.
fn reads_contents(node: &NodeProto) -> bool {
    !matches!(node.op_type(), "Shape" | "Size")
}

/// Everything whose contents depend on one of `values`, these included.
fn descendants<'a>(
    graph: &'a GraphProto,
    values: impl IntoIterator<Item = &'a str>,
) -> HashSet<&'a str> {
    let mut found: HashSet<&str> = values.into_iter().collect();
    for node in graph.node.iter().filter(|node| reads_contents(node)) {
        if node
            .input
            .iter()
            .any(|input| found.contains(input.as_str()))
        {
            found.extend(node.output.iter().map(String::as_str));
        }
    }
    found
}

/// Values of `text` alone that a node reads whose output is in `moved` and leads to an output of the graph.
fn read_by_moved<'a>(
    graph: &'a GraphProto,
    moved: &HashSet<&str>,
    text: &HashSet<&str>,
) -> BTreeSet<&'a str> {
    let mut reached: HashSet<&str> = graph.output.iter().map(|output| output.name()).collect();
    let mut read = BTreeSet::new();
    for node in graph.node.iter().rev().filter(|node| reads_contents(node)) {
        let mut outputs = node.output.iter().map(String::as_str);
        if !outputs.clone().any(|output| reached.contains(output)) {
            continue;
        }
        let inputs = node.input.iter().map(String::as_str);
        if outputs.any(|output| moved.contains(output)) {
            read.extend(
                inputs
                    .clone()
                    .filter(|input| text.contains(input) && !moved.contains(input)),
            );
        }
        reached.extend(inputs);
    }
    read
}

/// Whether every way from `rows` to one of `read` leads through `value`.
fn separates(
    wiring: &Wiring,
    text: &HashSet<&str>,
    value: &str,
    rows: &str,
    read: &BTreeSet<&str>,
) -> bool {
    let mut open: Vec<&str> = read.iter().copied().collect();
    let mut seen = HashSet::new();
    while let Some(name) = open.pop() {
        if name == value || !seen.insert(name) {
            continue;
        }
        if name == rows {
            return false;
        }
        let node = wiring.producer(name).filter(|node| reads_contents(node));
        let inputs = node.into_iter().flat_map(|node| &node.input);
        open.extend(
            inputs
                .map(String::as_str)
                .filter(|input| text.contains(input)),
        );
    }
    true
}
