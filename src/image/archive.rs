//! A tar archive that is not trusted, entry by entry.
//!
//! Headers are decoded by the `tar` crate. Its iterator is not used: it takes the headers that extend an entry (long names of GNU,
//! records of PAX) into memory, however large they say that they are; it ends a record at the first line feed, though its length is
//! told, and attributes are bytes; and it does not know the sparse files of PAX.
//!
//! As in the reader of container runtimes, links, directories, devices and pipes have no content, whatever size they name.

use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, Header};

use super::stream::error_of;
use crate::error::{Error, ErrorKind, Result};
use crate::io::is_zero;
use crate::place::{length, wide};

/// Bytes of a record of an archive.
pub(super) const RECORD_BYTES: u64 = 512;
/// Most bytes of the headers that extend one entry: names, attributes, and where a sparse file has its pieces.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;

/// Where a sparse file has bytes, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    offset: u64,
    bytes: u64,
}

/// An entry, without its content.
pub(super) struct Entry {
    pub header: Header,
    pub kind: EntryType,
    pub path: Vec<u8>,
    pub link: Option<Vec<u8>>,
    /// Records of PAX by key, in order.
    pub records: Vec<(String, Vec<u8>)>,
    /// Bytes of its content, holes included.
    pub bytes: u64,
    /// Of a sparse file.
    pieces: Option<Vec<Piece>>,
}

/// An archive that is being read.
pub(super) struct Archive<R> {
    stream: R,
    /// Bytes of content that the entry still has, and what stands behind it to the end of its last record.
    left: u64,
    padding: u64,
    /// Name of the last entry, for messages.
    last: Vec<u8>,
}

/// The headers that stand before an entry and extend it.
#[derive(Default)]
struct Extensions {
    bytes: u64,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    records: Option<Vec<(String, Vec<u8>)>>,
}

/// As much of a name as a message shows.
pub(super) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(200).collect()
}

impl<R: Read> Archive<R> {
    /// The archive that `stream` has.
    pub fn new(stream: R) -> Self {
        Self { stream, left: 0, padding: 0, last: Vec::new() }
    }

    /// An error that names the entry.
    fn invalid(&self, what: impl std::fmt::Display) -> Error {
        let place = match self.last.is_empty() {
            true => "at its beginning".into(),
            false => format!("behind '{}'", shown(&self.last)),
        };
        Error::new(ErrorKind::InvalidInput, format!("a layer of the image is not a valid archive {place}: {what}"))
    }

    /// The next entry; `None` at the end of the archive. What was not read of the last one is passed over.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an archive that is not valid, or takes more memory than any that is; an error of the stream.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        loop {
            self.pass()?;
            let Some(header) = self.header()? else {
                return match extensions.bytes {
                    0 => Ok(None),
                    _ => Err(self.invalid("the entry that a header extends is missing")),
                };
            };
            let wrong = |error| self.invalid(error);
            let bytes = header.entry_size().map_err(wrong)?;
            let kind = header.entry_type();
            if kind.is_pax_global_extensions() {
                self.expect(bytes);
                continue;
            }
            if !kind.is_gnu_longname() && !kind.is_gnu_longlink() && !kind.is_pax_local_extensions() {
                return self.entry(header, bytes, extensions).map(Some);
            }
            extensions.bytes = extensions.bytes.saturating_add(bytes.max(1));
            if extensions.bytes > EXTENSION_BYTES_MAX {
                let bytes = extensions.bytes;
                return Err(self.invalid(format_args!(
                    "the headers that extend an entry have {bytes} bytes; {EXTENSION_BYTES_MAX} are the most that is read"
                )));
            }
            self.expect(bytes);
            let mut content = vec![0; length(bytes)];
            self.read_content(&mut content)?;
            let name = |content: Vec<u8>| content.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
            let twice = match kind {
                EntryType::GNULongName => extensions.name.replace(name(content)).is_some(),
                EntryType::GNULongLink => extensions.link.replace(name(content)).is_some(),
                _ => extensions.records.replace(records(&content).ok_or_else(|| self.invalid("a PAX header is damaged"))?).is_some(),
            };
            if twice {
                return Err(self.invalid("an entry is extended twice in the same way"));
            }
        }
    }

    /// Passes over what is left of an entry.
    fn pass(&mut self) -> Result<()> {
        let bytes = self.left.saturating_add(std::mem::take(&mut self.padding));
        self.left = 0;
        let passed = io::copy(&mut (&mut self.stream).take(bytes), &mut io::sink()).map_err(|error| self.failed(error))?;
        if passed < bytes { Err(self.invalid("it ends within an entry")) } else { Ok(()) }
    }

    fn failed(&self, error: io::Error) -> Error {
        error_of(&format!("a layer of the image, behind '{}',", shown(&self.last)), error)
    }

    fn expect(&mut self, bytes: u64) {
        (self.left, self.padding) = (bytes, (RECORD_BYTES - bytes % RECORD_BYTES) % RECORD_BYTES);
    }

    fn read_content(&mut self, into: &mut [u8]) -> Result<()> {
        if self.left < wide(into.len()) {
            return Err(self.invalid("an entry is shorter than what it says is in it"));
        }
        self.stream.read_exact(into).map_err(|error| self.failed(error))?;
        self.left -= wide(into.len());
        Ok(())
    }

    /// The next header; `None` at the end.
    fn header(&mut self) -> Result<Option<Header>> {
        let mut header = Header::new_old();
        let mut filled = 0;
        while filled < length(RECORD_BYTES) {
            match self.stream.read(&mut header.as_mut_bytes()[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(self.invalid("it ends within a header")),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
        let bytes = header.as_bytes();
        if is_zero(bytes) {
            return Ok(None);
        }
        // The checksum counts as spaces.
        let counted = bytes[..148].iter().chain(&bytes[156..]).map(|byte| u32::from(*byte)).sum::<u32>() + 8 * u32::from(b' ');
        match header.cksum() {
            Ok(sum) if sum == counted => Ok(Some(header)),
            _ => Err(self.invalid("the checksum of a header is wrong")),
        }
    }

    /// The entry of `header`, with what extends it.
    fn entry(&mut self, header: Header, bytes: u64, extensions: Extensions) -> Result<Entry> {
        let Extensions { name, link, records, .. } = extensions;
        let records = records.unwrap_or_default();
        let value =
            |key: &str| records.iter().rev().find(|(other, _)| other == key).map(|(_, value)| value).filter(|value| !value.is_empty());
        let path = value("GNU.sparse.name").cloned().or(name).or_else(|| value("path").cloned());
        let path = path.unwrap_or_else(|| header.path_bytes().into_owned());
        let link = link.or_else(|| value("linkpath").cloned()).or_else(|| header.link_name_bytes().map(|name| name.into_owned()));
        let bytes = match value("size") {
            None => bytes,
            Some(text) => number(text).ok_or_else(|| self.invalid(format_args!("'{}' has a size that is not a number", shown(&path))))?,
        };
        self.last.clone_from(&path);
        let kind = match header.entry_type() {
            // As archives had it before there were types.
            EntryType::Regular if path.ends_with(b"/") => EntryType::Directory,
            kind => kind,
        };
        let has_content = matches!(kind, EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse);
        self.expect(if has_content || !is_known(kind) { bytes } else { 0 });
        let mut entry = Entry { header, kind, path, link, bytes: self.left, pieces: None, records };
        if has_content {
            self.find_pieces(&mut entry)?;
        }
        Ok(entry)
    }

    /// Finds out where a sparse file has its bytes, in one of the four ways to say it.
    fn find_pieces(&mut self, entry: &mut Entry) -> Result<()> {
        let value = |key: &str| entry.records.iter().rev().find(|(other, _)| other == key).map(|(_, value)| &value[..]);
        let (pieces, size) = if entry.kind == EntryType::GNUSparse {
            self.gnu_pieces(&entry.header)?
        } else if let Some(size) = value("GNU.sparse.realsize") {
            (self.pieces_in_content()?, number(size))
        } else if let Some(map) = value("GNU.sparse.map") {
            let numbers: Option<Vec<u64>> = map.split(|byte| *byte == b',').map(number).collect();
            (numbers.and_then(|numbers| paired(&numbers)), value("GNU.sparse.size").and_then(number))
        } else if let Some(size) = value("GNU.sparse.size") {
            let listed = entry.records.iter().filter(|(key, _)| matches!(&key[..], "GNU.sparse.offset" | "GNU.sparse.numbytes"));
            let numbers: Option<Vec<u64>> = listed.map(|(_, value)| number(value)).collect();
            (numbers.and_then(|numbers| paired(&numbers)), number(size))
        } else if entry.records.iter().any(|(key, _)| key.starts_with("GNU.sparse.")) {
            (None, None)
        } else {
            return Ok(());
        };
        let wrong = || self.invalid(format_args!("'{}' is a sparse file whose pieces do not fit together", shown(&entry.path)));
        let (pieces, size) = pieces.zip(size).ok_or_else(wrong)?;
        let (mut end, mut stored) = (0, 0_u64);
        for piece in &pieces {
            if piece.offset < end {
                return Err(wrong());
            }
            end = piece.offset.checked_add(piece.bytes).ok_or_else(wrong)?;
            stored += piece.bytes;
        }
        if end > size || stored != self.left {
            return Err(wrong());
        }
        (entry.bytes, entry.pieces) = (size, Some(pieces));
        Ok(())
    }

    /// The pieces of the old form: in the header, and in records behind it that no size counts.
    fn gnu_pieces(&mut self, header: &Header) -> Result<(Option<Vec<Piece>>, Option<u64>)> {
        let Some(gnu) = header.as_gnu() else { return Ok((None, None)) };
        let (mut pieces, mut valid) = (Vec::new(), true);
        let mut add = |listed: &[tar::GnuSparseHeader]| {
            for piece in listed.iter().filter(|piece| !piece.is_empty()) {
                match (piece.offset(), piece.length()) {
                    (Ok(offset), Ok(bytes)) => pieces.push(Piece { offset, bytes }),
                    _ => valid = false,
                }
            }
        };
        add(&gnu.sparse);
        let (mut more, mut read) = (gnu.is_extended(), 0);
        while more {
            read += RECORD_BYTES;
            if read > EXTENSION_BYTES_MAX {
                return Err(self.invalid(format_args!("a sparse file lists its pieces in more than {EXTENSION_BYTES_MAX} bytes")));
            }
            let mut extended = GnuExtSparseHeader::new();
            self.stream.read_exact(extended.as_mut_bytes()).map_err(|error| self.failed(error))?;
            add(&extended.sparse);
            more = extended.is_extended();
        }
        Ok((valid.then_some(pieces), gnu.real_size().ok()))
    }

    /// The pieces of the form 1.0: decimal numbers in lines, the first of which counts them, in whole records before the content.
    fn pieces_in_content(&mut self) -> Result<Option<Vec<Piece>>> {
        let (mut numbers, mut current, mut read) = (Vec::new(), Vec::new(), 0);
        loop {
            if numbers.first().is_some_and(|count: &u64| count.saturating_mul(2) < wide(numbers.len())) {
                return Ok(paired(&numbers[1..]));
            }
            read += RECORD_BYTES;
            if read > EXTENSION_BYTES_MAX {
                return Err(self.invalid(format_args!("a sparse file lists its pieces in more than {EXTENSION_BYTES_MAX} bytes")));
            }
            if self.left < RECORD_BYTES {
                return Ok(None);
            }
            let mut record = [0; length(RECORD_BYTES)];
            self.read_content(&mut record)?;
            for byte in record {
                if numbers.first().is_some_and(|count: &u64| count.saturating_mul(2) < wide(numbers.len())) {
                    break;
                }
                match byte {
                    b'\n' => match number(&current) {
                        Some(number) => {
                            numbers.push(number);
                            current.clear();
                        }
                        None => return Ok(None),
                    },
                    digit => current.push(digit),
                }
            }
        }
    }

    /// The content of the entry that [`Archive::next_entry`] has just answered.
    pub fn content<'a>(&'a mut self, entry: &'a Entry) -> Content<'a, R> {
        Content { archive: self, entry, position: 0, piece: 0 }
    }

    /// The stream behind the end of the archive.
    pub fn into_stream(self) -> R {
        self.stream
    }
}

/// Types whose content, if they have one, is known.
fn is_known(kind: EntryType) -> bool {
    use EntryType::{Block, Char, Continuous, Directory, Fifo, GNUSparse, Link, Regular, Symlink};
    matches!(kind, Block | Char | Continuous | Directory | Fifo | GNUSparse | Link | Regular | Symlink)
}

/// A decimal number, and nothing else.
fn number(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok().filter(|text| !text.starts_with('+'))?;
    text.parse().ok()
}

fn paired(numbers: &[u64]) -> Option<Vec<Piece>> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[offset, bytes]| Piece { offset: *offset, bytes: *bytes }).collect())
}

/// The records of a PAX header: `LENGTH KEY=VALUE` and a line feed each; the length counts all of it.
fn records(mut bytes: &[u8]) -> Option<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    while bytes.first().is_some_and(|byte| *byte != 0) {
        let space = bytes.iter().take(21).position(|byte| *byte == b' ')?;
        let length = usize::try_from(number(&bytes[..space])?).ok()?;
        let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        // Keys in other scripts mean nothing here.
        if let Ok(key) = std::str::from_utf8(&record[..equals]) {
            found.push((key.to_owned(), record[equals + 1..].to_vec()));
        }
        bytes = &bytes[length..];
    }
    Some(found)
}

/// The bytes of an entry: those of the archive, and zeros for what is a hole.
pub(super) struct Content<'a, R> {
    archive: &'a mut Archive<R>,
    entry: &'a Entry,
    position: u64,
    /// The piece that the position is in, or before.
    piece: usize,
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (mut is_hole, mut room) = (false, self.archive.left);
        if let Some(pieces) = &self.entry.pieces {
            while pieces.get(self.piece).is_some_and(|piece| piece.offset + piece.bytes <= self.position) {
                self.piece += 1;
            }
            (is_hole, room) = match pieces.get(self.piece) {
                Some(piece) if piece.offset <= self.position => (false, piece.offset + piece.bytes - self.position),
                Some(piece) => (true, piece.offset - self.position),
                None => (true, self.entry.bytes - self.position),
            };
        }
        let room = length(room.min(wide(buffer.len())));
        let read = if is_hole {
            buffer[..room].fill(0);
            room
        } else {
            let read = self.archive.stream.read(&mut buffer[..room])?;
            self.archive.left -= wide(read);
            read
        };
        self.position += wide(read);
        Ok(read)
    }
}
