//! Arguments of `trace`.

use clap::Subcommand;

use crate::request::target::Target;

/// The commands about traces.
#[derive(Subcommand)]
pub enum TraceCommand {
    /// Show in which order forks first touched a snapshot, or what a fork stands on
    Show {
        /// NAME or NAME@SNAP
        target: Target,
    },
    /// Forget it: the next fork is recorded anew
    Drop {
        /// NAME or NAME@SNAP
        target: Target,
    },
    /// Record for ten minutes what a fork touches of what it stands on, behind what is known; while 'volfork serve' runs
    Record {
        /// Name of the fork
        name: String,
    },
}
