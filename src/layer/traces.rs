//! Traces of layers on disk: the order in which forks touched the blocks of a layer.

use super::files::LayerFiles;
use crate::error::{Error, Result};
use crate::format::{LayerFile, TRACE_BYTES_MAX, Trace};
use crate::ids::LayerId;
use crate::io::DiskFileExt;

/// The trace of a layer, if one was recorded and can be read.
pub(super) fn load(files: &LayerFiles, layer: LayerId) -> Option<Trace> {
    let file = files.get(layer, LayerFile::Trace).ok()??;
    let size = usize::try_from(file.size_bytes().ok()?).unwrap_or(usize::MAX);
    let mut bytes = vec![0; size.min(TRACE_BYTES_MAX)];
    file.read_exact_at(&mut bytes, 0).ok()?;
    Trace::decode(&bytes).ok().filter(|trace| !trace.runs.is_empty())
}

/// Replaces the trace of a layer; an empty one counts as none. The trace is advice: it is not made durable, and a torn one is ignored.
///
/// # Errors
/// An I/O error.
pub(super) fn save(files: &LayerFiles, layer: LayerId, trace: &Trace) -> Result<()> {
    let file = files.get_or_create(layer, LayerFile::Trace);
    let written = file.and_then(|file| file.write_all_at(&trace.encode(), 0));
    written.map_err(|error| Error::io(format!("cannot write the trace of layer {layer}"), error))
}
