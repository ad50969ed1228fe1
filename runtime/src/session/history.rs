//! What a base has read before the token that comes next.

use super::{Session, TaskHandle};
use crate::{Encoded, Error, engine::Past, image::Kind, task::KeyValues};

/// Keys and values of everything before the next token.
#[derive(Debug)]
pub(super) struct History {
    pub past: Past,
    /// The token that is run next, as a text.
    pub next: Encoded,
}

impl Session {
    /// Whether texts are read by an encoder before a decoder goes on.
    pub(super) fn encodes_first(&self) -> bool {
        self.image.description().kind == Kind::EncoderDecoder
    }

    /// Makes room for a history, if there is none yet.
    ///
    /// # Errors
    /// [`Error::NoPast`] where this image runs a text only as a whole.
    pub(super) fn make_history(&mut self) -> Result<(), Error> {
        if self.history.is_none() {
            self.history = Some(History {
                past: self.engine.room(None).ok_or(Error::NoPast)?,
                next: Encoded::of_ids(&[0]),
            });
        }
        Ok(())
    }

    /// Begins the history anew with a text, as `task` reads it, or the base alone: a decoder has then run it behind the
    /// task's prompt; a decoder behind an encoder has run its first token.
    ///
    /// # Errors
    /// As [`Session::answer_encoded`].
    pub(super) fn begin_with(
        &mut self,
        task: Option<TaskHandle>,
        text: &Encoded,
    ) -> Result<(), Error> {
        let description = self.image.description();
        let first = description.start.unwrap_or(description.placeholder);
        self.read_text(task, text)?;
        if self.encodes_first() {
            let history = self.history.as_mut().ok_or(Error::NoPast)?;
            history.next.set(&[first], &[], []);
            self.run_next()?;
        }
        Ok(())
    }

    /// Begins the history anew with a text, for the encoder to read where there is one.
    fn read_text(&mut self, task: Option<TaskHandle>, text: &Encoded) -> Result<(), Error> {
        let encodes = self.encodes_first();
        let History { past, .. } = self.history.as_mut().ok_or(Error::NoPast)?;
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
            false => self.engine.go_on(self.room.input(), past),
        }
    }

    /// Runs [`History::next`].
    pub(super) fn run_next(&mut self) -> Result<(), Error> {
        let History { past, next } = self.history.as_mut().ok_or(Error::NoPast)?;
        self.room.clear(self.image.description());
        self.room.push(&self.image, None, next)?;
        self.engine.go_on(self.room.input(), past)
    }

    /// Runs a text through the base alone; the engine's hidden rows are then the text's own. An encoder-decoder is given it
    /// on both sides.
    ///
    /// # Errors
    /// When there is no room for it.
    pub(super) fn run_alone(&mut self, text: &Encoded) -> Result<(), Error> {
        if self.encodes_first() {
            self.make_history()?;
            self.read_text(None, text)?;
            let history = self.history.as_mut().ok_or(Error::NoPast)?;
            self.room.clear(self.image.description());
            self.room.push(&self.image, None, text)?;
            return self.engine.go_on(self.room.input(), &mut history.past);
        }
        let past = self.engine.prepare(KeyValues::default())?;
        self.room.clear(self.image.description());
        self.room.push(&self.image, None, text)?;
        self.engine.run(self.room.input(), &|_| &past)
    }
}
