//! Bytes that look random or read like a log, and are the same in every run.

#[path = "../../../random.rs"]
mod random;

pub use random::Random;

/// Bytes that read like a log.
pub fn prose(random: &mut Random, bytes: usize) -> Vec<u8> {
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
        prose.extend_from_slice(WORDS[random.index(WORDS.len())].as_bytes());
        prose.push(if random.one_in(16) { b'\n' } else { b' ' });
    }
    prose.truncate(bytes);
    prose
}
