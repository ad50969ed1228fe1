//! Products with turned or scaled operands, of com.microsoft.

use super::writer::Writer;
use crate::{Error, onnx::data_type};

impl Writer<'_> {
    /// `FusedMatMul`: `alpha op(A) op(B)`.
    pub(super) fn fused_matmul(&mut self) -> Result<(), Error> {
        if ["transBatchA", "transBatchB"].map(|name| self.node.int(name, 0)) != [0; 2] {
            return Err(self.refuse("a product that moves its batches is not known"));
        }
        let mut operands = [self.input(0)?.to_owned(), self.input(1)?.to_owned()];
        for (index, name) in ["transA", "transB"].iter().enumerate() {
            if self.node.int(name, 0) == 1 {
                let rank = self.rank(index) as i64;
                let mut perm: Vec<i64> = (0..rank).collect();
                let last = perm.len().saturating_sub(1);
                perm.swap(last, last.saturating_sub(1));
                let operand = operands[index].clone();
                operands[index] = self.transpose(&operand, &perm);
            }
        }
        let product = self.apply("MatMul", &[&operands[0], &operands[1]]);
        let alpha = f64::from(self.node.float("alpha", 1.0));
        let alpha = self.builder.scalar(data_type::FLOAT, alpha);
        let output = self.node.output[0].clone();
        self.builder
            .write("Mul", &[&product, &alpha], &[&output], &[]);
        Ok(())
    }
}
