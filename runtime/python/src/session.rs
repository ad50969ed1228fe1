//! Sessions and their tasks.

use std::{path::PathBuf, sync::Mutex};

use numpy::{IntoPyArray, PyArray1};
use preface_bundle::Inputs;
use preface_runtime::{
    Encoded, Options, Overlength, Sampling, Session as Runtime, TaskHandle, Threads, TokenizerUse,
    Trust, unix_now,
};
use pyo3::{prelude::*, types::PyDict};

use crate::{
    answer::{Answer, Found},
    failure::Failure,
    image::Image,
    tokens::{self, Tokens},
};

/// A base ready to run, with the tasks loaded onto it.
#[pyclass(frozen, module = "preface")]
pub struct Session(Mutex<Runtime>);

/// What a loaded task is asked and answers.
#[pyclass(frozen, get_all, module = "preface")]
pub struct Task {
    name: String,
    kind: &'static str,
    inputs: u8,
    labels: Vec<String>,
}

impl Session {
    /// Does `work` without the interpreter's lock, one thread at a time.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Runtime) -> Result<T, Failure> + Send,
    ) -> Result<T, Failure> {
        py.detach(|| work(&mut *self.0.lock().map_err(|_| Failure::Poisoned)?))
    }
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
    #[pyo3(signature = (image, *, max_tokens = None, truncate = false, tokenizer_at_open = true, threads = 1, pinned = false))]
    fn new(
        py: Python<'_>,
        image: &Bound<'_, Image>,
        max_tokens: Option<usize>,
        truncate: bool,
        tokenizer_at_open: bool,
        threads: u8,
        pinned: bool,
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
        if !(1..=64).contains(&threads) {
            return Err(Failure::Threads { threads });
        }
        let options = Options {
            max_tokens,
            overlength,
            tokenizer,
            threads: Threads {
                count: threads.into(),
                pinned,
            },
        };
        let Image(image) = image.get();
        let session = py.detach(|| Runtime::open(image, options))?;
        Ok(Self(Mutex::new(session)))
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
        let texts = requests
            .into_iter()
            .map(|(task, tokens)| Ok((task, tokens::text(&tokens)?)));
        let texts = texts.collect::<PyResult<Vec<(String, Encoded)>>>()?;
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

    #[pyo3(signature = (*, temperature = 0.0, top_k = None, top_p = None, repetition_penalty = 1.0, seed = 0))]
    fn sample(
        &self,
        py: Python<'_>,
        temperature: f32,
        top_k: Option<usize>,
        top_p: Option<f32>,
        repetition_penalty: f32,
        seed: u64,
    ) -> Result<(), Failure> {
        let sampling = Sampling {
            temperature,
            top_k,
            top_p,
            repetition_penalty,
            seed,
        };
        self.with(py, |session| Ok(session.sample(sampling)?))
    }

    fn generate<'py>(
        &self,
        py: Python<'py>,
        task: &str,
        tokens: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArray1<u32>>> {
        let text = tokens::text(tokens)?;
        let said = self.with(py, |session| {
            activate(session, task)?;
            Ok(session.generate(&text, |_| {})?.to_vec())
        })?;
        Ok(said.into_pyarray(py))
    }
}
