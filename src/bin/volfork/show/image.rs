//! Answers about images, as they are printed.

use serde::Serialize;
use serde_json::{Value, json};
use volfork::format_bytes;
use volfork::image::{ImportedImage, ResolvedImage};
use volfork::placement::{StartSummary, TimeSummary};

use super::table::table;
use crate::request::image::{HeldImages, ImageResponse};
use crate::settings::Settings;

/// For scripts.
pub fn as_json(response: &ImageResponse) -> Value {
    match response {
        ImageResponse::Imported(imported) => imported_json(imported),
        ImageResponse::Held(held) => plain(held),
    }
}

/// An import that ended.
pub fn imported_json(imported: &ImportedImage) -> Value {
    let mut value = plain(imported);
    value["start"]["cached"] = imported.start.is_cached().into();
    value
}

fn plain(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// For people; of a list only the names, and of an import nothing, if they want it quiet.
pub fn as_text(settings: &Settings, response: &ImageResponse) -> String {
    match response {
        ImageResponse::Imported(_) if settings.quiet => String::new(),
        ImageResponse::Imported(imported) => start_text(imported),
        ImageResponse::Held(held) if settings.quiet => held.images.iter().map(|image| image.volume.as_str()).collect::<Vec<_>>().join("\n"),
        ImageResponse::Held(held) => held_text(held),
    }
}

/// An import that ended, in one line.
pub fn start_text(imported: &ImportedImage) -> String {
    let start = &imported.start;
    let millis = |seconds: f64| format!("{:.1} ms", seconds * 1000.0);
    let how = match (start.is_cached(), start.layers_reused) {
        (true, _) => "cached".into(),
        (false, 0) => format!("{} fetched", format_bytes(start.bytes_fetched)),
        (false, reused) => format!("{} fetched; {reused} of {} layers were here", format_bytes(start.bytes_fetched), start.layers),
    };
    format!(
        "image {} is ready in {} as volume '{}' (fetch {}, prepare {}; {how})",
        imported.image.reference,
        millis(start.seconds()),
        imported.volume,
        millis(start.fetch_seconds),
        millis(start.prepare_seconds)
    )
}

fn held_text(held: &HeldImages) -> String {
    let images = held.images.iter().map(|image| vec![image.volume.clone(), image.reference.clone(), image.digest.clone()]);
    let layers = held.layers.iter().map(|held| vec![held.layer.digest.to_string(), format_bytes(held.layer.bytes), held.chain.to_string()]);
    let images = table(&["VOLUME", "IMAGE", "DIGEST"], &[], images);
    let lists = format!("{images}\n\n{}", table(&["LAYER", "SIZE", "CHAIN"], &[1], layers));
    let Some(starts) = &held.starts else { return lists };
    let kind = |name: &str, starts: &StartSummary| {
        let TimeSummary { p50_seconds, p99_seconds, .. } = starts.total;
        match starts.count {
            0 => format!("{name} 0"),
            count => format!("{name} {count} (median {:.1} ms, 99 % within {:.1} ms)", p50_seconds * 1e3, p99_seconds * 1e3),
        }
    };
    format!("{lists}\n\nimports here: {}, {}", kind("cached", &starts.cached), kind("fetched", &starts.fetched))
}

/// An image where it comes from: for scripts, or for people.
pub fn resolved(settings: &Settings, found: &ResolvedImage) -> String {
    let image = &found.image;
    if settings.json {
        let mut value = plain(image);
        value["bytes"] = image.bytes().into();
        value["platform"] = json!(found.platform.to_string());
        return value.to_string();
    }
    let layers = image.layers.iter().map(|layer| vec![layer.digest.to_string(), format_bytes(layer.bytes)]);
    let head = format!(
        "{}\ndigest    {}\nplatform  {}\nsize      {} in {} layers",
        image.reference,
        image.digest,
        found.platform,
        format_bytes(image.bytes()),
        image.layers.len()
    );
    format!("{head}\n\n{}", table(&["LAYER", "SIZE"], &[1], layers))
}
