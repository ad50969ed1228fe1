//! Where a base's positions and its compute go.

use preface_graph::{Base, Description, onnx::GraphProto, wiring::Wiring};
use serde::{Deserialize, Serialize};

use crate::form::Form;

/// Tokens of prompt, template, examples and texts against the base's positions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenBudget {
    /// Virtual tokens.
    pub prompt: usize,
    /// Tokens of the template around a text, special tokens included.
    #[serde(default)]
    pub template: usize,
    /// Tokens of the examples that stand in every question.
    #[serde(default)]
    pub examples: usize,
    /// Tokens of the longest training text with all that surrounds it; the prompt is not counted.
    pub longest: usize,
    /// Tokens of the median training text, likewise.
    pub typical: usize,
    /// Positions of the base; absent where nothing bounds them.
    pub positions: Option<usize>,
}

/// One part of a question and what it costs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// The part.
    pub part: String,
    /// Its tokens.
    pub tokens: usize,
    /// Multiply-adds that an answer would need less without it.
    pub multiply_adds: u64,
    /// The same as a part of all.
    pub share: f64,
}

/// What one token costs in a base.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Multiply-adds of a token in the products with weights.
    pub token: u64,
    /// Multiply-adds of a query with one key and one value, over all layers.
    pub pair: u64,
    /// Layers.
    pub layers: usize,
}

impl Rates {
    /// The rates of a base.
    pub fn of(base: &Base) -> Self {
        let description = &base.description;
        Self {
            token: base.model.graph.as_ref().map_or(0, weights_of_products),
            pair: 2 * (description.hidden * description.layers.len()) as u64,
            layers: description.layers.len(),
        }
    }

    /// Multiply-adds for `rows` tokens that ask, with `prefix` keys and values at `layers` layers beside them.
    fn total(self, rows: usize, prefix: usize, layers: usize) -> u64 {
        let (rows, prefix) = (rows as u64, prefix as u64);
        let own = self.pair * rows * rows;
        let beside = self.pair * rows * prefix * layers as u64 / self.layers.max(1) as u64;
        self.token * rows + own + beside
    }
}

/// Elements of the weights that a token is multiplied with: matrices that a product reads. Tables that are looked up
/// are none.
fn weights_of_products(graph: &GraphProto) -> u64 {
    let wiring = Wiring::of(graph);
    let products = graph
        .node
        .iter()
        .filter(|node| matches!(node.op_type(), "MatMul" | "Gemm" | "FusedMatMul"));
    let operands = products.flat_map(|node| node.input.iter().take(2));
    let weights = operands.filter_map(|operand| {
        let origin = wiring.origin(operand, &["Transpose", "Cast", "Identity"]);
        wiring
            .initializer(origin)
            .filter(|tensor| tensor.dims.len() == 2)
    });
    weights.map(|tensor| tensor.elements() as u64).sum()
}

impl TokenBudget {
    /// What each part of a typical question costs.
    pub fn costs(&self, form: &Form, rates: Rates) -> Vec<Cost> {
        let (slots, prefix, layers) = match form {
            Form::Embeddings { tokens, .. } => (*tokens, 0, 0),
            Form::KeyValues { tokens, layers, .. } => (0, *tokens, layers.len()),
        };
        let whole = rates.total(slots + self.typical, prefix, layers);
        let text = self.typical.saturating_sub(self.template + self.examples);
        let without = |tokens: usize| {
            rates.total(
                slots + self.typical - tokens.min(self.typical),
                prefix,
                layers,
            )
        };
        let prompt = whole - rates.total(self.typical, 0, 0);
        let parts = [
            ("prompt", self.prompt, prompt),
            ("template", self.template, whole - without(self.template)),
            ("examples", self.examples, whole - without(self.examples)),
            ("typical text", text, whole - without(text)),
        ];
        parts
            .map(|(part, tokens, multiply_adds)| Cost {
                part: part.into(),
                tokens,
                multiply_adds,
                share: multiply_adds as f64 / whole.max(1) as f64,
            })
            .into()
    }

    /// Positions that the longest text leaves free, less than none where it does not fit; `None` where nothing bounds
    /// them.
    pub fn left(&self, form: &Form, base: &Description) -> Option<i64> {
        let positions = i64::try_from(self.positions?).ok()?;
        Some(positions - (self.longest + form.taken(base)) as i64)
    }
}

#[cfg(test)]
mod tests {
    use preface_graph::{builder::Builder, onnx::TensorProto};

    use super::*;
    use crate::form::Moves;

    #[test]
    fn products_cost_their_weights_and_lookups_nothing() {
        let mut graph = GraphProto {
            initializer: vec![
                TensorProto::of_floats("table", &[9, 2], &[0.0; 18]),
                TensorProto::of_floats("weight", &[2, 3], &[0.0; 6]),
                TensorProto::of_floats("scale", &[3], &[0.0; 3]),
            ],
            ..GraphProto::default()
        };
        let mut builder = Builder::beside(&graph, "t", 17);
        let rows = builder.apply("Gather", &["table", "ids"], &[]);
        let product = builder.apply("MatMul", &[&rows, "weight"], &[]);
        builder.apply("MatMul", &[&product, &product], &[]);
        builder.apply("Mul", &[&product, "scale"], &[]);
        let tied = builder.apply("Transpose", &["table"], &[]);
        builder.apply("MatMul", &[&rows, &tied], &[]);
        builder.append_to(&mut graph);
        assert_eq!(weights_of_products(&graph), 6 + 18);
    }

    #[test]
    fn parts_cost_what_leaving_them_out_saves() {
        let rates = Rates {
            token: 1000,
            pair: 12,
            layers: 6,
        };
        let budget = TokenBudget {
            prompt: 4,
            template: 2,
            examples: 0,
            longest: 20,
            typical: 10,
            positions: Some(64),
        };
        let rows = Form::Embeddings {
            tokens: 4,
            hidden: 8,
            place: crate::form::Place::Before,
        };
        let costs = budget.costs(&rows, rates);
        assert_eq!(costs[0].multiply_adds, 4 * 1000 + 12 * (14 * 14 - 10 * 10));
        assert_eq!(costs[1].multiply_adds, 2 * 1000 + 12 * (14 * 14 - 12 * 12));
        assert_eq!((costs[2].multiply_adds, costs[3].tokens), (0, 8));
        let prefix = Form::KeyValues {
            tokens: 4,
            first_layer: 4,
            layers: vec![
                preface_graph::LayerGeometry {
                    kv_heads: 1,
                    head_dim: 1
                };
                2
            ],
            gated: false,
            moves: Moves::Nothing,
        };
        assert_eq!(
            budget.costs(&prefix, rates)[0].multiply_adds,
            12 * 10 * 4 / 3
        );
    }
}
