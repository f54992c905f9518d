//! Random choices that a printed seed reproduces. The seed reproduces what a test tries, but not how concurrent tasks
//! interleave.

use std::time::Duration;

/// `SplitMix64` (Steele, Lea and Flood, 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Uses the seed in `SESSIOND_SEED`, or a new one. Prints the seed, so that a failed run can be repeated.
    pub fn seeded() -> Self {
        let seed = match std::env::var("SESSIOND_SEED") {
            Ok(seed) => seed.parse().expect("SESSIOND_SEED is a number"),
            Err(_) => getrandom::u64().expect("random bytes"),
        };
        println!("SESSIOND_SEED={seed}");
        Self(seed)
    }

    /// A generator whose seed is taken from this one.
    pub fn fork(&mut self) -> Self {
        Self(self.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to `end`, exclusive.
    pub fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).expect("a small number");
        usize::try_from(self.next() % end).expect("less than a usize")
    }

    /// One of the choices.
    pub fn one_of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }

    /// A duration from `min_ms` to `max_ms` milliseconds, exclusive.
    pub fn pause(&mut self, min_ms: u64, max_ms: u64) -> Duration {
        Duration::from_millis(min_ms + self.next() % (max_ms - min_ms))
    }
}
