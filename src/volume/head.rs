//! A volume that is open: its view, its gate, and writing.

use std::sync::Arc;

use super::blocks::{Blocks, LOOKS_MAX, View};
use super::gate::{Closed, Gate};
use super::hydration::Recorder;
use super::pool::Pool;
use super::queue::{Changes, Workers};
use super::state::{Shape, destroyed};
use crate::error::{Error, Result};
use crate::format::ShapeRecord;
use crate::ids::VolumeId;
use crate::layer::{Admitted, Layer, Layers, Reserved, Ticket};
use crate::limits::{Planted, VOLUME_BYTES_MAX};
use crate::owners::Owner;
use crate::place::{Block, BlockBits, BlockSpan, Extent, ExtentSpan, IndexSpan, Piece, length, wide};
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::{Mutex, OnceLock, Rank, RwLock};

/// Space that a write over several extents has taken for the blocks that it is going to add to a layer, by extent. Given back when this
/// is dropped, also by a panic, unless the blocks were written.
struct Taken<'a> {
    layers: &'a Layers,
    layer: Arc<Layer>,
    extents: Vec<(Extent, BlockBits)>,
}

impl Taken<'_> {
    /// The blocks were written: the space is theirs.
    fn keep(mut self) {
        self.extents.clear();
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.extents.iter().for_each(|(extent, bits)| self.layers.admission.give_back_space(&self.layer, *extent, bits));
    }
}

/// The open head of a volume, shared by all its handles and queues.
pub struct Head {
    pub blocks: Arc<Blocks>,
    pub shape: Arc<Shape>,
    pub pool: Arc<Pool>,
    pub id: VolumeId,
    pub gate: Gate,
    pub view: RwLock<View>,
    destroyed: AtomicBool,
    /// Notes its first touches of the layer it was forked from.
    pub recorder: OnceLock<Arc<Recorder>>,
    /// One change of size at a time.
    pub resizing: Mutex<()>,
    /// Queues that are open on it.
    pub queues: AtomicUsize,
    /// Threads for its reads and its writes that have to wait.
    pub readers: Workers,
    pub prefetchers: Workers,
    pub writers: Workers,
}

/// Counts a queue, which keeps its volume from being destroyed.
pub struct OpenQueue(Arc<Head>);

impl Drop for OpenQueue {
    fn drop(&mut self) {
        self.0.queues.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Head {
    /// A head with this view, which has no other handle yet.
    pub fn new(blocks: &Arc<Blocks>, shape: &Arc<Shape>, pool: &Arc<Pool>, id: VolumeId, view: View) -> Arc<Self> {
        Arc::new(Self {
            blocks: Arc::clone(blocks),
            shape: Arc::clone(shape),
            pool: Arc::clone(pool),
            id,
            gate: Gate::default(),
            view: RwLock::ranked(Rank::View, view),
            destroyed: AtomicBool::new(false),
            recorder: OnceLock::new(),
            resizing: Mutex::ranked(Rank::Resizing, ()),
            queues: AtomicUsize::new(0),
            readers: Workers::of_reads(),
            prefetchers: Workers::of_prefetches(),
            writers: Workers::default(),
        })
    }

    /// Lets a recording note its reads, if there is one. The head is new.
    pub fn record(&self, recorder: Option<Arc<Recorder>>) {
        if let Some(recorder) = recorder {
            let _ = self.recorder.set(recorder);
        }
    }

    /// Ends its recording: the volume was destroyed, and another fork may be recorded.
    pub fn end_recording(&self) {
        self.recorder.get().into_iter().for_each(|recorder| recorder.end());
    }

    /// The view at this moment.
    pub fn look(&self) -> View {
        self.view.read().clone()
    }

    /// Closes the gate for a change.
    pub fn close(&self) -> Closed<'_> {
        self.gate.close(|| self.blocks.layers.reapers.help())
    }

    /// Name at this moment.
    pub fn name(&self) -> String {
        self.shape.catalog().volume(self.id).map(|entry| entry.name.clone()).unwrap_or_default()
    }

    pub fn set_destroyed(&self) {
        self.destroyed.store(true, Ordering::SeqCst);
    }

    /// # Errors
    /// [`crate::ErrorKind::NotFound`] when the volume was destroyed.
    pub fn check_alive(&self) -> Result<()> {
        if self.destroyed.load(Ordering::SeqCst) { Err(destroyed(self.id)) } else { Ok(()) }
    }

    /// What `look` finds in the volume, unless the volume was destroyed before `look` ended: its blocks may be gone by then, so that it
    /// sees what lies below them, or damage.
    pub fn alive<T>(&self, look: impl FnOnce() -> Result<T>) -> Result<T> {
        self.check_alive()?;
        let found = look();
        self.check_alive()?;
        found
    }

    /// Adds the volume's name to an error that names a block.
    pub fn name_damage(&self, error: Error) -> Error {
        match error.corruption() {
            Some(corruption) if corruption.volume.is_none() => {
                let mut corruption = corruption.clone();
                corruption.volume = Some(self.name());
                Error::corrupt_block(corruption)
            }
            _ => error,
        }
    }

    /// Notes that bytes are read.
    pub fn touch(&self, offset: u64, bytes: u64) {
        if let Some(recorder) = self.recorder.get() {
            let end = offset.saturating_add(bytes).min(VOLUME_BYTES_MAX);
            recorder.touch(self.blocks.block_size.touched(&(offset..end)));
        }
    }

    /// Counts a queue, while the answer lives. Destroying looks at the count with the catalogue locked, so either it sees the queue or
    /// the queue is refused.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`].
    pub fn open_queue(self: &Arc<Self>) -> Result<OpenQueue> {
        let _catalog = self.shape.catalog();
        self.check_alive()?;
        self.queues.fetch_add(1, Ordering::AcqRel);
        Ok(OpenQueue(Arc::clone(self)))
    }

    /// Fills `buffer` from `offset`.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        if self.recorder.get().is_some() && self.view.read().check_range(offset, wide(buffer.len())).is_ok() {
            self.touch(offset, wide(buffer.len()));
        }
        let (began, demands) = (self.blocks.foreground.began(), self.blocks.foreground.demands());
        let read = self.alive(|| self.blocks.read(&self.view, offset, buffer)).map_err(|error| self.name_damage(error));
        // How long a source takes says nothing of this machine.
        self.blocks.foreground.note_latency(began.filter(|_| self.blocks.foreground.demands() == demands));
        read
    }

    /// Writes `data` at `offset`. `changes`: of the queue that it is for.
    pub fn write(&self, data: &[u8], offset: u64, changes: Option<&Changes>) -> Result<()> {
        self.check_alive()?;
        self.view.read().check_range(offset, wide(data.len()))?;
        self.write_checked(data, offset, true, changes)?;
        self.carry()
    }

    /// Lets the changes that were made before survive the death of the process, while the machine goes on. Those in a head that a round is
    /// just making are flushed.
    fn carry(&self) -> Result<()> {
        let layers: &Layers = &self.blocks.layers;
        let layer = Arc::clone(&self.view.read().layer);
        if !layers.is_founded(&layer) {
            return self.flush();
        }
        layers.carry();
        Ok(())
    }

    /// `bounded`: not behind the end of the volume, which may come nearer until the gate is passed.
    pub fn write_checked(&self, data: &[u8], offset: u64, bounded: bool, changes: Option<&Changes>) -> Result<()> {
        let (began, demands) = (self.blocks.foreground.began(), self.blocks.foreground.demands());
        let bytes = wide(data.len());
        let taken = self.take_space(offset, bytes)?;
        let mut rest = data;
        for piece in self.blocks.block_size.pieces(offset..offset + bytes) {
            let (part, behind) = rest.split_at(length(piece.bytes));
            rest = behind;
            let written = self.write_piece(&piece, part, bounded, changes);
            written.map_err(|error| self.name_damage(error))?;
        }
        if let Some(taken) = taken {
            // If a fork came in between, the new head has got the bytes.
            let is_same = taken.layer.id == self.view.read().layer.id;
            if is_same { taken.keep() } else { drop(taken) }
        }
        self.blocks.foreground.note_latency(began.filter(|_| self.blocks.foreground.demands() == demands));
        self.relieve()
    }

    /// A write over several extents that overwrites blocks and adds others takes the space of the new ones before it begins, so that
    /// a full disk refuses all of it. (Within one extent, writing does so behind the latch.)
    fn take_space(&self, offset: u64, bytes: u64) -> Result<Option<Taken<'_>>> {
        let (block_size, end) = (self.blocks.block_size, offset + bytes);
        if offset / block_size.extent_bytes() == end.saturating_sub(1) / block_size.extent_bytes() {
            return Ok(None);
        }
        let (layers, layer): (&Layers, _) = (&self.blocks.layers, Arc::clone(&self.view.read().layer));
        let (mut overwrites, mut extents) = (false, Vec::new());
        for piece in block_size.pieces(offset..end) {
            let bits = BlockBits::of(piece.part.indices);
            let new = bits.minus(&layer.extent(piece.part.extent).0);
            overwrites |= new != bits;
            if !new.is_empty() {
                extents.push((piece.part.extent, new));
            }
        }
        if !overwrites || extents.is_empty() {
            return Ok(None);
        }
        let taken = Taken { layers, layer, extents };
        taken.extents.iter().try_for_each(|(extent, new)| layers.admission.take_space(&taken.layer, *extent, new))?;
        Ok(Some(taken))
    }

    /// Makes room when too many blocks wait for their record.
    pub fn relieve(&self) -> Result<()> {
        // Of whichever volume they are: an idle one must not make every write of the others a barrier.
        if self.blocks.layers.under_pressure() { self.blocks.layers.barriers.sync_fresh() } else { Ok(()) }
    }

    /// `bounded`: the piece's offset, if it must not lie behind the end of the volume.
    fn write_piece(&self, piece: &Piece, data: &[u8], bounded: bool, changes: Option<&Changes>) -> Result<()> {
        let (partial, offset) = (self.partial_blocks(piece), piece.offset(self.blocks.block_size));
        let mut looks = 0..LOOKS_MAX;
        loop {
            let change = changes.map(Changes::enter).transpose()?;
            let inside = self.gate.enter();
            // Behind the gate the volume is not destroyed.
            let in_range = if bounded { self.view.read().check_range(offset, piece.bytes) } else { Ok(()) };
            let result = self.check_alive().and(in_range).and_then(|()| self.write_inside(piece, data, &partial));
            drop((inside, change));
            match result? {
                None => return Ok(()),
                // Outside of the gate, so that a fork never waits for a network.
                Some(block) if looks.next().is_some() => self.bring_old(block)?,
                Some(block) => {
                    let layer = Arc::clone(&self.view.read().layer);
                    return Err(self.blocks.never_settles(&layer, block));
                }
            }
        }
    }

    /// `Some`: this block has to be brought first.
    fn write_inside(&self, piece: &Piece, data: &[u8], partial: &[Block]) -> Result<Option<Block>> {
        // Behind the gate the head does not change.
        let layer = Arc::clone(&self.view.read().layer);
        let bits = BlockBits::of(piece.part.indices);
        let admitted = Admitted::wait(&*self.blocks.layers.admission, &*layer, piece.part.extent, bits)?;
        let owned = self.is_owner(&layer, piece.part);
        if partial.is_empty() {
            admitted.write(data)?;
        } else if let Some(block) = self.write_partial(admitted, &layer, piece, data, partial)? {
            return Ok(Some(block));
        }
        if !owned {
            self.take_over(&layer, piece.part);
        }
        Ok(None)
    }

    /// Whether the layer answers for all blocks of the range. Also resolves the extent, which must happen before the layer
    /// holds anything new in it.
    pub fn is_owner(&self, layer: &Layer, part: ExtentSpan) -> bool {
        let view = self.view.read();
        let owners = self.blocks.owners(&view, part);
        owners.iter().all(|(_, owner)| *owner == Owner::Layer(layer.id))
    }

    /// The layer answers for the range from now on.
    pub fn take_over(&self, layer: &Layer, part: ExtentSpan) {
        let mut view = self.view.write();
        let below = Arc::clone(&view.layer);
        view.owners.set(part.extent, part.indices, Owner::Layer(layer.id), || self.blocks.resolve(&below, part.extent));
    }

    /// Makes every completed write durable.
    pub fn flush(&self) -> Result<()> {
        self.check_alive()?;
        let layer = Arc::clone(&self.view.read().layer);
        let layers: &Layers = &self.blocks.layers;
        layers.healthy()?;
        if layers.is_settled(&layer) {
            return Ok(());
        }
        layers.barriers.sync([layer.id])
    }

    /// Makes a range read as zero; its whole blocks give back their space.
    pub fn zero(&self, offset: u64, bytes: u64, changes: Option<&Changes>) -> Result<()> {
        self.check_alive()?;
        let before = {
            let view = self.view.read();
            view.check_range(offset, bytes)?;
            view.size_bytes
        };
        let (block_size, end) = (self.blocks.block_size, offset + bytes);
        let first = block_size.blocks_for(offset);
        let zeros = |start: u64, end: u64| match start < end {
            true => self.write_checked(&vec![0; length(end - start)], start, true, changes),
            false => Ok(()),
        };
        if first >= block_size.blocks_for(end) {
            zeros(offset, end)?;
            return self.carry();
        }
        let last = {
            let _change = changes.map(Changes::enter).transpose()?;
            let _closed = self.close();
            self.check_alive()?;
            let size_bytes = {
                let view = self.view.read();
                view.check_range(offset, bytes)?;
                if self.blocks.layers.limits().has(Planted::SizeBeforeTheGate) { before } else { view.size_bytes }
            };
            // The last block of the volume counts as whole, though it may end behind the volume. Which block that is may change
            // until the gate is closed.
            let last = if end == size_bytes { block_size.blocks_for(end) } else { block_size.block_of(end) };
            if first < last {
                self.zero_blocks(first, last, None)?;
            }
            last
        };
        if first >= last {
            zeros(offset, end)?;
        } else {
            zeros(offset, block_size.offset_of(first))?;
            zeros(block_size.offset_of(last).min(end), end)?;
        }
        self.carry()
    }

    /// Zeroes whole blocks, with the record of a shrink in the journal or one of its own. The gate is closed. Answers which round makes it
    /// durable, if anything changed or it is a shrink.
    pub fn zero_blocks(&self, first: u64, last: u64, cut: Option<(ShapeRecord, Reserved<'_>)>) -> Result<Option<Ticket>> {
        let layer = Arc::clone(&self.view.read().layer);
        self.resolve_edges(first, last);
        let ticket = self.blocks.layers.zeroes.zero(&layer, BlockSpan::new(first, last), layer.parent.is_some(), cut)?;
        let mut view = self.view.write();
        let below = Arc::clone(&view.layer);
        let mut whole: Option<(Extent, Extent)> = None;
        for part in BlockSpan::new(first, last).by_extent() {
            if part.indices == IndexSpan::FULL {
                whole = Some((whole.map_or(part.extent, |(first, _)| first), part.extent));
            } else {
                let resolve = || self.blocks.resolve(&below, part.extent);
                view.owners.set(part.extent, part.indices, Owner::Zero, resolve);
            }
        }
        if let Some((first, last)) = whole {
            view.owners.set_extents(first, last, Owner::Zero);
        }
        Ok(ticket)
    }

    /// Resolves the extents that a range covers in part, before their meaning changes.
    fn resolve_edges(&self, first: u64, last: u64) {
        let layer = Arc::clone(&self.view.read().layer);
        let edges = BlockSpan::new(first, last);
        for block in [edges.first(), edges.last()].into_iter().flatten() {
            self.is_owner(&layer, block.in_extent());
        }
    }
}
