//! The progress bar of long work: on a terminal only, on stderr only.

use std::io::{IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::stream::note_json;
use crate::failure::Result;
use crate::request::progress::{Progress, Unit, Watcher};
use crate::settings::Settings;

const BYTES: &str = "{msg}[{bar:30}] {percent:>3}%  {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  {eta}";
const BYTES_OPEN: &str = "{msg}{spinner} {binary_bytes}  {binary_bytes_per_sec}";
const BLOCKS: &str = "{msg}[{bar:30}] {percent:>3}%  {human_pos}/{human_len} blocks  {eta}";

/// A bar that appears with the first progress and goes away when it is dropped.
pub struct Bar {
    shown: bool,
    quiet: bool,
    json: bool,
    label: String,
    bar: Option<ProgressBar>,
    note: Option<String>,
}

impl Bar {
    /// A bar that begins with `label`.
    pub fn new(label: impl Into<String>, Settings { quiet, json, .. }: &Settings) -> Self {
        let (quiet, json) = (*quiet, *json);
        let shown = !quiet && std::io::stderr().is_terminal();
        let mut label = label.into();
        if !label.is_empty() {
            label.push(' ');
        }
        Self { shown, quiet, json, label, bar: None, note: None }
    }

    fn begin(&self, progress: &Progress) -> ProgressBar {
        let (template, length) = match (progress.unit, progress.total) {
            (Unit::Bytes, Some(total)) => (BYTES, total),
            (Unit::Bytes, None) => (BYTES_OPEN, 0),
            (Unit::Blocks, total) => (BLOCKS, total.unwrap_or(0)),
        };
        let bar = ProgressBar::with_draw_target(progress.total.map(|_| length), ProgressDrawTarget::hidden());
        // Work done before the bar appeared must not count for the rate: the estimator sees it once, and is then reset.
        bar.set_position(progress.done);
        bar.tick();
        bar.reset_eta();
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(self.label.clone());
        bar
    }
}

impl Watcher for Bar {
    fn tell(&mut self, progress: Progress) -> Result<()> {
        if self.shown {
            if self.bar.is_none() {
                let bar = self.begin(&progress);
                bar.set_draw_target(ProgressDrawTarget::stderr());
                self.bar = Some(bar);
            }
            if let Some(bar) = &self.bar {
                if let Some(total) = progress.total {
                    bar.set_length(total);
                }
                bar.set_position(progress.done);
            }
        }
        if progress.note != self.note {
            self.note = progress.note;
            if let (Some(note), false) = (&self.note, self.quiet) {
                match &self.bar {
                    Some(bar) => bar.println(format!("volfork: {note}")),
                    None if self.json => note_json(note),
                    // There is no other place to report an error of stderr.
                    None => drop(writeln!(std::io::stderr(), "volfork: {note}")),
                }
            }
        }
        Ok(())
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::arguments::Arguments;

    #[test]
    fn what_was_done_before_the_bar_began_is_no_progress() {
        let settings = Arguments::try_parse_from(["volfork", "list"]).unwrap().settle().0;
        let bar = Bar::new("hydrate", &settings);
        let begun = bar.begin(&Progress { unit: Unit::Bytes, done: 1 << 40, total: Some(1 << 41), note: None });
        begun.set_position((1 << 40) + 1);
        begun.tick();
        // One byte in a nanosecond at most; with what was done before it would be more, whatever the clock says.
        assert!(begun.per_sec() <= 1e9, "{} bytes a second", begun.per_sec());
        assert_eq!(begun.position(), (1 << 40) + 1);
    }
}
