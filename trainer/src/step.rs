//! The graphs of one training step and of one evaluation: base, prompt, head, loss and gradients in one model.

use std::collections::HashMap;

use preface_graph::{
    Base, SIZES,
    builder::{Attribute, Builder},
    facts::Facts,
    inputs::Size,
    onnx::{GraphProto, ModelProto, OperatorSetIdProto, ValueInfoProto, data_type},
    splice::{self, Prefix},
    wiring::Wiring,
};

use crate::{
    Error,
    autodiff::backward,
    form::Form,
    heads::{Head, HeadSize},
    methods::{Method, Parameter},
};

/// Pooling weights `[batch, sequence]`.
pub const POOL: &str = "pool";
/// Label indices `[batch]`.
pub const LABELS: &str = "labels";
/// The weight of each row's loss `[batch]`.
pub const WEIGHTS: &str = "weights";
/// The gradient of the hidden rows `[batch, sequence, hidden]`.
pub const COTANGENT: &str = "cotangent";

/// What a graph computes.
pub enum Purpose<'a> {
    /// Hidden rows `[batch, sequence, hidden]`.
    Hidden,
    /// Hidden rows, and the gradient of every parameter for a given gradient of the hidden rows.
    HiddenGradient,
    /// Logits `[batch, classes]`.
    Logits(&'a Head, HeadSize),
    /// The loss `[1]`, logits, and the gradient of every parameter.
    Training(&'a Head, HeadSize),
}

/// A model and the names of its parameters.
pub struct Step {
    /// The model.
    pub model: ModelProto,
    /// The method's parameters, then the head's.
    pub parameters: Vec<Parameter>,
    /// Names under which the graph takes the parameters.
    pub names: Vec<String>,
    /// Names of the other inputs, by their part.
    pub inputs: HashMap<&'static str, String>,
}

impl Step {
    /// Writes the graph for `base` with prompts that `method` learns.
    ///
    /// # Errors
    /// When the base does not take the form, or an operator on the way has no gradient.
    pub fn build(
        base: &Base,
        method: &Method,
        form: &Form,
        purpose: Purpose,
    ) -> Result<Self, Error> {
        Assembly::begin(base, method, form)?.finish(purpose)
    }

    /// The name under which the graph takes `part`.
    pub fn input(&self, part: &'static str) -> &str {
        self.inputs.get(part).map_or(part, String::as_str)
    }
}

struct Assembly<'a> {
    base: &'a Base,
    form: &'a Form,
    model: ModelProto,
    builder: Builder,
    parameters: Vec<Parameter>,
    names: Vec<String>,
    inputs: HashMap<&'static str, String>,
}

impl<'a> Assembly<'a> {
    fn begin(base: &'a Base, method: &Method, form: &'a Form) -> Result<Self, Error> {
        let mut model = base.model.clone();
        let opset = model.opset();
        let graph = model.graph.get_or_insert_default();
        let parameters = (method.parameters)(form);
        let mut builder = Builder::beside(graph, "preface", opset);
        let names: Vec<String> = parameters
            .iter()
            .map(|parameter| builder.named(&parameter.name))
            .collect();
        declare(graph, &parameters, &names);
        let tensors = (method.subgraph)(form, &mut builder, &names);
        match form {
            Form::Embeddings { tokens, .. } => {
                embed(graph, base, &mut builder, &tensors[0], *tokens)?
            }
            Form::KeyValues { .. } => prefix(graph, opset, base, &mut builder, &tensors)?,
        }
        let mut assembly = Self {
            base,
            form,
            model,
            builder,
            parameters,
            names,
            inputs: HashMap::new(),
        };
        assembly.import_contrib();
        Ok(assembly)
    }

    fn import_contrib(&mut self) {
        let domain = "com.microsoft";
        if !self
            .model
            .opset_import
            .iter()
            .any(|entry| entry.domain() == domain)
        {
            let entry = OperatorSetIdProto {
                domain: Some(domain.into()),
                version: Some(1),
            };
            self.model.opset_import.push(entry);
        }
    }

    fn graph(&mut self) -> &mut GraphProto {
        self.model.graph.get_or_insert_default()
    }

    fn finish(mut self, purpose: Purpose) -> Result<Step, Error> {
        let hidden_rows = self.base.description.hidden_rows.clone();
        let mut outputs = Vec::new();
        match purpose {
            Purpose::Hidden => outputs.push(hidden_rows),
            Purpose::HiddenGradient => {
                let hidden = self.base.description.hidden.to_string();
                let cotangent =
                    self.take(COTANGENT, data_type::FLOAT, &["batch", "sequence", &hidden]);
                outputs.push(hidden_rows.clone());
                let gradients = self.gradients((hidden_rows, cotangent))?;
                outputs.extend(gradients);
            }
            Purpose::Logits(head, size) => {
                let logits = self.logits(head, size, &hidden_rows);
                self.flush();
                outputs.push(logits);
            }
            Purpose::Training(head, size) => {
                let logits = self.logits(head, size, &hidden_rows);
                let loss = self.loss(&logits, size.classes);
                self.flush();
                let one = self.builder.floats(&[1.0]);
                outputs.extend([loss.clone(), logits]);
                let gradients = self.gradients((loss, one))?;
                outputs.extend(gradients);
            }
        }
        let declared = outputs.into_iter().map(|name| ValueInfoProto {
            name: Some(name),
            ..ValueInfoProto::default()
        });
        splice::prune(self.graph(), declared.collect());
        let Self {
            model,
            parameters,
            names,
            inputs,
            ..
        } = self;
        Ok(Step {
            model,
            parameters,
            names,
            inputs,
        })
    }

    /// Declares a further input of the graph.
    fn take(&mut self, part: &'static str, element: i32, dims: &[&str]) -> String {
        let name = self.builder.named(part);
        self.graph()
            .input
            .push(ValueInfoProto::tensor(&name, element, dims));
        self.inputs.insert(part, name.clone());
        name
    }

    /// Moves the nodes written so far behind those of the graph.
    fn flush(&mut self) {
        let graph = self.model.graph.get_or_insert_default();
        graph.node.append(&mut self.builder.nodes);
        graph.initializer.append(&mut self.builder.initializers);
    }

    fn logits(&mut self, head: &Head, size: HeadSize, hidden_rows: &str) -> String {
        let pool = self.take(POOL, data_type::FLOAT, &["batch", "sequence"]);
        let middle = self.builder.ints(&[1]);
        let weights = self.builder.apply("Unsqueeze", &[&pool, &middle], &[]);
        let pooled = self.builder.apply("MatMul", &[&weights, hidden_rows], &[]);
        let pooled = self.builder.apply("Squeeze", &[&pooled, &middle], &[]);
        let parameters = (head.parameters)(size);
        let label = |parameter: &Parameter| self.builder.named(&format!("head.{}", parameter.name));
        let names: Vec<String> = parameters.iter().map(label).collect();
        let graph = self.model.graph.get_or_insert_default();
        declare(graph, &parameters, &names);
        let logits = (head.subgraph)(&mut self.builder, &pooled, &names);
        self.parameters.extend(parameters);
        self.names.extend(names);
        logits
    }

    /// The weighted sum of the rows' cross-entropies.
    fn loss(&mut self, logits: &str, classes: usize) -> String {
        let labels = self.take(LABELS, data_type::INT64, &["batch"]);
        let weights = self.take(WEIGHTS, data_type::FLOAT, &["batch"]);
        let builder = &mut self.builder;
        let scores = builder.apply("LogSoftmax", &[logits], &[("axis", Attribute::Int(-1))]);
        let depth = builder.ints(&[classes as i64]);
        let off_on = builder.floats(&[0.0, 1.0]);
        let truth = builder.apply(
            "OneHot",
            &[&labels, &depth, &off_on],
            &[("axis", Attribute::Int(-1))],
        );
        let chosen = builder.apply("Mul", &[&scores, &truth], &[]);
        let chosen = builder.reduce("ReduceSum", &chosen, &[-1], false);
        let weighted = builder.apply("Mul", &[&chosen, &weights], &[]);
        let total = builder.reduce("ReduceSum", &weighted, &[0], true);
        builder.apply("Neg", &[&total], &[])
    }

    fn gradients(&mut self, seed: (String, String)) -> Result<Vec<String>, Error> {
        let facts = self.facts();
        let graph = self.model.graph.get_or_insert_default();
        let names = backward(graph, &facts, &mut self.builder, &[seed], &self.names)?;
        self.flush();
        Ok(names)
    }

    /// Facts about the graph with the prompt in it, at sizes that leave room for the prompt.
    fn facts(&self) -> Facts {
        let Some(graph) = &self.model.graph else {
            return Facts::default();
        };
        let wiring = Wiring::of(graph);
        let shapes = SIZES.map(|size| {
            let size = Size {
                sequence: size.sequence + self.form.slots() as i64,
                past: 0,
                ..size
            };
            let mut shapes = self.base.description.inputs.shapes(&wiring, size);
            for (parameter, name) in self.parameters.iter().zip(&self.names) {
                shapes.insert(
                    name.clone(),
                    parameter.shape.iter().map(|&dim| dim as i64).collect(),
                );
            }
            for name in [LABELS, WEIGHTS]
                .iter()
                .filter_map(|part| self.inputs.get(part))
            {
                shapes.insert(name.clone(), vec![size.batch]);
            }
            shapes
        });
        Facts::of(graph, &shapes)
    }
}

fn declare(graph: &mut GraphProto, parameters: &[Parameter], names: &[String]) {
    for (parameter, name) in parameters.iter().zip(names) {
        let dims: Vec<String> = parameter.shape.iter().map(usize::to_string).collect();
        let dims: Vec<&str> = dims.iter().map(String::as_str).collect();
        graph
            .input
            .push(ValueInfoProto::tensor(name, data_type::FLOAT, &dims));
    }
}

/// The number of rows in the batch, as a list of one integer.
fn batch(builder: &mut Builder, base: &Base) -> String {
    let shape = builder.apply("Shape", &[&base.description.inputs.ids], &[]);
    let first = builder.ints(&[0]);
    builder.apply("Gather", &[&shape, &first], &[("axis", Attribute::Int(0))])
}

/// Replaces the first rows of the embeddings by the prompt.
fn embed(
    graph: &mut GraphProto,
    base: &Base,
    builder: &mut Builder,
    prompt: &str,
    tokens: usize,
) -> Result<(), Error> {
    let (position, looked_up) = splice::cut_embedding(graph, &base.description)?;
    let count = batch(builder, base);
    let rest = builder.ints(&[1, 1]);
    let times = builder.apply("Concat", &[&count, &rest], &[("axis", Attribute::Int(0))]);
    let prompt = builder.apply("Expand", &[prompt, &times], &[]);
    let (start, end, axis) = (
        builder.ints(&[tokens as i64]),
        builder.ints(&[i64::MAX]),
        builder.ints(&[1]),
    );
    let text = builder.apply("Slice", &[&looked_up, &start, &end, &axis], &[]);
    let rows = &base.description.embedding_rows;
    builder.write(
        "Concat",
        &[&prompt, &text],
        &[rows],
        &[("axis", Attribute::Int(1))],
    );
    let nodes = std::mem::take(&mut builder.nodes);
    graph.node.splice(position..position, nodes);
    graph.initializer.append(&mut builder.initializers);
    Ok(())
}

/// Joins the tensors `[2, kv_heads, tokens, head_dim]` of each layer to its keys and values.
fn prefix(
    graph: &mut GraphProto,
    opset: i64,
    base: &Base,
    builder: &mut Builder,
    tensors: &[String],
) -> Result<(), Error> {
    let count = batch(builder, base);
    let rest = builder.ints(&[1, 1, 1]);
    let times = builder.apply("Concat", &[&count, &rest], &[("axis", Attribute::Int(0))]);
    let mut prefixes = Vec::new();
    for tensor in tensors {
        let mut half = |index: i64| {
            let index = builder.ints(&[index]);
            let half = builder.apply("Gather", &[tensor, &index], &[("axis", Attribute::Int(0))]);
            builder.apply("Expand", &[&half, &times], &[])
        };
        prefixes.push(Prefix {
            key: half(0),
            value: half(1),
        });
    }
    splice::join_prefix(graph, opset, &base.description, &base.facts, &prefixes)?;
    let nodes = std::mem::take(&mut builder.nodes);
    graph.node.splice(0..0, nodes);
    graph.initializer.append(&mut builder.initializers);
    Ok(())
}
