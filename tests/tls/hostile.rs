//! Hostile clients: each costs its own connection, for a bounded time.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use volfork::serve::NbdServerOptions;
use volfork::source::{Source, SourceExt};
use volfork::wire::constants::{
    OPT_ABORT, OPT_EXPORT_NAME, OPT_GO, OPT_LIST, OPT_STARTTLS, OPT_STRUCTURED_REPLY, REP_ACK, REP_ERR_INVALID, REP_ERR_POLICY,
    REP_ERR_TLS_REQD,
};
use volfork::wire::{GoRequest, OptionReply, OptionRequest};

use crate::stage::{Host, Mode, PATIENCE, open};

/// A client that has sent its flags.
pub fn connect(host: &Host) -> TcpStream {
    let mut socket = TcpStream::connect(host.address()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.read_exact(&mut [0; 18]).unwrap();
    socket.write_all(&3u32.to_be_bytes()).unwrap();
    socket
}

/// The next reply to an option.
pub fn reply(socket: &mut impl Read) -> io::Result<u32> {
    let mut header = [0; OptionReply::BYTES];
    socket.read_exact(&mut header)?;
    let reply = OptionReply::decode(&header).unwrap();
    socket.read_exact(&mut vec![0; reply.length as usize])?;
    Ok(reply.reply)
}

pub fn ask(socket: &mut (impl Read + Write), option: u32, data: &[u8]) -> io::Result<u32> {
    socket.write_all(&OptionRequest::encode(option, data))?;
    reply(socket)
}

/// A client that may begin TLS.
pub fn invited(host: &Host) -> TcpStream {
    let mut socket = connect(host);
    assert_eq!(ask(&mut socket, OPT_STARTTLS, &[]).unwrap(), REP_ACK);
    socket
}

/// Waits until the server ends a connection, whatever it sends before.
fn is_ended(mut socket: TcpStream) {
    let mut answers = Vec::new();
    match socket.read_to_end(&mut answers) {
        Ok(_) => {}
        Err(error) => assert_ne!(error.kind(), io::ErrorKind::WouldBlock, "the server goes on"),
    }
    // At most an alert.
    assert!(answers.len() < 64, "{} bytes came", answers.len());
}

fn go() -> Vec<u8> {
    GoRequest { name: "v".into(), infos: Vec::new() }.encode()
}

/// The first bytes of a handshake, as a real client sends them.
fn client_hello() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut client = crate::streams::client(&std::path::PathBuf::new(), false);
    client.write_tls(&mut bytes).unwrap();
    bytes
}

#[test]
fn garbage_for_a_handshake_ends_the_connection() {
    let host = Host::new(Mode::Verified);
    let good = open(&host.uri("known")).unwrap();
    let hello = client_hello();
    let mut odd = hello.clone();
    odd[5] ^= 0xff;
    let garbage: [&[u8]; 7] = [
        b"GET / HTTP/1.0\r\n\r\n",
        &[0; 4096],
        &[0xff; 4096],
        &OptionRequest::encode(OPT_GO, &go()),
        // A record of 64 KiB, and one that says so.
        &[&[0x16, 3, 3, 0xff, 0xff][..], &[0; 0xffff]].concat(),
        // A message of a handshake that is 16 MiB long, in records that are none too long.
        &[&[0x16, 3, 3, 0x40, 0, 1, 0xff, 0xff, 0xff][..], &[0; 0x4000 - 4]].concat().repeat(8),
        &odd,
    ];
    for bytes in garbage {
        let mut socket = invited(&host);
        // It may have been ended in the middle.
        let _ = socket.write_all(bytes);
        is_ended(socket);
    }
    assert!(good.read_blocking(0..4096).unwrap() == host.data[..4096]);
    good.close();
}

#[test]
fn half_a_handshake_ends_when_its_time_is_over() {
    let timeout = Duration::from_millis(500);
    let host = Host::with(Mode::Required, NbdServerOptions::default().with_handshake_timeout(timeout));
    let hello = client_hello();
    // Nothing at all, half of it, all of it and silence.
    for count in [0, hello.len() / 2, hello.len()] {
        let mut socket = invited(&host);
        socket.write_all(&hello[..count]).unwrap();
        let begun = Instant::now();
        let mut answers = Vec::new();
        let _ = socket.read_to_end(&mut answers);
        assert!(begun.elapsed() < PATIENCE, "the server waits on");
    }
    // A byte at a time gains nothing.
    let mut socket = invited(&host);
    socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let begun = Instant::now();
    while socket.write_all(&hello[..1]).is_ok() && socket.read(&mut [0; 64]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
        assert!(begun.elapsed() < PATIENCE, "the server listens on");
    }
    open(&host.uri("known")).unwrap().close();
}

#[test]
fn clear_bytes_behind_starttls_end_the_connection() {
    let host = Host::new(Mode::On);
    for behind in [OptionRequest::encode(OPT_GO, &go()), client_hello(), vec![0]] {
        let mut socket = connect(&host);
        socket.write_all(&[OptionRequest::encode(OPT_STARTTLS, &[]), behind].concat()).unwrap();
        // Not even the option is answered.
        let mut answers = Vec::new();
        let _ = socket.read_to_end(&mut answers);
        assert!(answers.is_empty(), "{answers:?}");
    }
}

#[test]
fn without_tls_a_client_is_told_that_it_is_required() {
    let host = Host::new(Mode::Required);
    let mut socket = connect(&host);
    for (option, data) in [(OPT_LIST, vec![]), (OPT_GO, go()), (OPT_STRUCTURED_REPLY, vec![]), (12345, vec![1, 2, 3])] {
        assert_eq!(ask(&mut socket, option, &data).unwrap(), REP_ERR_TLS_REQD, "option {option}");
    }
    assert_eq!(ask(&mut socket, OPT_STARTTLS, &[1]).unwrap(), REP_ERR_INVALID);
    assert_eq!(ask(&mut socket, OPT_ABORT, &[]).unwrap(), REP_ACK);
    let mut socket = connect(&host);
    socket.write_all(&OptionRequest::encode(OPT_EXPORT_NAME, b"v")).unwrap();
    is_ended(socket);
    let clear = Host::new(Mode::Off);
    let mut socket = connect(&clear);
    assert_eq!(ask(&mut socket, OPT_STARTTLS, &[]).unwrap(), REP_ERR_POLICY);
    assert_eq!(ask(&mut socket, OPT_GO, &go()).unwrap(), volfork::wire::constants::REP_INFO);
}
