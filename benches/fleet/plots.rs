//! Plots of the results.

use std::error::Error;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::outcome::Outcome;
use crate::report::Row;

/// Colours that most people can tell apart (Okabe and Ito); the grey one is for random choice.
const COLOURS: [RGBColor; 11] = [
    RGBColor(150, 150, 150),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(86, 180, 233),
    RGBColor(204, 121, 167),
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(0, 0, 0),
    RGBColor(240, 228, 66),
    RGBColor(120, 60, 20),
    RGBColor(110, 60, 160),
];
const FONT: &str = "sans-serif";

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn Error>>;

/// One group of bars: a title and what it shows of a row.
type Measure = (&'static str, fn(&Row) -> f64);

/// A policy's name and its outcome.
pub type Named<'a> = (&'a str, &'a Outcome);

fn colour(policy: usize) -> RGBColor {
    COLOURS[policy % COLOURS.len()]
}

/// All pictures that compare fleets.
pub fn fleets(rows: &[Row], directory: &Path) -> Drawn {
    let start: [Measure; 2] = [("mean start, seconds", |row| row.mean_seconds), ("p99 start, seconds", |row| row.p99_seconds)];
    bars(rows, &start, &directory.join("start.svg"))?;
    let burst: [Measure; 2] = [
        ("mean start in a burst, seconds", |row| row.burst_mean_seconds),
        ("last start of a burst, seconds", |row| row.burst_last_seconds),
    ];
    bars(rows, &burst, &directory.join("burst.svg"))?;
    let bytes: [Measure; 2] = [
        ("GB moved for a start", |row| (row.registry_bytes + row.peer_bytes) as f64 / 1e9 / row.starts.max(1) as f64),
        ("GB missing where a burst went", |row| row.burst_missing_bytes / 1e9),
    ];
    bars(rows, &bytes, &directory.join("bytes.svg"))?;
    let spread: [Measure; 3] = [
        ("variation of machines per host", |row| row.machines_variation),
        ("most machines of a host / mean", |row| row.machines_max_to_mean),
        ("variation of processors in use", |row| row.fullness_variation),
    ];
    bars(rows, &spread, &directory.join("spread.svg"))
}

/// Bars by fleet and policy, a panel for each measure, in the order of the rows.
fn bars(rows: &[Row], measures: &[Measure], path: &Path) -> Drawn {
    let root = SVGBackend::new(path, (460 * measures.len() as u32, 430)).into_drawing_area();
    root.fill(&WHITE)?;
    let (panels, names) = root.split_vertically(380);
    let mut fleets: Vec<usize> = rows.iter().map(|row| row.hosts).collect();
    fleets.dedup();
    let mut policies: Vec<&str> = Vec::new();
    for row in rows {
        if !policies.contains(&row.policy.as_str()) {
            policies.push(&row.policy);
        }
    }
    for (panel, measure) in panels.split_evenly((1, measures.len())).iter().zip(measures) {
        panel_of_bars(panel, rows, measure, &fleets, &policies)?;
    }
    legend(&names, &policies)?;
    root.present()?;
    Ok(())
}

fn panel_of_bars(panel: &Area, rows: &[Row], (title, value): &Measure, fleets: &[usize], policies: &[&str]) -> Drawn {
    let most = rows.iter().map(value).fold(0.0, f64::max).max(1e-9) * 1.1;
    let mut chart = ChartBuilder::on(panel)
        .caption(title, (FONT, 17))
        .margin(8)
        .x_label_area_size(28)
        .y_label_area_size(48)
        .build_cartesian_2d(0.0..fleets.len() as f64, 0.0..most)?;
    chart.configure_mesh().disable_x_mesh().disable_x_axis().y_labels(6).light_line_style(TRANSPARENT).label_style((FONT, 13)).draw()?;
    let wide = 0.84 / policies.len() as f64;
    for row in rows {
        let group = fleets.iter().position(|hosts| *hosts == row.hosts).unwrap_or(0) as f64;
        let policy = policies.iter().position(|name| *name == row.policy).unwrap_or(0);
        let (from, height) = (group + 0.08 + wide * policy as f64, value(row));
        chart.draw_series([Rectangle::new([(from, 0.0), (from + wide * 0.9, height)], colour(policy).filled())])?;
    }
    let (width, height) = panel.dim_in_pixel();
    let style = (FONT, 14).into_font().into_text_style(panel).pos(middle());
    for (group, hosts) in fleets.iter().enumerate() {
        let at = 56.0 + (f64::from(width) - 64.0) * (group as f64 + 0.5) / fleets.len() as f64;
        panel.draw(&Text::new(format!("{hosts} hosts"), (at as i32, height as i32 - 22), style.clone()))?;
    }
    Ok(())
}

fn middle() -> plotters::style::text_anchor::Pos {
    use plotters::style::text_anchor::{HPos, Pos, VPos};
    Pos::new(HPos::Center, VPos::Center)
}

/// Names of the policies in one line.
fn legend(area: &Area, policies: &[&str]) -> Drawn {
    let letters: usize = policies.iter().map(|name| name.len() + 5).sum();
    let (width, _) = area.dim_in_pixel();
    let letter = (f64::from(width - 30) / letters.max(1) as f64).min(7.5);
    let mut at = 20.0;
    for (policy, name) in policies.iter().enumerate() {
        area.draw(&Rectangle::new([(at as i32, 14), (at as i32 + 12, 26)], colour(policy).filled()))?;
        area.draw(&Text::new((*name).to_owned(), (at as i32 + 17, 13), (FONT, 14)))?;
        at += letter * (name.len() + 5) as f64;
    }
    Ok(())
}

/// Which share of the starts took at most so many seconds.
pub fn distribution(hosts: usize, outcomes: &[Named], path: &Path) -> Drawn {
    let curves = outcomes.iter().map(|(_, outcome)| steps(&outcome.singles(), 1.0 / outcome.singles().len().max(1) as f64));
    let title = format!("starts of single machines on {hosts} hosts");
    curve_plot(&title, "share of starts", 1.0, outcomes, curves.collect(), path)
}

/// How many machines of a burst are ready after so many seconds, on average over the bursts.
pub fn burst(hosts: usize, bursts: usize, machines: usize, outcomes: &[Named], path: &Path) -> Drawn {
    let curves = outcomes.iter().map(|(_, outcome)| steps(&outcome.bursts(), 1.0 / bursts.max(1) as f64));
    let title = format!("{machines} machines of one cold image at once on {hosts} hosts");
    curve_plot(&title, "machines ready", machines as f64, outcomes, curves.collect(), path)
}

/// A curve that grows by `step` at each of the ascending values.
fn steps(ascending: &[f64], step: f64) -> Vec<(f64, f64)> {
    let level = |count: usize| count as f64 * step;
    ascending.iter().enumerate().flat_map(|(before, value)| [(*value, level(before)), (*value, level(before + 1))]).collect()
}

fn curve_plot(title: &str, unit: &str, top: f64, outcomes: &[Named], curves: Vec<Vec<(f64, f64)>>, path: &Path) -> Drawn {
    let root = SVGBackend::new(path, (920, 520)).into_drawing_area();
    root.fill(&WHITE)?;
    let (panel, names) = root.split_vertically(470);
    let most = curves.iter().filter_map(|curve| curve.last()).map(|last| last.0).fold(1.0, f64::max);
    let least = curves.iter().filter_map(|curve| curve.first()).map(|first| first.0).fold(most, f64::min) * 0.8;
    let mut chart = ChartBuilder::on(&panel)
        .caption(title, (FONT, 18))
        .margin(10)
        .x_label_area_size(44)
        .y_label_area_size(60)
        .build_cartesian_2d((least..most * 1.05).log_scale(), 0.0..top * 1.02)?;
    chart
        .configure_mesh()
        .x_desc("seconds from the request until the machine is ready (logarithmic)")
        .y_desc(unit)
        .light_line_style(TRANSPARENT)
        .label_style((FONT, 13))
        .axis_desc_style((FONT, 14))
        .draw()?;
    for (policy, mut curve) in curves.into_iter().enumerate() {
        let level = curve.last().map_or(0.0, |last| last.1);
        curve.push((most * 1.05, level));
        chart.draw_series(LineSeries::new(curve, colour(policy).stroke_width(2)))?;
    }
    let policies: Vec<&str> = outcomes.iter().map(|(name, _)| *name).collect();
    legend(&names, &policies)?;
    root.present()?;
    Ok(())
}
