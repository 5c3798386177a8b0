//! What a subscriber of the crate `tracing` is told.
#![cfg(feature = "tracing")]

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use volfork::{ErrorKind, Store, StoreOptions};

/// Fields by name.
type Told = BTreeMap<&'static str, String>;

/// Sends what it is told.
struct Teller(Mutex<Sender<(Level, Told)>>);

struct Fields(Told);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }
}

impl Subscriber for Teller {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "volfork"
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields(Told::new());
        event.record(&mut fields);
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).send((*event.metadata().level(), fields.0));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The next event that has this field with this value.
fn next(told: &Receiver<(Level, Told)>, field: &str, value: &str) -> (Level, Told) {
    loop {
        let (level, fields) = told.recv_timeout(Duration::from_secs(60)).expect("it was not told");
        if fields.get(field).is_some_and(|found| found.contains(value)) {
            return (level, fields);
        }
    }
}

#[test]
fn a_subscriber_is_told_of_a_store_and_its_damage() {
    let (sender, told) = channel();
    tracing::subscriber::set_global_default(Teller(Mutex::new(sender))).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path(), StoreOptions::default()).unwrap();
    let (id, volume) = (store.id(), store.create_volume("v", 1 << 20).unwrap());
    volume.write_at(&[1; 4096], 0).unwrap();
    drop(volume);
    store.close().unwrap();
    let (level, closed) = next(&told, "message", "closed");
    assert!(level == Level::INFO && closed["store"].contains(&id) && !closed.contains_key("error"), "{closed:?}");

    let data = std::fs::read_dir(dir.path().join("layers")).unwrap().map(|entry| entry.unwrap().path());
    let data = data.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "data")).unwrap();
    std::fs::File::options().write(true).open(data).unwrap().write_all_at(&[2], 100).unwrap();
    let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
    let (_, opened) = next(&told, "message", "opened");
    assert!(opened["store"].contains(&id) && opened["unclean"] == "false", "{opened:?}");
    let read = store.volume("v").unwrap().read_at(&mut [0; 4096], 0);
    assert_eq!(read.unwrap_err().kind(), ErrorKind::Corrupt);
    let (level, damaged) = next(&told, "kind", "Damaged");
    assert!(level == Level::ERROR && damaged["error"].contains("block 0"), "{damaged:?}");
}
