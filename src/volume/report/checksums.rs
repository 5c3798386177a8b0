//! Checksums of what a sealed chain shows, without reading its bytes.

use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::place::{index, length};
use crate::sync::RwLock;
use crate::volume::blocks::{Answer, Blocks, View};

/// Most checksums that one call tells.
const CHECKSUMS_MAX: u64 = 1 << 20;

/// The crc32 of the bytes of each whole block of `range` (which begins with a block), without reading them; `None` where it
/// is not known: the block is still at a source, or its extent was not verified since a crash.
///
/// # Errors
/// [`crate::ErrorKind::OutOfRange`]; [`crate::ErrorKind::InvalidInput`] for too many blocks; the checksums cannot be read.
pub fn content_checksums(blocks: &Blocks, seen: &RwLock<View>, range: Range<u64>) -> Result<Vec<Option<u32>>> {
    let view = seen.read().clone();
    // The last block may be named as a whole.
    let end = view.size_bytes.next_multiple_of(blocks.block_size.bytes());
    View { size_bytes: end, ..view.clone() }.check_run(&range)?;
    let count = blocks.block_size.blocks_for(range.end.saturating_sub(range.start));
    if count > CHECKSUMS_MAX {
        let message = format!("{count} checksums are too many at once: ask for {CHECKSUMS_MAX} blocks at most");
        return Err(Error::new(ErrorKind::InvalidInput, message));
    }
    // Behind the end, the last block may hold anything.
    let partial = (end > view.size_bytes).then(|| blocks.block_size.block_at(view.size_bytes));
    let zeros = crc32fast::hash(&vec![0; blocks.block_size.len()]);
    let mut checksums = Vec::new();
    for piece in blocks.block_size.pieces(range) {
        for (run, answer) in blocks.answers(&view, piece.part)? {
            let (part, count) = (piece.part.extent.part(run), index(run.len()));
            match answer {
                Answer::Zero => checksums.resize(checksums.len() + count, Some(zeros)),
                Answer::Missing(_) | Answer::Patched(_) => checksums.resize(checksums.len() + count, None),
                Answer::Held(layer) => {
                    checksums.extend(blocks.layers.blocks.content_checksums(&layer, part)?);
                    if partial.is_some()
                        && partial == part.span().last()
                        && let Some(Some(checksum)) = checksums.last_mut()
                    {
                        *checksum = last_checksum(blocks, seen, &view)?;
                    }
                }
            }
        }
    }
    Ok(checksums)
}

/// The crc32 of the last block of a view, with zeros behind the end.
fn last_checksum(blocks: &Blocks, seen: &RwLock<View>, view: &View) -> Result<u32> {
    let block_bytes = blocks.block_size.bytes();
    let start = view.size_bytes - view.size_bytes % block_bytes;
    let mut block = vec![0; blocks.block_size.len()];
    blocks.read(seen, start, &mut block[..length(view.size_bytes - start)])?;
    Ok(crc32fast::hash(&block))
}
