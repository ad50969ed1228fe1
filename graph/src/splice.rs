//! Edits that put a soft prompt into a graph.
//!
//! **Embeddings form.** The graph is fed ids whose first places are kept for the prompt, and those rows of the
//! embedding Gather are replaced: every subgraph that counts positions or masks stays right untouched
//! ([`cut_embedding`]). **Key-values form.** Keys, values and masks grow at every attention site ([`join_prefix`]), or the
//! keys and values of tokens that stand before the text's are replaced ([`replace_first`]);
//! prefix tuning, Li and Liang 2021, section 4.

mod counts;

use std::collections::{HashMap, HashSet};

use self::counts::{Count, counts};
use crate::{
    Description, Error,
    attention::{Direction, Joint, Layout, Site},
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
    /// Name of a value `[1]`, or `[batch, 1, 1, 1]`, that is added to the scores of the prefix before their Softmax: far below zero the layer
    /// is as it was without a prefix, at 0 the prefix weighs as it is. A prefix of zeros is no such thing.
    pub gate: Option<String>,
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

/// Joins prefixes to the sites that take one ([`Description::prefix_sites`]), in their order; a site with `None` stays
/// as it is. All prefixes have the same number of rows.
///
/// Prefix rows ask nothing, and every token sees all of them. Where a graph has a cache and every site a prefix, the
/// prefix is the first cached keys and values: they are no input any more, the mask input covers the text alone, and
/// positions that the graph counts begin behind the prefix. Where only some sites have one, it stands before a cache
/// that stays an input (empty at first), the mask input covers cache and text, and positions do not move.
///
/// # Errors
/// When there are more or fewer prefixes than sites or none at all, or the graph is not the one that was described.
pub fn join_prefix(
    graph: &mut GraphProto,
    opset: i64,
    description: &Description,
    facts: &Facts,
    prefixes: &[Option<Prefix>],
) -> Result<(), Error> {
    let (sites, first) = sites_of(description, prefixes)?;
    let cached =
        prefixes.iter().all(Option::is_some) && sites.iter().all(|site| site.past.is_some());
    let mut splice = Splice {
        counts: counts(&Wiring::of(graph), facts, &sites),
        ..Splice::of(graph, opset, facts, first)
    };
    for (site, prefix) in sites.iter().zip(prefixes) {
        let Some(prefix) = prefix else { continue };
        match site.past.as_ref().filter(|_| cached) {
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
        if let Some(gate) = &prefix.gate {
            splice.gate(graph, site, gate, cached)?;
        }
    }
    if let Some(mask) = description.inputs.mask.as_ref().filter(|_| cached) {
        splice.cover_prefix(mask)?;
    }
    splice.finish(graph);
    Ok(())
}

/// Puts prefixes in the place of the first keys and values of their sites, in the order of [`join_prefix`]: those of as
/// many tokens that the graph is fed before all others. Masks, positions and distances stay right untouched, and prefix
/// rows are seen as those tokens would be.
///
/// # Errors
/// As [`join_prefix`].
pub fn replace_first(
    graph: &mut GraphProto,
    opset: i64,
    description: &Description,
    facts: &Facts,
    prefixes: &[Option<Prefix>],
) -> Result<(), Error> {
    let (sites, first) = sites_of(description, prefixes)?;
    let mut splice = Splice::of(graph, opset, facts, first);
    for (site, prefix) in sites.iter().zip(prefixes) {
        let Some(prefix) = prefix else { continue };
        splice.replace(graph, &site.key, &prefix.key)?;
        splice.replace(graph, &site.value, &prefix.value)?;
        if let Some(gate) = &prefix.gate {
            splice.gate(graph, site, gate, true)?;
        }
    }
    splice.finish(graph);
    Ok(())
}

/// The sites that take a prefix, and the first prefix.
fn sites_of<'a>(
    description: &'a Description,
    prefixes: &'a [Option<Prefix>],
) -> Result<(Vec<&'a Site>, &'a Prefix), Error> {
    let sites: Vec<&Site> = description.prefix_sites().collect();
    if prefixes.len() != sites.len() {
        return Err(Error::unusable(format!(
            "{} prefixes for {} attention sites",
            prefixes.len(),
            sites.len()
        )));
    }
    let first = prefixes.iter().flatten().next();
    let first = first.ok_or_else(|| Error::unusable("no attention site is given a prefix"))?;
    Ok((sites, first))
}

impl Description {
    /// The sites that a prefix joins, in the order of the graph: every one. Of an encoder-decoder these are all three
    /// places of Li and Liang 2021, the encoder's tokens, the decoder's and the decoder's look at the encoder;
    /// [`Site::direction`] tells them apart.
    pub fn prefix_sites(&self) -> impl Iterator<Item = &Site> {
        self.sites.iter()
    }

    /// The places among those of the sites in which a decoder's tokens look at each other.
    pub fn decoder_sites(&self) -> impl Iterator<Item = usize> {
        let sites = self.sites.iter().enumerate();
        let own = sites.filter(|(_, site)| site.direction == Direction::Decoder);
        own.map(|(place, _)| place)
    }
}

/// Where new nodes go: behind the node that makes a value, or before all nodes.
type Place = Option<usize>;

struct Splice<'a> {
    counts: Vec<Count>,
    builder: Builder,
    inserted: Vec<(Place, Vec<NodeProto>)>,
    renamed: HashMap<String, String>,
    widened: HashMap<String, String>,
    facts: &'a Facts,
    length_of: String,
}

impl<'a> Splice<'a> {
    /// Nothing yet, for prefixes as long as `first`.
    fn of(graph: &GraphProto, opset: i64, facts: &'a Facts, first: &Prefix) -> Self {
        Self {
            counts: Vec::new(),
            builder: Builder::beside(graph, "prefix", opset),
            inserted: Vec::new(),
            renamed: HashMap::new(),
            widened: HashMap::new(),
            facts,
            length_of: first.key.clone(),
        }
    }

    /// Gives those who read the value at `joint` a Concat of the prefix with it; as an output of the graph, a cache to
    /// come, it stays what it was.
    fn join(&mut self, graph: &mut GraphProto, joint: &Joint, prefix: &str) -> Result<(), Error> {
        let text = &joint.value;
        let place = position_of(graph, text)?;
        let joined = self.renamed_for_readers(graph, text);
        self.count_text_alone(graph, joint)?;
        self.concat(joint, [prefix, text], &joined);
        self.insert(Some(place));
        Ok(())
    }

    /// Gives those who read the value at `joint` the prefix in place of its first rows.
    fn replace(
        &mut self,
        graph: &mut GraphProto,
        joint: &Joint,
        prefix: &str,
    ) -> Result<(), Error> {
        let all = &joint.value;
        let place = position_of(graph, all)?;
        let joined = self.renamed_for_readers(graph, all);
        let length = dimension(&mut self.builder, &self.length_of, 2);
        let builder = &mut self.builder;
        let (end, axis) = (
            builder.ints(&[i64::MAX]),
            builder.ints(&[joint.layout.token_axis()]),
        );
        let rest = builder.apply("Slice", &[all, &length, &end, &axis], &[]);
        self.concat(joint, [prefix, &rest], &joined);
        self.insert(Some(place));
        Ok(())
    }

    /// The name by which all who read `value` know it from now on, for another maker.
    fn renamed_for_readers(&mut self, graph: &mut GraphProto, value: &str) -> String {
        let renamed = self.builder.fresh();
        for input in graph.node.iter_mut().flat_map(|node| &mut node.input) {
            if input == value {
                input.clone_from(&renamed);
            }
        }
        renamed
    }

    /// Makes `joined` of the prefix and the rows behind it, laid out as the value at `joint` is.
    fn concat(&mut self, joint: &Joint, [prefix, behind]: [&str; 2], joined: &str) {
        let prefix = match joint.layout {
            Layout::HeadsFirst => prefix.to_owned(),
            Layout::TokensFirst => {
                let perm = Attribute::Ints(vec![0, 2, 1, 3]);
                self.builder
                    .apply("Transpose", &[prefix], &[("perm", perm)])
            }
        };
        let axis = Attribute::Int(joint.layout.token_axis());
        self.builder
            .write("Concat", &[&prefix, behind], &[joined], &[("axis", axis)]);
    }

    /// Adds `[gate ...; 0 ...]` to what the Softmax of `site` reads, the gate in the columns of the prefix. The columns
    /// are counted from the keys, so that nothing needs the scores of every token; `counted` says that the prefix is
    /// among the keys already.
    fn gate(
        &mut self,
        graph: &mut GraphProto,
        site: &Site,
        gate: &str,
        counted: bool,
    ) -> Result<(), Error> {
        let label = &site.node;
        let softmax = graph.node.iter().position(|node| node.label() == label);
        let softmax =
            softmax.ok_or_else(|| Error::unusable(format!("there is no Softmax {label}")))?;
        let scores = graph.node[softmax].input(0).unwrap_or_default().to_owned();
        let place = position_of(graph, &scores)?;
        let builder = &mut self.builder;
        let prefix = dimension(builder, &self.length_of, 2);
        let keys = dimension(builder, &site.key.value, site.key.layout.token_axis());
        let text = match counted {
            true => builder.apply("Sub", &[&keys, &prefix], &[]),
            false => keys,
        };
        let (one, zero) = (builder.floats(&[1.0]), builder.floats(&[0.0]));
        let ones = builder.apply("Expand", &[&one, &prefix], &[]);
        let zeros = builder.apply("Expand", &[&zero, &text], &[]);
        let columns = builder.apply("Concat", &[&ones, &zeros], &[("axis", Attribute::Int(0))]);
        let row = builder.apply("Mul", &[gate, &columns], &[]);
        let gated = builder.apply("Add", &[&scores, &row], &[]);
        graph.node[softmax].input[0] = gated;
        self.insert(Some(place));
        Ok(())
    }

    /// Lets masks take the number of tokens from the text alone, as [`Splice::widen`] adds the prefix to them.
    fn count_text_alone(&mut self, graph: &mut GraphProto, joint: &Joint) -> Result<(), Error> {
        let counts = self.counts.iter().filter(|count| count.of == joint.value);
        for count in counts {
            let mut renamed = HashMap::new();
            for node in &count.between {
                let mut copy = node.clone();
                for input in &mut copy.input {
                    if let Some(name) = renamed.get(input) {
                        input.clone_from(name);
                    }
                }
                for output in &mut copy.output {
                    let name = self.builder.fresh();
                    renamed.insert(std::mem::replace(output, name.clone()), name);
                }
                copy.name = copy.output.first().cloned();
                self.builder.nodes.push(copy);
            }
            let alone = renamed.get(&count.read).unwrap_or(&count.of);
            for node in graph
                .node
                .iter_mut()
                .filter(|node| node.output.contains(&count.shape))
            {
                node.input[0].clone_from(alone);
            }
            let place = position_of(graph, &count.read)?;
            let nodes = std::mem::take(&mut self.builder.nodes);
            self.inserted.push((Some(place), nodes));
        }
        Ok(())
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
        let wide = match self.widened.get(&key) {
            Some(wide) => wide.clone(),
            None => {
                let wide = self.widened(&mask, visible)?;
                let place = graph
                    .node
                    .iter()
                    .position(|node| node.output.contains(&mask));
                self.insert(place);
                self.widened.insert(key, wide.clone());
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
        let length = dimension(builder, &self.length_of, 2);
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

fn position_of(graph: &GraphProto, value: &str) -> Result<usize, Error> {
    let makes = |node: &NodeProto| node.output.iter().any(|output| output == value);
    let position = graph.node.iter().position(makes);
    position.ok_or_else(|| Error::unusable(format!("no node makes {value}")))
}

/// Dimension `axis` of `value` as a list of one integer.
fn dimension(builder: &mut Builder, value: &str, axis: i64) -> String {
    let shape = builder.apply("Shape", &[value], &[]);
    let axis = builder.ints(&[axis]);
    builder.apply("Gather", &[&shape, &axis], &[("axis", Attribute::Int(0))])
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
