//! Writing the signed prefix: header, fixed fields, typed fields.

use preface_bundle::{
    AnswerPlan, CONTEXT, CORE_BYTES, Codec, Form, HEADER_BYTES, HeadKind, Id, MAX_PREFIX_BYTES,
    Namespace, Pooling, Positions, TASK_BYTES, tlv,
};

use crate::{
    Error,
    description::{Decode, Head, Probe, TokenBudget},
};

/// Everything that is signed.
pub(crate) struct Draft<'a> {
    pub namespace: Namespace,
    pub base_id: Id,
    pub tokenizer_id: Id,
    pub stored: &'a [u8],
    pub decoded: &'a [u8],
    pub trust_version: u32,
    pub security_version: u32,
    pub sequence: u64,
    pub created: u64,
    pub not_after: u64,
    pub min_runtime: u32,
    pub codec: Codec,
    pub form: Form,
    pub task: &'a str,
    pub fields: Fields<'a>,
}

/// The typed fields.
pub(crate) struct Fields<'a> {
    pub tensors: Vec<u8>,
    pub labels: &'a [String],
    pub head: Head,
    pub template: &'a str,
    pub pooling: Option<Pooling>,
    pub positions: Positions,
    pub verbaliser: &'a [Vec<u32>],
    pub decode: Option<&'a Decode>,
    pub answer: AnswerPlan,
    pub probes: &'a [Probe],
    pub metrics: Vec<(&'a str, f32)>,
    pub token_budget: Option<TokenBudget>,
    pub receipt: String,
}

type Field = (u16, &'static str, Vec<u8>);

impl Draft<'_> {
    /// The signed prefix.
    pub fn to_prefix(&self) -> Result<Vec<u8>, Error> {
        let fields = self.fields.to_fields();
        let mut manifest = self.core();
        for (tlv, name, bytes) in &fields {
            let length = u16::try_from(bytes.len()).map_err(|_| Error::ManifestTooLarge {
                found_bytes: bytes.len(),
                limit_bytes: MAX_PREFIX_BYTES,
                field: name,
            })?;
            manifest.extend(tlv.to_le_bytes());
            manifest.extend(length.to_le_bytes());
            manifest.extend(bytes);
            manifest.resize(manifest.len().next_multiple_of(4), 0);
        }
        manifest.resize((manifest.len() + 4).next_multiple_of(64), 0);
        let found_bytes = HEADER_BYTES + manifest.len();
        if found_bytes > MAX_PREFIX_BYTES {
            let longest = fields.iter().max_by_key(|(.., bytes)| bytes.len());
            let field = longest.map_or("", |(_, name, _)| name);
            return Err(Error::ManifestTooLarge {
                found_bytes,
                limit_bytes: MAX_PREFIX_BYTES,
                field,
            });
        }
        Ok([self.header(manifest.len()), manifest].concat())
    }

    fn header(&self, manifest_bytes: usize) -> Vec<u8> {
        let mut out = CONTEXT.to_vec();
        out.extend([0; 4]);
        out.extend(u32_of(manifest_bytes).to_le_bytes());
        out.extend(u32_of(self.stored.len()).to_le_bytes());
        out.resize(HEADER_BYTES, 0);
        out
    }

    fn core(&self) -> Vec<u8> {
        let mut out = self.namespace.0.to_vec();
        let digests = [
            self.base_id,
            self.tokenizer_id,
            Id::of(self.stored),
            Id::of(self.decoded),
        ];
        digests.iter().for_each(|id| out.extend(id.0));
        let words = [
            u32_of(self.stored.len()),
            u32_of(self.decoded.len()),
            self.trust_version,
            self.security_version,
        ];
        words.iter().for_each(|word| out.extend(word.to_le_bytes()));
        let longs = [self.sequence, self.created, self.not_after];
        longs.iter().for_each(|long| out.extend(long.to_le_bytes()));
        out.extend(self.min_runtime.to_le_bytes());
        out.extend(self.codec.to_u16().to_le_bytes());
        self.form
            .to_u16s()
            .iter()
            .for_each(|short| out.extend(short.to_le_bytes()));
        out.resize(CORE_BYTES - TASK_BYTES, 0);
        out.extend(self.task.as_bytes());
        out.resize(CORE_BYTES, 0);
        out
    }
}

impl Fields<'_> {
    /// The fields in order of type; those without content are left out.
    fn to_fields(&self) -> Vec<Field> {
        let short = |code: u16| [code, 0].map(u16::to_le_bytes).concat();
        let budget = |budget: TokenBudget| {
            let TokenBudget {
                prompt,
                longest,
                typical,
                positions,
            } = budget;
            [prompt, longest, typical, positions.unwrap_or(0)]
                .map(u32::to_le_bytes)
                .concat()
        };
        let tags = self.head.kind == HeadKind::TokenLinear;
        let template = if tags || self.template == "{text}" {
            ""
        } else {
            self.template
        };
        let mut fields = vec![
            (tlv::PROBES, "probes", self.probes()),
            (tlv::METRICS, "metrics", self.metrics()),
            (
                tlv::TOKEN_BUDGET,
                "token_budget",
                self.token_budget.map(budget).unwrap_or_default(),
            ),
            (tlv::RECEIPT, "receipt", self.receipt.as_bytes().to_vec()),
            (tlv::PROBE_ANSWERS, "probes", self.probe_answers()),
            (tlv::PROBE_LABELS, "probes", self.probe_labels()),
            (tlv::TENSORS, "tensors", self.tensors.clone()),
            (tlv::LABELS, "labels", self.labels()),
            (tlv::HEAD, "head", self.head()),
            (tlv::TEMPLATE, "template", template.as_bytes().to_vec()),
            (
                tlv::POOLING,
                "pooling",
                self.pooling
                    .map(|pooling| short(pooling.to_u16()))
                    .unwrap_or_default(),
            ),
            (tlv::POSITIONS, "positions", short(self.positions.to_u16())),
            (tlv::VERBALISER, "verbaliser", self.verbaliser()),
            (
                tlv::DECODE_LIMITS,
                "decode",
                self.decode.map(decode_limits).unwrap_or_default(),
            ),
            (tlv::ANSWER, "answer", self.answer()),
        ];
        fields.retain(|(.., bytes)| !bytes.is_empty());
        fields
    }

    fn head(&self) -> Vec<u8> {
        let Head { kind, classes, .. } = self.head;
        let words = [kind.to_u16(), classes, self.head.width(), 0];
        words.map(u16::to_le_bytes).concat()
    }

    /// Nothing where it is what the head answers by itself.
    fn answer(&self) -> Vec<u8> {
        if self.answer == AnswerPlan::of_head(self.head.kind) {
            return vec![];
        }
        let AnswerPlan {
            kind,
            inputs,
            threshold,
            ..
        } = self.answer;
        let mut out = [kind.to_u16(), inputs.to_u16()]
            .map(u16::to_le_bytes)
            .concat();
        out.extend(
            threshold
                .into_iter()
                .flat_map(|value| (value + 0.0).to_le_bytes()),
        );
        out
    }

    fn verbaliser(&self) -> Vec<u8> {
        if self.verbaliser.is_empty() {
            return vec![];
        }
        let mut out = u16_of(self.verbaliser.len()).to_le_bytes().to_vec();
        self.verbaliser
            .iter()
            .for_each(|ids| out.extend(counted(ids)));
        out
    }

    fn labels(&self) -> Vec<u8> {
        if self.labels.is_empty() {
            return vec![];
        }
        let mut out = u16_of(self.labels.len()).to_le_bytes().to_vec();
        for label in self.labels {
            out.extend(name(label));
        }
        out
    }

    fn probes(&self) -> Vec<u8> {
        if self.probes.is_empty() {
            return vec![];
        }
        let mut out = u16_of(self.probes.len()).to_le_bytes().to_vec();
        for probe in self.probes {
            out.extend(probe.label.to_le_bytes());
            out.extend(counted(&probe.ids));
        }
        out
    }

    /// Nothing where every probe is one text with a label.
    fn probe_answers(&self) -> Vec<u8> {
        if !self.probes.iter().any(Probe::is_answered) {
            return vec![];
        }
        let mut out = Vec::new();
        for Probe {
            second, tags, text, ..
        } in self.probes
        {
            out.extend(second.to_le_bytes());
            out.extend(u16_of(tags.len()).to_le_bytes());
            let tags = tags.iter().flat_map(|&(place, label)| [place, label]);
            out.extend(tags.flat_map(u16::to_le_bytes));
            out.extend(u16_of(text.len()).to_le_bytes());
            out.extend(text.as_bytes());
        }
        out
    }

    /// Nothing where no probe has several labels.
    fn probe_labels(&self) -> Vec<u8> {
        if self.probes.iter().all(|probe| probe.labels.is_empty()) {
            return vec![];
        }
        let sets = self
            .probes
            .iter()
            .flat_map(|Probe { labels, .. }| [&[u16_of(labels.len())], &labels[..]].concat());
        sets.flat_map(u16::to_le_bytes).collect()
    }

    fn metrics(&self) -> Vec<u8> {
        let metric =
            |(text, value): &(&str, f32)| [name(text), value.to_le_bytes().to_vec()].concat();
        self.metrics.iter().flat_map(metric).collect()
    }
}

fn decode_limits(decode: &Decode) -> Vec<u8> {
    let stops = counted(&decode.stop_ids);
    [decode.most_tokens.to_le_bytes().to_vec(), stops].concat()
}

/// `u16` count and `u32` ids.
fn counted(ids: &[u32]) -> Vec<u8> {
    let mut out = u16_of(ids.len()).to_le_bytes().to_vec();
    out.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
    out
}

/// `u8` length and text. The adapter's rules keep names within it.
fn name(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    [&[length], text.as_bytes()].concat()
}

/// Counts above the field's width make the field too long for the prefix, which is refused.
fn u16_of(count: usize) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX)
}

/// Lengths above the limits were refused before.
fn u32_of(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
