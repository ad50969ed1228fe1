//! Entries about sessions and their tasks.

use std::ffi::c_char;

use preface_bundle::Inputs;
use preface_runtime::{
    Encoded, Error, Options, Overlength, Session, TaskHandle, Threads, TokenizerUse, Trust,
    store::Follower, unix_now,
};

use crate::{
    border::{self, Growing},
    failure::{Failure, guarded},
    guard::Guarded,
    image::{ImageHandle, number_of_answer},
};

/// `preface_session`.
pub type SessionHandle = Guarded<State>;

/// A session with room for what a call is given and leaves.
pub struct State {
    pub session: Session,
    /// A text of token ids.
    pub text: Encoded,
    /// Texts that are answered together.
    pub texts: Vec<Encoded>,
    /// The last generated text.
    pub said: String,
    /// The store that tasks are from.
    pub follower: Option<Follower>,
}

/// `preface_options`.
#[repr(C)]
pub struct SessionOptions {
    size: usize,
    max_tokens: usize,
    overlength: i32,
    tokenizer: i32,
    threads: u32,
    pinned: i32,
    texts: usize,
}

// SAFETY: it begins with its size, and has numbers alone.
unsafe impl Growing for SessionOptions {
    const NAME: &'static str = "preface_options";
}

/// `preface_task_facts`.
#[repr(C)]
pub struct TaskFacts {
    size: usize,
    labels: usize,
    answer: i32,
    inputs: i32,
}

// SAFETY: it begins with its size, and has numbers alone.
unsafe impl Growing for TaskFacts {
    const NAME: &'static str = "preface_task_facts";
}

impl SessionOptions {
    fn read(&self) -> Result<Options, Failure> {
        let unknown = |field, value: i32| Failure::Value {
            field,
            value: value.into(),
        };
        Ok(Options {
            max_tokens: (self.max_tokens > 0).then_some(self.max_tokens),
            overlength: match self.overlength {
                0 => Overlength::Refuse,
                1 => Overlength::Truncate,
                other => return Err(unknown("preface_options.overlength", other)),
            },
            tokenizer: match self.tokenizer {
                0 => TokenizerUse::AtOpen,
                1 => TokenizerUse::WithFirstText,
                other => return Err(unknown("preface_options.tokenizer", other)),
            },
            threads: Threads {
                count: match self.threads {
                    0..=64 => self.threads.max(1) as usize,
                    other => {
                        return Err(Failure::Value {
                            field: "preface_options.threads",
                            value: other.into(),
                        });
                    }
                },
                pinned: match self.pinned {
                    0 => false,
                    1 => true,
                    other => return Err(unknown("preface_options.pinned", other)),
                },
            },
            texts: match self.texts {
                0..=64 => self.texts,
                other => {
                    return Err(Failure::Value {
                        field: "preface_options.texts",
                        value: i64::try_from(other).unwrap_or(i64::MAX),
                    });
                }
            },
        })
    }
}

impl State {
    fn new(session: Session, options: Options) -> Self {
        let positions = session.description().max_positions;
        let most = options.max_tokens.into_iter().chain(positions).min();
        Self {
            session,
            text: Encoded::with_room(most.unwrap_or(0)),
            texts: Vec::new(),
            said: String::new(),
            follower: None,
        }
    }

    /// The task that was loaded as that one of all, and its name.
    pub fn task(&self, task: usize) -> Result<(TaskHandle, &str), Failure> {
        self.session.tasks().nth(task).ok_or(Failure::Task(task))
    }
}

/// Does the work of an entry on a session.
pub unsafe fn with_session(
    session: *const SessionHandle,
    work: impl FnOnce(&mut State) -> Result<(), Failure>,
) -> i32 {
    guarded(|| {
        // SAFETY: the caller's handle.
        let session = unsafe { border::shared(session, "session") }?;
        session.with(work)
    })
}

/// Makes an image ready to run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn preface_session_open(
    image: *const ImageHandle,
    options: *const SessionOptions,
    session: *mut *mut SessionHandle,
) -> i32 {
    guarded(|| {
        let place = border::place(session, "session")?;
        // SAFETY: the caller's handle.
        let ImageHandle(image) = unsafe { border::shared(image, "image") }?;
        let options = match options.is_null() {
            true => Options::default(),
            // SAFETY: the caller's structure.
            false => unsafe { border::filled(options) }?.read()?,
        };
        let state = State::new(Session::open(image, options)?, options);
        let handle = Box::into_raw(Box::new(Guarded::new(state)));
        // SAFETY: the caller's place for a handle.
        unsafe { place.write(handle) };
        Ok(())
    })
}

/// Lets go of a session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn preface_session_close(session: *mut SessionHandle) {
    guarded(|| {
        if !session.is_null() {
            // SAFETY: a handle that `preface_session_open` gave, which the caller closes once.
            drop(unsafe { Box::from_raw(session) });
        }
        Ok(())
    });
}

/// Verifies a bundle and loads its task.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn preface_session_load(
    session: *mut SessionHandle,
    bundle: *const c_char,
    trust: *const c_char,
    task: *mut usize,
) -> i32 {
    let work = |state: &mut State| {
        let place = border::place(task, "task")?;
        // SAFETY: the caller's strings.
        let (bundle, trust) = unsafe {
            (
                border::path(bundle, "bundle")?,
                border::path(trust, "trust")?,
            )
        };
        let trust = Trust::read(trust)?;
        let loaded = state.session.load_file(bundle, &trust, unix_now())?;
        let mut tasks = state.session.tasks();
        let index = tasks.position(|(task, _)| task == loaded);
        // SAFETY: the caller's place for a number.
        unsafe { place.write(index.ok_or(Error::NoTask)?) };
        Ok(())
    };
    // SAFETY: the caller's handle.
    unsafe { with_session(session, work) }
}

/// Counts the loaded tasks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn preface_session_task_count(
    session: *mut SessionHandle,
    count: *mut usize,
) -> i32 {
    let work = |state: &mut State| {
        let place = border::place(count, "count")?;
        // SAFETY: the caller's place for a number.
        unsafe { place.write(state.session.tasks().count()) };
        Ok(())
    };
    // SAFETY: the caller's handle.
    unsafe { with_session(session, work) }
}

/// Says what a task is asked and answers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn preface_session_task(
    session: *mut SessionHandle,
    task: usize,
    facts: *mut TaskFacts,
) -> i32 {
    let work = |state: &mut State| {
        // SAFETY: the caller's structure.
        let facts = unsafe { border::structure(facts) }?;
        let (handle, _) = state.task(task)?;
        let plan = state.session.plan(handle).ok_or(Error::NoTask)?;
        *facts = TaskFacts {
            size: facts.size,
            labels: state.session.labels(handle).len(),
            answer: number_of_answer(plan.kind),
            inputs: match plan.inputs {
                Inputs::Pair => 2,
                _ => 1,
            },
        };
        Ok(())
    };
    // SAFETY: the caller's handle.
    unsafe { with_session(session, work) }
}

/// Gives a task's name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn preface_session_task_name(
    session: *mut SessionHandle,
    task: usize,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> i32 {
    let work = |state: &mut State| {
        let (_, name) = state.task(task)?;
        // SAFETY: the caller's room and place.
        unsafe { border::give_text(name, (buffer, capacity), length) }
    };
    // SAFETY: the caller's handle.
    unsafe { with_session(session, work) }
}

/// Gives a label of a task.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn preface_session_label(
    session: *mut SessionHandle,
    task: usize,
    label: usize,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> i32 {
    let work = |state: &mut State| {
        let (handle, _) = state.task(task)?;
        let labels = state.session.labels(handle);
        let text = labels.get(label).ok_or(Failure::Label(label))?;
        // SAFETY: the caller's room and place.
        unsafe { border::give_text(text, (buffer, capacity), length) }
    };
    // SAFETY: the caller's handle.
    unsafe { with_session(session, work) }
}

/// Makes a task the one that answers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn preface_session_activate(session: *mut SessionHandle, task: usize) -> i32 {
    let work = |state: &mut State| {
        let (handle, _) = state.task(task)?;
        Ok(state.session.activate(handle)?)
    };
    // SAFETY: the caller's handle.
    unsafe { with_session(session, work) }
}
