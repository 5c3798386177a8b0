//! Requests as futures.
#![cfg(feature = "futures")]

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, mpsc};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use volfork::bytes::{Bytes, BytesMut};
use volfork::io::RingKind;
use volfork::volume::{Request, RequestFuture};
use volfork::{ErrorKind, Store, StoreOptions, Volume};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 400;

fn stores(dir: &std::path::Path) -> impl Iterator<Item = (Store, Volume)> {
    [RingKind::Uring, RingKind::Threads].into_iter().map(move |ring| {
        let store = Store::create(dir.join(format!("{ring:?}")), StoreOptions::default().with_ring(ring)).unwrap();
        let volume = store.create_volume("v", BLOCKS * BLOCK).unwrap();
        (store, volume)
    })
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn content(block: u64) -> Bytes {
    vec![u8::try_from(block % 251).unwrap() + 1; 4096].into()
}

#[test]
fn many_more_requests_than_the_depth_all_end() {
    let dir = tempfile::tempdir().unwrap();
    for (store, volume) in stores(dir.path()) {
        let queue = volume.async_queue(4).unwrap();
        let local = tokio::task::LocalSet::new();
        block_on(local.run_until(async {
            let spawn = |block: u64| {
                let queue = queue.clone();
                tokio::task::spawn_local(async move { queue.write(block * BLOCK, content(block)).await })
            };
            for task in (0..BLOCKS).map(spawn).collect::<Vec<_>>() {
                task.await.unwrap().unwrap();
            }
            queue.flush().await.unwrap();
            for block in 0..BLOCKS {
                assert_eq!(queue.read(block * BLOCK, 4096).await.unwrap(), content(block));
            }
            let buffers = queue.read_into(BLOCK, vec![BytesMut::zeroed(4096), BytesMut::zeroed(4096)]).await.unwrap();
            assert_eq!(buffers, [content(1), content(2)]);
            queue.discard(0, BLOCK).await.unwrap();
            assert_eq!(queue.read(0, 4096).await.unwrap(), vec![0; 4096]);
        }));
        drop(queue);
        store.close().unwrap();
    }
}

/// Polls once.
fn is_pending(future: &mut RequestFuture) -> bool {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop())).is_pending()
}

/// Tells of its wakes.
struct Teller(mpsc::Sender<char>, char);

impl Wake for Teller {
    fn wake(self: Arc<Self>) {
        let _ = self.0.send(self.1);
    }
}

/// Room in the queue that a woken future does not take is the next one's.
#[test]
fn a_future_dropped_after_its_wake_wakes_the_next() {
    let dir = tempfile::tempdir().unwrap();
    for (_store, volume) in stores(dir.path()) {
        let queue = volume.async_queue(1).unwrap();
        for _ in 0..20 {
            let (sender, woken) = mpsc::channel();
            let begin = |name, request| {
                let mut future = queue.request(request);
                let waker = Waker::from(Arc::new(Teller(sender.clone(), name)));
                let poll = Pin::new(&mut future).poll(&mut Context::from_waker(&waker));
                poll.is_pending().then_some(future)
            };
            // It waits for a worker, and the others for its place.
            let _first = begin('a', Request::Write { offset: 0, data: content(1), fua: true });
            let second = begin('b', Request::Flush);
            let _third = begin('c', Request::Flush);
            let until = |name| while woken.recv_timeout(Duration::from_secs(60)).expect("nobody is woken") != name {};
            if second.is_some() {
                until('b');
                drop(second);
                until('c');
            }
        }
    }
}

#[test]
fn futures_of_a_closed_store_end_with_an_error() {
    let dir = tempfile::tempdir().unwrap();
    for (store, volume) in stores(dir.path()) {
        let queue = volume.async_queue(2).unwrap();
        let mut writes: Vec<_> =
            (0..20).map(|block| queue.request(Request::Write { offset: block * BLOCK, data: content(block), fua: true })).collect();
        writes.retain_mut(is_pending);
        store.close().unwrap();
        block_on(async {
            for future in writes {
                let result = future.await.result;
                assert!(result.as_ref().is_ok_and(Bytes::is_empty) || result.is_err_and(|error| error.kind() == ErrorKind::Closed));
            }
            assert_eq!(queue.flush().await.unwrap_err().kind(), ErrorKind::Closed);
        });
    }
}

#[test]
fn a_snapshot_takes_reads_only() {
    let dir = tempfile::tempdir().unwrap();
    for (store, volume) in stores(dir.path()) {
        volume.write_at(&content(3), 0).unwrap();
        volume.create_snapshot("s").unwrap();
        let queue = store.snapshot("v", "s").unwrap().async_queue(2).unwrap();
        block_on(async {
            assert_eq!(queue.read(0, 4096).await.unwrap(), content(3));
            assert_eq!(queue.write(0, content(4)).await.unwrap_err().kind(), ErrorKind::ReadOnly);
        });
    }
}
