//! Edits that put a soft prompt into a graph.
//!
//! **Embeddings form.** The graph is fed ids whose first places are kept for the prompt, and those rows of the
//! embedding Gather are replaced: every subgraph that counts positions or masks stays right untouched
//! ([`cut_embedding`]). **Key-values form.** Keys, values and masks grow at every attention site ([`join_prefix`]);
//! prefix tuning, Li and Liang 2021, section 4.

use std::collections::{HashMap, HashSet};

use crate::{
    Description, Error,
    attention::{Joint, Layout, Site},
    builder::{Attribute, Builder},
    facts::Facts,
    onnx::{GraphProto, NodeProto, ValueInfoProto},
    wiring::Wiring,
};

/// Keys and values that join one layer: values `[batch, kv_heads, prefix, head_dim]` known before the first node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Name of the keys.
    pub key: String,
    /// Name of the values.
    pub value: String,
}

/// Frees the name of the rows that the embedding Gather looks up, so that the caller can give them another maker.
///
/// Returns the place in the graph's nodes where that maker goes and the new name of the rows as looked up
/// `[batch, sequence, hidden]`.
///
/// # Errors
/// When the graph is not the one that was described.
pub fn cut_embedding(
    graph: &mut GraphProto,
    description: &Description,
) -> Result<(usize, String), Error> {
    let rows = &description.embedding_rows;
    let position = graph
        .node
        .iter()
        .position(|node| node.output.first() == Some(rows));
    let position = position
        .ok_or_else(|| Error::unusable(format!("no node makes the embedding rows {rows}")))?;
    let looked_up = Builder::beside(graph, "looked-up", 0).fresh();
    graph.node[position].output[0].clone_from(&looked_up);
    Ok((position + 1, looked_up))
}

/// Joins a prefix to every site that takes one ([`Description::prefix_sites`]), in their order.
///
/// A graph with a cache takes the prefix as its first cached keys and values, and its mask input then covers the
/// text alone. Prefix rows ask nothing, and every token sees all of them.
///
/// # Errors
/// When there are more or fewer prefixes than sites, or the graph is not the one that was described.
pub fn join_prefix(
    graph: &mut GraphProto,
    opset: i64,
    description: &Description,
    facts: &Facts,
    prefixes: &[Prefix],
) -> Result<(), Error> {
    let sites: Vec<&Site> = description.prefix_sites().collect();
    let Some(first) = prefixes.first().filter(|_| prefixes.len() == sites.len()) else {
        return Err(Error::unusable(format!(
            "{} prefixes for {} attention sites",
            prefixes.len(),
            sites.len()
        )));
    };
    let mut splice = Splice {
        counts: counts(graph, &sites),
        builder: Builder::beside(graph, "prefix", opset),
        inserted: Vec::new(),
        renamed: HashMap::new(),
        facts,
        length_of: first.key.clone(),
    };
    for (site, prefix) in sites.iter().zip(prefixes) {
        match &site.past {
            Some((key, value)) => {
                splice.renamed.insert(key.clone(), prefix.key.clone());
                splice.renamed.insert(value.clone(), prefix.value.clone());
            }
            None => {
                splice.join(graph, &site.key, &prefix.key)?;
                splice.join(graph, &site.value, &prefix.value)?;
                for mask in &site.masks {
                    splice.widen(graph, &mask.node, mask.input, mask.visible)?;
                }
            }
        }
    }
    if let (Some(mask), true) = (
        &description.inputs.mask,
        sites.iter().any(|site| site.past.is_some()),
    ) {
        splice.cover_prefix(mask)?;
    }
    splice.finish(graph);
    Ok(())
}

impl Description {
    /// The sites that a prefix joins: an encoder's own, a decoder's own, and of an encoder-decoder the encoder's.
    pub fn prefix_sites(&self) -> impl Iterator<Item = &Site> {
        let first = self.sites.first().map(|site| site.direction);
        self.sites
            .iter()
            .filter(move |site| Some(site.direction) == first)
    }
}

/// Where new nodes go: behind the node that makes a value, or before all nodes.
type Place = Option<usize>;

struct Splice<'a> {
    counts: Vec<Count>,
    builder: Builder,
    inserted: Vec<(Place, Vec<NodeProto>)>,
    renamed: HashMap<String, String>,
    facts: &'a Facts,
    length_of: String,
}

impl Splice<'_> {
    /// Gives the value at `joint` to a Concat of the prefix with what was there.
    fn join(&mut self, graph: &mut GraphProto, joint: &Joint, prefix: &str) -> Result<(), Error> {
        let place = position_of(graph, &joint.value)?;
        let text = self.builder.fresh();
        rename_output(&mut graph.node[place], &joint.value, &text);
        self.count_text_alone(graph, joint, &text);
        let prefix = match joint.layout {
            Layout::HeadsFirst => prefix.to_owned(),
            Layout::TokensFirst => {
                let perm = Attribute::Ints(vec![0, 2, 1, 3]);
                self.builder
                    .apply("Transpose", &[prefix], &[("perm", perm)])
            }
        };
        let axis = Attribute::Int(joint.layout.token_axis());
        self.builder.write(
            "Concat",
            &[&prefix, &text],
            &[&joint.value],
            &[("axis", axis)],
        );
        self.insert(Some(place));
        Ok(())
    }

    /// Lets masks take the number of tokens from the text alone, as [`Splice::widen`] adds the prefix to them.
    fn count_text_alone(&mut self, graph: &mut GraphProto, joint: &Joint, text: &str) {
        let counts = self.counts.iter().filter(|count| count.of == joint.value);
        for count in counts {
            let mut counted = text.to_owned();
            for node in count.turned.iter().rev() {
                let output = self.builder.fresh();
                let copy = NodeProto {
                    name: Some(output.clone()),
                    input: vec![counted],
                    output: vec![output.clone()],
                    ..node.clone()
                };
                self.builder.nodes.push(copy);
                counted = output;
            }
            for node in graph
                .node
                .iter_mut()
                .filter(|node| node.output.contains(&count.shape))
            {
                node.input[0].clone_from(&counted);
            }
        }
    }

    /// Widens operand `input` of the node that makes `output` by visible columns for the prefix.
    fn widen(
        &mut self,
        graph: &mut GraphProto,
        output: &str,
        input: usize,
        visible: f64,
    ) -> Result<(), Error> {
        let reader = position_of(graph, output)?;
        let mask = graph.node[reader].input[input].clone();
        let key = format!("{mask} {visible}");
        let wide = match self.renamed.get(&key) {
            Some(wide) => wide.clone(),
            None => {
                let wide = self.widened(&mask, visible)?;
                let place = graph
                    .node
                    .iter()
                    .position(|node| node.output.contains(&mask));
                self.insert(place);
                self.renamed.insert(key, wide.clone());
                wide
            }
        };
        graph.node[reader].input[input] = wide;
        Ok(())
    }

    /// `[visible ...; mask]` along the last dimension.
    fn widened(&mut self, mask: &str, visible: f64) -> Result<String, Error> {
        let fact = self.facts.get(mask);
        let fact =
            fact.ok_or_else(|| Error::unusable(format!("the shape of mask {mask} is not known")))?;
        let (data_type, rank) = (fact.data_type, fact.rank() as i64);
        let builder = &mut self.builder;
        let shape = builder.apply("Shape", &[mask], &[]);
        let (zero, last) = (builder.ints(&[0]), builder.ints(&[rank - 1]));
        let leading = builder.apply("Slice", &[&shape, &zero, &last, &zero], &[]);
        let prefix_shape = builder.apply("Shape", &[&self.length_of], &[]);
        let tokens_axis = builder.ints(&[2]);
        let length = builder.apply(
            "Gather",
            &[&prefix_shape, &tokens_axis],
            &[("axis", Attribute::Int(0))],
        );
        let shape = builder.apply(
            "Concat",
            &[&leading, &length],
            &[("axis", Attribute::Int(0))],
        );
        let visible = builder.scalar(data_type, visible);
        let columns = builder.apply("Expand", &[&visible, &shape], &[]);
        let axis = Attribute::Int(rank - 1);
        Ok(builder.apply("Concat", &[&columns, mask], &[("axis", axis)]))
    }

    /// Makes every reader of the mask input read it with ones for the prefix before it.
    fn cover_prefix(&mut self, mask: &str) -> Result<(), Error> {
        let wide = self.widened(mask, 1.0)?;
        self.insert(None);
        self.renamed.insert(mask.to_owned(), wide);
        Ok(())
    }

    fn insert(&mut self, place: Place) {
        self.inserted
            .push((place, std::mem::take(&mut self.builder.nodes)));
    }

    fn finish(mut self, graph: &mut GraphProto) {
        for input in graph.node.iter_mut().flat_map(|node| &mut node.input) {
            if let Some(name) = self.renamed.get(input) {
                input.clone_from(name);
            }
        }
        graph.initializer.append(&mut self.builder.initializers);
        let mut behind: HashMap<Place, Vec<NodeProto>> = HashMap::new();
        for (place, nodes) in self.inserted {
            behind.entry(place).or_default().extend(nodes);
        }
        let old = std::mem::take(&mut graph.node);
        graph.node.extend(behind.remove(&None).unwrap_or_default());
        for (index, node) in old.into_iter().enumerate() {
            graph.node.push(node);
            graph
                .node
                .extend(behind.remove(&Some(index)).unwrap_or_default());
        }
    }
}

/// A `Shape` node on which a mask depends, and the value that it counts through nodes that only turn it.
struct Count {
    shape: String,
    turned: Vec<NodeProto>,
    of: String,
}

/// Every count on which a mask of `sites` depends without a further `Shape` between.
fn counts(graph: &GraphProto, sites: &[&Site]) -> Vec<Count> {
    let wiring = Wiring::of(graph);
    let masks = sites.iter().flat_map(|site| &site.masks);
    let mut open: Vec<&str> = masks
        .filter_map(|mask| wiring.producer(&mask.node)?.input(mask.input))
        .collect();
    let mut seen = HashSet::new();
    let mut counts = Vec::new();
    while let Some(value) = open.pop() {
        let Some(node) = wiring.producer(value).filter(|_| seen.insert(value)) else {
            continue;
        };
        if node.op_type() != "Shape" {
            open.extend(node.input.iter().map(String::as_str));
            continue;
        }
        let mut of = node.input(0).unwrap_or_default();
        let mut turned = Vec::new();
        while let Some(turn) = wiring
            .producer(of)
            .filter(|node| matches!(node.op_type(), "Transpose" | "Identity" | "Cast"))
        {
            turned.push(turn.clone());
            if sites
                .iter()
                .any(|site| site.key.value == of || site.value.value == of)
            {
                turned.pop();
                break;
            }
            of = turn.input(0).unwrap_or_default();
        }
        counts.push(Count {
            shape: value.to_owned(),
            turned,
            of: of.to_owned(),
        });
    }
    counts
}

fn position_of(graph: &GraphProto, value: &str) -> Result<usize, Error> {
    let makes = |node: &NodeProto| node.output.iter().any(|output| output == value);
    let position = graph.node.iter().position(makes);
    position.ok_or_else(|| Error::unusable(format!("no node makes {value}")))
}

fn rename_output(node: &mut NodeProto, from: &str, to: &str) {
    for output in node.output.iter_mut().filter(|output| *output == from) {
        to.clone_into(output);
    }
}

/// Keeps what `outputs` need: nodes, initializers and inputs; the outputs become the graph's.
pub fn prune(graph: &mut GraphProto, outputs: Vec<ValueInfoProto>) {
    let mut needed: HashSet<String> = outputs
        .iter()
        .map(|output| output.name().to_owned())
        .collect();
    let mut kept = Vec::new();
    for node in std::mem::take(&mut graph.node).into_iter().rev() {
        if node.output.iter().any(|output| needed.contains(output)) {
            needed.extend(node.input.iter().cloned());
            kept.push(node);
        }
    }
    kept.reverse();
    graph.node = kept;
    graph
        .initializer
        .retain(|tensor| needed.contains(tensor.name()));
    graph.input.retain(|input| needed.contains(input.name()));
    graph.value_info.clear();
    graph.output = outputs;
}
