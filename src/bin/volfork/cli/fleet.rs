//! The arguments of everything that has to do with a fleet, as they are typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use volfork::placement::{Policy, Weights};

use super::address::is_uri;
use super::hints::HintArguments;
use crate::request::size::size;

/// Where the fleet is.
#[derive(Args, Clone, Debug)]
pub struct FleetArguments {
    /// Directory or bucket of the fleet: a path, file:///DIRECTORY or s3://BUCKET/PREFIX (settings from AWS_... of the environment)
    #[arg(long, env = "VOLFORK_FLEET", value_name = "URL")]
    pub fleet: String,
}

/// The commands of `fleet`.
#[derive(Subcommand)]
pub enum FleetCommand {
    /// List the hosts and the reservations
    #[command(visible_alias = "ls")]
    List {
        /// Where the fleet is
        #[command(flatten)]
        fleet: FleetArguments,
    },
    /// Report once what a store has that nobody serves; a server reports by itself
    Publish {
        /// Where the fleet is
        #[command(flatten)]
        fleet: FleetArguments,
        /// What the host is
        #[command(flatten)]
        host: HostArguments,
    },
    /// Give back a reservation
    Release {
        /// Where the fleet is
        #[command(flatten)]
        fleet: FleetArguments,
        /// The reservation, as 'place --reserve' printed it
        id: String,
    },
}

/// What a host is.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub struct HostArguments {
    /// Name of this host in the fleet [default: the machine's]
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,
    /// Region of this host [default: local]
    #[arg(long, value_name = "REGION")]
    pub region: Option<String>,
    /// Zone of this host: what fails together [default: the host]
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<String>,
    /// JSON with host, region, zone, status, capacity, reserved, bandwidth; what is left out is found out
    #[arg(long, value_name = "FILE")]
    pub host_config: Option<PathBuf>,
}

/// Whether and how a server reports to a fleet.
#[derive(Args, Clone, Debug, PartialEq)]
#[command(next_help_heading = "Fleet")]
pub struct ReportArguments {
    /// Report what this host has to a fleet: a path, file:///DIRECTORY or s3://BUCKET/PREFIX
    #[arg(long, env = "VOLFORK_FLEET", value_name = "URL")]
    pub fleet: Option<String>,
    /// What the host is
    #[command(flatten)]
    pub host: HostArguments,
    /// How often, as a sign of life: a host of which three reports are missing takes no machines. Changes by commands are reported
    /// at once
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = period)]
    pub report_every: Duration,
}

/// Arguments of `place`.
#[derive(Args, Clone, Debug)]
pub struct PlaceArguments {
    /// Where the fleet is
    #[command(flatten)]
    pub fleet: FleetArguments,
    /// What the volume will be forked from: NAME or NAME@SNAP of the store, or an NBD address; machine, size and region are taken
    /// from it unless they are told
    #[arg(long, value_name = "SOURCE")]
    pub source: Option<String>,
    /// Size of the volume, for example 10G [default: that of the source]
    #[arg(long, value_parser = size, required_unless_present = "source")]
    pub size: Option<u64>,
    /// Name of the volume
    #[arg(long, value_name = "NAME", default_value = "volume")]
    pub volume: String,
    /// The machine
    #[command(flatten)]
    pub hints: HintArguments,
    /// The layers of the image, instead of asking for them: a file with {"reference", "digest", "layers": [{"digest", "bytes"}]}
    #[arg(long, value_name = "FILE")]
    pub image_layers: Option<PathBuf>,
    /// Regions it may go to, the preferred one first, as in ams,fra,any [default: that of the host of --source, or any]
    #[arg(long, value_name = "REGIONS", value_delimiter = ',')]
    pub region: Vec<String>,
    /// How many to place
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000), value_name = "N")]
    pub count: u32,
    /// By what hosts are compared: start-time, capacity, image-bit, image-locality or lrscheduler
    #[arg(long, default_value = "start-time", value_parser = policy)]
    pub policy: Policy,
    /// Weights of the policy start-time, as in headroom_seconds=2,spread_seconds=1,herd_factor=1
    #[arg(long, value_parser = weights, value_name = "WEIGHTS")]
    pub weights: Option<Weights>,
    /// Reserve the best host: there, 'create' or 'fork' takes what is held, with --reservation ID
    #[arg(long)]
    pub reserve: bool,
    /// How long a reservation is held unless its host reports the volume
    #[arg(long, default_value = "60s", value_parser = period, value_name = "TIME")]
    pub ttl: Duration,
    /// Hosts that do not say how often they report take no machines when they have not reported for so long
    #[arg(long, default_value = "5m", value_parser = period, value_name = "TIME")]
    pub max_age: Duration,
    /// Print every host, with all its terms
    #[arg(long, visible_alias = "all")]
    pub explain: bool,
}

impl PlaceArguments {
    /// The source, if it is one of the store.
    pub fn local_source(&self) -> Option<&str> {
        self.source.as_deref().filter(|source| !is_uri(source))
    }
}

fn period(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| format!("{error}: use 90s, 10m or 1h30m"))?;
    if time.is_zero() || time > Duration::from_secs(86400) { Err("use more than nothing and at most a day".into()) } else { Ok(time) }
}

fn policy(text: &str) -> Result<Policy, String> {
    text.parse().map_err(|error: volfork::Error| error.to_string())
}

/// `name=number` parts, by the names that JSON uses.
fn weights(text: &str) -> Result<Weights, String> {
    let mut map = serde_json::Map::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').ok_or_else(|| format!("'{part}' is no weight: write name=number"))?;
        let value: f64 = value.trim().parse().map_err(|_| format!("'{value}' is not a number"))?;
        if !value.is_finite() || value < 0.0 {
            return Err(format!("'{value}' is not a weight: use 0 or more"));
        }
        map.insert(name.trim().to_owned(), value.into());
    }
    serde_json::from_value(map.into()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_named() {
        let Weights { headroom_seconds, spread_seconds, .. } = weights("headroom_seconds=0, spread_seconds=7.5").unwrap();
        assert_eq!((headroom_seconds, spread_seconds), (0.0, 7.5));
        for wrong in ["x", "x=1", "headroom_seconds=-1", "headroom_seconds=nan", "headroom_seconds=much"] {
            assert!(weights(wrong).is_err(), "{wrong}");
        }
        assert!(period("0s").is_err() && period("2d").is_err() && period("1m30s").is_ok());
    }
}
