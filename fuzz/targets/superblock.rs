//! Superblock slots: whatever is accepted is written back as it was.
#![no_main]

use volfork::fuzzing::{Superblock, SuperblockSlot};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // The checksum would keep the fuzzer out: it is made right first.
    let mut slot = bytes.to_vec();
    if slot.len() >= 4096 {
        slot.truncate(4096);
        let crc = crc(&slot[..4092]);
        slot[4092..].copy_from_slice(&crc.to_le_bytes());
    }
    if let Ok(superblock) = SuperblockSlot(&slot).verify() {
        let again: Superblock = SuperblockSlot(&superblock.encode()).verify().expect("what was encoded is valid");
        assert_eq!(again, superblock);
    }
});

/// CRC-32 (IEEE), bit by bit.
fn crc(bytes: &[u8]) -> u32 {
    let step =
        |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 });
    !bytes.iter().fold(!0, step)
}
