//! The Gaussian error linear unit as one node, where an exporter wrote it out.

use std::f64::consts::FRAC_1_SQRT_2;

use preface_graph::{
    facts::Facts,
    onnx::{GraphProto, NodeProto},
    wiring::Wiring,
};

/// Makes every `x / 2 (1 + erf(x / sqrt 2))`, in whatever order it is multiplied, one `com.microsoft:Gelu`; its parts
/// stay for those that read them.
///
/// One node forward and one rule backward touch the widest values of a layer ten times instead of fifteen.
pub(super) fn fuse(graph: &mut GraphProto, facts: &Facts) {
    let wiring = Wiring::of(graph);
    let nodes = graph.node.iter().enumerate();
    let found: Vec<(usize, String)> = nodes
        .filter_map(|(index, node)| {
            let finder = Finder {
                wiring: &wiring,
                facts,
            };
            Some((index, finder.unit(node)?.to_owned()))
        })
        .collect();
    for (index, input) in found {
        let node = &mut graph.node[index];
        node.op_type = Some("Gelu".into());
        node.domain = Some("com.microsoft".into());
        node.input = vec![input];
    }
}

struct Finder<'a> {
    wiring: &'a Wiring<'a>,
    facts: &'a Facts,
}

impl<'a> Finder<'a> {
    /// The input of the unit that the product `node` ends.
    fn unit(&self, node: &'a NodeProto) -> Option<&'a str> {
        let [left, right] = self.pair(node, "Mul")?;
        [(left, right), (right, left)]
            .into_iter()
            .find_map(|(own, nested)| {
                let [one, other] = self.pair(self.wiring.producer(nested)?, "Mul")?;
                let factors = [own, one, other];
                factors.iter().find(|factor| self.is(factor, 0.5))?;
                let input = factors.iter().find_map(|factor| self.area(factor))?;
                factors.contains(&input).then_some(input)
            })
    }

    /// `x` of `1 + erf(x / sqrt 2)`.
    fn area(&self, value: &'a str) -> Option<&'a str> {
        let sum = self.pair(self.wiring.producer(value)?, "Add")?;
        let error = self.beside(sum, 1.0)?;
        let error = self
            .wiring
            .producer(error)
            .filter(|node| node.op_type() == "Erf")?;
        let scaled = self.wiring.producer(error.input(0)?)?;
        match scaled.op_type() {
            "Div" => {
                let [input, root] = self.pair(scaled, "Div")?;
                self.is(root, 1.0 / FRAC_1_SQRT_2).then_some(input)
            }
            _ => self.beside(self.pair(scaled, "Mul")?, FRAC_1_SQRT_2),
        }
    }

    fn pair(&self, node: &'a NodeProto, operator: &str) -> Option<[&'a str; 2]> {
        let fits = node.operator() == operator;
        fits.then(|| Some([node.input(0)?, node.input(1)?]))
            .flatten()
    }

    /// The operand beside a constant.
    fn beside(&self, [left, right]: [&'a str; 2], number: f64) -> Option<&'a str> {
        match (self.is(left, number), self.is(right, number)) {
            (false, true) => Some(left),
            (true, false) => Some(right),
            _ => None,
        }
    }

    fn is(&self, value: &str, number: f64) -> bool {
        let known = self
            .facts
            .get(value)
            .and_then(|fact| fact.constant_scalar());
        known.is_some_and(|known| (known - number).abs() < 1e-3 * number)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use preface_graph::{
        builder::Builder,
        onnx::{ValueInfoProto, data_type},
    };

    use super::*;

    /// The operator of the last node behind `x` after fusing.
    fn last(build: impl Fn(&mut Builder, &str, &str) -> String) -> String {
        let mut graph = GraphProto {
            input: vec![ValueInfoProto::tensor("x", data_type::FLOAT, &["a", "4"])],
            ..GraphProto::default()
        };
        let mut builder = Builder::beside(&graph, "t", 17);
        let number = |value| move |builder: &mut Builder| builder.scalar(data_type::FLOAT, value);
        let (root, one, half) = (
            number(2_f64.sqrt())(&mut builder),
            number(1.0)(&mut builder),
            number(0.5)(&mut builder),
        );
        let scaled = builder.apply("Div", &["x", &root], &[]);
        let error = builder.apply("Erf", &[&scaled], &[]);
        let area = builder.apply("Add", &[&one, &error], &[]);
        build(&mut builder, &area, &half);
        builder.append_to(&mut graph);
        let facts = Facts::of(&graph, &[HashMap::from([("x".to_owned(), vec![3, 4])])]);
        fuse(&mut graph, &facts);
        let node = graph.node.last().unwrap();
        format!("{} {}", node.operator(), node.input.join(" "))
    }

    #[test]
    fn every_order_is_one_node() {
        type Build = fn(&mut Builder, &str, &str) -> String;
        let table: &[Build] = &[
            |builder, area, half| {
                let scaled = builder.apply("Mul", &["x", half], &[]);
                builder.apply("Mul", &[&scaled, area], &[])
            },
            |builder, area, half| {
                let product = builder.apply("Mul", &["x", area], &[]);
                builder.apply("Mul", &[half, &product], &[])
            },
            |builder, area, half| {
                let part = builder.apply("Mul", &[area, half], &[]);
                builder.apply("Mul", &["x", &part], &[])
            },
        ];
        for build in table {
            assert_eq!(last(build), "com.microsoft:Gelu x");
        }
    }

    #[test]
    fn another_input_is_another_function() {
        let found = last(|builder, area, half| {
            let other = builder.apply("Neg", &["x"], &[]);
            let scaled = builder.apply("Mul", &[&other, half], &[]);
            builder.apply("Mul", &[&scaled, area], &[])
        });
        assert!(found.starts_with("Mul"), "{found}");
    }
}
