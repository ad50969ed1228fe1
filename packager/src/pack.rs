//! From an adapter to a signed bundle.

use preface_bundle::{
    AnswerPlan, Binding, Codec, Dtype, ENTRY_BYTES, Frame, HeadKind, Id, Namespace, Policy,
    Pooling, Positions, TensorSpec, TensorTable, is_name, is_task_id,
};

use crate::{
    Encoding, Error, SecretKey,
    adapter::Adapter,
    description::{Description, Form},
    encode::encode,
    manifest::{Draft, Fields},
    quantise::{Quantised, relative},
    signing::{Signing, verify},
    tensors::quantise,
};

/// Bytes of a signature block before its entries.
const BLOCK_HEADER_BYTES: usize = 8;

/// What a bundle says beside its adapter.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the bundle makes the base do.
    pub task: String,
    /// Grows with every release of the task.
    pub sequence: u64,
    /// Number formats of prompt and head.
    pub encoding: Encoding,
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
            encoding: Encoding::of(Dtype::I8),
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

/// Quantises, compresses and signs an adapter, then verifies the result as a device would that demands all the keys.
///
/// The same adapter, options and keys give the same bytes.
///
/// # Errors
/// [`Error::Option`], [`Error::PayloadTooLarge`], [`Error::ManifestTooLarge`],
/// [`Error::Signature`], [`Error::SelfCheck`].
pub fn pack(adapter: &Adapter, options: &Options, keys: &[SecretKey]) -> Result<Packed, Error> {
    let unsigned = Unsigned::of(adapter, options)?;
    let file = [&unsigned.prefix[..], &unsigned.stored].concat();
    let mut signing = Signing::of_unsigned(&file).map_err(|source| Error::SelfCheck { source })?;
    signing.sign(keys)?;
    let bytes = signing.to_bytes();
    check(&bytes, adapter, options, keys, &unsigned.decoded)
        .map_err(|source| Error::SelfCheck { source })?;
    Ok(unsigned.packed(bytes))
}

/// [`pack`] without signatures, to be signed elsewhere: see [`Signing`]. The result is verified with a key that
/// is made for that and thrown away.
///
/// # Errors
/// As [`pack`], and [`Error::Random`].
pub fn pack_unsigned(adapter: &Adapter, options: &Options) -> Result<Packed, Error> {
    let mut packed = pack(adapter, options, &[SecretKey::generate()?])?;
    packed
        .bytes
        .truncate(packed.bytes.len() - BLOCK_HEADER_BYTES - ENTRY_BYTES);
    Ok(packed)
}

/// How many bytes [`pack`] makes of an adapter, whatever the key.
///
/// # Errors
/// As [`pack`], but for the signature.
pub fn packed_len(adapter: &Adapter, options: &Options) -> Result<usize, Error> {
    let Unsigned { prefix, stored, .. } = Unsigned::of(adapter, options)?;
    Ok(prefix.len() + stored.len() + BLOCK_HEADER_BYTES + ENTRY_BYTES)
}

/// A bundle but for its signatures.
struct Unsigned {
    prefix: Vec<u8>,
    codec: Codec,
    stored: Vec<u8>,
    decoded: Vec<u8>,
    tensors: Vec<Quantised>,
}

impl Unsigned {
    fn of(adapter: &Adapter, options: &Options) -> Result<Self, Error> {
        options.check()?;
        let tensors = quantise(adapter, options.encoding)?;
        let decoded: Vec<u8> = tensors
            .iter()
            .flat_map(|tensor| tensor.bytes.iter().copied())
            .collect();
        let table: Vec<u8> = tensors
            .iter()
            .flat_map(|tensor| tensor.spec.to_bytes())
            .collect();
        let read = TensorTable::read(&table, decoded.len())
            .map_err(|source| Error::SelfCheck { source })?;
        let (codec, stored) = encode(&decoded, read)?;
        let prefix = draft(adapter, options, &table, codec, &stored, &decoded)?.to_prefix()?;
        Ok(Self {
            prefix,
            codec,
            stored,
            decoded,
            tensors,
        })
    }

    fn packed(&self, bytes: Vec<u8>) -> Packed {
        let sum = |part: fn(&Quantised) -> f64| self.tensors.iter().map(part).sum();
        let report = |tensor: &Quantised| TensorReport {
            spec: tensor.spec,
            loss: tensor.loss(),
        };
        Packed {
            bytes,
            bundle_id: Id::of(&self.prefix),
            codec: self.codec,
            loss: relative(sum(|tensor| tensor.error), sum(|tensor| tensor.energy)),
            tensors: self.tensors.iter().map(report).collect(),
        }
    }
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
        min_runtime: level(adapter),
        codec,
        form: form(&description.form),
        task: &options.task,
        fields: Fields {
            tensors: table.to_vec(),
            labels: &description.labels,
            head: description.head,
            template: &description.template,
            pooling: pooling(description)?,
            positions: description.positions().map_err(option("positions"))?,
            verbaliser: &description.verbaliser,
            decode: description.decode.as_ref(),
            answer: description.answer(),
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
        Form::KeyValues { tokens, layers, .. } => preface_bundle::Form::KeyValues {
            tokens: *tokens,
            layers: u16::try_from(layers.len()).unwrap_or(u16::MAX),
        },
    }
}

/// Feature level that a runtime needs: the table of FORMAT.md, section 2.
fn level(adapter: &Adapter) -> u32 {
    let Description {
        form,
        head,
        positions,
        ..
    } = &adapter.description;
    let first_form = match form {
        Form::Embeddings { .. } => *positions == Positions::AfterPrompt.name(),
        Form::KeyValues { first_layer, .. } => {
            *positions == Positions::TextFromZero.name()
                && *first_layer == 0
                && adapter.gates.is_empty()
        }
    };
    let own = AnswerPlan::of_head(head.kind) == adapter.description.answer();
    let pooling = &adapter.description.pooling;
    let late = [Pooling::Mask, Pooling::Prompt].map(Pooling::name);
    if *positions == Positions::DecoderAfterPrompt.name() {
        return 4;
    }
    if head.kind == HeadKind::TanhLinear || late.contains(&&**pooling) {
        return 3;
    }
    match first_form && head.kind == HeadKind::Linear && own {
        true => 1,
        false => 2,
    }
}

/// The pooling of a head that sees one row.
fn pooling(description: &Description) -> Result<Option<Pooling>, Error> {
    match description.head.kind {
        HeadKind::TokenLinear | HeadKind::Generation => Ok(None),
        _ => description.pooling().map(Some).map_err(option("pooling")),
    }
}

fn option(option: &'static str) -> impl FnOnce(String) -> Error {
    move |problem| Error::Option { option, problem }
}

/// Verifies the bundle as a device would that trusts these keys, and compares the tensors.
fn check(
    file: &[u8],
    adapter: &Adapter,
    options: &Options,
    keys: &[SecretKey],
    decoded: &[u8],
) -> Result<(), preface_bundle::Error> {
    let required = |id: Option<Id>| id.map_or(Binding::Unchecked, Binding::Required);
    let policy = Policy {
        base: required(adapter.base_id()),
        tokenizer: required(adapter.tokenizer_id()),
        ..Policy::unbound()
    };
    let keys: Vec<_> = keys.iter().map(SecretKey::public).collect();
    let (_, again) = verify(file, &options.namespace, &keys, &policy)?;
    let task = Frame::parse(file)?.unverified_manifest()?.task == options.task;
    match task && again == decoded {
        true => Ok(()),
        false => Err(preface_bundle::Error::TensorDigest),
    }
}
