//! What a node must be given so that it makes the rows of other tokens than those it was written for.

use std::ops::Range;

use crate::{
    facts::{Fact, Facts},
    onnx::{NodeProto, data_type},
};

/// Where the tokens of a value lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Tokens {
    /// Along this dimension, behind the batch in dimension 0.
    Along(usize),
    /// Along this dimension of a value that lacks the batch and so many more leading dimensions of its reader.
    Shared(usize, usize),
    /// In dimension 0, the rows of the batch behind one another.
    Merged,
}

/// What a node needs of each input: its tokens there, or `None` where it reads the input as it is. Inputs behind the
/// list are not read.
pub(crate) type Needs = Vec<Option<Tokens>>;

/// Operators that work element by element, with broadcasting.
const ELEMENTWISE: &[&str] = &[
    "Abs",
    "Add",
    "And",
    "Cast",
    "Clip",
    "Cos",
    "Div",
    "Dropout",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Gelu",
    "Greater",
    "GreaterOrEqual",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "Max",
    "Min",
    "Mish",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "Pow",
    "Reciprocal",
    "Relu",
    "Sigmoid",
    "Sin",
    "Softplus",
    "Sqrt",
    "Sub",
    "Sum",
    "Swish",
    "Tanh",
    "Where",
    "Xor",
];

/// Looks at one node.
pub(crate) struct Reader<'a> {
    pub node: &'a NodeProto,
    pub facts: &'a Facts,
}

impl Reader<'_> {
    /// What the node needs to make `tokens` of its first output's shape; `None` where it does not work row by row.
    pub fn needs(&self, tokens: Tokens) -> Option<Needs> {
        if matches!(tokens, Tokens::Shared(..)) {
            return None;
        }
        let operator = self.node.operator();
        match operator.as_str() {
            "LayerNormalization"
            | "RMSNormalization"
            | "SimplifiedLayerNormalization"
            | "Softmax"
            | "LogSoftmax" => self.normalisation(tokens),
            "MatMul" | "com.microsoft:FusedMatMul" => self.product(tokens),
            "Gemm" => self.gemm(tokens),
            "Transpose" => self.transpose(tokens),
            "Reshape" => self.reshape(tokens),
            "Squeeze" | "Unsqueeze" => self.squeeze(tokens),
            "Concat" => self.concat(tokens),
            "Slice" => self.first_beside(self.axes(3)?, tokens),
            "Gather" => self.gather(tokens),
            "Split" => self.first_beside(vec![self.axis(0)], tokens),
            // Rounded numbers are chosen as floats, which have gradients.
            "Cast" if self.is_rounded() => None,
            operator if operator.starts_with("Reduce") => self.reduction(tokens),
            operator if ELEMENTWISE.binary_search(&operator).is_ok() => self.elementwise(tokens),
            _ => None,
        }
    }

    fn fact(&self, index: usize) -> Option<&Fact> {
        self.facts.get(self.node.input(index)?)
    }

    fn is_rounded(&self) -> bool {
        let bytes = [data_type::INT8, data_type::UINT8];
        self.fact(0)
            .is_some_and(|fact| bytes.contains(&fact.data_type))
    }

    fn output(&self) -> Option<&Fact> {
        self.facts.get(self.node.output.first()?)
    }

    fn rank(&self) -> i64 {
        self.fact(0).map_or(0, Fact::rank) as i64
    }

    /// The attribute `axis`, counted from the front of the first input.
    fn axis(&self, default: i64) -> usize {
        from_front(self.node.int("axis", default), self.rank())
    }

    /// The attribute `axes` or the constant input of that index, counted from the front of the first input.
    fn axes(&self, input: usize) -> Option<Vec<usize>> {
        let axes = match self.node.ints("axes") {
            Some(axes) => axes.to_vec(),
            None => self.fact(input)?.constant_ints()?,
        };
        Some(
            axes.iter()
                .map(|&axis| from_front(axis, self.rank()))
                .collect(),
        )
    }

    /// The first input has its tokens in the same place, the others are read as they are.
    fn first(&self, tokens: Tokens) -> Option<Needs> {
        let mut needs = vec![None; self.node.input.len()];
        *needs.first_mut()? = Some(tokens);
        Some(needs)
    }

    /// As [`Reader::first`], where the node works along `axes` that are neither the tokens' nor the batch's.
    fn first_beside(&self, axes: Vec<usize>, tokens: Tokens) -> Option<Needs> {
        let own = match tokens {
            Tokens::Along(axis) => axis,
            _ => 0,
        };
        let beside = !axes.iter().any(|&axis| axis == 0 || axis == own);
        beside.then(|| self.first(tokens)).flatten()
    }

    fn normalisation(&self, tokens: Tokens) -> Option<Needs> {
        let axis = self.axis(-1);
        let whole = matches!(self.node.op_type(), "Softmax" | "LogSoftmax");
        let end = if whole {
            axis + 1
        } else {
            self.rank() as usize
        };
        self.first_beside((axis..end).collect(), tokens)
    }

    fn reduction(&self, tokens: Tokens) -> Option<Needs> {
        let kept = self.node.int("keepdims", 1) == 1;
        let axes = self.axes(1)?;
        let last = self.rank() as usize - 1;
        (kept || axes == [last])
            .then(|| self.first_beside(axes, tokens))
            .flatten()
    }

    /// What an operand that is broadcast over the output's dimensions `spread` must be.
    fn operand(
        &self,
        index: usize,
        tokens: Tokens,
        spread: Range<usize>,
    ) -> Option<Option<Tokens>> {
        let Some(_) = self.node.input(index) else {
            return Some(None);
        };
        let fact = self.fact(index)?;
        let lead = self.output()?.rank().checked_sub(fact.rank())?;
        let axis = match tokens {
            Tokens::Along(axis) => axis,
            _ => 0,
        };
        if axis < lead || (spread.contains(&axis) && fact.constant_dim(axis - lead) == Some(1)) {
            return Some(None);
        }
        Some(Some(match tokens {
            Tokens::Along(axis) if lead > 0 => Tokens::Shared(axis - lead, lead),
            tokens => tokens,
        }))
    }

    fn elementwise(&self, tokens: Tokens) -> Option<Needs> {
        let rank = self.output()?.rank();
        (0..self.node.input.len())
            .map(|index| self.operand(index, tokens, 0..rank))
            .collect()
    }

    /// Rows of the left operand, or matrices of both.
    fn product(&self, tokens: Tokens) -> Option<Needs> {
        let turned = ["transA", "transBatchA", "transBatchB"];
        if turned.iter().any(|name| self.node.int(name, 0) != 0) {
            return None;
        }
        let matrices = self.output()?.rank().checked_sub(2)?;
        let left = self.operand(0, tokens, 0..matrices)?;
        match tokens {
            Tokens::Along(axis) if axis > matrices => None,
            Tokens::Along(axis) if axis < matrices => {
                Some(vec![left, self.operand(1, tokens, 0..matrices)?])
            }
            _ => Some(vec![left, None]),
        }
    }

    fn gemm(&self, tokens: Tokens) -> Option<Needs> {
        if tokens != Tokens::Merged || self.node.int("transA", 0) != 0 {
            return None;
        }
        let mut needs = self.first(tokens)?;
        if needs.len() > 2 {
            needs[2] = self.operand(2, tokens, 0..1)?;
        }
        Some(needs)
    }

    fn transpose(&self, tokens: Tokens) -> Option<Needs> {
        let Tokens::Along(axis) = tokens else {
            return None;
        };
        match self.node.ints("perm")? {
            perm @ [0, ..] => self.first(Tokens::Along(*perm.get(axis)? as usize)),
            _ => None,
        }
    }

    fn concat(&self, tokens: Tokens) -> Option<Needs> {
        let needs = self.first_beside(vec![self.axis(0)], tokens)?;
        Some(vec![needs[0]; needs.len()])
    }

    /// One element of a dimension behind the tokens.
    fn gather(&self, tokens: Tokens) -> Option<Needs> {
        match tokens {
            Tokens::Along(axis) if axis < self.axis(0) => self.first(tokens),
            _ => None,
        }
    }

    fn squeeze(&self, tokens: Tokens) -> Option<Needs> {
        let Tokens::Along(axis) = tokens else {
            return None;
        };
        let added = self.node.op_type() == "Unsqueeze";
        let wider = if added { self.output()? } else { self.fact(0)? };
        let axes = match self.node.ints("axes") {
            Some(axes) => axes.to_vec(),
            None => self.fact(1)?.constant_ints()?,
        };
        let rank = wider.rank();
        let own: Vec<usize> = axes
            .iter()
            .map(|&axis| from_front(axis, rank as i64))
            .collect();
        let mut others = (0..rank).filter(|axis| !own.contains(axis));
        let place = match added {
            true => others.position(|other| other == axis)?,
            false => others.nth(axis)?,
        };
        (!own.contains(&0))
            .then(|| self.first(Tokens::Along(place)))
            .flatten()
    }

    fn reshape(&self, tokens: Tokens) -> Option<Needs> {
        let own = self.unshaped(tokens)?;
        self.target(own, tokens)?;
        Some(vec![Some(own)])
    }

    /// The shape that a `Reshape` gives to rows of other tokens: whether batch and rows stand before it, and the rest
    /// with 0 for what stays and -1 for what follows.
    pub fn target(&self, own: Tokens, tokens: Tokens) -> Option<(bool, Vec<i64>)> {
        let (from, to) = (self.fact(0)?, self.output()?);
        let stays = |axis: usize| {
            let mut shapes = from.shapes.iter().zip(&to.shapes);
            axis < from.rank() && shapes.all(|(from, to)| from[axis] == to[axis])
        };
        let size = |axis: usize| match to.constant_dim(axis) {
            Some(size) => size,
            None if stays(axis) => 0,
            None => -1,
        };
        let (counted, shape): (_, Vec<i64>) = match (own, tokens) {
            (_, Tokens::Merged) => (
                false,
                std::iter::once(-1)
                    .chain((1..to.rank()).map(size))
                    .collect(),
            ),
            (Tokens::Merged, _) => (true, (2..to.rank()).map(size).collect()),
            (Tokens::Along(place), Tokens::Along(axis)) => {
                let rows = |at: usize| match at {
                    0 => 0,
                    at if at == axis && at == place => 0,
                    at if at == axis => -1,
                    at => size(at),
                };
                (false, (0..to.rank()).map(rows).collect())
            }
            _ => return None,
        };
        let free = shape.iter().filter(|&&size| size == -1).count();
        (free <= 1 && !(counted && shape.contains(&0))).then_some((counted, shape))
    }

    /// The tokens stay a dimension of their own, or are merged with the batch and taken apart again.
    fn unshaped(&self, tokens: Tokens) -> Option<Tokens> {
        let (from, to) = (self.fact(0)?, self.output()?);
        let everywhere = |holds: &dyn Fn(&[i64], &[i64]) -> bool| {
            from.shapes
                .iter()
                .zip(&to.shapes)
                .all(|(from, to)| holds(from, to))
        };
        let merges = |apart: &[i64], merged: &[i64]| {
            apart.len() > 2 && merged.len() == 2 && apart[0] * apart[1] == merged[0]
        };
        match tokens {
            Tokens::Merged if everywhere(&|from, to| merges(from, to)) => Some(Tokens::Along(1)),
            Tokens::Merged => from.same_shape(to).then_some(tokens),
            Tokens::Along(1) if everywhere(&|from, to| merges(to, from)) => Some(Tokens::Merged),
            Tokens::Along(axis) => {
                let stays = |place: usize| {
                    everywhere(&|from, to| {
                        from[0] == to[0]
                            && from[place] == to[axis]
                            && from[..place].iter().product::<i64>()
                                == to[..axis].iter().product::<i64>()
                    })
                };
                let place = (1..from.rank()).find(|&place| stays(place))?;
                Some(Tokens::Along(place))
            }
            Tokens::Shared(..) => None,
        }
    }
}

fn from_front(axis: i64, rank: i64) -> usize {
    usize::try_from(if axis < 0 { axis + rank } else { axis }).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted() {
        assert!(ELEMENTWISE.is_sorted());
    }
}
