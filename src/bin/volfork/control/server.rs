//! The owner's end of the control socket: one thread for each client, a bounded number of them.

use std::fs::File;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use volfork::ErrorKind;

use super::message::Message;
use super::{REQUEST_BYTES_MAX, address, line};
use crate::failure::{Failure, Result};
use crate::request::Request;
use crate::request::progress::{Progress, Watcher};
use crate::request::response::Response;

/// Most clients at once; further ones get an error.
const CLIENTS_MAX: usize = 64;
/// Time for a client to send its request, or to take its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time for running requests to end when the server stops.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// How often a client hears that the server lives.
const PULSE_EVERY: Duration = Duration::from_secs(1);
/// Least time between two lines of progress.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// What carries out requests: [`execute`](crate::act::execution::execute) on the owner's store.
type Execute = dyn Fn(Request, Option<File>, &mut dyn Watcher) -> Result<Response> + Send + Sync;

struct Shared {
    execute: Box<Execute>,
    stopping: AtomicBool,
    /// Clients that wait for an answer. They are told from time to time that the server lives.
    sessions: Mutex<Vec<Weak<Session>>>,
    /// The last client has gone: no pulse is needed any more.
    over: (Mutex<bool>, Condvar),
    clients: Mutex<usize>,
    client_left: Condvar,
}

/// The way to one client. Lines of several threads do not mix.
struct Session {
    stream: UnixStream,
    sending: Mutex<()>,
}

impl Session {
    /// Sends a short line if that needs no wait; `false` if the client has gone.
    fn say(&self, message: &Message) -> bool {
        let Ok(mut text) = serde_json::to_vec(message) else { return true };
        text.push(b'\n');
        // A message of another thread is a sign of life, too.
        let Ok(_sending) = self.sending.try_lock() else { return true };
        match rustix::net::send(&self.stream, &text, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            // A client that was stopped for a while misses it; it must not stop the work.
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => true,
            Ok(sent) => sent == text.len(),
            Err(_) => false,
        }
    }
}

/// Listens until it is stopped.
pub struct ControlServer {
    shared: Arc<Shared>,
    listener: Arc<UnixListener>,
    directory: PathBuf,
    threads: [JoinHandle<()>; 2],
}

impl ControlServer {
    /// Listens in `directory`, that of the store which `execute` works on.
    pub fn start<E>(directory: &Path, execute: E) -> Result<Self>
    where
        E: Fn(Request, Option<File>, &mut dyn Watcher) -> Result<Response> + Send + Sync + 'static,
    {
        let listener = address::bind(directory);
        let listener = listener.map_err(|error| Failure::io(format!("listen on {}/control.sock", directory.display()), error))?;
        Self::listen(directory, listener, execute)
    }

    fn listen<E>(directory: &Path, listener: UnixListener, execute: E) -> Result<Self>
    where
        E: Fn(Request, Option<File>, &mut dyn Watcher) -> Result<Response> + Send + Sync + 'static,
    {
        let listener = Arc::new(listener);
        let shared = Arc::new(Shared {
            execute: Box::new(execute),
            stopping: AtomicBool::new(false),
            sessions: Mutex::default(),
            over: Default::default(),
            clients: Mutex::new(0),
            client_left: Condvar::new(),
        });
        let started = |error| Failure::io("start a thread", error);
        let pulse = std::thread::Builder::new().name("control-pulse".into()).spawn({
            let shared = shared.clone();
            move || pulse(&shared)
        });
        let pulse = pulse.map_err(started)?;
        let thread = std::thread::Builder::new().name("control".into()).spawn({
            let (shared, listener) = (shared.clone(), listener.clone());
            move || accept(&shared, &listener)
        });
        let thread = thread.inspect_err(|_| end_pulse(&shared)).map_err(started)?;
        Ok(Self { shared, listener, directory: directory.to_path_buf(), threads: [thread, pulse] })
    }

    /// Takes no further clients, ends long requests and waits for the others.
    pub fn stop(self) {
        address::unbind(&self.directory);
        self.shared.stopping.store(true, Ordering::SeqCst);
        // A listener that is shut down wakes `accept` with an error.
        let _ = rustix::net::shutdown(&*self.listener, Shutdown::Both);
        let [thread, pulse] = self.threads;
        let _ = thread.join();
        let clients = self.shared.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = self.shared.client_left.wait_timeout_while(clients, STOP_PATIENCE, |clients| *clients > 0);
        end_pulse(&self.shared);
        let _ = pulse.join();
    }
}

/// Tells those who wait that the server lives.
fn pulse(shared: &Shared) {
    let (over, ended) = &shared.over;
    let mut is_over = over.lock().unwrap_or_else(PoisonError::into_inner);
    while !*is_over {
        (is_over, _) = ended.wait_timeout_while(is_over, PULSE_EVERY, |over| !*over).unwrap_or_else(PoisonError::into_inner);
        shared.sessions.lock().unwrap_or_else(PoisonError::into_inner).retain(|session| match session.upgrade() {
            // Whether the client has gone shows where it matters.
            Some(session) => {
                session.say(&Message::Alive);
                true
            }
            None => false,
        });
    }
}

fn end_pulse(shared: &Shared) {
    *shared.over.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
    shared.over.1.notify_all();
}

fn accept(shared: &Arc<Shared>, listener: &UnixListener) {
    // Kept for telling a client that there is no descriptor left for it.
    let mut spare = File::open("/dev/null").ok();
    loop {
        let accepted = listener.accept();
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        match accepted {
            Ok((stream, _)) => welcome(shared, stream),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) && spare.take().is_some() => {
                if let Ok((stream, _)) = listener.accept() {
                    refuse(stream, Failure::io("the process that serves the store cannot take the command", error));
                }
                spare = File::open("/dev/null").ok();
            }
            // Out of memory, or the client left: others wait in the queue meanwhile.
            Err(_) => {
                std::thread::sleep(Duration::from_millis(50));
                spare = spare.or_else(|| File::open("/dev/null").ok());
            }
        }
    }
}

/// One more client while it lives.
struct Seat(Arc<Shared>);

impl Seat {
    fn take(shared: &Arc<Shared>) -> Option<Self> {
        let mut clients = shared.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if *clients >= CLIENTS_MAX {
            return None;
        }
        *clients += 1;
        Some(Self(shared.clone()))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        *self.0.clients.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.client_left.notify_all();
    }
}

fn welcome(shared: &Arc<Shared>, stream: UnixStream) {
    let refused = match (Seat::take(shared), may_ask(&stream)) {
        (Some(seat), true) => {
            // A thread that cannot be started drops the stream, which the client sees.
            let _ = std::thread::Builder::new().name("control-client".into()).spawn(move || serve(&seat.0, stream));
            return;
        }
        (_, false) => Failure::new(ErrorKind::ReadOnly, "only the user that serves the store, and root, may do this"),
        (None, true) => Failure::new(ErrorKind::Busy, format!("{CLIENTS_MAX} commands are running on this store: try again later")),
    };
    refuse(stream, refused);
}

fn refuse(stream: UnixStream, failure: Failure) {
    answer(&Session { stream, sending: Mutex::default() }, &Message::Failed(failure));
}

/// The socket's mode keeps others out; this keeps them out when the mode was changed.
fn may_ask(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid();
    socket_peercred(stream).is_ok_and(|peer| peer.uid == own || peer.uid.is_root())
}

fn serve(shared: &Shared, stream: UnixStream) {
    let session = Arc::new(Session { stream, sending: Mutex::default() });
    shared.sessions.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&session));
    let message = match carry_out(shared, &session) {
        Ok(message) => message,
        Err(failure) => Message::Failed(failure),
    };
    answer(&session, &message);
}

fn carry_out(shared: &Shared, session: &Session) -> Result<Message> {
    let (text, file) = line::receive(&session.stream, REQUEST_BYTES_MAX, PATIENCE)
        .map_err(|error| Failure::new(ErrorKind::InvalidInput, format!("the request is not one line in time: {error}")))?;
    let request: Request = serde_json::from_slice(&text).map_err(|error| {
        Failure::new(ErrorKind::InvalidInput, format!("the request is not understood; use the volfork that serves the store: {error}"))
    })?;
    if request.needs_file() != file.is_some() {
        return Err(Failure::new(ErrorKind::InvalidInput, "a descriptor belongs to import and export, and to nothing else"));
    }
    if has_hung_up(&session.stream) {
        return Err(Failure::interrupted("the client has gone before its request was begun"));
    }
    let mut watcher = RemoteWatcher { shared, session, told: None };
    (shared.execute)(request, file, &mut watcher).map(Message::Done)
}

/// Whether a client has given up: it was told then that nothing would be begun.
fn has_hung_up(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::HUP)
}

fn answer(session: &Session, message: &Message) {
    let _sending = session.sending.lock().unwrap_or_else(PoisonError::into_inner);
    let mut stream = &session.stream;
    // The client has gone, but its request is done.
    let _ = stream.set_write_timeout(Some(PATIENCE));
    if let Ok(mut text) = serde_json::to_vec(message) {
        text.push(b'\n');
        let _ = io::Write::write_all(&mut stream, &text);
    }
}

/// Sends progress to the client, and notices when it has gone.
struct RemoteWatcher<'a> {
    shared: &'a Shared,
    session: &'a Session,
    told: Option<Instant>,
}

impl RemoteWatcher<'_> {
    /// A client sends nothing behind its request, so anything but "nothing yet" is the end.
    fn is_gone(&self) -> bool {
        let peeked = rustix::net::recv(&self.session.stream, &mut [0u8; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        !matches!(peeked, Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR))
    }
}

impl Watcher for RemoteWatcher<'_> {
    fn tell(&mut self, progress: Progress) -> Result<()> {
        if self.shared.stopping.load(Ordering::SeqCst) {
            return Err(Failure::interrupted("the process that serves the store is stopping; what was begun is undone"));
        }
        if self.told.is_some_and(|told| told.elapsed() < TELL_EVERY) {
            return Ok(());
        }
        self.told = Some(Instant::now());
        if self.is_gone() {
            return Err(Failure::interrupted("the client has gone; what was begun is undone"));
        }
        match self.session.say(&Message::Progress(progress)) {
            true => Ok(()),
            false => Err(Failure::interrupted("the client has gone; what was begun is undone")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Read, Write};

    use super::super::{MESSAGE_BYTES_MAX, ask, connect};
    use super::*;
    use crate::request::response::Done;
    use crate::request::target::Target;

    struct Heard(Vec<u64>);

    impl Watcher for Heard {
        fn tell(&mut self, progress: Progress) -> Result<()> {
            self.0.push(progress.done);
            Ok(())
        }
    }

    /// Imports answer the text of the descriptor as a failure; exports run until they are ended; everything else is an empty list.
    fn pretend(request: Request, file: Option<File>, watcher: &mut dyn Watcher) -> Result<Response> {
        match request {
            Request::Import { .. } => {
                let mut text = String::new();
                watcher.tell(Progress::bytes(7, None))?;
                file.unwrap().read_to_string(&mut text).unwrap();
                Err(Failure::new(ErrorKind::Exists, text))
            }
            Request::Export { .. } => loop {
                if let Err(failure) = watcher.tell(Progress::bytes(1, Some(2))) {
                    file.unwrap().write_all(failure.message.as_bytes()).unwrap();
                    return Err(failure);
                }
                std::thread::sleep(Duration::from_millis(5));
            },
            _ => Ok(Response::Volumes(Vec::new())),
        }
    }

    fn next_message(reader: &mut impl io::BufRead) -> Message {
        serde_json::from_slice(&line::next(reader, MESSAGE_BYTES_MAX).unwrap()).unwrap()
    }

    #[test]
    fn work_that_tells_nothing_gives_signs_of_life() {
        let directory = tempfile::tempdir().unwrap();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let ended = Mutex::new(ended);
        let silent = move |_: Request, _: Option<File>, _: &mut dyn Watcher| {
            ended.lock().unwrap().recv().unwrap();
            Ok(Response::Volumes(Vec::new()))
        };
        let server = ControlServer::start(directory.path(), silent).unwrap();
        let mut stream = connect(directory.path()).unwrap().unwrap();
        stream.write_all(b"\"list\"\n").unwrap();
        let mut reader = BufReader::new(&stream);
        for _ in 0..2 {
            assert!(matches!(next_message(&mut reader), Message::Alive));
        }
        end.send(()).unwrap();
        while let Message::Alive = next_message(&mut reader) {}
        server.stop();
    }

    #[test]
    fn a_request_whose_client_has_given_up_is_not_begun() {
        let directory = tempfile::tempdir().unwrap();
        let (tell, told) = std::sync::mpsc::channel::<Request>();
        let tell = Mutex::new(tell);
        let note = move |request: Request, _: Option<File>, _: &mut dyn Watcher| {
            tell.lock().unwrap().send(request).unwrap();
            Ok(Response::Volumes(Vec::new()))
        };
        // As if the server had been stopped: both clients are in its queue, and the first one has gone.
        let listener = address::bind(directory.path()).unwrap();
        let send = |request: Request| {
            let stream = connect(directory.path()).unwrap().unwrap();
            line::send(&stream, &serde_json::to_vec(&request).unwrap(), None).unwrap();
            stream
        };
        drop(send(Request::Show { name: "gone".into() }));
        let waiting = send(Request::List);
        let server = ControlServer::listen(directory.path(), listener, note).unwrap();
        assert!(matches!(next_message(&mut BufReader::new(&waiting)), Message::Done(_)));
        server.stop();
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [Request::List]);
    }

    fn export() -> Request {
        Request::Export { target: Target { volume: "v".into(), snapshot: None } }
    }

    fn raw_answer(directory: &Path, bytes: &[u8]) -> Message {
        let mut stream = connect(directory).unwrap().unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        serde_json::from_slice(&line::next(&mut BufReader::new(stream), MESSAGE_BYTES_MAX).unwrap()).unwrap()
    }

    #[test]
    fn requests_are_answered_with_progress_descriptors_and_failures() {
        let directory = tempfile::tempdir().unwrap();
        let server = ControlServer::start(directory.path(), pretend).unwrap();
        let mut heard = Heard(Vec::new());
        let stream = connect(directory.path()).unwrap().unwrap();
        assert!(matches!(ask(&stream, &Request::List, None, &mut heard), Ok(Response::Volumes(list)) if list.is_empty()));

        let (reader, mut writer) = io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(reader));
        writer.write_all(b"bytes of the client").unwrap();
        drop(writer);
        let stream = connect(directory.path()).unwrap().unwrap();
        let failure = ask(&stream, &Request::Import { name: "v".into(), raw: false, force: false }, Some(&file), &mut heard).unwrap_err();
        assert!(failure.is(ErrorKind::Exists) && failure.message == "bytes of the client", "{failure:?}");
        assert_eq!(heard.0, [7]);
        server.stop();
        assert!(connect(directory.path()).unwrap().is_none());
    }

    #[test]
    fn hostile_requests_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let server = ControlServer::start(directory.path(), pretend).unwrap();
        let long = [b'['; REQUEST_BYTES_MAX + 1];
        let deep = [&[b'['; 60_000][..], b"\n"].concat();
        for bytes in [
            &b"\n"[..],
            b"{}\n",
            b"{\"unknown\":{}}\n",
            b"{\"show\":{\"name\":1}}\n",
            b"\xff\xfe\n",
            b"\"list\"\nmore",
            b"cut",
            &long,
            &deep,
        ] {
            match raw_answer(directory.path(), bytes) {
                Message::Failed(failure) => assert!(failure.is(ErrorKind::InvalidInput), "{failure:?}"),
                other => panic!("{other:?}"),
            }
        }
        // A request that needs a descriptor came without one.
        assert!(matches!(raw_answer(directory.path(), b"{\"import\":{\"name\":\"v\",\"raw\":true}}\n"), Message::Failed(_)));
        assert!(matches!(raw_answer(directory.path(), b"\"list\"\n"), Message::Done(_)));
        server.stop();
    }

    #[test]
    fn a_client_that_leaves_and_a_server_that_stops_end_the_work() {
        let directory = tempfile::tempdir().unwrap();
        let server = ControlServer::start(directory.path(), pretend).unwrap();
        let begin = || {
            let (mut reader, writer) = io::pipe().unwrap();
            let stream = connect(directory.path()).unwrap().unwrap();
            line::send(&stream, &serde_json::to_vec(&export()).unwrap(), Some(&File::from(std::os::fd::OwnedFd::from(writer)))).unwrap();
            let answered = stream.try_clone().unwrap();
            line::next(&mut BufReader::new(answered), MESSAGE_BYTES_MAX).unwrap();
            (stream, move || {
                let mut text = String::new();
                reader.read_to_string(&mut text).unwrap();
                text
            })
        };
        let (stream, mut ended) = begin();
        drop(stream);
        assert!(ended().contains("client has gone"));
        let (_stream, mut ended) = begin();
        server.stop();
        assert!(ended().contains("stopping"));
    }

    #[test]
    fn too_many_clients_are_told_so() {
        let directory = tempfile::tempdir().unwrap();
        let server = ControlServer::start(directory.path(), pretend).unwrap();
        let idle: Vec<_> = (0..CLIENTS_MAX).map(|_| connect(directory.path()).unwrap().unwrap()).collect();
        let stream = connect(directory.path()).unwrap().unwrap();
        let mut reader = BufReader::new(stream);
        let message: Message = serde_json::from_slice(&line::next(&mut reader, MESSAGE_BYTES_MAX).unwrap()).unwrap();
        assert!(matches!(message, Message::Failed(failure) if failure.is(ErrorKind::Busy)));
        drop(idle);
        server.stop();
    }

    #[test]
    fn every_message_survives_the_wire() {
        for request in [Request::List, export(), Request::Scrub { name: None }] {
            let text = serde_json::to_string(&request).unwrap();
            assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request, "{text}");
        }
        assert_eq!(serde_json::to_string(&Done::Forked).unwrap(), "\"forked\"");
    }
}
