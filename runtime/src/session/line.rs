//! The texts that are being generated, each in a place of its own: those that have not ended come first.

use super::{Loaded, Session, TaskHandle, generate::Generation, history::History};
use crate::{
    Encoded, Error, Sampling,
    generation::{
        guide::{Guide, Place},
        sampler::Sampler,
        stops::Stops,
        stream::Stream,
    },
    task::{Head, Limits, Task},
};

/// A text that is being generated.
#[derive(Debug)]
pub(super) struct Line {
    /// The number of its request.
    pub request: usize,
    task: TaskHandle,
    /// The tokens that the decoder read, and behind them those that were generated.
    seen: Vec<u32>,
    /// How many it read.
    read: usize,
    /// How many more tokens may come.
    left: usize,
    place: Place,
    pub sampler: Sampler,
    pub stream: Stream,
}

/// A text that is to be gone on with.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The task that says how.
    pub task: TaskHandle,
    /// The text.
    pub text: &'a Encoded,
    /// How its tokens are chosen.
    pub sampling: Sampling,
}

/// What is heard of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// The next token.
    Token(u32),
    /// More of what tokens spell.
    Piece(&'a str),
    /// That it has ended; all of it.
    End(&'a str),
}

/// Whoever hears a text, and may end it.
pub(super) type Ear<'a> = &'a mut dyn FnMut(Part<'_>) -> bool;

impl Line {
    pub fn new(sampler: Sampler) -> Self {
        Self {
            request: 0,
            task: TaskHandle(0),
            seen: Vec::new(),
            read: 0,
            left: 0,
            place: Place::default(),
            sampler,
            stream: Stream::default(),
        }
    }

    /// Makes room for texts of so many tokens and so many bytes of what they spell.
    pub fn reserve(&mut self, tokens: usize, bytes: usize) {
        self.seen.clear();
        self.seen.reserve(tokens);
        self.stream.reserve(bytes);
    }

    /// The tokens that were generated.
    pub fn said(&self) -> &[u32] {
        &self.seen[self.read..]
    }
}

impl Session {
    /// Runs a text that is to be gone on with in place `place`, and scores what comes behind it. Whether anything may.
    pub(super) fn begin_line(
        &mut self,
        place: usize,
        index: usize,
        request: &Request<'_>,
    ) -> Result<bool, Error> {
        let Request {
            task,
            text,
            sampling,
        } = *request;
        self.check_line(request)?;
        self.begin_with(place, Some(task), text)?;
        let read = match self.encodes_first() {
            true => &[][..],
            false => text.ids(),
        };
        let generation = self.generation.as_mut().ok_or(Error::NoPast)?;
        let at_most = generation.at_most.unwrap_or(usize::MAX);
        let line = generation.lines.get_mut(place).ok_or(Error::NoPast)?;
        line.sampler.begin(sampling)?;
        line.stream.restart();
        line.seen.clear();
        line.seen.extend_from_slice(read);
        (line.request, line.task, line.read) = (index, task, read.len());
        line.place = Place::default();
        let Loaded { task, guide, .. } = self.tasks.get(task.0).ok_or(Error::NoTask)?;
        let history = self.history.as_ref().ok_or(Error::NoPast)?;
        let past = history.pasts.get(place).ok_or(Error::NoPast)?;
        // The last token is not run.
        let most = limits(task)?.most_tokens.min(at_most);
        line.left = most.min(self.engine.left(past) + 1);
        let left = line.left;
        guide.iter().try_for_each(|guide| enough(guide, left))?;
        self.engine.score(&[self.room.ids.len()])?;
        Ok(left > 0)
    }

    /// Whether there is room for a text behind the prompt of a task that generates.
    pub(super) fn check_line(&self, request: &Request<'_>) -> Result<(), Error> {
        let loaded = self.loaded(request.task)?;
        limits(&loaded.task)?;
        request.sampling.check()?;
        request.text.check(self.limit(loaded))
    }

    /// Chooses the next token of the text in place `place` by the scores number `scored`. Whether the text ends.
    pub(super) fn choose(
        &mut self,
        place: usize,
        scored: usize,
        hear: Ear<'_>,
    ) -> Result<bool, Error> {
        let Generation {
            allowed,
            pieces,
            stops,
            lines,
            ..
        } = self.generation.as_mut().ok_or(Error::NoPast)?;
        let line = lines.get_mut(place).ok_or(Error::NoPast)?;
        let loaded = self.tasks.get(line.task.0).ok_or(Error::NoTask)?;
        let limits = limits(&loaded.task)?;
        let (pieces, guide) = (pieces.as_ref(), loaded.guide.as_ref());
        let guided = guide.zip(pieces).map(|(guide, pieces)| {
            guide.allow(pieces, line.place, line.left, allowed);
            &*allowed
        });
        let scores = self.engine.scores(scored)?;
        let token = line.sampler.next(scores, &line.seen, guided)?;
        let free = Stops::default();
        let stops = guide.map_or(&*stops, |_| &free);
        let mut ends = limits.stops.contains(&token);
        if !ends {
            line.seen.push(token);
            line.left -= 1;
            ends = hear(Part::Token(token)) || line.left == 0;
            if let Some(pieces) = pieces {
                let piece = line.place.advance(pieces, guide, token);
                let mut enough = false;
                let mut hear = |text: &str| enough |= hear(Part::Piece(text));
                let stopped = line.stream.push(piece, stops, &mut hear);
                if enough {
                    line.stream.end_here();
                }
                let whole = guide.is_some_and(|guide| guide.is_whole(line.place));
                ends |= stopped || enough || whole;
            }
        }
        if ends {
            line.stream.end(stops, &mut |rest| {
                hear(Part::Piece(rest));
            });
        }
        Ok(ends)
    }

    /// Runs the last tokens of the first `live` texts at once, and scores what comes behind each.
    pub(super) fn step(&mut self, live: usize) -> Result<(), Error> {
        let generation = self.generation.as_ref().ok_or(Error::NoPast)?;
        let History { pasts, next } = self.history.as_mut().ok_or(Error::NoPast)?;
        self.room.clear(self.image.description());
        for line in generation.lines.iter().take(live) {
            let token = line.seen.last().ok_or(Error::NoPast)?;
            next.set(&[*token], &[], []);
            self.room.push(&self.image, None, next)?;
        }
        let pasts = pasts.get_mut(..live).ok_or(Error::NoPast)?;
        self.engine.go_on(self.room.input(), pasts)?;
        self.engine.score(&self.room.lengths)
    }

    /// Puts two texts in each other's places.
    pub(super) fn swap_lines(&mut self, one: usize, other: usize) {
        if let (Some(generation), Some(history)) = (&mut self.generation, &mut self.history) {
            generation.lines.swap(one, other);
            history.pasts.swap(one, other);
        }
    }
}

/// When the texts of a task end.
pub(super) fn limits(task: &Task) -> Result<&Limits, Error> {
    match &task.head {
        Head::Text(limits) => Ok(limits),
        Head::Rows(_) | Head::Words(_) => Err(Error::NoText {
            task: task.id.clone(),
        }),
    }
}

/// Whether a text of `left` tokens can keep a constraint.
pub(super) fn enough(guide: &Guide, left: usize) -> Result<(), Error> {
    let fewest = guide.fewest();
    match fewest <= left {
        true => Ok(()),
        false => Err(Error::Constraint {
            reason: format!("the shortest text has {fewest} tokens, and {left} may come"),
        }),
    }
}
