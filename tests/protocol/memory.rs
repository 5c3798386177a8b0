//! Memory of clients that do not read their replies, or do not finish a request.

use std::io::{self, Write};
use std::sync::mpsc::channel;
use std::time::Duration;

use volfork::serve::NbdServerOptions;
use volfork::wire::HeaderMode;
use volfork::wire::constants::{CMD_READ, CMD_WRITE};

use crate::client::{Client, Host, MIB, PATIENCE};

/// The largest request.
const LARGE: usize = 32 * MIB;
const LONG: Duration = Duration::from_secs(3600);

fn host(stall_timeout: Duration) -> Host {
    let host = Host::new(NbdServerOptions::default().with_memory_bytes_max(2 * LARGE + MIB).with_stall_timeout(stall_timeout));
    host.store.create_volume("v", 2 * LARGE as u64).unwrap().write_at(&vec![7; LARGE], 0).unwrap();
    host
}

/// Small requests are done.
fn is_served(client: &mut Client) {
    client.send(CMD_READ, 0, 4096, 4096);
    assert!(client.reply(4096).data == [7; 4096]);
    let write = client.header(CMD_WRITE, 0, LARGE as u64 + 4096, 4096);
    client.socket.write_all(&[write, vec![9; 4096]].concat()).unwrap();
    assert_eq!(client.reply(0).error, 0);
}

#[test]
fn partial_requests_hold_bounded_memory_and_stop_nobody() {
    let host = host(LONG);
    let mut clients: Vec<_> = (0..6).map(|_| host.client(HeaderMode::Structured, "v")).collect();
    let mut write = clients[0].header(CMD_WRITE, 0, 0, LARGE as u64);
    write.resize(write.len() + LARGE, 3);
    let (whole, last) = (write.len(), write.len() - 1);
    let counts: Vec<usize> = clients.iter_mut().map(|client| client.taken(&write[..last])).collect();
    assert_eq!(counts[..2], [last, last], "there is room for two of them");
    assert!(counts[2..].iter().all(|count| *count < MIB), "memory for {counts:?} bytes");
    is_served(&mut host.client(HeaderMode::Simple, "v"));
    // Each gets room when one before it has ended, or has left.
    drop(clients.remove(1));
    std::thread::scope(|scope| {
        for (client, count) in clients.iter_mut().zip([last, counts[2], counts[3], counts[4], counts[5]]) {
            let rest = &write[count..whole];
            scope.spawn(move || {
                client.socket.write_all(rest).unwrap();
                assert_eq!(client.reply(0).error, 0);
            });
        }
    });
    // A client that holds nothing any more is served.
    clients.iter_mut().for_each(|client| client.send(CMD_READ, 0, 0, 4096));
    assert!(clients.iter_mut().all(|client| client.reply(4096).data == [3; 4096]));
}

#[test]
fn a_client_that_reads_nothing_makes_room_for_those_that_wait() {
    let host = host(Duration::from_millis(500));
    let mut hoarders: Vec<_> = (0..2).map(|_| host.client(HeaderMode::Simple, "v")).collect();
    hoarders.iter_mut().for_each(|hoarder| hoarder.send(CMD_READ, 0, 0, LARGE as u64));
    // Their replies have begun to come.
    hoarders.iter_mut().for_each(|hoarder| {
        hoarder.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        io::Read::read_exact(&mut hoarder.socket, &mut [0; 16]).unwrap();
    });
    is_served(&mut host.client(HeaderMode::Simple, "v"));
    let mut reader = host.client(HeaderMode::Simple, "v");
    reader.send(CMD_READ, 0, 0, LARGE as u64);
    assert!(reader.reply(LARGE).data == vec![7; LARGE]);
    // A client that does read, however slowly, is kept.
    is_served(&mut reader);
    assert!(host.server.connections() <= 2, "nobody made room");
}

#[test]
fn a_request_that_does_not_come_to_its_end_ends_its_connection() {
    let host = host(Duration::from_millis(300));
    let mut other = host.client(HeaderMode::Extended, "v");
    for payload in [0, 3000] {
        let mut slow = host.client(HeaderMode::Extended, "v");
        let mut write = slow.header(CMD_WRITE, 0, 0, 4096);
        write.resize(write.len() + payload, 1);
        slow.socket.write_all(&write[..write.len() - 1]).unwrap();
        slow.await_end();
    }
    // One that has begun nothing has all the time.
    is_served(&mut other);
    host.await_connections(1);
}

#[test]
fn a_request_that_fits_no_budget_is_done_when_it_is_alone() {
    let host = Host::new(NbdServerOptions::default().with_memory_bytes_max(MIB));
    host.store.create_volume("v", LARGE as u64).unwrap().write_at(&vec![7; LARGE], 0).unwrap();
    let (sender, receiver) = channel();
    for _ in 0..4 {
        let (mut client, sender) = (host.client(HeaderMode::Extended, "v"), sender.clone());
        std::thread::spawn(move || {
            for _ in 0..3 {
                client.send(CMD_READ, 0, 0, LARGE as u64);
                assert!(client.reply(LARGE).data == vec![7; LARGE]);
            }
            sender.send(()).unwrap();
        });
    }
    drop(sender);
    for _ in 0..4 {
        receiver.recv_timeout(PATIENCE).expect("a client waits without end");
    }
}
