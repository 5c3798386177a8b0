//! Notes about volumes and layers that mean nothing to the engine.
//!
//! ```text
//! labels  n u32, n times (key blob, value blob), keys in order
//! ```

use std::collections::BTreeMap;

use super::bytes::{FormatError, Reader, Writer};
use crate::content::{Digest, HeldLayer, ImageLayer};
use crate::error::{Error, ErrorKind};
use crate::ids::LayerId;

/// Values by key.
pub type Labels = BTreeMap<String, String>;

/// New values by key; `None` takes a key away.
pub type LabelChange = BTreeMap<String, Option<String>>;

/// Labels after a change.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] if they are too much.
pub fn changed_labels(mut labels: Labels, change: &LabelChange) -> crate::error::Result<Labels> {
    for (key, value) in change {
        match value {
            Some(value) => labels.insert(key.clone(), value.clone()),
            None => labels.remove(key),
        };
    }
    valid_labels(&labels)?;
    Ok(labels)
}

/// Most bytes of all keys and values of the labels of one volume.
const LABELS_BYTES_MAX: usize = 2048;
/// How keys begin that volfork notes by itself. Users' labels leave them room: a volume whose users have noted much can be made by a
/// reservation, and forked in another size.
const OWN_PREFIX: &str = "volfork.";
/// Most bytes of these: two with the longest name of a volume, and a reservation.
const OWN_LABELS_BYTES_MAX: usize = 768;
/// Most bytes of all labels of one volume.
pub const ALL_LABELS_BYTES_MAX: usize = LABELS_BYTES_MAX + OWN_LABELS_BYTES_MAX;

/// Refuses labels that are too large, or have an empty key.
///
/// # Errors
/// [`ErrorKind::InvalidInput`].
pub fn valid_labels(labels: &Labels) -> crate::error::Result<()> {
    for (is_own, what, most) in [(false, "labels", LABELS_BYTES_MAX), (true, "labels 'volfork.…'", OWN_LABELS_BYTES_MAX)] {
        let counted = labels.iter().filter(|(key, _)| key.starts_with(OWN_PREFIX) == is_own);
        let bytes: usize = counted.map(|(key, value)| 8 + key.len() + value.len()).sum();
        if bytes > most {
            let message = format!("the {what} of a volume have {bytes} bytes, {most} are kept: make them shorter");
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
    }
    match labels.contains_key("") {
        true => Err(Error::new(ErrorKind::InvalidInput, "a label needs a key")),
        false => Ok(()),
    }
}

pub(super) fn write_labels(writer: &mut Writer, labels: &Labels) {
    writer.count(labels.len());
    for (key, value) in labels {
        writer.blob(key.as_bytes());
        writer.blob(value.as_bytes());
    }
}

pub(super) fn read_labels(reader: &mut Reader<'_>) -> Result<Labels, FormatError> {
    let mut labels = Labels::new();
    for _ in 0..reader.u32()? {
        let (key, value) = (reader.text()?, reader.text()?);
        if labels.last_key_value().is_some_and(|(last, _)| *last >= key) {
            return Err(FormatError::damaged(format!("label '{key}' is out of order")));
        }
        labels.insert(key, value);
    }
    Ok(labels)
}

/// A sealed layer holds a layer of an image on top of those below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldRecord {
    /// The layer.
    pub layer: LayerId,
    /// Bytes of the volume that it was sealed in.
    pub size_bytes: u64,
    /// The layer of the image.
    pub held: HeldLayer,
}

impl HeldRecord {
    pub(super) fn encode(&self, writer: &mut Writer) {
        let HeldLayer { layer: ImageLayer { digest, bytes }, chain } = self.held;
        writer.u32(self.layer.0);
        writer.u64(self.size_bytes);
        writer.raw(&digest.0);
        writer.u64(bytes);
        writer.raw(&chain.0);
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let (layer, size_bytes) = (LayerId(reader.u32()?), reader.u64()?);
        let layer_of_image = ImageLayer { digest: Digest(reader.array()?), bytes: reader.u64()? };
        Ok(Self { layer, size_bytes, held: HeldLayer { layer: layer_of_image, chain: Digest(reader.array()?) } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let mut writer = Writer::default();
        write_labels(&mut writer, &[("a".to_owned(), "xy".to_owned()), ("b".to_owned(), String::new())].into());
        assert_eq!(writer.bytes, b"\x02\0\0\0\x01\0\0\0a\x02\0\0\0xy\x01\0\0\0b\0\0\0\0");
        let mut writer = Writer::default();
        let held = HeldLayer { layer: ImageLayer { digest: Digest([1; 32]), bytes: 2 }, chain: Digest([3; 32]) };
        HeldRecord { layer: LayerId(4), size_bytes: 5, held }.encode(&mut writer);
        let golden = [&b"\x04\0\0\0\x05\0\0\0\0\0\0\0"[..], &[1; 32], b"\x02\0\0\0\0\0\0\0", &[3; 32]].concat();
        assert_eq!(writer.bytes, golden);
    }

    #[test]
    fn labels_out_of_order_or_too_large_are_refused() {
        for wrong in [&b"\x02\0\0\0\x01\0\0\0b\0\0\0\0\x01\0\0\0a\0\0\0\0"[..], b"\xff\xff\xff\xff"] {
            assert!(read_labels(&mut Reader::new(wrong)).is_err());
        }
        let label = |key: &str, bytes: usize| (key.to_owned(), "v".repeat(bytes - 8 - key.len()));
        // Each kind leaves the other its room.
        assert!(valid_labels(&[label("k", 2048), label("volfork.k", 768)].into()).is_ok());
        for wrong in [label("k", 2049), label("volfork.k", 769), (String::new(), "v".to_owned())] {
            assert_eq!(valid_labels(&[wrong].into()).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
    }
}
