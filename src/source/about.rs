//! What a volfork server tells its clients about an export, besides the bytes.

use crate::format::{Labels, valid_labels};

/// Longest encoded text that is parsed, in bytes; a longer one counts as empty.
const TEXT_BYTES_MAX: usize = 16 << 10;
/// Longest store id or identity that is accepted, in bytes.
const NAME_BYTES_MAX: usize = 255;
/// Prefix of the label keys that a store uses for its own volumes; they mean nothing to another store.
const OWN_KEYS: &str = "volfork.";

/// What a source tells about its bytes; a field is empty if the source does not say.
///
/// ```
/// use std::collections::BTreeMap;
/// use volfork::source::About;
///
/// let labels = BTreeMap::from([("vm.image".to_owned(), "app:v1".to_owned()), ("volfork.reservation".to_owned(), "7".to_owned())]);
/// // What a store notes for itself means nothing on another host.
/// let about = About { labels: About::travelling(&labels), ..About::default() };
/// assert_eq!(about.labels, [("vm.image".to_owned(), "app:v1".to_owned())].into());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// Id of the store that serves the bytes.
    pub store: String,
    /// For a volume: the identity that a snapshot taken now would have.
    pub live: String,
    /// Labels of the volume that also apply to its forks, such as the machine and the image.
    pub labels: Labels,
}

impl About {
    /// The labels of a volume that a fork on another host inherits.
    pub fn travelling(labels: &Labels) -> Labels {
        labels.iter().filter(|(key, _)| travels(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// Encodes it for the wire: JSON with the names of the fields.
    #[cfg(feature = "serve")]
    pub(crate) fn encode(&self) -> Vec<u8> {
        let labels: jzon::object::Object = self.labels.iter().map(|(key, value)| (key, jzon::JsonValue::from(value.as_str()))).collect();
        jzon::object! { store: self.store.as_str(), live: self.live.as_str(), labels: labels }.dump().into_bytes()
    }

    /// Decodes untrusted text. Text that no volfork server sends decodes to the empty value.
    pub(crate) fn decode(text: &[u8]) -> Self {
        let told = (text.len() <= TEXT_BYTES_MAX).then(|| Self::parse(text)).flatten();
        told.unwrap_or_default().believed()
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let told = jzon::parse(std::str::from_utf8(text).ok()?).ok()?;
        let told = told.as_object()?;
        let name = |key| told.get(key).map_or(Some(String::new()), |name| name.as_str().map(str::to_owned));
        let labels = match told.get("labels") {
            Some(labels) => labels.as_object()?.iter().map(|(key, value)| Some((key.to_owned(), value.as_str()?.to_owned()))).collect(),
            None => Some(Labels::new()),
        };
        Some(Self { store: name("store")?, live: name("live")?, labels: labels? })
    }

    /// Removes values that no volfork server sends: the rest is stored in the journal and shown to people.
    pub(crate) fn believed(mut self) -> Self {
        let is_name = |name: &str| name.len() <= NAME_BYTES_MAX && name.bytes().all(|byte| byte.is_ascii_graphic());
        for name in [&mut self.store, &mut self.live] {
            if !is_name(name) {
                name.clear();
            }
        }
        let is_plain = |text: &str| !text.chars().any(char::is_control);
        let is_right = valid_labels(&self.labels).is_ok() && self.labels.iter().all(|(key, value)| is_plain(key) && is_plain(value));
        self.labels.retain(|key, _| is_right && travels(key));
        self
    }
}

fn travels(key: &str) -> bool {
    !key.starts_with(OWN_KEYS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(of: &[(&str, &str)]) -> Labels {
        of.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_is_told_is_what_was_noted_but_for_the_stores_own() {
        let noted = labels(&[("vm.cpus", "2"), ("volfork.reservation", "x@a.b"), ("image", "app:v1")]);
        let about = About { store: "0a".into(), live: "0a/7".into(), labels: About::travelling(&noted) };
        assert_eq!(about.labels, labels(&[("vm.cpus", "2"), ("image", "app:v1")]));
        assert_eq!(About::decode(&about.encode()), about);
    }

    #[test]
    fn what_no_volfork_says_is_nothing() {
        let told = |labels: &str| About::decode(format!("{{\"store\": \"0a\", \"labels\": {labels}}}").as_bytes());
        assert_eq!(told("{\"vm.cpus\": \"2\", \"volfork.unfinished-import\": \"v\"}").labels, labels(&[("vm.cpus", "2")]));
        let long = format!("{{\"k\": \"{}\"}}", "v".repeat(3000));
        for wrong in ["{\"k\": \"\\u001b[2J\"}", "{\"k\\n\": \"v\"}", "{\"\": \"v\"}", &long] {
            let about = told(wrong);
            assert_eq!((about.store.as_str(), about.labels), ("0a", Labels::new()), "{wrong}");
        }
        for wrong in ["", "[]", "{\"store\": 1}", "{\"labels\": {\"a\": 1}}", &"[".repeat(10_000), &" ".repeat(20_000)] {
            assert_eq!(About::decode(wrong.as_bytes()), About::default());
        }
        let about = About::decode(b"{\"store\": \"a b\", \"live\": \"\\u0007\"}");
        assert_eq!(about, About::default());
    }
}
