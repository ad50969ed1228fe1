//! Products of 16-bit floats, for devices that have units for them: all else, and what is added up, stays in 32 bits
//! (Micikevicius et al. 2018, section 3).

use std::{collections::HashMap, mem};

use preface_graph::{builder::Attribute, onnx::data_type};

use super::Assembly;

/// Operators that multiply matrices.
const PRODUCTS: [&str; 3] = ["MatMul", "Gemm", "com.microsoft:FusedMatMul"];

impl Assembly<'_> {
    /// Rounds what products read, and what they give, to 16 bits. Weights are rounded once, when ONNX Runtime folds constants.
    /// Where they are `emulated`, it computes products in 32 bits and leaves rounding out that nothing else reads: there a
    /// node does that leaves the numbers as they are.
    pub(super) fn halve_products(&mut self, emulated: bool) {
        let facts = self.facts();
        let is_float = |name: &String| {
            let fact = facts.get(name);
            name.is_empty() || fact.is_some_and(|fact| fact.data_type == data_type::FLOAT)
        };
        let mut halves: HashMap<String, String> = HashMap::new();
        for mut node in mem::take(&mut self.graph().node) {
            let product = PRODUCTS.contains(&node.operator().as_str());
            if !product || !node.input.iter().chain(&node.output).all(is_float) {
                self.builder.nodes.push(node);
                continue;
            }
            for input in node.input.iter_mut().filter(|input| !input.is_empty()) {
                let half = halves.entry(input.clone());
                let half = half.or_insert_with(|| {
                    let half = self.builder.cast(input, data_type::FLOAT16);
                    self.read(half, emulated)
                });
                input.clone_from(half);
            }
            let half = self.builder.fresh();
            let whole = mem::replace(&mut node.output[0], half.clone());
            self.builder.nodes.push(node);
            let half = self.read(half, emulated);
            let to = ("to", Attribute::Int(data_type::FLOAT.into()));
            self.builder.write("Cast", &[&half], &[&whole], &[to]);
        }
        self.flush();
    }

    /// The value, behind a node that reads it where that `is_wanted`.
    fn read(&mut self, value: String, is_wanted: bool) -> String {
        if !is_wanted {
            return value;
        }
        self.builder.apply("Max", &[&value, &value], &[])
    }
}
