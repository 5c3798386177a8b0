//! Traces: whatever is accepted is written back as it was.
#![no_main]

use volfork::fuzzing::Trace;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(trace) = Trace::decode(bytes) {
        assert_eq!(Trace::decode(&trace.encode()), Ok(trace));
    }
    // The checksum would keep the fuzzer out: here it is right.
    let runs = bytes.chunks_exact(6).map(|run| {
        let start = u32::from_le_bytes([run[0], run[1], run[2], run[3]]);
        start..start.saturating_add(1 + u32::from(u16::from_le_bytes([run[4], run[5]])))
    });
    let trace = Trace { runs: runs.filter(|run| !run.is_empty()).collect() };
    assert_eq!(Trace::decode(&trace.encode()), Ok(trace));
});
