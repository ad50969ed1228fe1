//! Tasks on a mapped base: load, activate, answer.

use std::{panic::resume_unwind, thread};

use preface_bundle::VerifiedBundle;

use crate::{
    Error, Image,
    engine::{Engine, EngineKind, Input, Prefix},
    image::Description,
    task::{Form, Task, pool},
    text::{Encoder, Overlength},
};

/// How a session runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Tokens of a text, special tokens included; the base's positions bound it in any case.
    pub max_tokens: Option<usize>,
    /// What happens to a longer text.
    pub overlength: Overlength,
}

/// Names a task loaded into one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskHandle(usize);

/// What a task says about a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer<'a> {
    /// The task that answered.
    pub task: &'a str,
    /// Its label for the text.
    pub label: &'a str,
    /// The label's place among the task's labels.
    pub class: usize,
    /// The label's probability.
    pub score: f32,
}

/// A base ready to run, with the tasks loaded onto it.
///
/// An answer always comes from a task: without one, asking is an error.
#[derive(Debug)]
pub struct Session {
    image: Image,
    encoder: Encoder,
    engine: Engine,
    options: Options,
    tasks: Vec<Loaded>,
    active: Option<TaskHandle>,
    room: Room,
}

/// A task as the engine consumes it.
#[derive(Debug)]
struct Loaded {
    task: Task,
    prefix: Prefix,
}

/// Buffers that one run after another uses.
#[derive(Debug, Default)]
struct Room {
    rows: Vec<f32>,
    ids: Vec<i64>,
    features: Vec<f32>,
    scores: Vec<f32>,
}

impl Session {
    /// Makes `image` ready to run.
    ///
    /// # Errors
    /// When the image does not fit this machine or this build; the message gives the command that rebuilds it.
    pub fn open(image: &Image, options: Options) -> Result<Self, Error> {
        let (encoder, engine) = thread::scope(|scope| {
            let encoder = scope.spawn(|| Encoder::open(image));
            let engine = Engine::open(image);
            (
                encoder.join().unwrap_or_else(|panic| resume_unwind(panic)),
                engine,
            )
        });
        Ok(Self {
            encoder: encoder?,
            engine: engine?,
            image: image.clone(),
            options,
            tasks: Vec::new(),
            active: None,
            room: Room::default(),
        })
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

    /// Dequantises and expands the task of a verified bundle, and puts it beside the others; one of the same name is
    /// replaced and keeps its handle. The active task stays the active one.
    ///
    /// # Errors
    /// When the bundle was made for another base or tokenizer, or needs a form or a head that is not supported.
    pub fn load(&mut self, bundle: &VerifiedBundle<'_>) -> Result<TaskHandle, Error> {
        self.add(Task::of_bundle(bundle)?)
    }

    fn add(&mut self, task: Task) -> Result<TaskHandle, Error> {
        task.check(self.image.description())?;
        let prefix = match &task.form {
            Form::Embeddings { .. } => None,
            Form::KeyValues(prefix) => Some(prefix.clone()),
        };
        let prefix = self.engine.prepare(prefix)?;
        let place = self
            .tasks
            .iter()
            .position(|loaded| loaded.task.id == task.id);
        let loaded = Loaded { task, prefix };
        match place {
            Some(place) => self.tasks[place] = loaded,
            None => self.tasks.push(loaded),
        }
        Ok(TaskHandle(place.unwrap_or(self.tasks.len() - 1)))
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

    /// Token ids of `text` as the active task reads it, made to fit as the options say.
    ///
    /// # Errors
    /// When no task is active, or the text has no tokens or too many.
    pub fn tokens(&self, text: &str) -> Result<Vec<u32>, Error> {
        let task = &self.active()?.task;
        let mut ids = self.encoder.ids(&task.template.render(text))?;
        self.options.overlength.fit(&mut ids, self.limit(task))?;
        Ok(ids)
    }

    /// Answers `text` with the active task.
    ///
    /// # Errors
    /// As [`Session::tokens`], and when the engine fails.
    pub fn classify(&mut self, text: &str) -> Result<Answer<'_>, Error> {
        let ids = self.tokens(text)?;
        self.classify_tokens(&ids)
    }

    /// Answers a text given as token ids, special tokens included, with the active task.
    ///
    /// # Errors
    /// When no task is active, there are no tokens or too many, the engine fails, or its answer is no number.
    pub fn classify_tokens(&mut self, ids: &[u32]) -> Result<Answer<'_>, Error> {
        let handle = self.active.ok_or(Error::NoTask)?;
        let Loaded { task, prefix } = self.tasks.get(handle.0).ok_or(Error::NoTask)?;
        let limit = self.limit(task);
        if ids.is_empty() {
            return Err(Error::Empty);
        }
        if ids.len() > limit {
            return Err(Error::TooLong {
                tokens: ids.len(),
                limit,
            });
        }
        self.room.fill(&self.image, task, ids)?;
        let Room {
            rows,
            ids,
            features,
            scores,
        } = &mut self.room;
        let hidden = self.engine.run(Input { rows, ids }, prefix)?;
        let text = &hidden[task.prompt_positions() * features.len()..];
        pool(task.pooling, text, features);
        let (class, score) = task.head.best(features, scores);
        if !score.is_finite() || !scores.iter().all(|score| score.is_finite()) {
            return Err(Error::NotANumber);
        }
        let label = &task.labels[class];
        Ok(Answer {
            task: &task.id,
            label,
            class,
            score,
        })
    }

    /// Runs two tokens through the base without a task: whether the engine can run it at all.
    ///
    /// # Errors
    /// When the engine fails.
    pub fn try_out(&mut self) -> Result<(), Error> {
        let Description {
            hidden,
            placeholder,
            ..
        } = *self.image.description();
        let mut rows = vec![0.0; 2 * hidden];
        for row in rows.chunks_exact_mut(hidden) {
            self.image.embedding(placeholder, row)?;
        }
        let ids = [placeholder.into(); 2];
        let prefix = self.engine.prepare(None)?;
        let input = Input {
            rows: &rows,
            ids: &ids,
        };
        self.engine.run(input, &prefix).map(|_| ())
    }

    fn active(&self) -> Result<&Loaded, Error> {
        let active = self.active.and_then(|handle| self.tasks.get(handle.0));
        active.ok_or(Error::NoTask)
    }

    /// Tokens of a text that fit beside the prompt of `task`.
    fn limit(&self, task: &Task) -> usize {
        let positions = self.image.description().max_positions.unwrap_or(usize::MAX);
        let room = positions.saturating_sub(task.prompt_positions());
        self.options
            .max_tokens
            .map_or(room, |tokens| tokens.min(room))
    }
}

impl Room {
    /// Lays out the rows and ids of the prompt of `task` and then of the text.
    fn fill(&mut self, image: &Image, task: &Task, text: &[u32]) -> Result<(), Error> {
        let Description {
            hidden,
            placeholder,
            ..
        } = *image.description();
        self.rows.clear();
        self.ids.clear();
        if let Form::Embeddings { tokens, rows } = &task.form {
            self.rows.extend_from_slice(rows);
            self.ids.resize(*tokens, placeholder.into());
        }
        self.ids.extend(text.iter().map(|&id| i64::from(id)));
        let prompt = self.rows.len();
        self.rows.resize(prompt + text.len() * hidden, 0.0);
        for (row, &id) in self.rows[prompt..].chunks_exact_mut(hidden).zip(text) {
            image.embedding(id, row)?;
        }
        self.features.resize(hidden, 0.0);
        Ok(())
    }
}

#[cfg(all(test, feature = "compile"))]
mod tests {
    use preface_bundle::{Id, Pooling};

    use super::*;
    use crate::{
        task::{Head, KeyValues},
        testing::{HIDDEN, POSITIONS, WORDS, image, numbers},
        text::Template,
    };

    fn task(id: &str, form: Form, base: &Description) -> Task {
        Task {
            id: id.into(),
            base_id: base.base_id,
            tokenizer_id: base.tokenizer_id,
            form,
            head: Head {
                weight: numbers(70, 3 * HIDDEN),
                bias: numbers(71, 3),
            },
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
        }
    }

    fn nothing(base: &Description) -> Form {
        Form::KeyValues(KeyValues::empty(&base.layers))
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
            let spoken = session.add(task("spoken", nothing(&base), &base)).unwrap();
            session.activate(spoken).unwrap();
            let whole = session.classify("turn on heat light").unwrap().score;
            session.activate(prompted).unwrap();
            let answer = session.classify("heat light").unwrap();
            assert_eq!((answer.task, answer.score), ("prompted", whole));
            assert_ne!(session.classify("light heat").unwrap().score, whole);
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
                session.classify("turn off heat").unwrap().score
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
            let before = session.classify("heat").unwrap().score;
            let new = session
                .add(task("t", embeddings(&image, &[5]), &base))
                .unwrap();
            assert_eq!((old, session.tasks().count()), (new, 1));
            assert_ne!(session.classify("heat").unwrap().score, before);
        });
    }

    #[test]
    fn without_a_task_there_is_no_answer() {
        with_session(Options::default(), |_, mut session| {
            assert!(matches!(session.classify("heat"), Err(Error::NoTask)));
            assert!(matches!(session.classify_tokens(&[1]), Err(Error::NoTask)));
            assert!(matches!(session.tokens("heat"), Err(Error::NoTask)));
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
                damaged.head.bias[1] = number;
                let handle = session.add(damaged).unwrap();
                session.activate(handle).unwrap();
                let error = session.classify("heat").unwrap_err();
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
            let error = session.classify(&long).unwrap_err();
            assert!(
                matches!(error, Error::TooLong { tokens, limit } if tokens == POSITIONS - 1 && limit == POSITIONS - 2)
            );
            assert!(matches!(session.classify(""), Err(Error::Empty)));
            let id = WORDS.len() as u32;
            assert!(matches!(
                session.classify_tokens(&[id]),
                Err(Error::Token { .. })
            ));
        });
        let options = Options {
            max_tokens: Some(4),
            overlength: Overlength::Truncate,
        };
        with_session(options, |image, mut session| {
            let base = session.description().clone();
            let prompt = session
                .add(task("t", embeddings(&image, &[1, 2]), &base))
                .unwrap();
            session.activate(prompt).unwrap();
            assert_eq!(
                session.tokens("turn on heat heat heat off").unwrap(),
                [1, 2, 5, 3]
            );
            session.classify(&long).unwrap();
            assert!(matches!(
                session.classify_tokens(&[1; 5]),
                Err(Error::TooLong { .. })
            ));
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
                }
            }),
            ("other layers", |task| {
                task.form = Form::KeyValues(KeyValues {
                    tokens: 1,
                    layers: Vec::new(),
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
