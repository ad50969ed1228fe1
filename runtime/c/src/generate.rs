//! Entries about texts that a task generates.

use std::ffi::{c_char, c_void};

use preface_runtime::Sampling;

use crate::{
    answer::Tokens,
    border::{self, Growing},
    failure::Failure,
    session::{SessionHandle, State, with_session},
};

/// `preface_sampling`.
#[repr(C)]
pub struct SamplingFields {
    size: usize,
    seed: u64,
    temperature: f32,
    top_p: f32,
    repetition_penalty: f32,
    top_k: u32,
}

// SAFETY: it begins with its size, and has numbers alone.
unsafe impl Growing for SamplingFields {
    const NAME: &'static str = "preface_sampling";
}

/// `preface_hear`.
type Hear = unsafe extern "C" fn(*mut c_void, u32);

impl SamplingFields {
    /// A field that is zero changes nothing.
    fn read(&self) -> Sampling {
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

/// Sets how tokens are chosen.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn preface_session_sample(
    session: *mut SessionHandle,
    sampling: *const SamplingFields,
) -> i32 {
    let work = |state: &mut State| {
        // SAFETY: the caller's structure.
        let sampling = unsafe { border::filled(sampling) }?;
        Ok(state.session.sample(sampling.read())?)
    };
    // SAFETY: the caller's handle.
    unsafe { with_session(session, work) }
}

/// Goes on with a text of token ids.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn preface_session_generate(
    session: *mut SessionHandle,
    tokens: *const Tokens,
    hear: Option<Hear>,
    context: *mut c_void,
) -> i32 {
    let work = |state: &mut State| {
        // SAFETY: the caller's structure.
        let tokens = unsafe { border::filled(tokens) }?;
        let hear = hear.ok_or(Failure::Null("hear"))?;
        let State { session, text, .. } = state;
        tokens.read(text)?;
        // SAFETY: the caller's function, with what it wants to be given; the header asks that it returns.
        session.generate(text, |token| unsafe { hear(context, token) })?;
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
