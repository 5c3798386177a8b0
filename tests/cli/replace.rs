//! `serve --replace`: another process goes on with the sockets of the one that serves.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

use crate::host::{Host, until, wait};

const WRITE_BYTES: usize = 64 << 10;
/// Of `fcntl`: which signal tells that another process opens a file with a lease.
const F_SETSIG: i32 = 10;

#[test]
fn a_device_writes_on_while_its_server_is_replaced() {
    const WRITES: usize = 24;
    let host = Host::new();
    host.ok(&["create", "v", "--size", "16M"]);
    let mut server = host.serve(&[]);
    let socket = host.store().join("nbd.sock");
    let device = format!("driver=nbd,server.type=unix,server.path={},export=v,reconnect-delay=60", socket.display());
    let qemu = Command::new("stdbuf")
        .args(["-i0", "-oL", "qemu-io", "--image-opts", &device])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut qemu = qemu.expect("stdbuf and qemu-io run");
    let (mut commands, lines) = (qemu.stdin.take().unwrap(), BufReader::new(qemu.stdout.take().unwrap()).lines());
    let mut lines = lines.map_while(Result::ok).inspect(|line| assert!(!line.contains("failed"), "{line}"));
    let mut expected = Vec::new();
    for (number, seed) in (1..=4).enumerate() {
        for write in 0..WRITES {
            writeln!(commands, "aio_write -P {seed} {} {WRITE_BYTES}", number * WRITES * WRITE_BYTES + write * WRITE_BYTES).unwrap();
        }
        expected.resize(expected.len() + WRITES * WRITE_BYTES, seed);
        let replaced = std::mem::replace(&mut server, host.serve(&["--replace"]));
        writeln!(commands, "aio_flush\nflush").unwrap();
        assert_eq!(server.uris, replaced.uris);
        let mut replaced = replaced;
        assert!(wait(&mut replaced.child).success());
        assert_eq!(lines.by_ref().filter(|line| line.contains("wrote")).take(WRITES).count(), WRITES);
    }
    drop(commands);
    lines.for_each(drop);
    assert!(qemu.wait().unwrap().success());
    server.stop();
    assert!(!socket.exists(), "the last server removes the path");
    assert!(host.bytes("v")[..expected.len()] == expected);
}

#[test]
fn no_client_is_refused_while_a_server_is_replaced() {
    let host = Host::new();
    host.ok(&["create", "v", "--size", "1M"]);
    let socket = host.store().join("nbd.sock");
    let first = host.serve(&["--listen", &format!("unix:{}", socket.display()), "--listen", "127.0.0.1:0"]);
    let address = first.uris[1].strip_prefix("nbd://").unwrap().to_owned();
    let (connected, over) = (std::sync::Barrier::new(2), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let clients = scope.spawn(|| {
            let mut count = 0;
            while !over.load(Ordering::SeqCst) {
                // Each leaves at once, so that no queue is filled.
                UnixStream::connect(&socket).unwrap();
                TcpStream::connect(&address).unwrap();
                count += 1;
                if count == 1 {
                    connected.wait();
                }
            }
            count
        });
        connected.wait();
        // Addresses are not taken again.
        let second = host.serve(&["--replace", "--listen", "127.0.0.1:0"]);
        assert_eq!(second.uris, first.uris);
        let mut first = first;
        assert!(wait(&mut first.child).success());
        over.store(true, Ordering::SeqCst);
        assert!(clients.join().unwrap() > 0);
        assert_eq!(host.volumes(), ["v"]);
        second.stop();
    });
}

#[test]
fn without_a_server_replace_serves_as_usual() {
    let host = Host::new();
    let server = host.serve(&["--replace", "--listen", "127.0.0.1:0"]);
    assert!(server.uris[0].starts_with("nbd://127.0.0.1:"));
    assert_eq!(host.kind(&["serve"]), "locked");
    server.stop();
    // Longer than the address of a socket.
    let path = host.path(&"long".repeat(50));
    let mut first = host.serve(&["--replace", "--listen", &format!("unix:{}", path.display())]);
    let second = host.serve(&["--replace"]);
    assert!(wait(&mut first.child).success() && path.exists());
    assert_eq!(second.uris, first.uris);
    second.stop();
    assert!(!path.exists());
}

#[test]
fn a_server_that_is_still_opening_is_replaced() {
    let host = Host::new();
    host.ok(&["create", "v", "--size", "1M"]);
    // A process that opens a file on which another one has a lease waits until the lease is given back.
    let superblock = OpenOptions::new().read(true).write(true).open(host.store().join("superblock")).unwrap();
    let lease = |command, argument: i32| {
        // SAFETY: these commands take no pointers, and the descriptor is open.
        let done = unsafe { libc::fcntl(superblock.as_raw_fd(), command, argument) };
        assert!(done >= 0, "{}", std::io::Error::last_os_error());
        done
    };
    // The signal that tells of the other process is one that does nothing.
    lease(F_SETSIG, libc::SIGURG);
    lease(libc::F_SETLEASE, libc::F_WRLCK);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| host.serve(&[]));
        until("the first server opens the store", || lease(libc::F_GETLEASE, 0) != libc::F_WRLCK);

        let lock = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
        inotify::add_watch(&lock, host.store().join("lock"), inotify::WatchFlags::CLOSE).unwrap();
        let second = scope.spawn(|| host.serve(&["--replace"]));
        let patience = Timespec { tv_sec: 60, tv_nsec: 0 };
        let met = poll(&mut [PollFd::new(&lock, PollFlags::IN)], Some(&patience)).unwrap();
        // Before the assertion, so that a failure does not leave the servers waiting.
        lease(libc::F_SETLEASE, libc::F_UNLCK);
        assert_eq!(met, 1, "the second server does not meet the lock of the first");

        let (mut first, second) = (first.join().unwrap(), second.join().unwrap());
        assert!(wait(&mut first.child).success());
        assert_eq!(second.uris, first.uris);
        assert_eq!(host.volumes(), ["v"]);
        second.stop();
    });
}
