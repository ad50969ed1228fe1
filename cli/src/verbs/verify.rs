//! `preface verify`: may this bundle be used here, is this image whole?

mod image;

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, ensure};
use clap::Args;
use preface_bundle::{
    Binding, Check, Frame, Id, MAGIC, Namespace, Policy, TrustStore, VerifiedBundle, is_name,
};
use preface_runtime::{
    Image,
    bundle::{ReadError, decode, read, read_trust},
    unix_now,
};
use serde::Serialize;

use crate::output::Output;

/// Verify a bundle: who signed it, what it was made for, and every byte of it; or every byte of a base image
#[derive(Args)]
#[command(after_help = "\
Exit: 0 verified; 10 malformed (also cut short, or with bytes after its end); 11 not signed by \
enough trusted keys; 12 bad signature; 13 payload changed; 14 made for another base, tokenizer, \
namespace or runtime; 15 older than allowed; 16 expired; 17 revoked; 18 trust store missing or \
invalid; 20 the bundle or the base cannot be read; 21 others can write the trust store; \
2 wrong usage.

A base image is compared with its own digests, without a trust store: 0, 10, 13 or 20. With --trust it is no bundle: 10.

Example:
  preface verify intent.preface --trust release.trust --base minilm
  preface verify minilm.base")]
pub struct Arguments {
    /// The bundle, or a base image
    file: PathBuf,
    /// The trust store: whose signatures count; a bundle needs one
    #[arg(long, value_name = "FILE")]
    trust: Option<PathBuf>,
    /// The base model that the bundle must be made for: a base image or a base folder
    #[arg(long, value_name = "BASE", conflicts_with_all = ["base_id", "tokenizer_id"])]
    base: Option<PathBuf>,
    /// The same by its id
    #[arg(long, value_name = "HEX", value_parser = id)]
    base_id: Option<Id>,
    /// The tokenizer that the bundle must be made for, by its id
    #[arg(long, value_name = "HEX", value_parser = id)]
    tokenizer_id: Option<Id>,
    /// The namespace that the bundle must be made for, besides the trust store's
    #[arg(long, value_name = "NAME", value_parser = name)]
    namespace: Option<String>,
}

/// Reads an id on the command line.
pub(crate) fn id(text: &str) -> Result<Id, String> {
    Id::from_hex(text).ok_or_else(|| "an id is 64 lower-case hex digits".to_owned())
}

fn name(text: &str) -> Result<String, String> {
    let problem = "a name has lower-case letters, digits, and . _ - between them, at most 47";
    is_name(text)
        .then(|| text.to_owned())
        .ok_or_else(|| problem.to_owned())
}

/// Runs the verb.
pub fn run(arguments: Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    // With a trust store it is a bundle that is asked for: who can put an image in its place can digest it too.
    let report = match &arguments.trust {
        Some(trust) => bundle_report(&arguments, trust),
        None => report_without_trust(&arguments)?,
    };
    let notes = report
        .checks
        .iter()
        .filter(|check| check.result == "skipped");
    let notes: Vec<_> = notes.filter_map(|check| check.detail).collect();
    notes
        .iter()
        .for_each(|note| output.note(format_args!("note: {note}")));
    if report.verified {
        output.say(&report.message);
    } else {
        output.note(&report.message);
    }
    output.json(&report)?;
    Ok(ExitCode::from(report.exit_code))
}

fn bundle_report(arguments: &Arguments, trust: &Path) -> Report {
    let mut bundle_id = None;
    match verified(arguments, trust, &mut bundle_id) {
        Ok(sentence) => Report::new(arguments, bundle_id, None, sentence),
        Err(refusal) => Report::refused(arguments, bundle_id, &refusal),
    }
}

/// What the digests of a base image say, or that the file is neither that nor a bundle.
fn report_without_trust(arguments: &Arguments) -> anyhow::Result<Report> {
    let path = &arguments.file;
    if Image::is_at(path) {
        return image::report(arguments);
    }
    ensure!(
        path.is_file() && begins_as_bundle(path).is_ok_and(|is_bundle| !is_bundle),
        "a bundle is verified with a trust store; give --trust FILE"
    );
    Ok(Report::refused(
        arguments,
        None,
        &Refusal {
            exit_code: 10,
            reason: "malformed",
            check: Some(Check::Frame),
            sentence: format!(
                "{}: begins neither as a bundle nor as a base image; it is damaged, cut short or something else",
                path.display()
            ),
        },
    ))
}

fn begins_as_bundle(path: &Path) -> io::Result<bool> {
    let mut start = Vec::new();
    let file = File::open(path)?;
    file.take(MAGIC.len() as u64).read_to_end(&mut start)?;
    Ok(start == MAGIC)
}

/// Why the answer is no.
struct Refusal {
    exit_code: u8,
    reason: &'static str,
    check: Option<Check>,
    sentence: String,
}

impl Refusal {
    fn of_bundle(path: &Path, error: &preface_bundle::Error) -> Self {
        Self {
            exit_code: error.exit_code(),
            reason: error.reason(),
            check: error.check(),
            sentence: format!("{}: {error}", path.display()),
        }
    }

    fn of_file(exit_code: u8, error: ReadError) -> Self {
        let reason = match exit_code {
            10 => "too-large",
            18 => "trust-store-invalid",
            21 => "unsafe-permissions",
            _ => "unreadable",
        };
        let check = (exit_code == 10).then_some(Check::Frame);
        let sentence = format!("{:#}", anyhow::Error::from(error));
        Self {
            exit_code,
            reason,
            check,
            sentence,
        }
    }
}

/// The sentence for a bundle that may be used, or why it may not.
fn verified(
    arguments: &Arguments,
    trust: &Path,
    bundle_id: &mut Option<Id>,
) -> Result<String, Refusal> {
    let text =
        read_trust(trust).map_err(|error| Refusal::of_file(error.trust_exit_code(), error))?;
    let store = TrustStore::parse(&text).map_err(|error| Refusal::of_bundle(trust, &error))?;
    let policy = policy(arguments)?;
    let path = &arguments.file;
    let file = read(path).map_err(|error| Refusal::of_file(error.bundle_exit_code(), error))?;
    let refuse = |error: preface_bundle::Error| Refusal::of_bundle(path, &error);
    let frame = Frame::parse(&file).map_err(refuse)?;
    *bundle_id = Some(frame.bundle_id());
    let admitted = frame
        .authenticate(&store)
        .and_then(|one| one.admit(&policy))
        .map_err(refuse)?;
    let decoded = decode(&admitted).map_err(refuse)?;
    let bundle = admitted.open(&decoded).map_err(refuse)?;
    Ok(sentence(path, &bundle))
}

fn policy(arguments: &Arguments) -> Result<Policy, Refusal> {
    let mut policy = Policy::unbound();
    policy.namespace = arguments.namespace.as_deref().map(Namespace::of_name);
    policy.now = unix_now();
    if let Some(base) = &arguments.base {
        let (base_id, tokenizer_id) = ids_of(base).map_err(|error| Refusal {
            exit_code: 20,
            reason: "base-unreadable",
            check: None,
            sentence: format!("{}: {error:#}", base.display()),
        })?;
        (policy.base, policy.tokenizer) =
            (Binding::Required(base_id), Binding::Required(tokenizer_id));
    }
    policy.base = arguments.base_id.map_or(policy.base, Binding::Required);
    policy.tokenizer = arguments
        .tokenizer_id
        .map_or(policy.tokenizer, Binding::Required);
    Ok(policy)
}

/// Ids of base and tokenizer of a base folder or a base image.
pub(crate) fn ids_of(base: &Path) -> anyhow::Result<(Id, Id)> {
    if base.is_dir() {
        return ids_of_folder(base);
    }
    let image = crate::image::open(base)?;
    let description = image.description();
    Ok((description.base_id, description.tokenizer_id))
}

#[cfg(feature = "compile")]
fn ids_of_folder(folder: &Path) -> anyhow::Result<(Id, Id)> {
    let description = preface_graph::Base::open(folder)?.description;
    let base = Id::from_hex(&description.base_id).context("the base id is not hex")?;
    let tokenizer =
        Id::from_hex(&description.tokenizer_id).context("the tokenizer id is not hex")?;
    Ok((base, tokenizer))
}

#[cfg(not(feature = "compile"))]
fn ids_of_folder(_: &Path) -> anyhow::Result<(Id, Id)> {
    None.context(
        "this build reads no base folders; give a base image, or --base-id and --tokenizer-id",
    )
}

fn sentence(path: &Path, bundle: &VerifiedBundle<'_>) -> String {
    let manifest = bundle.manifest();
    let signers: Vec<_> = bundle
        .signers()
        .map(|key| key.name.map_or(key.id.to_string(), str::to_owned))
        .collect();
    format!(
        "{}: verified: task {}, sequence {}, signed by {}",
        path.display(),
        manifest.task,
        manifest.sequence,
        signers.join(" and ")
    )
}

/// The one JSON object.
#[derive(Serialize)]
struct Report {
    verified: bool,
    exit_code: u8,
    reason: &'static str,
    message: String,
    bundle_id: Option<String>,
    checks: Vec<CheckReport>,
}

#[derive(Serialize)]
struct CheckReport {
    name: &'static str,
    result: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'static str>,
}

impl Report {
    fn refused(arguments: &Arguments, bundle_id: Option<Id>, refusal: &Refusal) -> Self {
        let message = refusal.sentence.clone();
        Self::new(arguments, bundle_id, Some(refusal), message)
    }

    fn new(
        arguments: &Arguments,
        bundle_id: Option<Id>,
        refusal: Option<&Refusal>,
        message: String,
    ) -> Self {
        Self {
            verified: refusal.is_none(),
            exit_code: refusal.map_or(0, |refusal| refusal.exit_code),
            reason: refusal.map_or("verified", |refusal| refusal.reason),
            message,
            bundle_id: bundle_id.map(|id| id.to_string()),
            checks: Check::ALL
                .map(|check| CheckReport::new(check, arguments, refusal))
                .into(),
        }
    }
}

impl CheckReport {
    fn new(check: Check, arguments: &Arguments, refusal: Option<&Refusal>) -> Self {
        let failed = refusal.map(|refusal| refusal.check);
        let result = match failed {
            Some(None) => "not-reached",
            Some(Some(failed)) if failed == check => "failed",
            Some(Some(failed)) if failed < check => "not-reached",
            _ => "passed",
        };
        let detail = match check {
            Check::Base if arguments.base.is_none() && arguments.base_id.is_none() => {
                Some("the base model was not compared; give --base")
            }
            Check::Tokenizer if arguments.base.is_none() && arguments.tokenizer_id.is_none() => {
                Some("the tokenizer was not compared; give --base")
            }
            _ => None,
        };
        let skipped = result == "passed" && detail.is_some();
        Self {
            name: check.name(),
            result: if skipped { "skipped" } else { result },
            detail: detail.filter(|_| skipped),
        }
    }
}
