//! Further processes that have the image open.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, ensure};

/// What such a process says once it has answered.
pub const READY: &str = "ready";

/// Another process of this program with the same arguments, which has answered once.
pub struct Other(Child);

impl Other {
    /// Starts it.
    pub fn start() -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(program);
        command.args(std::env::args_os().skip(1)).arg("--hold");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start another process")?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.as_mut() {
            BufReader::new(stdout)
                .read_line(&mut line)
                .context("cannot hear the other process")?;
        }
        ensure!(line.trim() == READY, "the other process could not answer");
        Ok(Self(child))
    }

    /// Lets it end.
    pub fn end(mut self) -> anyhow::Result<()> {
        drop(self.0.stdin.take());
        self.0.wait().context("cannot wait for the other process")?;
        Ok(())
    }
}
