//! The shape rule of every operator that language models export to.

use std::collections::HashMap;

use super::small::{Value, broadcast, elementwise, is_float};
use crate::onnx::{GraphProto, NodeProto, data_type};

const INITIALIZER_ELEMENTS: usize = 4096;

/// Every value of `graph` that can be known when its inputs have `shapes`.
pub(super) fn walk(
    graph: &GraphProto,
    shapes: &HashMap<String, Vec<i64>>,
    fills: &HashMap<&str, f64>,
) -> HashMap<String, Value> {
    let mut values = HashMap::new();
    for tensor in &graph.initializer {
        let value = Value {
            data_type: tensor.data_type(),
            shape: tensor.dims.clone(),
            numbers: tensor.numbers(INITIALIZER_ELEMENTS),
        };
        values.insert(tensor.name().to_owned(), value);
    }
    for input in &graph.input {
        if let (Some(shape), Some(tensor)) = (shapes.get(input.name()), input.tensor_type()) {
            let value = match fills.get(input.name()) {
                Some(&fill) => {
                    Value::known(tensor.elem_type(), vec![], vec![fill]).expand(shape.clone())
                }
                None => Value::shaped(tensor.elem_type(), shape.clone()),
            };
            values.insert(input.name().to_owned(), value);
        }
    }
    for node in &graph.node {
        let call = Call {
            node,
            inputs: node.input.iter().map(|name| values.get(name)).collect(),
        };
        let outputs = call.evaluate().unwrap_or_default();
        for (name, value) in node.output.iter().zip(outputs) {
            values.insert(name.clone(), value);
        }
    }
    values
}

/// One node with what is known of its inputs.
struct Call<'a> {
    node: &'a NodeProto,
    inputs: Vec<Option<&'a Value>>,
}

impl<'a> Call<'a> {
    fn evaluate(&self) -> Option<Vec<Value>> {
        let one = |value: Option<Value>| value.map(|value| vec![value]);
        match self.node.op_type() {
            "Shape" => one(self.shape_of()),
            "Size" => one(Some(Value::known(
                data_type::INT64,
                vec![],
                vec![self.input(0)?.elements() as f64],
            ))),
            "Cast" => one(self.cast(self.node.int("to", 0) as i32)),
            "CastLike" => one(self.cast(self.input(1)?.data_type)),
            "Range" => one(self.range()),
            "ConstantOfShape" => one(self.constant_of_shape()),
            "Expand" => one(self.expand()),
            "Reshape" => one(self.reshape()),
            "Flatten" => one(self.flatten()),
            "Squeeze" => one(self.squeeze()),
            "Unsqueeze" => one(self.unsqueeze()),
            "Transpose" => one(self.transpose()),
            "Concat" => one(self.concat()),
            "Split" => self.split(),
            "Slice" => one(self.slice()),
            "Gather" => one(self.gather()),
            "GatherElements" => one(Some(Value::shaped(
                self.input(0)?.data_type,
                self.input(1)?.shape.clone(),
            ))),
            "GatherND" => one(self.gather_nd()),
            "Pad" => one(self.pad()),
            "Tile" => one(self.tile()),
            "OneHot" => one(self.one_hot()),
            "CumSum" => one(self.cumulative_sum()),
            "MatMul" | "FusedMatMul" => one(self.matmul()),
            "Gemm" => one(self.gemm()),
            "Attention" => self.attention(),
            "DequantizeLinear" => one(Some(Value::shaped(
                self.input(1)?.data_type,
                self.input(0)?.shape.clone(),
            ))),
            "QuantizeLinear" => one(Some(Value::shaped(
                self.input(2)
                    .map_or(data_type::UINT8, |zero| zero.data_type),
                self.input(0)?.shape.clone(),
            ))),
            "DynamicQuantizeLinear" => Some(vec![
                Value::shaped(data_type::UINT8, self.input(0)?.shape.clone()),
                Value::shaped(data_type::FLOAT, vec![]),
                Value::shaped(data_type::UINT8, vec![]),
            ]),
            "LayerNormalization" => self.layer_normalization(),
            operator if operator.starts_with("Reduce") || operator.starts_with("Arg") => {
                one(self.reduce())
            }
            operator => one(self.elementwise(operator)),
        }
    }

    fn input(&self, index: usize) -> Option<&'a Value> {
        self.inputs.get(index).copied().flatten()
    }

    /// An axis counted from the front of `rank` dimensions.
    fn axis(&self, axis: i64, rank: usize) -> Option<usize> {
        usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok()
    }

    /// Axes from the attribute of older operator sets or from the input of newer ones.
    fn axes(&self, input: usize, rank: usize) -> Option<Option<Vec<usize>>> {
        let axes = match (self.node.ints("axes"), self.node.input(input)) {
            (Some(axes), _) => axes.to_vec(),
            (None, Some(_)) => self.input(input)?.as_ints()?,
            (None, None) => return Some(None),
        };
        axes.iter()
            .map(|&axis| self.axis(axis, rank))
            .collect::<Option<Vec<_>>>()
            .map(Some)
    }

    fn shape_of(&self) -> Option<Value> {
        let shape = &self.input(0)?.shape;
        let rank = shape.len() as i64;
        let bound = |position: i64| {
            (if position < 0 {
                position + rank
            } else {
                position
            })
            .clamp(0, rank) as usize
        };
        let (start, end) = (
            bound(self.node.int("start", 0)),
            bound(self.node.int("end", rank)),
        );
        Some(Value::ints(shape.get(start..end)?))
    }

    fn cast(&self, data_type: i32) -> Option<Value> {
        let value = self.input(0)?;
        let whole = !is_float(data_type);
        let convert = |&number: &f64| match data_type {
            data_type::BOOL => f64::from(u8::from(number != 0.0)),
            _ if whole => number.trunc(),
            _ => number,
        };
        Some(Value {
            data_type,
            shape: value.shape.clone(),
            numbers: value
                .numbers
                .as_ref()
                .map(|numbers| numbers.iter().map(convert).collect()),
        })
    }

    fn range(&self) -> Option<Value> {
        let scalar = |index: usize| self.input(index)?.numbers.as_ref()?.first().copied();
        let (start, limit, delta) = (scalar(0)?, scalar(1)?, scalar(2)?);
        let count = ((limit - start) / delta).ceil().max(0.0) as i64;
        let numbers = (0..count).map(|step| start + step as f64 * delta).collect();
        Some(Value::known(self.input(0)?.data_type, vec![count], numbers))
    }

    fn constant_of_shape(&self) -> Option<Value> {
        let shape = self.input(0)?.as_ints()?;
        let fill = self
            .node
            .attribute("value")
            .and_then(|entry| entry.t.as_ref());
        let data_type = fill.map_or(data_type::FLOAT, |tensor| tensor.data_type());
        let number = fill
            .and_then(|tensor| tensor.numbers(1))
            .map_or(0.0, |numbers| numbers[0]);
        Some(Value::known(data_type, vec![], vec![number]).expand(shape))
    }

    fn expand(&self) -> Option<Value> {
        let value = self.input(0)?;
        Some(value.expand(broadcast(&value.shape, &self.input(1)?.as_ints()?)?))
    }

    fn reshape(&self) -> Option<Value> {
        let value = self.input(0)?;
        let mut shape = self.input(1)?.as_ints()?;
        if self.node.int("allowzero", 0) == 0 {
            for (axis, dim) in shape.iter_mut().enumerate().filter(|(_, dim)| **dim == 0) {
                *dim = *value.shape.get(axis)?;
            }
        }
        let known: i64 = shape.iter().filter(|&&dim| dim >= 0).product();
        if let Some(free) = shape.iter().position(|&dim| dim < 0) {
            shape[free] = if known == 0 {
                0
            } else {
                value.elements() / known
            };
        }
        self.reshaped(shape)
    }

    fn reshaped(&self, shape: Vec<i64>) -> Option<Value> {
        let value = self.input(0)?;
        (shape.iter().product::<i64>() == value.elements()).then(|| Value {
            shape,
            ..value.clone()
        })
    }

    fn flatten(&self) -> Option<Value> {
        let value = self.input(0)?;
        let axis = self.axis(self.node.int("axis", 1), value.rank())?;
        let (outer, inner) = value.shape.split_at_checked(axis)?;
        self.reshaped(vec![outer.iter().product(), inner.iter().product()])
    }

    fn squeeze(&self) -> Option<Value> {
        let value = self.input(0)?;
        let axes = self.axes(1, value.rank())?;
        let dropped =
            |axis: usize, dim: i64| axes.as_ref().map_or(dim == 1, |axes| axes.contains(&axis));
        let dims = value.shape.iter().copied().enumerate();
        self.reshaped(
            dims.filter(|&(axis, dim)| !dropped(axis, dim))
                .map(|(_, dim)| dim)
                .collect(),
        )
    }

    fn unsqueeze(&self) -> Option<Value> {
        let value = self.input(0)?;
        let count = self
            .node
            .ints("axes")
            .map(<[i64]>::len)
            .or_else(|| self.input(1).map(|axes| axes.elements() as usize))?;
        let axes = self.axes(1, value.rank() + count)??;
        let mut dims = value.shape.iter();
        let rank = value.rank() + axes.len();
        let dim = |axis| {
            if axes.contains(&axis) {
                Some(1)
            } else {
                dims.next().copied()
            }
        };
        self.reshaped((0..rank).map(dim).collect::<Option<_>>()?)
    }

    fn transpose(&self) -> Option<Value> {
        let value = self.input(0)?;
        let perm = permutation(self.node, value.rank());
        let shape = perm
            .iter()
            .map(|&axis| value.shape.get(axis).copied())
            .collect::<Option<_>>()?;
        Some(value.pick(shape, |index| {
            let mut source = vec![0; perm.len()];
            for (&axis, &at) in perm.iter().zip(index) {
                source[axis] = at;
            }
            source
        }))
    }

    fn concat(&self) -> Option<Value> {
        let parts = self.inputs.iter().copied().collect::<Option<Vec<_>>>()?;
        let first = *parts.first()?;
        let axis = self.axis(self.node.int("axis", 0), first.rank())?;
        let mut shape = first.shape.clone();
        *shape.get_mut(axis)? = parts
            .iter()
            .map(|part| part.shape.get(axis).copied())
            .sum::<Option<i64>>()?;
        let flat = shape.len() == 1 && parts.iter().all(|part| part.numbers.is_some());
        if !flat {
            return Some(Value::shaped(first.data_type, shape));
        }
        let numbers = parts
            .iter()
            .filter_map(|part| part.numbers.as_ref())
            .flatten()
            .copied()
            .collect();
        Some(Value::known(first.data_type, shape, numbers))
    }

    fn split(&self) -> Option<Vec<Value>> {
        let value = self.input(0)?;
        let axis = self.axis(self.node.int("axis", 0), value.rank())?;
        let total = *value.shape.get(axis)?;
        let count = self.node.output.len() as i64;
        let even = (total + count - 1) / count;
        let sizes = match (self.node.ints("split"), self.node.input(1)) {
            (Some(sizes), _) => sizes.to_vec(),
            (None, Some(_)) => self.input(1)?.as_ints()?,
            (None, None) => (0..count)
                .map(|part| even.min(total - part * even))
                .collect(),
        };
        let mut start = 0;
        let part = |size: i64| {
            let from = start;
            start += size;
            let mut shape = value.shape.clone();
            shape[axis] = size;
            value.pick(shape, |index| shifted(index, axis, from))
        };
        Some(sizes.into_iter().map(part).collect())
    }

    fn slice(&self) -> Option<Value> {
        let value = self.input(0)?;
        let list = |name: &str, input: usize| match self.node.ints(name) {
            Some(numbers) => Some(numbers.to_vec()),
            None => self.input(input)?.as_ints(),
        };
        let (starts, ends) = (list("starts", 1)?, list("ends", 2)?);
        let axes = self
            .axes(3, value.rank())?
            .unwrap_or_else(|| (0..starts.len()).collect());
        let steps = match self.node.input(4) {
            Some(_) => self.input(4)?.as_ints()?,
            None => vec![1; starts.len()],
        };
        let mut shape = value.shape.clone();
        let mut cuts = vec![(0, 1); shape.len()];
        for (((&axis, &start), &end), &step) in axes.iter().zip(&starts).zip(&ends).zip(&steps) {
            let dim = *value.shape.get(axis)?;
            let from_front = |position: i64| {
                if position < 0 {
                    position.saturating_add(dim)
                } else {
                    position
                }
            };
            let (low, high) = if step > 0 { (0, dim) } else { (-1, dim - 1) };
            let (start, end) = (
                from_front(start).clamp(low.max(0), high),
                from_front(end).clamp(low, high),
            );
            let span = if step > 0 { end - start } else { start - end };
            shape[axis] = ((span + step.abs() - 1) / step.abs()).max(0);
            cuts[axis] = (start, step);
        }
        Some(value.pick(shape, |index| {
            index
                .iter()
                .zip(&cuts)
                .map(|(&at, &(start, step))| start + at * step)
                .collect()
        }))
    }

    fn gather(&self) -> Option<Value> {
        let (value, index) = (self.input(0)?, self.input(1)?);
        let axis = self.axis(self.node.int("axis", 0), value.rank())?;
        let dim = *value.shape.get(axis)?;
        let mut shape = value.shape[..axis].to_vec();
        shape.extend(&index.shape);
        shape.extend(&value.shape[axis + 1..]);
        let Some(rows) = index.numbers.as_ref().filter(|_| index.rank() <= 1) else {
            return Some(Value::shaped(value.data_type, shape));
        };
        let wide = index.rank();
        Some(value.pick(shape, |at| {
            let row = rows[if wide == 0 { 0 } else { at[axis] as usize }] as i64;
            let mut source = at[..axis].to_vec();
            source.push(if row < 0 { row + dim } else { row });
            source.extend(&at[axis + wide..]);
            source
        }))
    }

    fn gather_nd(&self) -> Option<Value> {
        let (value, index) = (self.input(0)?, self.input(1)?);
        let batch = usize::try_from(self.node.int("batch_dims", 0)).ok()?;
        let (&depth, outer) = index.shape.split_last()?;
        let mut shape = outer.to_vec();
        shape.extend(value.shape.get(batch + usize::try_from(depth).ok()?..)?);
        Some(Value::shaped(value.data_type, shape))
    }

    fn pad(&self) -> Option<Value> {
        let value = self.input(0)?;
        let pads = match self.node.ints("pads") {
            Some(pads) => pads.to_vec(),
            None => self.input(1)?.as_ints()?,
        };
        let axes = self
            .axes(3, value.rank())?
            .unwrap_or_else(|| (0..value.rank()).collect());
        let mut shape = value.shape.clone();
        for (index, &axis) in axes.iter().enumerate() {
            *shape.get_mut(axis)? += pads.get(index)? + pads.get(index + axes.len())?;
        }
        Some(Value::shaped(value.data_type, shape))
    }

    fn tile(&self) -> Option<Value> {
        let value = self.input(0)?;
        let repeats = self.input(1)?.as_ints()?;
        let shape = value
            .shape
            .iter()
            .zip(&repeats)
            .map(|(dim, times)| dim * times)
            .collect();
        Some(value.pick(shape, |index| {
            index
                .iter()
                .zip(&value.shape)
                .map(|(at, dim)| at % dim)
                .collect()
        }))
    }

    fn cumulative_sum(&self) -> Option<Value> {
        let value = self.input(0)?;
        let axis = *self.input(1)?.as_ints()?.first()?;
        let axis = self.axis(axis, value.rank())?;
        let shape = value.shape.clone();
        let plain = self.node.int("exclusive", 0) == 0 && self.node.int("reverse", 0) == 0;
        let Some(numbers) = value.numbers.as_ref().filter(|_| plain) else {
            return Some(Value::shaped(value.data_type, shape));
        };
        let mut sums = numbers.clone();
        let stride = shape.get(axis + 1..)?.iter().product::<i64>() as usize;
        let block = stride * *shape.get(axis)? as usize;
        for index in (0..sums.len()).filter(|index| index % block >= stride) {
            sums[index] += sums[index - stride];
        }
        Some(Value::known(value.data_type, shape, sums))
    }

    fn one_hot(&self) -> Option<Value> {
        let mut shape = self.input(0)?.shape.clone();
        let depth = *self.input(1)?.numbers.as_ref()?.first()?;
        let axis = self.axis(self.node.int("axis", -1), shape.len() + 1)?;
        shape.insert(axis, depth as i64);
        Some(Value::shaped(self.input(2)?.data_type, shape))
    }

    fn matmul(&self) -> Option<Value> {
        let (left, right) = (self.input(0)?, self.input(1)?);
        let turned = |value: &Value, name: &str| {
            let mut shape = value.shape.clone();
            let rank = shape.len();
            if self.node.int(name, 0) == 1 && rank >= 2 {
                shape.swap(rank - 1, rank - 2);
            }
            shape
        };
        let (a, b) = (turned(left, "transA"), turned(right, "transB"));
        let [batch_a @ .., rows, inner_a] = a.as_slice() else {
            return None;
        };
        let [batch_b @ .., inner_b, columns] = b.as_slice() else {
            return None;
        };
        let mut shape = broadcast(batch_a, batch_b).filter(|_| inner_a == inner_b)?;
        shape.extend([rows, columns]);
        Some(Value::shaped(left.data_type, shape))
    }

    fn gemm(&self) -> Option<Value> {
        let (left, right) = (self.input(0)?, self.input(1)?);
        let rows = *left
            .shape
            .get(usize::from(self.node.int("transA", 0) == 1))?;
        let columns = *right
            .shape
            .get(usize::from(self.node.int("transB", 0) == 0))?;
        Some(Value::shaped(left.data_type, vec![rows, columns]))
    }

    fn attention(&self) -> Option<Vec<Value>> {
        let (query, value) = (self.input(0)?, self.input(2)?);
        let mut shape = query.shape.clone();
        if shape.len() == 4 && self.node.output.len() == 1 {
            shape[3] = *value.shape.get(3)?;
            return Some(vec![Value::shaped(query.data_type, shape)]);
        }
        None
    }

    fn layer_normalization(&self) -> Option<Vec<Value>> {
        let value = self.input(0)?;
        let axis = self.axis(self.node.int("axis", -1), value.rank())?;
        let mut reduced = value.shape.clone();
        reduced.get_mut(axis..)?.fill(1);
        let statistic = Value::shaped(data_type::FLOAT, reduced);
        let whole = Value::shaped(value.data_type, value.shape.clone());
        Some(vec![whole, statistic.clone(), statistic])
    }

    fn reduce(&self) -> Option<Value> {
        let value = self.input(0)?;
        let arg = self.node.op_type().starts_with("Arg");
        let axes = if arg {
            Some(vec![self.axis(self.node.int("axis", 0), value.rank())?])
        } else {
            self.axes(1, value.rank())?
        };
        let axes = match axes {
            Some(axes) if !axes.is_empty() => axes,
            _ if self.node.int("noop_with_empty_axes", 0) == 1 => return Some(value.clone()),
            _ => (0..value.rank()).collect(),
        };
        let keep = self.node.int("keepdims", 1) == 1;
        let dims = value.shape.iter().copied().enumerate();
        let shape: Vec<i64> = dims
            .filter_map(|(axis, dim)| match (axes.contains(&axis), keep) {
                (false, _) => Some(dim),
                (true, true) => Some(1),
                (true, false) => None,
            })
            .collect();
        let data_type = if arg {
            data_type::INT64
        } else {
            value.data_type
        };
        let total = shape.iter().product::<i64>() == 1;
        match (&value.numbers, self.node.op_type()) {
            (Some(numbers), "ReduceProd") if total => Some(Value::known(
                data_type,
                shape,
                vec![numbers.iter().product()],
            )),
            (Some(numbers), "ReduceSum") if total => {
                Some(Value::known(data_type, shape, vec![numbers.iter().sum()]))
            }
            (Some(numbers), "ReduceMax") if total => Some(Value::known(
                data_type,
                shape,
                vec![numbers.iter().copied().fold(f64::MIN, f64::max)],
            )),
            _ => Some(Value::shaped(data_type, shape)),
        }
    }

    fn elementwise(&self, operator: &str) -> Option<Value> {
        let own = self.input(0)?;
        let whole = !is_float(own.data_type);
        let known = |data_type: i32, operation: fn(&[f64]) -> f64| {
            let values = self.inputs.iter().copied().collect::<Option<Vec<_>>>()?;
            elementwise(data_type, &values, operation)
        };
        let truth = |condition: fn(&[f64]) -> f64| known(data_type::BOOL, condition);
        let same = |operation: fn(&[f64]) -> f64| known(own.data_type, operation);
        match operator {
            "Add" | "Sum" => same(|x| x.iter().sum()),
            "Sub" => same(|x| x[0] - x[1]),
            "Mul" => same(|x| x[0] * x[1]),
            "Div" if whole => same(|x| (x[0] / x[1]).trunc()),
            "Div" => same(|x| x[0] / x[1]),
            "Mod" => same(|x| x[0].rem_euclid(x[1])),
            "Pow" => same(|x| x[0].powf(x[1])),
            "Min" => same(|x| x.iter().copied().fold(f64::INFINITY, f64::min)),
            "Max" => same(|x| x.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
            "Neg" => same(|x| -x[0]),
            "Abs" => same(|x| x[0].abs()),
            "Sqrt" => same(|x| x[0].sqrt()),
            "Reciprocal" => same(|x| x[0].recip()),
            "Floor" => same(|x| x[0].floor()),
            "Ceil" => same(|x| x[0].ceil()),
            "Log" => same(|x| x[0].ln()),
            "Identity" => same(|x| x[0]),
            "And" => truth(|x| x[0] * x[1]),
            "Or" => truth(|x| x[0].max(x[1])),
            "Xor" => truth(|x| (x[0] - x[1]).abs()),
            "Not" => truth(|x| 1.0 - x[0]),
            "Equal" => truth(|x| f64::from(u8::from(x[0] == x[1]))),
            "Less" => truth(|x| f64::from(u8::from(x[0] < x[1]))),
            "LessOrEqual" => truth(|x| f64::from(u8::from(x[0] <= x[1]))),
            "Greater" => truth(|x| f64::from(u8::from(x[0] > x[1]))),
            "GreaterOrEqual" => truth(|x| f64::from(u8::from(x[0] >= x[1]))),
            "IsNaN" | "IsInf" => Some(Value::shaped(data_type::BOOL, own.shape.clone())),
            "Where" => known(self.input(1)?.data_type, |x| {
                if x[0] != 0.0 { x[1] } else { x[2] }
            }),
            operator if SHAPE_OF_FIRST.binary_search(&operator).is_ok() => {
                Some(Value::shaped(own.data_type, own.shape.clone()))
            }
            _ => None,
        }
    }
}

/// Operators whose first output has the type and shape of the first input.
const SHAPE_OF_FIRST: &[&str] = &[
    "BiasGelu",
    "Clip",
    "Cos",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "FastGelu",
    "Gelu",
    "GeluGrad",
    "HardSigmoid",
    "HardSwish",
    "LayerNormalizationGrad",
    "LeakyRelu",
    "LogSoftmax",
    "Mish",
    "QuickGelu",
    "RMSNormalization",
    "Relu",
    "RotaryEmbedding",
    "Round",
    "ScatterElements",
    "ScatterND",
    "Sigmoid",
    "Sign",
    "SimplifiedLayerNormalization",
    "Sin",
    "SkipLayerNormalization",
    "Softmax",
    "SoftmaxGrad",
    "Softplus",
    "Swish",
    "Tanh",
    "Trilu",
];

/// The permutation of a `Transpose` node over `rank` dimensions.
pub(crate) fn permutation(node: &NodeProto, rank: usize) -> Vec<usize> {
    match node.ints("perm") {
        Some(perm) => perm.iter().map(|&axis| axis as usize).collect(),
        None => (0..rank).rev().collect(),
    }
}

fn shifted(index: &[i64], axis: usize, by: i64) -> Vec<i64> {
    let mut source = index.to_vec();
    source[axis] += by;
    source
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        builder::{Attribute, Builder},
        onnx::ValueInfoProto,
    };

    #[test]
    fn the_table_is_sorted() {
        assert!(SHAPE_OF_FIRST.is_sorted());
    }

    /// Builds a graph on `x` [2, 3, 4] and returns the value of the last node.
    fn value_of(build: impl Fn(&mut Builder)) -> Option<Value> {
        let mut graph = GraphProto {
            input: vec![ValueInfoProto::tensor(
                "x",
                data_type::FLOAT,
                &["a", "b", "c"],
            )],
            ..GraphProto::default()
        };
        let mut builder = Builder::beside(&graph, "t", 18);
        build(&mut builder);
        builder.append_to(&mut graph);
        let shapes = HashMap::from([("x".to_owned(), vec![2, 3, 4])]);
        let values = walk(&graph, &shapes, &HashMap::new());
        values.get(&graph.node.last()?.output[0]).cloned()
    }

    type Case = (&'static str, fn(&mut Builder), &'static [i64]);

    #[test]
    fn shapes_follow_the_operators() {
        let table: &[Case] = &[
            (
                "transpose",
                |b| {
                    _ = b.apply(
                        "Transpose",
                        &["x"],
                        &[("perm", Attribute::Ints(vec![0, 2, 1]))],
                    )
                },
                &[2, 4, 3],
            ),
            (
                "reshape keeps and infers",
                |b| {
                    let shape = b.ints(&[0, -1]);
                    b.apply("Reshape", &["x", &shape], &[]);
                },
                &[2, 12],
            ),
            (
                "slice from the end",
                |b| {
                    let (start, end, axis) = (b.ints(&[-2]), b.ints(&[i64::MAX]), b.ints(&[2]));
                    b.apply("Slice", &["x", &start, &end, &axis], &[]);
                },
                &[2, 3, 2],
            ),
            (
                "gather one",
                |b| {
                    let at = b.scalar(data_type::INT64, 0.0);
                    b.apply("Gather", &["x", &at], &[("axis", Attribute::Int(1))]);
                },
                &[2, 4],
            ),
            (
                "reduce",
                |b| _ = b.reduce("ReduceMean", "x", &[-1], true),
                &[2, 3, 1],
            ),
            (
                "one axis of the shape",
                |b| {
                    let shape = b.apply("Shape", &["x"], &[]);
                    let (at, axis) = (b.ints(&[1]), b.ints(&[0]));
                    let dim = b.apply("Gather", &[&shape, &at], &[]);
                    let dim = b.apply("Squeeze", &[&dim, &axis], &[]);
                    let (zero, one) = (
                        b.scalar(data_type::INT64, 0.0),
                        b.scalar(data_type::INT64, 1.0),
                    );
                    b.apply("Range", &[&zero, &dim, &one], &[]);
                },
                &[3],
            ),
            (
                "cumulative sum of a constant as a shape",
                |b| {
                    let (twos, axis) = (b.ints(&[2, 1, 1]), b.scalar(data_type::INT64, 0.0));
                    let sums = b.apply("CumSum", &[&twos, &axis], &[]);
                    let end = b.ints(&[2]);
                    let start = b.ints(&[0]);
                    let shape = b.apply("Slice", &[&sums, &start, &end], &[]);
                    let number = b.scalar(data_type::FLOAT, 0.0);
                    b.apply("Expand", &[&number, &shape], &[]);
                },
                &[2, 3],
            ),
            (
                "unknown stays unknown",
                |b| _ = b.apply("NoSuchOperator", &["x"], &[]),
                &[-1],
            ),
        ];
        for (name, build, expected) in table {
            let shape = value_of(build).map_or(vec![-1], |value| value.shape);
            assert_eq!(shape, *expected, "{name}");
        }
    }
}
