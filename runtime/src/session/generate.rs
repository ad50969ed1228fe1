//! Text that the base goes on with.

use super::Session;
use crate::{Encoded, Error, engine::Past, task::Head};

/// What generation keeps between two texts.
#[derive(Debug)]
pub(super) struct Generation {
    /// Keys and values of everything before the next token.
    past: Past,
    /// The token that is run next, as a text.
    next: Encoded,
    /// The tokens that were generated.
    said: Vec<u32>,
    /// What they spell.
    text: String,
}

impl Session {
    /// Lets the base go on with a text, as the active task says: the most probable token each time, until one that ends
    /// the text or as many as the task allows. `hear` is given each token as it is chosen. Returns all of them, without
    /// the one that ended the text.
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
            past, next, said, ..
        } = self.generation.as_mut().ok_or(Error::NoPast)?;
        past.begin(&loaded.past)?;
        said.clear();
        self.room.clear(self.image.description());
        self.room.push(&self.image, Some(&loaded.task.form), text)?;
        self.engine.go_on(self.room.input(), past)?;
        while said.len() < limits.most_tokens {
            let scores = self.engine.logits(self.room.ids.len() - 1)?;
            let token = most_probable(scores)?;
            if limits.stops.contains(&token) {
                break;
            }
            said.push(token);
            hear(token);
            next.set(&[token]);
            self.room.clear(self.image.description());
            self.room.push(&self.image, None, next)?;
            match self.engine.go_on(self.room.input(), past) {
                Err(Error::Room { .. }) => break,
                ran => ran?,
            }
        }
        Ok(said)
    }

    /// What the base goes on with, as text: see [`Session::generate`].
    pub(super) fn said(&mut self, text: &Encoded) -> Result<&str, Error> {
        self.generate(text, |_| {})?;
        let generation = self.generation.as_ref().ok_or(Error::NoPast)?;
        let spelled = self.encoder()?.spelled(&generation.said)?;
        let generation = self.generation.as_mut().ok_or(Error::NoPast)?;
        generation.text = spelled;
        Ok(&generation.text)
    }

    /// Makes room for texts of at most `tokens` generated tokens.
    ///
    /// # Errors
    /// [`Error::NoPast`] and [`Error::NoLogits`] where this image cannot generate.
    pub(super) fn make_room_to_generate(&mut self, tokens: usize) -> Result<(), Error> {
        self.engine.vocabulary().ok_or(Error::NoLogits)?;
        if self.generation.is_none() {
            self.generation = Some(Generation {
                past: self.engine.room(None).ok_or(Error::NoPast)?,
                next: Encoded::of_ids(&[0]),
                said: Vec::new(),
                text: String::new(),
            });
        }
        if let Some(generation) = &mut self.generation {
            generation.said.clear();
            generation.said.reserve(tokens);
        }
        Ok(())
    }
}

/// The token with the greatest score; of equal ones the first.
fn most_probable(scores: &[f32]) -> Result<u32, Error> {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, &score) in (0..).zip(scores) {
        if score.is_nan() {
            return Err(Error::NotANumber);
        }
        if score > best.1 {
            best = (token, score);
        }
    }
    match best.1.is_finite() {
        true => Ok(best.0),
        false => Err(Error::NotANumber),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_the_greatest_scores_is_chosen() {
        let table: [(&[f32], Option<u32>); 5] = [
            (&[0.5, 2.0, 2.0, -1.0], Some(1)),
            (&[f32::NEG_INFINITY, -3.0], Some(1)),
            (&[0.0, f32::NAN], None),
            (&[1.0, f32::INFINITY], None),
            (&[], None),
        ];
        for (scores, expected) in table {
            assert_eq!(most_probable(scores).ok(), expected, "{scores:?}");
        }
    }
}
