//! One graph of an encoder and a decoder that were exported to two files.

use std::collections::{HashMap, HashSet};

use crate::{
    Error,
    inputs::{element_type, free_inputs, lookups, rank},
    onnx::{GraphProto, ModelProto, TensorProto, ValueInfoProto, data_type},
    wiring::Wiring,
};

/// What stands before the names of the decoder's values and nodes.
const DECODER: &str = "decoder.";

/// Joins a decoder to the encoder whose hidden rows `[batch, tokens, hidden]` it reads: the decoder's input of that shape
/// becomes the encoder's output, and its mask, which covers the encoder's tokens, the encoder's. Tensors that both hold are
/// kept once, among them the embedding table.
///
/// # Errors
/// When an input of the decoder plays no part that is known, or the two were exported for different operator sets.
pub(crate) fn join(mut encoder: ModelProto, mut decoder: ModelProto) -> Result<ModelProto, Error> {
    let versions = [&encoder, &decoder].map(ModelProto::opset);
    if versions[0] != versions[1] {
        return Err(Error::unusable(format!(
            "the encoder is of opset {}, the decoder of {}; export both at once",
            versions[0], versions[1]
        )));
    }
    let above = encoder.graph.take().unwrap_or_default();
    let mut below = decoder.graph.take().unwrap_or_default();
    let mut names = parts(&above, &below)?;
    names.extend(shared(&above.initializer, &below.initializer));
    let given: HashSet<String> = names.keys().cloned().collect();
    below.input.retain(|input| !given.contains(input.name()));
    below
        .initializer
        .retain(|tensor| !given.contains(tensor.name()));
    rename(&mut below, &names);
    let mut graph = above;
    graph.node.extend(below.node);
    graph.initializer.extend(below.initializer);
    graph.sparse_initializer.extend(below.sparse_initializer);
    graph
        .quantization_annotation
        .extend(below.quantization_annotation);
    graph.input.extend(below.input);
    graph.value_info.extend(below.value_info);
    graph.output = below.output;
    for set in decoder.opset_import {
        if !encoder
            .opset_import
            .iter()
            .any(|known| known.domain == set.domain)
        {
            encoder.opset_import.push(set);
        }
    }
    for function in decoder.functions {
        if !encoder.functions.contains(&function) {
            encoder.functions.push(function);
        }
    }
    encoder.graph = Some(graph);
    Ok(encoder)
}

/// The encoder's names of what the decoder takes from it.
fn parts(encoder: &GraphProto, decoder: &GraphProto) -> Result<HashMap<String, String>, Error> {
    let (above, below) = (Wiring::of(encoder), Wiring::of(decoder));
    let rows =
        |value: &&ValueInfoProto| rank(value) == 3 && element_type(value) == data_type::FLOAT;
    let hidden = encoder.output.iter().find(rows);
    let hidden = hidden.ok_or_else(|| {
        Error::unusable("the encoder has no output of hidden rows [batch, tokens, hidden]")
    })?;
    let looked_up = |wiring: &Wiring<'_>| -> HashSet<String> {
        lookups(wiring)
            .iter()
            .map(|lookup| lookup.input.to_owned())
            .collect()
    };
    let ids = looked_up(&above);
    let mask = free_inputs(&above).find(|input| rank(input) == 2 && !ids.contains(input.name()));
    let ids = looked_up(&below);
    let mut names = HashMap::new();
    for input in free_inputs(&below).filter(|input| !ids.contains(input.name())) {
        let name = match (rank(input), mask) {
            (3, _) if rows(&input) => hidden.name(),
            (2, Some(mask)) => mask.name(),
            _ => {
                return Err(Error::unusable(format!(
                    "the decoder's input {} plays no part that is known; a decoder without a cache is joined to its encoder",
                    input.name()
                )));
            }
        };
        if names.values().any(|known| known == name) {
            return Err(Error::unusable(format!(
                "the decoder takes {name} of the encoder twice, the second time as {}",
                input.name()
            )));
        }
        names.insert(input.name().to_owned(), name.to_owned());
    }
    Ok(names)
}

/// The encoder's names of tensors that both hold.
fn shared<'a>(
    encoder: &'a [TensorProto],
    decoder: &'a [TensorProto],
) -> impl Iterator<Item = (String, String)> + use<'a> {
    let content = |tensor: &TensorProto| TensorProto {
        name: None,
        doc_string: None,
        ..tensor.clone()
    };
    decoder.iter().filter_map(move |tensor| {
        let same = |other: &&TensorProto| {
            other.dims.len() > 1 && other.dims == tensor.dims && content(other) == content(tensor)
        };
        let known = encoder.iter().find(same)?;
        Some((tensor.name().to_owned(), known.name().to_owned()))
    })
}

/// Gives every value of `graph` its name in `names`, or [`DECODER`] before its own.
fn rename(graph: &mut GraphProto, names: &HashMap<String, String>) {
    let renamed = |name: &mut String| {
        *name = match names.get(name) {
            _ if name.is_empty() => String::new(),
            Some(known) => known.clone(),
            None => format!("{DECODER}{name}"),
        };
    };
    for node in &mut graph.node {
        node.input
            .iter_mut()
            .chain(&mut node.output)
            .for_each(renamed);
        node.name.iter_mut().for_each(renamed);
        for attribute in &mut node.attribute {
            let inner = attribute.g.iter_mut().chain(&mut attribute.graphs);
            inner.for_each(|graph| rename(graph, names));
        }
    }
    for tensor in &mut graph.initializer {
        tensor.name.iter_mut().for_each(renamed);
    }
    let values = graph.input.iter_mut().chain(&mut graph.output);
    for value in values.chain(&mut graph.value_info) {
        value.name.iter_mut().for_each(renamed);
    }
    for sparse in &mut graph.sparse_initializer {
        let name = sparse
            .values
            .as_mut()
            .and_then(|values| values.name.as_mut());
        name.into_iter().for_each(renamed);
    }
    for annotation in &mut graph.quantization_annotation {
        annotation.tensor_name.iter_mut().for_each(renamed);
        for entry in &mut annotation.quant_parameter_tensor_names {
            entry.value.iter_mut().for_each(renamed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::Builder;

    fn graph(inputs: &[(&str, i32, &[&str])], nodes: &[(&str, &[&str], &str)]) -> GraphProto {
        let mut graph = GraphProto {
            initializer: vec![TensorProto::of_floats("table", &[2, 2], &[1., 2., 3., 4.])],
            ..GraphProto::default()
        };
        let inputs = inputs.iter();
        graph.input = inputs
            .map(|(name, kind, dims)| ValueInfoProto::tensor(name, *kind, dims))
            .collect();
        let mut builder = Builder::beside(&graph, "t", 17);
        for (operator, inputs, output) in nodes {
            builder.write(operator, inputs, &[output], &[]);
        }
        builder.append_to(&mut graph);
        graph
    }

    fn model(graph: GraphProto) -> ModelProto {
        ModelProto {
            graph: Some(graph),
            ..ModelProto::default()
        }
    }

    const TOKENS: &[&str] = &["batch", "tokens"];
    const ROWS: &[&str] = &["batch", "tokens", "2"];

    fn encoder() -> ModelProto {
        let inputs = [
            ("ids", data_type::INT64, TOKENS),
            ("mask", data_type::INT64, TOKENS),
        ];
        let mut graph = graph(
            &inputs,
            &[
                ("Gather", &["table", "ids"], "x"),
                ("Mul", &["x", "mask"], "rows"),
            ],
        );
        graph.output = vec![ValueInfoProto::tensor("rows", data_type::FLOAT, ROWS)];
        model(graph)
    }

    fn decoder(last: &str, dims: &[&str]) -> ModelProto {
        let inputs = [
            ("ids", data_type::INT64, TOKENS),
            ("mask", data_type::INT64, TOKENS),
            (last, data_type::FLOAT, dims),
        ];
        let mut graph = graph(
            &inputs,
            &[
                ("Gather", &["table", "ids"], "x"),
                ("Add", &["x", last], "rows"),
            ],
        );
        graph.output = vec![ValueInfoProto::tensor("rows", data_type::FLOAT, ROWS)];
        model(graph)
    }

    #[test]
    fn a_decoder_reads_the_encoder_and_shares_its_table() {
        let joined = join(encoder(), decoder("states", ROWS))
            .unwrap()
            .graph
            .unwrap();
        let inputs: Vec<&str> = joined.input.iter().map(ValueInfoProto::name).collect();
        assert_eq!(inputs, ["ids", "mask", "decoder.ids"]);
        let nodes: Vec<_> = joined
            .node
            .iter()
            .map(|node| (&node.input[..], &node.output[..]))
            .collect();
        let owned = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        let expected = [
            (owned(&["table", "ids"]), owned(&["x"])),
            (owned(&["x", "mask"]), owned(&["rows"])),
            (owned(&["table", "decoder.ids"]), owned(&["decoder.x"])),
            (owned(&["decoder.x", "rows"]), owned(&["decoder.rows"])),
        ];
        let expected: Vec<_> = expected
            .iter()
            .map(|(inputs, outputs)| (&inputs[..], &outputs[..]))
            .collect();
        assert_eq!(nodes, expected);
        assert_eq!(joined.initializer.len(), 1);
        assert_eq!(joined.output[0].name(), "decoder.rows");
    }

    #[test]
    fn a_decoder_with_a_cache_is_refused_by_its_input() {
        let cache = decoder("past.0", &["batch", "2", "past", "2"]);
        let error = join(encoder(), cache).unwrap_err().to_string();
        assert!(error.contains("past.0"), "{error}");
    }
}
