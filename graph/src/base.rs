//! The base folder and the description of the model in it.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use prost::Message;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    Error,
    attention::{self, Direction, Site},
    decompose,
    facts::Facts,
    files::{find, model_files, other_models},
    hidden,
    inputs::{self, Inputs, Size},
    join, lift,
    logits::{self, Logits},
    merged,
    onnx::{ModelProto, TensorProto, data_type},
    order,
    positions::positions,
    settings::Settings,
    soundness,
    tensor::element_bytes,
    weights,
    wiring::Wiring,
};

/// The sizes at which a base is walked: they differ in every symbol, and no multiple of the rows is the tokens at both,
/// with however many more: several candidates multiply the rows, and a prompt adds tokens.
pub const SIZES: [Size; 2] = [
    Size {
        batch: 2,
        sequence: 7,
        decoder_sequence: 5,
        past: 3,
    },
    Size {
        batch: 3,
        sequence: 10,
        decoder_sequence: 6,
        past: 4,
    },
];

/// Domain of the base id.
const BASE_DOMAIN: &[u8] = b"preface-base-v1\0";

/// What kind of language model a base is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Every token sees every token (BERT and its like).
    Encoder,
    /// A token sees those before it (GPT-2, Llama and their like).
    Decoder,
    /// A decoder that reads an encoder's output (T5 and its like).
    EncoderDecoder,
}

impl Kind {
    /// Hidden rows that heads read of one text: an encoder-decoder's are its decoder's.
    pub fn row_tokens(self, size: Size) -> i64 {
        match self {
            Self::EncoderDecoder => size.decoder_sequence,
            Self::Encoder | Self::Decoder => size.sequence,
        }
    }
}

/// How a base knows where a token stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PositionRule {
    /// A learned table of positions.
    Learned,
    /// Rotation of queries and keys.
    Rotary,
    /// A bias by distance.
    Relative,
    /// No sign of any.
    Unknown,
}

/// How a soft prompt can enter a base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FormKind {
    /// Rows before the text's embeddings.
    Embeddings,
    /// Keys and values before the text's at every layer.
    KeyValues,
}

/// Keys and values of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerGeometry {
    /// Heads of the keys and values.
    pub kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
}

/// What is known of a base model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// Encoder, decoder or both.
    pub kind: Kind,
    /// Width of the model: of the rows between its layers.
    pub hidden: usize,
    /// Width of the embedding rows: narrower where a product widens them before the first layer (ALBERT, ELECTRA).
    pub embedding_width: usize,
    /// Rows of the token-embedding table.
    pub vocabulary: usize,
    /// Keys and values of each site that a prefix joins ([`Description::prefix_sites`]): one a layer, of an
    /// encoder-decoder one a layer of the encoder and two a layer of the decoder.
    pub layers: Vec<LayerGeometry>,
    /// The id that fills rows, where `config.json` or the tokenizer names one.
    pub padding: Option<u32>,
    /// An id that is not the padding's: it stands in the places of a prompt.
    pub placeholder: u32,
    /// How positions are known.
    pub position_rule: PositionRule,
    /// Tokens that the positions leave room for; `None` where nothing bounds them.
    pub max_positions: Option<usize>,
    /// The forms that a prompt can take.
    pub forms: Vec<FormKind>,
    /// Numbers in all float tensors.
    pub parameters: usize,
    /// Names of the graph's inputs.
    pub inputs: Inputs,
    /// The token that hides another from a masked language model, where `tokenizer.json` has one.
    pub mask_token: Option<u32>,
    /// The token that ends a text, where the files beside the model name one.
    pub end_token: Option<u32>,
    /// The token that an encoder-decoder's decoder begins with.
    pub start_token: Option<u32>,
    /// The value that heads read: hidden rows `[batch, sequence, hidden]`.
    pub hidden_rows: String,
    /// The scores of a language-modelling head, where the graph has one.
    pub logits: Option<Logits>,
    /// The value with the rows that the embedding Gather looks up.
    pub embedding_rows: String,
    /// The initializer that holds the token-embedding table.
    pub embedding_table: String,
    /// Every attention site in the order of the graph.
    pub sites: Vec<Site>,
    /// SHA-256 of the tensors, 64 hexadecimal digits: DESIGN section 3.
    pub base_id: String,
    /// SHA-256 of `tokenizer.json`, 64 hexadecimal digits.
    pub tokenizer_id: String,
}

/// A base folder, opened and understood.
#[derive(Clone, Debug)]
pub struct Base {
    /// The folder in which the model's tensors name the files that hold them: large tensors stay in their files, the
    /// model file among them, which must not change while the base is in use.
    pub folder: PathBuf,
    /// The model file.
    pub path: PathBuf,
    /// The model, its constants hoisted and its composite operators written out.
    pub model: ModelProto,
    /// What is known of it.
    pub description: Description,
    /// Facts about its values at [`SIZES`].
    pub facts: Facts,
    /// The bytes of `tokenizer.json`.
    pub tokenizer: Vec<u8>,
}

impl Base {
    /// Opens `folder`: `model.onnx` or `onnx/model.onnx`, with `tokenizer.json` beside either; else `decoder_model.onnx` or
    /// `decoder_model_merged.onnx`, to which an `encoder_model.onnx` beside it is joined.
    ///
    /// # Errors
    /// When a file is missing or cannot be read, or the model is no language model that takes a soft prompt.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let paths = model_files(folder).ok_or_else(|| Error::NoModel {
            folder: folder.into(),
            others: other_models(folder),
        })?;
        let tokenizer_path = find(folder, &["tokenizer.json", "onnx/tokenizer.json"]);
        let tokenizer_path = tokenizer_path.ok_or_else(|| Error::NoTokenizer {
            folder: folder.into(),
        })?;
        let tokenizer = read(&tokenizer_path)?;
        let path = paths[0].clone();
        let beside = path.parent().unwrap_or(folder);
        let (models, files): (Vec<_>, Vec<_>) = paths
            .into_iter()
            .map(|path| decode(&path).map(|(model, file)| (model, (file, path))))
            .collect::<Result<Vec<_>, _>>()?
            .into_iter()
            .unzip();
        let mut models = models.into_iter();
        let model = models.next().unwrap_or_default();
        let model = models.try_fold(model, join::join)?;
        let base_id = base_id(&model, beside)?;
        let (mut model, data_folder) = weights::leave_in_files(model, &files)?;
        drop(files);
        let (description, facts) = describe(
            &mut model,
            &data_folder,
            Settings::read(beside, &tokenizer),
            base_id,
            hex(&Sha256::digest(&tokenizer)),
        )?;
        Ok(Self {
            folder: data_folder,
            path,
            model,
            description,
            facts,
            tokenizer,
        })
    }

    /// The base without the rounding of its activations, where it has any: straight-through gradients (Bengio,
    /// Léonard and Courville 2013) are the gradients of this one.
    pub fn unrounded(&self) -> Option<Self> {
        let mut base = self.clone();
        let opset = base.model.opset();
        let graph = base.model.graph.as_mut()?;
        if !decompose::unround(graph, opset) {
            return None;
        }
        let wiring = Wiring::of(graph);
        let shapes = SIZES.map(|size| base.description.inputs.shapes(&wiring, size));
        base.facts = Facts::of(graph, &shapes);
        Some(base)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Read {
        path: path.into(),
        source,
    })
}

/// The model in a file, whose bytes are slices of the file's.
fn decode(path: &Path) -> Result<(ModelProto, Bytes), Error> {
    let bytes = Bytes::from(read(path)?);
    let mut model = ModelProto::decode(bytes.clone()).map_err(|source| Error::Decode {
        path: path.into(),
        source,
    })?;
    merged::keep_first_pass(model.graph.get_or_insert_default())?;
    if model
        .graph
        .as_ref()
        .is_none_or(|graph| graph.node.is_empty())
    {
        return Err(Error::unusable(format!(
            "{} holds no graph",
            path.display()
        )));
    }
    Ok((model, bytes))
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 over the initializers in the order of their names: name, element type, dimensions and SHA-256 of the
/// little-endian bytes, each text and list behind its length as a 64-bit little-endian number.
fn base_id(model: &ModelProto, folder: &Path) -> Result<String, Error> {
    let graph = model.graph.as_ref();
    let mut tensors: Vec<&TensorProto> =
        graph.iter().flat_map(|graph| &graph.initializer).collect();
    tensors.sort_by_key(|tensor| tensor.name());
    let mut digest = Sha256::new();
    digest.update(BASE_DOMAIN);
    for tensor in tensors {
        digest.update((tensor.name().len() as u64).to_le_bytes());
        digest.update(tensor.name());
        digest.update(tensor.data_type().to_le_bytes());
        digest.update((tensor.dims.len() as u64).to_le_bytes());
        tensor
            .dims
            .iter()
            .for_each(|dim| digest.update(dim.to_le_bytes()));
        digest.update(Sha256::digest(tensor.little_endian(folder)?));
    }
    Ok(hex(&digest.finalize()))
}

fn describe(
    model: &mut ModelProto,
    folder: &Path,
    settings: Settings,
    base_id: String,
    tokenizer_id: String,
) -> Result<(Description, Facts), Error> {
    order::sort(model.graph.get_or_insert_default());
    soundness::check(model)?;
    let opset = model.opset();
    let graph = model.graph.get_or_insert_default();
    decompose::hoist_constants(graph)?;
    decompose::write_out(graph, opset, folder)?;
    inputs::widen(graph);
    let inputs = Inputs::of(&Wiring::of(graph))?;
    let facts_of = |graph: &crate::onnx::GraphProto| {
        let wiring = Wiring::of(graph);
        Facts::of(graph, &SIZES.map(|size| inputs.shapes(&wiring, size)))
    };
    let facts = facts_of(graph);
    lift::lift(model, &facts)?;
    let opset = model.opset();
    let graph = model.graph.get_or_insert_default();
    let facts = decompose::decompose(graph, opset, facts_of)?;
    decompose::loosen_repeats(graph, opset, &facts);
    inputs::merge_lookups(graph, &facts);
    let facts = facts_of(graph);
    let wiring = Wiring::of(graph);
    let lookups = inputs::lookups(&wiring);
    let embedding = lookups.iter().find(|lookup| lookup.input == inputs.ids);
    let embedding = embedding
        .ok_or_else(|| Error::unusable("no Gather looks token ids up in an embedding table"))?;
    let [vocabulary, embedding_width] =
        [0, 1].map(|axis| usize::try_from(embedding.table.dims[axis]).unwrap_or(0));
    let lookup = &graph.node[embedding.node];
    soundness::plain_table(lookup, embedding.table)?;
    soundness::one_table(&wiring, &lookups, embedding)?;
    let embedding_rows = lookup.output[0].clone();
    soundness::known_shapes(&wiring, &facts, &embedding_rows)?;
    let mut sites = attention::sites(&wiring, &facts, &inputs.past, &SIZES)?;
    if sites.is_empty() {
        return Err(Error::unusable(
            "no attention was found: no Softmax stands between two products of free values",
        ));
    }
    let kind = classify(&wiring, &inputs, &mut sites, folder);
    soundness::masked(&wiring, &sites, inputs.mask.as_deref())?;
    let rows_of = |hidden| {
        let rows = hidden_rows(&wiring, &facts, &sites, hidden, kind)?;
        Some((hidden, rows))
    };
    let widened = || rows_of(hidden::width(&wiring, &facts, sites.last()?)?);
    let (hidden, hidden_rows) = rows_of(embedding_width)
        .or_else(widened)
        .ok_or_else(|| Error::at(lookup, format!("looks up rows of {embedding_width}, but no value [batch, sequence, {embedding_width}] behind the attention leads to an output, nor one as wide as the layers")))?;
    let expected = logits::Expected {
        rows: SIZES.map(|size| [size.batch, kind.row_tokens(size)]).into(),
        vocabulary,
        hidden_rows: &hidden_rows,
    };
    let logits = logits::logits(&wiring, &facts, &expected);
    let parameters = graph
        .initializer
        .iter()
        .filter(|tensor| tensor.data_type() == data_type::FLOAT);
    let (position_rule, max_positions) =
        positions(&wiring, &inputs, &embedding_rows, embedding_width, settings);
    let mut description = Description {
        kind,
        hidden,
        embedding_width,
        vocabulary,
        layers: Vec::new(),
        padding: settings.padding,
        placeholder: settings.placeholder(),
        mask_token: settings.mask_token,
        end_token: settings.end_token,
        start_token: inputs
            .decoder_ids
            .as_ref()
            .map(|_| settings.start_token.or(settings.padding).unwrap_or(0)),
        logits,
        position_rule,
        max_positions,
        forms: vec![FormKind::Embeddings, FormKind::KeyValues],
        parameters: parameters.map(TensorProto::elements).sum(),
        embedding_table: embedding.table.name().to_owned(),
        inputs,
        hidden_rows,
        embedding_rows,
        sites,
        base_id,
        tokenizer_id,
    };
    let geometry = |site: &Site| LayerGeometry {
        kv_heads: site.kv_heads,
        head_dim: site.head_dim,
    };
    description.layers = description.prefix_sites().map(geometry).collect();
    Ok((description, facts))
}

/// Sets the direction of every site and says what kind of model they make.
fn classify(wiring: &Wiring, inputs: &Inputs, sites: &mut [Site], folder: &Path) -> Kind {
    let causal =
        !inputs.past.is_empty() || sites.iter().any(|site| is_causal(wiring, site, folder));
    for site in sites.iter_mut() {
        let depends = |value: &str, input: &str| wiring.reads(value, input);
        site.direction = match &inputs.decoder_ids {
            Some(decoder) if depends(&site.key.value, decoder) => Direction::Decoder,
            Some(decoder) => match wiring
                .graph
                .node
                .iter()
                .find(|node| node.label() == site.node)
            {
                Some(softmax) if depends(&softmax.output[0], decoder) => Direction::Cross,
                _ => Direction::Encoder,
            },
            None if causal => Direction::Decoder,
            None => Direction::Encoder,
        };
    }
    match (&inputs.decoder_ids, causal) {
        (Some(_), _) => Kind::EncoderDecoder,
        (None, true) => Kind::Decoder,
        (None, false) => Kind::Encoder,
    }
}

fn value_name<'a>(wiring: &Wiring<'a>, value: &str) -> &'a str {
    wiring.producer(value).map_or("", |node| {
        let mut outputs = node.output.iter();
        outputs
            .find(|output| *output == value)
            .map_or("", String::as_str)
    })
}

/// Whether a mask of `site` compares positions of queries with positions of keys, or is cut from a triangle.
fn is_causal(wiring: &Wiring, site: &Site, folder: &Path) -> bool {
    let readers = site
        .masks
        .iter()
        .filter_map(|mask| wiring.producer(&mask.node)?.input(mask.input));
    let mut ancestors = HashSet::new();
    for mask in readers {
        ancestors.extend(wiring.ancestors(mask));
    }
    let counts = |value: &str| {
        let counted = |name: &&str| {
            wiring
                .producer(name)
                .is_some_and(|node| matches!(node.op_type(), "Range" | "CumSum"))
        };
        wiring
            .ancestors(value_name(wiring, value))
            .iter()
            .any(counted)
    };
    ancestors.iter().any(
        |value| match (wiring.producer(value), wiring.initializer(value)) {
            (Some(node), _) => match node.op_type() {
                "Trilu" => true,
                "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" => {
                    node.input.iter().all(|input| counts(input))
                }
                _ => false,
            },
            (None, Some(tensor)) => is_triangle(tensor, folder),
            (None, None) => false,
        },
    )
}

/// Whether a constant is `[.., n, n]` with one value right of the corner and another below it.
fn is_triangle(tensor: &TensorProto, folder: &Path) -> bool {
    let ([.., rows, columns], Some(width)) =
        (tensor.dims.as_slice(), element_bytes(tensor.data_type()))
    else {
        return false;
    };
    if rows != columns || *rows < 3 {
        return false;
    }
    let Ok(bytes) = tensor.little_endian(folder) else {
        return false;
    };
    let mut elements = bytes.chunks_exact(width).skip(1);
    let columns = *columns as usize;
    let right: Vec<&[u8]> = elements.by_ref().take(columns - 1).collect();
    let below = elements.next();
    right.windows(2).all(|pair| pair[0] == pair[1]) && right.first().copied() != below
}

/// Whether `value` is what a quantised product reads: rows rounded to integers.
fn is_rounded(wiring: &Wiring, value: &str) -> bool {
    wiring
        .producer(value)
        .is_some_and(|node| match node.op_type() {
            "DequantizeLinear" | "DynamicQuantizeLinear" | "QuantizeLinear" => true,
            "Cast" | "Sub" => node.input(0).is_some_and(|input| is_rounded(wiring, input)),
            _ => false,
        })
}

/// The hidden rows that heads read: the graph's own output of that shape behind the last attention, else the last
/// such value before an output.
fn hidden_rows(
    wiring: &Wiring,
    facts: &Facts,
    sites: &[Site],
    hidden: usize,
    kind: Kind,
) -> Option<String> {
    let last = sites.last()?.node.as_str();
    let expected = SIZES.map(|size| vec![size.batch, kind.row_tokens(size), hidden as i64]);
    let fits = |value: &str| {
        let behind = |value| {
            wiring
                .producer(value)
                .is_some_and(|node| node.label() == last)
        };
        facts
            .get(value)
            .is_some_and(|fact| fact.shapes == expected && fact.is_float())
            && !is_rounded(wiring, value)
            && wiring
                .ancestors(value_name(wiring, value))
                .into_iter()
                .any(behind)
    };
    let outputs = wiring.graph.output.iter().map(|output| output.name());
    let mut reached = HashSet::new();
    for output in outputs {
        if fits(output) {
            return Some(output.to_owned());
        }
        reached.extend(wiring.ancestors(value_name(wiring, output)));
    }
    let values = wiring.graph.node.iter().rev().flat_map(|node| &node.output);
    values
        .filter(|value| reached.contains(value.as_str()))
        .find(|value| fits(value))
        .cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_and_prompts_leave_rows_and_tokens_apart() {
        for (candidates, tokens) in (1..64).flat_map(|rows| (0..64).map(move |more| (rows, more))) {
            let alike = |size: Size| size.batch * candidates == size.sequence + tokens;
            assert!(!SIZES.into_iter().all(alike), "{candidates} {tokens}");
        }
    }

    #[test]
    fn a_causal_buffer_is_a_triangle() {
        let lower = [
            1., 0., 0., 0., 1., 1., 0., 0., 1., 1., 1., 0., 1., 1., 1., 1.,
        ];
        let full = [1.0; 16];
        let other: Vec<f32> = (0..16_u8).map(f32::from).collect();
        let table: &[(&[i64], &[f32], bool)] = &[
            (&[1, 1, 4, 4], &lower, true),
            (&[4, 4], &full, false),
            (&[4, 4], &other, false),
            (&[2, 8], &lower, false),
        ];
        for (dims, values, expected) in table {
            let tensor = TensorProto::of_floats("bias", dims, values);
            let found = is_triangle(&tensor, Path::new(""));
            assert_eq!(found, *expected, "{dims:?} {values:?}");
        }
    }
}
