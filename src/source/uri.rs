//! Addresses of sources, cut into their parts (RFC 3986, section 3; for NBD
//! <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md>).

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

/// Characters of an export name that a URI percent-encodes.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'@');

/// `SCHEME://AUTHORITY/PATH?QUERY`. A fragment is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Uri<'a> {
    pub scheme: &'a str,
    pub authority: &'a str,
    /// Empty, or a slash and what follows it.
    pub path: &'a str,
    pub query: Option<&'a str>,
}

impl<'a> Uri<'a> {
    /// `None` unless the text has a scheme and an authority, which may be empty.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let is_scheme = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
        if !scheme.starts_with(|first: char| first.is_ascii_alphabetic()) || !is_scheme(scheme) {
            return None;
        }
        let rest = rest.split_once('#').map_or(rest, |(before, _)| before);
        let (rest, query) = rest.split_once('?').map_or((rest, None), |(before, query)| (before, Some(query)));
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        Some(Self { scheme, authority, path, query })
    }

    /// Host and port of the authority: `HOST`, `HOST:PORT`, `[V6]:PORT`, with or without a user before them.
    ///
    /// # Errors
    /// The end of a sentence that says what is wrong.
    pub fn host(&self) -> Result<(&'a str, Option<u16>), &'static str> {
        let place = self.authority.rsplit_once('@').map_or(self.authority, |(_, place)| place);
        let (host, port) = match place.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or("has a [ without its ]")?;
                let port = if after.is_empty() { None } else { Some(after.strip_prefix(':').ok_or("has no port after its ]")?) };
                (host, port)
            }
            None => place.split_once(':').map_or((place, None), |(host, port)| (host, Some(port))),
        };
        let odd = |char: char| char.is_whitespace() || char.is_control() || "<>^|\\[]\"`{}".contains(char);
        if host.contains(odd) {
            return Err("has a host that is no name");
        }
        let port = port.filter(|port| !port.is_empty()).map(|port| match port.bytes().all(|digit| digit.is_ascii_digit()) {
            true => port.parse().map_err(|_| "has a port above 65535"),
            false => Err("has a port that is no number"),
        });
        Ok((host, port.transpose()?))
    }
}

/// Key of the host of an address. Addresses with the same key share bandwidth, health and round-trip times.
pub(crate) fn host_of(uri: &str) -> String {
    match Uri::parse(uri) {
        Some(parts) => format!("{}://{}?{}", parts.scheme, parts.authority, parts.query.unwrap_or_default()),
        None => uri.to_owned(),
    }
}

/// The URI of another export of the same server; `None` if `uri` has no scheme or no authority.
pub(crate) fn with_export(uri: &str, export: &str) -> Option<String> {
    let Uri { scheme, authority, query, .. } = Uri::parse(uri)?;
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    Some(format!("{scheme}://{authority}/{}{query}", percent_encode(export.as_bytes(), ENCODED)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_cut_where_others_cut_it() {
        let cut = |text| Uri::parse(text).map(|uri| (uri.scheme, uri.authority, uri.path, uri.query));
        assert_eq!(cut("nbd://h:7/a/b?c=d?e#f"), Some(("nbd", "h:7", "/a/b", Some("c=d?e"))));
        assert_eq!(cut("nbd+unix:///v?socket=/run/x"), Some(("nbd+unix", "", "/v", Some("socket=/run/x"))));
        assert_eq!(cut("nbd://h#/v"), Some(("nbd", "h", "", None)));
        assert_eq!(cut("nbd://h?q"), Some(("nbd", "h", "", Some("q"))));
        for wrong in ["", "host", "nbd:h/v", "://h", "1nbd://h", "n bd://h", "nbd\u{e9}://h"] {
            assert_eq!(cut(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn hosts_and_ports() {
        let host = |authority| Uri { scheme: "nbd", authority, path: "", query: None }.host();
        assert_eq!(host("h"), Ok(("h", None)));
        assert_eq!(host("h:"), Ok(("h", None)));
        assert_eq!(host("me@h:65535"), Ok(("h", Some(65535))));
        assert_eq!(host("[::1]:7"), Ok(("::1", Some(7))));
        assert_eq!(host("[fe80::1%eth0]"), Ok(("fe80::1%eth0", None)));
        assert_eq!(host(""), Ok(("", None)));
        for wrong in ["h:65536", "h:+7", "h:x", "::1", "[::1", "[::1]7", "a b", "a<b", "h\\x"] {
            assert!(host(wrong).is_err(), "{wrong}");
        }
    }
}
