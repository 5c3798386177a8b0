//! Whether the clients of a listener use TLS.

use crate::tls::ServerTls;

/// Whether the clients of a listener use TLS.
///
/// ```
/// use volfork::serve::{Listener, ListenerTls};
///
/// # fn main() -> volfork::Result<()> {
/// // The clients of a socket that only this user reaches need none.
/// let listener = Listener::parse("127.0.0.1:0")?.with_tls(ListenerTls::Off);
/// assert!(listener.uri().starts_with("nbd://"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum ListenerTls {
    /// None does.
    #[default]
    Off,
    /// Each may: those that do not are served in clear text.
    On(ServerTls),
    /// Each does; to others no export is shown.
    Required(ServerTls),
}
