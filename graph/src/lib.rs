//! The frozen base model as an ONNX graph: read it, understand it, splice a soft prompt in.
//!
//! No engine runs here. [`Base::open`] reads a folder and describes the model; the trainer and the runtime's
//! compiler put a prompt into the graph with the edits of [`splice`].

pub mod attention;
mod base;
pub mod builder;
pub mod cut;
mod decompose;
mod error;
pub mod facts;
mod files;
mod halves;
pub mod hidden;
pub mod inputs;
mod join;
mod lift;
mod logits;
mod merged;
pub mod onnx;
pub mod order;
mod positions;
pub mod rows;
mod serve;
mod settings;
mod sizes;
mod soundness;
pub mod splice;
pub mod tensor;
mod weights;
pub mod wiring;

pub use base::{Base, Description, FormKind, Kind, LayerGeometry, PositionRule, SIZES, hex};
pub use error::Error;
pub use halves::Halves;
pub use logits::{Logits, Projection};
pub use serve::{PrefixInputs, ServingGraph, ServingInputs};
