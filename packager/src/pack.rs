//! From an adapter to a signed bundle.

use preface_bundle::{
    ALGORITHM_ED25519, Binding, Codec, Dtype, ENTRY_BYTES, Frame, HeadKind, Id, Namespace, Policy,
    Pooling, Positions, Role, SIGNATURE_MAGIC, TensorSpec, TensorTable, TrustStore, is_name,
    is_task_id,
};

use crate::{
    Error, SecretKey,
    adapter::{Adapter, Form, Head, Layer},
    encode::{decode, encode},
    manifest::{Draft, Fields},
    quantise::{FloatTensor, Quantised, relative},
};

/// What a bundle says beside its adapter.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the bundle makes the base do.
    pub task: String,
    /// Grows with every release of the task.
    pub sequence: u64,
    /// Number format of prompt and head weight.
    pub dtype: Dtype,
    /// Name of the fleet that it is for.
    pub namespace: String,
    /// Version of the trust store that it is released under.
    pub trust_version: u32,
    /// Compared with a trust store's `min-security`.
    pub security_version: u32,
    /// When it was made, unix seconds.
    pub created: u64,
    /// Last second of validity, unix seconds; 0 is never.
    pub not_after: u64,
}

impl Options {
    /// A first release into the namespace `default`, in i8, without a date.
    pub fn new(task: &str, sequence: u64) -> Self {
        Self {
            task: task.to_owned(),
            sequence,
            dtype: Dtype::I8,
            namespace: "default".to_owned(),
            trust_version: 1,
            security_version: 0,
            created: 0,
            not_after: 0,
        }
    }

    fn check(&self) -> Result<(), Error> {
        let refuse = |option, value: &str| {
            let problem =
                format!("{value:?} is no name: lower-case letters, digits, . _ -, at most 47");
            Err(Error::Option { option, problem })
        };
        match (is_task_id(&self.task), is_name(&self.namespace)) {
            (true, true) => Ok(()),
            (false, _) => refuse("--task", &self.task),
            (_, false) => refuse("--namespace", &self.namespace),
        }
    }
}

/// A bundle, and what quantising it cost.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Packed {
    /// The file.
    pub bytes: Vec<u8>,
    /// Its id.
    pub bundle_id: Id,
    /// How its payload is stored.
    pub codec: Codec,
    /// Relative L2 error of all tensors together.
    pub loss: f64,
    /// The tensors one by one.
    pub tensors: Vec<TensorReport>,
}

/// One tensor of a bundle.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct TensorReport {
    /// Its entry in the tensor table.
    pub spec: TensorSpec,
    /// Relative L2 error of its values.
    pub loss: f64,
}

/// Quantises, compresses and signs an adapter, then verifies the result as a device would.
///
/// The same adapter, options and key give the same bytes.
///
/// # Errors
/// [`Error::Option`], [`Error::PayloadTooLarge`], [`Error::ManifestTooLarge`],
/// [`Error::Signature`], [`Error::SelfCheck`].
pub fn pack(adapter: &Adapter, options: &Options, key: &SecretKey) -> Result<Packed, Error> {
    options.check()?;
    let tensors = quantise(adapter, options.dtype)?;
    let decoded: Vec<u8> = tensors
        .iter()
        .flat_map(|tensor| tensor.bytes.iter().copied())
        .collect();
    let table: Vec<u8> = tensors
        .iter()
        .flat_map(|tensor| tensor.spec.to_bytes())
        .collect();
    let read =
        TensorTable::read(&table, decoded.len()).map_err(|source| Error::SelfCheck { source })?;
    let (codec, stored) = encode(&decoded, read)?;
    let prefix = draft(adapter, options, &table, codec, &stored, &decoded)?.to_prefix()?;
    let bytes = [prefix.clone(), stored, signature_block(&prefix, key)?].concat();
    let bundle_id = verify(&bytes, adapter, options, key, &decoded)
        .map_err(|source| Error::SelfCheck { source })?;
    let sum = |part: fn(&Quantised) -> f64| tensors.iter().map(part).sum();
    let loss = relative(sum(|tensor| tensor.error), sum(|tensor| tensor.energy));
    let report = |tensor: &Quantised| TensorReport {
        spec: tensor.spec,
        loss: tensor.loss(),
    };
    Ok(Packed {
        bytes,
        bundle_id,
        codec,
        loss,
        tensors: tensors.iter().map(report).collect(),
    })
}

fn quantise(adapter: &Adapter, dtype: Dtype) -> Result<Vec<Quantised>, Error> {
    let bias_dtype = if dtype == Dtype::F32 {
        Dtype::F32
    } else {
        Dtype::F16
    };
    let mut offset = 0;
    let mut quantised = Vec::new();
    for tensor in float_tensors(adapter) {
        let dtype = if tensor.role == Role::HeadBias {
            bias_dtype
        } else {
            dtype
        };
        let one = Quantised::new(&tensor, dtype, offset)?;
        offset += one.bytes.len();
        quantised.push(one);
    }
    Ok(quantised)
}

/// The adapter's tensors in the order of the tensor table.
fn float_tensors(adapter: &Adapter) -> Vec<FloatTensor> {
    let mut tensors = match &adapter.description.form {
        Form::Embeddings { tokens, hidden } => vec![FloatTensor {
            role: Role::Embeddings,
            layer: 0,
            dims: vec![*tokens, *hidden],
            values: adapter.prompt.clone(),
            rows: vec![usize::from(*hidden)],
        }],
        Form::KeyValues { tokens, layers } => key_values(&adapter.prompt, *tokens, layers),
    };
    let Head::Linear { classes, hidden } = adapter.description.head;
    tensors.push(FloatTensor {
        role: Role::HeadWeight,
        layer: 0,
        dims: vec![classes, hidden],
        values: adapter.head_weight.clone(),
        rows: vec![usize::from(hidden)],
    });
    tensors.push(FloatTensor {
        role: Role::HeadBias,
        layer: 0,
        dims: vec![classes],
        values: adapter.head_bias.clone(),
        rows: vec![],
    });
    tensors
}

/// One tensor `[layers, 2, kv_heads, tokens, head_dim]` for each run of layers that are alike, from
/// rows `[tokens, layers * 2 * kv_heads * head_dim]`.
fn key_values(prompt: &[f32], tokens: u16, layers: &[Layer]) -> Vec<FloatTensor> {
    let width: usize = layers.iter().map(Layer::width).sum();
    let (mut first, mut column) = (0usize, 0usize);
    let mut tensors = Vec::new();
    for run in layers.chunk_by(|one, other| one == other) {
        let Some(Layer { kv_heads, head_dim }) = run.first().copied() else {
            continue;
        };
        let head = usize::from(head_dim);
        let heads = run.len() * 2 * usize::from(kv_heads);
        let columns = (0..heads).map(|at| column + at * head);
        let vector = |(column, token): (usize, usize)| {
            let start = token * width + column;
            prompt
                .get(start..start + head)
                .unwrap_or_default()
                .iter()
                .copied()
        };
        let by_head =
            columns.flat_map(|column| (0..usize::from(tokens)).map(move |token| (column, token)));
        tensors.push(FloatTensor {
            role: Role::KeyValues,
            layer: u16::try_from(first).unwrap_or(u16::MAX),
            dims: vec![
                u16::try_from(run.len()).unwrap_or(u16::MAX),
                2,
                kv_heads,
                tokens,
                head_dim,
            ],
            values: by_head.flat_map(vector).collect(),
            rows: vec![head, head * usize::from(tokens)],
        });
        first += run.len();
        column += heads * head;
    }
    tensors
}

fn draft<'a>(
    adapter: &'a Adapter,
    options: &'a Options,
    table: &[u8],
    codec: Codec,
    stored: &'a [u8],
    decoded: &'a [u8],
) -> Result<Draft<'a>, Error> {
    let description = &adapter.description;
    let receipt = serde_json::Value::Object(receipt(adapter)).to_string();
    Ok(Draft {
        namespace: Namespace::of_name(&options.namespace),
        base_id: adapter.base_id().unwrap_or(Id([0; 32])),
        tokenizer_id: adapter.tokenizer_id().unwrap_or(Id([0; 32])),
        stored,
        decoded,
        trust_version: options.trust_version,
        security_version: options.security_version,
        sequence: options.sequence,
        created: options.created,
        not_after: options.not_after,
        min_runtime: 1,
        codec,
        form: form(&description.form),
        task: &options.task,
        fields: Fields {
            tensors: table.to_vec(),
            labels: &description.labels,
            head: head(description.head),
            template: &description.template,
            pooling: pooling(&description.pooling)?,
            positions: positions(&description.positions)?,
            probes: &description.probes,
            metrics: description
                .metrics
                .iter()
                .map(|(name, value)| (name.as_str(), *value))
                .collect(),
            token_budget: description.token_budget,
            receipt,
        },
    })
}

/// The trainer's receipt with the method in it.
fn receipt(adapter: &Adapter) -> serde_json::Map<String, serde_json::Value> {
    let mut receipt = adapter.description.receipt.clone();
    receipt.insert("method".into(), adapter.description.method.as_str().into());
    receipt
}

fn form(form: &Form) -> preface_bundle::Form {
    match form {
        Form::Embeddings { tokens, hidden } => preface_bundle::Form::Embeddings {
            tokens: *tokens,
            hidden: *hidden,
        },
        Form::KeyValues { tokens, layers } => preface_bundle::Form::KeyValues {
            tokens: *tokens,
            layers: u16::try_from(layers.len()).unwrap_or(u16::MAX),
        },
    }
}

fn head(head: Head) -> (HeadKind, u16, u16) {
    match head {
        Head::Linear { classes, hidden } => (HeadKind::Linear, classes, hidden),
    }
}

fn pooling(name: &str) -> Result<Pooling, Error> {
    [Pooling::Mean, Pooling::First, Pooling::Last]
        .into_iter()
        .find(|one| one.name() == name)
        .ok_or_else(|| Error::Option {
            option: "pooling",
            problem: format!("{name:?} is not mean, first or last"),
        })
}

fn positions(name: &str) -> Result<Positions, Error> {
    [Positions::TextFromZero, Positions::AfterPrompt]
        .into_iter()
        .find(|one| one.name() == name)
        .ok_or_else(|| Error::Option {
            option: "positions",
            problem: format!("{name:?} is not text-from-zero or after-prompt"),
        })
}

/// A signature block with one signature.
fn signature_block(prefix: &[u8], key: &SecretKey) -> Result<Vec<u8>, Error> {
    let mut block = SIGNATURE_MAGIC.to_vec();
    block.extend(1u16.to_le_bytes());
    block.extend(u16::try_from(ENTRY_BYTES).unwrap_or(u16::MAX).to_le_bytes());
    block.extend(ALGORITHM_ED25519.to_le_bytes());
    block.extend([0; 6]);
    block.extend(key.public().id().0);
    block.extend(key.sign(prefix)?);
    Ok(block)
}

/// Verifies the bundle as a device would that trusts this key, and compares the tensors.
fn verify(
    file: &[u8],
    adapter: &Adapter,
    options: &Options,
    key: &SecretKey,
    decoded: &[u8],
) -> Result<Id, preface_bundle::Error> {
    let Options {
        namespace,
        trust_version,
        security_version,
        ..
    } = options;
    let trust = format!(
        "preface-trust v1\nnamespace {namespace}\nversion {}\nthreshold 1\nmin-security {security_version}\nkey {}\n",
        trust_version.max(&1),
        key.public()
    );
    let store = TrustStore::parse(&trust)?;
    let required = |id: Option<Id>| id.map_or(Binding::Unchecked, Binding::Required);
    let policy = Policy {
        base: required(adapter.base_id()),
        tokenizer: required(adapter.tokenizer_id()),
        ..Policy::unbound()
    };
    let admitted = Frame::parse(file)?.authenticate(&store)?.admit(&policy)?;
    let again = decode(&admitted)?;
    let bundle = admitted.open(&again)?;
    match again == decoded && bundle.manifest().task == options.task {
        true => Ok(bundle.bundle_id()),
        false => Err(preface_bundle::Error::TensorDigest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_values_are_transposed_and_split_where_layers_differ() {
        let wide = Layer {
            kv_heads: 2,
            head_dim: 2,
        };
        let narrow = Layer {
            kv_heads: 1,
            head_dim: 2,
        };
        let layers = [wide, narrow, narrow];
        let width = 8 + 4 + 4;
        let prompt: Vec<f32> = (0..3)
            .flat_map(|token| (0..width).map(move |column| (100 * token + column) as f32))
            .collect();
        let tensors = key_values(&prompt, 3, &layers);
        assert_eq!(tensors.len(), 2);
        assert_eq!(
            (tensors[0].layer, tensors[0].dims.as_slice()),
            (0, &[1, 2, 2, 3, 2][..])
        );
        assert_eq!(
            (tensors[1].layer, tensors[1].dims.as_slice()),
            (1, &[2, 2, 1, 3, 2][..])
        );
        assert_eq!(
            tensors[0].values[..8],
            [0., 1., 100., 101., 200., 201., 2., 3.]
        );
        let values_of_layer_2 = &tensors[1].values[2 * 6 + 6..];
        assert_eq!(values_of_layer_2, [14., 15., 114., 115., 214., 215.]);
        assert_eq!(
            tensors
                .iter()
                .map(|tensor| tensor.values.len())
                .sum::<usize>(),
            prompt.len()
        );
    }
}
