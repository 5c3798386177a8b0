//! Settings of a server.

use std::time::Duration;

use crate::options::with_methods;

/// Settings of an NBD server.
///
/// ```
/// use std::time::Duration;
/// use volfork::serve::NbdServerOptions;
///
/// let options = NbdServerOptions::default().with_connections_max(16).with_shutdown_timeout(Duration::from_secs(30));
/// // Requests of one connection that are under way at once, and bytes that all connections hold.
/// assert_eq!((options.depth, options.memory_bytes_max), (128, 1 << 30));
/// assert_eq!(options.connections_max, 16);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NbdServerOptions {
    /// Most connections (fewer if the process may not have the descriptors for them); further clients are turned away.
    pub connections_max: usize,
    /// Requests under way on one connection; further ones wait in its socket.
    pub depth: u32,
    /// Time for a client to agree on an export; it begins anew with each answer about one.
    pub handshake_timeout: Duration,
    /// Time for requests under way when the server shuts down.
    pub shutdown_timeout: Duration,
    /// A client that has begun to send a request has this time, and a second for each 64 KiB, to send all of it; one that takes none of
    /// its replies has it while others wait for memory. Then it is disconnected.
    pub stall_timeout: Duration,
    /// Memory for requests and replies of all connections together, in bytes, beyond 384 KiB for each. Larger requests wait until there
    /// is room.
    pub memory_bytes_max: usize,
}

with_methods! { NbdServerOptions:
    with_connections_max(connections_max: usize);
    with_depth(depth: u32);
    with_handshake_timeout(handshake_timeout: Duration);
    with_shutdown_timeout(shutdown_timeout: Duration);
    with_stall_timeout(stall_timeout: Duration);
    with_memory_bytes_max(memory_bytes_max: usize);
}

impl Default for NbdServerOptions {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            depth: 128,
            handshake_timeout: Duration::from_secs(10),
            shutdown_timeout: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(30),
            memory_bytes_max: 1 << 30,
        }
    }
}
