//! Tasks on a mapped base: load, activate, answer.

mod ceiling;
mod generate;
mod history;
mod line;
mod load;
mod room;

use std::{cell::OnceCell, panic::resume_unwind, thread};

use preface_bundle::{AnswerKind, AnswerPlan, Before, Inputs, Pooling, shorten};

use generate::Generation;
use history::History;
pub use line::{Part, Request};
use room::Room;

use crate::{
    Answer, Error, Image,
    answer::Reader,
    engine::{Engine, EngineKind, PROMPT_ROWS, Past},
    generation::guide::Guide,
    image::{Description, Kind},
    task::{Form, Head, Task, pool},
    text::{Encoded, Encoder, Overlength},
};

/// How a session runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Tokens of a text, special tokens included; the base's positions bound it in any case.
    pub max_tokens: Option<usize>,
    /// What happens to a longer text.
    pub overlength: Overlength,
    /// When the tokenizer is read.
    pub tokenizer: TokenizerUse,
    /// What answers.
    pub threads: Threads,
    /// Texts that [`Session::generate_all`] goes on with at once, each with room for its own keys and values; none is as
    /// one.
    pub texts: usize,
}

impl Options {
    /// Texts that are gone on with at once.
    fn places(&self) -> usize {
        self.texts.max(1)
    }
}

/// The threads of a session: started when it is opened, the one that asks among them. Answers do not depend on how many
/// there are. tract's plan runs on one. They do not survive a fork of the process: open the session in the child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threads {
    /// How many; none is as one.
    pub count: usize,
    /// Whether each but the asking one stays on a processor of its own, from the second that this process may use on.
    pub pinned: bool,
}

impl Default for Threads {
    fn default() -> Self {
        Self {
            count: 1,
            pinned: false,
        }
    }
}

/// When a session reads the image's tokenizer, which takes longer and more memory than all else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenizerUse {
    /// At open, so that the first text is answered as fast as the others.
    #[default]
    AtOpen,
    /// With the first text, or never where only token ids are given and no task generates text or has label names for
    /// its head.
    WithFirstText,
}

/// Names a task loaded into one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskHandle(usize);

/// A base ready to run, with the tasks loaded onto it.
///
/// An answer always comes from a task: without one, asking is an error.
#[derive(Debug)]
pub struct Session {
    image: Image,
    encoder: OnceCell<Encoder>,
    engine: Engine,
    options: Options,
    tasks: Vec<Loaded>,
    active: Option<TaskHandle>,
    room: Room,
    /// Bytes that loading a task took and gave back, of the one that took the most.
    loading_bytes: usize,
    /// There where a task needs one: it generates text, or the base has an encoder beside its decoder.
    history: Option<History>,
    /// There where a task generates text.
    generation: Option<Generation>,
}

/// A task as the engine consumes it.
#[derive(Debug)]
struct Loaded {
    task: Task,
    past: Past,
    /// Whether its bundle may not be used any more.
    withdrawn: bool,
    /// What its texts may say, where that is not anything.
    guide: Option<Guide>,
    /// What may stand before each of its labels, where they are tags.
    before: Vec<Before>,
}

// A session may move to another thread, and an image may be shared by the sessions of several.
const _: () = {
    const fn moves<T: Send>() {}
    const fn is_shared<T: Send + Sync>() {}
    moves::<Session>();
    is_shared::<Image>();
};

impl Session {
    /// Makes `image` ready to run.
    ///
    /// # Errors
    /// When the image does not fit this machine or this build; the message gives the command that rebuilds it.
    pub fn open(image: &Image, options: Options) -> Result<Self, Error> {
        let engine = || {
            let (most_tokens, texts) = (options.max_tokens, options.places());
            Engine::open(image, most_tokens, texts, options.threads)
        };
        let (encoder, engine) = match options.tokenizer {
            TokenizerUse::WithFirstText => (OnceCell::new(), engine()),
            TokenizerUse::AtOpen => thread::scope(|scope| {
                // Where no thread can be had, the tokenizer is read by this one.
                let other = thread::Builder::new().spawn_scoped(scope, || Encoder::open(image));
                let engine = engine();
                let encoder = match other {
                    Ok(other) => other.join().unwrap_or_else(|panic| resume_unwind(panic)),
                    Err(_) => Encoder::open(image),
                };
                Ok::<_, Error>((OnceCell::from(encoder?), engine))
            })?,
        };
        let engine = engine?;
        let mut room = Room::default();
        if let Some(rows) = engine.most_rows() {
            room.reserve(rows, image.description());
        }
        Ok(Self {
            encoder,
            engine,
            image: image.clone(),
            options,
            tasks: Vec::new(),
            active: None,
            room,
            loading_bytes: 0,
            history: None,
            generation: None,
        })
    }

    fn encoder(&self) -> Result<&Encoder, Error> {
        if let Some(encoder) = self.encoder.get() {
            return Ok(encoder);
        }
        let encoder = Encoder::open(&self.image)?;
        Ok(self.encoder.get_or_init(|| encoder))
    }

    /// What the base is.
    pub fn description(&self) -> &Description {
        self.image.description()
    }

    /// Which engine runs the base.
    pub fn engine(&self) -> EngineKind {
        self.engine.kind()
    }

    /// Bytes of buffers that the engine keeps between runs.
    pub fn arena_bytes(&self) -> usize {
        self.engine.arena_bytes()
    }

    /// The loaded tasks in the order of loading, with their names.
    pub fn tasks(&self) -> impl Iterator<Item = (TaskHandle, &str)> {
        self.tasks
            .iter()
            .enumerate()
            .map(|(index, loaded)| (TaskHandle(index), &*loaded.task.id))
    }

    /// The labels of a loaded task, in the order of its classes; none where the handle is another session's.
    pub fn labels(&self, task: TaskHandle) -> &[String] {
        self.tasks
            .get(task.0)
            .map_or(&[], |loaded| &loaded.task.labels)
    }

    /// What a loaded task is asked and answers; `None` where the handle is another session's.
    pub fn plan(&self, task: TaskHandle) -> Option<AnswerPlan> {
        self.tasks.get(task.0).map(|loaded| loaded.task.answer)
    }

    /// Makes `task` the one that answers.
    ///
    /// # Errors
    /// When the handle comes from another session, or the task is withdrawn.
    pub fn activate(&mut self, task: TaskHandle) -> Result<(), Error> {
        self.loaded(task)?;
        self.active = Some(task);
        Ok(())
    }

    /// Answers nothing more by the task of that name, the active one too, until another bundle of it is loaded. It keeps
    /// its handle.
    pub(crate) fn withdraw(&mut self, name: &str) {
        let mut tasks = self.tasks.iter_mut();
        if let Some(loaded) = tasks.find(|loaded| loaded.task.id == name) {
            loaded.withdrawn = true;
        }
    }

    /// A text, or for a task that reads pairs two of them, as the active task reads it, made to fit as the options say.
    ///
    /// # Errors
    /// When no task is active, it reads another number of texts, or the text has no tokens or too many.
    pub fn encode(&self, text: &str, second: Option<&str>) -> Result<Encoded, Error> {
        let loaded = self.active()?;
        let task = &loaded.task;
        let name = || task.id.clone();
        match (task.answer.inputs, second) {
            (Inputs::Pair, None) => return Err(Error::OneText { task: name() }),
            (Inputs::One, Some(_)) => return Err(Error::TwoTexts { task: name() }),
            _ => {}
        }
        let limit = self.limit(loaded);
        let encoded = self.written(task, text, second)?;
        let can_be_cut = task.answer.kind != AnswerKind::Tags;
        if encoded.len() > limit && can_be_cut {
            return match self.options.overlength {
                Overlength::Truncate => self.cut(task, encoded, (text, second), limit),
                Overlength::Refuse => Err(Error::TooLong {
                    tokens: encoded.len(),
                    limit,
                    can_be_cut,
                }),
            };
        }
        encoded.check(limit)?;
        Ok(encoded)
    }

    /// Texts as `task` writes them.
    fn written(&self, task: &Task, text: &str, second: Option<&str>) -> Result<Encoded, Error> {
        match task.answer.kind {
            AnswerKind::Tags => {
                let words: Vec<&str> = text.split_whitespace().collect();
                self.encoder()?.words(&words)
            }
            _ => self.encoder()?.texts(&task.template.render(text), second),
        }
    }

    /// As much of the beginnings of a text or a pair as fits `limit`; `encoded` is all of it.
    fn cut(
        &self,
        task: &Task,
        mut encoded: Encoded,
        (text, second): (&str, Option<&str>),
        limit: usize,
    ) -> Result<Encoded, Error> {
        let ends = |text: &str| self.encoder()?.ends(text);
        let ends = [ends(text)?, second.map_or(Ok(Vec::new()), ends)?];
        let mut kept = [ends[0].len(), ends[1].len()];
        while encoded.len() > limit {
            kept = shorten(kept, encoded.len() - limit);
            if kept[0] == 0 {
                break;
            }
            let beginning = |which: usize, text| -> &str {
                let end = ends[which].iter().take(kept[which]).max();
                str::get(text, ..end.copied().unwrap_or(0)).unwrap_or(text)
            };
            let second = second.map(|second| beginning(1, second));
            encoded = self.written(task, beginning(0, text), second)?;
        }
        encoded.check(limit)?;
        Ok(encoded)
    }

    /// Answers a text, or for a task that reads pairs two of them, with the active task.
    ///
    /// # Errors
    /// As [`Session::encode`] and [`Session::answer_encoded`].
    pub fn answer(&mut self, text: &str, second: Option<&str>) -> Result<Answer<'_>, Error> {
        let encoded = self.encode(text, second)?;
        self.answer_encoded(&encoded)
    }

    /// Answers a text that was encoded before, with the active task.
    ///
    /// # Errors
    /// When no task is active, there are no tokens or too many, the engine fails, or its answer is no number.
    pub fn answer_encoded(&mut self, text: &Encoded) -> Result<Answer<'_>, Error> {
        let request = (self.active.ok_or(Error::NoTask)?, text);
        match self.active()?.task.head {
            Head::Text(_) => self.stream(text, |_| ()).map(Answer::Text),
            Head::Rows(_) | Head::Words(_) => {
                self.check(request)?;
                self.run(&[request])?;
                self.read(request, 0)
            }
        }
    }

    /// Answers texts that were encoded before, each with a task of its own: as many at once as there is room for.
    /// `hear` is given every answer with the number of its request, in their order. The active task stays the active
    /// one.
    ///
    /// # Errors
    /// As [`Session::answer_encoded`] for any of the requests, and where a task generates text; nothing is run where a
    /// request can be told to fail before.
    pub fn answer_all(
        &mut self,
        requests: &[(TaskHandle, &Encoded)],
        mut hear: impl FnMut(usize, Answer<'_>),
    ) -> Result<(), Error> {
        for &request in requests {
            self.check(request)?;
            let task = &self.loaded(request.0)?.task;
            if let Head::Text(_) = task.head {
                return Err(Error::Generates {
                    task: task.id.clone(),
                });
            }
        }
        let most = self.engine.most_rows().unwrap_or(usize::MAX);
        let mut first = 0;
        while first < requests.len() {
            let mut rows = 0;
            let fitting = requests[first..].iter().take_while(|&&(handle, text)| {
                rows += self.tasks[handle.0].task.form.rows_beside_text() + text.len();
                rows <= most
            });
            let fitting = match self.encodes_first() {
                true => 1,
                false => fitting.count().max(1),
            };
            let batch = &requests[first..first + fitting];
            self.run(batch)?;
            let mut row = 0;
            for (index, &request) in batch.iter().enumerate() {
                let rows = self.room.lengths[index];
                hear(first + index, self.read(request, row)?);
                row += rows;
            }
            first += batch.len();
        }
        Ok(())
    }

    /// Whether there is room for a text behind the prompt of its task.
    fn check(&self, (handle, text): (TaskHandle, &Encoded)) -> Result<(), Error> {
        text.check(self.limit(self.loaded(handle)?))
    }

    /// Runs the texts of `requests`, which were checked, at once; of an encoder-decoder it is one.
    fn run(&mut self, requests: &[(TaskHandle, &Encoded)]) -> Result<(), Error> {
        if let (true, &[(handle, text)]) = (self.encodes_first(), requests) {
            return self.begin_with(0, Some(handle), text);
        }
        self.room.clear(self.image.description());
        for &(handle, text) in requests {
            let task = &self.tasks.get(handle.0).ok_or(Error::NoTask)?.task;
            self.room.push(&self.image, Some(&task.form), text)?;
        }
        let tasks = &self.tasks;
        let past = |index: usize| {
            let (handle, _) = requests[index];
            &tasks[handle.0].past
        };
        self.engine.run(self.room.input(), &past)
    }

    /// The answer to a text whose rows, those of its prompt among them, begin at `row` of the last run's.
    fn read(
        &mut self,
        (handle, text): (TaskHandle, &Encoded),
        row: usize,
    ) -> Result<Answer<'_>, Error> {
        let encodes = self.encodes_first();
        let Loaded { task, before, .. } = self.tasks.get(handle.0).ok_or(Error::NoTask)?;
        let Room {
            features,
            logits,
            sums,
            found,
            ..
        } = &mut self.room;
        let hidden = features.len();
        let beside = task.form.rows_beside_text();
        let all = row..row + beside + text.len();
        let first = row + task.form.rows_before_text();
        let decodes = self.image.description().kind == Kind::Decoder;
        let read = match task.pooling {
            // A decoder behind an encoder has run its first token.
            _ if encodes => 0..1,
            Pooling::Mask => {
                let mask = self.image.description().mask;
                let mut tokens = text.ids().iter();
                let place = tokens.position(|&id| Some(id) == mask);
                let place = first + place.ok_or(Error::NoMask)?;
                place..place + 1
            }
            Pooling::Prompt => row..row + 1,
            Pooling::Last if decodes && task.answer.kind != AnswerKind::Tags => all,
            _ => first..first + text.len(),
        };
        let rows = &self.engine.hidden_rows()[read.start * hidden..read.end * hidden];
        let reader = Reader {
            plan: task.answer,
            labels: &task.labels,
            before,
            logits,
            sums,
            found,
        };
        match &task.head {
            Head::Rows(head) if task.answer.kind == AnswerKind::Tags => {
                reader.tagged(head, rows, hidden, text.words())
            }
            Head::Rows(head) => {
                pool(task.pooling, rows, features);
                head.logits(features, reader.logits)?;
                reader.pooled()
            }
            Head::Words(words) => {
                let row = match task.pooling {
                    Pooling::First => read.start,
                    _ => read.end - 1,
                };
                words.logits(self.engine.logits(row)?, reader.logits)?;
                reader.pooled()
            }
            Head::Text(_) => Err(Error::Generates {
                task: task.id.clone(),
            }),
        }
    }

    /// Runs two tokens through the base without a task: whether the engine can run it at all.
    ///
    /// # Errors
    /// When the engine fails.
    #[cfg(feature = "compile")]
    pub(crate) fn try_out(&mut self) -> Result<(), Error> {
        let placeholder = self.image.description().placeholder;
        self.run_alone(&Encoded::of_ids(&[placeholder; 2]))?;
        match self.engine.vocabulary() {
            None => Ok(()),
            Some(_) => self.engine.logits(1).map(|_| ()),
        }
    }

    fn active(&self) -> Result<&Loaded, Error> {
        self.loaded(self.active.ok_or(Error::NoTask)?)
    }

    /// The task, which may answer.
    fn loaded(&self, task: TaskHandle) -> Result<&Loaded, Error> {
        let loaded = self.tasks.get(task.0).ok_or(Error::NoTask)?;
        match loaded.withdrawn {
            true => Err(Error::Withdrawn {
                task: loaded.task.id.clone(),
            }),
            false => Ok(loaded),
        }
    }

    /// Tokens of a text that fit beside the prompt of a task.
    fn limit(&self, Loaded { task, past, .. }: &Loaded) -> usize {
        let positions = self.image.description().max_positions.unwrap_or(usize::MAX);
        let room = positions.saturating_sub(task.prompt_positions());
        let rows = match task.form {
            Form::Embeddings { tokens, .. } => tokens,
            Form::KeyValues(_) => 0,
            // Its keys have the room of a prefix, and beyond that they take the text's.
            Form::Ran { tokens } => tokens.saturating_sub(PROMPT_ROWS),
        };
        let reserved = self.engine.most_rows().unwrap_or(usize::MAX);
        let behind = self.engine.rows_behind(past).unwrap_or(usize::MAX);
        let most = self.options.max_tokens.unwrap_or(usize::MAX);
        room.min(reserved.saturating_sub(rows))
            .min(behind)
            .min(most)
    }
}

#[cfg(all(test, feature = "compile"))]
mod tests;
