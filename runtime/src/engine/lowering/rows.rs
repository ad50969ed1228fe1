//! Operations that each row does by itself.

use preface_graph::onnx::NodeProto;

use super::{
    Refused, Rows, Value, Walk,
    draft::{Draw, From, Kind, Part, Read},
    layout::{Atom, Axis, Layout, joined},
    statics::{Numbers, Static, rows_of},
};
use crate::engine::executor::program::Function;

/// An operand of an operation on rows.
#[derive(Clone, Debug)]
pub(super) struct Operand {
    pub from: From,
    pub layout: Layout,
}

/// One dimension of an operation: how often, and the steps of each operand.
pub(super) type Dim = (usize, Vec<usize>);

impl Walk<'_> {
    /// An operation on rows that makes `numbers` of each.
    pub(super) fn draw(
        &mut self,
        function: Function,
        inputs: Vec<Read>,
        dims: [usize; 3],
        numbers: usize,
    ) -> usize {
        let draw = Draw {
            function,
            inputs,
            first: 0,
            dims,
        };
        self.draft.add(Kind::Row(vec![draw]), numbers)
    }

    /// The numbers of `rows` side by side, in the order of its dimensions.
    pub(super) fn copied(&mut self, rows: &Rows) -> Part {
        let mut operands = vec![Operand {
            from: From::Operation(rows.operation),
            layout: rows.layout.clone(),
        }];
        let mut function = Function::Copy;
        if rows.scale != 1.0 {
            function = Function::Mul;
            operands.push(self.number(rows.scale));
        }
        let made = self
            .compute(function, operands)
            .expect("one operand and a number have dimensions in common");
        Part {
            operation: made.operation,
            first: 0,
        }
    }

    pub(super) fn number(&mut self, number: f32) -> Operand {
        Operand {
            from: From::Constant,
            layout: Layout {
                axes: Vec::new(),
                first: self.draft.constant(&[number]),
            },
        }
    }

    pub(super) fn elementwise(&mut self, node: &NodeProto) -> Result<Value, Refused> {
        if let Some(value) = self.scores_elementwise(node)? {
            return Ok(value);
        }
        let one = |function| (function, 1);
        let (function, arity) = match node.op_type() {
            "Add" => return self.addition(node),
            "Mul" | "Div" => return self.multiplication(node),
            "Sub" => (Function::Sub, 2),
            "Max" => (Function::Max, 2),
            "Min" => (Function::Min, 2),
            "Pow" => return self.power(node),
            "Neg" => one(Function::Neg),
            "Sqrt" => one(Function::Sqrt),
            "Reciprocal" => one(Function::Reciprocal),
            "Exp" => one(Function::Exp),
            "Erf" => one(Function::Erf),
            "Tanh" => one(Function::Tanh),
            "Sigmoid" => one(Function::Sigmoid),
            "Relu" => one(Function::Relu),
            "Abs" => one(Function::Abs),
            "Gelu" => return self.gelu(node),
            _ => return Err(Refused::node(node, "is no operation of the executor")),
        };
        if node.input.len() != arity {
            return Err(Refused::node(node, "has another number of operands"));
        }
        let operands = self.operands(node)?;
        self.computed(node, function, operands)
    }

    pub(super) fn operands(&mut self, node: &NodeProto) -> Result<Vec<Operand>, Refused> {
        (0..node.input.len())
            .map(|index| self.operand(node, index))
            .collect()
    }

    pub(super) fn operand(&mut self, node: &NodeProto, index: usize) -> Result<Operand, Refused> {
        let name = node.input(index).unwrap_or_default();
        if !self.is_dynamic(name) {
            return self.constant_operand(name);
        }
        let rows = self.rows(node, index)?;
        if rows.joined.is_some() || !rows.layout.is_rows() {
            return Err(Refused::node(node, "works on a cache"));
        }
        Ok(self.of_rows(&rows))
    }

    pub(super) fn of_rows(&mut self, rows: &Rows) -> Operand {
        if rows.scale != 1.0 {
            let part = self.copied(rows);
            let dims = rows.layout.axes.iter().map(|axis| match axis[..] {
                [Atom::Row] => None,
                _ => Some(axis.iter().map(|atom| size_of(*atom)).product()),
            });
            return Operand {
                from: From::Operation(part.operation),
                layout: Layout::plain(&dims.collect::<Vec<_>>()),
            };
        }
        Operand {
            from: From::Operation(rows.operation),
            layout: rows.layout.clone(),
        }
    }

    pub(super) fn constant_operand(&mut self, name: &str) -> Result<Operand, Refused> {
        Ok(match self.statics.of(name, &mut self.counted)? {
            Static::Constant(Numbers { shape, values }) => {
                let dims: Vec<_> = shape.iter().map(|&dim| Some(dim)).collect();
                let mut layout = Layout::plain(&dims);
                layout.first = self.draft.constant(&values);
                Operand {
                    from: From::Constant,
                    layout,
                }
            }
            Static::Table { axis, numbers } => {
                let table = rows_of(&numbers, axis);
                let width = table[0].len();
                let dims = numbers.shape.iter().enumerate();
                let dims: Vec<_> = dims
                    .map(|(place, &dim)| (place != axis).then_some(dim))
                    .collect();
                let mut layout = Layout::plain(&dims);
                layout.first = self.draft.constant(&table.concat());
                Operand {
                    from: From::Position(width),
                    layout,
                }
            }
        })
    }

    pub(super) fn computed(
        &mut self,
        node: &NodeProto,
        function: Function,
        operands: Vec<Operand>,
    ) -> Result<Value, Refused> {
        let rows = self.compute(function, operands);
        let rows = rows.ok_or_else(|| Refused::node(node, "combines rows with other rows"))?;
        Ok(Value::Rows(rows))
    }

    /// The result of `function`; `None` where its operands have not one row each.
    fn compute(&mut self, function: Function, operands: Vec<Operand>) -> Option<Rows> {
        let rank = operands
            .iter()
            .map(|operand| operand.layout.axes.len())
            .max()?;
        let axis = |operand: &Operand, place: usize| -> Axis {
            let missing = rank - operand.layout.axes.len();
            let place = place.checked_sub(missing);
            place.map_or(Vec::new(), |place| operand.layout.axes[place].clone())
        };
        let mut axes = Vec::new();
        let mut dims: Vec<Dim> = Vec::new();
        for place in 0..rank {
            let own: Vec<Axis> = operands
                .iter()
                .map(|operand| axis(operand, place))
                .collect();
            if own.iter().any(|axis| axis[..] == [Atom::Row]) {
                if !own
                    .iter()
                    .all(|axis| axis.is_empty() || axis[..] == [Atom::Row])
                {
                    return None;
                }
                axes.push(None);
                continue;
            }
            let refined = refined(&own)?;
            axes.push(Some(refined.iter().map(|(size, _)| size).product()));
            dims.extend(refined);
        }
        let numbers = dims.iter().map(|(size, _)| size).product();
        let dims = merged(dims, operands.len())?;
        let reads = operands.iter().enumerate().map(|(index, operand)| Read {
            from: operand.from,
            first: operand.layout.first,
            strides: [0, 1, 2].map(|dim| dims[dim].1[index]),
        });
        let reads = reads.collect();
        let operation = self.draw(function, reads, [0, 1, 2].map(|dim| dims[dim].0), numbers);
        Some(Rows {
            operation,
            layout: Layout::plain(&axes),
            scale: 1.0,
            sole: true,
            joined: None,
        })
    }

    /// A product or a quotient; one with a number is put off.
    fn multiplication(&mut self, node: &NodeProto) -> Result<Value, Refused> {
        let names = [0, 1].map(|index| node.input(index).unwrap_or_default());
        let divides = node.op_type() == "Div";
        for (rows, number) in [(0, 1), (1, 0)] {
            if (divides && rows == 1) || self.is_dynamic(names[number]) {
                continue;
            }
            if let Some(scale) = self.statics.scalar(names[number]).unwrap_or(None) {
                let mut value = self.rows(node, rows)?;
                value.scale *= if divides { 1.0 / scale } else { scale };
                let same = self
                    .fact(names[rows])?
                    .same_shape(self.fact(&node.output[0])?);
                if same && value.scale.is_finite() {
                    return Ok(Value::Rows(value));
                }
            }
        }
        let operands = self.operands(node)?;
        let function = if divides {
            Function::Div
        } else {
            Function::Mul
        };
        self.computed(node, function, operands)
    }

    fn power(&mut self, node: &NodeProto) -> Result<Value, Refused> {
        let exponent = self.statics.scalar(node.input(1).unwrap_or_default())?;
        let exponent = exponent.ok_or_else(|| Refused::node(node, "has more than one exponent"))?;
        let operand = self.operand(node, 0)?;
        self.computed(node, Function::Power(exponent), vec![operand])
    }

    /// `x/2 (1 + erf(x / sqrt 2))`, or with the attribute `approximate` its form with a hyperbolic tangent (Hendrycks
    /// and Gimpel 2016, section 2).
    fn gelu(&mut self, node: &NodeProto) -> Result<Value, Refused> {
        let failed = || Refused::node(node, "works on something else than rows");
        let input = self.rows(node, 0)?;
        let x = self.of_rows(&input);
        let operand = |rows: &Rows| Operand {
            from: From::Operation(rows.operation),
            layout: rows.layout.clone(),
        };
        let (inner, function) = match node.text("approximate", "none") {
            "tanh" => {
                let cube = self.compute(Function::Power(3.0), vec![x.clone()]);
                let factor = self.number(0.044_715);
                let cube = operand(&cube.ok_or_else(failed)?);
                let cube = self.compute(Function::Mul, vec![cube, factor]);
                let cube = operand(&cube.ok_or_else(failed)?);
                let sum = self.compute(Function::Add, vec![x.clone(), cube]);
                let scale = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2;
                let scale = self.number(scale);
                let sum = operand(&sum.ok_or_else(failed)?);
                (
                    self.compute(Function::Mul, vec![sum, scale]),
                    Function::Tanh,
                )
            }
            _ => {
                let scale = self.number(std::f32::consts::FRAC_1_SQRT_2);
                (
                    self.compute(Function::Mul, vec![x.clone(), scale]),
                    Function::Erf,
                )
            }
        };
        let inner = operand(&inner.ok_or_else(failed)?);
        let curve = operand(&self.compute(function, vec![inner]).ok_or_else(failed)?);
        let one = self.number(1.0);
        let sum = self
            .compute(Function::Add, vec![curve, one])
            .ok_or_else(failed)?;
        let sum = operand(&sum);
        let product = self
            .compute(Function::Mul, vec![x, sum])
            .ok_or_else(failed)?;
        Ok(Value::Rows(Rows {
            scale: 0.5,
            ..product
        }))
    }

    pub(super) fn reduction(&mut self, node: &NodeProto) -> Result<Value, Refused> {
        let refused = |reason: &str| Refused::node(node, reason);
        let rows = self.rows(node, 0)?;
        let rank = rows.layout.axes.len();
        let axes = match (node.ints("axes"), node.input(1)) {
            (Some(axes), _) => Some(axes.to_vec()),
            (None, Some(axes)) => self.facts.get(axes).and_then(|axes| axes.constant_ints()),
            _ => None,
        };
        let last = [-1, rank as i64 - 1];
        if !axes.is_some_and(|axes| axes.len() == 1 && last.contains(&axes[0])) {
            return Err(refused("reduces something else than the last dimension"));
        }
        let function = match node.op_type() {
            "ReduceMean" => Function::Mean,
            "ReduceSum" => Function::Sum,
            _ => Function::Largest,
        };
        let operand = self.operand(node, 0)?;
        let mut axes = operand.layout.axes.clone();
        let last = axes.pop().unwrap_or_default();
        let inner = match last[..] {
            [Atom::Inner { size, stride }] => (size, stride),
            [] => (1, 1),
            _ => return Err(refused("reduces tokens")),
        };
        let outer = joined(
            axes.iter()
                .flatten()
                .copied()
                .filter(|atom| *atom != Atom::Row),
        );
        let outer: Vec<(usize, usize)> = outer
            .iter()
            .map(|&atom| (size_of(atom), step_of(atom)))
            .collect();
        let [first, second] = match outer[..] {
            [] => [(1, 0), (1, 0)],
            [one] => [(1, 0), one],
            [one, two] => [one, two],
            _ => return Err(refused("has too many dimensions")),
        };
        let read = Read {
            from: operand.from,
            first: operand.layout.first,
            strides: [first.1, second.1, inner.1],
        };
        let numbers = first.0 * second.0;
        let dims = [first.0, second.0, inner.0];
        let operation = self.draw(function, vec![read], dims, numbers);
        let dims = self.dims(&node.output[0])?;
        Ok(Value::Rows(Rows {
            operation,
            layout: self.plain(&dims),
            scale: 1.0,
            sole: true,
            joined: None,
        }))
    }

    pub(super) fn normalisation(&mut self, node: &NodeProto) -> Result<Value, Refused> {
        let rows = self.rows(node, 0)?;
        let last = rows.layout.axes.len() as i64 - 1;
        if ![-1, last].contains(&node.int("axis", -1)) {
            return Err(Refused::node(node, "normalises several dimensions"));
        }
        let mut operands = vec![self.of_rows(&rows)];
        operands.push(self.constant_operand(node.input(1).unwrap_or_default())?);
        let epsilon = node.float("epsilon", 1e-5);
        if node.op_type() == "RMSNormalization" {
            return self.computed(node, Function::RmsNormalise { epsilon }, operands);
        }
        operands.push(match node.input(2) {
            Some(name) => self.constant_operand(name)?,
            None => self.number(0.0),
        });
        self.computed(node, Function::Normalise { epsilon }, operands)
    }
}

pub(super) fn size_of(atom: Atom) -> usize {
    match atom {
        Atom::Inner { size, .. } => size,
        _ => 1,
    }
}

pub(super) fn step_of(atom: Atom) -> usize {
    match atom {
        Atom::Inner { stride, .. } => stride,
        _ => 0,
    }
}

/// Axes of several operands, broadcast together, as dimensions that all of them have.
fn refined(axes: &[Axis]) -> Option<Vec<Dim>> {
    let mut left: Vec<Vec<(usize, usize)>> = Vec::new();
    for axis in axes {
        let atoms = axis.iter().rev().map(|atom| match *atom {
            Atom::Inner { size, stride } => Some((size, stride)),
            _ => None,
        });
        left.push(atoms.collect::<Option<_>>()?);
    }
    let broadcast: Vec<bool> = left.iter().map(Vec::is_empty).collect();
    let mut dims = Vec::new();
    loop {
        let heads = left.iter().filter_map(|atoms| atoms.last());
        let Some(size) = heads.map(|(size, _)| *size).min() else {
            return Some(dims);
        };
        let mut steps = Vec::new();
        for (atoms, &broadcast) in left.iter_mut().zip(&broadcast) {
            if broadcast {
                steps.push(0);
                continue;
            }
            let (own, stride) = atoms.pop()?;
            if !own.is_multiple_of(size) {
                return None;
            }
            let inner = own / size;
            steps.push(stride * inner);
            if inner > 1 {
                atoms.push((inner, stride));
            }
        }
        dims.push((size, steps));
    }
}

/// `dims` as three, the last the innermost; neighbours that are one run for every operand are one.
fn merged(dims: Vec<Dim>, operands: usize) -> Option<[Dim; 3]> {
    let mut merged: Vec<Dim> = Vec::new();
    for (size, steps) in dims {
        match merged.last_mut() {
            Some((outer, outer_steps))
                if outer_steps
                    .iter()
                    .zip(&steps)
                    .all(|(outer, step)| *outer == step * size) =>
            {
                *outer *= size;
                *outer_steps = steps;
            }
            _ => merged.push((size, steps)),
        }
    }
    while merged.len() < 3 {
        merged.insert(0, (1, vec![0; operands]));
    }
    merged.try_into().ok()
}
