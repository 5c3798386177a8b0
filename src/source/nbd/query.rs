//! Parameters in the query of an address.
//!
//! Of TLS: `tls-certificates=DIR`, `tls-hostname=NAME`, `tls-verify-peer=true|false`
//! (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md>).

use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;

#[cfg(feature = "tls")]
use crate::tls::ClientTerms;

/// Name of a server at a path, if the address gives no other one.
#[cfg(feature = "tls")]
const LOCAL_NAME: &str = "localhost";

/// A parameter in the query of a URI. A plus sign stands for itself, as in other NBD clients.
pub(super) fn value_of(query: &str, key: &str) -> Option<Vec<u8>> {
    let encoded = query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))?;
    Some(percent_decode_str(encoded).collect())
}

pub(super) fn path_of(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// What the query of an address wants of a server at `host`, or at a path.
///
/// # Errors
/// The end of a sentence that says what is wrong.
#[cfg(feature = "tls")]
pub(super) fn terms(query: Option<&str>, host: Option<&str>) -> Result<ClientTerms, &'static str> {
    let query = query.unwrap_or_default();
    if ["tls-psk-file", "tls-username"].iter().any(|key| value_of(query, key).is_some()) {
        return Err("wants TLS with a pre-shared key, which is not supported: use certificates");
    }
    let verifies_peer = match value_of(query, "tls-verify-peer").as_deref() {
        None | Some(b"true" | b"1") => true,
        Some(b"false" | b"0") => false,
        Some(_) => return Err("has a tls-verify-peer that is neither true nor false"),
    };
    let name = match value_of(query, "tls-hostname") {
        Some(name) => String::from_utf8(name).map_err(|_| "has a tls-hostname that is no name")?,
        None => host.unwrap_or(LOCAL_NAME).to_owned(),
    };
    let certificates = value_of(query, "tls-certificates").filter(|path| !path.is_empty()).map(path_of);
    if certificates.is_none() && verifies_peer {
        return Err("does not say which CA to trust");
    }
    Ok(ClientTerms { certificates, name, verifies_peer })
}

#[cfg(all(test, feature = "tls"))]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_tls_are_read() {
        let of = |query| terms(Some(query), Some("host")).unwrap();
        let plain = of("tls-certificates=/a%20b");
        assert_eq!(plain, ClientTerms { certificates: Some("/a b".into()), name: "host".into(), verifies_peer: true });
        assert_eq!(of("x=y&tls-certificates=/p&tls-hostname=other&tls-verify-peer=1").name, "other");
        let trusting = of("tls-verify-peer=false");
        assert_eq!(trusting, ClientTerms { certificates: None, name: "host".into(), verifies_peer: false });
        assert_eq!(terms(Some("tls-certificates=p"), None).unwrap().name, "localhost");
        for wrong in [None, Some(""), Some("tls-certificates="), Some("tls-verify-peer=no"), Some("tls-certificates=p&tls-hostname=%ff")] {
            assert!(terms(wrong, Some("host")).is_err(), "{wrong:?}");
        }
    }
}
