//! What a server may send to a client.
#![no_main]

use volfork::wire::{Chunk, ExportInfo, HeaderMode, OptionReply, ReplyHeader, decode_export_info};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some(header) = bytes.first_chunk() {
        let _ = OptionReply::decode(header);
    }
    let mut info = ExportInfo { size_bytes: 0, flags: 0, block_sizes: None };
    let _ = decode_export_info(bytes, &mut info);
    for mode in [HeaderMode::Simple, HeaderMode::Structured, HeaderMode::Extended] {
        let _ = ReplyHeader::decode(bytes, mode);
    }
    let Some((kind, payload)) = bytes.split_first_chunk() else { return };
    if let Ok(chunk) = Chunk::decode(u16::from_be_bytes(*kind), payload) {
        let fits = !matches!(&chunk, Chunk::Status(_, extents) if extents.iter().any(|extent| (extent.length | extent.flags) >> 32 != 0));
        for extended in [false, true] {
            if extended || fits {
                let (kind, payload) = chunk.encode(extended);
                assert_eq!(Chunk::decode(kind, &payload).as_ref(), Ok(&chunk));
            }
        }
    }
});
