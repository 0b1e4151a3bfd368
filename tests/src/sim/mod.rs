//! The simulator: a second composition root over the parts that a node is made of.
//!
//! Real: [`escapement_node::core::Core`] with everything in it, `LocalWal`, recovery, the wall clock's rules, frames.
//! Simulated: disks that lose power, streams below QUIC, the mesh between cores, clients, and time. One seed decides
//! everything, so that a failing seed fails again, and its trace says how.
//!
//! * [`plan`](self): what a seed's run consists of, drawn before it begins;
//! * `world`, `node`, `net`: the environment, and the node in it, one incarnation after another;
//! * `publisher`, `subscriber`, `control`, `reader`, `copier`, `grouper`: clients that speak frames;
//! * `judge`: what was promised, what came, and whether that is the same.
//!
//! [`Tally`] keeps what many seeds came to. `docs/internals/simulation.md` says what is faulted and what is checked.

mod bug;
mod clock;
mod control;
mod copier;
mod grouper;
mod judge;
mod net;
mod node;
mod plan;
mod publisher;
mod quic;
mod reader;
mod recovery;
mod reschedule;
mod subscriber;
mod tally;
mod trace;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub use bug::Bug;
pub use tally::Tally;
use world::World;

/// How a seed is run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// A fault planted in the composition, to test the tests.
    pub bug: Option<Bug>,
    /// Whether clients speak QUIC in every seed, and not only in some.
    pub quic: bool,
    /// Whether what happens is printed to standard error.
    pub trace: bool,
}

/// What one seed, or many, went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Seeds.
    pub seeds: u64,
    /// Times that the process was killed or lost power, recoveries that were cut included.
    pub crashes: u64,
    /// Of these, recoveries that were cut.
    pub recovery_crashes: u64,
    /// Orderly restarts, after a drain or a disk's error.
    pub restarts: u64,
    /// Events published, resent ones once.
    pub events: u64,
    /// Attempts pushed.
    pub pushes: u64,
    /// Turns of cores.
    pub turns: u64,
    /// Of these, turns in which events were matched by topics in turn.
    pub topic_turns: u64,
    /// QUIC connections that a core has established.
    pub connections: u64,
    /// Datagrams sent, either way.
    pub datagrams: u64,
    /// Snapshots taken, confirmed by the node, and opened.
    pub snapshots: u64,
    /// Listings of pending events that came to their end.
    pub listings: u64,
    /// Pages of them that said that a shard was missing.
    pub listings_without: u64,
    /// Starts without a shard, and shards that stopped while others went on.
    pub shards_out: u64,
}

impl Counts {
    /// Adds those of another run.
    pub fn add(&mut self, other: Counts) {
        self.seeds += other.seeds;
        self.crashes += other.crashes;
        self.recovery_crashes += other.recovery_crashes;
        self.restarts += other.restarts;
        self.events += other.events;
        self.pushes += other.pushes;
        self.turns += other.turns;
        self.topic_turns += other.topic_turns;
        self.connections += other.connections;
        self.datagrams += other.datagrams;
        self.snapshots += other.snapshots;
        self.listings += other.listings;
        self.listings_without += other.listings_without;
        self.shards_out += other.shards_out;
    }
}

/// A run that broke no promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    /// What it went through.
    pub counts: Counts,
    /// A digest of everything that happened, in order: equal for equal seeds.
    pub trace_hash: u64,
}

/// A broken promise, or an assertion of the product.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("seed {seed} at {at_ms} ms: {what}")]
pub struct Failed {
    /// The seed.
    pub seed: u64,
    /// When, in simulated ms; 0 where it panicked.
    pub at_ms: u64,
    /// What.
    pub what: String,
}

/// Runs one seed to its end.
///
/// # Errors
/// The first promise that was broken, or the message of a panic in the product.
pub fn run(seed: u64, options: Options) -> Result<Passed, Failed> {
    let ran = catch_unwind(AssertUnwindSafe(|| World::new(seed, options).run()));
    match ran {
        Ok(Ok(passed)) => Ok(passed),
        Ok(Err((at_ms, what))) => Err(Failed { seed, at_ms, what }),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(Failed { seed, at_ms: 0, what: format!("panicked: {}", text.unwrap_or_default()) })
        }
    }
}
