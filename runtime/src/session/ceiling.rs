//! How much memory a session takes at most.

use super::{Loaded, Session};
use crate::{
    generation::guide::Guide,
    task::{Form, Head},
};

/// Bytes that reading a tokenizer takes for each byte of `tokenizer.json`, what is thrown away on the way among them.
const TOKENIZER_BYTES: usize = 32;
/// What is not counted one by one: the image's index, names, buffers of the system's, a text on its way to tokens.
const SMALL_BYTES: usize = 2 << 20;
/// Bytes for each token of the vocabulary that choosing a token takes.
const SAMPLER_BYTES: usize = 24;
/// The stack of a thread and the buffers that kernels keep for it.
const THREAD_BYTES: usize = (2 << 20) + (64 << 10);

impl Session {
    /// The most memory of its own, in bytes, that this session takes from the system beside the mapped image, which
    /// processes share, and the program's code: what the engine reserves, buffers of texts and answers, the loaded
    /// tasks and what loading the largest of them took on the way, and the tokenizer, whose share is an upper bound made
    /// from its size.
    ///
    /// Answering takes no more than this for a text of any length that is not refused. Loading another task raises it.
    /// Memory that cannot be reserved at open is [`Error::Memory`](crate::Error::Memory); where the tokenizer or a
    /// loaded task finds none, the process aborts, as everything does in Rust that allocates. `None` on tract's plan,
    /// whose runs allocate.
    pub fn ceiling_bytes(&self) -> Option<usize> {
        let engine = self.engine.reserved_bytes()?;
        let tasks = self.tasks.iter().map(Loaded::bytes).sum::<usize>();
        // A task that replaces another is there beside it for a moment.
        let replaced = self.tasks.iter().map(Loaded::bytes).max().unwrap_or(0);
        let generation = match &self.generation {
            None => 0,
            Some(generation) => {
                let vocabulary = self.image.description().vocabulary;
                vocabulary * SAMPLER_BYTES * generation.lines.len() + generation.bytes()
            }
        };
        let history = self
            .history
            .as_ref()
            .map_or(0, |history| history.pasts.len() * self.engine.room_bytes());
        let tokenizer = self.image.tokenizer().len() * TOKENIZER_BYTES;
        let buffers = engine + self.room.bytes() + self.loading_bytes;
        let threads = self.options.threads.count.saturating_sub(1) * THREAD_BYTES;
        Some(buffers + tasks + replaced + history + generation + tokenizer + threads + SMALL_BYTES)
    }

    /// Notes that loading a task took so many bytes that it does not keep.
    pub(crate) fn note_loading(&mut self, bytes: usize) {
        self.loading_bytes = self.loading_bytes.max(bytes);
    }
}

impl Loaded {
    fn bytes(&self) -> usize {
        let rows = match &self.task.form {
            Form::Embeddings { rows, .. } => size_of_val(&rows[..]),
            Form::KeyValues(_) | Form::Ran { .. } => 0,
        };
        let head = match &self.task.head {
            Head::Rows(head) => head.bytes(),
            Head::Words(_) | Head::Text(_) => 0,
        };
        let guide = self.guide.as_ref().map_or(0, Guide::bytes);
        self.past.bytes() + rows + head + guide + size_of_val(&self.before[..])
    }
}
