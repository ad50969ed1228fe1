//! The runtime for programs in Python: what `preface.pyi` declares.

mod answer;
mod failure;
// Maps files: see the SAFETY comment there.
#[allow(unsafe_code)]
mod image;
mod listener;
mod session;
mod tokens;

/// A frozen base model in a mapped image, and narrow tasks from signed bundles.
#[pyo3::pymodule]
mod preface {
    #[pymodule_export]
    use super::{
        answer::Answer, failure::Error, image::Image, session::Served, session::Session,
        session::Task, tokens::Tokens,
    };
    #[pymodule_export]
    #[allow(non_upper_case_globals)]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
