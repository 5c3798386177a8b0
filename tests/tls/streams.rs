//! The bytes behind TLS: half-closed, cut off, not taken. The clients speak TLS themselves.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use volfork::serve::NbdServerOptions;
use volfork::wire::Request;
use volfork::wire::constants::{
    CMD_READ, CMD_WRITE, OPT_ABORT, OPT_GO, OPT_LIST, OPT_SET_META_CONTEXT, OPT_STARTTLS, OPT_STRUCTURED_REPLY, REP_ACK, REP_ERR_INVALID,
    REP_SERVER,
};
use volfork::wire::{ContextQuery, GoRequest};

use crate::hostile::{ask, connect, invited, reply};
use crate::stage::{Host, MIB, Mode, PATIENCE};

type Client = StreamOwned<ClientConnection, TcpStream>;

/// TLS of a client with the certificates of a directory; of none, one that trusts nobody.
pub fn client(directory: &Path, has_certificate: bool) -> ClientConnection {
    let mut roots = RootCertStore::empty();
    let certificates = |name: &str| CertificateDer::pem_file_iter(directory.join(name)).map(|found| found.map(Result::unwrap));
    roots.add_parsable_certificates(certificates("ca-cert.pem").into_iter().flatten());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    let config = if has_certificate {
        let key = PrivateKeyDer::from_pem_file(directory.join("client-key.pem")).unwrap();
        builder.with_client_auth_cert(certificates("client-cert.pem").unwrap().collect(), key).unwrap()
    } else {
        builder.with_no_client_auth()
    };
    ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap()
}

/// A client that has begun TLS.
fn secured(host: &Host) -> Client {
    StreamOwned::new(client(&host.path("known"), true), invited(host))
}

/// A client that has `v` open, with simple replies.
fn opened(host: &Host) -> Client {
    let mut client = secured(host);
    let mut kind = ask(&mut client, OPT_GO, &GoRequest { name: "v".into(), infos: Vec::new() }.encode()).unwrap();
    while kind != REP_ACK {
        assert!(kind >> 31 == 0, "refused: {kind:#x}");
        kind = reply(&mut client).unwrap();
    }
    client
}

fn request(command: u16, offset: u64, length: u64) -> Vec<u8> {
    Request { flags: 0, command, cookie: 1, offset, length }.encode(false)
}

/// Takes the reply to a read.
fn replied(client: &mut Client, length: usize) -> io::Result<Vec<u8>> {
    let mut header = [0; 16];
    client.read_exact(&mut header)?;
    assert_eq!(header[4..8], [0; 4], "an error");
    let mut bytes = vec![0; length];
    client.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[test]
fn all_that_was_agreed_on_is_forgotten() {
    let host = Host::new(Mode::On);
    let mut socket = connect(&host);
    assert_eq!(ask(&mut socket, OPT_STRUCTURED_REPLY, &[]).unwrap(), REP_ACK);
    assert_eq!(ask(&mut socket, OPT_STARTTLS, &[]).unwrap(), REP_ACK);
    let mut client = StreamOwned::new(client(&host.path("nobody"), false), socket);
    // Contexts need structured replies.
    let query = ContextQuery { name: "v".into(), queries: vec!["base:allocation".into()] }.encode();
    assert_eq!(ask(&mut client, OPT_SET_META_CONTEXT, &query).unwrap(), REP_ERR_INVALID);
    assert_eq!(ask(&mut client, OPT_STARTTLS, &[]).unwrap(), REP_ERR_INVALID);
    assert_eq!(ask(&mut client, OPT_LIST, &[]).unwrap(), REP_SERVER);
    assert_eq!(reply(&mut client).unwrap(), REP_ACK);
}

#[test]
fn a_client_that_says_it_sends_no_more_gets_its_replies() {
    let host = Host::new(Mode::Verified);
    let mut client = opened(&host);
    let requests: Vec<u8> = (0..64).flat_map(|number| request(CMD_READ, number * 4096, 65536)).collect();
    client.write_all(&requests).unwrap();
    client.conn.send_close_notify();
    client.flush().unwrap();
    let replies: Vec<_> = (0..64).map(|_| replied(&mut client, 65536).unwrap()).collect();
    let sum = |replies: &[Vec<u8>]| replies.iter().flatten().map(|byte| u64::from(*byte)).sum::<u64>();
    let expected: Vec<Vec<u8>> = (0..64).map(|number| host.data[number * 4096..][..65536].to_vec()).collect();
    // They may come in any order.
    assert_eq!(sum(&replies), sum(&expected));
    // The server says that it ends.
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_stream_that_is_cut_off_is_no_end() {
    let host = Host::new(Mode::Verified);
    let mut client = opened(&host);
    client.write_all(&request(CMD_READ, 0, 4096)).unwrap();
    assert!(replied(&mut client, 4096).unwrap() == host.data[..4096]);
    // In the middle of a write; the server holds its place until it sees the cut.
    client.write_all(&[request(CMD_WRITE, 0, 65536), vec![9; 30_000]].concat()).unwrap();
    client.sock.shutdown(std::net::Shutdown::Write).unwrap();
    let ended = client.read(&mut [0; 64]);
    // No `close_notify` answers it: the connection has failed.
    assert!(ended.is_err(), "{ended:?}");
    let mut stored = vec![0; 65536];
    host.store.volume("v").unwrap().read_at(&mut stored, 0).unwrap();
    assert!(stored == host.data[..65536], "a part of a request was done");
    is_empty(&host);
}

/// Waits until the server has no client.
fn is_empty(host: &Host) {
    let begun = std::time::Instant::now();
    while host.server.as_ref().unwrap().connections() > 0 {
        assert!(begun.elapsed() < PATIENCE, "a connection is left");
        std::thread::yield_now();
    }
}

#[test]
fn a_record_that_was_changed_ends_the_connection() {
    let host = Host::new(Mode::Verified);
    for change in [0, 1, 3, 5, 40] {
        let mut client = opened(&host);
        let mut record = Vec::new();
        client.conn.writer().write_all(&request(CMD_READ, 0, 4096)).unwrap();
        client.conn.write_tls(&mut record).unwrap();
        record[change] ^= 0x40;
        client.sock.write_all(&record).unwrap();
        client.sock.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(replied(&mut client, 4096).is_err(), "byte {change} may be any");
    }
    is_empty(&host);
}

#[test]
fn a_client_that_takes_nothing_holds_bounded_memory() {
    let mut host = Host::new(Mode::Verified);
    host.server.take().unwrap().shutdown();
    host.serve(Mode::Verified, NbdServerOptions::default().with_memory_bytes_max(16 * MIB));
    let before = memory_mib();
    let mut greedy: Vec<Client> = (0..8).map(|_| opened(&host)).collect();
    for client in &mut greedy {
        let requests: Vec<u8> = (0..1000).flat_map(|_| request(CMD_READ, 0, 8 * MIB as u64)).collect();
        client.write_all(&requests).unwrap();
    }
    // Others are served meanwhile.
    let mut other = opened(&host);
    for at in 0..64 {
        other.write_all(&request(CMD_READ, at * 4096, 4096)).unwrap();
        assert!(replied(&mut other, 4096).unwrap() == host.data[at as usize * 4096..][..4096]);
    }
    let grown = memory_mib().saturating_sub(before);
    assert!(grown < 400, "{grown} MiB more than before");
    // What they have read is whole.
    let mut first = greedy.remove(0);
    // They hold the memory that it may wait for.
    drop(greedy);
    assert!(replied(&mut first, 8 * MIB).unwrap() == host.data);
}

#[test]
fn a_client_that_takes_nothing_is_ended_at_once() {
    let host = Host::new(Mode::Verified);
    let clients = host.server.as_ref().unwrap().clients();
    let mut greedy = opened(&host);
    greedy.write_all(&request(CMD_READ, 0, 8 * MIB as u64).repeat(4)).unwrap();
    // Its first reply has begun to come, so the rest waits for it.
    greedy.read_exact(&mut [0; 16]).unwrap();
    assert_eq!(clients.disconnect("v", PATIENCE).unwrap(), 1);
    is_empty(&host);
    // It is told of no end: what was promised has not come.
    assert!(greedy.read_to_end(&mut Vec::new()).is_err());
}

#[test]
fn a_server_that_ends_by_force_waits_for_no_last_bytes() {
    let mut host = Host::new(Mode::Verified);
    host.server.take().unwrap().shutdown();
    host.serve(Mode::Verified, NbdServerOptions::default().with_shutdown_timeout(Duration::from_millis(1)));
    let clients = host.server.as_ref().unwrap().clients();
    let mut greedy = opened(&host);
    greedy.write_all(&request(CMD_READ, 0, 8 * MIB as u64).repeat(4)).unwrap();
    greedy.read_exact(&mut [0; 16]).unwrap();
    host.server.take().unwrap().shutdown();
    // Its export may keep a store open.
    assert!(clients.list().is_empty());
    assert!(greedy.read_to_end(&mut Vec::new()).is_err(), "a part of a reply is no end");
}

#[test]
fn a_client_that_leaves_without_an_export_is_answered() {
    let host = Host::new(Mode::Verified);
    for _ in 0..50 {
        let mut client = secured(&host);
        assert_eq!(ask(&mut client, OPT_ABORT, &[]).unwrap(), REP_ACK);
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn keys_that_change_are_followed() {
    let host = Host::new(Mode::Verified);
    let mut client = opened(&host);
    for at in 0..100 {
        client.conn.refresh_traffic_keys().unwrap();
        client.write_all(&request(CMD_READ, at * 4096, 4096)).unwrap();
        assert!(replied(&mut client, 4096).unwrap() == host.data[at as usize * 4096..][..4096]);
    }
}

/// Most memory that this process has had.
fn memory_mib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<usize>().unwrap() >> 10
}

#[test]
fn many_connections_share_two_threads() {
    let host = Host::new(Mode::Verified);
    let mut clients: Vec<Client> = (0..40).map(|_| opened(&host)).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.write_all(&request(CMD_READ, number as u64 * 4096, 4096)).unwrap();
    }
    for (number, client) in clients.iter_mut().enumerate() {
        assert!(replied(client, 4096).unwrap() == host.data[number * 4096..][..4096]);
    }
    let names = std::fs::read_dir("/proc/self/task").unwrap();
    let names = names.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    let relays = names.filter(|name| name.trim() == "tls-relay").count();
    assert!((1..=2).contains(&relays), "{relays} threads");
}
