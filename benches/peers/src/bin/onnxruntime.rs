//! ONNX Runtime, through its C interface: the library that `ORT_DYLIB_PATH` names.
//!
//! `--packed` writes `packed.onnx` beside the model where it is not there yet, optimised and with its weights laid out
//! for the products in a file of their own, and runs that: processes then share them.

use std::path::{Path, PathBuf};

use ort::{
    environment::Environment,
    session::{
        Session,
        builder::{GraphOptimizationLevel, SessionBuilder},
    },
    value::Tensor,
};
use peers::{Arguments, Failure};

const WEIGHTS: &str = "packed.onnx.data";

fn main() -> Result<(), Failure> {
    let arguments = Arguments::read()?;
    let environment = ort::init().build()?;
    let model = match arguments.packed {
        true => packed(&environment, &arguments)?,
        false => arguments.model.clone(),
    };
    let mut session = open(builder(&environment, arguments.threads)?, &model)?;
    let mut inputs = Vec::new();
    for input in session.inputs() {
        let values = arguments.input(input.name());
        inputs.push((
            input.name().to_owned(),
            Tensor::from_array(([1, arguments.tokens], values))?,
        ));
    }
    arguments.measure(|| {
        let feeds: Vec<_> = inputs
            .iter()
            .map(|(name, value)| (name.as_str(), value.view()))
            .collect();
        session.run(feeds)?;
        Ok(())
    })
}

fn builder(environment: &Environment, threads: usize) -> Result<SessionBuilder, Failure> {
    let builder = Session::builder(environment)?
        .with_intra_threads(threads)
        .map_err(plain)?;
    let builder = builder.with_inter_threads(1).map_err(plain)?;
    Ok(builder
        .with_optimization_level(GraphOptimizationLevel::All)
        .map_err(plain)?)
}

fn open(mut builder: SessionBuilder, model: &Path) -> Result<Session, Failure> {
    Ok(builder.commit_from_file(model)?)
}

/// The optimised model with its packed weights in a file of their own.
fn packed(environment: &Environment, arguments: &Arguments) -> Result<PathBuf, Failure> {
    let target = arguments.model.with_file_name("packed.onnx");
    if target.exists() {
        return Ok(target);
    }
    let mut builder = builder(environment, arguments.threads)?
        .with_optimized_model_path(&target)
        .map_err(plain)?;
    let entries = [
        (
            "session.optimized_model_external_initializers_file_name",
            WEIGHTS,
        ),
        (
            "session.optimized_model_external_initializers_min_size_in_bytes",
            "1024",
        ),
        ("session.save_external_prepacked_constant_initializers", "1"),
    ];
    for (key, value) in entries {
        builder = builder.with_config_entry(key, value).map_err(plain)?;
    }
    open(builder, &arguments.model)?;
    Ok(target)
}

/// An error without the builder that it gives back.
fn plain(error: ort::Error<SessionBuilder>) -> ort::Error {
    error.into()
}
