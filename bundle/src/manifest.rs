//! The manifest: 256 bytes of fixed fields, then typed fields in ascending order.

use core::iter;

use crate::{
    MAX_DECODED_BYTES, MAX_STORED_BYTES,
    codec::Codec,
    cursor::Cursor,
    error::Error,
    fields::{
        AnswerKind, AnswerPlan, DecodeLimits, Head, HeadKind, Labels, Metrics, Pooling, Positions,
        Probes, Rule, TokenBudget, Verbaliser, receipt, template, tlv,
    },
    id::{Id, Namespace, is_name},
    tensor::{Role, TensorTable},
    text,
};

/// Where a template takes the base's mask token.
const MASK: &str = "{mask}";

/// Bytes of the manifest's fixed fields.
pub const CORE_BYTES: usize = 256;
/// Bytes of the task id's field; an id has at least one byte less.
pub const TASK_BYTES: usize = 48;

/// How the prompt enters the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Form {
    /// Rows in place of token embeddings: one tensor `[tokens, hidden]`.
    Embeddings {
        /// Virtual tokens.
        tokens: u16,
        /// Width of the base's token embeddings.
        hidden: u16,
    },
    /// Keys and values before those of the text: tensors
    /// `[layers, 2, kv_heads, tokens, head_dim]`, one for each run of consecutive layers that are
    /// alike; [`TensorSpec::layer`](crate::TensorSpec::layer) is the first layer of a run.
    KeyValues {
        /// Virtual tokens.
        tokens: u16,
        /// Layers that have them, over all tensors.
        layers: u16,
    },
}

impl Form {
    /// Virtual tokens.
    pub fn tokens(&self) -> u16 {
        match self {
            Self::Embeddings { tokens, .. } | Self::KeyValues { tokens, .. } => *tokens,
        }
    }

    /// The form's name in reports and in `preface.json`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Embeddings { .. } => "embeddings",
            Self::KeyValues { .. } => "key-values",
        }
    }

    /// `u16` code, tokens, then hidden or layers.
    fn read(cursor: &mut Cursor<'_>) -> Option<Self> {
        let (code, tokens, last) = (cursor.u16()?, cursor.u16()?, cursor.u16()?);
        match (code, tokens, last) {
            (1, 1.., 1..) => Some(Self::Embeddings {
                tokens,
                hidden: last,
            }),
            (2, 1.., 1..) => Some(Self::KeyValues {
                tokens,
                layers: last,
            }),
            _ => None,
        }
    }

    /// The form's three numbers in the manifest.
    pub fn to_u16s(&self) -> [u16; 3] {
        match *self {
            Self::Embeddings { tokens, hidden } => [1, tokens, hidden],
            Self::KeyValues { tokens, layers } => [2, tokens, layers],
        }
    }
}

/// What a bundle says about itself.
///
/// Of a bundle that was not verified, every field is a claim of whoever made the file.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Manifest<'a> {
    /// Fleet that the bundle is for.
    pub namespace: Namespace,
    /// Base model that the prompt was trained against.
    pub base_id: Id,
    /// Tokenizer that the prompt was trained with.
    pub tokenizer_id: Id,
    /// SHA-256 of the payload as stored.
    pub payload_sha256: Id,
    /// SHA-256 of the payload once decoded.
    pub tensor_sha256: Id,
    /// Bytes of the payload as stored.
    pub stored_bytes: usize,
    /// Bytes of the payload once decoded.
    pub decoded_bytes: usize,
    /// Version of the trust store that the bundle was released under.
    pub trust_version: u32,
    /// Compared with the trust store's `min-security`.
    pub security_version: u32,
    /// Grows with every release of the task.
    pub sequence: u64,
    /// When it was made, unix seconds; shown, never used.
    pub created: u64,
    /// Last second of validity, unix seconds; 0 is never.
    pub not_after: u64,
    /// Feature level that a runtime needs.
    pub min_runtime: u32,
    /// How the payload is stored.
    pub codec: Codec,
    /// How the prompt enters the model.
    pub form: Form,
    /// What the bundle makes the base do.
    pub task: &'a str,
    /// Which bytes are which tensor.
    pub tensors: TensorTable<'a>,
    /// Names of the labels; none for generation.
    pub labels: Labels<'a>,
    /// What turns the base's output into an answer.
    pub head: Head,
    /// Text around an input; `{text}` is the input's place.
    pub template: &'a str,
    /// Which hidden states the head sees, where it sees one vector.
    pub pooling: Option<Pooling>,
    /// Positions of prompt and text.
    pub positions: Positions,
    /// Token ids that speak for each label, where the head is a verbaliser.
    pub verbaliser: Option<Verbaliser<'a>>,
    /// When generation ends, where the head is generation.
    pub decode_limits: Option<DecodeLimits<'a>>,
    /// What is asked and what is answered.
    pub answer: AnswerPlan,
    /// Inputs to try the bundle with.
    pub probes: Probes<'a>,
    /// What the trainer measured.
    pub metrics: Metrics<'a>,
    /// How many tokens the task takes.
    pub token_budget: Option<TokenBudget>,
    /// How the adapter was trained, as JSON.
    pub receipt: Option<&'a str>,
    typed: &'a [u8],
}

impl<'a> Manifest<'a> {
    /// Reads the manifest of a bundle whose payload has `payload_bytes` bytes.
    pub(crate) fn read(bytes: &'a [u8], payload_bytes: usize) -> Result<Self, Error> {
        let mut cursor = Cursor::new(bytes);
        let core = Core::read(&mut cursor)?;
        if core.stored_bytes != payload_bytes {
            return Err(rule(
                "header and manifest give the payload different lengths",
            ));
        }
        if core.codec == Codec::Stored && core.decoded_bytes != core.stored_bytes {
            return Err(rule("a payload stored as it is has two lengths"));
        }
        let fields = Fields::read(&mut cursor)?;
        let written = fields.answer;
        let manifest = core.join(fields)?;
        manifest.check_form()?;
        manifest.check_gates()?;
        manifest.check_head()?;
        manifest.check_answer(written)?;
        Ok(manifest)
    }

    /// Types of the fields that this reader does not know and that its writer lets it pass over.
    pub fn ignored(&self) -> impl Iterator<Item = u16> + use<'a> {
        let mut cursor = Cursor::new(self.typed);
        let types = iter::from_fn(move || next_field(&mut cursor).map(|(tlv, _)| tlv));
        types
            .take_while(|tlv| *tlv != 0)
            .filter(|tlv| FIELDS.iter().all(|field| field.tlv != *tlv))
    }

    /// Tokens of a decoder have keys and values at each of its layers, counted from 0.
    fn check_form(&self) -> Result<(), Error> {
        let of_decoder = self.positions == Positions::DecoderAfterPrompt;
        let runs = || self.tensors.of(Role::KeyValues);
        let fits = match self.form {
            Form::Embeddings { tokens, hidden } => {
                let mut rows = self.tensors.of(Role::Embeddings);
                rows.next()
                    .is_some_and(|spec| spec.dims() == [tokens, hidden])
                    && runs().next().is_none()
                    && !of_decoder
            }
            Form::KeyValues { tokens, layers } => {
                let end = if of_decoder { layers } else { u16::MAX };
                let covered: usize = runs().map(|spec| spec.dim(0)).sum();
                covered == usize::from(layers)
                    && runs().all(|spec| {
                        let last = usize::from(spec.layer) + spec.dim(0);
                        spec.dim(3) == usize::from(tokens) && last <= usize::from(end)
                    })
                    && self.tensors.of(Role::Embeddings).next().is_none()
            }
        };
        fits.then_some(())
            .ok_or(rule("the tensors do not make up the form"))
    }

    /// A gate is a number for each layer that has keys and values.
    fn check_gates(&self) -> Result<(), Error> {
        let fits = self.tensors.of(Role::Gate).all(|gates| match self.form {
            Form::KeyValues { layers, .. } => gates.dims() == [layers],
            Form::Embeddings { .. } => false,
        });
        fits.then_some(()).ok_or(rule(
            "gates are for key-values, one for each layer that has them",
        ))
    }

    /// An answer is written where it is not the one that the head gives to one text, and only there.
    fn check_answer(&self, written: Option<AnswerPlan>) -> Result<(), Error> {
        let kind = self.head.kind;
        if !self.answer.fits(kind) {
            return Err(Error::malformed(
                "answer",
                "its kind is not one of the head's",
            ));
        }
        match written == Some(AnswerPlan::of_head(kind)) {
            true => Err(Error::malformed(
                "answer",
                "the head's own answer is left out",
            )),
            false => Ok(()),
        }
    }

    /// Checks that the head has what its kind needs, and nothing else.
    fn check_head(&self) -> Result<(), Error> {
        let Head { kind, classes, .. } = self.head;
        let generates = kind == HeadKind::Generation;
        let sees_one_vector = matches!(
            kind,
            HeadKind::Linear
                | HeadKind::FactoredLinear
                | HeadKind::LabelText
                | HeadKind::TanhLinear
        );
        let labels = self.labels.len();
        let spoken_for = if kind == HeadKind::Verbaliser {
            labels
        } else {
            0
        };
        let speaking = self.verbaliser.map_or(0, |verbaliser| verbaliser.len());
        let mut probes = self.probes.iter();
        let rules = [
            (labels == usize::from(classes), "as many labels as classes"),
            (generates == (classes == 0), "a class unless it generates"),
            (self.head_tensors_fit(), "the tensors of its kind"),
            (
                !sees_one_vector || self.pooling.is_some(),
                "a pooling where it sees one vector",
            ),
            (
                self.pooling != Some(Pooling::Mask) || text::count(self.template, MASK) > 0,
                "{mask} in the template where it reads that token",
            ),
            (
                self.pooling != Some(Pooling::Prompt) || self.prompt_has_rows(),
                "a prompt before the text where it sees its first row",
            ),
            (
                speaking == spoken_for,
                "token ids for every label if it is a verbaliser",
            ),
            (
                self.decode_limits.is_some() == generates,
                "decode limits if it generates",
            ),
            (
                probes.all(|probe| {
                    let several = probe.labels().len() > 0;
                    (generates || probe.label < classes)
                        && probe.tags().all(|(_, label)| label < classes)
                        && probe.labels().all(|label| label < classes)
                        && (!several || self.answer.kind == AnswerKind::Labels)
                }),
                "probes of its own labels",
            ),
        ];
        let broken = rules.into_iter().find(|(holds, _)| !holds);
        broken.map_or(Ok(()), |(_, needed)| {
            Err(Error::malformed("head needs", needed))
        })
    }

    fn head_tensors_fit(&self) -> bool {
        let Head {
            kind,
            classes,
            hidden,
        } = self.head;
        let none = |role| self.tensors.of(role).next().is_none();
        let has = |role, dims: &[u16]| {
            self.tensors
                .of(role)
                .next()
                .is_some_and(|spec| spec.dims() == dims)
        };
        let weight = match kind {
            HeadKind::Linear | HeadKind::TokenLinear => has(Role::HeadWeight, &[classes, hidden]),
            _ => none(Role::HeadWeight),
        };
        let factors = match kind {
            HeadKind::FactoredLinear | HeadKind::TanhLinear => self.factors_fit(),
            _ => none(Role::HeadFactor),
        };
        let inner = match kind {
            HeadKind::TanhLinear => self.tensors.of(Role::HeadFactor).next(),
            _ => None,
        };
        let inner = inner.map_or(0, |factor| factor.dim(1));
        let bias = usize::from(classes) + inner;
        let bias_fits = self
            .tensors
            .of(Role::HeadBias)
            .all(|spec| spec.dims().len() == 1 && spec.dim(0) == bias);
        weight && factors && bias_fits
    }

    /// Whether rows of the prompt stand before the text's.
    fn prompt_has_rows(&self) -> bool {
        matches!(self.form, Form::Embeddings { .. }) && self.positions == Positions::AfterPrompt
    }

    fn factors_fit(&self) -> bool {
        let mut factors = self.tensors.of(Role::HeadFactor);
        let (Some(first), Some(second), None) = (factors.next(), factors.next(), factors.next())
        else {
            return false;
        };
        first.dim(0) == usize::from(self.head.classes)
            && first.dim(1) == second.dim(0)
            && second.dim(1) == usize::from(self.head.hidden)
    }
}

const fn rule(rule: &'static str) -> Error {
    Error::malformed("manifest", rule)
}

/// The fixed fields.
struct Core<'a> {
    ids: [Id; 4],
    namespace: Namespace,
    stored_bytes: usize,
    decoded_bytes: usize,
    versions: [u32; 2],
    times: [u64; 3],
    min_runtime: u32,
    codec: Codec,
    form: Form,
    task: &'a str,
}

impl<'a> Core<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, Error> {
        const SHORT: Error = rule("the fixed fields are 256 bytes");
        let namespace = Id(cursor.array().ok_or(SHORT)?);
        let mut ids = [Id([0; 32]); 4];
        for id in &mut ids {
            *id = Id(cursor.array().ok_or(SHORT)?);
        }
        let stored_bytes = length(cursor, MAX_STORED_BYTES)
            .ok_or(rule("the stored payload has 1 byte to 1 MiB"))?;
        let decoded_bytes = length(cursor, MAX_DECODED_BYTES)
            .ok_or(rule("the decoded payload has 1 byte to 8 MiB"))?;
        let versions = [cursor.u32().ok_or(SHORT)?, cursor.u32().ok_or(SHORT)?];
        let mut times = [0; 3];
        for time in &mut times {
            *time = cursor.u64().ok_or(SHORT)?;
        }
        let min_runtime = cursor.u32().ok_or(SHORT)?;
        let codec = cursor
            .u16()
            .and_then(Codec::from_u16)
            .ok_or(rule("the codec is unknown"))?;
        let form = Form::read(cursor).ok_or(rule("the form is unknown or of size zero"))?;
        cursor.zeros(4).ok_or(rule("a reserved byte is not zero"))?;
        let critical_flags = cursor.u16().ok_or(SHORT)?;
        let _ignorable_flags = cursor.u16().ok_or(SHORT)?;
        cursor.zeros(4).ok_or(rule("a reserved byte is not zero"))?;
        if critical_flags != 0 {
            return Err(rule(
                "a critical flag is unknown to this program; a newer one may read it",
            ));
        }
        let task = cursor.bytes(TASK_BYTES).ok_or(SHORT)?;
        let task = padded_task(task).ok_or(rule("the task id breaks the rules of names"))?;
        let core = Self {
            ids,
            namespace,
            stored_bytes,
            decoded_bytes,
            versions,
            times,
            min_runtime,
            codec,
            form,
            task,
        };
        Ok(core)
    }

    fn join(self, fields: Fields<'a>) -> Result<Manifest<'a>, Error> {
        let tensors = fields.tensors.ok_or(rule("the tensor table is missing"))?;
        let [base_id, tokenizer_id, payload_sha256, tensor_sha256] = self.ids;
        let [trust_version, security_version] = self.versions;
        let [sequence, created, not_after] = self.times;
        let head = fields.head.ok_or(rule("the head is missing"))?;
        Ok(Manifest {
            namespace: self.namespace,
            base_id,
            tokenizer_id,
            payload_sha256,
            tensor_sha256,
            stored_bytes: self.stored_bytes,
            decoded_bytes: self.decoded_bytes,
            trust_version,
            security_version,
            sequence,
            created,
            not_after,
            min_runtime: self.min_runtime,
            codec: self.codec,
            form: self.form,
            task: self.task,
            tensors: TensorTable::read(tensors, self.decoded_bytes)?,
            labels: fields.labels,
            head,
            template: fields.template.unwrap_or("{text}"),
            pooling: fields.pooling,
            positions: fields
                .positions
                .ok_or(rule("the position plan is missing"))?,
            verbaliser: fields.verbaliser,
            decode_limits: fields.decode_limits,
            answer: fields
                .answer
                .unwrap_or_else(|| AnswerPlan::of_head(head.kind)),
            probes: fields.probes,
            metrics: fields.metrics,
            token_budget: fields.token_budget,
            receipt: fields.receipt,
            typed: fields.typed,
        })
    }
}

/// A `u32` length from 1 to `most`.
fn length(cursor: &mut Cursor<'_>, most: usize) -> Option<usize> {
    let length = usize::try_from(cursor.u32()?).ok()?;
    (1..=most).contains(&length).then_some(length)
}

/// A task id, NUL-padded to its field: nothing but NUL after the first NUL.
fn padded_task(field: &[u8]) -> Option<&str> {
    let end = field.iter().position(|byte| *byte == 0)?;
    let (id, padding) = field.split_at_checked(end)?;
    let id = core::str::from_utf8(id).ok()?;
    (is_task_id(id) && padding.iter().all(|byte| *byte == 0)).then_some(id)
}

/// Whether `text` may be a task id: see [`is_name`].
pub fn is_task_id(text: &str) -> bool {
    is_name(text)
}

/// Whether `text` may be a task pattern of a trust store: `*`, a task id, or `prefix.*`.
pub fn is_task_pattern(text: &str) -> bool {
    text == "*" || is_task_id(text.strip_suffix(".*").unwrap_or(text))
}

/// The typed fields.
#[derive(Default)]
struct Fields<'a> {
    tensors: Option<&'a [u8]>,
    labels: Labels<'a>,
    head: Option<Head>,
    template: Option<&'a str>,
    pooling: Option<Pooling>,
    positions: Option<Positions>,
    verbaliser: Option<Verbaliser<'a>>,
    decode_limits: Option<DecodeLimits<'a>>,
    answer: Option<AnswerPlan>,
    probes: Probes<'a>,
    metrics: Metrics<'a>,
    token_budget: Option<TokenBudget>,
    receipt: Option<&'a str>,
    typed: &'a [u8],
}

/// One typed field: its type, its name in errors, and how it is read.
struct Field {
    tlv: u16,
    name: &'static str,
    read: for<'a> fn(&mut Fields<'a>, &'a [u8]) -> Result<(), Rule>,
}

/// Shortens a reader's line in the table below.
macro_rules! field {
    ($tlv:ident, $name:literal, |$fields:ident, $bytes:ident| $body:expr) => {
        Field {
            tlv: tlv::$tlv,
            name: $name,
            read: |$fields, $bytes| {
                $body;
                Ok(())
            },
        }
    };
}

const FIELDS: &[Field] = &[
    field!(PROBES, "probes", |f, b| f.probes = Probes::read(b)?),
    field!(METRICS, "metrics", |f, b| f.metrics = Metrics::read(b)?),
    field!(TOKEN_BUDGET, "token budget", |f, b| f.token_budget =
        Some(TokenBudget::read(b)?)),
    field!(RECEIPT, "receipt", |f, b| f.receipt = Some(receipt(b)?)),
    field!(PROBE_ANSWERS, "answers of probes", |f, b| f.probes =
        f.probes.answered(b)?),
    field!(PROBE_LABELS, "labels of probes", |f, b| f.probes =
        f.probes.labelled(b)?),
    field!(TENSORS, "tensor table", |f, b| f.tensors = Some(b)),
    field!(LABELS, "labels", |f, b| f.labels = Labels::read(b)?),
    field!(HEAD, "head", |f, b| f.head = Some(Head::read(b)?)),
    field!(TEMPLATE, "template", |f, b| f.template = Some(template(b)?)),
    field!(POOLING, "pooling", |f, b| f.pooling =
        Some(Pooling::read(b)?)),
    field!(POSITIONS, "positions", |f, b| f.positions =
        Some(Positions::read(b)?)),
    field!(VERBALISER, "verbaliser", |f, b| f.verbaliser =
        Some(Verbaliser::read(b)?)),
    field!(DECODE_LIMITS, "decode limits", |f, b| f.decode_limits =
        Some(DecodeLimits::read(b)?)),
    field!(ANSWER, "answer", |f, b| f.answer =
        Some(AnswerPlan::read(b)?)),
];

const CRITICAL: u16 = 0x8000;

impl<'a> Fields<'a> {
    /// Fields in strictly ascending order, then type 0 length 0, then fewer than 64 zero bytes.
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, Error> {
        let mut fields = Self {
            typed: cursor.rest(),
            ..Self::default()
        };
        let mut previous = 0;
        loop {
            let (tlv, bytes) =
                next_field(cursor).ok_or(rule("a field runs past the end or is padded wrong"))?;
            if tlv == 0 {
                let ends = bytes.is_empty() && cursor.rest().len() < 64;
                let rest = cursor.rest().len();
                let zero = cursor.zeros(rest).is_some();
                return (ends && zero)
                    .then_some(fields)
                    .ok_or(rule("after the last field come fewer than 64 zero bytes"));
            }
            if tlv <= previous {
                return Err(rule("fields are in ascending order, none twice"));
            }
            previous = tlv;
            match FIELDS.iter().find(|field| field.tlv == tlv) {
                Some(field) => (field.read)(&mut fields, bytes)
                    .map_err(|rule| Error::malformed(field.name, rule))?,
                None if tlv & CRITICAL != 0 => return Err(Error::UnknownCritical { tlv }),
                None => {}
            }
        }
    }
}

/// `u16` type, `u16` length, the bytes, zero bytes up to a multiple of 4.
fn next_field<'a>(cursor: &mut Cursor<'a>) -> Option<(u16, &'a [u8])> {
    let tlv = cursor.u16()?;
    let length = usize::from(cursor.u16()?);
    let bytes = cursor.bytes(length)?;
    cursor.zeros(length.next_multiple_of(4).checked_sub(length)?)?;
    Some((tlv, bytes))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{format, vec, vec::Vec};

    use super::*;
    use crate::{Dtype, TensorSpec, testing::Sample};

    fn read(change: impl FnOnce(&mut Sample)) -> Result<(), Error> {
        let mut sample = Sample::default();
        change(&mut sample);
        Manifest::read(&sample.manifest(), sample.decoded.len()).map(|_| ())
    }

    fn read_as(sample: &Sample, form: [u16; 3]) -> Result<(), Error> {
        let mut bytes = sample.manifest();
        let words = form.iter().flat_map(|word| word.to_le_bytes());
        bytes[190..196]
            .iter_mut()
            .zip(words)
            .for_each(|(to, from)| *to = from);
        Manifest::read(&bytes, sample.decoded.len()).map(|_| ())
    }

    #[test]
    fn field_table_is_sorted_and_unique() {
        assert!(FIELDS.is_sorted_by(|a, b| a.tlv < b.tlv));
        let names: std::collections::BTreeSet<_> = FIELDS.iter().map(|field| field.name).collect();
        assert_eq!(names.len(), FIELDS.len());
    }

    #[test]
    fn what_was_written_is_read() {
        let sample = Sample::default();
        let bytes = sample.manifest();
        let manifest = Manifest::read(&bytes, sample.decoded.len()).expect("a valid manifest");
        assert_eq!(manifest.task, "intent");
        assert_eq!(
            manifest.form,
            Form::Embeddings {
                tokens: 2,
                hidden: 4
            }
        );
        assert_eq!(
            manifest.labels.iter().collect::<Vec<_>>(),
            ["on", "off", "dim"]
        );
        assert_eq!(manifest.template, "say: {text}");
        assert_eq!(manifest.pooling, Some(Pooling::Mean));
        assert_eq!(
            manifest
                .probes
                .iter()
                .map(|probe| probe.label)
                .collect::<Vec<_>>(),
            [2]
        );
        assert_eq!(
            manifest.metrics.iter().collect::<Vec<_>>(),
            [("dev_accuracy", 0.5)]
        );
        assert_eq!(manifest.receipt, Some("{\"seed\":0}"));
        assert_eq!(manifest.token_budget.map(|budget| budget.longest), Some(31));
    }

    #[test]
    fn fixed_fields_outside_the_rules_are_refused() {
        type Change = fn(&mut [u8]);
        let cases: [(&str, Change); 15] = [
            ("other payload length", |core| core[144] ^= 1),
            ("payload length zero", |core| core[144..148].fill(0)),
            ("payload length above the cap", |core| {
                core[144..148].fill(0xff)
            }),
            ("decoded length zero", |core| core[148..152].fill(0)),
            ("decoded length above the cap", |core| core[151] = 1),
            ("unknown codec", |core| core[188] = 3),
            ("unknown form", |core| core[190] = 3),
            ("no token", |core| core[192] = 0),
            ("reserved word", |core| core[196] = 1),
            ("critical flag", |core| core[200] = 1),
            ("reserved word two", |core| core[204] = 1),
            ("upper-case task", |core| core[208] = b'I'),
            ("slash in task", |core| core[210] = b'/'),
            ("byte after the task's end", |core| core[255] = b'a'),
            ("task without end", |core| core[208..256].fill(b'a')),
        ];
        for (name, change) in cases {
            let sample = Sample::default();
            let mut bytes = sample.manifest();
            change(&mut bytes);
            assert!(
                Manifest::read(&bytes, sample.decoded.len()).is_err(),
                "{name}"
            );
        }
        let mut ignorable = Sample::default().manifest();
        ignorable[202] = 1;
        assert!(Manifest::read(&ignorable, Sample::default().decoded.len()).is_ok());
    }

    #[test]
    fn typed_fields_outside_the_rules_are_refused() {
        type Change = fn(&mut Sample);
        let cases: [(&str, Change); 34] = [
            ("no tensor table", |s| s.remove(tlv::TENSORS)),
            ("no head", |s| s.remove(tlv::HEAD)),
            ("no position plan", |s| s.remove(tlv::POSITIONS)),
            ("no pooling", |s| s.remove(tlv::POOLING)),
            ("no labels", |s| s.remove(tlv::LABELS)),
            ("fewer labels than classes", |s| {
                s.set(tlv::LABELS, b"\x01\0\x02on")
            }),
            ("verbaliser without need", |s| {
                s.set(tlv::VERBALISER, &[1, 0, 1, 0, 1, 0, 0, 0])
            }),
            ("decode limits without need", |s| {
                s.set(tlv::DECODE_LIMITS, &[1, 0, 0, 0])
            }),
            ("probe of no label", |s| {
                s.set(tlv::PROBES, &[1, 0, 3, 0, 1, 0, 7, 0, 0, 0])
            }),
            ("answers of no probes", |s| {
                s.remove(tlv::PROBES);
                s.set(tlv::PROBE_ANSWERS, &[0; 6]);
            }),
            ("answers of more probes", |s| {
                s.set(tlv::PROBE_ANSWERS, &[0; 12])
            }),
            ("an answer cut short", |s| {
                s.set(tlv::PROBE_ANSWERS, &[0; 5])
            }),
            ("a second text behind the ids", |s| {
                s.set(tlv::PROBE_ANSWERS, &[1, 0, 0, 0, 0, 0])
            }),
            ("a tag behind the ids", |s| {
                s.set(tlv::PROBE_ANSWERS, &[0, 0, 1, 0, 1, 0, 0, 0, 0, 0])
            }),
            ("tags out of order", |s| {
                let tags = [0, 0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                s.set(tlv::PROBES, TWO_IDS);
                s.set(tlv::PROBE_ANSWERS, &tags)
            }),
            ("a tag of no label", |s| {
                s.set(tlv::PROBE_ANSWERS, &[0, 0, 1, 0, 0, 0, 3, 0, 0, 0])
            }),
            ("a text of control characters", |s| {
                s.set(tlv::PROBE_ANSWERS, &[0, 0, 0, 0, 1, 0, 0x1b])
            }),
            ("a text that is not UTF-8", |s| {
                s.set(tlv::PROBE_ANSWERS, &[0, 0, 0, 0, 1, 0, 0xff])
            }),
            ("labels of probes of one label", |s| {
                s.set(tlv::PROBE_LABELS, &[1, 0, 2, 0])
            }),
            ("labels of no probes", |s| {
                s.several();
                s.remove(tlv::PROBES);
                s.set(tlv::PROBE_LABELS, &[1, 0, 2, 0]);
            }),
            ("no labels of a probe", |s| {
                s.several();
                s.set(tlv::PROBE_LABELS, &[0, 0]);
            }),
            ("labels of a probe cut short", |s| {
                s.several();
                s.set(tlv::PROBE_LABELS, &[2, 0, 2, 0]);
            }),
            ("labels of more probes", |s| {
                s.several();
                s.set(tlv::PROBE_LABELS, &[1, 0, 2, 0, 1, 0, 2, 0]);
            }),
            ("labels of a probe without its own", |s| {
                s.several();
                s.set(tlv::PROBE_LABELS, &[1, 0, 1, 0]);
            }),
            ("a label of a probe twice", |s| {
                s.several();
                s.set(tlv::PROBE_LABELS, &[2, 0, 2, 0, 2, 0]);
            }),
            ("a label of a probe that does not exist", |s| {
                s.several();
                s.set(tlv::PROBE_LABELS, &[2, 0, 2, 0, 3, 0]);
            }),
            ("head without its weight", |s| {
                s.set(tlv::HEAD, &[4, 0, 3, 0, 4, 0, 0, 0])
            }),
            ("head of another width", |s| {
                s.set(tlv::HEAD, &[1, 0, 3, 0, 5, 0, 0, 0])
            }),
            ("generation with labels", |s| {
                s.set(tlv::HEAD, &[6, 0, 0, 0, 0, 0, 0, 0])
            }),
            ("unknown critical field", |s| s.set(0x8fff, b"x")),
            ("fields out of order", |s| s.fields.reverse()),
            ("a field twice", |s| s.fields.insert(0, s.fields[0].clone())),
            ("field of type zero", |s| {
                s.fields.insert(0, (0, b"x".to_vec()))
            }),
            ("not UTF-8", |s| s.set(tlv::TEMPLATE, b"{text}\xff")),
        ];
        for (name, change) in cases {
            assert!(read(change).is_err(), "{name}");
        }
        assert_eq!(
            read(|s| s.set(0x8fff, b"x")),
            Err(Error::UnknownCritical { tlv: 0x8fff })
        );
        assert_eq!(
            read(|s| s.set(0x0fff, b"anything")),
            Ok(()),
            "unknown, ignorable"
        );
        assert_eq!(
            read(|s| s.remove(tlv::TEMPLATE)),
            Ok(()),
            "the template has a default"
        );
    }

    /// One probe of the label 2.
    const TWO_IDS: &[u8] = &[1, 0, 2, 0, 2, 0, 5, 0, 0, 0, 6, 0, 0, 0];

    #[test]
    fn probes_are_read_with_their_answers() {
        let mut sample = Sample::default();
        let answer = [
            &[1u16, 2, 0, 2, 1, 0, 2].map(u16::to_le_bytes).concat()[..],
            b"ok",
        ];
        sample.set(tlv::PROBES, TWO_IDS);
        sample.set(tlv::PROBE_ANSWERS, &answer.concat());
        let bytes = sample.manifest();
        let manifest = Manifest::read(&bytes, sample.decoded.len()).expect("within the rules");
        let probes: Vec<_> = manifest.probes.iter().collect();
        let [probe] = &probes[..] else {
            panic!("{probes:?}")
        };
        assert_eq!(probe.ids().collect::<Vec<_>>(), [5, 6]);
        assert_eq!((probe.second, probe.text), (1, "ok"));
        assert_eq!(probe.tags().collect::<Vec<_>>(), [(0, 2), (1, 0)]);
    }

    #[test]
    fn probes_are_read_with_all_their_labels() {
        let mut sample = Sample::default();
        sample.several();
        sample.set(tlv::PROBES, &[1, 0, 0, 0, 1, 0, 5, 0, 0, 0]);
        sample.set(tlv::PROBE_LABELS, &[2, 0, 0, 0, 2, 0]);
        let bytes = sample.manifest();
        let manifest = Manifest::read(&bytes, sample.decoded.len()).expect("within the rules");
        let labels = manifest
            .probes
            .iter()
            .map(|probe| probe.labels().collect::<Vec<_>>());
        assert_eq!(labels.collect::<Vec<_>>(), [[0, 2]]);
    }

    #[test]
    fn forms_need_their_tensors() {
        let sample = Sample::default();
        for (name, form) in [
            ("other tokens", [1, 3, 4]),
            ("other width", [1, 2, 5]),
            ("key-values without key-values", [2, 2, 1]),
        ] {
            let mut bytes = sample.manifest();
            for (to, from) in bytes[190..196]
                .chunks_mut(2)
                .zip(form.map(u16::to_le_bytes))
            {
                to.copy_from_slice(&from);
            }
            assert!(
                Manifest::read(&bytes, sample.decoded.len()).is_err(),
                "{name}"
            );
        }
    }

    #[test]
    fn gates_are_for_each_layer_of_key_values() {
        let gated = |layers: u16, gates: &[u16]| {
            let mut sample = Sample::of_key_values(layers);
            sample.gate(gates);
            read_as(&sample, [2, 2, layers])
        };
        for (layers, gates) in [(1, 1), (3, 3)] {
            assert_eq!(gated(layers, &[gates]), Ok(()));
        }
        let rule = "gates are for key-values, one for each layer that has them";
        let refused = Err(Error::malformed("manifest", rule));
        for (layers, gates) in [(3, 2), (3, 4), (1, 2)] {
            assert_eq!(
                gated(layers, &[gates]),
                refused,
                "{gates} for {layers} layers"
            );
        }
        let mut sample = Sample::default();
        sample.gate(&[1]);
        assert_eq!(read_as(&sample, [1, 2, 4]), refused, "embeddings");
    }

    #[test]
    fn runs_of_layers_may_leave_layers_out() {
        let mut sample = Sample::of_key_values(2);
        sample.shift_layers(4);
        assert_eq!(read_as(&sample, [2, 2, 2]), Ok(()));
        assert!(
            read_as(&sample, [2, 2, 6]).is_err(),
            "layers without key-values count as none"
        );
    }

    #[test]
    fn answers_fit_their_head_and_are_left_out_where_it_gives_them() {
        let plan = |kind: u8, inputs: u8| read(|s| s.set(tlv::ANSWER, &[kind, 0, inputs, 0]));
        assert_eq!(plan(1, 2), Ok(()));
        let threshold = 0.25f32.to_le_bytes();
        for (kind, inputs) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
            let bytes = [&[kind, 0, inputs, 0], &threshold[..]].concat();
            assert_eq!(
                read(|s| s.set(tlv::ANSWER, &bytes)),
                Ok(()),
                "{kind} {inputs}"
            );
        }
        let refused = |rule| Err(Error::malformed("answer", rule));
        assert_eq!(plan(1, 1), refused("the head's own answer is left out"));
        assert_eq!(plan(3, 1), refused("its kind is not one of the head's"));
        assert_eq!(plan(4, 1), refused("its kind is not one of the head's"));
        assert_eq!(plan(2, 1), refused("an answer of labels has a threshold"));
        let tagging = |answer: Option<&[u8]>| {
            read(|s| {
                s.set(tlv::HEAD, &[5, 0, 3, 0, 4, 0, 0, 0]);
                s.remove(tlv::POOLING);
                answer
                    .into_iter()
                    .for_each(|bytes| s.set(tlv::ANSWER, bytes));
            })
        };
        assert_eq!(tagging(None), Ok(()), "a token head answers with tags");
        assert_eq!(
            tagging(Some(&[1, 0, 2, 0])),
            refused("its kind is not one of the head's")
        );
        assert_eq!(
            tagging(Some(&[3, 0, 1, 0])),
            refused("the head's own answer is left out")
        );
    }

    #[test]
    fn a_row_of_the_prompt_is_read_where_it_stands_before_the_text() {
        let pooled = |s: &mut Sample| s.set(tlv::POOLING, &[5, 0, 0, 0]);
        assert_eq!(read(pooled), Ok(()));
        let needed = "a prompt before the text where it sees its first row";
        let refused = Err(Error::malformed("head needs", needed));
        let behind = |s: &mut Sample| {
            pooled(s);
            s.set(tlv::POSITIONS, &[1, 0, 0, 0]);
        };
        assert_eq!(read(behind), refused, "a prompt behind the text");
        let mut prefix = Sample::of_key_values(1);
        pooled(&mut prefix);
        assert_eq!(read_as(&prefix, [2, 2, 1]), refused, "a prefix");
    }

    #[test]
    fn a_prefix_before_a_decoders_tokens_is_of_its_layers_from_the_first_on() {
        let before = |s: &mut Sample| s.set(tlv::POSITIONS, &[3, 0, 0, 0]);
        let refused = Err(rule("the tensors do not make up the form"));
        assert_eq!(read(before), refused, "rows of embeddings");
        let mut prefix = Sample::of_key_values(2);
        before(&mut prefix);
        assert_eq!(read_as(&prefix, [2, 2, 2]), Ok(()));
        prefix.shift_layers(1);
        assert_eq!(read_as(&prefix, [2, 2, 2]), refused, "from layer 1 on");
    }

    #[test]
    fn a_pooler_and_its_classifier_share_a_bias() {
        let head = |kind: u8, bias: Option<u16>| {
            let bias = bias.map(|numbers| (Role::HeadBias, 0, vec![numbers]));
            let tensors = [(Role::Embeddings, 0, vec![2, 4])]
                .into_iter()
                .chain(bias)
                .chain([
                    (Role::HeadFactor, 0, vec![3, 2]),
                    (Role::HeadFactor, 1, vec![2, 4]),
                ]);
            let mut bytes = 0;
            let specs: Vec<_> = tensors
                .map(|(role, layer, dims)| {
                    let spec = TensorSpec::new(role, Dtype::F32, layer, &dims, 0, bytes);
                    let spec = spec.expect("a valid spec");
                    bytes += spec.bytes;
                    spec
                })
                .collect();
            read(|s| {
                s.set_specs(&specs);
                s.set(tlv::HEAD, &[kind, 0, 3, 0, 4, 0, 0, 0]);
                s.decoded = vec![0; bytes];
            })
        };
        let refused = Err(Error::malformed("head needs", "the tensors of its kind"));
        let (factored, tanh) = (3, 7);
        for (kind, bias) in [
            (factored, None),
            (factored, Some(3)),
            (tanh, None),
            (tanh, Some(5)),
        ] {
            assert_eq!(head(kind, bias), Ok(()), "{kind} {bias:?}");
        }
        for (kind, bias) in [(factored, 5), (tanh, 3), (tanh, 2), (tanh, 6)] {
            assert_eq!(head(kind, Some(bias)), refused, "{kind} {bias}");
        }
    }

    #[test]
    fn padding_is_zero_and_no_longer_than_needed() {
        let sample = Sample::default();
        let good = sample.manifest();
        let mut long = good.clone();
        long.extend([0; 64]);
        assert!(Manifest::read(&long, sample.decoded.len()).is_err());
        let mut dirty = good.clone();
        *dirty.last_mut().expect("not empty") = 1;
        assert!(Manifest::read(&dirty, sample.decoded.len()).is_err());
        for cut in 0..good.len() - 64 {
            assert!(
                Manifest::read(&good[..cut], sample.decoded.len()).is_err(),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn many_ignorable_fields_are_read() {
        let sample = |count: u16| {
            read(|s| (0..count).for_each(|n| s.set(0x1000 + n, format!("{n}").as_bytes())))
        };
        assert_eq!(sample(300), Ok(()));
    }
}
