//! Logins: the hosts that may know one, and the challenges of a registry.

use std::fmt;

use serde::Deserialize;
use url::Url;

use crate::error::{Error, ErrorKind, Result};

/// User and password for one registry.
///
/// ```
/// use volfork::image::RegistryLogin;
///
/// let login = RegistryLogin { host: "registry.example".into(), user: "robot".into(), password: "secret".into() };
/// // The password is in no log.
/// assert_eq!(format!("{login:?}"), "login of robot for registry.example");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct RegistryLogin {
    /// The registry that it is for, as in the names of its images: `registry.example`, `localhost:5000`, `docker.io`.
    pub host: String,
    /// The user.
    pub user: String,
    /// The password, or a token in its place.
    pub password: String,
}

impl RegistryLogin {
    pub(super) fn is_for(&self, host: &str) -> bool {
        self.host.eq_ignore_ascii_case(host)
    }
}

impl fmt::Debug for RegistryLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "login of {} for {}", self.user, self.host)
    }
}

/// The proof of a login that a registry asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// Nothing that is known here.
    Unknown,
    /// User and password.
    Basic,
    /// A token that another server gives.
    Bearer { realm: String, service: Option<String> },
}

impl Challenge {
    /// The challenge in the headers `WWW-Authenticate` of an answer: that for a token, where there is a choice.
    pub fn of<'a>(headers: impl Iterator<Item = &'a str>) -> Self {
        let mut found = Self::Unknown;
        for challenge in headers.filter_map(|header| http_auth::parse_challenges(header).ok()).flatten() {
            let value = |key: &str| {
                challenge.params.iter().find(|(other, _)| other.eq_ignore_ascii_case(key)).map(|(_, value)| value.to_unescaped())
            };
            match (challenge.scheme.to_ascii_lowercase().as_str(), value("realm")) {
                ("bearer", Some(realm)) => return Self::Bearer { realm, service: value("service") },
                ("basic", _) => found = Self::Basic,
                _ => {}
            }
        }
        found
    }
}

/// The server of tokens that `registry` names.
///
/// # Errors
/// [`ErrorKind::Unsupported`] if what is said there could be heard by others, and it is not the registry itself.
pub(super) fn checked_realm(realm: &str, registry: &str) -> Result<Url> {
    let shown: String = realm.chars().take(200).collect();
    let refused = |why: &str| {
        Error::new(ErrorKind::Unsupported, format!("the registry {registry} gives tokens at '{shown}', {why}: nothing was sent there"))
    };
    let url: Url = realm.parse().map_err(|_| refused("which is not an address"))?;
    let own = Url::parse(&format!("http://{registry}/")).ok();
    match url.scheme() {
        "https" => Ok(url),
        "http" if url.host().is_some() && own.is_some_and(|own| own.host() == url.host()) => Ok(url),
        _ => Err(refused("which is neither https nor on the same host")),
    }
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

/// The token in the answer of a server of tokens.
pub(super) fn token_of(answer: &[u8]) -> Result<String> {
    let token = serde_json::from_slice::<Token>(answer).ok().and_then(|answer| answer.token.or(answer.access_token));
    token.filter(|token| !token.is_empty()).ok_or_else(|| Error::new(ErrorKind::Io, "the registry's server of tokens gives none"))
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

/// The login that `docker login` wrote for a host. Logins that it keeps in a program of its own are not found.
#[expect(clippy::disallowed_methods, reason = "the file of another program is not on the disk of a store")]
pub(super) fn docker_login(host: &str) -> Option<RegistryLogin> {
    let directory = std::env::var_os("DOCKER_CONFIG").map(Into::into);
    let directory = directory.or_else(|| Some(std::path::PathBuf::from(std::env::var_os("HOME")?).join(".docker")))?;
    let text = std::fs::read(directory.join("config.json")).ok()?;
    login_of(&text, host)
}

fn login_of(config: &[u8], host: &str) -> Option<RegistryLogin> {
    let config: DockerConfig = serde_json::from_slice(config).ok()?;
    let key = if host == "docker.io" { "https://index.docker.io/v1/" } else { host };
    let decoded = data_encoding::BASE64.decode(config.auths.get(key)?.auth.as_bytes()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (user, password) = text.split_once(':')?;
    Some(RegistryLogin { host: host.into(), user: user.into(), password: password.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_read_from_dockers_configuration() {
        let config = format!("{{\"auths\":{{\"host:5000\":{{\"auth\":\"{}\"}}}}}}", data_encoding::BASE64.encode(b"user:pass:word"));
        assert_eq!(
            login_of(config.as_bytes(), "host:5000"),
            Some(RegistryLogin { host: "host:5000".into(), user: "user".into(), password: "pass:word".into() })
        );
        assert_eq!(login_of(config.as_bytes(), "other"), None);
        assert_eq!(login_of(b"nonsense", "host:5000"), None);
    }

    #[test]
    fn challenges_are_understood() {
        let of = |headers: &[&str]| Challenge::of(headers.iter().copied());
        let bearer = |realm: &str, service: Option<&str>| Challenge::Bearer { realm: realm.into(), service: service.map(Into::into) };
        assert_eq!(of(&["Bearer realm=\"https://auth/token\",service=\"s\""]), bearer("https://auth/token", Some("s")));
        assert_eq!(of(&["Basic realm=\"r\"", "bearer realm=\"https://a\""]), bearer("https://a", None));
        assert_eq!(of(&["basic realm=\"r\", charset=\"UTF-8\""]), Challenge::Basic);
        for unknown in [&["Digest realm=\"r\""][..], &["Bearer service=\"s\""], &["=,"], &[]] {
            assert_eq!(of(unknown), Challenge::Unknown, "{unknown:?}");
        }
    }

    #[test]
    fn tokens_are_asked_for_where_nobody_listens() {
        for (realm, registry, good) in [
            ("https://auth.example/token?x=1", "registry.example", true),
            ("http://registry.example:81/token", "registry.example:80", true),
            ("http://[::1]:5001/", "[::1]:5000", true),
            ("http://auth.example/token", "registry.example", false),
            ("http://registry.example.evil/", "registry.example", false),
            ("file:///etc/passwd", "registry.example", false),
            ("nonsense", "registry.example", false),
        ] {
            assert_eq!(checked_realm(realm, registry).is_ok(), good, "{realm} of {registry}");
        }
        assert_eq!(token_of(b"{\"access_token\":\"t\"}").unwrap(), "t");
        assert!(token_of(b"{\"token\":\"\"}").is_err() && token_of(b"[]").is_err());
        let login = RegistryLogin { host: "Registry.example".into(), user: "u".into(), password: "secret".into() };
        assert!(login.is_for("registry.example") && !login.is_for("registry.example.evil") && !format!("{login:?}").contains("secret"));
    }
}
