//! A machine and its states from request to end.

use crate::network::{Item, Time};

#[derive(Clone, Copy, Debug)]
pub enum State {
    /// It has no host.
    Waiting,
    /// Its host fetches so many items for it, and then prepares it.
    Fetching {
        place: usize,
        awaited: usize,
    },
    Running {
        place: usize,
    },
    Gone,
}

#[derive(Clone, Debug)]
pub struct Machine {
    pub app: u32,
    pub burst: Option<u32>,
    pub requested_at: Time,
    pub life_seconds: f64,
    pub ends_at: Time,
    pub state: State,
    /// Counts its hosts, so that events of an earlier one are known as such.
    pub turn: u32,
    pub tries: u32,
    pub pinned: Vec<Item>,
    pub missing_bytes: u64,
    pub with_sibling: bool,
}

impl Machine {
    pub fn new(requested_at: Time, app: u32, life_seconds: f64, burst: Option<u32>) -> Self {
        Self {
            app,
            burst,
            requested_at,
            life_seconds,
            ends_at: 0,
            state: State::Waiting,
            turn: 0,
            tries: 0,
            pinned: Vec::new(),
            missing_bytes: 0,
            with_sibling: false,
        }
    }
}
