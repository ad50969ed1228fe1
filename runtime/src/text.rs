//! From a text to token ids.

use tokenizers::{EncodeInput, Encoding, InputSequence, Tokenizer};

use crate::{Error, Image, generation::pieces::Pieces, tokenizer};

/// What happens to a text that does not fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overlength {
    /// It is refused.
    #[default]
    Refuse,
    /// Its end is cut off; what is around it, and the second text of a pair, are kept.
    Truncate,
}

/// A text, or a pair of them, as the base reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids, special tokens included.
    ids: Vec<u32>,
    /// Token types: of a pair, which of the two a token is of. None where all are 0.
    types: Vec<u32>,
    /// For each word of a text to be tagged the place of its first token; `None` where it has none.
    words: Vec<Option<usize>>,
}

impl Encoded {
    /// A single text given as token ids, special tokens included.
    pub fn of_ids(ids: &[u32]) -> Self {
        Self {
            ids: ids.to_vec(),
            ..Self::default()
        }
    }

    /// Room for a text of so many tokens and words, filled with [`Encoded::set`].
    pub fn with_room(tokens: usize) -> Self {
        Self {
            ids: Vec::with_capacity(tokens),
            types: Vec::with_capacity(tokens),
            words: Vec::with_capacity(tokens),
        }
    }

    /// Puts another text in place of this one; allocates nothing where the room is large enough.
    ///
    /// `types` has the token types of a pair, and nothing where all are 0; `words` has for each word of a text to be
    /// tagged the place of its first token, `None` where it has none.
    pub fn set(
        &mut self,
        ids: &[u32],
        types: &[u32],
        words: impl IntoIterator<Item = Option<usize>>,
    ) {
        self.ids.clear();
        self.ids.extend_from_slice(ids);
        self.types.clear();
        self.types.extend_from_slice(types);
        self.words.clear();
        self.words.extend(words);
    }

    fn of(encoding: &Encoding) -> Self {
        let types = encoding.get_type_ids();
        let some = types.iter().any(|&kind| kind != 0);
        Self {
            types: if some { types.to_vec() } else { Vec::new() },
            ..Self::of_ids(encoding.get_ids())
        }
    }

    /// How many tokens there are, special tokens included.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The token ids, special tokens included.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The token types; none where all are 0.
    pub fn types(&self) -> &[u32] {
        &self.types
    }

    /// For each word of a text to be tagged the place of its first token; `None` where it has none.
    pub fn words(&self) -> &[Option<usize>] {
        &self.words
    }

    /// Refuses what is empty or longer than `limit`.
    pub(crate) fn check(&self, limit: usize) -> Result<(), Error> {
        match self.len() {
            0 => Err(Error::Empty),
            tokens if tokens > limit => Err(Error::TooLong {
                tokens,
                limit,
                can_be_cut: false,
            }),
            _ => Ok(()),
        }
    }
}

/// The base's tokenizer, without padding and truncation of its own.
#[derive(Debug)]
pub(crate) struct Encoder(Tokenizer);

impl Encoder {
    pub fn open(image: &Image) -> Result<Self, Error> {
        let failed = |source| Error::Tokenizer {
            action: "reading tokenizer.json",
            source,
        };
        let mut tokenizer = tokenizer::read(image.tokenizer()).map_err(failed)?;
        tokenizer
            .with_padding(None)
            .with_truncation(None)
            .map_err(failed)?;
        Ok(Self(tokenizer))
    }

    /// A text, or two joined as the tokenizer joins pairs, with special tokens.
    pub fn texts(&self, text: &str, second: Option<&str>) -> Result<Encoded, Error> {
        let encoding = match second {
            None => self.0.encode_fast(text, true),
            Some(second) => self.0.encode_fast((text, second), true),
        };
        Ok(Encoded::of(&encoding.map_err(failed)?))
    }

    /// Words with special tokens, and where each word begins.
    pub fn words(&self, words: &[&str]) -> Result<Encoded, Error> {
        let input = EncodeInput::Single(InputSequence::from(words));
        let encoding = self.0.encode(input, true).map_err(failed)?;
        let mut places = vec![None; words.len()];
        for (place, word) in encoding.get_word_ids().iter().enumerate().rev() {
            let slot = word.and_then(|word| places.get_mut(usize::try_from(word).ok()?));
            slot.into_iter().for_each(|slot| *slot = Some(place));
        }
        Ok(Encoded {
            words: places,
            ..Encoded::of(&encoding)
        })
    }

    /// The spelling of a token, as a text that becomes it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.0.id_to_token(id)
    }

    /// What the tokens below `vocabulary` spell.
    pub fn pieces(&self, vocabulary: usize) -> Result<Pieces, Error> {
        Pieces::of(&self.0, vocabulary)
    }

    /// Where each token of `text` alone ends in it.
    pub fn ends(&self, text: &str) -> Result<Vec<usize>, Error> {
        let encoding = self.0.encode(text, false).map_err(failed)?;
        let ends = encoding.get_offsets().iter().map(|&(_, end)| end);
        Ok(ends.collect())
    }
}

fn failed(source: tokenizers::Error) -> Error {
    Error::Tokenizer {
        action: "encoding a text",
        source,
    }
}

/// Where the mask token goes in a template.
const MASK: &str = "{mask}";

/// The words around an input: a text with one `{text}` in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template {
    before: String,
    after: String,
}

impl Template {
    pub fn parse(template: &str) -> Option<Self> {
        let (before, after) = template.split_once("{text}")?;
        Some(Self {
            before: before.to_owned(),
            after: after.to_owned(),
        })
    }

    /// Whether the mask token stands beside the text.
    pub fn is_masked(&self) -> bool {
        self.before.contains(MASK) || self.after.contains(MASK)
    }

    /// Puts the mask token in its places.
    pub fn set_mask(&mut self, mask: &str) {
        for part in [&mut self.before, &mut self.after] {
            *part = part.replace(MASK, mask);
        }
    }

    /// Puts `text` in its place.
    pub fn render(&self, text: &str) -> String {
        [&self.before, text, &self.after].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_text_takes_the_place_of_one_without_allocating() {
        let mut text = Encoded::with_room(3);
        let room = text.ids.as_ptr();
        text.set(&[1, 2, 3], &[0, 0, 1], [Some(0), None]);
        let whole = (text.ids(), text.types(), text.words());
        assert_eq!(
            whole,
            (&[1, 2, 3][..], &[0, 0, 1][..], &[Some(0), None][..])
        );
        text.set(&[4], &[], []);
        assert_eq!(text, Encoded::of_ids(&[4]));
        assert_eq!(text.ids.as_ptr(), room);
    }

    #[test]
    fn a_template_holds_its_text() {
        let template = Template::parse("is this {text} or {not}?").unwrap();
        assert_eq!(template.render("{text}"), "is this {text} or {not}?");
        assert_eq!(Template::parse("no place"), None);
        let mut masked = Template::parse("{mask}: {text}").unwrap();
        assert_eq!((masked.is_masked(), template.is_masked()), (true, false));
        masked.set_mask("[MASK]");
        assert_eq!(masked.render("{mask}"), "[MASK]: {mask}");
    }
}
