//! Making the oldest blocks of the log unnecessary: what they hold and is still needed is appended again.

use escapement_protocol::{Outcome, Sequence};

use super::apply::{Change, Progressed, Tasks};
use super::ledger::Place;
use super::{Shard, Volatile};
use crate::effects::Effects;
use crate::far::{Closing, Run};
use crate::record::TaskProgress;

/// Most tasks whose progress one `Relocated` record states; those beyond follow as records of their own.
pub(super) const PROGRESS_COUNT_MAX: usize = 128;

/// Bytes of what is said again of runs in one call, unless it is of a single run.
const STATEMENTS_SIZE_BYTES_MAX: usize = 64 * 1024;

impl Shard {
    /// Forgets blocks that hold nothing needed, and returns the newest block that may be trimmed.
    pub fn releasable(&mut self) -> u64 {
        let registry = self.durable.registry.oldest_block().unwrap_or(u64::MAX);
        let registry = registry.min(self.durable.runs.oldest_block().unwrap_or(u64::MAX));
        let registry = registry.min(self.durable.names.oldest_block().unwrap_or(u64::MAX));
        let registry = registry.min(self.durable.groups.oldest_block().unwrap_or(u64::MAX));
        // Marks are evidence for the counter of sequences: the newest one stays.
        let limit = registry.min(self.durable.ledger.evidence());
        self.durable.ledger.release(limit).saturating_sub(1)
    }

    /// Appends again the control objects and the counters that blocks up to `upto` hold. They are few and live for
    /// good: left where they are, they would keep every later block from being freed.
    pub fn relocate_control(&mut self, upto: u64, out: &mut Effects) {
        let registry = self.durable.registry.oldest_block().is_some_and(|block| block <= upto);
        if (registry || self.durable.ledger.evidence() <= upto) && !self.volatile.relocating_registry {
            self.volatile.relocating_registry = true;
            if registry {
                self.durable.registry.write_since(0, &mut out.log());
            }
            // After the registry: the mark's application says that both are done.
            out.log().mark(Sequence(self.volatile.next_sequence));
        }
        self.restate_names_runs(upto, out);
        if self.durable.runs.oldest_block().is_some_and(|block| block <= upto) {
            // What closes one is on its way already.
            let is_old = |run: &Run| {
                run.closing == Closing::Open
                    && !run.is_stating
                    && run.block.is_some_and(|block| block <= upto)
            };
            let old = self.durable.runs.iter().filter(|(_, run)| is_old(run));
            let budget_end = out.records.len() + STATEMENTS_SIZE_BYTES_MAX;
            for id in old.map(|(id, _)| id).collect::<Vec<_>>() {
                if out.records.len() >= budget_end {
                    break;
                }
                self.state_run(id, out);
            }
        }
    }

    /// Appends again what blocks up to `upto` hold and is still needed, at most about `budget_bytes` of events now.
    ///
    /// Call again while the blocks are not releasable. Ids do not change.
    pub fn relocate(&mut self, upto: u64, budget_bytes: usize, out: &mut Effects) {
        self.relocate_control(upto, out);
        let budget_end = out.records.len() + budget_bytes;
        self.restate_names(upto, budget_end, out);
        self.restate_groups(upto, budget_end, out);
        let from = self.volatile.relocated_upto;
        if from.block > upto {
            return;
        }
        let (now, horizon) = (self.volatile.now.mono, self.horizon());
        let run_size_bytes = self.config.run_size_bytes;
        let Volatile { ending, progressed, rescheduling, relocated_upto, far, grouping, .. } =
            &mut self.volatile;
        // The end of these is in the log before the copy would be: a copy would bring them back in replay.
        let mut ending: Vec<Sequence> = ending.iter().copied().collect();
        ending.sort_unstable();
        // A copy stands for all that the log says of an event before it, applied here or not.
        let mut unapplied: Vec<Progressed> = progressed.iter().copied().collect();
        unapplied.sort_by_key(|progressed| progressed.sequence);
        let mut more: Vec<(Sequence, TaskProgress)> = Vec::new();
        *relocated_upto = Place { block: upto + 1, index: 0 };
        for (place, sequence) in self.durable.ledger.candidates(from, upto) {
            if out.records.len() >= budget_end {
                *relocated_upto = place;
                break;
            }
            let Some(entry) = self.durable.table.get(sequence) else { continue };
            if entry.block != place.block as u32 || ending.binary_search(&sequence).is_ok() {
                continue;
            }
            // Its way to a run is in the log before the copy would be, likewise.
            if far.is_moving(sequence).is_some() {
                continue;
            }
            // As all that the log says of it before has it, applied here or not.
            let changing = rescheduling.get(&sequence);
            let due = changing.map_or(entry.due, |changing| changing.due);
            let forward = changing.map(|changing| changing.forward);
            let forward = forward.or_else(|| self.durable.forwards.get(&sequence).copied());
            // A run is where it belongs, not the log once more.
            if due > horizon && far.awaits_flush(now, place, run_size_bytes) {
                *relocated_upto = place;
                break;
            }
            let event = self.durable.payloads.event(entry.location);
            let mut tasks = Tasks::from_slice(self.durable.progress.get(sequence));
            let at = unapplied.partition_point(|progressed| progressed.sequence < sequence);
            for progressed in unapplied[at..].iter().take_while(|p| p.sequence == sequence) {
                progressed.apply_to(&mut tasks);
            }
            let (inline, rest) = tasks.split_at(tasks.len().min(PROGRESS_COUNT_MAX));
            let has_left = self.durable.groups.has_left(sequence) || grouping.was_handed_out(sequence);
            out.log().relocated(entry.topic, sequence, due, (forward, has_left), inline, event);
            more.extend(rest.iter().map(|task| (sequence, *task)));
        }
        // Later than the copy that they belong to, which is all that counts.
        for (sequence, task) in more {
            self.log_progress(sequence, task, out);
        }
    }

    /// States a task's progress by the records that made it so.
    fn log_progress(&mut self, sequence: Sequence, task: TaskProgress, out: &mut Effects) {
        let TaskProgress { subscription, done, attempt, excused, next_due } = task;
        if attempt > 0 {
            self.log_attempt_failed(subscription, sequence, attempt, excused, next_due, out);
        }
        if done {
            out.log().completed(subscription, Outcome::Succeeded, false, &[sequence]);
            self.volatile.progressed.push_back(Progressed { sequence, subscription, change: Change::Done });
        }
    }
}
