//! Text that the base goes on with.

use super::{Loaded, Session, TaskHandle, TokenizerUse, history::History};
use crate::{
    Encoded, Error,
    generation::{
        Constraint, Heard, Sampling,
        allowed::Allowed,
        guide::{Guide, Place},
        pieces::Pieces,
        sampler::Sampler,
        stops::Stops,
        stream::Stream,
    },
    task::{Head, Limits, Task},
};

/// What generation keeps between two texts.
#[derive(Debug)]
pub(super) struct Generation {
    /// The tokens that the decoder read, and behind them those that were generated.
    seen: Vec<u32>,
    /// How many it read.
    read: usize,
    /// The most tokens that a loaded task generates.
    most_tokens: usize,
    /// The most that [`Session::at_most`] lets a text have.
    at_most: Option<usize>,
    sampler: Sampler,
    /// The tokens that may come next, where a text is constrained.
    allowed: Allowed,
    /// What tokens spell; read with the first text, or the tokenizer.
    pieces: Option<Pieces>,
    stops: Stops,
    stream: Stream,
}

impl Generation {
    /// Bytes of what tokens spell and of room for a text.
    pub fn bytes(&self) -> usize {
        self.pieces.as_ref().map_or(0, Pieces::bytes) + self.stream.bytes()
    }

    /// Makes room for the longest text.
    fn reserve(&mut self) {
        let longest = self.pieces.as_ref().map_or(0, Pieces::longest);
        self.stream.reserve(self.most_tokens * longest);
    }
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

    /// Ends every text from now on before the first of `stops`, beside the tokens that end it. A constrained text
    /// ends by its constraint alone.
    ///
    /// # Errors
    /// When a string is empty, no loaded task generates text, or the tokenizer's tokens cannot be spelled one by one.
    pub fn stop_at(&mut self, stops: &[impl AsRef<str>]) -> Result<(), Error> {
        let stops = Stops::new(stops)?;
        if !stops.is_empty() {
            self.read_pieces()?;
        }
        self.generation.as_mut().ok_or(Error::NoTask)?.stops = stops;
        Ok(())
    }

    /// Ends every text from now on behind so many tokens; where there is no number or the task allows fewer, as the task
    /// says.
    ///
    /// # Errors
    /// When it is none, or no loaded task generates text.
    pub fn at_most(&mut self, tokens: Option<usize>) -> Result<(), Error> {
        if tokens == Some(0) {
            return Err(Error::Sampling {
                field: "most_tokens",
                value: "0".into(),
                range: "1 or more",
            });
        }
        self.generation.as_mut().ok_or(Error::NoTask)?.at_most = tokens;
        Ok(())
    }

    /// Lets the texts of `task` say from now on what `constraint` allows and nothing else; anything again where there
    /// is none. A task that is loaded again is free.
    ///
    /// # Errors
    /// When the task is not loaded or generates no text, no tokens spell what is allowed, or the task allows too few
    /// of them.
    pub fn constrain(
        &mut self,
        task: TaskHandle,
        constraint: Option<&Constraint>,
    ) -> Result<(), Error> {
        limits(&self.loaded(task)?.task)?;
        self.read_pieces()?;
        let generation = self.generation.as_ref().ok_or(Error::NoTask)?;
        let pieces = generation.pieces.as_ref().ok_or(Error::NoTask)?;
        let loaded = self.tasks.get_mut(task.0).ok_or(Error::NoTask)?;
        let limits = limits(&loaded.task)?;
        let guide = constraint.map(|constraint| Guide::new(constraint, pieces, &limits.stops));
        let guide = guide.transpose()?;
        if let Some(guide) = &guide {
            enough(guide, limits.most_tokens)?;
        }
        loaded.guide = guide;
        Ok(())
    }

    /// Lets the base go on with a text, as the active task says: token by token as [`Session::sample`] chose, the
    /// most probable one where it was not called, until one that ends the text or as many as the task and
    /// [`Session::at_most`] allow. `hear` is given each token as it is chosen, and may end the text behind it. Returns all
    /// of them, without the one that ended the text; those that spell a string of [`Session::stop_at`] are among them.
    ///
    /// Positions that run out end the text as well.
    ///
    /// # Errors
    /// When no task is active or it generates no text, there are no tokens or too many, a score is no number, or what
    /// is left of the positions is too little for a constrained text.
    pub fn generate<H: Heard>(
        &mut self,
        text: &Encoded,
        mut hear: impl FnMut(u32) -> H,
    ) -> Result<&[u32], Error> {
        self.write(text, &mut |token| hear(token).ends(), &mut |_| false)?;
        let generation = self.generation.as_ref().ok_or(Error::NoPast)?;
        Ok(&generation.seen[generation.read..])
    }

    /// As [`Session::generate`], but `hear` is given the text as it grows: whole characters, as soon as no string of
    /// [`Session::stop_at`] can begin with them; it may end the text behind what it was given. Returns the whole text,
    /// which ends before such a string.
    ///
    /// # Errors
    /// As [`Session::generate`], or when the tokenizer's tokens cannot be spelled one by one.
    pub fn stream<H: Heard>(
        &mut self,
        text: &Encoded,
        mut hear: impl FnMut(&str) -> H,
    ) -> Result<&str, Error> {
        self.read_pieces()?;
        self.write(text, &mut |_| false, &mut |piece| hear(piece).ends())?;
        let generation = self.generation.as_ref().ok_or(Error::NoPast)?;
        Ok(generation.stream.text())
    }

    /// Generates a text. Its tokens are heard and, where pieces were read, what they spell; either may end it.
    fn write(
        &mut self,
        text: &Encoded,
        hear_token: &mut dyn FnMut(u32) -> bool,
        hear_text: &mut dyn FnMut(&str) -> bool,
    ) -> Result<(), Error> {
        let mut left = self.begin(text)?;
        let loaded = self.tasks.get(self.active.ok_or(Error::NoTask)?.0);
        let Loaded { task, guide, .. } = loaded.ok_or(Error::NoTask)?;
        let limits = limits(task)?;
        let Generation {
            seen,
            sampler,
            allowed,
            pieces,
            stops,
            stream,
            ..
        } = self.generation.as_mut().ok_or(Error::NoPast)?;
        let History { past, next } = self.history.as_mut().ok_or(Error::NoPast)?;
        let (mut place, free) = (Place::default(), Stops::default());
        let (pieces, guide) = (pieces.as_ref(), guide.as_ref());
        let stops = guide.map_or(&*stops, |_| &free);
        let mut ended = false;
        while left > 0 && !ended {
            let scores = self.engine.logits(self.room.ids.len() - 1)?;
            let guided = guide.zip(pieces).map(|(guide, pieces)| {
                guide.allow(pieces, place, left, allowed);
                &*allowed
            });
            let token = sampler.next(scores, seen, guided)?;
            if limits.stops.contains(&token) {
                break;
            }
            seen.push(token);
            ended = hear_token(token);
            left -= 1;
            if let Some(pieces) = pieces {
                let piece = place.advance(pieces, guide, token);
                let mut heard_enough = false;
                let stopped =
                    stream.push(piece, stops, &mut |text| heard_enough |= hear_text(text));
                if heard_enough {
                    stream.end_here();
                }
                ended |=
                    stopped || heard_enough || guide.is_some_and(|guide| guide.is_whole(place));
            }
            if left > 0 && !ended {
                next.set(&[token], &[], []);
                self.room.clear(self.image.description());
                self.room.push(&self.image, None, next)?;
                self.engine.go_on(self.room.input(), past)?;
            }
        }
        stream.end(stops, &mut |rest| {
            hear_text(rest);
        });
        Ok(())
    }

    /// Runs a text that is to be gone on with. How many tokens may come behind it.
    fn begin(&mut self, text: &Encoded) -> Result<usize, Error> {
        let active = self.active.ok_or(Error::NoTask)?;
        let task = &self.loaded(active)?.task;
        limits(task)?;
        text.check(self.limit(task))?;
        self.begin_with(Some(active), text)?;
        let read = match self.encodes_first() {
            true => &[][..],
            false => text.ids(),
        };
        let generation = self.generation.as_mut().ok_or(Error::NoPast)?;
        generation.seen.clear();
        generation.seen.extend_from_slice(read);
        generation.read = read.len();
        generation.sampler.restart();
        generation.stream.restart();
        let Loaded { task, guide, .. } = self.loaded(active)?;
        let past = &self.history.as_ref().ok_or(Error::NoPast)?.past;
        // The last token is not run.
        let left = limits(task)?.most_tokens.min(self.engine.left(past) + 1);
        let generation = self.generation.as_ref().ok_or(Error::NoPast)?;
        let left = left.min(generation.at_most.unwrap_or(usize::MAX));
        guide.iter().try_for_each(|guide| enough(guide, left))?;
        Ok(left)
    }

    /// Makes room for texts of at most `tokens` generated tokens.
    ///
    /// # Errors
    /// [`Error::NoPast`] and [`Error::NoLogits`] where this image cannot generate; when the tokenizer is read at open
    /// and its tokens cannot be spelled one by one.
    pub(super) fn make_room_to_generate(&mut self, tokens: usize) -> Result<(), Error> {
        let vocabulary = self.engine.vocabulary().ok_or(Error::NoLogits)?;
        let rows = self.engine.most_rows().unwrap_or(0);
        self.make_history()?;
        if self.generation.is_none() {
            self.generation = Some(Generation {
                seen: Vec::new(),
                read: 0,
                most_tokens: 0,
                at_most: None,
                sampler: Sampler::new(Sampling::default(), vocabulary)?,
                allowed: Allowed::none(vocabulary),
                pieces: None,
                stops: Stops::default(),
                stream: Stream::default(),
            });
        }
        if let Some(generation) = &mut self.generation {
            let positions = self.image.description().max_positions;
            let most = tokens.min(positions.unwrap_or(usize::MAX));
            generation.most_tokens = generation.most_tokens.max(most);
            generation.seen.clear();
            generation.seen.reserve(rows + generation.most_tokens);
            generation.reserve();
        }
        match self.options.tokenizer {
            TokenizerUse::AtOpen => self.read_pieces(),
            TokenizerUse::WithFirstText => Ok(()),
        }
    }

    /// Reads what tokens spell, if it was not read before.
    fn read_pieces(&mut self) -> Result<(), Error> {
        let generation = self.generation.as_ref().ok_or(Error::NoTask)?;
        if generation.pieces.is_none() {
            let vocabulary = self.engine.vocabulary().ok_or(Error::NoLogits)?;
            let pieces = self.encoder()?.pieces(vocabulary)?;
            let generation = self.generation.as_mut().ok_or(Error::NoTask)?;
            generation.pieces = Some(pieces);
            generation.reserve();
        }
        Ok(())
    }
}

/// When the texts of a task end.
fn limits(task: &Task) -> Result<&Limits, Error> {
    match &task.head {
        Head::Text(limits) => Ok(limits),
        Head::Rows(_) | Head::Words(_) => Err(Error::NoText {
            task: task.id.clone(),
        }),
    }
}

/// Whether a text of `left` tokens can keep a constraint.
fn enough(guide: &Guide, left: usize) -> Result<(), Error> {
    let fewest = guide.fewest();
    match fewest <= left {
        true => Ok(()),
        false => Err(Error::Constraint {
            reason: format!("the shortest text has {fewest} tokens, and {left} may come"),
        }),
    }
}
