//! What moves numbers, or only says that they lie otherwise: reshapes, slices, gathers and concatenations.

use preface_graph::{facts::Fact, onnx::NodeProto};

use super::{
    Refused, Rows, Value, Walk,
    draft::{Draw, From, Kind, Read},
    layout::{Atom, Layout},
    layout_numbers,
    rows::{Dim, size_of, step_of},
    statics::Static,
};
use crate::engine::executor::program::Function;

impl Walk<'_> {
    /// A node that moves no number.
    pub(super) fn view(&mut self, node: &NodeProto) -> Result<Value, Refused> {
        let dims = self.dims(&node.output[0])?;
        let tokens = self.tokens;
        let value = self.value(node, 0)?;
        if dims.contains(&0) {
            return Ok(Value::Empty);
        }
        let before = self.dims(node.input(0).unwrap_or_default())?;
        let change = |layout: &Layout| match node.op_type() {
            "Transpose" => match node.ints("perm") {
                Some(perm) => layout.permuted(perm.iter().map(|&axis| axis as usize)),
                None => layout.permuted((0..layout.axes.len()).rev()),
            },
            "Expand" => layout.expanded(&dims, tokens),
            "Slice" => self.slice(node, layout, &before, &dims),
            _ => layout.reshaped(&dims, tokens),
        };
        let changed = match value {
            Value::Rows(mut rows) => change(&rows.layout).map(|layout| {
                rows.layout = layout;
                Value::Rows(rows)
            }),
            Value::Scores(mut scores) => change(&scores.layout).map(|layout| {
                scores.layout = layout;
                Value::Scores(scores)
            }),
            Value::Types => Some(Value::Types),
            Value::Past { .. } | Value::Ignored | Value::Empty => None,
        };
        changed.ok_or_else(|| Refused::node(node, "moves numbers between rows"))
    }

    fn slice(
        &self,
        node: &NodeProto,
        layout: &Layout,
        before: &[usize],
        after: &[usize],
    ) -> Option<Layout> {
        let ints = |index: usize, name: &str| match node.ints(name) {
            Some(ints) => Some(ints.to_vec()),
            None => self.facts.get(node.input(index)?)?.constant_ints(),
        };
        let changed = (0..before.len()).filter(|&axis| before[axis] != after[axis]);
        let changed: Vec<usize> = changed.collect();
        if changed.is_empty() {
            return Some(layout.clone());
        }
        let starts = ints(1, "starts")?;
        let axes = ints(3, "axes").unwrap_or_else(|| (0..starts.len() as i64).collect());
        let steps = node.input(4).and_then(|_| ints(4, "steps"));
        changed.iter().try_fold(layout.clone(), |layout, &axis| {
            let place = axes.iter().position(|&named| {
                let named = if named < 0 {
                    named + before.len() as i64
                } else {
                    named
                };
                named == axis as i64
            })?;
            let size = before[axis] as i64;
            let start = starts[place];
            let start = if start < 0 { start + size } else { start };
            let start = start.clamp(0, size) as usize;
            let step = steps.as_ref().map_or(Some(&1), |steps| steps.get(place))?;
            layout.stepped(axis, start, after[axis], usize::try_from(*step).ok()?)
        })
    }

    pub(super) fn split(&mut self, node: &NodeProto) -> Result<(), Refused> {
        let rows = self.rows(node, 0)?;
        let rank = rows.layout.axes.len() as i64;
        let axis = node.int("axis", 0);
        let axis = (if axis < 0 { axis + rank } else { axis }) as usize;
        let mut start = 0;
        for output in &node.output {
            let size = self.dims(output)?[axis];
            let layout = rows.layout.sliced(axis, start, start + size);
            let layout = layout.ok_or_else(|| Refused::node(node, "splits tokens"))?;
            start += size;
            let part = Rows {
                layout,
                sole: false,
                ..rows.clone()
            };
            self.values.insert(output.clone(), Value::Rows(part));
        }
        Ok(())
    }

    /// A Gather of one place, listed or not, or of the rows of token types.
    pub(super) fn gather(&mut self, node: &NodeProto) -> Result<Value, Refused> {
        let refused = || Refused::node(node, "gathers by something else than token types");
        if !self.is_dynamic(node.input(0).unwrap_or_default()) {
            let Value::Types = self.value(node, 1)? else {
                return Err(refused());
            };
            let table = self
                .statics
                .of(node.input(0).unwrap_or_default(), &mut None)?;
            let Static::Constant(table) = table else {
                return Err(refused());
            };
            let [_, width] = table.shape[..] else {
                return Err(refused());
            };
            if node.int("axis", 0) != 0 {
                return Err(refused());
            }
            let first = self.draft.constant(&table.values);
            let read = Read {
                from: From::Type(width),
                first,
                strides: [0, 0, 1],
            };
            let operation = self.draw(Function::Copy, vec![read], [1, 1, width], width);
            return Ok(Value::Rows(Rows {
                operation,
                layout: Layout::plain(&[Some(1), None, Some(width)]),
                scale: 1.0,
                sole: true,
                joined: None,
            }));
        }
        let mut rows = self.rows(node, 0)?;
        let index = self.facts.get(node.input(1).unwrap_or_default());
        let index = index.filter(|index| index.rank() <= 1);
        let listed = index.is_some_and(|index| index.rank() == 1);
        let index = index.and_then(Fact::constant_scalar);
        let axis = node.int("axis", 0);
        let rank = rows.layout.axes.len() as i64;
        let axis = (if axis < 0 { axis + rank } else { axis }) as usize;
        let size = self.dims(node.input(0).unwrap_or_default())?[axis] as f64;
        let index = index.ok_or_else(refused)?;
        let index = (if index < 0.0 { index + size } else { index }) as usize;
        let layout = rows.layout.sliced(axis, index, index + 1);
        rows.layout = layout.ok_or_else(refused)?;
        if !listed {
            rows.layout.axes.remove(axis);
        }
        rows.sole = false;
        Ok(Value::Rows(rows))
    }

    pub(super) fn concat(&mut self, node: &NodeProto) -> Result<Value, Refused> {
        let refused = |reason: &str| Refused::node(node, reason);
        if node.input.len() == 1 {
            return self.value(node, 0);
        }
        let dims = self.dims(&node.output[0])?;
        let axis = node.int("axis", 0);
        let axis = (if axis < 0 {
            axis + dims.len() as i64
        } else {
            axis
        }) as usize;
        if let (2, Ok(Value::Past { site, keys })) = (node.input.len(), self.value(node, 0)) {
            let mut rows = self.rows(node, 1)?;
            if rows
                .layout
                .axes
                .get(axis)
                .is_none_or(|axis| axis[..] != [Atom::Row])
            {
                return Err(refused(
                    "puts a cache beside something else than its tokens",
                ));
            }
            if rows.scale != 1.0 {
                let operand = self.of_rows(&rows);
                let From::Operation(operation) = operand.from else {
                    return Err(refused("reads a constant"));
                };
                rows.operation = operation;
                rows.layout = operand.layout;
                rows.scale = 1.0;
            }
            rows.layout.axes[axis] = vec![Atom::Key];
            rows.joined = Some((site, keys));
            return Ok(Value::Rows(rows));
        }
        let empty = |name: &&String| matches!(self.values.get(*name), Some(Value::Empty));
        let mut node = node.clone();
        let kept = node.input.iter().filter(|name| !empty(name)).cloned();
        node.input = kept.collect();
        let operands = self.operands(&node)?;
        let plain = self.plain(&dims);
        let [Atom::Inner { stride, .. }] = plain.axes[axis][..] else {
            return Err(refused("joins tokens"));
        };
        let numbers = layout_numbers(&plain);
        let outer = numbers / (stride * dims[axis]);
        let mut draws = Vec::new();
        let mut first = 0;
        for (operand, name) in operands.into_iter().zip(&node.input) {
            let size = self.dims(name)?[axis];
            let inner: Vec<Dim> = operand
                .layout
                .inner()
                .iter()
                .map(|&atom| (size_of(atom), vec![step_of(atom)]))
                .collect();
            let run = size * stride;
            for row in 0..outer {
                let read = part_of(&inner, row * run, run)
                    .ok_or_else(|| refused("joins numbers that lie apart"))?;
                draws.push(Draw {
                    function: Function::Copy,
                    inputs: vec![Read {
                        from: operand.from,
                        first: operand.layout.first + read.0,
                        strides: [0, 0, read.1],
                    }],
                    first: first + row * stride * dims[axis],
                    dims: [1, 1, run],
                });
            }
            first += run;
        }
        let operation = self.draft.add(Kind::Row(draws), numbers);
        Ok(Value::Rows(Rows {
            operation,
            layout: plain,
            scale: 1.0,
            sole: true,
            joined: None,
        }))
    }
}

/// Where `count` numbers from place `start` on begin, and their step, where they are one run of `dims`.
fn part_of(dims: &[Dim], start: usize, count: usize) -> Option<(usize, usize)> {
    let (mut rest, mut first) = (start, 0);
    let mut step = 1;
    let mut room = 1;
    for (size, steps) in dims.iter().rev() {
        first += (rest % size) * steps[0];
        if room == 1 {
            step = steps[0];
        }
        rest /= size;
        room *= size;
    }
    let whole = match dims.last() {
        None => count == 1,
        Some((size, _)) => start % size + count <= *size,
    };
    whole.then_some((first, step))
}
