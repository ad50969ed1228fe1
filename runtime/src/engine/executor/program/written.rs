//! Whether a program reads what it wrote before, and nothing that memory held already.

use super::{
    super::past::Half, Columns, Heads, KeyHeads, Operand, RowStep, Source, Step, check::Sizes,
};

/// Which numbers of a row are written so far.
pub(super) struct Written<'a> {
    base: &'a Sizes<'a>,
    slots: Vec<Vec<bool>>,
    scratch: Vec<bool>,
}

impl<'a> Written<'a> {
    /// A row of which the first slot alone is filled in. Steps must stay within their bounds.
    pub fn new(base: &'a Sizes<'a>, slots: &[usize], scratch: usize) -> Self {
        let slots = slots.iter().enumerate();
        Self {
            base,
            slots: slots.map(|(at, &width)| vec![at == 0; width]).collect(),
            scratch: vec![false; scratch],
        }
    }

    /// Takes a step; `false` where it reads what none before it wrote.
    #[must_use]
    pub fn step(&mut self, step: &Step) -> bool {
        match step {
            Step::Product(product) => {
                let (inputs, outputs) = self.base.weights[product.weight];
                let residual = product.residual;
                let read = self.has(product.input, inputs)
                    && residual.is_none_or(|residual| self.has(residual, outputs));
                self.write(product.output, outputs);
                read
            }
            Step::Tied(tied) => {
                let read = self.has(tied.input, self.base.embedding_width);
                self.write(tied.output, self.base.vocabulary);
                read
            }
            Step::Attend(attend) => {
                let shape = (attend.kv_heads, attend.head_dim);
                let own = attend.own.as_ref();
                let read = self.has_heads(attend.query, (attend.heads, attend.head_dim))
                    && own.is_none_or(|own| self.has_keys(own, shape));
                self.write(attend.output, attend.heads * attend.value_dim);
                read
            }
            Step::Keep(keep) => self.has_keys(&keep.from, (keep.kv_heads, keep.head_dim)),
            // Each chain has its scratch space for itself.
            Step::Rows(steps) => {
                self.scratch.fill(false);
                steps.iter().all(|step| self.row(step))
            }
        }
    }

    /// Whether `count` numbers of `columns` are written.
    pub fn has(&self, columns: Columns, count: usize) -> bool {
        all(&self.slots[columns.slot][columns.first..][..count])
    }

    fn has_heads(&self, at: Heads, (count, length): (usize, usize)) -> bool {
        let slot = &self.slots[at.slot];
        (0..count).all(|head| all(&slot[at.first + head * at.step..][..length]))
    }

    fn has_keys(&self, at: &KeyHeads, shape: (usize, usize)) -> bool {
        [Half::Keys, Half::Values]
            .iter()
            .all(|&half| self.has_heads(at.half(half), shape))
    }

    fn write(&mut self, columns: Columns, count: usize) {
        self.slots[columns.slot][columns.first..][..count].fill(true);
    }

    fn row(&mut self, step: &RowStep) -> bool {
        let read = step
            .inputs
            .iter()
            .all(|input| self.operand(input, step.dims));
        let mut dims = step.dims;
        if step.function.reduces() {
            dims[2] = 1;
        }
        let made = match step.output.source {
            Source::Slot(slot) => &mut self.slots[slot],
            _ => &mut self.scratch,
        };
        made[step.output.first..][..dims.iter().product()].fill(true);
        read
    }

    fn operand(&self, operand: &Operand, dims: [usize; 3]) -> bool {
        let numbers = match operand.source {
            Source::Slot(slot) => &self.slots[slot],
            Source::Scratch => &self.scratch,
            Source::Constant | Source::Position(_) | Source::Type(_) => return true,
        };
        let [outer, middle, inner] = operand.strides;
        let starts = (0..dims[0]).flat_map(|at| (0..dims[1]).map(move |next| (at, next)));
        let mut starts = starts.map(|(at, next)| operand.first + at * outer + next * middle);
        match inner {
            0 => starts.all(|start| numbers[start]),
            1 => starts.all(|start| all(&numbers[start..][..dims[2]])),
            _ => starts.all(|start| (0..dims[2]).all(|last| numbers[start + last * inner])),
        }
    }
}

fn all(written: &[bool]) -> bool {
    written.iter().all(|&written| written)
}
