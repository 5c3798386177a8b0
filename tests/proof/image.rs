//! The bytes of a simulated file: sparse pages that clones share until one of them changes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

pub const PAGE: u64 = 4096;
pub const SECTOR: usize = 512;

type Page = [u8; PAGE as usize];

/// What a file holds. Cheap to clone.
#[derive(Clone, Default)]
pub struct Image {
    pages: BTreeMap<u64, Arc<Page>>,
    pub bytes: u64,
}

/// A change of a file.
#[derive(Clone)]
pub enum Change {
    Write { offset: u64, data: Arc<[u8]> },
    Resize(u64),
    Allocate(Range<u64>),
    Punch(Range<u64>),
}

/// Numbers of the pages that a range touches.
pub fn pages_of(range: &Range<u64>) -> Range<u64> {
    range.start / PAGE..range.end.div_ceil(PAGE)
}

impl Image {
    /// As far as the file goes.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> usize {
        let count = (self.bytes.saturating_sub(offset)).min(buffer.len() as u64) as usize;
        let mut done = 0;
        while done < count {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let part = (PAGE as usize - within).min(count - done);
            match self.pages.get(&(at / PAGE)) {
                Some(page) => buffer[done..done + part].copy_from_slice(&page[within..within + part]),
                None => buffer[done..done + part].fill(0),
            }
            done += part;
        }
        count
    }

    pub fn write(&mut self, data: &[u8], offset: u64) {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let part = (PAGE as usize - within).min(data.len() - done);
            let page = self.pages.entry(at / PAGE).or_insert_with(|| Arc::new([0; PAGE as usize]));
            Arc::make_mut(page)[within..within + part].copy_from_slice(&data[done..done + part]);
            done += part;
        }
        self.bytes = self.bytes.max(offset + data.len() as u64);
    }

    pub fn punch(&mut self, range: &Range<u64>) {
        let inside: Vec<u64> = self.pages.range(pages_of(range)).map(|(page, _)| *page).collect();
        for page in inside {
            let (start, end) = (page * PAGE, (page + 1) * PAGE);
            if range.start <= start && end <= range.end {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                let cut = (range.start.max(start) - start) as usize..(range.end.min(end) - start) as usize;
                Arc::make_mut(bytes)[cut].fill(0);
            }
        }
    }

    fn resize(&mut self, bytes: u64) {
        if bytes < self.bytes {
            self.punch(&(bytes..self.bytes.next_multiple_of(PAGE)));
        }
        self.bytes = bytes;
    }

    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { offset, data } => self.write(data, *offset),
            Change::Resize(bytes) => self.resize(*bytes),
            Change::Allocate(range) => {
                self.bytes = self.bytes.max(range.end);
                for page in pages_of(range) {
                    self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE as usize]));
                }
            }
            Change::Punch(range) => self.punch(range),
        }
    }

    pub fn allocated_pages(&self) -> u64 {
        self.pages.len() as u64
    }

    /// Pages that a write of the range would have to take.
    pub fn missing_pages(&self, range: &Range<u64>) -> u64 {
        pages_of(range).filter(|page| !self.pages.contains_key(page)).count() as u64
    }

    /// The first allocated range that ends behind `offset`.
    pub fn next_allocated(&self, offset: u64) -> Option<Range<u64>> {
        let (first, _) = self.pages.range(offset / PAGE..).next()?;
        let mut end = first + 1;
        while self.pages.contains_key(&end) {
            end += 1;
        }
        Some((first * PAGE).max(offset)..end * PAGE)
    }
}
