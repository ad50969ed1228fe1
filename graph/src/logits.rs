//! The scores of a language-modelling head, and the projection on the vocabulary that makes them.

use serde::{Deserialize, Serialize};

use crate::{
    facts::Facts,
    onnx::{NodeProto, TensorProto},
    wiring::Wiring,
};

/// Scores of every token of the vocabulary at every place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logits {
    /// The graph's output `[batch, sequence, vocabulary]`; of an encoder-decoder the decoder's rows.
    pub value: String,
    /// Scores a row: the embedding table's rows, or a few more or less where one of the two is padded.
    pub vocabulary: usize,
    /// The product that makes them; `None` where something other than a bias stands between it and the output,
    /// a scale or a soft cap, or its weight is no plain tensor.
    pub projection: Option<Projection>,
}

/// `logits = input weight + bias`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Projection {
    /// The rows `[batch, sequence, width]` that the product reads.
    pub input: String,
    /// The initializer with the weight, `[width, vocabulary]`, in floats of 16 or 32 bits.
    pub weight: String,
    /// Whether the weight lies the other way round, `[vocabulary, width]`.
    pub transposed: bool,
    /// The initializer with the bias `[vocabulary]`, dimensions of 1 before it.
    pub bias: Option<String>,
    /// Width of the rows.
    pub width: usize,
}

/// What the logits of a base must look like.
pub(crate) struct Expected<'a> {
    /// `[batch, sequence]` at each size.
    pub rows: Vec<[i64; 2]>,
    /// Rows of the embedding table.
    pub vocabulary: usize,
    /// The rows that heads read, which are no logits however wide they are.
    pub hidden_rows: &'a str,
}

/// The first output that is as `expected`.
pub(crate) fn logits(wiring: &Wiring, facts: &Facts, expected: &Expected) -> Option<Logits> {
    let finder = Finder { wiring, facts };
    let mut outputs = wiring.graph.output.iter().map(|output| output.name());
    outputs.find_map(|value| {
        let vocabulary = finder.width(value, &expected.rows)?;
        let enough = vocabulary * 10 >= expected.vocabulary * 9;
        (enough && value != expected.hidden_rows).then(|| Logits {
            value: value.to_owned(),
            vocabulary,
            projection: finder.projection(value, &expected.rows, vocabulary),
        })
    })
}

/// Nodes that leave scores as they are.
const UNCHANGED: &[&str] = &["Identity", "Reshape", "Cast"];

struct Finder<'a> {
    wiring: &'a Wiring<'a>,
    facts: &'a Facts,
}

impl<'a> Finder<'a> {
    /// The constant last dimension of `value`, where the others are `rows`.
    fn width(&self, value: &str, rows: &[[i64; 2]]) -> Option<usize> {
        let fact = self.facts.get(value).filter(|fact| fact.is_float())?;
        let fits = |(shape, rows): (&Vec<i64>, &[i64; 2])| shape.len() == 3 && shape[..2] == *rows;
        let all = fact.shapes.iter().zip(rows).all(fits);
        usize::try_from(fact.constant_dim(2).filter(|_| all)?).ok()
    }

    fn projection(
        &self,
        value: &'a str,
        rows: &[[i64; 2]],
        vocabulary: usize,
    ) -> Option<Projection> {
        let mut node = self.made_by(value)?;
        let mut bias = None;
        if node.op_type() == "Add" {
            let wide = |index: usize| self.vector(node.input(index)?, vocabulary);
            let other = match (wide(0), wide(1)) {
                (Some(name), None) => {
                    bias = Some(name);
                    1
                }
                (None, Some(name)) => {
                    bias = Some(name);
                    0
                }
                _ => return None,
            };
            node = self.made_by(node.input(other)?)?;
        }
        let mut turned = match node.op_type() {
            "MatMul" => false,
            "Gemm" | "FusedMatMul" => self.plain(node)?,
            _ => return None,
        };
        if let Some(added) = node.input(2) {
            bias = Some(self.vector(added, vocabulary).filter(|_| bias.is_none())?);
        }
        let mut weight = self.wiring.origin(node.input(1)?, &["Cast"]);
        if let Some(transpose) = self.wiring.producer(weight) {
            let swaps = transpose.ints("perm").is_none_or(|perm| perm == [1, 0]);
            (transpose.op_type() == "Transpose" && swaps).then_some(())?;
            turned = !turned;
            weight = self.wiring.origin(transpose.input(0)?, &["Cast"]);
        }
        let tensor = self.wiring.initializer(weight)?;
        let [left, right] = tensor.dims.as_slice() else {
            return None;
        };
        let (width, columns) = if turned { (right, left) } else { (left, right) };
        let width = usize::try_from(*width).ok()?;
        let input = self.rows_before(node.input(0)?, rows, width)?;
        (*columns == vocabulary as i64).then(|| Projection {
            input: input.to_owned(),
            weight: weight.to_owned(),
            transposed: turned,
            bias: bias.map(str::to_owned),
            width,
        })
    }

    /// The node that makes `value`, through nodes that leave it as it is.
    fn made_by(&self, value: &'a str) -> Option<&'a NodeProto> {
        let origin = self.wiring.origin(value, UNCHANGED);
        self.wiring.producer(origin)
    }

    /// Whether the second operand of a product without factors is transposed.
    fn plain(&self, node: &NodeProto) -> Option<bool> {
        let factors = ["alpha", "beta"].map(|name| node.float(name, 1.0));
        let others = ["transA", "transBatchA", "transBatchB"].map(|name| node.int(name, 0));
        (factors == [1.0; 2] && others == [0; 3]).then_some(node.int("transB", 0) == 1)
    }

    fn vector(&self, name: &'a str, elements: usize) -> Option<&'a str> {
        let name = self.wiring.origin(name, &["Identity"]);
        let fits = |tensor: &&TensorProto| {
            let elements = elements as i64;
            tensor.dims.last() == Some(&elements) && tensor.dims.iter().product::<i64>() == elements
        };
        self.wiring.initializer(name).filter(fits).map(|_| name)
    }

    /// `value`, or what it was before it was made flat, as `[batch, sequence, width]`.
    fn rows_before(&self, value: &'a str, rows: &[[i64; 2]], width: usize) -> Option<&'a str> {
        let mut value = value;
        loop {
            if self.width(value, rows) == Some(width) {
                return Some(value);
            }
            let node = self.wiring.producer(value);
            let node = node.filter(|node| UNCHANGED.contains(&node.op_type()))?;
            value = node.input(0)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::{
        builder::{Attribute, Builder},
        onnx::{GraphProto, ValueInfoProto, data_type},
    };

    type Head = fn(&mut Builder) -> String;
    type Case = (
        &'static str,
        Head,
        Option<(&'static str, bool, Option<&'static str>)>,
    );

    /// The logits that are found of `head` on `rows` [2, 7, 4] with a table of 10 rows.
    fn found(head: Head) -> Option<Logits> {
        let tensor =
            |name: &str, dims: &[i64], count| TensorProto::of_floats(name, dims, &vec![0.5; count]);
        let mut graph = GraphProto {
            input: vec![ValueInfoProto::tensor(
                "rows",
                data_type::FLOAT,
                &["b", "s", "4"],
            )],
            initializer: vec![
                tensor("table", &[10, 4], 40),
                tensor("weight", &[4, 12], 48),
                tensor("few", &[4, 3], 12),
                tensor("bias", &[12], 12),
                tensor("row", &[1, 12], 12),
                TensorProto::of_raw("half", data_type::FLOAT16, &[4, 12], vec![0; 96]),
            ],
            ..GraphProto::default()
        };
        let mut builder = Builder::beside(&graph, "t", 17);
        let output = head(&mut builder);
        builder.append_to(&mut graph);
        graph.output = vec![ValueInfoProto::tensor(&output, data_type::FLOAT, &[])];
        let shapes = HashMap::from([("rows".to_owned(), vec![2, 7, 4])]);
        let facts = Facts::of(&graph, &[shapes]);
        let expected = Expected {
            rows: vec![[2, 7]],
            vocabulary: 10,
            hidden_rows: "rows",
        };
        logits(&Wiring::of(&graph), &facts, &expected)
    }

    #[test]
    fn a_projection_is_found_in_every_form() {
        let table: &[Case] = &[
            (
                "tied table",
                |b| {
                    let turn = [("perm", Attribute::Ints(vec![1, 0]))];
                    let turned = b.apply("Transpose", &["table"], &turn);
                    b.apply("MatMul", &["rows", &turned], &[])
                },
                Some(("table", true, None)),
            ),
            (
                "padded weight with bias",
                |b| {
                    let scores = b.apply("MatMul", &["rows", "weight"], &[]);
                    b.apply("Add", &["bias", &scores], &[])
                },
                Some(("weight", false, Some("bias"))),
            ),
            (
                "bias as a row",
                |b| {
                    let scores = b.apply("MatMul", &["rows", "weight"], &[]);
                    b.apply("Add", &[&scores, "row"], &[])
                },
                Some(("weight", false, Some("row"))),
            ),
            (
                "weight of 16 bits",
                |b| {
                    let wide = b.cast("half", data_type::FLOAT);
                    b.apply("MatMul", &["rows", &wide], &[])
                },
                Some(("half", false, None)),
            ),
            (
                "flat Gemm",
                |b| {
                    let flat = b.ints(&[-1, 4]);
                    let flat = b.apply("Reshape", &["rows", &flat], &[]);
                    let scores = b.apply("Gemm", &[&flat, "weight", "bias"], &[]);
                    let shape = b.ints(&[2, 7, 12]);
                    b.apply("Reshape", &[&scores, &shape], &[])
                },
                Some(("weight", false, Some("bias"))),
            ),
            (
                "soft cap",
                |b| {
                    let scores = b.apply("MatMul", &["rows", "weight"], &[]);
                    b.apply("Tanh", &[&scores], &[])
                },
                None,
            ),
        ];
        for (name, head, expected) in table {
            let logits = found(*head).unwrap();
            let projection = logits.projection.map(|projection| {
                assert_eq!((projection.input.as_str(), projection.width), ("rows", 4));
                (projection.weight, projection.transposed, projection.bias)
            });
            let expected = expected
                .map(|(weight, turned, bias)| (weight.to_owned(), turned, bias.map(str::to_owned)));
            assert_eq!(projection, expected, "{name}");
        }
    }

    #[test]
    fn a_head_of_a_few_labels_makes_no_logits() {
        assert_eq!(found(|b| b.apply("MatMul", &["rows", "few"], &[])), None);
        assert_eq!(found(|_| "rows".into()), None);
    }
}
