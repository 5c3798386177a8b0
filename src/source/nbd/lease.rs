//! Leases of NBD exports. A lease is taken in the handshake before the export is opened; it is renewed and given back on short
//! connections of their own.

use super::NbdOptions;
use super::address::Address;
use super::handshake::{Refusal, Talk, refused};
use crate::source::{Lease, LeaseAction, LeaseRequest, SourceError};
use crate::wire::constants::{OPT_ABORT, OPT_LEASE, REP_ACK, REP_ERR_SHUTDOWN, REP_ERR_UNSUP, REP_LEASE};
use crate::wire::{LeaseGrant, deadline_after};

impl Talk {
    /// Requests a lease, or gives one back. `None` if it was given back, the server does not support leases, or it has none for a `Hold`.
    /// Restarts the deadline of the handshake.
    pub fn lease(&mut self, export: &str, request: &LeaseRequest, options: &NbdOptions) -> Result<Option<LeaseGrant>, Refusal> {
        // The server may have to take a snapshot, which syncs its disk first.
        self.deadline = deadline_after(options.request_timeout.max(options.connect_timeout));
        self.send(OPT_LEASE, &request.encode(export))?;
        let (end, replies) = self.answer(OPT_LEASE)?;
        self.deadline = deadline_after(options.connect_timeout);
        match end {
            REP_ACK => {
                let grant = replies.iter().find(|(kind, _)| *kind == REP_LEASE);
                Ok(grant.map(|(_, data)| LeaseGrant::decode(data)).transpose()?)
            }
            REP_ERR_UNSUP => Ok(None),
            // A refused `Hold` is no error: a server that is full, or has too many leases, still serves the export.
            other if other != REP_ERR_SHUTDOWN && request.action == LeaseAction::Hold => Ok(None),
            other => Err(refused(other, export, &replies)),
        }
    }
}

/// The lease of a grant: the grant names an export of the server at `uri`.
pub(super) fn lease_of(uri: &str, address: &Address, grant: LeaseGrant) -> Result<Lease, SourceError> {
    let uri = if grant.export == address.export { uri.to_owned() } else { Address::with_export(uri, &grant.export)? };
    Ok(Lease { uri, lapse: grant.lapse })
}

/// Renews a lease, or gives it back, on a connection of its own.
///
/// # Errors
/// Nobody answers, or the server refuses the lease.
pub(super) fn ask(uri: &str, options: &NbdOptions, request: &LeaseRequest) -> Result<Option<Lease>, SourceError> {
    let address = Address::parse(uri)?;
    // A refusal before the lease was named says nothing of it: certificates may be renewed.
    let not_asked = |refusal| match refusal {
        Refusal::Never(_, text) => Refusal::Later(text),
        later @ Refusal::Later(_) => later,
    };
    let asked = Talk::begin(&address, options.connect_timeout).map_err(not_asked).and_then(|(mut talk, _)| {
        let grant = talk.lease(&address.export, request, options)?;
        // If the abort cannot be sent, the server sees the end of the connection.
        let _ = talk.send(OPT_ABORT, &[]);
        Ok(grant)
    });
    let grant = asked.map_err(|refusal| refusal.into_error(uri))?;
    grant.map(|grant| lease_of(uri, &address, grant)).transpose()
}
