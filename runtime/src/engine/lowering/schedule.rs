//! Gives a draft its order and its numbers their places.

use super::draft::{Draft, From, HeadPart, Kind, Part, Read, Weight};
use crate::engine::executor::program::{
    Attend, Columns, Encoder, Heads, Keep, KeyHeads, Logits, Operand, Product, Program, RowStep,
    Source, Step, Tied,
};

/// What a program has beside its steps.
pub(super) struct Frame {
    pub output: Part,
    pub max_rows: usize,
    pub counted: bool,
    pub caches: bool,
    pub padding: Option<u32>,
    pub logits: Option<Logits>,
}

/// Operations that are done together: one that is no row's own, or a chain of those that are.
type Stage = Vec<usize>;

/// The program of `draft`.
pub(super) fn program(draft: &Draft, frame: Frame) -> Program {
    let (places, steps) =
        steps(draft, 0, &[frame.output.operation]).expect("operation 0 needs nothing");
    Program {
        output: places.columns(frame.output),
        slots: places.widths,
        scratch: places.most_scratch,
        max_rows: frame.max_rows,
        counted: frame.counted,
        caches: frame.caches,
        padding: frame.padding,
        steps,
        logits: frame.logits,
        encoder: None,
    }
}

/// The encoder of `draft`, whose `outputs` are what it keeps.
pub(super) fn encoder(draft: &Draft, outputs: &[usize], padding: Option<u32>) -> Encoder {
    let (places, steps) = steps(draft, 0, outputs).expect("operation 0 needs nothing");
    Encoder {
        slots: places.widths,
        scratch: places.most_scratch,
        padding,
        steps,
    }
}

/// What makes the scores `output` of the numbers of operation `from`; `None` where they need more than those.
pub(super) fn logits(draft: &Draft, from: usize, output: Part) -> Option<Logits> {
    let (places, steps) = steps(draft, from, &[output.operation])?;
    Some(Logits {
        output: places.columns(output),
        slots: places.widths,
        scratch: places.most_scratch,
        steps,
        vocabulary: draft.operations[output.operation].numbers,
    })
}

/// The steps from operation `from` to `outputs`; `None` where that needs more than `from` makes.
fn steps(draft: &Draft, from: usize, outputs: &[usize]) -> Option<(Places, Vec<Step>)> {
    let stages = stages(draft, from, outputs)?;
    let mut places = Places::new(draft, &stages, from, outputs);
    let mut steps = Vec::new();
    for (at, stage) in stages.iter().enumerate() {
        places.make(draft, stage);
        steps.push(places.step(draft, stage));
        places.release(at);
    }
    Some((places, steps))
}

/// The operations between `from` and `outputs`, in an order in which each finds its inputs made.
fn stages(draft: &Draft, from: usize, outputs: &[usize]) -> Option<Vec<Stage>> {
    let mut needed = vec![false; draft.operations.len()];
    let mut open = outputs.to_vec();
    while let Some(operation) = open.pop() {
        if operation != from && !std::mem::replace(&mut needed[operation], true) {
            open.extend(draft.operations[operation].inputs());
        }
    }
    if needed[0] {
        return None;
    }
    let mut done = vec![false; needed.len()];
    done[from] = true;
    let mut stages = Vec::new();
    loop {
        let ready = |done: &[bool], operation: usize| {
            needed[operation]
                && !done[operation]
                && draft.operations[operation]
                    .inputs()
                    .iter()
                    .all(|&input| done[input])
        };
        let all = 0..needed.len();
        let before = stages.len();
        // In the order in which they were found, so that what is made for one reader does not wait for others.
        for operation in all.clone() {
            if !draft.operations[operation].is_row() && ready(&done, operation) {
                done[operation] = true;
                stages.push(vec![operation]);
            }
        }
        let mut chain = Vec::new();
        for operation in all {
            if draft.operations[operation].is_row() && ready(&done, operation) {
                done[operation] = true;
                chain.push(operation);
            }
        }
        if !chain.is_empty() {
            stages.push(chain);
        } else if stages.len() == before {
            return Some(stages);
        }
    }
}

/// Where the numbers of an operation are.
#[derive(Clone, Copy)]
enum Place {
    Slot(usize),
    Scratch(usize),
}

/// Places that come free again behind the last reader.
struct Places {
    places: Vec<Option<Place>>,
    /// The stage that reads an operation last.
    last: Vec<usize>,
    /// Whether another stage than its own reads it.
    lasting: Vec<bool>,
    widths: Vec<usize>,
    free: Vec<bool>,
    most_scratch: usize,
}

impl Places {
    fn new(draft: &Draft, stages: &[Stage], from: usize, outputs: &[usize]) -> Self {
        let count = draft.operations.len();
        let (mut last, mut lasting) = (vec![0; count], vec![false; count]);
        let mut made = vec![usize::MAX; count];
        for (at, stage) in stages.iter().enumerate() {
            stage.iter().for_each(|&operation| made[operation] = at);
        }
        for (at, stage) in stages.iter().enumerate() {
            for &operation in stage {
                lasting[operation] |= !draft.operations[operation].is_row();
                for input in draft.operations[operation].inputs() {
                    last[input] = last[input].max(at);
                    lasting[input] |= made[input] != at;
                }
            }
        }
        for &output in outputs {
            last[output] = usize::MAX;
            lasting[output] = true;
        }
        let mut places = vec![None; count];
        places[from] = Some(Place::Slot(0));
        Self {
            places,
            last,
            lasting,
            widths: vec![draft.operations[from].numbers],
            free: vec![false],
            most_scratch: 0,
        }
    }

    /// Gives everything that `stage` makes a place: a slot where other stages read it, scratch space elsewhere.
    fn make(&mut self, draft: &Draft, stage: &Stage) {
        let mut taken: Vec<(usize, usize, usize)> = Vec::new();
        for (step, &operation) in stage.iter().enumerate() {
            let numbers = draft.operations[operation].numbers;
            if let Kind::Keep(_) = draft.operations[operation].kind {
                continue;
            }
            if self.lasting[operation] {
                self.places[operation] = Some(Place::Slot(self.slot(numbers)));
                continue;
            }
            let readers = stage
                .iter()
                .enumerate()
                .filter(|(_, reader)| draft.operations[**reader].inputs().contains(&operation));
            let until = readers.map(|(step, _)| step).max().unwrap_or(step);
            taken.retain(|&(_, _, until)| until >= step);
            taken.sort_unstable();
            let mut first = 0;
            for &(start, end, _) in &taken {
                if first + numbers <= start {
                    break;
                }
                first = first.max(end);
            }
            taken.push((first, first + numbers, until));
            self.most_scratch = self.most_scratch.max(first + numbers);
            self.places[operation] = Some(Place::Scratch(first));
        }
    }

    fn slot(&mut self, numbers: usize) -> usize {
        let mut slots = 0..self.widths.len();
        let free = slots.find(|&slot| self.free[slot] && self.widths[slot] == numbers);
        let slot = free.unwrap_or_else(|| {
            self.widths.push(numbers);
            self.free.push(false);
            self.widths.len() - 1
        });
        self.free[slot] = false;
        slot
    }

    /// Frees the slots that stage `at` was the last to read.
    fn release(&mut self, at: usize) {
        for (place, &last) in self.places.iter().zip(&self.last) {
            if let (Some(Place::Slot(slot)), true) = (place, last == at) {
                self.free[*slot] = true;
            }
        }
    }

    fn step(&self, draft: &Draft, stage: &Stage) -> Step {
        let operation = stage[0];
        let output = Part {
            operation,
            first: 0,
        };
        match &draft.operations[operation].kind {
            Kind::Product {
                weight,
                bias,
                input,
                residual,
            } => match *weight {
                Weight::Packed(weight) => Step::Product(Product {
                    weight,
                    bias: *bias,
                    input: self.columns(*input),
                    residual: residual.map(|part| self.columns(part)),
                    output: self.columns(output),
                }),
                Weight::Table => Step::Tied(Tied {
                    bias: *bias,
                    input: self.columns(*input),
                    output: self.columns(output),
                }),
            },
            Kind::Attend(attention) => Step::Attend(Attend {
                layer: attention.layer,
                heads: attention.heads,
                kv_heads: attention.kv_heads,
                head_dim: attention.head_dim,
                value_dim: attention.head_dim,
                query: self.heads(attention.query),
                own: attention.own.map(|own| self.key_heads(own)),
                output: self.columns(output),
                scale: attention.scale,
                cap: attention.cap,
                distances: attention.distances,
                mask: attention.mask,
            }),
            Kind::Keep(kept) => Step::Keep(Keep {
                layer: kept.layer,
                kv_heads: kept.kv_heads,
                head_dim: kept.head_dim,
                from: self.key_heads(kept.from),
            }),
            _ => Step::Rows(
                stage
                    .iter()
                    .flat_map(|&operation| self.row_steps(draft, operation))
                    .collect(),
            ),
        }
    }

    fn heads(&self, (part, step): HeadPart) -> Heads {
        let Columns { slot, first } = self.columns(part);
        Heads { slot, first, step }
    }

    fn key_heads(&self, [key, value]: [HeadPart; 2]) -> KeyHeads {
        KeyHeads {
            key: self.heads(key),
            value: self.heads(value),
        }
    }

    fn row_steps(&self, draft: &Draft, operation: usize) -> Vec<RowStep> {
        let Kind::Row(draws) = &draft.operations[operation].kind else {
            return Vec::new();
        };
        let steps = draws.iter().map(|draw| {
            let [_, middle, inner] = match draw.function.reduces() {
                true => [draw.dims[0], draw.dims[1], 1],
                false => draw.dims,
            };
            let output = Read {
                from: From::Operation(operation),
                first: draw.first,
                strides: [middle * inner, inner, 1],
            };
            RowStep {
                function: draw.function,
                inputs: draw.inputs.iter().map(|read| self.operand(read)).collect(),
                output: self.operand(&output),
                dims: draw.dims,
            }
        });
        steps.collect()
    }

    fn operand(&self, read: &Read) -> Operand {
        let (source, first) = match read.from {
            From::Constant => (Source::Constant, 0),
            From::Position(width) => (Source::Position(width), 0),
            From::Type(width) => (Source::Type(width), 0),
            From::Operation(operation) => match self.place(operation) {
                Place::Slot(slot) => (Source::Slot(slot), 0),
                Place::Scratch(first) => (Source::Scratch, first),
            },
        };
        Operand {
            source,
            first: first + read.first,
            strides: read.strides,
        }
    }

    fn columns(&self, part: Part) -> Columns {
        match self.place(part.operation) {
            Place::Slot(slot) => Columns {
                slot,
                first: part.first,
            },
            Place::Scratch(_) => unreachable!("what another stage reads has a slot"),
        }
    }

    fn place(&self, operation: usize) -> Place {
        self.places[operation].expect("inputs are made before they are read")
    }
}
