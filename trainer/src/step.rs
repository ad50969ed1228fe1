//! The graphs of one training step and of one evaluation: base, prompts, heads, loss and gradients in one model.
//!
//! Several candidates share the graph: the batch holds the rows of each, one after the other, and each has prompt and
//! head of its own.

mod dropout;
mod half;
mod loss;
mod prompt;
mod purpose;

use std::collections::HashMap;

use preface_graph::{
    Base, SIZES,
    builder::{Attribute, Builder},
    cut::{self, Cut},
    facts::Facts,
    inputs::Size,
    onnx::{GraphProto, ModelProto, ValueInfoProto, data_type},
    order, rows, splice,
    wiring::Wiring,
};

use crate::{
    Error,
    autodiff::backward,
    engine::Array,
    form::{Form, Place},
    heads::Reads,
    methods::{Canvas, Method, Parameter, Sizes},
    options::Precision,
};

pub use dropout::{KEPT, Places};
pub use loss::Loss;
pub use purpose::{Extent, Manner, Purpose, Reader, Reading};

/// Weights with which rows of the base's output are read: `[batch, readings, sequence]`.
pub const CHOICE: &str = "choice";
/// Class indices `[batch * readings]`.
pub const LABELS: &str = "labels";
/// The weight of each reading's loss `[batch * readings]`.
pub const WEIGHTS: &str = "weights";
/// 1 for each class that a row has `[batch, classes]`.
pub const TARGETS: &str = "targets";
/// Which virtual token stands at each place `[batch, sequence, tokens]`.
pub const PLACES: &str = "places";
/// The gradient of the hidden rows `[batch, sequence, hidden]`.
pub const COTANGENT: &str = "cotangent";

/// A model and the names of its parameters.
pub struct Step {
    /// The model.
    pub model: ModelProto,
    /// For each candidate the method's parameters, then the head's.
    pub parameters: Vec<Parameter>,
    /// Names under which the graph takes the parameters.
    pub names: Vec<String>,
    /// Names under which the graph takes what the head is given and does not learn.
    pub given: Vec<(String, Vec<usize>)>,
    /// Names of the other inputs, by their part.
    pub inputs: HashMap<&'static str, String>,
    /// Classes of the head.
    pub classes: usize,
    /// What the graph takes as it was computed before.
    pub cuts: Vec<Cut>,
    /// The model that computes it from the base's inputs, where there is any.
    pub lower: Option<ModelProto>,
    /// Where it has dropout.
    pub dropout: Places,
}

impl Step {
    /// Writes the graph for `base` with prompts that `method` learns.
    ///
    /// # Errors
    /// When the base does not take the form, or an operator on the way has no gradient.
    pub fn build(
        base: &Base,
        method: &Method,
        sizes: &Sizes,
        extent: Extent,
        purpose: Purpose,
    ) -> Result<Self, Error> {
        let mut assembly = Assembly::begin(base, sizes, extent);
        if let Purpose::Training(_, manner) = purpose {
            assembly.copies = manner.copies();
        }
        let tensors = assembly.methods(method)?;
        assembly.splice(tensors)?;
        order::sort(assembly.graph());
        assembly.cut_lower()?;
        assembly.finish(purpose)
    }

    /// Writes the graph from a method's parameters to the tensors that they amount to, in the order of the form's.
    ///
    /// # Errors
    /// When the base does not take the form.
    pub fn tensors(base: &Base, method: &Method, sizes: &Sizes) -> Result<Self, Error> {
        let mut assembly = Assembly::begin(base, sizes, Extent::ONE);
        let tensors = assembly.methods(method)?.concat();
        order::sort(assembly.graph());
        Ok(assembly.done(tensors))
    }

    /// A model that takes nothing but the base's own inputs.
    pub fn bare(model: ModelProto) -> Self {
        Self {
            model,
            parameters: Vec::new(),
            names: Vec::new(),
            given: Vec::new(),
            inputs: HashMap::new(),
            classes: 0,
            cuts: Vec::new(),
            lower: None,
            dropout: Places::default(),
        }
    }

    /// Writes the graph from texts without a prompt to the rows that a head reads.
    ///
    /// # Errors
    /// When the base has no such rows.
    pub fn unprompted(base: &Base, reads: Reads, reading: Reading) -> Result<Self, Error> {
        let form = Form::Embeddings {
            tokens: 0,
            hidden: base.description.embedding_width,
            place: Place::Before,
        };
        let sizes = Sizes::of(form, base.description.hidden);
        Assembly::begin(base, &sizes, Extent::ONE).finish(Purpose::Features(reads, reading))
    }

    /// Parameters, one list of values each, under the names by which the graph takes them.
    pub fn feeds(&self, values: &[Vec<f32>]) -> Vec<(String, Array)> {
        let named = self.names.iter().zip(&self.parameters).zip(values);
        let feed = |((name, parameter), values): ((&String, &Parameter), &Vec<f32>)| {
            (
                name.clone(),
                Array::floats(&parameter.shape, values.clone()),
            )
        };
        named.map(feed).collect()
    }

    /// The name under which the graph takes `part`.
    pub fn input(&self, part: &'static str) -> &str {
        self.inputs.get(part).map_or(part, String::as_str)
    }
}

struct Assembly<'a> {
    base: &'a Base,
    sizes: &'a Sizes,
    extent: Extent,
    /// How often each row is there.
    copies: usize,
    model: ModelProto,
    builder: Builder,
    parameters: Vec<(usize, Parameter, String)>,
    given: Vec<(String, Vec<usize>)>,
    inputs: HashMap<&'static str, String>,
    shapes: HashMap<String, [Vec<i64>; 2]>,
    classes: usize,
    cuts: Vec<Cut>,
    lower: Option<ModelProto>,
    dropout: Places,
}

impl<'a> Assembly<'a> {
    fn begin(base: &'a Base, sizes: &'a Sizes, extent: Extent) -> Self {
        let mut model = base.model.clone();
        let opset = model.opset();
        let builder = Builder::beside(model.graph.get_or_insert_default(), "preface", opset);
        Self {
            base,
            sizes,
            extent,
            copies: 1,
            model,
            builder,
            parameters: Vec::new(),
            given: Vec::new(),
            inputs: HashMap::new(),
            shapes: HashMap::new(),
            classes: 0,
            cuts: Vec::new(),
            lower: None,
            dropout: Places::default(),
        }
    }

    fn graph(&mut self) -> &mut GraphProto {
        self.model.graph.get_or_insert_default()
    }

    /// Writes every candidate's subgraph from its parameters to the tensors of the form, before all other nodes.
    fn methods(&mut self, method: &Method) -> Result<Vec<Vec<String>>, Error> {
        let mut tensors = Vec::new();
        for candidate in 0..self.extent.candidates {
            let names = self.learn(candidate, "", (method.parameters)(self.sizes));
            let opset = self.model.opset();
            let mut canvas = Canvas {
                base: self.base,
                graph: self.model.graph.get_or_insert_default(),
                opset,
                builder: &mut self.builder,
            };
            tensors.push((method.subgraph)(self.sizes, &mut canvas, &names)?);
        }
        self.put(0);
        Ok(tensors)
    }

    /// Declares parameters of a candidate and returns their names.
    fn learn(&mut self, candidate: usize, part: &str, parameters: Vec<Parameter>) -> Vec<String> {
        let mut names = Vec::new();
        for parameter in parameters {
            let name = self
                .builder
                .named(&format!("{candidate}.{part}{}", parameter.name));
            self.declare(&name, &parameter.shape);
            names.push(name.clone());
            self.parameters.push((candidate, parameter, name));
        }
        names
    }

    fn declare(&mut self, name: &str, shape: &[usize]) {
        let dims: Vec<String> = shape.iter().map(usize::to_string).collect();
        let dims: Vec<&str> = dims.iter().map(String::as_str).collect();
        let input = ValueInfoProto::tensor(name, data_type::FLOAT, &dims);
        self.graph().input.push(input);
        let shape: Vec<i64> = shape.iter().map(|&dim| dim as i64).collect();
        self.shapes.insert(name.to_owned(), [shape.clone(), shape]);
    }

    /// Declares a further input of the graph, with its shapes at the two sizes.
    fn take(
        &mut self,
        part: &'static str,
        element: i32,
        dims: &[&str],
        shapes: [Vec<i64>; 2],
    ) -> String {
        let name = self.builder.named(part);
        self.graph()
            .input
            .push(ValueInfoProto::tensor(&name, element, dims));
        self.inputs.insert(part, name.clone());
        self.shapes.insert(name.clone(), shapes);
        name
    }

    /// Moves the nodes written so far before node `position`.
    fn put(&mut self, position: usize) {
        let graph = self.model.graph.get_or_insert_default();
        graph
            .node
            .splice(position..position, self.builder.nodes.drain(..));
        graph.initializer.append(&mut self.builder.initializers);
    }

    /// Moves the nodes written so far behind those of the graph.
    fn flush(&mut self) {
        let end = self.graph().node.len();
        self.put(end);
    }

    /// Takes what no prompt reaches out of the graph, where that is asked for and there is any.
    fn cut_lower(&mut self) -> Result<(), Error> {
        if self.extent.cached == 0 || self.after() {
            return Ok(());
        }
        let facts = self.facts();
        let free: Vec<String> = self
            .parameters
            .iter()
            .map(|(.., name)| name.clone())
            .collect();
        let graph = self.model.graph.get_or_insert_default();
        let description = &self.base.description;
        let cuts = cut::find(graph, &facts, description, &free, self.extent.cached);
        if cuts.is_empty() {
            return Ok(());
        }
        let mut lower = self.model.clone();
        let outputs = cuts.iter().map(|cut| ValueInfoProto::untyped(&cut.value));
        splice::prune(lower.graph.get_or_insert_default(), outputs.collect());
        self.lower = Some(lower);
        let opset = self.model.opset();
        cut::behind(self.graph(), opset, &facts, &cuts)?;
        for cut in &cuts {
            let shapes = self.at_sizes(|size| {
                let shape = cut.shape(size.batch as usize, size.sequence as usize);
                shape.into_iter().map(|dim| dim as i64).collect()
            });
            self.shapes.insert(cut.value.clone(), shapes);
        }
        self.cuts = cuts;
        Ok(())
    }

    fn finish(mut self, purpose: Purpose) -> Result<Step, Error> {
        let hidden_rows = self.base.description.hidden_rows.clone();
        let outputs = match purpose {
            Purpose::Hidden => vec![hidden_rows],
            Purpose::HiddenGradient => {
                let hidden = self.base.description.hidden;
                let read = self.read_sizes();
                let shapes = read.map(|[batch, sequence]| vec![batch, sequence, hidden as i64]);
                let dims = ["batch", "sequence", &hidden.to_string()];
                let cotangent = self.take(COTANGENT, data_type::FLOAT, &dims, shapes);
                let mut outputs = vec![hidden_rows.clone()];
                outputs.extend(self.gradients(&[(hidden_rows, cotangent)])?);
                outputs
            }
            Purpose::Features(reads, reading) => {
                let features = self.features(reads, reading)?;
                vec![features]
            }
            Purpose::Answers(reader) => {
                let features = self.features(reader.head.reads, reader.reading)?;
                let logits = self.logits(reader, &features);
                self.answers(reader, &logits)
            }
            Purpose::Training(reader, manner) => {
                let features = self.features(reader.head.reads, reader.reading)?;
                let logits = self.logits(reader, &features);
                if manner.drops {
                    self.drop_out(reader.head.reads, &features);
                }
                let outputs = self.training(reader, &logits, manner)?;
                if manner.precision == Precision::F16 {
                    self.halve_products(manner.emulated);
                }
                outputs
            }
        };
        Ok(self.done(outputs))
    }

    fn done(mut self, outputs: Vec<String>) -> Step {
        self.flush();
        let declared = outputs
            .iter()
            .map(|name| ValueInfoProto::untyped(name))
            .collect();
        splice::prune(self.graph(), declared);
        self.parameters.sort_by_key(|(candidate, ..)| *candidate);
        let (parameters, names) = self
            .parameters
            .into_iter()
            .map(|(_, parameter, name)| (parameter, name))
            .unzip();
        Step {
            model: self.model,
            parameters,
            names,
            given: self.given,
            inputs: self.inputs,
            classes: self.classes,
            cuts: self.cuts,
            lower: self.lower,
            dropout: self.dropout,
        }
    }

    /// Batch and sequence of the rows that are read, at the two sizes.
    fn read_sizes(&self) -> [[i64; 2]; 2] {
        let kind = self.base.description.kind;
        self.enlarged()
            .map(|size| [size.batch, kind.row_tokens(size)])
    }

    /// The rows that a head reads: `[batch * readings, width]`.
    fn features(&mut self, reads: Reads, reading: Reading) -> Result<String, Error> {
        let value = reads.value(&self.base.description)?;
        let readings = reading.counts();
        let read = self.read_sizes();
        let shapes = [0, 1].map(|at| vec![read[at][0], readings[at], read[at][1]]);
        let width = if reading == Reading::Several {
            "readings"
        } else {
            "1"
        };
        let choice = self.take(
            CHOICE,
            data_type::FLOAT,
            &["batch", width, "sequence"],
            shapes,
        );
        let facts = self.facts();
        let chosen = match reading {
            Reading::Mean => self.builder.apply("MatMul", &[&choice, &value], &[]),
            Reading::One | Reading::Several => {
                let opset = self.model.opset();
                rows::select(
                    self.model.graph.get_or_insert_default(),
                    opset,
                    &facts,
                    &value,
                    &choice,
                )?
            }
        };
        let width = facts.get(&value).and_then(|fact| fact.constant_dim(2));
        let width =
            width.ok_or_else(|| Error::Options(format!("the width of {value} is not known")))?;
        let shape = self.builder.ints(&[-1, width]);
        let features = self.builder.apply("Reshape", &[&chosen, &shape], &[]);
        self.flush();
        Ok(features)
    }

    /// The logits of each candidate `[rows * readings, classes]`, from the rows that the head reads.
    fn logits(&mut self, reader: Reader, features: &str) -> Vec<String> {
        let Reader { head, size, .. } = reader;
        self.classes = size.classes;
        let parts = self.parts(features, Some(size.width));
        for (name, shape) in (head.given)(size) {
            let name = self.builder.named(&format!("given.{name}"));
            self.declare(&name, &shape);
            self.given.push((name, shape));
        }
        let mut logits = Vec::new();
        for (candidate, features) in parts.iter().enumerate() {
            let mut names = self.learn(candidate, "head.", (head.parameters)(size));
            names.extend(self.given.iter().map(|(name, _)| name.clone()));
            logits.push((head.subgraph)(&mut self.builder, size, features, &names));
        }
        self.flush();
        logits
    }

    /// Each candidate's part of a value whose first dimension counts readings; `width` is its second, if it has one.
    fn parts(&mut self, value: &str, width: Option<usize>) -> Vec<String> {
        let candidates = self.extent.candidates;
        if candidates == 1 {
            return vec![value.to_owned()];
        }
        let tail = width.map(|width| width as i64);
        let shape = |first: &[i64]| first.iter().copied().chain(tail).collect::<Vec<_>>();
        let (apart, flat) = (
            self.builder.ints(&shape(&[candidates as i64, -1])),
            self.builder.ints(&shape(&[-1])),
        );
        let apart = self.builder.apply("Reshape", &[value, &apart], &[]);
        let sizes = self.builder.ints(&vec![1; candidates]);
        let parts: Vec<String> = (0..candidates).map(|_| self.builder.fresh()).collect();
        let outputs: Vec<&str> = parts.iter().map(String::as_str).collect();
        self.builder.write(
            "Split",
            &[&apart, &sizes],
            &outputs,
            &[("axis", Attribute::Int(0))],
        );
        parts
            .iter()
            .map(|part| self.builder.apply("Reshape", &[part, &flat], &[]))
            .collect()
    }

    fn gradients(&mut self, seeds: &[(String, String)]) -> Result<Vec<String>, Error> {
        self.parameters.sort_by_key(|(candidate, ..)| *candidate);
        let facts = self.facts();
        let names: Vec<String> = self
            .parameters
            .iter()
            .map(|(.., name)| name.clone())
            .collect();
        let gradients = backward(&mut self.model, &facts, &mut self.builder, seeds, &names)?;
        self.flush();
        Ok(gradients)
    }

    /// The sizes at which shapes are found, with room for prompts and candidates.
    fn enlarged(&self) -> [Size; 2] {
        SIZES.map(|size| Size {
            batch: size.batch * (self.extent.candidates * self.copies) as i64,
            sequence: size.sequence + self.sizes.form.slots() as i64,
            decoder_sequence: size.decoder_sequence + self.sizes.form.decoder_slots() as i64,
            past: if self.extent.cached > 0 && self.after() {
                size.past
            } else {
                0
            },
        })
    }

    fn at_sizes(&self, shape: impl Fn(Size) -> Vec<i64>) -> [Vec<i64>; 2] {
        self.enlarged().map(shape)
    }

    /// Facts about the graph as it is now.
    fn facts(&self) -> Facts {
        let Some(graph) = &self.model.graph else {
            return Facts::default();
        };
        let wiring = Wiring::of(graph);
        let sizes = self.enlarged();
        let shapes = [0, 1].map(|at| {
            let mut shapes = self.base.description.inputs.shapes(&wiring, sizes[at]);
            shapes.extend(
                self.shapes
                    .iter()
                    .map(|(name, both)| (name.clone(), both[at].clone())),
            );
            shapes
        });
        Facts::of(graph, &shapes)
    }

    /// Whether the prompt stands behind the text.
    fn after(&self) -> bool {
        self.sizes.form.place() == Place::After
    }
}
