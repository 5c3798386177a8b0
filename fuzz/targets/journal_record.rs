//! Frames and records: no input panics, and what is decoded is encoded to something that decodes to the same.
#![no_main]

use volfork::fuzzing::{Catalog, Record, UnrecordedHeader, Writer, decode_frame};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = decode_frame(&[0; 16], 1, bytes);
    let header = UnrecordedHeader { session: [0; 16], sequence: 1, frame: 1, cache: String::new() };
    let start = header.encode();
    let file = [&start[..], &header.encode_notes(start.len() as u64, bytes)].concat();
    let _ = UnrecordedHeader::decode(&file);
    let _ = UnrecordedHeader::decode(bytes);
    let Ok(records) = Record::decode_all(bytes) else { return };
    let mut writer = Writer::default();
    records.iter().for_each(|record| record.encode(&mut writer));
    assert_eq!(Record::decode_all(&writer.bytes).expect("what was encoded is valid"), records);
    // A catalogue takes any records, or refuses them, and can always be looked at.
    let mut catalog = Catalog::default();
    let mut shapes = records.iter().filter_map(|record| match record {
        Record::Shape(record) => Some(record),
        Record::Blocks(_) | Record::Closed => None,
    });
    if shapes.try_for_each(|record| catalog.apply(record).map(drop)).is_ok() {
        let _ = catalog.violations();
    }
});
