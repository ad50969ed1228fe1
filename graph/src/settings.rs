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
}

impl Settings {
    /// Reads `config.json` in `folder` or above it, where there is one, and the bytes of `tokenizer.json`.
    pub(crate) fn read(folder: &Path, tokenizer: &[u8]) -> Self {
        let mut paths = ["config.json", "../config.json"]
            .iter()
            .map(|name| folder.join(name));
        let config =
            paths.find_map(|path| serde_json::from_slice::<Value>(&fs::read(path).ok()?).ok());
        let config = config.unwrap_or_default();
        let tokenizer: Value = serde_json::from_slice(tokenizer).unwrap_or_default();
        let padding = config.get("pad_token_id").and_then(Value::as_u64);
        let padding = padding.or_else(|| tokenizer.pointer("/padding/pad_id")?.as_u64());
        let mut positions = ["max_position_embeddings", "n_positions"].iter();
        let positions = positions.find_map(|key| config.get(key)?.as_u64());
        Self {
            padding: padding.and_then(|id| u32::try_from(id).ok()),
            max_positions: positions.and_then(|most| usize::try_from(most).ok()),
        }
    }

    /// The smallest id that is not the padding's: it stands in the places of a prompt.
    pub(crate) fn placeholder(self) -> u32 {
        u32::from(self.padding == Some(0))
    }
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
}
