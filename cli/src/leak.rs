//! What a prompt gives away to whoever reads its bundle.

use std::path::{Path, PathBuf};

use anyhow::Context;
use preface_graph::Base;
use preface_packager::{Adapter, Form, Neighbour, READABLE_COSINE, neighbours, spelled};
use preface_trainer::{
    data::{Dataset, Example, Target},
    tokens::Tokens,
};
use serde::Serialize;

use crate::output::Output;

/// The texts that a prompt is looked for in.
#[derive(clap::Args)]
pub struct Arguments {
    /// The training file: a warning says where the prompt spells a part of its texts
    #[arg(long, value_name = "FILE", requires = "base")]
    train: Option<PathBuf>,
}

/// Tokens that are shown for each vector.
const SHOWN: usize = 3;

/// The vocabulary tokens beside a prompt, and what they give away.
#[derive(Serialize)]
pub struct Reading {
    /// For each vector the nearest tokens; none of a prefix.
    nearest_tokens: Vec<Vec<Near>>,
    /// What is said aloud.
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct Near {
    token: String,
    cosine: f32,
}

impl Arguments {
    /// Reads the prompt of an adapter in the vocabulary of its base, a folder or an image, and looks for it in the training
    /// file.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn reading(
        &self,
        adapter: &Adapter,
        base: &Path,
        output: &Output,
    ) -> anyhow::Result<Reading> {
        let train = self.train.as_deref().map(Dataset::read).transpose()?;
        if let Some(train) = &train {
            note_other(train, adapter, ("data_sha256", "training"), output);
        }
        Reading::of(adapter, base, train.as_ref())
    }
}

impl Reading {
    /// Reads the prompt of `adapter` in the vocabulary of its base, and looks for it among the texts of `train`.
    ///
    /// # Errors
    /// When the training file, the base's embeddings or its tokenizer cannot be read.
    fn of(adapter: &Adapter, base: &Path, train: Option<&Dataset>) -> anyhow::Result<Self> {
        let Form::Embeddings { hidden, .. } = &adapter.description.form else {
            return Ok(Self {
                nearest_tokens: Vec::new(),
                warnings: Vec::new(),
            });
        };
        let Vocabulary { table, tokens } = Vocabulary::of(base)?;
        let found = neighbours(&adapter.prompt, &table, usize::from(*hidden), SHOWN);
        let nearest: Vec<Neighbour> = found
            .iter()
            .filter_map(|near| near.first().copied())
            .collect();
        let mut warnings = Vec::new();
        warnings.extend(readable(&nearest, &tokens)?);
        if let Some(train) = train {
            warnings.extend(in_texts(&nearest, &tokens, train)?);
        }
        let near = |one: &Neighbour| Near {
            token: token(&tokens, one.token),
            cosine: one.cosine,
        };
        let found = found
            .iter()
            .map(|nearest| nearest.iter().map(near).collect());
        Ok(Self {
            nearest_tokens: found.collect(),
            warnings,
        })
    }

    /// Shows the tokens, and says the warnings aloud.
    pub fn show(&self, output: &Output) {
        match self.nearest_tokens.is_empty() {
            true => output.say("a prefix of keys and values: its vectors are near to no tokens, and cannot be read so"),
            false => output.say("vector  nearest tokens, with their cosine"),
        }
        for (number, nearest) in (1..).zip(&self.nearest_tokens) {
            let nearest = nearest
                .iter()
                .map(|near| format!("{} {:.2}", near.token, near.cosine));
            let nearest: Vec<String> = nearest.collect();
            output.say(format_args!("{number:>6}  {}", nearest.join(", ")));
        }
        for warning in &self.warnings {
            output.note(format_args!("preface: warning: {warning}"));
        }
    }
}

/// A base's token embeddings `[tokens, embedding width]`, and what the tokens are.
struct Vocabulary {
    table: Vec<f32>,
    tokens: Tokens,
}

impl Vocabulary {
    /// That of a base folder or a base image.
    fn of(base: &Path) -> anyhow::Result<Self> {
        if !base.is_dir() {
            let image = crate::image::open(base)?;
            return Ok(Self {
                table: image.embeddings(),
                tokens: Tokens::read(image.tokenizer())?,
            });
        }
        let base = Base::open(base)?;
        let name = &base.description.embedding_table;
        let graph = base.model.graph.as_ref();
        let table = graph.and_then(|graph| graph.initializer(name));
        let table = table.with_context(|| format!("the base has no embedding table {name}"))?;
        Ok(Self {
            table: table.floats(&base.folder)?,
            tokens: Tokens::read(&base.tokenizer)?,
        })
    }
}

/// Says where a file is not the one that the adapter's receipt names under a key.
pub fn note_other(data: &Dataset, adapter: &Adapter, (key, what): (&str, &str), output: &Output) {
    let known = adapter.description.receipt.get(key);
    if known.is_none_or(|known| *known != *data.sha256) {
        let path = data.path.display();
        output.note(format_args!(
            "{path} is not the {what} file that the adapter was trained with"
        ));
    }
}

/// What to do about a prompt that can be read.
const WAY_OUT: &str =
    "whoever has the bundle reads them; start from labels, or train further from the start";

/// A warning where vectors are hardly away from tokens.
fn readable(nearest: &[Neighbour], tokens: &Tokens) -> anyhow::Result<Option<String>> {
    let close: Vec<Neighbour> = nearest
        .iter()
        .filter(|one| one.cosine >= READABLE_COSINE)
        .copied()
        .collect();
    if close.is_empty() {
        return Ok(None);
    }
    Ok(Some(format!(
        "{} of {} vectors are tokens all but exactly, {:?}: {WAY_OUT}",
        close.len(),
        nearest.len(),
        spelling(&close, tokens)?
    )))
}

/// A warning for each run of nearest tokens that is in the texts.
fn in_texts(
    nearest: &[Neighbour],
    tokens: &Tokens,
    train: &Dataset,
) -> anyhow::Result<Vec<String>> {
    let texts = train.examples.iter().flat_map(texts_of);
    let ids = texts.map(|text| {
        let ids = tokens.plain(text)?.into_iter();
        Ok(ids.filter_map(|id| usize::try_from(id).ok()).collect())
    });
    let ids: Vec<Vec<usize>> = ids.collect::<anyhow::Result<_>>()?;
    let prompt: Vec<usize> = nearest.iter().map(|one| one.token).collect();
    let runs = spelled(&prompt, &ids).into_iter().map(|run| {
        let (first, last) = (run.start + 1, run.end);
        let text = spelling(nearest.get(run).unwrap_or_default(), tokens)?;
        let path = train.path.display();
        Ok(format!(
            "vectors {first} to {last} spell {text:?}, which is in {path}: {WAY_OUT}"
        ))
    });
    runs.collect()
}

fn texts_of(example: &Example) -> impl Iterator<Item = &str> {
    let target = match &example.target {
        Target::Text(text) => Some(&**text),
        _ => None,
    };
    [Some(&*example.text), example.text2.as_deref(), target]
        .into_iter()
        .flatten()
}

fn spelling(nearest: &[Neighbour], tokens: &Tokens) -> anyhow::Result<String> {
    let ids: Vec<i64> = nearest.iter().map(|one| one.token as i64).collect();
    Ok(tokens.text(&ids)?)
}

fn token(tokens: &Tokens, id: usize) -> String {
    let token = u32::try_from(id).ok().and_then(|id| tokens.token(id));
    token.unwrap_or_else(|| format!("#{id}"))
}
