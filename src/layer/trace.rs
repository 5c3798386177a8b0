//! Traces of layers on disk.

use super::set::Layers;
use crate::error::{Error, Result};
use crate::format::{LayerFile, TRACE_BYTES_MAX, Trace};
use crate::ids::LayerId;
use crate::io::DiskFileExt;

impl Layers {
    /// In which order forks of a layer touched its blocks, if that was recorded. What cannot be read is as good as none.
    pub fn load_trace(&self, layer: LayerId) -> Option<Trace> {
        let file = self.files.get(layer, LayerFile::Trace).ok()??;
        let mut bytes = vec![0; file.size_bytes().ok()?.min(TRACE_BYTES_MAX as u64) as usize];
        file.read_exact_at(&mut bytes, 0).ok()?;
        Trace::decode(&bytes).ok().filter(|trace| !trace.runs.is_empty())
    }

    /// Replaces the trace of a layer; an empty one is as good as none. Not made durable: it is advice, and a torn one is ignored.
    ///
    /// # Errors
    /// An I/O error.
    pub fn save_trace(&self, layer: LayerId, trace: &Trace) -> Result<()> {
        let file = self.files.get_or_create(layer, LayerFile::Trace);
        let written = file.and_then(|file| file.write_all_at(&trace.encode(), 0));
        written.map_err(|error| Error::io(format!("cannot write the trace of layer {layer}"), error))
    }
}
