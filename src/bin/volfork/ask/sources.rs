//! Sources elsewhere, as the command line opens them.

use std::sync::Arc;

use volfork::source::{NbdOptions, SourceOpener, UriSources};

use crate::settings::Settings;

/// How forks reach exports elsewhere.
pub fn sources(settings: &Settings) -> Arc<dyn SourceOpener> {
    let nbd = settings.source_timeout.map(NbdOptions::patient_for).unwrap_or_default();
    Arc::new(UriSources { nbd })
}
