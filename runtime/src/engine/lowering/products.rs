//! Products with weights, and what becomes part of them.

use preface_graph::onnx::NodeProto;

use super::{
    Refused, Value, Walk,
    draft::{Kind, Matrix, Part, Weight},
    layout_numbers,
    statics::Static,
};
use crate::engine::executor::program::Function;

impl Walk<'_> {
    /// A product with a weight, or of queries and keys, or of their weights and values.
    pub(super) fn product(&mut self, node: &NodeProto) -> Result<Value, Refused> {
        let right = node.input(1).unwrap_or_default();
        if self.is_dynamic(right) {
            return self.attention_product(node);
        }
        let refused = |reason: &str| Refused::node(node, reason);
        let mut rows = self.rows(node, 0)?;
        let shape = self.dims(right)?;
        let mut scale = 1.0;
        let (turned, plain) = match node.op_type() {
            "Gemm" => {
                let plain = node.int("transA", 0) == 0
                    && [node.float("alpha", 1.0), node.float("beta", 1.0)] == [1.0; 2];
                (node.int("transB", 0) == 1, plain)
            }
            "FusedMatMul" => {
                let others = ["transA", "transBatchA", "transBatchB"];
                scale = node.float("alpha", 1.0);
                let plain = others.iter().all(|name| node.int(name, 0) == 0);
                (node.int("transB", 0) == 1, plain)
            }
            _ => (false, true),
        };
        let [height, width] = shape[..] else {
            return Err(refused("multiplies by something else than a matrix"));
        };
        let (inputs, outputs) = if turned {
            (width, height)
        } else {
            (height, width)
        };
        let last = rows.layout.axes.last().cloned().unwrap_or_default();
        let whole = rows.layout.inner() == last && rows.layout.is_rows() && rows.joined.is_none();
        if !plain || !whole || layout_numbers(&rows.layout) != inputs {
            return Err(refused("multiplies something else than whole rows"));
        }
        let input = self.run(&rows)?;
        let weight = match self.is_table(right, turned) {
            true => Weight::Table,
            false => Weight::Packed(self.draft.weight(Matrix {
                name: right.to_owned(),
                inputs,
                outputs,
                turned,
            })),
        };
        let bias = match node.input(2).filter(|_| node.op_type() == "Gemm") {
            None => None,
            Some(name) => Some(
                self.bias(name, outputs)?
                    .ok_or_else(|| refused("adds something else than a bias"))?,
            ),
        };
        let kind = Kind::Product {
            weight,
            bias,
            input,
            residual: None,
        };
        rows.operation = self.draft.add(kind, outputs);
        let dims = self.dims(&node.output[0])?;
        rows.layout = self.plain(&dims);
        rows.scale = scale;
        rows.sole = true;
        Ok(Value::Rows(rows))
    }

    /// Whether the logits multiply by the embedding table, `turned` as it lies.
    fn is_table(&self, name: &str, turned: bool) -> bool {
        let table = &self.base.description.embedding_table;
        let transposed = self.wiring.producer(name).is_some_and(|node| {
            node.op_type() == "Transpose"
                && node.input(0) == Some(table)
                && node.ints("perm").is_none_or(|perm| perm == [1, 0])
        });
        self.in_logits && (turned && name == table || !turned && transposed)
    }

    /// Where a bias of `outputs` numbers is among the constants.
    fn bias(&mut self, name: &str, outputs: usize) -> Result<Option<usize>, Refused> {
        let Static::Constant(numbers) = self.statics.of(name, &mut self.counted)? else {
            return Ok(None);
        };
        let last = numbers.shape.last().copied().unwrap_or(1);
        let fits = last == outputs && numbers.values.len() == outputs;
        Ok(fits.then(|| self.draft.constant(&numbers.values)))
    }

    /// An addition; a bias or a residual becomes part of the product that it is added to.
    pub(super) fn addition(&mut self, node: &NodeProto) -> Result<Value, Refused> {
        for (product, other) in [(0, 1), (1, 0)] {
            if let Some(value) = self.join_product(node, product, other)? {
                return Ok(value);
            }
        }
        let operands = self.operands(node)?;
        self.computed(node, Function::Add, operands)
    }

    /// Makes a bias or a residual of operand `other` where operand `product` is a product that takes one.
    fn join_product(
        &mut self,
        node: &NodeProto,
        product: usize,
        other: usize,
    ) -> Result<Option<Value>, Refused> {
        let names = [product, other].map(|index| node.input(index).unwrap_or_default());
        if !self.is_dynamic(names[0]) {
            return Ok(None);
        }
        let rows = self.rows(node, product)?;
        let numbers = self.draft.operations[rows.operation].numbers;
        let whole = rows.sole && rows.scale == 1.0 && rows.layout.is_run(numbers);
        let same_shape = self.fact(names[0])?.same_shape(self.fact(&node.output[0])?);
        let Kind::Product {
            weight,
            bias,
            residual,
            ..
        } = &self.draft.operations[rows.operation].kind
        else {
            return Ok(None);
        };
        if !whole || !same_shape || residual.is_some() {
            return Ok(None);
        }
        let takes_residual = *weight != Weight::Table;
        let has_bias = bias.is_some();
        let (mut new_bias, mut new_residual) = (None, None);
        if !self.is_dynamic(names[1]) {
            if !has_bias {
                new_bias = self.bias(names[1], numbers)?;
            }
        } else if takes_residual {
            let added = self.rows(node, other)?;
            let fits = added.scale == 1.0
                && added.layout.is_rows()
                && added.layout.is_run(numbers)
                && !self.depends(added.operation, rows.operation);
            new_residual = fits.then_some(Part {
                operation: added.operation,
                first: added.layout.first,
            });
        }
        if new_bias.is_none() && new_residual.is_none() {
            return Ok(None);
        }
        if let Kind::Product { bias, residual, .. } =
            &mut self.draft.operations[rows.operation].kind
        {
            *bias = bias.or(new_bias);
            *residual = new_residual;
        }
        Ok(Some(Value::Rows(rows)))
    }

    /// Whether `operation` needs `other`.
    fn depends(&self, operation: usize, other: usize) -> bool {
        let mut open = vec![operation];
        let mut seen = vec![false; self.draft.operations.len()];
        while let Some(operation) = open.pop() {
            if operation == other {
                return true;
            }
            if !std::mem::replace(&mut seen[operation], true) {
                open.extend(self.draft.operations[operation].inputs());
            }
        }
        false
    }
}
