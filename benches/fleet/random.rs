//! Seeded numbers. Every purpose has its own stream, so that a change of one does not change the others.

use rand_distr::{Distribution, Exp, Uniform};
use rand_pcg::Pcg64;

/// An independent stream of random numbers for a purpose, derived from a seed.
pub fn stream(seed: u64, purpose: u64) -> Pcg64 {
    Pcg64::new(u128::from(seed), u128::from(purpose))
}

/// A number below `limit`, which is not zero.
pub fn below(random: &mut Pcg64, limit: u64) -> u64 {
    Uniform::new(0, limit).expect("a limit above zero").sample(random)
}

/// True with the given probability.
pub fn chance(random: &mut Pcg64, share: f64) -> bool {
    Uniform::new(0.0, 1.0).expect("a range").sample(random) < share
}

/// A time to the next event of a Poisson process, or a life without memory.
pub fn exponential(random: &mut Pcg64, mean: f64) -> f64 {
    Exp::new(1.0 / mean).expect("a mean above zero").sample(random)
}
