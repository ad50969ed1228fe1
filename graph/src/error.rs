//! What can be wrong with a base model.

use std::path::PathBuf;

/// Why a base model cannot be read, understood or spliced.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the base folder cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The folder holds no model.
    #[error(
        "{folder} holds neither model.onnx nor encoder_model.onnx with decoder_model.onnx, nor has a folder onnx with them; export the model to ONNX into it{others}"
    )]
    NoModel {
        /// The folder.
        folder: PathBuf,
        /// What can be done with models of other names there.
        others: String,
    },
    /// The folder holds no tokenizer.
    #[error("{folder} holds no tokenizer.json; copy the one that belongs to the model into it")]
    NoTokenizer {
        /// The folder.
        folder: PathBuf,
    },
    /// The file is not ONNX.
    #[error("{path} is not an ONNX model")]
    Decode {
        /// The file.
        path: PathBuf,
        /// Where decoding stopped.
        source: prost::DecodeError,
    },
    /// A tensor's bytes are missing, cut short or in a place outside the folder.
    #[error("tensor {tensor}: {reason}")]
    Tensor {
        /// The tensor's name.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A node stands in the way.
    #[error("node {node} ({operator}): {reason}")]
    Node {
        /// The node's name.
        node: String,
        /// Its operator.
        operator: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// The graph as a whole is not a language model that takes a soft prompt.
    #[error("not usable as a base: {reason}")]
    Unusable {
        /// What is missing.
        reason: String,
    },
}

impl Error {
    /// An error at `node`.
    pub fn at(node: &crate::onnx::NodeProto, reason: impl Into<String>) -> Self {
        Self::Node {
            node: node.label().to_owned(),
            operator: node.operator(),
            reason: reason.into(),
        }
    }

    pub(crate) fn unusable(reason: impl Into<String>) -> Self {
        Self::Unusable {
            reason: reason.into(),
        }
    }
}
