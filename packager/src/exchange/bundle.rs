//! From a verified bundle back to an adapter: its numbers as a device has them, after quantisation.

use std::path::Path;

use preface_bundle::{Form as BundleForm, HeadKind, Manifest, Role, Tensor, VerifiedBundle};
use serde_json::{Value, json};

use super::foreign;
use crate::{Adapter, Description, Error};

/// The adapter of a bundle that was read from `path`.
///
/// # Errors
/// [`Error::Foreign`] for a form that is not known; [`Error::Field`] for a description that no adapter has.
pub fn adapter_of(path: &Path, bundle: &VerifiedBundle<'_>) -> Result<Adapter, Error> {
    let manifest = bundle.manifest();
    let read =
        |tensor: Option<Tensor<'_>>| tensor.map_or(Ok(Vec::new()), |tensor| numbers(path, &tensor));
    let classes = usize::from(manifest.head.classes);
    let biased = !matches!(
        manifest.head.kind,
        HeadKind::Verbaliser | HeadKind::Generation
    );
    let mut bias = read(bundle.tensor(Role::HeadBias))?;
    if biased && bias.is_empty() {
        let inner = match manifest.head.kind {
            HeadKind::TanhLinear => bundle
                .tensors_of(Role::HeadFactor)
                .next()
                .map_or(0, |factor| factor.spec().dim(1)),
            _ => 0,
        };
        bias = vec![0.0; classes + inner];
    }
    let mut factors = bundle.tensors_of(Role::HeadFactor);
    let (form, prompt) = match manifest.form {
        BundleForm::Embeddings { tokens, hidden } => {
            let form = json!({"kind": "embeddings", "tokens": tokens, "hidden": hidden});
            (form, read(bundle.tensor(Role::Embeddings))?)
        }
        BundleForm::KeyValues { tokens, .. } => key_values(path, bundle, tokens)?,
        form => {
            return Err(foreign(
                path,
                format!("its form {} is not known; update preface", form.name()),
            ));
        }
    };
    let head_factors = [read(factors.next())?, read(factors.next())?];
    let rank = head_factors[0]
        .len()
        .checked_div(classes)
        .filter(|rank| *rank > 0);
    let card = card(manifest, form, rank);
    Ok(Adapter {
        description: Description::of_json(path, card.to_string().as_bytes())?,
        prompt,
        gates: read(bundle.tensor(Role::Gate))?,
        head_weight: read(bundle.tensor(Role::HeadWeight))?,
        head_bias: bias,
        head_factors,
    })
}

fn card(manifest: &Manifest<'_>, form: Value, rank: Option<usize>) -> Value {
    let receipt: Value = manifest
        .receipt
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_else(|| json!({}));
    let own = match form["kind"] == "embeddings" {
        true => "prompt-tuning",
        false => "prefix-tuning",
    };
    let mut card = json!({
        "format": 2,
        "method": receipt["method"].as_str().unwrap_or(own),
        "form": form,
        "head": {"kind": manifest.head.kind.name(), "classes": manifest.head.classes, "hidden": manifest.head.hidden, "rank": rank},
        "labels": manifest.labels.iter().collect::<Vec<_>>(),
        "template": manifest.template,
        "pooling": manifest.pooling.map_or("last", |pooling| pooling.name()),
        "positions": manifest.positions.name(),
        "base_id": manifest.base_id.to_string(),
        "tokenizer_id": manifest.tokenizer_id.to_string(),
    });
    if let Some(verbaliser) = &manifest.verbaliser {
        let ids: Vec<Vec<u32>> = verbaliser.iter().map(Iterator::collect).collect();
        card["verbaliser"] = json!(ids);
    }
    if let Some(limits) = &manifest.decode_limits {
        let stops: Vec<u32> = limits.stop_ids().collect();
        card["decode"] = json!({"most_tokens": limits.max_tokens, "stop_ids": stops});
    }
    card
}

/// Form and rows `[tokens, layers * 2 * kv_heads * head_dim]` of the layers' keys and values.
fn key_values(
    path: &Path,
    bundle: &VerifiedBundle<'_>,
    tokens: u16,
) -> Result<(Value, Vec<f32>), Error> {
    let mut layers = Vec::new();
    let mut rows = vec![Vec::new(); tokens.into()];
    for run in bundle.tensors_of(Role::KeyValues) {
        let spec = run.spec();
        let [count, kv_heads, head_dim] = [0, 2, 4].map(|axis| spec.dim(axis));
        layers.extend(std::iter::repeat_n(
            json!({"kv_heads": kv_heads, "head_dim": head_dim}),
            count,
        ));
        let values = numbers(path, &run)?;
        for head in values.chunks_exact((usize::from(tokens) * head_dim).max(1)) {
            for (row, values) in rows.iter_mut().zip(head.chunks_exact(head_dim.max(1))) {
                row.extend_from_slice(values);
            }
        }
    }
    let first = bundle
        .tensors_of(Role::KeyValues)
        .next()
        .map_or(0, |run| run.spec().layer);
    let gated = bundle.tensor(Role::Gate).is_some();
    let form = json!({"kind": "key-values", "tokens": tokens, "first_layer": first, "layers": layers, "gated": gated});
    Ok((form, rows.concat()))
}

fn numbers(path: &Path, tensor: &Tensor<'_>) -> Result<Vec<f32>, Error> {
    let mut numbers = vec![0.0; tensor.spec().elements()];
    tensor
        .dequantise(&mut numbers)
        .map_err(|source| foreign(path, source.to_string()))?;
    Ok(numbers)
}
