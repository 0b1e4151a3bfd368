//! What the benches of the pure parts share: loads, and the structures that were considered instead of
//! those in use. The figures are in `docs/decisions/`.
//!
//! `cargo bench -p escapement-bench` runs them all, `--bench wheel` and the like one. They measure the
//! thread's CPU time, as cores are shared with others; figures still move by a fifth between runs:
//! compare those of one run.
#![deny(unsafe_code)]

pub mod clock;
pub mod far;
pub mod intrusive;
pub mod shard;
pub mod table;

/// SplitMix64: the same load in every run.
#[derive(Clone, Copy, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(end)) >> 64) as u64
    }
}
