//! What writes a fused node out: the node, what is known of its inputs, and the operators that all of them need.

use crate::{
    Error,
    builder::{Attribute, Builder},
    facts::{Fact, Facts},
    onnx::{NodeProto, data_type},
};

/// A node to write out, what is known of its inputs, and where its parts go.
pub(super) struct Writer<'a> {
    pub builder: &'a mut Builder,
    pub node: &'a NodeProto,
    pub facts: &'a Facts,
}

impl Writer<'_> {
    pub(super) fn refuse(&self, reason: impl Into<String>) -> Error {
        Error::at(self.node, reason)
    }

    pub(super) fn input(&self, index: usize) -> Result<&str, Error> {
        let input = self.node.input(index);
        input.ok_or_else(|| self.refuse(format!("input {index} is left out")))
    }

    pub(super) fn fact(&self, index: usize) -> Option<&Fact> {
        self.facts.get(self.node.input(index)?)
    }

    pub(super) fn rank(&self, index: usize) -> usize {
        self.fact(index).map_or(0, Fact::rank)
    }

    /// The constant size of the last dimension of input `index`.
    pub(super) fn width(&self, index: usize) -> Result<i64, Error> {
        let fact = self.fact(index);
        let width = fact.and_then(|fact| fact.constant_dim(fact.rank().checked_sub(1)?));
        width.ok_or_else(|| self.refuse(format!("the width of input {index} is not constant")))
    }

    pub(super) fn output(&self, index: usize) -> Option<&str> {
        let output = self.node.output.get(index).map(String::as_str);
        output.filter(|name| !name.is_empty())
    }

    pub(super) fn heads(&self, attribute: &str) -> Result<i64, Error> {
        let heads = self.node.int(attribute, 0);
        match heads > 0 {
            true => Ok(heads),
            false => Err(self.refuse(format!("{attribute} is not given"))),
        }
    }

    pub(super) fn apply(&mut self, operator: &str, inputs: &[&str]) -> String {
        self.builder.apply(operator, inputs, &[])
    }

    pub(super) fn reshape(&mut self, value: &str, shape: &[i64]) -> String {
        let shape = self.builder.ints(shape);
        self.apply("Reshape", &[value, &shape])
    }

    pub(super) fn unsqueeze(&mut self, value: &str, axes: &[i64]) -> String {
        let axes = self.builder.ints(axes);
        self.apply("Unsqueeze", &[value, &axes])
    }

    pub(super) fn transpose(&mut self, value: &str, perm: &[i64]) -> String {
        let perm = [("perm", Attribute::Ints(perm.to_vec()))];
        self.builder.apply("Transpose", &[value], &perm)
    }

    pub(super) fn concat(&mut self, values: &[&str], axis: i64) -> String {
        let axis = [("axis", Attribute::Int(axis))];
        self.builder.apply("Concat", values, &axis)
    }

    pub(super) fn split<const N: usize>(
        &mut self,
        value: &str,
        axis: i64,
        sizes: [i64; N],
    ) -> [String; N] {
        let parts = sizes.map(|_| self.builder.fresh());
        let names: Vec<&str> = parts.iter().map(String::as_str).collect();
        let sizes = self.builder.ints(&sizes);
        let axis = [("axis", Attribute::Int(axis))];
        self.builder.write("Split", &[value, &sizes], &names, &axis);
        parts
    }

    /// Dimension `axis` of `value` as a scalar.
    pub(super) fn size(&mut self, value: &str, axis: i64) -> String {
        let shape = self.apply("Shape", &[value]);
        let axis = self.builder.scalar(data_type::INT64, axis as f64);
        self.apply("Gather", &[&shape, &axis])
    }

    pub(super) fn range(&mut self, from: &str, to: &str) -> String {
        let one = self.builder.scalar(data_type::INT64, 1.0);
        self.apply("Range", &[from, to, &one])
    }

    /// `[batch, tokens, heads * head_dim]` as `[batch, heads, tokens, head_dim]`.
    pub(super) fn apart(&mut self, value: &str, heads: i64) -> String {
        let apart = self.reshape(value, &[0, 0, heads, -1]);
        self.transpose(&apart, &[0, 2, 1, 3])
    }
}
