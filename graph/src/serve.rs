//! The base as the runtime serves it: one row at a time, embeddings and prefix as inputs.

use crate::{
    Base, Error, Kind,
    builder::Builder,
    onnx::{ModelProto, ValueInfoProto, data_type},
    splice::{self, Prefix},
};

/// A graph of one row whose embedding rows and prefixes are inputs, and whose output is the hidden rows.
///
/// Dimensions: 1, `sequence` (prompt slots and text) and `prefix` (rows of a key-values prompt; 0 without one).
#[derive(Clone, Debug)]
pub struct ServingGraph {
    /// The model; its tensors are inline.
    pub model: ModelProto,
    /// Name of the initializer with the token-embedding table `[vocabulary, hidden]`; kept among the initializers
    /// even where no node reads it.
    pub embedding: String,
    /// Names of the inputs.
    pub inputs: ServingInputs,
    /// Name of the output: hidden rows `[1, sequence, hidden]`.
    pub output: String,
}

/// Names of a serving graph's inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServingInputs {
    /// f32 `[1, sequence, embedding width]`.
    pub embeddings: String,
    /// i64 `[1, sequence]`, where the graph still reads ids.
    pub ids: Option<String>,
    /// i64 `[1, sequence]`: 1 for every token; the prefix is not counted.
    pub mask: Option<String>,
    /// i64 `[1, sequence]`.
    pub token_types: Option<String>,
    /// i64 `[1, sequence]`.
    pub positions: Option<String>,
    /// The prefix of each layer, in order.
    pub prefixes: Vec<PrefixInputs>,
    /// Whether a layer may be without a prefix that others have: not where the graph counts the text's positions behind
    /// a prefix, as a cache's first rows.
    pub partial: bool,
}

/// One layer's prefix: two f32 inputs `[1, kv_heads, prefix, head_dim]` and an f32 input `[1]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixInputs {
    /// Name of the keys.
    pub key: String,
    /// Name of the values.
    pub value: String,
    /// Name of the number added to the attention scores of the prefix: 0 leaves them, far below zero the layer is as
    /// without a prefix.
    pub gate: String,
    /// Heads of the keys and values.
    pub kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
}

impl Base {
    /// The base as the runtime serves it.
    ///
    /// # Errors
    /// When external data cannot be read, or the base is an encoder-decoder, which has [`Base::halves`].
    pub fn serving_graph(&self) -> Result<ServingGraph, Error> {
        let description = &self.description;
        if description.kind == Kind::EncoderDecoder {
            return Err(Error::unusable(
                "this is an encoder-decoder, which is served in halves",
            ));
        }
        let mut model = self.model.clone();
        let opset = model.opset();
        let graph = model.graph.get_or_insert_default();
        for tensor in graph
            .initializer
            .iter_mut()
            .filter(|tensor| tensor.is_external())
        {
            tensor.raw_data = Some(tensor.little_endian(&self.folder)?);
            tensor.external_data.clear();
            tensor.data_location = None;
        }
        let table = graph.initializer(&description.embedding_table).cloned();
        splice::cut_embedding(graph, description)?;
        let mut names = Builder::beside(graph, "served", opset);
        let mut layers = Vec::new();
        for geometry in &description.layers {
            let (kv_heads, head_dim) = (geometry.kv_heads, geometry.head_dim);
            layers.push(PrefixInputs {
                key: names.fresh(),
                value: names.fresh(),
                gate: names.fresh(),
                kv_heads,
                head_dim,
            });
        }
        let prefixes: Vec<Option<Prefix>> = layers
            .iter()
            .map(|layer| {
                Some(Prefix {
                    key: layer.key.clone(),
                    value: layer.value.clone(),
                    gate: Some(layer.gate.clone()),
                })
            })
            .collect();
        splice::join_prefix(graph, opset, description, &self.facts, &prefixes)?;
        let hidden = description.hidden.to_string();
        let width = description.embedding_width.to_string();
        declare_inputs(graph, self, &layers, &width);
        let output = ValueInfoProto::tensor(
            &description.hidden_rows,
            data_type::FLOAT,
            &["1", "sequence", &hidden],
        );
        splice::prune(graph, vec![output]);
        if graph.initializer(&description.embedding_table).is_none() {
            graph.initializer.extend(table);
        }
        let kept = |name: &Option<String>| {
            let input = name.clone()?;
            graph
                .input
                .iter()
                .any(|entry| entry.name() == input)
                .then_some(input)
        };
        let positions = kept(&description.inputs.positions);
        let cached = description.prefix_sites().all(|site| site.past.is_some());
        let inputs = ServingInputs {
            embeddings: description.embedding_rows.clone(),
            ids: kept(&Some(description.inputs.ids.clone())),
            mask: kept(&description.inputs.mask),
            token_types: kept(&description.inputs.token_types),
            partial: !cached || positions.is_some(),
            positions,
            prefixes: layers,
        };
        Ok(ServingGraph {
            embedding: description.embedding_table.clone(),
            output: description.hidden_rows.clone(),
            inputs,
            model,
        })
    }
}

fn declare_inputs(
    graph: &mut crate::onnx::GraphProto,
    base: &Base,
    layers: &[PrefixInputs],
    width: &str,
) {
    let description = &base.description;
    graph.input.retain(|input| {
        !description
            .inputs
            .past
            .iter()
            .any(|past| past == input.name())
    });
    for input in &mut graph.input {
        let element = input
            .tensor_type()
            .map_or(data_type::INT64, |tensor| tensor.elem_type());
        *input = ValueInfoProto::tensor(input.name(), element, &["1", "sequence"]);
    }
    let rows = ValueInfoProto::tensor(
        &description.embedding_rows,
        data_type::FLOAT,
        &["1", "sequence", width],
    );
    graph.input.push(rows);
    for layer in layers {
        let dims = [
            "1",
            &layer.kv_heads.to_string(),
            "prefix",
            &layer.head_dim.to_string(),
        ];
        for name in [&layer.key, &layer.value] {
            graph
                .input
                .push(ValueInfoProto::tensor(name, data_type::FLOAT, &dims));
        }
        let gate = ValueInfoProto::tensor(&layer.gate, data_type::FLOAT, &["1"]);
        graph.input.push(gate);
    }
}
