//! The contents that the oracle allows for one sector.
//!
//! A sector has a list of writes, each with the time span in which it took effect. A write is *over* once another acknowledged write
//! began after it had ended. A reader may see any of the others. After a loss of power every write is allowed that no *durable* write
//! follows.

use std::collections::BTreeSet;

/// Counts what the oracle is told.
pub type Time = u64;
/// Written by everybody who is under way.
pub const NEVER: Time = Time::MAX;
/// What the bytes of a sector say about the write they are from; 0: zeros.
pub type Tag = u64;

#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    pub tag: Tag,
    /// It took effect between these.
    pub low: Time,
    pub high: Time,
    /// When its completion was reported.
    pub ended: Time,
    /// It was acknowledged.
    pub done: bool,
    /// A flush that was asked for behind it was acknowledged.
    pub durable: bool,
}

/// The writes of a sector that still matter. The first ones may be alternatives: what was there when its volume was made.
#[derive(Clone, Debug, Default)]
pub struct Sector(Vec<Write>);

impl Sector {
    /// Holds one of these from the start.
    pub fn of(tags: impl IntoIterator<Item = Tag>) -> Self {
        let tags: BTreeSet<Tag> = tags.into_iter().collect();
        Self(tags.into_iter().map(|tag| Write { tag, low: 0, high: 0, ended: 0, done: true, durable: true }).collect())
    }

    pub fn begin(&mut self, tag: Tag, now: Time) {
        self.0.push(Write { tag, low: now, high: NEVER, ended: NEVER, done: false, durable: false });
    }

    /// The write that began at `low` has ended.
    pub fn end(&mut self, low: Time, now: Time, done: bool, durable: bool) {
        if let Some(write) = self.0.iter_mut().find(|write| write.low == low && write.high == NEVER) {
            (write.high, write.ended, write.done, write.durable) = (now, now, done, durable);
        }
    }

    /// A flush that was asked for at `asked` was acknowledged.
    pub fn flush(&mut self, asked: Time) {
        for write in &mut self.0 {
            write.durable |= write.done && write.ended < asked;
        }
    }

    /// The sector was behind the end when the write of zeros that began at `zeros` had ended: whatever else has ended was before.
    pub fn cut(&mut self, zeros: Time) {
        let others = self.0.iter().filter(|write| write.low != zeros && write.high != NEVER).map(|write| write.high).max();
        if let (Some(last), Some(cut)) = (others, self.0.iter_mut().find(|write| write.low == zeros)) {
            cut.low = cut.low.max(last + 1).min(cut.high);
        }
    }

    /// Forgets what no reader that began at or after `horizon` can see, nor anybody after a loss of power.
    pub fn prune(&mut self, horizon: Time) {
        if self.0.len() > 1 {
            let behind: Vec<Time> = self.0.iter().filter(|write| write.durable && write.high < horizon).map(|write| write.low).collect();
            self.0.retain(|write| !behind.iter().any(|low| write.high < *low));
        }
    }

    fn without<'a>(&'a self, counts: impl Fn(&Write) -> bool + 'a) -> impl Iterator<Item = &'a Write> {
        let latest = self.0.iter().filter(|write| counts(write)).map(|write| write.low).max().unwrap_or(0);
        self.0.iter().filter(move |write| write.high >= latest)
    }

    /// What somebody may see who began to look at `asked`.
    pub fn visible(&self, asked: Time) -> BTreeSet<Tag> {
        self.without(move |write| write.done && write.high < asked).map(|write| write.tag).collect()
    }

    /// What may be there after a loss of power.
    pub fn survivors(&self) -> BTreeSet<Tag> {
        self.without(|write| write.durable).map(|write| write.tag).collect()
    }

    /// Somebody who began to look at `asked` has seen this. Answers whether that is allowed.
    pub fn see(&mut self, tag: Tag, asked: Time) -> bool {
        if !self.visible(asked).contains(&tag) {
            return false;
        }
        // Of alternatives that were there from the start the one that was seen was there.
        let first = |write: &Write| write.high == 0;
        if self.0.iter().any(|write| first(write) && write.tag == tag) && !self.0.iter().any(|write| !first(write) && write.tag == tag) {
            self.0.retain(|write| !first(write) || write.tag == tag);
        }
        // When all writes had ended before, what is seen is the last one.
        if self.0.iter().all(|write| write.high < asked) {
            let latest = self.0.iter().filter(|write| write.done).map(|write| write.low).max().unwrap_or(0);
            let mut last = self.0.iter_mut().filter(|write| write.high >= latest && write.tag == tag);
            // Zeros may be those of several writes.
            if let (Some(last), None) = (last.next(), last.next())
                && last.done
            {
                (last.low, last.high) = (asked, asked);
            }
        }
        true
    }

    /// For reports.
    pub fn describe(&self) -> String {
        let one = |write: &Write| {
            let end = if write.high == NEVER { "..".into() } else { write.high.to_string() };
            let mark = if write.durable {
                " durable"
            } else if write.done {
                ""
            } else {
                " not acknowledged"
            };
            format!("{} at {}-{end}{mark}", write.tag, write.low)
        };
        self.0.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}
