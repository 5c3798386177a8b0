//! A TCP proxy in front of the socket of a server or registry. It counts the bytes that the server sends, and can hold them back.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use crate::world::PATIENCE;

#[derive(Default)]
struct State {
    sent: u64,
    /// Bytes after which it holds; `None`: it holds nothing.
    most: Option<u64>,
    held: bool,
}

type Shared = Arc<(Mutex<State>, Condvar)>;

pub struct Way {
    port: u16,
    shared: Shared,
}

impl Way {
    /// To the server that listens at `socket`, now or later.
    pub fn to(socket: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Shared::default();
        let (state, socket) = (Arc::clone(&shared), socket.to_path_buf());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                join(client.unwrap(), &socket, &state);
            }
        });
        Self { port, shared }
    }

    /// Host and port at which clients connect.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn uri(&self, export: &str) -> String {
        format!("nbd://{}/{export}", self.address())
    }

    /// Bytes that the server has sent.
    pub fn sent(&self) -> u64 {
        self.shared.0.lock().unwrap().sent
    }

    /// Lets so many more bytes pass and holds what follows.
    pub fn hold_after(&self, bytes: u64) {
        let mut state = self.shared.0.lock().unwrap();
        state.most = Some(state.sent + bytes);
        state.held = false;
    }

    /// Waits until something is held.
    pub fn wait_held(&self) {
        let begun = Instant::now();
        let mut state = self.shared.0.lock().unwrap();
        while !state.held {
            let left = PATIENCE.checked_sub(begun.elapsed()).expect("nothing was sent that had to be held");
            state = self.shared.1.wait_timeout(state, left).unwrap().0;
        }
    }

    pub fn open(&self) {
        let mut state = self.shared.0.lock().unwrap();
        (state.most, state.held) = (None, false);
        self.shared.1.notify_all();
    }
}

/// Joins a client with the server; without a server the client hears of it.
fn join(client: TcpStream, socket: &PathBuf, shared: &Shared) {
    let Ok(server) = UnixStream::connect(socket) else { return };
    let (mut up, mut down) = (server.try_clone().unwrap(), server);
    let (mut from, mut to) = (client.try_clone().unwrap(), client);
    std::thread::spawn(move || {
        // What ends a connection is between both of them.
        let _ = std::io::copy(&mut from, &mut up);
        let _ = up.shutdown(Shutdown::Both);
    });
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        let mut bytes = vec![0; 64 << 10];
        while let Ok(count @ 1..) = down.read(&mut bytes) {
            let mut state = shared.0.lock().unwrap();
            while state.most.is_some_and(|most| state.sent + count as u64 > most) {
                state.held = true;
                shared.1.notify_all();
                state = shared.1.wait(state).unwrap();
            }
            state.sent += count as u64;
            drop(state);
            if to.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}
