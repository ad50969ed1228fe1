//! What the program prints: data on stdout, talk on stderr.

use std::{
    fmt::Display,
    io::{self, ErrorKind, IsTerminal, Write},
    path::Path,
    process::ExitCode,
    sync::OnceLock,
};

#[cfg(feature = "compile")]
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// A path as JSON can say it: what is no UTF-8 in it is replaced, as it is for people.
pub fn lossy(path: &Path) -> String {
    path.display().to_string()
}

/// A path as a shell reads it again, in quotes where it needs them.
#[cfg(feature = "host")]
pub fn shell_word(path: &Path) -> String {
    let text = lossy(path);
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-+:@%,=".contains(letter);
    match !text.is_empty() && text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// Where a verb sends its results: people's text, or one JSON object.
///
/// What cannot be written is remembered, not a panic: [`Output::end`] makes it the program's exit code.
#[derive(Debug)]
pub struct Output {
    json: bool,
    failure: OnceLock<io::Error>,
}

impl Output {
    /// An output for people, or for scripts when `json` is set.
    pub fn new(json: bool) -> Self {
        Self {
            json,
            failure: OnceLock::new(),
        }
    }

    /// Prints `value` as one line of JSON on stdout when JSON was asked for.
    ///
    /// # Errors
    /// When `value` cannot be serialised.
    pub fn json(&self, value: &impl Serialize) -> anyhow::Result<()> {
        if self.json {
            self.print(serde_json::to_string(value)?);
        }
        Ok(())
    }

    /// Prints a result for people on stdout; silent when JSON was asked for.
    pub fn say(&self, text: impl Display) {
        if !self.json {
            self.print(text);
        }
    }

    /// Prints talk on stderr.
    pub fn note(&self, text: impl Display) {
        // Where stderr is gone, nobody is left to tell.
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// Prints one line on stdout, whoever asked.
    pub fn print(&self, text: impl Display) {
        if !self.is_closed()
            && let Err(error) = writeln!(io::stdout().lock(), "{text}")
        {
            let _ = self.failure.set(error);
        }
    }

    /// Prints a part of a line on stdout, at once.
    pub fn say_part(&self, text: &str) {
        if self.is_closed() {
            return;
        }
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(text.as_bytes());
        if let Err(error) = written.and_then(|()| stdout.flush()) {
            let _ = self.failure.set(error);
        }
    }

    /// Whether a result for people is printed part by part: on a terminal, or where it is `asked`.
    pub fn shows_parts(&self, asked: bool) -> bool {
        !self.json && (asked || io::stdout().is_terminal())
    }

    /// Whether stdout takes no more, so that going on is in vain.
    pub fn is_closed(&self) -> bool {
        self.failure.get().is_some()
    }

    /// The exit code of a program that would exit with `code`: 2 where results were lost, unless whoever reads stdout
    /// went away on purpose, as `head` does. A code that says no stays.
    pub fn end(&self, code: ExitCode) -> ExitCode {
        match self.failure.get() {
            Some(error) if error.kind() != ErrorKind::BrokenPipe => {
                self.note(format_args!(
                    "preface: cannot write to standard output: {error}"
                ));
                match code == ExitCode::SUCCESS {
                    true => ExitCode::from(2),
                    false => code,
                }
            }
            _ => code,
        }
    }

    /// A progress bar on stderr, hidden where stderr is not a terminal.
    #[cfg(feature = "compile")]
    pub fn progress(&self, length: u64, label: &str) -> ProgressBar {
        let style = ProgressStyle::with_template("{prefix:>24} [{bar:32}] {pos}/{len} {msg} {eta}")
            .expect("the template is well formed")
            .progress_chars("=> ");
        let bar = ProgressBar::new(length)
            .with_style(style)
            .with_prefix(label.to_owned());
        bar.enable_steady_tick(std::time::Duration::from_millis(200));
        bar
    }
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

    use serde_json::json;

    use super::*;

    #[test]
    fn a_path_in_a_command_is_one_word() {
        let table = [
            ("out/a.b", "out/a.b"),
            ("a b", "'a b'"),
            ("a'b", r"'a'\''b'"),
            ("", "''"),
        ];
        for (path, word) in table {
            assert_eq!(shell_word(Path::new(path)), word);
        }
    }

    #[test]
    fn a_path_that_is_no_utf8_can_be_said_in_json() {
        let path = Path::new(OsStr::from_bytes(b"a\xffb"));
        assert_eq!(json!({"path": lossy(path)}), json!({"path": "a\u{fffd}b"}));
    }
}
