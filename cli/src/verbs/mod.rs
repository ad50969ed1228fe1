//! The verbs of the program, one file each.

pub mod bench;
#[cfg(feature = "host")]
pub mod check;
#[cfg(feature = "compile")]
pub mod compile;
#[cfg(feature = "host")]
pub mod demo;
pub mod doctor;
#[cfg(feature = "host")]
pub mod eval;
#[cfg(feature = "host")]
pub mod export;
#[cfg(feature = "host")]
pub mod import;
pub mod inspect;
#[cfg(feature = "host")]
pub mod keygen;
#[cfg(feature = "host")]
pub mod pack;
pub mod run;
#[cfg(feature = "host")]
pub mod train;
pub mod trust;
pub mod verify;
