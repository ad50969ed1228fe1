//! What a base has read before the token that comes next.

use std::slice;

use super::{Session, TaskHandle};
use crate::{Encoded, Error, engine::Past, image::Kind, task::KeyValues};

/// Keys and values of everything before the next token.
#[derive(Debug)]
pub(super) struct History {
    /// Those of each text that is gone on with at once.
    pub pasts: Vec<Past>,
    /// The token that is run next, as a text.
    pub next: Encoded,
}

impl Session {
    /// Whether texts are read by an encoder before a decoder goes on.
    pub(super) fn encodes_first(&self) -> bool {
        self.image.description().kind == Kind::EncoderDecoder
    }

    /// Makes room for the histories of `texts` texts, where there is none yet.
    ///
    /// # Errors
    /// [`Error::NoPast`] where this image runs a text only as a whole.
    pub(super) fn make_history(&mut self, texts: usize) -> Result<(), Error> {
        let history = self.history.get_or_insert_with(|| History {
            pasts: Vec::new(),
            next: Encoded::of_ids(&[0]),
        });
        while history.pasts.len() < texts {
            let past = self.engine.room(None).ok_or(Error::NoPast)?;
            history.pasts.push(past);
        }
        Ok(())
    }

    /// Begins the history in place `place` anew with a text, as `task` reads it, or the base alone: a decoder has then run
    /// it behind the task's prompt; a decoder behind an encoder has run its first token.
    ///
    /// # Errors
    /// As [`Session::answer_encoded`].
    pub(super) fn begin_with(
        &mut self,
        place: usize,
        task: Option<TaskHandle>,
        text: &Encoded,
    ) -> Result<(), Error> {
        let description = self.image.description();
        let first = description.start.unwrap_or(description.placeholder);
        self.read_text(place, task, text)?;
        if self.encodes_first() {
            let History { pasts, next } = self.history.as_mut().ok_or(Error::NoPast)?;
            next.set(&[first], &[], []);
            self.room.clear(self.image.description());
            self.room.push(&self.image, None, next)?;
            let past = &mut pasts[place..=place];
            self.engine.go_on(self.room.input(), past)?;
        }
        Ok(())
    }

    /// Begins the history in place `place` anew with a text, for the encoder to read where there is one.
    fn read_text(
        &mut self,
        place: usize,
        task: Option<TaskHandle>,
        text: &Encoded,
    ) -> Result<(), Error> {
        let encodes = self.encodes_first();
        let History { pasts, .. } = self.history.as_mut().ok_or(Error::NoPast)?;
        let past = pasts.get_mut(place).ok_or(Error::NoPast)?;
        let loaded = task.map(|task| self.tasks.get(task.0).ok_or(Error::NoTask));
        let loaded = loaded.transpose()?;
        match loaded {
            Some(loaded) => past.begin(&loaded.past)?,
            None => past.begin(&self.engine.prepare(KeyValues::default())?)?,
        }
        let form = loaded.map(|loaded| &loaded.task.form);
        self.room.clear(self.image.description());
        self.room.push(&self.image, form, text)?;
        match encodes {
            true => self.engine.encode(self.room.input(), past),
            false => self.engine.go_on(self.room.input(), slice::from_mut(past)),
        }
    }

    /// Runs a text through the base alone; the engine's hidden rows are then the text's own. An encoder-decoder is given it
    /// on both sides.
    ///
    /// # Errors
    /// When there is no room for it.
    pub(super) fn run_alone(&mut self, text: &Encoded) -> Result<(), Error> {
        if self.encodes_first() {
            self.make_history(1)?;
            self.read_text(0, None, text)?;
            let history = self.history.as_mut().ok_or(Error::NoPast)?;
            self.room.clear(self.image.description());
            self.room.push(&self.image, None, text)?;
            return self
                .engine
                .go_on(self.room.input(), &mut history.pasts[..1]);
        }
        let past = self.engine.prepare(KeyValues::default())?;
        self.room.clear(self.image.description());
        self.room.push(&self.image, None, text)?;
        self.engine.run(self.room.input(), &|_| &past)
    }
}
