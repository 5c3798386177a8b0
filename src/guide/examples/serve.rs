//! Serves a store over NBD from within a program.
//!
//! `cargo run --example serve`

use std::sync::Arc;

use volfork::serve::{Listener, NbdServer, NbdServerOptions};
use volfork::source::{self, NbdSource, Source, SourceExt};
use volfork::{Store, StoreOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let store = Store::create(directory.path().join("store"), StoreOptions::default())?;
    let volume = store.create_volume("web", 64 << 20)?;
    volume.write_at(b"hello", 0)?;
    volume.create_snapshot("v1")?;
    volume.write_at(b"later", 0)?;

    // `HOST:PORT` serves TCP. Without TLS (`Listener::with_tls`) it has no authentication: listen only where you trust every host.
    let listener = Listener::parse(&format!("unix:{}", directory.path().join("nbd.sock").display()))?;
    // Volumes are served read-write by their names, snapshots read-only as NAME@SNAPSHOT.
    let server = NbdServer::start(Arc::new(store.clone()), vec![listener], NbdServerOptions::default())?;
    let uri = &server.uris("web@v1")[0];
    println!("serving {uri}; try: nbdinfo '{uri}'");

    let client = NbdSource::open(uri, source::NbdOptions::default())?;
    let bytes = client.read_blocking(0..5)?;
    assert_eq!(&bytes[..], b"hello");
    println!("a client reads {:?} from web@v1", String::from_utf8_lossy(&bytes));
    for connected in server.clients().list() {
        println!("connected: {connected:?}");
    }
    assert!(server.connections() > 0);
    client.close();

    // Requests under way get their replies, then all connections end. The store stays open.
    server.shutdown();
    store.close()?;
    println!("closed");
    Ok(())
}
