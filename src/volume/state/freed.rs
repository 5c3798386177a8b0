//! Layers that were freed and whose files are still there.

use crate::ids::LayerId;
use crate::layer::Ticket;
use crate::sync::{Mutex, Rank};

/// Freed layers, each with the barrier round that makes its end durable.
pub struct Freed(Mutex<Vec<(Ticket, LayerId)>>);

impl Default for Freed {
    fn default() -> Self {
        Self(Mutex::ranked(Rank::FreedLayers, Vec::new()))
    }
}

impl Freed {
    /// Adds layers that this round frees.
    pub fn add(&self, ticket: Ticket, layers: Vec<LayerId>) {
        self.0.lock().extend(layers.into_iter().map(|layer| (ticket, layer)));
    }

    /// Takes one layer that `may_go`, if there is one.
    pub fn take(&self, may_go: impl Fn(Ticket, LayerId) -> bool) -> Option<LayerId> {
        let mut freed = self.0.lock();
        let at = freed.iter().position(|(ticket, layer)| may_go(*ticket, *layer))?;
        Some(freed.swap_remove(at).1)
    }

    /// Whether the layer was freed and still waits to be taken.
    pub fn contains(&self, layer: LayerId) -> bool {
        self.0.lock().iter().any(|(_, freed)| *freed == layer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_layer_is_taken_once_and_only_when_it_may_go() {
        let freed = Freed::default();
        freed.add(Ticket::default(), vec![LayerId(1), LayerId(2)]);
        assert_eq!(freed.take(|_, layer| layer == LayerId(3)), None);
        assert_eq!(freed.take(|_, layer| layer == LayerId(2)), Some(LayerId(2)));
        assert!(freed.contains(LayerId(1)) && !freed.contains(LayerId(2)));
        assert_eq!(freed.take(|_, layer| layer == LayerId(2)), None);
    }
}
