//! Bundles and indexes as a registry holds them: each a blob with a media type of its own, listed by one manifest.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;
use oci_client::manifest::{OCI_IMAGE_MEDIA_TYPE, OciDescriptor, OciImageManifest};
use preface_bundle::{Frame, Index, MAX_FILE_BYTES, MAX_INDEX_BYTES};

use super::answer::{digest_of, is_digest, lie, printable};

/// What the whole is: bundles of a fleet, and its index.
const ARTIFACT_TYPE: &str = "application/vnd.preface.fleet.v1";
/// Media type of a configuration that says nothing.
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
/// A configuration that says nothing.
pub(crate) const EMPTY: &[u8] = b"{}";
/// Most files of a place.
const MAX_BLOBS: usize = 64;
const TITLE: &str = "org.opencontainers.image.title";
const TASK: &str = "vnd.preface.task";

/// What a blob is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A bundle.
    Bundle,
    /// An index.
    Index,
}

impl Kind {
    fn media_type(self) -> &'static str {
        match self {
            Self::Bundle => "application/vnd.preface.bundle.v1",
            Self::Index => "application/vnd.preface.index.v1",
        }
    }

    fn most_bytes(self) -> usize {
        match self {
            Self::Bundle => MAX_FILE_BYTES,
            Self::Index => MAX_INDEX_BYTES,
        }
    }
}

/// A file to send.
pub(crate) struct Blob {
    /// Its bytes.
    pub bytes: Vec<u8>,
    kind: Kind,
    /// What it says about itself, for people.
    annotations: BTreeMap<String, String>,
}

impl Blob {
    /// A bundle or an index; what it says is read, and nothing of it verified.
    ///
    /// # Errors
    /// When it is neither.
    pub fn of(bytes: Vec<u8>) -> anyhow::Result<Self> {
        let (kind, said) = match bytes.starts_with(b"preface-index ") {
            true => (Kind::Index, of_index(&bytes)?),
            false => (Kind::Bundle, of_bundle(&bytes)?),
        };
        let annotations = said.into_iter();
        let annotations = annotations
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        Ok(Self {
            bytes,
            kind,
            annotations,
        })
    }

    /// What it is called.
    pub fn title(&self) -> &str {
        self.annotations.get(TITLE).map_or("", String::as_str)
    }

    fn descriptor(&self) -> OciDescriptor {
        OciDescriptor {
            annotations: Some(self.annotations.clone()),
            ..descriptor(self.kind.media_type(), &self.bytes)
        }
    }
}

/// Refuses files that `pull` could not tell from each other at one place, or that are too many for one.
pub(crate) fn check_together(blobs: &[Blob]) -> anyhow::Result<()> {
    if blobs.len() > MAX_BLOBS {
        bail!(
            "{} files are too many for one place, which has at most {MAX_BLOBS}; give each task a place of its own",
            blobs.len()
        );
    }
    let mut titles = BTreeSet::new();
    match blobs.iter().find(|blob| !titles.insert(blob.title())) {
        Some(blob) => bail!(
            "two of the files would be {} there; send one of them, or each to a place of its own",
            blob.title()
        ),
        None => Ok(()),
    }
}

fn of_bundle(bytes: &[u8]) -> anyhow::Result<Vec<(&'static str, String)>> {
    let frame = Frame::parse(bytes)?;
    let manifest = frame.unverified_manifest()?;
    Ok(vec![
        (TITLE, format!("{}.preface", manifest.task)),
        (TASK, manifest.task.to_owned()),
        (
            "vnd.preface.trust-version",
            manifest.trust_version.to_string(),
        ),
        ("vnd.preface.sequence", manifest.sequence.to_string()),
        ("vnd.preface.bundle-id", frame.bundle_id().to_string()),
        ("vnd.preface.base-id", manifest.base_id.to_string()),
    ])
}

fn of_index(bytes: &[u8]) -> anyhow::Result<Vec<(&'static str, String)>> {
    let index = Index::parse(std::str::from_utf8(bytes)?)?.unverified();
    Ok(vec![
        (TITLE, "fleet.index".to_owned()),
        ("vnd.preface.index-version", index.version().to_string()),
    ])
}

fn descriptor(media_type: &str, bytes: &[u8]) -> OciDescriptor {
    OciDescriptor {
        media_type: media_type.to_owned(),
        digest: digest_of(bytes),
        size: i64::try_from(bytes.len()).unwrap_or(i64::MAX),
        ..OciDescriptor::default()
    }
}

/// The manifest that lists blobs: the same for the same files.
pub(crate) fn manifest_of(blobs: &[Blob]) -> OciImageManifest {
    OciImageManifest {
        media_type: Some(OCI_IMAGE_MEDIA_TYPE.to_owned()),
        artifact_type: Some(ARTIFACT_TYPE.to_owned()),
        config: descriptor(EMPTY_TYPE, EMPTY),
        layers: blobs.iter().map(Blob::descriptor).collect(),
        ..OciImageManifest::default()
    }
}

/// A file that a manifest lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    /// What it is.
    pub kind: Kind,
    /// Its digest.
    pub digest: String,
    /// Its size, within the limit of its kind.
    pub bytes: usize,
    /// The task, as the registry says.
    pub task: Option<String>,
}

/// What a manifest lists, if that is bundles and an index alone, of sizes that they can have.
pub(crate) fn listed(manifest: &OciImageManifest) -> anyhow::Result<Vec<Listed>> {
    let artifact = manifest.artifact_type.as_deref();
    if artifact != Some(ARTIFACT_TYPE) {
        let found = printable(artifact.unwrap_or("none"));
        return Err(lie(format!(
            "its manifest has artifact type {found}, not {ARTIFACT_TYPE}; preface push makes such"
        )));
    }
    if manifest.layers.len() > MAX_BLOBS {
        return Err(lie(format!(
            "its manifest lists more than {MAX_BLOBS} files"
        )));
    }
    manifest.layers.iter().map(one).collect()
}

fn one(layer: &OciDescriptor) -> anyhow::Result<Listed> {
    let kinds = [Kind::Bundle, Kind::Index].into_iter();
    let Some(kind) = kinds
        .clone()
        .find(|kind| kind.media_type() == layer.media_type)
    else {
        let found = printable(&layer.media_type);
        return Err(lie(format!(
            "it lists a file of media type {found}, which is no bundle"
        )));
    };
    if !is_digest(&layer.digest) {
        let found = printable(&layer.digest);
        return Err(lie(format!(
            "it lists a file with digest {found}, which is not sha256"
        )));
    }
    let most = kind.most_bytes();
    let bytes = usize::try_from(layer.size)
        .ok()
        .filter(|bytes| (1..=most).contains(bytes));
    let Some(bytes) = bytes else {
        let found = layer.size;
        return Err(lie(format!(
            "it lists a file of {found} bytes, which has 1 to {most}"
        )));
    };
    let task = layer.annotations.as_ref().and_then(|all| all.get(TASK));
    Ok(Listed {
        kind,
        digest: layer.digest.clone(),
        bytes,
        task: task.map(|task| printable(task)),
    })
}

/// The one file that is asked for: the index, the bundle of a task, or the only bundle.
pub(crate) fn chosen<'a>(
    content: &'a [Listed],
    kind: Kind,
    task: Option<&str>,
) -> anyhow::Result<&'a Listed> {
    let fits = |one: &&Listed| {
        one.kind == kind && task.is_none_or(|task| one.task.as_deref() == Some(task))
    };
    let mut fitting = content.iter().filter(fits);
    match (fitting.next(), fitting.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => bail!("there is no such file; it has {}", names(content)),
        (Some(_), Some(_)) => bail!(
            "there is more than one bundle: name one with --task; it has {}",
            names(content)
        ),
    }
}

fn names(content: &[Listed]) -> String {
    let name = |one: &Listed| match one.kind {
        Kind::Bundle => format!("task {}", one.task.as_deref().unwrap_or("without a name")),
        Kind::Index => "an index".to_owned(),
    };
    let names: Vec<_> = content.iter().map(name).collect();
    match names.is_empty() {
        true => "nothing".to_owned(),
        false => names.join(", "),
    }
}
