//! A base image with verified bundles on it: what `run` and `bench` begin with.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use clap::builder::RangedU64ValueParser;
use preface_bundle::Inputs;
use preface_runtime::{
    Answer, Encoded, Error, Image, Options, Overlength, Part, Request, Sampling, Session,
    TaskHandle, Threads, TokenizerUse, Trust,
    store::{Follower, Store},
    unix_now,
};

use crate::{heap, output::Output};

/// The files that a session is opened from.
#[derive(clap::Args)]
pub struct Files {
    /// Base image, made by `preface compile`.
    #[arg(long, value_name = "IMAGE")]
    pub base: PathBuf,
    /// Bundles of the tasks; several may follow.
    #[arg(long = "bundle", value_name = "FILE", required_unless_present = "store", num_args = 1..)]
    pub bundles: Vec<PathBuf>,
    /// The store whose active bundles are the tasks, in place of --bundle.
    #[arg(long, value_name = "DIR", conflicts_with = "bundles")]
    pub store: Option<PathBuf>,
    /// Trust store with the keys that may sign them.
    #[arg(long, value_name = "FILE")]
    pub trust: PathBuf,
    /// Most tokens of a text, special tokens included.
    #[arg(long, value_name = "N", value_parser = count(1_000_000))]
    pub max_tokens: Option<usize>,
    /// Cut a text that is too long instead of refusing it.
    #[arg(long)]
    pub truncate: bool,
    /// Threads that answer; answers do not depend on how many.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count(64))]
    pub threads: usize,
    /// Keep each thread but the first on a processor of its own.
    #[arg(long)]
    pub pin: bool,
    /// Texts that are generated at once, each with memory for its own keys and values; as many lines are read before
    /// one is answered.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count(64))]
    pub together: usize,
}

/// Reads a number on the command line, from 1 to `most`.
pub fn count(most: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=most)
}

/// What happens to a text that is too long, where `--truncate` is given or not.
pub fn overlength(truncate: bool) -> Overlength {
    match truncate {
        true => Overlength::Truncate,
        false => Overlength::Refuse,
    }
}

/// A session with its tasks in the order of their bundles.
pub struct Tasks {
    pub image: Image,
    pub session: Session,
    pub handles: Vec<TaskHandle>,
    /// The store that they are from.
    pub store: Option<Follower>,
    /// What whoever runs the device should hear of that.
    pub notes: Vec<String>,
}

impl Files {
    /// Maps the image, and verifies and loads every bundle.
    ///
    /// # Errors
    /// When a file cannot be read, a bundle is not verified, two bundles have one task, or the parts do not fit.
    pub fn open(&self, tokenizer: TokenizerUse) -> anyhow::Result<Tasks> {
        let base = self.base.display();
        ensure!(
            !self.base.is_dir(),
            "{base} is a base folder; compile it first: preface compile {base} -o {base}.base"
        );
        let options = Options {
            max_tokens: self.max_tokens,
            overlength: overlength(self.truncate),
            tokenizer,
            threads: Threads {
                count: self.threads,
                pinned: self.pin,
            },
            texts: self.together,
        };
        heap::share();
        let image = crate::image::open(&self.base)?;
        let session = Session::open(&image, options)?;
        let trust = Trust::read(&self.trust)?;
        let mut tasks = Tasks {
            image,
            session,
            handles: Vec::new(),
            store: None,
            notes: Vec::new(),
        };
        match &self.store {
            Some(folder) => {
                tasks.store = Some(Follower::new(Store::at(folder), trust));
                tasks.follow()?;
            }
            None => tasks.handles = self.load_bundles(&trust, &mut tasks.session)?,
        }
        heap::trim();
        Ok(tasks)
    }

    fn load_bundles(
        &self,
        trust: &Trust,
        session: &mut Session,
    ) -> anyhow::Result<Vec<TaskHandle>> {
        let mut handles = Vec::new();
        for path in &self.bundles {
            let handle = session.load_file(path, trust, unix_now());
            let handle = match handle {
                Err(error) if !handles.is_empty() && !path.exists() => Err(error).context(
                    "every word that follows --bundle is a file: a text stands before it, or behind --",
                ),
                handle => Ok(handle?),
            }?;
            if let Some(place) = handles.iter().position(|&other| other == handle) {
                bail!(
                    "{} and {} both have the task {}; give one of them",
                    self.bundles[place].display(),
                    path.display(),
                    name(session, handle)
                );
            }
            handles.push(handle);
        }
        Ok(handles)
    }
}

impl Tasks {
    /// Takes over what the store has made active since the last time, and notes what of it may not be used. Whether
    /// anything was loaded.
    ///
    /// # Errors
    /// When the store cannot be believed, or has no task that can be served.
    pub fn follow(&mut self) -> anyhow::Result<bool> {
        let Some(store) = &mut self.store else {
            return Ok(false);
        };
        let served = store.follow(&mut self.session)?;
        self.notes.clear();
        for task in &served {
            let name = &task.task;
            let notes = task.notes.iter().map(|note| format!("task {name}: {note}"));
            self.notes.extend(notes);
            let known = self.session.tasks().find(|(_, other)| other == name);
            let known = known.map(|(handle, _)| handle);
            match task.loaded {
                Some((handle, id)) => {
                    if !task.notes.is_empty() {
                        self.notes.push(format!("task {name}: bundle {id} serves"));
                    }
                    if !self.handles.contains(&handle) {
                        self.handles.push(handle);
                    }
                }
                None => {
                    let note = format!("task {name} is not served: install a bundle for it");
                    self.notes.push(note);
                    self.handles.retain(|&handle| Some(handle) != known);
                }
            }
        }
        if self.handles.is_empty() {
            let why = self.notes.iter().map(|note| format!("; {note}"));
            bail!(
                "no task of {} can be served{}",
                store.folder().display(),
                why.collect::<String>()
            );
        }
        Ok(!served.is_empty())
    }

    /// Says what of the store is not used.
    pub fn note_store(&self, output: &Output) {
        self.notes.iter().for_each(|note| output.note(note));
    }

    /// Says what memory the session takes at most, where that is known.
    pub fn note_memory(&self, output: &Output) {
        if let Some(bytes) = self.session.ceiling_bytes() {
            let mebibytes = bytes as f64 / f64::from(1 << 20);
            output.note(format_args!(
                "memory: at most {mebibytes:.1} MiB beside the image and the program"
            ));
        }
    }
}

/// The name of a loaded task.
pub fn name(session: &Session, handle: TaskHandle) -> &str {
    let found = session.tasks().find(|&(other, _)| other == handle);
    found.map_or("", |(_, name)| name)
}

/// What tasks generate of texts that were encoded before, as many at once as the session has room for; `after` is called
/// behind each.
///
/// # Errors
/// As [`Session::generate_all`].
pub fn generate_all(
    session: &mut Session,
    texts: &[(TaskHandle, Encoded)],
    sampling: Sampling,
    mut after: impl FnMut(),
) -> Result<Vec<String>, Error> {
    let requests = texts.iter().map(|(task, text)| Request {
        task: *task,
        text,
        sampling,
    });
    let requests: Vec<Request<'_>> = requests.collect();
    let mut generated = vec![String::new(); texts.len()];
    session.generate_all(&requests, |index, part| {
        if let Part::End(text) = part {
            text.clone_into(&mut generated[index]);
            after();
        }
    })?;
    Ok(generated)
}

/// What a task is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// The text, or the first of a pair.
    pub first: String,
    /// The second of a pair.
    pub second: Option<String>,
}

impl Text {
    /// Reads a line: a JSON object with "text" and for pairs "text2", or with "tokens"; or the text itself, in which a
    /// tab parts a pair. What is for pairs alone is passed over where one text is read.
    ///
    /// # Errors
    /// When the line is a JSON object of something else, or one of the "tokens" is not one word.
    pub fn of_line(line: &str, inputs: Inputs) -> anyhow::Result<Self> {
        let is_pair = inputs == Inputs::Pair;
        let object = line.trim_start().starts_with('{');
        let value: Option<serde_json::Value> =
            object.then(|| serde_json::from_str(line).ok()).flatten();
        if let Some(value) = value {
            let field = |name| Some(value.get(name)?.as_str()?.to_owned());
            let first = match field("text") {
                Some(text) => text,
                None => words(&value["tokens"])?,
            };
            return Ok(Self {
                first,
                second: field("text2").filter(|_| is_pair),
            });
        }
        Ok(match line.split_once('\t').filter(|_| is_pair) {
            Some((first, second)) => Self {
                first: first.to_owned(),
                second: Some(second.to_owned()),
            },
            None => Self {
                first: line.to_owned(),
                second: None,
            },
        })
    }

    /// It as the active task reads it.
    ///
    /// # Errors
    /// As [`Session::encode`].
    pub fn encode(&self, session: &Session) -> Result<Encoded, Error> {
        session.encode(&self.first, self.second.as_deref())
    }

    /// Lets the active task answer.
    ///
    /// # Errors
    /// As [`Session::answer`].
    pub fn ask<'a>(&self, session: &'a mut Session) -> Result<Answer<'a>, Error> {
        session.answer(&self.first, self.second.as_deref())
    }
}

/// Words with a space between them.
fn words(tokens: &serde_json::Value) -> anyhow::Result<String> {
    let tokens = tokens.as_array().context(NO_TEXT)?.iter();
    let tokens: Option<Vec<&str>> = tokens.map(serde_json::Value::as_str).collect();
    let tokens = tokens.context(NO_TEXT)?;
    let is_word = |token: &str| !token.is_empty() && !token.contains(char::is_whitespace);
    if let Some(token) = tokens.iter().find(|token| !is_word(token)) {
        bail!("the token {token:?} is not one word; a token has no space in it and is not empty");
    }
    Ok(tokens.join(" "))
}

/// Why a JSON object is no question.
const NO_TEXT: &str =
    r#"a JSON object asks with "text" or "tokens"; JSON that is a text itself stands in "text""#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_text_or_holds_one_or_two() {
        let table = [
            ("turn on", "turn on", None),
            ("turn on\tnow", "turn on", Some("now")),
            (r#"{"text": "turn on", "label": "x"}"#, "turn on", None),
            (
                r#"{"text": "turn on", "text2": "now"}"#,
                "turn on",
                Some("now"),
            ),
            (r#"{"tokens": ["turn", "on"]}"#, "turn on", None),
            ("{brace", "{brace", None),
        ];
        for (line, first, second) in table {
            let pair = Text::of_line(line, Inputs::Pair).unwrap();
            assert_eq!(
                (&*pair.first, pair.second.as_deref()),
                (first, second),
                "{line}"
            );
            let one = Text::of_line(line, Inputs::One).unwrap();
            let whole = if line.contains('\t') { line } else { first };
            assert_eq!((&*one.first, one.second), (whole, None), "{line}");
        }
        for line in [
            r#"{"texts": "turn on"}"#,
            r#"{"text": 5}"#,
            r#"{"tokens": "on"}"#,
            r#"{"tokens": [5]}"#,
        ] {
            let error = Text::of_line(line, Inputs::One).unwrap_err();
            assert_eq!(error.to_string(), NO_TEXT);
        }
    }

    #[test]
    fn a_token_is_one_word() {
        for token in [
            "",
            " ",
            "New York",
            " on",
            "on\t",
            "on\n",
            "New\u{a0}York",
            "on\u{3000}",
        ] {
            let line = serde_json::json!({"tokens": ["turn", token]}).to_string();
            let error = Text::of_line(&line, Inputs::One).unwrap_err().to_string();
            let expected = format!("the token {token:?} is not one word");
            assert!(error.starts_with(&expected), "{error}");
        }
    }
}
