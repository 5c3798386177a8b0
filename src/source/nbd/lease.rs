//! Leases of NBD exports: asked for before the export is opened, renewed and given back on a short connection of their own.

use super::NbdOptions;
use super::address::Address;
use super::handshake::{Refusal, Talk, refused};
use crate::source::{Lease, LeaseAction, LeaseRequest, SourceError};
use crate::wire::constants::{OPT_ABORT, OPT_LEASE, REP_ACK, REP_ERR_SHUTDOWN, REP_ERR_UNSUP, REP_LEASE};
use crate::wire::{LeaseGrant, deadline_after};

impl Talk {
    /// Asks for a lease, or gives one back; `None` if it was given back, or the server knows no leases, or has
    /// none for what is held. The time for what follows
    /// begins anew.
    pub fn lease(&mut self, export: &str, request: &LeaseRequest, options: &NbdOptions) -> Result<Option<LeaseGrant>, Refusal> {
        // A server that takes a snapshot makes what was written durable first.
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
            // What a fork has already may be had without: a server that is full, or has too many leases, serves it all the same.
            other if other != REP_ERR_SHUTDOWN && request.action == LeaseAction::Hold => Ok(None),
            other => Err(refused(other, export, &replies)),
        }
    }
}

/// What is known of a lease by the address that was asked.
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
    let asked = Talk::begin(&address, options.connect_timeout).and_then(|(mut talk, _)| {
        let grant = talk.lease(&address.export, request, options)?;
        // A server that does not take the goodbye sees the end of the connection.
        let _ = talk.send(OPT_ABORT, &[]);
        Ok(grant)
    });
    let grant = asked.map_err(|refusal| refusal.into_error(uri))?;
    grant.map(|grant| lease_of(uri, &address, grant)).transpose()
}
