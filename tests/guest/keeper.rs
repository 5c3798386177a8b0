//! Keeps a device of the kernel's NBD client, as its users do that have to: when the kernel says that a connection has died, the device
//! gets another one. `nbd-client -persist` cannot: the kernel ends its call as if all were well, so it leaves. It runs inside the guest.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Duration;

use rustix::net::netlink::{GENERIC, SocketAddrNetlink};
use rustix::net::{AddressFamily, SocketType, bind, socket};

/// Of generic netlink: the family that knows the others, its command, and its attributes.
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const GROUPS: u16 = 7;
const GROUP_ID: u16 = 2;
/// Of the family `nbd`.
const RECONFIGURE: u8 = 3;
const LINK_DEAD: u8 = 4;
const INDEX: u16 = 1;
const SOCKETS: u16 = 7;
const DEAD_CONN_TIMEOUT: u16 = 8;
const SOCKET_ITEM: u16 = 1;
const SOCKET_DESCRIPTOR: u16 = 1;
/// A message that asks, and one that an error or a success is told of.
const REQUEST_WITH_ANSWER: u16 = 1 | 4;
const ERROR: u16 = 2;
const HEADER_BYTES: usize = 16;
const GENERIC_HEADER_BYTES: usize = 4;

/// How long the device waits for a connection before its requests fail.
const DEAD_SECONDS: u64 = 600;
const OPTION_MAGIC: &[u8] = b"IHAVEOPT";
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const GO: u32 = 7;
const ACK: u32 = 1;

fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u16 + 4).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Kinds and payloads of attributes.
fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while bytes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
        found.push((u16::from_ne_bytes([bytes[2], bytes[3]]) & 0x3fff, &bytes[4..length]));
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
    }
    found
}

fn payload<'a>(attributes: &[(u16, &'a [u8])], kind: u16) -> &'a [u8] {
    attributes.iter().find(|(other, _)| *other == kind).map(|(_, payload)| *payload).expect("the attribute is there")
}

/// A socket of generic netlink that hears these groups.
fn netlink(groups: u32) -> File {
    let opened = socket(AddressFamily::NETLINK, SocketType::RAW, Some(GENERIC)).unwrap();
    bind(&opened, &SocketAddrNetlink::new(0, groups)).unwrap();
    File::from(opened)
}

/// Type and body of the next message.
fn receive(mut socket: &File) -> (u16, Vec<u8>) {
    let mut bytes = vec![0; 16 << 10];
    let length = socket.read(&mut bytes).unwrap();
    bytes.truncate(length);
    let kind = u16::from_ne_bytes([bytes[4], bytes[5]]);
    (kind, bytes.split_off(HEADER_BYTES))
}

fn send(mut socket: &File, family: u16, command: u8, attributes: &[Vec<u8>]) {
    let body = attributes.concat();
    let mut bytes = ((HEADER_BYTES + GENERIC_HEADER_BYTES + body.len()) as u32).to_ne_bytes().to_vec();
    bytes.extend(family.to_ne_bytes());
    bytes.extend(REQUEST_WITH_ANSWER.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([command, 1, 0, 0]);
    bytes.extend(body);
    socket.write_all(&bytes).unwrap();
}

/// Waits until the kernel says that it has done what it was asked.
fn succeed(socket: &File) {
    let (kind, body) = receive(socket);
    assert_eq!((kind, &body[..4]), (ERROR, &[0; 4][..]), "the kernel refuses it");
}

/// The number of the family `nbd`, and the mask of its group.
fn family(socket: &File) -> (u16, u32) {
    send(socket, CONTROL, GET_FAMILY, &[attribute(FAMILY_NAME, b"nbd\0")]);
    let (_, answer) = receive(socket);
    succeed(socket);
    let answer = attributes(&answer[GENERIC_HEADER_BYTES..]);
    let id = u16::from_ne_bytes(payload(&answer, FAMILY_ID).try_into().unwrap());
    let group = attributes(payload(&answer, GROUPS))[0].1;
    let group = u32::from_ne_bytes(payload(&attributes(group), GROUP_ID).try_into().unwrap());
    (id, 1 << (group - 1))
}

/// A connection to an export that is agreed upon; none if the server is away, or leaves meanwhile.
fn connect(port: u16) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(("10.0.2.2", port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.read_exact(&mut [0; 18])?;
    let name = b"kernel";
    let mut hello = 3u32.to_be_bytes().to_vec();
    hello.extend(OPTION_MAGIC);
    hello.extend(GO.to_be_bytes());
    hello.extend((name.len() as u32 + 6).to_be_bytes());
    hello.extend((name.len() as u32).to_be_bytes());
    hello.extend(name);
    hello.extend([0; 2]);
    stream.write_all(&hello)?;
    loop {
        let mut header = [0; 20];
        stream.read_exact(&mut header)?;
        let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!(header[..8], REPLY_MAGIC.to_be_bytes());
        stream.read_exact(&mut vec![0; word(16) as usize])?;
        match word(12) {
            ACK => break,
            kind => assert_eq!(kind >> 31, 0, "the server refuses the export: {kind:#x}"),
        }
    }
    stream.set_read_timeout(None)?;
    Ok(stream)
}

#[test]
#[ignore = "the guest runs it"]
fn inside_the_guest() {
    let port = std::env::var("port").unwrap().parse().unwrap();
    let asking = netlink(0);
    let (nbd, group) = family(&asking);
    let hearing = netlink(group);
    let device = attribute(INDEX, &0u32.to_ne_bytes());
    send(&asking, nbd, RECONFIGURE, &[device.clone(), attribute(DEAD_CONN_TIMEOUT, &DEAD_SECONDS.to_ne_bytes())]);
    succeed(&asking);
    std::fs::write("/tmp/kept", []).unwrap();
    loop {
        // The first byte of the body is the command.
        if receive(&hearing).1[0] != LINK_DEAD {
            continue;
        }
        // As `nbd-client -persist` would: again and again, with a pause while nobody listens.
        let stream = loop {
            match connect(port) {
                Ok(stream) => break stream,
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        };
        let item = attribute(SOCKET_ITEM, &attribute(SOCKET_DESCRIPTOR, &stream.as_raw_fd().to_ne_bytes()));
        send(&asking, nbd, RECONFIGURE, &[device.clone(), attribute(SOCKETS, &item)]);
        succeed(&asking);
        println!("KEEPER: a new connection");
    }
}
