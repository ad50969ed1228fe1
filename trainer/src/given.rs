//! What heads are given: tensors that the frozen base and the label names make.

use std::collections::BTreeMap;

use preface_graph::{Base, Kind, Projection};

use crate::{
    Error,
    batch::{Batch, Layout},
    encode::Encoded,
    engine::{Array, Library},
    form::{Form, Place},
    heads::{Head, HeadSize, Pooling, Reads, no_logits},
    seedbed::spoken,
    step::{Reading, Step},
    tokens::Tokens,
};

/// What a tokenizer makes of what it does not know.
const UNKNOWN: &[&str] = &["[UNK]", "<unk>"];

/// Tensors for [`Head::given`], in its order, and the token ids that speak for each label where the head reads those.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Given {
    /// The tensors.
    pub tensors: Vec<Vec<f32>>,
    /// Token ids of each label.
    pub verbaliser: Vec<Vec<i64>>,
}

impl Given {
    /// What `head` needs for `labels`; `words` are other words for them, in their order, where they are given.
    ///
    /// # Errors
    /// When the base cannot be run or has no logits, or two labels have the same tokens.
    pub fn of(
        head: &Head,
        base: &Base,
        library: &Library,
        tokens: &Tokens,
        labels: &[String],
        words: &[String],
    ) -> Result<Self, Error> {
        let size = HeadSize {
            classes: 1,
            width: 1,
            rank: 1,
        };
        if (head.given)(size).is_empty() {
            return Ok(Self::default());
        }
        match head.reads {
            Reads::Hidden => Ok(Self {
                tensors: vec![prototypes(base, library, tokens, labels)?],
                verbaliser: Vec::new(),
            }),
            Reads::Projection | Reads::Logits => {
                let words = if words.is_empty() { labels } else { words };
                let verbaliser = verbaliser(base, tokens, words)?;
                Self::of_verbaliser(base, verbaliser)
            }
        }
    }

    /// The columns and biases of the base's last product at each label's tokens, averaged over the tokens; where its
    /// logits are more than a product, the shares that tokens have in their label.
    ///
    /// # Errors
    /// When the base has no logits, a token none of them, or the base cannot be read.
    pub fn of_verbaliser(base: &Base, verbaliser: Vec<Vec<i64>>) -> Result<Self, Error> {
        let logits = base.description.logits.as_ref().ok_or_else(no_logits)?;
        let vocabulary = logits.vocabulary;
        let mut spoken: Vec<Vec<usize>> = Vec::new();
        for ids in &verbaliser {
            let place = |&id: &i64| {
                let place = usize::try_from(id).ok().filter(|id| *id < vocabulary);
                place.ok_or_else(|| {
                    Error::Options(format!(
                        "token id {id} is beyond the base's vocabulary of {vocabulary}"
                    ))
                })
            };
            spoken.push(ids.iter().map(place).collect::<Result<_, _>>()?);
        }
        let tensors = match &logits.projection {
            Some(projection) => columns(base, projection, vocabulary, &spoken)?,
            None => shares(vocabulary, &spoken),
        };
        Ok(Self {
            tensors: tensors.into(),
            verbaliser,
        })
    }
}

/// The mean of `values` over a label's tokens.
fn mean(ids: &[usize], values: impl Fn(usize) -> f32) -> f32 {
    ids.iter().map(|&id| values(id)).sum::<f32>() / ids.len() as f32
}

/// The columns `[labels, width]` and biases `[labels]` of a projection at the tokens of each label.
fn columns(
    base: &Base,
    projection: &Projection,
    vocabulary: usize,
    spoken: &[Vec<usize>],
) -> Result<[Vec<f32>; 2], Error> {
    let tensor = |name: &str| {
        let graph = base.model.graph.as_ref();
        let tensor = graph
            .and_then(|graph| graph.initializer(name))
            .ok_or_else(no_logits)?;
        Ok::<_, Error>(tensor.floats(&base.folder)?)
    };
    let weight = tensor(&projection.weight)?;
    let bias = projection.bias.as_deref().map(tensor).transpose()?;
    let at = |token: usize, column: usize| match projection.transposed {
        true => weight[token * projection.width + column],
        false => weight[column * vocabulary + token],
    };
    let columns = spoken.iter().flat_map(|ids| {
        let column = move |column: usize| mean(ids, |id| at(id, column));
        (0..projection.width).map(column)
    });
    let bias_of = |ids: &Vec<usize>| bias.as_ref().map_or(0.0, |bias| mean(ids, |id| bias[id]));
    Ok([columns.collect(), spoken.iter().map(bias_of).collect()])
}

/// What each of the logits `[labels, vocabulary]` counts in the mean of its label, and no biases.
fn shares(vocabulary: usize, spoken: &[Vec<usize>]) -> [Vec<f32>; 2] {
    let mut shares = vec![0.0; spoken.len() * vocabulary];
    for (ids, row) in spoken.iter().zip(shares.chunks_mut(vocabulary)) {
        for &id in ids {
            row[id] += 1.0 / ids.len() as f32;
        }
    }
    [shares, vec![0.0; spoken.len()]]
}

/// The mean-pooled hidden rows `[labels, hidden]` that the base without a prompt gives each name.
fn prototypes(
    base: &Base,
    library: &Library,
    tokens: &Tokens,
    words: &[String],
) -> Result<Vec<f32>, Error> {
    let form = Form::Embeddings {
        tokens: 0,
        hidden: base.description.embedding_width,
        place: Place::Before,
    };
    let step = Step::unprompted(base, Reads::Hidden, Reading::Mean)?;
    let mut session = library.session(&step.model, &base.folder, 1)?;
    let layout = Layout {
        base: &base.description,
        form: &form,
        pooling: Pooling::Mean,
        class_weights: &[],
    };
    let mut prototypes = Vec::new();
    for word in words {
        let mut row = Encoded::of_ids(tokens.encode(&spoken(word))?);
        row.decoder_ids
            .extend(base.description.start_token.map(i64::from));
        let batch = Batch::of(&[vec![&row]], layout, &step);
        let mut outputs = session.run(&batch.with(&[]))?;
        prototypes.extend(outputs.swap_remove(0).into_floats()?);
    }
    Ok(prototypes)
}

/// The tokens of each label's word, as a text that goes on would write it.
fn verbaliser(base: &Base, tokens: &Tokens, words: &[String]) -> Result<Vec<Vec<i64>>, Error> {
    let mut found: Vec<Vec<i64>> = Vec::new();
    for word in words {
        let text = match base.description.kind {
            Kind::Decoder => format!(" {}", spoken(word)),
            Kind::Encoder | Kind::EncoderDecoder => spoken(word),
        };
        let ids = tokens.plain(&text)?;
        let known = |id: &i64| {
            let token = u32::try_from(*id).ok().and_then(|id| tokens.token(id));
            token.is_some_and(|token| !UNKNOWN.contains(&token.as_str()))
        };
        if ids.is_empty() || !ids.iter().all(known) {
            return Err(Error::Options(format!(
                "the tokenizer has no tokens for the label {word:?}; give another word with --verbaliser"
            )));
        }
        if let Some(same) = found.iter().position(|other| parts(other) == parts(&ids)) {
            return Err(Error::Options(format!(
                "the words {:?} and {word:?} of two labels have the same tokens, of which a label is the mean; give other words with --verbaliser",
                words[same]
            )));
        }
        found.push(ids);
    }
    Ok(found)
}

/// Which part of `ids` each of them is, whatever their order.
fn parts(ids: &[i64]) -> BTreeMap<i64, f64> {
    let mut counts = BTreeMap::new();
    ids.iter()
        .for_each(|&id| *counts.entry(id).or_insert(0.0) += 1.0);
    counts
        .values_mut()
        .for_each(|count| *count /= ids.len() as f64);
    counts
}

/// The tensors under the names by which a graph takes them.
pub(crate) fn fed(step: &Step, given: &Given) -> Vec<(String, Array)> {
    let pairs = step.given.iter().zip(&given.tensors);
    pairs
        .map(|((name, shape), values)| (name.clone(), Array::floats(shape, values.clone())))
        .collect()
}
