//! A barrier round: one frame, one round of syncs.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::commit::{Gathered, Ticket};
use super::patches::record_bytes;
use super::set::{HELP_INTERVAL, Layers};
use super::state::{Layer, State};
use crate::bits::BlockBits;
use crate::error::{Error, Result};
use crate::format::{BlockRun, Record, Writer};
use crate::io::DiskFile;
use crate::limits::EXTENT_BLOCKS;

/// What one layer brings to a round.
#[derive(Default)]
struct Contribution {
    present: Vec<BlockRun>,
    expect: Vec<BlockRun>,
    files: BTreeMap<u32, Arc<dyn DiskFile>>,
}

impl Layers {
    /// Waits for a round; runs it if nobody does.
    ///
    /// # Errors
    /// The round failed, and the store refuses writes from now on.
    pub fn wait(&self, ticket: Ticket) -> Result<()> {
        self.commit.wait(ticket, |ticket, gathered| self.run_round(ticket, gathered))
    }

    /// Makes all completed writes of `layers`, and all records so far, durable.
    ///
    /// # Errors
    /// As [`Layers::wait`].
    pub fn sync(&self, layers: impl IntoIterator<Item = crate::ids::LayerId>) -> Result<()> {
        self.wait(self.commit.enqueue_sync(layers))
    }

    /// Whether a flush of this layer has anything to make durable.
    pub fn needs_sync(&self, layer: &Layer) -> bool {
        let state = layer.state.lock();
        !state.written.is_empty() || !state.dying.is_empty() || state.round.is_some() || !state.fresh_extents.is_empty()
    }

    pub(super) fn run_round(&self, ticket: Ticket, gathered: Gathered) -> Result<()> {
        self.commit.healthy()?;
        let members: Vec<Arc<Layer>> = gathered.layers.iter().filter_map(|id| self.get(*id)).collect();
        let mut total = Contribution::default();
        let mut files: Vec<Arc<dyn DiskFile>> = Vec::new();
        for layer in &members {
            let part = self.begin_round(layer, ticket);
            total.present.extend(part.present);
            total.expect.extend(part.expect);
            files.extend(part.files.into_values());
        }
        self.files.sync_names().map_err(|error| Error::io("cannot sync the layers' directory", error))?;
        let sync = |files: &[Arc<dyn DiskFile>]| self.disk.sync_all(files).map_err(|error| Error::io("cannot sync", error));
        if total.expect.iter().map(|run| run.checksums.len()).sum::<usize>() > self.limits.expect_blocks_max {
            sync(&files)?;
            total.expect.clear();
        }
        let patch_bytes = gathered.records.iter().map(patch_bytes).sum();
        let mut writer = Writer::default();
        let expected = total.expect.into_iter().map(Record::Expect);
        let records = gathered.records.into_iter().chain(total.present.into_iter().map(Record::Present)).chain(expected);
        for record in records {
            record.encode(&mut writer);
        }
        if !writer.bytes.is_empty() {
            files.push(self.commit.append(&writer.bytes)?);
        }
        self.count_patches_recorded(patch_bytes);
        if !files.is_empty() {
            sync(&files)?;
            self.count_barrier();
        }
        for layer in &members {
            self.end_round(layer);
        }
        self.end_dying(ticket);
        Ok(())
    }

    /// Takes what completed writes left to be made durable. From here on, blocks of the frame are not overwritten.
    fn begin_round(&self, layer: &Layer, ticket: Ticket) -> Contribution {
        let mut state = layer.state.lock();
        let extents: Vec<u32> = std::mem::take(&mut state.fresh_extents).into_iter().collect();
        let mut part = Contribution::default();
        state.round = Some(ticket);
        for &extent in &extents {
            if let Some(hot) = state.hot.get_mut(&extent) {
                hot.draining = hot.fresh.and(&hot.latched);
            }
            // Writers of draining blocks were admitted before; nobody new is, so this ends.
            while state.hot.get(&extent).is_some_and(|hot| hot.draining.intersects(&hot.latched)) {
                layer.changed.wait_for(&mut state, HELP_INTERVAL);
                crate::sync::MutexGuard::unlocked(&mut state, || self.help());
            }
            let Some(hot) = state.hot.get_mut(&extent) else { continue };
            // Blocks that became fresh meanwhile wait for the next round if a writer holds them.
            let ready = hot.fresh.minus(&hot.latched);
            hot.draining = BlockBits::EMPTY;
            hot.round = ready;
            hot.fresh = hot.fresh.minus(&ready);
            part.present.extend(runs(layer, extent, &ready, |block| hot.page.get(block)));
            if !hot.fresh.is_empty() {
                state.fresh_extents.insert(extent);
            }
        }
        let named: u64 = part.present.iter().map(|run| run.checksums.len() as u64).sum();
        state.fresh_blocks -= named;
        self.count_recorded(named);
        state.round_extents = extents;
        self.take_overwritten(layer, &mut state, &mut part);
        part.files = std::mem::take(&mut state.written);
        part
    }

    fn take_overwritten(&self, layer: &Layer, state: &mut State, part: &mut Contribution) {
        for extent in std::mem::take(&mut state.overwritten_extents) {
            let Some(hot) = state.hot.get_mut(&extent) else { continue };
            if layer.is_sealed() {
                part.expect.extend(runs(layer, extent, &hot.overwritten, |block| hot.page.get(block)));
            }
            hot.overwritten = BlockBits::EMPTY;
            state.cool(extent);
        }
    }

    fn end_round(&self, layer: &Layer) {
        let frame = self.commit.latest_frame();
        let mut state = layer.state.lock();
        state.round = None;
        for extent in std::mem::take(&mut state.round_extents) {
            if let Some(hot) = state.hot.get_mut(&extent) {
                let named = std::mem::replace(&mut hot.round, BlockBits::EMPTY);
                hot.recorded = (named, frame);
                for run in named.runs() {
                    // What the frame names is durable now, and so supersedes its patches for good.
                    let first = extent * EXTENT_BLOCKS;
                    self.forget_patches(layer, &mut state, first + run.start..=first + (run.end - 1));
                }
            }
            state.cool(extent);
        }
        layer.changed.notify_all();
    }

    /// Blocks whose end is durable now become garbage.
    fn end_dying(&self, ticket: Ticket) {
        for layer in self.dying_layers() {
            let mut state = layer.state.lock();
            let dying = std::mem::take(&mut state.dying);
            let (over, still): (Vec<_>, Vec<_>) = dying.into_iter().partition(|dying| dying.ticket <= ticket);
            state.dying = still;
            for dying in over {
                state.garbage |= dying.gone;
            }
            if state.dying.is_empty() {
                self.forget_dying(&layer);
            }
            if !state.garbage.is_empty() {
                self.note_garbage(&layer);
            }
        }
    }
}

fn patch_bytes(record: &Record) -> u64 {
    match record {
        Record::Patch(patch) => record_bytes(patch.bytes.len()),
        _ => 0,
    }
}

fn runs(layer: &Layer, extent: u32, bits: &BlockBits, checksum: impl Fn(u32) -> u32) -> Vec<BlockRun> {
    bits.runs()
        .map(|run| BlockRun { layer: layer.id, block: extent * EXTENT_BLOCKS + run.start, checksums: run.map(&checksum).collect() })
        .collect()
}
