//! What runs a base image's program: hidden rows from input rows.
//!
//! Everything that names tract lies in this folder. An engine is a variant of [`Engine`]; sessions know no more of it
//! than the functions here.

#[cfg(feature = "compile")]
mod lower;
#[cfg(feature = "plan")]
mod panels;
#[cfg(feature = "plan")]
mod plan;
#[cfg(feature = "plan")]
mod program;

use std::fmt;

#[cfg(feature = "compile")]
pub(crate) use lower::Lowered;

use crate::{Error, Image, task::KeyValues};

/// The version of tract that this build packs with and runs on.
pub(crate) const TRACT: &str = "0.23.9";

/// Whether this processor and this build run the kernel of that name.
pub(crate) fn has_kernel(name: &str) -> bool {
    let kernels = tract_linalg::MmmDispatch::native().runnable();
    kernels.iter().any(|kernel| kernel.name() == name)
}

/// Wraps what tract says.
#[cfg(feature = "plan")]
fn failed(action: &'static str) -> impl FnOnce(tract_core::prelude::TractError) -> Error {
    move |error| Error::Engine {
        action,
        source: error.into(),
    }
}

/// Which engine runs an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EngineKind {
    /// tract's own plan on mapped weights: any graph that tract runs, with its allocations.
    Plan,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Plan => "plan",
        })
    }
}

/// A program made ready to run.
#[derive(Debug)]
pub(crate) enum Engine {
    #[cfg(feature = "plan")]
    Plan(plan::Plan),
}

/// A task's prefix as the engine that prepared it consumes it.
#[derive(Debug)]
pub(crate) enum Prefix {
    #[cfg(feature = "plan")]
    Plan(plan::Prefix),
}

/// One text as rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Input<'a> {
    /// Prompt rows and embedding rows, `[sequence, hidden]`.
    pub rows: &'a [f32],
    /// Token ids of the same rows, `[sequence]`, the placeholder in a prompt's slots.
    pub ids: &'a [i64],
    /// Token types of the same rows, `[sequence]`, 0 in a prompt's slots.
    pub types: &'a [i64],
}

impl Engine {
    /// Makes the program of `image` ready.
    pub fn open(image: &Image) -> Result<Self, Error> {
        image.fits()?;
        #[cfg(feature = "plan")]
        return plan::Plan::open(image).map(Self::Plan);
        #[cfg(not(feature = "plan"))]
        Err(Error::NoEngine {
            path: image.path().to_owned(),
        })
    }

    pub fn kind(&self) -> EngineKind {
        match *self {
            #[cfg(feature = "plan")]
            Self::Plan(_) => EngineKind::Plan,
        }
    }

    /// Bytes of buffers that the engine keeps between runs.
    pub fn arena_bytes(&self) -> usize {
        match *self {
            #[cfg(feature = "plan")]
            Self::Plan(_) => 0,
        }
    }

    /// Lays a prefix out as this engine consumes it; that of a task without one has no layers.
    pub fn prepare(&self, prefix: &KeyValues) -> Result<Prefix, Error> {
        match *self {
            #[cfg(feature = "plan")]
            Self::Plan(ref plan) => plan.prepare(prefix).map(Prefix::Plan),
        }
    }

    /// Runs the program and returns its hidden rows, `[sequence, hidden]`.
    pub fn run(&mut self, input: Input<'_>, prefix: &Prefix) -> Result<&[f32], Error> {
        match (self, prefix) {
            #[cfg(feature = "plan")]
            (Self::Plan(plan), Prefix::Plan(prefix)) => plan.run(input, prefix),
            #[cfg(not(feature = "plan"))]
            (&mut ref engine, _) => match *engine {},
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_pinned_one() {
        let manifest = include_str!("../../../Cargo.toml");
        for name in ["tract-core", "tract-linalg", "tract-onnx"] {
            assert!(
                manifest.contains(&format!("{name} = \"={TRACT}\"")),
                "{name}"
            );
        }
    }

    #[test]
    fn kernels_have_names() {
        assert!(!has_kernel("no such kernel"));
        assert!(has_kernel("generic_f32_4x4"));
    }
}
