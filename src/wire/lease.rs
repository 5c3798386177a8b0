//! The option by which a fork asks for a lease, private to volfork: other servers answer that they do not know it.
//!
//! ```text
//! OPT_LEASE  action u16 (1 take, 2 hold, 3 release), id 16 bytes, export name, fork name, host name, identity (each u32 length, bytes)
//! REP_LEASE  seconds until it lapses u64, export name of what it holds
//! ```
//! `REP_ACK` follows the reply; it is the only answer to a release.

use std::time::Duration;

use super::bytes::{WireError, WireReader, WireWriter};
use super::constants::STRING_BYTES_MAX;
use crate::ids::LeaseId;

/// Most bytes of the name of a fork or a host, or of an identity.
const TEXT_BYTES_MAX: usize = 255;
/// Longest time to a lapse that is accepted; a longer one is cut.
const LAPSE_MAX: Duration = Duration::from_secs(366 * 86_400);

/// The three requests that a fork makes about a lease.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use volfork::LeaseId;
/// use volfork::source::{LeaseAction, LeaseRequest};
///
/// store.create_volume("base", 1 << 20)?.create_snapshot("v1")?;
/// let (fork, host) = ("machine".to_owned(), "b".to_owned());
/// let mut request = LeaseRequest { action: LeaseAction::Take, id: LeaseId::random()?, fork, host, identity: String::new() };
/// assert!(store.lease(("base", Some("v1")), &request, "10.0.0.2:50000")?.is_some());
/// // The fork has all that it needs.
/// request.action = LeaseAction::Release;
/// assert!(store.lease(("base", Some("v1")), &request, "10.0.0.2:50000")?.is_none());
/// store.destroy_snapshot("base", "v1")?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeaseAction {
    /// A lease of the export: of a snapshot as it is, of a volume as a snapshot of this moment.
    Take,
    /// The lease once more, or one of the export if that is a snapshot.
    Hold,
    /// The end of the lease.
    Release,
}

/// A request for a lease.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use volfork::LeaseId;
/// use volfork::source::{LeaseAction, LeaseRequest};
///
/// store.create_volume("base", 1 << 20)?.create_snapshot("v1")?;
/// let request = LeaseRequest {
///     action: LeaseAction::Take,
///     // The same one when the answer was lost: the lease is not taken twice.
///     id: LeaseId::random()?,
///     fork: "machine".into(),
///     host: "b".into(),
///     identity: store.snapshot("base", "v1")?.identity(),
/// };
/// for _ in 0..2 {
///     store.lease(("base", Some("v1")), &request, "10.0.0.2:50000")?;
/// }
/// assert_eq!(store.show("base")?.leases.len(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRequest {
    /// The action that is asked for.
    pub action: LeaseAction,
    /// Number of the lease, chosen by the one that asks: to ask again changes nothing.
    pub id: LeaseId,
    /// Name of the fork.
    pub fork: String,
    /// Name of its host.
    pub host: String,
    /// Identity of the bytes that it needs, or empty: a snapshot that has others is not held.
    pub identity: String,
}

/// A lease that was given.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use volfork::LeaseId;
/// use volfork::source::{LeaseAction, LeaseRequest};
///
/// let volume = store.create_volume("base", 1 << 20)?;
/// let (fork, host) = ("machine".to_owned(), "b".to_owned());
/// let request = LeaseRequest { action: LeaseAction::Take, id: LeaseId::random()?, fork, host, identity: String::new() };
/// // A lease of a volume is one of a snapshot that is taken now; it goes with its last lease.
/// let grant = store.lease(("base", None), &request, "10.0.0.2:50000")?.unwrap();
/// assert_eq!(grant.export, format!("base@{}", volume.info()?.leases[0].snapshot));
/// assert_eq!(grant.lapse.as_secs(), 7 * 86_400);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseGrant {
    /// It lapses if it is not renewed within this time.
    pub lapse: Duration,
    /// Export name of the snapshot that it holds.
    pub export: String,
}

impl LeaseRequest {
    /// The data of the option.
    pub fn encode(&self, export: &str) -> Vec<u8> {
        let action = match self.action {
            LeaseAction::Take => 1,
            LeaseAction::Hold => 2,
            LeaseAction::Release => 3,
        };
        let mut writer = WireWriter::default();
        writer.u16(action).raw(&self.id.0).text(export).text(&self.fork).text(&self.host).text(&self.identity);
        writer.bytes
    }

    /// The export, and what is asked of it.
    ///
    /// # Errors
    /// The lengths do not fit together, an action is unknown, or a name is none that can be shown.
    pub fn decode(data: &[u8]) -> Result<(String, Self), WireError> {
        let mut reader = WireReader::new(data);
        let action = match reader.u16()? {
            1 => LeaseAction::Take,
            2 => LeaseAction::Hold,
            3 => LeaseAction::Release,
            other => return Err(WireError(format!("action {other} of a lease is unknown"))),
        };
        let mut id = LeaseId([0; 16]);
        id.0.copy_from_slice(reader.take(16)?);
        let export = reader.text_within(STRING_BYTES_MAX)?;
        let (fork, host, identity) =
            (reader.text_within(TEXT_BYTES_MAX)?, reader.text_within(TEXT_BYTES_MAX)?, reader.text_within(TEXT_BYTES_MAX)?);
        reader.end()?;
        // They are kept, and shown to people.
        let is_plain = |text: &str| text.chars().all(|c| c.is_alphanumeric() || c.is_ascii_graphic());
        match is_plain(&fork) && is_plain(&host) {
            true => Ok((export, Self { action, id, fork, host, identity })),
            false => Err(WireError("the name of a fork or its host has characters that no name has".into())),
        }
    }
}

impl LeaseGrant {
    /// The data of the reply.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = WireWriter::default();
        writer.u64(self.lapse.as_secs()).text(&self.export);
        writer.bytes
    }

    /// # Errors
    /// The lengths do not fit together, or it lapses at once.
    pub fn decode(data: &[u8]) -> Result<Self, WireError> {
        let mut reader = WireReader::new(data);
        let (lapse, export) = (Duration::from_secs(reader.u64()?), reader.text_within(STRING_BYTES_MAX)?);
        reader.end()?;
        match lapse.is_zero() || export.is_empty() {
            true => Err(WireError("a lease of nothing, or for no time".into())),
            false => Ok(Self { lapse: lapse.min(LAPSE_MAX), export }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(action: LeaseAction, fork: &str) -> LeaseRequest {
        LeaseRequest { action, id: LeaseId([7; 16]), fork: fork.into(), host: "h".into(), identity: "s/1".into() }
    }

    #[test]
    fn golden_bytes_and_every_cut() {
        let request = request(LeaseAction::Take, "f");
        let bytes = request.encode("v@s");
        assert_eq!(bytes, [b"\0\x01", &[7; 16][..], b"\0\0\0\x03v@s\0\0\0\x01f\0\0\0\x01h\0\0\0\x03s/1"].concat());
        assert_eq!(LeaseRequest::decode(&bytes), Ok(("v@s".to_owned(), request.clone())));
        let grant = LeaseGrant { lapse: Duration::from_secs(9), export: "v@s".into() };
        assert_eq!(grant.encode(), b"\0\0\0\0\0\0\0\x09\0\0\0\x03v@s");
        assert_eq!(LeaseGrant::decode(&grant.encode()), Ok(grant.clone()));
        for cut in 0..bytes.len() {
            assert!(LeaseRequest::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        for cut in 0..grant.encode().len() {
            assert!(LeaseGrant::decode(&grant.encode()[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let request = |fork: &str| request(LeaseAction::Hold, fork);
        for fork in ["a b", "a\n", "\u{1b}[2J", &"x".repeat(256)] {
            assert!(LeaseRequest::decode(&request(fork).encode("v")).is_err(), "{fork}");
        }
        assert!(LeaseRequest::decode(&[b"\0\x04", &request("f").encode("v")[2..]].concat()).is_err());
        let grant = |lapse, export: &str| LeaseGrant { lapse, export: export.into() }.encode();
        assert!(LeaseGrant::decode(&grant(Duration::ZERO, "v")).is_err());
        assert!(LeaseGrant::decode(&grant(Duration::from_secs(1), "")).is_err());
        assert_eq!(LeaseGrant::decode(&grant(Duration::from_secs(u64::MAX), "v")).unwrap().lapse, LAPSE_MAX);
    }
}
