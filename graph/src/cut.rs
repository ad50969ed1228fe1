//! The last value that the trainable inputs leave alone: computed once for each text, and then taken as an input.

use std::collections::HashSet;

use crate::{
    Description, Error,
    builder::Builder,
    facts::{Fact, Facts},
    onnx::{GraphProto, NodeProto, ValueInfoProto, data_type},
    sizes,
    wiring::Wiring,
};

/// Finds the latest value `[batch, sequence, hidden]` that depends on none of `free` and through which the embedding
/// rows reach everything that depends on them and leads to an output.
///
/// What needs no embedding row (masks, positions, biases by distance) may still reach it from the graph's inputs.
/// `None` where the embedding rows themselves depend on `free`, or no attention lies before such a value.
pub fn find(
    graph: &GraphProto,
    facts: &Facts,
    description: &Description,
    free: &[String],
) -> Option<String> {
    let rows = description.embedding_rows.as_str();
    let moved = descendants(graph, free.iter().map(String::as_str));
    let text = descendants(graph, [rows]);
    if moved.contains(rows) {
        return None;
    }
    let wiring = Wiring::of(graph);
    let read = read_by_moved(graph, &moved, &text);
    let of_text = &facts.get(rows)?.shapes;
    let hidden = description.hidden as i64;
    let same_rows = |fact: &Fact| {
        let mut shapes = fact.shapes.iter().zip(of_text);
        shapes.all(|(shape, text)| shape[..] == [text[0], text[1], hidden])
    };
    let fits = |value: &&String| {
        let fact = facts.get(value);
        !moved.contains(value.as_str())
            && text.contains(value.as_str())
            && fact.is_some_and(|fact| same_rows(fact) && fact.data_type == data_type::FLOAT)
    };
    let attends = |value: &str| {
        let above = wiring.ancestors(value);
        let is_site = |name: &&str| {
            let node = wiring.producer(name);
            node.is_some_and(|node| {
                description
                    .sites
                    .iter()
                    .any(|site| site.node == node.label())
            })
        };
        above.iter().any(is_site)
    };
    let mut values = graph.node.iter().rev().flat_map(|node| node.output.first());
    let cut = values
        .by_ref()
        .filter(fits)
        .find(|value| separates(&wiring, &text, value, rows, &read))?;
    (!read.is_empty() && attends(cut)).then(|| cut.clone())
}

/// Makes `value` an input `[batch, sequence, hidden]` of the graph.
///
/// Shapes of values below it are read from the inputs, so that [`prune`] drops all that made it.
///
/// [`prune`]: crate::splice::prune
///
/// # Errors
/// When no node makes `value`, or its shape is not known.
pub fn behind(graph: &mut GraphProto, opset: i64, facts: &Facts, value: &str) -> Result<(), Error> {
    let unknown = || Error::unusable(format!("no node makes rows {value} of a known shape"));
    let fact = facts
        .get(value)
        .filter(|fact| fact.rank() == 3)
        .ok_or_else(unknown)?;
    let width = fact.constant_dim(2).ok_or_else(unknown)?.to_string();
    sizes::read_from_inputs(graph, opset, facts);
    let unread = Builder::beside(graph, "replaced", opset).fresh();
    let mut outputs = graph.node.iter_mut().flat_map(|node| &mut node.output);
    *outputs
        .find(|output| *output == value)
        .ok_or_else(unknown)? = unread;
    let dims = ["batch", "sequence", &width];
    graph
        .input
        .push(ValueInfoProto::tensor(value, fact.data_type, &dims));
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
) -> Vec<&'a str> {
    let mut reached: HashSet<&str> = graph.output.iter().map(|output| output.name()).collect();
    let mut read = Vec::new();
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
    read: &[&str],
) -> bool {
    let mut open: Vec<&str> = read.to_vec();
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
