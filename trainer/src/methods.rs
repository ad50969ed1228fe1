//! How prompts are learned: each method is a subgraph from its parameters to a form.

mod prefix_tuning;
mod prompt_tuning;

use preface_graph::{FormKind, builder::Builder};

use crate::{
    Error,
    form::{Form, Tensors},
    seedbed::Seedbed,
};

/// A trainable tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name among the method's parameters.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl Parameter {
    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A prompt method.
pub struct Method {
    /// The name by which `--method` knows it.
    pub name: &'static str,
    /// The form in which its prompts enter the base.
    pub form: FormKind,
    /// A learning rate that trains it without a search.
    pub learning_rate: f32,
    /// What it trains.
    pub parameters: fn(&Form) -> Vec<Parameter>,
    /// The values that training starts from, one list for each parameter.
    pub initial: fn(&Form, &mut Seedbed) -> Result<Tensors, Error>,
    /// Writes the subgraph from the parameters (named in the same order) to the tensors of the form.
    pub subgraph: fn(&Form, &mut Builder, &[String]) -> Vec<String>,
    /// The tensors of the form that the parameters' values amount to.
    pub collapse: fn(&Form, Tensors) -> Tensors,
    /// PEFT's name of what it saves.
    pub peft_type: &'static str,
}

/// Every method, sorted by name.
pub const METHODS: &[Method] = &[prefix_tuning::METHOD, prompt_tuning::METHOD];

/// The method of that name.
///
/// # Errors
/// When there is none; the error lists those that there are.
pub fn method(name: &str) -> Result<&'static Method, Error> {
    METHODS
        .iter()
        .find(|method| method.name == name)
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
        Form::KeyValues { .. } => &prefix_tuning::METHOD,
    }
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
}
