//! Whether a program that came with an image stays within its own bounds.

use super::{
    Attend, Columns, Encoder, Heads, Keep, KeyHeads, Logits, Mask, Operand, Product, Program,
    RowStep, Source, Step, Tied, written::Written,
};

impl Program {
    /// Whether every step stays within slots, scratch space, weights and constants, and reads what was written.
    ///
    /// # Errors
    /// What does not.
    pub fn check(&self, base: &Sizes<'_>) -> Result<(), String> {
        if self.slots.first() != Some(&base.embedding_width) || self.max_rows == 0 {
            return Err("the program has no slot for embedding rows".into());
        }
        if self.max_rows > MOST_ROWS {
            return Err("the program has more rows than any model".into());
        }
        if self.output.first != 0 || self.slots.get(self.output.slot) != Some(&base.hidden) {
            return Err("the hidden rows are no whole slot".into());
        }
        let bounds = Bounds {
            base,
            slots: &self.slots,
            scratch: self.scratch,
            rows: self.max_rows,
        };
        bounds.steps(&self.steps, (self.output, base.hidden), "the program")?;
        self.check_crossings()?;
        if let Some(encoder) = &self.encoder {
            encoder.check(base, self.max_rows)?;
        }
        self.logits
            .as_ref()
            .map_or(Ok(()), |logits| logits.check(base))
    }

    /// Whether keys and values that a step looks at are kept by the encoder, which looks at none.
    fn check_crossings(&self) -> Result<(), String> {
        let encoder = self.encoder.as_ref();
        let encoding = encoder.map_or(&[][..], |encoder| &encoder.steps);
        let kept = |layer: usize| {
            let mut steps = encoding.iter();
            steps.any(|step| matches!(step, Step::Keep(keep) if keep.layer == layer))
        };
        let looks = |step: &Step| {
            let attend = step.as_attend();
            attend
                .filter(|attend| attend.own.is_none())
                .map(|attend| attend.layer)
        };
        let logits = self.logits.iter().flat_map(|logits| &logits.steps);
        if let Some(layer) = encoding.iter().chain(logits.clone()).find_map(looks) {
            return Err(format!("layer {layer} is looked at before it is kept"));
        }
        if let Some(layer) = self
            .steps
            .iter()
            .filter_map(looks)
            .find(|&layer| !kept(layer))
        {
            return Err(format!("layer {layer} is looked at, and nothing keeps it"));
        }
        match self
            .steps
            .iter()
            .chain(logits)
            .any(|step| matches!(step, Step::Keep(_)))
        {
            false => Ok(()),
            true => Err("keys and values are kept outside the encoder".into()),
        }
    }
}

impl Encoder {
    fn check(&self, base: &Sizes<'_>, rows: usize) -> Result<(), String> {
        if self.slots.first() != Some(&base.embedding_width) {
            return Err("the encoder has no slot for embedding rows".into());
        }
        let bounds = Bounds {
            base,
            slots: &self.slots,
            scratch: self.scratch,
            rows,
        };
        // What it gives is kept on the way.
        let nothing = Columns { slot: 0, first: 0 };
        bounds.steps(&self.steps, (nothing, 0), "the encoder")
    }
}

impl Logits {
    fn check(&self, base: &Sizes<'_>) -> Result<(), String> {
        if self.slots.first() != Some(&base.hidden) {
            return Err("the logits have no slot for a hidden row".into());
        }
        if self.vocabulary == 0 {
            return Err("there are logits of no token".into());
        }
        let bounds = Bounds {
            base,
            slots: &self.slots,
            scratch: self.scratch,
            rows: 1,
        };
        bounds.columns(self.output, self.vocabulary)?;
        bounds.steps(&self.steps, (self.output, self.vocabulary), "the logits")
    }
}

/// More rows than this are refused.
const MOST_ROWS: usize = 1 << 20;

/// Slots and scratch space of more numbers a row than this are refused.
const MOST_COLUMNS: usize = 1 << 26;

/// An arena of more numbers than this is refused.
const MOST_NUMBERS: usize = 1 << 36;

/// What steps must stay within.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes<'a> {
    /// Inputs and outputs of each weight.
    pub weights: &'a [(usize, usize)],
    pub constants: usize,
    /// Heads of keys and their length, by layer.
    pub layers: &'a [(usize, usize)],
    pub hidden: usize,
    /// Numbers in a row of the embedding table.
    pub embedding_width: usize,
    /// Rows of the embedding table.
    pub vocabulary: usize,
}

struct Bounds<'a> {
    base: &'a Sizes<'a>,
    slots: &'a [usize],
    scratch: usize,
    rows: usize,
}

impl Bounds<'_> {
    /// Whether `steps` stay within bounds and write what they and whoever takes the `count` columns of `output` read.
    fn steps(
        &self,
        steps: &[Step],
        (output, count): (Columns, usize),
        of: &str,
    ) -> Result<(), String> {
        let widths = self.slots.iter().chain([&self.scratch]);
        let total = widths.fold(0usize, |sum, &width| sum.saturating_add(width));
        if total > MOST_COLUMNS || total.saturating_mul(self.rows) > MOST_NUMBERS {
            return Err(format!("{of} needs more room than any model"));
        }
        let mut written = Written::new(self.base, self.slots, self.scratch);
        for (index, step) in steps.iter().enumerate() {
            let checked = match step {
                Step::Product(product) => self.product(product),
                Step::Tied(tied) => self.tied(tied),
                Step::Attend(attend) => self.attend(attend),
                Step::Keep(keep) => self.keep(keep),
                Step::Rows(steps) => steps.iter().try_for_each(|step| self.row(step)),
            };
            let checked = checked.and_then(|()| match written.step(step) {
                true => Ok(()),
                false => Err("it reads what is written nowhere before".into()),
            });
            checked.map_err(|reason| format!("step {index} of {of}: {reason}"))?;
        }
        match written.has(output, count) {
            true => Ok(()),
            false => Err(format!("{of} does not write what it gives")),
        }
    }

    fn columns(&self, columns: Columns, count: usize) -> Result<(), String> {
        let width = self.slots.get(columns.slot);
        let end = columns.first.checked_add(count);
        match width.is_some_and(|&width| end.is_some_and(|end| end <= width)) {
            true => Ok(()),
            false => Err(format!("{count} numbers from {columns:?} are no columns")),
        }
    }

    fn product(&self, product: &Product) -> Result<(), String> {
        let weight = self.base.weights.get(product.weight);
        let &(inputs, outputs) = weight.ok_or("there is no such weight")?;
        self.columns(product.input, inputs)?;
        self.columns(product.output, outputs)?;
        if let Some(residual) = product.residual {
            self.columns(residual, outputs)?;
            if residual.slot == product.output.slot && residual != product.output {
                return Err("it adds other columns than it writes".into());
            }
        }
        self.apart(product.bias, outputs, [product.input, product.output])
    }

    fn tied(&self, tied: &Tied) -> Result<(), String> {
        let Sizes {
            embedding_width,
            vocabulary,
            ..
        } = *self.base;
        if self.rows != 1 {
            return Err("the embedding table multiplies one row".into());
        }
        self.columns(tied.input, embedding_width)?;
        self.columns(tied.output, vocabulary)?;
        self.apart(tied.bias, vocabulary, [tied.input, tied.output])
    }

    /// Whether the bias of `outputs` numbers is there, and the output is in another slot than the input.
    fn apart(
        &self,
        bias: Option<usize>,
        outputs: usize,
        [input, output]: [Columns; 2],
    ) -> Result<(), String> {
        let end = bias.map_or(Some(0), |bias| bias.checked_add(outputs));
        match end.is_some_and(|end| end <= self.base.constants) && input.slot != output.slot {
            true => Ok(()),
            false => Err("its bias is none, or it reads what it writes".into()),
        }
    }

    fn attend(&self, attend: &Attend) -> Result<(), String> {
        let Attend {
            heads,
            kv_heads,
            head_dim,
            value_dim,
            ..
        } = *attend;
        if [heads, kv_heads, head_dim].contains(&0)
            || heads % kv_heads != 0
            || value_dim != head_dim
        {
            return Err(format!("{heads} heads on {kv_heads}"));
        }
        self.heads(attend.query, heads, head_dim)?;
        match &attend.own {
            Some(own) => self.key_heads(own, attend.layer, (kv_heads, head_dim))?,
            None => self.layer(attend.layer, (kv_heads, head_dim))?,
        }
        if attend.own.is_none() && (attend.mask != Mask::default() || attend.distances.is_some()) {
            return Err("it counts the distance to tokens of another text".into());
        }
        if let Some(distances) = attend.distances {
            let table = heads.checked_mul(distances.width());
            let end = table.and_then(|table| table.checked_add(distances.first));
            if end.is_none_or(|end| end > self.base.constants) {
                return Err("its table of distances is none".into());
            }
        }
        self.columns(attend.output, heads.saturating_mul(value_dim))?;
        let own = attend
            .own
            .iter()
            .flat_map(|own| [own.key.slot, own.value.slot]);
        match own
            .chain([attend.query.slot])
            .any(|slot| slot == attend.output.slot)
        {
            false => Ok(()),
            true => Err("it reads what it writes".into()),
        }
    }

    fn keep(&self, keep: &Keep) -> Result<(), String> {
        let shape = (keep.kv_heads, keep.head_dim);
        if shape.0 == 0 || shape.1 == 0 {
            return Err("it keeps no heads".into());
        }
        self.key_heads(&keep.from, keep.layer, shape)
    }

    fn key_heads(&self, at: &KeyHeads, layer: usize, shape: (usize, usize)) -> Result<(), String> {
        self.layer(layer, shape)?;
        self.heads(at.key, shape.0, shape.1)?;
        self.heads(at.value, shape.0, shape.1)
    }

    fn layer(&self, layer: usize, shape: (usize, usize)) -> Result<(), String> {
        match self.base.layers.get(layer) == Some(&shape) {
            true => Ok(()),
            false => Err(format!("layer {layer} has other heads")),
        }
    }

    fn heads(&self, at: Heads, count: usize, length: usize) -> Result<(), String> {
        let columns = Columns {
            slot: at.slot,
            first: at.first,
        };
        let last = at.step.checked_mul(count - 1);
        let span = last.and_then(|last| last.checked_add(length));
        self.columns(columns, span.unwrap_or(usize::MAX))
    }

    fn row(&self, step: &RowStep) -> Result<(), String> {
        if step.inputs.len() != step.function.arity() || step.dims.contains(&0) {
            return Err(format!(
                "{:?} of {} operands",
                step.function,
                step.inputs.len()
            ));
        }
        let mut dims = step.dims;
        let count = dims
            .iter()
            .fold(1usize, |count, &dim| count.saturating_mul(dim));
        if count > MOST_NUMBERS {
            return Err("it computes more numbers than any model".into());
        }
        step.inputs
            .iter()
            .try_for_each(|input| self.operand(input, dims))?;
        if step.function.reduces() {
            dims[2] = 1;
        }
        match step.output.source {
            Source::Slot(_) | Source::Scratch => self.operand(&step.output, dims)?,
            _ => return Err("it writes to constants".into()),
        }
        let made = step.output.first..step.output.first + dims.iter().product::<usize>();
        let apart = step.inputs.iter().all(|input| {
            let end = input.first + reach(input, step.dims);
            input.source != step.output.source || end <= made.start || input.first >= made.end
        });
        match apart && step.output.strides == [dims[1] * dims[2], dims[2], 1] {
            true => Ok(()),
            false => Err("it reads what it writes".into()),
        }
    }

    fn operand(&self, operand: &Operand, dims: [usize; 3]) -> Result<(), String> {
        let end = operand.first.saturating_add(reach(operand, dims));
        let rows = self.rows;
        let room = match operand.source {
            Source::Slot(slot) => *self.slots.get(slot).ok_or("there is no such slot")?,
            Source::Scratch => self.scratch,
            Source::Constant | Source::Type(_) => self.base.constants,
            Source::Position(width) => {
                let behind = (rows - 1).saturating_mul(width);
                self.base.constants.saturating_sub(behind)
            }
        };
        match end <= room {
            true => Ok(()),
            false => Err(format!("{operand:?} reaches {end} of {room}")),
        }
    }
}

/// Numbers from an operand's first to its last.
fn reach(operand: &Operand, dims: [usize; 3]) -> usize {
    let steps = dims.iter().zip(operand.strides);
    steps.fold(1, |sum, (&dim, stride)| {
        sum.saturating_add((dim - 1).saturating_mul(stride))
    })
}

#[cfg(test)]
mod tests {
    use super::{super::*, *};

    /// Two slots, a weight `[4, 6]`, a bias, and an attention of two heads.
    fn program() -> Program {
        let heads = |slot| Heads {
            slot,
            first: 0,
            step: 2,
        };
        let columns = |slot| Columns { slot, first: 0 };
        let operand = |source| Operand {
            source,
            first: 0,
            strides: [4, 4, 1],
        };
        Program {
            slots: vec![4, 6],
            scratch: 4,
            max_rows: 8,
            counted: false,
            caches: false,
            padding: None,
            steps: vec![
                Step::Product(Product {
                    weight: 0,
                    bias: Some(2),
                    input: columns(0),
                    residual: None,
                    output: columns(1),
                }),
                Step::Rows(vec![RowStep {
                    function: Function::Add,
                    inputs: vec![operand(Source::Slot(0)), operand(Source::Position(4))],
                    output: operand(Source::Scratch),
                    dims: [1, 1, 4],
                }]),
                Step::Attend(Attend {
                    layer: 0,
                    heads: 2,
                    kv_heads: 2,
                    head_dim: 2,
                    value_dim: 2,
                    query: heads(1),
                    own: Some(KeyHeads {
                        key: heads(1),
                        value: heads(1),
                    }),
                    output: columns(0),
                    scale: 1.0,
                    cap: None,
                    distances: None,
                    mask: Mask::default(),
                }),
            ],
            output: columns(0),
            logits: Some(Logits {
                slots: vec![4, 9],
                scratch: 0,
                steps: vec![Step::Tied(Tied {
                    bias: Some(3),
                    input: columns(0),
                    output: columns(1),
                })],
                output: columns(1),
                vocabulary: 9,
            }),
            encoder: Some(Encoder {
                slots: vec![4, 6],
                scratch: 0,
                padding: None,
                steps: vec![Step::Keep(Keep {
                    layer: 0,
                    kv_heads: 2,
                    head_dim: 2,
                    from: KeyHeads {
                        key: heads(0),
                        value: heads(0),
                    },
                })],
            }),
        }
    }

    #[test]
    fn a_program_that_reaches_out_is_refused() {
        type Change = fn(&mut Program);
        fn product(program: &mut Program) -> &mut Product {
            match &mut program.steps[0] {
                Step::Product(product) => product,
                _ => unreachable!(),
            }
        }
        fn row(program: &mut Program) -> &mut RowStep {
            match &mut program.steps[1] {
                Step::Rows(steps) => &mut steps[0],
                _ => unreachable!(),
            }
        }
        fn attend(program: &mut Program) -> &mut Attend {
            match &mut program.steps[2] {
                Step::Attend(attend) => attend,
                _ => unreachable!(),
            }
        }
        fn keep(program: &mut Program) -> &mut Keep {
            match &mut program.encoder.as_mut().unwrap().steps[0] {
                Step::Keep(keep) => keep,
                _ => unreachable!(),
            }
        }
        fn logits(program: &mut Program) -> &mut Logits {
            program.logits.as_mut().unwrap()
        }
        fn tied(program: &mut Program) -> &mut Tied {
            match &mut logits(program).steps[0] {
                Step::Tied(tied) => tied,
                _ => unreachable!(),
            }
        }
        let table: [(&str, Change); 44] = [
            ("no slot for embedding rows", |program| program.slots[0] = 5),
            ("no slot for embedding rows", |program| program.max_rows = 0),
            ("more room than any model", |program| {
                program.scratch = usize::MAX
            }),
            ("more room than any model", |program| {
                program.scratch = MOST_COLUMNS
            }),
            ("no whole slot", |program| program.output.slot = 1),
            ("no whole slot", |program| program.output.first = 1),
            ("no such weight", |program| product(program).weight = 1),
            ("its bias is none", |program| {
                product(program).bias = Some(usize::MAX)
            }),
            ("reads what it writes", |program| {
                product(program).input = Columns { slot: 1, first: 0 }
            }),
            ("are no columns", |program| {
                product(program).output.first = 1
            }),
            ("are no columns", |program| {
                product(program).residual = Some(Columns { slot: 0, first: 0 })
            }),
            ("other columns than it writes", |program| {
                program.slots[1] = 7;
                product(program).residual = Some(Columns { slot: 1, first: 1 })
            }),
            ("more rows than any model", |program| {
                program.max_rows = MOST_ROWS + 1
            }),
            ("more numbers than any model", |program| {
                row(program).inputs[0].strides = [0; 3];
                row(program).dims[0] = MOST_NUMBERS
            }),
            ("of 1 operands", |program| row(program).inputs.truncate(1)),
            ("of 2 operands", |program| row(program).dims[0] = 0),
            ("reaches", |program| row(program).dims[2] = 5),
            ("reaches", |program| row(program).inputs[1].first = 1),
            ("writes to constants", |program| {
                row(program).output.source = Source::Constant
            }),
            ("reads what it writes", |program| {
                row(program).inputs[0].source = Source::Scratch
            }),
            ("has other heads", |program| attend(program).layer = 1),
            ("3 heads on 2", |program| attend(program).heads = 3),
            ("0 heads on 2", |program| attend(program).heads = 0),
            ("table of distances", |program| {
                attend(program).distances = Some(Distances {
                    first: 0,
                    before: 10,
                    after: 10,
                })
            }),
            ("nothing keeps it", |program| {
                attend(program).own = None;
                keep(program).layer = 1
            }),
            ("before it is kept", |program| {
                let mut step = program.steps[2].clone();
                if let Step::Attend(attend) = &mut step {
                    attend.own = None
                }
                program.encoder.as_mut().unwrap().steps.push(step)
            }),
            ("outside the encoder", |program| {
                let step = program.encoder.as_ref().unwrap().steps[0].clone();
                program.steps.push(step)
            }),
            ("tokens of another text", |program| {
                attend(program).own = None;
                attend(program).mask.after = Some(0)
            }),
            ("slot for embedding rows", |program| {
                program.encoder.as_mut().unwrap().slots[0] = 5
            }),
            ("has other heads", |program| keep(program).layer = 1),
            ("keeps no heads", |program| keep(program).kv_heads = 0),
            ("are no columns", |program| {
                keep(program).from.value.first = 3
            }),
            ("multiplies one row", |program| {
                let step = logits(program).steps[0].clone();
                program.steps.push(step)
            }),
            ("no slot for a hidden row", |program| {
                logits(program).slots[0] = 5
            }),
            ("of no token", |program| logits(program).vocabulary = 0),
            ("are no columns", |program| logits(program).vocabulary = 10),
            ("are no columns", |program| tied(program).output.first = 1),
            ("its bias is none", |program| tied(program).bias = Some(30)),
            ("written nowhere before", |program| {
                program.steps.remove(0);
            }),
            ("written nowhere before", |program| {
                product(program).residual = Some(Columns { slot: 1, first: 0 })
            }),
            ("written nowhere before", |program| {
                program.scratch = 8;
                row(program).inputs[0].source = Source::Scratch;
                row(program).inputs[0].first = 4
            }),
            ("written nowhere before", |program| {
                keep(program).from.value.slot = 1
            }),
            ("does not write what it gives", |program| {
                program.slots.push(4);
                program.output.slot = 2
            }),
            ("does not write what it gives", |program| {
                logits(program).steps.clear()
            }),
        ];
        let sizes = Sizes {
            weights: &[(4, 6)],
            constants: 4 * 8,
            layers: &[(2, 2)],
            hidden: 4,
            embedding_width: 4,
            vocabulary: 9,
        };
        let check = |program: &Program| program.check(&sizes);
        assert_eq!(check(&program()), Ok(()));
        for (text, change) in table {
            let mut program = program();
            change(&mut program);
            let error = check(&program).unwrap_err();
            assert!(error.contains(text), "{text}: {error}");
        }
    }
}
