//! Compares the engine with a raw file in the same run.
//!
//! `cargo bench --bench engine` prints times; each group holds what is compared. `VOLFORK_BENCH_DIR` says where the files are
//! (default: below `target`, so that they are on a disk and not in memory), `VOLFORK_BENCH_MIB` how large they are (default 1024).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime};
use volfork::io::{AlignedBuffer, Disk, DiskFile, DiskFileExt, IoMode, Op, OpenMode, Ring, SystemDisk};
use volfork::source::UriSources;
use volfork::volume::Request;
use volfork::{Store, StoreOptions, Volume};

const BLOCK: u64 = 4096;
const DEPTH: usize = 32;

fn test_mode() -> bool {
    std::env::args().any(|argument| argument == "--test")
}

fn file_bytes() -> u64 {
    let mib = std::env::var("VOLFORK_BENCH_MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(1024);
    (if test_mode() { 8 } else { mib }) << 20
}

fn directory() -> tempfile::TempDir {
    let base = std::env::var_os("VOLFORK_BENCH_DIR").map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    tempfile::tempdir_in(base).expect("a directory for the files")
}

/// Block numbers in a fixed pseudo-random order.
struct Blocks(u64);

impl Blocks {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % below
    }
}

fn options(io_mode: IoMode) -> StoreOptions {
    StoreOptions::default().with_io_mode(io_mode).with_sources(Arc::new(UriSources::default()))
}

fn fill(write: &mut dyn FnMut(&[u8], u64), bytes: u64) {
    let mut chunk = vec![0; 1 << 20];
    let mut random = Blocks(7);
    for start in (0..bytes).step_by(1 << 20) {
        chunk.chunks_mut(8).for_each(|part| part.copy_from_slice(&random.next(u64::MAX).to_le_bytes()));
        write(&chunk, start);
    }
}

fn filled_volume(store: &Store, name: &str, bytes: u64) -> Volume {
    let volume = store.create_volume(name, bytes).expect("a volume");
    fill(&mut |data, offset| volume.write_at(data, offset).expect("a write"), bytes);
    volume.flush().expect("a flush");
    volume
}

fn raw_file(path: &Path, mode: IoMode, bytes: u64) -> Arc<dyn DiskFile> {
    let file = SystemDisk::new().open(path, OpenMode::Create, mode).expect("a file");
    let mut aligned = AlignedBuffer::zeroed(1 << 20);
    fill(
        &mut |data, offset| {
            aligned.copy_from_slice(data);
            file.write_all_at(&aligned, offset).expect("a write");
        },
        bytes,
    );
    file.sync_data().expect("a sync");
    file
}

/// Random transfers, each of `size` bytes.
#[derive(Clone, Copy)]
struct Transfers {
    write: bool,
    size: u64,
}

/// Keeps `DEPTH` random transfers of a raw file under way until `count` have ended.
fn raw_transfers(file: &Arc<dyn DiskFile>, bytes: u64, count: u64, Transfers { write, size }: Transfers) -> Duration {
    let mut ring = Ring::new(DEPTH as u32, None).expect("a ring");
    let (mut random, mut started, mut ended, mut done) = (Blocks(1), 0, 0, Vec::new());
    let data = AlignedBuffer::zeroed(size as usize).into_bytes();
    let begin = Instant::now();
    while ended < count {
        while ring.in_flight() < DEPTH && started < count {
            let (file, offset) = (Arc::clone(file), random.next(bytes / size) * size);
            ring.push(
                started,
                match write {
                    true => Op::Write { file, data: data.clone(), offset },
                    false => Op::Read { file, buffer: AlignedBuffer::new(size as usize).into(), offset },
                },
            );
            started += 1;
        }
        ring.wait(&mut done, None).expect("the ring");
        ended += done.len() as u64;
        done.drain(..).for_each(|done| done.result.expect("a transfer"));
    }
    begin.elapsed()
}

/// The same through a volume's queue.
fn queue_transfers(volume: &Volume, count: u64, Transfers { write, size }: Transfers) -> Duration {
    let bytes = volume.size_bytes();
    let mut queue = volume.queue(DEPTH as u32).expect("a queue");
    let (mut random, mut started, mut ended, mut completions) = (Blocks(1), 0, 0, Vec::new());
    let data: Bytes = AlignedBuffer::zeroed(size as usize).into_bytes();
    let begin = Instant::now();
    while ended < count {
        while queue.in_flight() < DEPTH && started < count {
            let offset = random.next(bytes / size) * size;
            let request = match write {
                true => Request::Write { offset, data: data.clone(), fua: false },
                false => Request::Read { offset, bytes: size as u32 },
            };
            queue.submit(started, request).expect("a request");
            started += 1;
        }
        queue.wait(&mut completions, None).expect("the queue");
        ended += completions.len() as u64;
        completions.drain(..).for_each(|completion| drop(completion.result.expect("a completion")));
    }
    begin.elapsed()
}

fn random_transfers(criterion: &mut Criterion) {
    let bytes = file_bytes();
    for (mode, name) in [(IoMode::Buffered, "buffered"), (IoMode::Direct, "direct")] {
        let dir = directory();
        let store = Store::create(dir.path().join("store"), options(mode)).expect("a store");
        let volume = filled_volume(&store, "a", bytes);
        let file = raw_file(&dir.path().join("raw"), mode, bytes);
        for (write, size) in [(false, BLOCK), (true, BLOCK), (false, 64 * BLOCK), (true, 64 * BLOCK)] {
            let transfers = Transfers { write, size };
            // Marks are made once an extent; here every extent has one before the clock runs.
            queue_transfers(&volume, bytes / transfers.size / 16, transfers);
            let (what, kib) = (if transfers.write { "write" } else { "read" }, transfers.size >> 10);
            let mut group = criterion.benchmark_group(format!("random {kib} KiB {what}, depth {DEPTH}, {name}"));
            group.throughput(Throughput::Elements(1));
            for round in ["A", "B"] {
                group.bench_function(format!("raw file {round}"), |bencher| {
                    bencher.iter_custom(|count| raw_transfers(&file, bytes, count, transfers))
                });
                group.bench_function(format!("volume {round}"), |bencher| {
                    bencher.iter_custom(|count| queue_transfers(&volume, count, transfers))
                });
            }
            group.finish();
        }
    }
}

/// Cached blocking reads of one block from volumes with chains of 1, 16 and 1,000 layers, each with a block of its own; and
/// from as many raw files that share the blocks in the same way, which shows what a thousand files cost without an engine.
fn reads_by_depth(criterion: &mut Criterion) {
    let blocks = file_bytes().min(64 << 20) / BLOCK;
    let dir = directory();
    let store = Store::create(dir.path().join("store"), options(IoMode::Buffered)).expect("a store");
    let mut group = criterion.benchmark_group("cached 4 KiB read by depth of chain");
    group.throughput(Throughput::Elements(1));
    let mut random = Blocks(3);
    let deepest = if test_mode() { 20 } else { 1000 };
    let chains: Vec<_> = [1, 16, deepest]
        .into_iter()
        .map(|depth| {
            let volume = filled_volume(&store, &format!("depth{depth}"), blocks * BLOCK);
            let base = raw_file(&dir.path().join(format!("raw{depth}")), IoMode::Buffered, blocks * BLOCK);
            let mut owners = vec![base; blocks as usize];
            for layer in 1..depth {
                let (block, data) = (random.next(blocks), [layer as u8; BLOCK as usize]);
                volume.create_snapshot(&format!("s{layer}")).expect("a snapshot");
                volume.write_at(&data, block * BLOCK).expect("a write");
                let path = dir.path().join(format!("raw{depth}.{layer}"));
                let file = SystemDisk::new().open(&path, OpenMode::Create, IoMode::Buffered).expect("a file");
                file.write_all_at(&data, block * BLOCK).expect("a write");
                owners[block as usize] = file;
            }
            (depth, volume, owners)
        })
        .collect();
    let mut buffer = [0; BLOCK as usize];
    for round in ["A", "B"] {
        for (depth, volume, owners) in &chains {
            group.bench_function(format!("raw files, {depth} {round}"), |bencher| {
                bencher.iter(|| {
                    let block = random.next(blocks);
                    owners[block as usize].read_at(&mut buffer, block * BLOCK)
                });
            });
            group.bench_function(format!("volume, {depth} {round}"), |bencher| {
                bencher.iter(|| volume.read_at(&mut buffer, random.next(blocks) * BLOCK));
            });
        }
    }
    group.finish();
}

fn append(group: &mut BenchmarkGroup<'_, WallTime>, dir: &Path, name: &str) {
    let file = SystemDisk::new().open(&dir.join("append"), OpenMode::Create, IoMode::Buffered).expect("a file");
    let mut offset = 0;
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            file.write_all_at(&[1; BLOCK as usize], offset).and_then(|()| file.sync_data()).expect("a write");
            offset += BLOCK;
        });
    });
}

/// A durable fork of volumes of several sizes and depths, and a flushed write, against a 4 KiB append with `fdatasync`.
fn barriers(criterion: &mut Criterion) {
    let dir = directory();
    let store = Store::create(dir.path().join("store"), options(IoMode::Buffered)).expect("a store");
    let small = filled_volume(&store, "small", 4 << 20);
    let large = filled_volume(&store, "large", file_bytes());
    let deep = filled_volume(&store, "deep", 4 << 20);
    let layers = if test_mode() { 10 } else { 1000 };
    for layer in 0..layers {
        deep.write_at(&[1; BLOCK as usize], 0).and_then(|()| deep.create_snapshot(&format!("s{layer}"))).expect("a snapshot");
    }
    let mut group = criterion.benchmark_group("barriers");
    let mut number = 0;
    for round in ["A", "B"] {
        append(&mut group, dir.path(), &format!("append 4 KiB and fdatasync {round}"));
        for volume in [&small, &large, &deep] {
            group.bench_function(format!("fork {} {round}", volume.name()), |bencher| {
                bencher.iter(|| {
                    number += 1;
                    volume.fork(&format!("fork{number}")).expect("a fork")
                });
            });
            group.bench_function(format!("write into and fork {} {round}", volume.name()), |bencher| {
                bencher.iter(|| {
                    number += 1;
                    volume.write_at(&[2; BLOCK as usize], 8192).expect("a write");
                    volume.fork(&format!("fork{number}")).expect("a fork")
                });
            });
        }
        let mut random = Blocks(5);
        group.bench_function(format!("write 4 KiB and flush {round}"), |bencher| {
            bencher.iter(|| {
                large
                    .write_at(&[3; BLOCK as usize], random.next(large.size_bytes() / BLOCK) * BLOCK)
                    .and_then(|()| large.flush())
                    .expect("a write");
            });
        });
    }
    group.finish();
}

/// The first read of a fork from elsewhere, and the whole of it in the background.
fn hydration(criterion: &mut Criterion) {
    let bytes = file_bytes().min(256 << 20);
    let dir = directory();
    let path = dir.path().join("image");
    raw_file(&path, IoMode::Buffered, bytes);
    let uri = format!("file://{}", path.display());
    let store = Store::create(dir.path().join("store"), options(IoMode::Buffered)).expect("a store");
    let mut group = criterion.benchmark_group("hydration");
    group.sample_size(10);
    let mut number = 0;
    group.bench_function("fork and first read of 4 KiB", |bencher| {
        bencher.iter_custom(|count| {
            let mut total = Duration::ZERO;
            for _ in 0..count {
                number += 1;
                let begin = Instant::now();
                let fork = store.fork(&uri, &format!("fork{number}")).expect("a fork");
                fork.read_at(&mut [0; BLOCK as usize], bytes / 2).expect("a read");
                total += begin.elapsed();
                drop(fork);
                store.destroy_volume(&format!("fork{number}"), false).expect("a destroy");
            }
            total
        });
    });
    group.throughput(Throughput::Bytes(bytes));
    group.bench_function("fork and backfill", |bencher| {
        bencher.iter_custom(|count| {
            let mut total = Duration::ZERO;
            for _ in 0..count {
                number += 1;
                let name = format!("fork{number}");
                let begin = Instant::now();
                store.fork(&uri, &name).expect("a fork");
                assert!(store.wait_hydrated(&name, Duration::from_secs(600)).expect("a hydration"));
                total += begin.elapsed();
                store.destroy_volume(&name, false).expect("a destroy");
            }
            total
        });
    });
    group.finish();
}

fn settings() -> Criterion {
    Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2))
}

criterion_group! {
    name = benches;
    config = settings();
    targets = random_transfers, reads_by_depth, barriers, hydration
}
criterion_main!(benches);
