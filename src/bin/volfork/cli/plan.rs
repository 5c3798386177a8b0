//! From arguments to what is to be done.

use std::path::PathBuf;

use volfork::BlockSize;
use volfork::store::HydrationControl;
use volfork::volume::HydrationPriority;

use super::address::{from_here, is_uri};
use super::arguments::{Arguments, Command, DemoArguments, Priority, ServeArguments};
#[cfg(feature = "fleet")]
use super::fleet::{FleetCommand, PlaceArguments};
#[cfg(feature = "images")]
use super::image::{ImageChoice, ImageCommand};
use super::trace::TraceCommand;
#[cfg(feature = "images")]
use crate::request::image::ImageRequest;
use crate::request::target::Target;
use crate::request::{Request, TraceAction};
use crate::settings::Settings;

/// The user's file of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileArgument {
    /// Nothing.
    None,
    /// An image to read; `-` is standard input.
    Read(PathBuf),
    /// An image to write; `-` is standard output.
    Write(PathBuf),
}

/// The action of a command.
pub enum Plan {
    /// Make a store.
    Init {
        block_size: BlockSize,
        /// The group of the directory may use the store, too.
        group_access: bool,
    },
    /// Ask something of the store, or of the process that owns it.
    Ask {
        request: Request,
        /// What the request reads or writes outside the store.
        file: FileArgument,
        /// Whether a missing store is made.
        makes_store: bool,
    },
    /// Verify a closed store.
    Check,
    /// Serve the store.
    Serve(ServeArguments),
    /// Rank the hosts of a fleet.
    #[cfg(feature = "fleet")]
    Place(Box<PlaceArguments>),
    /// A command of `fleet`.
    #[cfg(feature = "fleet")]
    Fleet(FleetCommand),
    /// The demonstration.
    Demo(DemoArguments),
    /// The completion script of a shell.
    Completions(clap_complete::Shell),
    /// Show an image where it comes from.
    #[cfg(feature = "images")]
    ShowImage {
        /// Name of the image, as the user gave it.
        reference: String,
        choice: ImageChoice,
    },
}

impl Plan {
    /// One request, without a file.
    pub fn ask(request: Request) -> Self {
        Self::Ask { request, file: FileArgument::None, makes_store: false }
    }
}

impl Arguments {
    /// Splits the arguments into common settings and the action.
    pub fn settle(self) -> (Settings, Plan) {
        let (label, plan) = plan(self.command);
        let Self { store, json, quiet, source_timeout, .. } = self;
        (Settings { store, json, quiet, source_timeout, label: label.into() }, plan)
    }
}

fn plan(command: Command) -> (&'static str, Plan) {
    match command {
        Command::Init { block_size, group_access } => ("init", Plan::Init { block_size, group_access }),
        Command::Create { name, size, purpose, limits } => {
            let (force, labels, limits) = (purpose.force, purpose.labels(), limits.limits());
            ("create", Plan::ask(Request::Create { name, size_bytes: size, labels, limits, force }))
        }
        Command::Import { name, file, raw, force } => {
            ("import", Plan::Ask { request: Request::Import { name, raw, force }, file: FileArgument::Read(file), makes_store: true })
        }
        Command::Export { target, file } => {
            ("export", Plan::Ask { request: Request::Export { target }, file: FileArgument::Write(file), makes_store: false })
        }
        Command::List => ("list", Plan::ask(Request::List)),
        Command::Show { name } => ("show", Plan::ask(Request::Show { name })),
        Command::Snapshot { name, snapshot } => ("snapshot", Plan::ask(Request::Snapshot { volume: name, snapshot })),
        Command::Snapshots { name } => ("snapshots", Plan::ask(Request::Snapshots { volume: name })),
        Command::Fork { source, new, also, live, size, purpose, limits } => {
            let makes_store = is_uri(&source);
            let (force, labels) = (purpose.force, purpose.fork_labels());
            let (source, also) = (from_here(source), also.into_iter().map(from_here).collect());
            let limits = limits.limits();
            let request = Request::Fork { source, also, name: new, labels, live, size_bytes: size, limits, force };
            ("fork", Plan::Ask { request, file: FileArgument::None, makes_store })
        }
        Command::Extend { name, size, from, force } => ("extend", Plan::ask(Request::Extend { name, growth: size, from, force })),
        Command::Limit { name, change } => ("limit", Plan::ask(Request::Limit { name, change: change.change() })),
        Command::Rename { name, new } => ("rename", Plan::ask(Request::Rename { name, new })),
        Command::Destroy { target, recursive, force } => ("destroy", Plan::ask(Request::Destroy { target, recursive, force })),
        Command::Disconnect { target } => ("disconnect", Plan::ask(Request::Disconnect { target })),
        Command::Hydrate { name, wait, timeout, pause, resume, rate, deadline, priority, add_source, remove_source } => {
            let mut control = HydrationControl::default()
                .with_add_sources(add_source.into_iter().map(from_here).collect())
                .with_remove_sources(remove_source);
            control.paused = (pause || resume).then_some(pause);
            control.rate_bytes_per_second = rate;
            control.deadline_seconds = deadline;
            control.priority = priority.map(priority_of);
            ("hydrate", Plan::ask(Request::Hydrate { name, control, wait, timeout_seconds: timeout }))
        }
        #[cfg(feature = "fleet")]
        Command::Place(place) => ("place", Plan::Place(Box::new(place))),
        #[cfg(feature = "fleet")]
        Command::Fleet(command) => ("fleet", Plan::Fleet(command)),
        Command::Trace(command) => trace_plan(command),
        Command::Serve(serve) => ("serve", Plan::Serve(serve)),
        Command::Check => ("check", Plan::Check),
        Command::Scrub { name } => ("scrub", Plan::ask(Request::Scrub { name })),
        Command::Demo(demo) => ("demo", Plan::Demo(demo)),
        Command::Completions { shell } => ("completions", Plan::Completions(shell)),
        #[cfg(feature = "images")]
        Command::Image(command) => image_plan(command),
    }
}

fn priority_of(word: Priority) -> HydrationPriority {
    match word {
        Priority::Low => HydrationPriority::Low,
        Priority::Normal => HydrationPriority::Normal,
        Priority::High => HydrationPriority::High,
    }
}

/// A command of `trace`, with its label.
fn trace_plan(command: TraceCommand) -> (&'static str, Plan) {
    let (action, target) = match command {
        TraceCommand::Show { target } => (TraceAction::Show, target),
        TraceCommand::Drop { target } => (TraceAction::Drop, target),
        TraceCommand::Record { name } => (TraceAction::Record, Target { volume: name, snapshot: None }),
    };
    ("trace", Plan::ask(Request::Trace { action, target }))
}

/// A reference with a whole path: the process that serves the store may be in another directory.
#[cfg(feature = "images")]
fn absolute(reference: String) -> String {
    match reference.strip_prefix("oci:").map(|rest| std::path::absolute(PathBuf::from(rest))) {
        Some(Ok(path)) => format!("oci:{}", path.display()),
        _ => reference,
    }
}

/// A command of `image`, with its label.
#[cfg(feature = "images")]
fn image_plan(command: ImageCommand) -> (&'static str, Plan) {
    let ask = |request, makes_store| Plan::Ask { request: Request::Image(request), file: FileArgument::None, makes_store };
    match command {
        ImageCommand::Import { reference, name, size, verify, choice } => {
            let ImageChoice { platform, plain_http } = choice;
            let reference = absolute(reference);
            ("image import", ask(ImageRequest::Import { reference, name, size_bytes: size, platform, plain_http, verify }, true))
        }
        ImageCommand::Show { reference, choice } => ("image show", Plan::ShowImage { reference, choice }),
        ImageCommand::List => ("image list", ask(ImageRequest::List, false)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::{CommandFactory, Parser};
    use volfork::volume::VolumeLimits;

    use super::*;
    use crate::request::limits::{LimitsChange, Setting};
    use crate::request::size::Growth;

    fn settled(line: &str) -> Plan {
        let words = std::iter::once("volfork").chain(line.split_whitespace());
        Arguments::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}")).settle().1
    }

    #[test]
    fn arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    fn create(size_bytes: u64, limits: VolumeLimits) -> Request {
        Request::Create { name: "v".into(), size_bytes, labels: [].into(), limits, force: false }
    }

    fn hydrate(control: HydrationControl, wait: bool) -> Request {
        Request::Hydrate { name: "v".into(), control, wait, timeout_seconds: None }
    }

    #[test]
    fn commands_become_requests() {
        let cases = [
            ("create v --size 10G", create(10 << 30, VolumeLimits::default())),
            ("create v --size 10B", create(10, VolumeLimits::default())),
            ("create v --size 1048576", create(1 << 20, VolumeLimits::default())),
            (
                "create v --size 1G --iops 5000 --bandwidth 100M --burst 1s500ms",
                create(1 << 30, VolumeLimits::default().with_iops(5000).with_bytes_per_second(100 << 20).with_burst_millis(1500)),
            ),
            ("limit v", Request::Limit { name: "v".into(), change: LimitsChange::default() }),
            (
                "limit v --iops none --bandwidth 64K",
                Request::Limit {
                    name: "v".into(),
                    change: LimitsChange { iops: Some(Setting::None), bytes_per_second: Some(Setting::To(64 << 10)), burst_millis: None },
                },
            ),
            ("extend v --size +1G", Request::Extend { name: "v".into(), growth: Growth::By(1 << 30), from: None, force: false }),
            (
                "extend v --size 2G --from 1G --force",
                Request::Extend { name: "v".into(), growth: Growth::To(2 << 30), from: Some(1 << 30), force: true },
            ),
            ("hydrate v", hydrate(HydrationControl::default(), false)),
            ("hydrate v --pause", hydrate(HydrationControl::default().with_paused(true), false)),
            (
                "hydrate v --resume --wait --rate 1M --deadline 1h30m --priority high --add-source nbd://a/v --remove-source nbd://b/v",
                hydrate(
                    HydrationControl::default()
                        .with_paused(false)
                        .with_rate_bytes_per_second(1 << 20)
                        .with_deadline_seconds(5400)
                        .with_priority(HydrationPriority::High)
                        .with_add_sources(vec!["nbd://a/v".into()])
                        .with_remove_sources(vec!["nbd://b/v".into()]),
                    true,
                ),
            ),
            ("hydrate v --deadline 0", hydrate(HydrationControl::default().with_deadline_seconds(0), false)),
            (
                "hydrate v --wait --timeout 2m",
                Request::Hydrate { name: "v".into(), control: HydrationControl::default(), wait: true, timeout_seconds: Some(120) },
            ),
            ("scrub", Request::Scrub { name: None }),
            ("ls", Request::List),
        ];
        for (line, expected) in cases {
            match settled(line) {
                Plan::Ask { request, file: FileArgument::None, makes_store: false } => assert_eq!(request, expected, "{line}"),
                _ => panic!("{line}"),
            }
        }
    }

    #[test]
    fn addresses_are_whole_for_the_process_that_opens_them() {
        let relative = "nbd+unix:///v?socket=s";
        let whole = from_here(relative.into());
        assert!(whole.starts_with("nbd+unix:///v?socket=/") && whole.ends_with("/s"), "{whole}");
        for line in [format!("fork {relative} v --also {relative}"), format!("hydrate v --add-source {relative}")] {
            let uris = match settled(&line) {
                Plan::Ask { request: Request::Fork { source, also, .. }, .. } => [vec![source], also].concat(),
                Plan::Ask { request: Request::Hydrate { control, .. }, .. } => control.add_sources,
                _ => panic!("{line}"),
            };
            assert!(!uris.is_empty() && uris.iter().all(|uri| *uri == whole), "{line}: {uris:?}");
        }
    }

    #[test]
    fn import_and_forks_from_elsewhere_make_the_store() {
        for (line, expected) in [
            ("import v -", true),
            ("fork nbd://host/v new", true),
            ("fork v@s new", false),
            ("export v f", false),
            ("destroy v@s --recursive", false),
        ] {
            assert!(matches!(settled(line), Plan::Ask { makes_store, .. } if makes_store == expected), "{line}");
        }
    }

    #[test]
    fn source_timeout_is_accepted_before_and_after_the_command() {
        for (line, seconds) in
            [("serve", None), ("--source-timeout 2s serve", Some(2)), ("fork nbd://a/v w --source-timeout 1m30s", Some(90))]
        {
            let words = std::iter::once("volfork").chain(line.split_whitespace());
            let settings = Arguments::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}")).settle().0;
            assert_eq!(settings.source_timeout, seconds.map(Duration::from_secs), "{line}");
        }
    }

    #[test]
    fn wrong_usage_is_refused() {
        for line in [
            "",
            "nonsense",
            "create v",
            "create v --size x",
            "create v --size 10",
            "extend v --size +10",
            "create v --size 1G --vm-memory 4",
            "init --block-size 5000",
            "extend v --size -1G",
            "hydrate v --pause --resume",
            "hydrate v --pause --wait",
            "hydrate v --deadline soon",
            "hydrate v --timeout 10m",
            "hydrate v --wait --timeout soon",
            "hydrate v --wait --timeout -1s",
            "hydrate v --priority urgent",
            "export @s f",
            "serve --source-timeout 0",
            "serve --source-timeout 1s",
            "serve --source-timeout 2h",
            "serve --source-timeout 30",
            "serve --lease 59m",
            "serve --lease never",
            "fork nbd://a/v w --source-timeout never",
            "demo image --size 1G",
            "create v --size 1G --vm-gpu-kind a100",
            "create v --size 1G --iops 0",
            "create v --size 1G --iops none",
            "create v --size 1G --bandwidth 100",
            "limit v --bandwidth 0",
            "limit v --burst 0s",
            "limit v --burst 2",
            "limit v --iops -5",
            "create v --size 1G --vm-memory much",
        ] {
            let words = std::iter::once("volfork").chain(line.split_whitespace());
            let error = Arguments::try_parse_from(words).err().unwrap_or_else(|| panic!("{line} was taken"));
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
