//! Output of the demonstration: lines for people, numbers for scripts.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::failure::Result;
use crate::settings::Settings;
use crate::show::stream;

/// Lines as they happen, or one JSON object at the end.
pub struct Report {
    json: bool,
    quiet: bool,
    numbers: Map<String, Value>,
}

impl Report {
    /// An empty report.
    pub fn new(settings: &Settings) -> Self {
        Self { json: settings.json, quiet: settings.quiet, numbers: Map::new() }
    }

    /// One line for people.
    pub fn say(&self, step: &str, text: &str) -> Result<()> {
        if self.json || self.quiet {
            return Ok(());
        }
        stream::text(&format!("{step:<12} {text}"))
    }

    /// One number for scripts.
    pub fn note(&mut self, key: &str, value: impl Into<Value>) {
        self.numbers.insert(key.into(), value.into());
    }

    /// The end.
    pub fn finish(self) -> Result<()> {
        match self.json {
            true => stream::json(&self.numbers),
            false => Ok(()),
        }
    }
}

/// `1.23 s`, `4.5 ms`, `67 us`.
pub fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    match seconds {
        _ if seconds >= 1.0 => format!("{seconds:.2} s"),
        _ if seconds >= 0.001 => format!("{:.1} ms", seconds * 1e3),
        _ => format!("{:.0} us", seconds * 1e6),
    }
}

/// Bytes a second.
pub fn rate(bytes: u64, duration: Duration) -> u64 {
    (bytes as f64 / duration.as_secs_f64().max(1e-9)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_the_unit_that_fits() {
        for (duration, text) in
            [(Duration::from_millis(2_350), "2.35 s"), (Duration::from_micros(4_560), "4.6 ms"), (Duration::from_nanos(67_400), "67 us")]
        {
            assert_eq!(format_duration(duration), text);
        }
        assert_eq!(rate(100, Duration::from_secs(2)), 50);
    }
}
