//! What a registry answers to `pull`, read with limits and compared with digests.

use anyhow::{Context, anyhow, bail};
use oci_client::{
    Reference, client::Certificate, errors::OciDistributionError, secrets::RegistryAuth,
};
use preface_bundle::Id;
use reqwest::{
    Response, StatusCode, Url,
    header::{ACCEPT, CONTENT_TYPE, LOCATION},
    redirect::Policy,
};

use super::{CONNECT, SILENCE};
use crate::refused::Refused;

/// Most bytes of a complaint that are read.
const MAX_COMPLAINT_BYTES: usize = 2048;
/// The manifest's digest, as the registry says.
const CONTENT_DIGEST: &str = "docker-content-digest";

/// `sha256:` and the digest.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", Id::of(bytes))
}

/// Whether it is `sha256:` and 64 lower-case hex digits.
pub(crate) fn is_digest(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:");
    hex.and_then(Id::<32>::from_hex).is_some()
}

/// A registry that answers something else than it was asked for: the answer is no, 1.
pub(crate) fn lie(what: String) -> anyhow::Error {
    Refused::because(1, what).into()
}

/// The same error, with the place in front; a refusal stays one.
pub(crate) fn named(place: &str, error: anyhow::Error) -> anyhow::Error {
    match error.downcast::<Refused>() {
        Ok(refused) => {
            let sentence = format!("{place}: the registry's answer is refused: {refused}");
            Refused::because(refused.exit_code, sentence).into()
        }
        Err(error) => error.context(format!("{place}: the registry cannot be used")),
    }
}

/// A repository, over HTTP.
pub(crate) struct Web {
    http: reqwest::Client,
    repository: String,
    auth: RegistryAuth,
}

/// An answer of success, of which no byte was read.
pub(crate) struct Answer(Response);

impl Web {
    pub fn new(
        reference: &Reference,
        auth: RegistryAuth,
        plain_http: bool,
        authorities: &[Certificate],
    ) -> anyhow::Result<Self> {
        let scheme = if plain_http { "http" } else { "https" };
        let (registry, repository) = (reference.resolve_registry(), reference.repository());
        let known = authorities
            .iter()
            .map(|known| reqwest::Certificate::from_der(&known.data));
        let http = reqwest::Client::builder()
            .tls_certs_merge(known.collect::<Result<Vec<_>, _>>()?)
            .redirect(Policy::none())
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            .user_agent(concat!("preface/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self {
            http,
            repository: format!("{scheme}://{registry}/v2/{repository}"),
            auth,
        })
    }

    /// Gets what must be in the registry itself.
    pub async fn get(&self, path: &str, accept: &str) -> anyhow::Result<Answer> {
        let answer = self.ask(path, accept).await?;
        if answer.status().is_redirection() {
            let to = location(&answer).unwrap_or_else(|_| "nowhere".to_owned());
            return Err(lie(format!(
                "it sends on to {to}, which is not followed; give the place where the bundles are"
            )));
        }
        success(answer).await
    }

    /// Gets what large registries keep elsewhere: one redirection is followed, to https alone, and without
    /// credentials.
    pub async fn get_stored(&self, path: &str) -> anyhow::Result<Answer> {
        let answer = self.ask(path, "*/*").await?;
        if !answer.status().is_redirection() {
            return success(answer).await;
        }
        let to = storage(&location(&answer)?)?;
        let answer = self.http.get(to).send().await?;
        if answer.status().is_redirection() {
            return Err(lie(
                "it sends on more than once, which is not followed".to_owned()
            ));
        }
        success(answer).await
    }

    async fn ask(&self, path: &str, accept: &str) -> anyhow::Result<Response> {
        let url = format!("{}/{path}", self.repository);
        let request = self.http.get(url).header(ACCEPT, accept);
        let request = match &self.auth {
            RegistryAuth::Anonymous => request,
            RegistryAuth::Basic(name, password) => request.basic_auth(name, Some(password)),
            RegistryAuth::Bearer(token) => request.bearer_auth(token),
        };
        Ok(request.send().await?)
    }
}

fn location(answer: &Response) -> anyhow::Result<String> {
    let to = answer
        .headers()
        .get(LOCATION)
        .and_then(|to| to.to_str().ok());
    to.map(printable)
        .ok_or_else(|| lie("it sends on without saying where".to_owned()))
}

/// Where a registry may keep what it stores.
fn storage(to: &str) -> anyhow::Result<Url> {
    let url = Url::parse(to).ok().filter(|url| url.scheme() == "https");
    url.ok_or_else(|| {
        lie(format!(
            "it sends on to {to}, which is not followed: files are fetched from elsewhere over https alone"
        ))
    })
}

/// An answer of success, or what the registry complains about.
async fn success(answer: Response) -> anyhow::Result<Answer> {
    let status = answer.status();
    if status == StatusCode::OK {
        return Ok(Answer(answer));
    }
    let complaint = capped(answer, MAX_COMPLAINT_BYTES)
        .await
        .unwrap_or_default();
    let complaint = printable(&String::from_utf8_lossy(&complaint));
    let hint = hint(status.as_u16());
    bail!("it answers {status} {complaint}; {hint}")
}

/// What to do about a status.
fn hint(status: u16) -> &'static str {
    match status {
        401 | 403 => {
            "log in with --username and --password-file or --password-stdin, or with docker login"
        }
        404 => "look the name, the tag and the digest up, or push it first",
        429 => "wait a while",
        _ => "ask whoever runs it",
    }
}

/// What the client could not do, and the way out.
pub(crate) fn refused(what: &str, error: OciDistributionError) -> anyhow::Error {
    let status = match &error {
        OciDistributionError::ServerError { code, .. } => *code,
        OciDistributionError::UnauthorizedError { .. }
        | OciDistributionError::AuthenticationFailure(_) => 401,
        OciDistributionError::RequestError(_) => {
            let said = printable(&format!("{:#}", anyhow::Error::from(error)));
            return anyhow!(
                "{what}: {said}; look the name and the port up, give --ca for a certificate of an authority of your own, or --plain-http where the registry speaks HTTP alone"
            );
        }
        _ => 500,
    };
    let said = printable(&format!("{:#}", anyhow::Error::from(error)));
    anyhow!("{what}: {said}; {}", hint(status))
}

/// The first bytes of a body, and no more.
async fn capped(mut answer: Response, most: usize) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while bytes.len() < most {
        let Some(chunk) = answer.chunk().await? else {
            break;
        };
        let room = most - bytes.len();
        bytes.extend(chunk.iter().take(room));
    }
    Ok(bytes)
}

/// Text of a stranger for the terminal: on one line, without control characters.
pub(crate) fn printable(text: &str) -> String {
    let line = |character: char| match character.is_control() {
        true => ' ',
        false => character,
    };
    text.chars().take(400).map(line).collect()
}

impl Answer {
    /// A manifest of at most `most` bytes, and the one that is pinned.
    pub async fn manifest(self, most: usize, pinned: Option<&str>) -> anyhow::Result<Vec<u8>> {
        let header = |name: &str| {
            let value = self.0.headers().get(name)?;
            value.to_str().ok().map(str::to_owned)
        };
        let kind = header(CONTENT_TYPE.as_str()).unwrap_or_default();
        if kind.split(';').next().map(str::trim) != Some(super::OCI_IMAGE_MEDIA_TYPE) {
            let kind = printable(&kind);
            return Err(lie(format!(
                "its manifest has media type {kind}, not {}; this is not a place of bundles",
                super::OCI_IMAGE_MEDIA_TYPE
            )));
        }
        let said = header(CONTENT_DIGEST);
        let body = capped(self.0, most + 1).await?;
        if body.len() > most {
            return Err(lie(format!("its manifest has more than {most} bytes")));
        }
        let found = digest_of(&body);
        for expected in [pinned, said.as_deref()].into_iter().flatten() {
            if expected != found {
                let expected = printable(expected);
                return Err(lie(format!(
                    "its manifest has digest {found}, not {expected}; it was changed"
                )));
            }
        }
        Ok(body)
    }

    /// A blob of exactly this size and digest.
    pub async fn blob(self, bytes: usize, digest: &str) -> anyhow::Result<Vec<u8>> {
        if let Some(length) = self.0.content_length()
            && usize::try_from(length) != Ok(bytes)
        {
            return Err(lie(format!(
                "the file has {length} bytes, not the {bytes} of the manifest"
            )));
        }
        let body = capped(self.0, bytes + 1)
            .await
            .context("the file breaks off")?;
        if body.len() != bytes {
            let found = match body.len() > bytes {
                true => "more".to_owned(),
                false => body.len().to_string(),
            };
            return Err(lie(format!(
                "the file has {found} bytes, not the {bytes} of the manifest"
            )));
        }
        let found = digest_of(&body);
        match found == digest {
            true => Ok(body),
            false => Err(lie(format!(
                "the file has digest {found}, not {digest}; it was changed"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_from_elsewhere_over_https_alone() {
        assert!(storage("https://storage.example/a?signature=b").is_ok());
        for bad in [
            "http://storage.example/a",
            "/v2/other",
            "file:///etc/passwd",
            "",
        ] {
            assert!(storage(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn strangers_write_no_control_characters() {
        assert_eq!(printable("a\x1b[31m\nb"), "a [31m b");
        assert_eq!(printable(&"a".repeat(1000)).len(), 400);
    }
}
