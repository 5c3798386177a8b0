//! The archive of a layer, put on top of a file system.
//!
//! Names are taken as they are below the root; `..` in a name, and a name through a file, end the import. Symbolic links are
//! followed inside of the file system, as container runtimes do it. Nothing is written anywhere else.

use std::io::{self, Read};

use flate2::read::MultiGzDecoder;
use sha2::{Digest as _, Sha256};
use tar::{Archive, Entry, EntryType};

use super::ext4::{Attributes, FileSystem, Kind, ROOT};
use super::manifest::Compression;
use super::resolve::ResolvedLayer;
use super::stream::error_of;
use crate::content::Digest;
use crate::error::{Error, ErrorKind, Result};

/// Files, directories and links of one layer, at most.
const ENTRIES_MAX: u64 = 4 << 20;
/// Bytes of a name, at most: that of the kernel.
const PATH_BYTES_MAX: usize = 4096;
/// `zstd` may need a window as large as its sender wanted; this is the largest that its command line takes without being told.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const EXTENDED: &str = "SCHILY.xattr.";

/// Bytes of a record of an archive.
const RECORD_BYTES: u64 = 512;

/// The archive, unpacked: bounded, and hashed on the way. Some programs leave out the end of the last record, which is
/// given here; it belongs to no digest.
struct Unpacked<R> {
    stream: R,
    position: u64,
    hash: Sha256,
    left: u64,
    limit: u64,
}

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buffer)?;
        if read == 0 {
            let missing = self.position.next_multiple_of(RECORD_BYTES) - self.position;
            let given = (buffer.len() as u64).min(missing) as usize;
            buffer[..given].fill(0);
            self.position += given as u64;
            return Ok(given);
        }
        self.position += read as u64;
        self.left = self.left.checked_sub(read as u64).ok_or_else(|| {
            let message = format!("the layers of the image have more than {} bytes when unpacked: allow more, if they may", self.limit);
            io::Error::other(Error::new(ErrorKind::NoSpace, message))
        })?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

/// Puts a layer on top of what is there, and checks it against its digest to the last byte. `left` are the bytes that all layers
/// may still have when unpacked, of `limit`.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for other bytes than the digest says; [`ErrorKind::InvalidInput`] for an archive that is not valid or
/// not safe; [`ErrorKind::NoSpace`] beyond the limit.
pub(super) fn unpack(files: &mut FileSystem<'_>, blob: &mut dyn Read, layer: &ResolvedLayer, left: &mut u64, limit: u64) -> Result<()> {
    let packed = io::BufReader::with_capacity(256 << 10, blob);
    let invalid = |error| error_of("a layer of the image", error);
    let stream: Box<dyn Read + '_> = match layer.compression {
        Compression::None => Box::new(packed),
        Compression::Gzip => Box::new(io::BufReader::with_capacity(256 << 10, MultiGzDecoder::new(packed))),
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(packed).map_err(invalid)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(invalid)?;
            Box::new(decoder)
        }
    };
    let mut unpacked = Unpacked { stream, position: 0, hash: Sha256::new(), left: *left, limit };
    let mut archive = Archive::new(&mut unpacked);
    let mut entries = 0;
    for entry in archive.entries().map_err(invalid)? {
        entries += 1;
        if entries > ENTRIES_MAX {
            return Err(Error::new(ErrorKind::InvalidInput, format!("a layer of the image has more than {ENTRIES_MAX} files")));
        }
        apply(files, &mut entry.map_err(invalid)?, *left)?;
    }
    // What follows the archive belongs to what the digests name.
    io::copy(&mut unpacked, &mut io::sink()).map_err(invalid)?;
    *left = unpacked.left;
    match Digest(unpacked.hash.finalize().into()) {
        diff if diff == layer.diff => Ok(()),
        diff => Err(Error::new(
            ErrorKind::Corrupt,
            format!("layer {} unpacks to {diff}, and its configuration says {}: push the image again", layer.held.layer.digest, layer.diff),
        )),
    }
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(200).collect()
}

fn refused(path: &[u8], why: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("the layer of the image has '{}', {why}", shown(path)))
}

/// The parts of a name below the root.
fn parts(path: &[u8]) -> Result<Vec<&[u8]>> {
    if path.len() > PATH_BYTES_MAX {
        return Err(refused(path, "whose name is longer than 4096 bytes"));
    }
    let parts: Vec<_> = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    match parts.contains(&&b".."[..]) {
        true => Err(refused(path, "which leads out of the image")),
        false => Ok(parts),
    }
}

/// Puts one entry.
fn apply(files: &mut FileSystem<'_>, entry: &mut Entry<'_, impl Read>, left: u64) -> Result<()> {
    let kind = entry.header().entry_type();
    if matches!(kind, EntryType::XGlobalHeader) {
        return Ok(());
    }
    let path = entry.path_bytes().into_owned();
    let path_parts = parts(&path)?;
    let Some((name, above)) = path_parts.split_last() else {
        // The root itself.
        let attributes = attributes(entry, &path)?;
        return if kind == EntryType::Directory { files.describe(ROOT, &attributes) } else { Ok(()) };
    };
    if name.starts_with(WHITEOUT) {
        let parent = files.directory_at(above)?;
        return match *name {
            OPAQUE => files.clear_lower(parent),
            // Notes of one file system to itself.
            _ if name.starts_with(b".wh..wh.") => Ok(()),
            _ => files.remove_lower(parent, &name[WHITEOUT.len()..]),
        };
    }
    let attributes = attributes(entry, &path)?;
    let parent = files.directory_at(above)?;
    let device = |entry: &Entry<'_, _>| {
        let header = entry.header();
        let number = |number: io::Result<Option<u32>>| number.ok().flatten().unwrap_or(0);
        (number(header.device_major()), number(header.device_minor()))
    };
    match kind {
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let bytes = entry.size();
            if bytes > left {
                return Err(refused(&path, "which is larger than all layers may be"));
            }
            files.make_file(parent, name, &attributes, bytes, entry)
        }
        EntryType::Directory => files.make_directory(parent, name, &attributes).map(drop),
        EntryType::Symlink => files.make_symlink(parent, name, &attributes, &link(entry, &path)?),
        EntryType::Link => {
            let target = link(entry, &path)?;
            files.make_link(parent, name, &parts(&target)?)
        }
        EntryType::Fifo => files.make_special(parent, name, &attributes, Kind::Fifo),
        EntryType::Char => {
            let (major, minor) = device(entry);
            files.make_special(parent, name, &attributes, Kind::Character { major, minor })
        }
        EntryType::Block => {
            let (major, minor) = device(entry);
            files.make_special(parent, name, &attributes, Kind::Block { major, minor })
        }
        other => Err(refused(&path, &format!("which is of the unknown type {}", other.as_byte()))),
    }
}

fn link(entry: &Entry<'_, impl Read>, path: &[u8]) -> Result<Vec<u8>> {
    entry.link_name_bytes().map(|target| target.into_owned()).ok_or_else(|| refused(path, "a link without a target"))
}

/// Owners, times, and those extended attributes that a file system of another machine can have: access lists are packed in a way
/// of their own, and are left out.
fn attributes(entry: &mut Entry<'_, impl Read>, path: &[u8]) -> Result<Attributes> {
    let wrong = |error| error_of(&format!("the entry '{}' of a layer", shown(path)), error);
    let header = entry.header();
    let number = |number: u64| u32::try_from(number).map_err(|_| refused(path, "whose owner has more than 32 bits"));
    let mut made = Attributes {
        permissions: (header.mode().map_err(wrong)? & 0o7777) as u16,
        uid: number(header.uid().map_err(wrong)?)?,
        gid: number(header.gid().map_err(wrong)?)?,
        modified: header.mtime().unwrap_or(0),
        extended: Default::default(),
    };
    let Some(extensions) = entry.pax_extensions().map_err(wrong)? else { return Ok(made) };
    for extension in extensions {
        let extension = extension.map_err(wrong)?;
        let Ok(key) = extension.key() else { continue };
        let text = extension.value().unwrap_or("");
        match key {
            "uid" => made.uid = text.parse().unwrap_or(made.uid),
            "gid" => made.gid = text.parse().unwrap_or(made.gid),
            _ => {}
        }
        let Some(name) = key.strip_prefix(EXTENDED) else { continue };
        if ["user.", "trusted.", "security."].iter().any(|kind| name.len() > kind.len() && name.starts_with(kind)) && name.len() <= 255 {
            made.extended.insert(name.to_owned(), extension.value_bytes().to_vec());
        }
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below_the_root() {
        assert_eq!(parts(b"/./etc//passwd/").unwrap(), [&b"etc"[..], b"passwd"]);
        assert_eq!(parts(b"./").unwrap(), [&b""[..]; 0]);
        for wrong in [&b"../x"[..], b"a/../../x", b"/..", &[b'a'; 5000]] {
            assert_eq!(parts(wrong).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
    }
}
