//! Prompts as numpy arrays: Google's prompt-tuning saves `[tokens, hidden]`, TensorRT-LLM reads tables of several tasks.

use std::path::Path;

use preface_bundle::Positions;
use serde_json::json;

use super::{
    Imported, Target, Wishes,
    card::{Parts, card},
    foreign, npy,
    peft::{head::alone, task_of},
    refuse_gguf, small,
    source::check_values,
};
use crate::{Access, Adapter, Error, Form, adapter::read, write_file};

/// How the array of a prompt is laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// `[tokens, hidden]`, as Google's prompt-tuning has it.
    #[default]
    Prompt,
    /// `[tasks, tokens, hidden]` of one task, as TensorRT-LLM's prompt tables are.
    Table,
}

/// Reads a `.npy` file: `[tokens, hidden]`, or of several tasks `[tasks, tokens, hidden]` or `[tasks, tokens * hidden]`.
///
/// # Errors
/// [`Error::Foreign`] with the file, what it holds, and the way out; [`Error::Read`].
pub fn import_numpy(path: &Path, target: &Target, wishes: &Wishes) -> Result<Imported, Error> {
    refuse_gguf(path)?;
    let array = npy::read(path, &read(path)?)?;
    let (tasks, tokens) = tasks_and_tokens(path, &array.shape, target.embedding_width.into())?;
    let task = task_of(path, wishes.task_index, tasks)?;
    let hidden = usize::from(target.embedding_width);
    let prompt = array
        .values
        .chunks_exact((tokens * hidden).max(1))
        .nth(task);
    let prompt = prompt.unwrap_or_default().to_vec();
    check_values(path, "the prompt", &prompt)?;
    let tokens = small(path, "the number of virtual tokens", tokens)?;
    let mut notes = Vec::new();
    let head = alone(path, target, wishes, &mut notes)?;
    let parts = Parts {
        method: "prompt-tuning",
        form: json!({"kind": "embeddings", "tokens": tokens, "hidden": hidden}),
        positions: Positions::AfterPrompt,
        head: head.kind,
        classes: head.classes,
        rank: None,
        labels: &head.labels,
        pooling: &head.pooling,
        receipt: json!({"imported_from": "numpy"}),
    };
    let (card, description) = card(path, parts, target, wishes)?;
    let adapter = Adapter {
        description,
        prompt,
        gates: Vec::new(),
        head_weight: head.weight,
        head_bias: head.bias,
        head_factors: [Vec::new(), Vec::new()],
    };
    Ok(Imported {
        adapter,
        card,
        notes,
    })
}

fn tasks_and_tokens(path: &Path, shape: &[usize], hidden: usize) -> Result<(usize, usize), Error> {
    match *shape {
        [tokens, width] if width == hidden => Ok((1, tokens)),
        [tasks, tokens, width] if width == hidden => Ok((tasks, tokens)),
        [tasks, width] if width > hidden && width.is_multiple_of(hidden.max(1)) => {
            Ok((tasks, width / hidden))
        }
        _ => Err(foreign(
            path,
            format!(
                "its array is {shape:?}, expected [tokens, {hidden}], or of several tasks [tasks, tokens, {hidden}] or \
                 [tasks, tokens * {hidden}]: the base has embeddings of {hidden}; pass --base the model that it was trained on"
            ),
        )),
    }
}

/// Writes the prompt as a `.npy` file.
///
/// # Errors
/// [`Error::Foreign`] for keys and values, which are no rows; [`Error::Write`] and its neighbours.
pub fn export_numpy(adapter: &Adapter, layout: Layout, path: &Path) -> Result<(), Error> {
    let Form::Embeddings { tokens, hidden } = adapter.description.form else {
        let problem = "not written: the prompt is keys and values of each layer, and numpy prompts are rows of embeddings; \
                       export peft or ort-adapter";
        return Err(foreign(path, problem));
    };
    let mut shape = vec![usize::from(tokens), usize::from(hidden)];
    if layout == Layout::Table {
        shape.insert(0, 1);
    }
    write_file(path, &npy::write(&shape, &adapter.prompt), Access::Everyone)
}
