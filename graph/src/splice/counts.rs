//! Counts of keys on which masks depend: a mask grows by columns of its own, and must not count the prefix a second time.

use std::collections::{HashMap, HashSet};

use crate::{attention::Site, facts::Facts, onnx::NodeProto, wiring::Wiring};

/// A `Shape` node on which a mask depends, and the nodes between the keys or values that it counts and what it reads.
pub(super) struct Count {
    /// What the node makes.
    pub shape: String,
    /// Nodes that move numbers, and those that make their shapes, in the order of the graph.
    pub between: Vec<NodeProto>,
    /// What the node reads.
    pub read: String,
    /// The keys or values, before a prefix joins them.
    pub of: String,
}

/// Every count of keys or values on which a mask of `sites` depends without a further `Shape` between.
pub(super) fn counts(wiring: &Wiring, facts: &Facts, sites: &[&Site]) -> Vec<Count> {
    let joints = sites
        .iter()
        .flat_map(|site| [&*site.key.value, &*site.value.value]);
    let joints: HashSet<&str> = joints.collect();
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
        let read = node.input(0).unwrap_or_default();
        let mut search = Search {
            wiring,
            facts,
            joints: &joints,
            depends: HashMap::new(),
            found: None,
        };
        if !search.depends(read) {
            continue;
        }
        let on_the_way = |node: &&NodeProto| {
            let mut outputs = node.output.iter();
            outputs.any(|output| search.depends.get(output.as_str()) == Some(&true))
        };
        counts.extend(search.found.map(|of| {
            Count {
                shape: value.to_owned(),
                between: wiring
                    .graph
                    .node
                    .iter()
                    .filter(on_the_way)
                    .cloned()
                    .collect(),
                read: read.to_owned(),
                of: of.to_owned(),
            }
        }));
    }
    counts
}

/// Nodes that move numbers or repeat them.
const MOVES: &[&str] = &[
    "Cast",
    "Expand",
    "Identity",
    "Reshape",
    "Shape",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
];

/// The way up from a value to the keys or values nearest to it.
struct Search<'a> {
    wiring: &'a Wiring<'a>,
    facts: &'a Facts,
    joints: &'a HashSet<&'a str>,
    /// Whether a value on the way depends on one of the joints.
    depends: HashMap<&'a str, bool>,
    found: Option<&'a str>,
}

impl<'a> Search<'a> {
    fn depends(&mut self, value: &'a str) -> bool {
        if let Some(joint) = self.joints.get(value) {
            self.found.get_or_insert(joint);
            return true;
        }
        if let Some(&known) = self.depends.get(value) {
            return known;
        }
        let node = self.wiring.producer(value);
        let counts = |node: &&NodeProto| {
            let numbers = self.facts.get(value).is_none_or(|fact| fact.is_float());
            !numbers || MOVES.contains(&node.op_type())
        };
        let inputs = node.filter(counts).map_or(&[][..], |node| &node.input);
        let mut depends = false;
        for input in inputs {
            depends |= self.depends(input);
        }
        self.depends.insert(value, depends);
        depends
    }
}
