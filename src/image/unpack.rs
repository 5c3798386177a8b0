//! The archive of a layer, put on top of a file system.
//!
//! Names are taken as they are below the root; `..` in a name, and a name through a file, end the import. Symbolic links are
//! followed inside of the file system, as container runtimes do it. Nothing is written anywhere else.

use std::io::{self, Read};

use flate2::read::MultiGzDecoder;
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

use super::archive::{Archive, Entry, RECORD_BYTES, shown};
use super::ext4::{Attributes, FileSystem, Kind, ROOT, Time};
use super::manifest::Compression;
use super::resolve::ResolvedLayer;
use super::stream::error_of;
use crate::content::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::place::{length, wide};

/// Files, directories and links of one layer, at most.
const ENTRIES_MAX: u64 = 4 << 20;
/// Bytes of a name, at most: that of the kernel.
const PATH_BYTES_MAX: usize = 4096;
/// `zstd` may need a window as large as its sender wanted; this is the largest that its command line takes without being told.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const EXTENDED: &str = "SCHILY.xattr.";

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
            let given = length(wide(buffer.len()).min(missing));
            buffer[..given].fill(0);
            self.position += wide(given);
            return Ok(given);
        }
        self.position += wide(read);
        self.left = self.left.checked_sub(wide(read)).ok_or_else(|| {
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
    while let Some(entry) = archive.next_entry()? {
        entries += 1;
        if entries > ENTRIES_MAX {
            return Err(Error::new(ErrorKind::InvalidInput, format!("a layer of the image has more than {ENTRIES_MAX} files")));
        }
        apply(files, &mut archive, &entry, *left)?;
    }
    // The bytes behind the archive are covered by the digests too.
    io::copy(&mut archive.into_stream(), &mut io::sink()).map_err(invalid)?;
    *left = unpacked.left;
    match Digest(unpacked.hash.finalize().into()) {
        diff if diff == layer.diff => Ok(()),
        diff => Err(Error::new(
            ErrorKind::Corrupt,
            format!("layer {} unpacks to {diff}, and its configuration says {}: push the image again", layer.held.layer.digest, layer.diff),
        )),
    }
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
fn apply(files: &mut FileSystem<'_>, archive: &mut Archive<impl Read>, entry: &Entry, left: u64) -> Result<()> {
    let path = &entry.path;
    let path_parts = parts(path)?;
    // An entry that the file system refuses is named by its whole path.
    let named = |error: Error| match error.kind() {
        ErrorKind::InvalidInput => error.context(format_args!("the layer of the image has '{}'", shown(path))),
        _ => error,
    };
    let Some((name, above)) = path_parts.split_last() else {
        // The root itself.
        return match entry.kind {
            EntryType::Directory => files.describe(ROOT, &attributes(entry)?).map_err(named),
            _ => Ok(()),
        };
    };
    if name.starts_with(WHITEOUT) {
        let parent = files.directory_at(above).map_err(named)?;
        return match *name {
            OPAQUE => files.clear_lower(parent),
            // Notes of one file system to itself.
            _ if name.starts_with(b".wh..wh.") => Ok(()),
            _ => files.remove_lower(parent, &name[WHITEOUT.len()..]),
        };
    }
    if entry.bytes > left {
        return Err(refused(path, "which is larger than all layers may be"));
    }
    let link = || entry.link.as_deref().ok_or_else(|| refused(path, "a link without a target"));
    let attributes = attributes(entry)?;
    let parent = files.directory_at(above).map_err(named)?;
    let device = || {
        let number = |number: io::Result<Option<u32>>| number.ok().flatten().unwrap_or(0);
        (number(entry.header.device_major()), number(entry.header.device_minor()))
    };
    let put = match entry.kind {
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            files.make_file(parent, name, &attributes, entry.bytes, &mut archive.content(entry))
        }
        EntryType::Directory => files.make_directory(parent, name, &attributes).map(drop),
        EntryType::Symlink => files.make_symlink(parent, name, &attributes, link()?),
        EntryType::Link => files.make_link(parent, name, &parts(link()?)?),
        EntryType::Fifo => files.make_special(parent, name, &attributes, Kind::Fifo),
        EntryType::Char => {
            let (major, minor) = device();
            files.make_special(parent, name, &attributes, Kind::Character { major, minor })
        }
        EntryType::Block => {
            let (major, minor) = device();
            files.make_special(parent, name, &attributes, Kind::Block { major, minor })
        }
        other => return Err(refused(path, &format!("which is of the unknown type {}", other.as_byte()))),
    };
    put.map_err(named)
}

/// Owners, times, and those extended attributes that a file system of another machine can have: access lists are packed in a way
/// of their own, and are left out.
fn attributes(entry: &Entry) -> Result<Attributes> {
    let (header, path) = (&entry.header, &entry.path);
    let wrong = |error| error_of(&format!("the entry '{}' of a layer", shown(path)), error);
    let number = |number: u64| u32::try_from(number).map_err(|_| refused(path, "whose owner has more than 32 bits"));
    let mut made = Attributes {
        permissions: (header.mode().map_err(wrong)? & 0o7777) as u16,
        uid: number(header.uid().map_err(wrong)?)?,
        gid: number(header.gid().map_err(wrong)?)?,
        modified: header_time(header),
        extended: Default::default(),
    };
    for (key, value) in &entry.records {
        let text = std::str::from_utf8(value).unwrap_or("");
        match &key[..] {
            "uid" => made.uid = text.parse().unwrap_or(made.uid),
            "gid" => made.gid = text.parse().unwrap_or(made.gid),
            "mtime" => made.modified = decimal_time(text).unwrap_or(made.modified),
            _ => {}
        }
        let Some(name) = key.strip_prefix(EXTENDED) else { continue };
        if ["user.", "trusted.", "security."].iter().any(|kind| name.len() > kind.len() && name.starts_with(kind)) && name.len() <= 255 {
            made.extended.insert(name.to_owned(), value.clone());
        }
    }
    Ok(made)
}

/// The time of a header: octal digits, or a binary number, which may be negative.
fn header_time(header: &Header) -> Time {
    let seconds = match header.as_old().mtime {
        [0xff, _, _, _, low @ ..] => i64::from_be_bytes(low),
        _ => i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(i64::MAX),
    };
    Time { seconds, nanoseconds: 0 }
}

/// The time of a PAX record: seconds since 1970 with a sign and a fraction. What is behind the ninth digit is cut off.
fn decimal_time(text: &str) -> Option<Time> {
    let (is_negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if !whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let nanoseconds = format!("{fraction:0<9.9}").parse::<u32>().ok()?;
    Some(match (is_negative, nanoseconds) {
        (false, _) => Time { seconds, nanoseconds },
        (true, 0) => Time { seconds: -seconds, nanoseconds },
        (true, _) => Time { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
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

    #[test]
    fn times_have_signs_and_fractions() {
        for (text, seconds, nanoseconds) in [
            ("1.5", 1, 500_000_000),
            ("-5", -5, 0),
            ("-1.25", -2, 750_000_000),
            ("-0.1", -1, 900_000_000),
            ("0", 0, 0),
            ("7.", 7, 0),
            ("1700000000.1234567899", 1_700_000_000, 123_456_789),
        ] {
            assert_eq!(decimal_time(text), Some(Time { seconds, nanoseconds }), "{text}");
        }
        for wrong in ["", "x", "--1", "1.x", "1e3", "99999999999999999999", "+1", "1.-5"] {
            assert_eq!(decimal_time(wrong), None, "{wrong}");
        }
        let mut header = Header::new_gnu();
        header.as_old_mut().mtime = [0xff; 12];
        assert_eq!(header_time(&header), Time { seconds: -1, nanoseconds: 0 });
        header.set_mtime(1 << 40);
        assert_eq!(header_time(&header), Time { seconds: 1 << 40, nanoseconds: 0 });
    }
}
