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
    absolute(&uri, &here).unwrap_or(uri)
}

/// `None` if nothing in it is relative to `here`.
fn absolute(uri: &str, here: &Path) -> Option<String> {
    let (before, path, here) = match uri.split_once("://")? {
        ("file", path) => ("file://", path, here.to_str()?.to_owned()),
        ("nbd+unix", _) => {
            let query = uri.find('?')?;
            let at = ["?socket=", "&socket="].iter().find_map(|key| Some(query + uri[query..].find(key)? + key.len()))?;
            (&uri[..at], &uri[at..], percent_encode(here.as_os_str().as_bytes(), IN_QUERY).to_string())
        }
        _ => return None,
    };
    let is_relative = !path.is_empty() && !path.starts_with('/') && !path.get(..3).is_some_and(|first| first.eq_ignore_ascii_case("%2f"));
    is_relative.then(|| format!("{before}{here}/{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths_of_sources_are_those_of_the_caller() {
        let whole = |uri| absolute(uri, Path::new("/my dir"));
        assert_eq!(whole("nbd+unix:///v?socket=a/s").unwrap(), "nbd+unix:///v?socket=/my%20dir/a/s");
        assert_eq!(whole("nbd+unix:///s?x=s&socket=s&y=s").unwrap(), "nbd+unix:///s?x=s&socket=/my%20dir/s&y=s");
        assert_eq!(whole("file://a.img").unwrap(), "file:///my dir/a.img");
        for same in
            ["nbd+unix:///v?socket=/s", "nbd+unix:///v?socket=%2Fs", "nbd+unix:///v?socket=", "nbd+unix:///v", "file:///s", "nbd://s/v"]
        {
            assert_eq!(whole(same), None, "{same}");
        }
    }

    #[test]
    fn addresses_are_told_from_names() {
        assert!(is_uri("nbd://host:10809/disk@s") && is_uri("nbd+unix:///disk?socket=/s"));
        assert!(!is_uri("disk@s"));
    }
}
