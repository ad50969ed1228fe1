//! The verbs of the program, one file each.

pub mod activate;
pub mod bench;
#[cfg(feature = "host")]
pub mod check;
#[cfg(feature = "compile")]
pub mod compile;
pub mod confirm;
#[cfg(feature = "host")]
pub mod demo;
pub mod doctor;
#[cfg(feature = "host")]
pub mod eval;
pub mod inspect;
pub mod install;
#[cfg(feature = "host")]
pub mod keygen;
pub mod list;
#[cfg(feature = "host")]
pub mod pack;
pub mod rollback;
pub mod run;
#[cfg(feature = "host")]
pub mod train;
pub mod trust;
pub mod verify;
