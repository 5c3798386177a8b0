//! Sources behind TLS.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use volfork::source::{NbdOptions, NbdSource, Source, SourceErrorKind, SourceExt, UriSources};
use volfork::wire::constants::{OPT_STARTTLS, REP_ACK};
use volfork::wire::{OptionReply, OptionRequest};
use volfork::{Store, StoreOptions};

use crate::stage::{Host, MIB, Mode, PATIENCE, answers, open};

/// A process that is killed at the end.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn forks(host: &Host) -> Store {
    let nbd = NbdOptions::default().with_give_up_after(PATIENCE);
    let options = StoreOptions::default().with_sources(Arc::new(UriSources { nbd }));
    Store::create(host.path("forks"), options).unwrap()
}

/// The store of [`forks`], opened again.
fn reopened(host: &Host) -> Store {
    let options = StoreOptions::default().with_sources(Arc::new(UriSources::default()));
    Store::open(host.path("forks"), options).unwrap()
}

/// Reads a fork while it hydrates, and once more when it is complete.
fn read_and_hydrate(store: &Store, name: &str, data: &[u8]) {
    let fork = store.volume(name).unwrap();
    let bytes = |at: usize, count: usize| {
        let mut bytes = vec![0; count];
        fork.read_at(&mut bytes, at as u64).unwrap();
        bytes
    };
    for at in [data.len() - MIB, 12_345, 3 * MIB - 1] {
        assert!(bytes(at, 100_000) == data[at..at + 100_000], "other bytes at {at}");
    }
    assert!(store.wait_hydrated(name, PATIENCE).unwrap(), "it does not hydrate: {:?}", fork.info().unwrap().hydration);
    assert!(bytes(0, data.len()) == data);
}

/// Waits until no fork needs a snapshot of `v` any more.
fn await_no_lease(host: &Host) {
    let begun = Instant::now();
    while !host.store.show("v").unwrap().leases.is_empty() {
        assert!(begun.elapsed() < PATIENCE, "the lease is not given back");
        std::thread::yield_now();
    }
}

#[test]
fn a_fork_is_read_while_it_hydrates_over_tls() {
    let host = Host::new(Mode::Verified);
    let store = forks(&host);
    let (tcp, unix) = (host.uri("known"), host.unix_uri("known"));
    for (uri, name) in [(&tcp, "tcp"), (&unix, "unix")] {
        store.fork(&uri[..], name).unwrap();
        // A live volume is leased: the option travels behind TLS as well, and says where its client is.
        let leases = host.store.show("v").unwrap().leases;
        assert_eq!(leases.len(), 1, "{leases:?}");
        let place = if name == "tcp" { "127.0.0.1:" } else { "process " };
        assert!(leases[0].address.starts_with(place), "{}", leases[0].address);
        read_and_hydrate(&store, name, &host.data);
        await_no_lease(&host);
    }
    store.close().unwrap();
}

#[test]
fn an_address_is_kept_with_the_directory_and_no_key() {
    let mut host = Host::new(Mode::Verified);
    let store = forks(&host);
    let uri = host.unix_uri("known");
    store.fork(&uri[..], "fork").unwrap();
    let control = volfork::store::HydrationControl::default().with_paused(true);
    store.control_hydration("fork", &control).unwrap();
    store.close().unwrap();
    host.server.take().unwrap().shutdown();
    host.serve(Mode::Verified, Default::default());
    let store = reopened(&host);
    let source = store.volume("fork").unwrap().info().unwrap().source.unwrap();
    assert!(source.contains(&format!("tls-certificates={}", host.path("known").display())), "{source}");
    let control = volfork::store::HydrationControl::default().with_paused(false);
    store.control_hydration("fork", &control).unwrap();
    read_and_hydrate(&store, "fork", &host.data);
    store.close().unwrap();
}

#[test]
fn a_lease_is_given_back_once_certificates_are_there() {
    let host = Host::new(Mode::Verified);
    let store = forks(&host);
    store.fork(&host.unix_uri("known")[..], "fork").unwrap();
    assert_eq!(host.store.show("v").unwrap().leases.len(), 1);
    std::fs::rename(host.path("known"), host.path("away")).unwrap();
    store.destroy_volume("fork", false).unwrap();
    store.close().unwrap();
    assert_eq!(host.store.show("v").unwrap().leases.len(), 1);
    std::fs::rename(host.path("away"), host.path("known")).unwrap();
    let store = reopened(&host);
    await_no_lease(&host);
    store.close().unwrap();
}

#[test]
fn nbdkit_is_a_source_behind_tls() {
    let host = Host::new(Mode::Off);
    let (image, socket) = (host.path("image"), host.path("nbdkit.sock"));
    std::fs::write(&image, &host.data).unwrap();
    let mut nbdkit = Command::new("nbdkit");
    nbdkit.args(["--foreground", "--exit-with-parent", "--readonly", "--tls=require", "--tls-verify-peer", "--unix"]).arg(&socket);
    nbdkit.arg(format!("--tls-certificates={}", host.path("server").display())).arg("file").arg(&image).stdin(Stdio::null());
    let _nbdkit = Process(nbdkit.spawn().expect("nbdkit runs: see .ci/run for the packages"));
    let begun = Instant::now();
    while !answers(&socket) {
        assert!(begun.elapsed() < PATIENCE, "nbdkit does not listen");
        std::thread::yield_now();
    }
    let store = forks(&host);
    let uri =
        |certificates: &str| format!("nbds+unix:///?socket={}&tls-certificates={}", socket.display(), host.path(certificates).display());
    store.fork(&uri("known")[..], "fork").unwrap();
    read_and_hydrate(&store, "fork", &host.data);
    let error = store.fork(&uri("nobody")[..], "other").unwrap_err().to_string();
    assert!(error.contains("client") || error.contains("certificate"), "{error}");
    store.close().unwrap();
}

#[test]
fn each_refusal_says_what_is_wrong() {
    let host = Host::new(Mode::Verified);
    let refusal = |uri: &str| {
        let error = open(uri).err().unwrap_or_else(|| panic!("{uri} was opened"));
        assert_eq!(error.kind, SourceErrorKind::Invalid, "{uri}: {error}");
        error.message.replace(uri, "")
    };
    for (uri, what) in [
        (host.uri("theirs"), "comes from no authority in ca-cert.pem"),
        (host.uri("known") + "&tls-hostname=other.example", "for another name"),
        (host.uri("nobody"), "asks for a certificate of this client"),
        (host.uri("stranger"), "refuses our certificate"),
        (host.uri("missing"), "ca-cert.pem is missing"),
        (format!("nbd://{}/v", host.address()), "demands TLS"),
        (host.uri("known") + "&tls-hostname=no..name", "cannot be for"),
    ] {
        let text = refusal(&uri);
        assert!(text.contains(what), "{uri}: {text}");
    }
    // Nobody looks at the server, which looks at the client all the same.
    let unlooked = format!("nbds://{}/v?tls-verify-peer=false", host.address());
    assert!(refusal(&unlooked).contains("asks for a certificate"));
    let trusting = host.uri("theirs") + "&tls-verify-peer=false";
    open(&trusting).unwrap().close();

    let clear = Host::new(Mode::Off);
    let text = refusal(&clear.uri("known"));
    assert!(text.contains("offers no TLS") && text.contains("this listener has no TLS"), "{text}");
}

#[test]
fn an_expired_certificate_is_refused_until_it_is_renewed() {
    let mut host = Host::new(Mode::Required);
    let store = forks(&host);
    store.fork(&host.unix_uri("known")[..], "fork").unwrap();
    store.control_hydration("fork", &volfork::store::HydrationControl::default().with_paused(true)).unwrap();
    host.server.take().unwrap().shutdown();
    let (good, expired) = (host.path("server"), host.path("expired"));
    std::fs::rename(&good, host.path("good")).and_then(|()| std::fs::rename(&expired, &good)).unwrap();
    host.serve(Mode::Required, Default::default());
    let error = open(&host.unix_uri("known")).err().unwrap();
    assert!(error.kind == SourceErrorKind::Invalid && error.message.contains("has expired"), "{error}");
    host.server.take().unwrap().shutdown();
    std::fs::rename(&good, &expired).and_then(|()| std::fs::rename(host.path("good"), &good)).unwrap();
    host.serve(Mode::Required, Default::default());
    store.control_hydration("fork", &volfork::store::HydrationControl::default().with_paused(false)).unwrap();
    read_and_hydrate(&store, "fork", &host.data);
    store.close().unwrap();
}

/// A server that ends without a word once TLS has begun.
fn breaks_off(mut socket: TcpStream, tls: ServerConnection) -> io::Result<()> {
    let greeting = [&b"NBDMAGICIHAVEOPT"[..], &3u16.to_be_bytes()].concat();
    socket.write_all(&greeting)?;
    // The client's flags, and its option.
    socket.read_exact(&mut [0; 4 + OptionRequest::BYTES])?;
    socket.write_all(&OptionReply::encode(OPT_STARTTLS, REP_ACK, &[]))?;
    let mut stream = StreamOwned::new(tls, socket);
    stream.read_exact(&mut [0; 1])
}

#[test]
fn a_server_that_breaks_off_may_be_asked_again() {
    let host = Host::new(Mode::Off);
    let file = |name: &str| host.path("server").join(name);
    let chain = CertificateDer::pem_file_iter(file("server-cert.pem")).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(file("server-key.pem")).unwrap();
    let builder = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let config = Arc::new(builder.with_single_cert(chain, key).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("nbds://{}/v?tls-certificates={}", listener.local_addr().unwrap(), host.path("nobody").display());
    std::thread::scope(|scope| {
        scope.spawn(|| breaks_off(listener.accept().unwrap().0, ServerConnection::new(config).unwrap()).unwrap());
        let error = open(&uri).err().unwrap();
        // As without TLS: whoever sees it tries again.
        assert_eq!(error.kind, SourceErrorKind::Lost, "{error}");
    });
}

#[test]
fn a_source_finds_its_server_again_over_tls() {
    let mut host = Host::new(Mode::Verified);
    // More connections than tries: those that were lost together count once.
    let options = NbdOptions::default().with_connect_timeout(PATIENCE).with_connections(8).with_tries(2);
    let source = NbdSource::open(&host.unix_uri("known"), options).unwrap();
    for _ in 0..3 {
        assert!(source.read_blocking(0..4 * MIB as u64).unwrap() == host.data[..4 * MIB]);
        host.server.take().unwrap().shutdown();
        host.serve(Mode::Verified, Default::default());
    }
    assert!(source.read_blocking(0..MIB as u64).unwrap() == host.data[..MIB]);
    source.close();
}
