//! Files of JSON lines that grow while long work goes on, so that work that was killed can go on.

use std::{fs, io::ErrorKind, path::Path};

use anyhow::Context;
use preface_packager::{Access, remove_unfinished, write_file};
use serde::de::DeserializeOwned;

/// The lines of the file at `path` and what they hold; none where there is no such file. A last line that a kill cut
/// short is dropped.
///
/// # Errors
/// When it cannot be read, or a line is not one of `what`.
pub fn read<T: DeserializeOwned>(path: &Path, what: &str) -> anyhow::Result<Vec<(String, T)>> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let lines = whole.lines().enumerate().map(|(index, line)| {
        let held = serde_json::from_str(line).with_context(|| {
            let (path, number) = (path.display(), index + 1);
            format!("{path}, line {number}: not a line of {what}; move the file away to go on without it")
        })?;
        Ok((line.to_owned(), held))
    });
    lines.collect()
}

/// Replaces the file at `path` by these lines, whole at every moment. What was left half written in its folder, where no
/// other process may be at work, is removed.
///
/// # Errors
/// When it cannot be written.
pub fn replace<'a>(path: &Path, lines: impl IntoIterator<Item = &'a str>) -> anyhow::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    remove_unfinished(folder).with_context(|| format!("cannot tidy {}", folder.display()))?;
    let text: String = lines.into_iter().flat_map(|line| [line, "\n"]).collect();
    Ok(write_file(path, text.as_bytes(), Access::Everyone)?)
}
