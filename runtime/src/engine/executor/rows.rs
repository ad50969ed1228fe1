//! Chains of operations that each row does by itself.

use tract_linalg::{Func, element_wise::ElementWise};

use super::{
    super::{failed, vectors::wide},
    arena::Shared,
    program::{Function, Operand, RowStep, Source},
};
use crate::Error;

/// The operations that tract-linalg has kernels for.
#[derive(Debug)]
pub(super) struct Curves {
    erf: Box<dyn ElementWise<f32>>,
    tanh: Box<dyn ElementWise<f32>>,
    sigmoid: Box<dyn ElementWise<f32>>,
}

/// What a row reads and writes.
pub(super) struct Memory<'a> {
    /// Slots and scratch space.
    pub arena: Shared<'a>,
    pub constants: &'a [f32],
    /// Where each slot begins in the arena, and the numbers of one of its rows.
    pub slots: &'a [(usize, usize)],
    /// Where the scratch space begins in the arena.
    pub scratch: usize,
}

/// Which row.
#[derive(Clone, Copy)]
struct Row {
    index: usize,
    position: usize,
    kind: usize,
}

impl Curves {
    pub fn new() -> Result<Self, Error> {
        let curve = |function: Func| function.ew_f32().map_err(failed("choosing a kernel"));
        Ok(Self {
            erf: curve(Func::Erf)?,
            tanh: curve(Func::Tanh)?,
            sigmoid: curve(Func::Sigmoid)?,
        })
    }

    /// Computes once on this thread, so that its own memory, which curves ask for with their first use, is there.
    pub fn warm_up(&self) -> Result<(), Error> {
        let mut curves = [Function::Erf, Function::Tanh, Function::Sigmoid].into_iter();
        curves.try_for_each(|function| self.unary(function, &mut [0.0; 3]))
    }

    /// Does `steps` for every row of a text, whose rows have `types`, the first of them at `(row, position)`.
    ///
    /// # Errors
    /// When a row has a token type that the base has no row for.
    pub fn run(
        &self,
        steps: &[RowStep],
        memory: &Memory<'_>,
        types: &[i64],
        (first, position): (usize, usize),
    ) -> Result<(), Error> {
        let curves = self;
        wide!(|curves: &Curves,
               steps: &[RowStep],
               memory: &Memory<'_>,
               types: &[i64],
               first: usize,
               position: usize|
         -> Result<(), Error> {
            for (index, &kind) in types.iter().enumerate() {
                let row = Row {
                    index: first + index,
                    position: position + index,
                    kind: usize::try_from(kind).unwrap_or(usize::MAX),
                };
                for step in steps {
                    curves.step(step, memory, row)?;
                }
            }
            Ok(())
        })
    }

    /// Does `step` for one row.
    #[inline(always)]
    fn step(&self, step: &RowStep, memory: &Memory<'_>, row: Row) -> Result<(), Error> {
        let [outer, middle, inner] = step.dims;
        let runs = (0..outer).flat_map(|first| (0..middle).map(move |second| (first, second)));
        let made = match step.function.reduces() {
            true => 1,
            false => inner,
        };
        let output = memory.place(&step.output, row);
        for (at, run) in runs.enumerate() {
            let start = output.start + at * made;
            let write = start..start + made;
            match step.function {
                Function::Normalise { epsilon } => {
                    memory.copy(step, 0, row, run, start)?;
                    normalise(memory.arena.write(write.clone()), epsilon);
                    memory.combine(step, 1, row, run, start, |one, other| one * other)?;
                    memory.combine(step, 2, row, run, start, |one, other| one + other)?;
                }
                Function::RmsNormalise { epsilon } => {
                    memory.copy(step, 0, row, run, start)?;
                    rms_normalise(memory.arena.write(write.clone()), epsilon);
                    memory.combine(step, 1, row, run, start, |one, other| one * other)?;
                }
                Function::Mean | Function::Sum | Function::Largest => {
                    let number = memory.reduced(step, row, run)?;
                    memory.arena.write(write)[0] = number;
                }
                function if function.arity() == 2 => {
                    memory.copy(step, 0, row, run, start)?;
                    memory.binary(step, row, run, start)?;
                }
                function => {
                    memory.copy(step, 0, row, run, start)?;
                    self.unary(function, memory.arena.write(write))?;
                }
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn unary(&self, function: Function, run: &mut [f32]) -> Result<(), Error> {
        let each = |run: &mut [f32], compute: fn(f32) -> f32| {
            run.iter_mut().for_each(|number| *number = compute(*number));
        };
        let curve = match function {
            Function::Erf => &self.erf,
            Function::Tanh => &self.tanh,
            Function::Sigmoid => &self.sigmoid,
            _ => {
                match function {
                    Function::Neg => each(run, |number| -number),
                    Function::Sqrt => each(run, f32::sqrt),
                    Function::Reciprocal => each(run, f32::recip),
                    Function::Exp => each(run, f32::exp),
                    Function::Relu => each(run, |number| number.max(0.0)),
                    Function::Abs => each(run, f32::abs),
                    Function::Power(exponent) => power(run, exponent),
                    _ => {}
                }
                return Ok(());
            }
        };
        curve.run(run).map_err(failed("computing a row"))
    }
}

#[inline(always)]
fn power(run: &mut [f32], exponent: f32) {
    match exponent {
        2.0 => run.iter_mut().for_each(|number| *number *= *number),
        3.0 => run.iter_mut().for_each(|number| *number = number.powi(3)),
        0.5 => run.iter_mut().for_each(|number| *number = number.sqrt()),
        _ => run
            .iter_mut()
            .for_each(|number| *number = number.powf(exponent)),
    }
}

/// Numbers that are added up side by side.
const LANES: usize = 16;

/// The inner product of two vectors.
#[inline(always)]
pub(super) fn inner(one: &[f32], other: &[f32]) -> f32 {
    let (ones, rest) = one.as_chunks::<LANES>();
    let (others, other_rest) = other.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for (one, other) in ones.iter().zip(others) {
        for (lane, (one, other)) in lanes.iter_mut().zip(one.iter().zip(other)) {
            *lane += one * other;
        }
    }
    let rest = rest.iter().zip(other_rest);
    lanes
        .into_iter()
        .chain(rest.map(|(one, other)| one * other))
        .sum()
}

/// The sum of `map` over a run.
#[inline(always)]
fn sum(run: &[f32], map: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = run.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for chunk in chunks {
        for (lane, &number) in lanes.iter_mut().zip(chunk) {
            *lane += map(number);
        }
    }
    let rest = rest.iter().map(|&number| map(number));
    lanes.into_iter().chain(rest).sum()
}

/// `(x - mean) / sqrt(variance + epsilon)`.
#[inline(always)]
fn normalise(run: &mut [f32], epsilon: f32) {
    let count = run.len() as f32;
    let mean = sum(run, |number| number) / count;
    run.iter_mut().for_each(|number| *number -= mean);
    let variance = sum(run, |number| number * number) / count;
    let scale = (variance + epsilon).sqrt().recip();
    run.iter_mut().for_each(|number| *number *= scale);
}

/// `x / sqrt(mean of x^2 + epsilon)`.
#[inline(always)]
fn rms_normalise(run: &mut [f32], epsilon: f32) {
    let mean = sum(run, |number| number * number) / run.len() as f32;
    let scale = (mean + epsilon).sqrt().recip();
    run.iter_mut().for_each(|number| *number *= scale);
}

/// Numbers in memory, outside the arena or in it.
enum Numbers<'a> {
    Arena(usize),
    Constants(&'a [f32]),
}

/// Where an operand begins.
struct Start {
    start: usize,
    constant: bool,
}

impl<'a> Memory<'a> {
    #[inline(always)]
    fn place(&self, operand: &Operand, row: Row) -> Start {
        let (start, constant) = match operand.source {
            Source::Slot(slot) => {
                let (begin, width) = self.slots[slot];
                (begin + row.index * width, false)
            }
            Source::Scratch => (self.scratch, false),
            Source::Constant => (0, true),
            Source::Position(width) => (row.position * width, true),
            Source::Type(width) => (row.kind.saturating_mul(width), true),
        };
        Start {
            start: start.saturating_add(operand.first),
            constant,
        }
    }

    /// The operand's run `(first, second)`, and the stride of its numbers.
    #[inline(always)]
    fn run_of(
        &self,
        step: &RowStep,
        which: usize,
        row: Row,
        (first, second): (usize, usize),
    ) -> Result<(Numbers<'a>, usize), Error> {
        let operand = &step.inputs[which];
        let Start { start, constant } = self.place(operand, row);
        let [outer, middle, stride] = operand.strides;
        let start = start.saturating_add(first * outer + second * middle);
        if !constant {
            return Ok((Numbers::Arena(start), stride));
        }
        let reach = (step.dims[2] - 1) * stride + 1;
        let numbers = self.constants.get(start..start.saturating_add(reach));
        Ok((
            Numbers::Constants(numbers.ok_or(Error::TokenType { kind: row.kind })?),
            stride,
        ))
    }

    /// Copies a run of an operand to `to`.
    #[inline(always)]
    fn copy(
        &self,
        step: &RowStep,
        which: usize,
        row: Row,
        run: (usize, usize),
        to: usize,
    ) -> Result<(), Error> {
        let inner = step.dims[2];
        let (numbers, stride) = self.run_of(step, which, row, run)?;
        match (numbers, stride) {
            (Numbers::Arena(from), 1) => self.arena.copy(from..from + inner, to),
            (Numbers::Arena(from), _) => {
                for index in 0..inner {
                    let from = from + index * stride;
                    self.arena.copy(from..from + 1, to + index);
                }
            }
            (Numbers::Constants(from), 1) => {
                self.arena.write(to..to + inner).copy_from_slice(from);
            }
            (Numbers::Constants(from), _) => {
                let output = self.arena.write(to..to + inner);
                for (index, number) in output.iter_mut().enumerate() {
                    *number = from[index * stride];
                }
            }
        }
        Ok(())
    }

    /// Combines the run at `to` with a run of an operand.
    #[inline(always)]
    fn combine(
        &self,
        step: &RowStep,
        which: usize,
        row: Row,
        run: (usize, usize),
        to: usize,
        compute: impl Fn(f32, f32) -> f32,
    ) -> Result<(), Error> {
        let inner = step.dims[2];
        let (numbers, stride) = self.run_of(step, which, row, run)?;
        let reach = (inner - 1) * stride + 1;
        let (output, from) = match numbers {
            Numbers::Constants(from) => (self.arena.write(to..to + inner), from),
            Numbers::Arena(from) => {
                let apart = from + reach <= to || to + inner <= from;
                assert!(
                    apart,
                    "a program that was checked reads no run that it writes"
                );
                let from = self.arena.read(from..from + reach);
                (self.arena.write(to..to + inner), from)
            }
        };
        match stride {
            0 => {
                let other = from[0];
                output
                    .iter_mut()
                    .for_each(|number| *number = compute(*number, other));
            }
            1 => output
                .iter_mut()
                .zip(from)
                .for_each(|(number, &other)| *number = compute(*number, other)),
            _ => output
                .iter_mut()
                .zip(from.iter().step_by(stride))
                .for_each(|(number, &other)| *number = compute(*number, other)),
        }
        Ok(())
    }

    #[inline(always)]
    fn binary(
        &self,
        step: &RowStep,
        row: Row,
        run: (usize, usize),
        to: usize,
    ) -> Result<(), Error> {
        match step.function {
            Function::Add => self.combine(step, 1, row, run, to, |one, other| one + other),
            Function::Sub => self.combine(step, 1, row, run, to, |one, other| one - other),
            Function::Mul => self.combine(step, 1, row, run, to, |one, other| one * other),
            Function::Div => self.combine(step, 1, row, run, to, |one, other| one / other),
            Function::Max => self.combine(step, 1, row, run, to, f32::max),
            _ => self.combine(step, 1, row, run, to, f32::min),
        }
    }

    #[inline(always)]
    fn reduced(&self, step: &RowStep, row: Row, run: (usize, usize)) -> Result<f32, Error> {
        let inner = step.dims[2];
        let (numbers, stride) = self.run_of(step, 0, row, run)?;
        let reach = (inner - 1) * stride + 1;
        let from = match numbers {
            Numbers::Constants(from) => from,
            Numbers::Arena(from) => self.arena.read(from..from + reach),
        };
        let strided = || from.iter().copied().step_by(stride.max(1));
        Ok(match (step.function, stride) {
            (Function::Largest, _) => strided().fold(f32::NEG_INFINITY, f32::max),
            (Function::Sum, 1) => sum(from, |number| number),
            (Function::Sum, _) => strided().sum(),
            (_, 1) => sum(from, |number| number) / inner as f32,
            _ => strided().sum::<f32>() / inner as f32,
        })
    }
}
