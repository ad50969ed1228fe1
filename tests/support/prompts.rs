//! Adapters of every form, head and answer over a base.

use preface_graph::{Base, Kind};
use preface_trainer::{
    adapter::Adapter,
    form::{Form, Moves, Place},
};
use serde_json::json;

use crate::support::adapters::{CLASSES, adapter};

/// A prompt in every way in which one enters a base: both forms, behind the text, and gated in the upper layers.
fn forms(base: &Base) -> Vec<Form> {
    let described = &base.description;
    let mut forms = Vec::new();
    for kind in &described.forms {
        let form = Form::of(*kind, 3, described);
        forms.push(form.clone());
        match form {
            Form::Embeddings { tokens, hidden, .. } => forms.push(Form::Embeddings {
                tokens,
                hidden,
                place: Place::After,
            }),
            Form::KeyValues { tokens, layers, .. } => {
                let first_layer = layers.len() / 2;
                forms.push(Form::KeyValues {
                    tokens,
                    first_layer,
                    layers: layers[first_layer..].to_vec(),
                    gated: true,
                    moves: Moves::Nothing,
                });
            }
        }
    }
    forms
}

/// A linear head on every form.
pub fn linear(base: &Base) -> Vec<Adapter> {
    let forms = forms(base).into_iter();
    forms.map(|form| adapter(base, &form, json!({}))).collect()
}

/// The base's own logits behind every form, read as words for the labels; none where the base has none.
pub fn spoken(base: &Base) -> Vec<Adapter> {
    let described = &base.description;
    let logits = described.logits.as_ref();
    let cannot = described.kind == Kind::Encoder && described.mask_token.is_none();
    if cannot || logits.is_none() {
        return Vec::new();
    }
    let masked = described.kind == Kind::Encoder;
    let words = json!({
        "head": {"kind": "verbaliser", "classes": CLASSES, "hidden": 0},
        "verbaliser": [[5], [17, 40], [9, 88, 3]],
        "pooling": if masked { "mask" } else { "last" },
        "template": if masked { "{mask} says {text}" } else { "{text}" },
    });
    let forms = forms(base).into_iter();
    let spoken = forms.map(|form| adapter(base, &form, words.clone()));
    let mut adapters: Vec<Adapter> = spoken.collect();
    if masked {
        let rows = json!({"pooling": "mask", "template": "{text} or {mask}?"});
        adapters.push(adapter(base, &self::forms(base)[0], rows));
    }
    adapters
}

/// Every head that the runtime has, and every answer, on one form.
pub fn every_answer(base: &Base) -> Vec<Adapter> {
    let hidden = base.description.hidden;
    let head = |kind: &str| json!({"kind": kind, "classes": CLASSES, "hidden": hidden});
    let changes = [
        json!({"head": head("label-text")}),
        json!({"head": {"kind": "factored-linear", "classes": CLASSES, "hidden": hidden, "rank": 2}}),
        json!({"answer": {"kind": "labels", "threshold": 0.0}}),
        json!({"head": head("token-linear"), "answer": {"kind": "tags"}, "labels": ["B-x", "I-x", "O"]}),
        json!({"inputs": "pair", "template": "is it that {text}?"}),
        json!({"pooling": "first"}),
        json!({"pooling": "last", "template": "they say {text}."}),
    ];
    let form = &forms(base)[0];
    changes
        .into_iter()
        .map(|changes| adapter(base, form, changes))
        .collect()
}
