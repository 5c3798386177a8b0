//! SIGINT and SIGTERM: the first one asks, the second one ends the process at once. SIGHUP, the end of a terminal, does not end a
//! server. SIGXFSZ, a file beyond what the user may write, ends nothing: the write fails, and says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;
use signal_hook::iterator::Signals;

use crate::failure::{Failure, Result};
use crate::request::progress::{Progress, Watcher};

const SIGNALS: [i32; 2] = [SIGINT, SIGTERM];

/// Whether the user asked for the end.
#[derive(Clone)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes over both signals for the rest of the process.
    pub fn catch() -> Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in SIGNALS {
            // Order matters: the first signal finds the flag unset and only sets it; the second one finds it set and exits.
            flag::register_conditional_shutdown(signal, 1, asked.clone())
                .and_then(|_| flag::register(signal, asked.clone()))
                .map_err(|error| Failure::io("catch signals", error))?;
        }
        pass_over(SIGXFSZ)?;
        Ok(Self(asked))
    }

    /// An error once the user asked for the end.
    pub fn check(&self) -> Result<()> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(Failure::interrupted("interrupted; what was begun is undone")),
            false => Ok(()),
        }
    }
}

/// Lets a signal do nothing from now on.
fn pass_over(signal: i32) -> Result<()> {
    flag::register(signal, Arc::default()).map(drop).map_err(|error| Failure::io("catch signals", error))
}

/// The end of a server: what the first signal asks for, while the second one ends the process at once.
pub struct Stop(Signals);

impl Stop {
    /// Takes over both signals for the rest of the process. Called before the server reports that it is ready: a signal in between would
    /// kill it.
    pub fn catch() -> Result<Self> {
        let signals = Signals::new(SIGNALS).map_err(|error| Failure::io("catch signals", error))?;
        Interrupt::catch()?;
        pass_over(SIGHUP)?;
        Ok(Self(signals))
    }

    /// Blocks until the first signal.
    pub fn wait(mut self) {
        self.0.forever().next();
    }
}

/// A watcher that ends the work when the user interrupts it.
pub struct Interruptible<W> {
    /// The watcher that gets the progress.
    pub watcher: W,
    /// The signals that end the work.
    pub interrupt: Interrupt,
}

impl<W: Watcher> Watcher for Interruptible<W> {
    fn tell(&mut self, progress: Progress) -> Result<()> {
        self.interrupt.check()?;
        self.watcher.tell(progress)
    }
}
