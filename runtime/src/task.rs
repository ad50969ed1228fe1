//! A task: what one verified bundle makes the base do.

mod key_values;
mod row_head;

use preface_bundle::{
    AnswerKind, AnswerPlan, Before, Form as BundleForm, HeadKind, Id, Manifest, Pooling, Positions,
    Role, Tensor, VerifiedBundle,
};

use crate::{
    EngineKind, Error,
    engine::vectors::wide,
    image::{Description, Kind},
    text::Template,
};

pub(crate) use key_values::KeyValues;
#[cfg(test)]
pub(crate) use key_values::LayerKeyValues;
pub(crate) use row_head::{Measure, RowHead};

/// A task as it is loaded: dequantised, and checked against the base.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub id: String,
    pub base_id: Id,
    pub tokenizer_id: Id,
    pub form: Form,
    pub head: Head,
    pub labels: Vec<String>,
    pub template: Template,
    /// Which rows make the features; a token head reads each row by itself.
    pub pooling: Pooling,
    pub answer: AnswerPlan,
}

/// How the prompt enters the base.
#[derive(Clone, Debug)]
pub(crate) enum Form {
    /// Rows beside those of the text, `[tokens, hidden]`.
    Embeddings {
        tokens: usize,
        rows: Vec<f32>,
        place: Place,
    },
    /// Keys and values before those of the text; their numbers are the engine's once the task is added to a session.
    KeyValues(KeyValues),
    /// Rows before those of the text that were run once: their keys and values are kept.
    Ran { tokens: usize },
}

/// Where the rows of a prompt stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    BeforeText,
    AfterText,
}

/// What turns the base's output into a logit for each label.
#[derive(Clone, Debug)]
pub(crate) enum Head {
    Rows(RowHead),
    Words(Words),
    Text(Limits),
}

/// When a generated text ends.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub most_tokens: usize,
    /// Tokens that end it.
    pub stops: Vec<u32>,
}

impl Head {
    fn of_bundle(bundle: &VerifiedBundle<'_>, manifest: &Manifest<'_>) -> Result<Self, String> {
        let bias = bundle.tensor(Role::HeadBias);
        let bias = bias.map(|bias| numbers(&bias)).transpose()?;
        let bias = bias.unwrap_or_else(|| vec![0.0; manifest.head.classes.into()]);
        match manifest.head.kind {
            HeadKind::Linear | HeadKind::TokenLinear => {
                let weight = bundle.tensor(Role::HeadWeight);
                let weight = weight.ok_or("its head has no weight")?;
                Ok(Self::Rows(RowHead::linear(numbers(&weight)?, bias)))
            }
            HeadKind::FactoredLinear => {
                let factors: Vec<_> = bundle.tensors_of(Role::HeadFactor).collect();
                let [first, second] = &factors[..] else {
                    return Err("its head has not two factors".into());
                };
                Ok(Self::Rows(RowHead::linear(product(first, second)?, bias)))
            }
            HeadKind::TanhLinear => {
                let factors: Vec<_> = bundle.tensors_of(Role::HeadFactor).collect();
                let [outer, inner] = &factors[..] else {
                    return Err("its head has not two layers".into());
                };
                Ok(Self::Rows(RowHead::behind_tanh(outer, inner, bias)?))
            }
            HeadKind::LabelText => Ok(Self::Rows(RowHead::label_text(bias))),
            HeadKind::Verbaliser if manifest.pooling == Some(Pooling::Mean) => Err(
                "its verbaliser reads the mean of all tokens; train it with --pooling last".into(),
            ),
            HeadKind::Verbaliser if manifest.pooling == Some(Pooling::Prompt) => {
                Err("its verbaliser reads a row of the prompt; train it with --pooling last".into())
            }
            HeadKind::Verbaliser => Words::of_bundle(manifest).map(Self::Words),
            HeadKind::Generation => {
                let limits = manifest
                    .decode_limits
                    .ok_or("it does not say when its texts end")?;
                Ok(Self::Text(Limits {
                    most_tokens: limits.max_tokens.into(),
                    stops: limits.stop_ids().collect(),
                }))
            }
            kind => Err(format!(
                "its head is {}, which this runtime does not serve; update preface",
                kind.name()
            )),
        }
    }

    /// Whether it has all that its labels need for rows of `hidden` numbers.
    fn fits(&self, classes: usize, hidden: usize) -> bool {
        match self {
            Self::Rows(head) => head.fits(classes, hidden),
            Self::Words(Words(words)) => words.len() == classes && classes > 0,
            Self::Text(_) => classes == 0,
        }
    }
}

/// The base's own logits at the tokens that speak for each label (Schick and Schuetze 2021, section 3): a label of
/// several tokens has the mean of theirs.
#[derive(Clone, Debug)]
pub(crate) struct Words(Vec<Vec<u32>>);

impl Words {
    fn of_bundle(manifest: &Manifest<'_>) -> Result<Self, String> {
        let words = manifest.verbaliser.ok_or("its verbaliser has no tokens")?;
        Ok(Self(words.iter().map(Iterator::collect).collect()))
    }

    /// Writes the logit of each label, of `scores` `[vocabulary]`, to `logits`.
    ///
    /// # Errors
    /// [`Error::NotANumber`] where one is infinite or no number.
    pub fn logits(&self, scores: &[f32], logits: &mut Vec<f32>) -> Result<(), Error> {
        logits.clear();
        logits.extend(self.0.iter().map(|ids| {
            let scores = ids.iter().filter_map(|&id| scores.get(id as usize));
            scores.sum::<f32>() / ids.len() as f32
        }));
        finite(logits)
    }

    /// Whether all tokens are among the `vocabulary`.
    ///
    /// # Errors
    /// The one that is not.
    pub fn fit(&self, vocabulary: usize) -> Result<(), String> {
        let beyond = |&&id: &&u32| usize::try_from(id).is_ok_and(|id| id >= vocabulary);
        match self.0.iter().flatten().find(beyond) {
            None => Ok(()),
            Some(id) => Err(format!(
                "token {id} of its verbaliser is outside the vocabulary of {vocabulary}"
            )),
        }
    }
}

/// # Errors
/// [`Error::NotANumber`] where there is no logit, or one is infinite or no number.
fn finite(logits: &[f32]) -> Result<(), Error> {
    match !logits.is_empty() && logits.iter().all(|logit| logit.is_finite()) {
        true => Ok(()),
        false => Err(Error::NotANumber),
    }
}

/// The product of two factors, `[rows, rank]` and `[rank, columns]`.
fn product(first: &Tensor<'_>, second: &Tensor<'_>) -> Result<Vec<f32>, String> {
    let columns = second.spec().dim(1);
    let (rank, second) = (first.spec().dim(1), numbers(second)?);
    let mut product = Vec::new();
    for row in numbers(first)?.chunks_exact(rank.max(1)) {
        let column = |column: usize| -> f32 {
            let numbers = second.iter().skip(column).step_by(columns);
            row.iter()
                .zip(numbers)
                .map(|(one, other)| one * other)
                .sum()
        };
        product.extend((0..columns).map(column));
    }
    Ok(product)
}

/// Pools `rows` (`[text tokens, hidden]`) into `features` (`[hidden]`).
pub(crate) fn pool(pooling: Pooling, rows: &[f32], features: &mut [f32]) {
    let hidden = features.len();
    let tokens = rows.len() / hidden.max(1);
    match pooling {
        Pooling::First | Pooling::Prompt => features.copy_from_slice(&rows[..hidden]),
        Pooling::Last => features.copy_from_slice(&rows[rows.len() - hidden..]),
        _ => {
            features.fill(0.0);
            for row in rows.chunks_exact(hidden) {
                features
                    .iter_mut()
                    .zip(row)
                    .for_each(|(sum, number)| *sum += number);
            }
            features.iter_mut().for_each(|sum| *sum /= tokens as f32);
        }
    }
}

impl Task {
    /// Dequantises and expands a bundle.
    ///
    /// # Errors
    /// When the bundle was verified without comparing its base, or has a head or a plan that no engine here runs.
    pub fn of_bundle(bundle: &VerifiedBundle<'_>) -> Result<Self, Error> {
        let manifest = bundle.manifest();
        Self::expand(bundle, manifest).map_err(|reason| Error::Task {
            task: manifest.task.to_owned(),
            reason,
        })
    }

    fn expand(bundle: &VerifiedBundle<'_>, manifest: &Manifest<'_>) -> Result<Self, String> {
        if !bundle.is_bound() {
            return Err("it was verified without comparing its base and tokenizer".into());
        }
        let pooling = match manifest.head.kind {
            HeadKind::TokenLinear => Some(Pooling::Mean),
            HeadKind::Generation => Some(Pooling::Last),
            _ => manifest.pooling,
        };
        let template =
            Template::parse(manifest.template).ok_or("its template has no place for a text")?;
        Ok(Self {
            id: manifest.task.to_owned(),
            base_id: manifest.base_id,
            tokenizer_id: manifest.tokenizer_id,
            form: Form::of_bundle(bundle, manifest)?,
            head: Head::of_bundle(bundle, manifest)?,
            pooling: pooling.ok_or("it does not say which hidden rows its head reads")?,
            answer: manifest.answer,
            labels: manifest.labels.iter().map(str::to_owned).collect(),
            template,
        })
    }

    /// What may stand before each of its labels, where they are tags of a sequence.
    pub fn before(&self) -> Vec<Before> {
        match self.answer.kind {
            AnswerKind::Tags => Before::each(self.labels.iter().map(String::as_str)).collect(),
            _ => Vec::new(),
        }
    }

    /// Positions that the prompt takes from the text.
    pub fn prompt_positions(&self) -> usize {
        match self.form {
            Form::Embeddings { tokens, .. } | Form::Ran { tokens } => tokens,
            Form::KeyValues(KeyValues {
                tokens,
                positions: Positions::AfterPrompt,
                ..
            }) => tokens,
            Form::KeyValues(_) => 0,
        }
    }

    /// Compares the task with the base it is to run on.
    pub fn check(&self, base: &Description, engine: EngineKind) -> Result<(), Error> {
        self.check_ids(base)?;
        self.refused(self.misfit(base, engine))
    }

    /// Compares the ids of base and tokenizer alone.
    pub fn check_ids(&self, base: &Description) -> Result<(), Error> {
        self.refused(self.other_base(base))
    }

    fn refused(&self, reason: Option<String>) -> Result<(), Error> {
        reason.map_or(Ok(()), |reason| {
            Err(Error::Task {
                task: self.id.clone(),
                reason,
            })
        })
    }

    fn other_base(&self, base: &Description) -> Option<String> {
        if self.base_id != base.base_id {
            return Some(format!(
                "it was trained for base {}, this is {}",
                self.base_id, base.base_id
            ));
        }
        if self.tokenizer_id != base.tokenizer_id {
            return Some(format!(
                "it was trained with tokenizer {}, this has {}",
                self.tokenizer_id, base.tokenizer_id
            ));
        }
        None
    }

    fn misfit(&self, base: &Description, engine: EngineKind) -> Option<String> {
        if base.kind == Kind::EncoderDecoder && self.answer.kind == AnswerKind::Tags {
            return Some("it tags words, which a decoder behind an encoder does not read".into());
        }
        let classes = self.labels.len();
        if !self.head.fits(classes, base.hidden) {
            return Some(format!(
                "its head has not {classes} rows of {}",
                base.hidden
            ));
        }
        let taken = match &self.form {
            Form::KeyValues(prefix) if prefix.is_of_decoder() => prefix.tokens,
            _ => self.prompt_positions(),
        };
        if let Some(positions) = base.max_positions.filter(|&positions| taken >= positions) {
            return Some(format!(
                "its prompt leaves no room in {positions} positions"
            ));
        }
        if self.pooling == Pooling::Prompt && base.kind != Kind::Encoder {
            return Some("its head reads the first row of its prompt, which is the same for every text of a base that is no encoder".into());
        }
        self.form.misfit(base, engine)
    }
}

impl Form {
    /// Rows that stand before the text's.
    pub fn rows_before_text(&self) -> usize {
        match self {
            Self::Embeddings {
                tokens,
                place: Place::BeforeText,
                ..
            } => *tokens,
            _ => 0,
        }
    }

    /// Rows that stand before or behind the text's.
    pub fn rows_beside_text(&self) -> usize {
        match self {
            Self::Embeddings { tokens, .. } => *tokens,
            Self::KeyValues(_) | Self::Ran { .. } => 0,
        }
    }

    fn of_bundle(bundle: &VerifiedBundle<'_>, manifest: &Manifest<'_>) -> Result<Self, String> {
        match (manifest.form, manifest.positions) {
            (BundleForm::Embeddings { tokens, .. }, positions) => {
                let rows = bundle
                    .tensor(Role::Embeddings)
                    .ok_or("its prompt is missing")?;
                Ok(Self::Embeddings {
                    tokens: tokens.into(),
                    rows: numbers(&rows)?,
                    place: match positions {
                        Positions::TextFromZero => Place::AfterText,
                        _ => Place::BeforeText,
                    },
                })
            }
            (BundleForm::KeyValues { tokens, .. }, positions) => Ok(Self::KeyValues(KeyValues {
                tokens: tokens.into(),
                positions,
                layers: key_values::layers(bundle)?,
            })),
            (form, _) => Err(format!("its form {} is not supported", form.name())),
        }
    }

    fn misfit(&self, base: &Description, engine: EngineKind) -> Option<String> {
        match self {
            Self::Embeddings { tokens, rows, .. }
                if rows.len() != tokens * base.embedding_width() =>
            {
                Some(format!(
                    "its prompt is not rows of {}",
                    base.embedding_width()
                ))
            }
            Self::Embeddings { .. } | Self::Ran { .. } => None,
            Self::KeyValues(prefix) => prefix.misfit(base, engine),
        }
    }
}

fn numbers(tensor: &Tensor<'_>) -> Result<Vec<f32>, String> {
    let mut numbers = vec![0.0; tensor.spec().elements()];
    dequantise(tensor, &mut numbers)?;
    Ok(numbers)
}

fn dequantise(tensor: &Tensor<'_>, numbers: &mut [f32]) -> Result<(), String> {
    let written = wide!(|tensor: &Tensor<'_>,
                         numbers: &mut [f32]|
     -> Result<(), preface_bundle::Error> { tensor.dequantise(numbers) });
    written.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pooling_takes_rows_of_the_text() {
        let rows = [1.0, 10.0, 2.0, 20.0, 6.0, 60.0];
        let table = [
            (Pooling::Mean, [3.0, 30.0]),
            (Pooling::First, [1.0, 10.0]),
            (Pooling::Last, [6.0, 60.0]),
        ];
        for (pooling, expected) in table {
            let mut features = [9.0; 2];
            pool(pooling, &rows, &mut features);
            assert_eq!(features, expected, "{pooling:?}");
        }
    }

    #[test]
    fn a_verbaliser_speaks_with_tokens_of_the_vocabulary_alone() {
        let words = Words(vec![vec![3, 9], vec![7]]);
        assert_eq!(words.fit(10), Ok(()));
        for vocabulary in [0, 7, 9] {
            let first = if vocabulary == 0 { 3 } else { 9 };
            let refused = words.fit(vocabulary).unwrap_err();
            assert!(
                refused.contains(&format!("token {first} ")),
                "{vocabulary}: {refused}"
            );
        }
    }
}
