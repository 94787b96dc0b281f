//! Random damage to good input, for decoders: a test like any other, with more runs where there is time.
//!
//! In   seeds (good input, and cases that failed once) and words of the format
//! Out  the check is run on every seed and on mutations of them; a case that panics is shown with how to run it again
//! `RKUBE_FUZZ_RUNS` is the number of mutations of each target (default 2,000), `RKUBE_SEED` where they begin.

use rkube_apimachinery::random::{SeededRandom, below};

/// As much stack as the server's threads have: unoptimized decoders need more than a test's thread has for the deepest
/// input they accept.
const STACK_BYTES: usize = 8 * 1024 * 1024;
/// What is inserted at once.
const REPEATED_MAX: u64 = 2_000;
/// Cases do not grow without end.
const CASE_BYTES_MAX: usize = 64 * 1024;

/// One target.
pub struct Fuzz {
    name: &'static str,
    seeds: Vec<Vec<u8>>,
    words: &'static [&'static str],
}

/// Shows the case when the check panics.
struct Case<'a> {
    name: &'a str,
    seed: u64,
    run: u64,
    bytes: &'a [u8],
}

impl Drop for Case<'_> {
    #[allow(clippy::print_stderr, reason = "the case is what a failed test is about")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (name, seed, run) = (self.name, self.seed, self.run);
            eprintln!("{name}: RKUBE_SEED={seed}, run {run}, case b\"{}\"", self.bytes.escape_ascii());
        }
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

impl Fuzz {
    /// `words` are what the format is made of.
    pub fn new<S: AsRef<[u8]>>(
        name: &'static str,
        words: &'static [&'static str],
        seeds: impl IntoIterator<Item = S>,
    ) -> Self {
        let seeds: Vec<Vec<u8>> = seeds.into_iter().map(|seed| seed.as_ref().to_vec()).collect();
        assert!(!seeds.is_empty(), "{name} has seeds");
        Self { name, seeds, words }
    }

    /// Runs `check` on all cases. It panics where it finds a fault.
    pub fn run(&self, check: impl FnMut(&[u8]) + Send) {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
            let running = thread.spawn_scoped(scope, || self.run_here(check)).expect("a thread");
            if let Err(panic) = running.join() {
                std::panic::resume_unwind(panic);
            }
        });
    }

    fn run_here(&self, mut check: impl FnMut(&[u8])) {
        let (runs, seed) = (number("RKUBE_FUZZ_RUNS", 2_000), number("RKUBE_SEED", 1));
        for bytes in &self.seeds {
            let _case = Case { name: self.name, seed, run: 0, bytes };
            check(bytes);
        }
        for run in 1..=runs {
            // Each run is a function of its number, so that it can be had again alone.
            let random = SeededRandom::new(seed.wrapping_mul(1_000_003).wrapping_add(run));
            let bytes = self.case(&random);
            let _case = Case { name: self.name, seed, run, bytes: &bytes };
            check(&bytes);
        }
    }

    fn case(&self, random: &SeededRandom) -> Vec<u8> {
        let mut bytes = self.pick(random, &self.seeds).clone();
        for _ in 0..=below(random, 4) {
            self.damage(random, &mut bytes);
        }
        bytes.truncate(CASE_BYTES_MAX);
        bytes
    }

    fn pick<'a, T>(&self, random: &SeededRandom, of: &'a [T]) -> &'a T {
        &of[place(random, of.len() - 1)]
    }

    fn damage(&self, random: &SeededRandom, bytes: &mut Vec<u8>) {
        let at = place(random, bytes.len());
        let end = (at + place(random, 24)).min(bytes.len());
        match below(random, 9) {
            0 if at < bytes.len() => bytes[at] ^= 1 << below(random, 8),
            1 if at < bytes.len() => bytes[at] = byte(random),
            2 => drop(bytes.drain(at..end)),
            3 => bytes.truncate(at),
            4 => {
                let copy = bytes[at..end].to_vec();
                insert(bytes, end, &copy);
            }
            5 => {
                let other = self.pick(random, &self.seeds);
                let from = place(random, other.len());
                let to = (from + place(random, 64)).min(other.len());
                insert(bytes, at, &other[from..to]);
            }
            6 if !self.words.is_empty() => {
                let word = self.pick(random, self.words);
                let times = below(random, REPEATED_MAX);
                insert(bytes, at, word.repeat(usize::try_from(times).unwrap_or_default()).as_bytes());
            }
            7 if !self.words.is_empty() => {
                let word = self.pick(random, self.words);
                bytes.splice(at..end, word.bytes());
            }
            _ => insert(bytes, at, &[byte(random)]),
        }
    }
}

fn insert(bytes: &mut Vec<u8>, at: usize, what: &[u8]) {
    bytes.splice(at..at, what.iter().copied());
}

/// A number up to and with `last`.
fn place(random: &SeededRandom, last: usize) -> usize {
    usize::try_from(below(random, last as u64 + 1)).unwrap_or_default()
}

fn byte(random: &SeededRandom) -> u8 {
    u8::try_from(below(random, 256)).unwrap_or_default()
}
