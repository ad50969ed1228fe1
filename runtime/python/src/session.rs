//! Sessions and their tasks.

use std::{
    ops::ControlFlow,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    thread::{self, ThreadId},
};

use numpy::{IntoPyArray, PyArray1};
use preface_bundle::Inputs;
use preface_runtime::{
    Constraint, Encoded, Options, Overlength, Part, Request, Sampling, Session as Runtime,
    TaskHandle, Threads, TokenizerUse, Trust,
    store::{Follower, Store},
    unix_now,
};
use pyo3::{exceptions::PyTypeError, intern, prelude::*, types::PyDict};

use crate::{
    answer::{Answer, Found},
    failure::Failure,
    image::Image,
    listener::Listener,
    tokens::{self, Tokens},
};

/// A base ready to run, with the tasks loaded onto it.
#[pyclass(frozen, module = "preface")]
pub struct Session {
    runtime: Mutex<Runtime>,
    /// The store that tasks are from.
    follower: Mutex<Option<Follower>>,
    /// The thread whose function hears a text that is being generated.
    hearing: Mutex<Option<ThreadId>>,
}

/// What a loaded task is asked and answers.
#[pyclass(frozen, get_all, module = "preface")]
pub struct Task {
    name: String,
    kind: &'static str,
    inputs: u8,
    labels: Vec<String>,
}

/// A task of a store whose active bundle is another than before.
#[pyclass(frozen, get_all, module = "preface")]
pub struct Served {
    name: String,
    bundle: Option<String>,
    notes: Vec<String>,
}

impl Session {
    /// Does `work` without the interpreter's lock, one thread at a time.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Runtime) -> Result<T, Failure> + Send,
    ) -> Result<T, Failure> {
        if *self.hearing() == Some(thread::current().id()) {
            return Err(Failure::Hearing);
        }
        py.detach(|| work(&mut *self.runtime.lock().map_err(|_| Failure::Poisoned)?))
    }

    /// Calls a function of the caller's while this thread is using the session, which it then cannot use.
    pub fn while_hearing<T>(&self, call: impl FnOnce() -> T) -> T {
        *self.hearing() = Some(thread::current().id());
        let returned = call();
        *self.hearing() = None;
        returned
    }

    fn hearing(&self) -> MutexGuard<'_, Option<ThreadId>> {
        // Whatever panicked, the thread is one or none.
        self.hearing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tasks with what they are asked about.
fn encoded(requests: Vec<(String, Bound<'_, PyAny>)>) -> PyResult<Vec<(String, Encoded)>> {
    let texts = requests.into_iter();
    let texts = texts.map(|(task, tokens)| Ok((task, tokens::text(&tokens)?)));
    texts.collect()
}

/// A shape as JSON.
fn json(shape: &Bound<'_, PyAny>) -> PyResult<String> {
    let py = shape.py();
    let dumps = py
        .import(intern!(py, "json"))?
        .getattr(intern!(py, "dumps"))?;
    dumps.call1((shape,))?.extract()
}

fn named(session: &Runtime, task: &str) -> Result<TaskHandle, Failure> {
    let found = session.tasks().find(|(_, name)| *name == task);
    found
        .map(|(handle, _)| handle)
        .ok_or_else(|| Failure::Task {
            task: task.to_owned(),
            loaded: session.tasks().map(|(_, name)| name.to_owned()).collect(),
        })
}

fn activate(session: &mut Runtime, task: &str) -> Result<(), Failure> {
    let handle = named(session, task)?;
    Ok(session.activate(handle)?)
}

#[pymethods]
impl Session {
    #[new]
    #[pyo3(signature = (image, *, max_tokens = None, truncate = false, tokenizer_at_open = true, threads = 1, pinned = false, texts = 1))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        image: &Bound<'_, Image>,
        max_tokens: Option<usize>,
        truncate: bool,
        tokenizer_at_open: bool,
        threads: u8,
        pinned: bool,
        texts: u8,
    ) -> Result<Self, Failure> {
        let overlength = if truncate {
            Overlength::Truncate
        } else {
            Overlength::Refuse
        };
        let tokenizer = if tokenizer_at_open {
            TokenizerUse::AtOpen
        } else {
            TokenizerUse::WithFirstText
        };
        for (what, number) in [("threads", threads), ("texts", texts)] {
            if !(1..=64).contains(&number) {
                return Err(Failure::Number { what, number });
            }
        }
        let options = Options {
            max_tokens,
            overlength,
            tokenizer,
            threads: Threads {
                count: threads.into(),
                pinned,
            },
            texts: texts.into(),
        };
        let Image(image) = image.get();
        let session = py.detach(|| Runtime::open(image, options))?;
        Ok(Self {
            runtime: Mutex::new(session),
            follower: Mutex::default(),
            hearing: Mutex::default(),
        })
    }

    fn load(&self, py: Python<'_>, bundle: PathBuf, trust: PathBuf) -> Result<String, Failure> {
        self.with(py, |session| {
            let trust = Trust::read(&trust)?;
            let loaded = session.load_file(&bundle, &trust, unix_now())?;
            let mut tasks = session.tasks().filter(|(task, _)| *task == loaded);
            Ok(tasks
                .next()
                .map_or_else(String::new, |(_, name)| name.to_owned()))
        })
    }

    fn follow(
        &self,
        py: Python<'_>,
        store: PathBuf,
        trust: PathBuf,
    ) -> Result<Vec<Served>, Failure> {
        self.with(py, |session| {
            let mut following = self.follower.lock().map_err(|_| Failure::Poisoned)?;
            let known = following
                .take()
                .filter(|follower| follower.is_of(&store, &trust));
            let follower = match known {
                Some(follower) => follower,
                None => Follower::new(Store::at(&store), Trust::read(&trust)?),
            };
            let served = following.insert(follower).follow(session)?;
            let served = served.into_iter().map(|served| Served {
                name: served.task,
                bundle: served.loaded.map(|(_, id)| id.to_string()),
                notes: served.notes.iter().map(ToString::to_string).collect(),
            });
            Ok(served.collect())
        })
    }

    #[getter]
    fn tasks<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let tasks = self.with(py, |session| {
            let task = |(handle, name): (TaskHandle, &str)| {
                let plan = session.plan(handle)?;
                Some(Task {
                    name: name.to_owned(),
                    kind: plan.kind.name(),
                    inputs: if plan.inputs == Inputs::Pair { 2 } else { 1 },
                    labels: session.labels(handle).to_vec(),
                })
            };
            Ok(session.tasks().filter_map(task).collect::<Vec<Task>>())
        })?;
        let loaded = PyDict::new(py);
        for task in tasks {
            loaded.set_item(task.name.clone(), Bound::new(py, task)?)?;
        }
        Ok(loaded)
    }

    #[pyo3(signature = (task, text, second = None))]
    fn answer(
        &self,
        py: Python<'_>,
        task: &str,
        text: &str,
        second: Option<&str>,
    ) -> Result<Answer, Failure> {
        let found = self.with(py, |session| {
            activate(session, task)?;
            Found::of(session.answer(text, second)?)
        })?;
        Ok(found.into())
    }

    #[pyo3(signature = (task, text, second = None))]
    fn encode(
        &self,
        py: Python<'_>,
        task: &str,
        text: &str,
        second: Option<&str>,
    ) -> Result<Tokens, Failure> {
        let encoded = self.with(py, |session| {
            activate(session, task)?;
            Ok(session.encode(text, second)?)
        })?;
        Ok(Tokens(encoded))
    }

    fn answer_tokens(
        &self,
        py: Python<'_>,
        task: &str,
        tokens: &Bound<'_, PyAny>,
    ) -> PyResult<Answer> {
        let text = tokens::text(tokens)?;
        let found = self.with(py, |session| {
            activate(session, task)?;
            Found::of(session.answer_encoded(&text)?)
        })?;
        Ok(found.into())
    }

    fn answer_all(
        &self,
        py: Python<'_>,
        requests: Vec<(String, Bound<'_, PyAny>)>,
    ) -> PyResult<Vec<Answer>> {
        let texts = encoded(requests)?;
        let found = self.with(py, |session| {
            let requests = texts
                .iter()
                .map(|(task, text)| Ok((named(session, task)?, text)));
            let requests = requests.collect::<Result<Vec<_>, Failure>>()?;
            let mut found = Vec::with_capacity(requests.len());
            session.answer_all(&requests, |_, answer| found.push(Found::of(answer)))?;
            found.into_iter().collect::<Result<Vec<Found>, Failure>>()
        })?;
        Ok(found.into_iter().map(Answer::from).collect())
    }

    #[pyo3(signature = (*, temperature = 0.0, top_k = None, top_p = None, repetition_penalty = 1.0, seed = 0, stops = None, most_tokens = None))]
    #[allow(clippy::too_many_arguments)]
    fn set_generation(
        &self,
        py: Python<'_>,
        temperature: f32,
        top_k: Option<usize>,
        top_p: Option<f32>,
        repetition_penalty: f32,
        seed: u64,
        stops: Option<Vec<String>>,
        most_tokens: Option<usize>,
    ) -> Result<(), Failure> {
        let sampling = Sampling {
            temperature,
            top_k,
            top_p,
            repetition_penalty,
            seed,
        };
        self.with(py, |session| {
            session.sample(sampling)?;
            session.stop_at(&stops.unwrap_or_default())?;
            Ok(session.at_most(most_tokens)?)
        })
    }

    #[pyo3(signature = (task, *, labels = None, shape = None))]
    fn constrain(
        &self,
        py: Python<'_>,
        task: &str,
        labels: Option<Vec<String>>,
        shape: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let shape = shape.map(json).transpose()?;
        let constraint = match (labels, shape) {
            (None, None) => None,
            (Some(labels), None) => Some(Constraint::labels(&labels).map_err(Failure::from)?),
            (None, Some(shape)) => Some(Constraint::shape(&shape).map_err(Failure::from)?),
            (Some(_), Some(_)) => {
                let both = "a constraint has labels or a shape, not both";
                return Err(PyTypeError::new_err(both));
            }
        };
        self.with(py, |session| {
            let task = named(session, task)?;
            Ok(session.constrain(task, constraint.as_ref())?)
        })?;
        Ok(())
    }

    #[pyo3(signature = (task, tokens, hear = None))]
    fn generate<'py>(
        &self,
        py: Python<'py>,
        task: &str,
        tokens: &Bound<'py, PyAny>,
        hear: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyArray1<u32>>> {
        let text = tokens::text(tokens)?;
        let mut listener = Listener::new(self, hear);
        let said = self.with(py, |session| {
            activate(session, task)?;
            let said = session.generate(&text, |token| listener.hear((token,)))?;
            Ok(said.to_vec())
        })?;
        listener.finish()?;
        Ok(said.into_pyarray(py))
    }

    #[pyo3(signature = (requests, hear = None))]
    fn generate_all(
        &self,
        py: Python<'_>,
        requests: Vec<(String, Bound<'_, PyAny>)>,
        hear: Option<Py<PyAny>>,
    ) -> PyResult<Vec<String>> {
        let texts = encoded(requests)?;
        let mut listener = Listener::new(self, hear);
        let said = self.with(py, |session| {
            let sampling = session.sampling();
            let requests = texts.iter().map(|(task, text)| {
                Ok(Request {
                    task: named(session, task)?,
                    text,
                    sampling,
                })
            });
            let requests = requests.collect::<Result<Vec<_>, Failure>>()?;
            let mut said = vec![String::new(); requests.len()];
            session.generate_all(&requests, |index, part| match part {
                Part::Piece(piece) => listener.hear((index, piece)),
                Part::End(text) => {
                    text.clone_into(&mut said[index]);
                    ControlFlow::Continue(())
                }
                Part::Token(_) => ControlFlow::Continue(()),
            })?;
            Ok(said)
        })?;
        listener.finish()?;
        Ok(said)
    }

    #[pyo3(signature = (task, tokens, hear))]
    fn stream(
        &self,
        py: Python<'_>,
        task: &str,
        tokens: &Bound<'_, PyAny>,
        hear: Py<PyAny>,
    ) -> PyResult<String> {
        let text = tokens::text(tokens)?;
        let mut listener = Listener::new(self, Some(hear));
        let said = self.with(py, |session| {
            activate(session, task)?;
            let said = session.stream(&text, |piece| listener.hear((piece,)))?;
            Ok(said.to_owned())
        })?;
        listener.finish()?;
        Ok(said)
    }
}
