//! Texts to token ids, as the base's own tokenizer makes them.

use tokenizers::Tokenizer;

use crate::Error;

/// The tokenizer of a base, without its padding and truncation: rows are padded where batches are made, and a text
/// that is too long is refused where its line is known.
pub struct Tokens {
    tokenizer: Tokenizer,
}

impl Tokens {
    /// Reads the bytes of `tokenizer.json`.
    ///
    /// # Errors
    /// When they are no tokenizer.
    pub fn read(bytes: &[u8]) -> Result<Self, Error> {
        let mut tokenizer =
            Tokenizer::from_bytes(bytes).map_err(|error| Error::Tokenizer(error.to_string()))?;
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|error| Error::Tokenizer(error.to_string()))?;
        Ok(Self { tokenizer })
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
