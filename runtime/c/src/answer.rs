//! Entries that answer: what is allocated there is the tokenizer's and the engine's alone.

use std::{
    ffi::c_char,
    iter,
    mem::{self, MaybeUninit},
};

use preface_bundle::AnswerKind;
use preface_runtime::{Answer, Choice, Encoded};

use crate::{
    border::{self, Growing},
    failure::Failure,
    image::number_of_answer,
    session::{SessionHandle, State, with_session},
};

/// `preface_answer`.
#[repr(C)]
pub struct AnswerFields {
    size: usize,
    labels: *mut i32,
    scores: *mut f32,
    capacity: usize,
    count: usize,
    kind: i32,
    out_of_scope: i32,
    text_length: usize,
}

// SAFETY: it begins with its size, and has numbers and pointers alone.
unsafe impl Growing for AnswerFields {
    const NAME: &'static str = "preface_answer";
}

/// `preface_tokens`.
#[repr(C)]
pub struct Tokens {
    size: usize,
    ids: *mut u32,
    types: *mut u32,
    capacity: usize,
    count: usize,
    words: *mut i32,
    word_capacity: usize,
    word_count: usize,
}

// SAFETY: it begins with its size, and has numbers and pointers alone.
unsafe impl Growing for Tokens {
    const NAME: &'static str = "preface_tokens";
}

impl AnswerFields {
    /// Writes an answer where the caller wants it, and keeps in `said` the text of one that is generated.
    fn write(&mut self, answer: Answer<'_>, said: &mut String) -> Result<(), Failure> {
        said.clear();
        self.text_length = 0;
        match answer {
            Answer::Label { best, out_of_scope } => {
                self.give(AnswerKind::Label, iter::once(Some(best)))?;
                self.out_of_scope = out_of_scope.into();
                Ok(())
            }
            Answer::Labels(choices) => self.give(AnswerKind::Labels, choices.iter()),
            Answer::Tags(choices) => self.give(AnswerKind::Tags, choices.iter()),
            Answer::Text(text) => {
                said.push_str(text);
                self.text_length = text.len();
                self.give(AnswerKind::Text, iter::empty())
            }
            _ => Err(Failure::Kind),
        }
    }

    /// Writes choices where the caller wants them.
    fn give<'a>(
        &mut self,
        kind: AnswerKind,
        choices: impl ExactSizeIterator<Item = Option<Choice<'a>>>,
    ) -> Result<(), Failure> {
        self.kind = number_of_answer(kind);
        self.out_of_scope = 0;
        self.count = choices.len();
        // SAFETY: the caller's room for as many elements as it says.
        let labels = unsafe { border::room(self.labels, self.capacity, "preface_answer.labels") }?;
        if self.count > self.capacity {
            return Err(Failure::Room {
                needed: self.count,
                room: self.capacity,
            });
        }
        let scores: &mut [MaybeUninit<f32>] = match self.scores.is_null() {
            true => &mut [],
            // SAFETY: the caller's room for as many elements as it says.
            false => unsafe { border::room(self.scores, self.capacity, "preface_answer.scores") }?,
        };
        let mut scores = scores.iter_mut();
        for (choice, label) in choices.zip(labels) {
            let class = choice.map(|choice| i32::try_from(choice.class).unwrap_or(i32::MAX));
            label.write(class.unwrap_or(-1));
            if let Some(score) = scores.next() {
                score.write(choice.map_or(0.0, |choice| choice.score));
            }
        }
        Ok(())
    }
}

impl Tokens {
    /// Puts the caller's tokens into `text`.
    pub fn read(&self, text: &mut Encoded) -> Result<(), Failure> {
        // SAFETY: the caller's lists of as many elements as it says.
        let (ids, words) = unsafe {
            (
                border::list(self.ids, self.count, "preface_tokens.ids")?,
                border::list(self.words, self.word_count, "preface_tokens.words")?,
            )
        };
        let types = match self.types.is_null() {
            true => &[][..],
            // SAFETY: the caller's list of as many elements as it says.
            false => unsafe { border::list(self.types, self.count, "preface_tokens.types") }?,
        };
        let words = words.iter().map(|&place| usize::try_from(place).ok());
        text.set(ids, types, words);
        Ok(())
    }

    /// Writes `text` where the caller wants it.
    fn write(&mut self, text: &Encoded) -> Result<(), Failure> {
        let (types, words) = (text.types(), text.words());
        (self.count, self.word_count) = (text.len(), words.len());
        // SAFETY: the caller's room for as many elements as it says.
        let (ids, places) = unsafe {
            (
                border::room(self.ids, self.capacity, "preface_tokens.ids")?,
                border::room(self.words, self.word_capacity, "preface_tokens.words")?,
            )
        };
        for (needed, room) in [
            (self.count, self.capacity),
            (self.word_count, self.word_capacity),
        ] {
            if needed > room {
                return Err(Failure::Room { needed, room });
            }
        }
        border::put(text.ids().iter().copied(), ids);
        let place = |place: Option<usize>| {
            place.map_or(-1, |place| i32::try_from(place).unwrap_or(i32::MAX))
        };
        border::put(words.iter().copied().map(place), places);
        if !types.is_empty() || !self.types.is_null() {
            // SAFETY: the caller's room for as many elements as it says.
            let room = unsafe { border::room(self.types, self.capacity, "preface_tokens.types") }?;
            let types = types.iter().copied().chain(iter::repeat(0));
            border::put(types.take(text.len()), room);
        }
        Ok(())
    }
}

impl State {
    /// Puts the caller's tokens of several texts into the first of [`State::texts`].
    pub fn read_all(&mut self, tokens: &[*const Tokens]) -> Result<(), Failure> {
        if self.texts.len() < tokens.len() {
            self.texts.resize(tokens.len(), Encoded::default());
        }
        for (&tokens, text) in tokens.iter().zip(&mut self.texts) {
            // SAFETY: the caller's structure.
            unsafe { border::filled(tokens) }?.read(text)?;
        }
        Ok(())
    }
}

/// Answers a text or a pair.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn preface_session_answer(
    session: *mut SessionHandle,
    text: *const c_char,
    second: *const c_char,
    answer: *mut AnswerFields,
) -> i32 {
    let work = |state: &mut State| {
        // SAFETY: the caller's structure.
        let answer = unsafe { border::structure(answer) }?;
        // SAFETY: the caller's strings.
        let (text, second) = unsafe {
            (
                border::text(text, "text")?,
                border::optional_text(second, "second")?,
            )
        };
        let State { session, said, .. } = state;
        answer.write(session.answer(text, second)?, said)
    };
    // SAFETY: the caller's handle.
    unsafe { with_session(session, work) }
}

/// Writes a text or a pair as the active task reads it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn preface_session_encode(
    session: *mut SessionHandle,
    text: *const c_char,
    second: *const c_char,
    tokens: *mut Tokens,
) -> i32 {
    let work = |state: &mut State| {
        // SAFETY: the caller's structure.
        let tokens = unsafe { border::structure(tokens) }?;
        // SAFETY: the caller's strings.
        let (text, second) = unsafe {
            (
                border::text(text, "text")?,
                border::optional_text(second, "second")?,
            )
        };
        tokens.write(&state.session.encode(text, second)?)
    };
    // SAFETY: the caller's handle.
    unsafe { with_session(session, work) }
}

/// Answers a text of token ids.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn preface_session_answer_tokens(
    session: *mut SessionHandle,
    tokens: *const Tokens,
    answer: *mut AnswerFields,
) -> i32 {
    let work = |state: &mut State| {
        // SAFETY: the caller's structures.
        let (answer, tokens) = unsafe { (border::structure(answer)?, border::filled(tokens)?) };
        let State {
            session,
            text,
            said,
            ..
        } = state;
        tokens.read(text)?;
        answer.write(session.answer_encoded(text)?, said)
    };
    // SAFETY: the caller's handle.
    unsafe { with_session(session, work) }
}

/// Answers several texts of token ids at once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn preface_session_answer_all(
    session: *mut SessionHandle,
    count: usize,
    tasks: *const usize,
    tokens: *const *const Tokens,
    answers: *const *mut AnswerFields,
) -> i32 {
    let work = |state: &mut State| {
        // SAFETY: the caller's lists of as many elements as it says.
        let (tasks, tokens, answers) = unsafe {
            (
                border::list(tasks, count, "tasks")?,
                border::list(tokens, count, "tokens")?,
                border::list(answers, count, "answers")?,
            )
        };
        for &answer in answers {
            // SAFETY: the caller's structure, which is let go of again.
            unsafe { border::structure(answer) }?;
        }
        state.read_all(tokens)?;
        let handles = tasks.iter().map(|&task| state.task(task));
        let handles = handles.map(|task| task.map(|(handle, _)| handle));
        let requests = handles
            .zip(&state.texts)
            .map(|(task, text)| Ok((task?, text)));
        let requests: Vec<_> = requests.collect::<Result<_, Failure>>()?;
        let mut written = Ok(());
        let State { session, said, .. } = state;
        session.answer_all(&requests, |index, answer| {
            // SAFETY: the caller's structure, one at a time.
            let place = unsafe { border::structure(answers[index]) };
            let done = place.and_then(|place| place.write(answer, said));
            written = mem::replace(&mut written, Ok(())).and(done);
        })?;
        written
    };
    // SAFETY: the caller's handle.
    unsafe { with_session(session, work) }
}
