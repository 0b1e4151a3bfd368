//! What always holds, and a digest of what a crash must not change.

use super::{Durable, Shard};
use crate::far::Closing;

impl Shard {
    /// Asserts every invariant. Linear in what is pending: for tests and simulation.
    ///
    /// # Panics
    /// If one does not hold.
    pub fn check(&self) {
        let Durable { table, payloads, ledger, copies, progress, next_sequence, runs, .. } = &self.durable;
        runs.check();
        assert_eq!(ledger.live(), table.len() as u64, "each pending event counts once in its block");
        assert_eq!(copies.pending(), table.len(), "each pending event counts once in its topic");
        let bytes: usize = table.iter().map(|(_, entry)| payloads.event(entry.location).len() + 8).sum();
        assert_eq!(bytes, payloads.live_bytes(), "each pending event has one payload");
        for sequence in progress.events() {
            assert!(table.get(sequence).is_some(), "progress belongs to pending events");
        }
        assert!(
            table.iter().all(|(sequence, _)| sequence.0 < *next_sequence),
            "sequences are given out once"
        );
        self.router.check();
    }

    /// A digest of the durable state, equal before a crash and after recovery from the same log.
    #[must_use]
    pub fn state_hash(&self) -> u64 {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        let mut add = |bytes: &[u8]| hasher.update(bytes);
        for (sequence, entry) in self.durable.table.iter() {
            add(&sequence.0.to_le_bytes());
            add(&entry.due.0.to_le_bytes());
            add(&entry.topic.0.to_le_bytes());
            add(self.durable.payloads.event(entry.location));
            let mut tasks: Vec<_> = self.durable.progress.get(sequence).to_vec();
            tasks.sort_unstable_by_key(|task| task.subscription);
            for task in tasks {
                add(format!("{task:?}").as_bytes());
            }
        }
        for (id, run) in self.durable.runs.iter().filter(|(_, run)| run.closing != Closing::Closed) {
            for number in [id.0, run.moved, run.loaded] {
                add(&number.to_le_bytes());
            }
            for (due, sequence) in run.ended_not_loaded() {
                add(&due.0.to_le_bytes());
                add(&sequence.0.to_le_bytes());
            }
        }
        let mut control = Vec::new();
        let mut count = 0;
        self.durable.registry.write_since(0, &mut crate::record::RecordWriter::new(&mut control, &mut count));
        add(&control);
        add(&self.durable.next_sequence.to_le_bytes());
        hasher.digest()
    }
}
