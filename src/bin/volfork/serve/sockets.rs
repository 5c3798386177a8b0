//! The sockets that a server of the process listens on.

use std::path::Path;

use volfork::io::Access;
use volfork::serve::Listener;

use super::guard::Guard;
use crate::failure::{Failure, Result};

/// What a server was given to listen on.
pub struct Sockets<'a> {
    /// Sockets of the process whose place this one takes; empty if there is none.
    pub passed: Vec<Listener>,
    /// Addresses from the command line; may be empty.
    pub addresses: &'a [String],
    /// The TLS of the listeners, and what is not served without.
    pub guard: &'a Guard,
}

impl Sockets<'_> {
    /// The sockets of the process before; without them those of the addresses, else those that systemd passed, else `STORE/nbd.sock`.
    /// The mode of the directory `store` says who connects to sockets at paths.
    pub fn listen(self, store: &Path) -> Result<Vec<Listener>> {
        let guard = self.guard;
        self.unguarded(store)?.into_iter().map(|listener| guard.over(listener)).collect()
    }

    fn unguarded(self, store: &Path) -> Result<Vec<Listener>> {
        if !self.passed.is_empty() {
            return Ok(self.passed);
        }
        let access = Access::of(store).map_err(|error| Failure::io(format!("look at {}", store.display()), error))?;
        let parse = |address: &String| Ok(Listener::parse_for(address, access)?);
        if !self.addresses.is_empty() {
            return self.addresses.iter().map(parse).collect();
        }
        match Listener::from_environment()? {
            passed if passed.is_empty() => Ok(vec![parse(&default_address(store))?]),
            passed => Ok(passed),
        }
    }
}

fn default_address(store: &Path) -> String {
    // Absolute, because the address is shown to users elsewhere.
    let store = std::path::absolute(store).unwrap_or_else(|_| store.to_path_buf());
    format!("unix:{}", store.join("nbd.sock").display())
}
