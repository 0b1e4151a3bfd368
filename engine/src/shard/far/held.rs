//! Runs of which a block can't be read: what is in it, and behind it in the same run, is held.
//!
//! A run is loaded from its first block on, so that all behind a block that can't be read is held with it; every other run
//! goes on, and so does the rest of the shard. What is held stays pending, is counted, and takes no part in the order of
//! its keys: later events of a key pass it. Nothing says so durably. A start tries again, and where the file was restored
//! meanwhile, what was held is overdue.

use std::collections::BTreeMap;

use escapement_protocol::{ErrorCode, WallMs};

use super::{RunId, Shard};
use crate::effects::{Effects, Ticket};
use crate::far::{RunDamage, RunError};

/// How long a caller should wait who was refused for a block that can't be read.
const RETRY_AFTER_MS: u32 = 60_000;

/// Events of a run that can't be brought back to memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldRun {
    /// Which run.
    pub run: RunId,
    /// The first of its blocks that can't be read.
    pub block: u32,
    /// Pending events in it and behind it.
    pub count: u64,
    /// When the first of them is due, and about when the last is: the first event of the last block.
    pub due: (WallMs, WallMs),
    /// What is wrong.
    pub why: String,
}

/// What is held.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// By run, its first block that can't be read.
    blocks: BTreeMap<RunId, u32>,
    /// Until somebody has looked.
    found: Vec<HeldRun>,
}

impl Held {
    /// The first block of a run that is not to be read, of those before `moved`.
    pub(super) fn end(&self, run: RunId, moved: u32) -> u32 {
        self.blocks.get(&run).map_or(moved, |block| moved.min(*block))
    }
}

impl Shard {
    /// A run can't be read: from the block that is damaged, or where it is not known which one is, from `block` on.
    pub(super) fn hold(&mut self, id: RunId, block: u32, error: &RunError) {
        let block = match error {
            RunError::Damaged(_, RunDamage::Block(damaged)) => *damaged,
            _ => block,
        };
        let far = &mut self.volatile.far;
        let is_known = far.held.blocks.get(&id).is_some_and(|held| *held <= block);
        far.to_read.retain(|(_, of)| *of != id);
        if !is_known {
            far.held.blocks.insert(id, block);
            let found = self.held_run(id, block, error.to_string());
            self.volatile.far.held.found.push(found);
        }
        // What comes before can be read.
        self.more_to_read(id);
    }

    /// Refuses what needs a block that can't be read. One that is damaged is held from now on; a read that has failed may
    /// succeed the next time.
    pub(super) fn refuse_damaged(
        &mut self,
        ticket: Ticket,
        (run, block): (RunId, u32),
        error: &RunError,
        out: &mut Effects,
    ) {
        if let RunError::Damaged(..) = error {
            self.hold(run, block, error);
        }
        let message = format!("{error}; what is in that block is held until then");
        out.refuse(ticket, ErrorCode::Unavailable, RETRY_AFTER_MS, message);
    }

    fn held_run(&self, id: RunId, block: u32, why: String) -> HeldRun {
        let run = self.durable.runs.get(id).expect("a run that is read is known");
        let index = run.footer.as_ref().map_or(&[][..], |footer| &footer.index);
        let due =
            |place: Option<&crate::far::format::BlockPlace>| place.map_or(WallMs(0), |place| place.first.0);
        let last = (run.moved as usize).checked_sub(1).and_then(|last| index.get(last));
        let due = (due(index.get(block as usize)), due(last));
        HeldRun { run: id, block, count: run.pending_from(block), due, why }
    }

    /// Runs that were found since the last call not to be readable.
    pub fn take_held(&mut self) -> Vec<HeldRun> {
        std::mem::take(&mut self.volatile.far.held.found)
    }

    /// Pending events that are held.
    pub(in crate::shard) fn held_count(&self) -> u64 {
        let held = self.volatile.far.held.blocks.iter();
        held.filter_map(|(id, block)| Some(self.durable.runs.get(*id)?.pending_from(*block))).sum()
    }
}
