//! A task made ready to be trained: its examples in numbers, its head, and everything that does not change.

mod cache;

use preface_bundle::Before;
use preface_graph::{Base, Description, Kind};

use crate::{
    Error,
    batch::Layout,
    budget::TokenBudget,
    data::{AnswerKind, Dataset},
    encode::{Encoded, Encoder, MASK, Rows, TEXT, Truth, Wording},
    engine::Library,
    evaluation::{Questions, before, reading},
    form::{Form, Moves, Place},
    given::Given,
    heads::{Head, Pooling, Reads, head, usual},
    methods::{Method, Sizes, method},
    options::{ClassWeights, Options},
    step::{Extent, Loss, Reader},
    tokens::Tokens,
};

/// Positions that a prompt must leave for texts.
const LEAST_ROOM: usize = 16;
/// Bytes of label names for which a bundle's signed part has room.
const LABEL_BYTES: usize = 3000;

/// A task made ready to be trained.
pub struct Task<'a> {
    /// The base.
    pub base: &'a Base,
    /// How it is trained.
    pub options: &'a Options,
    /// The method.
    pub method: &'static Method,
    /// The form of the prompt, and sizes on the way to it.
    pub sizes: Sizes,
    /// The head.
    pub head: &'static Head,
    /// Labels or tags, sorted.
    pub labels: Vec<String>,
    /// How texts are written.
    pub wording: Wording,
    /// Examples to learn from.
    pub train: Rows,
    /// Examples that choose the epoch.
    pub dev: Rows,
    /// What may stand before each label, where they are tags.
    pub before: Vec<Before>,
    /// What the head is given.
    pub given: Given,
    /// The weight of each class in the loss; empty where all weigh the same.
    pub class_weights: Vec<f32>,
    /// Candidates, and whether rows below the prompt are cached.
    pub extent: Extent,
    /// The base's tokenizer.
    pub tokens: Tokens,
}

impl<'a> Task<'a> {
    /// Reads the data and checks that base, data and options fit each other.
    ///
    /// # Errors
    /// When they do not; file and line are named.
    pub fn new(
        base: &'a Base,
        library: &Library,
        train: &Dataset,
        dev: &Dataset,
        options: &'a Options,
    ) -> Result<Self, Error> {
        let description = &base.description;
        let train = within_scope(train, options)?;
        let Design {
            method,
            head,
            form,
            labels,
            wording,
        } = Design::of(description, &train, options)?;
        let tokens = Tokens::read(&base.tokenizer)?;
        let outside = options.out_of_scope.as_deref();
        let encoder = Encoder::new(&tokens, description, &wording, &labels, outside)?;
        let (train, dev) = (encoder.encode(&train)?, encoder.encode(dev)?);
        let given = Given::of(head, base, library, &tokens, &labels, &options.words)?;
        let mut sizes = Sizes::of(form, description.hidden);
        (sizes.bottleneck, sizes.rank) = (options.bottleneck, options.rank);
        let mut task = Self {
            before: before(wording.kind, &labels),
            class_weights: class_weights(options.class_weights, &train.rows, labels.len()),
            extent: Extent {
                candidates: options.candidates.len(),
                cached: 0,
            },
            base,
            options,
            method,
            sizes,
            head,
            labels,
            wording,
            train,
            dev,
            given,
            tokens,
        };
        if options.consistency > 0.0 && task.dropout() == 0.0 {
            return Err(Error::Options(
                "--consistency compares answers under two draws of dropout, and there is none here; pass --dropout 0.1, or leave it out".into(),
            ));
        }
        task.cache_lower_layers(library)?;
        task.cache_texts(library)?;
        Ok(task)
    }

    /// What it takes to read answers.
    pub fn questions(&self) -> Questions<'_> {
        Questions {
            reader: self.reader(),
            pooling: self.wording.pooling,
            given: &self.given,
        }
    }

    /// How the base's output becomes answers.
    pub fn reader(&self) -> Reader<'_> {
        Reader {
            head: self.head,
            size: self.head.size(
                self.labels.len(),
                self.options.head_rank,
                &self.base.description,
            ),
            loss: Loss::of(self.wording.kind),
            reading: reading(self.wording.kind, self.wording.pooling),
            before: &self.before,
        }
    }

    /// Part of the numbers that dropout takes: what BERT was trained with; nothing on decoders and encoder-decoders, most of
    /// whose families have seen none, nor with heads that are given their columns, which learn little by heart.
    pub fn dropout(&self) -> f32 {
        let is_given = !(self.head.given)(self.reader().size).is_empty();
        let usual = match self.base.description.kind {
            Kind::Encoder if !is_given => 0.1,
            Kind::Encoder | Kind::Decoder | Kind::EncoderDecoder => 0.0,
        };
        self.options.dropout.unwrap_or(usual)
    }

    /// How rows are laid out.
    pub fn layout(&self) -> Layout<'_> {
        Layout {
            base: &self.base.description,
            form: &self.sizes.form,
            pooling: self.wording.pooling,
            class_weights: &self.class_weights,
        }
    }

    /// Where the positions go.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn token_budget(&self) -> Result<TokenBudget, Error> {
        let mut lengths: Vec<usize> = self.train.rows.iter().map(Encoded::length).collect();
        lengths.sort_unstable();
        let mask = self.base.description.mask_token;
        let mask = mask.and_then(|id| self.tokens.token(id));
        let template = self.options.template.replace(TEXT, "");
        let template = template.replace(MASK, &mask.unwrap_or_default());
        let empty = self.tokens.encode(&template)?.len();
        Ok(TokenBudget {
            prompt: self.options.tokens,
            template: empty,
            examples: self.tokens.plain(&self.options.examples)?.len(),
            longest: lengths.last().copied().unwrap_or(0),
            typical: lengths.get(lengths.len() / 2).copied().unwrap_or(0),
            positions: self.base.description.max_positions,
        })
    }
}

/// What options and training data make of a task: what its other data must fit.
struct Design {
    method: &'static Method,
    head: &'static Head,
    form: Form,
    labels: Vec<String>,
    wording: Wording,
}

impl Design {
    /// The design of a task that learns from `train`, which holds nothing out of scope.
    fn of(base: &Description, train: &Dataset, options: &Options) -> Result<Self, Error> {
        let kind = train.kind();
        let method = method(&options.method)?;
        let head = match &options.head {
            Some(name) => head(name)?,
            None => usual(kind),
        };
        let labels = train.labels();
        let form = form(method, options, base)?;
        refuse_unfit(base, method, head, kind, &labels, options)?;
        let pooling = options.pooling.unwrap_or_else(|| usual_pooling(head, base));
        let room = base.max_positions;
        let wording = Wording {
            template: format!("{}{}", options.examples, options.template),
            kind,
            pairs: train.pairs(),
            pooling,
            room: room.map(|positions| positions.saturating_sub(form.taken(base))),
            overlength: options.overlength,
        };
        Ok(Self {
            method,
            head,
            form,
            labels,
            wording,
        })
    }
}

/// Refuses `data` that a prompt learned from `train` could not be measured on: better before it is learned than behind.
///
/// # Errors
/// When an answer is not among the labels of `train`, or a text is too long and is not to be cut; the line is named.
pub fn refuse_unmeasurable(
    base: &Base,
    train: &Dataset,
    data: &Dataset,
    options: &Options,
) -> Result<(), Error> {
    let train = within_scope(train, options)?;
    let design = Design::of(&base.description, &train, options)?;
    let tokens = Tokens::read(&base.tokenizer)?;
    let outside = options.out_of_scope.as_deref();
    let Design {
        labels, wording, ..
    } = &design;
    let encoder = Encoder::new(&tokens, &base.description, wording, labels, outside)?;
    encoder.encode(data).map(|_| ())
}

/// The training examples without those that are out of scope.
fn within_scope(train: &Dataset, options: &Options) -> Result<Dataset, Error> {
    let Some(label) = &options.out_of_scope else {
        return Ok(train.clone());
    };
    let inside = train.clone().without(label);
    match inside.examples.is_empty() {
        false => Ok(inside),
        true => Err(train.at(
            1,
            format!("every example is {label:?}, which is out of scope"),
        )),
    }
}

/// Encoders are read everywhere, decoders where they have seen all: one behind an encoder has with its first token.
fn usual_pooling(head: &Head, base: &Description) -> Pooling {
    match (head.reads, base.kind) {
        (Reads::Projection, Kind::Encoder) => Pooling::Mask,
        (_, Kind::Decoder) => Pooling::Last,
        (_, Kind::EncoderDecoder) => Pooling::First,
        _ => Pooling::Mean,
    }
}

/// The form of a method's prompt over a base.
pub(crate) fn form(method: &Method, options: &Options, base: &Description) -> Result<Form, Error> {
    match Form::of(method.form, options.tokens, base) {
        Form::Embeddings { tokens, hidden, .. } => Ok(Form::Embeddings {
            tokens,
            hidden,
            place: options.place,
        }),
        Form::KeyValues { tokens, layers, .. } => {
            if options.place == Place::After {
                return Err(Error::Options(
                    "a prefix has no place behind the text; use prompt-tuning".into(),
                ));
            }
            let (first_layer, end) = options.layers.bounds(layers.len())?;
            Ok(Form::KeyValues {
                tokens,
                first_layer,
                layers: layers[first_layer..end].to_vec(),
                gated: method.gated,
                moves: Moves::Nothing,
            })
        }
    }
}

fn class_weights(weights: ClassWeights, rows: &[Encoded], classes: usize) -> Vec<f32> {
    if weights == ClassWeights::Equal {
        return Vec::new();
    }
    let mut counts = vec![0_usize; classes];
    for row in rows {
        match &row.truth {
            Truth::Class(class) => counts[*class] += 1,
            Truth::Places(places) => places
                .iter()
                .filter(|(_, class)| *class < classes)
                .for_each(|(_, class)| counts[*class] += 1),
            Truth::Classes(_) | Truth::Outside => {}
        }
    }
    let all: usize = counts.iter().sum();
    counts
        .iter()
        .map(|&count| all as f32 / (classes * count.max(1)) as f32)
        .collect()
}

/// Refuses what could not be trained, packed or run.
pub(crate) fn refuse_unfit(
    base: &Description,
    method: &Method,
    head: &Head,
    kind: AnswerKind,
    labels: &[String],
    options: &Options,
) -> Result<(), Error> {
    let refuse = |reason: String| Err(Error::Options(reason));
    if !head.answers.contains(&kind) {
        return refuse(format!(
            "a {} head does not answer as these examples do; leave --head out for one that does",
            head.name
        ));
    }
    if options.class_weights == ClassWeights::Balanced
        && matches!(kind, AnswerKind::Labels | AnswerKind::Text)
    {
        return refuse("class weights are for examples with one label and for tags".into());
    }
    if base.kind == Kind::EncoderDecoder && kind == AnswerKind::Tags {
        return refuse(
            "tags are read from the words themselves; take an encoder or a decoder for them".into(),
        );
    }
    if base.kind == Kind::Encoder && kind == AnswerKind::Text {
        return refuse(
            "an encoder does not go on with a text; take a decoder or an encoder-decoder".into(),
        );
    }
    if !base.forms.contains(&method.form) {
        return refuse(
            "the base does not take the form that this method makes; see preface check".into(),
        );
    }
    if options.tokens == 0
        || options.batch == 0
        || options.epochs == 0
        || options.candidates.is_empty()
    {
        return refuse(
            "training needs at least one virtual token, one row a batch and one epoch".into(),
        );
    }
    let Options {
        warm_up,
        clip,
        weight_decay,
        ..
    } = options;
    if !(0.0..=1.0).contains(warm_up)
        || clip.is_nan()
        || *clip <= 0.0
        || !(weight_decay.is_finite() && *weight_decay >= 0.0)
    {
        return refuse(format!(
            "the warm-up is a part of the steps from 0 to 1, not {warm_up}; the clip is above 0, not {clip}; the weight decay is not below 0, not {weight_decay}"
        ));
    }
    if let Some(rate) = options.dropout
        && !(0.0..1.0).contains(&rate)
    {
        return refuse(format!(
            "dropout takes a part from 0 up to but not including 1, not {rate}"
        ));
    }
    if !(options.consistency.is_finite() && options.consistency >= 0.0) {
        return refuse(format!(
            "what answers count by how far they are apart is not below 0, not {}",
            options.consistency
        ));
    }
    if options.rank == 0 || options.bottleneck == 0 || options.head_rank == 0 {
        return refuse("ranks and bottlenecks are at least 1".into());
    }
    let rates = options.candidates.iter().flat_map(|candidate| {
        [
            candidate.learning_rate.unwrap_or(method.learning_rate),
            candidate.head_learning_rate,
        ]
    });
    if let Some(rate) = rates
        .into_iter()
        .find(|rate| !rate.is_finite() || *rate <= 0.0)
    {
        return refuse(format!(
            "a learning rate must be a positive number, not {rate}"
        ));
    }
    if !options.words.is_empty() && head.reads != Reads::Projection {
        return refuse(format!(
            "words for the labels are for the verbaliser; a {} head reads the labels themselves",
            head.name
        ));
    }
    if kind == AnswerKind::Tags && (options.template != TEXT || !options.examples.is_empty()) {
        return refuse(
            "tags are read from the words alone; leave --template and --few-shot out".into(),
        );
    }
    refuse_labels(kind, labels, options)?;
    let most = base
        .max_positions
        .map(|positions| positions.saturating_sub(LEAST_ROOM));
    match most {
        Some(most) if options.tokens > most => refuse(format!(
            "this base takes at most {most} virtual tokens; pass fewer --tokens"
        )),
        _ => Ok(()),
    }
}

fn refuse_labels(kind: AnswerKind, labels: &[String], options: &Options) -> Result<(), Error> {
    if kind == AnswerKind::Text {
        return Ok(());
    }
    let label_bytes: usize = labels.iter().map(String::len).sum();
    let least = if kind == AnswerKind::Labels { 1 } else { 2 };
    if labels.len() < least {
        return Err(Error::Options(format!(
            "the training data have the one label {labels:?}; a task needs two or more"
        )));
    }
    if label_bytes > LABEL_BYTES {
        return Err(Error::Options(format!(
            "the labels take {label_bytes} bytes, a bundle has room for {LABEL_BYTES}; shorten them"
        )));
    }
    if !options.words.is_empty() && options.words.len() != labels.len() {
        return Err(Error::Options(format!(
            "{} words for {} labels",
            options.words.len(),
            labels.len()
        )));
    }
    Ok(())
}
