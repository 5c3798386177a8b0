//! A repository of a registry, over HTTP by the `reqwest` crate on a runtime of its own.
//!
//! A login is given to nobody but the registry that it is for, when that asks for it, and to the server of tokens that this registry
//! names; see `login`.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes};
use oci_spec::distribution::Reference;
use reqwest::header::WWW_AUTHENTICATE;
use reqwest::{Client, RequestBuilder, Response};
use tokio::runtime::Runtime;
use url::Url;

use super::login::{Challenge, RegistryLogin, checked_realm, docker_login, token_of};
use super::manifest::{DOCUMENT_BYTES_MAX, DOCUMENT_TYPES};
use super::name::Version;
use super::source::{ManifestSource, RawManifest};
use crate::content::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::options::with_methods;
use crate::place::wide;

/// Time for a connection, and between two pieces of an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a registry is spoken to.
///
/// ```
/// use volfork::image::{RegistryLogin, RegistryOptions};
///
/// let login = RegistryLogin { host: "registry.example".into(), user: "robot".into(), password: "secret".into() };
/// let options = RegistryOptions::default().with_login(login);
/// // TLS, unless the registry is on this machine.
/// assert!(!options.plain_http && options.login.is_some());
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RegistryOptions {
    /// Without TLS. Registries on this machine (`localhost`, `127.0.0.1`, `[::1]`) are spoken to without it anyway.
    pub plain_http: bool,
    /// For one registry. Others get what Docker's configuration says of them, or nothing.
    pub login: Option<RegistryLogin>,
}

with_methods! { RegistryOptions:
    with_plain_http(plain_http: bool);
    with_login(login: Some<RegistryLogin>);
}

/// The authorization that a request carries.
#[derive(Clone)]
enum Authorization {
    None,
    Basic(RegistryLogin),
    Bearer(String),
}

impl Authorization {
    fn apply(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Self::None => request,
            Self::Basic(login) => request.basic_auth(&login.user, Some(&login.password)),
            Self::Bearer(token) => request.bearer_auth(token),
        }
    }
}

struct Shared {
    runtime: Runtime,
    http: Client,
    login: Option<RegistryLogin>,
    place: Reference,
    plain: bool,
    /// The answer to the last challenge.
    authorization: Mutex<Authorization>,
}

/// The images of a repository.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// use volfork::ErrorKind;
/// use volfork::image::{ManifestSource, RegistryOptions, RegistrySource, Version};
///
/// let source = RegistrySource::open("localhost:5000/team/app", &RegistryOptions::default())?;
/// # if false {
/// let manifest = source.manifest(&Version::Tag("v1".into()))?;
/// println!("v1 is {}", manifest.digest);
/// # }
/// let error = RegistrySource::open("Not A Repository", &RegistryOptions::default()).unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::InvalidInput);
/// # Ok(())
/// # }
/// ```
pub struct RegistrySource(Arc<Shared>);

impl std::fmt::Debug for RegistrySource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistrySource").finish_non_exhaustive()
    }
}

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
        let agent = concat!("volfork/", env!("CARGO_PKG_VERSION"));
        // A host that the registry redirects to has to keep the request secret, too.
        let http = Client::builder().connect_timeout(PATIENCE).read_timeout(PATIENCE).user_agent(agent).https_only(!plain).build();
        let http = http.map_err(|error| Error::new(ErrorKind::Io, format!("cannot speak HTTP: {error}")))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let is_meant = |login: &&RegistryLogin| [place.registry(), place.resolve_registry()].iter().any(|host| login.is_for(host));
        let login = options.login.as_ref().filter(is_meant).cloned().or_else(|| docker_login(place.registry()));
        Ok(Self(Arc::new(Shared {
            runtime: runtime.map_err(|error| Error::io("start a runtime", error))?,
            http,
            login,
            place,
            plain,
            authorization: Mutex::new(Authorization::None),
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
        let version = reference.digest().or(reference.tag()).unwrap_or("latest");
        let answer = self.0.get(&format!("manifests/{version}"), reference).await?;
        match answer.status().as_u16() {
            200 => {}
            404 => {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!("{} is not in the registry: check its name and tag", reference.whole()),
                ));
            }
            status => {
                return Err(Error::new(ErrorKind::Io, format!("the registry answers {status} for the manifest of {}", reference.whole())));
            }
        }
        let media_type = answer.headers().get("content-type").and_then(|value| value.to_str().ok());
        let media_type = media_type.map(|value| value.split(';').next().unwrap_or(value).trim().to_owned());
        let bytes = document(answer, reference, "manifest").await?;
        Ok(RawManifest { digest: Digest::of(&bytes), media_type, bytes })
    }
}

/// The body of an answer that has to be short.
async fn document(mut answer: Response, reference: &Reference, what: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(|error| unreachable(reference, &error))? {
        if wide(bytes.len() + piece.len()) > DOCUMENT_BYTES_MAX {
            let message = format!("the {what} of {} has more than {DOCUMENT_BYTES_MAX} bytes", reference.whole());
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

impl Shared {
    /// Asks for a part of the repository; answers a challenge once: a token may have run out of time.
    async fn get(&self, part: &str, reference: &Reference) -> Result<Response> {
        let scheme = if self.plain { "http" } else { "https" };
        let url = format!("{scheme}://{}/v2/{}/{part}", reference.resolve_registry(), reference.repository());
        let url = Url::parse(&url).map_err(|error| Error::new(ErrorKind::InvalidInput, format!("'{url}' is not an address: {error}")))?;
        let mut was_challenged = false;
        loop {
            let mut request = self.http.get(url.clone());
            for accepted in DOCUMENT_TYPES {
                request = request.header("accept", accepted);
            }
            let authorization = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let answer = authorization.apply(request).send().await.map_err(|error| unreachable(reference, &error))?;
            match answer.status().as_u16() {
                // Not of another host that the registry has redirected to.
                401 if !was_challenged && answer.url().origin() == url.origin() => {
                    let headers = answer.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
                    let answered = self.answer_challenge(Challenge::of(headers), reference).await?;
                    *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = answered;
                    was_challenged = true;
                }
                401 | 403 => return Err(unauthorized(reference)),
                _ => return Ok(answer),
            }
        }
    }

    async fn answer_challenge(&self, challenge: Challenge, reference: &Reference) -> Result<Authorization> {
        match (challenge, &self.login) {
            (Challenge::Basic, Some(login)) => Ok(Authorization::Basic(login.clone())),
            (Challenge::Bearer { realm, service }, login) => {
                let mut url = checked_realm(&realm, reference.resolve_registry())?;
                let scope = format!("repository:{}:pull", reference.repository());
                url.query_pairs_mut().append_pair("scope", &scope).extend_pairs(service.map(|service| ("service", service)));
                let request = self.http.get(url);
                let request = match login {
                    Some(login) => request.basic_auth(&login.user, Some(&login.password)),
                    None => request,
                };
                let answer = request.send().await.map_err(|error| unreachable(reference, &error))?;
                match answer.status().as_u16() {
                    200 => Ok(Authorization::Bearer(token_of(&document(answer, reference, "token").await?)?)),
                    400..500 => Err(unauthorized(reference)),
                    status => Err(Error::new(ErrorKind::Io, format!("{realm} answers {status} when asked for a token"))),
                }
            }
            _ => Err(unauthorized(reference)),
        }
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
        let answer = shared.runtime.block_on(shared.get(&format!("blobs/{digest}"), &shared.place))?;
        let place = &shared.place;
        match answer.status().as_u16() {
            200 => Ok(Box::new(RemoteBlob { answer: Some(answer), shared, piece: Bytes::new() })),
            404 => Err(Error::new(ErrorKind::NotFound, format!("a part of {} is not in the registry: push it again", place.whole()))),
            status => Err(Error::new(ErrorKind::Io, format!("the registry answers {status} for a part of {}", place.whole()))),
        }
    }
}

/// A blob that is read piece by piece, each when it is wanted.
struct RemoteBlob {
    shared: Arc<Shared>,
    /// Gone at the end: it must not be asked again.
    answer: Option<Response>,
    piece: Bytes,
}

impl Read for RemoteBlob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            let Some(answer) = &mut self.answer else { return Ok(0) };
            match self.shared.runtime.block_on(answer.chunk()) {
                Ok(Some(piece)) => self.piece = piece,
                Ok(None) => self.answer = None,
                Err(error) => {
                    let message = format!("fetch a layer of {}: {}", self.shared.place.repository(), chained(&error));
                    return Err(io::Error::other(Error::new(ErrorKind::Io, message)));
                }
            }
        }
        let read = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..read]);
        Ok(read)
    }
}

fn unauthorized(reference: &Reference) -> Error {
    let (whole, registry) = (reference.whole(), reference.registry());
    let message = format!(
        "the registry does not let us read {whole}: check the name, and set VOLFORK_REGISTRY_HOST={registry} with \
         VOLFORK_REGISTRY_USER and VOLFORK_REGISTRY_PASSWORD, or run 'docker login {registry}'"
    );
    Error::new(ErrorKind::ReadOnly, message)
}

fn unreachable(reference: &Reference, error: &reqwest::Error) -> Error {
    let why = if error.is_timeout() { "it does not answer in time".into() } else { chained(error) };
    Error::new(ErrorKind::Io, format!("the registry {} cannot be read: {why}", reference.registry()))
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
}
