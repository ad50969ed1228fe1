//! What a run of the program left.

use std::process::Output;

use serde_json::Value;

/// The run, which must have succeeded.
pub fn done(output: &Output) -> &Output {
    assert!(output.status.success(), "{}", said(output));
    output
}

/// What people were told.
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The report of `--json`.
pub fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(output)))
}
