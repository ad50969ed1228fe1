//! Learns soft prompts against a frozen ONNX base model.

pub mod adapter;
pub mod advice;
pub mod autodiff;
pub mod batch;
pub mod budget;
pub mod check;
pub mod checkpoint;
pub mod data;
pub mod encode;
pub mod engine;
mod error;
pub mod evaluation;
pub mod form;
pub mod given;
pub mod heads;
pub mod methods;
pub mod metrics;
pub mod optimizer;
pub mod options;
pub mod progress;
pub mod record;
pub mod search;
pub mod seedbed;
pub mod step;
pub mod task;
pub mod tokens;
pub mod training;

pub use error::Error;
