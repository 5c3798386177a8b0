//! Forks a snapshot of another host: usable at once, complete when an event says so.
//!
//! `cargo run --example fork_from_host`

use std::sync::{Arc, mpsc};
use std::time::Duration;

use volfork::serve::{Listener, NbdServer, NbdServerOptions};
use volfork::source::UriSources;
use volfork::volume::{Event, EventKind, VolumeState};
use volfork::{Store, StoreOptions};

const SIZE_BYTES: u64 = 64 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;

    // The first host has a volume with a snapshot, and serves it.
    let near = Store::create(directory.path().join("near"), StoreOptions::default())?;
    let base = near.create_volume("base", SIZE_BYTES)?;
    base.write_at(&vec![7; 8 << 20], 32 << 20)?;
    base.create_snapshot("v1")?;
    let listener = Listener::parse(&format!("unix:{}", directory.path().join("nbd.sock").display()))?;
    let server = NbdServer::start(Arc::new(near.clone()), vec![listener], NbdServerOptions::default())?;
    let uri = server.uris("base@v1").remove(0);

    // The second host forks it by its address. Events come on a thread of the store.
    let (sender, events) = mpsc::channel::<Event>();
    let options = StoreOptions::default()
        .with_sources(Arc::new(UriSources::default()))
        .with_on_event(Arc::new(move |event| drop(sender.send(event.clone()))));
    let far = Store::create(directory.path().join("far"), options)?;
    let fork = far.fork(&uri, "machine")?;
    println!("forked {uri}; state {:?}", far.show("machine")?.state);

    // A read fetches what it needs first. A write needs nothing from the source.
    let mut bytes = [0; 4096];
    fork.read_at(&mut bytes, 40 << 20)?;
    fork.write_at(b"mine", 0)?;
    fork.read_at(&mut bytes, 33 << 20)?;
    assert_eq!(bytes, [7; 4096]);
    println!("the fork reads and writes while it hydrates");

    // Backfill brings the rest; zero ranges do not travel.
    let event = events.recv_timeout(Duration::from_secs(60))?;
    assert_eq!((event.kind, &event.volumes[..]), (EventKind::Hydrated, &["machine".to_owned()][..]), "{:?}", event.error);
    let info = far.show("machine")?;
    assert_eq!((info.state, info.blocks.missing), (VolumeState::Created, 0));
    println!("event {:?}; {} bytes of {SIZE_BYTES} were fetched", event.kind, info.hydration.bytes_fetched);

    // From now on the fork needs no other host.
    server.shutdown();
    near.close()?;
    fork.read_at(&mut bytes, 39 << 20)?;
    assert_eq!(bytes, [7; 4096]);
    far.close()?;
    println!("the fork is independent of its source");
    Ok(())
}
