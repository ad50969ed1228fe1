//! The attentions of the models: each reads the rows of a writer and gives its mixed values `[batch, tokens, width]`.

use preface_graph::{builder::Attribute, onnx::data_type};

use super::{HEAD, HEADS, POSITIONS, VOCABULARY, WIDTH, Writer};

fn heads() -> (&'static str, Attribute) {
    ("num_heads", Attribute::Int(HEADS))
}

pub fn attention_of_lengths(writer: &mut Writer) -> String {
    let (weight, bias) = (
        writer.weight(&[WIDTH, 3 * WIDTH], 0.3),
        writer.weight(&[3 * WIDTH], 0.2),
    );
    let (rows, lengths) = (writer.rows.clone(), writer.lengths());
    writer.contrib("Attention", &[&rows, &weight, &bias, &lengths], &[heads()])
}

pub fn causal_attention(writer: &mut Writer) -> String {
    let (weight, bias) = (
        writer.weight(&[WIDTH, 3 * WIDTH], 0.3),
        writer.weight(&[3 * WIDTH], 0.2),
    );
    let (rows, mask) = (writer.rows.clone(), writer.cast("mask", data_type::INT32));
    let causal = ("unidirectional", Attribute::Int(1));
    let inputs = [rows.as_str(), &weight, &bias, &mask];
    writer.contrib("Attention", &inputs, &[heads(), causal])
}

pub fn scaled_attention(writer: &mut Writer) -> String {
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

pub fn packed_heads(writer: &mut Writer) -> String {
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

pub fn biased_heads(writer: &mut Writer) -> String {
    let [query, key, value] = writer.projected([WIDTH; 3]);
    let (bias, lengths) = (writer.weight(&[3 * WIDTH], 0.2), writer.lengths());
    let inputs = [query.as_str(), &key, &value, &bias, &lengths];
    writer.contrib("MultiHeadAttention", &inputs, &[heads()])
}

pub fn cached_heads(writer: &mut Writer) -> String {
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

pub fn rotated_heads(writer: &mut Writer, interleaved: i64) -> String {
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

pub fn groups(writer: &mut Writer, interleaved: i64, packed: bool, window: i64) -> String {
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
        ("local_window_size", Attribute::Int(window)),
    ];
    let outputs = [output.as_str(), &present_key, &present_value];
    let operator = "com.microsoft:GroupQueryAttention";
    writer
        .builder
        .write(operator, &inputs, &outputs, &attributes);
    output
}

/// Embedding rows looked up in a table of 4 bits with a scale and a zero point a block.
pub fn table_in_blocks(writer: &mut Writer) -> String {
    looked_up_in_blocks(writer, 4, true)
}

/// The same of 8 bits, whose zero points are left out: they are the middle of the bytes.
pub fn bytes_in_blocks(writer: &mut Writer) -> String {
    looked_up_in_blocks(writer, 8, false)
}

fn looked_up_in_blocks(writer: &mut Writer, bits: i64, has_zeros: bool) -> String {
    const BLOCK: i64 = 16;
    writer.builder.nodes.clear();
    let of_bytes = |writer: &mut Writer, numbers: i64| {
        writer.whole(data_type::UINT8, &[VOCABULARY, numbers * bits / 8])
    };
    let table = of_bytes(writer, WIDTH);
    let spread = 3.2 / (1 << bits) as f32;
    let scales = writer.weight(&[VOCABULARY, WIDTH / BLOCK], spread);
    let mut inputs = vec![table, "ids".to_owned(), scales];
    if has_zeros {
        inputs.push(of_bytes(writer, WIDTH / BLOCK));
    }
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    let sizes = [("block_size", BLOCK), ("bits", bits), ("quantize_axis", 1)];
    let sizes = sizes.map(|(name, size)| (name, Attribute::Int(size)));
    writer.rows = writer.contrib("GatherBlockQuantized", &inputs, &sizes);
    plain_attention(writer)
}

/// Embedding rows that a product widens before the first layer.
pub fn narrow_embeddings(writer: &mut Writer) -> String {
    const NARROW: i64 = WIDTH / 4;
    writer.builder.nodes.clear();
    let table = writer.weight(&[VOCABULARY, NARROW], 1.0);
    let rows = writer.apply("Gather", &[&table, "ids"], &[]);
    let widening = writer.weight(&[NARROW, WIDTH], 0.3);
    writer.rows = writer.apply("MatMul", &[&rows, &widening], &[]);
    plain_attention(writer)
}

pub fn plain_attention(writer: &mut Writer) -> String {
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
pub fn merged_heads(writer: &mut Writer) -> String {
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
pub fn counted_positions(writer: &mut Writer) -> String {
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
pub fn one_key_head(writer: &mut Writer) -> String {
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
