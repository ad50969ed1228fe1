//! Text that the base goes on with.

use super::{
    Session, TaskHandle, TokenizerUse,
    line::{Ear, Line, Part, Request, enough, limits},
};
use crate::{
    Encoded, Error,
    generation::{
        Constraint, Heard, Sampling, allowed::Allowed, guide::Guide, pieces::Pieces,
        sampler::Sampler, stops::Stops,
    },
};

/// What generation keeps between two texts.
#[derive(Debug)]
pub(super) struct Generation {
    /// The texts that are generated at once.
    pub lines: Vec<Line>,
    /// The most tokens that a loaded task generates.
    most_tokens: usize,
    /// The most that [`Session::at_most`] lets a text have.
    pub at_most: Option<usize>,
    /// How [`Session::sample`] has tokens chosen.
    sampling: Sampling,
    /// The tokens that may come next, where a text is constrained.
    pub allowed: Allowed,
    /// What tokens spell; read with the first text, or the tokenizer.
    pub pieces: Option<Pieces>,
    pub stops: Stops,
}

impl Generation {
    /// Bytes of what tokens spell and of room for texts.
    pub fn bytes(&self) -> usize {
        let streams = self.lines.iter().map(|line| line.stream.bytes());
        self.pieces.as_ref().map_or(0, Pieces::bytes) + streams.sum::<usize>()
    }

    /// Makes room for the longest texts, whose own tokens are `read` at most.
    fn reserve(&mut self, read: usize) {
        let longest = self.pieces.as_ref().map_or(0, Pieces::longest);
        let (tokens, bytes) = (read + self.most_tokens, self.most_tokens * longest);
        let lines = self.lines.iter_mut();
        lines.for_each(|line| line.reserve(tokens, bytes));
    }
}

impl Session {
    /// Chooses the tokens of every text from now on by `sampling`; each text draws from the seed on.
    ///
    /// # Errors
    /// When a value is outside its range, or no loaded task generates text.
    pub fn sample(&mut self, sampling: Sampling) -> Result<(), Error> {
        let generation = self.generation.as_mut().ok_or(Error::NoTask)?;
        for line in &mut generation.lines {
            line.sampler.begin(sampling)?;
        }
        generation.sampling = sampling;
        Ok(())
    }

    /// How tokens are chosen now.
    pub fn sampling(&self) -> Sampling {
        let generation = self.generation.as_ref();
        generation.map_or_else(Sampling::default, |generation| generation.sampling)
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
        self.write(text, &mut |part| match part {
            Part::Token(token) => hear(token).ends(),
            _ => false,
        })?;
        Ok(self.line(0)?.said())
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
        self.write(text, &mut |part| match part {
            Part::Piece(piece) => hear(piece).ends(),
            _ => false,
        })?;
        Ok(self.line(0)?.stream.text())
    }

    /// Lets the base go on with several texts at once, each with its task and as [`Session::stream`] would: as many as
    /// [`Options::texts`](crate::Options::texts) at a time, the next as soon as one ends. `hear` is given each part with
    /// the number of its request, and may end the text behind it. The active task stays the active one.
    ///
    /// Every weight is read once for all texts. A text is the one that would come alone, unless two tokens are so near
    /// each other that the order of sums decides.
    ///
    /// # Errors
    /// As [`Session::stream`] for any of the texts; nothing is run where that can be told before.
    pub fn generate_all<H: Heard>(
        &mut self,
        requests: &[Request<'_>],
        mut hear: impl FnMut(usize, Part<'_>) -> H,
    ) -> Result<(), Error> {
        if requests.is_empty() {
            return Ok(());
        }
        self.read_pieces()?;
        requests
            .iter()
            .try_for_each(|request| self.check_line(request))?;
        let places = self.generation.as_ref().map_or(0, |all| all.lines.len());
        let (mut begun, mut live) = (0, 0);
        while begun < requests.len() || live > 0 {
            while live < places && begun < requests.len() {
                let goes_on = self.begin_line(live, begun, &requests[begun])?;
                let goes_on = goes_on && !self.choose_heard(live, 0, &mut hear)?;
                match goes_on {
                    true => live += 1,
                    false => self.end_line(live, &mut hear)?,
                }
                begun += 1;
            }
            if live == 0 {
                continue;
            }
            self.step(live)?;
            // What ends makes room for the last, whose token was chosen.
            for place in (0..live).rev() {
                if self.choose_heard(place, place, &mut hear)? {
                    self.end_line(place, &mut hear)?;
                    live -= 1;
                    self.swap_lines(place, live);
                }
            }
        }
        Ok(())
    }

    /// [`Session::choose`] for the text of a request.
    fn choose_heard<H: Heard>(
        &mut self,
        place: usize,
        scored: usize,
        hear: &mut impl FnMut(usize, Part<'_>) -> H,
    ) -> Result<bool, Error> {
        let request = self.line(place)?.request;
        self.choose(place, scored, &mut |part| hear(request, part).ends())
    }

    /// Gives `hear` a text that has ended.
    fn end_line<H: Heard>(
        &mut self,
        place: usize,
        hear: &mut impl FnMut(usize, Part<'_>) -> H,
    ) -> Result<(), Error> {
        let line = self.line(place)?;
        hear(line.request, Part::End(line.stream.text()));
        Ok(())
    }

    fn line(&self, place: usize) -> Result<&Line, Error> {
        let lines = self.generation.as_ref().map(|all| &all.lines);
        lines
            .and_then(|lines| lines.get(place))
            .ok_or(Error::NoPast)
    }

    /// Generates a text with the active task.
    fn write(&mut self, text: &Encoded, hear: Ear<'_>) -> Result<(), Error> {
        let task = self.active.ok_or(Error::NoTask)?;
        limits(&self.loaded(task)?.task)?;
        let generation = self.generation.as_ref().ok_or(Error::NoPast)?;
        let request = Request {
            task,
            text,
            sampling: generation.sampling,
        };
        let mut ended = !self.begin_line(0, 0, &request)?;
        while !ended {
            ended = self.choose(0, 0, hear)?;
            if !ended {
                self.step(1)?;
            }
        }
        Ok(())
    }

    /// Makes room for texts of at most `tokens` generated tokens.
    ///
    /// # Errors
    /// [`Error::NoPast`] and [`Error::NoLogits`] where this image cannot generate; when the tokenizer is read at open
    /// and its tokens cannot be spelled one by one.
    pub(super) fn make_room_to_generate(&mut self, tokens: usize) -> Result<(), Error> {
        let vocabulary = self.engine.vocabulary().ok_or(Error::NoLogits)?;
        let rows = self.engine.most_rows().unwrap_or(0);
        let texts = self.options.places().min(rows.max(1));
        self.make_history(texts)?;
        if self.generation.is_none() {
            let sampling = Sampling::default();
            let lines = (0..texts).map(|_| Sampler::new(sampling, vocabulary).map(Line::new));
            self.generation = Some(Generation {
                lines: lines.collect::<Result<_, _>>()?,
                most_tokens: 0,
                at_most: None,
                sampling,
                allowed: Allowed::none(vocabulary),
                pieces: None,
                stops: Stops::default(),
            });
        }
        if let Some(generation) = &mut self.generation {
            let positions = self.image.description().max_positions;
            let most = tokens.min(positions.unwrap_or(usize::MAX));
            generation.most_tokens = generation.most_tokens.max(most);
            generation.reserve(rows);
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
            generation.reserve(self.engine.most_rows().unwrap_or(0));
        }
        Ok(())
    }
}
