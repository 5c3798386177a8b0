//! A fleet in time: an event queue, the real state of hosts and links, and a scheduler that sees only what hosts reported.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::time::Instant;

use volfork::placement::{Compute, InventoryDelta, Processors, Request, SnapshotNeed};

use crate::catalogue::{App, BLOCK_BYTES};
use crate::chooser::{Choice, Chooser};
use crate::host::{BEGINNING, CPU_KIND, Host, volume_bytes, volume_name};
use crate::machine::{Machine, State};
use crate::network::{Item, Moved, Network, SECOND, Time};
use crate::outcome::{Outcome, Record, Spread, mean, variation};
use crate::random::{below, stream};
use crate::workload::{Workload, time};

/// From when everything is there until the machine is ready.
const PREPARE: Time = SECOND / 2;
/// From the begin of a drain until the host is gone.
const DRAIN: Time = 60 * SECOND;
const RETRY: Time = 5 * SECOND;
const TRIES: u32 = 60;
const SAMPLE: Time = 10 * SECOND;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The start of that number in the workload.
    Arrive(usize),
    Retry(u32),
    /// A fetch of a host ends, if the epoch of its link is still that.
    Fetched(usize, u64),
    /// A machine is ready, or ends, if it was not moved meanwhile.
    Ready(u32, u32),
    End(u32, u32),
    Report(usize),
    Drain(usize),
    Leave(usize),
    Sample,
}

/// A run of one choice.
pub struct Simulation<'a> {
    workload: &'a Workload,
    chooser: Chooser,
    now: Time,
    queue: BinaryHeap<Reverse<(Time, u64, Event)>>,
    events: u64,
    hosts: Vec<Host>,
    places: HashMap<String, usize>,
    network: Network,
    machines: Vec<Machine>,
    /// Hosts that have all blocks needed first of a snapshot.
    holders: Vec<BTreeSet<usize>>,
    arrivals_left: usize,
    starting: usize,
    before_measured: Option<Moved>,
    outcome: Outcome,
}

impl<'a> Simulation<'a> {
    pub fn new(workload: &'a Workload, choice: &Choice) -> Self {
        let hosts: Vec<Host> = workload.shapes.iter().enumerate().map(|(place, shape)| Host::new(place, 0, *shape)).collect();
        let mut simulation = Self {
            workload,
            chooser: Chooser::new(choice, workload.options.seed),
            now: 0,
            queue: BinaryHeap::new(),
            events: 0,
            places: hosts.iter().enumerate().map(|(place, host)| (host.name.clone(), place)).collect(),
            hosts,
            network: Network::new(workload.shapes.iter().map(|shape| shape.speeds)),
            machines: Vec::new(),
            holders: vec![BTreeSet::new(); workload.catalogue.templates.len()],
            arrivals_left: workload.starts.len(),
            starting: 0,
            before_measured: None,
            outcome: Outcome::default(),
        };
        simulation.begin();
        simulation
    }

    fn begin(&mut self) {
        let workload = self.workload;
        for place in 0..self.hosts.len() {
            self.begin_host(place);
            self.report_whole(place);
        }
        let random = &mut stream(workload.options.seed, 7);
        for place in 0..self.hosts.len() {
            self.after(below(random, time(workload.options.report_seconds)), Event::Report(place));
        }
        workload.starts.iter().enumerate().for_each(|(number, start)| self.after(start.at, Event::Arrive(number)));
        workload.drains.iter().for_each(|(at, place)| self.after(*at, Event::Drain(*place)));
        self.after(workload.measured_from, Event::Sample);
    }

    /// Puts on a host what it has at first.
    fn begin_host(&mut self, place: usize) {
        let workload = self.workload;
        let beginning = &workload.beginnings[place];
        for (app, life_seconds) in &beginning.running {
            let machine = self.machines.len() as u32;
            self.machines.push(Machine::new(0, *app, *life_seconds, None));
            self.run_at_once(machine, place);
        }
        for app in &beginning.pulled {
            for layer in &workload.catalogue.apps[*app as usize].layers {
                if !self.hosts[place].cache.holds(Item::Layer(*layer)) {
                    self.keep(place, Item::Layer(*layer), workload.catalogue.layers[*layer as usize].bytes);
                }
            }
            if workload.catalogue.apps[*app as usize].layers.iter().all(|layer| self.hosts[place].has_layer(*layer)) {
                self.hosts[place].images.insert(*app);
            }
        }
        for snapshot in &beginning.origins {
            self.hosts[place].origins.insert(*snapshot);
            self.holders[*snapshot as usize].insert(place);
        }
        for (snapshot, present) in &beginning.partial {
            if self.hosts[place].present.contains_key(snapshot) {
                continue;
            }
            self.hosts[place].present.insert(*snapshot, present.clone());
            self.keep(place, Item::Snapshot(*snapshot), present.len() * u64::from(BLOCK_BYTES));
        }
    }

    /// A machine that runs when the simulation begins: all it needs is there.
    fn run_at_once(&mut self, machine: u32, place: usize) {
        let workload = self.workload;
        let number = self.machines[machine as usize].app;
        let app = &workload.catalogue.apps[number as usize];
        let layers = app.layers.iter().map(|layer| (Item::Layer(*layer), workload.catalogue.layers[*layer as usize].bytes));
        let mut pinned: Vec<(Item, u64)> = layers.collect();
        if let Some(snapshot) = app.template {
            let first = &workload.catalogue.templates[snapshot as usize].first;
            pinned.push((Item::Snapshot(snapshot), first.len() * u64::from(BLOCK_BYTES)));
            self.hosts[place].present.insert(snapshot, first.clone());
            self.holders[snapshot as usize].insert(place);
        }
        for (item, bytes) in &pinned {
            if !self.hosts[place].cache.holds(*item) {
                self.keep(place, *item, *bytes);
            }
            self.hosts[place].cache.pin(*item);
        }
        self.hosts[place].images.insert(number);
        self.hosts[place].add_machine(machine, number, app, volume_bytes(app, &workload.catalogue), format!("m{machine}"));
        let known = &mut self.machines[machine as usize];
        known.pinned = pinned.into_iter().map(|(item, _)| item).collect();
        known.state = State::Running { place };
        known.ends_at = time(known.life_seconds);
        let (turn, ends_at) = (known.turn, known.ends_at);
        self.after(ends_at, Event::End(machine, turn));
    }

    /// Runs until all that arrived is ready.
    pub fn run(mut self) -> Outcome {
        while self.arrivals_left > 0 || self.starting > 0 {
            let Some(Reverse((at, _, event))) = self.queue.pop() else { break };
            self.now = at;
            if self.before_measured.is_none() && at >= self.workload.measured_from {
                self.before_measured = Some(self.network.moved);
            }
            self.handle(event);
            for due in self.network.due() {
                self.at(due.at.max(self.now), Event::Fetched(due.host, due.epoch));
            }
        }
        let (now, before) = (self.network.moved, self.before_measured.unwrap_or_default());
        self.outcome.moved = Moved {
            begun: now.begun - before.begun,
            registry: now.registry - before.registry,
            peers: now.peers - before.peers,
            given_up: now.given_up - before.given_up,
        };
        self.outcome.moved_in_all = now;
        self.outcome.ended_at = self.now;
        self.outcome
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrive(number) => {
                let start = self.workload.starts[number];
                self.arrivals_left -= 1;
                self.request(Machine::new(self.now, start.app, start.life_seconds, start.burst));
            }
            Event::Retry(machine) => self.place(machine),
            Event::Fetched(place, epoch) => {
                for item in self.network.finished(self.now, place, epoch) {
                    self.fetched(place, item);
                }
            }
            Event::Ready(machine, turn) if self.machines[machine as usize].turn == turn => self.ready(machine),
            Event::End(machine, turn) if self.machines[machine as usize].turn == turn => self.end(machine),
            Event::Ready(..) | Event::End(..) => {}
            Event::Report(place) => {
                self.report(place);
                self.after(time(self.workload.options.report_seconds), Event::Report(place));
            }
            Event::Drain(place) => {
                if !self.hosts[place].draining {
                    self.hosts[place].draining = true;
                    self.hosts[place].changed = true;
                    self.after(DRAIN, Event::Leave(place));
                }
            }
            Event::Leave(place) => self.leave(place),
            Event::Sample => {
                self.outcome.spreads.push(self.spread());
                self.after(SAMPLE, Event::Sample);
            }
        }
    }

    fn at(&mut self, at: Time, event: Event) {
        self.events += 1;
        self.queue.push(Reverse((at, self.events, event)));
    }

    fn after(&mut self, delay: Time, event: Event) {
        self.at(self.now + delay, event);
    }

    fn now_seconds(&self) -> u64 {
        BEGINNING + self.now / SECOND
    }

    fn app(&self, machine: u32) -> &'a App {
        let workload = self.workload;
        &workload.catalogue.apps[self.machines[machine as usize].app as usize]
    }

    fn request(&mut self, machine: Machine) {
        self.machines.push(machine);
        self.starting += 1;
        self.place(self.machines.len() as u32 - 1);
    }

    /// Asks for a host, and asks again later if there is none.
    fn place(&mut self, machine: u32) {
        let request = self.request_of(machine);
        let (app, now_seconds, volume_bytes) = (self.app(machine), self.now_seconds(), request.volume_bytes);
        let begun = Instant::now();
        let chosen = self.chooser.choose(&request, now_seconds, &self.hosts, |host| host.fits(app, volume_bytes));
        self.outcome.deciding += begun.elapsed();
        self.outcome.decisions += 1;
        let place = chosen.and_then(|host| self.places.get(&host).copied());
        let Some(place) = place else {
            let known = &mut self.machines[machine as usize];
            known.tries += 1;
            if known.tries == 1 {
                self.outcome.retries += 1;
            }
            if known.tries == TRIES {
                known.state = State::Gone;
                self.outcome.refused += 1;
                self.starting -= 1;
            } else {
                self.after(RETRY, Event::Retry(machine));
            }
            return;
        };
        self.assign(machine, place, request.id);
    }

    fn request_of(&self, machine: u32) -> Request {
        let app = self.app(machine);
        let snapshot = app.template.map(|number| {
            let template = &self.workload.catalogue.templates[number as usize];
            SnapshotNeed {
                identity: template.identity.clone(),
                block_bytes: BLOCK_BYTES,
                size_bytes: template.size_bytes,
                first: Some(template.first.clone()),
                source_bandwidth: self.network.upload_share(self.source(number)) as u64,
                origin: None,
            }
        });
        Request {
            id: format!("m{machine}-{}", self.machines[machine as usize].turn),
            app: app.name.clone(),
            volume: volume_name(machine),
            volume_bytes: volume_bytes(app, &self.workload.catalogue),
            compute: Compute {
                cpus: Processors { kind: CPU_KIND.into(), count: app.cpus },
                memory_bytes: app.memory_bytes,
                ..Compute::default()
            },
            image: Some(app.image.clone()),
            snapshot,
            ..Request::default()
        }
    }

    /// The host that can give most to one more fork.
    fn source(&self, snapshot: u32) -> usize {
        let better = |a: &usize, b: &usize| {
            let by_share = self.network.upload_share(*a).total_cmp(&self.network.upload_share(*b));
            by_share.then(b.cmp(a))
        };
        self.holders[snapshot as usize].iter().copied().max_by(better).expect("a snapshot is whole on a host")
    }

    /// Puts a machine on a host, which begins to fetch what is neither there nor on its way.
    fn assign(&mut self, machine: u32, place: usize, assignment: String) {
        let workload = self.workload;
        let app = self.app(machine);
        let number = self.machines[machine as usize].app;
        let with_sibling = self.hosts[place].machines.values().any(|other| *other == number);
        self.hosts[place].add_machine(machine, number, app, volume_bytes(app, &workload.catalogue), assignment);
        if self.hosts[place].cpus_used() > self.hosts[place].shape.cpus {
            self.outcome.oversold += 1;
        }
        let layers = app.layers.iter().map(|layer| (Item::Layer(*layer), workload.catalogue.layers[*layer as usize].bytes));
        let mut needs: Vec<(Item, u64)> = layers.collect();
        if let Some(snapshot) = app.template {
            let bytes = self.hosts[place].missing_first(snapshot, &workload.catalogue) * u64::from(BLOCK_BYTES);
            if !self.hosts[place].origins.contains(&snapshot) {
                needs.push((Item::Snapshot(snapshot), bytes));
            }
        }
        let host = &mut self.hosts[place];
        let absent = |(item, bytes): &&(Item, u64)| match item {
            Item::Layer(layer) => !host.has_layer(*layer),
            Item::Snapshot(_) => *bytes > 0,
        };
        let absent: Vec<(Item, u64)> = needs.iter().filter(absent).copied().collect();
        // What is there is pinned before anything has to make room for what is not.
        needs.iter().for_each(|(item, _)| host.cache.pin(*item));
        let (mut missing, awaited) = (0, absent.len());
        for (item, bytes) in absent {
            let host = &mut self.hosts[place];
            let under_way = host.waiting.contains_key(&item);
            host.waiting.entry(item).or_default().push(machine);
            if !under_way {
                missing += bytes;
                let source = if let Item::Snapshot(snapshot) = item { Some(self.source(snapshot)) } else { None };
                self.network.begin(self.now, place, item, bytes, source);
                self.keep(place, item, bytes);
            }
        }
        self.outcome.missing_in_all += missing;
        let known = &mut self.machines[machine as usize];
        known.state = State::Fetching { place, awaited };
        known.pinned = needs.into_iter().map(|(item, _)| item).collect();
        known.missing_bytes = missing;
        known.with_sibling = with_sibling;
        let turn = known.turn;
        if awaited == 0 {
            self.after(PREPARE, Event::Ready(machine, turn));
        }
    }

    /// Keeps something in the cache of a host, and knows which snapshots had to go there.
    fn keep(&mut self, place: usize, item: Item, bytes: u64) {
        for snapshot in self.hosts[place].keep(item, bytes, &self.workload.catalogue) {
            if !self.hosts[place].origins.contains(&snapshot) {
                self.holders[snapshot as usize].remove(&place);
            }
        }
    }

    fn fetched(&mut self, place: usize, item: Item) {
        let host = &mut self.hosts[place];
        host.changed = true;
        if let Item::Snapshot(snapshot) = item {
            *host.present.entry(snapshot).or_default() |= &self.workload.catalogue.templates[snapshot as usize].first;
            self.holders[snapshot as usize].insert(place);
        }
        for machine in self.hosts[place].waiting.remove(&item).unwrap_or_default() {
            let known = &mut self.machines[machine as usize];
            if let State::Fetching { awaited, .. } = &mut known.state {
                *awaited -= 1;
                if *awaited == 0 {
                    let turn = known.turn;
                    self.after(PREPARE, Event::Ready(machine, turn));
                }
            }
        }
    }

    fn ready(&mut self, machine: u32) {
        let known = &mut self.machines[machine as usize];
        let State::Fetching { place, .. } = known.state else { return };
        known.state = State::Running { place };
        known.ends_at = self.now + time(known.life_seconds);
        self.starting -= 1;
        self.hosts[place].images.insert(known.app);
        self.hosts[place].changed = true;
        if known.requested_at >= self.workload.measured_from {
            self.outcome.records.push(Record {
                burst: known.burst,
                requested_at: known.requested_at,
                seconds: (self.now - known.requested_at) as f64 / SECOND as f64,
                missing_bytes: known.missing_bytes,
                with_sibling: known.with_sibling,
            });
        }
        let (turn, ends_at) = (known.turn, known.ends_at);
        self.at(ends_at, Event::End(machine, turn));
    }

    fn end(&mut self, machine: u32) {
        let app = self.app(machine);
        let known = &mut self.machines[machine as usize];
        let State::Running { place } = known.state else { return };
        known.state = State::Gone;
        for item in std::mem::take(&mut known.pinned) {
            self.hosts[place].cache.unpin(item);
        }
        let bytes = volume_bytes(app, &self.workload.catalogue);
        if let Some(assignment) = self.hosts[place].remove_machine(machine, app, bytes) {
            self.chooser.fleet.release(&assignment);
        }
    }

    /// A drained host goes; its machines start elsewhere, and an empty host takes its place.
    fn leave(&mut self, place: usize) {
        let next = (1..self.hosts.len()).map(|step| (place + step) % self.hosts.len());
        let heir = { next }.find(|other| !self.hosts[*other].draining).unwrap_or((place + 1) % self.hosts.len());
        let predecessors = self.hosts[place].predecessors + 1;
        let fresh = Host::new(place, predecessors, self.workload.shapes[place]);
        let gone = std::mem::replace(&mut self.hosts[place], fresh);
        self.holders.iter_mut().for_each(|holders| _ = holders.remove(&place));
        for snapshot in gone.origins {
            self.hosts[heir].origins.insert(snapshot);
            self.hosts[heir].changed = true;
            self.holders[snapshot as usize].insert(heir);
        }
        self.network.give_up(self.now, place);
        let mut to: HashMap<u32, usize> = HashMap::new();
        for snapshot in 0..self.holders.len() as u32 {
            if !self.holders[snapshot as usize].is_empty() {
                to.insert(snapshot, self.source(snapshot));
            }
        }
        self.network.move_uploads(self.now, place, |item| match item {
            Item::Snapshot(snapshot) => to[&snapshot],
            Item::Layer(_) => heir,
        });
        self.chooser.fleet.remove(&gone.name);
        self.places.remove(&gone.name);
        self.places.insert(self.hosts[place].name.clone(), place);
        self.report_whole(place);
        for machine in gone.machines.into_keys() {
            self.start_elsewhere(machine);
        }
    }

    fn start_elsewhere(&mut self, machine: u32) {
        let known = &mut self.machines[machine as usize];
        known.turn += 1;
        known.pinned.clear();
        if let State::Running { .. } = known.state {
            known.requested_at = self.now;
            known.life_seconds = known.ends_at.saturating_sub(self.now) as f64 / SECOND as f64;
            known.tries = 0;
            known.burst = None;
            self.starting += 1;
        }
        known.state = State::Waiting;
        self.place(machine);
    }

    fn report_whole(&mut self, place: usize) {
        if self.chooser.wants_reports() {
            self.hosts[place].generation += 1;
            self.hosts[place].changed = false;
            let inventory = self.hosts[place].inventory(self.now, place, &self.network, &self.workload.catalogue);
            assert!(self.chooser.fleet.report(inventory), "a report is newer than the last one");
        }
    }

    /// Tells the scheduler what has changed since the last report.
    fn report(&mut self, place: usize) {
        if !self.chooser.wants_reports() {
            return;
        }
        let host = &mut self.hosts[place];
        let base = host.generation;
        host.generation += 1;
        let delta = if host.changed || !host.waiting.is_empty() {
            host.changed = false;
            let inventory = host.inventory(self.now, place, &self.network, &self.workload.catalogue);
            let known = self.chooser.fleet.host(&host.name).expect("a host that reported before");
            known.delta_to(&inventory)
        } else {
            let (host, generation) = (host.name.clone(), host.generation);
            InventoryDelta { host, base, generation, reported_at: self.now_seconds(), ..InventoryDelta::default() }
        };
        self.chooser.fleet.apply(&delta).expect("a change of the last report");
    }

    fn spread(&self) -> Spread {
        let hosts: Vec<&Host> = self.hosts.iter().filter(|host| !host.draining).collect();
        let machines: Vec<f64> = hosts.iter().map(|host| host.machines.len() as f64).collect();
        let fullness: Vec<f64> = hosts.iter().map(|host| f64::from(host.cpus_used()) / f64::from(host.shape.cpus)).collect();
        Spread {
            machines_variation: variation(&machines),
            machines_max: machines.iter().copied().fold(0.0, f64::max) / mean(&machines).max(f64::MIN_POSITIVE),
            fullness_variation: variation(&fullness),
        }
    }
}
