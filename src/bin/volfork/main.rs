//! The command line of `volfork`.
fn main() {}
