//! Keys and values that stand before a text's own.

use std::{collections::BTreeMap, mem, sync::Arc};

use preface_bundle::{Positions, Role, Tensor, VerifiedBundle};

use super::{dequantise, numbers};
use crate::{
    EngineKind, Error,
    image::{Description, Kind, Layer},
    map::Numbers,
};

/// Keys and values of a prefix.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeyValues {
    pub tokens: usize,
    /// Where positions begin: behind the prefix, if it says so, even where the base by itself counts the text alone.
    pub positions: Positions,
    /// By the number of the base's layer, of a decoder behind an encoder by that of its own until
    /// [`KeyValues::take_places`]; the others have none.
    pub layers: BTreeMap<usize, LayerKeyValues>,
}

/// One layer's keys and values, each `[kv_heads, tokens, head_dim]`.
#[derive(Clone, Debug)]
pub(crate) struct LayerKeyValues {
    pub shape: Layer,
    pub keys: Numbers,
    pub values: Numbers,
    /// Added to the attention scores of the prefix.
    pub gate: f32,
}

impl KeyValues {
    /// Whether it stands for tokens of a decoder behind an encoder.
    pub fn is_of_decoder(&self) -> bool {
        self.positions == Positions::DecoderAfterPrompt
    }

    /// Numbers the layers of a prefix of a decoder as the base does, in which they are `own`.
    ///
    /// # Errors
    /// Why it has no place there.
    pub fn take_places(&mut self, own: &[usize]) -> Result<(), String> {
        if !self.is_of_decoder() {
            return Ok(());
        }
        if own.is_empty() {
            return Err("its prefix stands before the tokens of a decoder behind an encoder, which this base has not".into());
        }
        if self.layers.len() != own.len() {
            let count = self.layers.len();
            return Err(format!(
                "its prefix is of {count} layers, and the decoder of this base has {}",
                own.len()
            ));
        }
        let layers = mem::take(&mut self.layers).into_values();
        self.layers = own.iter().copied().zip(layers).collect();
        Ok(())
    }

    /// What keeps it off a base; `None` where nothing does.
    pub fn misfit(&self, base: &Description, engine: EngineKind) -> Option<String> {
        let fits = self.layers.iter().all(|(&index, layer)| {
            let numbers = layer.shape.kv_heads * self.tokens * layer.shape.head_dim;
            base.layers.get(index) == Some(&layer.shape)
                && [&layer.keys, &layer.values].map(|half| half.len()) == [numbers; 2]
        });
        let partial = self.tokens > 0 && self.layers.len() < base.layers.len();
        let gated = self.layers.values().any(|layer| layer.gate != 0.0);
        let gates = base
            .inputs
            .prefixes
            .iter()
            .all(|layer| layer.gate.is_some());
        if self.positions == Positions::AfterPrompt
            && base.inputs.partial
            && engine == EngineKind::Plan
        {
            Some(
                "its prefix takes the first positions, which this base's plan counts by the text alone; compile the base for the executor"
                    .into(),
            )
        } else if !fits {
            Some("its prefix has other layers or heads".into())
        } else if self.positions == Positions::AfterPrompt && partial {
            Some("its prefix takes the first positions, which only one of all layers can".into())
        } else if self.positions == Positions::AfterPrompt && base.kind == Kind::EncoderDecoder {
            Some("its prefix takes the first positions of an encoder and a decoder, of which only a decoder's are counted from it".into())
        } else if (partial || gated) && !gates {
            Some("its prefix is gated or of some layers only, and this image takes no gates; compile the base again".into())
        } else if partial && !base.inputs.partial && engine == EngineKind::Plan {
            Some("its prefix is of some layers only, and this base takes a prefix as its cache, which is of all layers".into())
        } else {
            None
        }
    }
}

/// The layers of all runs with their gates, by the number of the base's layer.
pub(super) fn layers(
    bundle: &VerifiedBundle<'_>,
) -> Result<BTreeMap<usize, LayerKeyValues>, String> {
    let mut layers = BTreeMap::new();
    for run in bundle.tensors_of(Role::KeyValues) {
        let first = usize::from(run.spec().layer);
        layers.extend((first..).zip(layers_of(&run)?));
    }
    if let Some(gates) = bundle.tensor(Role::Gate) {
        let gates = numbers(&gates)?;
        layers
            .values_mut()
            .zip(gates)
            .for_each(|(layer, gate)| layer.gate = gate);
    }
    Ok(layers)
}

/// The layers of one run, `[layers, 2, kv_heads, tokens, head_dim]`.
fn layers_of(run: &Tensor<'_>) -> Result<Vec<LayerKeyValues>, String> {
    let shape = Layer {
        kv_heads: run.spec().dim(2),
        head_dim: run.spec().dim(4),
    };
    let half = shape.kv_heads * run.spec().dim(3) * shape.head_dim;
    let elements = run.spec().elements();
    let mut all = Vec::new();
    let reserved = all.try_reserve_exact(elements);
    reserved.map_err(|_| {
        let bytes = elements.saturating_mul(size_of::<f32>());
        Error::Memory { bytes }.to_string()
    })?;
    all.resize(elements, 0.0);
    dequantise(run, &mut all)?;
    let all = Arc::new(all);
    let layers = (0..run.spec().dim(0)).map(|layer| {
        let first = 2 * layer * half;
        LayerKeyValues {
            shape,
            keys: Numbers::of(&all, first..first + half),
            values: Numbers::of(&all, first + half..first + 2 * half),
            gate: 0.0,
        }
    });
    Ok(layers.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A prefix of a decoder, its layers told apart by their gates.
    fn of_decoder(layers: &[usize]) -> KeyValues {
        let layer = |&index: &usize| {
            let shape = Layer {
                kv_heads: 1,
                head_dim: 1,
            };
            let layer = LayerKeyValues {
                shape,
                keys: vec![0.0].into(),
                values: vec![0.0].into(),
                gate: index as f32,
            };
            (index, layer)
        };
        KeyValues {
            tokens: 1,
            positions: Positions::DecoderAfterPrompt,
            layers: layers.iter().map(layer).collect(),
        }
    }

    #[test]
    fn layers_of_a_decoder_take_their_places_among_all() {
        let mut prefix = of_decoder(&[0, 1]);
        prefix.take_places(&[2, 4]).unwrap();
        let found = prefix
            .layers
            .iter()
            .map(|(&index, layer)| (index, layer.gate));
        assert_eq!(found.collect::<Vec<_>>(), [(2, 0.0), (4, 1.0)]);
        let mut other = KeyValues {
            positions: Positions::AfterPrompt,
            ..of_decoder(&[0, 1])
        };
        other.take_places(&[]).unwrap();
        assert!(other.layers.keys().eq(&[0, 1]));
        for (layers, own, reason) in [
            (&[0, 1][..], &[][..], "a decoder behind an encoder"),
            (
                &[0, 1],
                &[2, 4, 6],
                "2 layers, and the decoder of this base has 3",
            ),
        ] {
            let refused = of_decoder(layers).take_places(own).unwrap_err();
            assert!(refused.contains(reason), "{refused}");
        }
    }
}
