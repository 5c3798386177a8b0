//! A ranking that is explained only on request.

use std::collections::BTreeMap;

use super::fleet::Fleet;
use super::policy::Policy;
use super::ranking::{Constraint, Excluded, Nothing, Ranked, Ranking};
use super::request::Request;
use super::reservation::{Reservation, SnapshotFetch};
use super::survey::Survey;
use crate::place::index;

/// All hosts in the order of a policy, as numbers. Words are made when they are asked for, since those for 10,000 hosts cost more
/// than the decision.
///
/// ```
/// # use volfork::placement;
/// # fn host(name: &str, cpus: u32) -> placement::HostInventory {
/// #     let cpus = [("shared".to_owned(), cpus)].into();
/// #     let capacity = placement::Resources { cpus, memory_bytes: 64 << 30, volume_bytes: 1 << 40, ..Default::default() };
/// #     let (host, region, zone) = (name.to_owned(), "ams".to_owned(), name.to_owned());
/// #     placement::HostInventory { host, region, zone, capacity, reported_at: 1_000, ..Default::default() }
/// # }
/// # fn machine(id: &str, cpus: u32) -> placement::Request {
/// #     let compute = placement::Compute { cpus: placement::Processors { kind: String::new(), count: cpus }, ..Default::default() };
/// #     placement::Request { id: id.into(), volume: id.into(), volume_bytes: 1 << 30, compute, ..Default::default() }
/// # }
/// use volfork::placement::{Fleet, Policy};
///
/// let mut fleet = Fleet::new();
/// for number in 0..100 {
///     fleet.report(host(&format!("h{number}"), number));
/// }
/// let request = machine("m", 90);
/// let order = fleet.order(&request, &Policy::default(), 1_000);
/// assert_eq!((order.len(), order.excluded().len()), (10, 90));
/// // Only the host that is looked at is explained.
/// let best = order.explain(0).unwrap();
/// assert_eq!(order.host(0), Some(best.host.as_str()));
/// ```
pub struct Order<'a> {
    survey: Survey<'a>,
    /// Sort keys, the number of the host in the last 32 bits.
    keys: Vec<u128>,
}

impl std::fmt::Debug for Order<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Order").field("hosts", &self.keys.len()).finish_non_exhaustive()
    }
}

impl<'a> Order<'a> {
    pub(super) fn of(fleet: &'a Fleet, request: &'a Request, policy: &Policy, now: u64) -> Self {
        let survey = Survey::of(fleet, request, policy, now);
        let mut keys: Vec<u128> = survey.fitting().map(|number| survey.key(number)).collect();
        keys.sort_unstable();
        // Numbers of hosts depend on when they came; where even the hashes are equal, names decide.
        for equal in keys.chunk_by_mut(|a, b| a >> 32 == b >> 32).filter(|equal| equal.len() > 1) {
            equal.sort_unstable_by_key(|key| survey.fleet.name(number_of(*key)));
        }
        Self { survey, keys }
    }

    /// How many hosts meet all constraints.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Name of the host at a place, 0 being the best.
    pub fn host(&self, place: usize) -> Option<&'a str> {
        self.keys.get(place).map(|key| self.survey.fleet.name(number_of(*key)))
    }

    /// Why the host at a place is there.
    pub fn explain(&self, place: usize) -> Option<Ranked> {
        self.keys.get(place).map(|key| explain(&self.survey, number_of(*key)))
    }

    /// Hosts that constraints exclude, by constraint and then by name.
    pub fn excluded(&self) -> Vec<Excluded> {
        let mut excluded: Vec<_> = excluded(&self.survey).map(|(number, constraint)| exclusion(&self.survey, number, constraint)).collect();
        excluded.sort_unstable_by(|a, b| (a.constraint, &a.host).cmp(&(b.constraint, &b.host)));
        excluded
    }

    /// Why no host is left, if none is.
    pub fn nothing(&self) -> Option<Nothing> {
        self.is_empty().then(|| nothing(&self.survey))
    }

    /// The ranking in words, with at most `top` hosts.
    pub fn ranking(&self, top: usize) -> Ranking {
        Ranking {
            request: self.survey.need.request.id.clone(),
            policy: self.survey.policy.word(),
            fitting: self.len(),
            hosts: self.keys.iter().take(top).map(|key| explain(&self.survey, number_of(*key))).collect(),
            excluded: self.excluded(),
            nothing: self.nothing(),
        }
    }
}

/// The host of a sort key, whose number stands in the last 32 bits.
fn number_of(key: u128) -> u32 {
    u32::try_from(key & u128::from(u32::MAX)).unwrap_or(u32::MAX)
}

/// The number of the best host.
pub(super) fn best(survey: &Survey<'_>) -> Option<u32> {
    let keys = survey.fitting().map(|number| survey.key(number));
    let name = |key: u128| survey.fleet.name(number_of(key));
    keys.min_by(|a, b| (a >> 32).cmp(&(b >> 32)).then_with(|| name(*a).cmp(name(*b)))).map(number_of)
}

pub(super) fn explain(survey: &Survey<'_>, number: u32) -> Ranked {
    let inventory = survey.fleet.inventory(number);
    let terms = survey.terms(number);
    Ranked {
        host: inventory.host.clone(),
        region: inventory.region.clone(),
        zone: inventory.zone.clone(),
        cost: survey.cost(number),
        seconds: terms.seconds(),
        terms,
        region_preference: u32::from(survey.need.preference(survey.fleet.index.rows[index(number)].region)),
        staleness_seconds: survey.now.saturating_sub(inventory.reported_at),
    }
}

/// The reservation of the request on a host.
pub(super) fn reservation(survey: &Survey<'_>, number: u32, id: String, expires_at: u64) -> Reservation {
    let inventory = survey.fleet.inventory(number);
    let request = survey.need.request;
    let terms = survey.terms(number);
    let snapshot_bytes = terms.snapshot_bytes_missing + terms.snapshot_bytes_in_flight;
    let snapshot = request.snapshot.as_ref().filter(|_| snapshot_bytes > 0);
    Reservation {
        id,
        host: inventory.host.clone(),
        zone: inventory.zone.clone(),
        app: request.app.clone(),
        volume: request.volume.clone(),
        resources: survey.fleet.resources_for(number, request),
        layers: survey.need.layers.iter().filter(|layer| !inventory.layers.contains_key(&layer.digest)).copied().collect(),
        snapshot: snapshot.map(|need| SnapshotFetch { identity: need.identity.clone(), bytes: snapshot_bytes }),
        expires_at,
    }
}

fn excluded(survey: &Survey<'_>) -> impl Iterator<Item = (u32, Constraint)> {
    let all = survey.verdicts.iter().zip(0..).filter_map(|(verdict, number)| verdict.map(|constraint| (number, constraint)));
    // Free numbers stand for no host.
    all.filter(|(_, constraint)| *constraint != Constraint::Known)
}

fn exclusion(survey: &Survey<'_>, number: u32, constraint: Constraint) -> Excluded {
    let at = index(number);
    let max_age = survey.fleet.options().max_age_seconds;
    let (have, need) = survey.need.shortfall(at, &survey.fleet.index.rows[at], survey.now, max_age, constraint);
    let inventory = survey.fleet.inventory(number);
    Excluded { host: inventory.host.clone(), region: inventory.region.clone(), constraint, have, need }
}

/// The constraint that took the last hosts, and the one among them that it took for the least.
pub(super) fn nothing(survey: &Survey<'_>) -> Nothing {
    let mut counts = BTreeMap::new();
    for (_, constraint) in excluded(survey) {
        *counts.entry(constraint).or_insert(0) += 1;
    }
    let taken: Vec<(Constraint, usize)> = counts.into_iter().collect();
    let Some((last, _)) = taken.last().copied() else {
        return Nothing { constraint: Constraint::Known, excluded: taken, nearest: None };
    };
    let of_last = excluded(survey).filter(|(_, constraint)| *constraint == last).map(|(number, _)| exclusion(survey, number, last));
    let nearest = of_last.min_by(|a, b| (a.have.abs_diff(a.need), &a.host).cmp(&(b.have.abs_diff(b.need), &b.host)));
    Nothing { constraint: last, excluded: taken, nearest }
}
