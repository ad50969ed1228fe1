//! What prompts start from: rows and keys that the base itself makes of real tokens.
//!
//! Initialisation from class labels and from the vocabulary, Lester et al. 2021, section 3.2; from the keys and values
//! of real tokens, Li and Liang 2021, section 7.4.

use preface_graph::{Base, attention::Layout, onnx::ValueInfoProto, splice};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

use crate::{
    Error,
    engine::{Array, Library},
};

/// Real tokens and a source of randomness for the values that training starts from.
pub struct Seedbed<'a> {
    base: &'a Base,
    library: &'a Library,
    labels: Vec<Vec<i64>>,
    vocabulary: Vec<i64>,
    random: ChaCha8Rng,
}

impl<'a> Seedbed<'a> {
    /// A seedbed with the token ids of each label and the distinct ids of the training texts.
    pub fn new(
        base: &'a Base,
        library: &'a Library,
        labels: Vec<Vec<i64>>,
        vocabulary: Vec<i64>,
        seed: u64,
    ) -> Self {
        let random = ChaCha8Rng::seed_from_u64(seed);
        Self {
            base,
            library,
            labels,
            vocabulary,
            random,
        }
    }

    /// Rows `[tokens, hidden]`: the mean embedding of each label, then embeddings of sampled tokens.
    ///
    /// # Errors
    /// When the embedding table cannot be read.
    pub fn embeddings(&mut self, tokens: usize) -> Result<Vec<f32>, Error> {
        let hidden = self.base.description.hidden;
        let table = self.table()?;
        let row = |id: i64| {
            usize::try_from(id)
                .ok()
                .and_then(|id| table.chunks(hidden).nth(id))
        };
        let mut rows = Vec::with_capacity(tokens * hidden);
        for label in self.labels.iter().take(tokens) {
            let found: Vec<&[f32]> = label.iter().filter_map(|&id| row(id)).collect();
            rows.extend((0..hidden).map(|column| mean(found.iter().map(|row| row[column]))));
        }
        while rows.len() < tokens * hidden {
            let id = self.vocabulary[below(&mut self.random, self.vocabulary.len())];
            rows.extend_from_slice(row(id).ok_or_else(|| {
                Error::Options(format!("token id {id} is not in the embedding table"))
            })?);
        }
        Ok(rows)
    }

    /// Keys and values `[2, kv_heads, tokens, head_dim]` of each layer, as the base makes them of the labels' tokens
    /// and of sampled ones.
    ///
    /// # Errors
    /// When the base cannot be run.
    pub fn key_values(&mut self, tokens: usize) -> Result<Vec<Vec<f32>>, Error> {
        let mut ids: Vec<i64> = self.labels.iter().flatten().copied().take(tokens).collect();
        while ids.len() < tokens {
            ids.push(self.vocabulary[below(&mut self.random, self.vocabulary.len())]);
        }
        let base = self.base;
        let sites: Vec<_> = base.description.prefix_sites().collect();
        let mut model = base.model.clone();
        let names = sites
            .iter()
            .flat_map(|site| [&site.key.value, &site.value.value]);
        let outputs = names.map(|name| ValueInfoProto {
            name: Some(name.clone()),
            ..ValueInfoProto::default()
        });
        let graph = model.graph.get_or_insert_default();
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
        let mut found = session.run(&feeds)?.into_iter();
        let mut layers = Vec::new();
        for site in sites {
            let mut layer = Vec::new();
            for joint in [&site.key, &site.value] {
                let values = found
                    .next()
                    .ok_or_else(|| Error::Engine("keys or values are missing".into()))?
                    .into_floats()?;
                layer.extend(heads_first(
                    values,
                    joint.layout,
                    site.kv_heads,
                    tokens,
                    site.head_dim,
                ));
            }
            layers.push(layer);
        }
        Ok(layers)
    }

    fn table(&self) -> Result<Vec<f32>, Error> {
        let name = &self.base.description.embedding_table;
        let tensor = self
            .base
            .model
            .graph
            .as_ref()
            .and_then(|graph| graph.initializer(name));
        let tensor = tensor
            .ok_or_else(|| Error::Options(format!("the base has no embedding table {name}")))?;
        Ok(tensor.floats(&self.base.folder)?)
    }
}

/// One row of ids as the graph's inputs want it.
fn feeds_of(base: &Base, ids: &[i64], declared: Vec<&str>) -> Vec<(String, Array)> {
    let inputs = &base.description.inputs;
    let shape = [1, ids.len()];
    let mut feeds = vec![(inputs.ids.clone(), Array::ints(&shape, ids.to_vec()))];
    let mut fill = |name: &Option<String>, values: Vec<i64>| {
        feeds.extend(name.clone().map(|name| (name, Array::ints(&shape, values))));
    };
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

fn heads_first(
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
