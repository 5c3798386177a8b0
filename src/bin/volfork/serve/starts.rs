//! How long the starts of a serving process took.

use std::sync::{Mutex, PoisonError};

use serde_json::json;
use volfork::placement::StartTimes;

use crate::request::image::ImageResponse;
use crate::request::response::Response;
use crate::settings::Settings;
use crate::show::{image, stream};

/// Starts since the process began to serve.
#[derive(Default)]
pub struct Starts(Mutex<StartTimes>);

impl Starts {
    /// Counts and logs an import that ended; adds what was counted to a list.
    pub fn note(&self, settings: &Settings, response: &mut Response) {
        let Response::Image(response) = response else { return };
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match response {
            ImageResponse::Imported(imported) => {
                let start = &imported.start;
                times.record(start.fetch_seconds, start.prepare_seconds, start.is_cached());
                match settings.json {
                    // A log that cannot be written must not fail the import.
                    true => {
                        let about = json!({ "image": image::imported_json(imported) });
                        drop(stream::json(&stream::log("image_ready", &about)));
                    }
                    false if settings.quiet => {}
                    false => eprintln!("{}", image::start_text(imported)),
                }
            }
            ImageResponse::Held(held) => held.starts = Some(Box::new(times.summary())),
        }
    }
}
