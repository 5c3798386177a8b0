//! Links of hosts: fetches that share them fairly.
//!
//! Every host has a link down, a limit on what the registry gives it, and a link up. A source splits its link up evenly among the
//! fetches from it, the registry's limit is split evenly among the fetches from the registry, and the link down is shared max-min
//! fairly among all fetches of the host. What a fetch cannot use of its share of a source is not given to others.

/// Microseconds since the simulation began.
pub type Time = u64;

pub const SECOND: Time = 1_000_000;

/// What a host fetches and holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Item {
    /// A layer of an image, from the registry.
    Layer(u32),
    /// The blocks of a snapshot that are needed first, from a host that has them.
    Snapshot(u32),
}

/// Bytes a second.
#[derive(Clone, Copy, Debug)]
pub struct Speeds {
    pub download: f64,
    pub registry: f64,
    pub upload: f64,
}

/// A fetch under way.
#[derive(Clone, Debug)]
pub struct Flow {
    pub item: Item,
    pub bytes: u64,
    remaining: f64,
    rate: f64,
    source: Option<usize>,
}

#[derive(Debug)]
struct Link {
    speeds: Speeds,
    flows: Vec<Flow>,
    /// Hosts that fetch from this one, once for each fetch.
    uploads: Vec<usize>,
    /// Up to when `remaining` of the flows is told.
    settled: Time,
    /// Counts changes of rates, so that an event of the past is known as such.
    epoch: u64,
}

/// Bytes that went over links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Bytes of all fetches that were begun.
    pub begun: u64,
    /// Bytes that came from the registry.
    pub registry: u64,
    /// Bytes that came from other hosts.
    pub peers: u64,
    /// Bytes of fetches that were given up which did not come.
    pub given_up: u64,
}

/// When the next fetch of a host ends, unless its rates change before.
#[derive(Clone, Copy, Debug)]
pub struct Due {
    pub host: usize,
    pub epoch: u64,
    pub at: Time,
}

/// All links between hosts, with their transfers under way.
#[derive(Debug)]
pub struct Network {
    links: Vec<Link>,
    changed: Vec<usize>,
    pub moved: Moved,
}

impl Network {
    pub fn new(speeds: impl IntoIterator<Item = Speeds>) -> Self {
        let link = |speeds| Link { speeds, flows: Vec::new(), uploads: Vec::new(), settled: 0, epoch: 0 };
        Self { links: speeds.into_iter().map(link).collect(), changed: Vec::new(), moved: Moved::default() }
    }

    /// Begins to fetch `bytes` to host `to`, from the registry or from another host.
    pub fn begin(&mut self, now: Time, to: usize, item: Item, bytes: u64, source: Option<usize>) {
        self.settle(now, to);
        self.moved.begun += bytes;
        self.links[to].flows.push(Flow { item, bytes, remaining: bytes as f64, rate: 0.0, source });
        match source {
            Some(source) => {
                self.links[source].uploads.push(to);
                self.reshare_below(now, source);
            }
            None => self.reshare(to),
        }
    }

    /// What has come to a host since, if the event is not one of the past.
    pub fn finished(&mut self, now: Time, host: usize, epoch: u64) -> Vec<Item> {
        if self.links[host].epoch != epoch {
            return Vec::new();
        }
        self.settle(now, host);
        let (done, rest) = std::mem::take(&mut self.links[host].flows).into_iter().partition(|flow: &Flow| flow.remaining < 0.5);
        self.links[host].flows = rest;
        self.retire(now, host, &done);
        done.into_iter().map(|flow| flow.item).collect()
    }

    /// Gives up all fetches of a host.
    pub fn give_up(&mut self, now: Time, host: usize) {
        self.settle(now, host);
        let flows = std::mem::take(&mut self.links[host].flows);
        self.retire(now, host, &flows);
    }

    /// Lets the fetches from one host go on from others.
    pub fn move_uploads(&mut self, now: Time, from: usize, mut to: impl FnMut(Item) -> usize) {
        let hosts = std::mem::take(&mut self.links[from].uploads);
        for &host in &hosts {
            self.settle(now, host);
            let Some(at) = self.links[host].flows.iter().position(|flow| flow.source == Some(from)) else { continue };
            let source = to(self.links[host].flows[at].item);
            self.links[host].flows[at].source = Some(source);
            self.links[source].uploads.push(host);
            self.reshare_below(now, source);
        }
    }

    /// What one more fetch from a host would get of its link up.
    pub fn upload_share(&self, host: usize) -> f64 {
        self.links[host].speeds.upload / (self.links[host].uploads.len() + 1) as f64
    }

    /// Fetches of a host and the bytes still to come.
    pub fn flows(&self, now: Time, host: usize) -> impl Iterator<Item = (&Flow, u64)> {
        let link = &self.links[host];
        let passed = seconds(now - link.settled);
        link.flows.iter().map(move |flow| (flow, (flow.remaining - flow.rate * passed).max(0.0) as u64))
    }

    /// Hosts whose next end of a fetch has changed since the last call.
    pub fn due(&mut self) -> Vec<Due> {
        let mut changed = std::mem::take(&mut self.changed);
        changed.sort_unstable();
        changed.dedup();
        changed.into_iter().filter_map(|host| self.next_end(host)).collect()
    }

    fn next_end(&self, host: usize) -> Option<Due> {
        let link = &self.links[host];
        let first = link.flows.iter().map(|flow| flow.remaining / flow.rate).min_by(f64::total_cmp)?;
        Some(Due { host, epoch: link.epoch, at: link.settled + (first * SECOND as f64).ceil() as Time })
    }

    fn settle(&mut self, now: Time, host: usize) {
        let link = &mut self.links[host];
        let passed = seconds(now - link.settled);
        for flow in &mut link.flows {
            flow.remaining = (flow.remaining - flow.rate * passed).max(0.0);
        }
        link.settled = now;
    }

    /// Accounts for fetches that are taken away from a host, and gives what they used to others.
    fn retire(&mut self, now: Time, host: usize, flows: &[Flow]) {
        for flow in flows {
            let missing = if flow.remaining < 0.5 { 0 } else { (flow.remaining as u64).min(flow.bytes) };
            self.moved.given_up += missing;
            match flow.source {
                None => self.moved.registry += flow.bytes - missing,
                Some(source) => {
                    self.moved.peers += flow.bytes - missing;
                    let uploads = &mut self.links[source].uploads;
                    if let Some(at) = uploads.iter().position(|to| *to == host) {
                        uploads.swap_remove(at);
                    }
                    self.reshare_below(now, source);
                }
            }
        }
        self.reshare(host);
    }

    fn reshare_below(&mut self, now: Time, source: usize) {
        let mut hosts = self.links[source].uploads.clone();
        hosts.sort_unstable();
        hosts.dedup();
        for host in hosts {
            self.settle(now, host);
            self.reshare(host);
        }
    }

    fn reshare(&mut self, host: usize) {
        let speeds = self.links[host].speeds;
        let from_registry = self.links[host].flows.iter().filter(|flow| flow.source.is_none()).count();
        let most = |flow: &Flow| match flow.source {
            None => speeds.registry / from_registry as f64,
            Some(source) => self.links[source].speeds.upload / self.links[source].uploads.len() as f64,
        };
        let most: Vec<f64> = self.links[host].flows.iter().map(most).collect();
        let link = &mut self.links[host];
        for (flow, rate) in link.flows.iter_mut().zip(fair_shares(speeds.download, &most)) {
            flow.rate = rate;
        }
        link.epoch += 1;
        self.changed.push(host);
    }
}

pub fn seconds(time: Time) -> f64 {
    time as f64 / SECOND as f64
}

/// Splits `total` max-min fairly among users of which each can take so much at most.
pub fn fair_shares(total: f64, most: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..most.len()).collect();
    order.sort_by(|a, b| most[*a].total_cmp(&most[*b]));
    let mut shares = vec![0.0; most.len()];
    let mut left = total;
    for (done, &user) in order.iter().enumerate() {
        shares[user] = most[user].min(left / (most.len() - done) as f64);
        left -= shares[user];
    }
    shares
}
