//! Embeds a store: a volume, a fork, a snapshot, and the same after a restart.
//!
//! `cargo run --example embed`

use volfork::{ErrorKind, Store, StoreOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("store");

    let store = Store::create(&path, StoreOptions::default())?;
    let volume = store.create_volume("database", 1 << 30)?;
    volume.write_at(b"before", 4096)?;
    // From here on the bytes survive a power loss.
    volume.flush()?;

    // A fork and a snapshot hold every write that completed before the call; no data is copied.
    let fork = volume.fork("experiment")?;
    volume.create_snapshot("monday")?;
    volume.write_at(b"behind", 4096)?;

    let mut bytes = [0; 6];
    fork.read_at(&mut bytes, 4096)?;
    assert_eq!(&bytes, b"before");
    println!("the fork reads {:?}", String::from_utf8_lossy(&bytes));
    store.snapshot("database", "monday")?.read_at(&mut bytes, 4096)?;
    assert_eq!(&bytes, b"before");
    volume.read_at(&mut bytes, 4096)?;
    assert_eq!(&bytes, b"behind");
    println!("the volume reads {:?}", String::from_utf8_lossy(&bytes));

    // The kind of an error says what the caller can do; its text is a sentence for people.
    let error = volume.write_at(b"too far", (1 << 30) - 1).expect_err("the range ends behind the volume");
    assert_eq!(error.kind(), ErrorKind::OutOfRange);
    println!("refused: {error}");

    // `close` makes everything durable. Handles of a closed store answer `Closed`.
    store.close()?;
    assert_eq!(fork.read_at(&mut bytes, 0).expect_err("the store is closed").kind(), ErrorKind::Closed);

    let store = Store::open(&path, StoreOptions::default())?;
    assert_eq!(store.volume_names(), ["database", "experiment"]);
    store.volume("database")?.read_at(&mut bytes, 4096)?;
    assert_eq!(&bytes, b"behind");
    println!("after a restart: {:?}", store.volume_names());
    store.destroy_volume("experiment", false)?;
    store.close()?;
    Ok(())
}
