//! Token ids to and from numpy.

use std::iter;

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use preface_runtime::Encoded;
use pyo3::{intern, prelude::*, types::IntoPyDict};

use crate::failure::Failure;

/// A text, or a pair of them, as the base reads it.
#[pyclass(frozen, module = "preface")]
pub struct Tokens(pub Encoded);

#[pymethods]
impl Tokens {
    #[new]
    #[pyo3(signature = (ids, types = None, words = None))]
    fn new(
        ids: &Bound<'_, PyAny>,
        types: Option<&Bound<'_, PyAny>>,
        words: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let ids = natural("token", integers(ids)?)?;
        let types = natural("token type", optional(types)?)?;
        if !types.is_empty() && types.len() != ids.len() {
            let found = format!("{} token types for {} tokens", types.len(), ids.len());
            return Err(pyo3::exceptions::PyValueError::new_err(found));
        }
        let words = optional(words)?;
        let mut text = Encoded::with_room(ids.len());
        let places = words.into_iter().map(|place| usize::try_from(place).ok());
        text.set(&ids, &types, places);
        Ok(Self(text))
    }

    #[getter]
    fn ids<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u32>> {
        PyArray1::from_slice(py, self.0.ids())
    }

    #[getter]
    fn types<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u32>> {
        let types = self.0.types().iter().copied().chain(iter::repeat(0));
        let types: Vec<u32> = types.take(self.0.len()).collect();
        types.into_pyarray(py)
    }

    #[getter]
    fn words<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i32>> {
        let words = self.0.words().iter().map(|place| number(*place));
        words.collect::<Vec<i32>>().into_pyarray(py)
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }
}

/// A place or a class for numpy: -1 where there is none.
pub fn number(place: Option<usize>) -> i32 {
    place.map_or(-1, |place| i32::try_from(place).unwrap_or(i32::MAX))
}

/// `Tokens`, or token ids of one text.
pub fn text(tokens: &Bound<'_, PyAny>) -> PyResult<Encoded> {
    if let Ok(tokens) = tokens.cast::<Tokens>() {
        return Ok(tokens.get().0.clone());
    }
    let ids = natural("token", integers(tokens)?)?;
    Ok(Encoded::of_ids(&ids))
}

fn optional(array: Option<&Bound<'_, PyAny>>) -> PyResult<Vec<i64>> {
    array.map_or(Ok(Vec::new()), integers)
}

/// The numbers of a one-dimensional array of integers of any size.
fn integers(array: &Bound<'_, PyAny>) -> PyResult<Vec<i64>> {
    let py = array.py();
    let numpy = py.import(intern!(py, "numpy"))?;
    let array = numpy.call_method1(intern!(py, "asarray"), (array,))?;
    if array.getattr(intern!(py, "size"))?.extract::<usize>()? == 0 {
        return Ok(Vec::new());
    }
    // Those of 64 bits without a sign that are too large become negative, which no id is.
    let only_integers = [("casting", "same_kind")].into_py_dict(py)?;
    let array = array.call_method(intern!(py, "astype"), ("int64",), Some(&only_integers))?;
    let array: PyReadonlyArray1<'_, i64> = array.extract()?;
    Ok(array.as_array().iter().copied().collect())
}

fn natural(what: &'static str, numbers: Vec<i64>) -> Result<Vec<u32>, Failure> {
    let natural = |number| u32::try_from(number).map_err(|_| Failure::Token { what, number });
    numbers.into_iter().map(natural).collect()
}
