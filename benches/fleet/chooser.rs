//! The placement policies that choose a host.

use rand_pcg::Pcg64;
use volfork::placement::{Fleet, Policy, Request};

use crate::host::Host;
use crate::random::{below, stream};

/// A way to choose a host.
#[derive(Clone, Debug)]
pub struct Choice {
    /// How it is called in tables and plots.
    pub name: String,
    pub policy: Option<Policy>,
}

impl Choice {
    /// Any host that has room: what the others must beat. It knows the real use, not what was reported.
    pub fn random() -> Self {
        Self { name: "random".into(), policy: None }
    }

    pub fn policy(name: &str, policy: Policy) -> Self {
        Self { name: name.into(), policy: Some(policy) }
    }

    /// Random and every policy.
    pub fn all() -> Vec<Self> {
        let policies = Policy::all().map(|policy| Self::policy(policy.word(), policy));
        std::iter::once(Self::random()).chain(policies).collect()
    }
}

/// A choice at work.
#[derive(Debug)]
pub struct Chooser {
    policy: Option<Policy>,
    pub fleet: Fleet,
    random: Pcg64,
}

impl Chooser {
    pub fn new(choice: &Choice, seed: u64) -> Self {
        Self { policy: choice.policy, fleet: Fleet::new(), random: stream(seed, 6) }
    }

    /// The name of a host and of the assignment, or nothing if no host will do.
    pub fn choose(&mut self, request: &Request, now_seconds: u64, hosts: &[Host], fits: impl Fn(&Host) -> bool) -> Option<String> {
        if let Some(policy) = &self.policy {
            let placement = self.fleet.place(request, policy, now_seconds);
            return placement.placed.into_iter().next().map(|placed| placed.reservation.host);
        }
        let first = below(&mut self.random, hosts.len() as u64) as usize;
        let tried = (0..100).map(|_| below(&mut self.random, hosts.len() as u64) as usize);
        let all = (0..hosts.len()).map(|at| (first + at) % hosts.len());
        tried.chain(all).find(|at| fits(&hosts[*at])).map(|at| hosts[at].name.clone())
    }

    /// A policy looks at reports; random choice does not.
    pub fn wants_reports(&self) -> bool {
        self.policy.is_some()
    }
}
