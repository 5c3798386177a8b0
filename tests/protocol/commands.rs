//! Requests and the layout of their replies.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use volfork::serve::NbdServerOptions;
use volfork::wire::constants::{
    CMD_BLOCK_STATUS, CMD_CACHE, CMD_FLAG_FAST_ZERO, CMD_FLAG_FUA, CMD_FLAG_NO_HOLE, CMD_FLAG_PAYLOAD_LEN, CMD_READ, CMD_TRIM, CMD_WRITE,
    CMD_WRITE_ZEROES, EINVAL, ENOSPC, ENOTSUP, INFO_BLOCK_SIZE, OPT_INFO, REP_INFO, STATE_HOLE, STATE_ZERO,
};
use volfork::wire::{ExportInfo, GoRequest, HeaderMode, ReplyHeader, StatusExtent, decode_export_info};

use crate::client::{Client, Host, MIB};

const MODES: [HeaderMode; 3] = [HeaderMode::Simple, HeaderMode::Structured, HeaderMode::Extended];

#[test]
fn structured_replies_cover_every_read_even_an_empty_one() {
    let host = Host::new(NbdServerOptions::default());
    host.store.create_volume("v", 1 << 20).unwrap().write_at(&[7; 8192], 0).unwrap();
    for mode in MODES {
        let mut client = host.client(mode, "v");
        for (offset, length) in [(0, 0), (4096, 0), (1 << 20, 0), (100, 1), (0, 8192)] {
            client.send(CMD_READ, 0, offset, length);
            let reply = client.reply(length as usize);
            assert_eq!((reply.error, reply.is_simple, reply.cookie), (0, mode == HeaderMode::Simple, offset + 1), "{mode:?}");
            assert!(reply.data == vec![7; length as usize]);
        }
    }
}

#[test]
fn zeros_without_a_hole_have_their_space() {
    let host = Host::new(NbdServerOptions::default());
    let volume = host.store.create_volume("v", 16 << 20).unwrap();
    volume.write_at(&vec![7; 8 * MIB], 0).unwrap();
    let mut client = host.client(HeaderMode::Structured, "v");
    let hole = u64::from(STATE_HOLE | STATE_ZERO);
    // Over data and over a hole, not on the bounds of blocks.
    let (offset, length) = (6 * MIB as u64 + 100, 4 * MIB as u64 + 1000);
    for flags in [CMD_FLAG_NO_HOLE, CMD_FLAG_NO_HOLE | CMD_FLAG_FUA] {
        client.send(CMD_WRITE_ZEROES, flags, offset, length);
        assert_eq!(client.reply(0).error, 0);
        client.send(CMD_BLOCK_STATUS, 0, 0, 16 << 20);
        let end = (offset + length).next_multiple_of(4096);
        let expected = [StatusExtent { length: end, flags: 0 }, StatusExtent { length: (16 << 20) - end, flags: hole }];
        assert_eq!(client.reply(0).extents, expected);
        let mut bytes = vec![1; 12 * MIB];
        volume.read_at(&mut bytes, 0).unwrap();
        let (before, rest) = bytes.split_at(offset as usize);
        assert!(before.iter().all(|byte| *byte == 7) && rest.iter().all(|byte| *byte == 0));
    }
    // It is no faster than writing.
    client.send(CMD_WRITE_ZEROES, CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO, 0, 4096);
    assert_eq!(client.reply(0).error, ENOTSUP);
    client.send(CMD_WRITE_ZEROES, CMD_FLAG_NO_HOLE, 16 << 20, 4096);
    assert_eq!(client.reply(0).error, ENOSPC);
    client.send(CMD_WRITE_ZEROES, CMD_FLAG_FAST_ZERO, 0, 16 << 20);
    assert_eq!(client.reply(0).error, 0);
    client.send(CMD_BLOCK_STATUS, 0, 0, 16 << 20);
    assert_eq!(client.reply(0).extents, [StatusExtent { length: 16 << 20, flags: hole }]);
}

#[test]
fn hints_are_answered_however_many_there_are() {
    let host = Host::new(NbdServerOptions::default().with_depth(4));
    host.store.create_volume("v", 1 << 20).unwrap();
    let mut client = host.client(HeaderMode::Extended, "v");
    (0..500).for_each(|number| client.send(CMD_CACHE, 0, number * 512, 512));
    for _ in 0..500 {
        assert_eq!(client.reply(0).error, 0);
    }
}

/// An error would be one of the client's device; without a reply, a client that connects again sends its request again.
#[test]
fn what_has_not_begun_when_the_server_shuts_down_gets_no_reply() {
    let host = Host::new(NbdServerOptions::default().with_shutdown_timeout(Duration::from_secs(3600)));
    let volume = host.store.create_volume("v", 32 << 20).unwrap();
    volume.write_at(&vec![7; 32 * MIB], 0).unwrap();
    let mut client = host.client(HeaderMode::Extended, "v");
    client.send(CMD_READ, 0, 0, 32 << 20);
    // Its reply is under way as long as nobody reads it.
    let mut magic = [0; ReplyHeader::MAGIC_BYTES];
    client.socket.read_exact(&mut magic).unwrap();
    let socket = host.socket();
    let Host { server, directory, .. } = host;
    let stopping = std::thread::spawn(move || server.shutdown());
    while UnixStream::connect(&socket).is_ok() {
        std::thread::yield_now();
    }
    let write = client.header(CMD_WRITE, CMD_FLAG_PAYLOAD_LEN, 0, 4096);
    client.socket.write_all(&[write, vec![9; 4096]].concat()).unwrap();
    let mut rest = Vec::new();
    // The end may come as a reset, because of what was not taken.
    let _ = client.socket.read_to_end(&mut rest);
    // The rest of one chunk, and no other.
    let header = ReplyHeader::header_bytes(magic, HeaderMode::Extended).unwrap();
    assert_eq!(rest.len(), header - magic.len() + 8 + 32 * MIB);
    stopping.join().unwrap();
    let mut bytes = [0; 4096];
    volume.read_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [7; 4096]);
    drop(directory);
}

#[test]
fn a_whole_device_is_discarded_by_one_request() {
    const BYTES: u64 = 16 << 40;
    let host = Host::new(NbdServerOptions::default());
    let volume = host.store.create_volume("v", BYTES).unwrap();
    let places: Vec<u64> = (0..64).map(|number| number * (BYTES / 64) + number * 12_288).collect();
    for (command, flags) in [(CMD_TRIM, CMD_FLAG_FUA), (CMD_WRITE_ZEROES, CMD_FLAG_FAST_ZERO)] {
        places.iter().for_each(|place| volume.write_at(&[7; 8192], *place).unwrap());
        let mut client = host.client(HeaderMode::Extended, "v");
        client.send(command, flags, 0, BYTES);
        assert_eq!(client.reply(0).error, 0);
        client.send(CMD_BLOCK_STATUS, 0, 0, BYTES);
        assert_eq!(client.reply(0).extents, [StatusExtent { length: BYTES, flags: u64::from(STATE_HOLE | STATE_ZERO) }]);
        // The old headers end at 4 GiB; nothing is refused for its length.
        volume.write_at(&[7; 8192], 4096).unwrap();
        let mut client = host.client(HeaderMode::Structured, "v");
        client.send(command, flags, 4096, u64::from(u32::MAX) - 4095);
        assert_eq!(client.reply(0).error, 0);
        let mut bytes = [1; 8192];
        volume.read_at(&mut bytes, 4096).unwrap();
        assert_eq!(bytes, [0; 8192]);
    }
}

/// What a client asks for behind the end: a write across it, a write, zeros, a read, a discard; and what it must be told.
fn is_refused_behind(client: &mut Client, end: u64) {
    for offset in [end - 4096, end] {
        let write = client.header(CMD_WRITE, CMD_FLAG_PAYLOAD_LEN, offset, 8192);
        client.socket.write_all(&[write, vec![9; 8192]].concat()).unwrap();
        assert_eq!(client.reply(0).error, ENOSPC);
        for (command, error) in [(CMD_WRITE_ZEROES, ENOSPC), (CMD_READ, EINVAL), (CMD_TRIM, EINVAL)] {
            client.send(command, 0, offset, 8192);
            assert_eq!(client.reply(0).error, error, "{command}");
        }
    }
}

/// A client keeps the size that it was told: what it writes is never accepted and lost.
#[test]
fn a_volume_changes_its_size_below_connected_clients() {
    const OLD: u64 = 1 << 20;
    let host = Host::new(NbdServerOptions::default());
    let volume = host.store.create_volume("v", OLD).unwrap();
    volume.write_at(&vec![7; MIB], 0).unwrap();
    let bytes = |offset| {
        let mut bytes = vec![1; 8192];
        volume.read_at(&mut bytes, offset).map(|()| bytes)
    };
    let mut old = host.client(HeaderMode::Extended, "v");
    host.store.resize("v", 2 * OLD, false).unwrap();
    let mut new = host.client(HeaderMode::Extended, "v");
    is_refused_behind(&mut old, OLD);
    is_refused_behind(&mut new, 2 * OLD);
    assert!(bytes(OLD - 4096).unwrap() == [[7; 4096], [0; 4096]].concat());
    // Of what both know, each sees what the other has written.
    for (writer, seed) in [(&mut old, 3), (&mut new, 4)] {
        let write = writer.header(CMD_WRITE, CMD_FLAG_PAYLOAD_LEN, OLD - 8192, 8192);
        writer.socket.write_all(&[write, vec![seed; 8192]].concat()).unwrap();
        assert_eq!(writer.reply(0).error, 0);
        assert!(bytes(OLD - 8192).unwrap() == [seed; 8192]);
    }
    let write = new.header(CMD_WRITE, CMD_FLAG_PAYLOAD_LEN, OLD, 8192);
    new.socket.write_all(&[write, vec![5; 8192]].concat()).unwrap();
    assert_eq!(new.reply(0).error, 0);
    host.store.resize("v", OLD, true).unwrap();
    is_refused_behind(&mut new, OLD);
    host.store.resize("v", 2 * OLD, false).unwrap();
    assert!(bytes(OLD - 4096).unwrap() == [[4; 4096], [0; 4096]].concat());
}

/// A disk that was made with sectors of 512 bytes is one: no client is made to read in larger units.
#[test]
fn no_client_is_made_to_align() {
    let host = Host::new(NbdServerOptions::default());
    host.store.create_volume("v", 1_000_000).unwrap();
    let mut client = host.connect();
    let go = GoRequest { name: "v".into(), infos: vec![INFO_BLOCK_SIZE] };
    let mut info = ExportInfo { size_bytes: 0, flags: 0, block_sizes: None };
    for (reply, data) in client.option(OPT_INFO, &go.encode()).unwrap() {
        if reply == REP_INFO {
            decode_export_info(&data, &mut info).unwrap();
        }
    }
    assert_eq!((info.size_bytes, info.block_sizes), (1_000_000, Some((1, 4096, 32 << 20))));
}
