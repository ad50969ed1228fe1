//! The optional fields of a manifest: one type, one reader each.
//!
//! A reader takes the bytes of one field and gives back the field, or the rule that is broken. What
//! a reader has accepted, its iterators read again and cannot fail on.

use core::iter;

use crate::{cursor::Cursor, id::is_name, text};

/// Types of the fields. Bit 15 says that a reader which does not know the field must refuse.
pub mod tlv {
    /// Token ids and the label expected of them.
    pub const PROBES: u16 = 0x0001;
    /// Names and numbers that the trainer measured.
    pub const METRICS: u16 = 0x0002;
    /// How many tokens the task takes.
    pub const TOKEN_BUDGET: u16 = 0x0003;
    /// How the adapter was trained, as JSON.
    pub const RECEIPT: u16 = 0x0004;
    /// What probes are asked and answer beyond token ids and a label.
    pub const PROBE_ANSWERS: u16 = 0x0006;
    /// All labels that probes get, of tasks that answer several.
    pub const PROBE_LABELS: u16 = 0x0007;
    /// Which bytes are which tensor. Required.
    pub const TENSORS: u16 = 0x8001;
    /// Names of the labels.
    pub const LABELS: u16 = 0x8002;
    /// What turns the base's output into an answer. Required.
    pub const HEAD: u16 = 0x8003;
    /// Text around an input.
    pub const TEMPLATE: u16 = 0x8004;
    /// Which hidden states the head sees.
    pub const POOLING: u16 = 0x8005;
    /// Positions of prompt and text. Required.
    pub const POSITIONS: u16 = 0x8006;
    /// Token ids that speak for each label.
    pub const VERBALISER: u16 = 0x8007;
    /// When generation ends.
    pub const DECODE_LIMITS: u16 = 0x8008;
    /// What is asked and what is answered, where that is not the head's own answer to one text.
    pub const ANSWER: u16 = 0x8009;
}

/// Why a field is refused.
pub(crate) type Rule = &'static str;

/// Names of the labels; a label's number is its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Labels<'a> {
    count: u16,
    bytes: &'a [u8],
}

impl<'a> Labels<'a> {
    /// `u16` count, then for each label `u8` length and UTF-8.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, Rule> {
        let mut cursor = Cursor::new(bytes);
        let count = cursor.u16().ok_or("the count is missing")?;
        let labels = Self {
            count,
            bytes: cursor.rest(),
        };
        for _ in 0..count {
            let label = label(&mut cursor).ok_or("a label is not UTF-8 of the said length")?;
            if label.is_empty() || label.chars().any(char::is_control) {
                return Err("a label is empty or has control characters");
            }
        }
        let twice = |(at, label): (usize, &str)| labels.iter().take(at).any(|one| one == label);
        match (count, cursor.is_empty()) {
            (1.., true) if labels.iter().enumerate().any(twice) => Err("a label is there twice"),
            (1.., true) => Ok(labels),
            _ => Err("one or more labels fill the field"),
        }
    }

    /// Number of labels.
    pub fn len(&self) -> usize {
        usize::from(self.count)
    }

    /// Whether there are no labels.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The labels in order.
    pub fn iter(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let mut cursor = Cursor::new(self.bytes);
        iter::from_fn(move || label(&mut cursor)).take(self.len())
    }

    /// The label with this number.
    pub fn get(&self, number: usize) -> Option<&'a str> {
        self.iter().nth(number)
    }
}

fn label<'a>(cursor: &mut Cursor<'a>) -> Option<&'a str> {
    let length = usize::from(cursor.u8()?);
    cursor.str(length)
}

/// What turns the base's output into an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HeadKind {
    /// `logits = W h + b` of one pooled hidden state.
    Linear = 1,
    /// The base's own logits at the verbaliser's token ids.
    Verbaliser = 2,
    /// `logits = A (B h) + b`.
    FactoredLinear = 3,
    /// Likeness to vectors that the base makes of the label names.
    LabelText = 4,
    /// `W h + b` of every token's hidden state.
    TokenLinear = 5,
    /// Text that the base goes on with.
    Generation = 6,
    /// `logits = A tanh(B h + c) + b` of one pooled hidden state: a pooler and a linear layer behind it.
    TanhLinear = 7,
}

impl HeadKind {
    fn from_u16(value: u16) -> Option<Self> {
        match value {
            1 => Some(Self::Linear),
            2 => Some(Self::Verbaliser),
            3 => Some(Self::FactoredLinear),
            4 => Some(Self::LabelText),
            5 => Some(Self::TokenLinear),
            6 => Some(Self::Generation),
            7 => Some(Self::TanhLinear),
            _ => None,
        }
    }

    /// The kind's number in the manifest.
    pub fn to_u16(self) -> u16 {
        match self {
            Self::Linear => 1,
            Self::Verbaliser => 2,
            Self::FactoredLinear => 3,
            Self::LabelText => 4,
            Self::TokenLinear => 5,
            Self::Generation => 6,
            Self::TanhLinear => 7,
        }
    }

    /// The kind's name in reports and in `preface.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Verbaliser => "verbaliser",
            Self::FactoredLinear => "factored-linear",
            Self::LabelText => "label-text",
            Self::TokenLinear => "token-linear",
            Self::Generation => "generation",
            Self::TanhLinear => "tanh-linear",
        }
    }
}

/// The head and its sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Head {
    /// What kind of head it is.
    pub kind: HeadKind,
    /// Number of labels; 0 for generation.
    pub classes: u16,
    /// Width of the hidden states that it sees; 0 where it sees none.
    pub hidden: u16,
}

impl Head {
    /// `u16` kind, classes, hidden, zero.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, Rule> {
        let mut cursor = Cursor::new(bytes);
        let mut fields = || {
            let kind = HeadKind::from_u16(cursor.u16()?)?;
            let head = Self {
                kind,
                classes: cursor.u16()?,
                hidden: cursor.u16()?,
            };
            cursor.zeros(2)?;
            cursor.is_empty().then_some(head)
        };
        fields().ok_or("the head is of an unknown kind or not 8 bytes")
    }
}

/// Which hidden states a head sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Pooling {
    /// The mean over real text tokens; special tokens count, prompt and padding do not.
    Mean = 1,
    /// The first text token.
    First = 2,
    /// The last real token.
    Last = 3,
    /// The first mask token: the template puts it beside the text.
    Mask = 4,
    /// The first row of a prompt of embeddings before the text.
    Prompt = 5,
}

impl Pooling {
    /// `u16` code, `u16` zero.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, Rule> {
        match code(bytes) {
            Some(1) => Ok(Self::Mean),
            Some(2) => Ok(Self::First),
            Some(3) => Ok(Self::Last),
            Some(4) => Ok(Self::Mask),
            Some(5) => Ok(Self::Prompt),
            _ => Err("the pooling is unknown or not 4 bytes"),
        }
    }

    /// The pooling's number in the manifest.
    pub fn to_u16(self) -> u16 {
        match self {
            Self::Mean => 1,
            Self::First => 2,
            Self::Last => 3,
            Self::Mask => 4,
            Self::Prompt => 5,
        }
    }

    /// The pooling's name in reports and in `preface.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::First => "first",
            Self::Last => "last",
            Self::Mask => "mask",
            Self::Prompt => "prompt",
        }
    }
}

/// Positions of prompt and text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Positions {
    /// The text keeps the positions that it has without a prompt.
    #[default]
    TextFromZero = 1,
    /// The prompt takes the first positions, the text follows.
    AfterPrompt = 2,
    /// The prefix stands for tokens before the first of a decoder behind an encoder, at the decoder's own attentions
    /// alone.
    DecoderAfterPrompt = 3,
}

impl Positions {
    /// `u16` code, `u16` zero.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, Rule> {
        match code(bytes) {
            Some(1) => Ok(Self::TextFromZero),
            Some(2) => Ok(Self::AfterPrompt),
            Some(3) => Ok(Self::DecoderAfterPrompt),
            _ => Err("the position plan is unknown or not 4 bytes"),
        }
    }

    /// The plan's number in the manifest.
    pub fn to_u16(self) -> u16 {
        match self {
            Self::TextFromZero => 1,
            Self::AfterPrompt => 2,
            Self::DecoderAfterPrompt => 3,
        }
    }

    /// The plan's name in reports and in `preface.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::TextFromZero => "text-from-zero",
            Self::AfterPrompt => "after-prompt",
            Self::DecoderAfterPrompt => "decoder-after-prompt",
        }
    }
}

/// What kind of answer a task gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AnswerKind {
    /// The most probable label under softmax.
    Label = 1,
    /// Every label that is probable enough by itself, under the logistic function.
    Labels = 2,
    /// A label for each word.
    Tags = 3,
    /// Text that the base goes on with.
    Text = 4,
}

impl AnswerKind {
    fn from_u16(value: u16) -> Option<Self> {
        match value {
            1 => Some(Self::Label),
            2 => Some(Self::Labels),
            3 => Some(Self::Tags),
            4 => Some(Self::Text),
            _ => None,
        }
    }

    /// The kind's number in the manifest.
    pub fn to_u16(self) -> u16 {
        match self {
            Self::Label => 1,
            Self::Labels => 2,
            Self::Tags => 3,
            Self::Text => 4,
        }
    }

    /// The kind's name in reports and in `preface.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Label => "label",
            Self::Labels => "labels",
            Self::Tags => "tags",
            Self::Text => "text",
        }
    }
}

/// How many texts a task is asked about at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Inputs {
    /// One text, in its place in the template.
    One = 1,
    /// Two, joined as the tokenizer joins pairs; the template is around the first.
    Pair = 2,
}

impl Inputs {
    fn from_u16(value: u16) -> Option<Self> {
        match value {
            1 => Some(Self::One),
            2 => Some(Self::Pair),
            _ => None,
        }
    }

    /// The number in the manifest.
    pub fn to_u16(self) -> u16 {
        match self {
            Self::One => 1,
            Self::Pair => 2,
        }
    }

    /// The name in reports and in `preface.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Pair => "pair",
        }
    }
}

/// What is asked of a task and what it answers.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct AnswerPlan {
    /// What kind of answer it gives.
    pub kind: AnswerKind,
    /// How many texts it is asked about at once.
    pub inputs: Inputs,
    /// From 0 to 1. For one label: the least probability of an answer, below which the text is out of the task's
    /// scope. For labels: the least probability of each.
    pub threshold: Option<f32>,
}

impl AnswerPlan {
    /// Describes an answer, for a writer.
    pub fn new(kind: AnswerKind, inputs: Inputs, threshold: Option<f32>) -> Self {
        Self {
            kind,
            inputs,
            threshold,
        }
    }

    /// What a head answers to one text where a bundle says nothing else.
    pub fn of_head(head: HeadKind) -> Self {
        let kind = match head {
            HeadKind::TokenLinear => AnswerKind::Tags,
            HeadKind::Generation => AnswerKind::Text,
            _ => AnswerKind::Label,
        };
        Self::new(kind, Inputs::One, None)
    }

    /// `u16` kind, `u16` inputs, and where there is a threshold `f32`.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, Rule> {
        let mut cursor = Cursor::new(bytes);
        let mut fields = || {
            let kind = AnswerKind::from_u16(cursor.u16()?)?;
            let inputs = Inputs::from_u16(cursor.u16()?)?;
            let threshold = match cursor.is_empty() {
                true => None,
                false => Some(cursor.f32()?),
            };
            cursor.is_empty().then_some(Self {
                kind,
                inputs,
                threshold,
            })
        };
        let plan = fields().ok_or("the answer is of an unknown kind, or not 4 or 8 bytes")?;
        plan.check().map(|()| plan)
    }

    /// Holds threshold and inputs against the kind of answer.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn check(&self) -> Result<(), &'static str> {
        let probable = |value: f32| (0.0..=1.0).contains(&value) && value.is_sign_positive();
        if !self.threshold.is_none_or(probable) {
            return Err("a threshold is a number from 0 to 1");
        }
        match (self.kind, self.threshold) {
            _ if self.kind == AnswerKind::Tags && self.inputs == Inputs::Pair => {
                Err("the words of one text are tagged")
            }
            (AnswerKind::Labels, None) => Err("an answer of labels has a threshold"),
            (AnswerKind::Tags | AnswerKind::Text, Some(_)) => {
                Err("only an answer of labels has a threshold")
            }
            _ => Ok(()),
        }
    }

    /// Whether `head` can give such an answer.
    pub fn fits(&self, head: HeadKind) -> bool {
        let own = Self::of_head(head).kind;
        self.kind == own || (self.kind == AnswerKind::Labels && own == AnswerKind::Label)
    }
}

fn code(bytes: &[u8]) -> Option<u16> {
    let mut cursor = Cursor::new(bytes);
    let code = cursor.u16()?;
    cursor.zeros(2)?;
    cursor.is_empty().then_some(code)
}

/// Control characters but line feed and tab.
fn is_odd(character: char) -> bool {
    character.is_control() && character != '\n' && character != '\t'
}

/// Text around an input: UTF-8 with `{text}` where the input goes.
pub(crate) fn template(bytes: &[u8]) -> Result<&str, Rule> {
    let text = core::str::from_utf8(bytes).map_err(|_| "the template is not UTF-8")?;
    if text.chars().any(is_odd) {
        return Err("the template has control characters");
    }
    if text::count(text, "{text}") != 1 {
        return Err("the template has {text} exactly once");
    }
    Ok(text)
}

/// How the adapter was trained: JSON, shown and never interpreted.
pub(crate) fn receipt(bytes: &[u8]) -> Result<&str, Rule> {
    let text = core::str::from_utf8(bytes).map_err(|_| "the receipt is not UTF-8")?;
    let object = text.starts_with('{') && text.ends_with('}');
    if !object || text.chars().any(char::is_control) {
        return Err("the receipt is not a JSON object on one line");
    }
    Ok(text)
}

/// Token ids that speak for each label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verbaliser<'a> {
    count: u16,
    bytes: &'a [u8],
}

impl<'a> Verbaliser<'a> {
    /// `u16` label count, then for each label `u16` id count and `u32` ids.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, Rule> {
        let mut cursor = Cursor::new(bytes);
        let count = cursor.u16().ok_or("the count is missing")?;
        let verbaliser = Self {
            count,
            bytes: cursor.rest(),
        };
        for _ in 0..count {
            let ids = counted_ids(&mut cursor).ok_or("the ids end early")?;
            if ids.is_empty() {
                return Err("a label has no token id");
            }
        }
        (count > 0 && cursor.is_empty())
            .then_some(verbaliser)
            .ok_or("the ids of one or more labels fill the field")
    }

    /// Number of labels.
    pub fn len(&self) -> usize {
        usize::from(self.count)
    }

    /// Whether no label has ids.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// For each label in order, its token ids.
    pub fn iter(&self) -> impl Iterator<Item = impl Iterator<Item = u32> + use<'a>> + use<'a> {
        let mut cursor = Cursor::new(self.bytes);
        iter::from_fn(move || counted_ids(&mut cursor))
            .take(self.len())
            .map(ids)
    }
}

fn counted_ids<'a>(cursor: &mut Cursor<'a>) -> Option<&'a [[u8; 4]]> {
    let count = usize::from(cursor.u16()?);
    cursor.u32s(count)
}

fn ids(bytes: &[[u8; 4]]) -> impl Iterator<Item = u32> + use<'_> {
    bytes.iter().map(|id| u32::from_le_bytes(*id))
}

/// When generation ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DecodeLimits<'a> {
    /// Most tokens to generate.
    pub max_tokens: u16,
    stops: &'a [[u8; 4]],
}

impl<'a> DecodeLimits<'a> {
    /// `u16` most tokens, `u16` number of stop ids, `u32` stop ids.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, Rule> {
        let mut cursor = Cursor::new(bytes);
        let mut fields = || {
            let max_tokens = cursor.u16()?;
            let stops = counted_ids(&mut cursor)?;
            cursor.is_empty().then_some(Self { max_tokens, stops })
        };
        let limits = fields().ok_or("the stop ids do not fill the field")?;
        if limits.max_tokens == 0 {
            return Err("no token may be generated");
        }
        Ok(limits)
    }

    /// Token ids that end the text.
    pub fn stop_ids(&self) -> impl Iterator<Item = u32> + use<'a> {
        ids(self.stops)
    }
}

/// One input and the answer expected of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Probe<'a> {
    /// Number of the label that the adapter gives.
    pub label: u16,
    /// The place of the first token id of a pair's second text; 0 where there is one text, or nothing is said.
    pub second: u16,
    /// The text that the adapter makes, without the white space around it; empty where it makes none, or nothing is
    /// said.
    pub text: &'a str,
    ids: &'a [[u8; 4]],
    tags: &'a [[u8; 4]],
    labels: &'a [[u8; 2]],
}

impl<'a> Probe<'a> {
    /// Token ids of the text, special tokens included, prompt not.
    pub fn ids(&self) -> impl ExactSizeIterator<Item = u32> + use<'a> {
        self.ids.iter().map(|id| u32::from_le_bytes(*id))
    }

    /// For each word that is tagged the place of its first token id, and the number of the label that it gets; none
    /// where nothing is said.
    pub fn tags(&self) -> impl ExactSizeIterator<Item = (u16, u16)> + use<'a> {
        let tags = self.tags.iter();
        tags.map(|[a, b, c, d]| (u16::from_le_bytes([*a, *b]), u16::from_le_bytes([*c, *d])))
    }

    /// All labels that the text gets, ascending, of a task that answers several; none where nothing is said.
    pub fn labels(&self) -> impl ExactSizeIterator<Item = u16> + use<'a> {
        self.labels.iter().map(|label| u16::from_le_bytes(*label))
    }

    /// The places are those of its ids, in order.
    fn is_sound(&self) -> bool {
        let mut last = None;
        let in_order = self.tags().all(|(place, _)| {
            let ascends = last.is_none_or(|last| last < place);
            last = Some(place);
            ascends && usize::from(place) < self.ids.len()
        });
        in_order && usize::from(self.second) < self.ids.len()
    }
}

/// Inputs to try a bundle with before it is put to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Probes<'a> {
    count: u16,
    bytes: &'a [u8],
    answers: &'a [u8],
    sets: &'a [u8],
}

impl<'a> Probes<'a> {
    /// `u16` count, then for each probe `u16` label, `u16` id count, `u32` ids.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, Rule> {
        const FILLED: Rule = "one or more probes fill the field";
        let mut cursor = Cursor::new(bytes);
        let probes = Self {
            count: cursor.u16().ok_or("the count is missing")?,
            bytes: cursor.rest(),
            ..Self::default()
        };
        let mut unread = probes.unread();
        for _ in 0..probes.count {
            let probe = unread.probe().ok_or(FILLED)?;
            if probe.ids.is_empty() {
                return Err("a probe has no token id");
            }
        }
        (probes.count > 0 && unread.probes.is_empty())
            .then_some(probes)
            .ok_or(FILLED)
    }

    /// The same probes with, for each, `u16` place of the second text, `u16` number of tags, for each of those `u16`
    /// place and `u16` label, then `u16` length and UTF-8 of the text.
    pub(crate) fn answered(self, answers: &'a [u8]) -> Result<Self, Rule> {
        const FILLED: Rule = "an answer for each probe fills the field";
        let answered = Self { answers, ..self };
        let mut unread = answered.unread();
        for _ in 0..self.count {
            let early = unread.answers.is_empty();
            let probe = unread.probe().filter(|_| !early);
            let probe = probe.ok_or(FILLED)?;
            if !probe.is_sound() {
                return Err("the answer of a probe has a place that is none of its ids");
            }
            if probe.text.chars().any(is_odd) {
                return Err("the text of a probe has control characters");
            }
        }
        (self.count > 0 && unread.answers.is_empty())
            .then_some(answered)
            .ok_or(FILLED)
    }

    /// The same probes with, for each, `u16` number of labels and those, `u16` each: the probe's own first.
    pub(crate) fn labelled(self, sets: &'a [u8]) -> Result<Self, Rule> {
        let labelled = Self { sets, ..self };
        let mut unread = labelled.unread();
        let mut sound = self.count > 0;
        for _ in 0..self.count {
            sound &= unread.probe().is_some_and(|probe| {
                let first = probe.labels().next() == Some(probe.label);
                first && probe.labels().is_sorted_by(|a, b| a < b)
            });
        }
        (sound && unread.sets.is_empty())
            .then_some(labelled)
            .ok_or("labels of each probe, from its own on, fill the field")
    }

    /// The probes in order.
    pub fn iter(&self) -> impl Iterator<Item = Probe<'a>> + use<'a> {
        let mut unread = self.unread();
        iter::from_fn(move || unread.probe()).take(usize::from(self.count))
    }

    fn unread(&self) -> Unread<'a> {
        Unread {
            probes: Cursor::new(self.bytes),
            answers: Cursor::new(self.answers),
            sets: Cursor::new(self.sets),
        }
    }
}

/// What of the fields of probes was not read yet.
struct Unread<'a> {
    probes: Cursor<'a>,
    answers: Cursor<'a>,
    sets: Cursor<'a>,
}

impl<'a> Unread<'a> {
    /// The next probe, with what there is of its answer.
    // One copy of it: the reader's flash is counted.
    #[inline(never)]
    fn probe(&mut self) -> Option<Probe<'a>> {
        let mut probe = Probe {
            label: self.probes.u16()?,
            ids: counted_ids(&mut self.probes)?,
            second: 0,
            tags: &[],
            labels: &[],
            text: "",
        };
        if !self.answers.is_empty() {
            probe.second = self.answers.u16()?;
            probe.tags = counted_ids(&mut self.answers)?;
            let length = self.answers.u16()?;
            probe.text = self.answers.str(length.into())?;
        }
        if !self.sets.is_empty() {
            let count = self.sets.u16()?;
            probe.labels = self.sets.u16s(count.into())?;
        }
        Some(probe)
    }
}

/// Names and numbers that the trainer measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metrics<'a>(&'a [u8]);

impl<'a> Metrics<'a> {
    /// For each metric `u8` length, name, `f32`; names strictly ascending.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, Rule> {
        let mut cursor = Cursor::new(bytes);
        let mut previous = "";
        while !cursor.is_empty() {
            let (name, value) = metric(&mut cursor).ok_or("a metric ends early")?;
            if !is_name(name) || name <= previous || !value.is_finite() {
                return Err("metrics are finite numbers with names in ascending order");
            }
            previous = name;
        }
        (!previous.is_empty())
            .then_some(Self(bytes))
            .ok_or("there is at least one metric")
    }

    /// The metrics in order of name.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, f32)> + use<'a> {
        let mut cursor = Cursor::new(self.0);
        iter::from_fn(move || metric(&mut cursor))
    }
}

fn metric<'a>(cursor: &mut Cursor<'a>) -> Option<(&'a str, f32)> {
    Some((label(cursor)?, cursor.f32()?))
}

/// How many tokens the task takes, counted on the training data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBudget {
    /// Virtual tokens.
    pub prompt: u32,
    /// Tokens of the longest text.
    pub longest: u32,
    /// Tokens of the median text.
    pub typical: u32,
    /// Positions that the base has; 0 where nothing bounds them.
    pub positions: u32,
}

impl TokenBudget {
    /// Four `u32`: prompt, longest, typical, positions.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, Rule> {
        let mut cursor = Cursor::new(bytes);
        let mut fields = || {
            let budget = Self {
                prompt: cursor.u32()?,
                longest: cursor.u32()?,
                typical: cursor.u32()?,
                positions: cursor.u32()?,
            };
            cursor.is_empty().then_some(budget)
        };
        fields().ok_or("the token budget is not 16 bytes")
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn labels_are_counted_distinct_text() {
        let good = Labels::read(b"\x02\0\x02on\x03off").expect("two labels");
        assert_eq!(good.iter().collect::<Vec<_>>(), ["on", "off"]);
        assert_eq!(
            (good.len(), good.get(1), good.get(2)),
            (2, Some("off"), None)
        );
        let cases: [(&str, &[u8]); 8] = [
            ("nothing", b""),
            ("none", b"\0\0"),
            ("empty label", b"\x01\0\0"),
            ("runs past the end", b"\x01\0\x05on"),
            ("left over", b"\x01\0\x02on\x01"),
            ("twice", b"\x02\0\x02on\x02on"),
            ("control character", b"\x01\0\x02o\n"),
            ("not UTF-8", b"\x01\0\x02o\xff"),
        ];
        for (name, bytes) in cases {
            assert!(Labels::read(bytes).is_err(), "{name}");
        }
    }

    #[test]
    fn templates_have_one_place_for_the_text() {
        assert_eq!(template("é: {text}\n".as_bytes()), Ok("é: {text}\n"));
        for bad in [
            &b"no place"[..],
            b"{text} {text}",
            b"{text}\0",
            b"{text}\xff",
            b"{text}\x1b[2J",
        ] {
            assert!(template(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn fields_that_end_early_or_late_are_refused() {
        type Accepts = fn(&[u8]) -> bool;
        let ends: [(&str, &[u8], Accepts); 9] = [
            ("answer", &[1, 0, 2, 0], |b| AnswerPlan::read(b).is_ok()),
            ("head", &[1, 0, 2, 0, 8, 0, 0, 0], |b| Head::read(b).is_ok()),
            ("pooling", &[3, 0, 0, 0], |b| Pooling::read(b).is_ok()),
            ("positions", &[2, 0, 0, 0], |b| Positions::read(b).is_ok()),
            ("verbaliser", &[1, 0, 1, 0, 9, 0, 0, 0], |b| {
                Verbaliser::read(b).is_ok()
            }),
            ("decode limits", &[9, 0, 1, 0, 2, 0, 0, 0], |b| {
                DecodeLimits::read(b).is_ok()
            }),
            ("probes", &[1, 0, 3, 0, 1, 0, 7, 0, 0, 0], |b| {
                Probes::read(b).is_ok()
            }),
            ("metrics", &[1, b'a', 0, 0, 0x80, 0x3f], |b| {
                Metrics::read(b).is_ok()
            }),
            ("token budget", &[1; 16], |b| TokenBudget::read(b).is_ok()),
        ];
        for (name, good, accepts) in ends {
            assert!(accepts(good), "{name}");
            for cut in 0..good.len() {
                assert!(!accepts(&good[..cut]), "{name} cut at {cut}");
            }
            assert!(!accepts(&[good, &[0]].concat()), "{name} with a byte more");
        }
    }

    #[test]
    fn values_outside_the_rules_are_refused() {
        assert!(
            Head::read(&[8, 0, 2, 0, 8, 0, 0, 0]).is_err(),
            "unknown head"
        );
        assert!(
            Head::read(&[1, 0, 2, 0, 8, 0, 0, 1]).is_err(),
            "reserved byte"
        );
        assert!(Pooling::read(&[0, 0, 0, 0]).is_err(), "unknown pooling");
        assert!(Pooling::read(&[6, 0, 0, 0]).is_err(), "unknown pooling");
        assert!(Positions::read(&[1, 0, 1, 0]).is_err(), "reserved byte");
        assert!(DecodeLimits::read(&[0, 0, 0, 0]).is_err(), "no token");
        assert!(Metrics::read(b"\x01a\0\0\xc0\x7f").is_err(), "nan");
        assert!(
            Metrics::read(b"\x01b\0\0\0\0\x01a\0\0\0\0").is_err(),
            "order"
        );
        assert!(Metrics::read(b"\x01A\0\0\0\0").is_err(), "name");
        assert!(receipt(b"{\"seed\":0}").is_ok());
        for bad in [&b""[..], b"seed", b"{\n}", b"{\xff}"] {
            assert!(receipt(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn answers_outside_the_rules_are_refused() {
        let plan = |kind: u8, inputs: u8, threshold: &[f32]| {
            let threshold = threshold.iter().flat_map(|value| value.to_le_bytes());
            let bytes: Vec<u8> = [kind, 0, inputs, 0].into_iter().chain(threshold).collect();
            AnswerPlan::read(&bytes)
        };
        let labels = AnswerPlan::new(AnswerKind::Labels, Inputs::Pair, Some(0.5));
        assert_eq!(plan(2, 2, &[0.5]), Ok(labels));
        for edge in [0.0, 1.0] {
            assert!(plan(1, 1, &[edge]).is_ok(), "{edge}");
        }
        let cases: [(&str, u8, u8, &[f32]); 12] = [
            ("no kind", 0, 1, &[]),
            ("unknown kind", 5, 1, &[]),
            ("no input", 1, 0, &[]),
            ("three inputs", 1, 3, &[]),
            ("nan", 1, 1, &[f32::NAN]),
            ("below 0", 1, 1, &[-0.5]),
            ("minus zero", 1, 1, &[-0.0]),
            ("above 1", 2, 1, &[1.5]),
            ("labels without a threshold", 2, 1, &[]),
            ("tags with a threshold", 3, 1, &[0.5]),
            ("tags of a pair", 3, 2, &[]),
            ("two thresholds", 1, 1, &[0.5, 0.5]),
        ];
        for (name, kind, inputs, threshold) in cases {
            assert!(plan(kind, inputs, threshold).is_err(), "{name}");
        }
    }

    #[test]
    fn ids_come_back_as_written() {
        let bytes = [
            2, 0, 1, 0, 2, 0, 9, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 7, 0, 0, 0,
        ];
        let probes = Probes::read(&bytes).expect("two probes");
        let read: Vec<_> = probes
            .iter()
            .map(|p| (p.label, p.ids().collect::<Vec<_>>()))
            .collect();
        assert_eq!(read, [(1, [9, 256].to_vec()), (0, [7].to_vec())]);
    }
}
