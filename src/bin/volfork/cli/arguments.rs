//! The arguments as they are typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use volfork::BlockSize;

#[cfg(feature = "fleet")]
use super::fleet::{FleetCommand, PlaceArguments, ReportArguments};
use super::hints::PurposeArguments;
#[cfg(feature = "images")]
use super::image::ImageCommand;
use super::limits::{LimitArguments, LimitsChangeArguments};
use super::tls::TlsArguments;
use super::trace::TraceCommand;
use super::values::{block_size, lease, seconds, source_timeout};
use crate::request::size::{Growth, bytes, size};
use crate::request::target::Target;

/// Volumes that are forked in an instant, on this host or from another one.
#[derive(Parser)]
#[command(name = "volfork", version, propagate_version = true, after_help = EXIT_STATUS)]
pub struct Arguments {
    /// Directory of the store
    #[arg(long, global = true, env = "VOLFORK_STORE", default_value = "./volfork-store", value_name = "DIR")]
    pub store: PathBuf,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Print no progress and no confirmations; of lists only the names
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// How long readers wait for a source that does not answer, or cannot be reached, until they are told that it is lost, from 2s to
    /// 1h; for 'serve', or the command that opens the store itself [default: 30s]
    #[arg(long, global = true, value_parser = source_timeout, value_name = "TIME")]
    pub source_timeout: Option<Duration>,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_STATUS: &str = "\
Exit status: 0 done, 1 failed (or 'check' or 'scrub' found damage), 2 wrong usage, 3 the time of 'hydrate --timeout' ran out.
While 'volfork serve' runs, every other command is carried out by the serving process.";

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    /// Make an empty store
    Init {
        /// Bytes of a block: a power of two from 4K to 64K
        #[arg(long, default_value = "4K", value_parser = block_size, value_name = "N")]
        block_size: BlockSize,
        /// Let the group of the directory read the files and connect to the unix sockets of 'serve'; without, its owner alone
        /// can. Afterwards, 'chmod 2750 STORE' and 'chmod 700 STORE' change this for what is made from then on
        #[arg(long)]
        group_access: bool,
    },
    /// Make an empty volume
    Create {
        /// Name of the new volume
        name: String,
        /// Its size, for example 10G; a multiple of 4K, or clients with such blocks do not reach its end
        #[arg(long, value_parser = size)]
        size: u64,
        /// What it is for
        #[command(flatten)]
        purpose: PurposeArguments,
        /// What its clients may ask of it
        #[command(flatten)]
        limits: LimitArguments,
    },
    /// Make a volume from a raw image; makes the store too, if there is none
    Import {
        /// Name of the new volume
        name: String,
        /// The image, or - for standard input
        file: PathBuf,
        /// Import the bytes as they are, even if they look like a qcow2 image
        #[arg(long)]
        raw: bool,
        /// Make it even if it breaks the capacity of this host in its fleet
        #[arg(long)]
        force: bool,
    },
    /// Write a volume or snapshot to a raw, sparse image; of a volume in use, export a snapshot
    ///
    /// The bytes are written as they are. If a guest has written the first bytes of another format there (such as those of qcow2),
    /// other programs may take the image for that: 'volfork import' refuses it without --raw, and qemu needs format=raw.
    Export {
        /// NAME or NAME@SNAP
        target: Target,
        /// The image or block device to write, or - for standard output. A file has its name when it is whole
        file: PathBuf,
    },
    /// List the volumes
    #[command(visible_alias = "ls")]
    List,
    /// Show everything about a volume, and who is connected to it
    Show {
        /// Name of the volume
        name: String,
    },
    /// Take a snapshot of a volume
    ///
    /// It has every write that completed before. What a guest still has in its memory is not written: run 'sync' or 'fsfreeze' there
    /// first, or pause the machine.
    Snapshot {
        /// Name of the volume
        name: String,
        /// Name of the new snapshot
        snapshot: String,
    },
    /// List the snapshots of a volume
    Snapshots {
        /// Name of the volume
        name: String,
    },
    /// Make a volume from another one at once; blocks elsewhere are fetched when read, and in the background
    ///
    /// It has every write that completed before. What a guest still has in its memory is not written: run 'sync' or 'fsfreeze' there
    /// first, or pause the machine. So are several volumes forked as they were at one instant, one after the other.
    Fork {
        /// NAME, NAME@SNAP, or an NBD address such as nbd://host:10809/NAME@SNAP, with TLS nbds://host/NAME@SNAP?tls-certificates=DIR
        source: String,
        /// Name of the new volume
        new: String,
        /// Another address that has the same snapshot; may be given several times
        #[arg(long, value_name = "URI")]
        also: Vec<String>,
        /// Fork an export that is written meanwhile and gives no snapshot of itself, as those of other servers than volfork: blocks that
        /// are fetched at different times are then of different instants
        #[arg(long)]
        live: bool,
        /// Its size, for example 20G, not smaller than the source; what is behind the source's end is zero [default: as its source]
        #[arg(long, value_parser = size)]
        size: Option<u64>,
        /// What it is for [default: as its source]
        #[command(flatten)]
        purpose: PurposeArguments,
        /// What its clients may ask of it; nothing of this is inherited
        #[command(flatten)]
        limits: LimitArguments,
    },
    /// Rank the hosts of a fleet for a volume and its machine, by the seconds until it can start
    #[cfg(feature = "fleet")]
    Place(PlaceArguments),
    /// Look at the hosts of a fleet, report to it, give reservations back
    #[cfg(feature = "fleet")]
    #[command(subcommand)]
    Fleet(FleetCommand),
    /// Make a volume larger
    ///
    /// A command whose answer was lost can be repeated with the new size, or with --from: it changes nothing if it was done. +SIZE alone
    /// adds each time.
    Extend {
        /// Name of the volume
        name: String,
        /// The new size, as in 20G, or what to add, as in +10G
        #[arg(long, allow_hyphen_values = true)]
        size: Growth,
        /// The size before. A volume that has neither this size nor the new one is left as it is, with an error
        #[arg(long, value_parser = size)]
        from: Option<u64>,
        /// Extend it even if that breaks the capacity of this host in its fleet
        #[arg(long)]
        force: bool,
    },
    /// Look at or change the limits of what the NBD clients of a volume may ask of it together
    ///
    /// They hold at once, also for clients that are connected. What is not given stays as it is. A fork does not inherit them.
    Limit {
        /// Name of the volume
        name: String,
        /// What changes
        #[command(flatten)]
        change: LimitsChangeArguments,
    },
    /// Give a volume another name
    Rename {
        /// Name of the volume
        name: String,
        /// Its new name
        new: String,
    },
    /// Destroy a volume or snapshot
    #[command(visible_alias = "rm")]
    Destroy {
        /// NAME or NAME@SNAP
        target: Target,
        /// The snapshots of the volume too
        #[arg(long)]
        recursive: bool,
        /// Even if forks of other hosts still fetch from it, which then lack what they have not got; ends its connections
        #[arg(long)]
        force: bool,
    },
    /// End the connections of the server to a volume or snapshot, for example of a client that hangs. Clients may connect again
    Disconnect {
        /// NAME or NAME@SNAP
        target: Target,
    },
    /// Look at, steer or await the background replication of a fork
    Hydrate {
        /// Name of the volume
        name: String,
        /// Wait until the volume needs its source no more. While no source answers that goes on, and says why; it fails at once
        /// when every source has other bytes than those that were forked, or none at all
        #[arg(long, conflicts_with = "pause")]
        wait: bool,
        /// With --wait: end with status 3 if the volume is not complete after this time, as in 90s, 10m or 1h30m
        #[arg(long, requires = "wait", value_parser = seconds, value_name = "TIME")]
        timeout: Option<u64>,
        /// Stop background replication; reads still fetch what they need
        #[arg(long, conflicts_with = "resume")]
        pause: bool,
        /// Continue background replication
        #[arg(long)]
        resume: bool,
        /// Most bytes a second, as in 100M; 0 for no limit
        #[arg(long, value_parser = bytes)]
        rate: Option<u64>,
        /// Be complete within this time, as in 10m or 1h30m, even if that slows reads and writes down; 0 for no deadline
        #[arg(long, value_parser = seconds, value_name = "TIME")]
        deadline: Option<u64>,
        /// Share of what the hydrations of this store have together: low is a quarter of normal, high four times as much
        #[arg(long)]
        priority: Option<Priority>,
        /// Another address that has the same snapshot; may be given several times
        #[arg(long, value_name = "URI")]
        add_source: Vec<String>,
        /// An address that is not to be used any more
        #[arg(long, value_name = "URI")]
        remove_source: Vec<String>,
    },
    /// The order in which forks first touch a snapshot, which later forks are fetched in
    #[command(subcommand)]
    Trace(TraceCommand),
    /// Serve all volumes and snapshots over NBD, until SIGTERM or SIGINT
    Serve(ServeArguments),
    /// Verify the structure of a store that is not in use
    Check,
    /// Read and verify every stored block of a volume, or of the store
    Scrub {
        /// Name of the volume
        name: Option<String>,
    },
    /// Show it all: import an image, serve it, fork it into a second store over NBD, read while it hydrates, verify
    Demo(DemoArguments),
    /// Print the completion script of a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Container images: import one as a volume, show one, list what is held
    #[cfg(feature = "images")]
    #[command(subcommand)]
    Image(ImageCommand),
}

/// Arguments of `serve`.
#[derive(Args, Debug, PartialEq)]
pub struct ServeArguments {
    /// unix:PATH or HOST:PORT; several may be given [default: unix:STORE/nbd.sock, or the sockets systemd passes]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Vec<String>,
    /// Take the place of the process that serves the store: it ends what is under way, and this one goes on with its sockets and --listen
    /// adds none. Clients connect again, and none is refused. Without such a process, serve as usual
    #[arg(long)]
    pub replace: bool,
    /// How long a fork of another host may be silent before the snapshot that it needs can be destroyed, from 1h on
    #[arg(long, value_parser = lease, value_name = "TIME", default_value = "7d")]
    pub lease: Duration,
    /// TLS of the listeners
    #[command(flatten)]
    pub tls: TlsArguments,
    /// Whether and how it reports to a fleet
    #[cfg(feature = "fleet")]
    #[command(flatten)]
    pub report: ReportArguments,
}

/// The words of `hydrate --priority`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Priority {
    /// A quarter of normal.
    Low,
    /// Normal.
    Normal,
    /// Four times normal.
    High,
}

/// Arguments of `demo`.
#[derive(Args)]
pub struct DemoArguments {
    /// A raw image [default: one that is made for the purpose]
    pub image: Option<PathBuf>,
    /// Size of the image that is made
    #[arg(long, default_value = "1G", value_parser = size, conflicts_with = "image")]
    pub size: u64,
    /// Where to work; needs room for about three times the data of the image [default: the temporary directory]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Most bytes a second of background replication, to watch it longer
    #[arg(long, value_parser = bytes)]
    pub rate: Option<u64>,
    /// Keep both stores
    #[arg(long)]
    pub keep: bool,
}
