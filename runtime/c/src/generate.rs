//! Entries about texts that a task generates.

use std::{
    ffi::{c_char, c_void},
    ops::ControlFlow,
    ptr,
};

use preface_runtime::{Constraint, Part, Request, Sampling};

use crate::{
    answer::Tokens,
    border::{self, Growing},
    failure::Failure,
    session::{SessionHandle, State, with_session},
};

/// `preface_generation`.
#[repr(C)]
pub struct GenerationFields {
    size: usize,
    seed: u64,
    temperature: f32,
    top_p: f32,
    repetition_penalty: f32,
    top_k: u32,
    most_tokens: usize,
    stops: *const *const c_char,
    stop_count: usize,
}

// SAFETY: it begins with its size, and has numbers and pointers alone.
unsafe impl Growing for GenerationFields {
    const NAME: &'static str = "preface_generation";
}

/// `preface_constraint`.
#[repr(C)]
pub struct ConstraintFields {
    size: usize,
    labels: *const *const c_char,
    label_count: usize,
    shape: *const c_char,
}

// SAFETY: it begins with its size, and has numbers and pointers alone.
unsafe impl Growing for ConstraintFields {
    const NAME: &'static str = "preface_constraint";
}

/// `preface_hear_token`.
type HearToken = unsafe extern "C" fn(*mut c_void, u32) -> i32;

/// `preface_hear_text`.
type HearText = unsafe extern "C" fn(*mut c_void, *const c_char, usize) -> i32;

/// `preface_hear_one`.
type HearOne = unsafe extern "C" fn(*mut c_void, usize, *const c_char, usize) -> i32;

impl GenerationFields {
    /// A field that is zero changes nothing.
    fn sampling(&self) -> Sampling {
        let set = |number: f32| (number != 0.0).then_some(number);
        Sampling {
            temperature: self.temperature,
            top_k: usize::try_from(self.top_k).ok().filter(|&top_k| top_k > 0),
            top_p: set(self.top_p),
            repetition_penalty: set(self.repetition_penalty).unwrap_or(1.0),
            seed: self.seed,
        }
    }
}

impl ConstraintFields {
    fn read(&self) -> Result<Option<Constraint>, Failure> {
        // SAFETY: the caller's strings.
        let (labels, shape) = unsafe {
            (
                border::texts(self.labels, self.label_count, "preface_constraint.labels")?,
                border::optional_text(self.shape, "preface_constraint.shape")?,
            )
        };
        match (&labels[..], shape) {
            ([], None) => Ok(None),
            ([], Some(shape)) => Ok(Some(Constraint::shape(shape)?)),
            (labels, None) => Ok(Some(Constraint::labels(labels)?)),
            (_, Some(_)) => Err(Failure::LabelsAndShape),
        }
    }
}

/// Whether a text goes on, as the caller answered.
fn heard(answer: i32) -> ControlFlow<()> {
    match answer {
        0 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    }
}

/// Sets how texts are generated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn preface_session_set_generation(
    session: *mut SessionHandle,
    generation: *const GenerationFields,
) -> i32 {
    let work = |state: &mut State| {
        let (sampling, most_tokens, stops) = match generation.is_null() {
            true => (Sampling::default(), 0, Vec::new()),
            false => {
                // SAFETY: the caller's structure.
                let fields = unsafe { border::filled(generation) }?;
                let (stops, count) = (fields.stops, fields.stop_count);
                // SAFETY: the caller's strings.
                let stops = unsafe { border::texts(stops, count, "preface_generation.stops") }?;
                (fields.sampling(), fields.most_tokens, stops)
            }
        };
        state.session.sample(sampling)?;
        state.session.stop_at(&stops)?;
        let most_tokens = Some(most_tokens).filter(|&tokens| tokens > 0);
        Ok(state.session.at_most(most_tokens)?)
    };
    // SAFETY: the caller's handle.
    unsafe { with_session(session, work) }
}

/// Sets what the texts of a task may say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn preface_session_constrain(
    session: *mut SessionHandle,
    task: usize,
    constraint: *const ConstraintFields,
) -> i32 {
    let work = |state: &mut State| {
        let constraint = match constraint.is_null() {
            true => None,
            // SAFETY: the caller's structure.
            false => unsafe { border::filled(constraint) }?.read()?,
        };
        let (handle, _) = state.task(task)?;
        Ok(state.session.constrain(handle, constraint.as_ref())?)
    };
    // SAFETY: the caller's handle.
    unsafe { with_session(session, work) }
}

/// Goes on with a text of token ids, token by token.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn preface_session_generate(
    session: *mut SessionHandle,
    tokens: *const Tokens,
    hear: Option<HearToken>,
    context: *mut c_void,
) -> i32 {
    let work = |state: &mut State| {
        // SAFETY: the caller's structure.
        let tokens = unsafe { border::filled(tokens) }?;
        let hear = hear.ok_or(Failure::Null("hear"))?;
        let State { session, text, .. } = state;
        tokens.read(text)?;
        // SAFETY: the caller's function, with what it wants to be given; the header asks that it returns.
        session.generate(text, |token| heard(unsafe { hear(context, token) }))?;
        Ok(())
    };
    // SAFETY: the caller's handle.
    unsafe { with_session(session, work) }
}

/// Goes on with a text of token ids, piece by piece of text.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn preface_session_stream(
    session: *mut SessionHandle,
    tokens: *const Tokens,
    hear: Option<HearText>,
    context: *mut c_void,
) -> i32 {
    let work = |state: &mut State| {
        // SAFETY: the caller's structure.
        let tokens = unsafe { border::filled(tokens) }?;
        let hear = hear.ok_or(Failure::Null("hear"))?;
        let State {
            session,
            text,
            said,
            ..
        } = state;
        tokens.read(text)?;
        said.clear();
        let streamed = session.stream(text, |piece| {
            let (start, length) = (piece.as_ptr().cast(), piece.len());
            // SAFETY: the caller's function, with what it wants to be given and bytes that stay until it returns, which
            // the header asks of it.
            heard(unsafe { hear(context, start, length) })
        })?;
        said.push_str(streamed);
        Ok(())
    };
    // SAFETY: the caller's handle.
    unsafe { with_session(session, work) }
}

/// Goes on with several texts of token ids at once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn preface_session_generate_all(
    session: *mut SessionHandle,
    count: usize,
    tasks: *const usize,
    tokens: *const *const Tokens,
    hear: Option<HearOne>,
    context: *mut c_void,
) -> i32 {
    let work = |state: &mut State| {
        let hear = hear.ok_or(Failure::Null("hear"))?;
        // SAFETY: the caller's lists of as many elements as it says.
        let (tasks, tokens) = unsafe {
            (
                border::list(tasks, count, "tasks")?,
                border::list(tokens, count, "tokens")?,
            )
        };
        state.read_all(tokens)?;
        let handles = tasks.iter().map(|&task| state.task(task));
        let handles = handles.map(|task| task.map(|(handle, _)| handle));
        let sampling = state.session.sampling();
        let requests = handles.zip(&state.texts).map(|(task, text)| {
            Ok(Request {
                task: task?,
                text,
                sampling,
            })
        });
        let requests: Vec<_> = requests.collect::<Result<_, Failure>>()?;
        state.session.generate_all(&requests, |index, part| {
            let (start, length) = match part {
                Part::Token(_) => return ControlFlow::Continue(()),
                Part::Piece(piece) => (piece.as_ptr().cast(), piece.len()),
                Part::End(_) => (ptr::null(), 0),
            };
            // SAFETY: the caller's function, with what it wants to be given and bytes that stay until it returns, which
            // the header asks of it.
            heard(unsafe { hear(context, index, start, length) })
        })?;
        Ok(())
    };
    // SAFETY: the caller's handle.
    unsafe { with_session(session, work) }
}

/// Gives the last generated text.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn preface_session_text(
    session: *mut SessionHandle,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> i32 {
    let work = |state: &mut State| {
        // SAFETY: the caller's room and place.
        unsafe { border::give_text(&state.said, (buffer, capacity), length) }
    };
    // SAFETY: the caller's handle.
    unsafe { with_session(session, work) }
}
