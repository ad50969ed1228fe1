//! What the program prints: data on stdout, talk on stderr.

use std::{fmt::Display, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// Where a verb sends its results: people's text, or one JSON object.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
}

impl Output {
    /// An output for people, or for scripts when `json` is set.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Prints `value` as one line of JSON on stdout when JSON was asked for.
    ///
    /// # Errors
    /// When `value` cannot be serialised.
    pub fn json(&self, value: &impl Serialize) -> anyhow::Result<()> {
        if self.json {
            println!("{}", serde_json::to_string(value)?);
        }
        Ok(())
    }

    /// Prints a result for people on stdout; silent when JSON was asked for.
    pub fn say(&self, text: impl Display) {
        if !self.json {
            println!("{text}");
        }
    }

    /// Prints talk on stderr.
    pub fn note(&self, text: impl Display) {
        eprintln!("{text}");
    }

    /// A progress bar on stderr, hidden where stderr is not a terminal.
    pub fn progress(&self, length: u64, label: &str) -> ProgressBar {
        let style = ProgressStyle::with_template("{prefix:>24} [{bar:32}] {pos}/{len} {msg} {eta}")
            .expect("the template is well formed")
            .progress_chars("=> ");
        let bar = ProgressBar::new(length)
            .with_style(style)
            .with_prefix(label.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }
}
