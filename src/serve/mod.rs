//! The doors: an NBD server.
