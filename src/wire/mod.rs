//! NBD messages, stated once for client and server.
