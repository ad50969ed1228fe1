//! Gradients of operators that take parts of a value: the parts go back to where they came from.

use preface_graph::builder::Attribute;

use super::{Call, Part};
use crate::Error;

/// ONNX Concat: each input gets its part.
pub(super) fn concat(call: &mut Call) -> Result<Vec<Part>, Error> {
    let rank = call.fact(&call.output())?.rank();
    let axis = call.axis(call.node.int("axis", 0), rank);
    let inputs = call.node.input.clone();
    let sizes = inputs
        .iter()
        .map(|input| call.dim(input, axis))
        .collect::<Result<Vec<_>, _>>()?;
    let sizes: Vec<&str> = sizes.iter().map(String::as_str).collect();
    let sizes = call
        .builder
        .apply("Concat", &sizes, &[("axis", Attribute::Int(0))]);
    let parts: Vec<String> = inputs.iter().map(|_| call.builder.fresh()).collect();
    let outputs: Vec<&str> = parts.iter().map(String::as_str).collect();
    let gradient = call.gradient()?;
    call.builder.write(
        "Split",
        &[&gradient, &sizes],
        &outputs,
        &[("axis", Attribute::Int(axis as i64))],
    );
    let wanted = parts
        .into_iter()
        .enumerate()
        .filter(|(index, _)| call.wants(*index));
    Ok(wanted
        .map(|(index, part)| Part::exact(index, part))
        .collect())
}

/// ONNX Split: the parts' gradients side by side, zeros where none arrived.
pub(super) fn split(call: &mut Call) -> Result<Vec<Part>, Error> {
    let rank = call.input_fact(0)?.rank();
    let axis = call.axis(call.node.int("axis", 0), rank);
    let zero = call.number(0.0)?;
    let outputs = call.node.output.clone();
    let arrived = call.output_gradients.clone();
    let parts: Vec<String> = outputs
        .iter()
        .zip(arrived)
        .map(|(output, gradient)| gradient.unwrap_or_else(|| call.apply("Mul", &[output, &zero])))
        .collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let whole = call
        .builder
        .apply("Concat", &parts, &[("axis", Attribute::Int(axis as i64))]);
    Ok(vec![Part::exact(0, whole)])
}

/// ONNX Slice with positive steps: zeros between the slice's elements and around them.
pub(super) fn slice(call: &mut Call) -> Result<Vec<Part>, Error> {
    let (whole, part) = (call.input_fact(0)?, call.fact(&call.output())?);
    let rank = whole.rank();
    let attribute = call.node.ints("starts").map(<[i64]>::to_vec);
    let count = match &attribute {
        Some(starts) => starts.len(),
        None => call.input_fact(1)?.constant_dim(0).unwrap_or(0) as usize,
    };
    let axes = match (call.node.ints("axes"), call.node.input(3)) {
        (None, None) => (0..count).collect(),
        _ => call.axes(3, rank)?,
    };
    let steps = match call.node.input(4) {
        Some(steps) => call.fact(steps)?.constant_ints(),
        None => Some(vec![1; axes.len()]),
    };
    let steps = steps.filter(|steps| steps.iter().all(|&step| step > 0));
    let steps = steps.ok_or_else(|| call.refuse("a slice with steps that are not positive"))?;
    let mut gradient = call.gradient()?;
    for (index, &axis) in axes.iter().enumerate() {
        let uncut = whole
            .shapes
            .iter()
            .zip(&part.shapes)
            .all(|(whole, part)| whole[axis] == part[axis]);
        if uncut {
            continue;
        }
        if steps[index] > 1 {
            gradient = dilate(call, &gradient, axis, steps[index])?;
        }
        let start = match &attribute {
            Some(starts) => from_front(call, starts[index], axis)?,
            None => start_of(call, 1, index, axis)?,
        };
        gradient = pad(call, &gradient, axis, &start)?;
    }
    Ok(vec![Part::exact(0, gradient)])
}

/// `step - 1` zeros behind every element along `axis`; [`pad`] cuts those that reach too far.
fn dilate(call: &mut Call, gradient: &str, axis: usize, step: i64) -> Result<String, Error> {
    let part = call.fact(&call.output())?;
    let tail = (axis + 1..part.rank()).map(|axis| part.constant_dim(axis));
    let tail = tail.collect::<Option<Vec<_>>>();
    let tail = tail.ok_or_else(|| call.refuse("steps before a dimension of free size"))?;
    let behind = call.builder.ints(&[axis as i64 + 1]);
    let single = call.apply("Unsqueeze", &[gradient, &behind]);
    let mut pads = vec![0; 2 * (part.rank() + 1)];
    pads[part.rank() + axis + 2] = step - 1;
    let (pads, zero) = (call.builder.ints(&pads), call.number(0.0)?);
    let wide = call.apply("Pad", &[&single, &pads, &zero]);
    let mut shape = vec![0; axis];
    shape.push(-1);
    shape.extend(tail);
    let shape = call.builder.ints(&shape);
    Ok(call.apply("Reshape", &[&wide, &shape]))
}

/// ONNX Pad with a constant: the padding is cut off again.
pub(super) fn unpad(call: &mut Call) -> Result<Vec<Part>, Error> {
    if call.node.text("mode", "constant") != "constant" {
        return Err(call.refuse("pads with other than a constant"));
    }
    let (pads, zero, gradient) = (call.input(1)?, call.number(0.0)?, call.gradient()?);
    let cuts = call.apply("Neg", &[&pads]);
    let axes = call.node.input(3).map(str::to_owned);
    let mut inputs = vec![gradient.as_str(), &cuts, &zero];
    inputs.extend(axes.as_deref());
    Ok(vec![Part::exact(0, call.apply("Pad", &inputs))])
}

/// ONNX Gather: a single index pads with zeros, many scatter-add along axis 0.
pub(super) fn gather(call: &mut Call) -> Result<Vec<Part>, Error> {
    let (whole, index) = (call.input_fact(0)?, call.input_fact(1)?);
    let axis = call.axis(call.node.int("axis", 0), whole.rank());
    let gradient = call.gradient()?;
    if index
        .shapes
        .iter()
        .all(|shape| shape.iter().product::<i64>() == 1)
        && index.rank() <= 1
    {
        let mut gradient = gradient;
        if index.rank() == 0 {
            let axis = call.builder.ints(&[axis as i64]);
            gradient = call.apply("Unsqueeze", &[&gradient, &axis]);
        }
        let start = start_of(call, 1, 0, axis)?;
        return Ok(vec![Part::exact(0, pad(call, &gradient, axis, &start)?)]);
    }
    if axis != 0 {
        return Err(call.refuse(format!("several indices along axis {axis}")));
    }
    let index = call.input(1)?;
    let last = call.builder.ints(&[-1]);
    let index = call.apply("Unsqueeze", &[&index, &last]);
    scatter_add(call, &index, &gradient)
}

/// ONNX GatherND without batch dimensions: scatter-add.
pub(super) fn gather_nd(call: &mut Call) -> Result<Vec<Part>, Error> {
    if call.node.int("batch_dims", 0) != 0 {
        return Err(call.refuse("batch dimensions"));
    }
    let (index, gradient) = (call.input(1)?, call.gradient()?);
    scatter_add(call, &index, &gradient)
}

fn scatter_add(call: &mut Call, index: &str, gradient: &str) -> Result<Vec<Part>, Error> {
    let (input, zero) = (call.input(0)?, call.number(0.0)?);
    let shape = call.apply("Shape", &[&input]);
    let zeros = call.apply("Expand", &[&zero, &shape]);
    let add = [("reduction", Attribute::Text("add"))];
    let whole = call
        .builder
        .apply("ScatterND", &[&zeros, index, gradient], &add);
    Ok(vec![Part::exact(0, whole)])
}

/// Start `index` of the list in input `input`, counted from the front, as a list of one integer.
fn start_of(call: &mut Call, input: usize, index: usize, axis: usize) -> Result<String, Error> {
    let (name, fact) = (call.input(input)?, call.input_fact(input)?);
    if let Some(starts) = fact.constant_ints() {
        return from_front(call, starts[index], axis);
    }
    let known = fact.numbers.iter().flatten().map(|numbers| numbers[index]);
    if known.clone().count() != fact.numbers.len() || known.clone().any(|start| start < 0.0) {
        return Err(call.refuse("a start that depends on the contents of the input"));
    }
    let list = call.builder.ints(&[-1]);
    let flat = call.apply("Reshape", &[&name, &list]);
    let at = call.builder.ints(&[index as i64]);
    Ok(call
        .builder
        .apply("Gather", &[&flat, &at], &[("axis", Attribute::Int(0))]))
}

fn from_front(call: &mut Call, start: i64, axis: usize) -> Result<String, Error> {
    let start_list = call.builder.ints(&[start]);
    if start >= 0 {
        return Ok(start_list);
    }
    let input = call.input(0)?;
    let size = call.dim(&input, axis)?;
    Ok(call.apply("Add", &[&size, &start_list]))
}

/// Pads `gradient` along `axis` to the size of the first input, `start` zeros before it.
fn pad(call: &mut Call, gradient: &str, axis: usize, start: &str) -> Result<String, Error> {
    let input = call.input(0)?;
    let rank = call.fact(&input)?.rank();
    let size = call.dim(&input, axis)?;
    let shape = call.apply("Shape", &[gradient]);
    let at = call.builder.ints(&[axis as i64]);
    let taken = call
        .builder
        .apply("Gather", &[&shape, &at], &[("axis", Attribute::Int(0))]);
    let behind = call.apply("Sub", &[&size, &taken]);
    let behind = call.apply("Sub", &[&behind, start]);
    let zeros =
        |call: &mut Call, count: usize| (count > 0).then(|| call.builder.ints(&vec![0; count]));
    let (left, right) = (zeros(call, axis), zeros(call, rank - 1 - axis));
    let (left, right) = (left.as_deref(), right.as_deref());
    let pads: Vec<&str> = [left, Some(start), right, left, Some(&behind), right]
        .into_iter()
        .flatten()
        .collect();
    let pads = call
        .builder
        .apply("Concat", &pads, &[("axis", Attribute::Int(0))]);
    let zero = call.number(0.0)?;
    Ok(call.apply("Pad", &[gradient, &pads, &zero]))
}
