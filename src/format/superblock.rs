//! The superblock: which journal is current, and what the store is.
//!
//! ```text
//! file `superblock`: two slots of 4096 bytes; generation g is written to slot g % 2, so the other one stays whole
//!
//!   0  magic        8   "volfork\0"
//!   8  version      4   1
//!  12  block_bytes  4   power of two, 4096 to 65536
//!  16  generation   8   the valid slot with the larger one counts
//!  24  store_id    16
//!  40  journal      8   number of the current journal file
//!  48  features     8   bits a program must know to open the store
//!  56  reserved  4036   zero
//! 4092 crc32        4   of bytes 0..4092
//! ```

use super::bytes::{FormatError, Reader, Writer};
use crate::place::BlockSize;

/// Bytes of one slot.
pub const SUPERBLOCK_BYTES: usize = 4096;
/// Names of the feature bits this program knows, lowest bit first.
///
/// `split records`: records 32 and 33, which cut presence and blocks to forget into bounded parts. The journal that comes after the
/// state may have them at any time, so every superblock says so.
///
/// `leases`: records 34 to 38. A store says so from before its first one on, until it is opened without any.
///
/// `limits`: record 39. Said as of leases.
pub const FEATURES_KNOWN: [&str; 3] = ["split records", "leases", "limits"];

const SPLIT_RECORDS: u64 = 1 << 0;
const LEASES: u64 = 1 << 1;
const LIMITS: u64 = 1 << 2;

const MAGIC: &[u8; 8] = b"volfork\0";
const VERSION: u32 = 1;
const FIELDS_BYTES: usize = 56;
const CRC_AT: usize = SUPERBLOCK_BYTES - 4;
const _: () = assert!(FIELDS_BYTES == 8 + 4 + 4 + 8 + 16 + 8 + 8 && FIELDS_BYTES <= CRC_AT);

/// Features that not every store needs: its journal may have their records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Leases of snapshots.
    pub leases: bool,
    /// Limits of volumes.
    pub limits: bool,
}

impl Features {
    /// Leases alone.
    pub const LEASES: Self = Self { leases: true, limits: false };
    /// Limits alone.
    pub const LIMITS: Self = Self { leases: false, limits: true };

    /// Those of both.
    pub fn with(self, others: Self) -> Self {
        Self { leases: self.leases || others.leases, limits: self.limits || others.limits }
    }

    /// Whether all of `others` are among these.
    pub fn has(self, others: Self) -> bool {
        self.with(others) == self
    }

    fn of(bits: u64) -> Self {
        Self { leases: bits & LEASES != 0, limits: bits & LIMITS != 0 }
    }

    fn bits(self) -> u64 {
        (if self.leases { LEASES } else { 0 }) | (if self.limits { LIMITS } else { 0 })
    }
}

/// A verified superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Block size of the store.
    pub block_size: BlockSize,
    /// Counts the times the superblock was written.
    pub generation: u64,
    /// Random identity of the store.
    pub store_id: [u8; 16],
    /// Number of the current journal file.
    pub journal: u64,
    /// Features whose records the journal may have.
    pub features: Features,
}

/// A slot as it came from the disk: untrusted until [`SuperblockSlot::verify`].
#[derive(Debug)]
pub struct SuperblockSlot<'a>(pub &'a [u8]);

impl SuperblockSlot<'_> {
    /// Checks magic, checksum, version, features and block size.
    ///
    /// # Errors
    /// Says which of them is wrong; a feature bit this program does not know is named by its number.
    pub fn verify(&self) -> Result<Superblock, FormatError> {
        let mut reader = Reader::new(self.0.get(..CRC_AT).ok_or_else(|| FormatError::damaged("is too short"))?);
        let crc = Reader::new(self.0.get(CRC_AT..).unwrap_or_default()).u32()?;
        if reader.array::<8>()? != *MAGIC {
            return Err(FormatError::damaged("has no magic number: this is not a volfork store"));
        }
        if crc32fast::hash(&self.0[..CRC_AT]) != crc {
            return Err(FormatError::damaged("checksum does not match"));
        }
        let version = reader.u32()?;
        if version != VERSION {
            return Err(FormatError::unsupported(format!(
                "version is {version}, this program knows {VERSION}: use a program that knows it"
            )));
        }
        let block_size = BlockSize::new(reader.u32()?).map_err(|error| FormatError::damaged(error.to_string()))?;
        let (generation, store_id, journal, features) = (reader.u64()?, reader.array()?, reader.u64()?, reader.u64()?);
        let unknown = features >> FEATURES_KNOWN.len();
        if unknown != 0 {
            let bit = unknown.trailing_zeros() as usize + FEATURES_KNOWN.len();
            return Err(FormatError::unsupported(format!("needs feature number {bit}, which this program does not know: use a newer one")));
        }
        Ok(Superblock { block_size, generation, store_id, journal, features: Features::of(features) })
    }
}

impl Superblock {
    /// The bytes of a slot.
    pub fn encode(&self) -> [u8; SUPERBLOCK_BYTES] {
        let mut writer = Writer::default();
        writer.raw(MAGIC);
        writer.u32(VERSION);
        writer.count(self.block_size.len());
        writer.u64(self.generation);
        writer.raw(&self.store_id);
        writer.u64(self.journal);
        writer.u64(SPLIT_RECORDS | self.features.bits());
        let mut slot = [0; SUPERBLOCK_BYTES];
        slot[..FIELDS_BYTES].copy_from_slice(&writer.bytes);
        let crc = crc32fast::hash(&slot[..CRC_AT]);
        slot[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        slot
    }

    /// Byte offset of the slot this generation is written to.
    pub fn slot_offset(&self) -> u64 {
        (self.generation % 2) * SUPERBLOCK_BYTES as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Superblock {
        Superblock {
            block_size: BlockSize::DEFAULT,
            generation: 3,
            store_id: *b"0123456789abcdef",
            journal: 7,
            features: Features::default(),
        }
    }

    #[test]
    fn golden_bytes() {
        let slot = example().encode();
        let head = b"volfork\0\x01\0\0\0\0\x10\0\0\x03\0\0\0\0\0\0\x000123456789abcdef\x07\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0";
        assert_eq!(&slot[..FIELDS_BYTES], head);
        assert_eq!(SuperblockSlot(&slot).verify(), Ok(example()));
        assert_eq!(example().slot_offset(), 4096);
        for (features, byte) in [(Features::LEASES, 3), (Features::LIMITS, 5), (Features::LEASES.with(Features::LIMITS), 7)] {
            let superblock = Superblock { features, ..example() };
            assert_eq!(superblock.encode()[48], byte);
            assert_eq!(SuperblockSlot(&superblock.encode()).verify(), Ok(superblock));
        }
        assert!(Features::LEASES.has(Features::default()) && !Features::LEASES.has(Features::LIMITS));
    }

    #[test]
    fn a_store_of_a_program_without_these_features_is_read() {
        let mut old = example().encode();
        old[48] = 0;
        let crc = crc32fast::hash(&old[..CRC_AT]);
        old[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(SuperblockSlot(&old).verify(), Ok(example()));
    }

    #[test]
    fn damage_is_refused_and_named() {
        let good = example().encode();
        for at in 0..SUPERBLOCK_BYTES {
            let mut slot = good;
            slot[at] ^= 0x10;
            assert!(SuperblockSlot(&slot).verify().is_err(), "byte {at}");
        }
        assert!(SuperblockSlot(&good[..100]).verify().is_err());
        let mut future = good;
        future[48] = 8;
        let crc = crc32fast::hash(&future[..CRC_AT]);
        future[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        assert!(SuperblockSlot(&future).verify().unwrap_err().to_string().contains("feature number 3"));
    }
}
