//! What a queue is open on, and the blocking way to do its requests.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::changes::Changes;
use super::outcome::Pass;
use super::scatter::scatter;
use super::workers::Workers;
use crate::error::{Error, ErrorKind, Result};
use crate::place::{index, length};
use crate::sync::RwLock;
use crate::volume::blocks::{Blocks, View};
use crate::volume::head::Head;
use crate::volume::pool::Pool;
use crate::volume::request::Request;
use crate::volume::snapshot::OpenSnapshot;

/// What a queue is open on.
#[derive(Clone)]
pub enum Target {
    Volume(Arc<Head>),
    Snapshot(Arc<OpenSnapshot>),
}

impl Target {
    pub fn blocks(&self) -> &Arc<Blocks> {
        match self {
            Self::Volume(head) => &head.blocks,
            Self::Snapshot(snapshot) => &snapshot.blocks,
        }
    }

    pub fn pool(&self) -> &Pool {
        match self {
            Self::Volume(head) => &head.pool,
            Self::Snapshot(snapshot) => &snapshot.pool,
        }
    }

    /// The threads for a request that has to wait.
    pub fn workers(&self, request: &Request) -> &Workers {
        match (self, request) {
            (Self::Volume(head), Request::Read { .. } | Request::ReadInto { .. }) => &head.readers,
            (Self::Volume(head), Request::Prefetch { .. }) => &head.prefetchers,
            (Self::Snapshot(snapshot), Request::Prefetch { .. }) => &snapshot.prefetchers,
            (Self::Snapshot(snapshot), _) => &snapshot.readers,
            (Self::Volume(head), Request::Flush) => &head.pool.flushers,
            (Self::Volume(head), _) => &head.writers,
        }
    }

    pub fn view(&self) -> &RwLock<View> {
        match self {
            Self::Volume(head) => &head.view,
            Self::Snapshot(snapshot) => &snapshot.view,
        }
    }

    /// A pass for a request that does not end in the present call.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`].
    pub fn hold(&self) -> Result<Pass> {
        self.pool().fence.hold()
    }

    /// The blocking way to do a request.
    pub fn perform(&self, request: &mut Request, changes: &Changes) -> Result<Bytes> {
        let head = match (self, &mut *request) {
            (_, Request::Read { offset, bytes }) => return self.read(*offset, *bytes),
            (_, Request::ReadInto { offset, buffers }) => return self.read_into(*offset, buffers).map(|()| Bytes::new()),
            (Self::Snapshot(_), Request::Flush) => return Ok(Bytes::new()),
            (_, Request::Prefetch { offset, bytes }) => {
                // For nobody, once the queue is gone.
                let wanted = || changes.enter().map(drop);
                return self.blocks().prefetch(self.view(), *offset, *bytes, &wanted).map(|()| Bytes::new());
            }
            (Self::Snapshot(snapshot), _) => {
                return Err(Error::new(
                    ErrorKind::ReadOnly,
                    format!("{} is a snapshot, which never changes: fork it to write", snapshot.name),
                ));
            }
            (Self::Volume(head), _) => head,
        };
        let durable = match *request {
            Request::Write { offset, ref data, fua } => head.write(data, offset, Some(changes)).map(|()| fua)?,
            Request::Discard { offset, bytes, fua } | Request::WriteZeroes { offset, bytes, fua } => {
                head.zero(offset, bytes, Some(changes)).map(|()| fua)?
            }
            Request::Provision { offset, bytes, fua } => provision(head, offset, bytes, changes).map(|()| fua)?,
            // `submit` has made one write of it.
            Request::WriteVectored { fua, .. } => fua,
            Request::Read { .. } | Request::ReadInto { .. } | Request::Flush | Request::Prefetch { .. } => true,
        };
        if durable {
            head.flush()?;
        }
        Ok(Bytes::new())
    }

    fn read(&self, offset: u64, bytes: u32) -> Result<Bytes> {
        // Before memory is taken for it.
        self.view().read().check_range(offset, u64::from(bytes))?;
        let mut buffer = vec![0; index(bytes)];
        self.fill(offset, &mut buffer)?;
        Ok(buffer.into())
    }

    fn read_into(&self, offset: u64, buffers: &mut [BytesMut]) -> Result<()> {
        if let [buffer] = buffers {
            return self.fill(offset, buffer);
        }
        // One read, so that no block is split between two.
        let bytes: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        let whole = self.read(offset, u32::try_from(bytes).unwrap_or(u32::MAX))?;
        scatter([(Some(&whole[..]), bytes)], 0, buffers);
        Ok(())
    }

    fn fill(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        match self {
            Self::Volume(head) => head.read(buffer, offset),
            Self::Snapshot(snapshot) => snapshot.blocks.read(&snapshot.view, offset, buffer).map_err(|error| snapshot.name_damage(error)),
        }
    }
}

/// Writes zeros in pieces: a queue that is dropped waits for one of them.
fn provision(head: &Head, mut offset: u64, mut bytes: u64, changes: &Changes) -> Result<()> {
    const PIECE_BYTES: u64 = 1 << 20;
    head.view.read().check_range(offset, bytes)?;
    let zeros = vec![0; length(PIECE_BYTES.min(bytes))];
    while bytes > 0 {
        // Whole blocks, from the second piece on.
        let piece = bytes.min(PIECE_BYTES - offset % PIECE_BYTES);
        head.write(&zeros[..length(piece)], offset, Some(changes))?;
        offset += piece;
        bytes -= piece;
    }
    Ok(())
}
