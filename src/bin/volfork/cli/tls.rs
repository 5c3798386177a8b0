//! Arguments of `serve` about TLS.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// TLS of the listeners of `serve`.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub struct TlsArguments {
    /// Whether clients that connect over TCP use TLS: not at all, as they like, or all of them
    #[arg(long, value_enum, default_value_t = TlsWord::Off, value_name = "off|on|required", hide_possible_values = true)]
    pub tls: TlsWord,
    /// The same of clients that connect to unix sockets
    #[arg(long, value_enum, default_value_t = TlsWord::Off, value_name = "off|on|required", hide_possible_values = true)]
    pub tls_unix: TlsWord,
    /// Directory with server-cert.pem and server-key.pem, and ca-cert.pem for --tls-verify-peer
    #[arg(long, value_name = "DIR")]
    pub tls_certificates: Option<PathBuf>,
    /// Take only clients with a certificate that an authority of ca-cert.pem has signed
    #[arg(long, requires = "tls_certificates")]
    pub tls_verify_peer: bool,
    /// Listen at addresses that other machines reach without --tls required and --tls-verify-peer: everybody there reads and writes all
    /// volumes
    #[arg(long)]
    pub insecure: bool,
}

/// The words of `--tls`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TlsWord {
    /// No client uses TLS.
    #[default]
    Off,
    /// Each client may.
    On,
    /// Each client does.
    Required,
}
