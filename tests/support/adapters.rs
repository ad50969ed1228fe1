//! Adapters that nobody trained.

use std::collections::BTreeMap;

use preface_graph::Base;
use preface_trainer::{
    adapter::{Adapter, Card},
    form::{Form, Prompt},
};
use serde_json::{Value, json};

/// Labels of every adapter.
pub const CLASSES: usize = 3;

/// An adapter of numbers that look random: prompts as large as embeddings are, a head that tells labels apart.
pub fn adapter(base: &Base, form: &Form, changes: Value) -> Adapter {
    let description = &base.description;
    let numbers = |count: usize, scale: f32, salt: f32| -> Vec<f32> {
        (0..count)
            .map(|index| scale * (index as f32 * 1.37 + salt).sin())
            .collect()
    };
    let mut card = json!({
        "format": 2, "method": if form.slots() > 0 { "prompt-tuning" } else { "prefix-tuning" }, "form": form,
        "head": {"kind": "linear", "classes": CLASSES, "hidden": description.hidden},
        "labels": (0..CLASSES).map(|class| format!("label-{class}")).collect::<Vec<_>>(),
        "template": "{text}", "pooling": "mean", "positions": form.positions(description),
        "base_id": description.base_id, "tokenizer_id": description.tokenizer_id, "probes": [], "metrics": BTreeMap::<String, f64>::new(),
        "token_budget": {"prompt": form.tokens(), "longest": 9, "typical": 5, "positions": description.max_positions},
        "receipt": {"seed": 0, "epochs": 1, "best_epoch": 1, "learning_rate": 0.1, "head_learning_rate": 0.1, "batch": 1,
                    "examples": 1, "data_sha256": "00".repeat(32), "dev_sha256": "00".repeat(32), "threads": 1, "version": "0"},
    });
    for (field, value) in changes.as_object().unwrap() {
        card[field] = value.clone();
    }
    let card: Card = serde_json::from_value(card).unwrap();
    let tensors = form
        .shapes()
        .iter()
        .enumerate()
        .map(|(index, shape)| numbers(shape.iter().product(), 0.5, index as f32))
        .collect();
    let (hidden, rank) = (description.hidden, card.head.rank.unwrap_or(0));
    let bias = numbers(CLASSES, 0.1, 0.1);
    let head = match &*card.head.kind {
        "label-text" => vec![bias],
        "verbaliser" => Vec::new(),
        "factored-linear" => vec![
            numbers(CLASSES * rank, 0.5, 0.7),
            numbers(rank * hidden, 0.2, 0.3),
            bias,
        ],
        _ => vec![numbers(CLASSES * hidden, 0.2, 0.7), bias],
    };
    Adapter {
        card,
        prompt: Prompt {
            form: form.clone(),
            tensors,
        },
        head,
    }
}
