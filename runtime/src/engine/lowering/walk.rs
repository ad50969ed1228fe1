//! One node after the other, to what the draft of a program holds.

use preface_graph::{
    attention::Layout as JointLayout,
    facts::Fact,
    onnx::{NodeProto, data_type},
};

use super::{
    Lowering, Refused, Rows, Value, Walk,
    draft::{Kind, Matrix, Part},
    encoded,
    layout::{Atom, Layout},
    schedule, statics,
};
use crate::engine::executor::program::Logits;

impl Walk<'_> {
    /// The values before the first node.
    pub(super) fn begin(&mut self) {
        let description = &self.base.description;
        let width = description.embedding_width;
        let operation = self.draft.add(Kind::Rows, width);
        let rows = Rows {
            operation,
            layout: Layout::plain(&[Some(1), None, Some(width)]),
            scale: 1.0,
            sole: false,
            joined: None,
        };
        self.values
            .insert(description.embedding_rows.clone(), Value::Rows(rows));
        if let Some(types) = &description.inputs.token_types {
            self.values.insert(types.clone(), Value::Types);
        }
        for (site, geometry) in description.sites.iter().enumerate() {
            if let Some((key, value)) = &geometry.past {
                for (name, keys) in [(key, true), (value, false)] {
                    self.values.insert(name.clone(), Value::Past { site, keys });
                }
            }
        }
        for (joint, site, keys) in encoded(self.base, self.wiring.graph) {
            let geometry = &description.sites[site];
            let (heads, length) = (geometry.kv_heads, geometry.head_dim);
            let mut layout = Layout::plain(&[Some(1), None, Some(heads), Some(length)]);
            layout.axes[1] = vec![Atom::Key];
            if joint.layout == JointLayout::HeadsFirst {
                layout.axes.swap(1, 2);
            }
            let rows = Rows {
                operation,
                layout,
                scale: 1.0,
                sole: false,
                joined: Some((site, keys)),
            };
            self.values.insert(joint.value.clone(), Value::Rows(rows));
        }
    }

    /// The hidden rows as a whole operation.
    pub(super) fn hidden_rows(&mut self) -> Result<Part, Refused> {
        let name = self.base.description.hidden_rows.clone();
        let rows = self.rows_named(&name)?;
        let output = self.run(&rows)?;
        let hidden = self.base.description.hidden;
        let output = match self.draft.operations[output.operation].numbers == hidden {
            true => output,
            false => self.copied(&rows),
        };
        let rows = Rows {
            operation: output.operation,
            layout: self.plain(&self.dims(&name)?),
            scale: 1.0,
            sole: false,
            joined: None,
        };
        self.values.insert(name, Value::Rows(rows));
        Ok(output)
    }

    /// The steps behind the hidden rows `from`, made by `nodes`; `None` where the base has no logits, or steps for a
    /// hidden row alone do not make them.
    pub(super) fn logits(&mut self, nodes: &[&NodeProto], from: Part) -> Option<Logits> {
        let value = &self.base.description.logits.as_ref()?.value;
        let weights = self.draft.weights.len();
        self.in_logits = true;
        let lowered = nodes.iter().try_for_each(|node| self.node(node));
        let output = lowered.and_then(|()| self.run(&self.rows_named(value)?));
        let logits = output
            .ok()
            .and_then(|output| schedule::logits(&self.draft, from.operation, output));
        if logits.is_none() {
            self.draft.weights.truncate(weights);
        }
        logits
    }

    /// The numbers of the weights behind those that are `known`.
    pub(super) fn weights(
        &mut self,
        mut known: Vec<(Matrix, Vec<f32>)>,
    ) -> Result<Vec<(Matrix, Vec<f32>)>, Refused> {
        for matrix in &self.draft.weights[known.len()..] {
            let numbers = self.statics.at(&matrix.name, statics::At::Short)?;
            known.push((matrix.clone(), numbers.values));
        }
        Ok(known)
    }

    pub(super) fn finish(
        mut self,
        output: Part,
        logits: Option<Logits>,
        known: Vec<(Matrix, Vec<f32>)>,
    ) -> Result<Lowering, Refused> {
        let frame = schedule::Frame {
            output,
            max_rows: self.statics.rows,
            counted: self.counted.unwrap_or(false),
            caches: !self.base.description.inputs.past.is_empty(),
            padding: self.statics.padding,
            logits,
        };
        Ok(Lowering {
            program: schedule::program(&self.draft, frame),
            weights: self.weights(known)?,
            constants: self.draft.constants,
        })
    }

    pub(super) fn fact(&self, name: &str) -> Result<&Fact, Refused> {
        let fact = self.facts.get(name);
        fact.ok_or_else(|| Refused::value(name, "has no known shape"))
    }

    /// The sizes of `name` at `tokens`.
    pub(super) fn dims(&self, name: &str) -> Result<Vec<usize>, Refused> {
        let dims = self.fact(name)?.shapes[0].iter();
        Ok(dims.map(|&dim| usize::try_from(dim).unwrap_or(0)).collect())
    }

    /// Lowers one node.
    pub(super) fn node(&mut self, node: &NodeProto) -> Result<(), Refused> {
        let value = match node.op_type() {
            "Split" => return self.split(node),
            "Identity" | "Dropout" => self.value(node, 0)?,
            "Cast" | "CastLike" => self.cast(node)?,
            "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Expand" | "Transpose" | "Slice" => {
                self.view(node)?
            }
            "Gather" => self.gather(node)?,
            "Concat" => self.concat(node)?,
            "MatMul" | "Gemm" | "FusedMatMul" => self.product(node)?,
            "Softmax" => self.softmax(node)?,
            "Where" => self.choice(node)?,
            "IsNaN" => match self.value(node, 0)? {
                Value::Scores(_) => Value::Ignored,
                _ => return Err(Refused::node(node, "is of something else than scores")),
            },
            "ReduceMean" | "ReduceSum" | "ReduceMax" => self.reduction(node)?,
            "LayerNormalization" | "RMSNormalization" => self.normalisation(node)?,
            _ => self.elementwise(node)?,
        };
        self.values.insert(node.output[0].clone(), value);
        Ok(())
    }

    /// The value of input `index`, with whether this node is its only reader.
    pub(super) fn value(&self, node: &NodeProto, index: usize) -> Result<Value, Refused> {
        let name = node.input(index).unwrap_or_default();
        let value = self.values.get(name);
        let mut value = value
            .cloned()
            .ok_or_else(|| Refused::node(node, &format!("reads {name}, which is no row")))?;
        if let Value::Rows(rows) = &mut value {
            rows.sole &= self.wiring.consumers(name).count() == 1
                && name != self.base.description.hidden_rows;
        }
        Ok(value)
    }

    pub(super) fn rows(&self, node: &NodeProto, index: usize) -> Result<Rows, Refused> {
        match self.value(node, index)? {
            Value::Rows(rows) => Ok(rows),
            _ => Err(Refused::node(node, "works on scores or a cache")),
        }
    }

    pub(super) fn rows_named(&self, name: &str) -> Result<Rows, Refused> {
        match self.values.get(name) {
            Some(Value::Rows(rows)) => Ok(rows.clone()),
            _ => Err(Refused::value(name, "is no row")),
        }
    }

    pub(super) fn is_dynamic(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    pub(super) fn cast(&mut self, node: &NodeProto) -> Result<Value, Refused> {
        let value = self.value(node, 0)?;
        let float = self.fact(&node.output[0])?.data_type == data_type::FLOAT;
        match (&value, float) {
            (Value::Types | Value::Ignored, _) | (_, true) => Ok(value),
            _ => Err(Refused::node(node, "rounds to another type")),
        }
    }

    /// Neighbouring numbers in the order of `dims`, of which one counts the tokens.
    pub(super) fn plain(&self, dims: &[usize]) -> Layout {
        let rows = self.tokens.rows;
        let dims = dims.iter().map(|&dim| (dim != rows).then_some(dim));
        Layout::plain(&dims.collect::<Vec<_>>())
    }

    /// Where the numbers of `rows` are neighbours, copied there where they are not.
    pub(super) fn run(&mut self, rows: &Rows) -> Result<Part, Refused> {
        if rows.joined.is_some() || !rows.layout.is_rows() {
            return Err(Refused("a cache is read as rows".into()));
        }
        let numbers = layout_numbers(&rows.layout);
        match rows.scale == 1.0 && rows.layout.is_run(numbers) {
            true => Ok(Part {
                operation: rows.operation,
                first: rows.layout.first,
            }),
            false => Ok(self.copied(rows)),
        }
    }
}

/// Numbers of a row in a layout.
pub(super) fn layout_numbers(layout: &Layout) -> usize {
    let atoms = layout.inner();
    let sizes = atoms.iter().map(|atom| match atom {
        Atom::Inner { size, .. } => *size,
        _ => 1,
    });
    sizes.product()
}
