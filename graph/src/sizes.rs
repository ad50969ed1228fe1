//! Sizes read from the graph's inputs, so that no value is computed for its shape alone.

use std::collections::HashMap;

use crate::{
    builder::{Attribute, Builder, attribute},
    facts::{Fact, Facts},
    onnx::GraphProto,
    wiring::Wiring,
};

/// Makes every `Shape` of a computed value read the sizes of the graph's inputs instead, where each of its dimensions
/// is constant or that of an input.
pub(crate) fn read_from_inputs(graph: &mut GraphProto, opset: i64, facts: &Facts) {
    let mut builder = Builder::beside(graph, "sizes", opset);
    let wiring = Wiring::of(graph);
    let inputs: Vec<(&str, &Fact)> = graph
        .input
        .iter()
        .filter(|input| wiring.initializer(input.name()).is_none())
        .filter_map(|input| Some((input.name(), facts.get(input.name())?)))
        .collect();
    let mut written: HashMap<Size, String> = HashMap::new();
    let mut rewritten = HashMap::new();
    let shapes = graph.node.iter().enumerate();
    for (index, node) in shapes.filter(|(_, node)| node.op_type() == "Shape") {
        let Some(fact) = node.input(0).and_then(|value| facts.get(value)) else {
            continue;
        };
        let rank = fact.rank() as i64;
        let bound = |name: &str, default: i64| {
            let place = node.int(name, default);
            (if place < 0 { place + rank } else { place }).clamp(0, rank) as usize
        };
        let axes = bound("start", 0)..bound("end", rank);
        let found: Option<Vec<Size>> = axes.map(|axis| Size::of(fact, axis, &inputs)).collect();
        if let Some(sizes) = found.filter(|_| wiring.producer(&node.input[0]).is_some()) {
            let names = sizes.into_iter().map(|size| {
                let name = written
                    .entry(size)
                    .or_insert_with(|| size.write(&mut builder));
                name.clone()
            });
            rewritten.insert(index, names.collect::<Vec<_>>());
        }
    }
    for (index, sizes) in rewritten {
        let node = &mut graph.node[index];
        node.op_type = Some("Concat".into());
        node.input = sizes;
        node.attribute = vec![attribute("axis", &Attribute::Int(0))];
    }
    builder.insert_into(graph, 0);
}

/// One dimension.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Size<'a> {
    Constant(i64),
    Input(&'a str, usize),
}

impl<'a> Size<'a> {
    fn of(fact: &Fact, axis: usize, inputs: &[(&'a str, &Fact)]) -> Option<Self> {
        if let Some(size) = fact.constant_dim(axis) {
            return Some(Self::Constant(size));
        }
        inputs.iter().find_map(|(name, input)| {
            let same = |place: &usize| {
                let mut shapes = input.shapes.iter().zip(&fact.shapes);
                shapes.all(|(input, own)| input[*place] == own[axis])
            };
            (0..input.rank())
                .find(same)
                .map(|place| Self::Input(name, place))
        })
    }

    /// A list of one integer.
    fn write(&self, builder: &mut Builder) -> String {
        match self {
            Self::Constant(size) => builder.ints(&[*size]),
            Self::Input(name, place) => {
                let shape = builder.apply("Shape", &[name], &[]);
                let place = builder.ints(&[*place as i64]);
                builder.apply("Gather", &[&shape, &place], &[("axis", Attribute::Int(0))])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{ValueInfoProto, data_type};

    #[test]
    fn shapes_of_computed_values_are_read_from_inputs() {
        let mut graph = GraphProto {
            input: vec![ValueInfoProto::tensor(
                "x",
                data_type::FLOAT,
                &["a", "b", "4"],
            )],
            ..GraphProto::default()
        };
        let mut builder = Builder::beside(&graph, "t", 17);
        let swap = [("perm", Attribute::Ints(vec![1, 2, 0]))];
        let turned = builder.apply("Transpose", &["x"], &swap);
        let shape = builder.apply("Shape", &[&turned], &[]);
        builder.append_to(&mut graph);
        let sizes =
            [vec![2, 3, 4], vec![5, 7, 4]].map(|shape| HashMap::from([("x".to_owned(), shape)]));
        let before = Facts::of(&graph, &sizes);
        read_from_inputs(&mut graph, 17, &before);
        let wiring = Wiring::of(&graph);
        assert!(
            !wiring
                .ancestors(&graph.node.last().unwrap().output[0])
                .contains(turned.as_str())
        );
        let after = Facts::of(&graph, &sizes);
        assert_eq!(after.get(&shape), before.get(&shape));
    }
}
