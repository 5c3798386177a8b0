//! Whether something that mostly fails, or mostly succeeds, is worth a try.

/// Guesses the outcome of the next try from the last ones: after each failure in a row twice as many tries are left out.
#[derive(Debug, Default)]
pub struct Guess {
    misses: u32,
    skip: u32,
}

impl Guess {
    /// Tries in a row that are left out at most, as a power of two.
    const SKIP_SHIFT_MAX: u32 = 6;

    /// Whether to try now.
    pub fn is_likely(&mut self) -> bool {
        let likely = self.skip == 0;
        self.skip = self.skip.saturating_sub(1);
        likely
    }

    /// Notes how a try ended.
    pub fn note(&mut self, hit: bool) {
        self.misses = if hit { 0 } else { (self.misses + 1).min(Self::SKIP_SHIFT_MAX) };
        self.skip = (1 << self.misses) - 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_make_tries_rare_until_one_succeeds() {
        let mut guess = Guess::default();
        let mut between = |hit: bool| {
            let mut skipped = 0;
            while !guess.is_likely() {
                skipped += 1;
            }
            guess.note(hit);
            skipped
        };
        assert_eq!([false; 9].map(&mut between), [0, 1, 3, 7, 15, 31, 63, 63, 63]);
        assert_eq!([true, true, false, true].map(between), [63, 0, 0, 1]);
    }
}
