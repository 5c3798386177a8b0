//! What a command names: a volume or a snapshot of it, a new size, an output.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::str::FromStr;
use std::{env, fmt};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use serde::{Deserialize, Serialize};

use crate::args::size;

/// `NAME` or `NAME@SNAP`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Name of the volume.
    pub volume: String,
    /// Name of the snapshot, if one is meant.
    pub snapshot: Option<String>,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (volume, snapshot) = match text.split_once('@') {
            Some((volume, snapshot)) => (volume, Some(snapshot)),
            None => (text, None),
        };
        if volume.is_empty() || snapshot.is_some_and(str::is_empty) {
            return Err("write NAME for a volume or NAME@SNAP for a snapshot".into());
        }
        Ok(Self { volume: volume.into(), snapshot: snapshot.map(Into::into) })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.snapshot {
            Some(snapshot) => write!(f, "{}@{snapshot}", self.volume),
            None => f.write_str(&self.volume),
        }
    }
}

/// What `extend --size` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Growth {
    /// `20G`: the new size.
    To(u64),
    /// `+10G`: bytes to add.
    By(u64),
}

impl FromStr for Growth {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix('+') {
            Some(more) => size(more).map(Self::By),
            None => size(text).map(Self::To),
        }
    }
}

/// Whether the source of a fork is elsewhere.
pub fn is_uri(source: &str) -> bool {
    source.contains("://")
}

/// What an absolute path has in an address as something else.
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
    fn targets_name_volumes_and_snapshots() {
        let target: Target = "disk@monday".parse().unwrap();
        assert_eq!((target.volume.as_str(), target.snapshot.as_deref()), ("disk", Some("monday")));
        assert_eq!(target.to_string(), "disk@monday");
        assert_eq!("disk".parse::<Target>().unwrap().snapshot, None);
        for text in ["", "@", "disk@", "@monday"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }

    #[test]
    fn growth_is_absolute_or_relative() {
        assert_eq!("20G".parse(), Ok(Growth::To(20 << 30)));
        assert_eq!("+1.5M".parse(), Ok(Growth::By(3 << 19)));
        for text in ["", "+", "-1G", "++1G", "x", "20", "+10"] {
            assert!(text.parse::<Growth>().is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_are_told_from_names() {
        assert!(is_uri("nbd://host:10809/disk@s") && is_uri("nbd+unix:///disk?socket=/s"));
        assert!(!is_uri("disk@s"));
    }
}
