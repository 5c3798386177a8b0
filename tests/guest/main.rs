//! Disks of a running machine while their server is stopped, replaced and killed: one of the kernel's NBD client (`nbd.ko`), and one of
//! QEMU's. `fio` writes both of them and verifies what it wrote.
//!
//! The machine is Debian's kernel in QEMU, without acceleration. `tests/guest/packages` fetches both. Without them the test says that
//! it did not run; where `VOLFORK_GUEST` is set it fails.

mod archive;
#[allow(dead_code, reason = "the tests of the command line use all of it")]
#[path = "../cli/host.rs"]
mod host;
mod keeper;
mod machine;

use std::io::Write;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use host::{Host, Server, signal, wait};
use machine::Parts;
use rustix::io::{FdFlags, fcntl_setfd};

/// The sockets of a service, which its manager keeps: systemd does it in this way.
struct Sockets {
    tcp: TcpListener,
    unix: UnixListener,
}

impl Sockets {
    fn open(host: &Host) -> Self {
        let sockets = Self { tcp: TcpListener::bind("127.0.0.1:0").unwrap(), unix: UnixListener::bind(host.path("nbd.sock")).unwrap() };
        for socket in [sockets.tcp.as_fd(), sockets.unix.as_fd()] {
            fcntl_setfd(socket, FdFlags::empty()).unwrap();
        }
        sockets
    }

    /// A server with these sockets.
    fn serve(&self, host: &Host) -> Server {
        let served = host.command(&["--json", "serve"]);
        let activated =
            format!("export LISTEN_FDS=2 LISTEN_PID=$$; exec \"$0\" \"$@\" 3<&{} 4<&{}", self.tcp.as_raw_fd(), self.unix.as_raw_fd());
        let mut shell = Command::new("bash");
        shell.arg("-c").arg(activated).arg(served.get_program()).args(served.get_args()).stdin(Stdio::null());
        for (key, value) in served.get_envs() {
            match value {
                Some(value) => shell.env(key, value),
                None => shell.env_remove(key),
            };
        }
        host.served(shell)
    }
}

/// What the host does while the disks are written.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Restart,
    Replace,
    Kill,
}

use Deed::{Kill, Replace, Restart};

/// In the second phase no write completes before it is durable.
const PHASES: [&[Deed]; 2] = [&[Restart, Replace, Replace, Replace, Restart], &[Kill, Kill]];
const DEEDS: usize = PHASES[0].len() + PHASES[1].len();
/// Of a disk, as `init` writes it.
const PIECE_MIB: u64 = 4;

impl Deed {
    fn carry_out(self, host: &Host, sockets: &Sockets, server: Server) -> Server {
        match self {
            Self::Restart => {
                server.stop();
                sockets.serve(host)
            }
            Self::Replace => {
                let mut replaced = server;
                let next = host.serve(&["--replace"]);
                assert!(wait(&mut replaced.child).success());
                assert_eq!(next.uris, replaced.uris);
                next
            }
            Self::Kill => {
                let mut killed = server;
                signal(&killed.child, libc::SIGKILL);
                wait(&mut killed.child);
                sockets.serve(host)
            }
        }
    }
}

/// Verifies what the guest has written to a piece of a disk.
fn verify(host: &Host, volume: &str, piece: u64) {
    let mut fio = Command::new("fio");
    fio.args(["--name=verify", "--ioengine=nbd", "--rw=randwrite", "--bs=16k", "--verify=crc32c", "--verify_fatal=1", "--verify_only"]);
    fio.arg(format!("--uri=nbd+unix:///{volume}?socket={}", host.path("nbd.sock").display()));
    fio.args([format!("--offset={}m", piece * PIECE_MIB), format!("--size={PIECE_MIB}m"), format!("--randseed={}", piece + 1)]);
    let output = fio.stdin(Stdio::null()).current_dir(host.directory.path()).output().unwrap();
    assert!(output.status.success(), "piece {piece} of {volume}: {output:?}");
}

/// Tells it also where the output of tests is not shown.
fn tell(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[test]
fn disks_go_on_while_their_server_ends_and_comes_back() {
    let parts = match Parts::find() {
        Ok(parts) => parts,
        Err(missing) if std::env::var_os("VOLFORK_GUEST").is_none() => {
            return tell(&format!("\nNOT RUN: {missing}: run tests/guest/packages first"));
        }
        Err(missing) => panic!("{missing}: see tests/guest/packages"),
    };
    let host = Host::new();
    for volume in ["kernel", "virtio"] {
        host.ok(&["create", volume, "--size", "2G"]);
    }
    let sockets = Sockets::open(&host);
    let mut server = sockets.serve(&host);
    let mut machine = parts.boot(host.directory.path(), sockets.tcp.local_addr().unwrap().port(), &host.path("nbd.sock"));
    machine.await_line("BOOTED");
    for phase in PHASES {
        machine.say(&phase.len().to_string());
        for deed in phase {
            machine.await_line("ASK");
            server = deed.carry_out(&host, &sockets, server);
            machine.say("done");
        }
        machine.await_line("ASK");
        machine.say("done");
    }
    let pieces = machine.await_line("WROTE");
    machine.end();
    let pieces: Vec<u64> = pieces.split(' ').map(|count| count.parse().unwrap()).collect();
    for (volume, pieces) in ["kernel", "virtio"].into_iter().zip(pieces) {
        (0..pieces).for_each(|piece| verify(&host, volume, piece));
        tell(&format!("'{volume}': {} MiB went through {DEEDS} ends of their server", pieces * PIECE_MIB));
    }
    server.stop();
    host.ok(&["check"]);
    let scrubbed = host.json(&["scrub"]);
    assert_eq!(scrubbed["blocks_damaged"], 0, "{scrubbed}");
}
