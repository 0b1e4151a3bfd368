//! Real power cuts: a node works on a disk of which every write is logged, and the disk is brought to what it may hold
//! after the power failed at any of them.
//!
//! `qemu-storage-daemon` logs what reaches the disk (`blklogwrites`) below a loop device with ext4 on it. A node
//! serves a small load there; for each acknowledgement it is noted how far the disk's log was. For a cut, the writes up
//! to the last flush before it are replayed, and any sectors of those behind; ext4 repairs itself when it is mounted,
//! the shards recover, and every event that was acknowledged before the cut and not yet answered must be there.
//!
//! It takes root and Linux; [`missing`] says what is not there.

mod cut;
mod load;
mod log;
pub(crate) mod rig;

use std::path::Path;
use std::time::{Duration, Instant};

use escapement_wal::memory::Rng;

pub use cut::Counts;
use cut::Cutter;
pub use rig::missing;

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Cuts at most.
    pub cuts: u64,
    /// What decides where they are and what is lost.
    pub seed: u64,
    /// How long the node works.
    pub work: Duration,
    /// From when on no other cut is made.
    pub most: Duration,
    /// The disk forgets writes though it said that they are safe: a planted bug, which must be found.
    pub lies: bool,
}

/// Lets a node work and cuts its power. Files go to `dir`, up to 2 GiB; `program` is a node's.
///
/// # Errors
/// What is wrong after a cut, or which tool failed.
///
/// # Panics
/// If the node ends by itself, or refuses an event.
pub fn run(plan: Plan, program: &Path, dir: &Path) -> Result<Counts, String> {
    let began = Instant::now();
    let disk = rig::LoggedDisk::new(dir)?;
    let heard = load::run(&disk, program, dir, plan.work);
    let log = disk.log().to_owned();
    drop(disk);
    let mut rng = Rng::new(plan.seed);
    let cutter = Cutter::new(&log, &heard, (dir, program), plan.lies);
    let mut cutter = cutter.map_err(|error| format!("the disk's log: {error}"))?;
    for place in cutter.places(plan.cuts, &mut rng) {
        if began.elapsed() >= plan.most {
            break;
        }
        cutter.cut(place, &mut rng).map_err(|what| format!("cut before entry {place}: {what}"))?;
    }
    Ok(cutter.counts)
}
