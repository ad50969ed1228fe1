//! [`PASSES`] as operators that ONNX Runtime calls on the processor.

use std::sync::Mutex;

use ort::{
    operator::{
        BoxedKernel, ComputeContext, KernelContext, Operator, OperatorDomain, OperatorInput,
        OperatorOutput,
    },
    value::{TensorElementType, ValueRef},
};

use crate::autodiff::passes::{DOMAIN, Operand, PASSES, Pass, Rows};

/// Elements that a thread takes at once.
const ELEMENTS: usize = 1 << 16;

/// The operators of all passes.
pub(super) fn domain() -> ort::Result<OperatorDomain> {
    let mut passes = PASSES.iter().copied();
    passes.try_fold(OperatorDomain::new(DOMAIN)?, |domain, pass| {
        domain.add(OnePass(pass))
    })
}

/// A pass as an operator. It tells no shapes ahead: ort passes sizes that are not known on as -1, which ONNX Runtime takes
/// for equal.
struct OnePass(&'static Pass);

impl Operator for OnePass {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        self.0.name
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let operands = self.0.operands.iter();
        operands.map(|_| OperatorInput::required(TensorElementType::Float32))
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(&self, _: &KernelContext<'attr>) -> ort::Result<BoxedKernel<'attr>> {
        let pass = self.0;
        Ok(Box::new(move |context: &ComputeContext| {
            compute(pass, context)
        }))
    }
}

fn compute(pass: &Pass, context: &ComputeContext) -> ort::Result<()> {
    let missing = || ort::Error::new(format!("{} lacks a tensor", pass.name));
    let values: Vec<ValueRef> = (0..pass.operands.len())
        .map(|index| context.input(index)?.ok_or_else(missing))
        .collect::<Result<_, _>>()?;
    let mut operands = Vec::with_capacity(values.len());
    for value in &values {
        operands.push(value.try_extract_tensor::<f32>()?);
    }
    let shape = operands.first().ok_or_else(missing)?.0;
    let mut result = context.output(0, shape.to_vec())?.ok_or_else(missing)?;
    let (_, result) = result.try_extract_tensor_mut::<f32>()?;
    let width = shape.last().map_or(1, |&width| width as usize).max(1);
    let rows = (ELEMENTS / width).max(1);
    let parts: Vec<Mutex<&mut [f32]>> = result.chunks_mut(rows * width).map(Mutex::new).collect();
    context.par_for(parts.len(), 0, |index| {
        let Ok(mut result) = parts[index].lock() else {
            return;
        };
        let (first, count) = (index * rows, result.len() / width);
        let own = operands.iter().zip(pass.operands);
        let own: Vec<&[f32]> = own
            .map(|((_, values), operand)| match operand {
                Operand::Elements => &values[first * width..(first + count) * width],
                Operand::Columns => &values[..width],
                Operand::Rows => &values[first..first + count],
            })
            .collect();
        (pass.kernel)(&mut Rows {
            operands: &own,
            result: &mut result,
            width,
        });
    })
}
