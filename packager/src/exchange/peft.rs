//! Import of PEFT's folders: `adapter_config.json` and `adapter_model.safetensors` as PEFT 0.21 writes them.
//!
//! PEFT saves what a reparameterisation yields, not its parameters: the rows of P-tuning and of a projected prefix are
//! the tensor itself. A prefix is stored as it lies in the cache, keys before values in each layer.

mod config;
pub(super) mod decoder;
pub(super) mod head;

use std::{fs, path::Path};

use preface_bundle::Positions;
use serde_json::{Value, json};

use self::{
    config::{Config, Kind},
    head::PeftHead,
};
use super::{
    BaseKind, Imported, Target, Wishes,
    card::{CONFIG, Parts, card},
    foreign, refuse_gguf, small,
    source::{Source, check_values},
};
use crate::{
    Adapter, Error, Layer,
    adapter::{DESCRIPTION, PROMPT, TENSORS, read},
};

const PICKLES: [&str; 2] = ["adapter_model.bin", "adapter_model.pt"];
const TASK_COLUMNS: &str = "prefix_task_cols";
const TASK_ROWS: &str = "prefix_task_rows";

/// Reads the folder that PEFT's `save_pretrained` wrote.
///
/// # Errors
/// [`Error::Foreign`] with the file, what it holds, and the way out; [`Error::Read`], [`Error::Json`].
pub fn import_peft(folder: &Path, target: &Target, wishes: &Wishes) -> Result<Imported, Error> {
    let config = Config::open(&config_path(folder)?)?;
    let path = tensors_path(folder)?;
    let bytes = read(&path)?;
    let source = Source::read(&path, &bytes)?;
    let file = File {
        config: &config,
        source: &source,
        target,
        wishes,
    };
    file.check_kind()?;
    let mut notes = Vec::new();
    let (form, prompt) = match config.kind {
        Kind::Embeddings | Kind::Tasks => file.rows(&mut notes)?,
        Kind::KeyValues => file.prefix(&mut notes)?,
    };
    let positions = match (config.kind, target.kind) {
        (Kind::KeyValues, BaseKind::EncoderDecoder) => Positions::DecoderAfterPrompt,
        _ => Positions::AfterPrompt,
    };
    let head = PeftHead::of(&file, &mut notes)?;
    let parts = Parts {
        method: config.method(),
        form,
        positions,
        head: head.kind,
        classes: head.classes,
        rank: head.rank(),
        labels: &head.labels,
        pooling: &head.pooling,
        receipt: receipt(&config),
    };
    let (card, description) = card(&folder.join(CONFIG), parts, target, wishes)?;
    let adapter = Adapter {
        description,
        prompt,
        gates: Vec::new(),
        head_weight: head.weight,
        head_bias: head.bias,
        head_factors: head.factors,
    };
    Ok(Imported {
        adapter,
        card,
        notes,
    })
}

fn config_path(folder: &Path) -> Result<std::path::PathBuf, Error> {
    if folder.is_file() {
        refuse_gguf(folder)?;
        let problem = "is a file; name the folder that PEFT's save_pretrained wrote";
        return Err(foreign(folder, problem));
    }
    if folder.join(DESCRIPTION).is_file() {
        let problem = "is an adapter folder of Preface already: pack it as it is";
        return Err(foreign(folder, problem));
    }
    let path = folder.join(CONFIG);
    match path.is_file() {
        true => Ok(path),
        false => {
            let problem = format!(
                "there is no {CONFIG} in it; name the folder that PEFT's save_pretrained wrote (an adapter with a name of \
                 its own lies in a folder of that name)"
            );
            Err(foreign(folder, problem))
        }
    }
}

fn tensors_path(folder: &Path) -> Result<std::path::PathBuf, Error> {
    let path = folder.join(TENSORS);
    let pickle = PICKLES
        .map(|name| folder.join(name))
        .into_iter()
        .find(|path| path.is_file());
    match (path.is_file(), pickle) {
        (true, _) => Ok(path),
        (false, Some(pickle)) => {
            let problem = format!(
                "a Python pickle runs code when it is read, so it is not; load it where you trust it and save it again as \
                 {TENSORS}: model.save_pretrained(folder, safe_serialization=True)"
            );
            Err(foreign(&pickle, problem))
        }
        (false, None) => Err(foreign(
            folder,
            format!("there is no {TENSORS} in it; save the adapter again with PEFT"),
        )),
    }
}

/// What is known of how it was trained.
fn receipt(config: &Config) -> Value {
    json!({"imported_from": "peft", "peft_type": config.peft_type, "peft_version": config.peft_version})
}

/// A PEFT folder, read.
struct File<'a> {
    config: &'a Config,
    source: &'a Source<'a>,
    target: &'a Target,
    wishes: &'a Wishes,
}

impl File<'_> {
    fn refuse(&self, problem: impl Into<String>) -> Error {
        foreign(self.source.path, problem)
    }

    /// Refuses an adapter for another kind of base.
    fn check_kind(&self) -> Result<(), Error> {
        let kind = self.target.kind;
        let fits = match self.config.task_type() {
            "CAUSAL_LM" => kind == BaseKind::Decoder,
            "SEQ_2_SEQ_LM" => kind == BaseKind::EncoderDecoder,
            _ => true,
        };
        if fits {
            return Ok(());
        }
        let (task, kind) = (self.config.task_type(), kind.name());
        Err(self.refuse(format!(
            "its task type is {task}, and the base is {kind}; pass --base the model that it was trained on"
        )))
    }

    /// Rows of embeddings: form and values.
    fn rows(&self, notes: &mut Vec<String>) -> Result<(Value, Vec<f32>), Error> {
        let (tokens, halves) = (self.config.tokens, self.config.halves()?);
        let hidden = usize::from(self.target.embedding_width);
        let (config_tokens, all) = (tokens, tokens.saturating_mul(halves));
        let because = format!(
            "{CONFIG} says {config_tokens} virtual tokens in {halves} submodule(s), and the base has embeddings of {hidden}; \
             pass --base the model that it was trained on"
        );
        let mut rows = self.source.values(PROMPT, &[all, hidden], &because)?;
        if self.config.kind == Kind::Tasks {
            self.times_task(&mut rows, all)?;
        }
        if halves == 2 {
            notes.push(format!(
                "of the {all} rows the first {tokens}, which stand before the encoder's text, are taken: PEFT reads no others"
            ));
            rows.truncate(tokens * hidden);
        }
        let tokens = small(self.source.path, "num_virtual_tokens", tokens)?;
        Ok((
            json!({"kind": "embeddings", "tokens": tokens, "hidden": hidden}),
            rows,
        ))
    }

    /// Multiplies the rows that all tasks share by those of one task, a product of columns and rows (Wang et al. 2023,
    /// section 3.1).
    fn times_task(&self, rows: &mut [f32], all: usize) -> Result<(), Error> {
        let hidden = usize::from(self.target.embedding_width);
        let shape = self.source.shape(TASK_COLUMNS)?;
        let &[tasks, _, rank] = &shape[..] else {
            return Err(self.refuse(format!(
                "{TASK_COLUMNS} is {shape:?}, expected [tasks, {all}, rank]"
            )));
        };
        let because = "both factors of a task are of one rank";
        let columns = self
            .source
            .values(TASK_COLUMNS, &[tasks, all, rank], because)?;
        let factors = self
            .source
            .values(TASK_ROWS, &[tasks, rank, hidden], because)?;
        let task = task_of(self.source.path, self.wishes.task_index, tasks)?;
        let columns = columns
            .chunks_exact((all * rank).max(1))
            .nth(task)
            .unwrap_or_default();
        let factors = factors
            .chunks_exact((rank * hidden).max(1))
            .nth(task)
            .unwrap_or_default();
        for (row, column) in rows
            .chunks_exact_mut(hidden.max(1))
            .zip(columns.chunks_exact(rank.max(1)))
        {
            for (at, value) in row.iter_mut().enumerate() {
                let of_task = factors.iter().skip(at).step_by(hidden).zip(column);
                *value *= of_task.map(|(factor, column)| factor * column).sum::<f32>();
            }
        }
        check_values(self.source.path, PROMPT, rows)
    }

    /// Keys and values: form and values. The base says how many heads there are, grouped or not.
    fn prefix(&self, notes: &mut Vec<String>) -> Result<(Value, Vec<f32>), Error> {
        let tokens = self.config.tokens;
        let of_decoder = self.target.kind == BaseKind::EncoderDecoder;
        if of_decoder && (self.config.task_type(), self.config.halves()?) != ("SEQ_2_SEQ_LM", 2) {
            return Err(self.refuse(
                "PEFT gives a prefix of an encoder-decoder to its decoder where the task type is SEQ_2_SEQ_LM and \
                 num_transformer_submodules is 2, and to its looks at the encoder too elsewhere; train it so",
            ));
        }
        let (layers, of) = match of_decoder {
            true => (&self.target.decoder_layers, "the base's decoder's"),
            false => (&self.target.layers, "the base's"),
        };
        let width: usize = layers.iter().map(Layer::width).sum();
        let because = format!(
            "{tokens} virtual tokens by keys and values of {of} {} layers, {}; pass --base the model that it was trained \
             on",
            layers.len(),
            geometry(layers),
        );
        let mut values = self.source.values(PROMPT, &[tokens, width], &because)?;
        if of_decoder {
            let count = layers.len();
            values = decoder::read(&values, count, width.checked_div(count).unwrap_or(0));
            notes.push(format!(
                "each of the decoder's {count} layers has the rows that PEFT gives it: layer i those that are stored for \
                 layer 2 i, counted around"
            ));
        }
        let layers: Vec<Value> = layers
            .iter()
            .map(|layer| json!({"kv_heads": layer.kv_heads, "head_dim": layer.head_dim}))
            .collect();
        let tokens = small(self.source.path, "num_virtual_tokens", tokens)?;
        Ok((
            json!({"kind": "key-values", "tokens": tokens, "layers": layers}),
            values,
        ))
    }
}

/// Heads of the layers in words.
fn geometry(layers: &[Layer]) -> String {
    let words: Vec<String> = layers
        .chunk_by(|one, other| one == other)
        .filter_map(|run| run.first())
        .map(|layer| format!("{} heads of {}", layer.kv_heads, layer.head_dim))
        .collect();
    words.join(", then ")
}

/// The task that is asked for, of `tasks` in one file.
pub(super) fn task_of(path: &Path, asked: Option<usize>, tasks: usize) -> Result<usize, Error> {
    match (asked, tasks) {
        (None, 1) => Ok(0),
        (Some(task), tasks) if task < tasks => Ok(task),
        (_, 0) => Err(foreign(path, "it holds no task; save it again")),
        (_, tasks) => Err(foreign(
            path,
            format!(
                "it holds {tasks} tasks; choose one with --task-index 0 to {}",
                tasks - 1
            ),
        )),
    }
}

/// The labels that `id2label` of a file names, by number; `None` where it names none.
fn labels_of(path: &Path) -> Option<Vec<String>> {
    let value: Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let named = value.get("id2label")?.as_object()?;
    let by_number = |number: usize| Some(named.get(&number.to_string())?.as_str()?.to_owned());
    (0..named.len()).map(by_number).collect()
}
