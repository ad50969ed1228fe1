//! Texts to token ids, as the base's own tokenizer makes them.

use tokenizers::{EncodeInput, InputSequence, Tokenizer};

use crate::Error;

/// The tokenizer of a base, without its padding and truncation: rows are padded where batches are made, and a text
/// that is too long is refused where its line is known.
pub struct Tokens {
    tokenizer: Tokenizer,
}

/// Token ids of a text or a pair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    /// Token ids, special tokens included.
    pub ids: Vec<i64>,
    /// The segment of each token.
    pub types: Vec<i64>,
    /// Where each word's first token is, where the text came as words.
    pub words: Vec<usize>,
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
        Ok(self.sequence(text.into(), true)?.ids)
    }

    /// The ids of `text` alone.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn plain(&self, text: &str) -> Result<Vec<i64>, Error> {
        Ok(self.sequence(text.into(), false)?.ids)
    }

    /// A text, or a pair as the tokenizer's own template joins them, with the special tokens.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn texts(&self, text: &str, text2: Option<&str>) -> Result<Sequence, Error> {
        match text2 {
            None => self.sequence(text.into(), true),
            Some(text2) => self.sequence((text, text2).into(), true),
        }
    }

    /// Words with the special tokens around them, and where each word begins. A word of which the tokenizer leaves
    /// nothing has no beginning: `usize::MAX`.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn words(&self, words: &[&str]) -> Result<Sequence, Error> {
        let input = EncodeInput::Single(InputSequence::PreTokenized(words.into()));
        let encoding = self
            .tokenizer
            .encode(input, true)
            .map_err(|error| Error::Tokenizer(error.to_string()))?;
        let mut beginnings = vec![usize::MAX; words.len()];
        for (at, word) in encoding.get_word_ids().iter().enumerate().rev() {
            if let Some(beginning) = word.and_then(|word| beginnings.get_mut(word as usize)) {
                *beginning = at;
            }
        }
        Ok(Sequence {
            ids: wide(encoding.get_ids()),
            types: wide(encoding.get_type_ids()),
            words: beginnings,
        })
    }

    /// The first `tokens` tokens of `text` as text.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn beginning<'a>(&self, text: &'a str, tokens: usize) -> Result<&'a str, Error> {
        let encoding = self
            .tokenizer
            .encode(text, false)
            .map_err(|error| Error::Tokenizer(error.to_string()))?;
        let ends = encoding.get_offsets().iter().take(tokens);
        let end = ends.map(|&(_, end)| end).max().unwrap_or(0);
        Ok(text.get(..end).unwrap_or(text))
    }

    /// The text of `ids`, special tokens left out.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn text(&self, ids: &[i64]) -> Result<String, Error> {
        let ids: Vec<u32> = ids
            .iter()
            .filter_map(|&id| u32::try_from(id).ok())
            .collect();
        self.tokenizer
            .decode(&ids, true)
            .map_err(|error| Error::Tokenizer(error.to_string()))
    }

    /// The token with this id, as the vocabulary writes it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    fn sequence(&self, input: EncodeInput<'_>, special: bool) -> Result<Sequence, Error> {
        let encoding = self
            .tokenizer
            .encode_fast(input, special)
            .map_err(|error| Error::Tokenizer(error.to_string()))?;
        Ok(Sequence {
            ids: wide(encoding.get_ids()),
            types: wide(encoding.get_type_ids()),
            words: Vec::new(),
        })
    }
}

fn wide(ids: &[u32]) -> Vec<i64> {
    ids.iter().map(|&id| i64::from(id)).collect()
}
