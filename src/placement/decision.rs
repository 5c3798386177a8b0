//! Decisions of a fleet: which host takes a request.

use super::fleet::Fleet;
use super::order::{self, Order};
use super::policy::Policy;
use super::ranking::{Nothing, Placed, Placement, Ranking};
use super::request::Request;
use super::survey::Survey;
use crate::error::{Error, ErrorKind, Result};

impl Fleet {
    /// Orders all hosts for one instance of the request, without words. Reservations count until [`Fleet::expire`] is called.
    pub fn order<'a>(&'a self, request: &'a Request, policy: &Policy, now: u64) -> Order<'a> {
        Order::of(self, request, policy, now)
    }

    /// Ranks all hosts for one instance of the request, in words. Reservations count until [`Fleet::expire`] is called.
    pub fn rank(&self, request: &Request, policy: &Policy, now: u64) -> Ranking {
        self.order(request, policy, now).ranking(usize::MAX)
    }

    /// Releases what has lapsed, then places the request as often as it says: ranks, reserves on the best host, and again. The
    /// reservations are called as the request, and `-1`, `-2` and so on behind it if there are several.
    pub fn place(&mut self, request: &Request, policy: &Policy, now: u64) -> Placement {
        self.expire(now);
        let mut placement = Placement::begin(request, policy);
        if placement.refused.is_some() {
            return placement;
        }
        for instance in 1..=request.count {
            let id = if request.count == 1 { request.id.clone() } else { format!("{}-{instance}", request.id) };
            match self.place_one(request, policy, now, id) {
                Ok(Ok(placed)) => placement.placed.push(placed),
                Ok(Err(nothing)) => placement.nothing = Some(nothing),
                Err(refused) => placement.refused = Some(refused.to_string()),
            }
            if placement.nothing.is_some() || placement.refused.is_some() {
                break;
            }
            placement.left -= 1;
        }
        placement
    }

    fn place_one(&mut self, request: &Request, policy: &Policy, now: u64, id: String) -> Result<std::result::Result<Placed, Nothing>> {
        let survey = Survey::of(self, request, policy, now);
        let Some(number) = order::best(&survey) else { return Ok(Err(order::nothing(&survey))) };
        let expires_at = now.saturating_add(self.options().reservation_seconds);
        let reservation = order::reservation(&survey, number, id, expires_at);
        let ranked = order::explain(&survey, number);
        if self.reservations.contains_key(&reservation.id) || !self.is_new(number, &reservation) {
            return Err(Error::new(
                ErrorKind::Exists,
                format!("assignment '{}' exists already: choose another name for the request", reservation.id),
            ));
        }
        self.reserve(reservation.clone())?;
        Ok(Ok(Placed { reservation, ranked }))
    }
}
