//! What the files beside a model say that its graph does not.

use std::{fs, path::Path};

use serde_json::Value;

/// Settings of a base folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The id that fills rows, where one is named.
    pub padding: Option<u32>,
    /// Tokens that the positions leave room for, where the configuration says so.
    pub max_positions: Option<usize>,
    /// The token that hides another, where the tokenizer has one.
    pub mask_token: Option<u32>,
    /// The token that ends a text, where one is named or known.
    pub end_token: Option<u32>,
    /// The token that a decoder begins with behind an encoder, where one is named.
    pub start_token: Option<u32>,
}

/// What hides a token from a masked language model.
const MASK_TOKENS: &[&str] = &["[MASK]", "<mask>"];
/// What ends a text where no configuration says so.
const END_TOKENS: &[&str] = &["</s>", "<|endoftext|>", "[SEP]"];

impl Settings {
    /// Reads `config.json` and `generation_config.json` in `folder` or above it, where they are, and the bytes of
    /// `tokenizer.json`.
    pub(crate) fn read(folder: &Path, tokenizer: &[u8]) -> Self {
        let config = beside(folder, "config.json");
        let generation = beside(folder, "generation_config.json");
        let tokenizer: Value = serde_json::from_slice(tokenizer).unwrap_or_default();
        let padding = config.get("pad_token_id").and_then(id);
        let padding = padding.or_else(|| id(tokenizer.pointer("/padding/pad_id")?));
        let mut positions = ["max_position_embeddings", "n_positions"].iter();
        let positions = positions.find_map(|key| config.get(key)?.as_u64());
        let named = [config, generation];
        let mut start_token = named.iter();
        let start_token = start_token.find_map(|file| id(file.get("decoder_start_token_id")?));
        let mut end_token = named.iter();
        let end_token = end_token.find_map(|file| match file.get("eos_token_id")? {
            Value::Array(ids) => ids.iter().find_map(id),
            single => id(single),
        });
        let known = |names: &[&str]| names.iter().find_map(|name| token(&tokenizer, name));
        Self {
            padding,
            max_positions: positions.and_then(|most| usize::try_from(most).ok()),
            mask_token: known(MASK_TOKENS),
            end_token: end_token.or_else(|| known(END_TOKENS)),
            start_token,
        }
    }

    /// The smallest id that is not the padding's: it stands in the places of a prompt.
    pub(crate) fn placeholder(self) -> u32 {
        u32::from(self.padding == Some(0))
    }
}

fn beside(folder: &Path, name: &str) -> Value {
    let mut paths = [folder.join(name), folder.join("..").join(name)].into_iter();
    let file = paths.find_map(|path| serde_json::from_slice(&fs::read(path).ok()?).ok());
    file.unwrap_or_default()
}

fn id(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

/// The id of a token in `tokenizer.json`: an added one, or one of the model's own vocabulary.
fn token(tokenizer: &Value, content: &str) -> Option<u32> {
    let is = |value: Option<&Value>| value.and_then(Value::as_str) == Some(content);
    let added = tokenizer.get("added_tokens").and_then(Value::as_array);
    let added = added.into_iter().flatten();
    let added = added.filter(|entry| is(entry.get("content")));
    let added = added.filter_map(|entry| id(entry.get("id")?)).next();
    added.or_else(|| match tokenizer.pointer("/model/vocab")? {
        Value::Object(ids) => id(ids.get(content)?),
        Value::Array(pieces) => {
            let position = pieces.iter().position(|piece| is(piece.get(0)))?;
            u32::try_from(position).ok()
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_placeholder_is_not_the_padding() {
        let table = [
            ("{}", "{}", None, 0),
            (r#"{"pad_token_id": 0}"#, "{}", Some(0), 1),
            (r#"{"pad_token_id": 1}"#, "{}", Some(1), 0),
            ("{}", r#"{"padding": {"pad_id": 0}}"#, Some(0), 1),
            (r#"{"pad_token_id": null}"#, r#"{"padding": null}"#, None, 0),
        ];
        let folder = tempfile::tempdir().unwrap();
        for (config, tokenizer, padding, placeholder) in table {
            fs::write(folder.path().join("config.json"), config).unwrap();
            let settings = Settings::read(folder.path(), tokenizer.as_bytes());
            assert_eq!(
                (settings.padding, settings.placeholder()),
                (padding, placeholder),
                "{config} {tokenizer}"
            );
        }
    }

    #[test]
    fn special_tokens_are_found_by_what_they_are() {
        let bert = r#"{"added_tokens": [{"id": 102, "content": "[SEP]"}, {"id": 103, "content": "[MASK]"}]}"#;
        let unigram = r#"{"model": {"vocab": [["<pad>", 0.0], ["</s>", 0.0], ["a", -1.0]]}}"#;
        let bpe = r#"{"model": {"vocab": {"<|endoftext|>": 7}}, "added_tokens": [{"id": 9, "content": "<mask>"}]}"#;
        let table = [
            ("{}", "{}", bert, (Some(103), Some(102))),
            (r#"{"eos_token_id": 5}"#, "{}", bert, (Some(103), Some(5))),
            ("{}", r#"{"eos_token_id": [6, 8]}"#, bpe, (Some(9), Some(6))),
            ("{}", "{}", unigram, (None, Some(1))),
            (r#"{"eos_token_id": null}"#, "{}", bpe, (Some(9), Some(7))),
            ("{}", "{}", "{}", (None, None)),
        ];
        let folder = tempfile::tempdir().unwrap();
        for (config, generation, tokenizer, expected) in table {
            fs::write(folder.path().join("config.json"), config).unwrap();
            fs::write(folder.path().join("generation_config.json"), generation).unwrap();
            let settings = Settings::read(folder.path(), tokenizer.as_bytes());
            let found = (settings.mask_token, settings.end_token);
            assert_eq!(found, expected, "{config} {generation} {tokenizer}");
        }
    }
}
