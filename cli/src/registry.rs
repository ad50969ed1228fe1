//! OCI registries: where bundles and indexes lie between a workstation and its devices.
//!
//! A registry is believed nothing: what it hands out is compared with its digest, and says by its own signatures
//! whether it can be trusted. `pull` reads with limits of its own, since whoever answers can go on for ever.

mod answer;
mod content;

use std::{
    env, fs,
    future::Future,
    io::{BufRead, BufReader, Read},
    net::IpAddr,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use docker_credential::{CredentialRetrievalError, DockerCredential};
use oci_client::{
    Client, Reference, RegistryOperation,
    client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol},
    manifest::{OCI_IMAGE_MEDIA_TYPE, OciImageManifest},
    secrets::RegistryAuth,
};
use preface_packager::read_private;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio::runtime::Runtime;
use zeroize::Zeroizing;

pub(crate) use content::{Blob, Kind, Listed, check_together, chosen};

use self::{
    answer::{Web, digest_of},
    content::{EMPTY, listed, manifest_of},
};

/// Most bytes of a manifest.
const MAX_MANIFEST_BYTES: usize = 256 << 10;
/// Tokens of cloud registries have some thousand.
const MAX_PASSWORD_BYTES: usize = 16 << 10;
const CONNECT: Duration = Duration::from_secs(15);
/// Between two reads of an answer.
const SILENCE: Duration = Duration::from_secs(30);
/// For all of a push or a pull.
const ALL: Duration = Duration::from_secs(300);

/// How a registry is spoken to.
#[derive(Args)]
pub(crate) struct Access {
    /// Speak HTTP without TLS: for a registry on this machine, or in a network of your own
    #[arg(long)]
    plain_http: bool,
    /// Who to log in as; without, docker's configuration and its credential helpers say, or nobody logs in
    #[arg(long, value_name = "USER", requires = "password")]
    username: Option<String>,
    /// Read the password or token from the one line of this file, which nobody else may read
    #[arg(long, value_name = "FILE", requires = "username", group = "password")]
    password_file: Option<PathBuf>,
    /// Read the password or token from the one line on stdin, as docker login does
    #[arg(long, requires = "username", group = "password")]
    password_stdin: bool,
    /// Believe registries too whose certificate one of this file's vouches for (PEM): of an authority of your own
    #[arg(long, value_name = "FILE", conflicts_with = "plain_http")]
    ca: Option<PathBuf>,
}

impl Access {
    /// The certificates of `--ca`.
    fn authorities(&self) -> anyhow::Result<Vec<Certificate>> {
        let Some(path) = &self.ca else {
            return Ok(Vec::new());
        };
        let pem = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let known = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
        let known = known.ok().filter(|known| !known.is_empty());
        let known = known.with_context(|| {
            format!(
                "{}: no certificate in PEM; give that of the authority which signed the registry's",
                path.display()
            )
        })?;
        let certificate = |der: CertificateDer<'_>| Certificate {
            encoding: CertificateEncoding::Der,
            data: der.to_vec(),
        };
        Ok(known.into_iter().map(certificate).collect())
    }

    fn auth(&self, host: &str) -> anyhow::Result<RegistryAuth> {
        if let Some(username) = &self.username {
            return Ok(RegistryAuth::Basic(username.clone(), self.password()?));
        }
        if !has_docker_config() {
            return Ok(RegistryAuth::Anonymous);
        }
        // Docker keeps its own registry under the address that it had first.
        let server = match host {
            "index.docker.io" => "https://index.docker.io/v1/",
            host => host,
        };
        match docker_credential::get_credential(server) {
            Ok(DockerCredential::UsernamePassword(..)) if self.plain_http && !is_here(host) => {
                bail!(
                    "with --plain-http docker's password for {host} would be read by everybody on the way; leave it out, or {NAME_ONE}"
                )
            }
            Ok(DockerCredential::UsernamePassword(name, password)) => {
                Ok(RegistryAuth::Basic(name, password))
            }
            Ok(DockerCredential::IdentityToken(_)) => bail!(
                "docker's configuration has an identity token for {host}, which is not understood here; {NAME_ONE}"
            ),
            Err(
                CredentialRetrievalError::NoCredentialConfigured
                | CredentialRetrievalError::ConfigNotFound,
            ) => Ok(RegistryAuth::Anonymous),
            // What a helper prints may be a secret, so that it is not said.
            Err(CredentialRetrievalError::HelperFailure { stdout, .. })
                if stdout.contains(NOT_LOGGED_IN) =>
            {
                Ok(RegistryAuth::Anonymous)
            }
            Err(CredentialRetrievalError::HelperFailure { helper, .. }) => {
                bail!(
                    "{helper}, which docker's configuration names, has no credentials for {host}: {NAME_ONE}"
                )
            }
            Err(error) => Err(anyhow!(error).context(format!(
                "cannot read the credentials for {host} from docker's configuration; {NAME_ONE}"
            ))),
        }
    }

    /// The password of `--username`.
    fn password(&self) -> anyhow::Result<String> {
        let text = match &self.password_file {
            Some(file) => read_private(file)?,
            None => {
                let mut text = Zeroizing::new(String::with_capacity(MAX_PASSWORD_BYTES));
                let stdin = std::io::stdin().take(MAX_PASSWORD_BYTES as u64);
                let read = BufReader::new(stdin).read_line(&mut text);
                read.context("cannot read the password from stdin")?;
                text
            }
        };
        match text.trim_end_matches(['\r', '\n']) {
            "" => bail!("the password is empty; {NAME_ONE}"),
            password => Ok(password.to_owned()),
        }
    }
}

/// The way out where docker's configuration does not help.
const NAME_ONE: &str = "give --username with --password-file or --password-stdin";
/// What docker's helpers print for a registry that nobody logged in to.
const NOT_LOGGED_IN: &str = "credentials not found in native keychain";

/// Whether a registry is on this machine.
fn is_here(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let address = name.trim_matches(['[', ']']).parse::<IpAddr>();
    address.map_or(name == "localhost", |address| address.is_loopback())
}

/// Whether there is a file in which docker would keep credentials.
fn has_docker_config() -> bool {
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker"));
    let folder = env::var_os("DOCKER_CONFIG")
        .map(PathBuf::from)
        .or_else(home);
    folder.is_some_and(|folder| folder.join("config.json").exists())
}

/// A place in a registry.
pub(crate) struct Registry {
    reference: Reference,
    auth: RegistryAuth,
    plain_http: bool,
    authorities: Vec<Certificate>,
    client: Client,
    runtime: Runtime,
}

/// What a place in a registry holds.
pub(crate) struct Manifest {
    /// Its digest, which can be pinned.
    pub digest: String,
    /// What it lists.
    pub content: Vec<Listed>,
}

impl Registry {
    /// The place that `text` names: `HOST[:PORT]/REPOSITORY[:TAG][@sha256:DIGEST]`.
    ///
    /// # Errors
    /// When it names none, or credentials cannot be read.
    pub fn at(text: &str, access: &Access) -> anyhow::Result<Self> {
        let reference = reference(text)?;
        // Nothing else was installed before: the program has one thread here.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let plain_http = access.plain_http;
        let authorities = access.authorities()?;
        let client = Client::try_from(ClientConfig {
            protocol: match plain_http {
                true => ClientProtocol::Http,
                false => ClientProtocol::Https,
            },
            extra_root_certificates: authorities.clone(),
            read_timeout: Some(SILENCE),
            connect_timeout: Some(CONNECT),
            user_agent: concat!("preface/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        })?;
        Ok(Self {
            auth: access.auth(reference.resolve_registry())?,
            reference,
            plain_http,
            authorities,
            client,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?,
        })
    }

    /// The registry, the repository and the tag or digest.
    pub fn place(&self) -> String {
        self.reference.whole()
    }

    /// The same with this digest in place of a tag.
    pub fn pinned(&self, digest: &str) -> String {
        let (registry, repository) = (self.reference.registry(), self.reference.repository());
        format!("{registry}/{repository}@{digest}")
    }

    /// Sends blobs, and the manifest that lists them under the tag; returns the manifest's digest.
    ///
    /// # Errors
    /// With the registry's answer where it takes something not.
    pub fn push(&self, blobs: &[Blob]) -> anyhow::Result<String> {
        let manifest = serde_json::to_vec(&manifest_of(blobs))?;
        let digest = digest_of(&manifest);
        self.wait(async {
            let operation = RegistryOperation::Push;
            self.client
                .auth(&self.reference, &self.auth, operation)
                .await
                .map_err(|error| answer::refused("it does not let you in", error))?;
            let bytes = blobs.iter().map(|blob| blob.bytes.clone());
            for bytes in bytes.chain([EMPTY.to_vec()]) {
                let digest = digest_of(&bytes);
                let pushed = self.client.push_blob(&self.reference, bytes, &digest).await;
                pushed.map_err(|error| answer::refused("it does not take the file", error))?;
            }
            let kind = OCI_IMAGE_MEDIA_TYPE.parse()?;
            let pushed = self
                .client
                .push_manifest_raw(&self.reference, manifest, kind)
                .await;
            pushed.map_err(|error| answer::refused("it does not take the manifest", error))?;
            Ok(())
        })?;
        Ok(digest)
    }

    /// What the place holds.
    ///
    /// # Errors
    /// With the registry's answer where that is not a manifest of bundles, or not the one that is pinned.
    pub fn manifest(&self) -> anyhow::Result<Manifest> {
        self.wait(async {
            let web = self.web().await?;
            let pinned = self.reference.digest();
            let name = pinned.or(self.reference.tag()).unwrap_or("latest");
            let answer = web
                .get(&format!("manifests/{name}"), OCI_IMAGE_MEDIA_TYPE)
                .await?;
            let body = answer.manifest(MAX_MANIFEST_BYTES, pinned).await?;
            let manifest: OciImageManifest = serde_json::from_slice(&body)
                .map_err(|error| answer::lie(format!("its manifest is not one: {error}")))?;
            Ok(Manifest {
                digest: digest_of(&body),
                content: listed(&manifest)?,
            })
        })
    }

    /// The bytes of what a manifest lists: as many as it says, with the digest that it says.
    ///
    /// # Errors
    /// With the registry's answer where it is anything else.
    pub fn blob(&self, listed: &Listed) -> anyhow::Result<Vec<u8>> {
        self.wait(async {
            let web = self.web().await?;
            let path = format!("blobs/{}", listed.digest);
            let answer = web.get_stored(&path).await?;
            answer.blob(listed.bytes, &listed.digest).await
        })
    }

    async fn web(&self) -> anyhow::Result<Web> {
        let token = self
            .client
            .auth(&self.reference, &self.auth, RegistryOperation::Pull)
            .await
            .map_err(|error| answer::refused("it does not let you in", error))?;
        let auth = match token {
            Some(token) => RegistryAuth::Bearer(token),
            None => self.auth.clone(),
        };
        Web::new(&self.reference, auth, self.plain_http, &self.authorities)
    }

    /// Does something with the registry, in the time that there is for it.
    fn wait<T>(&self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let place = self.place();
        let done = self
            .runtime
            .block_on(async { tokio::time::timeout(ALL, work).await });
        done.unwrap_or_else(|_| bail!("it has not come to an end in {} s", ALL.as_secs()))
            .map_err(|error| answer::named(&place, error))
    }
}

fn reference(text: &str) -> anyhow::Result<Reference> {
    let example = "like registry.example/fleet/intent:7";
    if text.contains("://") {
        bail!("{text} has a scheme; give the place alone, {example}, and --plain-http for http");
    }
    let host = text.split_once('/').map(|(host, _)| host);
    if !host.is_some_and(|host| host.contains(['.', ':']) || host == "localhost") {
        bail!("{text} does not begin with a registry; give registry and repository, {example}");
    }
    let reference: Reference = text
        .parse()
        .with_context(|| format!("{text} is no place in a registry; give one {example}"))?;
    match reference.digest() {
        Some(digest) if !answer::is_digest(digest) => {
            bail!("{text}: a digest is sha256: and 64 lower-case hex digits")
        }
        _ => Ok(reference),
    }
}

/// Whether `text` names a tag and no digest.
pub(crate) fn has_tag_alone(text: &str) -> bool {
    let last = text.rsplit('/').next().unwrap_or_default();
    last.contains(':') && !text.contains('@')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_name_their_registry() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for good in [
            "localhost/a:1",
            "127.0.0.1:5000/fleet/intent",
            "registry.example/a",
        ] {
            assert!(reference(good).is_ok(), "{good}");
            assert!(reference(&format!("{good}@{digest}")).is_ok(), "{good}");
        }
        let bad = [
            "intent:1",
            "fleet/intent",
            "https://registry.example/a",
            "registry.example/",
            "registry.example/A",
        ];
        for bad in bad {
            assert!(reference(bad).is_err(), "{bad}");
        }
        for digest in [
            "sha256:00",
            &format!("sha512:{}", "a".repeat(128)),
            &digest.replace('a', "A"),
        ] {
            assert!(
                reference(&format!("registry.example/a@{digest}")).is_err(),
                "{digest}"
            );
        }
    }

    #[test]
    fn this_machine_is_told_from_others() {
        for here in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "[::1]:5000",
        ] {
            assert!(is_here(here), "{here}");
        }
        for other in [
            "localhost.example",
            "127.0.0.1.example:5000",
            "10.0.0.1",
            "[::2]:1",
        ] {
            assert!(!is_here(other), "{other}");
        }
    }

    #[test]
    fn a_port_is_no_tag() {
        assert!(has_tag_alone("localhost:5000/a:1"));
        assert!(!has_tag_alone("localhost:5000/a"));
        assert!(!has_tag_alone("localhost:5000/a:1@sha256:00"));
    }
}
