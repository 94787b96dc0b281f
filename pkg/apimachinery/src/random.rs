//! Randomness comes in by argument: names, jitter, sampling.
//!
//! Behaves as apimachinery/pkg/util/rand and apiserver/pkg/storage/names, v1.36.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

/// A source of random numbers.
pub trait Random: Send + Sync + fmt::Debug {
    fn next_u64(&self) -> u64;
}

pub type SharedRandom = Arc<dyn Random>;

/// The process's generator, seeded by the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn next_u64(&self) -> u64 {
        rand::rng().next_u64()
    }
}

/// Repeats itself for equal seeds.
#[derive(Debug)]
pub struct SeededRandom(Mutex<StdRng>);

impl SeededRandom {
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }

    pub fn shared(seed: u64) -> SharedRandom {
        Arc::new(Self::new(seed))
    }
}

impl Random for SeededRandom {
    fn next_u64(&self) -> u64 {
        self.0.lock().next_u64()
    }
}

/// Without vowels and the digits that look like letters, so that no word appears by chance.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// Longest base that leaves room for the suffix in 63 characters.
pub const MAX_GENERATED_NAME_BASE: usize = 63 - SUFFIX_LENGTH;
const SUFFIX_LENGTH: usize = 5;

/// `length` random characters of the name alphabet.
pub fn string(random: &dyn Random, length: usize) -> String {
    let mut out = String::with_capacity(length);
    while out.len() < length {
        // Twelve groups of five bits; groups beyond the alphabet are skipped to keep letters equally likely.
        let mut bits = random.next_u64();
        for _ in 0..12 {
            if let Some(letter) = ALPHABET.get((bits & 31) as usize)
                && out.len() < length
            {
                out.push(char::from(*letter));
            }
            bits >>= 5;
        }
    }
    out
}

/// A name for `metadata.generateName`.
pub fn generate_name(random: &dyn Random, base: &str) -> String {
    let mut end = base.len().min(MAX_GENERATED_NAME_BASE);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{}", &base[..end], string(random, SUFFIX_LENGTH))
}

/// Maps any text, such as a hash in decimal, to the name alphabet, one letter for one.
pub fn safe_encode(text: &str) -> String {
    text.chars().map(|character| char::from(ALPHABET[u32::from(character) as usize % ALPHABET.len()])).collect()
}

/// Uniform in `[0, 1)`.
pub fn unit(random: &dyn Random) -> f64 {
    // 53 bits are what a double holds.
    (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// Uniform in `[0, limit)`; 0 for a limit of 0.
pub fn below(random: &dyn Random, limit: u64) -> u64 {
    ((u128::from(random.next_u64()) * u128::from(limit)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_their_base_and_fit() {
        let random = SeededRandom::new(1);
        let name = generate_name(&random, "web-");
        assert!(name.starts_with("web-") && name.len() == 9, "{name}");
        assert!(name[4..].bytes().all(|letter| ALPHABET.contains(&letter)), "{name}");
        assert_ne!(name, generate_name(&random, "web-"));
        assert_eq!(generate_name(&random, &"x".repeat(80)).len(), 63);
        assert_eq!(name, generate_name(&SeededRandom::new(1), "web-"));
    }

    #[test]
    fn encodes_as_upstream() {
        assert_eq!(safe_encode("0123456789"), "456789bcdf");
        assert_eq!(safe_encode("az"), "vs");
    }
}
