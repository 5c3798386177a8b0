//! Addresses of sources as they are typed.

use std::env;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

/// Whether the source of a fork is elsewhere.
pub fn is_uri(source: &str) -> bool {
    source.contains("://")
}

/// Characters of a path that are escaped in an address.
const IN_QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_');

/// The address of a source that a user typed, with whole paths: the process that opens it, now or after a restart, may be in another
/// directory.
pub fn from_here(uri: String) -> String {
    let Ok(here) = env::current_dir() else { return uri };
    let Some((scheme, path)) = uri.split_once("://") else { return uri };
    match scheme {
        "file" if is_relative(path) => here.to_str().map_or_else(|| uri.clone(), |here| format!("file://{here}/{path}")),
        "nbd+unix" | "nbds" | "nbds+unix" => with_whole_paths(&uri, &here),
        _ => uri,
    }
}

fn is_relative(path: &str) -> bool {
    !path.is_empty() && !path.starts_with('/') && !path.get(..3).is_some_and(|first| first.eq_ignore_ascii_case("%2f"))
}

/// The address with whole paths in its query: of a socket, and of a directory of certificates.
fn with_whole_paths(uri: &str, here: &Path) -> String {
    let Some((before, query)) = uri.split_once('?') else { return uri.to_owned() };
    let here = percent_encode(here.as_os_str().as_bytes(), IN_QUERY).to_string();
    let whole = |parameter: &str| match parameter.split_once('=') {
        Some((key @ ("socket" | "tls-certificates"), path)) if is_relative(path) => format!("{key}={here}/{path}"),
        _ => parameter.to_owned(),
    };
    format!("{before}?{}", query.split('&').map(whole).collect::<Vec<_>>().join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths_of_sources_are_those_of_the_caller() {
        let whole = |uri| with_whole_paths(uri, Path::new("/my dir"));
        assert_eq!(whole("nbd+unix:///v?socket=a/s"), "nbd+unix:///v?socket=/my%20dir/a/s");
        assert_eq!(whole("nbd+unix:///s?x=s&socket=s&y=s"), "nbd+unix:///s?x=s&socket=/my%20dir/s&y=s");
        let both = "nbds+unix:///s?tls-certificates=pki&socket=s&tls-hostname=a";
        assert_eq!(whole(both), "nbds+unix:///s?tls-certificates=/my%20dir/pki&socket=/my%20dir/s&tls-hostname=a");
        for same in ["nbd+unix:///v?socket=/s", "nbd+unix:///v?socket=%2Fs", "nbd+unix:///v?socket=", "nbd+unix:///v", "nbds://s/v?x"] {
            assert_eq!(whole(same), same);
        }
        let here = env::current_dir().unwrap();
        assert_eq!(from_here("file://a.img".into()), format!("file://{}/a.img", here.display()));
        assert!(from_here("nbds://h/v?tls-certificates=pki".into()).ends_with("/pki"));
        for same in ["file:///s", "nbd://s/v?socket=a", "v@s"] {
            assert_eq!(from_here(same.into()), same);
        }
    }

    #[test]
    fn addresses_are_told_from_names() {
        assert!(is_uri("nbd://host:10809/disk@s") && is_uri("nbd+unix:///disk?socket=/s"));
        assert!(!is_uri("disk@s"));
    }
}
