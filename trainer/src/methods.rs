//! How prompts are learned: each method is a subgraph from its parameters to a form.

mod gated_prefix_tuning;
mod hidden_prompts;
mod low_rank_prompt_tuning;
mod p_tuning_lstm;
mod p_tuning_mlp;
mod prefix_tuning;
mod prefix_tuning_mlp;
mod prompt_tuning;
mod residual_prompt_tuning;

use preface_graph::{
    Base, FormKind,
    builder::{Attribute, Builder},
    onnx::GraphProto,
};

use crate::{
    Error,
    form::{Form, Tensors},
    seedbed::Seedbed,
};

/// A trainable tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Its name among the method's parameters.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its learning rate, as a multiple of the method's.
    pub rate: f32,
}

impl Parameter {
    /// A parameter that learns at the method's own rate.
    pub fn new(name: impl Into<String>, shape: &[usize]) -> Self {
        Self {
            name: name.into(),
            shape: shape.into(),
            rate: 1.0,
        }
    }

    /// The same at another multiple of the rate.
    fn at_rate(self, rate: f32) -> Self {
        Self { rate, ..self }
    }

    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The form of a prompt and the sizes that a method chooses on the way to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sizes {
    /// The form.
    pub form: Form,
    /// Width of the narrow layer of a reparameterisation.
    pub bottleneck: usize,
    /// Width of the model.
    pub hidden: usize,
    /// Rank of a factored prompt.
    pub rank: usize,
}

impl Sizes {
    /// The usual sizes around a form.
    pub fn of(form: Form, hidden: usize) -> Self {
        Self {
            form,
            hidden,
            bottleneck: 128,
            rank: 4,
        }
    }
}

/// Where a method writes its subgraph.
pub struct Canvas<'a> {
    /// The base.
    pub base: &'a Base,
    /// The graph, before a prompt is in it.
    pub graph: &'a mut GraphProto,
    /// Its operator set.
    pub opset: i64,
    /// Writes nodes.
    pub builder: &'a mut Builder,
}

/// Writes nodes from parameters, by their names, to the tensors of a form.
pub type Subgraph = fn(&Sizes, &mut Canvas, &[String]) -> Result<Vec<String>, Error>;

/// A prompt method.
pub struct Method {
    /// The name by which `--method` knows it.
    pub name: &'static str,
    /// The form in which its prompts enter the base.
    pub form: FormKind,
    /// Whether the form has gates.
    pub gated: bool,
    /// A learning rate that trains it without a search.
    pub learning_rate: f32,
    /// What it trains.
    pub parameters: fn(&Sizes) -> Vec<Parameter>,
    /// The values that training starts from, one list for each parameter.
    pub initial: fn(&Sizes, &mut Seedbed) -> Result<Tensors, Error>,
    /// Writes the subgraph from the parameters (named in the same order) to the tensors of the form.
    pub subgraph: Subgraph,
    /// PEFT's name of what it saves.
    pub peft_type: &'static str,
}

/// Every method, sorted by name.
pub const METHODS: &[Method] = &[
    gated_prefix_tuning::METHOD,
    hidden_prompts::METHOD,
    low_rank_prompt_tuning::METHOD,
    p_tuning_lstm::METHOD,
    p_tuning_mlp::METHOD,
    prefix_tuning::METHOD,
    prefix_tuning_mlp::METHOD,
    prompt_tuning::METHOD,
    residual_prompt_tuning::METHOD,
];

/// Other names of the same thing: P-tuning v2 (Liu et al. 2022) is prefix tuning without reparameterisation.
const ALIASES: &[(&str, &str)] = &[
    ("p-tuning", "p-tuning-lstm"),
    ("p-tuning-v2", "prefix-tuning"),
];

/// The method of that name.
///
/// # Errors
/// When there is none; the error lists those that there are.
pub fn method(name: &str) -> Result<&'static Method, Error> {
    let own = ALIASES
        .iter()
        .find(|(alias, _)| *alias == name)
        .map_or(name, |(_, own)| own);
    METHODS
        .iter()
        .find(|method| method.name == own)
        .ok_or_else(|| {
            let known: Vec<&str> = METHODS.iter().map(|method| method.name).collect();
            Error::Options(format!(
                "there is no method {name}; choose one of {}",
                known.join(", ")
            ))
        })
}

/// The method whose parameters are the tensors of the form themselves: a learned prompt is run through it.
pub fn stored(form: &Form) -> &'static Method {
    match form {
        Form::Embeddings { .. } => &prompt_tuning::METHOD,
        Form::KeyValues { gated: false, .. } => &prefix_tuning::METHOD,
        Form::KeyValues { gated: true, .. } => &gated_prefix_tuning::STORED,
    }
}

/// `rows weight + bias`.
fn affine(builder: &mut Builder, rows: &str, weight: &str, bias: &str) -> String {
    let product = builder.apply("MatMul", &[rows, weight], &[]);
    builder.apply("Add", &[&product, bias], &[])
}

/// Rows `[tokens, layers * 2 * kv_heads * head_dim]`, as PEFT lays them out, as one tensor
/// `[2, kv_heads, tokens, head_dim]` a layer.
fn by_layer(builder: &mut Builder, form: &Form, rows: &str) -> Vec<String> {
    let Form::KeyValues { tokens, layers, .. } = form else {
        return vec![rows.to_owned()];
    };
    let widths: Vec<i64> = layers
        .iter()
        .map(|layer| (2 * layer.kv_heads * layer.head_dim) as i64)
        .collect();
    let parts: Vec<String> = layers.iter().map(|_| builder.fresh()).collect();
    match layers.len() {
        1 => builder.write("Identity", &[rows], &[&parts[0]], &[]),
        _ => {
            let widths = builder.ints(&widths);
            let outputs: Vec<&str> = parts.iter().map(String::as_str).collect();
            builder.write(
                "Split",
                &[rows, &widths],
                &outputs,
                &[("axis", Attribute::Int(1))],
            );
        }
    }
    let turned = [("perm", Attribute::Ints(vec![1, 2, 0, 3]))];
    let tensor = |(layer, part): (&preface_graph::LayerGeometry, &String)| {
        let shape = [*tokens, 2, layer.kv_heads, layer.head_dim].map(|dim| dim as i64);
        let shape = builder.ints(&shape);
        let apart = builder.apply("Reshape", &[part, &shape], &[]);
        builder.apply("Transpose", &[&apart], &turned)
    };
    layers.iter().zip(&parts).map(tensor).collect()
}

/// Numbers of one virtual token.
fn width(form: &Form) -> usize {
    match form {
        Form::Embeddings { hidden, .. } => *hidden,
        Form::KeyValues { layers, .. } => layers
            .iter()
            .map(|layer| 2 * layer.kv_heads * layer.head_dim)
            .sum(),
    }
}

/// The shape of a layer's tensor for each layer, gates left out.
fn prefix_parameters(form: &Form) -> Vec<Parameter> {
    let layers = form.shapes().into_iter().filter(|shape| shape.len() > 1);
    let parameter =
        |(layer, shape): (usize, Vec<usize>)| Parameter::new(format!("prefix.{layer}"), &shape);
    layers.enumerate().map(parameter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_unique() {
        assert!(METHODS.windows(2).all(|pair| pair[0].name < pair[1].name));
        assert!(
            method("no-such")
                .err()
                .unwrap()
                .to_string()
                .contains("prompt-tuning")
        );
    }

    #[test]
    fn aliases_name_methods_and_are_none() {
        for (alias, own) in ALIASES {
            assert_eq!(method(alias).unwrap().name, *own);
            assert!(METHODS.iter().all(|method| method.name != *alias));
        }
    }
}
