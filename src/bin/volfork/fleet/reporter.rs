//! A server reports its inventory to its fleet: at start, after each change by a command, periodically, and at the end.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use volfork::Store;
use volfork::fleet::{HostFacts, Publisher, SharedFleet};
use volfork::placement::HostStatus;

use super::facts::{facts, now};
use super::gate::{FleetGate, Unconfirmed};
use crate::cli::fleet::ReportArguments;
use crate::failure::{Failure, Result};
use crate::settings::Settings;
use crate::show::stream;

/// Least time between two reports.
const REPORT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Default)]
struct Signals {
    changed: bool,
    stopping: bool,
}

struct Shared {
    signals: Mutex<Signals>,
    wake: Condvar,
}

/// A thread that publishes the inventory of the host periodically.
pub struct Reporter {
    shared: Arc<Shared>,
    fleet: SharedFleet,
    facts: HostFacts,
    unconfirmed: Unconfirmed,
    thread: JoinHandle<()>,
}

/// Triggers a report of a [`Reporter`].
#[derive(Clone)]
pub struct Changed(Arc<Shared>);

impl Changed {
    /// Triggers a report.
    pub fn tell(&self) {
        self.0.signals.lock().unwrap_or_else(PoisonError::into_inner).changed = true;
        self.0.wake.notify_all();
    }
}

impl Reporter {
    /// Reports `store`, if the arguments name a fleet. If the fleet does not answer, the user is told, the report is retried, and the
    /// store is served meanwhile.
    pub fn start(settings: &Settings, arguments: &ReportArguments, store: &Store) -> Result<Option<Self>> {
        let Some(url) = &arguments.fleet else { return Ok(None) };
        let every = arguments.report_every.as_millis().div_ceil(1000);
        let report_every_seconds = u64::try_from(every).unwrap_or(u64::MAX);
        let mut facts = facts(arguments.host.clone(), &settings.store)?;
        facts.report_every_seconds = report_every_seconds;
        let (fleet, unconfirmed) = (SharedFleet::open(url)?, Unconfirmed::default());
        let mut reports = Reports {
            store: store.clone(),
            fleet: fleet.clone(),
            publisher: Publisher::new(fleet.clone()),
            facts: facts.clone(),
            unconfirmed: unconfirmed.clone(),
            settings: settings.clone(),
            failing: false,
        };
        let shared = Arc::new(Shared { signals: Mutex::default(), wake: Condvar::new() });
        let thread = std::thread::Builder::new().name("fleet".into()).spawn({
            let (shared, every) = (shared.clone(), arguments.report_every);
            move || reports.run(&shared, every)
        });
        let thread = thread.map_err(|error| Failure::io("start a thread", error))?;
        Ok(Some(Self { shared, fleet, facts, unconfirmed, thread }))
    }

    /// The gate for volumes that this host makes.
    pub fn gate(&self) -> FleetGate {
        FleetGate::new(self.fleet.clone(), self.facts.clone(), self.unconfirmed.clone())
    }

    /// A handle that triggers a report after a change.
    pub fn changed(&self) -> Changed {
        Changed(self.shared.clone())
    }

    /// Reports that the host does not answer any more, and ends.
    pub fn stop(self) {
        self.shared.signals.lock().unwrap_or_else(PoisonError::into_inner).stopping = true;
        self.shared.wake.notify_all();
        // A panic in the thread was printed there.
        let _ = self.thread.join();
    }
}

struct Reports {
    store: Store,
    fleet: SharedFleet,
    publisher: Publisher,
    facts: HostFacts,
    unconfirmed: Unconfirmed,
    settings: Settings,
    failing: bool,
}

impl Reports {
    fn run(&mut self, shared: &Shared, every: Duration) {
        loop {
            self.report();
            let next = Instant::now() + every;
            if wait(shared, next) {
                break;
            }
        }
        self.facts.status = HostStatus::Unreachable;
        self.report();
    }

    fn report(&mut self) {
        let seen = self.unconfirmed.seen(|| self.facts.inventory(&self.store));
        let reported = seen.and_then(|inventory| {
            let assignments = inventory.assignments.clone();
            self.publisher.publish(inventory, now())?;
            self.unconfirmed.confirm(&assignments);
            // The report goes on; the next one tries again.
            let _ = self.unconfirmed.begin(|| self.fleet.give_back_own(&self.facts));
            Ok(())
        });
        // Only the first failure and the recovery are printed, not every try.
        match (&reported, self.failing) {
            (Err(error), false) => stream::note(&self.settings, &format!("the fleet is not told what this host has: {error}")),
            (Ok(_), true) => stream::note(&self.settings, "the fleet is told again what this host has"),
            _ => {}
        }
        self.failing = reported.is_err();
    }
}

/// Waits until `next` or a change; `true` at the end.
fn wait(shared: &Shared, next: Instant) -> bool {
    let earliest = Instant::now() + REPORT_PAUSE;
    let mut signals = shared.signals.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let now = Instant::now();
        if signals.stopping {
            return true;
        }
        if now >= next || (signals.changed && now >= earliest) {
            signals.changed = false;
            return false;
        }
        let until = if signals.changed { earliest.min(next) } else { next };
        signals = shared.wake.wait_timeout(signals, until.saturating_duration_since(now)).unwrap_or_else(PoisonError::into_inner).0;
    }
}
