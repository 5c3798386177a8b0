//! Every message of a client cut, changed, repeated and slow: only its own connection may end.

use std::io::Write;
use std::net::Shutdown;

use volfork::serve::NbdServerOptions;
use volfork::wire::constants::{
    CMD_BLOCK_STATUS, CMD_CACHE, CMD_DISC, CMD_FLAG_FUA, CMD_FLAG_NO_HOLE, CMD_FLAG_PAYLOAD_LEN, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE,
    CMD_WRITE_ZEROES, OPT_ABORT, OPT_EXPORT_NAME, OPT_EXTENDED_HEADERS, OPT_GO, OPT_INFO, OPT_LIST, OPT_LIST_META_CONTEXT,
    OPT_SET_META_CONTEXT, OPT_STARTTLS, OPT_STRUCTURED_REPLY,
};
use volfork::wire::{ContextQuery, GoRequest, HeaderMode, OptionRequest, Request, StatusQuery};

use crate::client::{Client, Host};

const OPTIONS: [u32; 10] = [
    OPT_EXPORT_NAME,
    OPT_ABORT,
    OPT_LIST,
    OPT_STARTTLS,
    OPT_INFO,
    OPT_GO,
    OPT_STRUCTURED_REPLY,
    OPT_LIST_META_CONTEXT,
    OPT_SET_META_CONTEXT,
    OPT_EXTENDED_HEADERS,
];

/// The bytes of an option as a client sends it.
fn option(option: u32) -> Vec<u8> {
    let query = ContextQuery { name: "scratch".into(), queries: vec!["base:allocation".into(), "qemu:".into()] };
    let data = match option {
        OPT_EXPORT_NAME => b"scratch".to_vec(),
        OPT_INFO | OPT_GO => GoRequest { name: "scratch".into(), infos: vec![3, 1] }.encode(),
        OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => query.encode(),
        _ => Vec::new(),
    };
    OptionRequest::encode(option, &data)
}

/// The bytes of each request as a client sends it.
fn requests(extended: bool) -> Vec<Vec<u8>> {
    let header = |flags: u16, command: u16, length: usize| {
        Request { flags, command, cookie: 7, offset: 4096, length: length as u64 }.encode(extended)
    };
    let status = StatusQuery { length: 8192, contexts: vec![1] }.encode();
    let payload_flag = if extended { CMD_FLAG_PAYLOAD_LEN } else { 0 };
    let mut requests = vec![
        header(0, CMD_READ, 4096),
        [header(CMD_FLAG_FUA | payload_flag, CMD_WRITE, 60), vec![5; 60]].concat(),
        header(0, CMD_DISC, 0),
        header(0, CMD_FLUSH, 0),
        header(0, CMD_TRIM, 8192),
        header(0, CMD_CACHE, 8192),
        header(CMD_FLAG_NO_HOLE, CMD_WRITE_ZEROES, 8192),
        header(0, CMD_BLOCK_STATUS, 8192),
    ];
    if extended {
        requests.push([header(CMD_FLAG_PAYLOAD_LEN, CMD_BLOCK_STATUS, status.len()), status].concat());
    }
    requests
}

/// What becomes of a message: each cut, each byte changed in several ways, twice, and a byte at a time.
fn mangled(message: &[u8]) -> Vec<Vec<u8>> {
    let cuts = (0..message.len()).map(|cut| message[..cut].to_vec());
    let changes = (0..message.len().min(80)).flat_map(|at| {
        [0x01, 0x80, 0xff].map(|bits| {
            let mut changed = message.to_vec();
            changed[at] ^= bits;
            changed
        })
    });
    cuts.chain(changes).chain([message.repeat(2), message.repeat(200)]).collect()
}

/// A host with a volume that nobody may change, and one that anything may happen to.
fn host() -> (Host, Vec<u8>) {
    let host = Host::new(NbdServerOptions::default());
    let data: Vec<u8> = (0..1 << 20).map(|number: u32| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    host.store.create_volume("kept", data.len() as u64).unwrap().write_at(&data, 0).unwrap();
    host.store.create_volume("scratch", 1 << 20).unwrap();
    (host, data)
}

/// Sends bytes, and no more; waits until the server has done with them.
fn send_all(mut client: Client, bytes: &[u8]) {
    // A server that has seen enough hangs up.
    let _ = client.socket.write_all(bytes);
    let _ = client.socket.shutdown(Shutdown::Write);
    client.await_end();
}

/// The server is there, serves others, and has kept what nobody wrote to.
fn is_sound(host: &Host, data: &[u8]) {
    let mut client = host.client(HeaderMode::Structured, "kept");
    client.send(CMD_READ, 0, 0, data.len() as u64);
    assert!(client.reply(0).data == data);
    drop(client);
    host.await_connections(0);
}

#[test]
fn options() {
    let (host, data) = host();
    for number in OPTIONS {
        let message = option(number);
        for bytes in mangled(&message) {
            // Before and after others.
            send_all(host.connect(), &bytes);
            send_all(host.connect(), &[option(OPT_STRUCTURED_REPLY), bytes, option(OPT_SET_META_CONTEXT), option(OPT_GO)].concat());
        }
        let mut slow = host.connect();
        for byte in &message {
            slow.socket.write_all(std::slice::from_ref(byte)).unwrap();
        }
        send_all(slow, &[]);
        is_sound(&host, &data);
    }
}

#[test]
fn every_pair_of_options() {
    let (host, data) = host();
    for first in OPTIONS {
        for second in OPTIONS {
            send_all(host.connect(), &[option(first), option(second), option(first), option(OPT_GO)].concat());
        }
    }
    is_sound(&host, &data);
}

#[test]
fn requests_of_every_form() {
    let (host, data) = host();
    for mode in [HeaderMode::Simple, HeaderMode::Structured, HeaderMode::Extended] {
        for message in requests(mode == HeaderMode::Extended) {
            for bytes in mangled(&message) {
                send_all(host.client(mode, "scratch"), &bytes);
            }
            let mut slow = host.client(mode, "scratch");
            for byte in &message {
                slow.socket.write_all(std::slice::from_ref(byte)).unwrap();
            }
            send_all(slow, &[]);
            is_sound(&host, &data);
        }
    }
}
