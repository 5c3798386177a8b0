//! Presence bitmaps from untrusted bytes: whatever is accepted behaves like a set.
#![no_main]

use volfork::fuzzing::{Block, BlockSpan, BlocksRecord, Presence, Reader, Record};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // Tag and layer number before the fuzzer's bytes.
    let mut record = vec![30, 1, 0, 0, 0];
    record.extend_from_slice(bytes);
    let Ok(Record::Blocks(BlocksRecord::Presence(decoded))) = Record::decode(&mut Reader::new(&record)) else { return };
    let mut presence = Presence { present: decoded.present, zeroed: decoded.zeroed };
    let before = presence.present.len();
    presence.optimize();
    assert_eq!(presence.present.len(), before);
    if let Some(number) = presence.present.min() {
        let block = Block::new(number);
        assert!(presence.present_bits(block.extent()).contains(block.index()));
        presence.zero(BlockSpan::closed(block, block));
        assert!(!presence.present.contains(number) && presence.zeroed.contains(number));
        presence.forget(BlockSpan::closed(Block::new(0), Block::new(u32::MAX)));
        assert!(presence.covered().is_empty());
    }
});
