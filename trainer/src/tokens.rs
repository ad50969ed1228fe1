//! Texts to token ids, as the base's own tokenizer makes them.

use tokenizers::Tokenizer;

use crate::Error;

/// The tokenizer of a base, without its padding and truncation: rows are padded where batches are made, and a text
/// that is too long is refused where its line is known.
pub struct Tokens {
    tokenizer: Tokenizer,
    /// The id that fills rows.
    pub padding: i64,
    /// An id that is not the padding: it stands in the places of a prompt.
    pub placeholder: i64,
}

impl Tokens {
    /// Reads the bytes of `tokenizer.json`.
    ///
    /// # Errors
    /// When they are no tokenizer.
    pub fn read(bytes: &[u8]) -> Result<Self, Error> {
        let mut tokenizer =
            Tokenizer::from_bytes(bytes).map_err(|error| Error::Tokenizer(error.to_string()))?;
        let declared = tokenizer.get_padding().map(|padding| padding.pad_id);
        let known = ["[PAD]", "<pad>", "<|endoftext|>", "</s>"];
        let padding =
            declared.or_else(|| known.iter().find_map(|token| tokenizer.token_to_id(token)));
        let padding = i64::from(padding.unwrap_or(0));
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|error| Error::Tokenizer(error.to_string()))?;
        Ok(Self {
            tokenizer,
            padding,
            placeholder: i64::from(padding == 0),
        })
    }

    /// The ids of `text` with the special tokens around it.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>, Error> {
        self.ids(text, true)
    }

    /// The ids of `text` alone.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn plain(&self, text: &str) -> Result<Vec<i64>, Error> {
        self.ids(text, false)
    }

    fn ids(&self, text: &str, special: bool) -> Result<Vec<i64>, Error> {
        let encoding = self
            .tokenizer
            .encode_fast(text, special)
            .map_err(|error| Error::Tokenizer(error.to_string()))?;
        Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
    }
}
