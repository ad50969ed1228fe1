//! What several tests of this module need.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use super::{draw::Draws, pieces::byte_of_character};
use crate::allocations;

/// Numbers between -1 and 1 that look random; the same for the same seed.
pub fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut draws = Draws::new(seed);
    (0..count)
        .map(|_| (2.0 * draws.unit() - 1.0) as f32)
        .collect()
}

/// How often `run` asks for memory with what `make` has just made: the least of many times, as other tests may allocate
/// beside it.
pub fn allocations_of<T>(make: impl Fn() -> T, run: impl Fn(&mut T)) -> u64 {
    let round = |_| {
        let mut made = make();
        let before = allocations::calls();
        run(&mut made);
        allocations::calls() - before
    };
    (0..50).map(round).min().unwrap_or(0)
}

/// A tokenizer of these words, which stand apart.
pub fn word_level(words: &[&str]) -> Tokenizer {
    tokenizer(words.iter().map(|word| word.to_string()), &Value::Null)
}

/// A byte-level tokenizer of these words, and behind them every byte.
pub fn byte_level(words: &[&str]) -> Tokenizer {
    let characters: Vec<char> = (0u32..0x180)
        .filter_map(|number| Some((byte_of_character(char::from_u32(number)?)?, number)))
        .collect::<BTreeMap<u8, u32>>()
        .into_values()
        .filter_map(char::from_u32)
        .collect();
    let written = |word: &&str| {
        word.bytes()
            .map(|byte| characters[usize::from(byte)])
            .collect()
    };
    let bytes = characters.iter().map(|character| character.to_string());
    let decoder = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    tokenizer(words.iter().map(written).chain(bytes), &decoder)
}

fn tokenizer(tokens: impl Iterator<Item = String>, decoder: &Value) -> Tokenizer {
    let vocabulary: Map<String, Value> = tokens.zip((0..).map(Value::from)).collect();
    let model = json!({"type": "WordLevel", "vocab": vocabulary, "unk_token": ""});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": decoder, "model": model,
    });
    serde_json::from_value(tokenizer).unwrap()
}
