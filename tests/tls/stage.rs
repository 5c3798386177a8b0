//! A store behind TLS, and the certificates of all that take part.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use rand_pcg::Pcg64;
use rand_pcg::rand_core::{Rng, SeedableRng};
use volfork::serve::{Listener, ListenerTls, NbdServer, NbdServerOptions};
use volfork::source::{NbdOptions, NbdSource, SourceError};
use volfork::tls::ServerTls;
use volfork::{Store, StoreOptions};

use crate::pki::Ca;

pub const PATIENCE: Duration = Duration::from_secs(60);
pub const MIB: usize = 1 << 20;

pub fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    Pcg64::seed_from_u64(seed).fill_bytes(&mut data);
    data
}

/// Runs a program to its end.
pub fn output(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).stdin(std::process::Stdio::null()).output();
    output.unwrap_or_else(|error| panic!("{program} cannot be run ({error}): see .ci/run for the packages"))
}

pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What a program prints that must succeed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = output(program, arguments);
    assert!(output.status.success(), "{program} {arguments:?} failed: {}", text(&output));
    text(&output)
}

/// What a program prints that must fail.
pub fn fails(program: &str, arguments: &[&str]) -> String {
    let output = output(program, arguments);
    assert!(!output.status.success(), "{program} {arguments:?} succeeded: {}", text(&output));
    text(&output)
}

/// Which TLS the listeners have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Off,
    On,
    /// Every client uses TLS.
    Required,
    /// And has a certificate of our authority.
    Verified,
}

/// A store with a volume `v` full of data, served over TCP and at a path.
pub struct Host {
    pub directory: tempfile::TempDir,
    pub store: Store,
    pub server: Option<NbdServer>,
    pub data: Vec<u8>,
}

impl Host {
    pub fn new(mode: Mode) -> Self {
        Self::with(mode, NbdServerOptions::default())
    }

    pub fn with(mode: Mode, options: NbdServerOptions) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (ours, theirs) = (Ca::new("our authority"), Ca::new("their authority"));
        let server = ours.server(&["localhost", "127.0.0.1"]);
        let at = directory.path();
        ours.directory(at, "server", &[("server", &server)]);
        ours.directory(at, "expired", &[("server", &ours.expired_server(&["localhost", "127.0.0.1"]))]);
        ours.directory(at, "known", &[("client", &ours.client("client-7"))]);
        ours.directory(at, "nobody", &[]);
        // It trusts our server, which does not trust it.
        ours.directory(at, "stranger", &[("client", &theirs.client("client-7"))]);
        theirs.directory(at, "theirs", &[("server", &theirs.server(&["localhost", "127.0.0.1"])), ("client", &ours.client("client-8"))]);
        let store = Store::create(at.join("store"), StoreOptions::default()).unwrap();
        let data = pattern(1, 8 * MIB);
        let volume = store.create_volume("v", data.len() as u64).unwrap();
        volume.write_at(&data, 0).and_then(|()| volume.flush()).unwrap();
        let mut host = Self { directory, store, server: None, data };
        host.serve(mode, options);
        host
    }

    /// Serves again.
    pub fn serve(&mut self, mode: Mode, options: NbdServerOptions) {
        let directory = self.path("server");
        let tls = match mode {
            Mode::Off => ListenerTls::Off,
            Mode::On => ListenerTls::On(ServerTls::open(directory).unwrap()),
            Mode::Required => ListenerTls::Required(ServerTls::open(directory).unwrap()),
            Mode::Verified => ListenerTls::Required(ServerTls::open_verifying_peers(directory).unwrap()),
        };
        let listen = ["127.0.0.1:0".to_owned(), format!("unix:{}", self.path("sock").display())];
        let listeners = listen.map(|address| Listener::parse(&address).unwrap().with_tls(tls.clone()));
        self.server = Some(NbdServer::start(Arc::new(self.store.clone()), listeners.into(), options).unwrap());
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// HOST:PORT.
    pub fn address(&self) -> String {
        self.server.as_ref().unwrap().uris("")[0].split("://").nth(1).unwrap().trim_end_matches('/').to_owned()
    }

    /// The address of `v` over TCP for a client with the certificates of a directory.
    pub fn uri(&self, certificates: &str) -> String {
        format!("nbds://{}/v?tls-certificates={}", self.address(), self.path(certificates).display())
    }

    /// The same at a path, whose server is called `localhost`.
    pub fn unix_uri(&self, certificates: &str) -> String {
        let (socket, certificates) = (self.path("sock"), self.path(certificates));
        format!("nbds+unix:///v?socket={}&tls-certificates={}&tls-hostname=localhost", socket.display(), certificates.display())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown();
        }
    }
}

pub fn open(uri: &str) -> Result<Arc<NbdSource>, SourceError> {
    NbdSource::open(uri, NbdOptions::default().with_connect_timeout(PATIENCE))
}

/// Whether somebody listens.
pub fn answers(socket: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(socket).is_ok()
}
