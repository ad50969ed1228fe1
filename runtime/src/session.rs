//! Tasks on a mapped base: load, activate, answer.

mod generate;

use std::{cell::OnceCell, panic::resume_unwind, thread};

use preface_bundle::{AnswerKind, AnswerPlan, Inputs, Pooling, VerifiedBundle};

use generate::Generation;

use crate::{
    Answer, Error, Image,
    answer::{Reader, Scored},
    engine::{Engine, EngineKind, Input, Past},
    image::{Description, Kind},
    task::{Form, Head, KeyValues, Limits, Measure, Place, Task, pool},
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
}

/// When a session reads the image's tokenizer, which takes longer and more memory than all else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenizerUse {
    /// At open, so that the first text is answered as fast as the others.
    #[default]
    AtOpen,
    /// With the first text, or never where only token ids are given.
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
    /// There where a task generates text.
    generation: Option<Generation>,
}

/// A task as the engine consumes it.
#[derive(Debug)]
struct Loaded {
    task: Task,
    past: Past,
}

/// Buffers that one run after another uses.
#[derive(Debug, Default)]
struct Room {
    rows: Vec<f32>,
    ids: Vec<i64>,
    types: Vec<i64>,
    /// Rows of each text, those of its prompt among them.
    lengths: Vec<usize>,
    features: Vec<f32>,
    logits: Vec<f32>,
    found: Vec<Scored>,
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
        let (encoder, engine) = match options.tokenizer {
            TokenizerUse::WithFirstText => {
                (OnceCell::new(), Engine::open(image, options.max_tokens))
            }
            TokenizerUse::AtOpen => thread::scope(|scope| {
                let encoder = scope.spawn(|| Encoder::open(image));
                let engine = Engine::open(image, options.max_tokens);
                let encoder = encoder.join().unwrap_or_else(|panic| resume_unwind(panic));
                Ok::<_, Error>((OnceCell::from(encoder?), engine))
            })?,
        };
        let engine = engine?;
        let mut room = Room::default();
        if let Some(rows) = engine.most_rows() {
            room.reserve(rows, image.description().hidden);
        }
        Ok(Self {
            encoder,
            engine,
            image: image.clone(),
            options,
            tasks: Vec::new(),
            active: None,
            room,
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

    /// Dequantises and expands the task of a verified bundle, and puts it beside the others; one of the same name is
    /// replaced and keeps its handle. The active task stays the active one.
    ///
    /// # Errors
    /// When the bundle was made for another base or tokenizer, or needs a form or a head that is not supported.
    pub fn load(&mut self, bundle: &VerifiedBundle<'_>) -> Result<TaskHandle, Error> {
        self.add(Task::of_bundle(bundle)?)
    }

    fn add(&mut self, mut task: Task) -> Result<TaskHandle, Error> {
        task.check(self.image.description(), self.engine.kind())?;
        let past = match &task.form {
            Form::Embeddings { .. } => self.engine.prepare(&KeyValues::default())?,
            Form::KeyValues(prefix) => self.engine.prepare(prefix)?,
            Form::Ran { .. } => unreachable!("a task is added once"),
        };
        let past = self.ran(&mut task, past)?;
        match &mut task.head {
            Head::Rows(head) if head.measure == Measure::Cosine => {
                let prototypes = self.prototypes(&task.labels)?;
                head.set_prototypes(prototypes, self.image.description().hidden);
            }
            Head::Words(words) => {
                let fits = words.fit(self.engine.vocabulary().ok_or(Error::NoLogits)?);
                fits.map_err(|reason| Error::Task {
                    task: task.id.clone(),
                    reason,
                })?;
            }
            Head::Text(Limits { most_tokens, .. }) => {
                let most = *most_tokens;
                self.make_room_to_generate(most)?;
            }
            Head::Rows(_) => {}
        }
        let place = self
            .tasks
            .iter()
            .position(|loaded| loaded.task.id == task.id);
        self.room.expect(task.labels.len());
        let loaded = Loaded { task, past };
        match place {
            Some(place) => self.tasks[place] = loaded,
            None => self.tasks.push(loaded),
        }
        Ok(TaskHandle(place.unwrap_or(self.tasks.len() - 1)))
    }

    /// Runs a prompt that stands before its text once and keeps its keys and values, where the base's tokens see only
    /// those before them: the prompt then costs nothing with each text.
    fn ran(&mut self, task: &mut Task, start: Past) -> Result<Past, Error> {
        let Form::Embeddings {
            tokens,
            place: Place::BeforeText,
            ..
        } = task.form
        else {
            return Ok(start);
        };
        let Some(mut past) = self.engine.room(Some(tokens)) else {
            return Ok(start);
        };
        past.begin(&start)?;
        self.room.clear(self.image.description());
        self.room
            .push(&self.image, Some(&task.form), &Encoded::default())?;
        self.engine.go_on(self.room.input(), &mut past)?;
        task.form = Form::Ran { tokens };
        Ok(past)
    }

    /// Makes `task` the one that answers.
    ///
    /// # Errors
    /// When the handle comes from another session.
    pub fn activate(&mut self, task: TaskHandle) -> Result<(), Error> {
        self.tasks.get(task.0).ok_or(Error::NoTask)?;
        self.active = Some(task);
        Ok(())
    }

    /// For each label the mean of the hidden rows that the base without a prompt gives its name, `[labels, hidden]`.
    fn prototypes(&mut self, labels: &[String]) -> Result<Vec<f32>, Error> {
        let past = self.engine.prepare(&KeyValues::default())?;
        let hidden = self.image.description().hidden;
        let positions = self.image.description().max_positions;
        let mut prototypes = vec![0.0; labels.len() * hidden];
        for (label, prototype) in labels.iter().zip(prototypes.chunks_exact_mut(hidden)) {
            let spoken = label.replace(['-', '_', '.'], " ");
            let name = self.encoder()?.texts(&spoken, None)?;
            name.check(positions.unwrap_or(usize::MAX))?;
            self.room.clear(self.image.description());
            self.room.push(&self.image, None, &name)?;
            self.engine.run(self.room.input(), &|_| &past)?;
            pool(Pooling::Mean, self.engine.hidden_rows(), prototype);
        }
        Ok(prototypes)
    }

    /// A text, or for a task that reads pairs two of them, as the active task reads it, made to fit as the options say.
    ///
    /// # Errors
    /// When no task is active, it reads another number of texts, or the text has no tokens or too many.
    pub fn encode(&self, text: &str, second: Option<&str>) -> Result<Encoded, Error> {
        let task = &self.active()?.task;
        let name = || task.id.clone();
        match (task.answer.inputs, second) {
            (Inputs::Pair, None) => return Err(Error::OneText { task: name() }),
            (Inputs::One, Some(_)) => return Err(Error::TwoTexts { task: name() }),
            _ => {}
        }
        let limit = self.limit(task);
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

    /// As much of the beginning of a text as fits `limit`; `encoded` is all of it.
    fn cut(
        &self,
        task: &Task,
        mut encoded: Encoded,
        (text, second): (&str, Option<&str>),
        limit: usize,
    ) -> Result<Encoded, Error> {
        let ends = self.encoder()?.ends(text)?;
        let mut kept = ends.len();
        while encoded.len() > limit {
            kept = kept.saturating_sub(encoded.len() - limit);
            let end = ends.iter().take(kept).max().copied().unwrap_or(0);
            if kept == 0 {
                break;
            }
            encoded = self.written(task, text.get(..end).unwrap_or(text), second)?;
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
        if self.active()?.task.answer.kind == AnswerKind::Text {
            return self.said(text).map(Answer::Text);
        }
        self.run(&[request])?;
        self.read(request, 0)
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
        for &(handle, text) in requests {
            let task = &self.loaded(handle)?.task;
            text.check(self.limit(task))?;
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
            let batch = &requests[first..first + fitting.count().max(1)];
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

    /// Runs the texts of `requests` at once.
    fn run(&mut self, requests: &[(TaskHandle, &Encoded)]) -> Result<(), Error> {
        self.room.clear(self.image.description());
        for &(handle, text) in requests {
            let task = &self.tasks.get(handle.0).ok_or(Error::NoTask)?.task;
            text.check(self.limit(task))?;
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
        let task = &self.tasks.get(handle.0).ok_or(Error::NoTask)?.task;
        let Room {
            features,
            logits,
            found,
            ..
        } = &mut self.room;
        let hidden = features.len();
        let beside = task.form.rows_beside_text();
        let all = row..row + beside + text.len();
        let first = row + task.form.rows_before_text();
        let decodes = self.image.description().kind == Kind::Decoder;
        let read = match task.pooling {
            Pooling::Last if decodes && task.answer.kind != AnswerKind::Tags => all,
            _ => first..first + text.len(),
        };
        let rows = &self.engine.hidden_rows()[read.start * hidden..read.end * hidden];
        let reader = Reader {
            plan: task.answer,
            labels: &task.labels,
            logits,
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
        let past = self.engine.prepare(&KeyValues::default())?;
        let text = Encoded::of_ids(&[placeholder; 2]);
        self.room.clear(self.image.description());
        self.room.push(&self.image, None, &text)?;
        self.engine.run(self.room.input(), &|_| &past)?;
        match self.engine.vocabulary() {
            None => Ok(()),
            Some(_) => self.engine.logits(1).map(|_| ()),
        }
    }

    fn active(&self) -> Result<&Loaded, Error> {
        self.loaded(self.active.ok_or(Error::NoTask)?)
    }

    fn loaded(&self, task: TaskHandle) -> Result<&Loaded, Error> {
        self.tasks.get(task.0).ok_or(Error::NoTask)
    }

    /// Tokens of a text that fit beside the prompt of `task`.
    fn limit(&self, task: &Task) -> usize {
        let positions = self.image.description().max_positions.unwrap_or(usize::MAX);
        let room = positions.saturating_sub(task.prompt_positions());
        let rows = match task.form {
            Form::Embeddings { tokens, .. } => tokens,
            Form::KeyValues(_) | Form::Ran { .. } => 0,
        };
        let reserved = self.engine.most_rows().unwrap_or(usize::MAX);
        let most = self.options.max_tokens.unwrap_or(usize::MAX);
        room.min(reserved.saturating_sub(rows)).min(most)
    }
}

impl Room {
    /// Makes room for texts of `rows` rows, prompt rows among them.
    fn reserve(&mut self, rows: usize, hidden: usize) {
        self.rows.reserve_exact(rows * hidden);
        self.ids.reserve_exact(rows);
        self.types.reserve_exact(rows);
        self.lengths.reserve_exact(rows);
        self.features.resize(hidden, 0.0);
        self.found.reserve_exact(rows);
    }

    /// Makes room for the answers of a task with so many labels.
    fn expect(&mut self, labels: usize) {
        self.logits.clear();
        self.logits.reserve_exact(labels);
        self.found.clear();
        self.found.reserve(labels);
    }

    /// Takes the texts out.
    fn clear(&mut self, base: &Description) {
        self.features.resize(base.hidden, 0.0);
        self.rows.clear();
        self.ids.clear();
        self.types.clear();
        self.lengths.clear();
    }

    /// Lays out the rows, ids and types of one more text and of the prompt beside it.
    fn push(&mut self, image: &Image, form: Option<&Form>, text: &Encoded) -> Result<(), Error> {
        let Description {
            hidden,
            placeholder,
            ..
        } = *image.description();
        let (prompt, place) = match form {
            Some(Form::Embeddings { rows, place, .. }) => (&rows[..], *place),
            _ => (&[][..], Place::BeforeText),
        };
        let slots = prompt.len() / hidden;
        let first = match place {
            Place::BeforeText => slots,
            Place::AfterText => 0,
        };
        let before = self.ids.len();
        let sequence = before + slots + text.len();
        self.lengths.push(slots + text.len());
        self.rows.resize(sequence * hidden, 0.0);
        self.ids.resize(sequence, placeholder.into());
        self.types.resize(sequence, 0);
        let start = match place {
            Place::BeforeText => before * hidden,
            Place::AfterText => (before + text.len()) * hidden,
        };
        self.rows[start..start + prompt.len()].copy_from_slice(prompt);
        let first = before + first;
        let rows = self.rows.chunks_exact_mut(hidden).skip(first);
        for (row, &id) in rows.zip(text.ids()) {
            image.embedding(id, row)?;
        }
        let ids = self.ids[first..].iter_mut().zip(text.ids());
        ids.for_each(|(slot, &id)| *slot = id.into());
        let types = self.types[first..].iter_mut().zip(text.types());
        types.for_each(|(slot, &kind)| *slot = kind.into());
        Ok(())
    }

    fn input(&self) -> Input<'_> {
        Input {
            rows: &self.rows,
            ids: &self.ids,
            types: &self.types,
            lengths: &self.lengths,
        }
    }
}

#[cfg(all(test, feature = "compile"))]
mod tests {
    use preface_bundle::{HeadKind, Id};

    use super::*;
    use crate::{
        Choice,
        task::{LayerKeyValues, RowHead},
        testing::{HIDDEN, POSITIONS, WORDS, image, numbers},
        text::Template,
    };

    fn task(id: &str, form: Form, base: &Description) -> Task {
        Task {
            id: id.into(),
            base_id: base.base_id,
            tokenizer_id: base.tokenizer_id,
            form,
            head: Head::Rows(RowHead::linear(numbers(70, 3 * HIDDEN), numbers(71, 3))),
            answer: AnswerPlan::of_head(HeadKind::Linear),
            labels: ["a", "b", "c"].map(str::to_owned).to_vec(),
            template: Template::parse("{text}").unwrap(),
            pooling: Pooling::Last,
        }
    }

    fn embeddings(image: &Image, tokens: &[u32]) -> Form {
        let mut rows = vec![0.0; tokens.len() * HIDDEN];
        for (row, &token) in rows.chunks_exact_mut(HIDDEN).zip(tokens) {
            image.embedding(token, row).unwrap();
        }
        Form::Embeddings {
            tokens: tokens.len(),
            rows,
            place: Place::BeforeText,
        }
    }

    fn nothing() -> Form {
        Form::KeyValues(KeyValues::default())
    }

    /// The one label that the active task gives.
    fn best<'a>(session: &'a mut Session, text: &str) -> Choice<'a> {
        match session.answer(text, None).unwrap() {
            Answer::Label { best, .. } => best,
            other => panic!("another kind of answer: {other:?}"),
        }
    }

    fn score(session: &mut Session, text: &str) -> f32 {
        best(session, text).score
    }

    fn with_session(options: Options, check: impl FnOnce(Image, Session)) {
        let folder = tempfile::tempdir().unwrap();
        let image = image(&folder.path().join("tiny.base"));
        let session = Session::open(&image, options).unwrap();
        check(image, session);
    }

    #[test]
    fn a_prompt_stands_before_the_text() {
        with_session(Options::default(), |image, mut session| {
            let base = session.description().clone();
            let prompted = session
                .add(task("prompted", embeddings(&image, &[1, 2]), &base))
                .unwrap();
            let spoken = session.add(task("spoken", nothing(), &base)).unwrap();
            session.activate(spoken).unwrap();
            let whole = score(&mut session, "turn on heat light");
            session.activate(prompted).unwrap();
            assert_eq!(score(&mut session, "heat light"), whole);
            assert_ne!(score(&mut session, "light heat"), whole);
        });
    }

    #[test]
    fn a_swap_changes_nothing_else() {
        with_session(Options::default(), |image, mut session| {
            let base = session.description().clone();
            let one = session
                .add(task("one", embeddings(&image, &[1]), &base))
                .unwrap();
            let two = session
                .add(task("two", embeddings(&image, &[3, 4]), &base))
                .unwrap();
            let mut answer = |task| {
                session.activate(task).unwrap();
                score(&mut session, "turn off heat")
            };
            let (first, second) = (answer(one), answer(two));
            assert_ne!(first, second);
            assert_eq!(
                (answer(one), answer(two), answer(one)),
                (first, second, first)
            );
        });
    }

    #[test]
    fn a_task_of_the_same_name_replaces_the_old() {
        with_session(Options::default(), |image, mut session| {
            let base = session.description().clone();
            let old = session
                .add(task("t", embeddings(&image, &[1]), &base))
                .unwrap();
            session.activate(old).unwrap();
            let before = score(&mut session, "heat");
            let new = session
                .add(task("t", embeddings(&image, &[5]), &base))
                .unwrap();
            assert_eq!((old, session.tasks().count()), (new, 1));
            assert_ne!(score(&mut session, "heat"), before);
        });
    }

    #[test]
    fn without_a_task_there_is_no_answer() {
        with_session(Options::default(), |_, mut session| {
            let token = Encoded::of_ids(&[1]);
            assert!(matches!(session.answer("heat", None), Err(Error::NoTask)));
            assert!(matches!(session.answer_encoded(&token), Err(Error::NoTask)));
            assert!(matches!(session.encode("heat", None), Err(Error::NoTask)));
            assert!(matches!(
                session.activate(TaskHandle(0)),
                Err(Error::NoTask)
            ));
        });
    }

    #[test]
    fn an_answer_that_is_no_number_is_refused() {
        with_session(Options::default(), |image, mut session| {
            let base = session.description().clone();
            for number in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut damaged = task("t", embeddings(&image, &[1]), &base);
                let Head::Rows(head) = &mut damaged.head else {
                    unreachable!("the head is linear")
                };
                head.bias_mut()[1] = number;
                let handle = session.add(damaged).unwrap();
                session.activate(handle).unwrap();
                let error = session.answer("heat", None).unwrap_err();
                assert!(matches!(error, Error::NotANumber), "{number}: {error}");
            }
        });
    }

    #[test]
    fn a_text_that_does_not_fit_is_refused() {
        let long = "heat ".repeat(POSITIONS - 1);
        with_session(Options::default(), |image, mut session| {
            let base = session.description().clone();
            let prompt = session
                .add(task("t", embeddings(&image, &[1, 2]), &base))
                .unwrap();
            session.activate(prompt).unwrap();
            let error = session.answer(&long, None).unwrap_err();
            assert!(
                matches!(error, Error::TooLong { tokens, limit, can_be_cut: true } if tokens == POSITIONS - 1 && limit == POSITIONS - 2)
            );
            assert!(matches!(session.answer("", None), Err(Error::Empty)));
            let id = WORDS.len() as u32;
            assert!(matches!(
                session.answer_encoded(&Encoded::of_ids(&[id])),
                Err(Error::Token { .. })
            ));
        });
        let options = Options {
            max_tokens: Some(4),
            overlength: Overlength::Truncate,
            ..Options::default()
        };
        with_session(options, |image, mut session| {
            let base = session.description().clone();
            let prompt = session
                .add(task("t", embeddings(&image, &[1, 2]), &base))
                .unwrap();
            session.activate(prompt).unwrap();
            assert_eq!(
                session
                    .encode("turn on heat heat heat off", None)
                    .unwrap()
                    .ids(),
                [1, 2, 5, 5]
            );
            session.answer(&long, None).unwrap();
            assert!(matches!(
                session.answer_encoded(&Encoded::of_ids(&[1; 5])),
                Err(Error::TooLong { .. })
            ));
        });
    }

    fn layer(seed: u32, tokens: usize, gate: f32) -> LayerKeyValues {
        LayerKeyValues {
            shape: crate::image::Layer {
                kv_heads: 1,
                head_dim: HIDDEN,
            },
            keys: numbers(seed, tokens * HIDDEN),
            values: numbers(seed + 1, tokens * HIDDEN),
            gate,
        }
    }

    #[test]
    fn gates_weigh_the_prefix_of_their_layer() {
        with_session(Options::default(), |_, mut session| {
            let base = session.description().clone();
            let mut score = |layers: &[(usize, u32, f32)]| {
                let layers = layers
                    .iter()
                    .map(|&(index, seed, gate)| (index, layer(seed, 3, gate)));
                let form = Form::KeyValues(KeyValues {
                    tokens: 3,
                    layers: layers.collect(),
                    ..KeyValues::default()
                });
                let handle = session.add(task("t", form, &base)).unwrap();
                session.activate(handle).unwrap();
                score(&mut session, "turn on heat")
            };
            let near = |one: f32, other: f32| (one - other).abs() < 1e-6;
            let open = score(&[(0, 80, 0.0), (1, 90, 0.0)]);
            let shut = score(&[(0, 80, -1e4), (1, 90, -1e4)]);
            let half = score(&[(0, 80, 0.0), (1, 90, 1.5)]);
            assert!(near(shut, score(&[])), "shut gates are as no prefix");
            assert!(!near(open, shut) && !near(open, half) && !near(half, shut));
            for upper in [0.0, 1.5] {
                let (partial, whole) = (
                    score(&[(1, 90, upper)]),
                    score(&[(0, 80, -1e4), (1, 90, upper)]),
                );
                assert!(near(partial, whole), "{upper}: {partial} {whole}");
                assert!(!near(partial, open) && !near(partial, shut));
            }
        });
    }

    #[test]
    fn images_without_gates_take_whole_open_prefixes_alone() {
        with_session(Options::default(), |_, session| {
            let mut base = session.description().clone();
            let prefix = |layers: &[(usize, f32)]| {
                let layers = layers
                    .iter()
                    .map(|&(index, gate)| (index, layer(80, 2, gate)));
                Form::KeyValues(KeyValues {
                    tokens: 2,
                    layers: layers.collect(),
                    ..KeyValues::default()
                })
            };
            let refusal = |form, base: &Description| {
                let checked = task("t", form, base).check(base, EngineKind::Plan);
                checked.err().map(|error| error.to_string())
            };
            let (whole, gated, upper) = (
                prefix(&[(0, 0.0), (1, 0.0)]),
                prefix(&[(0, 0.0), (1, 1.0)]),
                prefix(&[(1, 0.0)]),
            );
            base.inputs.partial = false;
            assert_eq!(refusal(gated.clone(), &base), None);
            let said = refusal(upper.clone(), &base).unwrap();
            assert!(said.contains("takes a prefix as its cache"), "{said}");
            base.inputs
                .prefixes
                .iter_mut()
                .for_each(|layer| layer.gate = None);
            assert_eq!(refusal(whole, &base), None);
            for form in [gated, upper] {
                let said = refusal(form, &base).unwrap();
                assert!(said.contains("compile the base again"), "{said}");
            }
        });
    }

    #[test]
    fn a_prompt_stands_where_its_task_says() {
        with_session(Options::default(), |image, session| {
            let mut room = Room::default();
            let text = session
                .encoder()
                .unwrap()
                .texts("turn on", Some("heat"))
                .unwrap();
            let rows = |ids: &[u32]| {
                let Form::Embeddings { rows, .. } = embeddings(&image, ids) else {
                    unreachable!()
                };
                rows
            };
            let placeholder = i64::from(image.description().placeholder);
            for (place, order, ids, types) in [
                (
                    Place::BeforeText,
                    [3, 1, 2, 5],
                    [placeholder, 1, 2, 5],
                    [0, 0, 0, 1],
                ),
                (
                    Place::AfterText,
                    [1, 2, 5, 3],
                    [1, 2, 5, placeholder],
                    [0, 0, 1, 0],
                ),
            ] {
                let prompt = Form::Embeddings {
                    tokens: 1,
                    rows: rows(&[3]),
                    place,
                };
                assert_eq!(
                    prompt.rows_before_text(),
                    usize::from(place == Place::BeforeText)
                );
                room.clear(image.description());
                room.push(&image, Some(&prompt), &text).unwrap();
                assert_eq!(room.rows, rows(&order), "{place:?}");
                assert_eq!(
                    (&room.ids[..], &room.types[..]),
                    (&ids[..], &types[..]),
                    "{place:?}"
                );
            }
        });
    }

    #[test]
    fn labels_speak_for_themselves() {
        with_session(Options::default(), |_, mut session| {
            let base = session.description().clone();
            let labels = ["turn_on", "light-off", "heat.heat"];
            let spoken = Task {
                head: Head::Rows(RowHead::label_text(vec![0.0; 3])),
                labels: labels.map(str::to_owned).to_vec(),
                pooling: Pooling::Mean,
                ..task("spoken", nothing(), &base)
            };
            let handle = session.add(spoken).unwrap();
            session.activate(handle).unwrap();
            for (class, text) in ["turn on", "light off", "heat heat"]
                .into_iter()
                .enumerate()
            {
                let choice = best(&mut session, text);
                assert_eq!((choice.class, choice.label), (class, labels[class]));
                assert!((session.room.logits[class] - 20.0).abs() < 1e-3);
            }
        });
    }

    #[test]
    fn a_task_is_asked_about_as_many_texts_as_it_reads() {
        with_session(Options::default(), |image, mut session| {
            let base = session.description().clone();
            let kind = AnswerKind::Label;
            let pair = Task {
                answer: AnswerPlan::new(kind, Inputs::Pair, None),
                template: Template::parse("turn {text} light").unwrap(),
                ..task("pair", embeddings(&image, &[1]), &base)
            };
            let pair = session.add(pair).unwrap();
            let one = session
                .add(task("one", embeddings(&image, &[1]), &base))
                .unwrap();
            assert_eq!(session.plan(pair).unwrap().inputs, Inputs::Pair);
            session.activate(pair).unwrap();
            let encoded = session.encode("on", Some("heat off")).unwrap();
            assert_eq!(
                (encoded.ids(), encoded.types()),
                (&[1, 2, 4, 5, 3][..], &[0, 0, 0, 1, 1][..])
            );
            session.answer("on", Some("heat off")).unwrap();
            let error = session.answer("on", None).unwrap_err();
            assert!(matches!(error, Error::OneText { .. }), "{error}");
            session.activate(one).unwrap();
            let error = session.answer("on", Some("heat")).unwrap_err();
            assert!(matches!(error, Error::TwoTexts { .. }), "{error}");
        });
    }

    #[test]
    fn what_is_around_a_text_is_not_cut() {
        let options = Options {
            max_tokens: Some(5),
            overlength: Overlength::Truncate,
            ..Options::default()
        };
        with_session(options, |image, mut session| {
            let base = session.description().clone();
            let pair = Task {
                answer: AnswerPlan::new(AnswerKind::Label, Inputs::Pair, None),
                template: Template::parse("turn {text} light").unwrap(),
                ..task("pair", embeddings(&image, &[1]), &base)
            };
            let handle = session.add(pair).unwrap();
            session.activate(handle).unwrap();
            let encoded = session.encode("on off heat", Some("heat")).unwrap();
            assert_eq!(encoded.ids(), [1, 2, 3, 4, 5]);
            let error = session.encode("on", Some("heat heat heat heat"));
            let whole = Error::TooLong {
                tokens: 7,
                limit: 5,
                can_be_cut: false,
            };
            assert_eq!(error.unwrap_err().to_string(), whole.to_string());
        });
    }

    #[test]
    fn every_word_is_tagged() {
        with_session(Options::default(), |image, mut session| {
            let base = session.description().clone();
            let tagging = Task {
                answer: AnswerPlan::of_head(HeadKind::TokenLinear),
                ..task("tags", embeddings(&image, &[1]), &base)
            };
            let handle = session.add(tagging).unwrap();
            session.activate(handle).unwrap();
            let encoded = session.encode(" turn  on\theat", None).unwrap();
            let places = [Some(0), Some(1), Some(2)];
            assert_eq!(
                (encoded.ids(), encoded.words()),
                (&[1, 2, 5][..], &places[..])
            );
            let Answer::Tags(tags) = session.answer_encoded(&encoded).unwrap() else {
                panic!("another kind of answer");
            };
            assert_eq!(tags.iter().flatten().count(), 3);
            assert!(matches!(session.encode(" ", None), Err(Error::Empty)));
        });
    }

    #[test]
    fn a_decoders_last_row_is_that_of_the_prompt_behind_a_text() {
        with_session(Options::default(), |image, mut session| {
            let base = session.description().clone();
            let Form::Embeddings { tokens, rows, .. } = embeddings(&image, &[3, 4]) else {
                unreachable!()
            };
            let form = Form::Embeddings {
                tokens,
                rows,
                place: Place::AfterText,
            };
            let after = session.add(task("after", form, &base)).unwrap();
            let spoken = session.add(task("spoken", nothing(), &base)).unwrap();
            session.activate(spoken).unwrap();
            let (bare, whole) = (
                score(&mut session, "turn on"),
                score(&mut session, "turn on off light"),
            );
            session.activate(after).unwrap();
            let expected = match base.kind {
                Kind::Decoder => whole,
                _ => bare,
            };
            assert_ne!(bare, whole);
            assert_eq!(score(&mut session, "turn on"), expected);
        });
    }

    #[test]
    fn a_task_for_another_base_is_refused() {
        type Change = fn(&mut Task);
        let table: [(&str, Change); 5] = [
            ("trained for base", |task| task.base_id = Id([0; 32])),
            ("with tokenizer", |task| task.tokenizer_id = Id([0; 32])),
            ("its head", |task| task.labels.truncate(2)),
            ("its prompt is not rows", |task| {
                task.form = Form::Embeddings {
                    tokens: 1,
                    rows: vec![0.0; 5],
                    place: Place::BeforeText,
                }
            }),
            ("other layers", |task| {
                let shape = crate::image::Layer {
                    kv_heads: 1,
                    head_dim: HIDDEN,
                };
                let layer = LayerKeyValues {
                    shape,
                    keys: vec![0.0; HIDDEN],
                    values: vec![0.0; HIDDEN],
                    gate: 0.0,
                };
                task.form = Form::KeyValues(KeyValues {
                    tokens: 1,
                    layers: [(2, layer)].into(),
                    ..KeyValues::default()
                })
            }),
        ];
        with_session(Options::default(), |image, mut session| {
            let base = session.description().clone();
            for (text, change) in table {
                let mut task = task("t", embeddings(&image, &[1]), &base);
                change(&mut task);
                let error = session.add(task).unwrap_err().to_string();
                assert!(error.contains(text), "{error}");
            }
        });
    }
}
