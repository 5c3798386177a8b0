//! Threads do not grow with sources. The counts are those of this process, so the tests run one after the other.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use parking_lot::Mutex;
use volfork::serve::{Listener, NbdServer, NbdServerOptions};
use volfork::source::{NbdOptions, NbdSource, Source, SourceErrorKind, SourceExt, UriSources};
use volfork::{Store, StoreOptions};

const PATIENCE: Duration = Duration::from_secs(60);
const SOURCES: usize = 300;
const BYTES: usize = 1 << 20;
/// Two for connections, one that starts others and looks after time, and those for calls of sources.
const THREADS_MAX: usize = 2 + 1 + 6;
/// The same bound with one more thread for each slow call.
const SLOW_THREADS_MAX: usize = THREADS_MAX + 18;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Threads of sources.
fn threads() -> usize {
    let names =
        std::fs::read_dir("/proc/self/task").unwrap().filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with("source")).count()
}

/// A store with a volume `v` and its snapshot `v@s`.
fn host(directory: &Path) -> Store {
    let store = Store::create(directory.join("store"), StoreOptions::default()).unwrap();
    let volume = store.create_volume("v", BYTES as u64).unwrap();
    volume.write_at(&vec![7; BYTES], 0).unwrap();
    volume.create_snapshot("s").unwrap();
    store
}

fn serve(store: &Store, socket: &Path) -> NbdServer {
    let listener = Listener::parse(&format!("unix:{}", socket.display())).unwrap();
    NbdServer::start(Arc::new(store.clone()), vec![listener], NbdServerOptions::default()).unwrap()
}

fn uri(export: &str, socket: &Path) -> String {
    format!("nbd+unix:///{export}?socket={}", socket.display())
}

/// Connections that are taken and never answered, until they are dropped.
fn silent(socket: &Path) -> Receiver<UnixStream> {
    let listener = UnixListener::bind(socket).unwrap();
    let (sender, taken) = channel();
    std::thread::spawn(move || while sender.send(listener.accept().unwrap().0).is_ok() {});
    taken
}

/// Reads some bytes of each source; answers the most threads that there were.
fn read_all(sources: &[Arc<NbdSource>]) -> usize {
    let read = |source: &Arc<NbdSource>| {
        let bytes = source.read_blocking(4096..8192).unwrap();
        assert_eq!(bytes, vec![7; 4096]);
        threads()
    };
    sources.iter().map(read).max().unwrap()
}

#[test]
fn many_sources_share_a_few_threads() {
    let _alone = ONE_AT_A_TIME.lock();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let store = host(directory.path());
    let server = serve(&store, &socket);
    // On a busy machine it takes long until each has connected again.
    let options = NbdOptions::default().with_give_up_after(PATIENCE);
    let open = |_| NbdSource::open(&uri("v@s", &socket), options.clone()).unwrap();
    let sources: Vec<_> = (0..SOURCES).map(open).collect();
    let most = read_all(&sources);
    assert!((2..=THREADS_MAX).contains(&most), "{most} threads serve {SOURCES} sources");
    // All lose their server, and find it again: hardly more threads connect than to one host at once.
    drop(server);
    let server = serve(&store, &socket);
    let most = read_all(&sources);
    assert!(most <= THREADS_MAX, "{most} threads connect {SOURCES} sources");
    assert!(sources.iter().all(|source| source.stats().reconnects > 0));
    for source in &sources {
        source.close();
        assert_eq!(source.read_blocking(0..4096).unwrap_err().kind, SourceErrorKind::Closed);
    }
    drop(server);
    store.close().unwrap();
}

#[test]
fn silent_hosts_hold_up_no_other_one() {
    let _alone = ONE_AT_A_TIME.lock();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let origin = host(directory.path());
    let server = serve(&origin, &at("socket"));
    let healthy: Vec<_> = (0..20).map(|_| NbdSource::open(&uri("v@s", &at("socket")), NbdOptions::default()).unwrap()).collect();

    let options = StoreOptions::default().with_sources(Arc::new(UriSources::default()));
    let store = Store::create(at("forks"), options).unwrap();
    let hosts: Vec<_> = (0..20).map(|number| silent(&at(&format!("silent-{number}")))).collect();
    let (most, forks) = std::thread::scope(|scope| {
        let fork = |number: usize, name: usize| {
            let (store, uri) = (store.clone(), uri("v@s", &at(&format!("silent-{number}"))));
            scope.spawn(move || store.fork(&uri, &format!("silent-{number}-{name}")))
        };
        let forks: Vec<_> = (0..20).flat_map(|number| [fork(number, 0), fork(number, 1)]).collect();
        // Each host has its turn.
        let taken: Vec<UnixStream> = hosts.iter().map(|host| host.recv_timeout(PATIENCE).unwrap()).collect();
        let mut most = threads();
        for _ in 0..5 {
            most = most.max(read_all(&healthy));
        }
        // In their turn, others connect as well.
        store.fork(&uri("v@s", &at("socket")), "healthy").unwrap();
        most = most.max(threads());
        let forks: Vec<_> = forks.into_iter().map(|fork| fork.join().unwrap()).collect();
        drop(taken);
        (most.max(threads()), forks)
    });
    assert!(forks.iter().all(Result::is_err), "a silent host was forked");
    assert!(most <= SLOW_THREADS_MAX, "{most} threads wait for silent hosts");
    store.close().unwrap();
    drop(server);
    origin.close().unwrap();
}
