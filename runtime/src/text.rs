//! From a text to token ids.

use tokenizers::Tokenizer;

use crate::{Error, Image};

/// What happens to a text that does not fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overlength {
    /// It is refused.
    #[default]
    Refuse,
    /// Its end is cut off; the last token, the separator, is kept.
    Truncate,
}

impl Overlength {
    /// Makes `ids` at most `limit` long, or refuses.
    pub(crate) fn fit(self, ids: &mut Vec<u32>, limit: usize) -> Result<(), Error> {
        let tokens = ids.len();
        match (ids.last(), limit.checked_sub(1)) {
            (None, _) => Err(Error::Empty),
            _ if tokens <= limit => Ok(()),
            (Some(&last), Some(kept)) if self == Self::Truncate => {
                ids.truncate(kept);
                ids.push(last);
                Ok(())
            }
            _ => Err(Error::TooLong { tokens, limit }),
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
        let mut tokenizer = Tokenizer::from_bytes(image.tokenizer()).map_err(failed)?;
        tokenizer
            .with_padding(None)
            .with_truncation(None)
            .map_err(failed)?;
        Ok(Self(tokenizer))
    }

    /// Token ids of `text` with special tokens.
    pub fn ids(&self, text: &str) -> Result<Vec<u32>, Error> {
        let encoding = self.0.encode_fast(text, true);
        let encoding = encoding.map_err(|source| Error::Tokenizer {
            action: "encoding a text",
            source,
        })?;
        Ok(encoding.get_ids().to_vec())
    }
}

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

    /// Puts `text` in its place.
    pub fn render(&self, text: &str) -> String {
        [&self.before, text, &self.after].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_refused_or_cut() {
        let table = [
            (Overlength::Refuse, 5, Some(vec![1, 2, 3, 4])),
            (Overlength::Refuse, 4, Some(vec![1, 2, 3, 4])),
            (Overlength::Refuse, 3, None),
            (Overlength::Truncate, 4, Some(vec![1, 2, 3, 4])),
            (Overlength::Truncate, 3, Some(vec![1, 2, 4])),
            (Overlength::Truncate, 1, Some(vec![4])),
            (Overlength::Truncate, 0, None),
        ];
        for (overlength, limit, expected) in table {
            let mut ids = vec![1, 2, 3, 4];
            let fitted = overlength.fit(&mut ids, limit).ok().map(|()| ids);
            assert_eq!(fitted, expected, "{overlength:?} {limit}");
        }
        assert!(matches!(
            Overlength::Truncate.fit(&mut Vec::new(), 4),
            Err(Error::Empty)
        ));
    }

    #[test]
    fn a_template_holds_its_text() {
        let template = Template::parse("is this {text} or {not}?").unwrap();
        assert_eq!(template.render("{text}"), "is this {text} or {not}?");
        assert_eq!(Template::parse("no place"), None);
    }
}
