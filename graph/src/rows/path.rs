//! Nodes cloned so that they work on the rows of other tokens.

use std::collections::{HashMap, HashSet};

use super::needs::{Reader, Tokens};
use crate::{
    Error,
    builder::{Attribute, Builder},
    facts::Facts,
    onnx::NodeProto,
    wiring::Wiring,
};

/// A value and where its tokens lie.
pub(crate) type Rows = (String, Tokens);

/// Which nodes are cloned for wanted rows: those that work row by row and whose outputs nobody needs whole.
///
/// A value counts as whole where a cloned node reads it as it is, or where it leads to such a value.
pub(crate) struct Plan {
    clones: Vec<(usize, Tokens)>,
    /// Values whose rows are not made by a clone, in the order of the graph from its end.
    pub sources: Vec<Rows>,
}

impl Plan {
    /// Walks from `wanted` up to the values that `ends` the way at, once and from the last node to the first.
    pub fn of(
        wiring: &Wiring,
        facts: &Facts,
        wanted: &[Rows],
        ends: impl Fn(&str) -> bool,
    ) -> Self {
        let mut rows: HashMap<String, Vec<Tokens>> = HashMap::new();
        let mut whole: HashSet<&str> = HashSet::new();
        let mut plan = Self {
            clones: Vec::new(),
            sources: Vec::new(),
        };
        for (value, tokens) in wanted {
            rows.entry(value.clone()).or_default().push(*tokens);
        }
        for (index, node) in wiring.graph.node.iter().enumerate().rev() {
            let outputs = || node.output.iter().filter(|output| !output.is_empty());
            let asked: Vec<Rows> = outputs()
                .flat_map(|output| {
                    let places = rows.remove(output).unwrap_or_default();
                    places.into_iter().map(|tokens| (output.clone(), tokens))
                })
                .collect();
            let needed = outputs().any(|output| whole.contains(output.as_str()));
            if asked.is_empty() && !needed {
                continue;
            }
            let needs = match asked.first() {
                Some((_, tokens))
                    if !needed
                        && asked
                            .iter()
                            .all(|(value, other)| other == tokens && !ends(value)) =>
                {
                    Reader { node, facts }
                        .needs(*tokens)
                        .map(|needs| (*tokens, needs))
                }
                _ => None,
            };
            let Some((tokens, needs)) = needs else {
                plan.sources.extend(asked);
                whole.extend(node.input.iter().map(String::as_str));
                continue;
            };
            plan.clones.push((index, tokens));
            for (input, need) in node.input.iter().zip(needs) {
                match need {
                    None => _ = whole.insert(input),
                    Some(tokens) => {
                        let places = rows.entry(input.clone()).or_default();
                        if !places.contains(&tokens) {
                            places.push(tokens);
                        }
                    }
                }
            }
        }
        let mut given: Vec<Rows> = rows
            .into_iter()
            .flat_map(|(value, places)| {
                places
                    .into_iter()
                    .map(move |tokens| (value.clone(), tokens))
            })
            .collect();
        given.sort_by(|(one, _), (other, _)| one.cmp(other));
        plan.sources.extend(given);
        plan.clones.reverse();
        plan
    }

    /// Whether any node is cloned.
    pub fn is_empty(&self) -> bool {
        self.clones.is_empty()
    }

    /// The first cloned node that reads `value`.
    pub fn reader<'a>(&self, wiring: &Wiring<'a>, value: &str) -> Option<&'a NodeProto> {
        let mut nodes = self
            .clones
            .iter()
            .map(|&(index, _)| &wiring.graph.node[index]);
        nodes.find(|node| node.input.iter().any(|input| input == value))
    }

    /// Writes the clones, given the rows of every source, and returns the rows of every value on the way.
    ///
    /// `sizes` is a list that begins with the batch and the number of rows.
    pub fn write(
        &self,
        wiring: &Wiring,
        facts: &Facts,
        builder: &mut Builder,
        mut rows: HashMap<Rows, String>,
        sizes: &str,
    ) -> Result<HashMap<Rows, String>, Error> {
        for &(index, tokens) in &self.clones {
            let node = &wiring.graph.node[index];
            let reader = Reader { node, facts };
            let needs = reader.needs(tokens).unwrap_or_default();
            let mut clone = node.clone();
            for (input, need) in clone.input.iter_mut().zip(&needs) {
                if let Some(tokens) = need {
                    let made = rows.get(&(input.clone(), *tokens));
                    *input = made
                        .ok_or_else(|| Error::at(node, format!("no rows of {input} were made")))?
                        .clone();
                }
            }
            if let (Some(Some(own)), "Reshape") = (needs.first(), node.op_type()) {
                let target = reader.target(*own, tokens);
                let target =
                    target.ok_or_else(|| Error::at(node, "takes a shape that is not known"))?;
                clone.input[1] = shape(builder, target, sizes);
                clone.attribute.clear();
            }
            rename(builder, &mut clone);
            for (old, new) in node.output.iter().zip(&clone.output) {
                rows.insert((old.clone(), tokens), new.clone());
            }
            builder.nodes.push(clone);
        }
        Ok(rows)
    }
}

fn shape(builder: &mut Builder, (counted, rest): (bool, Vec<i64>), sizes: &str) -> String {
    let rest = builder.ints(&rest);
    if !counted {
        return rest;
    }
    let (start, end) = (builder.ints(&[0]), builder.ints(&[2]));
    let lead = builder.apply("Slice", &[sizes, &start, &end], &[]);
    builder.apply("Concat", &[&lead, &rest], &[("axis", Attribute::Int(0))])
}

fn rename(builder: &mut Builder, node: &mut NodeProto) {
    for output in node.output.iter_mut().filter(|output| !output.is_empty()) {
        *output = builder.fresh();
    }
    node.name = Some(format!("{}/{}", node.output[0], node.op_type()));
}
