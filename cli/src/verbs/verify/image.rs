//! Base images: nobody signs them, but every byte has a digest.

use anyhow::ensure;
use preface_runtime::Error;

use super::{Arguments, CheckReport, Report};

/// What the digests of the base image say.
///
/// # Errors
/// When something is asked for that only a bundle has.
pub fn report(arguments: &Arguments) -> anyhow::Result<Report> {
    let path = &arguments.file;
    let asked = arguments.base.is_some()
        || arguments.base_id.is_some()
        || arguments.tokenizer_id.is_some()
        || arguments.namespace.is_some();
    ensure!(
        !asked,
        "{} is a base image, compared with its own digests alone; leave --base, --base-id, --tokenizer-id and \
         --namespace away",
        path.display()
    );
    let opened = crate::image::open(path);
    let tables = opened.as_ref().map(|_| ());
    let weights = opened.as_ref().ok().map(|image| image.verify_weights());
    let checks = vec![
        check("tables", Some(tables.is_ok())),
        check("weights", weights.as_ref().map(Result::is_ok)),
    ];
    let problem = tables
        .err()
        .or(weights.as_ref().and_then(|weights| weights.as_ref().err()));
    let (exit_code, reason) = problem.map_or((0, "verified"), meaning);
    let message = match problem {
        Some(error) => error.to_string(),
        None => format!(
            "{}: verified: every byte of the base image is as it was compiled",
            path.display()
        ),
    };
    Ok(Report {
        verified: problem.is_none(),
        exit_code,
        reason,
        message,
        bundle_id: None,
        checks,
    })
}

fn check(name: &'static str, passed: Option<bool>) -> CheckReport {
    CheckReport {
        name,
        result: match passed {
            Some(true) => "passed",
            Some(false) => "failed",
            None => "not-reached",
        },
        detail: None,
    }
}

/// Exit code and reason of an image that cannot be used.
fn meaning(error: &Error) -> (u8, &'static str) {
    match error {
        Error::Damaged { .. } => (13, "payload-changed"),
        Error::Read { .. } => (20, "unreadable"),
        _ => (10, "malformed"),
    }
}
