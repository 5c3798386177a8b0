//! A repository of a registry, by the `oci-client` crate on a runtime of its own.
//!
//! Manifests are fetched here, because the crate reads them whole, however large they are.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use serde::Deserialize;
use tokio::runtime::Runtime;

use super::manifest::{DOCUMENT_BYTES_MAX, DOCUMENT_TYPES};
use super::name::Version;
use super::source::{ManifestSource, RawManifest};
use crate::content::Digest;
use crate::error::{Error, ErrorKind, Result};

/// Time for a connection, and between two pieces of an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a registry is spoken to.
#[derive(Clone, Debug, Default)]
pub struct RegistryOptions {
    /// Without TLS. Registries on this machine (`localhost`, `127.0.0.1`, `[::1]`) are spoken to without it anyway.
    pub plain_http: bool,
    /// User and password; without them what Docker's configuration says of the host, or nothing.
    pub login: Option<(String, String)>,
}

struct Shared {
    runtime: Runtime,
    client: Client,
    http: reqwest::Client,
    login: RegistryAuth,
    place: Reference,
    plain: bool,
}

/// The images of a repository.
pub struct RegistrySource(Arc<Shared>);

fn host_is_here(registry: &str) -> bool {
    let host = registry.rsplit_once(':').filter(|(_, port)| !port.contains(']')).map_or(registry, |(host, _)| host);
    matches!(host, "localhost" | "127.0.0.1" | "[::1]")
}

impl RegistrySource {
    /// A source for a repository, as in `host:5000/team/app`. Nothing is sent yet.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if that is not a repository; an error of the system.
    pub fn open(repository: &str, options: &RegistryOptions) -> Result<Self> {
        let place = repository
            .parse::<Reference>()
            .map_err(|error| Error::new(ErrorKind::InvalidInput, format!("'{repository}' is not a repository of a registry: {error}")))?;
        let plain = options.plain_http || host_is_here(place.resolve_registry());
        let config = ClientConfig {
            protocol: if plain { ClientProtocol::Http } else { ClientProtocol::Https },
            read_timeout: Some(PATIENCE),
            connect_timeout: Some(PATIENCE),
            platform_resolver: None,
            user_agent: concat!("volfork/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let unready = |error: &dyn std::fmt::Display| Error::new(ErrorKind::Io, format!("cannot speak HTTP: {error}"));
        let client = Client::try_from(config).map_err(|error| unready(&error))?;
        let http = reqwest::Client::builder().connect_timeout(PATIENCE).read_timeout(PATIENCE).user_agent("volfork").build();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let login = match &options.login {
            Some((user, password)) => RegistryAuth::Basic(user.clone(), password.clone()),
            None => docker_login(place.registry()).unwrap_or(RegistryAuth::Anonymous),
        };
        Ok(Self(Arc::new(Shared {
            runtime: runtime.map_err(|error| Error::io("start a runtime", error))?,
            client,
            http: http.map_err(|error| unready(&error))?,
            login,
            place,
            plain,
        })))
    }

    fn reference(&self, version: &Version) -> Reference {
        let (registry, repository) = (self.0.place.registry().to_owned(), self.0.place.repository().to_owned());
        match version {
            Version::Digest(digest) => Reference::with_digest(registry, repository, digest.to_string()),
            Version::Tag(tag) => Reference::with_tag(registry, repository, tag.clone()),
            Version::Default => Reference::with_tag(registry, repository, "latest".into()),
        }
    }

    async fn fetch_manifest(&self, reference: &Reference) -> Result<RawManifest> {
        let shared = &*self.0;
        let failed = |error: reqwest::Error| unreachable(reference, error.is_timeout(), &chained(&error));
        let token = shared.client.auth(reference, &shared.login, RegistryOperation::Pull).await;
        let token = token.map_err(|error| refusal(reference, error))?;
        let scheme = if shared.plain { "http" } else { "https" };
        let version = reference.digest().or(reference.tag()).unwrap_or("latest");
        let url = format!("{scheme}://{}/v2/{}/manifests/{version}", reference.resolve_registry(), reference.repository());
        let mut request = shared.http.get(&url);
        for accepted in DOCUMENT_TYPES {
            request = request.header("accept", accepted);
        }
        request = match (token, &shared.login) {
            (Some(token), _) => request.bearer_auth(token),
            (None, RegistryAuth::Basic(user, password)) => request.basic_auth(user, Some(password)),
            (None, _) => request,
        };
        let mut answer = request.send().await.map_err(failed)?;
        match answer.status().as_u16() {
            200 => {}
            404 => {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!("{} is not in the registry: check its name and tag", reference.whole()),
                ));
            }
            401 | 403 => return Err(unauthorized(reference)),
            status => {
                return Err(Error::new(ErrorKind::Io, format!("the registry answers {status} for the manifest of {}", reference.whole())));
            }
        }
        let media_type = answer.headers().get("content-type").and_then(|value| value.to_str().ok());
        let media_type = media_type.map(|value| value.split(';').next().unwrap_or(value).trim().to_owned());
        let mut bytes = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(failed)? {
            if bytes.len() as u64 + piece.len() as u64 > DOCUMENT_BYTES_MAX {
                let message = format!("the manifest of {} has more than {DOCUMENT_BYTES_MAX} bytes", reference.whole());
                return Err(Error::new(ErrorKind::InvalidInput, message));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(RawManifest { digest: Digest::of(&bytes), media_type, bytes })
    }
}

impl ManifestSource for RegistrySource {
    fn manifest(&self, version: &Version) -> Result<RawManifest> {
        let reference = self.reference(version);
        let raw = self.0.runtime.block_on(self.fetch_manifest(&reference))?;
        match version {
            Version::Digest(wanted) if raw.digest != *wanted => {
                Err(Error::new(ErrorKind::Corrupt, format!("the registry gives {} when asked for {wanted}", raw.digest)))
            }
            _ => Ok(raw),
        }
    }

    fn open_blob(&self, digest: &Digest) -> Result<Box<dyn Read + Send>> {
        let shared = self.0.clone();
        let opened = shared.runtime.block_on(async {
            shared.client.store_auth_if_needed(shared.place.resolve_registry(), &shared.login).await;
            shared.client.pull_blob_stream(&shared.place, digest.to_string().as_str()).await
        });
        let stream = opened.map_err(|error| refusal(&shared.place, error))?.stream;
        Ok(Box::new(RemoteBlob { shared, stream: Some(stream), piece: Bytes::new() }))
    }
}

/// A blob that is read piece by piece, each when it is wanted.
struct RemoteBlob {
    shared: Arc<Shared>,
    /// Gone at the end: it must not be asked again.
    stream: Option<BoxStream<'static, io::Result<Bytes>>>,
    piece: Bytes,
}

impl Read for RemoteBlob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            let Some(stream) = &mut self.stream else { return Ok(0) };
            match self.shared.runtime.block_on(stream.next()) {
                Some(Ok(piece)) => self.piece = piece,
                // The crate checks the digest too, and says so with an error of its own kind.
                Some(Err(error)) => return Err(io::Error::other(interrupted(&self.shared.place, &error))),
                None => self.stream = None,
            }
        }
        let read = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..read]);
        Ok(read)
    }
}

fn interrupted(reference: &Reference, error: &io::Error) -> Error {
    let digest = error.get_ref().is_some_and(|inner| inner.is::<oci_client::errors::DigestError>());
    let kind = if digest { ErrorKind::Corrupt } else { ErrorKind::Io };
    Error::new(kind, format!("fetch a layer of {}: {}", reference.repository(), chained(error)))
}

fn unauthorized(reference: &Reference) -> Error {
    let message = format!(
        "the registry does not let us read {}: check the name, and set VOLFORK_REGISTRY_USER and VOLFORK_REGISTRY_PASSWORD, or run 'docker login'",
        reference.whole()
    );
    Error::new(ErrorKind::ReadOnly, message)
}

fn unreachable(reference: &Reference, timeout: bool, why: &str) -> Error {
    let why = if timeout { "it does not answer in time" } else { why };
    Error::new(ErrorKind::Io, format!("the registry {} cannot be read: {why}", reference.registry()))
}

fn refusal(reference: &Reference, error: OciDistributionError) -> Error {
    match error {
        OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => unauthorized(reference),
        OciDistributionError::ImageManifestNotFoundError(_) | OciDistributionError::ServerError { code: 404, .. } => {
            Error::new(ErrorKind::NotFound, format!("a part of {} is not in the registry: push it again", reference.whole()))
        }
        OciDistributionError::RequestError(error) => unreachable(reference, error.is_timeout(), &chained(&error)),
        other => Error::new(ErrorKind::Io, format!("the registry {}: {}", reference.registry(), chained(&other))),
    }
}

/// An error and what caused it, as far as that says more.
fn chained(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text.chars().take(500).collect()
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: std::collections::HashMap<String, DockerAuth>,
}

#[derive(Deserialize)]
struct DockerAuth {
    #[serde(default)]
    auth: String,
}

/// What `docker login` wrote for a host. Logins that it keeps in a program of its own are not found.
fn docker_login(host: &str) -> Option<RegistryAuth> {
    let directory = std::env::var_os("DOCKER_CONFIG").map(Into::into);
    let directory = directory.or_else(|| Some(std::path::PathBuf::from(std::env::var_os("HOME")?).join(".docker")))?;
    let text = std::fs::read(directory.join("config.json")).ok()?;
    login_of(&text, host)
}

fn login_of(config: &[u8], host: &str) -> Option<RegistryAuth> {
    let config: DockerConfig = serde_json::from_slice(config).ok()?;
    let key = if host == "docker.io" { "https://index.docker.io/v1/" } else { host };
    let decoded = data_encoding::BASE64.decode(config.auths.get(key)?.auth.as_bytes()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (user, password) = text.split_once(':')?;
    Some(RegistryAuth::Basic(user.into(), password.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_spoken_to_without_tls() {
        for (registry, here) in [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("[::1]:5000", true),
            ("[::1]", true),
            ("localhost.example:5000", false),
            ("registry.example", false),
        ] {
            assert_eq!(host_is_here(registry), here, "{registry}");
        }
    }

    #[test]
    fn logins_are_read_from_dockers_configuration() {
        let config = format!("{{\"auths\":{{\"host:5000\":{{\"auth\":\"{}\"}}}}}}", data_encoding::BASE64.encode(b"user:pass:word"));
        assert_eq!(login_of(config.as_bytes(), "host:5000"), Some(RegistryAuth::Basic("user".into(), "pass:word".into())));
        assert_eq!(login_of(config.as_bytes(), "other"), None);
        assert_eq!(login_of(b"nonsense", "host:5000"), None);
    }
}
