//! Learns soft prompts against a frozen ONNX base model.

pub mod adapter;
pub mod autodiff;
pub mod batch;
pub mod check;
pub mod data;
pub mod engine;
mod error;
pub mod evaluation;
pub mod form;
pub mod heads;
pub mod methods;
pub mod optimizer;
pub mod seedbed;
pub mod step;
pub mod tokens;
pub mod training;

pub use error::Error;
