//! An encoder-decoder in two files, as optimum exports it, made of one graph.

use std::fs;

use preface_graph::{
    Base,
    attention::{Direction, Site},
    builder::{Attribute, Builder},
    onnx::{GraphProto, ModelProto, ValueInfoProto, data_type},
    splice,
    wiring::Wiring,
};
use prost::Message;

use super::Export;

/// Parts `model.onnx` of `export` into `encoder_model.onnx` and `decoder_model.onnx`, which counts the rows of the
/// encoder's keys by its own tokens, as optimum's do.
pub fn part(export: &Export) {
    let path = export.folder().join("model.onnx");
    let description = Base::open(export.folder()).unwrap().description;
    let whole = ModelProto::decode(&*fs::read(&path).unwrap()).unwrap();
    let mut graph = whole.graph.clone().unwrap();
    for pair in description.sites.windows(2) {
        if pair[1].direction == Direction::Cross {
            count_rows(&mut graph, &pair[0], &pair[1]);
        }
    }
    let crosses = |site: &&Site| site.direction == Direction::Cross;
    let site = description.sites.iter().find(crosses).unwrap();
    let wiring = Wiring::of(&graph);
    let product = maker(&wiring, &site.key.value, "MatMul");
    let encoded = graph.node[product].input[0].clone();
    let hidden = description.hidden.to_string();
    let rows = ValueInfoProto::tensor(&encoded, data_type::FLOAT, &["batch", "tokens", &hidden]);
    let mut encoder = graph.clone();
    splice::prune(&mut encoder, vec![rows.clone()]);
    let last = wiring.producer_index(&encoded).unwrap();
    graph.node[last].output[0].push_str(".of_the_encoder");
    graph.input.push(rows);
    let outputs = graph.output.clone();
    splice::prune(&mut graph, outputs);
    for (name, graph) in [("encoder", encoder), ("decoder", graph)] {
        let half = ModelProto {
            graph: Some(graph),
            ..whole.clone()
        };
        let path = export.folder().join(format!("{name}_model.onnx"));
        fs::write(path, half.encode_to_vec()).unwrap();
    }
    fs::remove_file(path).unwrap();
}

/// The node of that operator on the way up from `value`.
fn maker(wiring: &Wiring, value: &str, operator: &str) -> usize {
    let mut index = wiring.producer_index(value).unwrap();
    while wiring.graph.node[index].op_type() != operator {
        let input = wiring.graph.node[index].input(0).unwrap();
        index = wiring.producer_index(input).unwrap();
    }
    index
}

/// Lets the rows of the keys and values of `site` be counted by the attention before it.
fn count_rows(graph: &mut GraphProto, before: &Site, site: &Site) {
    let softmax = graph.node.iter().find(|node| node.label() == before.node);
    let weights = softmax.unwrap().output[0].clone();
    let mut builder = Builder::beside(graph, "counted", 17);
    let shape = builder.apply("Shape", &[&weights], &[]);
    let first = builder.ints(&[0]);
    let rows = builder.apply("Gather", &[&shape, &first], &[]);
    let others = builder.ints(&[-1, site.kv_heads as i64, site.head_dim as i64]);
    let axis = [("axis", Attribute::Int(0))];
    let dims = builder.apply("Concat", &[&rows, &others], &axis);
    let wiring = Wiring::of(graph);
    let reshapes = [&site.key, &site.value].map(|joint| maker(&wiring, &joint.value, "Reshape"));
    for reshape in reshapes {
        graph.node[reshape].input[1].clone_from(&dims);
    }
    builder.insert_into(graph, reshapes[0].min(reshapes[1]));
}
