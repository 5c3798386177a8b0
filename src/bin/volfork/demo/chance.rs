//! Numbers that look random and are the same in every run.

/// The splitmix64 generator.
pub struct Chance(u64);

impl Chance {
    /// A generator that begins at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    /// Bytes that do not compress.
    pub fn noise(&mut self, bytes: usize) -> Vec<u8> {
        let mut noise = Vec::with_capacity(bytes + 8);
        while noise.len() < bytes {
            noise.extend_from_slice(&self.number().to_le_bytes());
        }
        noise.truncate(bytes);
        noise
    }

    /// Bytes that read like a log.
    pub fn prose(&mut self, bytes: usize) -> Vec<u8> {
        const WORDS: [&str; 16] = [
            "block",
            "volume",
            "fork",
            "snapshot",
            "reads",
            "writes",
            "while",
            "hydrating",
            "source",
            "the",
            "of",
            "a",
            "layer",
            "is",
            "present",
            "zero",
        ];
        let mut prose = Vec::with_capacity(bytes + 16);
        while prose.len() < bytes {
            let number = self.number();
            prose.extend_from_slice(WORDS[number as usize % WORDS.len()].as_bytes());
            prose.push(if number >> 60 == 0 { b'\n' } else { b' ' });
        }
        prose.truncate(bytes);
        prose
    }
}
