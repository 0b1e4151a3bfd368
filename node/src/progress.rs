//! How far the shards' recovery is: written by their threads, told once a second.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use escapement_wal::RecoveredBlock;
use escapement_wal::disk::SEGMENT_DIR;
use escapement_wal::format::extent_size_bytes;

/// One shard's.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Bytes of its segment files; the log in them may be shorter.
    size_bytes: u64,
    replayed_bytes: AtomicU64,
    record_count: AtomicU64,
    is_done: AtomicBool,
}

impl Progress {
    /// Of a shard in `dir` whose recovery has not begun.
    pub(crate) fn of(dir: &Path) -> Progress {
        let files = std::fs::read_dir(dir.join(SEGMENT_DIR)).into_iter().flatten().flatten();
        // What cannot be looked at is for recovery to say.
        let sizes = files.filter_map(|file| Some(file.metadata().ok()?.len()));
        Progress { size_bytes: sizes.sum(), ..Progress::default() }
    }

    pub(crate) fn replayed(&self, block: &RecoveredBlock<'_>) {
        self.replayed_bytes.fetch_add(extent_size_bytes(block.records.len()) as u64, Ordering::Relaxed);
        self.record_count.fetch_add(u64::from(block.record_count), Ordering::Relaxed);
    }

    pub(crate) fn done(&self) {
        self.is_done.store(true, Ordering::Relaxed);
    }
}

/// All shards' progress in a line.
pub(crate) fn told(shards: &[Progress]) -> String {
    let sum = |of: &dyn Fn(&Progress) -> u64| shards.iter().map(of).sum::<u64>();
    let replayed = sum(&|shard| shard.replayed_bytes.load(Ordering::Relaxed));
    let records = sum(&|shard| shard.record_count.load(Ordering::Relaxed));
    let done = shards.iter().filter(|shard| shard.is_done.load(Ordering::Relaxed)).count();
    format!(
        "recovering: {} of at most {} MiB of the logs replayed, {records} records, {done} of {} shards done",
        replayed >> 20,
        sum(&|shard| shard.size_bytes) >> 20,
        shards.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_sums_up_all_shards() {
        let shards = [Progress { size_bytes: 5 << 20, ..Progress::default() }, Progress::default()];
        shards[0].replayed_bytes.store(3 << 20, Ordering::Relaxed);
        shards[0].record_count.store(9, Ordering::Relaxed);
        shards[1].done();
        let line = "recovering: 3 of at most 5 MiB of the logs replayed, 9 records, 1 of 2 shards done";
        assert_eq!(told(&shards), line);
    }
}
