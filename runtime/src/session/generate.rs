//! Text that the base goes on with.

use super::Session;
use crate::{
    Encoded, Error,
    engine::Past,
    generation::{Sampling, sampler::Sampler},
    task::Head,
};

/// What generation keeps between two texts.
#[derive(Debug)]
pub(super) struct Generation {
    /// Keys and values of everything before the next token.
    past: Past,
    /// The token that is run next, as a text.
    next: Encoded,
    /// The tokens of the text, and behind them those that were generated.
    seen: Vec<u32>,
    sampler: Sampler,
    /// What they spell.
    text: String,
}

impl Session {
    /// Chooses the tokens of every text from now on by `sampling`; each text draws from the seed on.
    ///
    /// # Errors
    /// When a value is outside its range, or no loaded task generates text.
    pub fn sample(&mut self, sampling: Sampling) -> Result<(), Error> {
        let vocabulary = self.engine.vocabulary().ok_or(Error::NoLogits)?;
        let generation = self.generation.as_mut().ok_or(Error::NoTask)?;
        generation.sampler = Sampler::new(sampling, vocabulary)?;
        Ok(())
    }

    /// Lets the base go on with a text, as the active task says: token by token as [`Session::sample`] chose, the most
    /// probable one where it was not called, until one that ends the text or as many as the task allows. `hear` is given
    /// each token as it is chosen. Returns all of them, without the one that ended the text.
    ///
    /// Positions that run out end the text as well.
    ///
    /// # Errors
    /// When no task is active or it generates no text, there are no tokens or too many, or a score is no number.
    pub fn generate(&mut self, text: &Encoded, mut hear: impl FnMut(u32)) -> Result<&[u32], Error> {
        let loaded = self.tasks.get(self.active.ok_or(Error::NoTask)?.0);
        let loaded = loaded.ok_or(Error::NoTask)?;
        let Head::Text(limits) = &loaded.task.head else {
            let task = loaded.task.id.clone();
            return Err(Error::NoText { task });
        };
        text.check(self.limit(&loaded.task))?;
        let Generation {
            past,
            next,
            seen,
            sampler,
            ..
        } = self.generation.as_mut().ok_or(Error::NoPast)?;
        past.begin(&loaded.past)?;
        seen.clear();
        seen.extend_from_slice(text.ids());
        sampler.restart();
        self.room.clear(self.image.description());
        self.room.push(&self.image, Some(&loaded.task.form), text)?;
        self.engine.go_on(self.room.input(), past)?;
        while seen.len() - text.len() < limits.most_tokens {
            let scores = self.engine.logits(self.room.ids.len() - 1)?;
            let token = sampler.next(scores, seen, None)?;
            if limits.stops.contains(&token) {
                break;
            }
            seen.push(token);
            hear(token);
            next.set(&[token], &[], []);
            self.room.clear(self.image.description());
            self.room.push(&self.image, None, next)?;
            match self.engine.go_on(self.room.input(), past) {
                Err(Error::Room { .. }) => break,
                ran => ran?,
            }
        }
        Ok(&seen[text.len()..])
    }

    /// What the base goes on with, as text: see [`Session::generate`].
    pub(super) fn said(&mut self, text: &Encoded) -> Result<&str, Error> {
        self.generate(text, |_| {})?;
        let generation = self.generation.as_ref().ok_or(Error::NoPast)?;
        let spelled = self.encoder()?.spelled(&generation.seen[text.len()..])?;
        let generation = self.generation.as_mut().ok_or(Error::NoPast)?;
        generation.text = spelled;
        Ok(&generation.text)
    }

    /// Makes room for texts of at most `tokens` generated tokens.
    ///
    /// # Errors
    /// [`Error::NoPast`] and [`Error::NoLogits`] where this image cannot generate.
    pub(super) fn make_room_to_generate(&mut self, tokens: usize) -> Result<(), Error> {
        let vocabulary = self.engine.vocabulary().ok_or(Error::NoLogits)?;
        let rows = self.engine.most_rows().unwrap_or(0);
        if self.generation.is_none() {
            self.generation = Some(Generation {
                past: self.engine.room(None).ok_or(Error::NoPast)?,
                next: Encoded::of_ids(&[0]),
                seen: Vec::new(),
                sampler: Sampler::new(Sampling::default(), vocabulary)?,
                text: String::new(),
            });
        }
        if let Some(generation) = &mut self.generation {
            generation.seen.clear();
            generation.seen.reserve(rows + tokens);
        }
        Ok(())
    }
}
