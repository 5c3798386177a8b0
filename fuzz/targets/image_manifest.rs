//! Manifests and indexes of images from strangers: never a panic, and what is accepted stays within the bounds.
#![no_main]

use volfork::image::{Document, parse_document};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(Document::Manifest { layers, .. }) = parse_document(bytes, None) {
        assert!(layers.len() <= 500);
    }
});
