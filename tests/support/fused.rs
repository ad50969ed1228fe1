//! Small language models of ONNX Runtime's fused operators, each around one form of attention, written by hand: what
//! exporters make of them differs, the arithmetic does not.

use std::{fs, path::Path};

use preface_graph::{
    builder::{Attribute, Builder},
    onnx::{GraphProto, ModelProto, OperatorSetIdProto, TensorProto, ValueInfoProto, data_type},
};
use prost::Message;

const VOCABULARY: i64 = 97;
const WIDTH: i64 = 64;
const HEADS: i64 = 4;
const HEAD: i64 = WIDTH / HEADS;
const POSITIONS: i64 = 64;

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
        ("groups", |w| groups(w, 0, false), root_normalised),
        (
            "groups, packed and in pairs",
            |w| groups(w, 1, true),
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

fn heads() -> (&'static str, Attribute) {
    ("num_heads", Attribute::Int(HEADS))
}

fn attention_of_lengths(writer: &mut Writer) -> String {
    let (weight, bias) = (
        writer.weight(&[WIDTH, 3 * WIDTH], 0.3),
        writer.weight(&[3 * WIDTH], 0.2),
    );
    let (rows, lengths) = (writer.rows.clone(), writer.lengths());
    writer.contrib("Attention", &[&rows, &weight, &bias, &lengths], &[heads()])
}

fn causal_attention(writer: &mut Writer) -> String {
    let (weight, bias) = (
        writer.weight(&[WIDTH, 3 * WIDTH], 0.3),
        writer.weight(&[3 * WIDTH], 0.2),
    );
    let (rows, mask) = (writer.rows.clone(), writer.cast("mask", data_type::INT32));
    let causal = ("unidirectional", Attribute::Int(1));
    let inputs = [rows.as_str(), &weight, &bias, &mask];
    writer.contrib("Attention", &inputs, &[heads(), causal])
}

fn scaled_attention(writer: &mut Writer) -> String {
    let (weight, bias) = (
        writer.weight(&[WIDTH, 3 * WIDTH], 0.3),
        writer.weight(&[3 * WIDTH], 0.2),
    );
    let (rows, mask) = (writer.rows.clone(), writer.cast("mask", data_type::INT32));
    let sizes = ("qkv_hidden_sizes", Attribute::Ints(vec![WIDTH; 3]));
    let scale = ("scale", Attribute::Float(0.4));
    let inputs = [rows.as_str(), &weight, &bias, &mask];
    writer.contrib("Attention", &inputs, &[heads(), sizes, scale])
}

fn packed_heads(writer: &mut Writer) -> String {
    let [all] = writer.projected([3 * WIDTH]);
    let shape = writer.builder.ints(&[0, 0, HEADS, 3, HEAD]);
    let packed = writer.apply("Reshape", &[&all, &shape], &[]);
    let mask = writer.cast("mask", data_type::INT32);
    writer.contrib(
        "MultiHeadAttention",
        &[&packed, "", "", "", &mask],
        &[heads()],
    )
}

fn biased_heads(writer: &mut Writer) -> String {
    let [query, key, value] = writer.projected([WIDTH; 3]);
    let (bias, lengths) = (writer.weight(&[3 * WIDTH], 0.2), writer.lengths());
    let inputs = [query.as_str(), &key, &value, &bias, &lengths];
    writer.contrib("MultiHeadAttention", &inputs, &[heads()])
}

fn cached_heads(writer: &mut Writer) -> String {
    let [query, key, value] = writer.projected([WIDTH; 3]);
    let [past_key, past_value, present_key, present_value] = writer.cache(HEADS);
    let mask = writer.cast("mask", data_type::INT32);
    let inputs = [
        query.as_str(),
        &key,
        &value,
        "",
        &mask,
        "",
        &past_key,
        &past_value,
    ];
    let output = writer.builder.fresh();
    let causal = ("unidirectional", Attribute::Int(1));
    let outputs = [output.as_str(), &present_key, &present_value];
    let operator = "com.microsoft:MultiHeadAttention";
    writer
        .builder
        .write(operator, &inputs, &outputs, &[heads(), causal]);
    output
}

fn rotated_heads(writer: &mut Writer, interleaved: i64) -> String {
    let [query, key, value] = writer.projected([WIDTH; 3]);
    let [cosine, sine] = writer.rotations();
    let first = writer.builder.ints(&[0]);
    let pairs = ("interleaved", Attribute::Int(interleaved));
    let [query, key] = [query, key].map(|rows| {
        let inputs = [rows.as_str(), &first, &cosine, &sine];
        writer.contrib("RotaryEmbedding", &inputs, std::slice::from_ref(&pairs))
    });
    let mask = writer.cast("mask", data_type::INT32);
    let inputs = [query.as_str(), &key, &value, "", &mask];
    writer.contrib("MultiHeadAttention", &inputs, &[heads()])
}

fn groups(writer: &mut Writer, interleaved: i64, packed: bool) -> String {
    const GROUPS: i64 = 2;
    let narrow = GROUPS * HEAD;
    let [mut query, mut key, mut value] = writer.projected([WIDTH, narrow, narrow]);
    if packed {
        let axis = [("axis", Attribute::Int(2))];
        query = writer.apply("Concat", &[&query, &key, &value], &axis);
        key.clear();
        value.clear();
    }
    let [past_key, past_value, present_key, present_value] = writer.cache(GROUPS);
    let [cosine, sine] = writer.rotations();
    let one = writer.builder.scalar(data_type::INT64, 1.0);
    let counted = writer.builder.reduce("ReduceSum", "mask", &[1], false);
    let last = writer.apply("Sub", &[&counted, &one], &[]);
    let last = writer.cast(&last, data_type::INT32);
    let shape = writer.apply("Shape", &["mask"], &[]);
    let all = writer.apply("Gather", &[&shape, &one], &[]);
    let all = writer.cast(&all, data_type::INT32);
    let inputs = [
        query.as_str(),
        &key,
        &value,
        &past_key,
        &past_value,
        &last,
        &all,
        &cosine,
        &sine,
    ];
    let output = writer.builder.fresh();
    let attributes = [
        heads(),
        ("kv_num_heads", Attribute::Int(GROUPS)),
        ("do_rotary", Attribute::Int(1)),
        ("rotary_interleaved", Attribute::Int(interleaved)),
    ];
    let outputs = [output.as_str(), &present_key, &present_value];
    let operator = "com.microsoft:GroupQueryAttention";
    writer
        .builder
        .write(operator, &inputs, &outputs, &attributes);
    output
}

/// Embedding rows that a product widens before the first layer.
fn narrow_embeddings(writer: &mut Writer) -> String {
    const NARROW: i64 = WIDTH / 4;
    writer.builder.nodes.clear();
    let table = writer.weight(&[VOCABULARY, NARROW], 1.0);
    let rows = writer.apply("Gather", &[&table, "ids"], &[]);
    let widening = writer.weight(&[NARROW, WIDTH], 0.3);
    writer.rows = writer.apply("MatMul", &[&rows, &widening], &[]);
    plain_attention(writer)
}

fn plain_attention(writer: &mut Writer) -> String {
    let parts = writer.projected([WIDTH; 3]);
    let apart = writer.builder.ints(&[0, 0, HEADS, HEAD]);
    let [query, key, value] = parts.map(|part| {
        let part = writer.apply("Reshape", &[&part, &apart], &[]);
        writer.turn(&part, &[0, 2, 1, 3])
    });
    let factors = [
        ("alpha", Attribute::Float(0.35)),
        ("transB", Attribute::Int(1)),
    ];
    let scores = writer.contrib("FusedMatMul", &[&query, &key], &factors);
    let weights = writer.weighed(&scores);
    let mixed = writer.contrib("FusedMatMul", &[&weights, &value], &[]);
    writer.together(&mixed)
}

/// Heads that are one dimension with the batch, and scores that grow with the place of the key (Press et al. 2022, ALiBi),
/// as BLOOM has them.
fn merged_heads(writer: &mut Writer) -> String {
    let parts = writer.projected([WIDTH; 3]);
    let shape = writer.apply("Shape", &["ids"], &[]);
    let [batch, tokens] = [0, 1].map(|axis| {
        let axis = writer.builder.ints(&[axis]);
        writer.apply("Gather", &[&shape, &axis], &[])
    });
    let [all, one, heads, head] = [-1, 1, HEADS, HEAD].map(|number| writer.builder.ints(&[number]));
    let merged = writer.apply("Mul", &[&batch, &heads], &[]);
    let list = |writer: &mut Writer, dims: &[&str]| {
        writer.apply("Concat", dims, &[("axis", Attribute::Int(0))])
    };
    let apart = writer.builder.ints(&[0, 0, HEADS, HEAD]);
    let rows = list(writer, &[&merged, &all, &head]);
    let [query, key, value] = parts.map(|part| {
        let part = writer.apply("Reshape", &[&part, &apart], &[]);
        let part = writer.turn(&part, &[0, 2, 1, 3]);
        writer.apply("Reshape", &[&part, &rows], &[])
    });
    let axis = writer.builder.scalar(data_type::INT64, 1.0);
    let places = writer.apply("CumSum", &["mask", &axis], &[]);
    let places = writer.cast(&places, data_type::FLOAT);
    let axes = writer.builder.ints(&[1, 2]);
    let places = writer.apply("Unsqueeze", &[&places, &axes], &[]);
    let slopes = writer.weight(&[1, HEADS, 1, 1], 0.3);
    let bias = writer.apply("Mul", &[&places, &slopes], &[]);
    let row = list(writer, &[&merged, &one, &tokens]);
    let bias = writer.apply("Reshape", &[&bias, &row], &[]);
    let key = writer.turn(&key, &[0, 2, 1]);
    let scores = writer.apply("MatMul", &[&query, &key], &[]);
    let scores = writer.apply("Add", &[&bias, &scores], &[]);
    let square = list(writer, &[&batch, &heads, &tokens, &all]);
    let scores = writer.apply("Reshape", &[&scores, &square], &[]);
    let weights = writer.weighed(&scores);
    let square = list(writer, &[&merged, &tokens, &all]);
    let weights = writer.apply("Reshape", &[&weights, &square], &[]);
    let mixed = writer.apply("MatMul", &[&weights, &value], &[]);
    let apart = list(writer, &[&batch, &heads, &tokens, &head]);
    let mixed = writer.apply("Reshape", &[&mixed, &apart], &[]);
    writer.together(&mixed)
}

/// Learned positions that are counted from the mask in 32-bit integers, as RoBERTa does.
fn counted_positions(writer: &mut Writer) -> String {
    let mask = writer.cast("mask", data_type::INT32);
    let axis = writer.builder.scalar(data_type::INT64, 1.0);
    let counted = writer.apply("CumSum", &[&mask, &axis], &[]);
    let counted = writer.apply("Mul", &[&counted, &mask], &[]);
    let places = writer.cast(&counted, data_type::INT64);
    let table = writer.weight(&[POSITIONS, WIDTH], 0.5);
    let places = writer.apply("Gather", &[&table, &places], &[]);
    let rows = writer.rows.clone();
    writer.rows = writer.apply("Add", &[&rows, &places], &[]);
    plain_attention(writer)
}

/// Queries and one head of keys and values out of one product, taken by listed places as Falcon does, the queries mixed
/// with their neighbours as GPT-J does.
fn one_key_head(writer: &mut Writer) -> String {
    let [all] = writer.projected([WIDTH + 2 * HEAD]);
    let shape = writer.builder.ints(&[0, 0, HEADS + 2, HEAD]);
    let all = writer.apply("Reshape", &[&all, &shape], &[]);
    let slice = |writer: &mut Writer, value: &str, bounds: [i64; 4]| {
        let bounds = bounds.map(|bound| writer.builder.ints(&[bound]));
        let [start, end, axis, step] = &bounds;
        writer.apply("Slice", &[value, start, end, axis, step], &[])
    };
    let query = slice(writer, &all, [0, -2, 2, 1]);
    let [key, value] = [-2, -1].map(|place| {
        let place = writer.builder.ints(&[place]);
        let one = writer.apply("Gather", &[&all, &place], &[("axis", Attribute::Int(2))]);
        writer.turn(&one, &[0, 2, 1, 3])
    });
    let [even, odd] = [0, 1].map(|first| {
        let half = slice(writer, &query, [first, i64::MAX, 3, 2]);
        let last = writer.builder.ints(&[4]);
        writer.apply("Unsqueeze", &[&half, &last], &[])
    });
    let odd = writer.apply("Neg", &[&odd], &[]);
    let pairs = writer.apply("Concat", &[&odd, &even], &[("axis", Attribute::Int(-1))]);
    let shape = writer.builder.ints(&[0, 0, HEADS, HEAD]);
    let pairs = writer.apply("Reshape", &[&pairs, &shape], &[]);
    let query = writer.apply("Add", &[&query, &pairs], &[]);
    let query = writer.turn(&query, &[0, 2, 1, 3]);
    let key = writer.turn(&key, &[0, 1, 3, 2]);
    let scores = writer.apply("MatMul", &[&query, &key], &[]);
    let weights = writer.weighed(&scores);
    let mixed = writer.apply("MatMul", &[&weights, &value], &[]);
    writer.together(&mixed)
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
