//! What tokens spell, each by itself.

use std::{collections::BTreeMap, iter};

use tokenizers::{Decoder, DecoderWrapper, Tokenizer};

use crate::Error;

/// The bytes that each token of a vocabulary spells, laid one behind the other; special tokens spell nothing, and are
/// no first token.
///
/// A text is what its tokens spell, one behind the other: as the tokenizer decodes it, but where the bytes of byte
/// fallback make no character. The tokenizer then counts every byte in a row of them as wrong, and [`Stream`] only
/// those that are.
///
/// [`Stream`]: super::stream::Stream
#[derive(Debug)]
pub(crate) struct Pieces {
    bytes: Vec<u8>,
    /// Where the piece of each token ends in `bytes`.
    ends: Vec<usize>,
    /// How many of its first bytes each token leaves out where it is the first of a text.
    lost: Vec<u8>,
    /// The other tokens that spell something else where they are the first of a text.
    first: BTreeMap<u32, Box<[u8]>>,
}

impl Pieces {
    /// The pieces of the tokens below `vocabulary`.
    ///
    /// # Errors
    /// When what a token spells depends on tokens behind it.
    pub fn of(tokenizer: &Tokenizer, vocabulary: usize) -> Result<Self, Error> {
        let added = tokenizer.get_added_vocabulary();
        let tokens = (0..).take(vocabulary).map(|id| {
            let token = tokenizer.id_to_token(id);
            token
                .filter(|token| !added.is_special_token(token))
                .unwrap_or_default()
        });
        match tokenizer.get_decoder() {
            Some(DecoderWrapper::ByteLevel(_)) => Ok(Self::of_bytes(tokens)),
            decoder => Self::of_words(tokens.collect(), decoder),
        }
    }

    fn empty() -> Self {
        Self {
            bytes: Vec::new(),
            ends: Vec::new(),
            lost: Vec::new(),
            first: BTreeMap::new(),
        }
    }

    fn push(&mut self, piece: impl IntoIterator<Item = u8>, lost: u8) {
        self.bytes.extend(piece);
        self.ends.push(self.bytes.len());
        self.lost.push(lost);
    }

    /// Tokens whose characters stand for bytes.
    fn of_bytes(tokens: impl Iterator<Item = String>) -> Self {
        let mut pieces = Self::empty();
        for token in tokens {
            let bytes: Option<Vec<u8>> = token.chars().map(byte_of_character).collect();
            pieces.push(bytes.unwrap_or_else(|| token.into_bytes()), 0);
        }
        pieces
    }

    /// Tokens that `decoder` decodes.
    fn of_words(tokens: Vec<String>, decoder: Option<&DecoderWrapper>) -> Result<Self, Error> {
        let bytes = spells_bytes(decoder)?;
        let spelled = spelled_in_the_middle(&tokens, decoder)?;
        let mut pieces = Self::empty();
        for (id, (token, later)) in (0..).zip(tokens.into_iter().zip(spelled)) {
            if let Some(byte) = byte_of_token(&token).filter(|byte| bytes && !byte.is_ascii()) {
                pieces.push([byte], 0);
                continue;
            }
            let first = match token.is_empty() {
                true => token,
                false => decode(decoder, [token])?,
            };
            let lost = later
                .strip_suffix(&*first)
                .and_then(|lost| lost.len().try_into().ok());
            if lost.is_none() {
                pieces.first.insert(id, first.into_bytes().into());
            }
            pieces.push(later.into_bytes(), lost.unwrap_or(0));
        }
        Ok(pieces)
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        let first = self.first.values();
        let first = first.map(|piece| size_of::<(u32, Box<[u8]>)>() + piece.len());
        self.bytes.capacity()
            + self.ends.capacity() * size_of::<usize>()
            + self.lost.capacity()
            + first.sum::<usize>()
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Bytes of the longest piece.
    pub fn longest(&self) -> usize {
        let starts = iter::once(&0).chain(&self.ends);
        let lengths = starts.zip(&self.ends).map(|(start, end)| end - start);
        let first = self.first.values().map(|piece| piece.len());
        lengths.chain(first).max().unwrap_or(0)
    }

    /// What a token spells behind others; nothing where there is no such token.
    pub fn later(&self, id: u32) -> &[u8] {
        let Some((id, &end)) = usize::try_from(id)
            .ok()
            .and_then(|id| Some((id, self.ends.get(id)?)))
        else {
            return &[];
        };
        let start = id.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..end]
    }

    /// What a token spells where it is the first of a text.
    pub fn first(&self, id: u32) -> &[u8] {
        if let Some(piece) = self.first.get(&id) {
            return piece;
        }
        let lost = usize::try_from(id).ok().and_then(|id| self.lost.get(id));
        &self.later(id)[lost.map_or(0, |&lost| lost.into())..]
    }

    /// What a token spells where it is the first of a text that begins with no space.
    pub fn first_trimmed(&self, id: u32) -> &[u8] {
        let piece = self.first(id);
        piece.strip_prefix(b" ").unwrap_or(piece)
    }
}

/// The byte that a character of byte-level tokens stands for (GPT-2's `bytes_to_unicode`): visible characters of
/// Latin-1 for themselves, those from U+0100 on for the other bytes.
pub(super) fn byte_of_character(character: char) -> Option<u8> {
    let number = u32::from(character);
    let byte = match number {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => number,
        0x100..=0x120 => number - 0x100,
        0x121..=0x142 => number - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// The byte that a token of byte fallback, `<0x0A>`, stands for.
fn byte_of_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// Whether `decoder` makes bytes of the tokens of byte fallback.
///
/// # Errors
/// When it decodes a token by those behind it, or a sequence of decoders by the characters of bytes.
fn spells_bytes(decoder: Option<&DecoderWrapper>) -> Result<bool, Error> {
    let refused = |decoder| Err(Error::Spelling { decoder });
    match decoder {
        None => Ok(false),
        Some(DecoderWrapper::BPE(_)) => refused("BPEDecoder"),
        Some(DecoderWrapper::CTC(_)) => refused("CTC"),
        Some(DecoderWrapper::Strip(strip)) if strip.stop > 0 => refused("Strip"),
        Some(DecoderWrapper::ByteLevel(_)) => refused("ByteLevel"),
        Some(DecoderWrapper::ByteFallback(_)) => Ok(true),
        Some(DecoderWrapper::Sequence(sequence)) => {
            let mut bytes = false;
            for decoder in sequence.get_decoders() {
                bytes |= spells_bytes(Some(decoder))?;
            }
            Ok(bytes)
        }
        Some(_) => Ok(false),
    }
}

/// What each token spells between others: all are decoded at once, with a mark between them that no text holds.
fn spelled_in_the_middle(
    tokens: &[String],
    decoder: Option<&DecoderWrapper>,
) -> Result<Vec<String>, Error> {
    const MARK: char = '\u{ffff}';
    let mark = || iter::once(MARK.to_string());
    let marked = tokens
        .iter()
        .flat_map(|token| [token.clone(), MARK.to_string()]);
    let text = decode(decoder, mark().chain(marked))?;
    if text.matches(MARK).count() != tokens.len() + 1 {
        return Err(Error::Spelling {
            decoder: "of this vocabulary",
        });
    }
    let two = decode(decoder, mark().chain(mark()))?;
    let before_mark = two.trim_matches(MARK);
    let spelled = text.split(MARK).skip(1).zip(tokens).map(|(piece, token)| {
        let piece = piece.strip_suffix(before_mark).unwrap_or(piece);
        match token.is_empty() {
            true => String::new(),
            false => piece.to_owned(),
        }
    });
    Ok(spelled.collect())
}

fn decode(
    decoder: Option<&DecoderWrapper>,
    tokens: impl IntoIterator<Item = String>,
) -> Result<String, Error> {
    let tokens: Vec<String> = tokens.into_iter().collect();
    match decoder {
        None => Ok(tokens.join(" ")),
        Some(decoder) => decoder.decode(tokens).map_err(|source| Error::Tokenizer {
            action: "spelling out tokens",
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::{env, fs, io::Write, path::Path};

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::generation::{
        guide::Place,
        stops::Stops,
        stream::Stream,
        testing::{byte_level, word_level},
    };

    /// What a stream makes of the pieces of `ids`.
    fn streamed(pieces: &Pieces, ids: &[u32]) -> String {
        let (mut stream, stops) = (Stream::default(), Stops::default());
        let mut heard = String::new();
        let mut hear = |text: &str| heard.push_str(text);
        let mut place = Place::default();
        for &id in ids {
            stream.push(place.advance(pieces, None, id), &stops, &mut hear);
        }
        stream.end(&stops, &mut hear);
        assert_eq!(heard, stream.text());
        heard
    }

    /// A tokenizer of these tokens with that decoder; the first token is special.
    fn decoded_by(tokens: &[&str], decoder: &Value) -> Tokenizer {
        let vocabulary: serde_json::Map<String, Value> = tokens
            .iter()
            .enumerate()
            .map(|(id, token)| (token.to_string(), id.into()))
            .collect();
        let special = json!({
            "id": 0, "content": tokens[0], "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        });
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [special],
            "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": decoder,
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": tokens[0]},
        });
        serde_json::from_value(tokenizer).unwrap()
    }

    fn metaspace(prepend: &str) -> Value {
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": prepend, "split": true})
    }

    /// As Llama's first tokenizers decode.
    fn sentencepiece() -> Value {
        json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]})
    }

    const TOKENS: [&str; 12] = [
        "<s>", "▁on", "on", "##ly", "▁", "▁▁a", "Ġé", "Ã©", ".", "n't", "<0x0A>", "<0x41>",
    ];

    proptest! {
        #[test]
        fn pieces_make_the_text_that_the_tokenizer_decodes(
            ids in prop::collection::vec(0u32..14, 0..12),
        ) {
            let decoders = [
                Value::Null,
                sentencepiece(),
                metaspace("always"),
                metaspace("never"),
                json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
                json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}),
            ];
            for decoder in decoders {
                let tokenizer = decoded_by(&TOKENS, &decoder);
                let pieces = Pieces::of(&tokenizer, 14).unwrap();
                let decoded = tokenizer.decode(&ids, true).unwrap();
                prop_assert_eq!(streamed(&pieces, &ids), decoded, "{}", decoder);
            }
        }

        #[test]
        fn bytes_of_any_order_make_the_text_that_the_tokenizer_decodes(
            ids in prop::collection::vec(0u32..259, 0..12),
        ) {
            let tokenizer = byte_level(&["é€", " é"]);
            let pieces = Pieces::of(&tokenizer, 259).unwrap();
            let decoded = tokenizer.decode(&ids, true).unwrap();
            prop_assert_eq!(streamed(&pieces, &ids), decoded);
        }
    }

    #[test]
    fn bytes_of_fallback_make_characters() {
        let tokens = ["<s>", "<0xE2>", "<0x82>", "<0xAC>", "▁on"];
        let pieces = Pieces::of(&decoded_by(&tokens, &sentencepiece()), 5).unwrap();
        assert_eq!(streamed(&pieces, &[0, 4, 1, 2, 3, 4]), "on€ on");
        assert_eq!(streamed(&pieces, &[1, 2, 4]), "\u{fffd} on");
    }

    #[test]
    fn a_decoder_that_looks_ahead_is_refused() {
        let strip = json!({"type": "Strip", "content": " ", "start": 0, "stop": 1});
        for decoder in [
            json!({"type": "BPEDecoder", "suffix": "</w>"}),
            json!({"type": "CTC", "pad_token": "-", "word_delimiter_token": "|", "cleanup": true}),
            json!({"type": "Sequence", "decoders": [{"type": "Fuse"}, strip]}),
        ] {
            let refused = Pieces::of(&decoded_by(&TOKENS, &decoder), 12).unwrap_err();
            assert!(matches!(refused, Error::Spelling { .. }), "{refused}");
        }
    }

    #[test]
    fn a_first_token_may_be_spelled_otherwise() {
        let wordpiece = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
        let pieces = Pieces::of(&decoded_by(&TOKENS, &wordpiece), 12).unwrap();
        assert_eq!(
            (pieces.first(3), pieces.later(3)),
            (&b"##ly"[..], &b"ly"[..])
        );
        let pieces = Pieces::of(&word_level(&["on"]), 1).unwrap();
        assert_eq!(
            (pieces.first(0), pieces.later(0)),
            (&b"on"[..], &b" on"[..])
        );
        let pieces = Pieces::of(&byte_level(&[" on"]), 1).unwrap();
        assert_eq!(
            (pieces.first(0), pieces.first_trimmed(0)),
            (&b" on"[..], &b"on"[..])
        );
        assert_eq!(
            (pieces.longest(), pieces.len(), pieces.later(1)),
            (3, 1, &b""[..])
        );
    }

    /// Texts through the tokenizers of the shared folder and of the demo's base.
    #[test]
    fn real_texts_are_streamed_as_the_tokenizer_decodes_them() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let shared = env::var_os("PREFACE_SHARED").unwrap_or("../shared".into());
        let base = env::var_os("PREFACE_BASE").unwrap_or("out/base".into());
        let demo = root.join("demo/tasks/home_command/test.jsonl");
        let demo = fs::read_to_string(demo).unwrap();
        let mut texts: Vec<String> = demo.lines().map(str::to_owned).collect();
        texts.push("w4 w5 w96 Café, 10 €\n\tdon't 日本語 🙂  two  spaces ".into());
        for tokenizer in [
            root.join(&shared).join("exports/tokenizer.json"),
            root.join(&shared).join("models/stories260K/tokenizer.json"),
            root.join(&base).join("tokenizer.json"),
        ] {
            let Ok(tokenizer) = Tokenizer::from_file(&tokenizer) else {
                // Written past the capture of the test harness, which shows nothing of a test that passes.
                let _ = writeln!(
                    std::io::stderr(),
                    "SKIPPED: {} is not here",
                    tokenizer.display()
                );
                continue;
            };
            let vocabulary = tokenizer.get_vocab_size(true);
            let pieces = Pieces::of(&tokenizer, vocabulary).unwrap();
            for text in &texts {
                let encoding = tokenizer.encode_fast(text.as_str(), true).unwrap();
                let decoded = tokenizer.decode(encoding.get_ids(), true).unwrap();
                assert_eq!(streamed(&pieces, encoding.get_ids()), decoded);
            }
        }
    }
}
