//! How a command reaches the store: through the process that serves it, or by opening it.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use volfork::volume::{Event, OnEvent};
use volfork::{BlockSize, ErrorKind, Store, StoreOptions};

use super::sources::sources;
use crate::control;
use crate::failure::{Failure, Result};
use crate::settings::Settings;
use crate::show::event;

/// How long a command waits for another short command, or for a server that is starting.
pub const LOCK_PATIENCE: Duration = Duration::from_secs(3);
const LOCK_LOOK_EVERY: Duration = Duration::from_millis(50);

/// The store, or the process that owns it.
pub enum Reached {
    /// A process serves the store.
    Server(UnixStream),
    /// It is open here.
    Store(Store),
}

/// Reaches the store of `settings`; creates a missing one if `makes_store`.
pub fn reach(settings: &Settings, makes_store: bool) -> Result<Reached> {
    patiently(|| {
        if let Some(stream) = control::connect(&settings.store)? {
            if settings.source_timeout.is_some() {
                return Err(Failure::new(
                    ErrorKind::InvalidInput,
                    "'volfork serve' owns the store: give --source-timeout to that, and not here",
                ));
            }
            return Ok(Reached::Server(stream));
        }
        match open(settings) {
            Err(failure) if failure.is(ErrorKind::NotFound) && makes_store => {
                let made = create(settings, BlockSize::DEFAULT, false);
                // Another command has made it a moment ago.
                let is_there = made.as_ref().is_err_and(|failure| failure.is(ErrorKind::Exists));
                if is_there { open(settings) } else { made }.map(Reached::Store)
            }
            Err(failure) if failure.is(ErrorKind::NotFound) => Err(missing(&settings.store)),
            opened => opened.map(Reached::Store),
        }
    })
}

/// Retries for a moment while another process has the store.
fn patiently<T>(reach: impl FnMut() -> Result<T>) -> Result<T> {
    patiently_for(LOCK_PATIENCE, reach)
}

/// Retries for so long while another process has the store.
pub fn patiently_for<T>(patience: Duration, mut reach: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        match reach() {
            Err(failure) if failure.is(ErrorKind::Locked) && Instant::now() < deadline => std::thread::sleep(LOCK_LOOK_EVERY),
            reached => return reached,
        }
    }
}

/// Opens the store of `settings` for this process alone.
pub fn open(settings: &Settings) -> Result<Store> {
    open_with(settings, None, None)
}

/// As [`open`]; `on_event` gets the events of background work, and leases of other hosts lapse after `lease`.
pub fn open_with(settings: &Settings, on_event: Option<OnEvent>, lease: Option<Duration>) -> Result<Store> {
    if !settings.store.exists() {
        return Err(missing(&settings.store));
    }
    let on_event = on_event.unwrap_or_else(|| {
        let teller = settings.clone();
        Arc::new(move |happened: &Event| event::event_at_opening(&teller, happened))
    });
    let mut options = options(settings, BlockSize::DEFAULT).with_on_event(on_event);
    options.lease = lease.unwrap_or(options.lease);
    let store = Store::open(&settings.store, options)?;
    // A store that refuses even this can still be read; they are tried again at the next open.
    let _ = store.sweep_unfinished();
    Ok(store)
}

/// Makes the store of `settings`.
pub fn create(settings: &Settings, block_size: BlockSize, group_access: bool) -> Result<Store> {
    Ok(Store::create(&settings.store, options(settings, block_size).with_group_access(group_access))?)
}

/// The failure for a missing store.
pub fn missing(store: &Path) -> Failure {
    let store = store.display();
    Failure::new(
        ErrorKind::NotFound,
        format!("there is no store in {store}: run 'volfork --store {store} init', or name another one with --store"),
    )
}

/// How the store of `settings` is opened.
pub fn options(settings: &Settings, block_size: BlockSize) -> StoreOptions {
    StoreOptions::default().with_block_size(block_size).with_sources(sources(settings)).with_owner(format!(
        "volfork {} (process {})",
        settings.label,
        std::process::id()
    ))
}
