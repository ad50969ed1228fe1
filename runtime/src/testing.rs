//! A base small enough to be written down: two layers of attention with one head.

use std::path::Path;

use preface_bundle::Id;
use preface_graph::{
    builder::{Attribute, Builder},
    onnx::{GraphProto, ModelProto, OperatorSetIdProto, TensorProto, ValueInfoProto, data_type},
};

use crate::{
    Image,
    compile::{Progress, Source},
    image::{Description, Inputs, Kind, Layer, PrefixInputs},
};

/// Numbers in a row.
pub const HIDDEN: usize = 48;
/// Positions of the table.
pub const POSITIONS: usize = 32;
/// Words that the tokenizer knows.
pub const WORDS: [&str; 6] = ["[UNK]", "turn", "on", "off", "light", "heat"];

const OPSET: i64 = 17;
const LAYERS: usize = 2;

impl Progress for Vec<(usize, usize)> {
    fn packed(&mut self, done: usize, total: usize) {
        self.push((done, total));
    }
}

/// Numbers between -1 and 1 that look random; the same for the same seed.
pub fn numbers(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(next).collect()
}

/// The base, compiled to `path` and opened.
#[allow(unsafe_code)]
pub fn image(path: &Path) -> Image {
    source()
        .write(path, &mut Vec::new())
        .expect("the base compiles");
    // SAFETY: the test wrote the file and changes it no more.
    unsafe { Image::open(path) }.expect("the image opens")
}

/// The base, ready to be compiled.
pub fn source() -> Source {
    let tokenizer = tokenizer();
    let prefixes = (0..LAYERS).map(|layer| PrefixInputs {
        key: format!("key.{layer}"),
        value: format!("value.{layer}"),
        gate: Some(format!("gate.{layer}")),
    });
    let inputs = Inputs {
        embeddings: "rows".into(),
        mask: Some("mask".into()),
        positions: Some("positions".into()),
        prefixes: prefixes.collect(),
        partial: true,
        ..Inputs::default()
    };
    Source {
        model: model(&inputs),
        embedding: "words".into(),
        description: Description {
            kind: Kind::Decoder,
            hidden: HIDDEN,
            embedding_width: None,
            layers: vec![
                Layer {
                    kv_heads: 1,
                    head_dim: HIDDEN
                };
                LAYERS
            ],
            max_positions: Some(POSITIONS),
            vocabulary: WORDS.len(),
            placeholder: 0,
            mask: None,
            start: None,
            base_id: Id([7; 32]),
            tokenizer_id: Id::of(&tokenizer),
            inputs,
        },
        tokenizer,
        weights: crate::Weights::F32,
        lowering: Err("a graph of no base".into()),
    }
}

fn tokenizer() -> Vec<u8> {
    let words: Vec<String> = WORDS
        .iter()
        .enumerate()
        .map(|(id, word)| format!("\"{word}\":{id}"))
        .collect();
    let model = format!(
        r#"{{"type":"WordLevel","vocab":{{{}}},"unk_token":"[UNK]"}}"#,
        words.join(",")
    );
    let sequence =
        |id: &str, kind: u8| format!(r#"{{"Sequence":{{"id":"{id}","type_id":{kind}}}}}"#);
    let (first, second) = (sequence("A", 0), sequence("B", 1));
    let pairs = format!(
        r#"{{"type":"TemplateProcessing","single":[{first}],"pair":[{first},{second}],"special_tokens":{{}}}}"#
    );
    let rest = format!(
        r#""added_tokens":[],"normalizer":null,"pre_tokenizer":{{"type":"WhitespaceSplit"}},"post_processor":{pairs},"decoder":null"#
    );
    format!(r#"{{"version":"1.0","truncation":null,"padding":null,{rest},"model":{model}}}"#)
        .into_bytes()
}

fn model(inputs: &Inputs) -> ModelProto {
    let mut graph = GraphProto::default();
    let mut builder = Builder::beside(&graph, "n", OPSET);
    let mut rows = at_positions(&mut builder, inputs);
    let [prefix, text] = additive_masks(&mut builder);
    for (layer, names) in inputs.prefixes.iter().enumerate() {
        let gate = names.gate.as_deref().expect("every layer has a gate");
        let gated = builder.apply("Add", &[&prefix, gate], &[]);
        let joined = [("axis", Attribute::Int(3))];
        let mask = builder.apply("Concat", &[&gated, &text], &joined);
        rows = attention(&mut builder, &rows, &mask, names, layer);
    }
    builder.write("Identity", &[&rows], &["hidden"], &[]);
    builder.append_to(&mut graph);
    let table = numbers(1, WORDS.len() * HIDDEN);
    let dims = [WORDS.len() as i64, HIDDEN as i64];
    graph
        .initializer
        .push(TensorProto::of_floats("words", &dims, &table));
    let hidden = HIDDEN.to_string();
    graph.input.push(ValueInfoProto::tensor(
        "rows",
        data_type::FLOAT,
        &["1", "sequence", &hidden],
    ));
    for name in ["mask", "positions"] {
        graph.input.push(ValueInfoProto::tensor(
            name,
            data_type::INT64,
            &["1", "sequence"],
        ));
    }
    for name in inputs
        .prefixes
        .iter()
        .flat_map(|layer| [&layer.key, &layer.value])
    {
        graph.input.push(ValueInfoProto::tensor(
            name,
            data_type::FLOAT,
            &["1", "1", "prefix", &hidden],
        ));
    }
    for gate in inputs.prefixes.iter().flat_map(|layer| &layer.gate) {
        graph
            .input
            .push(ValueInfoProto::tensor(gate, data_type::FLOAT, &["1"]));
    }
    graph.output.push(ValueInfoProto::tensor(
        "hidden",
        data_type::FLOAT,
        &["1", "sequence", &hidden],
    ));
    let opset = OperatorSetIdProto {
        version: Some(OPSET),
        ..Default::default()
    };
    ModelProto {
        ir_version: Some(8),
        graph: Some(graph),
        opset_import: vec![opset],
        ..Default::default()
    }
}

/// Adds rows of a table that is large enough to look like a weight and is none.
fn at_positions(builder: &mut Builder, inputs: &Inputs) -> String {
    let table = matrix(builder, 2, POSITIONS);
    let rows = builder.apply(
        "Gather",
        &[&table, "positions"],
        &[("axis", Attribute::Int(0))],
    );
    builder.apply("Add", &[&inputs.embeddings, &rows], &[])
}

/// `[1, 1, sequence, prefix]` and `[1, 1, sequence, sequence]`: a row sees the prefix, and itself and earlier rows where
/// the mask is one.
fn additive_masks(builder: &mut Builder) -> [String; 2] {
    let visible = visible(builder);
    let zero = builder.scalar(data_type::FLOAT, 0.0);
    let far = builder.scalar(data_type::FLOAT, -1e4);
    let text = builder.apply("Where", &[&visible, &zero, &far], &[]);
    let shape = builder.apply("Shape", &[&text], &[]);
    let (none, three) = (builder.ints(&[0]), builder.ints(&[3]));
    let leading = builder.apply("Slice", &[&shape, &none, &three], &[]);
    let shape = builder.apply("Shape", &["key.0"], &[]);
    let two = builder.ints(&[2]);
    let prefix = builder.apply("Slice", &[&shape, &two, &three], &[]);
    let shape = builder.apply(
        "Concat",
        &[&leading, &prefix],
        &[("axis", Attribute::Int(0))],
    );
    let zeros = builder.apply("ConstantOfShape", &[&shape], &[]);
    [zeros, text]
}

/// `[1, 1, sequence, sequence]`, from positions that are counted as exporters count them.
fn visible(builder: &mut Builder) -> String {
    let shape = builder.apply("Shape", &["mask"], &[]);
    let integer = |builder: &mut Builder, value| builder.scalar(data_type::INT64, value);
    let (zero, one) = (integer(builder, 0.0), integer(builder, 1.0));
    let sequence = builder.apply("Gather", &[&shape, &one], &[("axis", Attribute::Int(0))]);
    let counted = builder.apply("Range", &[&zero, &sequence, &one], &[]);
    let (column, row) = (builder.ints(&[0, 1, 3]), builder.ints(&[0, 1, 2]));
    let queries = builder.apply("Unsqueeze", &[&counted, &column], &[]);
    let keys = builder.apply("Unsqueeze", &[&counted, &row], &[]);
    let causal = builder.apply("GreaterOrEqual", &[&queries, &keys], &[]);
    let axes = builder.ints(&[1, 2]);
    let mask = builder.apply("Unsqueeze", &["mask", &axes], &[]);
    let boolean = [("to", Attribute::Int(i64::from(data_type::BOOL)))];
    let mask = builder.apply("Cast", &[&mask], &boolean);
    builder.apply("And", &[&causal, &mask], &[])
}

/// One layer; the keys and values of all layers share their weights.
fn attention(
    builder: &mut Builder,
    rows: &str,
    mask: &str,
    names: &PrefixInputs,
    layer: usize,
) -> String {
    let head = builder.ints(&[1]);
    let project = |builder: &mut Builder, seed: u32| {
        let weight = matrix(builder, seed, HIDDEN);
        let product = builder.apply("MatMul", &[rows, &weight], &[]);
        builder.apply("Unsqueeze", &[&product, &head], &[])
    };
    let query = project(builder, 10 + layer as u32);
    let key = project(builder, 3);
    let value = project(builder, 4);
    let joined = [("axis", Attribute::Int(2))];
    let key = builder.apply("Concat", &[&names.key, &key], &joined);
    let value = builder.apply("Concat", &[&names.value, &value], &joined);
    let key = builder.apply(
        "Transpose",
        &[&key],
        &[("perm", Attribute::Ints(vec![0, 1, 3, 2]))],
    );
    let scores = builder.apply("MatMul", &[&query, &key], &[]);
    let scores = builder.apply("Add", &[&scores, mask], &[]);
    let weights = builder.apply("Softmax", &[&scores], &[("axis", Attribute::Int(-1))]);
    let mixed = builder.apply("MatMul", &[&weights, &value], &[]);
    let mixed = builder.apply("Squeeze", &[&mixed, &head], &[]);
    builder.apply("Add", &[rows, &mixed], &[])
}

/// A constant `[rows, HIDDEN]`, small enough that attention stays soft.
fn matrix(builder: &mut Builder, seed: u32, rows: usize) -> String {
    let scaled = numbers(seed, rows * HIDDEN)
        .into_iter()
        .map(|number| number / 8.0);
    let raw = scaled.flat_map(f32::to_le_bytes).collect();
    builder.constant(data_type::FLOAT, &[rows as i64, HIDDEN as i64], raw)
}
