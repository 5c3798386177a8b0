//! Two hosts on one machine: network namespaces, each with a TUN device and a TCP of its own.
//!
//! The namespaces have no names: they, their devices and their settings are gone with the last thread, process and descriptor in
//! them, however this program ends. Threads and children of a thread that has entered one are in it too.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;

const DEVICE: &str = "link0";
const NETWORK: &str = "10.77.0.0/30";
/// So many packets may wait in the device: the link's own queue is where packets are dropped, not this one.
const DEVICE_PACKETS: usize = 20_000;

/// How the TCP of both hosts is set.
#[derive(Clone, Debug)]
pub struct Tcp {
    pub congestion: String,
    /// Most bytes of a socket's buffers; `None`: as the kernel has it.
    pub buffer_bytes_max: Option<u64>,
}

/// One host.
pub struct Place {
    namespace: File,
    tun: File,
}

/// Why nothing can be measured here.
pub fn obstacle() -> Option<String> {
    // SAFETY: takes no pointers.
    if unsafe { libc::geteuid() } != 0 {
        return Some("namespaces and TUN devices need root".into());
    }
    if let Err(error) = File::open("/dev/net/tun") {
        return Some(format!("/dev/net/tun cannot be opened: {error}"));
    }
    if Command::new("ip").arg("-V").output().is_err() {
        return Some("there is no `ip` program".into());
    }
    match std::thread::spawn(own_namespace).join() {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(format!("a network namespace cannot be made: {error}")),
        Err(_) => Some("a network namespace cannot be made".into()),
    }
}

/// Moves this thread into a new namespace, and answers its descriptor.
fn own_namespace() -> io::Result<File> {
    // SAFETY: takes no pointers; only this thread moves.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
        return Err(io::Error::last_os_error());
    }
    File::open("/proc/thread-self/ns/net")
}

impl Place {
    /// A host with this address (`10.77.0.1/30`).
    pub fn new(address: &str, mtu: usize, tcp: &Tcp) -> io::Result<Self> {
        std::thread::scope(|scope| {
            let made = scope.spawn(|| {
                let namespace = own_namespace()?;
                let tun = open_tun()?;
                let (mtu, packets) = (mtu.to_string(), DEVICE_PACKETS.to_string());
                ip(&["link", "set", "lo", "up"])?;
                // Else the kernel sends packets that nobody asked for. A kernel without IPv6 has nothing to switch off.
                let _ = std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
                ip(&["address", "add", address, "dev", DEVICE])?;
                ip(&["link", "set", DEVICE, "mtu", &mtu, "txqueuelen", &packets, "up"])?;
                // By the route, because a new namespace may choose only those kinds of control that its parent gave to everybody.
                let host = address.split_once('/').map_or(address, |(host, _)| host);
                ip(&["route", "replace", NETWORK, "dev", DEVICE, "scope", "link", "src", host, "congctl", &tcp.congestion])?;
                set_tcp(tcp)?;
                Ok(Self { namespace, tun })
            });
            made.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The device; a packet at a time, without waiting.
    pub fn tun(&self) -> &File {
        &self.tun
    }

    /// Moves the calling thread here for good, and with it the threads and children that it starts from now on.
    pub fn enter_for_good(&self) -> io::Result<()> {
        // SAFETY: takes no pointers; the descriptor is open.
        if unsafe { libc::setns(self.namespace.as_raw_fd(), libc::CLONE_NEWNET) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Does something here, in a thread of its own.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter_for_good().expect("the namespace was made by this process");
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Another handle.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { namespace: self.namespace.try_clone()?, tun: self.tun.try_clone()? })
    }
}

/// Makes the device in this thread's namespace.
fn open_tun() -> io::Result<File> {
    // SAFETY: the path is a C string.
    let fd = unsafe { libc::open(c"/dev/net/tun".as_ptr(), libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: nobody else has the new descriptor.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: plain numbers, for which zero is allowed.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(DEVICE.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the request is what this call reads and writes, and lives past it.
    if unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF as _, &mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd.into())
}

fn ip(arguments: &[&str]) -> io::Result<()> {
    let output = Command::new("ip").args(arguments).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim())))
}

/// Sets the TCP of this thread's namespace.
fn set_tcp(tcp: &Tcp) -> io::Result<()> {
    let set = |name: &str, value: &str| {
        let path = format!("/proc/sys/net/ipv4/{name}");
        std::fs::write(&path, value).map_err(|error| io::Error::other(format!("{path} = {value}: {error}")))
    };
    // Else a connection begins with what an earlier one has learnt about the link.
    set("tcp_no_metrics_save", "1")?;
    if let Some(bytes) = tcp.buffer_bytes_max {
        set("tcp_rmem", &format!("4096 131072 {bytes}"))?;
        set("tcp_wmem", &format!("4096 16384 {bytes}"))?;
    }
    Ok(())
}
