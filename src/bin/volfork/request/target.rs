//! The target of a command: a volume, or a snapshot of it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `NAME` or `NAME@SNAP`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
