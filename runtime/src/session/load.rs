//! Putting a task beside the others of a session.

use std::{mem, slice};

use preface_bundle::{Pooling, VerifiedBundle};

use super::{Loaded, Session, TaskHandle};
use crate::{
    Error,
    engine::Past,
    task::{Form, Head, KeyValues, Limits, Measure, Place, Task, pool},
    text::Encoded,
};

impl Session {
    /// Dequantises and expands the task of a verified bundle, and puts it beside the others; one of the same name is
    /// replaced and keeps its handle. The active task stays the active one.
    ///
    /// # Errors
    /// When the bundle was made for another base or tokenizer, or needs a form or a head that is not supported.
    pub fn load(&mut self, bundle: &VerifiedBundle<'_>) -> Result<TaskHandle, Error> {
        self.add(Task::of_bundle(bundle)?)
    }

    pub(super) fn add(&mut self, mut task: Task) -> Result<TaskHandle, Error> {
        task.check_ids(self.image.description())?;
        if let Form::KeyValues(prefix) = &mut task.form {
            let placed = prefix.take_places(&self.engine.decoder_layers());
            placed.map_err(|reason| Error::Task {
                task: task.id.clone(),
                reason,
            })?;
        }
        task.check(self.image.description(), self.engine.kind())?;
        let past = match &mut task.form {
            Form::Embeddings { .. } => self.engine.prepare(KeyValues::default())?,
            Form::KeyValues(prefix) => self.engine.prepare(KeyValues {
                layers: mem::take(&mut prefix.layers),
                ..*prefix
            })?,
            Form::Ran { .. } => unreachable!("a task is added once"),
        };
        let past = self.ran(&mut task, past)?;
        self.set_mask(&mut task)?;
        if self.encodes_first() {
            self.make_history(1)?;
        }
        match &mut task.head {
            Head::Rows(head) if head.measure == Measure::Cosine => {
                let prototypes = self.prototypes(&task.labels)?;
                head.set_prototypes(prototypes, self.image.description().hidden);
            }
            Head::Words(words) => {
                let fits = words.fit(self.engine.vocabulary().ok_or(Error::NoLogits)?);
                fits.map_err(|reason| Error::Task {
                    task: task.id.clone(),
                    reason,
                })?;
            }
            Head::Text(Limits { most_tokens, .. }) => {
                let most = *most_tokens;
                self.make_room_to_generate(most)?;
            }
            Head::Rows(_) => {}
        }
        let place = self
            .tasks
            .iter()
            .position(|loaded| loaded.task.id == task.id);
        let numbers = match &task.head {
            Head::Rows(head) => head.most_numbers().max(task.labels.len()),
            _ => task.labels.len(),
        };
        let before = task.before();
        let words = self.engine.most_rows().unwrap_or(0);
        self.room.expect(numbers, words * before.len());
        let loaded = Loaded {
            task,
            past,
            withdrawn: false,
            guide: None,
            before,
        };
        match place {
            Some(place) => self.tasks[place] = loaded,
            None => self.tasks.push(loaded),
        }
        Ok(TaskHandle(place.unwrap_or(self.tasks.len() - 1)))
    }

    /// Puts the base's mask token into the template of a task that asks for it.
    fn set_mask(&self, task: &mut Task) -> Result<(), Error> {
        if !task.template.is_masked() {
            return Ok(());
        }
        let encoder = self.encoder()?;
        let mask = self.image.description().mask;
        let mask = mask.and_then(|mask| encoder.token(mask));
        let mask = mask.ok_or_else(|| Error::Task {
            task: task.id.clone(),
            reason: "its template asks for a mask token, and the base has none".into(),
        })?;
        task.template.set_mask(&mask);
        Ok(())
    }

    /// Runs a prompt that stands before its text once and keeps its keys and values, where the base's tokens see only
    /// those before them: the prompt then costs nothing with each text.
    fn ran(&mut self, task: &mut Task, start: Past) -> Result<Past, Error> {
        let Form::Embeddings {
            tokens,
            place: Place::BeforeText,
            ..
        } = task.form
        else {
            return Ok(start);
        };
        let room = (!self.encodes_first()).then(|| self.engine.room(Some(tokens)));
        let Some(mut past) = room.flatten() else {
            return Ok(start);
        };
        past.begin(&start)?;
        self.room.clear(self.image.description());
        self.room
            .push(&self.image, Some(&task.form), &Encoded::default())?;
        self.engine
            .go_on(self.room.input(), slice::from_mut(&mut past))?;
        task.form = Form::Ran { tokens };
        Ok(past)
    }

    /// For each label the mean of the hidden rows that the base without a prompt gives its name, `[labels, hidden]`.
    fn prototypes(&mut self, labels: &[String]) -> Result<Vec<f32>, Error> {
        let hidden = self.image.description().hidden;
        let positions = self.image.description().max_positions;
        let mut prototypes = vec![0.0; labels.len() * hidden];
        for (label, prototype) in labels.iter().zip(prototypes.chunks_exact_mut(hidden)) {
            let spoken = label.replace(['-', '_', '.'], " ");
            let name = self.encoder()?.texts(&spoken, None)?;
            name.check(positions.unwrap_or(usize::MAX))?;
            self.run_alone(&name)?;
            pool(Pooling::Mean, self.engine.hidden_rows(), prototype);
        }
        Ok(prototypes)
    }
}
