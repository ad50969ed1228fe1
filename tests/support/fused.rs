//! Small language models of ONNX Runtime's fused operators, each around one form of attention, written by hand: what
//! exporters make of them differs, the arithmetic does not.

#[path = "fused/attentions.rs"]
mod attentions;

use std::{fs, path::Path};

use preface_graph::{
    builder::{Attribute, Builder},
    onnx::{GraphProto, ModelProto, OperatorSetIdProto, TensorProto, ValueInfoProto, data_type},
};
use prost::Message;

use self::attentions::{
    attention_of_lengths, biased_heads, bytes_in_blocks, cached_heads, causal_attention,
    counted_positions, groups, merged_heads, narrow_embeddings, one_key_head, packed_heads,
    plain_attention, rotated_heads, scaled_attention, table_in_blocks,
};

const VOCABULARY: i64 = 97;
const WIDTH: i64 = 64;
const HEADS: i64 = 4;
const HEAD: i64 = WIDTH / HEADS;
const POSITIONS: i64 = 512;

type Attention = fn(&mut Writer) -> String;
type Rest = fn(&mut Writer, &str) -> String;

/// Every model with its name.
pub fn models() -> Vec<(&'static str, ModelProto)> {
    let table: &[(&str, Attention, Rest)] = &[
        ("attention, lengths", attention_of_lengths, layer_normalised),
        ("attention, causal", causal_attention, root_normalised),
        ("attention, scaled", scaled_attention, layer_normalised),
        ("heads, packed", packed_heads, root_normalised),
        ("heads, bias and lengths", biased_heads, layer_normalised),
        ("heads, cache", cached_heads, layer_normalised),
        (
            "heads, rotated in pairs",
            |w| rotated_heads(w, 1),
            root_normalised,
        ),
        (
            "heads, rotated in halves",
            |w| rotated_heads(w, 0),
            root_normalised,
        ),
        ("groups", |w| groups(w, 0, false, -1), root_normalised),
        (
            "groups, window",
            |w| groups(w, 0, false, 9),
            root_normalised,
        ),
        (
            "groups, narrow window",
            |w| groups(w, 0, false, 4),
            root_normalised,
        ),
        (
            "groups, packed and in pairs",
            |w| groups(w, 1, true, -1),
            root_normalised,
        ),
        ("products of integers", attention_of_lengths, quantised),
        ("products with factors", plain_attention, layer_normalised),
        ("narrow embeddings", narrow_embeddings, layer_normalised),
        ("one key head", one_key_head, layer_normalised),
        ("counted positions", counted_positions, layer_normalised),
        ("weights in blocks", plain_attention, blocks),
        ("turned weights", plain_attention, turned),
        ("merged heads", merged_heads, layer_normalised),
        ("table in blocks", table_in_blocks, layer_normalised),
        ("bytes in blocks", bytes_in_blocks, layer_normalised),
    ];
    let models = table.iter().map(|(name, attention, rest)| {
        let mut writer = Writer::begin();
        let mixed = attention(&mut writer);
        let output = rest(&mut writer, &mixed);
        (*name, writer.finish(&output))
    });
    models.collect()
}

/// Writes `model` into `folder` as a base whose words are w1, w2 and so on.
pub fn write(model: &ModelProto, folder: &Path) {
    fs::write(folder.join("model.onnx"), model.encode_to_vec()).unwrap();
    let words: Vec<String> = (1..VOCABULARY)
        .map(|id| format!("\"w{id}\": {id}"))
        .collect();
    let tokenizer = format!(
        r#"{{"model": {{"type": "WordLevel", "vocab": {{"[PAD]": 0, {}}}, "unk_token": "[PAD]"}},
            "pre_tokenizer": {{"type": "WhitespaceSplit"}}}}"#,
        words.join(", ")
    );
    fs::write(folder.join("tokenizer.json"), tokenizer).unwrap();
}

struct Writer {
    graph: GraphProto,
    builder: Builder,
    rows: String,
    salt: usize,
    opset: i64,
}

impl Writer {
    fn begin() -> Self {
        let input = |name| ValueInfoProto::tensor(name, data_type::INT64, &["batch", "sequence"]);
        let graph = GraphProto {
            input: vec![input("ids"), input("mask")],
            ..GraphProto::default()
        };
        let builder = Builder::beside(&graph, "fused", 17);
        let mut writer = Self {
            graph,
            builder,
            rows: String::new(),
            salt: 0,
            opset: 17,
        };
        let table = writer.weight(&[VOCABULARY, WIDTH], 1.0);
        writer.rows = writer.apply("Gather", &[&table, "ids"], &[]);
        writer
    }

    fn finish(mut self, output: &str) -> ModelProto {
        let dims = ["batch", "sequence", &WIDTH.to_string()];
        let output = ValueInfoProto::tensor(output, data_type::FLOAT, &dims);
        self.graph.output.insert(0, output);
        self.builder.append_to(&mut self.graph);
        let set = |domain: Option<&str>, version| OperatorSetIdProto {
            domain: domain.map(str::to_owned),
            version: Some(version),
        };
        ModelProto {
            ir_version: Some(10),
            graph: Some(self.graph),
            opset_import: vec![set(None, self.opset), set(Some("com.microsoft"), 1)],
            ..ModelProto::default()
        }
    }

    /// A weight of numbers that look random.
    fn weight(&mut self, dims: &[i64], scale: f32) -> String {
        self.salt += 1;
        let salt = self.salt as f32;
        let count = dims.iter().product::<i64>() as usize;
        let value = |index: usize| scale * (1.37 * index as f32 + 0.7 * salt).sin();
        let values: Vec<f32> = (0..count).map(value).collect();
        let name = format!("weight/{}", self.salt);
        let tensor = TensorProto::of_floats(&name, dims, &values);
        self.graph.initializer.push(tensor);
        name
    }

    fn bytes(&mut self, dims: &[i64]) -> String {
        self.salt += 1;
        let count = dims.iter().product::<i64>() as usize;
        let raw = (0..count).map(|index| (index * 89 + 7 * self.salt) as u8);
        let raw = raw.collect();
        self.builder.constant(data_type::UINT8, dims, raw)
    }

    /// Integers of 4 or 8 bits that look random.
    fn whole(&mut self, data_type: i32, dims: &[i64]) -> String {
        self.salt += 1;
        let bits = if data_type == data_type::UINT8 { 8 } else { 4 };
        let count = (dims.iter().product::<i64>() * bits / 8) as usize;
        let raw = (0..count).map(|index| (index * 89 + 7 * self.salt) as u8);
        let raw = raw.collect();
        self.builder.constant(data_type, dims, raw)
    }

    fn apply(&mut self, operator: &str, inputs: &[&str], with: &[(&str, Attribute)]) -> String {
        self.builder.apply(operator, inputs, with)
    }

    fn contrib(&mut self, operator: &str, inputs: &[&str], with: &[(&str, Attribute)]) -> String {
        self.apply(&format!("com.microsoft:{operator}"), inputs, with)
    }

    fn turn(&mut self, value: &str, axes: &[i64]) -> String {
        self.apply(
            "Transpose",
            &[value],
            &[("perm", Attribute::Ints(axes.to_vec()))],
        )
    }

    /// The weights of scores `[batch, heads, queries, keys]` of tokens that are there.
    fn weighed(&mut self, scores: &str) -> String {
        let axes = self.builder.ints(&[1, 2]);
        let mask = self.apply("Unsqueeze", &["mask", &axes], &[]);
        let mask = self.cast(&mask, data_type::BOOL);
        let hidden = self.builder.scalar(data_type::FLOAT, -1e9);
        let scores = self.apply("Where", &[&mask, scores, &hidden], &[]);
        self.apply("Softmax", &[&scores], &[("axis", Attribute::Int(-1))])
    }

    /// Heads `[batch, heads, tokens, head]` side by side.
    fn together(&mut self, heads: &str) -> String {
        let turned = self.turn(heads, &[0, 2, 1, 3]);
        let flat = self.builder.ints(&[0, 0, WIDTH]);
        self.apply("Reshape", &[&turned, &flat], &[])
    }

    fn project(&mut self, value: &str, width: i64) -> String {
        let weight = self.weight(&[WIDTH, width], 0.3);
        self.apply("MatMul", &[value, &weight], &[])
    }

    fn projected<const N: usize>(&mut self, widths: [i64; N]) -> [String; N] {
        let rows = self.rows.clone();
        widths.map(|width| self.project(&rows, width))
    }

    fn cast(&mut self, value: &str, to: i32) -> String {
        let to = [("to", Attribute::Int(i64::from(to)))];
        self.apply("Cast", &[value], &to)
    }

    /// Tokens of each row, `[batch]` in 32 bits.
    fn lengths(&mut self) -> String {
        let counted = self.builder.reduce("ReduceSum", "mask", &[1], false);
        self.cast(&counted, data_type::INT32)
    }

    /// Cosines and sines of every position.
    fn rotations(&mut self) -> [String; 2] {
        let half = HEAD / 2;
        let angle = |index: i64| (index / half) as f32 * 0.3_f32.powi((index % half) as i32 + 1);
        let angles: Vec<f32> = (0..POSITIONS * half).map(angle).collect();
        [f32::cos as fn(f32) -> f32, f32::sin].map(|of| {
            self.salt += 1;
            let values: Vec<f32> = angles.iter().map(|&angle| of(angle)).collect();
            let name = format!("rotation/{}", self.salt);
            let tensor = TensorProto::of_floats(&name, &[POSITIONS, half], &values);
            self.graph.initializer.push(tensor);
            name
        })
    }

    /// Declares an empty cache of `heads` and what it becomes.
    fn cache(&mut self, heads: i64) -> [String; 4] {
        let dims = ["batch", &heads.to_string(), "past", &HEAD.to_string()].map(str::to_owned);
        let dims = [0, 1, 2, 3].map(|axis: usize| dims[axis].as_str());
        ["past.key", "past.value", "present.key", "present.value"].map(|name| {
            let value = ValueInfoProto::tensor(name, data_type::FLOAT, &dims);
            if name.starts_with("past") {
                self.graph.input.push(value);
            } else {
                let dims = ["batch", dims[1], "all", dims[3]];
                let value = ValueInfoProto::tensor(name, data_type::FLOAT, &dims);
                self.graph.output.push(value);
            }
            name.to_owned()
        })
    }
}

/// Layer normalisations, activations with a bias and weights of 4 bits behind an attention.
fn layer_normalised(writer: &mut Writer, mixed: &str) -> String {
    let vectors = [0.2, 0.1, 0.1].map(|scale| writer.weight(&[WIDTH], scale));
    let [scale, shift, bias] = &vectors;
    let one = writer.builder.floats(&[1.0]);
    let scale = writer.apply("Add", &[scale, &one], &[]);
    let rows = writer.rows.clone();
    let normal = writer.contrib(
        "SkipLayerNormalization",
        &[mixed, &rows, &scale, shift, bias],
        &[("epsilon", Attribute::Float(1e-5))],
    );
    let (packed, zeros) = (writer.bytes(&[WIDTH, 4, 8]), writer.bytes(&[2 * WIDTH]));
    let scales = writer.weight(&[4 * WIDTH], 0.02);
    let sizes = ["N", "K", "block_size", "bits"]
        .into_iter()
        .zip([WIDTH, WIDTH, 16, 4]);
    let sizes: Vec<_> = sizes
        .map(|(name, size)| (name, Attribute::Int(size)))
        .collect();
    let inner = writer.contrib("MatMulNBits", &[&normal, &packed, &scales, &zeros], &sizes);
    let inner = writer.contrib("BiasGelu", &[&inner, bias], &[]);
    let inner = writer.contrib("FastGelu", &[&inner, shift], &[]);
    let inner = writer.project(&inner, WIDTH);
    let sum = writer.apply("Add", &[&inner, &normal], &[]);
    let attributes = [("axis", Attribute::Int(-1))];
    writer.apply("LayerNormalization", &[&sum, &scale, shift], &attributes)
}

/// Root-mean-square normalisations and activations without a bias behind an attention.
fn root_normalised(writer: &mut Writer, mixed: &str) -> String {
    let scale = writer.weight(&[WIDTH], 0.2);
    let one = writer.builder.floats(&[1.0]);
    let scale = writer.apply("Add", &[&scale, &one], &[]);
    let epsilon = [("epsilon", Attribute::Float(1e-5))];
    let rows = writer.rows.clone();
    let (normal, sum) = (writer.builder.fresh(), writer.builder.fresh());
    writer.builder.write(
        "com.microsoft:SkipSimplifiedLayerNormalization",
        &[mixed, &rows, &scale],
        &[&normal, "", "", &sum],
        &epsilon,
    );
    let inner = writer.project(&normal, WIDTH);
    let inner = writer.contrib("QuickGelu", &[&inner], &[]);
    let inner = writer.contrib("Gelu", &[&inner], &[]);
    let inner = writer.project(&inner, WIDTH);
    let sum = writer.apply("Add", &[&inner, &sum], &[]);
    writer.apply("SimplifiedLayerNormalization", &[&sum, &scale], &epsilon)
}

/// A product that rounds its operands, as dynamic quantisation writes it, behind an attention.
fn quantised(writer: &mut Writer, mixed: &str) -> String {
    let rows = writer.rows.clone();
    let sum = writer.apply("Add", &[mixed, &rows], &[]);
    let [whole, scale, zero] = [0, 1, 2].map(|_| writer.builder.fresh());
    let outputs = [whole.as_str(), &scale, &zero];
    let operator = "DynamicQuantizeLinear";
    writer.builder.write(operator, &[&sum], &outputs, &[]);
    let weight = writer.bytes(&[WIDTH, WIDTH]);
    let middle = writer.builder.constant(data_type::UINT8, &[], vec![128]);
    let product = writer.apply("MatMulInteger", &[&whole, &weight, &zero, &middle], &[]);
    let product = writer.cast(&product, data_type::FLOAT);
    let step = writer.builder.floats(&[0.002]);
    let scale = writer.apply("Mul", &[&scale, &step], &[]);
    let product = writer.apply("Mul", &[&product, &scale], &[]);
    writer.apply("Add", &[&product, &sum], &[])
}

/// Products with weights that have a scale and a zero point a block, of 4 and of 8 bits, along each of their axes; an
/// activation is fused with the last one.
fn blocks(writer: &mut Writer, mixed: &str) -> String {
    const BLOCK: i64 = 24;
    const BLOCKS: i64 = WIDTH.div_euclid(BLOCK) + 1;
    writer.opset = 21;
    let rows = writer.rows.clone();
    let mut sum = writer.apply("Add", &[mixed, &rows], &[]);
    let kinds = [
        (data_type::INT4, 0),
        (data_type::UINT4, 1),
        (data_type::UINT8, 0),
    ];
    for (kind, axis) in kinds {
        let scaled = if axis == 0 {
            [BLOCKS, WIDTH]
        } else {
            [WIDTH, BLOCKS]
        };
        let [weight, zeros] = [[WIDTH; 2], scaled].map(|dims| writer.whole(kind, &dims));
        let scales = writer.weight(&scaled, 0.01);
        let along = [
            ("axis", Attribute::Int(axis)),
            ("block_size", Attribute::Int(BLOCK)),
        ];
        let weight = writer.apply("DequantizeLinear", &[&weight, &scales, &zeros], &along);
        let product = writer.apply("MatMul", &[&sum, &weight], &[]);
        sum = writer.apply("Add", &[&product, &sum], &[]);
    }
    let flat = writer.builder.ints(&[-1, WIDTH]);
    let flat = writer.apply("Reshape", &[&sum, &flat], &[]);
    let (weight, bias) = (
        writer.weight(&[WIDTH, WIDTH], 0.3),
        writer.weight(&[WIDTH], 0.2),
    );
    let activation = [
        ("activation", Attribute::Text("Relu")),
        ("transB", Attribute::Int(1)),
    ];
    let active = writer.contrib("FusedGemm", &[&flat, &weight, &bias], &activation);
    let shape = writer.apply("Shape", &[&rows], &[]);
    let active = writer.apply("Reshape", &[&active, &shape], &[]);
    writer.apply("Add", &[&active, &sum], &[])
}

/// A product with a weight that is turned and scaled.
fn turned(writer: &mut Writer, mixed: &str) -> String {
    let weight = writer.weight(&[WIDTH, WIDTH], 0.3);
    let factors = [
        ("alpha", Attribute::Float(0.35)),
        ("transB", Attribute::Int(1)),
    ];
    let rows = writer.rows.clone();
    let sum = writer.apply("Add", &[mixed, &rows], &[]);
    let product = writer.contrib("FusedMatMul", &[&sum, &weight], &factors);
    writer.apply("Add", &[&product, &sum], &[])
}
