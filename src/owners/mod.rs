//! The owner map: block -> the layer that answers for it.
//!
//! A persistent radix tree over extents (four levels of 64). A fork clones the root; a change copies the path to one leaf.
//! Parts that no request has touched are unresolved cells; a cell is resolved once, for all maps that share it.
//!
//! # Invariants
//! - An unresolved cell means the same to every map that shares it: a map resolves an extent before it changes it, so the
//!   open layers above the point where the maps parted hold nothing in it.
//! - Reads do not depend on the depth of the chain: only resolving does, once an extent.
#![deny(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::cast_lossless)]
#![cfg_attr(all(feature = "sim", not(test)), deny(clippy::disallowed_methods))]

mod leaf;

use std::ops::Range;
use std::sync::Arc;

pub use leaf::{Leaf, Owner, OwnerRuns};

use crate::place::{Extent, IndexSpan};
use crate::sync::OnceLock;

/// log2 of the children of an inner node.
const FANOUT_BITS: u32 = 6;
const FANOUT: usize = 1 << FANOUT_BITS;
/// Levels of inner nodes above the leaves.
const LEVELS: u32 = 4;
const _: () = assert!(1u32 << (FANOUT_BITS * LEVELS) > Extent::LAST.number());

#[derive(Clone)]
enum Node {
    /// Every block below has this owner.
    Uniform(Owner),
    /// The children.
    Inner(Box<[Arc<Cell>; FANOUT]>),
    /// The runs of one extent.
    Leaf(Leaf),
}

#[derive(Clone, Default)]
struct Cell(OnceLock<Node>);

impl Cell {
    fn of(node: Node) -> Arc<Self> {
        Arc::new(Self(OnceLock::from(node)))
    }

    fn get(&self, level: u32, resolve: impl FnOnce() -> Leaf) -> &Node {
        self.0.get_or_init(|| match level {
            0 => Node::Leaf(resolve()),
            _ => Node::Inner(Box::new(std::array::from_fn(|_| Arc::default()))),
        })
    }
}

/// Which child of a node at `level` leads to `extent`.
fn child(level: u32, extent: Extent) -> usize {
    (extent.number() >> (FANOUT_BITS * (level - 1))) as usize % FANOUT
}

/// Owners of all blocks of a volume or snapshot.
#[derive(Clone, Default)]
pub struct OwnerMap {
    root: Arc<Cell>,
}

impl OwnerMap {
    /// Appends the runs of a span of an extent to `runs`.
    pub fn runs(&self, extent: Extent, span: IndexSpan, resolve: impl FnOnce() -> Leaf, runs: &mut OwnerRuns) {
        let mut cell = &self.root;
        let mut level = LEVELS;
        let mut resolve = Some(resolve);
        loop {
            let node = cell.get(level, || resolve.take().map_or_else(Leaf::default, |resolve| resolve()));
            match node {
                Node::Uniform(owner) => return runs.push((span, *owner)),
                Node::Leaf(leaf) => return leaf.runs(span, runs),
                Node::Inner(children) => cell = &children[child(level, extent)],
            }
            level -= 1;
        }
    }

    /// Gives a span of an extent to `owner`.
    pub fn set(&mut self, extent: Extent, span: IndexSpan, owner: Owner, resolve: impl FnOnce() -> Leaf) {
        let mut cell = &mut self.root;
        let mut level = LEVELS;
        let mut resolve = Some(resolve);
        loop {
            // The shared cell is resolved before it is copied: the other maps share the result, and never see this change.
            cell.get(level, || resolve.take().map_or_else(Leaf::default, |resolve| resolve()));
            let Some(node) = Arc::make_mut(cell).0.get_mut() else { return };
            if let Node::Uniform(uniform) = *node {
                if uniform == owner {
                    return;
                }
                *node = match level {
                    0 => Node::Leaf(Leaf::uniform(uniform)),
                    _ => Node::Inner(Box::new(std::array::from_fn(|_| Cell::of(Node::Uniform(uniform))))),
                };
            }
            match node {
                Node::Leaf(leaf) => return leaf.set(span, owner),
                Node::Inner(children) => cell = &mut children[child(level, extent)],
                Node::Uniform(_) => return,
            }
            level -= 1;
        }
    }

    /// Gives an extent another leaf.
    pub fn renew(&mut self, extent: Extent, leaf: Leaf) {
        let mut cell = &mut self.root;
        for level in (1..=LEVELS).rev() {
            cell.get(level, Leaf::default);
            let Some(node) = Arc::make_mut(cell).0.get_mut() else { return };
            if let Node::Uniform(uniform) = *node {
                *node = Node::Inner(Box::new(std::array::from_fn(|_| Cell::of(Node::Uniform(uniform)))));
            }
            let Node::Inner(children) = node else { return };
            cell = &mut children[child(level, extent)];
        }
        *cell = Cell::of(Node::Leaf(leaf));
    }

    /// Gives the extents from `first` to `last`, which is one of them, to `owner`, without resolving them.
    pub fn set_extents(&mut self, first: Extent, last: Extent, owner: Owner) {
        Self::set_subtree(&mut self.root, LEVELS, 0, &(first.number()..last.number() + 1), owner);
    }

    fn set_subtree(cell: &mut Arc<Cell>, level: u32, first: u32, extents: &Range<u32>, owner: Owner) {
        let span = 1u32 << (FANOUT_BITS * level);
        if extents.end <= first || extents.start >= first + span {
            return;
        }
        if extents.start <= first && first + span <= extents.end {
            *cell = Cell::of(Node::Uniform(owner));
            return;
        }
        cell.get(level, Leaf::default);
        let Some(node) = Arc::make_mut(cell).0.get_mut() else { return };
        if let Node::Uniform(uniform) = *node {
            *node = Node::Inner(Box::new(std::array::from_fn(|_| Cell::of(Node::Uniform(uniform)))));
        }
        if let Node::Inner(children) = node {
            let step = 1 << (FANOUT_BITS * (level - 1));
            for (child, first) in children.iter_mut().zip((first..first + span).step_by(step)) {
                Self::set_subtree(child, level - 1, first, extents, owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::LayerId;

    fn extent(number: u32) -> Extent {
        Extent::new(number).unwrap()
    }

    fn all(map: &OwnerMap, number: u32) -> Vec<(Range<u32>, Owner)> {
        let mut runs = OwnerRuns::new();
        map.runs(extent(number), IndexSpan::FULL, || Leaf::uniform(Owner::Layer(LayerId(7))), &mut runs);
        runs.into_iter().map(|(span, owner)| (span.range(), owner)).collect()
    }

    #[test]
    fn forks_share_what_neither_changed_and_only_that() {
        let mut base = OwnerMap::default();
        let resolve = || Leaf::uniform(Owner::Layer(LayerId(7)));
        base.set(extent(5), IndexSpan::new(10, 20), Owner::Layer(LayerId(1)), resolve);
        let mut fork = base.clone();
        fork.set(extent(5), IndexSpan::new(15, 30), Owner::Layer(LayerId(2)), resolve);
        fork.set_extents(extent(100), extent(69_999), Owner::Zero);
        let (seven, one, two) = (Owner::Layer(LayerId(7)), Owner::Layer(LayerId(1)), Owner::Layer(LayerId(2)));
        assert_eq!(all(&base, 5), [(0..10, seven), (10..20, one), (20..1024, seven)]);
        assert_eq!(all(&fork, 5), [(0..10, seven), (10..15, one), (15..30, two), (30..1024, seven)]);
        for number in [100, 4095, 4096, 69_999] {
            assert_eq!(all(&fork, number), [(0..1024, Owner::Zero)]);
            assert_eq!(all(&base, number), [(0..1024, seven)]);
        }
        assert_eq!(all(&fork, 99), [(0..1024, seven)]);
        assert_eq!(all(&fork, 70_000), [(0..1024, seven)]);
        fork.set(extent(4096), IndexSpan::new(0, 1), two, || panic!("a uniform extent needs no resolving"));
        assert_eq!(all(&fork, 4096), [(0..1, two), (1..1024, Owner::Zero)]);
    }

    #[test]
    fn a_renewed_extent_changes_one_map_alone() {
        let mut base = OwnerMap::default();
        let owner = |layer| Owner::Layer(LayerId(layer));
        assert_eq!(all(&base, 5), [(0..1024, owner(7))]);
        base.set_extents(extent(64), extent(127), Owner::Zero);
        let mut fork = base.clone();
        for number in [5, 70] {
            fork.renew(extent(number), Leaf::uniform(owner(3)));
            assert_eq!(all(&fork, number), [(0..1024, owner(3))]);
        }
        assert_eq!((all(&base, 5), all(&base, 70)), (vec![(0..1024, owner(7))], vec![(0..1024, Owner::Zero)]));
        assert_eq!((all(&fork, 6), all(&fork, 71)), (vec![(0..1024, owner(7))], vec![(0..1024, Owner::Zero)]));
    }

    #[test]
    fn an_extent_is_resolved_once_for_all_forks() {
        let base = OwnerMap::default();
        let fork = base.clone();
        let count = std::cell::Cell::new(0);
        for map in [&base, &fork, &base] {
            let mut runs = OwnerRuns::new();
            let resolve = || {
                count.set(count.get() + 1);
                Leaf::uniform(Owner::Zero)
            };
            map.runs(extent(1 << 20), IndexSpan::new(0, 4), resolve, &mut runs);
            assert_eq!(runs.into_vec(), [(IndexSpan::new(0, 4), Owner::Zero)]);
        }
        assert_eq!(count.get(), 1);
    }
}
