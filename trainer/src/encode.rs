//! Examples as token ids, with what the model should answer and where it is read.

use preface_bundle::shorten;
use preface_graph::{Description, Kind};
use serde::{Deserialize, Serialize};

use crate::{
    Error,
    data::{AnswerKind, Dataset, Example, Labels, Target},
    heads::Pooling,
    tokens::{Sequence, Tokens},
};

/// Where a template takes the text.
pub const TEXT: &str = "{text}";
/// Where it takes the tokenizer's mask token.
pub const MASK: &str = "{mask}";

/// What happens to a text that the positions leave no room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Overlength {
    /// It is an error.
    #[default]
    Refuse,
    /// Its last tokens are cut.
    Truncate,
}

/// The right answer, in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Truth {
    /// One class.
    Class(usize),
    /// Any number of classes.
    Classes(Vec<usize>),
    /// The class at each place of the ids: of a word's first token, or the token that comes next.
    Places(Vec<(usize, usize)>),
    /// None of the classes.
    Outside,
}

/// One example in numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// Token ids, special tokens included, and the target behind them where the base goes on with it.
    pub ids: Vec<i64>,
    /// The segment of each token; empty where all are in the first.
    pub types: Vec<i64>,
    /// Token ids of an encoder-decoder's decoder.
    pub decoder_ids: Vec<i64>,
    /// Tokens of the text, special tokens included: the ids before the target.
    pub text: usize,
    /// The place of the mask token.
    pub mask: Option<usize>,
    /// The right answer.
    pub truth: Truth,
    /// The line in its file, counted from 1.
    pub line: usize,
    /// What no prompt reaches, where it was computed before: `[..outer, ids, ..inner]` of each of the graph's cuts.
    pub lower: Vec<Vec<f32>>,
    /// Keys and values of the text before the ids, where they were computed before.
    pub past: Past,
}

/// Keys and values of tokens that come before those of a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Past {
    /// The ids of those tokens.
    pub ids: Vec<i64>,
    /// `[kv_heads, tokens, head_dim]` for each of the graph's caches.
    pub caches: Vec<Vec<f32>>,
}

impl Encoded {
    /// Takes all tokens of the text but the last out of the ids: `past` holds their keys and values.
    pub(crate) fn behind(&mut self, past: Past) {
        let taken = past.ids.len();
        self.ids.drain(..taken);
        self.types.drain(..taken.min(self.types.len()));
        self.text -= taken;
        if let Truth::Places(places) = &mut self.truth {
            places.iter_mut().for_each(|(at, _)| *at -= taken);
        }
        self.past = past;
    }

    /// A text whose answer is not known.
    pub fn of_ids(ids: Vec<i64>) -> Self {
        Self {
            text: ids.len(),
            ids,
            types: Vec::new(),
            decoder_ids: Vec::new(),
            mask: None,
            truth: Truth::Class(0),
            line: 0,
            lower: Vec::new(),
            past: Past::default(),
        }
    }

    /// Tokens that the longest of the model's inputs takes.
    pub fn length(&self) -> usize {
        (self.past.ids.len() + self.ids.len()).max(self.decoder_ids.len())
    }

    /// The ids of the text, special tokens included.
    pub fn text_ids(&self) -> Vec<i64> {
        [&self.past.ids, &self.ids[..self.text]].concat()
    }
}

/// How the texts of a task are written.
#[derive(Clone, Debug, PartialEq)]
pub struct Wording {
    /// What surrounds a text; `{text}` stands for it.
    pub template: String,
    /// What the answers are.
    pub kind: AnswerKind,
    /// Whether examples are sentence pairs.
    pub pairs: bool,
    /// Which rows a head reads.
    pub pooling: Pooling,
    /// Tokens that the positions leave room for beside the prompt; `None` where nothing bounds them.
    pub room: Option<usize>,
    /// What happens to texts that are longer.
    pub overlength: Overlength,
}

/// Encoded examples, and how many texts were cut.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// The examples, in the file's order.
    pub rows: Vec<Encoded>,
    /// The number of texts that lost tokens.
    pub truncated: usize,
}

impl Rows {
    /// The right answers, in the file's order.
    pub fn truths(&self) -> impl Iterator<Item = &Truth> {
        self.rows.iter().map(|row| &row.truth)
    }
}

/// Turns examples into numbers.
pub struct Encoder<'a> {
    tokens: &'a Tokens,
    base: &'a Description,
    wording: &'a Wording,
    labels: Labels<'a>,
    outside: Option<&'a str>,
    mask: Option<String>,
}

impl<'a> Encoder<'a> {
    /// An encoder for a task with `labels`; `outside` is the label of texts that have none of them.
    ///
    /// # Errors
    /// When the template does not fit the base.
    pub fn new(
        tokens: &'a Tokens,
        base: &'a Description,
        wording: &'a Wording,
        labels: &'a [String],
        outside: Option<&'a str>,
    ) -> Result<Self, Error> {
        if wording.template.matches(TEXT).count() != 1 {
            let found = &wording.template;
            return Err(Error::Options(format!(
                "the template {found:?} must hold {TEXT} exactly once"
            )));
        }
        let mask = base.mask_token.and_then(|id| tokens.token(id));
        if mask.is_none() && wording.template.contains(MASK) {
            return Err(Error::Options(format!(
                "the template asks for {MASK}, but the tokenizer has no mask token"
            )));
        }
        if wording.pooling == Pooling::Mask && !wording.template.contains(MASK) {
            return Err(Error::Options(format!(
                "the head reads the mask token; put {MASK} into the template"
            )));
        }
        Ok(Self {
            tokens,
            base,
            wording,
            labels: Labels::of(labels),
            outside,
            mask,
        })
    }

    /// Encodes every example of `dataset`.
    ///
    /// # Errors
    /// When an answer is not among the labels, or a text is too long and is not to be cut; the line is named.
    pub fn encode(&self, dataset: &Dataset) -> Result<Rows, Error> {
        dataset.expect(self.wording.kind, self.wording.pairs)?;
        let mut rows = Rows::default();
        for example in &dataset.examples {
            let text2 = example.text2.as_deref();
            let whole = self.row(dataset, example, (&example.text, text2))?;
            let over = self
                .wording
                .room
                .map_or(0, |room| whole.length().saturating_sub(room));
            if over == 0 {
                rows.rows.push(whole);
                continue;
            }
            rows.truncated += 1;
            rows.rows.push(self.shortened(dataset, example, &whole)?);
        }
        Ok(rows)
    }

    /// The ids of a text as the task's template writes it.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn text(&self, text: &str, text2: Option<&str>) -> Result<Sequence, Error> {
        let mask = self.mask.as_deref().unwrap_or_default();
        let written = self
            .wording
            .template
            .replace(MASK, mask)
            .replace(TEXT, text);
        match self.wording.kind {
            AnswerKind::Tags => self
                .tokens
                .words(&text.split_whitespace().collect::<Vec<_>>()),
            _ => self.tokens.texts(&written, text2),
        }
    }

    fn shortened(
        &self,
        dataset: &Dataset,
        example: &Example,
        whole: &Encoded,
    ) -> Result<Encoded, Error> {
        let room = self.wording.room.unwrap_or(usize::MAX);
        let refused = || Error::TooLong {
            path: dataset.path.clone(),
            line: example.line,
            tokens: whole.length(),
            room,
        };
        if self.wording.kind == AnswerKind::Tags {
            return Err(dataset.at(
                example.line,
                format!(
                    "{} tokens, but the base's positions leave room for {room}; words with tags are not cut: make several lines of it",
                    whole.length()
                ),
            ));
        }
        if self.wording.overlength == Overlength::Refuse {
            return Err(refused());
        }
        let text2 = example.text2.as_deref();
        let count = |text: &str| Ok::<_, Error>(self.tokens.plain(text)?.len());
        let mut keep = [count(&example.text)?, text2.map_or(Ok(0), count)?];
        let mut row = whole.clone();
        while row.length() > room {
            keep = shorten(keep, row.length() - room);
            if keep[0] == 0 {
                return Err(dataset.at(
                    example.line,
                    format!(
                        "{} tokens, but the base's positions leave room for {room}, and none is left for the text beside what is not cut; shorten the target or the template",
                        whole.length()
                    ),
                ));
            }
            let cut = self.tokens.beginning(&example.text, keep[0])?;
            let cut2 = text2.map(|text| self.tokens.beginning(text, keep[1]));
            row = self.row(dataset, example, (cut, cut2.transpose()?))?;
        }
        Ok(row)
    }

    fn row(
        &self,
        dataset: &Dataset,
        example: &Example,
        (text, text2): (&str, Option<&str>),
    ) -> Result<Encoded, Error> {
        let Sequence { ids, types, words } = self.text(text, text2)?;
        let outside = self
            .outside
            .is_some_and(|outside| example.target.names() == [outside]);
        let numbers = match outside {
            true => Vec::new(),
            false => dataset.indices(example, &self.labels)?,
        };
        let mut row = Encoded {
            mask: self
                .base
                .mask_token
                .and_then(|mask| ids.iter().position(|&id| id == i64::from(mask))),
            text: ids.len(),
            types: if types.iter().any(|&kind| kind != 0) {
                types
            } else {
                Vec::new()
            },
            ids,
            decoder_ids: Vec::new(),
            truth: Truth::Outside,
            line: example.line,
            lower: Vec::new(),
            past: Past::default(),
        };
        row.decoder_ids.extend(self.base.start_token.map(i64::from));
        row.truth = match &example.target {
            _ if outside => Truth::Outside,
            Target::Label(_) => Truth::Class(numbers[0]),
            Target::Labels(_) => Truth::Classes(numbers),
            Target::Tags(_) => {
                let pairs = words.into_iter().zip(numbers);
                Truth::Places(pairs.filter(|&(at, _)| at != usize::MAX).collect())
            }
            Target::Text(target) => self.go_on_with(&mut row, target)?,
        };
        Ok(row)
    }

    /// Puts the target behind the text; each of its tokens is the answer at the place before it.
    fn go_on_with(&self, row: &mut Encoded, target: &str) -> Result<Truth, Error> {
        let mut tokens = self.tokens.plain(target)?;
        tokens.extend(self.base.end_token.map(i64::from));
        let into = match self.base.kind {
            Kind::EncoderDecoder => &mut row.decoder_ids,
            _ => &mut row.ids,
        };
        let first = into.len().saturating_sub(1);
        let next =
            |(index, &token): (usize, &i64)| (first + index, usize::try_from(token).unwrap_or(0));
        let places = tokens.iter().enumerate().map(next).collect();
        tokens.pop();
        into.extend(tokens);
        if !row.types.is_empty() {
            row.types.resize(row.ids.len(), 0);
        }
        Ok(Truth::Places(places))
    }
}
