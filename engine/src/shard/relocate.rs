//! Making the oldest blocks of the log unnecessary: what they hold and is still needed is appended again.

use hashbrown::HashSet;

use escapement_protocol::Sequence;

use super::Shard;
use crate::effects::Effects;

impl Shard {
    /// Forgets blocks that hold nothing needed, and returns the newest block that may be trimmed.
    pub fn releasable(&mut self) -> u64 {
        let registry = self.durable.registry.oldest_block().unwrap_or(u64::MAX);
        // Marks are evidence for the counter of sequences: the newest one stays.
        let limit = registry.min(self.durable.ledger.evidence());
        self.durable.ledger.release(limit).saturating_sub(1)
    }

    /// Appends again what blocks up to `upto` hold and is still needed, at most about `budget_bytes` now.
    ///
    /// Call again while the blocks are not releasable. Ids do not change.
    pub fn relocate(&mut self, upto: u64, budget_bytes: usize, out: &mut Effects) {
        let budget_end = out.records.len() + budget_bytes;
        let registry = self.durable.registry.oldest_block().is_some_and(|block| block <= upto);
        if (registry || self.durable.ledger.evidence() <= upto) && !self.volatile.relocating_registry {
            self.volatile.relocating_registry = true;
            if registry {
                self.durable.registry.write_since(0, &mut out.log());
            }
            // After the registry: the mark's application says that both are done.
            out.log().mark(Sequence(self.volatile.next_sequence));
        }
        let from = self.volatile.relocated_upto;
        if from > upto {
            return;
        }
        // The end of these is in the log before the copy would be: a copy would bring them back in replay.
        let ending: HashSet<Sequence> = self.volatile.ending.iter().copied().collect();
        let candidates: Vec<(u64, Sequence)> = self.durable.ledger.candidates(from, upto).collect();
        let mut complete = upto + 1;
        for (block, sequence) in candidates {
            if out.records.len() >= budget_end {
                complete = block;
                break;
            }
            let Some(entry) = self.durable.table.get(sequence) else { continue };
            if entry.block != block as u32 || ending.contains(&sequence) {
                continue;
            }
            let event = self.durable.payloads.event(entry.location);
            let progress = self.durable.progress.get(&sequence).map_or(&[][..], |tasks| tasks.as_slice());
            out.log().relocated(entry.topic, sequence, entry.due, progress, event);
        }
        self.volatile.relocated_upto = complete;
    }
}
