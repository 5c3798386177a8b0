//! Keeps many requests under way from one thread, with a queue of its own (io_uring where the machine allows it).
//!
//! `cargo run --example queue`

use std::os::fd::AsRawFd;

use bytes::Bytes;
use volfork::volume::Request;
use volfork::{Queue, Store, StoreOptions};

const DEPTH: u32 = 32;
const BLOCK_BYTES: u64 = 4096;
const BLOCKS: u64 = 256;

/// Waits until the queue has something to give. An event loop polls its sockets in the same call.
fn poll(queue: &Queue) -> std::io::Result<()> {
    let mut readable = [libc::pollfd { fd: queue.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
    // SAFETY: the pointer and the length describe `readable`, which lives past the call.
    match unsafe { libc::poll(readable.as_mut_ptr(), 1, -1) } {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn block(number: u64) -> Bytes {
    Bytes::from(number.to_le_bytes().repeat(512))
}

/// Keeps up to `DEPTH` requests under way until all have completed; `request` makes the one of a number.
fn run(queue: &mut Queue, request: impl Fn(u64) -> Request) -> Result<Vec<(u64, Bytes)>, Box<dyn std::error::Error>> {
    let (mut next, mut completions, mut answers) = (0, Vec::new(), Vec::new());
    while next < BLOCKS || queue.in_flight() > 0 {
        while next < BLOCKS && queue.in_flight() < usize::try_from(DEPTH)? {
            // The token comes back with the completion; completions come in any order.
            queue.submit(next, request(next))?;
            next += 1;
        }
        // Hands the new requests to the kernel in one call, and takes what is ready.
        if queue.reap(&mut completions)? == 0 {
            poll(queue)?;
        }
        for completion in completions.drain(..) {
            answers.push((completion.token, completion.result?));
        }
    }
    Ok(answers)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let store = Store::create(directory.path().join("store"), StoreOptions::default())?;
    let volume = store.create_volume("disk", BLOCKS * BLOCK_BYTES)?;

    let mut queue = volume.queue(DEPTH)?;
    println!("a queue of depth {DEPTH} over {:?}", queue.kind());

    let written = run(&mut queue, |number| Request::Write { offset: number * BLOCK_BYTES, data: block(number), fua: false })?;
    println!("{} writes completed", written.len());

    // Covers every write that completed before it was submitted.
    queue.submit(0, Request::Flush)?;
    let mut completions = Vec::new();
    queue.wait(&mut completions, None)?;
    completions.pop().ok_or("the flush has not completed")?.result?;
    println!("flushed");

    let length = u32::try_from(BLOCK_BYTES)?;
    let read = run(&mut queue, |number| Request::Read { offset: number * BLOCK_BYTES, bytes: length })?;
    assert_eq!(read.len() as u64, BLOCKS);
    for (number, bytes) in &read {
        assert_eq!(*bytes, block(*number));
    }
    println!("{} reads returned the bytes that were written", read.len());
    drop(queue);
    store.close()?;
    Ok(())
}
