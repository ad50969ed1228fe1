//! The device's store of tasks: what is installed, what is refused, and what is active whatever happens meanwhile.

#![allow(clippy::unwrap_used)]

#[path = "install/faults.rs"]
mod faults;
#[path = "install/floors.rs"]
mod floors;
#[path = "install/folder.rs"]
mod folder;
#[path = "support/fused.rs"]
mod fused;
#[path = "install/index.rs"]
mod index;
#[path = "install/killed.rs"]
mod killed;
#[path = "install/rules.rs"]
mod rules;
#[path = "install/scene.rs"]
mod scene;
#[path = "install/strace.rs"]
mod strace;
mod support;
#[path = "install/swap.rs"]
mod swap;
