//! `preface.json`: what an adapter folder says about its adapter.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use preface_bundle::{AnswerKind, AnswerPlan, HeadKind, Id, Inputs, Pooling, Positions, is_name};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny},
};

use crate::{Error, adapter::read};

/// Formats of the description that are read.
const FORMATS: [u32; 2] = [1, 2];
/// The least probability of each of several labels where an adapter does not say.
const LABELS_THRESHOLD: f32 = 0.5;

/// The content of `preface.json`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// Version of this description: 1 or 2. What 1 does not have is absent.
    pub format: u32,
    /// Name of the method that trained the adapter.
    pub method: String,
    /// How the prompt enters the model.
    pub form: Form,
    /// What turns the base's output into an answer.
    pub head: Head,
    /// Names of the labels; a label's number is its place.
    #[serde(default)]
    pub labels: Vec<String>,
    /// Text around an input; `{text}` is the input's place.
    pub template: String,
    /// Which hidden states the head sees: `mean`, `first` or `last` of the text, or the first of the `prompt`.
    pub pooling: String,
    /// Positions of prompt and text: `text-from-zero`, `after-prompt` or `decoder-after-prompt`.
    pub positions: String,
    /// What the task answers; `None` for the head's own answer.
    #[serde(default)]
    pub answer: Option<Answer>,
    /// How many texts it is asked about at once.
    #[serde(default = "one", deserialize_with = "by_name")]
    pub inputs: Inputs,
    /// For each label the token ids that speak for it, of a verbaliser.
    #[serde(default)]
    pub verbaliser: Vec<Vec<u32>>,
    /// When generation ends.
    #[serde(default)]
    pub decode: Option<Decode>,
    /// Base model that the prompt was trained against, 64 hex digits.
    pub base_id: String,
    /// Tokenizer that it was trained with, 64 hex digits.
    pub tokenizer_id: String,
    /// Inputs to try a bundle with.
    #[serde(default)]
    pub probes: Vec<Probe>,
    /// What the trainer measured; what is no number is passed over.
    #[serde(default, deserialize_with = "numbers")]
    pub metrics: BTreeMap<String, f32>,
    /// How many tokens the task takes.
    #[serde(default)]
    pub token_budget: Option<TokenBudget>,
    /// How the adapter was trained.
    #[serde(default)]
    pub receipt: serde_json::Map<String, serde_json::Value>,
    #[serde(default, rename = "baselines")]
    _baselines: Option<IgnoredAny>,
    #[serde(default, rename = "init")]
    _init: Option<IgnoredAny>,
}

/// How the prompt enters the model.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Form {
    /// Rows in place of token embeddings.
    Embeddings {
        /// Virtual tokens.
        tokens: u16,
        /// Width of the base's token embeddings.
        hidden: u16,
    },
    /// Keys and values of consecutive layers.
    KeyValues {
        /// Virtual tokens.
        tokens: u16,
        /// The base's first layer that has them.
        #[serde(default)]
        first_layer: u16,
        /// The layers that have them.
        layers: Vec<Layer>,
        /// Whether each layer has a number that is added to the attention scores of its prefix.
        #[serde(default)]
        gated: bool,
    },
}

/// Keys and values of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// Heads of keys and values.
    pub kv_heads: u16,
    /// Width of one head.
    pub head_dim: u16,
}

/// What turns the base's output into an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// What kind of head it is.
    #[serde(deserialize_with = "by_name")]
    pub kind: HeadKind,
    /// Number of labels; 0 for generation.
    pub classes: u16,
    /// Width of the hidden states that it sees; without meaning where it sees none.
    #[serde(default)]
    pub hidden: u32,
    /// Width between the factors of a factored head.
    #[serde(default)]
    pub rank: Option<u16>,
}

/// What a task answers.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// What kind of answer it is.
    #[serde(deserialize_with = "by_name")]
    pub kind: AnswerKind,
    /// For one label: the least probability of an answer. For labels: the least probability of each.
    #[serde(default)]
    pub threshold: Option<f32>,
}

/// When generation ends.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decode {
    /// Most tokens to generate.
    pub most_tokens: u16,
    /// Token ids that end the text.
    #[serde(default)]
    pub stop_ids: Vec<u32>,
}

/// One input and the answer expected of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// Token ids of a text, special tokens included.
    pub ids: Vec<u32>,
    /// Number of the label that the adapter gives.
    pub label: u16,
    /// The place of the first token id of a pair's second text; 0 where there is one text.
    #[serde(default)]
    pub second: u16,
    /// For each word that is tagged the place of its first token id, ascending, and the number of its label.
    #[serde(default)]
    pub tags: Vec<(u16, u16)>,
    /// All labels that the adapter gives, by their numbers, ascending, of a task that answers several.
    #[serde(default)]
    pub labels: Vec<u16>,
    /// The text that the adapter makes, without the white space around it.
    #[serde(default)]
    pub text: String,
}

impl Probe {
    /// Whether its answer is more than a label to one text.
    pub(crate) fn is_answered(&self) -> bool {
        self.second > 0 || !self.tags.is_empty() || !self.text.is_empty()
    }

    /// Whether its places are those of its ids, in order, and it has something that a bundle can hold.
    fn is_sound(&self, classes: u16) -> bool {
        let inside = |place: u16| usize::from(place) < self.ids.len();
        inside(self.second)
            && self
                .tags
                .iter()
                .all(|&(place, label)| inside(place) && label < classes)
            && self.tags.windows(2).all(|pair| pair[0].0 < pair[1].0)
            && self.labels.windows(2).all(|pair| pair[0] < pair[1])
            && self.labels.first().is_none_or(|first| *first == self.label)
            && self.labels.last().is_none_or(|last| *last < classes)
            && !self.text.chars().any(is_strange)
    }
}

/// Control characters that no text in a bundle has.
fn is_strange(character: char) -> bool {
    character.is_control() && character != '\n' && character != '\t'
}

/// How many tokens the task takes; what a bundle does not tell is passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct TokenBudget {
    /// Virtual tokens.
    pub prompt: u32,
    /// Tokens of the longest text.
    pub longest: u32,
    /// Tokens of the median text.
    pub typical: u32,
    /// Positions that the base has; `None` where nothing bounds them.
    #[serde(default)]
    pub positions: Option<u32>,
}

/// A choice that has a name.
trait Named: Copy + Sized + 'static {
    const ALL: &'static [Self];
    fn name(self) -> &'static str;
}

macro_rules! named {
    ($type:ident: $($variant:ident),+) => {
        impl Named for $type {
            const ALL: &'static [Self] = &[$(Self::$variant),+];
            fn name(self) -> &'static str {
                Self::name(self)
            }
        }
    };
}

named!(AnswerKind: Label, Labels, Tags, Text);
named!(HeadKind: Linear, Verbaliser, FactoredLinear, LabelText, TokenLinear, Generation, TanhLinear);
named!(Inputs: One, Pair);
named!(Pooling: Mean, First, Last, Mask, Prompt);
named!(Positions: TextFromZero, AfterPrompt, DecoderAfterPrompt);

/// The choice of that name, or what there is to choose from.
fn named<T: Named>(name: &str) -> Result<T, String> {
    let found = T::ALL.iter().find(|one| one.name() == name).copied();
    found.ok_or_else(|| {
        let names: Vec<&str> = T::ALL.iter().map(|one| one.name()).collect();
        format!("{name:?} is none of {}", names.join(", "))
    })
}

fn by_name<'de, D: Deserializer<'de>, T: Named>(deserializer: D) -> Result<T, D::Error> {
    let name = String::deserialize(deserializer)?;
    named(&name).map_err(D::Error::custom)
}

fn numbers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, f32>, D::Error> {
    let all = BTreeMap::<String, serde_json::Value>::deserialize(deserializer)?;
    let number = |(name, value): (String, serde_json::Value)| Some((name, value.as_f64()? as f32));
    Ok(all.into_iter().filter_map(number).collect())
}

fn one() -> Inputs {
    Inputs::One
}

impl Form {
    /// Virtual tokens.
    pub fn tokens(&self) -> u16 {
        match self {
            Self::Embeddings { tokens, .. } | Self::KeyValues { tokens, .. } => *tokens,
        }
    }

    /// Numbers of one virtual token.
    pub(crate) fn width(&self) -> usize {
        match self {
            Self::Embeddings { hidden, .. } => usize::from(*hidden),
            Self::KeyValues { layers, .. } => layers.iter().map(Layer::width).sum(),
        }
    }

    /// How many gates it has.
    pub(crate) fn gates(&self) -> Option<usize> {
        match self {
            Self::KeyValues {
                layers,
                gated: true,
                ..
            } => Some(layers.len()),
            _ => None,
        }
    }

    fn check(&self) -> Result<(), Problem> {
        let (layers_fit, last) = match self {
            Self::Embeddings { .. } => (true, 0),
            Self::KeyValues {
                layers,
                first_layer,
                ..
            } => {
                let last = usize::from(*first_layer) + layers.len();
                (layers.iter().all(|layer| layer.width() > 0), last)
            }
        };
        if self.tokens() == 0 || self.width() == 0 || !layers_fit {
            return refuse("form", "a size is zero");
        }
        if last > usize::from(u16::MAX) {
            return refuse("form", "a layer number is above 65535");
        }
        Ok(())
    }
}

impl Layer {
    /// Numbers of one virtual token in this layer, keys and values.
    pub(crate) fn width(&self) -> usize {
        2 * usize::from(self.kv_heads) * usize::from(self.head_dim)
    }
}

/// Field and problem of a rule that is broken.
type Problem = (&'static str, String);

fn refuse(field: &'static str, problem: impl Into<String>) -> Result<(), Problem> {
    Err((field, problem.into()))
}

impl Description {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        Self::of_json(path, &read(path)?)
    }

    /// Reads and checks the content of `path`.
    pub(crate) fn of_json(path: &Path, bytes: &[u8]) -> Result<Self, Error> {
        let description: Self = serde_json::from_slice(bytes).map_err(|source| Error::Json {
            path: path.into(),
            source,
        })?;
        description
            .check()
            .map_err(|(field, problem)| Error::Field {
                path: path.into(),
                field: field.into(),
                problem,
            })?;
        Ok(description)
    }

    /// Which hidden states the head sees.
    pub(crate) fn pooling(&self) -> Result<Pooling, String> {
        named(&self.pooling)
    }

    /// Positions of prompt and text.
    pub(crate) fn positions(&self) -> Result<Positions, String> {
        named(&self.positions)
    }

    /// What is asked and what is answered.
    pub(crate) fn answer(&self) -> AnswerPlan {
        let own = AnswerPlan::of_head(self.head.kind);
        let Answer { kind, threshold } = self.answer.unwrap_or(Answer {
            kind: own.kind,
            threshold: None,
        });
        let threshold = match kind {
            AnswerKind::Labels => Some(threshold.unwrap_or(LABELS_THRESHOLD)),
            _ => threshold,
        };
        AnswerPlan::new(kind, self.inputs, threshold)
    }

    /// Field and problem of the first rule that is broken.
    fn check(&self) -> Result<(), Problem> {
        if !FORMATS.contains(&self.format) {
            let problem = format!("{} is not 1 or 2; update preface", self.format);
            return refuse("format", problem);
        }
        self.form.check()?;
        self.head.check()?;
        self.check_head_fields()?;
        self.check_labels()?;
        self.check_template()?;
        let pooling = self.pooling().map_err(|problem| ("pooling", problem))?;
        if pooling == Pooling::Mask && !self.template.contains("{mask}") {
            return refuse(
                "pooling",
                "\"mask\" reads the token that {mask} puts into the template",
            );
        }
        let positions = self.positions().map_err(|problem| ("positions", problem))?;
        let of_decoder = matches!(self.form, Form::KeyValues { first_layer: 0, .. });
        if positions == Positions::DecoderAfterPrompt && !of_decoder {
            let problem = "\"decoder-after-prompt\" is of key-values from layer 0 on";
            return refuse("positions", problem);
        }
        self.check_answer()?;
        for (field, id) in [
            ("base_id", &self.base_id),
            ("tokenizer_id", &self.tokenizer_id),
        ] {
            if Id::<32>::from_hex(id).is_none() {
                return refuse(field, "not 64 lower-case hex digits");
            }
        }
        for (name, value) in &self.metrics {
            if !is_name(name) || !value.is_finite() {
                let problem = format!("{name:?} is no name or {value} no finite number");
                return refuse("metrics", problem);
            }
        }
        Ok(())
    }

    fn check_template(&self) -> Result<(), Problem> {
        if self.template.matches("{text}").count() != 1 {
            return refuse("template", "it must have {text} exactly once");
        }
        if self.template.chars().any(is_strange) {
            return refuse("template", "it has control characters");
        }
        Ok(())
    }

    fn check_answer(&self) -> Result<(), Problem> {
        let (plan, head) = (self.answer(), self.head.kind);
        if !plan.fits(head) {
            let problem = format!("a {} head gives no {}", head.name(), plan.kind.name());
            return refuse("answer", problem);
        }
        plan.check().or_else(|problem| refuse("answer", problem))
    }

    /// Fields that go with one kind of head.
    fn check_head_fields(&self) -> Result<(), Problem> {
        let kind = self.head.kind;
        let spoken_for = match kind {
            HeadKind::Verbaliser => usize::from(self.head.classes),
            _ => 0,
        };
        if self.verbaliser.len() != spoken_for || self.verbaliser.iter().any(Vec::is_empty) {
            let problem =
                "a verbaliser head has one or more token ids for each label, other heads none";
            return refuse("verbaliser", problem);
        }
        let generates = kind == HeadKind::Generation;
        if self.decode.is_some() != generates {
            return refuse("decode", "generation has it, other heads do not");
        }
        if self.decode.iter().any(|decode| decode.most_tokens == 0) {
            return refuse("decode", "no token may be generated");
        }
        Ok(())
    }

    fn check_labels(&self) -> Result<(), Problem> {
        let classes = self.head.classes;
        if self.labels.len() != usize::from(classes) {
            let found = self.labels.len();
            return refuse("labels", format!("{found} labels for {classes} classes"));
        }
        let mut seen = BTreeSet::new();
        for label in &self.labels {
            let good = (1..=255).contains(&label.len()) && !label.chars().any(char::is_control);
            if !good || !seen.insert(label) {
                let rule = "a label is 1 to 255 bytes of text, none twice";
                return refuse("labels", format!("{label:?}: {rule}"));
            }
        }
        let generates = self.head.kind == HeadKind::Generation;
        for probe in &self.probes {
            if probe.ids.is_empty() || (probe.label >= classes && !generates) {
                return refuse(
                    "probes",
                    "a probe has no ids or a label that does not exist",
                );
            }
            if !probe.is_sound(classes) {
                return refuse(
                    "probes",
                    "a probe has a place that is none of its ids, or places or labels not in order, or control characters",
                );
            }
        }
        let several = |probe: &Probe| !probe.labels.is_empty();
        let some = self.probes.iter().any(several);
        if some && (self.answer().kind != AnswerKind::Labels || !self.probes.iter().all(several)) {
            return refuse(
                "probes",
                "a task that answers several labels has them for each of its probes or for none, other tasks have none",
            );
        }
        Ok(())
    }
}

impl Head {
    /// Whether its weight is two factors.
    pub(crate) fn is_factored(&self) -> bool {
        matches!(self.kind, HeadKind::FactoredLinear | HeadKind::TanhLinear)
    }

    /// Numbers of its bias, where it has one.
    pub(crate) fn biases(&self) -> usize {
        let inner = match self.kind {
            HeadKind::TanhLinear => self.rank.unwrap_or(0),
            _ => 0,
        };
        usize::from(self.classes) + usize::from(inner)
    }

    /// Whether it sees the base's hidden rows, not its logits.
    fn sees_rows(&self) -> bool {
        !matches!(self.kind, HeadKind::Verbaliser | HeadKind::Generation)
    }

    /// Width of the rows that it sees; 0 where it sees none.
    pub(crate) fn width(&self) -> u16 {
        let width = if self.sees_rows() { self.hidden } else { 0 };
        u16::try_from(width).unwrap_or(u16::MAX)
    }

    fn check(&self) -> Result<(), Problem> {
        let Self {
            kind,
            classes,
            hidden,
            rank,
        } = *self;
        let sees_rows = self.sees_rows();
        if kind == HeadKind::Generation && classes != 0 {
            return refuse("head", "generation has no classes");
        }
        if (kind != HeadKind::Generation && classes == 0) || (sees_rows && hidden == 0) {
            return refuse("head", "a size is zero");
        }
        if sees_rows && hidden > u32::from(u16::MAX) {
            return refuse("head", "its rows are wider than 65535");
        }
        match (self.is_factored(), rank) {
            (true, Some(1..)) | (false, None) => Ok(()),
            _ => refuse(
                "head",
                "a head of two factors has a rank from 1 on, other heads none",
            ),
        }
    }
}
