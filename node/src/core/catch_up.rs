//! What shards miss of the control objects at a start, and who waits until they know it.
//!
//! A shard may have been out of service while a topic was created, or the node may have ended between shard 0's copy and
//! its own. What it misses is the first that goes to its log, and it knows it once that is durable. Until then it would
//! refuse events of that topic; and shard 0, where it is the one that misses something, would give the same numbers to
//! something else. Whoever is listened to can ask for any shard, by way of the mesh: so no core listens to anybody before
//! the shards of all cores know everything.

use escapement_engine::{Input, Message};
use escapement_protocol::Now;

use super::{Core, Inside, LoggedShard, Parcel};

/// How far that is, as one core knows.
#[derive(Debug, Default)]
pub(super) struct CatchUp {
    /// The registry's version that every shard has to hold.
    least_version: u64,
    /// Whether shards of this core miss something, as far as the others were told.
    is_behind: bool,
    /// Other cores that have not told of theirs that they know everything.
    others_count: u16,
}

impl CatchUp {
    /// Whether every shard of the node that serves knows everything.
    pub(super) fn is_over(&self) -> bool {
        !self.is_behind && self.others_count == 0
    }

    /// The shards of another core know everything.
    pub(super) fn other_is_done(&mut self) {
        self.others_count = self.others_count.saturating_sub(1);
    }
}

impl<S: Copy + Eq + std::hash::Hash> Core<S> {
    /// Shards of this core that miss control objects of the newest registry, now at `version`, take in `records` of
    /// them: empty where no shard of the node misses any. No peer is listened to before they are durable in all. Call
    /// once, before the first turn, at every core.
    pub fn catch_up(&mut self, now: Now, version: u64, records: &[u8]) {
        let inside = &mut self.inside;
        inside.now = now;
        if !records.is_empty() {
            let others_count = inside.config.core_count - 1;
            inside.catch_up = CatchUp { least_version: version, is_behind: true, others_count };
        }
        for index in 0..inside.shards.len() {
            let Some(logged) = &inside.shards[index] else { continue };
            if logged.shard().registry().version() < version {
                let (shard, record) = (logged.id(), records.to_vec());
                inside.step(shard, Input::Message(Message::Control { record }), None);
            }
        }
        self.settle(now);
    }
}

impl<S> Inside<S> {
    /// Tells the other cores once that the shards of this one know everything. One that has stopped is not waited for.
    pub(super) fn notice_caught_up(&mut self) {
        let CatchUp { least_version, is_behind, .. } = self.catch_up;
        let knows = |logged: &LoggedShard| logged.shard().registry().version() >= least_version;
        let is_known =
            || self.shards.iter().flatten().all(|logged| logged.failure().is_some() || knows(logged));
        if !is_behind || !is_known() {
            return;
        }
        self.catch_up.is_behind = false;
        for core in (0..self.config.core_count).filter(|core| *core != self.config.core) {
            self.mail[usize::from(core)].push(Parcel::CaughtUp);
        }
    }
}
