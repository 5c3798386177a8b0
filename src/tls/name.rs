//! The name in a certificate that was verified.
//!
//! ```text
//! Certificate  SEQUENCE { TBSCertificate, ... }
//! TBS          SEQUENCE { [0] version?, serial, algorithm, issuer, validity, subject, ... }
//! subject      SEQUENCE OF SET OF SEQUENCE { OID, string }
//! ```

/// Longest name, in bytes (RFC 5280, `ub-common-name`, in UTF-8).
const NAME_BYTES_MAX: usize = 256;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_IDENTIFIER: u8 = 0x06;
/// The version of a certificate: `[0]`, constructed.
const VERSION: u8 = 0xa0;
/// Strings of ASCII or UTF-8.
const STRINGS: [u8; 3] = [0x0c, 0x13, 0x16];
/// `id-at-commonName`, 2.5.4.3.
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];

/// Values of DER, one after the other.
struct Values<'a>(&'a [u8]);

impl<'a> Iterator for Values<'a> {
    type Item = (u8, &'a [u8]);

    /// The tag and the contents of the next value; none as well where the bytes are no DER.
    fn next(&mut self) -> Option<Self::Item> {
        let (tag, rest) = self.0.split_first()?;
        let (first, rest) = rest.split_first()?;
        let (length, rest) = match usize::from(*first) {
            short @ 0..0x80 => (short, rest),
            long => {
                let (bytes, rest) = rest.split_at_checked(long - 0x80).filter(|(bytes, _)| (1..=4).contains(&bytes.len()))?;
                (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
            }
        };
        let (contents, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((*tag, contents))
    }
}

/// The contents of the one value that `bytes` are, if it has this tag.
fn opened(bytes: &[u8], tag: u8) -> Option<Values<'_>> {
    Values(bytes).next().filter(|(found, _)| *found == tag).map(|(_, contents)| Values(contents))
}

/// The common name of a certificate's subject: the last one, if there are several. `None`: it has none that can be shown.
pub(super) fn name_of(certificate: &[u8]) -> Option<String> {
    let (_, to_be_signed) = opened(certificate, SEQUENCE)?.next()?;
    let mut fields = Values(to_be_signed);
    // The version is left out in certificates of version 1.
    let (first, _) = fields.next()?;
    let before_subject = if first == VERSION { 4 } else { 3 };
    let (_, subject) = fields.nth(before_subject)?;
    let sets = Values(subject).filter(|(tag, _)| *tag == SET).flat_map(|(_, set)| Values(set));
    let names = sets.filter(|(tag, _)| *tag == SEQUENCE).filter_map(|(_, attribute)| {
        let mut values = Values(attribute);
        let is_name = values.next()? == (OBJECT_IDENTIFIER, &COMMON_NAME[..]);
        let (tag, text) = values.next()?;
        (is_name && STRINGS.contains(&tag)).then_some(text)
    });
    let name = std::str::from_utf8(names.last()?).ok()?;
    let is_shown = (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control);
    is_shown.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    fn certificate(name: Option<&str>) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["other.example".into()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "volfork");
        if let Some(name) = name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn the_name_of_a_certificate_is_that_of_its_subject() {
        for name in ["client-7", "größe", &"x".repeat(200)] {
            assert_eq!(name_of(&certificate(Some(name))).as_deref(), Some(name));
        }
        for other in [certificate(None), certificate(Some("a\nb")), certificate(Some(&"x".repeat(257)))] {
            assert_eq!(name_of(&other), None);
        }
    }

    #[test]
    fn bytes_that_are_no_certificate_have_no_name() {
        let whole = certificate(Some("client"));
        for cut in 0..whole.len() {
            assert_eq!(name_of(&whole[..cut]), None, "cut at {cut}");
        }
        for at in 0..whole.len() {
            for value in [0, 0x7f, 0x80, 0x84, 0xff] {
                let mut odd = whole.clone();
                odd[at] = value;
                assert!(name_of(&odd).is_none_or(|name| name.len() <= NAME_BYTES_MAX));
            }
        }
    }
}
