//! A task: what one verified bundle makes the base do.

use preface_bundle::{
    Form as BundleForm, HeadKind, Id, Manifest, Pooling, Positions, Role, Tensor, VerifiedBundle,
};

use crate::{
    Error,
    image::{Description, Layer},
    text::Template,
};

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
    pub pooling: Pooling,
}

/// How the prompt enters the base.
#[derive(Clone, Debug)]
pub(crate) enum Form {
    /// Rows before those of the text, `[tokens, hidden]`.
    Embeddings { tokens: usize, rows: Vec<f32> },
    /// Keys and values before those of the text, in every layer.
    KeyValues(KeyValues),
}

/// Keys and values of a prefix.
#[derive(Clone, Debug)]
pub(crate) struct KeyValues {
    pub tokens: usize,
    pub layers: Vec<LayerKeyValues>,
}

/// One layer's keys and values, each `[kv_heads, tokens, head_dim]`.
#[derive(Clone, Debug)]
pub(crate) struct LayerKeyValues {
    pub shape: Layer,
    pub keys: Vec<f32>,
    pub values: Vec<f32>,
}

impl KeyValues {
    /// The prefix of a task that has none.
    pub fn empty(layers: &[Layer]) -> Self {
        let layers = layers.iter().map(|&shape| LayerKeyValues {
            shape,
            keys: Vec::new(),
            values: Vec::new(),
        });
        Self {
            tokens: 0,
            layers: layers.collect(),
        }
    }
}

/// A linear head: `logits = weight features + bias`.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    /// `[classes, hidden]`.
    pub weight: Vec<f32>,
    /// `[classes]`.
    pub bias: Vec<f32>,
}

impl Head {
    fn of_bundle(bundle: &VerifiedBundle<'_>, manifest: &Manifest<'_>) -> Result<Self, String> {
        let kind = manifest.head.kind;
        if kind != HeadKind::Linear {
            return Err(format!(
                "its head is {}, this runtime has linear heads",
                kind.name()
            ));
        }
        let weight = bundle
            .tensor(Role::HeadWeight)
            .ok_or("its head has no weight")?;
        let bias = bundle
            .tensor(Role::HeadBias)
            .map(|bias| numbers(&bias))
            .transpose()?;
        Ok(Self {
            weight: numbers(&weight)?,
            bias: bias.unwrap_or_else(|| vec![0.0; manifest.head.classes.into()]),
        })
    }

    /// The class of the greatest logit and its probability under softmax; `scores` is room for the logits.
    pub fn best(&self, features: &[f32], scores: &mut Vec<f32>) -> (usize, f32) {
        scores.clear();
        let rows = self.weight.chunks_exact(features.len().max(1));
        scores.extend(rows.zip(&self.bias).map(|(row, bias)| {
            let product: f32 = row
                .iter()
                .zip(features)
                .map(|(weight, feature)| weight * feature)
                .sum();
            product + bias
        }));
        let first = (0, f32::NEG_INFINITY);
        let better = |best: (usize, f32), (class, &logit): (usize, &f32)| {
            if logit > best.1 { (class, logit) } else { best }
        };
        let (class, logit) = scores.iter().enumerate().fold(first, better);
        let total: f32 = scores.iter().map(|score| (score - logit).exp()).sum();
        (class, 1.0 / total)
    }
}

/// Pools `rows` (`[text tokens, hidden]`) into `features` (`[hidden]`).
pub(crate) fn pool(pooling: Pooling, rows: &[f32], features: &mut [f32]) {
    let hidden = features.len();
    let tokens = rows.len() / hidden.max(1);
    match pooling {
        Pooling::First => features.copy_from_slice(&rows[..hidden]),
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
        let pooling = manifest
            .pooling
            .ok_or("it does not say which hidden rows its head reads")?;
        let template =
            Template::parse(manifest.template).ok_or("its template has no place for a text")?;
        Ok(Self {
            id: manifest.task.to_owned(),
            base_id: manifest.base_id,
            tokenizer_id: manifest.tokenizer_id,
            form: Form::of_bundle(bundle, manifest)?,
            head: Head::of_bundle(bundle, manifest)?,
            labels: manifest.labels.iter().map(str::to_owned).collect(),
            template,
            pooling,
        })
    }

    /// Positions that the prompt takes from the text.
    pub fn prompt_positions(&self) -> usize {
        match self.form {
            Form::Embeddings { tokens, .. } => tokens,
            Form::KeyValues(_) => 0,
        }
    }

    /// Compares the task with the base it is to run on.
    pub fn check(&self, base: &Description) -> Result<(), Error> {
        let reason = self.misfit(base);
        reason.map_or(Ok(()), |reason| {
            Err(Error::Task {
                task: self.id.clone(),
                reason,
            })
        })
    }

    fn misfit(&self, base: &Description) -> Option<String> {
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
        let classes = self.labels.len();
        if classes == 0
            || self.head.bias.len() != classes
            || self.head.weight.len() != classes * base.hidden
        {
            return Some(format!(
                "its head has not {classes} rows of {}",
                base.hidden
            ));
        }
        if let Some(positions) = base
            .max_positions
            .filter(|&positions| self.prompt_positions() >= positions)
        {
            return Some(format!(
                "its prompt leaves no room in {positions} positions"
            ));
        }
        self.form.misfit(base)
    }
}

impl Form {
    fn of_bundle(bundle: &VerifiedBundle<'_>, manifest: &Manifest<'_>) -> Result<Self, String> {
        match (manifest.form, manifest.positions) {
            (BundleForm::Embeddings { tokens, .. }, Positions::AfterPrompt) => {
                let rows = bundle
                    .tensor(Role::Embeddings)
                    .ok_or("its prompt is missing")?;
                Ok(Self::Embeddings {
                    tokens: tokens.into(),
                    rows: numbers(&rows)?,
                })
            }
            (BundleForm::KeyValues { tokens, .. }, Positions::TextFromZero) => {
                let mut layers = Vec::new();
                for run in bundle.tensors_of(Role::KeyValues) {
                    if usize::from(run.spec().layer) != layers.len() {
                        return Err(format!("layer {} has no prefix", layers.len()));
                    }
                    layers.extend(layers_of(&run)?);
                }
                Ok(Self::KeyValues(KeyValues {
                    tokens: tokens.into(),
                    layers,
                }))
            }
            (form, positions) => Err(format!(
                "its form {} with positions {} is not supported",
                form.name(),
                positions.name()
            )),
        }
    }

    fn misfit(&self, base: &Description) -> Option<String> {
        match self {
            Self::Embeddings { tokens, rows } => {
                let fits = rows.len() == tokens * base.hidden;
                (!fits).then(|| format!("its prompt is not rows of {}", base.hidden))
            }
            Self::KeyValues(KeyValues { tokens, layers }) => {
                let fits = layers.len() == base.layers.len()
                    && layers.iter().zip(&base.layers).all(|(layer, shape)| {
                        let numbers = shape.kv_heads * tokens * shape.head_dim;
                        layer.shape == *shape
                            && layer.keys.len() == numbers
                            && layer.values.len() == numbers
                    });
                (!fits).then(|| "its prefix has other layers or heads".to_owned())
            }
        }
    }
}

/// The layers of one run, `[layers, 2, kv_heads, tokens, head_dim]`.
fn layers_of(run: &Tensor<'_>) -> Result<Vec<LayerKeyValues>, String> {
    let shape = Layer {
        kv_heads: run.spec().dim(2),
        head_dim: run.spec().dim(4),
    };
    let half = shape.kv_heads * run.spec().dim(3) * shape.head_dim;
    let numbers = numbers(run)?;
    let layers = numbers.chunks_exact(2 * half).map(|layer| {
        let (keys, values) = layer.split_at(half);
        LayerKeyValues {
            shape,
            keys: keys.to_vec(),
            values: values.to_vec(),
        }
    });
    Ok(layers.collect())
}

fn numbers(tensor: &Tensor<'_>) -> Result<Vec<f32>, String> {
    let mut numbers = vec![0.0; tensor.spec().elements()];
    tensor
        .dequantise(&mut numbers)
        .map_err(|error| error.to_string())?;
    Ok(numbers)
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
    fn the_greatest_logit_wins_with_its_probability() {
        let head = Head {
            weight: vec![1.0, 0.0, 0.0, 1.0, 1.0, 1.0],
            bias: vec![0.0, 0.0, -3.0],
        };
        let (class, score) = head.best(&[1.0, 3.0], &mut Vec::new());
        assert_eq!(class, 1);
        let expected = 3f32.exp() / (1f32.exp() + 3f32.exp() + 1f32.exp());
        assert!((score - expected).abs() < 1e-6, "{score}");
    }
}
