//! The frozen base model as an ONNX graph: read it, understand it, splice a soft prompt in.
//!
//! No engine runs here. [`Base::open`] reads a folder and describes the model; the trainer and the runtime's
//! compiler put a prompt into the graph with the edits of [`splice`].

pub mod attention;
mod base;
pub mod builder;
mod decompose;
mod error;
pub mod facts;
pub mod inputs;
mod lift;
pub mod onnx;
mod positions;
mod serve;
mod settings;
mod soundness;
pub mod splice;
pub mod tensor;
pub mod wiring;

pub use base::{
    Base, Description, FormKind, Kind, LayerGeometry, PositionRule, SIZES, hex, read_model,
};
pub use error::Error;
pub use serve::{PrefixInputs, ServingGraph, ServingInputs};
