//! What prompts start from: rows and keys that the base itself makes of real tokens.
//!
//! Initialisation from class labels and from the vocabulary, Lester et al. 2021, section 3.2; from the keys and values
//! of real tokens, Li and Liang 2021, section 7.4.

use preface_graph::{
    Base, LayerGeometry,
    attention::{Layout, Site},
    hidden,
    onnx::{TensorProto, ValueInfoProto},
    splice,
    wiring::Wiring,
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

use crate::{
    Error,
    engine::{Array, Library},
    form::{Form, Prompt, Tensors, rows_by_token},
    tokens::Tokens,
};

/// Where a prompt's first values come from.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Init {
    /// The label names, then tokens sampled from the training texts.
    #[default]
    Labels,
    /// Tokens sampled from the training texts.
    Vocabulary,
    /// A text, repeated or cut to the number of virtual tokens.
    Text(String),
    /// Another prompt of the same form, repeated or cut likewise.
    Prompt(Box<Prompt>),
    /// Zeros: sound for keys and values alone.
    Zero,
}

impl Init {
    /// Its name in reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Labels => "labels",
            Self::Vocabulary => "vocabulary",
            Self::Text(_) => "text",
            Self::Prompt(_) => "adapter",
            Self::Zero => "zero",
        }
    }
}

/// Real tokens and a source of randomness for the values that training starts from.
pub struct Seedbed<'a> {
    base: &'a Base,
    library: &'a Library,
    init: &'a Init,
    text: Vec<i64>,
    labels: Vec<Vec<i64>>,
    vocabulary: Vec<i64>,
    random: ChaCha8Rng,
}

impl<'a> Seedbed<'a> {
    /// A seedbed with the token ids of each label and the distinct ids of the training texts.
    ///
    /// # Errors
    /// When the text to start from cannot be read or has no token.
    pub fn new(
        base: &'a Base,
        library: &'a Library,
        init: &'a Init,
        tokens: &Tokens,
        labels: &[String],
        vocabulary: Vec<i64>,
        seed: u64,
    ) -> Result<Self, Error> {
        let text = match init {
            Init::Text(text) => tokens.plain(text)?,
            _ => Vec::new(),
        };
        if matches!(init, Init::Text(_)) && text.is_empty() {
            return Err(Error::Options("the text to start from has no token".into()));
        }
        let spoken = labels.iter().map(|label| tokens.plain(&spoken(label)));
        Ok(Self {
            base,
            library,
            init,
            text,
            labels: spoken.collect::<Result<_, _>>()?,
            vocabulary,
            random: ChaCha8Rng::seed_from_u64(seed),
        })
    }

    /// Rows `[tokens, embedding width]`.
    ///
    /// # Errors
    /// When the embedding table cannot be read, or the rows cannot start so.
    pub fn embeddings(&mut self, tokens: usize) -> Result<Vec<f32>, Error> {
        if let Init::Prompt(prompt) = self.init {
            let (Form::Embeddings { hidden, .. }, [rows]) =
                (&prompt.form, prompt.tensors.as_slice())
            else {
                return Err(other_form());
            };
            return match *hidden == self.base.description.embedding_width {
                true => Ok(rows.iter().copied().cycle().take(tokens * hidden).collect()),
                false => Err(other_form()),
            };
        }
        if *self.init == Init::Zero {
            return Err(Error::Options("rows of zeros are far from every embedding; start from labels, vocabulary or a text".into()));
        }
        let width = self.base.description.embedding_width;
        let table = self.table()?;
        let folder = &self.base.folder;
        let row = |id: i64| table.row(folder, usize::try_from(id).unwrap_or(usize::MAX));
        let mut rows = Vec::with_capacity(tokens * width);
        if *self.init == Init::Labels {
            for label in self
                .labels
                .iter()
                .filter(|label| !label.is_empty())
                .take(tokens)
            {
                let found = label.iter().map(|&id| row(id));
                let found = found.collect::<Result<Vec<_>, _>>()?;
                rows.extend((0..width).map(|column| mean(found.iter().map(|row| row[column]))));
            }
        }
        for id in self.ids(tokens - rows.len() / width) {
            rows.extend(row(id)?);
        }
        Ok(rows)
    }

    /// Keys and values `[2, kv_heads, tokens, head_dim]` of each layer of `form`, as the base makes them of real
    /// tokens.
    ///
    /// # Errors
    /// When the base cannot be run, or the prompt to start from has other layers.
    pub fn key_values(&mut self, form: &Form) -> Result<Tensors, Error> {
        let Form::KeyValues {
            tokens,
            first_layer,
            layers,
            ..
        } = form
        else {
            return Err(other_form());
        };
        match self.init {
            Init::Zero => {
                let zeros =
                    |layer: &LayerGeometry| vec![0.0; 2 * layer.kv_heads * tokens * layer.head_dim];
                Ok(layers.iter().map(zeros).collect())
            }
            Init::Prompt(prompt) => stretched(prompt, form),
            _ => {
                let sites: Vec<&Site> = self
                    .base
                    .description
                    .prefix_sites()
                    .skip(*first_layer)
                    .take(layers.len())
                    .collect();
                let names = sites
                    .iter()
                    .flat_map(|site| [&site.key.value, &site.value.value]);
                let names = names.cloned().collect();
                let mut found = self.of_real_tokens(*tokens, names)?.into_iter();
                let mut tensors = Vec::new();
                for site in sites {
                    let mut tensor = Vec::new();
                    for joint in [&site.key, &site.value] {
                        let values = found.next().unwrap_or_default();
                        tensor.extend(heads_first(
                            values,
                            joint.layout,
                            site.kv_heads,
                            *tokens,
                            site.head_dim,
                        ));
                    }
                    tensors.push(tensor);
                }
                Ok(tensors)
            }
        }
    }

    /// The same as one row `[layers * 2 * kv_heads * head_dim]` for each virtual token.
    ///
    /// # Errors
    /// As [`Seedbed::key_values`].
    pub fn key_values_by_token(&mut self, form: &Form) -> Result<Vec<f32>, Error> {
        let tensors = self.key_values(form)?;
        Ok(rows_by_token(form, &tensors))
    }

    /// The inputs `[1, tokens, hidden]` of each layer of `form` for real tokens.
    ///
    /// # Errors
    /// When the base cannot be run, or its layers have no input of that kind.
    pub fn layer_inputs(&mut self, form: &Form) -> Result<Tensors, Error> {
        let Form::KeyValues {
            tokens,
            first_layer,
            layers,
            ..
        } = form
        else {
            return Err(other_form());
        };
        if matches!(self.init, Init::Zero | Init::Prompt(_)) {
            return Err(Error::Options(
                "hidden prompts start from labels, vocabulary or a text".into(),
            ));
        }
        let description = &self.base.description;
        let graph = self.base.model.graph.as_ref().ok_or_else(other_form)?;
        let wiring = Wiring::of(graph);
        let sites = description
            .prefix_sites()
            .skip(*first_layer)
            .take(layers.len());
        let names =
            sites.map(|site| hidden::input_of(&wiring, &self.base.facts, site).map(str::to_owned));
        let names = names.collect::<Result<Vec<_>, _>>()?;
        self.of_real_tokens(*tokens, names)
    }

    /// Normally distributed numbers (Box and Muller 1958).
    pub fn normal(&mut self, count: usize, deviation: f32) -> Vec<f32> {
        let mut unit = || (f64::from(self.random.next_u32()) + 0.5) / (f64::from(u32::MAX) + 1.0);
        let number = |_| {
            let (radius, angle) = ((-2.0 * unit().ln()).sqrt(), std::f64::consts::TAU * unit());
            deviation * (radius * angle.cos()) as f32
        };
        (0..count).map(number).collect()
    }

    /// Token ids to start from: of the labels or the text, then sampled ones.
    fn ids(&mut self, tokens: usize) -> Vec<i64> {
        if !self.text.is_empty() {
            return self.text.iter().copied().cycle().take(tokens).collect();
        }
        (0..tokens)
            .map(|_| self.vocabulary[below(&mut self.random, self.vocabulary.len())])
            .collect()
    }

    /// Values that the base computes for `tokens` real tokens.
    fn of_real_tokens(&mut self, tokens: usize, names: Vec<String>) -> Result<Tensors, Error> {
        let mut ids: Vec<i64> = match self.init {
            Init::Labels => self.labels.iter().flatten().copied().take(tokens).collect(),
            _ => Vec::new(),
        };
        ids.extend(self.ids(tokens - ids.len()));
        let base = self.base;
        let mut model = base.model.clone();
        let graph = model.graph.get_or_insert_default();
        let outputs = names.iter().map(|name| ValueInfoProto::untyped(name));
        splice::prune(graph, outputs.collect());
        let feeds = feeds_of(
            base,
            &ids,
            graph.input.iter().map(|input| input.name()).collect(),
        );
        let mut session = self.library.session(&model, &base.folder, 1)?;
        let feeds: Vec<(&str, &Array)> = feeds
            .iter()
            .map(|(name, array)| (name.as_str(), array))
            .collect();
        session
            .run(&feeds)?
            .into_iter()
            .map(Array::into_floats)
            .collect()
    }

    fn table(&self) -> Result<&'a TensorProto, Error> {
        let name = &self.base.description.embedding_table;
        let graph = self.base.model.graph.as_ref();
        graph
            .and_then(|graph| graph.initializer(name))
            .ok_or_else(|| Error::Options(format!("the base has no embedding table {name}")))
    }
}

fn other_form() -> Error {
    Error::Options("the adapter to start from has a prompt of another form, width or layers".into())
}

/// A label as people say it.
pub fn spoken(label: &str) -> String {
    label.replace(['-', '_', '.'], " ")
}

/// The keys and values of `prompt` at the layers of `form`, tokens repeated or cut.
fn stretched(prompt: &Prompt, form: &Form) -> Result<Tensors, Error> {
    let (
        Form::KeyValues {
            tokens: from,
            first_layer: own_first,
            layers: own,
            ..
        },
        Form::KeyValues {
            tokens: to,
            first_layer,
            layers,
            ..
        },
    ) = (&prompt.form, form)
    else {
        return Err(other_form());
    };
    let tensor = |(index, layer): (usize, &LayerGeometry)| {
        let at = (first_layer + index).checked_sub(*own_first)?;
        let tensor = prompt
            .tensors
            .get(at)
            .filter(|_| own.get(at) == Some(layer))?;
        let heads = tensor.chunks(from * layer.head_dim);
        Some(
            heads
                .flat_map(|head| head.iter().copied().cycle().take(to * layer.head_dim))
                .collect(),
        )
    };
    layers
        .iter()
        .enumerate()
        .map(|pair| tensor(pair).ok_or_else(other_form))
        .collect()
}

/// One row of ids as the graph's inputs want it.
fn feeds_of(base: &Base, ids: &[i64], declared: Vec<&str>) -> Vec<(String, Array)> {
    let inputs = &base.description.inputs;
    let shape = [1, ids.len()];
    let mut feeds = vec![(inputs.ids.clone(), Array::ints(&shape, ids.to_vec()))];
    let mut fill = |name: &Option<String>, values: Vec<i64>| {
        feeds.extend(name.clone().map(|name| (name, Array::ints(&shape, values))));
    };
    fill(&inputs.decoder_ids, ids.to_vec());
    fill(&inputs.mask, vec![1; ids.len()]);
    fill(&inputs.token_types, vec![0; ids.len()]);
    fill(&inputs.positions, (0..ids.len() as i64).collect());
    for (index, name) in inputs.past.iter().enumerate() {
        let layer = base.description.layers[index / 2];
        feeds.push((
            name.clone(),
            Array::floats(&[1, layer.kv_heads, 0, layer.head_dim], Vec::new()),
        ));
    }
    feeds.retain(|(name, _)| declared.contains(&name.as_str()));
    feeds
}

/// Keys or values `[kv_heads, tokens, head_dim]` of one row, however they lie.
pub(crate) fn heads_first(
    values: Vec<f32>,
    layout: Layout,
    heads: usize,
    tokens: usize,
    head_dim: usize,
) -> Vec<f32> {
    if layout == Layout::HeadsFirst {
        return values;
    }
    let mut turned = Vec::with_capacity(values.len());
    for head in 0..heads {
        for token in 0..tokens {
            let start = (token * heads + head) * head_dim;
            turned.extend_from_slice(&values[start..start + head_dim]);
        }
    }
    turned
}

fn mean(values: impl ExactSizeIterator<Item = f32>) -> f32 {
    let count = values.len().max(1) as f32;
    values.sum::<f32>() / count
}

/// A number below `bound`, each as likely as the others up to a bias of `bound / 2^64`.
pub(crate) fn below(random: &mut ChaCha8Rng, bound: usize) -> usize {
    ((u128::from(random.next_u64()) * bound as u128) >> 64) as usize
}

/// Fisher and Yates' shuffle.
pub(crate) fn shuffle<T>(items: &mut [T], random: &mut ChaCha8Rng) {
    for last in (1..items.len()).rev() {
        items.swap(last, below(random, last + 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_first_is_turned() {
        let values = vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];
        assert_eq!(
            heads_first(values, Layout::TokensFirst, 2, 2, 2),
            [0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0]
        );
    }
}
